"""Asking the peers before a primary takes changes, and taking entries back.

A primary whose system crashed may have lost entries that were acknowledged and not yet on its
disk, while a mirror has them. It takes what comes after its own end from the one that has most.

Any other start asks, too, but once and briefly (:meth:`LostEntryFetcher.look_round`), for what only
peers can know: that another reign has begun, that another instance of this node runs, or that this
volume was put back from an older copy, because then they have more than it. Nothing is taken back
then: an older copy may be what the admin wants; but a new epoch begins, so that no fid is given
twice.

The fetching side is a sink as a mirror is (wire/session.py); the other, :func:`serve_fetch`, is the
source and ships what it has on its disk. The entries are appended byte for byte, so that journal
and mirror are the same again; recovery then makes the backing what the whole journal says
(volume/reconcile/). A process that dies at it has so much more in its journal when it starts again.

With no peer in reach it is as configured: go on without, as a new epoch, or wait.

A peer is believed only what this node itself has shipped to a peer: its own signatures, which
peers keep (wire/signatures.py), have to vouch for what is taken back; so no mirror can write the
history of its primary. What they do not vouch for is not taken, and said. One that never said to
keep signatures is of the version before, and is believed."""

import logging
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import NamedTuple

import trio

from fusejournal.config import ReplicationConfig
from fusejournal.errors import FusejournalError, JournalError, WireError
from fusejournal.journal.format import FormatError
from fusejournal.journal.frame_range import FrameRange, FrameRangeReader, entries_in
from fusejournal.journal.handle_key import NO_HANDLE_KEY, HandleKey
from fusejournal.journal.journal import Journal
from fusejournal.journal.received import with_key
from fusejournal.journal.segment import BadFrameError
from fusejournal.replication.common_ancestor import (
    SILENCE_SECONDS,
    ChainFinder,
    DivergedError,
    answer_chains,
    find_common,
    first_error,
)
from fusejournal.replication.kept_signatures import Kept
from fusejournal.replication.peers import Peer, PeerBook
from fusejournal.types import Position, Seq
from fusejournal.volume.trouble import Trouble, TroubleKind
from fusejournal.volume.volume import Volume
from fusejournal.wire.batches import RAW, batch_of, frame_range_of
from fusejournal.wire.frames import Batch, Begin, Diverged, End, Hello, Welcome
from fusejournal.wire.identity import Identity
from fusejournal.wire.refusals import RefusalCode
from fusejournal.wire.session import (
    FETCH,
    WITNESS,
    Claim,
    HandshakeState,
    RefusedError,
    Sink,
    check_welcome,
    hello,
    position_of,
    welcome,
)
from fusejournal.wire.session_connection import SessionConnection
from fusejournal.wire.session_states import Side
from fusejournal.wire.signatures import SegmentSigner, SignatureCheck, signing_key
from fusejournal.wire.transport import connect

log = logging.getLogger(__name__)

_CONNECT_SECONDS = 10.0
_LOOK_SECONDS = 2.0
"""The time that a start waits for peers that may be away."""
_PAUSE_SECONDS = 1.0
_NOBODY = (
    "the system crashed, and no peer answered: entries that only they have are not here, and "
    "part their journals from this one"
)

_WAITS = (
    "no peer has answered yet: waiting for one, as 'without_peers' says; where none can, because "
    "all are gone for good, or each is a primary that waits as this one does, have the one that "
    'was promoted last go on: stop this start, and mount it with without_peers = "new-epoch"'
)


class UnsignedError(FusejournalError):
    """A peer hands back what this node has not signed."""


class FetchedEntries(NamedTuple):
    """The outcome of asking peers for the entries that a system crash took from this node."""

    failures: list[Trouble]
    """Things that could not be done."""
    held_seq: Seq
    """Entries up to here are known to have been applied."""
    new_epoch: str | None = None
    """The reason why a new epoch is to begin, in words, where one is."""
    fenced: Trouble | None = None
    """The reason why no change may be taken, where none may."""
    heard: frozenset[str] = frozenset()
    """The peers that reported what they hold, of which nothing was left there."""
    parted: frozenset[str] = frozenset()
    """The ones of them whose journal parts from this one's and is of a lower reign: it is of a
    history that lost, and nothing there is missing here."""


