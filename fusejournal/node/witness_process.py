"""The process of a witness (replication/witness.py): holds its directory, listens for the nodes
that it is paired with, and answers its admin. It serves no file system and holds no data.

::

    DIR/identity/       its key and certificate
    DIR/peers.json      the nodes that it is paired with
    DIR/witness.json    what it has seen of reigns
    DIR/members.json    which nodes count, and what they are known to hold
    DIR/control.sock    where its admin asks
    DIR/lock            locked by the process that runs"""

import fcntl
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import trio

from fusejournal.address import Address, node_name
from fusejournal.control.server import serve_control
from fusejournal.disk.files import make_directories
from fusejournal.errors import FusejournalError
from fusejournal.node.replies import WitnessStatus
from fusejournal.replication.common_ancestor import first_error
from fusejournal.replication.peer_commands import PeerCommands
from fusejournal.replication.peers import PeerBook
from fusejournal.replication.witness import Witness
from fusejournal.wire.identity import Identity, load_or_make
from fusejournal.wire.listener import serve


@contextmanager
def _hold(directory: Path) -> Iterator[None]:
    """Hold *directory*, which is made. Raises FusejournalError where another process has it,
    OSError."""
    make_directories("witness.directory", directory)
    os.chmod(directory, 0o700)
    fd = os.open(directory / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError:
        raise FusejournalError(f"{directory}: a witness runs there already") from None
    finally:
        os.close(fd)


def run_witness(directory: Path, address: Address, ready: Callable[[Address, str], None]) -> None:
    """Run the witness in *directory* until SIGTERM or SIGINT; *ready* is called, once it listens,
    with the address and the fingerprint of its certificate. Raises FusejournalError, OSError."""
    with _hold(directory):
        try:
            trio.run(_serve, directory, address, ready)
        except BaseExceptionGroup as group:
            error = first_error(group)
            if not isinstance(error, FusejournalError | OSError):
                raise
            raise error from None


async def _serve(directory: Path, address: Address, ready: Callable[[Address, str], None]) -> None:
    name = node_name(f"witness-{directory.name}")
    identity = await trio.to_thread.run_sync(load_or_make, directory / "identity", name)
    book, witness = PeerBook.load(directory), Witness(directory, name, identity)
    bound: Address | None = None

    def changed() -> None:
        witness.reception.keep_only(book.certificates())

    commands = PeerCommands(book, identity, name, changed, lambda: bound)

    async def status(_: dict[str, Any]) -> dict[str, Any]:
        seen = witness.seen
        return WitnessStatus(
            node=name,
            fingerprint=identity.fingerprint,
            listen=str(bound),
            volume=str(seen.uuid) if seen.uuid is not None else None,
            reign=str(seen.fence),
            begun=str(seen.begun),
            primary=witness.primary,
            peers=tuple(peer.name for peer in book.list()),
            failure=witness.failure,
        ).to_json()

    async with trio.open_nursery() as nursery:
        bound = await nursery.start(_listen, address, identity, book, witness, commands)
        asked = {
            name: command
            for name, command in commands.commands().items()
            if name in ("peer-list", "peer-remove", "pair-open", "pair-state", "pair-close")
        }
        socket = directory / "control.sock"
        await nursery.start(serve_control, socket, {**asked, "status": status})
        nursery.start_soon(witness.run)
        assert bound is not None
        ready(bound, identity.fingerprint)
        with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
            async for _ in signals:
                nursery.cancel_scope.cancel()
                return


async def _listen(
    address: Address,
    identity: Identity,
    book: PeerBook,
    witness: Witness,
    commands: PeerCommands,
    task_status: trio.TaskStatus[Address],
) -> None:
    """Listen for peers until cancelled; *task_status* gets the address. Raises FusejournalError
    when nothing can listen there."""
    await serve(
        address,
        identity,
        book.certificates,
        insecure=False,
        on_connection=witness.reception.serve,
        on_pairing=commands.on_pairing,
        is_pairing_open=commands.is_open,
        task_status=task_status,
    )
