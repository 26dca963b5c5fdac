"""The shipper: sends the journal to one peer, from where that peer's ends, for as long as the node
runs.

One task a peer, and a session for each connection: greet, compare positions, then batches as the
journal grows and acknowledgements as they come, several batches in flight. Frames are read as they
lie in the segments, after they were applied, so a slow or dead peer costs nobody anything but the
disk that its backlog takes. A session that breaks is begun anew, after a pause that grows and is
never the same twice; whatever was not acknowledged is sent again, from the position that the peer
itself tells.

Reading and compressing a large batch is done in a thread, a small one at once: handing it over
would take longer. Used from the event loop's thread."""

import logging
import random
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import trio

from fusejournal.config import ReplicationConfig
from fusejournal.errors import (
    FusejournalError,
    JournalError,
    NoSuchSeqError,
    UnknownPeerError,
)
from fusejournal.journal.segment import first_seq_of, list_segments
from fusejournal.journal.stretches import Stretch, StretchReader
from fusejournal.replication.comparing import (
    ChainFinder,
    DivergedError,
    find_common,
    first_error,
)
from fusejournal.replication.compression import Compression
from fusejournal.replication.growth import Growth
from fusejournal.replication.peers import Peer, PeerBook
from fusejournal.replication.quorum import Quorum
from fusejournal.types import Seq
from fusejournal.volume import Volume
from fusejournal.wire.batches import batch_of, compress
from fusejournal.wire.connection import Connection
from fusejournal.wire.frames import Ack, Begin, Diverged, Ping, Refusal, WireError
from fusejournal.wire.identity import Identity
from fusejournal.wire.session import (
    FAILED,
    FULL,
    SHIP,
    Me,
    RefusedError,
    Source,
    check_welcome,
    expect,
    hello,
    position_of,
)
from fusejournal.wire.transport import connect

log = logging.getLogger(__name__)

CONNECT_SECONDS = 15.0
PING_SECONDS = 2.0
SILENCE_SECONDS = 60.0
"""A peer that says nothing for so long is gone. A throttled disk can block it for many seconds."""

_PAUSE_SECONDS_MIN = 0.1
_PAUSE_SECONDS_MAX = 15.0
_REFUSED_SECONDS = 15.0
_SMALL_BYTES = 64 << 10
_NOTHING = Seq(0), Seq(0)
_RATE_SECONDS = 10.0
_DAY_SECONDS = 86400.0


@dataclass
class Shipping:
    """What all shippers of a node share."""

    volume: Volume
    me: Callable[[], Me]
    growth: Growth
    quorum: Quorum
    config: ReplicationConfig
    identity: Identity
    book: PeerBook
    insecure: bool

    @property
    def directory(self) -> Path:
        """The journal's."""
        return self.volume.journal.directory

    @property
    def applied_seq(self) -> Seq:
        """Up to here entries may be shipped."""
        return self.volume.catalog.applied_seq


@dataclass
class Counters:
    """What a shipper has done since the node began."""

    batches: int = 0
    entries: int = 0
    content_bytes: int = 0
    sent_bytes: int = 0
    resent_entries: int = 0
    errors: int = 0
    sessions: int = 0
    samples: deque[tuple[float, int, int]] = field(default_factory=deque)
    """Time, applied seq and content bytes, of the last seconds."""


