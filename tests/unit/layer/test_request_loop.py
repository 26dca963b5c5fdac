"""The request loop beside other tasks, and what becomes of requests that make no sense or wait."""

import errno
import logging
import os
import struct
import threading
import time

import pytest
import trio

from fusejournal.layer import interrupts, request_loop
from fusejournal.layer.kernel_protocol import Opcode
from fusejournal.native import kernel as kernel_calls
from fusejournal.types import Fid
from tests.support.loop_kernel import serving
from tests.support.patience import PATIENCE_SECONDS


async def test_requests_are_answered() -> None:
    async with serving() as kernel:
        kernel.ask(Opcode.STATFS, 2)
        assert await kernel.reply() == (2, 0, b"7 by 1000")
        # After a long silence, too.
        await trio.sleep(0.05)
        kernel.ask(Opcode.STATFS, 4)
        assert await kernel.reply() == (4, 0, b"7 by 1000")


async def test_what_has_no_call_is_refused() -> None:
    async with serving() as kernel:
        for number, opcode in enumerate((25, 34, 40, 4711), start=1):
            kernel.ask(opcode, number, bytes(24))
            assert await kernel.reply() == (number, errno.ENOSYS, b"")


async def test_nonsense_is_an_error_and_no_more(caplog: pytest.LogCaptureFixture) -> None:
    async with serving() as kernel:
        with caplog.at_level(logging.CRITICAL, "fusejournal.layer"):
            kernel.device.send(b"short")
            kernel.ask(Opcode.STATFS, 1, length=4711)
            assert await kernel.reply() == (1, errno.EIO, b"")
            kernel.ask(Opcode.LOOKUP, 2, b"endless")
            assert await kernel.reply() == (2, errno.EIO, b"")
            kernel.ask(Opcode.FSYNC, 3, b"short")
            assert await kernel.reply() == (3, errno.EIO, b"")
            kernel.ask(Opcode.GETATTR, 4, bytes(16))
            assert await kernel.reply() == (4, errno.EIO, b"")
        kernel.ask(Opcode.STATFS, 5)
        assert await kernel.reply() == (5, 0, b"7 by 1000")


async def test_some_requests_have_no_reply(caplog: pytest.LogCaptureFixture) -> None:
    """Not even where they make no sense."""
    async with serving() as kernel:
        kernel.ask(Opcode.FORGET, 1, struct.pack("=Q", 3))
        kernel.ask(Opcode.INTERRUPT, 2, struct.pack("=Q", 4))
        with caplog.at_level(logging.CRITICAL, "fusejournal.layer"):
            kernel.ask(Opcode.FORGET, 3, b"short")
            kernel.ask(Opcode.STATFS, 4)
            assert await kernel.reply() == (4, 0, b"7 by 1000")
        assert kernel.calls.forgotten == [(Fid(7), 3)]


