"""The process that runs shipped hooks: which are shipped, what they are told and answer, and what
comes of its end."""

import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
import trio

from fusejournal.config import Config
from fusejournal.disk.process import python_module
from fusejournal.errors import HookFailedError
from fusejournal.node import hook_process
from fusejournal.node.hook_process import HookProcess, shipped
from fusejournal.node.hooks import RoleHooks
from fusejournal.node.spec import MountSpec
from tests.support.patience import PATIENCE_SECONDS

pytestmark = pytest.mark.mount  # as for hooks: whose owner is root

_NOTIFY = ("hook", "notify", "192.0.2.9/24")
_TOLD = {"FUSEJOURNAL_WHEN": "after", "FUSEJOURNAL_ROLE": "primary", "FUSEJOURNAL_VOLUME": "vol"}


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The root of an NFS server, one of whose NFSv3 clients is to be told; its program writes that
    down, and goes on as long as there is a file."""
    root = tmp_path / "server"
    (root / "usr/sbin").mkdir(parents=True)
    (root / "var/lib/nfs/fusejournal-vol/sm").mkdir(parents=True)
    (root / "var/lib/nfs/fusejournal-vol/sm/client").touch()
    program = root / "usr/sbin/sm-notify"
    # (Not at once: Python leaves a program alone that it was interrupted in beginning.)
    lines = (
        *("#!/bin/sh", "sleep 0.5", f"echo $$ >>{root}/told"),
        *(f"while test -e {root}/goes-on", "do sleep 0.1"),
    )
    program.write_text("\n".join((*lines, "done", "")))
    program.chmod(0o755)
    monkeypatch.setenv("FUSEJOURNAL_NFS_ROOT", str(root))
    return root


@pytest.fixture
def process() -> Iterator[HookProcess]:
    made = HookProcess()
    yield made
    made.end()


def pid_of(process: HookProcess) -> int:
    assert process._process is not None
    return process._process.pid


def test_which_hooks_are_shipped() -> None:
    module = python_module("fusejournal")
    script = str(Path(sys.executable).parent / "fusejournal")
    assert shipped([*module, *_NOTIFY]) == list(_NOTIFY)
    assert shipped([script, *_NOTIFY]) == list(_NOTIFY)
    assert shipped([script, "status"]) is None
    assert shipped([script]) is None
    assert shipped(["/bin/true", "hook"]) is None


def test_one_process_runs_them_all(server: Path, process: HookProcess) -> None:
    assert process.run(_NOTIFY, _TOLD) == (0, b"NFSv3 clients are told\n")
    first = pid_of(process)
    told = {**_TOLD, "FUSEJOURNAL_VOLUME": "other"}
    assert process.run(_NOTIFY, told) == (0, b"no NFSv3 client has to be told\n")
    status, output = process.run(("hook", "notify", "nowhere"), _TOLD)
    assert (status, pid_of(process)) == (2, first)
    assert b"fusejournal: 'nowhere' is no address" in output
    assert process.run(("hook", "nothing"), _TOLD)[0] == 2
    # As when a unit stops: systemd ends all of its processes, and what was done is to be undone.
    os.kill(first, signal.SIGTERM)
    assert process.run(_NOTIFY, told)[0] == 0
    assert pid_of(process) == first


def test_one_that_is_gone_gets_a_successor(
    server: Path, process: HookProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hook_process, "_GRACE_SECONDS", PATIENCE_SECONDS)
    process.begin()
    first = pid_of(process)
    os.kill(first, signal.SIGKILL)
    os.waitid(os.P_PID, first, os.WEXITED | os.WNOWAIT)
    assert process.run(_NOTIFY, _TOLD)[0] == 0
    assert pid_of(process) != first
    (server / "goes-on").touch()

    def end() -> None:
        await_told(server, 2)
        process.end()

    ended = threading.Thread(target=end)
    ended.start()
    assert process.run(_NOTIFY, _TOLD)[0] == 130
    ended.join()
    until_gone(int((server / "told").read_text().split()[-1]))
    (server / "goes-on").unlink()
    process.begin()
    assert process._process is not None
    with process._process as gone:  # so may another thread end it just before it is asked
        gone.kill()
    monkeypatch.setattr(process, "begin", lambda: None)
    with pytest.raises(ChildProcessError, match="its process has died"):
        process.run(_NOTIFY, _TOLD)


def is_alive(pid: int) -> bool:
    """Returns True if the program that a hook has run still runs."""
    with suppress(ProcessLookupError, FileNotFoundError):
        os.kill(pid, 0)
        return "(zombie)" not in Path(f"/proc/{pid}/status").read_text()
    return False


def until_gone(pid: int) -> None:
    """Return when the program that a hook has run does not run any more."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while is_alive(pid):
        assert time.monotonic() < deadline
        time.sleep(0.01)


