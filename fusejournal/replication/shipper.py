"""The shipper: sends the journal to one peer, from where that peer's ends, for as long as the node
runs.

One task a peer, and a session (ship_session.py) for each connection. A session that breaks is begun
anew, after a pause that grows and is never the same twice. The pause is short again once a session
was of some use, not because it began: a peer may break each. What a peer says of a higher reign is
for the node to judge (claims.py). A mirror that ships on parts from a peer that the primary ships
to.

Used from the event loop's thread."""

import logging
import random
from contextlib import suppress

import trio

from fusejournal.errors import (
    FusejournalError,
    JournalError,
    NoSuchSeqError,
    PeerRefusedError,
)
from fusejournal.replication import advice
from fusejournal.replication.common_ancestor import DivergedError, first_error
from fusejournal.replication.peer_record import PeerRecord
from fusejournal.replication.peers import Peer
from fusejournal.replication.retention import Retention
from fusejournal.replication.ship_session import ShipSession
from fusejournal.replication.shipping import Shipping
from fusejournal.replication.states import PeerEvent
from fusejournal.types import Seq
from fusejournal.wire.refusals import RefusalCode
from fusejournal.wire.session import Claim, RefusedError
from fusejournal.wire.session_connection import SessionConnection
from fusejournal.wire.session_states import Side
from fusejournal.wire.transport import connect

log = logging.getLogger(__name__)

CONNECT_SECONDS = 15.0
_PAUSE_SECONDS_MIN = 0.1
_PAUSE_SECONDS_MAX = 15.0
_REFUSED_SECONDS = 15.0
_LASTING_SECONDS = 5.0
"""A session that went on for so long has worked."""


