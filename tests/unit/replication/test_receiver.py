"""The receiver: who may ship to a mirror, and what its status says when no node does any more."""

import random
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, cast

import pytest
import trio

from fusejournal.address import parse_address
from fusejournal.config import ReplicationConfig
from fusejournal.errors import JournalFullError
from fusejournal.replication import receive_session as receive_session_module
from fusejournal.replication import ship_session as ship_session_module
from fusejournal.replication.parting import load_parting
from fusejournal.replication.receiver import Receiver
from fusejournal.replication.states import MirrorEvent, MirrorState
from fusejournal.types import Seq
from fusejournal.wire.frames import Diverged, Hello, WireError
from fusejournal.wire.refusals import RefusalCode
from fusejournal.wire.session import SHIP, RefusedError, hello
from fusejournal.wire.session_connection import SessionConnection
from tests.support.losses import begin_another_boot
from tests.support.pairs import (
    level,
    listens_at,
    mirror_and_primary,
    mirror_status,
    peer_status,
    running,
    until,
)
from tests.support.volumes import OpenVolume, applied, open_volume

pytestmark = pytest.mark.mount


async def test_a_primary_of_another_volume_hears_so_while_another_ships(tmp_path: Path) -> None:
    async with mirror_and_primary(tmp_path) as (primary, mirror):
        primary.work(3)
        await until("the mirror is level", level(primary, mirror))
        with open_volume(tmp_path / "other") as other:
            other.work(3)
            other.replicate(ReplicationConfig(peers={"east": listens_at(mirror)}))
            async with running(other):
                await until("it is refused", lambda: peer_status(other).state == "refused")
                assert "is of volume" in (peer_status(other).last_error or "")
        assert mirror_status(mirror).state == "streaming"
        assert mirror_status(mirror).last_error is None
        primary.work(3, start=10)
        await until("the mirror is level", level(primary, mirror))
        assert mirror_status(mirror).state == "streaming"


async def test_nodes_that_were_paired_the_wrong_way_round(tmp_path: Path) -> None:
    with (
        open_volume(tmp_path / "mirror", mirror=True) as mirror,
        open_volume(tmp_path / "primary") as primary,
    ):
        primary.work(3)
        here = mirror.replicate(ReplicationConfig(), "127.0.0.1:0")
        async with running(mirror):
            there = primary.replicate(ReplicationConfig(peers={"east": listens_at(mirror)}))
            there.local.book.set_certificate("east", here.local.identity.certificate)
            here.local.book.pair(
                "prim", parse_address("127.0.0.1:9"), there.local.identity.certificate
            )
            async with running(primary):
                await until("it is refused", lambda: peer_status(primary).state == "refused")
                assert "prim is shipped to from here" in (peer_status(primary).last_error or "")
                assert "fusejournal peer remove" in (peer_status(primary).advice or "")


async def test_a_mirror_ships_no_more_to_whom_the_primary_ships(tmp_path: Path) -> None:
    """It was the primary before a handoff, and has all mirrors in its book."""
    with open_volume(tmp_path / "primary", orderly=False) as primary:
        primary.work(3)
        primary.volume.journal.sync()
    begin_another_boot(tmp_path / "primary" / "state")  # epoch 1 has no node
    with (
        open_volume(tmp_path / "primary") as primary,
        open_volume(tmp_path / "old", mirror=True) as old,
        open_volume(tmp_path / "third", mirror=True) as third,
    ):
        third.replicate(ReplicationConfig(), "127.0.0.1:0")
        async with running(third):
            there = listens_at(third)
            old.replicate(ReplicationConfig(peers={"third": there}), "127.0.0.1:0")
            async with running(old):
                primary.replicate(ReplicationConfig(peers={"old": listens_at(old)}))
                async with running(primary):
                    await until("it passes all on", level(primary, third))
                    assert third.receiver.session_peer == "vm-old"
                    await primary.replication.commands()["peer-add"](
                        {"name": "third", "address": there}
                    )
                    await until("it parts", lambda: not old.replication.status().peers)
                    known = old.replication.local.book.get("third")
                    assert (known.address, str(known.return_address)) == (None, there)
                    primary.work(3, 10)
                    await until("all goes on", level(primary, third))
                    assert third.receiver.session_peer == "vm-primary"
                    assert mirror_status(third).state == "streaming"


