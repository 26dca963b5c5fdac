"""Callers that are interrupted while their request waits."""

import errno
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import trio

from fusejournal.layer.interrupts import WaitingRequest, is_dying, may_end_here, note_done
from fusejournal.layer.replies import errno_of
from tests.support.patience import PATIENCE_SECONDS

_STAYS_BLOCKED = (
    "import ctypes, signal, sys, time\n"
    "signal.signal(signal.SIGUSR1, lambda *_: None)\n"
    "signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR2, signal.SIGTERM})\n"
    "print('ready', flush=True)\n"
    "time.sleep(60)\n"
)


@contextmanager
def process(code: str = _STAYS_BLOCKED) -> Iterator[subprocess.Popen[bytes]]:
    """A process that has said that it is ready; it is ended at the end of the block."""
    child = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    assert child.stdout is not None
    try:
        assert child.stdout.readline() == b"ready\n"
        yield child
    finally:
        child.stdout.close()
        child.kill()
        child.wait()


def _held_with(child: subprocess.Popen[bytes], number: int) -> None:
    """Have *child* stopped, by a tracer that does not look, with signal *number* waiting for it:
    as it is while it waits in the kernel."""
    os.kill(child.pid, signal.SIGSTOP)
    while b"T (stopped)" not in _status(child.pid):
        time.sleep(0.01)
    os.kill(child.pid, number)


def _status(pid: int) -> bytes:
    with open(f"/proc/{pid}/status", "rb") as file:
        return file.read()


@pytest.mark.parametrize(
    ("number", "dies"),
    [
        (signal.SIGINT, False),  # Python catches it
        (signal.SIGUSR1, False),  # caught
        (signal.SIGTERM, False),  # blocked
        (signal.SIGALRM, True),
        (signal.SIGQUIT, True),
        (signal.SIGCHLD, False),
        (signal.SIGWINCH, False),
    ],
)
def test_only_what_ends_a_process_is_its_end(number: int, dies: bool) -> None:
    with process() as child:
        assert not is_dying(child.pid)
        _held_with(child, number)
        assert is_dying(child.pid) == dies


def test_of_whom_nothing_is_known_is_not_dying() -> None:
    assert not is_dying(0)
    assert not is_dying(2**31 - 1)
    assert not is_dying(2)  # kthreadd, the kernel's own


async def _never() -> bytes:
    await trio.sleep_forever()
    return b""


async def test_a_caller_that_dies_ends_its_wait() -> None:
    with process() as child:
        request = WaitingRequest(child.pid)
        _held_with(child, signal.SIGALRM)
        with trio.fail_after(PATIENCE_SECONDS):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(request.watch)
                with pytest.raises(InterruptedError) as caught:
                    await request.outcome(_never())
        assert errno_of(caught.value) == errno.EINTR


async def test_a_caller_that_dies_later_ends_its_wait_then() -> None:
    """The kernel says it once, of the first signal."""
    with process() as child:
        request = WaitingRequest(child.pid)
        ended = trio.Event()

        async def wait() -> None:
            with pytest.raises(InterruptedError):
                await request.outcome(_never())
            ended.set()

        with trio.fail_after(PATIENCE_SECONDS):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(wait)
                nursery.start_soon(request.watch)
                await trio.sleep(0.5)
                assert not ended.is_set()
                _held_with(child, signal.SIGALRM)


async def test_what_is_done_is_waited_for_whoever_dies() -> None:
    with process() as child:
        request, go_on = WaitingRequest(child.pid), trio.Event()
        _held_with(child, signal.SIGALRM)

        async def change() -> bytes:
            note_done()
            await go_on.wait()
            return b"done"

        async def answer() -> None:
            assert await request.outcome(change()) == b"done"

        with trio.fail_after(PATIENCE_SECONDS):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(request.watch)
                nursery.start_soon(answer)
                await trio.sleep(0.5)
                go_on.set()


async def test_what_was_to_end_is_not_begun() -> None:
    """Though what it waited for came at the same moment."""
    came, done = trio.Event(), False

    async def change() -> bytes:
        nonlocal done
        await came.wait()
        await may_end_here()
        done = True
        return b"done"

    with process() as child:
        request = WaitingRequest(child.pid)
        _held_with(child, signal.SIGALRM)
        with trio.fail_after(PATIENCE_SECONDS):
            async with trio.open_nursery() as nursery:

                async def look() -> None:
                    came.set()  # the task is to run now, and has not run yet
                    await request.watch()

                nursery.start_soon(look)
                with pytest.raises(InterruptedError):
                    await request.outcome(change())
    assert not done


async def test_a_watch_ends_with_the_wait() -> None:
    request = WaitingRequest(os.getpid())

    async def answer() -> bytes:
        await trio.sleep(0.05)
        return b"body"

    with trio.fail_after(PATIENCE_SECONDS):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(request.watch)
            assert await request.outcome(answer()) == b"body"
    note_done()  # of no request: harmless
