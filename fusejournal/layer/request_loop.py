"""The request loop: a cheaper way to wait for requests than pyfuse3's own.

pyfuse3 runs tasks that each wait for the FUSE descriptor, read one request, run its handler,
reply. Parking in trio for every request costs more than most requests do (two epoll_wait and an
epoll_ctl), and starting and ending tasks costs again. Here one task, the *reader*, keeps the role
for as long as its handlers do not wait. It waits in three steps, each dearer to wake from and
cheaper to stay in: it asks the descriptor again and again for some microseconds (only while
requests do come that fast: going to sleep and waking up costs more than most requests), then
sleeps in poll(2), then parks in trio. It does not sleep while other tasks can go on, and is woken
by what they wait for: trio's own descriptor is polled, too, and its next deadline heeded. A
handler that has to wait (for a flush) says so first with
:meth:`RequestLoop.hand_over`; a spare task then becomes the reader, and waits in trio alone until
nobody else does.

Rules for handlers: no await but after ``hand_over``. Order comes from code without awaits, not
from a single task.

Owns the replacement of two of pyfuse3's module functions, once a process (pyfuse3 mounts one file
system a process)."""

import errno
import os
import select
import time
from collections import deque
from collections.abc import Callable
from typing import Any

import pyfuse3
import trio

from fusejournal.layer.connection import Handshake

TASKS = 512
"""How many requests can wait at once, for a flush or for mirrors, before the mount does."""

_SPIN_NS = 50_000
_CAN_SPIN = len(os.sched_getaffinity(0)) > 1
"""With one processor, whoever is to send the next request waits for us meanwhile."""
_SLEEP_NS = 10_000_000
_SLICE_NS = 2_000_000
_UNCLOCKED_MAX = 16
"""The clock is asked once in so many requests: where that is a system call, it costs as much as
an answer from memory does."""


class _Runnable(trio.abc.Instrument):
    """The tasks that are to run and have not had their turn yet. (trio's own count leaves out those
    of the round that is going on.)"""

    def __init__(self) -> None:
        self.tasks: set[trio.lowlevel.Task] = set()

    def task_scheduled(self, task: trio.lowlevel.Task) -> None:
        self.tasks.add(task)

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        self.tasks.discard(task)


