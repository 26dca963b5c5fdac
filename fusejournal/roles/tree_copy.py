"""Copies the tree of a peer into this node's store: the mirror's side of a session with purpose
``whole`` (wire/block_messages.py), and the beginning of the journal behind it.

What has come is in the store, in packs with an index, every few seconds: a copy that is stopped, on
either side or by the link, asks only for the rest when it is begun again. Several questions are
under way at a time, so the link does not wait for answers. Blocks are checked by their ids; the
version's own object is put last, when all is there and makes one tree (versions/agreement.py).

Runs in a process of its own, and may block."""

import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final, NamedTuple

import trio

from fusejournal.errors import PeerLostError
from fusejournal.journal.base import JournalBase
from fusejournal.journal.journal import Journal
from fusejournal.journal.segment_writer import JournalOptions
from fusejournal.objects.store import ObjectStore
from fusejournal.replication.common_ancestor import SILENCE_SECONDS
from fusejournal.replication.peers import Peer
from fusejournal.roles.rejoin import RejoinError
from fusejournal.types import Epoch, Position, Reign, StageProgress
from fusejournal.versions.agreement import check_agreement
from fusejournal.versions.block_source import OfferedTree
from fusejournal.versions.blocks import BlockWriter
from fusejournal.versions.creators import check_registered, open_plan, register, unregister
from fusejournal.versions.manifest import Version, put_version
from fusejournal.versions.missing_blocks import MissingBlocks
from fusejournal.versions.trees import Trees
from fusejournal.wire.batches import frame_range_of
from fusejournal.wire.block_messages import (
    AskTree,
    Blocks,
    TreeProgress,
    TreeReport,
    is_last_report,
    report_fields,
)
from fusejournal.wire.frames import AskChains, Batch, Begin, Diverged, End, Welcome, WireError
from fusejournal.wire.identity import Identity
from fusejournal.wire.session import (
    FETCH,
    WHOLE,
    HandshakeState,
    Sink,
    check_followed,
    hello,
    reign_of,
)
from fusejournal.wire.session_connection import SessionConnection
from fusejournal.wire.session_states import Side
from fusejournal.wire.transport import connect
from fusejournal.wire.versions import WHOLE_VERSION, common_version, versions_of

_CONNECT_SECONDS: Final = 10.0
_QUESTIONS: Final = 8
"""Questions under way at a time."""
_KEEP_SECONDS: Final = 5.0


class Fetched(NamedTuple):
    """The amount that a copy has fetched."""

    blocks: int
    bytes: int


