"""One session of a receiver: the way of a batch from the connection into the journal, to the disk
and to the applier, and the acknowledgement.

Read it from the top: a batch comes; it is checked, its reign is on the disk, its signature is kept,
it is appended, it is noted how far the primary had applied it, and it is flushed; then the applier
is woken; then it is acknowledged. Nothing of a batch counts before it is whole in the journal.
Several are on this way at once, because the next comes while the last is flushed.

A journal without space is tried again for a while; then the session is refused, and so is every
other until there is space for what did not fit.

Used from the event loop's thread; large batches are checked in a thread of their own."""

import logging
from collections.abc import Callable
from dataclasses import dataclass

import trio

from fusejournal.errors import FusejournalError, JournalFailedError, JournalFullError
from fusejournal.journal.frame_range import FrameRange
from fusejournal.journal.watermarks import WatermarkPage
from fusejournal.replication.common_ancestor import SILENCE_SECONDS
from fusejournal.replication.fence import Fence
from fusejournal.replication.kept_signatures import KeptSignatures
from fusejournal.replication.member_record import MemberRecord
from fusejournal.replication.mirror_applier import MirrorApplier
from fusejournal.replication.mirror_space import MirrorSpace
from fusejournal.replication.primary_record import PrimaryRecord
from fusejournal.replication.states import MirrorEvent
from fusejournal.replication.wakeup import Wakeup
from fusejournal.types import Reign
from fusejournal.volume.durability import Durability
from fusejournal.volume.volume import Volume
from fusejournal.wire.batches import frame_range_of
from fusejournal.wire.frames import Ack, Batch, MembersReport, Ping
from fusejournal.wire.instances import Instances
from fusejournal.wire.session import FAILED, FULL, OK, Sink, check_members
from fusejournal.wire.session_connection import SessionConnection

log = logging.getLogger(__name__)

_FULL_PAUSE_SECONDS = 1.0
_FULL_PATIENCE_SECONDS = 5.0
_SMALL_BYTES = 128 << 10
_ACK_PAUSE_SECONDS = 0.002
_LIFE_SECONDS = 10.0
"""The time after which the sender hears of this side, while a message takes longer to come."""
_ACKED = {
    OK: MirrorEvent.ACKED,
    FULL: MirrorEvent.ACKED_FULL,
    FAILED: MirrorEvent.ACKED_FAILED,
}


@dataclass(frozen=True)
class Receiving:
    """The parts of a mirror that all its sessions share."""

    volume: Volume
    watermarks: WatermarkPage
    fence: Fence
    durability: Durability
    applier: MirrorApplier
    signatures: KeptSignatures
    space: MirrorSpace
    record: PrimaryRecord
    instances: Instances
    wakeup: Wakeup
    """Set when the sender should know of a change here."""
    members: MemberRecord

    def trouble(self) -> tuple[str, str]:
        """Returns the state of an ACK, and what is wrong in words."""
        failure = self.applier.failure or self.volume.failure
        if failure is not None:
            return FAILED, str(failure)
        full = self.space.full or self.applier.full
        return (FULL, full) if full is not None else (OK, "")

    def raise_fence(self, reign: Reign) -> bool:
        """Write down *reign*, which was seen. Returns True if it is another than before. Raises
        RefusedError on a full disk: the next session reports it again."""
        with self.space.refusing_without("the watermarks"):
            return self.fence.note(reign)

    def note_committed(self, sink: Sink) -> None:
        """Write down how far the sender had applied what is here. Raises RefusedError on a full
        disk."""
        with self.space.refusing_without("the watermarks"):
            self.watermarks.write_committed(max(self.watermarks.committed_seq, sink.committed_seq))


