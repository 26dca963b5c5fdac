"""The receiver: on a mirror, takes batches from the primary into the journal, makes them durable,
acknowledges them.

One session at a time. A newer connection of the same peer takes the place of the older, which may
be a link that is dead and does not know it yet, once the two journals were compared: who cannot
ship to here ends nobody's session. A second primary is refused, and so is a second instance of the
same one (wire/instances.py) while the first is heard. Checks come in this order: who it is, version
and volume, reign, whether another ships, position, checksum; then the frames are appended as they
are, flushed, acknowledged, and left to the updater. Nothing of a batch counts before it is whole in
the journal.

A higher reign that somebody proves is on the disk before that is answered, and ends a session of a
lower one at once, also where nothing can be taken from who speaks of it. One that the followed node
itself is said to have begun may be that of a copy: it counts when the instance is let in, and then
only where its journal may go on from this one.

A journal without space is tried again for a while; then the session is refused, and so is every
other until there is space for what did not fit: a connection that nobody reads would be cut in any
case.

Used from the event loop's thread; large batches are checked in a thread of their own."""

import errno
import logging
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from uuid import UUID

import trio

from fusejournal.errors import FusejournalError, JournalFailedError, JournalFullError
from fusejournal.journal.frame_range import FrameRange
from fusejournal.journal.watermarks import WatermarkPage
from fusejournal.replication.catch_up import CatchUpMeter
from fusejournal.replication.common_ancestor import (
    ASKED_MAX,
    SILENCE_SECONDS,
    ChainFinder,
    first_error,
    is_bound_by,
    keep_extra,
)
from fusejournal.replication.fence import Fence
from fusejournal.replication.kept_signatures import KeptSignatures
from fusejournal.replication.lag import LagMeter
from fusejournal.replication.mirror_applier import MirrorApplier
from fusejournal.replication.status import MirrorStatus
from fusejournal.types import Reign, Seq
from fusejournal.volume.durability import Durability
from fusejournal.volume.volume import Volume
from fusejournal.wire.batches import frame_range_of
from fusejournal.wire.connection import Connection
from fusejournal.wire.frames import (
    Ack,
    AskChains,
    Batch,
    Begin,
    Chains,
    Diverged,
    Hello,
    Message,
    Ping,
    Welcome,
    WireError,
    uuid_of,
)
from fusejournal.wire.instances import Instance, Instances, describe_twice, instance_of
from fusejournal.wire.session import (
    FAILED,
    FULL,
    INSTANCE,
    OK,
    Claim,
    HandshakeState,
    RefusedError,
    Sink,
    claim_of,
    expect,
    welcome,
)

log = logging.getLogger(__name__)

_FULL_PAUSE_SECONDS = 1.0
_FULL_PATIENCE_SECONDS = 5.0
_SMALL_BYTES = 128 << 10
_ACK_PAUSE_SECONDS = 0.002
_LIFE_SECONDS = 10.0
"""While a message takes longer to come, the sender hears of this side as often."""
_FRESH_SECONDS = 3.0
"""A sender that was heard so long ago at most is there: a machine takes longer to start."""
_SIGN_SECONDS = 7.0
"""A sender that says nothing for longer, while another instance of it wants its place, has lost it:
it pings every two seconds."""


