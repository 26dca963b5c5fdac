"""The shipper: sends the journal to one peer, from where that peer's ends, for as long as the node
runs.

One task a peer, and a session for each connection: greet, compare positions, then batches as the
journal grows and acknowledgements as they come, several batches in flight. Frames are read as they
lie in the segments, after they were applied, so a slow or dead peer costs nobody anything but the
disk that its backlog takes. A session that breaks is begun anew, after a pause that grows and is
never the same twice; whatever was not acknowledged is sent again, from the position that the peer
itself tells. The pause is short again once a session was of some use, not because it began: a peer
may break each.

What a peer says of a higher reign is for the node to judge (replication.py). A peer that has less
than it had acknowledged has lost that: it counts again when it is level with it. Two peers that are
one node are one: the second is not shipped to.

Reading and compressing a large batch is done in a thread, a small one at once: handing it over
would take longer. Used from the event loop's thread."""

import logging
import random
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import trio

from fusejournal.config import ReplicationConfig
from fusejournal.errors import (
    FusejournalError,
    JournalError,
    NoSuchSeqError,
    PeerRefusedError,
    UnknownPeerError,
)
from fusejournal.journal.frame_range import FrameRange, FrameRangeReader
from fusejournal.replication import advice
from fusejournal.replication.append_notifier import AppendNotifier
from fusejournal.replication.catch_up import CatchUpMeter
from fusejournal.replication.common_ancestor import (
    SILENCE_SECONDS,
    ChainFinder,
    DivergedError,
    find_common,
    first_error,
)
from fusejournal.replication.compression import Compression
from fusejournal.replication.lag import LagMeter
from fusejournal.replication.peers import Peer, PeerBook
from fusejournal.replication.quorum import Quorum
from fusejournal.replication.retention import Retention
from fusejournal.replication.status import PeerStatus
from fusejournal.replication.traffic import Traffic
from fusejournal.types import Seq
from fusejournal.volume.volume import Volume
from fusejournal.wire.batches import batch_of, compress
from fusejournal.wire.connection import Connection
from fusejournal.wire.frames import Ack, Begin, Diverged, Ping, Refusal, Welcome, WireError
from fusejournal.wire.identity import Identity
from fusejournal.wire.log_limiter import LogLimiter
from fusejournal.wire.session import (
    FAILED,
    FENCED,
    FULL,
    OK,
    SHIP,
    Claim,
    HandshakeState,
    RefusedError,
    Source,
    check_welcome,
    expect,
    hello,
    position_of,
)
from fusejournal.wire.signatures import SegmentSigner, signing_key
from fusejournal.wire.transport import connect

log = logging.getLogger(__name__)

CONNECT_SECONDS = 15.0
PING_SECONDS = 2.0
_AWAY_SECONDS = 60.0
"""A peer that is behind and out of reach for longer is no small matter."""

_PAUSE_SECONDS_MIN = 0.1
_PAUSE_SECONDS_MAX = 15.0
_REFUSED_SECONDS = 15.0
_LASTING_SECONDS = 5.0
"""A session that went on for so long has worked."""
_SMALL_BYTES = 64 << 10
_NOTHING = Seq(0), Seq(0)
_TROUBLES = frozenset({"diverged", "refused", "needs full copy", "mirror full", "mirror failed"})


@dataclass
class Shipping:
    """What all shippers of a node share."""

    volume: Volume
    me: Callable[[], HandshakeState]
    append_notifier: AppendNotifier
    quorum: Quorum
    config: ReplicationConfig
    identity: Identity
    book: PeerBook
    insecure: bool
    lag_meter: LagMeter
    log_limiter: LogLimiter
    on_claim: Callable[[Claim, str], Awaitable[None]]
    """Called with what a peer says of a higher reign, and the peer's name."""
    nodes: dict[int, str] = field(default_factory=dict)
    """Which node is shipped to now as which peer."""

    @property
    def directory(self) -> Path:
        """The journal's."""
        return self.volume.journal.directory

    @property
    def applied_seq(self) -> Seq:
        """Up to here entries may be shipped."""
        return self.volume.catalog.applied_seq


