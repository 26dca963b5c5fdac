"""One session of a shipper: greet, compare positions, then batches as the journal grows and
acknowledgements as they come, several batches in flight.

Frames are read as they lie in the segments, after they were applied, so a slow or dead peer costs
nothing but the disk that its backlog takes. Whatever was not acknowledged is sent again in the next
session, from the position that the peer itself reports. Two peers that are one node are one: the
second is not shipped to.

Reading and compressing a large batch is done in a thread, a small one at once, because handing it
over would take longer. Used from the event loop's thread."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

import trio

from fusejournal.errors import FusejournalError, NoSuchSeqError
from fusejournal.journal.frame_range import FrameRange, FrameRangeReader
from fusejournal.replication.common_ancestor import (
    SILENCE_SECONDS,
    ChainFinder,
    DivergedError,
    find_common,
)
from fusejournal.replication.peer_facts import facts_of
from fusejournal.replication.peer_record import PeerRecord
from fusejournal.replication.retention import Retention
from fusejournal.replication.shipping import Shipping
from fusejournal.types import Seq
from fusejournal.wire.batches import batch_of, compress
from fusejournal.wire.frames import (
    Ack,
    Begin,
    Diverged,
    MembersReport,
    Ping,
    Refusal,
    Welcome,
    WireError,
)
from fusejournal.wire.refusals import RefusalCode
from fusejournal.wire.session import (
    MIRROR,
    OK,
    SHIP,
    WITNESS,
    RefusedError,
    Source,
    check_welcome,
    hello,
    position_of,
)
from fusejournal.wire.session_connection import SessionConnection
from fusejournal.wire.signatures import SegmentSigner, signing_key

PING_SECONDS = 2.0
_SMALL_BYTES = 64 << 10
_MEMBERS_SECONDS = 0.05
"""The delay with which it gets what members hold, all at once."""


class BehindError(FusejournalError):
    """A mirror that would ship on, and a peer that has all that it has, and more."""

    def __init__(self, node: str, my_head: Seq, their_head: Seq) -> None:
        super().__init__(
            f"{node} has entries up to {their_head}, and this mirror up to {my_head}: there is "
            "nothing to ship to it from here yet"
        )


class ShipSession:
    """Ships in *session*, until that ends."""

    def __init__(
        self,
        session: SessionConnection,
        record: PeerRecord,
        shipping: Shipping,
        retention: Retention,
    ) -> None:
        self._session = session
        self._record = record
        self._shared = shipping
        self._retention = retention
        self._signer = SegmentSigner(
            signing_key(shipping.identity), shipping.volume.journal.uuid, shipping.directory
        )
        self._room = trio.Event()

    async def run(self) -> None:
        """Ship until the connection or the session ends. Cancelling ends the session. Raises
        RefusedError, DivergedError, NoSuchSeqError where the peer lacks what is gone, WireError,
        FusejournalError, OSError, trio.TooSlowError."""
        theirs = await self._greet()
        with self._alone(theirs):
            self._shared.note_witness(self._record.name, theirs.role == WITNESS)
            if theirs.role == WITNESS:
                await self._inform()
            else:
                await self._ship_from(await self._agree(theirs))

    # -- before the first batch --------------------------------------------------------------------

    async def _greet(self) -> Welcome:
        me = self._shared.me()
        with trio.fail_after(SILENCE_SECONDS):
            await self._session.send(hello(me, SHIP))
            theirs = check_welcome(me, await self._session.receive())
        self._record.greeted(facts_of(theirs, me))
        return theirs

    @contextmanager
    def _alone(self, theirs: Welcome) -> Iterator[None]:
        """Ship to the node that answered under this one name. Raises RefusedError where it is
        shipped to under another."""
        nodes, node_id = self._shared.nodes, theirs.node_id
        if (name := nodes.get(node_id)) is not None:
            reason = f"{theirs.node} is shipped to as peer {name} already, and counts once"
            raise RefusedError(RefusalCode.TWICE, reason)
        if node_id:
            nodes[node_id] = self._record.name
        try:
            yield
        finally:
            nodes.pop(node_id, None)

    async def _agree(self, theirs: Welcome) -> Seq:
        """Find where the peer's journal ends in this one."""
        shared, session = self._shared, self._session
        # Not only what is applied: after a loss, a mirror of this mirror may have more of it.
        head_seq = shared.volume.journal.head_seq
        chains = ChainFinder(shared.directory, shared.volume.journal.uuid)
        agreed_seq = await find_common(session, chains, head_seq, position_of(theirs))
        is_ahead = agreed_seq == head_seq < theirs.seq
        is_newer = theirs.held_epoch > shared.volume.journal.epoch
        if shared.me().role == MIRROR and (is_ahead or is_newer):
            # It is behind, and the other has what the primary of both has sent.
            raise BehindError(theirs.node, head_seq, theirs.seq)
        if agreed_seq != theirs.seq:
            chain, next_chain = await chains.at((agreed_seq, Seq(agreed_seq + 1)))
            await session.send(Diverged(agreed_seq, head_seq, chain or 0, next_chain or 0))
            raise DivergedError(theirs.node, agreed_seq, head_seq, theirs.seq)
        first = shared.volume.journal.reader.first_seq
        if agreed_seq + 1 < first:
            why = f"its next entry, {agreed_seq + 1}, is not in the journal any more"
            if shared.volume.journal.reader.base is not None:
                why += f", which was pruned and begins with {first}"
            why += (
                ": this mirror needs a copy of the tree: umount it, 'fusejournal rejoin', mount it"
            )
            await session.send(Refusal(RefusalCode.COPY.value, why))
            raise NoSuchSeqError(agreed_seq + 1, first, head_seq)
        self._record.look_for_loss(theirs.seq)
        return agreed_seq

    async def _inform(self) -> None:
        """Report to a witness, which takes no entries, who counts."""
        if self._shared.membership is None:
            raise RefusedError(RefusalCode.ROLE, "this is a mirror, and tells a witness nothing")
        source = Source(Seq(0), self._shared.config.window_bytes)
        self._record.begin(source, self._shared.applied_seq)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._take_acks, source)
            nursery.start_soon(self._ping)
            await self._send_members()

    async def _ship_from(self, seq: Seq) -> None:
        """Begin after entry *seq*."""
        shared = self._shared
        reign = shared.me().reign
        reader = FrameRangeReader(shared.directory, shared.volume.journal.uuid)
        try:
            chain = await trio.to_thread.run_sync(reader.seek, seq)
            committed_seq = await trio.to_thread.run_sync(
                reader.committed_seq, shared.volume.journal.end
            )
            head_seq = shared.applied_seq
            await self._session.send(
                Begin(reign.epoch, seq, chain, head_seq, committed_seq, reign.node_id)
            )
            source = Source(seq, shared.config.window_bytes)
            self._record.begin(source, head_seq)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._take_acks, source)
                nursery.start_soon(self._ping)
                if self._record.facts.sends_members:
                    nursery.start_soon(self._send_members)
                await self._ship(reader, source)
        finally:
            reader.close()

    # -- batches -----------------------------------------------------------------------------------

    async def _ship(self, reader: FrameRangeReader, source: Source) -> None:
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
                await self._send(source, frame_range)

    async def _read(self, reader: FrameRangeReader) -> FrameRange | None:
        shared = self._shared
        end, applied_seq = shared.volume.journal.end, shared.applied_seq
        bytes_max = shared.config.batch_bytes
        if reader.is_near(end, _SMALL_BYTES):
            await trio.lowlevel.checkpoint()
            return reader.next(end, applied_seq, bytes_max)
        return await trio.to_thread.run_sync(reader.next, end, applied_seq, bytes_max)

    async def _send(self, source: Source, frame_range: FrameRange) -> None:
        shared, record, connection = self._shared, self._record, self._session.connection
        size = len(frame_range.content)
        level = record.compression.level_for(size)
        began = time.perf_counter()
        if size < _SMALL_BYTES or not level:
            method, content = compress(frame_range.content, level)
        else:
            method, content = await trio.to_thread.run_sync(compress, frame_range.content, level)
        took = time.perf_counter() - began if level else 0.0
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
        await self._session.send(batch)
        blocked_seconds = connection.send_blocked_seconds - blocked
        record.compression.took(size, len(content), took, blocked_seconds)
        record.sent(frame_range.first_seq, frame_range.last_seq, size, len(content))

    async def _sign(self, frame_range: FrameRange) -> bytes:
        if len(frame_range.content) < _SMALL_BYTES and self._signer.follows(frame_range):
            return self._signer.sign(frame_range)
        return await trio.to_thread.run_sync(self._signer.sign, frame_range)

    # -- beside them -------------------------------------------------------------------------------

    async def _take_acks(self, source: Source) -> None:
        while True:
            with trio.move_on_after(SILENCE_SECONDS) as waiting:
                ack: Ack = await self._session.receive()
            if waiting.cancelled_caught:
                raise WireError(f"{self._session.where}: no word for {SILENCE_SECONDS:g} s")
            source.acked(ack)
            if ack.state == OK:
                self._retention.takes()
            else:
                self._retention.takes_nothing()
            self._record.acked(ack, source)
            self._room.set()

    async def _send_members(self) -> None:
        told: tuple[int, ...] = ()
        while True:
            if told := await self._shared.members.wait_past(told):
                await self._session.send(MembersReport(told))
            await trio.sleep(_MEMBERS_SECONDS)

    async def _ping(self) -> None:
        while True:
            await trio.sleep(PING_SECONDS)
            shared = self._shared
            await self._session.send(Ping(shared.applied_seq, shared.volume.journal.head_seq))
