"""A peer as its shipper knows it, over all sessions: its state, how far it is, and what was sent.

A peer that has less than it had acknowledged has lost that: it counts again when it is level with
it. Used from the event loop's thread."""

import logging
from contextlib import suppress

import trio

from fusejournal.errors import UnknownPeerError
from fusejournal.replication import advice
from fusejournal.replication.catch_up import CatchUpMeter
from fusejournal.replication.compression import Compression
from fusejournal.replication.peer_facts import PeerFacts
from fusejournal.replication.peers import Peer
from fusejournal.replication.shipping import Shipping
from fusejournal.replication.states import PEER_TRANSITIONS, PeerEvent, PeerState
from fusejournal.replication.status import PeerStatus
from fusejournal.replication.traffic import Traffic
from fusejournal.types import Seq
from fusejournal.volume.trouble import Trouble, TroubleKind
from fusejournal.wire.frames import Ack
from fusejournal.wire.session import FAILED, FULL, OK, WITNESS, Source

log = logging.getLogger(__name__)

_AWAY_SECONDS = 60.0
"""A peer that is behind and out of reach for longer is no small matter."""
_NOTHING = Seq(0), Seq(0)
_AS_WITNESS = PeerState(WITNESS)
"""No state of its own, but what is shown in place of one."""
_TROUBLES = {
    PeerState.DIVERGED: TroubleKind.DIVERGED,
    PeerState.REFUSED: TroubleKind.REFUSED,
    PeerState.NEEDS_COPY: TroubleKind.NEEDS_COPY,
    PeerState.MIRROR_FULL: TroubleKind.PEER_FULL,
    PeerState.MIRROR_FAILED: TroubleKind.PEER_FAILED,
    PeerState.PAUSED: TroubleKind.PAUSED,
}
_ACKED = {
    OK: PeerEvent.ACKED,
    FULL: PeerEvent.ACKED_FULL,
    FAILED: PeerEvent.ACKED_FAILED,
}


