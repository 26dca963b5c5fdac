"""The request loop beside other tasks, and what becomes of requests that make no sense or wait."""

import errno
import logging
import os
import socket
import struct
import threading
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio

from fusejournal.layer import interrupts, request_loop
from fusejournal.layer.handshake import TRY_AGAIN
from fusejournal.layer.kernel_protocol import Opcode
from fusejournal.layer.replies import Answer, DurableReply
from fusejournal.layer.request_loop import RequestLoop
from fusejournal.native import kernel as kernel_calls
from fusejournal.types import Caller, Fid, Seq
from fusejournal.volume.volume import EHELD
from tests.support.patience import PATIENCE_SECONDS


class _Handshake:
    """A connection whose kernel is the test. (Its end gives no ENODEV as a mount's does.)"""

    init_flags = 0
    request_bytes_max = 1 << 16

    def __init__(self, fd: int, first_request: bytes) -> None:
        self.fd = fd
        self.first_request = first_request

    async def greet(self) -> bytes:
        return self.first_request


class _Disk:
    """A volume's durability whose flushes are the test's."""

    def __init__(self) -> None:
        self.to_call: list[Callable[[OSError | None], None]] = []

    def call_when_flushed(
        self, seq: Seq, since: float, done: Callable[[OSError | None], None]
    ) -> None:
        self.to_call.append(done)

    def end_flush(self, error: OSError | None = None) -> None:
        to_call, self.to_call = self.to_call, []
        for done in to_call:
            done(error)


class _Calls:
    """Two calls: one that answers, one that waits until it is let go."""

    def __init__(self) -> None:
        self.let_go = trio.Event()
        self.dropped = trio.Event()
        self.served = 0
        self.forgotten: list[tuple[Fid, int]] = []
        self.disk = _Disk()
        self.is_change = False
        self.write_errno: int | None = None
        self.waits_first = False

    def __getattr__(self, _: str) -> Callable[..., Any]:
        return self.statfs

    def mkdir(self, who: Caller, fid: Fid, name: bytes, mode: int, umask: int) -> Answer:
        """A change, at once, or by a task where it first waits."""
        return self._change_later(name) if self.waits_first else self._change(name)

    def _change(self, name: bytes) -> bytes:
        if self.write_errno is not None:
            raise OSError(self.write_errno, os.strerror(self.write_errno))
        self.served += 1
        return b"made " + name

    async def _change_later(self, name: bytes) -> bytes:
        await trio.lowlevel.checkpoint()
        return self._change(name)

    def statfs(self, who: Caller, fid: Fid, *_: object) -> Answer:
        self.served += 1
        return b"%d by %d" % (fid, who.uid)

    def getattr(self, who: Caller, fid: Fid) -> Answer:
        raise ZeroDivisionError("planned")

    def forget(self, who: Caller, fid: Fid, times: int) -> None:
        self.forgotten.append((fid, times))

    def fsync(self, who: Caller, fid: Fid, handle: int) -> Answer:
        return self._wait(handle)

    def fsyncdir(self, who: Caller, fid: Fid) -> Answer:
        """Waits for a flush."""
        disk: Any = self.disk
        return DurableReply(b"durable", self.is_change, disk, Seq(11), time.perf_counter())

    async def _wait(self, handle: int) -> bytes:
        try:
            await self.let_go.wait()
        except trio.Cancelled:
            self.dropped.set()
            raise
        if handle == 13:
            raise OSError(errno.EROFS, os.strerror(errno.EROFS))
        return b"waited"


class _Kernel:
    def __init__(self, loop: RequestLoop, calls: _Calls, device: socket.socket) -> None:
        self.loop = loop
        self.calls = calls
        self.device = device
        device.setblocking(False)

    def ask(self, opcode: int, number: int, body: bytes = b"", length: int | None = None) -> None:
        self.device.send(_request(opcode, number, body, length))

    async def reply(self) -> tuple[int, int, bytes]:
        """Number, errno and body of the next reply."""
        with trio.fail_after(PATIENCE_SECONDS):
            await trio.lowlevel.wait_readable(self.device)
        data = self.device.recv(1 << 16)
        length, error, number = struct.unpack_from("=IiQ", data)
        assert length == len(data)
        return number, -error, data[16:]