class Shipper:
    """Ships to the peer *name*. See the module."""

    def __init__(self, name: str, shipping: Shipping) -> None:
        self.name = name
        self.traffic = Traffic()
        self._progress = CatchUpMeter(shipping.lag_meter)
        self.state = "connecting"
        """In words: connecting, catching up, streaming, mirror full, mirror failed, paused,
        diverged, refused, needs full copy."""
        self.last_error: str | None = None
        self.advice: str | None = None
        """What to do about it."""
        self._shared = shipping
        self._source: Source | None = None
        self._retry_at: float | None = None
        self._away_since = trio.current_time()
        """When the last session ended."""
        self._compression = Compression(shipping.config.compress_level_max)
        self._room = trio.Event()
        self._signer: SegmentSigner
        self._session_scope: trio.CancelScope | None = None
        self._changed = trio.Event()
        self._retention = Retention(name, shipping.volume, shipping.config, shipping.book)
        peer = shipping.book.get(name)
        self._known = peer.acked_seq, peer.applied_seq
        """What the peer has acknowledged and applied, before this session."""
        self._told = peer.address, peer.certificate, peer.paused, peer.needs_copy
        self._furthest = Seq(0)
        self._is_heard = False
        """Whether the peer has acknowledged anything in this session."""
        self._began_at, self._began_seq = 0.0, Seq(0)
        """When this session began, and what the peer was known to have then."""
        self._complaint: str | None = None
        """What was complained of last, since a session worked."""
        self._is_gone = False
        """Whether what the peer lacks is not in the journal any more."""
        self._owed_seq = Seq(0)
        """What the peer had acknowledged, and has lost; 0 when it has it again."""
        self.notice: str | None = None
        """What the peer says that this side should know."""

    # -- status ------------------------------------------------------------------------------------

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
        """Whether a session goes on."""
        return self._source is not None

    @property
    def next_seq(self) -> Seq:
        """What is to be sent next."""
        return Seq(self.shipped_seq + 1)

    def status(self) -> PeerStatus:
        """Returns how shipping to the peer goes."""
        head_seq = self._shared.applied_seq
        lag_entries = head_seq - self.applied_seq
        entries_rate, bytes_rate = self._progress.rates()
        peer = self._peer()
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
            compress_level=self._compression.level,
            resent_entries=traffic.resent_entries,
            sessions=traffic.sessions,
            errors=traffic.errors,
            last_error=self.last_error,
            advice=self.advice,
            notice=self.notice,
        )

    def display_state(self) -> str:
        """The state; whether a session that works is catching up is seen by how far it is."""
        head_seq = self._shared.applied_seq
        if self.state == "streaming" and self._progress.is_catching_up(self.applied_seq, head_seq):
            return "catching up"
        return self.state

    def trouble(self) -> str | None:
        """What is wrong with it, in words, or None."""
        told = self.last_error or self.advice
        if self.state in _TROUBLES:
            return f"{self.state}: {told}"
        if self.notice is not None:
            return self.notice
        if self._owed_seq:
            return (
                f"has lost entries that it had acknowledged, up to {self._owed_seq}, and has them "
                f"up to {self.acked_seq}: it does not count before it has all of them again"
            )
        away_seconds = trio.current_time() - self._away_since
        is_behind = self.applied_seq < self._shared.applied_seq
        if self.state == "connecting" and away_seconds > _AWAY_SECONDS and is_behind:
            return f"out of reach for {away_seconds:.0f} s: {told}"
        return None

    def _lag_seconds(self) -> float:
        return self._progress.lag_seconds(self.applied_seq, self._shared.applied_seq)

    def _retry_in(self) -> float | None:
        if self._retry_at is None:
            return None
        return round(max(0.0, self._retry_at - trio.current_time()), 1)

    def lag_bytes(self) -> int:
        """What of the journal the peer has not applied, about: as it lies on the disk."""
        journal = self._shared.volume.journal
        lacks = self._shared.applied_seq - self.applied_seq
        if lacks <= 0 or not journal.head_seq:
            return 0
        return journal.bytes_from(Seq(self.applied_seq + 1))

    def sample(self) -> None:
        """Called about once a second."""
        if self._source is not None and self._source.applied_seq:  # it has said so itself
            self._progress.sample(self._source.applied_seq, self.traffic.content_bytes)

    def _peer(self) -> Peer | None:
        return self._shared.book.find(self.name)

    # -- the task ----------------------------------------------------------------------------------

    def look_again(self, peer: Peer) -> None:
        """The book has changed: what it says of *peer*, this one, may be something else now. If
        not, a session goes on; but who waits to try again does so at once."""
        told = peer.address, peer.certificate, peer.paused, peer.needs_copy
        if told == self._told and self._retry_at is None:
            return
        self._told = told
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
        pause_seconds = _PAUSE_SECONDS_MIN
        while (peer := self._peer()) is not None:
            changed = self._changed
            if peer.needs_copy is not None:
                self._say("needs full copy", peer.needs_copy, advice.COPY)
                await changed.wait()
            elif peer.paused:
                self._say("paused", None, f"'fusejournal peer resume' lets {self.name} go on")
                self._retention.takes_nothing()
                await changed.wait()
            elif peer.address is None:
                return
            elif (failure := self._fenced) is not None:
                self._say("refused", failure, advice.advice_on(RefusedError(FENCED, failure)))
                self._retention.takes_nothing()
                await changed.wait()
            elif not self._shared.volume.journal.head_seq:
                self._say("connecting", None, "this mirror has nothing yet that it could ship on")
                await self._shared.append_notifier.wait_past(Seq(0))
            else:
                self._is_gone = False
                pause_seconds = await self._try(peer, pause_seconds)
                if self._is_gone:
                    await self._retention.end("its next entry is not in the journal any more")
                with trio.move_on_after(pause_seconds * random.uniform(0.5, 1.5)) as waiting:
                    self._retry_at = waiting.deadline
                    await changed.wait()
                self._retry_at = None

    @property
    def _fenced(self) -> str | None:
        return self._shared.volume.failure if self._shared.quorum.is_fenced else None

    async def _try(self, peer: Peer, pause_seconds: float) -> float:
        """One session. Returns how long to wait before the next."""
        self._is_heard = refused = False
        claim: Claim | None = None
        self._began_at, self._began_seq = trio.current_time(), self.acked_seq
        try:
            with trio.CancelScope() as self._session_scope:
                await self._session(peer)
                return _PAUSE_SECONDS_MIN
        except* DivergedError as group:
            self._failed(first_error(group), "diverged")
            refused = True
        except* RefusedError as group:
            error = first_error(group)
            assert isinstance(error, RefusedError)
            code, claim = error.code, error.claim
            state = "mirror full" if code == "full" else "refused"
            self._failed(error, state)
            refused = code not in ("busy", "full")
        except* NoSuchSeqError:
            self._is_gone = True
        except* (FusejournalError, OSError, trio.TooSlowError) as group:
            error = first_error(group)
            is_refusal = isinstance(error, JournalError | PeerRefusedError)
            self._failed(error, "refused" if is_refusal else "connecting")
        finally:
            self._session_scope = None
            self._remember()
        if claim is not None:
            await self._shared.on_claim(claim, self.name)
        if refused:
            return _REFUSED_SECONDS
        if self._has_worked:
            return _PAUSE_SECONDS_MIN
        return min(pause_seconds * 2, _PAUSE_SECONDS_MAX)

    @property
    def _has_worked(self) -> bool:
        """Whether this session was of use."""
        has_lasted = trio.current_time() - self._began_at >= _LASTING_SECONDS
        return self.acked_seq > self._began_seq or (self._is_heard and has_lasted)

    def _remember(self) -> None:
        """The session is over: what is known of the peer stays."""
        self._known = self.acked_seq, self.applied_seq
        if self._source is not None:
            self._source, self._away_since = None, trio.current_time()
        self.notice = None
        self._progress.clear()
        self._shared.quorum.left(self.name)
        self.note()
        self._retention.takes_nothing()

    def note(self) -> None:
        """Have the book say what the peer has acknowledged, and so is held to."""
        with suppress(UnknownPeerError):  # removed meanwhile
            acked_seq = max(self.acked_seq, self._owed_seq)
            self._shared.book.note_acked(self.name, acked_seq, self.applied_seq)

    def stopped(self, why: str) -> None:
        """It does not run any more."""
        self._say("refused", why, None)

    def _say(self, state: str, error: str | None, what_to_do: str | None) -> None:
        self.state, self.last_error, self.advice = state, error, what_to_do

    def _failed(self, error: BaseException, state: str) -> None:
        told = str(error) or type(error).__name__
        if told != self._complaint or self._has_worked:
            self._shared.log_limiter.peer(self.name, told)
        self._complaint = told
        self.traffic.errors += 1
        self._say(state, told, advice.advice_on(error))

    async def check_backlog(self) -> None:
        """A peer that takes nothing for too long is told so, rather than left to wait for ever.
        Called now and then."""
        why = self._retention.overdue()
        if why is not None:
            await self._retention.end(why)
            if (peer := self._peer()) is not None:
                self.look_again(peer)

    # -- one session -------------------------------------------------------------------------------

    async def _session(self, peer: Peer) -> None:
        shared = self._shared
        if self.state not in ("diverged", "refused", "mirror full"):
            self.state = "connecting"
        assert peer.address is not None
        connection = await connect(
            peer.address,
            shared.identity,
            peer.certificate,
            insecure=shared.insecure,
            timeout_seconds=CONNECT_SECONDS,
        )
        async with connection:
            theirs = await self._greet(connection)
            with self._alone(theirs):
                await self._ship_over(connection, theirs)

    @contextmanager
    def _alone(self, theirs: Welcome) -> Iterator[None]:
        """Ship to the node that answered under this one name. Raises RefusedError where it is
        shipped to under another."""
        nodes, node_id = self._shared.nodes, theirs.node_id
        if (name := nodes.get(node_id)) is not None:
            reason = f"{theirs.node} is shipped to as peer {name} already, and counts once"
            raise RefusedError("twice", reason)
        if node_id:
            nodes[node_id] = self.name
        try:
            yield
        finally:
            nodes.pop(node_id, None)

    async def _ship_over(self, connection: Connection, theirs: Welcome) -> None:
        shared = self._shared
        seq = await self._agree(connection, theirs)
        me = shared.me()
        reader = FrameRangeReader(shared.directory, shared.volume.journal.uuid)
        self._signer = SegmentSigner(
            signing_key(shared.identity), shared.volume.journal.uuid, shared.directory
        )
        try:
            chain = await trio.to_thread.run_sync(reader.seek, seq)
            committed_seq = await trio.to_thread.run_sync(
                reader.committed_seq, shared.volume.journal.end
            )
            head_seq = shared.applied_seq
            self._progress.begin(head_seq)
            reign = me.reign
            await connection.send(
                Begin(reign.epoch, seq, chain, head_seq, committed_seq, reign.node_id)
            )
            self._source = Source(seq, shared.config.window_bytes)
            self.traffic.sessions += 1
            self.traffic.resent_entries += max(0, self._furthest - seq)
            self._say("catching up", self.last_error, None)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._take_acks, connection, self._source)
                nursery.start_soon(self._ping, connection)
                await self._ship(connection, reader, self._source)
        finally:
            reader.close()

    async def _greet(self, connection: Connection) -> Welcome:
        me = self._shared.me()
        with trio.fail_after(SILENCE_SECONDS):
            await connection.send(hello(me, SHIP))
            return check_welcome(me, await connection.receive(), SHIP)

    def _look_for_loss(self, theirs: Welcome) -> None:
        """What the peer had acknowledged it is to have, or it does not count."""
        shared = self._shared
        promised_seq = min(max(self._known[0], self._owed_seq), shared.volume.journal.head_seq)
        if theirs.seq >= promised_seq:
            return
        if not self._owed_seq:
            log.warning(
                "peer %s has entries up to %d, and had acknowledged them up to %d: it has lost the "
                "rest, and does not count before it has that again",
                self.name,
                theirs.seq,
                promised_seq,
            )
        self._owed_seq = promised_seq
        shared.quorum.lost(self.name, promised_seq)

    async def _agree(self, connection: Connection, theirs: Welcome) -> Seq:
        """Find where the peer's journal ends in this one."""
        shared = self._shared
        # Not only what is applied: after a loss, a mirror of this mirror may have more of it.
        head_seq = shared.volume.journal.head_seq
        chains = ChainFinder(shared.directory, shared.volume.journal.uuid)
        agreed_seq = await find_common(connection, chains, head_seq, position_of(theirs))
        if agreed_seq != theirs.seq:
            chain, next_chain = await chains.at((agreed_seq, Seq(agreed_seq + 1)))
            await connection.send(Diverged(agreed_seq, head_seq, chain or 0, next_chain or 0))
            raise DivergedError(theirs.node, agreed_seq, head_seq, theirs.seq)
        first = shared.volume.journal.reader.first_seq
        if agreed_seq + 1 < first:
            why = f"its next entry, {agreed_seq + 1}, is not in the journal any more"
            await connection.send(Refusal("copy", f"{why}: this mirror needs a full copy"))
            raise NoSuchSeqError(agreed_seq + 1, first, head_seq)
        self._look_for_loss(theirs)
        return agreed_seq

    async def _take_acks(self, connection: Connection, source: Source) -> None:
        while True:
            with trio.move_on_after(SILENCE_SECONDS) as waiting:
                ack = expect(await connection.receive(), Ack)
            if waiting.cancelled_caught:
                raise WireError(f"{connection.where}: no word for {SILENCE_SECONDS:g} s")
            source.acked(ack)
            if self._known != _NOTHING:
                # A peer of this name may have been begun anew: what it has it says itself.
                self._known = _NOTHING
                if not self._owed_seq:
                    self._shared.quorum.forget(self.name)
            self._is_heard = True
            if source.acked_seq >= self._owed_seq > 0:
                log.warning("peer %s has what it had lost again, and counts", self.name)
                self._owed_seq = Seq(0)
            if ack.signed_seq:
                with suppress(UnknownPeerError):  # removed meanwhile
                    self._shared.book.note_signatures(self.name)
            if ack.state == OK:
                self._retention.takes()
            else:
                self._retention.takes_nothing()
            self._shared.quorum.acked(self.name, source.acked_seq)
            self._room.set()
            self._take_notice(ack)
            if ack.state == FULL:
                self._say("mirror full", ack.detail, advice.FULL)
            elif ack.state == FAILED:
                self._say("mirror failed", ack.detail, advice.FAILED)
            elif self.state != "streaming":
                self._say("streaming", None, None)

    def _take_notice(self, ack: Ack) -> None:
        notice = ack.detail if ack.state == OK and ack.detail else None
        if notice is not None and notice != self.notice:
            log.warning("peer %s: %s", self.name, notice)
        self.notice = notice

    async def _ping(self, connection: Connection) -> None:
        while True:
            await trio.sleep(PING_SECONDS)
            shared = self._shared
            await connection.send(Ping(shared.applied_seq, shared.volume.journal.head_seq))

    async def _ship(self, connection: Connection, reader: FrameRangeReader, source: Source) -> None:
        shared, config = self._shared, self._shared.config
        while True:
            while not source.has_room:
                self._room = trio.Event()
                await self._room.wait()
            await shared.append_notifier.wait_past(Seq(reader.seq - 1))
            shared.lag_meter.note(shared.applied_seq)
            end = shared.volume.journal.end
            if reader.is_near(end, config.batch_bytes):
                lacking = config.batch_bytes - reader.bytes_to(end)
                await shared.append_notifier.wait_for_batch(
                    shared.append_notifier.bytes + lacking, config.batch_age_seconds, reader.seq
                )
            frame_range = await self._read(reader)
            if frame_range is not None:
                await self._send(connection, source, frame_range)

    async def _read(self, reader: FrameRangeReader) -> FrameRange | None:
        shared = self._shared
        end, applied_seq = shared.volume.journal.end, shared.applied_seq
        bytes_max = shared.config.batch_bytes
        if reader.is_near(end, _SMALL_BYTES):
            await trio.lowlevel.checkpoint()
            return reader.next(end, applied_seq, bytes_max)
        return await trio.to_thread.run_sync(reader.next, end, applied_seq, bytes_max)

    async def _sign(self, frame_range: FrameRange) -> bytes:
        if len(frame_range.content) < _SMALL_BYTES and self._signer.follows(frame_range):
            return self._signer.sign(frame_range)
        return await trio.to_thread.run_sync(self._signer.sign, frame_range)

    async def _send(self, connection: Connection, source: Source, frame_range: FrameRange) -> None:
        size = len(frame_range.content)
        level = self._compression.level_for(size)
        began = time.perf_counter()
        if size < _SMALL_BYTES or not level:
            method, content = compress(frame_range.content, level)
        else:
            method, content = await trio.to_thread.run_sync(compress, frame_range.content, level)
        took = time.perf_counter() - began if level else 0.0
        shared = self._shared
        reign = shared.me().reign
        batch = batch_of(
            frame_range,
            method,
            content,
            reign.epoch,
            shared.applied_seq,
            shared.volume.journal.head_seq,
            reign.node_id,
        )._replace(signature=await self._sign(frame_range))
        blocked = connection.send_blocked_seconds
        source.sent(frame_range.last_seq, size, trio.current_time())
        await connection.send(batch)
        self._compression.took(size, len(content), took, connection.send_blocked_seconds - blocked)
        self.traffic.sent(frame_range.last_seq - frame_range.first_seq + 1, size, len(content))
        self._furthest = max(self._furthest, frame_range.last_seq)