class Receiver:
    """See the module. *join_volume* makes a mirror that has no journal one of the volume that its
    first primary names."""

    def __init__(
        self,
        volume: Volume,
        marks: WatermarkPage,
        fence: Fence,
        durability: Durability,
        applier: MirrorApplier,
        me: Callable[[], HandshakeState],
        join_volume: Callable[[UUID], None],
        signatures: KeptSignatures,
    ) -> None:
        self._volume = volume
        self._marks = marks
        self._fence = fence
        self._durability = durability
        self._applier = applier
        self._me = me
        self._join_volume = join_volume
        self._signatures = signatures
        self._session: trio.CancelScope | None = None
        self._session_peer: str | None = None
        self._session_over = trio.Event()
        self._newcomer: tuple[str, trio.CancelScope] | None = None
        """The peer that is being compared, perhaps beside a session."""
        self._sign = trio.Event()
        """Set when the sender says something."""
        self._instances = Instances(marks.following, trio.current_time())
        self._heeding = trio.Lock()
        self._keeping_aside = trio.Lock()
        self._news = trio.Event()
        self._lag_meter = LagMeter()
        self._progress = CatchUpMeter(self._lag_meter)
        self._full: str | None = None
        self._lacking_bytes = 0
        """What did not fit."""
        self.primary: str | None = None
        """The node that sends, or sent last."""
        self.where: str | None = None
        """Its address; None while it is not connected."""
        self.state = "waiting for a primary"
        """In words, as the shipper's."""
        self.source_head_seq = Seq(0)
        """Where the primary's journal ends, as far as it has said."""
        self.last_error: str | None = None
        self.received_bytes = 0
        self.batches = 0
        self.duplicates = 0
        self._heard_at: float | None = None

    def status(self) -> MirrorStatus:
        """Returns how receiving goes."""
        head_seq = self._volume.journal.head_seq
        entries_rate, bytes_rate = self._progress.rates()
        return MirrorStatus(
            primary=self.primary,
            address=self.where,
            state=self._display_state(),
            source_head_seq=max(self.source_head_seq, head_seq),
            received_seq=head_seq,
            durable_seq=self._durability.durable_seq,
            applied_seq=self._applier.applied_seq,
            lag_entries=self.lag_entries,
            lag_seconds=round(self._lag_seconds(), 3),
            entries_per_second=round(entries_rate, 1),
            bytes_per_second=round(bytes_rate),
            eta_seconds=self._progress.eta_seconds(self.lag_entries),
            heard_seconds_ago=(
                round(time.monotonic() - self._heard_at, 1) if self._heard_at is not None else None
            ),
            received_bytes=self.received_bytes,
            batches=self.batches,
            duplicates=self.duplicates,
            last_error=self.last_error,
            trouble=self._trouble()[1] or None,
        )

    @property
    def lag_entries(self) -> int:
        """Entries of the primary that are not applied here, as far as it has told of them."""
        head_seq = max(self.source_head_seq, self._volume.journal.head_seq)
        return head_seq - self._applier.applied_seq

    def _lag_seconds(self) -> float:
        return self._progress.lag_seconds(self._applier.applied_seq, self.source_head_seq)

    def _display_state(self) -> str:
        """The state; whether a session that works is catching up is seen by how far it is."""
        applied_seq = self._applier.applied_seq
        if self.state == "streaming" and self._progress.is_catching_up(
            applied_seq, self.source_head_seq
        ):
            return "catching up"
        return self.state

    def sample(self) -> None:
        """Called about once a second."""
        self._progress.sample(self._applier.applied_seq, self.received_bytes)

    def notify(self) -> None:
        """A watermark has grown, or something else that the sender should know has changed."""
        self._news.set()

    # -- sessions ----------------------------------------------------------------------------------

    async def serve(self, connection: Connection, greeting: Hello) -> None:
        """One session, whose sender has greeted. Raises RefusedError, which is for it to be told,
        and WireError."""
        try:
            self._check(greeting)
        except WireError as error:
            if self._session is None:
                self._refused(error)
            raise
        peer = connection.peer or greeting.node
        self._check_peer(peer)
        if self._newcomer is not None:
            self._newcomer[1].cancel()
        begin: Begin | None = None
        newcomer = self._newcomer = peer, trio.CancelScope()
        try:
            with newcomer[1]:
                begin = await self._admit(connection, greeting)
        except* RefusedError as group:
            if self._session is None:
                self._refused(first_error(group))
            raise
        except* (FusejournalError, OSError, trio.TooSlowError) as group:
            if self._session is None:
                self._lost(greeting.node, first_error(group))
        finally:
            if self._newcomer is newcomer:
                self._newcomer = None
                if begin is None and self._session is None:
                    self.where = None
                    if self.state == "connecting":  # it was cut off
                        self.state = "waiting for a primary"
        if begin is None:
            return
        await self._take_place(peer)
        over = self._session_over = trio.Event()
        was_cut_short = True
        try:
            with trio.CancelScope() as self._session:
                self._session_peer = peer
                try:
                    await self._serve(connection, greeting, begin)
                except* RefusedError as group:
                    was_cut_short = False
                    self._refused(first_error(group))
                    raise
                except* (FusejournalError, OSError, trio.TooSlowError) as group:
                    self._lost(greeting.node, first_error(group))
                was_cut_short = False
        finally:
            if was_cut_short:
                self.state = "waiting for a primary"
            self.where = None
            self._session = None
            over.set()

    def _check(self, greeting: Hello) -> tuple[Welcome, UUID]:
        """What to answer who may ship to here at all, and the volume of both. Raises RefusedError,
        WireError."""
        answer = welcome(self._me(), greeting, is_mirror=True)
        uuid = uuid_of(greeting.uuid)
        if uuid is None:
            raise RefusedError("unborn", f"{greeting.node} has no volume yet")
        return answer, uuid

    async def _admit(self, connection: Connection, greeting: Hello) -> Begin | None:
        """Compare who has greeted, beside the session that goes on; what it begins with, or None
        where the two have parted. Raises RefusedError, WireError."""
        await self._check_instance(instance_of(greeting, connection.where))
        await self._heed(claim_of(greeting), connection.peer or greeting.node, is_let_in=True)
        if self._session is None:
            self.primary, self.where = greeting.node, connection.where
            self.state = "connecting"
        self._check_space()
        answer, _ = self._check(greeting)
        await connection.send(answer)
        return await self._compare(connection, greeting.node)

    async def heed(self, claim: Claim, peer: str) -> None:
        """*peer* has told of a reign. When this returns, it is on the disk where it is higher than
        the one that this mirror goes by, and proven; and nothing of a lower one is taken any more.
        Cancelling leaves it undone, or done. Raises RefusedError on a full disk, OSError where the
        journal cannot be read, JournalFailedError where the flush failed."""
        await self._heed(claim, peer, is_let_in=False)

    async def _heed(self, claim: Claim, peer: str, *, is_let_in: bool) -> None:
        """As :meth:`heed`. *is_let_in*: which instance of its node *peer* is, was looked at."""
        async with self._heeding:  # who tells of the same waits until it is on the disk
            if await self._ends_reign(claim, is_let_in=is_let_in) and self._raise(claim.reign):
                log.warning(
                    "%s tells of reign %s: nothing of a lower is taken now", peer, claim.reign
                )
                if self._session is not None:
                    self._session.cancel()
                if self._newcomer is not None and not is_let_in:  # (else that is *peer* itself)
                    self._newcomer[1].cancel()
            await self._fence.make_durable(self._durability.flush_watermarks)

    async def _ends_reign(self, claim: Claim, *, is_let_in: bool) -> bool:
        """Returns True if *claim* is of a higher reign than this mirror goes by, and proven."""
        me, journal = self._me(), self._volume.journal
        if me.uuid is None or claim.reign.epoch <= me.reign.epoch:
            return False
        may_be_copy = self._instances.is_of_followed(claim.reign.node_id)
        if may_be_copy and (not is_let_in or claim.seq <= journal.head_seq):
            return False
        return await is_bound_by(claim, me.reign, ChainFinder(journal.directory, journal.uuid))

    def _check_peer(self, peer: str) -> None:
        """Raise RefusedError where another peer than *peer* ships to here, or is about to."""
        other = self._session_peer if self._session is not None else peer
        if other == peer and self._newcomer is not None:
            other = self._newcomer[0]
        if other != peer:
            raise RefusedError("busy", f"already receives from {other}")

    async def _check_instance(self, newcomer: Instance) -> None:
        """Raise RefusedError where *newcomer* is another instance of the node that is followed, and
        that is there, or was not long ago."""
        instances = self._instances
        if not instances.is_other(newcomer):
            return
        is_there = self._session is not None and await self._gives_a_sign()
        now, followed = trio.current_time(), instances.followed
        assert followed is not None
        if is_there or instances.is_rival(newcomer, now):
            words = describe_twice(followed, newcomer)
            if instances.met(newcomer, now):
                log.warning("%s", words)
            self.notify()
            await self._keep_following()
            raise RefusedError(INSTANCE, words)

    async def _keep_following(self) -> None:
        """Have on the disk which instance is followed, and which are not. Raises RefusedError on a
        full disk, OSError."""
        if self._instances.following != self._marks.following:
            with self._refusing_when_full():
                self._marks.following = self._instances.following
            await self._durability.flush_watermarks()

    async def _gives_a_sign(self) -> bool:
        """Whether the sender says something, now or soon."""
        self._sign = trio.Event()
        over = self._session_over
        async with trio.open_nursery() as nursery:

            async def give_up() -> None:
                await over.wait()
                nursery.cancel_scope.cancel()

            nursery.start_soon(give_up)
            nursery.cancel_scope.deadline = trio.current_time() + _SIGN_SECONDS
            await self._sign.wait()
            nursery.cancel_scope.cancel()
        return self._sign.is_set()

    def _heard(self) -> None:
        """The sender has said something, or is at it."""
        self._heard_at = time.monotonic()
        self._instances.heard(trio.current_time())
        self._sign.set()

    async def _take_place(self, peer: str) -> None:
        """Wait until the session before this one, if it is of the same *peer*, is over, and end it.
        Raises RefusedError where it is another's."""
        while self._session is not None:
            self._check_peer(peer)
            log.info("%s has connected anew", peer)
            self._session.cancel()
            await self._session_over.wait()

    def _refused(self, error: BaseException) -> None:
        code = error.code if isinstance(error, RefusedError) else ""
        self.state = {"full": "mirror full", "copy": "needs full copy"}.get(code, "refused")
        self.last_error = str(error)

    def _lost(self, node: str, error: BaseException) -> None:
        self.last_error = str(error) or type(error).__name__
        log.info("%s: %s", node, self.last_error)
        if self.state not in ("diverged", "needs full copy"):
            self.state = "waiting for a primary"

    async def _serve(self, connection: Connection, greeting: Hello, begin: Begin) -> None:
        self.primary, self.where = greeting.node, connection.where
        self.state = "connecting"
        me = self._me()
        _, uuid = self._check(greeting)
        sink = Sink(me.position, *me.reign)
        sink.begin(begin)
        connection.expect_batches()
        if me.uuid is None:
            self._join_volume(uuid)
        self._mark(sink)
        # A lower reign must not come in any more, whatever happens to this machine.
        await self._fence.make_durable(self._durability.flush_watermarks)
        self._instances.follow(instance_of(greeting, connection.where), trio.current_time())
        await self._keep_following()
        self._heard()  # it has, by what it began with
        self._applier.wake()
        self.source_head_seq = begin.head_seq
        self._lag_meter.note(begin.head_seq)
        self._progress.begin(begin.head_seq)
        self.state, self.last_error = "catching up", None
        self.notify()  # where it stands, the sender does not know
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._acknowledge, connection)
            await self._receive(connection, sink)
            nursery.cancel_scope.cancel()

    async def _compare(self, connection: Connection, who: str) -> Begin | None:
        """Answer the sender's questions, until it begins; None when it will not."""
        journal = self._volume.journal
        for _ in range(ASKED_MAX):
            with trio.fail_after(SILENCE_SECONDS):
                message: AskChains | Begin | Diverged = expect(
                    await connection.receive(), AskChains, Begin, Diverged
                )
            if isinstance(message, Begin):
                return message
            if isinstance(message, Diverged):
                await self._diverged(message, who)
                return None
            chains = ChainFinder(journal.directory, journal.uuid)
            await connection.send(Chains(await chains.at(message.seqs)))
        raise WireError(f"{who} asks for chains again and again")

    async def _diverged(self, message: Diverged, who: str) -> None:
        """*message* is believed as far as it can be seen here: that the two agree where it says,
        and not in the entry after it. Raises WireError, JournalDamagedError."""
        journal = self._volume.journal
        head_seq, seq = journal.head_seq, message.seq
        if not seq < head_seq:
            raise WireError(f"parts at {seq}, and this journal ends with {head_seq}")
        chains = ChainFinder(journal.directory, journal.uuid)
        mine, my_next = await chains.at((seq, Seq(seq + 1)))
        if message.chain and mine is not None and message.chain != mine:
            raise WireError(f"agrees up to {seq}, and this journal has another entry there")
        if message.next_chain and message.next_chain == my_next:
            raise WireError(f"parts at {seq}, and this journal has the same entry after it")
        if self._session is not None:
            log.warning("%s is refused: its journal parts from this one after %d", who, seq)
            return
        state_dir = journal.directory.parent
        told = f"{who} has not the entries from {seq + 1} on that are here"
        try:
            # One at a time: a copy is not cancelled, and who has parted comes again before it ends.
            async with self._keeping_aside:
                kept = await trio.to_thread.run_sync(keep_extra, state_dir, seq, head_seq)
        except OSError as error:
            # They are in the journal as before: nothing of it is ever given up.
            kept = journal.directory
            told += f" (there is no copy of them: {error.strerror})"
        self.state = "diverged"
        self.last_error = f"{told}: they are kept in {kept}, and nothing is taken from it"

    async def _receive(self, connection: Connection, sink: Sink) -> None:
        while True:
            received = await self._next(connection)
            if received is None:
                self.state = "waiting for a primary"
                return
            self._heard()
            message: Batch | Ping = expect(received, Batch, Ping)
            if isinstance(message, Batch):
                await self._take(message, sink)
            self.source_head_seq = max(self.source_head_seq, message.head_seq)
            self._lag_meter.note(self.source_head_seq)
            self.notify()

    async def _next(self, connection: Connection) -> Message | None:
        """The next message, which may take as long as it will while something comes. Raises
        trio.TooSlowError when nothing does."""
        received_bytes, heard_at = connection.bytes_received, trio.current_time()
        while True:
            with trio.move_on_after(_LIFE_SECONDS):
                return await connection.receive()
            if connection.bytes_received > received_bytes:
                received_bytes, heard_at = connection.bytes_received, trio.current_time()
                self._heard()
                self.notify()
            elif trio.current_time() - heard_at > SILENCE_SECONDS:
                raise trio.TooSlowError(f"no word for {SILENCE_SECONDS:g} s")

    async def _take(self, batch: Batch, sink: Sink) -> None:
        if not sink.take(batch):
            self.duplicates += 1
            return
        if batch.content_bytes > _SMALL_BYTES:
            frame_range = await trio.to_thread.run_sync(frame_range_of, batch)
        else:
            frame_range = frame_range_of(batch)
        self._raise(sink.reign)
        await self._fence.make_durable(self._durability.flush_watermarks)
        self._keep_signature(batch)
        await self._append(frame_range)
        sink.appended(batch)
        self._mark(sink)
        self.batches += 1
        self.received_bytes += len(batch.content)
        if self._durability.flush_if_quick() is None:
            self._durability.want()
        await trio.lowlevel.checkpoint()

    def _keep_signature(self, batch: Batch) -> None:
        """Before the batch is appended, for what is acknowledged has its signature on the disk.
        Raises RefusedError on a full disk (where files are not written in place)."""
        if not batch.signature:
            return
        try:
            self._signatures.keep(batch.last_seq, batch.signature)
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            self._full, self._lacking_bytes = f"no space left for a signature: {error}", 0
            self.notify()
            raise RefusedError("full", self._full) from None

    async def _append(self, frame_range: FrameRange) -> None:
        """Append *stretch*, if there is, or soon will be, space. Raises RefusedError when not."""
        ends = trio.current_time() + _FULL_PATIENCE_SECONDS
        while True:
            try:
                self._volume.journal.receive(frame_range)
            except JournalFullError as error:
                if self._full is None:
                    log.warning("%s: waiting for space", error)
                self._full = str(error)
                self._lacking_bytes = len(frame_range.content)
                self.notify()
                if trio.current_time() > ends:
                    raise RefusedError("full", self._full) from None
                await trio.sleep(_FULL_PAUSE_SECONDS)
            except JournalFailedError as error:
                self._volume.fail(str(error))
                raise
            else:
                if self._full is not None:
                    self._full = None
                    self.notify()
                return

    def _mark(self, sink: Sink) -> None:
        """Keep the sender's reign, and how far it had applied what is here. Raises RefusedError on
        a full disk: the next session tells it again."""
        self._raise(sink.reign)
        with self._refusing_when_full():
            self._marks.committed_seq = max(self._marks.committed_seq, sink.committed_seq)

    def _raise(self, reign: Reign) -> bool:
        """Keep *reign*, which was seen. Returns True if it is another than before. Raises as
        :meth:`_mark`."""
        with self._refusing_when_full():
            return self._fence.note(reign)

    @contextmanager
    def _refusing_when_full(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            self._full, self._lacking_bytes = f"no space left for the watermarks: {error}", 0
            self.notify()
            raise RefusedError("full", self._full) from None

    def _check_space(self) -> None:
        """Raises RefusedError while what did not fit does not fit yet."""
        if self._full is None:
            return
        options = self._volume.journal.options
        need = self._lacking_bytes + options.reserve_bytes + options.preallocate_bytes
        if shutil.disk_usage(self._volume.journal.directory).free < need:
            raise RefusedError("full", self._full)
        self._full = None

    def degraded(self) -> list[str]:
        """What is wrong here, a line each; but for a volume that has failed, which says so."""
        lines = []
        if self.state in ("diverged", "refused", "needs full copy"):
            lines.append(f"primary {self.primary}: {self.state}: {self.last_error}")
        state, detail = self._trouble()
        if state == FULL:
            lines.append(f"takes nothing more for now: {detail}")
        if (twice := self._instances.describe(trio.current_time())) is not None:
            lines.append(twice)
        return lines

    def twice(self, greeting: Hello, where: str) -> str:
        """For *greeting*, of a node that begins: that another instance of it ships to here now, in
        words; empty where none does."""
        newcomer, followed = instance_of(greeting, where), self._instances.followed
        if self._session is None or followed is None or not self._instances.is_other(newcomer):
            return ""
        if self._heard_at is None or time.monotonic() - self._heard_at > _FRESH_SECONDS:
            return ""
        return describe_twice(followed, newcomer)

    # -- acknowledging -----------------------------------------------------------------------------

    def _trouble(self) -> tuple[str, str]:
        failure = self._applier.failure or self._volume.failure
        if failure is not None:
            return FAILED, failure
        full = self._full or self._applier.full
        return (FULL, full) if full is not None else (OK, "")

    async def _acknowledge(self, connection: Connection) -> None:
        while True:
            await self._news.wait()
            self._news = trio.Event()
            applied_seq = self._applier.applied_seq
            durable_seq = self._durability.durable_seq
            state, detail = self._trouble()
            if state == OK:
                detail = self._instances.describe(trio.current_time()) or ""
            await connection.send(
                Ack(
                    self._volume.journal.head_seq,
                    durable_seq,
                    applied_seq,
                    state,
                    detail[:1000],
                    self._signatures.durable_seq,
                )
            )
            self._note_state(state)
            await trio.sleep(_ACK_PAUSE_SECONDS)

    def _note_state(self, state: str) -> None:
        if state == FULL:
            self.state = "mirror full"
        elif state == FAILED:
            self.state = "mirror failed"
        else:
            self.state = "streaming"