class ReceiveSession:
    """Receives in *session* what follows in *sink*. *on_heard* is called when the sender has sent
    something, or is at it."""

    def __init__(
        self,
        session: SessionConnection,
        sink: Sink,
        receiving: Receiving,
        on_heard: Callable[[], None],
    ) -> None:
        self._session = session
        self._sink = sink
        self._receiving = receiving
        self._on_heard = on_heard

    async def run(self) -> None:
        """Receive until the sender ends it. Cancelling ends the session; what was appended stays.
        Raises RefusedError, WireError, FusejournalError, OSError, trio.TooSlowError."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(acknowledge, self._session, self._receiving)
            await self._receive()
            nursery.cancel_scope.cancel()

    # -- 1. it comes -------------------------------------------------------------------------------

    async def _receive(self) -> None:
        record = self._receiving.record
        while (message := await self._next()) is not None:
            self._on_heard()
            if isinstance(message, MembersReport):
                await self._keep_members(message)
                continue
            if isinstance(message, Batch):
                await self._take(message)
            record.heard_of(message.head_seq)
            self._receiving.wakeup.set()

    async def _keep_members(self, message: MembersReport) -> None:
        """Have on the disk which nodes count, and acknowledge that. On a full disk it is not
        acknowledged. Raises WireError."""
        members = self._receiving.members
        if not members.note(check_members(message.members, self._sink.reign)):
            return
        try:
            await members.save()
        except FusejournalError as error:  # as a full disk is: it is tried again now and then
            log.warning("%s", error)
        self._receiving.wakeup.set()

    async def _next(self) -> Batch | Ping | MembersReport | None:
        """Returns the next message, which may take as long as it will while something comes; None
        at the end. Raises trio.TooSlowError when nothing does."""
        connection = self._session.connection
        received_bytes, heard_at = connection.bytes_received, trio.current_time()
        while True:
            with trio.move_on_after(_LIFE_SECONDS):
                message: Batch | Ping | MembersReport | None = await self._session.receive_or_end()
                return message
            if connection.bytes_received > received_bytes:
                received_bytes, heard_at = connection.bytes_received, trio.current_time()
                self._on_heard()
                self._receiving.wakeup.set()
            elif trio.current_time() - heard_at > SILENCE_SECONDS:
                raise trio.TooSlowError(f"no word for {SILENCE_SECONDS:g} s")

    # -- 2. it is checked, appended, flushed -------------------------------------------------------

    async def _take(self, batch: Batch) -> None:
        """Bring *batch* into the journal, and have that flushed. Cancelled, it is in the journal
        wholly or not at all. Raises as :meth:`run`."""
        mirror, record, sink = self._receiving, self._receiving.record, self._sink
        if not sink.take(batch):
            record.passed_over()
            return
        if batch.content_bytes > _SMALL_BYTES:
            frame_range = await trio.to_thread.run_sync(frame_range_of, batch)
        else:
            frame_range = frame_range_of(batch)
        mirror.raise_fence(sink.reign)
        await mirror.fence.make_durable(mirror.durability.flush_watermarks)
        if batch.signature:
            # Before the batch, because what is acknowledged has its signature on the disk. (A full
            # disk refuses that only where files are not written in place.)
            with mirror.space.refusing_without("a signature"):
                mirror.signatures.keep(batch.last_seq, batch.signature)
        await self._append(frame_range)
        sink.appended(batch)
        mirror.note_committed(sink)
        record.took(len(batch.content))
        if mirror.durability.flush_if_quick() is None:
            mirror.durability.want()
        await trio.lowlevel.checkpoint()

    async def _append(self, frame_range: FrameRange) -> None:
        """Append *frame_range*, if there is, or soon will be, space. Raises RefusedError when
        not."""
        mirror = self._receiving
        ends = trio.current_time() + _FULL_PATIENCE_SECONDS
        while True:
            try:
                mirror.volume.journal.receive(frame_range)
            except JournalFullError as error:
                if mirror.space.full is None:
                    log.warning("%s: waiting for space", error)
                refusal = mirror.space.lacks(str(error), len(frame_range.content))
                if trio.current_time() > ends:
                    raise refusal from None
                await trio.sleep(_FULL_PAUSE_SECONDS)
            except JournalFailedError as error:
                mirror.volume.fail(str(error))
                raise
            else:
                mirror.space.suffices()
                return


# -- 3. it is on the disk, by this flush or another, and whether or not the session goes on --------


async def follow_flushes(receiving: Receiving) -> None:
    """Has what is durable applied and acknowledged after each flush, until cancelled."""
    while True:
        await receiving.durability.next_flush()
        receiving.applier.wake()
        receiving.wakeup.set()


# -- 4. it is acknowledged -------------------------------------------------------------------------


async def acknowledge(session: SessionConnection, receiving: Receiving) -> None:
    """Report each change here to the sender in *session*, until cancelled."""
    while True:
        await receiving.wakeup.wait()
        applied_seq = receiving.applier.applied_seq
        durable_seq = receiving.durability.durable_seq
        state, detail = receiving.trouble()
        if state == OK:
            detail = receiving.instances.describe(trio.current_time()) or ""
        await session.send(
            Ack(
                receiving.volume.journal.head_seq,
                durable_seq,
                applied_seq,
                state,
                detail[:1000],
                receiving.signatures.durable_seq,
                receiving.members.version_on_disk(receiving.fence.seen),
            )
        )
        receiving.record.note(_ACKED[state])
        await trio.sleep(_ACK_PAUSE_SECONDS)
