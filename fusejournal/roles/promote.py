"""Brings a running mirror to the point where its process may make it the primary: asks the peers,
has the votes that it can get, and waits until everything that is held is applied.

Each step may be done again, by the same process or the next: votes are given for good, and what was
received before them is applied whatever comes. The role itself changes when the volume is closed
(node/start.py). Used from the event loop's thread."""

import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace

import trio

from fusejournal.disk import failpoints
from fusejournal.errors import PromotionRefusedError
from fusejournal.replication.canvass import PeerAnswer, ask_positions, ask_votes
from fusejournal.replication.receiver import Receiver
from fusejournal.replication.supervisor import Replication
from fusejournal.roles.plan import PromotionPlan
from fusejournal.roles.promotion import Candidate, next_reign, plan_promotion
from fusejournal.types import Reign, Seq
from fusejournal.volume.volume import Volume
from fusejournal.wire.session import reign_of

log = logging.getLogger(__name__)

_POLL_SECONDS = 0.005


class Promotion:
    """The promotion of the mirror that *replication* runs for *volume*, which admins call
    *name*. *fence* returns when the old primary is known to be off, or raises; None: nothing can
    tell."""

    def __init__(
        self,
        name: str,
        volume: Volume,
        replication: Replication,
        receiver: Receiver,
        fence: Callable[[PromotionPlan], Awaitable[None]] | None = None,
    ) -> None:
        self._name = name
        self._volume = volume
        self._replication = replication
        self._receiver = receiver
        self._fence = fence

    async def plan(self) -> PromotionPlan:
        """Returns what a promotion would do. Nothing is changed. Cancelling is harmless."""
        return self._plan(await ask_positions(self._replication.local, self._replication.me()))

    async def prepare(self, force: bool) -> PromotionPlan:
        """Have the node be the only one that may begin the plan's reign, which this returns.
        Cancelled, votes may have been given. Raises PromotionRefusedError where something speaks
        against it, and *force* is not set, or where this mirror cannot apply what it holds; what
        *fence* raises; RefusedError, JournalFailedError, OSError where its own vote cannot be on
        the disk."""
        self._check_whole()
        local, replication = self._replication.local, self._replication
        answers = await ask_positions(local, replication.me())
        plan = self._plan(answers)
        was_covered = True
        while was_covered:
            self._check(plan, force)
            if plan.uncovered and plan.has_fence and self._fence is not None and not force:
                await self._fence(plan)
            was_covered = plan.is_covered
            reign, votes = await self._have_votes(answers, is_covered=was_covered)
            plan = self._plan(votes)
            if plan.is_covered:
                break
            # Fewer have given their vote than had answered: then it is as if they had not.
        self._check(plan, force)
        if plan.is_covered:
            await self._keep_members(votes)
        plan = replace(plan, reign=str(reign))
        log.warning("promoted to reign %s, with the votes of %d nodes", reign, plan.words)
        return plan

    async def _keep_members(self, votes: Sequence[PeerAnswer]) -> None:
        """Have on the disk by which rule the reign before acknowledged. (Where nothing covers the
        promotion, this node begins by its own, and forgets that one once its role has changed.)
        Raises FusejournalError."""
        record = self._replication.local.members
        record.note_newest([one.members for one in votes])
        await record.save()

    async def _have_votes(
        self, answers: Sequence[PeerAnswer], *, is_covered: bool
    ) -> tuple[Reign, list[PeerAnswer]]:
        """Ask for all votes for the reign that comes after what *answers* have seen; returns that,
        and the votes. Raises as :meth:`prepare`."""
        local, replication = self._replication.local, self._replication
        reign = next_reign(replication.me(), answers, is_covered=is_covered)
        failpoints.reached("promote.vote")
        await self._receiver.give_vote(reign, local.name)
        failpoints.reached("promote.votes")
        # Once more, because a node that gives its vote says what it holds from then on.
        silent = [one.peer for one in answers if one.welcome is None and not one.is_refusal]
        votes = await ask_votes(local, replication.me(), reign, silent)
        self.check_reign(reign, votes)
        return reign, votes

    def check_reign(self, reign: Reign, answers: Sequence[PeerAnswer] = ()) -> None:
        """Raises PromotionRefusedError if this node, or one of *answers*, has seen another reign
        that *reign* does not come after: another node asked for votes meanwhile."""
        seen = [reign_of(one.welcome) for one in answers if one.welcome is not None]
        for other in (self._replication.me().reign, *seen):
            if other.epoch > reign.epoch or other.is_rival(reign):
                raise PromotionRefusedError(
                    f"not promoted: reign {other} was asked for meanwhile: see which node is the "
                    "primary now, or give the same command again"
                )

    async def apply_all(self) -> None:
        """Return when all that is held is applied. (The last that is held may be one whose outcome
        is not known: that is for the new primary to decide.) Cancelling is harmless. Raises
        PromotionRefusedError where the applier will not."""
        self._replication.durability.want()
        while self._replication.left_to_apply:
            self._check_whole()
            await trio.sleep(_POLL_SECONDS)
        failpoints.reached("promote.applied")

    def _check_whole(self) -> None:
        failure = self._volume.failure
        if failure is not None:
            raise PromotionRefusedError(
                f"this mirror has failed, and cannot become the primary: {failure}"
            )

    def _check(self, plan: PromotionPlan, force: bool) -> None:
        if plan.refusal and not force:
            raise PromotionRefusedError(f"not promoted: {plan.refusal}")
        if plan.refusal:
            log.warning("promoted by force: %s", plan.refusal)

    def _plan(self, answers: list[PeerAnswer]) -> PromotionPlan:
        return plan_promotion(self._candidate(), answers, self._name)

    def _candidate(self) -> Candidate:
        replication = self._replication
        known = [peer for peer in replication.local.book.list() if peer.heard_at is not None]
        primary = max(known, key=lambda peer: peer.heard_at or 0.0, default=None)
        silent_seconds = self._receiver.heard_seconds_ago
        if silent_seconds is None and primary is not None and primary.heard_at is not None:
            silent_seconds = max(0.0, time.time() - primary.heard_at)
        journal = self._volume.journal
        return Candidate(
            replication.me(),
            journal.durable_seq,
            self._volume.catalog.applied_seq,
            self._receiver.last_peer or (primary.name if primary is not None else None),
            max(self._receiver.told_seq, primary.told_seq if primary is not None else Seq(0)),
            silent_seconds,
            self._fence is not None,
        )
