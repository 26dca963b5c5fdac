"""Known peers that connect to a mirror: what they may not do to it, whatever they say."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import pytest
import trio
import trio.testing

from fusejournal.config import ReplicationConfig
from fusejournal.errors import PeerLostError
from fusejournal.replication.replication import Replication
from fusejournal.wire.address import parse_address
from fusejournal.wire.connection import Connection
from fusejournal.wire.identity import Identity, load_or_make
from fusejournal.wire.transport import connect
from tests.support.volumes import open_volume

pytestmark = pytest.mark.mount


@dataclass
class _Mirror:
    replication: Replication
    peers: dict[str, Identity]

    async def call(self, name: str) -> Connection:
        """As the peer *name*, and let in."""
        address = parse_address(str(self.replication.status()["listen"]))
        known = self.replication.identity.certificate
        return await connect(address, self.peers[name], known, insecure=False, timeout_seconds=10)


@asynccontextmanager
async def _mirror(directory: Path) -> AsyncIterator[_Mirror]:
    """A mirror that runs, and is paired with two that connect to it."""
    with open_volume(directory / "mirror", mirror=True) as volume:
        replication = volume.replicate(ReplicationConfig(), "127.0.0.1:0")
        peers = {name: load_or_make(directory / name, name) for name in ("east", "west")}
        for name, identity in peers.items():
            replication.book.pair(name, None, identity.certificate)
        async with trio.open_nursery() as nursery:
            await nursery.start(replication.run)
            yield _Mirror(replication, peers)
            nursery.cancel_scope.cancel()


async def test_a_peer_that_is_removed_before_it_greets(tmp_path: Path) -> None:
    async with _mirror(tmp_path) as mirror, await mirror.call("east") as connection:
        await trio.testing.wait_all_tasks_blocked()
        await mirror.replication.commands()["peer-remove"]({"name": "east"})
        with trio.fail_after(5):
            with suppress(PeerLostError):
                assert await connection.receive() is None
