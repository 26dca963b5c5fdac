"""Clients that send slowly: their connections end, and others are served meanwhile."""

from pathlib import Path

import pytest
import trio

from fusejournal.console import serve, web_requests
from tests.support.listening_console import listening_console

_LOGIN = (
    b"POST /api/login HTTP/1.1\r\nHost: %s\r\nContent-Type: application/json\r\n"
    b"Content-Length: 1000\r\n\r\n{"
)


async def _drip(stream: trio.SocketStream, piece: bytes) -> bytes:
    """Sends *piece* again and again, until the other end closes; what it sent."""
    got = b""

    async def send() -> None:
        try:
            while True:
                await stream.send_all(piece)
                await trio.sleep(0.02)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass

    async with trio.open_nursery() as nursery:
        nursery.start_soon(send)
        try:
            while data := await stream.receive_some():
                got += data
        except trio.BrokenResourceError:
            pass  # it closed with something of ours unread
        nursery.cancel_scope.cancel()
    return got


async def test_slow_clients_are_cut_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serve, "_HEADER_SECONDS", 0.5)
    monkeypatch.setattr(web_requests, "_BODY_SECONDS", 0.5)
    async with listening_console(tmp_path) as address:

        async def slow(begin: bytes, piece: bytes) -> None:
            async with await trio.open_tcp_stream(address.host, address.port) as stream:
                await stream.send_all(begin)
                got.append(await _drip(stream, piece))

        got: list[bytes] = []
        with trio.fail_after(30):
            async with trio.open_nursery() as nursery:
                for _ in range(20):
                    nursery.start_soon(slow, b"GET / HTTP/1.1\r\nX-Slow: ", b"a")
                nursery.start_soon(slow, _LOGIN % str(address).encode(), b" ")
                # Others are served meanwhile.
                async with await trio.open_tcp_stream(address.host, address.port) as stream:
                    request = f"GET / HTTP/1.1\r\nHost: {address}\r\n\r\n"
                    await stream.send_all(request.encode())
                    assert b"200" in await stream.receive_some()
        assert sorted(one[:12] for one in got) == [b""] * 20 + [b"HTTP/1.1 408"]