class RequestLoop:
    """Serves the session on the *handshake*'s descriptor."""

    def __init__(self, handshake: Handshake) -> None:
        self._handshake: Handshake | None = handshake
        """None when it is over."""
        self._fd = fd = handshake.fd
        self._parked = trio.CancelScope()
        self._reader: trio.lowlevel.Task | None = None
        self._spare: deque[trio.lowlevel.Task] = deque()
        """Tasks with nothing to do: those that never had, then the others, the last at the end."""
        self._readers: set[trio.lowlevel.Task] = set()
        """Tasks that have read a request."""
        self._closed = False
        self._slice_ends_ns = 0
        self._unclocked = 0
        self._spin = False
        """Whether the last request came soon enough for spinning to be worth it."""
        poll = select.poll()
        poll.register(fd, select.POLLIN)
        self._poll = poll.poll
        self._poll_all = select.poll()
        """For requests and for what other tasks wait for."""
        self._poll_all.register(fd, select.POLLIN)
        self._runnable = _Runnable()
        self._waiting: set[trio.lowlevel.Task] = set()
        """Tasks whose handlers wait for something."""
        self._when_answered: dict[trio.lowlevel.Task, Callable[[], None]] = {}

    async def run(self) -> None:
        """Serve requests until the file system is unmounted or :meth:`leave` is called."""
        original: Callable[..., Any] = pyfuse3._session_loop  # type: ignore[attr-defined]
        self._poll_all.register(_events_fd(), select.POLLIN)
        trio.lowlevel.add_instrument(self._runnable)

        async def session_loop(nursery: trio.Nursery, min_tasks: int, max_tasks: int) -> None:
            while True:
                try:
                    await original(nursery, min_tasks, max_tasks)
                except OSError as error:
                    # The request that poll saw was interrupted and taken back before it was read.
                    if error.errno != errno.EAGAIN:
                        raise
                else:
                    break
            self._close()

        pyfuse3._session_loop = session_loop  # type: ignore[attr-defined]
        pyfuse3._wait_fuse_readable = self._wait_readable  # type: ignore[attr-defined]
        try:
            await pyfuse3.main(min_tasks=TASKS, max_tasks=TASKS)
        finally:
            trio.lowlevel.remove_instrument(self._runnable)
            pyfuse3._session_loop = original  # type: ignore[attr-defined]

    def hand_over(self) -> None:
        """Let another task read requests: the calling handler is about to wait."""
        task = trio.lowlevel.current_task()
        self._waiting.add(task)
        if self._reader is task:
            self._reader = None
            self._give_role()

    def when_answered(self, act: Callable[[], None]) -> None:
        """Call *act* once the reply to the calling handler's request has gone to the kernel."""
        self._when_answered[trio.lowlevel.current_task()] = act

    async def _wait_readable(self) -> bool:
        task = trio.lowlevel.current_task()
        self._waiting.discard(task)
        if self._when_answered and (act := self._when_answered.pop(task, None)) is not None:
            act()
        while self._reader is not task:
            if self._closed:
                return False
            if self._reader is None:
                self._reader = task
                self._readers.add(task)
            else:
                await self._be_spare(task)
        return await self._read_role()

    async def _be_spare(self, task: trio.lowlevel.Task) -> None:
        """Return when the calling *task* is to be the reader, or all is over."""

        def abort(_: object) -> trio.lowlevel.Abort:
            self._spare.remove(task)
            return trio.lowlevel.Abort.SUCCEEDED

        if task in self._readers:
            self._spare.append(task)
        else:
            self._spare.appendleft(task)
        await trio.lowlevel.wait_task_rescheduled(abort)

    def _give_role(self) -> None:
        """Make a spare task the reader, if there is one: the last one that was, because each keeps
        a buffer for its requests, of a megabyte where it has met a large one."""
        if self._spare:
            self._reader = self._spare.pop()
            self._readers.add(self._reader)
            trio.lowlevel.reschedule(self._reader)

    async def _read_role(self) -> bool:
        """As the reader: return True when a request is there, False when the loop is to end."""
        if self._handshake is not None and self._handshake.proceed():
            self._handshake = None
        self._unclocked += 1
        if self._unclocked > _UNCLOCKED_MAX:
            self._unclocked = 0
            if time.monotonic_ns() > self._slice_ends_ns:
                # Timers, flushes and the control socket want their turn too.
                await trio.lowlevel.checkpoint()
                self._slice_ends_ns = time.monotonic_ns() + _SLICE_NS
        if not self._closed and not self._waiting and await self._comes_soon():
            return True
        while not self._closed:
            try:
                with trio.CancelScope() as self._parked:
                    await trio.lowlevel.wait_readable(self._fd)
            except trio.ClosedResourceError:
                break
            if not self._closed and self._poll(0):
                self._unclocked = _UNCLOCKED_MAX
                self._slice_ends_ns = time.monotonic_ns() + _SLICE_NS
                return True
        self._close()
        return False

    async def _comes_soon(self) -> bool:
        """Wait a moment for a request; False when none came."""
        poll = self._poll
        if poll(0):
            return True
        now_ns = time.monotonic_ns()
        spin_until_ns = now_ns + _SPIN_NS
        sleep_until_ns = now_ns + _SLEEP_NS
        if _CAN_SPIN and self._spin:
            while time.monotonic_ns() < spin_until_ns:
                if poll(0):
                    return True
        found = False
        while not found and not self._closed and time.monotonic_ns() < sleep_until_ns:
            seconds = 0.0
            if not self._runnable.tasks:
                seconds = trio.lowlevel.current_statistics().seconds_to_next_deadline
            if seconds > 0:
                milliseconds = (sleep_until_ns - time.monotonic_ns()) / 1e6
                ready = self._poll_all.poll(max(0, min(milliseconds, 1000 * seconds)))
                found = any(fd == self._fd for fd, _ in ready)
            if not found:
                await trio.lowlevel.checkpoint()
                self._slice_ends_ns = time.monotonic_ns() + _SLICE_NS
                found = not self._closed and bool(poll(0))
        self._spin = time.monotonic_ns() < spin_until_ns
        return found

    def leave(self) -> None:
        """Read no more requests; :meth:`run` returns when those that were read are answered."""
        self._close()
        self._parked.cancel()

    def _close(self) -> None:
        self._closed = True
        self._reader = None
        while self._spare:
            trio.lowlevel.reschedule(self._spare.pop())


def _events_fd() -> int:
    """The descriptor that is readable when something that a task waits for has happened."""
    runner = trio._core._run.GLOBAL_RUN_CONTEXT.runner
    return int(runner.io_manager._epoll.fileno())
