"""A connection, and the state of the session that is held over it: each message that goes or comes
moves that (session_states.py), and one that may not ends the session. Nothing of a session passes
it by.

Used from the event loop's thread."""

from types import TracebackType
from typing import Any

import trio

from fusejournal.errors import WireError
from fusejournal.wire.connection import Connection
from fusejournal.wire.frames import Message
from fusejournal.wire.session_states import SessionMachine, Side


class SessionConnection:
    """A session over *connection*, of which this end is *side*."""

    def __init__(self, connection: Connection, side: Side) -> None:
        self.connection = connection
        self.machine = SessionMachine(side)

    async def __aenter__(self) -> "SessionConnection":
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.aclose()

    @property
    def where(self) -> str:
        """The other end: host and port."""
        return self.connection.where

    @property
    def peer(self) -> str | None:
        """The name of the known peer; None without certificates."""
        return self.connection.peer

    async def send(self, message: Message) -> None:
        """Sends *message*. Any task may call it. Cancelling half-way leaves the connection of no
        use. Raises PeerLostError; WireError where it may not come now, or the session is over."""
        if self.machine.is_over:
            # Another task has heard the end, by which this one may be cancelled already.
            await trio.lowlevel.checkpoint_if_cancelled()
            raise WireError("the session is over")
        self.machine.sent(message)
        await self.connection.send(message)

    async def receive(self) -> Any:
        """Returns the next message, which is one that may come; the caller names those kinds as its
        type. One task at a time; cancelling loses nothing. Raises RefusedError for a refusal,
        WireError for what may not come, or where the other end has ended the connection,
        PeerLostError."""
        return self.machine.received(await self.connection.receive())

    async def receive_or_end(self) -> Any | None:
        """Does as :meth:`receive`, but returns None where the other end has ended the connection in
        order. Cancelling loses nothing."""
        message = await self.connection.receive()
        return self.machine.received(message) if message is not None else None

    async def aclose(self) -> None:
        """Ends the connection. Cancelling does so by force."""
        await self.connection.aclose()
