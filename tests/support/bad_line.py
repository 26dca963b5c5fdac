"""A line between two nodes on which not all is well."""

import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import trio

from fusejournal.address import Address, parse_address

_CHUNK_BYTES = 1 << 16
_HANDSHAKE_PIECES = 4
_RECORD_HEAD_BYTES = 5
"""The head of a TLS record: with another length in it, the reader waits for long."""


class Line:
    """A line to *address* on which not all is well: *wrongs* times a piece of what passes is
    changed, said twice, said again later, or lost, wholly or in part, with the connection; then it
    works."""

    def __init__(self, address: str, seed: int, wrongs: int) -> None:
        self._address = parse_address(address)
        self._dice = random.Random(seed)
        self._left = wrongs
        self._passed: list[bytes] = []

    @asynccontextmanager
    async def laid(self) -> AsyncIterator[str]:
        """The address of its near end, until the block ends."""
        async with trio.open_nursery() as nursery:
            (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
            nursery.start_soon(trio.serve_listeners, self._carry, [listener])
            port = listener.socket.getsockname()[1]
            yield str(Address("127.0.0.1", port))
            nursery.cancel_scope.cancel()

    async def _carry(self, near: trio.SocketStream) -> None:
        try:
            far = await trio.open_tcp_stream(self._address.host, self._address.port)
        except OSError:
            await near.aclose()
            return
        async with near, far, trio.open_nursery() as nursery:
            for one, other in ((near, far), (far, near)):
                nursery.start_soon(self._pass_on, one, other, nursery.cancel_scope)

    async def _pass_on(
        self, one: trio.SocketStream, other: trio.SocketStream, scope: trio.CancelScope
    ) -> None:
        passed = 0
        with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
            while piece := await one.receive_some(_CHUNK_BYTES):
                self._passed.append(piece)
                passed += 1
                wrong = self._wrong() if passed > _HANDSHAKE_PIECES else ""
                for said in self._changed(piece, wrong):
                    await other.send_all(said)
                if wrong in ("lose", "cut"):
                    break
        scope.cancel()

    def _wrong(self) -> str:
        """Chooses what is to be wrong with the next piece."""
        if not self._left or self._dice.random() < 0.4:
            return ""
        self._left -= 1
        return self._dice.choice(("flip", "flip", "flip", "lose", "twice", "again", "cut"))

    def _changed(self, piece: bytes, wrong: str) -> list[bytes]:
        """Returns what is said in the place of *piece*."""
        dice = self._dice
        match wrong:
            case "flip":
                changed = bytearray(piece)
                for _ in range(dice.choice((1, 1, 8))):
                    at = dice.randrange(min(_RECORD_HEAD_BYTES, len(piece) - 1), len(piece))
                    changed[at] ^= 1 << dice.randrange(8)
                return [bytes(changed)]
            case "lose":
                return []
            case "twice":
                return [piece, piece]
            case "again":
                return [piece, dice.choice(self._passed)]
            case "cut":
                return [piece[: dice.randrange(len(piece))]]
        return [piece]
