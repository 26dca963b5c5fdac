"""Nodes with nothing but peers: control socket, listener and book, in the test's own loop."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import trio

from fusejournal.config import Config, VolumeConfig
from fusejournal.control.client import ask
from fusejournal.control.server import serve_control
from fusejournal.node.holding import hold_or_make_volume
from fusejournal.node.spec import MountSpec
from fusejournal.replication.peer_commands import PeerCommands
from fusejournal.replication.peers import PeerBook
from fusejournal.wire.connection import Connection
from fusejournal.wire.identity import Identity, load_or_make
from fusejournal.wire.transport import Address, serve

Role = Literal["primary", "mirror"]


@dataclass
class PeersNode:
    """One of them."""

    directory: Path
    name: str
    book: PeerBook
    identity: Identity
    address: Address | None = None
    changes: int = 0
    came: list[str | None] = field(default_factory=list)
    """The names of peers that connected."""

    async def ask(self, command: str, **fields: Any) -> dict[str, Any]:
        """Asks the node, as the command line does."""
        return await trio.to_thread.run_sync(lambda: ask(self.directory, command, **fields))


def make_volume(directory: Path, name: str, role: Role = "primary") -> None:
    """The state of a volume that is not mounted now."""
    places = directory / "backing", directory / "mount"
    config = Config(volume=VolumeConfig(role=role))
    with hold_or_make_volume(MountSpec(name, directory, *places, config, False, frozenset())):
        pass


@asynccontextmanager
async def running_node(
    directory: Path, name: str, *, listens: bool = True, role: Role = "primary"
) -> AsyncIterator[PeersNode]:
    """A node of the volume *name* in the state directory *directory*, until the block ends."""
    make_volume(directory, name, role)
    node = PeersNode(
        directory, name, PeerBook.load(directory), load_or_make(directory / "identity", name)
    )

    def changed() -> None:
        node.changes += 1

    async def note(connection: Connection) -> None:
        node.came.append(connection.peer)
        await connection.receive()

    desk = PeerCommands(node.book, node.identity, name, changed, lambda: node.address)
    async with trio.open_nursery() as nursery:
        await nursery.start(serve_control, directory / "control.sock", desk.commands())
        if listens:
            node.address = await nursery.start(
                lambda task_status: serve(
                    Address("127.0.0.1", 0),
                    node.identity,
                    node.book.certificates,
                    insecure=False,
                    on_connection=note,
                    on_pairing=desk.on_pairing,
                    is_pairing_open=desk.is_open,
                    task_status=task_status,
                )
            )
        yield node
        nursery.cancel_scope.cancel()
