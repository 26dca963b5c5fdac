"""Hands a running primary's reign over to one of its mirrors: goes through the stages of
handoff.py.

From *draining* on, changes are held: no caller is refused, and the journal has no new entry. When
it is handed over, the process has yet to change its role (node/start.py). Used from the event
loop's thread."""

import logging
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Final, NamedTuple

import trio

from fusejournal.disk import failpoints
from fusejournal.errors import (
    FusejournalError,
    HandoffRefusedError,
    HookFailedError,
    JournalFailedError,
)
from fusejournal.replication.common_ancestor import first_error
from fusejournal.replication.local_node import LocalNode
from fusejournal.replication.peer_record import PeerRecord
from fusejournal.replication.peers import Peer
from fusejournal.replication.supervisor import Replication
from fusejournal.roles.handoff import Move, Stage, move_by_answer
from fusejournal.types import Epoch, Reign
from fusejournal.volume.acceptance import Acceptance
from fusejournal.volume.volume import Volume
from fusejournal.wire.frames import Hello, Offer, Welcome
from fusejournal.wire.session import (
    HANDOFF,
    HandshakeState,
    RefusedError,
    hello,
    reign_of,
)
from fusejournal.wire.session_connection import SessionConnection
from fusejournal.wire.session_states import Side
from fusejournal.wire.transport import connect
from fusejournal.wire.versions import HANDOFF_VERSION

log = logging.getLogger(__name__)

_POLL_SECONDS: Final = 0.002
_NEAR_ENTRIES: Final = 500
"""Changes are held once the target lacks no more than so many."""
_ANSWER_SECONDS: Final = 5.0
_ASK_SECONDS: Final = (0.05, 1.0)
"""The pause before the target is asked again, at first and at last."""


class HandOverSeams(NamedTuple):
    """The parts of the node that a handoff needs."""

    before: Callable[[str, str], Awaitable[None]]
    """Calls what an admin wants called before the reign goes to a peer. Raises HookFailedError."""
    undone: Callable[[], Awaitable[None]]
    """Calls what is to be called because it did not."""
    note: Callable[[Reign | None], Awaitable[None]]
    """Has on the disk that a reign is offered, or none. Raises JournalFullError, OSError."""
    serve_held: Callable[[], None]
    """Serves the requests that were held."""


