"""A mirror that answers and then breaks each session: it is tried ever less often, and fills no
log."""

import logging
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
import trio

from fusejournal.config import ReplicationConfig
from fusejournal.types import Epoch, Seq
from fusejournal.wire.connection import OPEN, READY, Connection, receive_exactly
from fusejournal.wire.frames import Ack, Batch, Welcome
from fusejournal.wire.plain import CONNECTS, LISTENS, PROOF_BYTES, prove
from fusejournal.wire.versions import OWN_VERSIONS
from tests.support.volumes import OpenVolume, open_volume

pytestmark = pytest.mark.mount

NOTHING = Ack(Seq(0), Seq(0), Seq(0), "ok", "")
IMPOSSIBLE = Ack(Seq(10**6), Seq(10**6), Seq(10**6), "ok", "")
Ending = Callable[[trio.SocketStream, Connection, int], Awaitable[None]]


async def _garbage(stream: trio.SocketStream, _: Connection, number: int) -> None:
    await stream.send_all(b"\xff" * 16)


async def _unknown_state(_: trio.SocketStream, connection: Connection, number: int) -> None:
    await connection.send(NOTHING._replace(state=f"weird{number}"))


async def _impossible(_: trio.SocketStream, connection: Connection, number: int) -> None:
    await connection.send(IMPOSSIBLE)


async def _close(_: trio.SocketStream, connection: Connection, number: int) -> None: ...


async def _take_one_more(_: trio.SocketStream, connection: Connection, number: int) -> None:
    while not isinstance(await connection.receive(), Batch):
        pass
    seq = Seq(number)
    await connection.send(Ack(seq, seq, seq, "ok", ""))


class _Broken:
    """A mirror that acknowledges nothing, and ends each session with *ending*."""

    def __init__(self, ending: Ending, sessions_max: int | None = None) -> None:
        self.sessions = 0
        self.is_over = trio.Event()
        """Set when as many sessions have begun as there are to be."""
        self._sessions_max = sessions_max
        self._ending = ending

    async def handle(self, stream: trio.SocketStream) -> None:
        self.sessions += 1
        if self.sessions == self._sessions_max:
            self.is_over.set()
        assert await receive_exactly(stream, len(OPEN)) == OPEN
        expected = prove(CONNECTS, stream, is_listener=True)
        assert await receive_exactly(stream, PROOF_BYTES) == expected
        await stream.send_all(READY + prove(LISTENS, stream, is_listener=True))
        async with Connection(stream, "primary", None) as connection:
            await connection.receive()
            answer = Welcome(1, b"", "broken", Epoch(0), Seq(0), 0, Seq(0))
            await connection.send(answer._replace(newest_kind=OWN_VERSIONS.newest_kind))
            await connection.receive()
            await connection.send(NOTHING)
            await self._ending(stream, connection, self.sessions)
            with trio.move_on_after(0.1):
                while await connection.receive() is not None:
                    pass


async def _ship(primary: OpenVolume, broken: _Broken, seconds: float) -> None:
    """Ship for so long, or until all sessions have begun."""
    listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
    address = f"127.0.0.1:{listeners[0].socket.getsockname()[1]}"
    replication = primary.replicate(ReplicationConfig(peers={"east": address}))
    with trio.move_on_after(seconds):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.serve_listeners, broken.handle, listeners)
            nursery.start_soon(replication.run)
            await broken.is_over.wait()
            nursery.cancel_scope.cancel()


@pytest.mark.parametrize("ending", [_garbage, _unknown_state, _impossible, _close])
async def test_each_session_breaks(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, ending: Ending
) -> None:
    with open_volume(tmp_path / "primary") as primary:
        primary.work(1)
        broken = _Broken(ending)
        await _ship(primary, broken, 2)
    assert 2 <= broken.sessions <= 5
    lines = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    assert len(lines) == 1, lines
    assert lines[0].startswith("peer east: ")


async def test_each_session_is_of_some_use(tmp_path: Path) -> None:
    with open_volume(tmp_path / "primary") as primary:
        primary.work(10)
        mirror = _Broken(_take_one_more, sessions_max=10)
        await _ship(primary, mirror, 25)  # ever less often they take at least 27 s
    assert mirror.sessions == 10
