"""A world for nodes in one thread: its time, its links, its disks, all from one seed.

The nodes run the product's own code. What that asks of the world outside is answered here: time is
trio's mock clock, with an offset for each node's wall clock; a thread is a pause of as long as the
node's disk takes; a connection is a pair of streams in memory, over a link that can be cut. Trio's
own order of tasks comes from the seed, too. So a seed is a history, and comes out the same each
time: :attr:`World.trace` says so."""

import math
import random
import re
import subprocess
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import outcome
import pytest
import trio
import trio._core._run

from fusejournal.address import Address
from fusejournal.disk import failpoints
from fusejournal.errors import FusejournalError, JournalFailedError, PeerLostError
from fusejournal.journal.index_making import write_index
from fusejournal.replication import canvass, fetch_lost, parting, shipper, supervisor
from fusejournal.replication.member_record import MEMBERS_FILE
from fusejournal.roles import hand_over
from fusejournal.wire.connection import Connection

_NODE_ID = re.compile(r"(\d+)/[0-9a-f]{16}")
_EPOCH_SECONDS = 1_700_000_000
_CONNECT_SECONDS = 10.0
_TICK_SECONDS = 1e-6
"""Time passes between two looks at the clock, so that no two entries are of one time by chance."""

Handler = Callable[[Connection], Awaitable[None]]


class Died(BaseException):
    """A kill of a process, at a call that it was about to make."""


class Machine:
    """The machine under a node's process: a clock, a disk, and whether it is alive."""

    def __init__(self, name: str, address: Address) -> None:
        self.name = name
        self.address = address
        self.clock_offset_seconds = 0.0
        self.disk_seconds = 0.001
        """The average time of a call in a thread."""
        self.is_dead = False
        self.death = trio.Event()
        self.scope: trio.CancelScope | None = None
        """The scope of all tasks of its process."""
        self.dies_in: int | None = None
        """So many labelled calls of the disk from now; None: by none."""
        self.page: Path | None = None
        self.synced_page = b""
        """The page of watermarks as it was on the disk."""
        self.older: list[tuple[bytes, bytes | None]] = []
        """That, and the record of members, at each time that the page was flushed."""

    def boot(self) -> None:
        """A process begins."""
        self.is_dead, self.death, self.dies_in = False, trio.Event(), None

    def die(self) -> None:
        """The process ends, at once."""
        self.is_dead = True
        self.death.set()
        if self.scope is not None:
            self.scope.cancel()


current: ContextVar[Machine | None] = ContextVar("current", default=None)
"""The machine of the current task."""


class Pipe(trio.abc.Stream):
    """One end of a connection over *link*."""

    def __init__(self, link: "Link") -> None:
        self.link = link
        self.other: Pipe
        self._buffer = bytearray()
        self._is_over = False
        self._changed = trio.Event()

    def wake(self) -> None:
        """Something is different."""
        self._changed.set()
        self._changed = trio.Event()

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        """Bytes arrive later, or never."""
        await trio.sleep(self.link.latency())
        if self.link.is_broken(self) or self._is_over:
            raise trio.BrokenResourceError
        if not self.link.is_cut:
            self.other._buffer += data
            self.other.wake()

    async def wait_send_all_might_not_block(self) -> None:
        await trio.lowlevel.checkpoint()

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        """Returns bytes as a socket gives them."""
        while not self._buffer:
            if self.link.is_broken(self):
                raise trio.BrokenResourceError
            if self._is_over:
                return b""
            await self._changed.wait()
        await trio.lowlevel.checkpoint()
        count = len(self._buffer) if max_bytes is None else max_bytes
        piece = bytes(self._buffer[:count])
        del self._buffer[:count]
        return piece

    async def aclose(self) -> None:
        """The other end hears of it, if it can."""
        if not self.link.is_cut:
            self.other._is_over = True
        self.link.forget(self)
        self.other.wake()
        self.wake()
        await trio.lowlevel.checkpoint()


