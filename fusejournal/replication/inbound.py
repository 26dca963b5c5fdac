"""Peers that connect to this node: each says what it wants, and gets it, once what it claims of a
higher reign is judged.

Used from the event loop's thread, by one task a session."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Protocol

import trio

from fusejournal.address import Address, parse_address
from fusejournal.errors import (
    FusejournalError,
    JournalFailedError,
)
from fusejournal.replication.common_ancestor import first_error
from fusejournal.replication.fence import comes_from_primary
from fusejournal.replication.fetch_lost import serve_fetch
from fusejournal.replication.kept_signatures import KeptSignatures
from fusejournal.replication.local_node import LocalNode
from fusejournal.replication.receiver import Receiver
from fusejournal.replication.reception import Reception
from fusejournal.types import Seq
from fusejournal.volume.volume import Volume
from fusejournal.wire.frames import Hello
from fusejournal.wire.instances import instance_of
from fusejournal.wire.refusals import RefusalCode
from fusejournal.wire.session import (
    FETCH,
    HANDOFF,
    VOTE,
    WHOLE,
    Claim,
    HandshakeState,
    RefusedError,
    claim_of,
    reign_of,
    speaks_of_same,
    wanted_reign,
    welcome,
)
from fusejournal.wire.session_connection import SessionConnection

Heed = Callable[[Claim, str], Awaitable[None]]
"""Judges a claim of a peer, which is named; returns when what was seen of reigns is on the disk."""


class CopySource(Protocol):
    """Serves mirrors that copy the tree."""

    def check(self) -> None:
        """Raises RefusedError where there is no place for another."""
        ...

    def describe(self, peer: str) -> str | None:
        """Returns how far the copy of *peer* is; None where there is none."""
        ...

    async def serve(self, session: SessionConnection) -> None:
        """Serves one that was let in. Cancelling ends the session. Raises PeerLostError, WireError,
        OSError."""
        ...


@dataclass(frozen=True)
class MirrorSide:
    """The parts of a mirror that peers get at."""

    receiver: Receiver
    signatures: KeptSignatures
    committed_seq: Callable[[], Seq]
    """Returns how far the primary is known to have applied."""
    take_over: Callable[[SessionConnection, Hello], Awaitable[None]] | None = None
    """Serves a primary that hands over to this mirror, or asks what came of that."""


class Inbound:
    """Serves those who connect to this node.

    Args:
        local, volume: the node, and its volume.
        me: returns what it greets with.
        heed: judges a claim, and returns when what was seen of reigns is on the disk.
        mirror: None on a primary.
        peers_changed: called when what the book says of a peer is to be gone by.
        turn_back: has a peer not be shipped to any more, as long as this node is no primary.
        copies: serves peers that copy the tree."""

    def __init__(
        self,
        local: LocalNode,
        volume: Volume,
        me: Callable[[], HandshakeState],
        heed: Heed,
        mirror: MirrorSide | None,
        peers_changed: Callable[[], None],
        turn_back: Callable[[str], Awaitable[None]],
        copies: CopySource | None = None,
    ) -> None:
        self._copies = copies
        self._local = local
        self._volume = volume
        self._me = me
        self._heed_claim = heed
        self._mirror = mirror
        self._peers_changed = peers_changed
        self._turn_back = turn_back
        self.reception = Reception(self._serve_greeted)

    async def _serve_greeted(self, session: SessionConnection, greeting: Hello) -> None:
        await self._heed(session, greeting)
        if greeting.purpose == FETCH:
            await self._serve_source(session, greeting)
        elif greeting.purpose == VOTE:
            await self._give_vote(session, greeting)
        elif greeting.purpose == HANDOFF:
            await self._serve_handoff(session, greeting)
        elif greeting.purpose == WHOLE:
            await self._serve_copy(session, greeting)
        elif self._mirror is None:
            name = self._local.name
            if self._local.fence.refusal(self._volume.journal.epoch) is not None:
                # The peer comes again soon, because that may not last.
                raise RefusedError(RefusalCode.BUSY, f"{name} is fenced, and no mirror yet")
            raise RefusedError(RefusalCode.ROLE, f"{name} is a primary and takes no entries")
        else:
            await self._receive(session, greeting, self._mirror.receiver)

    async def _receive(
        self, session: SessionConnection, greeting: Hello, receiver: Receiver
    ) -> None:
        """Have *receiver* take what the peer ships. Raises RefusedError, WireError,
        FusejournalError."""
        receiver.check_needed(session.peer or greeting.node, greeting)
        is_downstream = self._is_downstream(session.peer)
        if is_downstream and not await self._turn(session, greeting, receiver):
            reason = f"{session.peer} is shipped to from here, and so cannot ship to here"
            raise RefusedError(RefusalCode.DIRECTION, reason)
        if session.peer is not None and greeting.listen_port:
            host = parse_address(session.where).host
            self._local.book.note_return(session.peer, Address(host, greeting.listen_port))
        await receiver.serve(session, greeting)

    async def _serve_handoff(self, session: SessionConnection, greeting: Hello) -> None:
        """Be handed over to, or tell what came of it. Raises as :meth:`_give_vote`."""
        mirror, name = self._mirror, self._local.name
        if mirror is not None and mirror.take_over is not None:
            await mirror.take_over(session, greeting)
        elif greeting.wanted_epoch:
            raise RefusedError(RefusalCode.HANDOFF, f"{name} is no mirror that could take over")
        else:
            await session.send(welcome(self._me(), greeting, is_mirror=mirror is not None))

    async def _serve_copy(self, session: SessionConnection, greeting: Hello) -> None:
        """Have the tree be copied. Raises RefusedError, WireError, FusejournalError."""
        answer = welcome(self._me(), greeting, is_mirror=self._mirror is not None)
        if self._copies is None or not answer.uuid:
            raise RefusedError(
                RefusalCode.UNINITIALIZED, f"{self._local.name} has no volume yet to be copied"
            )
        self._copies.check()
        await self._keep_journal_for(session.peer)
        await session.send(answer)
        try:
            await self._copies.serve(session)
        except* OSError as group:
            raise FusejournalError(f"{session.where}: {first_error(group)}") from None
        await self._keep_journal_for(session.peer)  # it may have grown by much meanwhile

    async def _keep_journal_for(self, peer: str | None) -> None:
        """Have the journal be kept for *peer* again, which copies the tree."""
        if peer is not None:
            self._local.book.begin_copy(peer)
            await trio.to_thread.run_sync(self._local.book.save)
            self._peers_changed()

    async def _give_vote(self, session: SessionConnection, greeting: Hello) -> None:
        """Give the vote that *greeting* asks for. Raises RefusedError, WireError,
        FusejournalError."""
        mirror, name = self._mirror, self._local.name
        if mirror is None:
            reason = f"{name} is a primary, and gives no vote against itself: hand over from there"
            raise RefusedError(RefusalCode.ROLE, reason)
        reign = wanted_reign(self._me(), greeting)
        try:
            await mirror.receiver.give_vote(
                reign, session.peer or greeting.node, instance_of(greeting, session.where)
            )
        except JournalFailedError as error:
            raise RefusedError(RefusalCode.FAILED, f"{name}: {error}") from None
        await session.send(welcome(self._me(), greeting, is_mirror=True))

    async def _turn(self, session: SessionConnection, greeting: Hello, receiver: Receiver) -> bool:
        """Returns True if the peer, which is shipped to from here, reigns by now: then it is not
        shipped to any more, because it ships to here. Raises RefusedError where it may be a copy of
        the one that was followed, FusejournalError where that cannot be written down."""
        reign, mine, peer = reign_of(greeting), self._me().reign, session.peer
        if peer is None or not comes_from_primary(greeting):
            return False
        if reign != mine:
            if reign.epoch <= mine.epoch:
                return False
            # (A higher one was heeded, unless this node has followed that one before.)
            await receiver.check_instance(instance_of(greeting, session.where))
        await self._turn_back(peer)
        return True

    async def _heed(self, session: SessionConnection, greeting: Hello) -> None:
        """Have what *greeting* proves of a higher reign on this node's disk before anything is
        answered, whatever the greeting asks for. Raises RefusedError where the disk failed, and
        FusejournalError where the claim cannot be judged."""
        if not speaks_of_same(self._me(), greeting):
            return
        try:
            await self._heed_claim(claim_of(greeting), session.peer or greeting.node)
        except JournalFailedError as error:
            raise RefusedError(RefusalCode.FAILED, f"{self._local.name}: {error}") from None
        except OSError as error:
            raise FusejournalError(f"{session.where}: {error}") from None

    def _is_downstream(self, name: str | None) -> bool:
        peer = self._local.book.find(name) if name is not None else None
        return peer is not None and peer.address is not None

    async def _serve_source(self, session: SessionConnection, greeting: Hello) -> None:
        mirror, journal = self._mirror, self._volume.journal
        applied_seq = self._volume.catalog.applied_seq
        try:
            await serve_fetch(
                session,
                greeting,
                self._me(),
                self._volume,
                journal.head_seq if mirror else applied_seq,
                mirror.committed_seq() if mirror else applied_seq,
                self._local.config.batch_bytes,
                mirror.signatures.after(greeting.seq) if mirror else [],
                mirror.receiver.twice(greeting, session.where) if mirror else "",
            )
        except* OSError as group:
            raise FusejournalError(f"{session.where}: {first_error(group)}") from None