@dataclass
class LostEntryFetcher:
    """One attempt; see the module. *report* is called with a line that says what happens."""

    journal: Journal
    me: Callable[[], HandshakeState]
    config: ReplicationConfig
    identity: Identity
    book: PeerBook
    insecure: bool
    report: Callable[[str], None]
    bind: Callable[[Claim, str], Awaitable[str | None]]
    """Judges what a peer says of a higher reign. Returns why this node takes no change any more;
    None where it does."""
    reported: set[str] = field(default_factory=set)
    """Lines that this start has reported, and that say nothing of what it waits for."""
    _fence: RefusedError | None = field(default=None, init=False)
    _notices: list[Trouble] = field(default_factory=list, init=False)
    _held_seq: Seq = field(default=Seq(0), init=False)
    _heard: set[str] = field(default_factory=set, init=False)
    _lower: set[str] = field(default_factory=set, init=False)
    """Peers that have begun no reign as high as this node's journal."""
    _parted: set[str] = field(default_factory=set, init=False)
    """Peers whose journal parts from this node's."""

    @property
    def unheard(self) -> list[str]:
        """The peers that have not reported what they know of reigns."""
        return [peer.name for peer in self._peers() if peer.name not in self._heard]

    def _report_once(self, line: str) -> None:
        if line not in self.reported:
            self.reported.add(line)
            self.report(line)

    def _peers(self) -> list[Peer]:
        return [peer for peer in self.book.list() if peer.address is not None]

    async def run(self) -> FetchedEntries:
        """Bring into the journal what the peers have more. Cancelled, it leaves there what has
        come, durable. Raises JournalError when it cannot take that: the next start goes on;
        RefusedError when another node is primary now."""
        peers = self._peers()
        if not peers:
            return FetchedEntries([], Seq(0))
        positions = await self._ask_all(peers)
        if not positions:
            return FetchedEntries([Trouble(TroubleKind.NOT_TAKEN_BACK, _NOBODY)], Seq(0))
        heard = set(positions)
        failures = self._notices + [
            Trouble(
                TroubleKind.NOT_TAKEN_BACK,
                f"the system crashed, and peer {peer.name} did not answer: entries that only it "
                "has are not here, and part its journal from this one",
                peer.name,
            )
            for peer in peers
            if peer.name not in positions
        ]
        for name in sorted(positions, key=lambda name: positions[name].seq, reverse=True):
            if positions[name].seq > self.journal.head_seq and self.config.take_back == "never":
                words = (
                    f"peer {name} has entries up to {positions[name].seq}, and they are not taken "
                    "back, as 'take_back' says"
                )
                failures.append(Trouble(TroubleKind.NOT_TAKEN_BACK, words, name))
            elif positions[name].seq >= self.journal.head_seq:
                failure = await self._fetch_from(self.book.get(name), positions[name].seq)
                if failure is not None:
                    failures.append(Trouble(TroubleKind.NOT_TAKEN_BACK, failure, name))
                    heard.discard(name)
        parted = frozenset(self._parted & self._lower)
        return FetchedEntries(failures, self._held_seq, heard=parted.union(heard), parted=parted)

    async def look_round(self, seconds: float | None = None) -> FetchedEntries:
        """Ask all peers once, as far as they answer soon, or within *seconds*. Cancelling is
        harmless. Raises RefusedError when another node is primary now."""
        peers = self._peers()
        answers: dict[str, Welcome] = {}
        with trio.move_on_after(_LOOK_SECONDS if seconds is None else seconds):
            async with trio.open_nursery() as nursery:
                for peer in peers:
                    nursery.start_soon(self._ask_once, peer, answers, nursery.cancel_scope)
        if self._fence is not None:
            raise self._fence
        troubles: list[Trouble] = []
        new_epoch = None
        head_seq, epoch = self.journal.head_seq, self.journal.epoch
        for name, theirs in sorted(answers.items()):
            if theirs.detail:
                words = f"peer {name}: {theirs.detail}"
                troubles.append(Trouble(TroubleKind.RUNS_TWICE, words, name))
            if theirs.seq > head_seq and theirs.role != WITNESS:
                words = (
                    f"peer {name} has entries up to {theirs.seq}, and this journal ends with "
                    f"{head_seq}: this volume was put back from an older copy; what it lacks is in "
                    "the mirror's journal, and changes from now on part from that; if it is "
                    f"wanted, stop this volume, and fetch it there ('fusejournal replay')"
                )
                troubles.append(Trouble(TroubleKind.OLDER_COPY, words, name))
                if theirs.held_epoch in (0, epoch):
                    new_epoch = f"peer {name} has entries that are not here"
        for one in troubles:
            log.error("%s", one.text)
            self.report(one.text)
        return FetchedEntries(troubles, Seq(0), new_epoch, heard=frozenset(answers))

    async def _ask_once(
        self, peer: Peer, answers: dict[str, Welcome], everybody: trio.CancelScope
    ) -> None:
        try:
            async with await self._connect(peer) as session:
                answers[peer.name] = await self._greet(session)
                self._heard.add(peer.name)
        except* (FusejournalError, OSError, trio.TooSlowError) as group:
            error = first_error(group)
            log.info("peer %s: %s", peer.name, error)
            await self._heed(peer, error, everybody)

    async def _heed(self, peer: Peer, error: BaseException, everybody: trio.CancelScope) -> bool:
        """Returns True if *error*, from asking *peer*, speaks of a reign that ends this one."""
        if isinstance(error, RefusedError):
            self._heard.add(peer.name)
        if not (isinstance(error, RefusedError) and error.code is RefusalCode.FENCED):
            return False
        why = await self.bind(error.claim, peer.name) if error.claim is not None else None
        words = f"peer {peer.name}: {error}"
        if why is None:
            self._report_once(f"{words}: nothing there proves it, and it does not count")
            return False
        self._fence = RefusedError(RefusalCode.FENCED, f"{words}; {why}", error.claim)
        everybody.cancel()
        return True

    async def _ask_all(self, peers: list[Peer]) -> dict[str, Position]:
        """Returns where the journals end of those who answer: of all, or of those who do in time.
        Raises RefusedError."""
        positions: dict[str, Position] = {}
        waits = self.config.without_peers == "wait"
        seconds = self.config.take_back_seconds
        self._report_once(f"the system crashed: asking {', '.join(peer.name for peer in peers)}")
        while True:
            with trio.move_on_after(seconds):
                async with trio.open_nursery() as nursery:
                    for peer in peers:
                        nursery.start_soon(self._ask, peer, positions, nursery.cancel_scope)
            if self._fence is not None:
                raise self._fence
            if positions or not waits:
                return positions
            self.report(_WAITS)

    async def _ask(
        self, peer: Peer, positions: dict[str, Position], everybody: trio.CancelScope
    ) -> None:
        while True:
            try:
                async with await self._connect(peer) as session:
                    theirs = await self._greet(session)
                    position = position_of(theirs)
                    if theirs.role == WITNESS:  # it has no entries
                        position = position._replace(seq=Seq(0))
                    positions[peer.name] = position
                    if 0 < theirs.held_epoch < self.journal.epoch:
                        self._lower.add(peer.name)
                    self._heard.add(peer.name)
                    if theirs.detail:
                        words = f"peer {peer.name}: {theirs.detail}"
                        notice = Trouble(TroubleKind.RUNS_TWICE, words, peer.name)
                        self._notices.append(notice)
                    return
            except* (FusejournalError, OSError, trio.TooSlowError) as group:
                error = first_error(group)
            log.info("peer %s: %s", peer.name, error)
            if await self._heed(peer, error, everybody):
                return
            await trio.sleep(_PAUSE_SECONDS)

    async def _fetch_from(self, peer: Peer, upto_seq: Seq) -> str | None:
        """Get what *peer* has more, again and again while that helps. Returns what went wrong."""
        first_seq = self.journal.head_seq + 1
        if first_seq <= upto_seq:
            self.report(f"taking entries {first_seq} to {upto_seq} back from {peer.name}")
        ends = trio.current_time() + self.config.take_back_seconds
        while True:
            before = self.journal.head_seq
            try:
                await self._fetch(peer, upto_seq)
                if first_seq <= upto_seq:
                    self.report(f"took entries back: the journal ends with {self.journal.head_seq}")
                return None
            except* JournalError:
                raise
            except* (FusejournalError, OSError, trio.TooSlowError) as group:
                error = first_error(group)
            why = f"peer {peer.name}: {error}"
            if first_seq <= upto_seq:
                why += (
                    f": of entries {first_seq} to {upto_seq}, which it has, those from "
                    f"{self.journal.head_seq + 1} on were not taken back"
                )
            self.report(why)
            if isinstance(error, DivergedError):
                self._parted.add(peer.name)
            if isinstance(error, DivergedError | UnsignedError):
                return why
            if self.journal.head_seq > before:
                ends = trio.current_time() + self.config.take_back_seconds
            if trio.current_time() > ends and self.config.without_peers != "wait":
                return why
            await trio.sleep(_PAUSE_SECONDS)

    async def _connect(self, peer: Peer) -> SessionConnection:
        assert peer.address is not None
        connection = await connect(
            peer.address,
            self.identity,
            peer.certificate,
            insecure=self.insecure,
            timeout_seconds=_CONNECT_SECONDS,
        )
        return SessionConnection(connection, Side.CONNECTOR)

    async def _greet(self, session: SessionConnection) -> Welcome:
        me = self.me()
        with trio.fail_after(SILENCE_SECONDS):
            await session.send(hello(me, FETCH))
            return check_welcome(me, await session.receive())

    async def _fetch(self, peer: Peer, upto_seq: Seq) -> None:
        """Append what *peer* has more, which should be up to *upto_seq*."""
        journal = self.journal
        chains = ChainFinder(journal.directory, journal.uuid)
        async with await self._connect(peer) as session:
            await self._greet(session)
            me = self.me()
            sink = Sink(journal.head, *me.reign)
            check = self._check(peer)
            message = await answer_chains(session, chains)
            if isinstance(message, Diverged):
                raise DivergedError(peer.name, message.seq, journal.head_seq, upto_seq)
            if isinstance(message, Begin):
                sink.begin(message)
                session.connection.expect_batches()
                try:
                    message = await self._take_batches(session, sink, check)
                finally:
                    await self._keep()
            if message.seq <= journal.head_seq:
                self._held_seq = max(self._held_seq, message.seq)
        if check is not None and check.held:
            raise UnsignedError(
                f"entries {check.held[0].first_seq} to {check.held[-1].last_seq} are not what this "
                'node has shipped: nothing it has signed vouches for them (take_back = "any" '
                "would take them all the same)"
            )
        if journal.head_seq < upto_seq:
            raise WireError(f"it gave entries up to {journal.head_seq} only")

    async def _take_batches(
        self, session: SessionConnection, sink: Sink, check: SignatureCheck | None
    ) -> End:
        """Append what follows in *sink* and *check* vouches for, and return what comes at its
        end."""
        journal = self.journal
        while True:
            with trio.fail_after(SILENCE_SECONDS):
                message: Batch | End = await session.receive()
            if isinstance(message, End):
                return message
            if not sink.take(message):
                continue
            key = journal.handle_key if journal.head_seq else NO_HANDLE_KEY
            good = [await trio.to_thread.run_sync(_readable, message, key)]
            if check is not None:
                good = await trio.to_thread.run_sync(check.take, good[0], message.signature)
            for one in good:
                journal.receive(one)
            sink.appended(message)

    def _check(self, peer: Peer) -> SignatureCheck | None:
        """Returns what has to vouch for what *peer* hands back; None where nothing has to."""
        if self.config.take_back == "any":
            return None
        if not peer.keeps_signatures:
            self.report(
                f"peer {peer.name} keeps no signatures, as the version before: it is believed"
            )
            return None
        journal = self.journal
        return SignatureCheck(
            SegmentSigner(signing_key(self.identity), journal.uuid, journal.directory)
        )

    async def _keep(self) -> None:
        """Make durable what has come, and let what this node appends be later."""
        journal = self.journal
        with trio.CancelScope(shield=True):
            await trio.to_thread.run_sync(journal.sync)
        for last in journal.reader.read(journal.head_seq, Seq(journal.head_seq + 1)):
            journal.follow(last.time_ns)


