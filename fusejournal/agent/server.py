"""The agent's process: listens for consoles that it is paired with, and answers their calls.

One task a console's connection, all work in threads; jobs are processes of their own. It holds no
volume and serves no request of a file system, so its end harms nothing."""

import ctypes
import signal
import socket
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Final

import trio

from fusejournal.address import Address, default_node_name
from fusejournal.agent.calls import Calls
from fusejournal.agent.consoles import ConsoleBook, ConsolePairing
from fusejournal.agent.jobs import JobBook
from fusejournal.agent.mass_changes import FILES
from fusejournal.agent.place import hold_agent
from fusejournal.control.server import serve_control
from fusejournal.errors import FusejournalError
from fusejournal.replication.common_ancestor import first_error
from fusejournal.wire.identity import Identity, load_or_make
from fusejournal.wire.listener import serve

_M_MMAP_THRESHOLD: Final = -3
_M_ARENA_MAX: Final = -8
_MAPPED_BYTES: Final = 1 << 20


def node_name_of_machine() -> str:
    """Returns the name that the agent has for consoles: the machine's."""
    return default_node_name(socket.gethostname())


def run_agent(
    address: Address, ready: Callable[[Address, str], None], mass_files: int = FILES
) -> None:
    """Runs the agent until SIGTERM or SIGINT; *ready* is called, once it listens, with the address
    and the fingerprint of its certificate. *mass_files*: see MassChanges. Raises FusejournalError,
    OSError."""
    _bound_memory()
    with hold_agent() as directory:
        try:
            trio.run(_serve, directory, address, ready, mass_files)
        except BaseExceptionGroup as group:
            error = first_error(group)
            if not isinstance(error, FusejournalError | OSError):
                raise
            raise error from None


def _bound_memory() -> None:
    """Has indexes, of some MiB each, go back to the system when they are let go:
    by itself the C library keeps their places, for each thread others. Source: mallopt(3)."""
    with suppress(OSError, AttributeError):  # another C library has other ways
        libc = ctypes.CDLL(None)
        libc.mallopt(_M_MMAP_THRESHOLD, _MAPPED_BYTES)
        libc.mallopt(_M_ARENA_MAX, 2)


async def _serve(
    directory: Path, address: Address, ready: Callable[[Address, str], None], mass_files: int
) -> None:
    node = node_name_of_machine()
    identity = await trio.to_thread.run_sync(load_or_make, directory / "identity", node)
    book = ConsoleBook(directory / "consoles.json")
    jobs = JobBook(directory)
    calls = Calls(
        node,
        lambda: book.certificates,
        {
            "job-create": jobs.create,
            "job-list": jobs.list_all,
            "job-show": jobs.show,
            "job-order": jobs.order,
        },
        mass_files,
    )
    async with trio.open_nursery() as nursery:
        pairing = ConsolePairing(book, identity, node)
        bound = await nursery.start(listen, address, identity, book, calls, pairing)
        pairing.listens_at(str(bound))
        await nursery.start(serve_control, directory / "control.sock", pairing.commands())
        ready(bound, identity.fingerprint)
        with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
            async for _ in signals:
                nursery.cancel_scope.cancel()
                return


async def listen(
    address: Address,
    identity: Identity,
    book: ConsoleBook,
    calls: Calls,
    pairing: ConsolePairing,
    task_status: trio.TaskStatus[Address],
) -> None:
    """Listens for consoles until cancelled.

    Args:
        address, identity: where, and with which key and certificate.
        book: the consoles that may call.
        calls, pairing: serve those, and those that want to pair.
        task_status: gets the address, with the port that was really taken.

    Raises FusejournalError when nothing can listen there."""
    await serve(
        address,
        identity,
        lambda: book.certificates,
        insecure=False,
        on_connection=calls.serve,
        on_pairing=pairing.answer,
        is_pairing_open=pairing.is_open,
        task_status=task_status,
    )
