"""The process that serves metrics, beside a layer that answers it anything."""

import json
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio

from fusejournal.node.metrics_server import serve
from tests.golden.statuses import STATUSES


@asynccontextmanager
async def _serving() -> AsyncIterator[tuple[int, trio.SocketStream]]:
    """The port where one serves, and the layer's end of its channel."""
    ours, theirs = socket.socketpair()
    with theirs, socket.create_server(("127.0.0.1", 0)) as listening:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(serve, listening, theirs)
            async with trio.SocketStream(trio.socket.from_stdlib_socket(ours)) as layer:
                yield listening.getsockname()[1], layer


async def _scrape(port: int) -> bytes:
    reply = b""
    async with await trio.open_tcp_stream("127.0.0.1", port) as stream:
        await stream.send_all(b"GET /metrics HTTP/1.1\r\n\r\n")
        async for part in stream:
            reply += part
    return reply


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (b"{\n", b"the layer answers what is no reply"),
        (b"[]\n", b"the layer answers what is no reply"),
        (b"\xff\n", b"the layer answers what is no reply"),
        (b"[" * 50_000 + b"\n", b"the layer answers what is no reply"),
        (b"{}\n", b"its answer has no 'name'"),
        (b'{"error": "the layer failed to do it", "exit_code": 1}\n', b"the layer failed to do it"),
    ],
)
async def test_an_answer_that_is_none_ends_no_server(answer: bytes, words: bytes) -> None:
    """The scraper hears of it, and the next is answered."""
    good = json.dumps(STATUSES["primary"].to_json()).encode() + b"\n"
    async with _serving() as (port, layer):
        for reply, status in ((answer, b"503"), (good, b"200")):
            async with trio.open_nursery() as nursery:

                async def answer_once(reply: bytes = reply) -> None:
                    assert await layer.receive_some() == b'{"command": "status"}\n'
                    await layer.send_all(reply)

                nursery.start_soon(answer_once)
                with trio.fail_after(10):
                    page = await _scrape(port)
            assert page.startswith(b"HTTP/1.1 " + status), page[:200]
            assert (words in page) is (status == b"503")