def _request(opcode: int, number: int, body: bytes = b"", length: int | None = None) -> bytes:
    length = 40 + len(body) if length is None else length
    return struct.pack("=IIQQIIIHH", length, opcode, number, 7, 1000, 100, 4242, 0, 0) + body


@asynccontextmanager
async def _serving(first_request: bytes = b"") -> AsyncIterator[_Kernel]:
    kernel_end, device = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    device.setblocking(False)
    calls = _Calls()
    handshake = _Handshake(device.fileno(), first_request)
    loop = RequestLoop(handshake, calls)  # type: ignore[arg-type]
    with kernel_end, device:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(loop.run)
            yield _Kernel(loop, calls, kernel_end)
            loop.leave()


async def test_requests_are_answered() -> None:
    async with _serving() as kernel:
        kernel.ask(Opcode.STATFS, 2)
        assert await kernel.reply() == (2, 0, b"7 by 1000")
        # After a long silence, too.
        await trio.sleep(0.05)
        kernel.ask(Opcode.STATFS, 4)
        assert await kernel.reply() == (4, 0, b"7 by 1000")


def ask_directory(kernel: _Kernel, number: int, name: bytes) -> None:
    kernel.ask(Opcode.MKDIR, number, struct.pack("=II", 0o755, 0o22) + name + b"\0")


@pytest.mark.parametrize("waits_first", [False, True])
@pytest.mark.parametrize("end", [None, errno.EROFS])
async def test_a_change_that_is_held_is_done_later_or_refused(
    waits_first: bool, end: int | None
) -> None:
    """Others are served meanwhile, and it may be held once more."""
    async with _serving() as kernel:
        calls = kernel.calls
        calls.write_errno, calls.waits_first = EHELD, waits_first
        for number in (1, 2):
            ask_directory(kernel, number, b"x" * 600 * (number - 1) + b"%d" % number)
        kernel.ask(Opcode.STATFS, 3)
        assert await kernel.reply() == (3, 0, b"7 by 1000")
        kernel.loop.serve_held()
        kernel.ask(Opcode.STATFS, 4)
        assert await kernel.reply() == (4, 0, b"7 by 1000")
        assert calls.served == 2
        calls.write_errno = end
        kernel.loop.serve_held()
        replies = sorted([await kernel.reply(), await kernel.reply()])
        if end is None:
            assert replies == [(1, 0, b"made 1"), (2, 0, b"made " + b"x" * 600 + b"2")]
        else:
            assert replies == [(1, end, b""), (2, end, b"")]


