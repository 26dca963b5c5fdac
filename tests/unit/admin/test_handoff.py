"""A handoff as a command follows it: its end, its doubt, and a Ctrl-C in between. The answers of
the layer come over a real control socket."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
import trio

from fusejournal.admin import handoff as handoff_module
from fusejournal.admin.demote import demote
from fusejournal.admin.handoff import hand_over
from fusejournal.control.client import RemoteError
from fusejournal.control.server import serve_control
from fusejournal.errors import HandoffRefusedError, NotRunningError
from fusejournal.node.lock import hold
from fusejournal.node.state_dir import VolumeState, save_state
from fusejournal.roles.plan import HandoffProgress
from fusejournal.roles.role import Role
from fusejournal.types import Epoch, Reign
from tests.golden.statuses import PRIMARY

GOING = HandoffProgress(
    peer="east",
    reign="2/1",
    stage="draining",
    head_seq=9,
    applied_seq=4,
    held_seconds=0.1,
    is_over=False,
    reason=None,
    exit_code=0,
)
OVER = replace(GOING, stage="undone", is_over=True, reason="not handed over: away", exit_code=37)


@asynccontextmanager
async def layer(tmp_path: Path, *answers: HandoffProgress) -> AsyncIterator[list[str]]:
    """A layer that gives these *answers*, the last again and again; gives what it was asked."""
    asked: list[str] = []

    def command(name: str) -> Callable[[dict[str, Any]], Any]:
        async def answer(_: dict[str, Any]) -> dict[str, Any]:
            asked.append(name)
            return answers[min(len(asked), len(answers)) - 1].to_json()

        return answer

    names = ("handoff", "handoff-progress", "handoff-cancel")
    async with trio.open_nursery() as nursery:
        commands = {name: command(name) for name in names}
        await nursery.start(partial(serve_control, tmp_path / "control.sock", commands))
        yield asked
        nursery.cancel_scope.cancel()


async def follow(
    tmp_path: Path, check: Callable[[], None], shown: list[HandoffProgress]
) -> HandoffProgress:
    state = VolumeState(tmp_path, uuid4(), "data", tmp_path, tmp_path, 1)
    work = partial(
        hand_over, state, "east", timeout_seconds=0.1, check=check, progress=shown.append
    )
    return await trio.to_thread.run_sync(work)


async def test_what_is_undone_is_an_error_with_its_code(tmp_path: Path) -> None:
    shown: list[HandoffProgress] = []
    async with layer(tmp_path, GOING, GOING, OVER) as asked:
        with pytest.raises(RemoteError, match="not handed over: away") as refused:
            await follow(tmp_path, lambda: None, shown)
    assert refused.value.exit_code == 37
    assert asked == ["handoff", "handoff-progress", "handoff-progress"]
    assert shown == [GOING, GOING]


async def test_a_ctrl_c_takes_it_back(tmp_path: Path) -> None:
    def interrupt() -> None:
        raise KeyboardInterrupt

    async with layer(tmp_path, GOING, GOING, OVER) as asked:
        with pytest.raises(KeyboardInterrupt):
            await follow(tmp_path, interrupt, [])
    assert asked == ["handoff", "handoff-cancel", "handoff-progress"]


async def test_a_doubt_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(handoff_module, "_PATIENCE_SECONDS", 0.1)
    async with layer(tmp_path, GOING):
        with pytest.raises(HandoffRefusedError, match="east does not say whether"):
            await follow(tmp_path, lambda: None, [])


async def test_the_reign_is_the_one_that_began(tmp_path: Path) -> None:
    """Also where the layer ended to change its role before it told anything further."""
    state = VolumeState(tmp_path, uuid4(), "data", tmp_path, tmp_path, 1)
    reign = Reign(Epoch(2), 0xAB)
    is_going, is_over = trio.Event(), trio.Event()

    async def begin(_: dict[str, Any]) -> dict[str, Any]:
        return replace(GOING, reign=str(Reign(reign.epoch, 0))).to_json()

    async def tell(_: dict[str, Any]) -> dict[str, Any]:
        is_going.set()
        await trio.sleep_forever()
        raise AssertionError

    async def status(_: dict[str, Any]) -> dict[str, Any]:
        return replace(PRIMARY, role="mirror").to_json()

    told: list[HandoffProgress] = []

    async def ask() -> None:
        told.append(await follow(tmp_path, lambda: None, []))
        is_over.set()

    before = {"handoff": begin, "handoff-progress": tell}
    with hold(tmp_path, "data", tmp_path, lambda: None):
        async with trio.open_nursery() as nursery:
            async with trio.open_nursery() as first:
                await first.start(partial(serve_control, tmp_path / "control.sock", before))
                nursery.start_soon(ask)
                await is_going.wait()
                first.cancel_scope.cancel()
            save_state(replace(state, role=Role.MIRROR, reign=reign))
            path = tmp_path / "control.sock"
            await nursery.start(partial(serve_control, path, {"status": status}))
            await is_over.wait()
            nursery.cancel_scope.cancel()
    assert told[0].reign == str(reign)


def test_only_what_is_mounted_is_demoted(tmp_path: Path) -> None:
    state = VolumeState(tmp_path, uuid4(), "data", tmp_path, tmp_path, 1)
    with pytest.raises(NotRunningError, match="volume data is not mounted") as refused:
        demote(state, force=False, drain_seconds=0.1, timeout_seconds=0.1)
    assert refused.value.exit_code == 7
