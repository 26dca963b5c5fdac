"""The process that serves metrics (see metrics.py).

``python -P -m fusejournal.node.metrics_server LISTENING_FD CHANNEL_FD``

All on the machine may connect. At most ``_CONNECTIONS_MAX`` connections are held, each for
``_SECONDS`` from its first byte to its last; the oldest makes room for a new one. Only what is
needed of HTTP is understood: any GET is answered with all metrics, and the connection ends.

One task for the channel, one that accepts, and one a connection. Ends when the channel does.

Source: RFC 9112."""

import os
import resource
import socket
import sys
from collections.abc import Iterator
from typing import Final

import trio
from prometheus_client.core import Metric
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector

from fusejournal.control.client import reply_in
from fusejournal.errors import FusejournalError
from fusejournal.native import kernel
from fusejournal.node.metrics import samples
from fusejournal.node.volume_status import VolumeStatus

_CONNECTIONS_MAX: Final = 32
_SECONDS: Final = 5.0
_HEAD_BYTES_MAX: Final = 8 << 10
_REPLY_BYTES_MAX: Final = 16 << 20
_DESCRIPTORS_MAX: Final = _CONNECTIONS_MAX + 32
_NOBODY: Final = 65534
_PR_SET_DUMPABLE, _PR_SET_NO_NEW_PRIVS = 4, 38


class _Page(Collector):
    """One scrape."""

    def __init__(self, status: VolumeStatus) -> None:
        self._status = status

    def collect(self) -> Iterator[Metric]:
        """Yield the metrics of all volumes, as the base class asks for them."""
        return samples(self._status)


class _Channel:
    """Asks the layer for its status."""

    def __init__(self, stream: trio.SocketStream) -> None:
        self._stream = stream
        self._asking = trio.Lock()
        self._replies, self._receive = trio.open_memory_channel[bytes](0)

    async def run(self) -> None:
        """Take replies until the layer ends. Cancelling leaves the task that asks without one."""
        line = bytearray()
        async with self._replies:
            while len(line) < _REPLY_BYTES_MAX:
                part = await self._stream.receive_some()
                if not part:
                    return
                line += part
                if line.endswith(b"\n"):
                    await self._replies.send(bytes(line))
                    line.clear()

    async def status(self) -> VolumeStatus:
        """The layer's status now. Raises trio.EndOfChannel, trio.BrokenResourceError when it has
        ended, FusejournalError where it answers something else. A caller that is cancelled waits
        for what it asked: the next reply is another's."""
        async with self._asking:
            line = b""
            with trio.CancelScope(shield=True):
                await self._stream.send_all(b'{"command": "status"}\n')
                line = await self._receive.receive()
            return VolumeStatus.from_json(reply_in("the layer", line))


async def serve(listening: socket.socket, channel: socket.socket) -> None:
    """Serve until the other end of *channel* is closed. Cancelling cuts everybody off."""
    asked = _Channel(trio.SocketStream(trio.socket.from_stdlib_socket(channel)))
    listener = trio.SocketListener(trio.socket.from_stdlib_socket(listening))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_accept, listener, asked)
        await asked.run()
        nursery.cancel_scope.cancel()


async def _accept(listener: trio.SocketListener, asked: _Channel) -> None:
    held: dict[trio.CancelScope, None] = {}
    async with trio.open_nursery() as nursery:
        while True:
            stream = await listener.accept()
            scope = trio.CancelScope(deadline=trio.current_time() + _SECONDS)
            if len(held) >= _CONNECTIONS_MAX:
                oldest = next(iter(held))
                del held[oldest]
                oldest.cancel()
            held[scope] = None
            nursery.start_soon(_serve_one, stream, asked, scope, held)


async def _serve_one(
    stream: trio.SocketStream,
    asked: _Channel,
    scope: trio.CancelScope,
    held: dict[trio.CancelScope, None],
) -> None:
    try:
        with scope:
            await stream.send_all(await _answer(await _read_head(stream), asked))
            await stream.send_eof()
    except (trio.BrokenResourceError, trio.ClosedResourceError, trio.EndOfChannel, OSError):
        pass  # it went away, or the layer did
    finally:
        held.pop(scope, None)
        stream.socket.close()


async def _read_head(stream: trio.SocketStream) -> bytes:
    head = b""
    while b"\r\n\r\n" not in head and len(head) < _HEAD_BYTES_MAX:
        part = await stream.receive_some(_HEAD_BYTES_MAX)
        if not part:
            break
        head += part
    return head


async def _answer(head: bytes, asked: _Channel) -> bytes:
    request, _, fields = head.partition(b"\r\n\r\n")[0].partition(b"\r\n")
    words = request.split(b" ")
    if b"\r\n\r\n" not in head or len(words) != 3 or not words[2].startswith(b"HTTP/1."):
        return _reply("400 Bad Request", "text/plain", b"not a request\n")
    if words[0] != b"GET":
        return _reply("405 Method Not Allowed", "text/plain", b"only GET\n", "Allow: GET\r\n")
    encode, kind = choose_encoder(_accepted(fields.decode("latin-1")))
    try:
        page = _Page(await asked.status())
    except FusejournalError as error:
        return _reply("503 Service Unavailable", "text/plain", f"{error}\n".encode())
    return _reply("200 OK", kind, encode(page))


def _accepted(fields: str) -> str:
    accepted = (
        value.strip()
        for name, _, value in (line.partition(":") for line in fields.split("\r\n"))
        if name.lower() == "accept"
    )
    return ",".join(accepted)


def _reply(status: str, kind: str, body: bytes, fields: str = "") -> bytes:
    head = (
        f"HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\n"
        f"{fields}Connection: close\r\n\r\n"
    )
    return head.encode("latin-1") + body


def give_up_powers() -> None:
    """Become the user nobody, for good. Raises OSError."""
    resource.setrlimit(resource.RLIMIT_NOFILE, (_DESCRIPTORS_MAX, _DESCRIPTORS_MAX))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if os.geteuid() == 0:
        os.setgroups([])
        os.setresgid(_NOBODY, _NOBODY, _NOBODY)
        os.setresuid(_NOBODY, _NOBODY, _NOBODY)
    kernel.prctl(_PR_SET_NO_NEW_PRIVS, 1)
    kernel.prctl(_PR_SET_DUMPABLE, 0)


if __name__ == "__main__":
    listening_fd, channel_fd = map(int, sys.argv[1:])
    give_up_powers()
    trio.run(serve, socket.socket(fileno=listening_fd), socket.socket(fileno=channel_fd))