class Link:
    """Between two machines. What is sent while it *is_cut* is lost, and a node that has a
    connection over it hears that when it is mended, or by silence."""

    def __init__(self, dice: random.Random) -> None:
        self._dice = dice
        self.is_cut = False
        self.pipes: set[Pipe] = set()
        self._broken: set[Pipe] = set()

    def latency(self) -> float:
        """The latency of one message, in seconds."""
        return self._dice.uniform(0.0001, 0.01)

    def is_broken(self, pipe: Pipe) -> bool:
        """True if *pipe* was laid before the link was cut and mended, or is closed."""
        return pipe in self._broken or pipe not in self.pipes

    def forget(self, pipe: Pipe) -> None:
        """It is closed."""
        self.pipes.discard(pipe)
        self._broken.discard(pipe)

    def cut(self) -> None:
        """From now on nothing arrives."""
        self.is_cut = True

    def mend(self) -> None:
        """New connections work."""
        if self.is_cut:
            self.is_cut = False
            self._broken |= self.pipes
            for pipe in self.pipes:
                pipe.wake()

    def laid(self) -> tuple[Pipe, Pipe]:
        """Two ends of a new connection."""
        one, other = Pipe(self), Pipe(self)
        one.other, other.other = other, one
        self.pipes |= {one, other}
        return one, other


