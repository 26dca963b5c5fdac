"""Making a mirror the primary."""

import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, fields
from typing import Any

from fusejournal.admin.live import ask_layer, follow_layer, wait_for_role
from fusejournal.errors import FusejournalError, NotRunningError, PromotionRefusedError
from fusejournal.node.replies import PromotionProgress
from fusejournal.node.state_dir import VolumeState
from fusejournal.roles.plan import PromotionPlan


@dataclass(frozen=True, kw_only=True)
class PromotionOutcome(PromotionPlan):
    """The plan of a promotion, and what came of it."""

    promoted: bool
    """True if it was carried out, and the node serves as primary."""

    @classmethod
    def of_plan(cls, plan: PromotionPlan, *, promoted: bool) -> "PromotionOutcome":
        """Returns the outcome of *plan*."""
        values = {one.name: getattr(plan, one.name) for one in fields(plan)}
        return cls(**values, promoted=promoted)


def plan_promotion(state: VolumeState) -> PromotionPlan:
    """Returns what a promotion of the volume's mirror would do, by what its peers answer now.
    Raises NotRunningError, UsageError where it is none, FusejournalError."""
    return PromotionPlan.from_json(ask_layer(state, "promote", dry_run=True))


def promote(
    state: VolumeState,
    *,
    force: bool,
    timeout_seconds: float,
    applying: Callable[[int], None],
) -> None:
    """Makes the volume's mirror the primary, and returns when it serves; *applying* is called with
    the number of entries that it has yet to apply. Raises NotRunningError; PromotionRefusedError
    where something speaks against it and not *force*; FusejournalError."""
    deadline = time.monotonic() + timeout_seconds

    def working(told: Mapping[str, Any]) -> None:
        left = PromotionProgress.from_json(told).left_to_apply or 0
        if left:
            applying(left)
        if time.monotonic() > deadline:
            raise PromotionRefusedError(
                f"not promoted after {timeout_seconds:g} s, with {left} entries to be applied: the "
                "same command goes on with them"
            )

    with suppress(NotRunningError):  # it may be quicker to go than to answer
        follow_layer(state, "promote", working, force=force)
    wait_for_role(state, "primary", max(0.0, deadline - time.monotonic()))


def store_hint(state: VolumeState) -> str:
    """Returns what a new primary without a store of versions is to be told: the old one's is no
    part of what it took over. Empty where it has one, or the file that tells is spoilt."""
    from fusejournal.versions.place import read_place

    with suppress(FusejournalError, OSError):
        if read_place(state.directory) is None:
            return (
                f"this node has no store of versions: 'fusejournal version store init {state.name}'"
                " makes or joins one"
            )
    return ""