class Shipper:
    """Ships to the peer *name*. See the module."""

    def __init__(self, name: str, shipping: Shipping) -> None:
        self.name = name
        self.counters = Counters()
        self.state = "connecting"
        """In words: connecting, catching up, streaming, mirror full, mirror failed, paused,
        diverged, refused, needs full copy."""
        self.last_error: str | None = None
        self.advice: str | None = None
        """What to do about it."""
        self._shared = shipping
        self._source: Source | None = None
        self._known: tuple[Seq, Seq] = _NOTHING
        """What the peer has acknowledged and applied, in this session or the one before."""
        self._level_at = time.time()
        """When the peer had everything last."""
        self._retry_at: float | None = None
        self._compression = Compression(shipping.config.compress_level_max)
        self._room = trio.Event()
        self._session_scope: trio.CancelScope | None = None
        self._changed = trio.Event()
        self._furthest = Seq(0)
        self._left_bytes = shipping.growth.bytes
        """How much the journal had grown when the peer was heard last."""
        self._is_heard = False
        """Whether the peer has acknowledged anything in this session."""

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

    def status(self) -> dict[str, Any]:
        """For the status page and the metrics."""
        head_seq = self._shared.applied_seq
        lag_entries = head_seq - self.applied_seq
        entries_rate, bytes_rate = self._rates()
        peer = self._peer()
        eta = lag_entries / entries_rate if entries_rate and lag_entries else None
        counters = self.counters
        return {
            "name": self.name,
            "address": str(peer.address) if peer is not None else None,
            "state": self.state,
            "retry_in_seconds": self._retry_in(),
            "shipped_seq": self.shipped_seq,
            "acked_seq": self.acked_seq,
            "applied_seq": self.applied_seq,
            "lag_entries": lag_entries,
            "lag_bytes": self.lag_bytes(),
            "lag_seconds": round(time.time() - self._level_at, 3) if lag_entries else 0.0,
            "entries_per_second": round(entries_rate, 1),
            "bytes_per_second": round(bytes_rate),
            "eta_seconds": round(eta, 1) if eta is not None else None,
            "batches": counters.batches,
            "batches_in_flight": self._source.batches_in_flight if self._source else 0,
            "content_bytes": counters.content_bytes,
            "sent_bytes": counters.sent_bytes,
            "compress_level": self._compression.level,
            "resent_entries": counters.resent_entries,
            "sessions": counters.sessions,
            "errors": counters.errors,
            "last_error": self.last_error,
            "advice": self.advice,
        }

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

    def _rates(self) -> tuple[float, float]:
        samples = self.counters.samples
        if len(samples) < 2:
            return 0.0, 0.0
        (began, seq, size), (ended, last_seq, last_size) = samples[0], samples[-1]
        seconds = max(ended - began, 0.001)
        return (last_seq - seq) / seconds, (last_size - size) / seconds

    def sample(self) -> None:
        """Called about once a second."""
        samples = self.counters.samples
        now = trio.current_time()
        samples.append((now, self.applied_seq, self.counters.content_bytes))
        while samples[0][0] < now - _RATE_SECONDS:
            samples.popleft()
        self._note_level()

    def _note_level(self) -> None:
        if self.applied_seq >= self._shared.applied_seq:
            self._level_at = time.time()

    def _peer(self) -> Peer | None:
        return self._shared.book.find(self.name)

    # -- the task ----------------------------------------------------------------------------------

    def changed(self) -> None:
        """The peer was paused, resumed, or given another address or certificate."""
        changed, self._changed = self._changed, trio.Event()
        changed.set()
        if self._session_scope is not None:
            self._session_scope.cancel()

    async def run(self) -> None:
        """Ship until cancelled, or until the peer is removed."""
        pause_seconds = _PAUSE_SECONDS_MIN
        while (peer := self._peer()) is not None:
            changed = self._changed
            if peer.needs_copy is not None:
                self._say("needs full copy", peer.needs_copy, _COPY_ADVICE)
                await changed.wait()
            elif peer.paused:
                self._say("paused", None, f"'fusejournal peer resume' lets {self.name} go on")
                await changed.wait()
            elif peer.address is None:
                return
            elif self._shared.me().uuid is None:
                self._say("connecting", None, "this mirror has nothing yet that it could ship on")
                await self._shared.growth.beyond(Seq(0))
            else:
                pause_seconds = await self._try(peer, pause_seconds)
                self._check_backlog()
                with trio.move_on_after(pause_seconds * random.uniform(0.5, 1.5)) as waiting:
                    self._retry_at = waiting.deadline
                    await changed.wait()
                self._retry_at = None

    async def _try(self, peer: Peer, pause_seconds: float) -> float:
        """One session. Returns how long to wait before the next."""
        self._is_heard = refused = False
        try:
            with trio.CancelScope() as self._session_scope:
                await self._session(peer)
                return _PAUSE_SECONDS_MIN
        except* DivergedError as group:
            self._failed(first_error(group), "diverged", None)
            refused = True
        except* RefusedError as group:
            error = first_error(group)
            code = error.code if isinstance(error, RefusedError) else ""
            state = "mirror full" if code == "full" else "refused"
            self._failed(error, state, _ADVICE.get(code))
            refused = code not in ("busy", "full")
        except* NoSuchSeqError:
            self._mark("its next entry is not in the journal any more")
        except* (FusejournalError, OSError, trio.TooSlowError) as group:
            error = first_error(group)
            damaged = isinstance(error, JournalError)
            self._failed(error, "refused" if damaged else "connecting", None)
        finally:
            self._session_scope = None
            self._remember()
        if refused:
            return _REFUSED_SECONDS
        if self._is_heard:
            return _PAUSE_SECONDS_MIN
        return min(pause_seconds * 2, _PAUSE_SECONDS_MAX)

    def _remember(self) -> None:
        """The session is over: what is known of the peer stays."""
        self._known = self.acked_seq, self.applied_seq
        self._source = None
        if self._is_heard:
            self._left_bytes = self._shared.growth.bytes
        with suppress(UnknownPeerError):  # removed meanwhile
            self._shared.book.note_acked(self.name, self.acked_seq)

    def _say(self, state: str, error: str | None, advice: str | None) -> None:
        self.state, self.last_error, self.advice = state, error, advice

    def _failed(self, error: BaseException, state: str, advice: str | None) -> None:
        told = str(error) or type(error).__name__
        if told != self.last_error:
            log.warning("peer %s: %s", self.name, told)
        self.counters.errors += 1
        self._say(state, told, advice)

    # -- retention ---------------------------------------------------------------------------------

    def _mark(self, why: str) -> None:
        self._shared.book.set_needs_copy(self.name, why)
        self._shared.book.save()
        log.error("peer %s needs a full copy: %s", self.name, why)

    def _check_backlog(self) -> None:
        """A peer that is too far behind is told so, rather than left to wait for ever. One that is
        catching up, however much that is, is not: what counts is what came since it was away."""
        config = self._shared.config
        seconds = time.time() - self._level_at
        missed_bytes = self._shared.growth.bytes - self._left_bytes
        if min(self.lag_bytes(), missed_bytes) > config.keep_bytes:
            self._mark(f"it is {self.lag_bytes()} bytes behind, {config.keep_bytes} are kept")
        elif self.lag_bytes() and seconds > config.keep_days * _DAY_SECONDS:
            self._mark(f"it was away for more than {config.keep_days:g} days")

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
            seq = await self._agree(connection)
            me = shared.me()
            reader = StretchReader(shared.directory, shared.volume.journal.uuid)
            try:
                chain = await trio.to_thread.run_sync(reader.seek, seq)
                await connection.send(Begin(me.position.epoch, seq, chain, shared.applied_seq))
                self._source = Source(seq, shared.config.window_bytes)
                self.counters.sessions += 1
                self.counters.resent_entries += max(0, self._furthest - seq)
                self._say("catching up", self.last_error, None)
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._take_acks, connection, self._source)
                    nursery.start_soon(self._ping, connection)
                    await self._ship(connection, reader, self._source)
            finally:
                reader.close()

    async def _agree(self, connection: Connection) -> Seq:
        """Greet, and find where the peer's journal ends in this one."""
        shared = self._shared
        me = shared.me()
        with trio.fail_after(SILENCE_SECONDS):
            await connection.send(hello(me, SHIP))
            theirs = check_welcome(me, await connection.receive(), SHIP)
            head_seq = shared.applied_seq
            chains = ChainFinder(shared.directory, shared.volume.journal.uuid)
            agreed_seq = await find_common(connection, chains, head_seq, position_of(theirs))
            if agreed_seq != theirs.seq:
                await connection.send(Diverged(agreed_seq, head_seq))
                raise DivergedError(theirs.node, agreed_seq, head_seq, theirs.seq)
            first = first_seq_of(list_segments(shared.directory)[0])
            if agreed_seq + 1 < first:
                why = f"its next entry, {agreed_seq + 1}, is not in the journal any more"
                await connection.send(Refusal("copy", f"{why}: this mirror needs a full copy"))
                raise NoSuchSeqError(agreed_seq + 1, first, head_seq)
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
                self._shared.quorum.forget(self.name)
            self._is_heard = True
            self._shared.quorum.acked(self.name, source.acked_seq)
            self._room.set()
            self._note_level()
            if ack.state == FULL:
                self._say("mirror full", ack.detail, "make space there: it goes on by itself")
            elif ack.state == FAILED:
                self._say("mirror failed", ack.detail, "see the mirror's own status and log")
            elif source.applied_seq >= self._shared.applied_seq - self._live_entries():
                self._say("streaming", None, None)
            elif self.state in ("mirror full", "mirror failed"):
                self._say("catching up", None, None)

    def _live_entries(self) -> int:
        """How far behind a peer is that only waits for what is on its way."""
        entries_rate, _ = self._rates()
        return int(entries_rate) + 1000

    async def _ping(self, connection: Connection) -> None:
        while True:
            await trio.sleep(PING_SECONDS)
            shared = self._shared
            await connection.send(Ping(shared.applied_seq, shared.volume.journal.head_seq))

    async def _ship(self, connection: Connection, reader: StretchReader, source: Source) -> None:
        shared, config = self._shared, self._shared.config
        while True:
            while not source.has_room:
                self._room = trio.Event()
                await self._room.wait()
            await shared.growth.beyond(Seq(reader.seq - 1))
            end = shared.volume.journal.end
            if reader.is_near(end, config.batch_bytes):
                lacking = config.batch_bytes - reader.bytes_to(end)
                await shared.growth.gather(
                    shared.growth.bytes + lacking, config.batch_age_seconds, reader.seq
                )
            stretch = await self._read(reader)
            if stretch is not None:
                await self._send(connection, source, stretch)

    async def _read(self, reader: StretchReader) -> Stretch | None:
        shared = self._shared
        end, applied_seq = shared.volume.journal.end, shared.applied_seq
        bytes_max = shared.config.batch_bytes
        if reader.is_near(end, _SMALL_BYTES):
            await trio.lowlevel.checkpoint()
            return reader.next(end, applied_seq, bytes_max)
        return await trio.to_thread.run_sync(reader.next, end, applied_seq, bytes_max)

    async def _send(self, connection: Connection, source: Source, stretch: Stretch) -> None:
        size = len(stretch.content)
        level = self._compression.level_for(size)
        began = time.perf_counter()
        if size < _SMALL_BYTES or not level:
            method, content = compress(stretch.content, level)
        else:
            method, content = await trio.to_thread.run_sync(compress, stretch.content, level)
        took = time.perf_counter() - began if level else 0.0
        shared = self._shared
        batch = batch_of(
            stretch,
            method,
            content,
            shared.volume.journal.epoch,
            shared.applied_seq,
            shared.volume.journal.head_seq,
        )
        blocked = connection.send_blocked_seconds
        source.sent(stretch.last_seq, size, trio.current_time())
        await connection.send(batch)
        self._compression.took(size, len(content), took, connection.send_blocked_seconds - blocked)
        counters = self.counters
        counters.batches += 1
        counters.entries += stretch.last_seq - stretch.first_seq + 1
        counters.content_bytes += size
        counters.sent_bytes += len(content)
        self._furthest = max(self._furthest, stretch.last_seq)


_COPY_ADVICE = (
    "remove the peer, give it an empty backing and state, and add it again: it gets everything "
    "that the journal has"
)
_ADVICE = {
    "version": "upgrade the older of the two",
    "volume": "this is another volume's mirror: check its address",
    "role": "check its address, or mount it with --role mirror",
    "fenced": "another node has become primary: stop this one, or bring it back as a mirror",
    "full": "make space there: it goes on by itself",
    "busy": "another node ships to it: check who is its primary",
    "copy": _COPY_ADVICE,
}