def await_told(server: Path, times: int) -> None:
    """Return when the program was called so often."""
    while True:
        with suppress(FileNotFoundError):
            if len((server / "told").read_text().split()) >= times:
                return
        time.sleep(0.01)


def test_one_that_answers_something_else(
    process: HookProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = [sys.executable, "-c", "print(input() and 'Traceback', flush=True); input()"]
    monkeypatch.setattr(hook_process, "python_module", lambda *_: program)
    with pytest.raises(ChildProcessError, match=r"^its process answers what is no reply: b'Trace"):
        process.run(_NOTIFY, _TOLD)


async def test_one_that_hangs_is_ended(server: Path, tmp_path: Path) -> None:
    (server / "goes-on").touch()
    command = " ".join((*python_module("fusejournal"), *_NOTIFY))
    config = Config.of({"hooks": {"after": [command], "timeout_seconds": 1.5}})
    spec = MountSpec("vol", tmp_path, tmp_path, tmp_path, config, False, frozenset())
    called = RoleHooks(spec)
    try:
        with trio.fail_after(20):
            (failure,) = await called.after("primary", "2/beef", "")
        assert "not ended after 1.5 s" in failure.text
        assert called._process._process is None
    finally:
        (server / "goes-on").unlink()


async def test_one_that_heeds_nothing_is_killed_while_the_layer_goes_on(
    server: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hook_process, "_GRACE_SECONDS", 4.0)
    (server / "goes-on").touch()
    command = " ".join((*python_module("fusejournal"), *_NOTIFY))
    config = Config.of({"hooks": {"after": [command]}})
    spec = MountSpec("vol", tmp_path, tmp_path, tmp_path, config, False, frozenset())
    called = RoleHooks(spec)
    called.prepare()
    pid = pid_of(called._process)
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(called.after, "primary", "2/beef", "")
            await trio.to_thread.run_sync(await_told, server, 1)
            os.kill(pid, signal.SIGSTOP)
            nursery.cancel_scope.cancel()
            longest = 0.0
            with trio.CancelScope(shield=True):
                while called._process._process is not None or is_alive(pid):
                    began = time.monotonic()
                    await trio.sleep(0.01)
                    longest = max(longest, time.monotonic() - began)
        assert longest < 3.5  # as long as it is waited for, if the loop did that
    finally:
        (server / "goes-on").unlink()


async def test_a_change_without_an_end_is_followed_by_what_gives_back(tmp_path: Path) -> None:
    """Once, and not where the process goes on as another program."""
    out = tmp_path / "out"
    program = tmp_path / "hook"
    program.write_text(f'#!/bin/sh\necho "$FUSEJOURNAL_WHEN $FUSEJOURNAL_ROLE" >>{out}\n')
    program.chmod(0o755)
    config = Config.of({"hooks": {"before": [str(program), "/bin/false"],
                                              "after": [str(program)]}})  # fmt: skip
    spec = MountSpec("vol", tmp_path, tmp_path, tmp_path, config, False, frozenset())
    called = RoleHooks(spec)
    with pytest.raises(HookFailedError):
        await called.before("primary", "2/beef", "")
    called.end(goes_on=True)
    assert out.read_text() == "before primary\n"
    await trio.to_thread.run_sync(lambda: called.end(goes_on=False))
    await trio.to_thread.run_sync(lambda: called.end(goes_on=False))
    assert out.read_text() == "before primary\nafter mirror\n"
