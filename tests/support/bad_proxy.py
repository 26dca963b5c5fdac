"""A proxy in front of a server of HTTP that loses, delays, doubles and spoils what passes."""

import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Self

_SECONDS = 30.0


class Exchange:
    """A request that is under way."""

    def __init__(self, proxy: "BadProxy", head: bytes, body: bytes) -> None:
        self._proxy = proxy
        self.method, self.path = head.split(b"\r\n", 1)[0].decode().split(" ")[:2]
        self._head, self.body = head, body

    def forward(self) -> bytes:
        """Send it to the server. Returns the whole answer."""
        with socket.create_connection(("127.0.0.1", self._proxy.server), _SECONDS) as there:
            head = self._head.replace(b"\r\n", b"\r\nConnection: close\r\n", 1)
            there.sendall(head + self.body)
            pieces = []
            while piece := there.recv(1 << 16):
                pieces.append(piece)
            return b"".join(pieces)


Behaviour = Callable[[Exchange], bytes]
"""The answer to a request; nothing: the connection ends without one."""


def honest(exchange: Exchange) -> bytes:
    """Passes on, as if there were no proxy."""
    return exchange.forward()


def lose_answer(exchange: Exchange) -> bytes:
    """It is done, and the client does not hear of it."""
    exchange.forward()
    return b""


def lose_request(exchange: Exchange) -> bytes:
    """It never arrives."""
    return b""


def twice(exchange: Exchange) -> bytes:
    """It is done twice, and the second answer returned."""
    exchange.forward()
    return exchange.forward()


def flip(exchange: Exchange) -> bytes:
    """Another content comes back."""
    head, empty, body = exchange.forward().partition(b"\r\n\r\n")
    at = len(body) // 2
    return (
        head + empty + body[:at] + bytes([body[at] ^ 4]) + body[at + 1 :] if body else head + empty
    )


def busy(exchange: Exchange) -> bytes:
    """The server asks for patience."""
    return b"HTTP/1.1 503 Slow Down\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"


def late(seconds: float) -> Behaviour:
    """It is done, and the answer takes its time."""

    def answer(exchange: Exchange) -> bytes:
        found = exchange.forward()
        time.sleep(seconds)
        return found

    return answer


class BadProxy:
    """Listens at ``port``. ``behaviours`` are used up by the next requests that *matches* is true
    for; all others pass."""

    def __init__(self, server: int) -> None:
        self.server = server
        self.behaviours: list[Behaviour] = []
        self.matches: Callable[[Exchange], bool] = lambda exchange: True
        self.seen: list[str] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]

    def __enter__(self) -> Self:
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                connection, _ = self._listener.accept()
                threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        with connection, suppress(OSError, ValueError):
            connection.settimeout(_SECONDS)
            received = b""
            while b"\r\n\r\n" not in received:
                piece = connection.recv(1 << 16)
                if not piece:
                    return
                received += piece
            head, empty, body = received.partition(b"\r\n\r\n")
            length = 0
            for line in head.split(b"\r\n"):
                if line.lower().startswith(b"content-length:"):
                    length = int(line.split(b":")[1])
            pieces, left = [body], length - len(body)
            while left > 0 and (piece := connection.recv(1 << 16)):
                pieces.append(piece)
                left -= len(piece)
            exchange = Exchange(self, head + empty, b"".join(pieces))
            self.seen.append(f"{exchange.method} {exchange.path}")
            answer = self._behaviour(exchange)(exchange)
            if answer:
                connection.sendall(answer)

    def _behaviour(self, exchange: Exchange) -> Behaviour:
        return self.behaviours.pop(0) if self.behaviours and self.matches(exchange) else honest