async def test_a_primary_that_is_not_known_any_more_is_waited_for(tmp_path: Path) -> None:
    async with mirror_and_primary(tmp_path) as (primary, mirror):
        primary.work(3)
        await until("the mirror is level", level(primary, mirror))
        await until("it streams", lambda: mirror_status(mirror).state == "streaming")
        (scope,) = mirror.replication._inbound.reception._connections
        primary.replication.local.book.pause("east")  # so that it does not come back
        scope.cancel()
        await until("it is over", lambda: mirror_status(mirror).address is None)
        assert mirror_status(mirror).state == "waiting for a primary"


class _Link:
    """Passes on what goes to *to*, slowly."""

    def __init__(self, to: str) -> None:
        self._to = int(to.rpartition(":")[2])
        self.is_cut = False

    async def serve(self, stream: trio.SocketStream) -> None:
        async with await trio.open_tcp_stream("127.0.0.1", self._to) as other, stream:
            try:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._pass, other, stream, 0.0)
                    await self._pass(stream, other, 0.05)
                    nursery.cancel_scope.cancel()
            except* trio.BrokenResourceError:
                pass

    async def _pass(self, source: trio.SocketStream, sink: trio.SocketStream, pause: float) -> None:
        while data := await source.receive_some(8192):
            await trio.sleep(pause)
            while self.is_cut:  # noqa: ASYNC110 -- nothing tells of it
                await trio.sleep(0.01)
            await sink.send_all(data)


@asynccontextmanager
async def _slow_link(to: str) -> AsyncIterator[tuple[_Link, str]]:
    link = _Link(to)
    (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio.serve_listeners, link.serve, [listener])
        yield link, f"127.0.0.1:{listener.socket.getsockname()[1]}"
        nursery.cancel_scope.cancel()


async def test_a_batch_may_take_longer_than_a_silence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (receive_session_module, ship_session_module):
        monkeypatch.setattr(module, "SILENCE_SECONDS", 0.8)
    monkeypatch.setattr(receive_session_module, "_LIFE_SECONDS", 0.2)
    with (
        open_volume(tmp_path / "mirror", mirror=True) as mirror,
        open_volume(tmp_path / "primary") as primary,
    ):
        primary.create("large", random.Random(1).randbytes(300 << 10))
        here = mirror.replicate(ReplicationConfig(), "127.0.0.1:0")
        async with running(mirror), _slow_link(listens_at(mirror)) as (link, address):
            there = primary.replicate(
                ReplicationConfig(peers={"east": address}, compress_level_max=1)
            )
            there.local.book.set_certificate("east", here.local.identity.certificate)
            here.local.book.pair("prim", None, there.local.identity.certificate)
            async with running(primary):
                await until("the mirror is level", level(primary, mirror))
                status = lambda: peer_status(primary)  # noqa: E731
                await until("it streams", lambda: status().state == "streaming")
                assert (status().sessions, status().errors) == (1, 0)
                link.is_cut = True
                await until(
                    "silence ends it",
                    lambda: mirror_status(mirror).state == "waiting for a primary",
                )
                assert "no word" in (mirror_status(mirror).last_error or "")


