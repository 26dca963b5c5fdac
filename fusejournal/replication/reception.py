"""Receives those who connect to a node, of whichever kind that is: hears the greeting of each, has
it served, and reports to one that is refused why.

Used from the event loop's thread, by one task a connection."""

from collections.abc import Awaitable, Callable, Collection
from contextlib import suppress
from typing import Final

import trio

from fusejournal.errors import FusejournalError, PeerLostError, PeerRefusedError
from fusejournal.replication.common_ancestor import first_error
from fusejournal.wire.connection import Connection
from fusejournal.wire.frames import Hello
from fusejournal.wire.session import RefusedError
from fusejournal.wire.session_connection import SessionConnection
from fusejournal.wire.session_states import Side

_GREETING_SECONDS: Final = 30.0
_FAREWELL_SECONDS: Final = 1.0


class Reception:
    """Has *serve_greeted* do what a peer that has greeted wants; that raises RefusedError where it
    is not to be done, trio.TooSlowError where the peer has sent nothing for too long."""

    def __init__(
        self, serve_greeted: Callable[[SessionConnection, Hello], Awaitable[None]]
    ) -> None:
        self._serve_greeted = serve_greeted
        self._connections: dict[trio.CancelScope, str | None] = {}
        """Each with the name of the peer."""

    def keep_only(self, names: Collection[str]) -> None:
        """Cut off the peers that have a name which is not among *names*."""
        for scope, name in self._connections.items():
            if name is not None and name not in names:
                scope.cancel()

    async def serve(self, connection: Connection) -> None:
        """Hear what the peer wants, and have that done. Cancelling cuts it off. Raises
        FusejournalError for the listener to log."""
        with trio.CancelScope() as scope:
            # Before anything is awaited: a peer that is removed is cut off, greeted or not.
            self._connections[scope] = connection.peer
            try:
                await self._greet(SessionConnection(connection, Side.LISTENER))
            finally:
                del self._connections[scope]

    async def _greet(self, session: SessionConnection) -> None:
        try:
            with trio.fail_after(_GREETING_SECONDS):
                greeting: Hello = await session.receive()
        except trio.TooSlowError:
            words = f"no greeting within {_GREETING_SECONDS:g} s"
            raise PeerLostError(session.where, words) from None
        try:
            await self._serve_greeted(session, greeting)
        except* RefusedError as group:
            error = first_error(group)
            assert isinstance(error, RefusedError)
            with trio.move_on_after(_FAREWELL_SECONDS), suppress(FusejournalError):
                await session.send(error.message())
            raise PeerRefusedError(session.where, f"refused: {error}") from None
        except* trio.TooSlowError:
            raise PeerLostError(session.where, "said nothing for too long") from None
