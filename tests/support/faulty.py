"""Layers that are otherwise than they should: one ends by a fault in one of its parts, when a test
says so.

``FAULTY`` in its environment names the part and the fault; the fault comes once there is a file
``fault`` in the layer's log's directory, which ``FAULTY_TRIGGER`` names."""

import asyncio
import errno
import os
from collections.abc import Callable
from pathlib import Path

import trio

from fusejournal.cli.main import main
from fusejournal.errors import JournalFailedError, RecoveryError
from fusejournal.layer import open_files, request_loop
from fusejournal.layer.connection import KernelConnection
from fusejournal.layer.handlers import Handlers
from fusejournal.layer.replies import Answer
from fusejournal.node.status import StatusPage
from fusejournal.types import Caller, Fid
from fusejournal.volume.durability import Durability

FAULTS: dict[str, Callable[[], BaseException]] = {
    "memory": MemoryError,
    "descriptors": lambda: OSError(errno.EMFILE, os.strerror(errno.EMFILE)),
    "bug": lambda: ZeroDivisionError("planned"),
    "recovery": lambda: RecoveryError("planned"),
    "journal": lambda: JournalFailedError(Path("/journal"), "planned"),
    "generator": lambda: GeneratorExit("planned"),
    "asyncio": lambda: asyncio.CancelledError("planned"),
}


def ending() -> None:
    """The program."""
    part, _, fault = os.environ["FAULTY"].partition(":")
    trigger = Path(os.environ["FAULTY_TRIGGER"])

    def strike() -> None:
        if trigger.exists():
            raise FAULTS[fault]()

    if part == "sampler":
        sample = StatusPage.sample

        def sampling(self: StatusPage) -> None:
            strike()
            sample(self)

        StatusPage.sample = sampling  # type: ignore[method-assign]
    elif part == "durability":
        run = Durability.run

        async def running(self: Durability) -> None:
            async def watch() -> None:
                while True:
                    strike()
                    await trio.sleep(0.01)

            async with trio.open_nursery() as nursery:
                nursery.start_soon(watch)
                await run(self)

        Durability.run = running  # type: ignore[method-assign]
    elif part == "request":
        # (Of its own methods a compiled class calls none that was put there in their place.)
        read = request_loop.read_request  # type: ignore[attr-defined]

        def reading(fd: int, events_fd: int, sleep_ns: int, spin_ns: int, buffer: bytearray) -> int:
            found = read(fd, events_fd, sleep_ns, spin_ns, buffer)
            strike()
            return found

        request_loop.read_request = reading  # type: ignore[attr-defined]
    else:
        raise ValueError(part)
    main()


def on_an_old_kernel() -> None:
    """A program without the fault: a layer on a kernel that cannot expire a name."""
    KernelConnection.can_expire = property(lambda _: False)  # type: ignore[assignment,method-assign]
    main()


def with_a_small_table() -> None:
    """A layer that can keep one open file for the next."""
    open_files._SLOTS = 1
    main()


def forgetting_late() -> None:
    """A layer that reads what the kernel has to say of an earlier time after a file is removed."""
    unlink = Handlers.unlink

    def unlinking(self: Handlers, who: Caller, parent: Fid, name: bytes) -> Answer:
        fid = self.volume.catalog.lookup(parent, name)
        answer = unlink(self, who, parent, name)
        if fid is not None:
            self.forget(who, fid, 1)
        return answer

    Handlers.unlink = unlinking  # type: ignore[method-assign]
    main()