@pytest.mark.parametrize("taken_after", [1, 2])
async def test_a_reply_that_is_not_taken_is_an_error_to_its_caller(
    taken_after: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The caller gets an error, if that one is taken; and the loop goes on."""
    refused = 0

    def refuse(fd: int, number: int, refusal: int, body: bytes) -> None:
        nonlocal refused
        if refused < taken_after:
            refused += 1
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        kernel_calls.write_reply(fd, number, refusal, body)

    async with serving() as kernel:
        monkeypatch.setattr(request_loop, "write_reply", refuse)
        with caplog.at_level(logging.CRITICAL, "fusejournal.layer"):
            kernel.ask(Opcode.STATFS, 1)
            if taken_after == 1:
                assert await kernel.reply() == (1, errno.EIO, b"")
            kernel.ask(Opcode.STATFS, 2)
            assert await kernel.reply() == (2, 0, b"7 by 1000")


@pytest.mark.parametrize("number", [errno.ENOENT, errno.ENODEV])
async def test_who_has_gone_is_not_told_again(
    number: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    gone = [number]

    def refuse(fd: int, number: int, refusal: int, body: bytes) -> None:
        if gone:
            raise OSError(gone.pop(), "planned")
        kernel_calls.write_reply(fd, number, refusal, body)

    async with serving() as kernel:
        monkeypatch.setattr(request_loop, "write_reply", refuse)
        kernel.ask(Opcode.STATFS, 1)
        kernel.ask(Opcode.STATFS, 2)
        assert await kernel.reply() == (2, 0, b"7 by 1000")
    assert not caplog.text


async def test_who_waits_waits_alone() -> None:
    async with serving() as kernel:
        kernel.ask(Opcode.FSYNC, 1, struct.pack("=QII", 13, 0, 0))
        kernel.ask(Opcode.FSYNC, 2, struct.pack("=QII", 14, 0, 0))
        for number in range(3, 50):
            kernel.ask(Opcode.STATFS, number)
            assert (await kernel.reply())[0] == number
        kernel.calls.let_go.set()
        assert sorted([await kernel.reply(), await kernel.reply()]) == [
            (1, errno.EROFS, b""),
            (2, 0, b"waited"),
        ]


async def test_many_share_a_flush() -> None:
    async with serving() as kernel:
        for number in range(1, 20):
            kernel.ask(Opcode.FSYNCDIR, number, struct.pack("=QII", 0, 0, 0))
        kernel.ask(Opcode.STATFS, 20)
        assert (await kernel.reply())[0] == 20
        kernel.calls.disk.end_flush()
        assert [await kernel.reply() for _ in range(1, 20)] == [
            (number, 0, b"durable") for number in range(1, 20)
        ]


async def test_a_flush_that_fails_is_an_error_to_all_who_wait() -> None:
    async with serving() as kernel:
        for number in (1, 2):
            kernel.ask(Opcode.FSYNCDIR, number, struct.pack("=QII", 0, 0, 0))
        kernel.ask(Opcode.STATFS, 3)
        assert (await kernel.reply())[0] == 3
        kernel.calls.disk.end_flush(OSError(errno.EIO, os.strerror(errno.EIO)))
        assert [await kernel.reply() for _ in (1, 2)] == [(n, errno.EIO, b"") for n in (1, 2)]


@pytest.mark.parametrize("is_change", [False, True])
async def test_a_caller_that_dies_waits_for_no_flush_unless_something_is_done(
    is_change: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(interrupts, "is_dying", lambda _: True)
    async with serving() as kernel:
        kernel.calls.is_change = is_change
        kernel.ask(Opcode.FSYNCDIR, 1, struct.pack("=QII", 0, 0, 0))
        kernel.ask(Opcode.INTERRUPT, 2, struct.pack("=Q", 1))
        if is_change:
            await trio.sleep(0.05)
            with pytest.raises(BlockingIOError):
                kernel.device.recv(64)
        else:
            assert await kernel.reply() == (1, errno.EINTR, b"")
        kernel.calls.disk.end_flush()  # of the dead one too
        kernel.ask(Opcode.STATFS, 3)
        if is_change:
            assert await kernel.reply() == (1, 0, b"durable")
        assert (await kernel.reply())[0] == 3


async def test_to_leave_is_to_wait_for_the_flush() -> None:
    async with serving() as kernel:
        kernel.ask(Opcode.FSYNCDIR, 1, struct.pack("=QII", 0, 0, 0))
        kernel.ask(Opcode.STATFS, 2)
        assert (await kernel.reply())[0] == 2  # so both are read
        kernel.loop.leave()
        await trio.sleep(0.02)
        kernel.calls.disk.end_flush()
        assert await kernel.reply() == (1, 0, b"durable")


async def test_a_flush_that_ends_after_the_mount_answers_nobody(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its descriptor may be another file's by then."""

    def gone(*_: object) -> int:
        raise OSError(errno.ENODEV, os.strerror(errno.ENODEV))

    with trio.fail_after(PATIENCE_SECONDS):
        async with serving() as kernel:
            kernel.ask(Opcode.FSYNCDIR, 1, struct.pack("=QII", 0, 0, 0))
            kernel.ask(Opcode.STATFS, 2)
            assert (await kernel.reply())[0] == 2
            monkeypatch.setattr(request_loop, "read_request", gone)
            kernel.ask(Opcode.STATFS, 3)
            await trio.sleep(0.05)
            kernel.calls.disk.end_flush()
            with pytest.raises(BlockingIOError):
                kernel.device.recv(64)


async def test_only_so_many_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(request_loop, "WAITING_MAX", 3)
    async with serving() as kernel:
        for number in range(3):
            kernel.ask(Opcode.FSYNC, number, struct.pack("=QII", 14, 0, 0))
        kernel.ask(Opcode.STATFS, 9)
        await trio.sleep(0.05)
        assert not kernel.calls.served
        kernel.calls.let_go.set()
        assert {(await kernel.reply())[0] for _ in range(4)} == {0, 1, 2, 9}


async def test_to_leave_is_to_answer_what_was_read() -> None:
    async with serving() as kernel:
        kernel.ask(Opcode.FSYNC, 1, struct.pack("=QII", 14, 0, 0))
        await trio.sleep(0.02)
        kernel.loop.leave()
        kernel.ask(Opcode.STATFS, 2)
        await trio.sleep(0.02)
        kernel.calls.let_go.set()
        assert await kernel.reply() == (1, 0, b"waited")
        await trio.sleep(0.02)
        assert not kernel.calls.served


async def test_nobody_waits_when_the_connection_is_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Taken away by force, or cut: what they wait for may never come."""

    def gone(*_: object) -> int:
        raise OSError(errno.ENODEV, os.strerror(errno.ENODEV))

    with trio.fail_after(PATIENCE_SECONDS):
        async with serving() as kernel:
            kernel.ask(Opcode.FSYNC, 1, struct.pack("=QII", 14, 0, 0))
            kernel.ask(Opcode.STATFS, 2)
            assert (await kernel.reply())[0] == 2
            monkeypatch.setattr(request_loop, "read_request", gone)
            kernel.ask(Opcode.STATFS, 3)
            await kernel.calls.dropped.wait()
            with pytest.raises(BlockingIOError):
                kernel.device.recv(64)


async def test_other_tasks_have_their_turn_while_requests_come_without_end() -> None:
    """One that is always ready to run, and one that a timer wakes."""
    async with serving() as kernel:
        over = threading.Event()

        async def be_ready() -> None:
            for _ in range(50):
                await trio.lowlevel.checkpoint()

        async def be_woken() -> None:
            for _ in range(20):
                await trio.sleep(0.005)

        def flood() -> None:
            kernel.device.setblocking(True)
            while not over.is_set():
                for _ in range(8):
                    kernel.ask(Opcode.STATFS, 1)
                for _ in range(8):
                    kernel.device.recv(64)

        with trio.fail_after(30):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(trio.to_thread.run_sync, flood)
                async with trio.open_nursery() as others:
                    others.start_soon(be_ready)
                    others.start_soon(be_woken)
                over.set()
        assert kernel.calls.served > 20


async def test_a_busy_task_is_not_kept_waiting_for_requests() -> None:
    """In whichever order trio lets the tasks of a round have their turn."""
    async with serving():
        await trio.sleep(0.02)
        begun = time.monotonic()
        for _ in range(500):
            await trio.lowlevel.checkpoint()
        assert time.monotonic() - begun < 4  # and not 500 times what the reader sleeps


async def test_timers_are_on_time_though_a_request_comes_now_and_then() -> None:
    async with serving() as kernel:

        def trickle(end: float) -> None:
            kernel.device.setblocking(True)
            while time.monotonic() < end:
                kernel.ask(Opcode.STATFS, 1)
                kernel.device.recv(64)
                time.sleep(0.003)

        late: list[float] = []
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.to_thread.run_sync, trickle, time.monotonic() + 0.5)
            while len(late) < 10:
                due = trio.current_time() + 0.02
                await trio.sleep_until(due)
                late.append(trio.current_time() - due)
        assert sorted(late)[2] < 0.01
