"""Known peers that connect to a mirror: what they may not do to it, whatever they say."""

import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import pytest
import trio
import trio.testing

from fusejournal.address import parse_address
from fusejournal.config import ReplicationConfig
from fusejournal.errors import PeerLostError
from fusejournal.replication.supervisor import Replication
from fusejournal.types import Epoch, Seq
from fusejournal.wire.connection import Connection
from fusejournal.wire.frames import Ack, Begin, Hello, Message, Ping, Refusal, Welcome
from fusejournal.wire.identity import Identity, load_or_make, node_id_of
from fusejournal.wire.transport import connect
from tests.support.patience import PATIENCE_SECONDS
from tests.support.volumes import open_volume

pytestmark = pytest.mark.mount

UUID = bytes(15) + b"1"


@dataclass
class _Mirror:
    replication: Replication
    peers: dict[str, Identity]

    async def call(self, name: str) -> Connection:
        """Calls as the peer *name*, and is let in."""
        address = parse_address(str(self.replication.status().listen))
        known = self.replication.local.identity.certificate
        return await connect(address, self.peers[name], known, insecure=False, timeout_seconds=10)


@asynccontextmanager
async def _mirror(directory: Path) -> AsyncIterator[_Mirror]:
    """A mirror that runs, and is paired with two that connect to it."""
    with open_volume(directory / "mirror", mirror=True) as volume:
        replication = volume.replicate(ReplicationConfig(), "127.0.0.1:0")
        peers = {name: load_or_make(directory / name, name) for name in ("east", "west")}
        for name, identity in peers.items():
            replication.local.book.pair(name, None, identity.certificate)
        async with trio.open_nursery() as nursery:
            await nursery.start(replication.run)
            yield _Mirror(replication, peers)
            nursery.cancel_scope.cancel()


async def test_a_peer_that_is_removed_before_it_greets(tmp_path: Path) -> None:
    async with _mirror(tmp_path) as mirror, await mirror.call("east") as connection:
        await trio.testing.wait_all_tasks_blocked()
        await mirror.replication.commands()["peer-remove"]({"name": "east"})
        with trio.fail_after(PATIENCE_SECONDS):
            with suppress(PeerLostError):
                assert await connection.receive() is None


def _hello(purpose: str, uuid: bytes) -> Hello:
    return Hello(1, uuid, "somebody", purpose, Epoch(1), Seq(0), 0)


@pytest.mark.parametrize(
    "greeting",
    [
        None,
        Ping(Seq(1), Seq(1)),
        _hello("ship", b""),
        _hello("ship", UUID)._replace(version=9),
        _hello("fetch", UUID)._replace(version=9),
    ],
    ids=["nothing", "ping", "no volume", "version", "fetch"],
)
async def test_nonsense_costs_one_line(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, greeting: Message | None
) -> None:
    async with _mirror(tmp_path) as mirror:
        for _ in range(5):
            async with await mirror.call("east") as connection:
                if greeting is not None:
                    await connection.send(greeting)
                    with suppress(PeerLostError):
                        await connection.receive()
        await trio.testing.wait_all_tasks_blocked(0.05)
    (line,) = _warnings(caplog)
    assert line.startswith("peer east: ")


async def test_a_second_primary_costs_one_line(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    greeting = _hello("ship", UUID)
    async with _mirror(tmp_path) as mirror, await mirror.call("east") as first:
        await first.send(greeting)
        await first.receive()
        for _ in range(5):
            async with await mirror.call("west") as second:
                await second.send(greeting)
                assert await second.receive() == Refusal("busy", "already receives from east")
        await trio.testing.wait_all_tasks_blocked(0.05)
        (line,) = _warnings(caplog)
        assert line.startswith("peer west: ")
        assert line.endswith("refused: already receives from east")


async def test_the_primary_takes_the_place_of_a_mirror_that_ships_on(tmp_path: Path) -> None:
    """That one hears that it need not come again."""

    async def ship(connection: Connection, greeting: Hello) -> None:
        await connection.send(greeting)
        answer = await connection.receive()
        assert isinstance(answer, Welcome)
        begin = Begin(greeting.epoch, answer.seq, answer.chain, Seq(3), Seq(0), greeting.reign_node)
        await connection.send(begin)
        assert isinstance(await connection.receive(), Ack)

    async with _mirror(tmp_path) as mirror, await mirror.call("west") as west:
        receiver = mirror.replication.receiver
        assert receiver is not None
        east_id, west_id = (node_id_of(mirror.peers[one].fingerprint) for one in ("east", "west"))
        reign = Hello(1, UUID, "somebody", "ship", Epoch(2), Seq(3), 0, east_id, Epoch(2))
        from_primary, passed_on = reign._replace(node_id=east_id), reign._replace(node_id=west_id)
        await ship(west, passed_on)
        assert receiver.session_peer == "west"
        async with await mirror.call("east") as east:
            await ship(east, from_primary)
            assert receiver.session_peer == "east"
            async with await mirror.call("west") as again:
                await again.send(passed_on)
                refusal = Refusal("served", "already receives from east, the primary")
                assert await again.receive() == refusal
            assert receiver.session_peer == "east"


def _warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
