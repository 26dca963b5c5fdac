"""Ends the wait of a request whose caller is interrupted, where that can be.

The kernel asks once that a request be answered soon, on the first signal that the caller gets, and
then holds even a killed caller until there is an answer. A wait of which nothing has been done yet
(for an import, for a place among those who wait for mirrors), or after which nothing is to be done
(an fsync's), can end in EINTR. What is done cannot be undone: its caller waits until it is durable,
because it would take any error for a word that it was not done.

And only a caller that is about to die gets EINTR. Other signals (a timer, a child that has ended)
are for the program to handle, and no program expects that an fsync fails because of one; no local
file system ends it for that. So whether a signal is the caller's end is looked up, when the kernel
asks and then again and again, because it does not ask twice.

Source: Documentation/filesystems/fuse.rst, "Interrupting filesystem operations"; fs/fuse/dev.c
(request_wait_answer); proc(5), /proc/pid/status; signal(7); the kernel's kernel/signal.c
(complete_signal)."""

import errno
import os
import signal
from collections.abc import Callable, Coroutine
from contextvars import ContextVar
from pathlib import Path
from typing import Any, Final, TypeVar

import trio

T = TypeVar("T")

_LOOK_SECONDS: Final = 0.2
_HARMLESS: Final = frozenset(
    (
        *(signal.SIGCHLD, signal.SIGCONT, signal.SIGURG, signal.SIGWINCH),
        *(signal.SIGSTOP, signal.SIGTSTP, signal.SIGTTIN, signal.SIGTTOU),
    )
)
"""Signals that end no process of themselves."""
_DEADLY: Final = sum(1 << (number - 1) for number in signal.valid_signals() - _HARMLESS)
_KILL: Final = 1 << (signal.SIGKILL - 1)


class WaitingRequest:
    """A request of *thread* that waits. Belongs to the event loop."""

    def __init__(self, thread: int) -> None:
        self._thread = thread
        self._scope = trio.CancelScope()
        self._may_end = False
        """True while the wait can end with nothing half done."""
        self._is_over = trio.Event()

    async def outcome(self, answer: Coroutine[Any, Any, T]) -> T:
        """Returns what *answer* comes to. Raises InterruptedError where the caller is about to die,
        and what *answer* raises. Cancelling does what it does in *answer*."""
        _waiting.set(self)
        self._may_end = True
        try:
            with self._scope:
                return await answer
        finally:
            self._is_over.set()
        raise InterruptedError(errno.EINTR, os.strerror(errno.EINTR))

    async def watch(self) -> None:
        """The caller was interrupted: end the wait if that is the caller's end, now or later.
        Returns when the wait is over. Cancelling ends only the watch."""
        while not self._is_over.is_set():
            if self._may_end and is_dying(self._thread):
                self._scope.cancel()
            with trio.move_on_after(_LOOK_SECONDS):
                await self._is_over.wait()

    def keep(self) -> None:
        """Has the call wait to the end from here on, because something is done."""
        self._may_end = False


class WaitingReply:
    """A request of *thread* whose reply waits for a flush, without a task. *end* answers it at
    once, and is None where something was changed. Belongs to the event loop."""

    def __init__(self, thread: int, end: Callable[[], None] | None) -> None:
        self._thread = thread
        self._end = end

    def note_answered(self) -> None:
        """Notes that it waits no more."""
        self._end = None

    async def watch(self) -> None:
        """The caller was interrupted: answer the request if that is the caller's end, now or later.
        Returns when it is answered. Cancelling ends only the watch."""
        while self._end is not None:
            if is_dying(self._thread):
                self._end()
            else:
                await trio.sleep(_LOOK_SECONDS)


_waiting: ContextVar[WaitingRequest | None] = ContextVar("waiting", default=None)


def note_done() -> None:
    """Note that the request of this task has changed something: its wait is not to end early."""
    request = _waiting.get()
    if request is not None:
        request.keep()


async def may_end_here() -> None:
    """End the wait of this task's request here if that was decided meanwhile: a change is about to
    be made. Never waits. Cancelling ends it, too."""
    await trio.lowlevel.checkpoint_if_cancelled()


def is_dying(thread: int) -> bool:
    """Returns True if a signal waits for *thread* that it dies of as soon as it can. (Where it is
    none of this pid namespace, its number is 0: that is not known.)"""
    try:
        lines = Path(f"/proc/{thread}/status").read_text(errors="replace").splitlines()
    except OSError:
        return False
    words = dict(line.split(":", 1) for line in lines if line.startswith(("Sig", "Shd", "VmSize")))
    if "VmSize" not in words:
        return False  # a thread of the kernel: nfsd's goes on to tell a client how it ended
    try:
        pending, shared, blocked, ignored, caught = (
            int(words[key], 16) for key in ("SigPnd", "ShdPnd", "SigBlk", "SigIgn", "SigCgt")
        )
    except (KeyError, ValueError):
        return False
    # When the kernel has decided that a process ends, each of its threads has a SIGKILL.
    waiting = (pending | shared) & ~blocked & ~ignored & ~caught & _DEADLY
    return bool(waiting | (pending & _KILL))