class World:
    """Machines and links. Used within :meth:`running`."""

    def __init__(self, seed: int) -> None:
        self.dice = random.Random(seed)
        self.machines: dict[Address, Machine] = {}
        self._links: dict[frozenset[str], Link] = {}
        self._listening: dict[Address, tuple[Handler, trio.Nursery]] = {}
        self.nursery: trio.Nursery
        """For what its threads do."""
        self.trace: list[str] = []
        self._looks = 0

    def note(self, what: str) -> None:
        """Something happened."""
        what = _NODE_ID.sub(r"\1", what)  # (Keys are made anew each time.)
        self.trace.append(f"{trio.current_time():.6f} {what}")

    def machine(self, name: str) -> Machine:
        """A new one."""
        address = Address(f"10.0.0.{len(self.machines) + 1}", 7710)
        self.machines[address] = Machine(name, address)
        return self.machines[address]

    def link(self, one: Machine, other: Machine) -> Link:
        """The one between these two."""
        key = frozenset((one.name, other.name))
        if key not in self._links:
            self._links[key] = Link(self.dice)
        return self._links[key]

    def links(self) -> list[Link]:
        """All that were used."""
        return list(self._links.values())

    # -- what the product asks for -----------------------------------------------------------------

    async def connect(
        self, address: Address, *_: Any, open_seconds: float = _CONNECT_SECONDS, **__: Any
    ) -> Connection:
        """Connects, in the place of transport.connect."""
        here = current.get()
        assert here is not None
        await trio.sleep(self.dice.uniform(0.0005, 0.005))
        there = self.machines[address]
        link = self.link(here, there)
        if link.is_cut:
            await trio.sleep(open_seconds)
            raise PeerLostError(str(address), "no answer")
        if address not in self._listening or there.is_dead:
            raise PeerLostError(str(address), "nobody listens")
        handler, nursery = self._listening[address]
        one, other = link.laid()
        nursery.start_soon(
            self._handle, there, handler, Connection(other, str(here.address), here.name)
        )
        return Connection(one, str(address), None)

    async def _handle(self, there: Machine, handler: Handler, connection: Connection) -> None:
        current.set(there)  # (It was begun by a task of the other.)
        async with connection:
            try:
                await handler(connection)
            except* (FusejournalError, trio.BrokenResourceError):
                pass  # as the listener, which logs it

    async def serve(
        self,
        address: Address,
        *_: Any,
        on_connection: Handler,
        task_status: trio.TaskStatus[Address] = trio.TASK_STATUS_IGNORED,
        **__: Any,
    ) -> None:
        """Serves, in the place of listener.serve."""
        async with trio.open_nursery() as nursery:
            self._listening[address] = on_connection, nursery
            task_status.started(address)
            try:
                await trio.sleep_forever()
            finally:
                if self._listening.get(address, (None, None))[1] is nursery:
                    del self._listening[address]

    async def run_sync(self, call: Callable[..., Any], *args: Any, **_: Any) -> Any:
        """Runs in the place of trio.to_thread.run_sync: what it does, it does when the disk is
        ready, whether or not its task is cancelled meanwhile; but nothing after its process has
        ended."""
        here = current.get()
        if here is not None:
            with trio.CancelScope(shield=True), trio.move_on_after(self._disk_pause(here)):
                await here.death.wait()
            if here.is_dead:
                raise Died("in a thread")  # (Who waits may be shielded.)
        await trio.lowlevel.checkpoint_if_cancelled()
        return call(*args)

    def start_thread_soon(
        self, call: Callable[[], Any], deliver: Callable[[outcome.Outcome[Any]], object], *_: Any
    ) -> None:
        """Stands in for trio.lowlevel.start_thread_soon: the thread of a process that has ended
        does nothing, and ends with it."""
        here = current.get()
        assert here is not None
        self.nursery.start_soon(self._thread, here, call, deliver)

    async def _thread(
        self,
        here: Machine,
        call: Callable[[], Any],
        deliver: Callable[[outcome.Outcome[Any]], object],
    ) -> None:
        result: outcome.Outcome[Any] = outcome.Error(JournalFailedError("the process has ended"))
        death = here.death
        # (A thread ends whatever happens to the tasks, one of which may wait for that shielded.)
        with trio.CancelScope(shield=True), trio.move_on_after(self._disk_pause(here)):
            await death.wait()
        if not death.is_set():
            result = outcome.capture(call)
            if isinstance(result, outcome.Error) and isinstance(result.error, Died):
                result = outcome.Error(JournalFailedError("the process has ended"))
        deliver(result)

    async def run_process(
        self, command: Sequence[str], **_: Any
    ) -> "subprocess.CompletedProcess[bytes]":
        """Stands in for trio.run_process, for the only program that is begun, the one that makes an
        index."""
        assert "fusejournal.journal.index_making" in command
        await self.run_sync(write_index, Path(command[-1]))
        return subprocess.CompletedProcess(command, 0, b"", b"")

    def _disk_pause(self, here: Machine) -> float:
        return self.dice.expovariate(1 / here.disk_seconds)

    def reached(self, label: str) -> None:
        """At a labelled call of a disk."""
        here = current.get()
        if here is None:
            return
        if here.dies_in is not None and not here.is_dead:
            here.dies_in -= 1
            if here.dies_in < 0:
                self.note(f"{here.name} dies at {label}")
                here.die()
        if here.is_dead:
            raise Died(label)
        if label == "watermarks.sync" and here.page is not None:
            here.synced_page = here.page.read_bytes()
            record = here.page.parent / MEMBERS_FILE
            here.older.append((here.synced_page, record.read_bytes() if record.exists() else None))

    # -- time --------------------------------------------------------------------------------------

    def now(self) -> float:
        """The time of a clock that is never set, in seconds."""
        self._looks += 1
        try:
            passed = trio.current_time()
        except RuntimeError:  # before and after the run
            passed = 0.0
        return 1000.0 + passed + self._looks * _TICK_SECONDS

    def wall(self) -> float:
        """By the clock of the machine whose task asks."""
        here = current.get()
        return _EPOCH_SECONDS + self.now() + (here.clock_offset_seconds if here else 0.0)

    def _clock(self, which: int) -> float:
        realtime = (time.CLOCK_REALTIME, 5)  # CLOCK_REALTIME_COARSE
        return self.wall() if which in realtime else self.now()

    @contextmanager
    def running(self, seed: int) -> Iterator[None]:
        """The product lives in this world until the block ends."""
        with pytest.MonkeyPatch.context() as patch:
            random_state = random.getstate()
            random.seed(seed)
            patch.setattr(trio._core._run, "_ALLOW_DETERMINISTIC_SCHEDULING", True)
            trio._core._run._r.seed(seed)
            for module in (shipper, fetch_lost, parting, canvass, hand_over):
                patch.setattr(module, "connect", self.connect)
            patch.setattr(supervisor, "serve", self.serve)
            patch.setattr(trio.to_thread, "run_sync", self.run_sync)
            patch.setattr(trio, "run_process", self.run_process)
            patch.setattr(trio.lowlevel, "start_thread_soon", self.start_thread_soon)
            for name, ask in (
                ("time", self.wall),
                ("time_ns", lambda: math.floor(self.wall() * 1e9)),
                ("monotonic", self.now),
                ("monotonic_ns", lambda: math.floor(self.now() * 1e9)),
                ("perf_counter", self.now),
                ("clock_gettime", self._clock),
                ("clock_gettime_ns", lambda which: math.floor(self._clock(which) * 1e9)),
            ):
                patch.setattr(time, name, ask)
            failpoints.listen(self.reached)
            try:
                yield
            finally:
                failpoints.listen(None)
                random.setstate(random_state)


@contextmanager
def at(machine: Machine) -> Iterator[None]:
    """Does the block in a process of *machine*."""
    token = current.set(machine)
    try:
        yield
    finally:
        current.reset(token)
