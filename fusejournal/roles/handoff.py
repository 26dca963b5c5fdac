"""A handoff as its primary goes through it: stages, what leads from one to the next, and what a
target's answer means. Pure; hand_over.py goes through it, take_over.py is the target's side.

===========  ===============  ================  ====================================================
stage        takes changes    may be followed   what happens
===========  ===============  ================  ====================================================
preparing    yes              no                the target agrees, and both call their hooks
draining     holds them       no                the target gets all there is, and applies it
noted        holds them       no                on this node's disk: the reign that is offered
offered      holds them       yes               the offer is on its way
asking       holds them       yes               no answer came: the target is asked what came of it
undone       yes              no                all is as before
handed over  refuses them     yes               the target reigns; this node becomes its mirror
===========  ===============  ================  ====================================================

===========  ==============  ===========
from         event           to
===========  ==============  ===========
preparing    agreed          draining
preparing    broken off      undone
draining     level           noted
draining     broken off      undone
noted        sent            offered
noted        broken off      undone
offered      taken           handed over
offered      declined        undone
offered      broken off      asking
asking       taken           handed over
asking       declined        undone
asking       broken off      asking
===========  ==============  ===========

One node decides: the target, by a durable record of its role. Until that is written it may decline,
and die; from then on it reigns, whatever happens to it. So a primary that has offered its reign
takes no change, also after a restart, before the target has reported what came of it. The question
withdraws the offer: a target that has not taken it never will. A start that finds the note of an
offer begins with *asking*."""

from collections.abc import Mapping
from enum import Enum
from typing import Final

from fusejournal.types import Reign
from fusejournal.wire.frames import Welcome
from fusejournal.wire.session import PRIMARY


class Stage(Enum):
    """The stage of a handoff: see the module."""

    PREPARING = "preparing"
    DRAINING = "draining"
    NOTED = "noted"
    OFFERED = "offered"
    ASKING = "asking"
    UNDONE = "undone"
    HANDED_OVER = "handed over"

    @property
    def takes_changes(self) -> bool:
        """True if the primary takes changes."""
        return self in (Stage.PREPARING, Stage.UNDONE)

    @property
    def may_be_followed(self) -> bool:
        """True if the target may reign by now."""
        return self in (Stage.OFFERED, Stage.ASKING, Stage.HANDED_OVER)

    @property
    def is_over(self) -> bool:
        """True if nothing leads on from here."""
        return self in (Stage.UNDONE, Stage.HANDED_OVER)

    def after(self, step: "Move") -> "Stage":
        """The stage that *step* leads to from here. Raises KeyError where that cannot come."""
        return HANDOFF_TRANSITIONS[self, step]


class Move(Enum):
    """Something that leads from one stage to the next."""

    AGREED = "agreed"
    LEVEL = "level"
    SENT = "sent"
    TAKEN = "taken"
    DECLINED = "declined"
    BROKEN_OFF = "broken off"


HANDOFF_TRANSITIONS: Final[Mapping[tuple[Stage, Move], Stage]] = {
    (Stage.PREPARING, Move.AGREED): Stage.DRAINING,
    (Stage.PREPARING, Move.BROKEN_OFF): Stage.UNDONE,
    (Stage.DRAINING, Move.LEVEL): Stage.NOTED,
    (Stage.DRAINING, Move.BROKEN_OFF): Stage.UNDONE,
    (Stage.NOTED, Move.SENT): Stage.OFFERED,
    (Stage.NOTED, Move.BROKEN_OFF): Stage.UNDONE,
    (Stage.OFFERED, Move.TAKEN): Stage.HANDED_OVER,
    (Stage.OFFERED, Move.DECLINED): Stage.UNDONE,
    (Stage.OFFERED, Move.BROKEN_OFF): Stage.ASKING,
    (Stage.ASKING, Move.TAKEN): Stage.HANDED_OVER,
    (Stage.ASKING, Move.DECLINED): Stage.UNDONE,
    (Stage.ASKING, Move.BROKEN_OFF): Stage.ASKING,
}


def move_by_answer(offered: Reign, answer: Welcome) -> Move:
    """Returns what came of the reign *offered*, by the target's *answer* to the question: taken
    where that is a primary, or has had its beginning in its journal since. (A mirror that goes by
    it is none: it has given itself its vote for that very reign, in a promotion that came to
    nothing.)"""
    is_taken = answer.role == PRIMARY or answer.held_epoch >= offered.epoch
    return Move.TAKEN if is_taken else Move.DECLINED