def _readable(batch: Batch, handle_key: HandleKey) -> FrameRange:
    """Returns the range in *batch*, of which every entry can be read, as a journal with
    *handle_key* has it. Raises WireError."""
    frame_range = frame_range_of(batch)
    try:
        for _ in entries_in(frame_range):
            pass
        return with_key(frame_range, handle_key)
    except (BadFrameError, FormatError) as error:
        raise WireError(f"entries {batch.first_seq} to {batch.last_seq}: {error}") from None


async def serve_fetch(
    session: SessionConnection,
    greeting: Hello,
    me: HandshakeState,
    volume: Volume,
    upto_seq: Seq,
    held_seq: Seq,
    bytes_max: int,
    signatures: list[Kept],
    detail: str = "",
) -> None:
    """Ship, as the other side, what comes after the greeter's end. Cancelling ends the session.

    Args:
        session, greeting: with the greeter, and what it said.
        me, volume: of this node.
        upto_seq, held_seq: the last entry that is shipped, and that is known to be applied.
        bytes_max, signatures: the size of a batch, which ends where there is one of these.
        detail: what the greeter should know, in words.

    Raises WireError, JournalError."""
    await session.send(welcome(me, greeting, is_mirror=True, detail=detail))
    reign = me.reign
    journal = volume.journal
    theirs = position_of(greeting)
    if upto_seq < theirs.seq:
        await session.send(End(Seq(0)))
        return
    chains = ChainFinder(journal.directory, journal.uuid)
    agreed_seq = await find_common(session, chains, upto_seq, theirs)
    if agreed_seq != theirs.seq:
        await session.send(Diverged(agreed_seq, upto_seq))
        return
    if agreed_seq + 1 < (first_seq := await chains.first_seq()):
        why = f"entry {agreed_seq + 1} is not in the journal of {me.node} any more, which begins"
        raise RefusedError(RefusalCode.COPY, f"{why} with {first_seq}")
    reader = FrameRangeReader(journal.directory, journal.uuid)
    try:
        chain = await trio.to_thread.run_sync(reader.seek, agreed_seq)
        committed_seq = await trio.to_thread.run_sync(reader.committed_seq, journal.end)
        await session.send(
            Begin(reign.epoch, agreed_seq, chain, upto_seq, committed_seq, reign.node_id)
        )
        waiting = deque(signatures)
        while True:
            while waiting and waiting[0].seq < reader.seq:
                waiting.popleft()
            to_seq = min(upto_seq, waiting[0].seq) if waiting else upto_seq
            frame_range = await trio.to_thread.run_sync(reader.next, journal.end, to_seq, bytes_max)
            if frame_range is None:
                if to_seq == upto_seq:
                    break
                waiting.popleft()  # of another history: it would part an entry from its VOID
                continue
            is_signed = bool(waiting) and frame_range.last_seq == waiting[0].seq
            signature = waiting[0].signature if is_signed else b""
            await session.send(
                batch_of(
                    frame_range,
                    RAW,
                    frame_range.content,
                    reign.epoch,
                    upto_seq,
                    upto_seq,
                    reign.node_id,
                )._replace(signature=signature)
            )
    finally:
        reader.close()
    await session.send(End(held_seq))
