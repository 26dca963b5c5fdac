"""Hooks: what a program is told, whose it must be, and what comes of its failure."""

import os
from pathlib import Path

import pytest
import trio
import trio.testing

from fusejournal.config import Config
from fusejournal.errors import HookFailedError, PromotionRefusedError
from fusejournal.node.hooks import RoleHooks, undoing
from fusejournal.node.spec import MountSpec
from fusejournal.volume.trouble import TroubleKind

pytestmark = pytest.mark.mount  # whose owner is root


def hooks(tmp_path: Path, **config: object) -> RoleHooks:
    checked = Config.of({"hooks": config})
    places = tmp_path / "state", tmp_path / "backing", tmp_path / "mount"
    return RoleHooks(MountSpec("vol", *places, checked, False, frozenset()))


def program(tmp_path: Path, text: str, mode: int = 0o755) -> str:
    path = tmp_path / "hook"
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(mode)
    return str(path)


async def test_a_program_is_told_what_happens(tmp_path: Path) -> None:
    out = tmp_path / "out"
    command = program(tmp_path, f'env | grep ^FUSEJOURNAL_ | sort > "{out}"; echo "$1" "$PWD"')
    called = hooks(tmp_path, before=[f"{command} 'one word'"])
    await called.before("primary", "3/feed", "west")
    told = dict(line.split("=", 1) for line in out.read_text().splitlines())
    assert {
        "FUSEJOURNAL_WHEN": "before",
        "FUSEJOURNAL_ROLE": "primary",
        "FUSEJOURNAL_REIGN": "3/feed",
        "FUSEJOURNAL_PEER": "west",
        "FUSEJOURNAL_VOLUME": "vol",
        "FUSEJOURNAL_MOUNTPOINT": str(tmp_path / "mount"),
        "FUSEJOURNAL_STATE": str(tmp_path / "state"),
    }.items() <= told.items()
    assert not called.can_fence


async def test_a_failure_is_told_and_ends_what_comes_before(tmp_path: Path) -> None:
    bad = program(tmp_path, "echo broken; exit 3")
    called = hooks(tmp_path, before=[bad, "/bin/true"], after=[bad, "/bin/true"], fence=bad)
    with pytest.raises(HookFailedError, match="ended with status 3: broken") as failed:
        await called.before("mirror", "2/beef", "")
    assert failed.value.exit_code == 36
    (failure,) = await called.after("mirror", "2/beef", "")
    assert failure.kind is TroubleKind.HOOK
    assert "status 3" in failure.text
    with pytest.raises(HookFailedError, match="sure that west is off, then promote with --force"):
        await called.fence("2/beef", "west")


async def test_a_program_that_hangs_is_ended(tmp_path: Path) -> None:
    called = hooks(tmp_path, before=["/bin/sleep 60"], timeout_seconds=0.2)
    with trio.fail_after(20), pytest.raises(HookFailedError, match=r"not ended after 0\.2 s"):
        await called.before("mirror", "2/beef", "")


async def await_file(path: Path) -> None:
    """Return when there is something."""
    while not path.exists():  # noqa: ASYNC110  a program makes it
        await trio.sleep(0.01)


async def test_those_of_a_change_wait_for_those_of_the_one_before(tmp_path: Path) -> None:
    """A handoff just after a start: nfsd, which it stops, is not started behind it."""
    out = tmp_path / "out"
    text = f'echo "$FUSEJOURNAL_WHEN" >>{out}; while test ! -e {tmp_path}/go; do sleep 0.01; done'
    command = program(tmp_path, f"{text}; echo over >>{out}")
    called = hooks(tmp_path, before=[command], after=[command], fence=command)
    with trio.fail_after(20):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(called.after, "mirror", "2/beef", "")
            await await_file(out)
            nursery.start_soon(called.before, "primary", "3/feed", "")
            await trio.testing.wait_all_tasks_blocked(0.1)
            assert out.read_text() == "after\n"
            (tmp_path / "go").touch()
    assert out.read_text() == "after\nover\nbefore\nover\n"


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("", "no command line"),
        ("'", "no command line"),
        ("/no/such program", "no such program"),
    ],
)
async def test_what_is_no_program(tmp_path: Path, command: str, words: str) -> None:
    with pytest.raises(HookFailedError, match=words):
        await hooks(tmp_path, before=[command]).before("mirror", "2/beef", "")


@pytest.mark.parametrize("change", ["mode", "owner", "directory"])
async def test_a_program_that_others_can_change_is_not_run(tmp_path: Path, change: str) -> None:
    command = program(tmp_path, "true", 0o757 if change == "mode" else 0o755)
    if change == "owner":
        os.chown(command, 1000, 1000)
    if change == "directory":
        tmp_path.chmod(0o777)
    with pytest.raises(HookFailedError, match="others than root can change it"):
        await hooks(tmp_path, before=[command]).before("mirror", "2/beef", "")


async def test_a_change_that_comes_to_nothing_is_undone() -> None:
    """Refused or cancelled; one that is made is not."""
    calls = []

    async def after() -> None:
        await trio.sleep(0.01)
        calls.append("after")

    async def changing(tasks: trio.Nursery | None, error: Exception | None) -> None:
        async with undoing(after, tasks):
            if error is None:
                await trio.sleep_forever()
            raise error or AssertionError

    async with undoing(after, None):
        pass
    assert not calls
    with trio.CancelScope() as gone:  # as the client may be, by then
        gone.cancel()
        with pytest.raises(PromotionRefusedError):
            await changing(None, PromotionRefusedError("another asked"))
    assert calls == ["after"]
    async with trio.open_nursery() as tasks:
        with trio.move_on_after(0.01):
            await changing(tasks, None)
    assert calls == ["after", "after"]
    async with trio.open_nursery() as tasks:
        tasks.start_soon(changing, tasks, None)
        await trio.testing.wait_all_tasks_blocked()
        tasks.cancel_scope.cancel()
    assert calls == ["after", "after"]
