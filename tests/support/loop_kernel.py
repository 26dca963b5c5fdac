"""A request loop whose kernel is the test: requests are asked for by hand, and calls are let go or
refused as the test wants it."""

import errno
import os
import socket
import struct
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import trio

from fusejournal.layer.kernel_protocol import Opcode
from fusejournal.layer.replies import Answer, DurableReply
from fusejournal.layer.request_loop import RequestLoop
from fusejournal.types import Caller, Fid, Seq
from tests.support.patience import PATIENCE_SECONDS


class Handshake:
    """A connection whose kernel is the test. (Its end gives no ENODEV as a mount's does.)"""

    init_flags = 0
    request_bytes_max = 1 << 16

    def __init__(self, fd: int, first_request: bytes) -> None:
        self.fd = fd
        self.first_request = first_request

    async def greet(self) -> bytes:
        return self.first_request


class Disk:
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


class Calls:
    """Two calls: one that answers, one that waits until it is let go."""

    def __init__(self) -> None:
        self.let_go = trio.Event()
        self.dropped = trio.Event()
        self.served = 0
        self.forgotten: list[tuple[Fid, int]] = []
        self.disk = Disk()
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


class LoopKernel:
    def __init__(self, loop: RequestLoop, calls: Calls, device: socket.socket) -> None:
        self.loop = loop
        self.calls = calls
        self.device = device
        device.setblocking(False)

    def ask(self, opcode: int, number: int, body: bytes = b"", length: int | None = None) -> None:
        self.device.send(request(opcode, number, body, length))

    async def reply(self) -> tuple[int, int, bytes]:
        """Number, errno and body of the next reply."""
        with trio.fail_after(PATIENCE_SECONDS):
            await trio.lowlevel.wait_readable(self.device)
        data = self.device.recv(1 << 16)
        length, error, number = struct.unpack_from("=IiQ", data)
        assert length == len(data)
        return number, -error, data[16:]


def request(opcode: int, number: int, body: bytes = b"", length: int | None = None) -> bytes:
    length = 40 + len(body) if length is None else length
    return struct.pack("=IIQQIIIHH", length, opcode, number, 7, 1000, 100, 4242, 0, 0) + body


@asynccontextmanager
async def serving(first_request: bytes = b"") -> AsyncIterator[LoopKernel]:
    kernel_end, device = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    device.setblocking(False)
    calls = Calls()
    handshake = Handshake(device.fileno(), first_request)
    loop = RequestLoop(handshake, calls)  # type: ignore[arg-type]
    with kernel_end, device:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(loop.run)
            yield LoopKernel(loop, calls, kernel_end)
            loop.leave()


def ask_directory(kernel: LoopKernel, number: int, name: bytes) -> None:
    kernel.ask(Opcode.MKDIR, number, struct.pack("=II", 0o755, 0o22) + name + b"\0")