class HandOver:
    """The handoff of the primary that *replication* runs for *volume* to its peer *name*. ``stage``
    is how far it is."""

    def __init__(
        self, volume: Volume, replication: Replication, name: str, seams: HandOverSeams
    ) -> None:
        self._volume = volume
        self._replication = replication
        self._name = name
        self._seams = seams
        self.stage = Stage.PREPARING
        self.peer, self._record = self._check()
        """The peer that takes over."""
        fence = replication.local.fence
        highest = max(volume.journal.epoch, fence.seen.epoch, fence.highest_epoch)
        self.reign = Reign(Epoch(highest + 1), 0)
        """The reign that it is to begin; whose that is, it says when it agrees."""
        self.held_since: float | None = None
        """The time since when changes are held, by trio's clock."""
        self._scope = trio.CancelScope()
        self._reason = ""

    # -- before anything is done -------------------------------------------------------------------

    def _check(self) -> tuple[Peer, PeerRecord]:
        """Returns the peer, if it may take over. Raises UnknownPeerError, HandoffRefusedError."""
        book, name = self._replication.local.book, self._name
        peer = book.get(name)
        self._check_takes()
        if peer.address is None:
            near = ", ".join(sorted(one.name for one in self._replication.records()))
            raise HandoffRefusedError(
                f"peer {name} is not shipped to from here, and only a direct mirror takes over: "
                + (f"hand over to one of {near}" if near else "'fusejournal peer add' makes it one")
            )
        if peer.is_witness:
            raise HandoffRefusedError(f"peer {name} is a witness, and has no data to serve")
        if peer.paused:
            raise HandoffRefusedError(
                f"peer {name} is paused: 'fusejournal peer resume' lets it come level first"
            )
        record = next((one for one in self._replication.records() if one.name == name), None)
        if record is None or not record.is_connected:
            why = f": {record.last_error}" if record is not None and record.last_error else ""
            raise HandoffRefusedError(
                f"peer {name} is away{why}; hand over when 'fusejournal status' shows it streaming"
            )
        version = record.facts.protocol_version or 0
        if version < HANDOFF_VERSION:
            raise HandoffRefusedError(
                f"peer {name} runs an older program (version {version} of the protocol), which "
                "cannot take over: upgrade it first; or 'fusejournal demote' here, then "
                "'fusejournal promote' there"
            )
        self._check_votes()
        return peer, record

    def _check_takes(self) -> None:
        self._check_whole()
        if self._volume.acceptance is not Acceptance.TAKING:
            raise HandoffRefusedError("the volume takes no changes now: it cannot be handed over")

    def _check_whole(self) -> None:
        if (failure := self._volume.failure) is not None:
            raise HandoffRefusedError(
                f"this volume is read-only, and cannot tell what its mirrors should have: {failure}"
            )

    def _check_votes(self) -> None:
        """Raises HandoffRefusedError where so many of those who count are away that another may
        have been promoted by them, or the target does not know who they are."""
        replication, membership = self._replication, self._replication.membership
        assert membership is not None
        if replication.quorum.is_held:
            raise HandoffRefusedError(
                "which mirrors count is changing, and too few know of it yet: see 'fusejournal "
                "status', and give the same command again"
            )
        if not membership.has_record(self._name):
            raise HandoffRefusedError(
                f"peer {self._name} has not on its disk which nodes count, and would begin by "
                "another rule: see its own status and log, and give the same command again"
            )
        there = [one.name for one in replication.records() if one.is_connected]
        tally = membership.tally(there)
        if tally is not None and tally.lacking > 0:
            raise HandoffRefusedError(
                f"{tally.votes} of {tally.nodes} nodes are there, and {tally.needed} are needed, "
                "because those that are away may have made another the primary: wait for them"
            )

    # -- the way through ---------------------------------------------------------------------------

    @property
    def applied_seq(self) -> int:
        """The target has applied everything up to here."""
        return self._record.applied_seq

    def _take(self, step: Move) -> None:
        self.stage = self.stage.after(step)

    def cancel(self) -> None:
        """Break it off: if the target has not taken over, it will not."""
        self._reason = self._reason or "not handed over: it was taken back"
        self._scope.cancel()

    async def run(self, timeout_seconds: float) -> Reign:
        """Hand over within *timeout_seconds*, and return the target's reign, which is on this
        node's disk as seen. An offer that is not answered is asked after for as long as it takes.
        Cancelled before the offer, changes are taken again; after, they stay held. Raises
        HandoffRefusedError, HookFailedError where the target does not take over: changes are taken
        again."""
        error: FusejournalError | None = None
        try:
            try:
                self._scope.deadline = trio.current_time() + timeout_seconds
                with self._scope:
                    await self._offer()
            except* (FusejournalError, OSError, trio.TooSlowError) as group:
                error = self._described(first_error(group))
            if self._scope.cancelled_caught:
                late = f"not handed over: {self._name} is not level after {timeout_seconds:g} s"
                error = HandoffRefusedError(self._reason or late)
            if not self.stage.is_over:
                self._take(Move.BROKEN_OFF)
            pause_seconds, longest = _ASK_SECONDS
            while not self.stage.is_over:
                await self._ask()
                failpoints.reached("handoff.asked")
                if not self.stage.is_over:
                    await trio.sleep(pause_seconds)
                    pause_seconds = min(2 * pause_seconds, longest)
        finally:
            if not self.stage.may_be_followed:
                self._release()
        if self.stage is Stage.UNDONE:
            await self._undo()
            raise error or HandoffRefusedError(f"not handed over: {self._name} has not taken over")
        await self._note_taken()
        return self.reign

    def _described(self, error: BaseException) -> FusejournalError:
        if isinstance(error, HandoffRefusedError | HookFailedError):
            return error
        return HandoffRefusedError(f"not handed over: peer {self._name}: {error}")

    async def _offer(self) -> None:
        """Go through the stages up to the target's answer."""
        local, peer = self._replication.local, self.peer
        assert peer.address is not None
        async with await connect(
            peer.address,
            local.identity,
            peer.certificate,
            insecure=local.insecure,
            timeout_seconds=_ANSWER_SECONDS,
        ) as connection:
            session = SessionConnection(connection, Side.CONNECTOR)
            await session.send(self._hello(self.reign.epoch))
            agreed: Welcome = await session.receive()
            self.reign = Reign(self.reign.epoch, agreed.node_id)
            await self._seams.before(str(self.reign), self._name)
            failpoints.reached("handoff.agreed")
            await self._drain()
            await self._seams.note(self.reign)
            self._check_votes()  # mirrors that gave theirs to another meanwhile are gone by now
            self._take(Move.LEVEL)
            failpoints.reached("handoff.noted")
            head = self._volume.journal.head
            # From the first byte on it may be taken.
            self._take(Move.SENT)
            await session.send(Offer(*self.reign, head.seq, head.chain))
            failpoints.reached("handoff.offered")
            try:
                answer: Welcome = await session.receive()
            except RefusedError:
                self._take(Move.DECLINED)
                raise
            if reign_of(answer) == self.reign and answer.role == "primary":
                self._take(Move.TAKEN)

    def _hello(self, wanted_epoch: Epoch) -> Hello:
        return hello(self._replication.me(), HANDOFF, wanted_epoch)

    async def _drain(self) -> None:
        """Hold changes, and return when the target has applied all there is."""
        volume, record = self._volume, self._record
        while self._lacking() > _NEAR_ENTRIES or volume.in_pieces:
            self._check_there()
            await trio.sleep(_POLL_SECONDS)
        self._check_votes()
        self._check_takes()
        # Nothing was awaited since no change was half done: from here on the journal has no new
        # entry, until changes are taken again.
        volume.hold_changes()
        self.held_since = trio.current_time()
        self._take(Move.AGREED)
        failpoints.reached("handoff.held")
        await self._replication.durability.flush()
        self._replication.ship_at_once()
        while self._lacking() or record.acked_seq < volume.journal.head_seq:
            self._check_there()
            self._check_votes()
            await trio.sleep(_POLL_SECONDS)
        self._check_whole()
        failpoints.reached("handoff.drained")

    def _lacking(self) -> int:
        """Returns how many entries the target has yet to apply."""
        return max(0, self._volume.journal.head_seq - self._record.applied_seq)

    def _check_there(self) -> None:
        self._check_whole()
        if not self._record.is_connected:
            why = self._record.last_error or "its connection was lost"
            raise HandoffRefusedError(f"not handed over: peer {self._name} went away: {why}")

    async def _ask(self) -> None:
        """Ask the target what came of the offer, which is withdrawn by that."""
        step = await ask_outcome(
            self._replication.local, self.peer, self._replication.me(), self.reign
        )
        if step is not Move.BROKEN_OFF:
            self._take(step)

    # -- the end of it -----------------------------------------------------------------------------

    def _release(self) -> None:
        """Take changes again."""
        if self._volume.acceptance is Acceptance.HOLDING:
            self._volume.take_changes()
        self.held_since = None
        self._seams.serve_held()

    async def _undo(self) -> None:
        try:
            await self._seams.note(None)
        except (FusejournalError, OSError) as error:
            # Then the next start asks once more, and hears the same.
            log.warning("that the handoff was undone is not written down: %s", error)
        await self._seams.undone()

    async def _note_taken(self) -> None:
        """Have the target's reign on the disk as seen. (The note of the offer says it, too.)"""
        failpoints.reached("handoff.taken")
        fence, durability = self._replication.local.fence, self._replication.durability
        with suppress(JournalFailedError, OSError):
            fence.note(self.reign)
            await fence.make_durable(durability.flush_watermarks)
        log.warning("handed over to %s, which begins reign %s", self._name, self.reign)


async def ask_outcome(local: LocalNode, peer: Peer, me: HandshakeState, offered: Reign) -> Move:
    """Returns what came of the reign *offered* to *peer*, by its own answer: taken, or declined,
    and then it never will be; broken off where there is none now. Cancelling is harmless."""
    if peer.any_address is None:
        return Move.BROKEN_OFF
    try:
        with trio.fail_after(_ANSWER_SECONDS):
            async with await connect(
                peer.any_address,
                local.identity,
                peer.certificate,
                insecure=local.insecure,
                timeout_seconds=_ANSWER_SECONDS,
            ) as connection:
                session = SessionConnection(connection, Side.CONNECTOR)
                await session.send(hello(me, HANDOFF))
                answer: Welcome = await session.receive()
                return move_by_answer(offered, answer)
    except* (FusejournalError, OSError, trio.TooSlowError) as group:
        log.warning("peer %s does not say if it has taken over: %s", peer.name, first_error(group))
    return Move.BROKEN_OFF