class Shipper:
    """Ships to the peer *name*. ``record`` is what is known of it."""

    def __init__(self, name: str, shipping: Shipping) -> None:
        self.name = name
        self.record = PeerRecord(name, shipping)
        self._shared = shipping
        self._retention = Retention(name, shipping.volume, shipping.config, shipping.book)
        self._session_scope: trio.CancelScope | None = None
        self._changed = trio.Event()
        peer = shipping.book.get(name)
        self._last_known = peer.address, peer.certificate, peer.paused, peer.needs_copy
        self._began_at, self._began_seq = 0.0, Seq(0)
        """The beginning of this session, and the seq that the peer was known to have then."""
        self._logged_error: str | None = None
        """The last error that was logged, since a session worked."""
        self._is_gone = False
        """True if what the peer lacks is not in the journal any more."""

    def look_again(self, peer: Peer) -> None:
        """Compare what the book says of *peer*, this one, with what it said before. A session goes
        on if that is the same; but a shipper that waits to try again does so at once."""
        known = peer.address, peer.certificate, peer.paused, peer.needs_copy
        if known == self._last_known and self.record.retry_at is None:
            return
        self._last_known = known
        changed, self._changed = self._changed, trio.Event()
        changed.set()
        if self._session_scope is not None:
            self._session_scope.cancel()

    def break_off(self) -> None:
        """End the session, if one goes on, and see whether there is to be another."""
        if self._session_scope is not None:
            self._session_scope.cancel()

    async def run(self) -> None:
        """Ship until cancelled, or until the peer is removed."""
        pause_seconds, note = _PAUSE_SECONDS_MIN, self.record.note
        while (peer := self.record.peer()) is not None:
            changed = self._changed
            if peer.needs_copy is not None:
                note(PeerEvent.LACKS, peer.needs_copy, advice.COPY_ADVICE)
                await changed.wait()
            elif peer.paused:
                note(PeerEvent.PAUSED, None, f"'fusejournal peer resume' lets {self.name} go on")
                self._retention.takes_nothing()
                await changed.wait()
            elif peer.address is None:
                return
            elif (failure := self._fenced) is not None:
                note(
                    PeerEvent.REFUSED,
                    failure,
                    advice.advice_on(RefusedError(RefusalCode.FENCED, failure)),
                )
                self._retention.takes_nothing()
                await changed.wait()
            elif peer.is_witness and self._shared.membership is None:
                # It would be taken for the primary, whose session ends by that.
                note(PeerEvent.HELD, None, "a witness hears from the primary alone")
                await changed.wait()
            elif not self._shared.volume.journal.head_seq:
                note(PeerEvent.HELD, None, "this mirror has nothing yet that it could ship on")
                await self._shared.append_notifier.wait_past(Seq(0))
            else:
                self._is_gone = False
                pause_seconds = await self._try(peer, pause_seconds)
                if self._is_gone:
                    await self._retention.end("its next entry is not in the journal any more")
                with trio.move_on_after(pause_seconds * random.uniform(0.5, 1.5)) as waiting:
                    self.record.waits_until(waiting.deadline)
                    await changed.wait()
                self.record.waits_until(None)

    @property
    def _fenced(self) -> str | None:
        failure = self._shared.volume.failure
        return str(failure) if failure and self._shared.quorum.is_fenced else None

    async def _try(self, peer: Peer, pause_seconds: float) -> float:
        """One session. Returns how long to wait before the next."""
        refused = is_served = False
        self.record.tried()
        claim: Claim | None = None
        self._began_at, self._began_seq = trio.current_time(), self.record.acked_seq
        try:
            with trio.CancelScope() as self._session_scope:
                await self._session(peer)
                return _PAUSE_SECONDS_MIN
        except* DivergedError as group:
            self._failed(first_error(group), PeerEvent.PARTED)
            refused = True
        except* RefusedError as group:
            error = first_error(group)
            assert isinstance(error, RefusedError)
            code, claim = error.code, error.claim
            event = PeerEvent.REFUSED_FULL if code is RefusalCode.FULL else PeerEvent.REFUSED
            self._failed(error, event)
            refused = code not in (RefusalCode.BUSY, RefusalCode.FULL)
            is_served = code is RefusalCode.SERVED and self._shared.membership is None
        except* NoSuchSeqError:
            self._is_gone = True
        except* (FusejournalError, OSError, trio.TooSlowError) as group:
            error = first_error(group)
            is_refusal = isinstance(error, JournalError | PeerRefusedError)
            self._failed(error, PeerEvent.REFUSED if is_refusal else PeerEvent.LOST)
        finally:
            self._session_scope = None
            self.record.end()
            self._retention.takes_nothing()
        if claim is not None:
            await self._shared.on_claim(claim, self.name)
        if is_served:
            await self._part()
        if refused:
            return _REFUSED_SECONDS
        if self._has_worked:
            return _PAUSE_SECONDS_MIN
        return min(pause_seconds * 2, _PAUSE_SECONDS_MAX)

    async def _session(self, peer: Peer) -> None:
        shared, record = self._shared, self.record
        record.note(PeerEvent.TRIED, record.last_error, record.advice)
        assert peer.address is not None
        connection = await connect(
            peer.address,
            shared.identity,
            peer.certificate,
            insecure=shared.insecure,
            timeout_seconds=CONNECT_SECONDS,
        )
        async with SessionConnection(connection, Side.CONNECTOR) as session:
            await ShipSession(session, record, shared, self._retention).run()

    async def _part(self) -> None:
        """Ship no more to the peer, which the primary itself ships to. This node had it in its book
        from when it was the primary, and will have when it is again."""
        log.info("peer %s: %s: nothing is shipped to it", self.name, self.record.last_error)
        with suppress(FusejournalError):  # a full disk: it is tried once more
            await self._shared.turn_back(self.name)

    @property
    def _has_worked(self) -> bool:
        """True if this session was of use."""
        has_lasted = trio.current_time() - self._began_at >= _LASTING_SECONDS
        return self.record.acked_seq > self._began_seq or (self.record.is_heard and has_lasted)

    def stopped(self, why: str) -> None:
        """Note that the shipper does not run any more."""
        self.record.note(PeerEvent.REFUSED, why, None)

    def _failed(self, error: BaseException, event: PeerEvent) -> None:
        reason = str(error) or type(error).__name__
        if reason != self._logged_error or self._has_worked:
            self._shared.log_limiter.peer(self.name, reason)
        self._logged_error = reason
        self.record.traffic.failed()
        self.record.note(event, reason, advice.advice_on(error))

    async def check_backlog(self) -> None:
        """Have a peer that has taken nothing for too long need a full copy, rather than wait for
        ever. Called now and then. Cancelling is as for :meth:`Retention.end`."""
        if self.record.is_witness:  # it lacks nothing of the journal
            return
        why = self._retention.overdue()
        if why is not None:
            await self._retention.end(why)
            if (peer := self.record.peer()) is not None:
                self.look_again(peer)