class TreeCopy:
    """Copies from *peer*, as the node *me*. *insecure*: a peer without a certificate is called in
    plain."""

    def __init__(
        self,
        peer: Peer,
        me: HandshakeState,
        identity: Identity,
        progress: StageProgress,
        *,
        insecure: bool,
    ) -> None:
        self._peer = peer
        self._me = me
        self._identity = identity
        self._progress = progress
        self._insecure = insecure
        self.node = peer.name
        """The name by which the peer calls itself."""
        self.reign = Reign(Epoch(0), 0)
        """The reign that the peer goes by, once :meth:`ask` has returned."""

    # -- the tree ----------------------------------------------------------------------------------

    async def ask(self) -> OfferedTree:
        """Returns what the peer has. Cancelling is harmless. Raises RefusedError, RejoinError,
        WireError, PeerLostError, StoreError, trio.TooSlowError."""
        async with await self._open(WHOLE) as session:
            return await self._ask_tree(session, make=False)

    async def fetch(
        self,
        store: ObjectStore,
        own: Trees | None,
        made_by: str,
        check_room: Callable[[Version], None],
    ) -> tuple[OfferedTree, Fetched]:
        """Has the version that the peer makes now be in *store*, whole. Cancelled, or on an error,
        what has come stays, for the next.

        Args:
            store, made_by: the store, and the name of the node that writes to it.
            own: the trees of a version that is there.
            check_room: called with the version before any of it has come; may refuse it by an
                exception.

        Returns what the peer offers, which may be no version, and what was fetched. Raises as
        :meth:`ask`, and BusyError, StoreFullError, StoreDamagedError where it is no tree."""
        async with await self._open(WHOLE) as session:
            session.connection.expect_batches()
            offered = await self._ask_tree(session, make=True)
            if offered.version is None:
                return offered, Fetched(0, 0)
            check_room(offered.version)
            worker = register(store, "creator", made_by)
            try:
                plan = open_plan(store)
                blocks = BlockWriter(store, plan[1] if plan is not None else frozenset())
                fetched = await self._fetch_blocks(session, blocks, offered.version, own)
                check_agreement(blocks, offered.version, own, self._report_check)
                check_registered(store, worker)
                put_version(store, offered.version)
                blocks.merge_indexes()
                return offered, fetched
            finally:
                unregister(store, worker)

    async def _open(self, purpose: str) -> SessionConnection:
        """Connects and greets."""
        peer = self._peer
        assert peer.any_address is not None
        connection = await connect(
            peer.any_address,
            self._identity,
            peer.certificate,
            insecure=self._insecure,
            timeout_seconds=_CONNECT_SECONDS,
        )
        session = SessionConnection(connection, Side.CONNECTOR)
        try:
            with trio.fail_after(SILENCE_SECONDS):
                await session.send(hello(self._me, purpose))
                answer: Welcome | None = await session.receive_or_end()
            if answer is None:
                raise PeerLostError(session.where, "the other side closed the connection")
            theirs = check_followed(self._me, answer)
            version = common_version(self._me.versions, versions_of(theirs))
            if purpose == WHOLE and (version or 0) < WHOLE_VERSION:
                raise self._is_older()
            self.node, self.reign = theirs.node, reign_of(theirs)
        except BaseException as error:
            with trio.CancelScope(shield=True):
                await session.aclose()
            if isinstance(error, PeerLostError) and purpose == WHOLE:
                raise self._is_older() from None
            raise
        return session

    def _is_older(self) -> RejoinError:
        return RejoinError(
            f"{self._peer.name} ended the connection when it was asked for a copy of its tree: see "
            "its log; if it is of release 0.1.0, upgrade it first"
        )

    async def _ask_tree(self, session: SessionConnection, *, make: bool) -> OfferedTree:
        await session.send(AskTree(int(make)))
        while True:
            with trio.fail_after(SILENCE_SECONDS):
                told: TreeReport = await session.receive()
            if is_last_report(told):
                break
            self._progress(f"{self.node} makes a version", *TreeProgress.of(told), "entries")
        offered = OfferedTree.from_fields(session.where, report_fields(told))
        version, uuid = offered.version, self._me.uuid
        if version is not None and uuid is not None and version.uuid != uuid:
            raise WireError(f"{session.where}: a tree of volume {version.uuid}, not of {uuid}")
        return offered

    async def _fetch_blocks(
        self, session: SessionConnection, blocks: BlockWriter, version: Version, own: Trees | None
    ) -> Fetched:
        walk = MissingBlocks(blocks, version, own, lambda: self._report(walk, version))
        kept_at = time.monotonic()
        try:
            while True:
                while len(walk) < _QUESTIONS and (asked := walk.next_question()) is not None:
                    await session.send(asked)
                    self._report(walk, version)
                if walk.is_done:
                    break
                with trio.fail_after(SILENCE_SECONDS):
                    answer: Blocks = await session.receive()
                walk.take(answer)
                self._report(walk, version)
                if time.monotonic() > kept_at + _KEEP_SECONDS:
                    blocks.finish()
                    blocks.merge_indexes()
                    kept_at = time.monotonic()
        finally:
            blocks.finish()
        return Fetched(walk.fetched_blocks, walk.fetched_bytes)

    def _report_check(self) -> None:
        self._progress("checking the tree", 0, None, "files")

    def _report(self, walk: MissingBlocks, version: Version) -> None:
        words = f"fetching the tree ({walk.fetched_bytes / 1e6:,.0f} MB so far)"
        self._progress(words, walk.files, version.file_count, "files")

    # -- the journal behind it ---------------------------------------------------------------------

    async def fetch_segment(self, directory: Path, base: JournalBase) -> None:
        """Makes *directory* a journal that begins behind *base*, with the first entries that the
        peer has there; durable. What there is more, comes to the mirror as ever.
        Cancelled, *directory* is to be made anew. Raises as :meth:`ask`, and JournalError,
        OSError."""
        shutil.rmtree(directory, ignore_errors=True)
        directory.mkdir(mode=0o700)
        position = Position(base.epoch, base.seq, base.chain)
        me = self._me
        self._me = me._replace(uuid=base.uuid, position=position, applied_seq=base.seq)
        journal = Journal(directory, base.uuid, JournalOptions(), after=position)
        try:
            async with await self._open(FETCH) as session:
                batch = await _first_batch(session, Sink(position, *me.reign))
                journal.receive(await trio.to_thread.run_sync(frame_range_of, batch))
            await trio.to_thread.run_sync(journal.sync)
        finally:
            self._me = me
            journal.close()


async def _first_batch(session: SessionConnection, sink: Sink) -> Batch:
    """Returns the batch that follows in *sink*, where the source goes on from there. Raises
    RefusedError, WireError, PeerLostError, trio.TooSlowError."""
    with trio.fail_after(SILENCE_SECONDS):
        begin: AskChains | Begin | Diverged | End = await session.receive()
    if isinstance(begin, Begin):
        sink.begin(begin)
        session.connection.expect_batches()
        with trio.fail_after(SILENCE_SECONDS):
            batch: Batch | End = await session.receive()
        if isinstance(batch, Batch) and sink.take(batch):
            return batch
    raise WireError(f"{session.where}: its journal does not go on from there")