async def test_what_was_appended_is_applied_though_its_session_is_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The flush that a session asked for may end after it."""
    async with mirror_and_primary(tmp_path) as (primary, mirror):
        primary.work(1)
        await until("the mirror is level", level(primary, mirror))
        sync, may_flush = mirror.volume.journal.sync, threading.Event()

        def slow_sync(*arguments: Any) -> None:
            assert may_flush.wait(20)
            sync(*arguments)

        monkeypatch.setattr(mirror.volume.journal, "sync", slow_sync)
        monkeypatch.setattr(mirror.durability, "flush_if_quick", lambda: None)
        head_seq = applied(mirror)
        primary.create("one")
        await until("it is there", lambda: mirror.volume.journal.head_seq > head_seq)
        primary.replication.local.book.pause("east")
        primary.replication._peers_changed()
        await until("it is over", lambda: mirror_status(mirror).address is None)
        assert applied(mirror) == head_seq
        may_flush.set()
        await until("the mirror is level", level(primary, mirror))


# -- beside a session ------------------------------------------------------------------------------


class _Clone:
    """A session with one that says that it has parted."""

    peer, where = None, "clone:1"

    def __init__(self, head_seq: Seq) -> None:
        self._head_seq = head_seq

    async def send(self, message: object) -> None:
        await trio.lowlevel.checkpoint()

    async def receive(self) -> Diverged:
        await trio.lowlevel.checkpoint()
        return Diverged(Seq(self._head_seq - 1), self._head_seq)

    async def ship(self, receiver: Receiver, greeting: Hello) -> None:
        try:
            await receiver.serve(cast("SessionConnection", self), greeting)
        except* (RefusedError, WireError):
            pass


def _greeting(primary: OpenVolume) -> Hello:
    """That of a clone of *primary*, which does not tell that it is another."""
    return hello(primary.replication.me(), SHIP)._replace(instance=0, before=0)


async def _pause(primary: OpenVolume, mirror: OpenVolume) -> None:
    primary.replication.local.book.pause("east")
    primary.replication._peers_changed()
    await until("it is away", lambda: mirror_status(mirror).address is None)


async def _resume(primary: OpenVolume, mirror: OpenVolume) -> None:
    primary.replication.local.book.resume("east")
    primary.replication._peers_changed()
    await until("it streams", lambda: mirror_status(mirror).state == "streaming")


async def test_a_clone_that_parted_while_nobody_ships_is_told_of(tmp_path: Path) -> None:
    state_dir = tmp_path / "mirror" / "state"
    async with mirror_and_primary(tmp_path) as (primary, mirror):
        primary.work(3)
        await until("the mirror is level", level(primary, mirror))
        await _pause(primary, mirror)
        head_seq = mirror.volume.journal.head_seq
        await _Clone(head_seq).ship(mirror.receiver, _greeting(primary))
        assert mirror_status(mirror).state == "diverged"
        assert "'fusejournal rejoin'" in (mirror_status(mirror).last_error or "")
        parting = load_parting(state_dir)
        assert parting is not None
        assert (parting.seq, parting.reign.epoch) == (head_seq - 1, 1)
        # Again and again: nothing is copied, and nothing grows.
        before = sorted(path.name for path in state_dir.iterdir())
        for _ in range(3):
            await _Clone(head_seq).ship(mirror.receiver, _greeting(primary))
        assert sorted(path.name for path in state_dir.iterdir()) == before
        await _resume(primary, mirror)
        assert load_parting(state_dir) is None


_WORKS = [
    MirrorState.CATCHING_UP,
    MirrorState.STREAMING,
    MirrorState.MIRROR_FULL,
    MirrorState.MIRROR_FAILED,
]
_COMES_TO: list[BaseException | None] = [
    RefusedError(RefusalCode.OTHER, ""),
    RefusedError(RefusalCode.FULL, ""),
    RefusedError(RefusalCode.COPY, ""),
    WireError("nonsense"),
    JournalFullError("full"),
    trio.TooSlowError(),
    None,
]


@pytest.mark.parametrize("state", _WORKS)
async def test_whatever_another_comes_to_is_no_event_of_a_session(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, state: MirrorState
) -> None:
    """Refused at its greeting or after that, lost, parted, not begun."""
    async with mirror_and_primary(tmp_path) as (primary, mirror):
        primary.work(3)
        await until("the mirror is level", level(primary, mirror))
        await until("it streams", lambda: mirror_status(mirror).state == "streaming")
        receiver, greeting = mirror.receiver, _greeting(primary)
        record, session = receiver._record, receiver._session
        clone = _Clone(mirror.volume.journal.head_seq)
        here, note, noted = trio.lowlevel.current_task(), record.note, list[MirrorEvent]()

        def look(event: MirrorEvent) -> None:
            if trio.lowlevel.current_task() is here:
                noted.append(event)
            note(event)

        monkeypatch.setattr(record, "note", look)
        for outcome in _COMES_TO:

            async def admit(*_: object, outcome: BaseException | None = outcome) -> None:
                if outcome is not None:
                    raise outcome

            record.state = state
            with monkeypatch.context() as patch:
                patch.setattr(receiver, "_admit", admit)
                await clone.ship(receiver, greeting)
        record.state = state
        await clone.ship(receiver, greeting)  # it has parted
        await clone.ship(receiver, greeting._replace(uuid=b"?" * 16))
        await clone.ship(receiver, greeting._replace(node="another"))
        assert not noted
        primary.work(3, start=10)
        await until("the mirror is level", level(primary, mirror))
        await until("it streams", lambda: record.state is MirrorState.STREAMING)
        assert receiver._session is session is not None