class PeerRecord:
    """The peer *name* of those that *shipping* is for."""

    def __init__(self, name: str, shipping: Shipping) -> None:
        self.name = name
        self._shared = shipping
        self.traffic = Traffic()
        self.compression = Compression(shipping.config.compress_level_max)
        self.state = PeerState.CONNECTING
        self.last_error: str | None = None
        self.advice: str | None = None
        """Advice about the error."""
        self.notice: str | None = None
        """A notice of the peer, which this side should know."""
        self.facts = PeerFacts()
        """The facts of the peer's last greeting."""
        self.retry_at: float | None = None
        """The time of the next attempt by trio's clock, while it is waited for."""
        self.is_heard = False
        """True if the peer has acknowledged anything in this session."""
        self._source: Source | None = None
        self._away_since = trio.current_time()
        """The end of the last session."""
        self._progress = CatchUpMeter(shipping.lag_meter)
        peer = shipping.book.get(name)
        self._known = peer.on_disk_seq, peer.applied_seq
        """The seqs that the peer had on its disk and applied before this session."""
        self._furthest = Seq(0)
        self._owed_seq = peer.acked_seq if peer.held_seq is not None else Seq(0)
        """The seq that the peer had acknowledged, and has lost; 0 when it has it again."""

    # -- how far it is -----------------------------------------------------------------------------

    @property
    def acked_seq(self) -> Seq:
        """The peer has everything up to here on disk."""
        return max(self._known[0], self._source.acked_seq if self._source else Seq(0))

    @property
    def applied_seq(self) -> Seq:
        """The peer shows everything up to here."""
        return max(self._known[1], self._source.applied_seq if self._source else Seq(0))

    @property
    def shipped_seq(self) -> Seq:
        """Everything up to here was sent, in this session."""
        return self._source.shipped_seq if self._source else self.acked_seq

    @property
    def is_connected(self) -> bool:
        """True while a session goes on."""
        return self._source is not None

    @property
    def is_witness(self) -> bool:
        """True if it takes no entries."""
        peer = self.peer()
        return peer is not None and peer.is_witness

    @property
    def next_seq(self) -> Seq:
        """The entry that is to be sent next."""
        return Seq(self.shipped_seq + 1)

    def lag_bytes(self) -> int:
        """Estimates what the peer has not applied of the journal, as it lies on the disk."""
        journal = self._shared.volume.journal
        lacks = self._shared.applied_seq - self.applied_seq
        if lacks <= 0 or not journal.head_seq or self.is_witness:
            return 0
        return journal.bytes_from(Seq(self.applied_seq + 1))

    def _lag_seconds(self) -> float:
        if self.is_witness:
            return 0.0
        return self._progress.lag_seconds(self.applied_seq, self._shared.applied_seq)

    def sample(self) -> None:
        """Runs about once a second."""
        if self._source is not None and self._source.applied_seq:  # it has said so itself
            self._progress.sample(self._source.applied_seq, self.traffic.content_bytes)

    # -- what happens to it ------------------------------------------------------------------------

    def note(self, event: PeerEvent, error: str | None, what_to_do: str | None) -> None:
        """Note *event*, which *error* and *what_to_do* explain to people."""
        self.state = PEER_TRANSITIONS[self.state][event]
        self.last_error, self.advice = error, what_to_do

    def tried(self) -> None:
        """Note that a session is tried, in which nothing was heard of the peer yet."""
        self.is_heard = False

    def waits_until(self, deadline: float | None) -> None:
        """Note the time, by trio's clock, of the next attempt; None: it is not waited for."""
        self.retry_at = deadline

    def greeted(self, facts: PeerFacts) -> None:
        """Note the *facts* of the peer's greeting, and log those that are new and matter."""
        for note in facts.notes:
            if note not in self.facts.notes:
                self._shared.log_limiter.note(self.name, note)
        self.facts = facts

    def begin(self, source: Source, head_seq: Seq) -> None:
        """Note that a session ships from *source*, which has entries up to *head_seq* to ship."""
        self._progress.begin(head_seq)
        self._source = source
        self.traffic.begun(max(0, self._furthest - source.shipped_seq))
        self.note(PeerEvent.BEGAN, self.last_error, None)

    def sent(self, first_seq: Seq, last_seq: Seq, content_bytes: int, sent_bytes: int) -> None:
        """Note that a batch was sent."""
        self.traffic.sent(last_seq - first_seq + 1, content_bytes, sent_bytes)
        self._furthest = max(self._furthest, last_seq)

    def acked(self, ack: Ack, source: Source) -> None:
        """Note *ack*, which *source* has taken."""
        quorum = self._shared.quorum
        if self._known != _NOTHING:
            # A peer of this name may have been begun anew: what it has it says itself.
            self._known = _NOTHING
            if not self._owed_seq:
                quorum.forget(self.name)
        self.is_heard = True
        if self.is_witness:
            self._acked_members(Seq(0), ack)
            self.note(PeerEvent.ACKED, None, None)
            return
        if source.acked_seq >= self._owed_seq > 0:
            log.warning("peer %s has what it had lost again, and counts", self.name)
            self._owed_seq = Seq(0)
        if ack.signed_seq:
            with suppress(UnknownPeerError):  # removed meanwhile
                self._shared.book.note_signatures(self.name)
        self._acked_members(max(source.acked_seq, self._owed_seq), ack)
        quorum.acked(self.name, source.acked_seq)
        self._take_notice(ack)
        if ack.state == FULL:
            self.note(_ACKED[FULL], ack.detail, advice.FULL)
        elif ack.state == FAILED:
            self.note(_ACKED[FAILED], ack.detail, advice.MIRROR_FAILED)
        elif self.state is not PeerState.STREAMING:
            self.note(_ACKED[OK], None, None)

    def _acked_members(self, promised_seq: Seq, ack: Ack) -> None:
        if self._shared.membership is not None:
            version = ack.members_version if self.facts.sends_members else None
            self._shared.membership.acked(self.name, promised_seq, version)

    def _take_notice(self, ack: Ack) -> None:
        notice = ack.detail if ack.state == OK and ack.detail else None
        if notice is not None and notice != self.notice:
            self._shared.log_limiter.note(self.name, notice)
        self.notice = notice

    def look_for_loss(self, their_seq: Seq) -> None:
        """Have the peer, whose journal ends with *their_seq*, not count where it had acknowledged
        more."""
        shared = self._shared
        promised_seq = min(max(self._known[0], self._owed_seq), shared.volume.journal.head_seq)
        if their_seq >= promised_seq:
            return
        if not self._owed_seq:
            log.warning(
                "peer %s has entries up to %d, and had acknowledged them up to %d: it has lost the "
                "rest, and does not count before it has that again",
                self.name,
                their_seq,
                promised_seq,
            )
        self._owed_seq = promised_seq
        self._known = min(self._known[0], their_seq), min(self._known[1], their_seq)
        shared.quorum.lost(self.name, promised_seq)

    def end(self) -> None:
        """Note that the session is over: what is known of the peer stays."""
        self._known = self.acked_seq, self.applied_seq
        if self._source is not None:
            self._source, self._away_since = None, trio.current_time()
        self.notice = None
        self._progress.clear()
        self._shared.quorum.left(self.name)
        self.save()

    def save(self) -> None:
        """Have the book say what the peer has acknowledged, and so is held to, and what it has."""
        with suppress(UnknownPeerError):  # removed meanwhile
            has_seq, owed_seq = self.acked_seq, self._owed_seq
            held_seq = has_seq if has_seq < owed_seq else None
            acked_seq = max(has_seq, owed_seq)
            self._shared.book.note_acked(self.name, acked_seq, self.applied_seq, held_seq)

    # -- status ------------------------------------------------------------------------------------

    def peer(self) -> Peer | None:
        """Returns what the book says of it; None once it is removed."""
        return self._shared.book.find(self.name)

    def status(self) -> PeerStatus:
        """Returns how shipping to the peer goes."""
        head_seq = self._shared.applied_seq
        lag_entries = head_seq - self.applied_seq if not self.is_witness else 0
        entries_rate, bytes_rate = self._progress.rates()
        peer = self.peer()
        traffic = self.traffic
        return PeerStatus(
            name=self.name,
            address=str(peer.address) if peer is not None else None,
            state=self.display_state(),
            retry_in_seconds=self._retry_in(),
            shipped_seq=self.shipped_seq,
            acked_seq=self.acked_seq,
            applied_seq=self.applied_seq,
            lag_entries=lag_entries,
            lag_bytes=self.lag_bytes(),
            lag_seconds=round(self._lag_seconds(), 3),
            entries_per_second=round(entries_rate, 1),
            bytes_per_second=round(bytes_rate),
            eta_seconds=self._progress.eta_seconds(lag_entries),
            batches=traffic.batches,
            batches_in_flight=self._source.batches_in_flight if self._source else 0,
            content_bytes=traffic.content_bytes,
            sent_bytes=traffic.sent_bytes,
            compress_level=self.compression.level,
            resent_entries=traffic.resent_entries,
            sessions=traffic.sessions,
            errors=traffic.errors,
            last_error=self.last_error,
            advice=self.advice,
            notice=self.notice,
            protocol_version=self.facts.protocol_version,
            limits=self.facts.limits,
            notes=self.facts.notes,
        )

    def display_state(self) -> PeerState:
        """The state; a session that works is catching up or not by how far the peer is."""
        head_seq = self._shared.applied_seq
        if self.state is PeerState.STREAMING and self.is_witness:
            return _AS_WITNESS
        if self.state is PeerState.STREAMING and self._progress.is_catching_up(
            self.applied_seq, head_seq
        ):
            return PeerState.CATCHING_UP
        return self.state

    def trouble(self) -> Trouble | None:
        """Returns what is wrong with it, or None."""
        reason = self.last_error or self.advice
        if (kind := _TROUBLES.get(self.state)) is not None:
            return self._trouble(kind, f"{self.state}: {reason}")
        if self.notice is not None:
            return self._trouble(TroubleKind.RUNS_TWICE, self.notice)
        if self._owed_seq:
            return self._trouble(
                TroubleKind.LOST_ENTRIES,
                f"has lost entries that it had acknowledged, up to {self._owed_seq}, and has them "
                f"up to {self.acked_seq}: it does not count before it has all of them again",
            )
        if self.is_witness and self._shared.membership is None:
            return None  # (A mirror has nothing to tell it.)
        away_seconds = trio.current_time() - self._away_since
        is_behind = self.applied_seq < self._shared.applied_seq
        if self.state is PeerState.CONNECTING and away_seconds > _AWAY_SECONDS and is_behind:
            words = f"out of reach for {away_seconds:.0f} s: {reason}"
            return self._trouble(TroubleKind.PEER_AWAY, words)
        return None

    def _trouble(self, kind: TroubleKind, words: str) -> Trouble:
        return Trouble(kind, f"peer {self.name}: {words}", self.name)

    def _retry_in(self) -> float | None:
        if self.retry_at is None:
            return None
        return round(max(0.0, self.retry_at - trio.current_time()), 1)