async def test_a_caller_that_dies_while_it_is_held_is_let_go(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(interrupts, "is_dying", lambda thread: thread == 4242)
    async with _serving() as kernel:
        kernel.calls.write_errno = EHELD
        ask_directory(kernel, 1, b"one")
        kernel.ask(Opcode.INTERRUPT, 2, struct.pack("=Q", 1))
        assert await kernel.reply() == (1, errno.EINTR, b"")
        assert kernel.calls.served == 0


async def test_only_so_much_is_held(monkeypatch: pytest.MonkeyPatch) -> None:
    """Then nothing more is read, until it is let go."""
    monkeypatch.setattr(request_loop, "_HELD_BYTES_MAX", 100)
    async with _serving() as kernel:
        kernel.calls.write_errno = EHELD
        ask_directory(kernel, 1, b"x" * 200)
        kernel.ask(Opcode.STATFS, 2)
        with trio.move_on_after(0.05) as waiting:
            await kernel.reply()
        assert waiting.cancelled_caught
        kernel.calls.write_errno = None
        kernel.loop.serve_held()
        assert {(await kernel.reply())[0] for _ in range(2)} == {1, 2}


@pytest.mark.parametrize("waits_first", [False, True])
@pytest.mark.parametrize(
    "refusal", [errno.EEXIST, errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ENOSPC]
)
async def test_who_asks_by_a_wrong_name_is_to_try_again(refusal: int, waits_first: bool) -> None:
    """Until the kernel, whose layer died before it answered, has forgotten such names."""
    async with _serving(_request(Opcode.STATFS, 2)) as kernel:
        assert await kernel.reply() == (2, 0, b"7 by 1000")
        kernel.calls.write_errno, kernel.calls.waits_first = refusal, waits_first
        ask_directory(kernel, 4, b"one")
        wanted = refusal if refusal == errno.ENOSPC else TRY_AGAIN
        assert await kernel.reply() == (4, wanted, b"")
        kernel.loop.note_forgotten()
        ask_directory(kernel, 6, b"one")
        assert await kernel.reply() == (6, refusal, b"")


async def test_who_asks_a_new_layer_is_refused_at_once() -> None:
    async with _serving() as kernel:
        kernel.calls.write_errno = errno.EEXIST
        ask_directory(kernel, 2, b"one")
        assert await kernel.reply() == (2, errno.EEXIST, b"")


async def test_what_has_no_call_is_refused() -> None:
    async with _serving() as kernel:
        for number, opcode in enumerate((25, 34, 40, 4711), start=1):
            kernel.ask(opcode, number, bytes(24))
            assert await kernel.reply() == (number, errno.ENOSYS, b"")


async def test_nonsense_is_an_error_and_no_more(caplog: pytest.LogCaptureFixture) -> None:
    async with _serving() as kernel:
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
    async with _serving() as kernel:
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
    """Said once more at the most; and the loop goes on."""
    refused = 0

    def refuse(fd: int, number: int, refusal: int, body: bytes) -> None:
        nonlocal refused
        if refused < taken_after:
            refused += 1
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        kernel_calls.write_reply(fd, number, refusal, body)

    async with _serving() as kernel:
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

    async with _serving() as kernel:
        monkeypatch.setattr(request_loop, "write_reply", refuse)
        kernel.ask(Opcode.STATFS, 1)
        kernel.ask(Opcode.STATFS, 2)
        assert await kernel.reply() == (2, 0, b"7 by 1000")
    assert not caplog.text


async def test_who_waits_waits_alone() -> None:
    async with _serving() as kernel:
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
    async with _serving() as kernel:
        for number in range(1, 20):
            kernel.ask(Opcode.FSYNCDIR, number, struct.pack("=QII", 0, 0, 0))
        kernel.ask(Opcode.STATFS, 20)
        assert (await kernel.reply())[0] == 20
        kernel.calls.disk.end_flush()
        assert [await kernel.reply() for _ in range(1, 20)] == [
            (number, 0, b"durable") for number in range(1, 20)
        ]


async def test_a_flush_that_fails_is_an_error_to_all_who_wait() -> None:
    async with _serving() as kernel:
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
    async with _serving() as kernel:
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
    async with _serving() as kernel:
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
        async with _serving() as kernel:
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
    async with _serving() as kernel:
        for number in range(3):
            kernel.ask(Opcode.FSYNC, number, struct.pack("=QII", 14, 0, 0))
        kernel.ask(Opcode.STATFS, 9)
        await trio.sleep(0.05)
        assert not kernel.calls.served
        kernel.calls.let_go.set()
        assert {(await kernel.reply())[0] for _ in range(4)} == {0, 1, 2, 9}


async def test_to_leave_is_to_answer_what_was_read() -> None:
    async with _serving() as kernel:
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
        async with _serving() as kernel:
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
    async with _serving() as kernel:
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
    async with _serving():
        await trio.sleep(0.02)
        begun = time.monotonic()
        for _ in range(500):
            await trio.lowlevel.checkpoint()
        assert time.monotonic() - begun < 4  # and not 500 times what the reader sleeps


async def test_timers_are_on_time_though_a_request_comes_now_and_then() -> None:
    async with _serving() as kernel:

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
