"""Takes the reign of the primary that ships to this mirror: the target's side of a handoff
(handoff.py).

It agrees, calls its hooks and prepares, and then waits for the offer on the same session. What
is offered it takes only where its journal ends where the primary's does, on the disk and applied:
then it writes its role down, answers, and the process changes its role (node/start.py). As long as
that is not written, all it did was to wait: when it dies, or the primary goes, nothing came of it.
A question of the same primary ends what goes on with it, so that an offer that is still on its way
is not taken after it was told that it was not.

Used from the event loop's thread, by one task a session."""

import logging
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Final, NamedTuple

import trio

from fusejournal.disk import failpoints
from fusejournal.errors import FusejournalError, HookFailedError, JournalFullError
from fusejournal.replication.receiver import Receiver
from fusejournal.replication.supervisor import Replication
from fusejournal.types import Reign
from fusejournal.volume.volume import Volume
from fusejournal.wire.frames import Hello, Offer, Welcome
from fusejournal.wire.instances import instance_of
from fusejournal.wire.refusals import RefusalCode
from fusejournal.wire.session import PRIMARY, RefusedError, welcome
from fusejournal.wire.session_connection import SessionConnection

log = logging.getLogger(__name__)

_OFFER_SECONDS: Final = 120.0
"""The time that the primary may hold changes at most."""
_ANSWER_SECONDS: Final = 1.0


class TakeOverSeams(NamedTuple):
    """The parts of the node that taking over needs."""

    before: Callable[[str, str], Awaitable[None]]
    """Calls what an admin wants called before a reign comes here from a peer. Raises
    HookFailedError."""
    undone: Callable[[], Awaitable[None]]
    """Calls what is to be called because it did not."""
    commit: Callable[[Reign], None]
    """Has on the disk that this node is the primary of a reign. Blocks. Raises JournalFullError,
    OSError: it is not."""
    taken: Callable[[Reign], None]
    """Has the process change its role."""


class TakeOver:
    """Serves those who hand over to the mirror that *replication* runs for *volume*."""

    def __init__(
        self, volume: Volume, replication: Replication, receiver: Receiver, seams: TakeOverSeams
    ) -> None:
        self._volume = volume
        self._replication = replication
        self._receiver = receiver
        self._seams = seams
        self._going: tuple[str, trio.CancelScope, trio.Event] | None = None
        """The peer that hands over now, and the end of that."""
        self._has_taken = False
        """True once that is on the disk: the process is a mirror's until it has ended."""

    async def serve(self, session: SessionConnection, greeting: Hello) -> None:
        """Serve a primary that hands over, or asks what came of it. Cancelling before the role is
        written down leaves all as it was. Raises RefusedError, WireError, FusejournalError."""
        peer = session.peer or greeting.node
        while self._going is not None and self._going[0] == peer:
            _, scope, over = self._going
            scope.cancel()
            await over.wait()
        if not greeting.wanted_epoch:
            await session.send(self._answer(greeting))
            return
        welcome(self._replication.me(), greeting, is_mirror=True)  # or a refusal
        self._check(peer)
        scope, over = trio.CancelScope(), trio.Event()
        self._going = peer, scope, over
        is_taken = False
        try:
            with scope:
                is_taken = await self._take_over(session, greeting, peer)
        finally:
            self._going = None
            over.set()
        if not is_taken:
            raise RefusedError(
                RefusalCode.HANDOFF, f"{self._replication.local.name}: it was withdrawn"
            )

    def _check(self, peer: str) -> None:
        """Raise RefusedError where *peer* cannot hand over to this node."""
        name = self._replication.local.name
        if self._going is not None:
            raise RefusedError(
                RefusalCode.HANDOFF, f"{self._going[0]} hands over to {name} already"
            )
        if self._receiver.session_peer != peer:
            raise RefusedError(RefusalCode.HANDOFF, f"{peer} does not ship to {name} now")
        if self._volume.failure is not None:
            raise RefusedError(RefusalCode.HANDOFF, f"{name} has failed: {self._volume.failure}")

    async def _take_over(self, session: SessionConnection, greeting: Hello, peer: str) -> bool:
        """Agree, and take what is offered then. Returns True once it is taken."""
        me = self._replication.me()
        reign = Reign(greeting.wanted_epoch, me.node_id)
        is_taken = False
        try:
            try:
                await self._seams.before(str(reign), peer)
            except HookFailedError as error:
                raise RefusedError(RefusalCode.HANDOFF, f"{me.node}: {error}") from None
            # Where the primary listens itself is what it is shipped to by, afterwards.
            await trio.to_thread.run_sync(self._replication.local.book.save)
            # What the end of this run has to flush is not left for then.
            await self._replication.durability.checkpoint()
            failpoints.reached("handoff.prepared")
            await session.send(welcome(me, greeting, is_mirror=True))
            with trio.fail_after(_OFFER_SECONDS):
                offer: Offer = await session.receive()
            if Reign(offer.epoch, offer.reign_node) != reign:
                raise RefusedError(
                    RefusalCode.HANDOFF, f"{me.node} agreed to reign {reign}, and to no other"
                )
            with trio.CancelScope(shield=True):
                await self._take(offer, peer, session, greeting)
                is_taken = True
        except trio.TooSlowError:
            raise RefusedError(
                RefusalCode.HANDOFF, f"no offer within {_OFFER_SECONDS:g} s"
            ) from None
        finally:
            if not is_taken:
                with trio.CancelScope(shield=True):
                    await self._seams.undone()
        return is_taken

    async def _take(
        self, offer: Offer, peer: str, session: SessionConnection, greeting: Hello
    ) -> None:
        reign = Reign(offer.epoch, offer.reign_node)

        def commit() -> None:
            failpoints.reached("handoff.commit")
            self._seams.commit(reign)
            self._has_taken = True
            failpoints.reached("handoff.committed")

        try:
            instance = instance_of(greeting, session.where)
            await self._receiver.take_over(offer, peer, instance, commit)
        except (JournalFullError, OSError) as error:
            raise RefusedError(
                RefusalCode.HANDOFF, f"{self._replication.local.name}: {error}"
            ) from None
        log.warning("%s has handed over: reign %s", peer, reign)
        with trio.move_on_after(_ANSWER_SECONDS), suppress(FusejournalError):
            await session.send(self._answer(greeting))
        failpoints.reached("handoff.answered")
        self._seams.taken(reign)

    def _answer(self, greeting: Hello) -> Welcome:
        """Returns what tells the primary whether this node has taken over. Raises RefusedError,
        WireError."""
        answer = welcome(self._replication.me(), greeting, is_mirror=True)
        return answer._replace(role=PRIMARY) if self._has_taken else answer
