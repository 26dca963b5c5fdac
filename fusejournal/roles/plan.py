"""The plan of a promotion and the progress of a handoff, as people and scripts read them: values,
and no work. Imports little, because each process that shows them loads it."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from fusejournal.control.reply import Reply


@dataclass(frozen=True, kw_only=True)
class PeerVote(Reply):
    """One peer before a promotion."""

    peer: str
    role: str | None
    """The role that it reports; None where it does not answer."""
    held_seq: int | None
    """The end of its journal."""
    counts: bool
    """True if it gives its vote: it takes nothing from the old primary any more."""
    detail: str
    """The reason why it does not, in words."""

    def in_words(self) -> str:
        """Returns how it stands, for people."""
        holds = f", holds entries up to {self.held_seq}" if self.held_seq is not None else ""
        return f"{self.role or 'silent'}{holds}" + (f": {self.detail}" if self.detail else "")


@dataclass(frozen=True, kw_only=True)
class PromotionPlan(Reply):
    """The plan of a promotion, and the objections to it."""

    NESTED: ClassVar[Mapping[str, type[Reply]]] = {"peers": PeerVote}

    node: str
    reign: str
    """The reign that the node is to begin."""
    held_seq: int
    """The end of its journal: what it goes on from."""
    acknowledged_seq: int
    """The seq up to which it has acknowledged to the primary that it has everything on disk."""
    left_to_apply: int
    """Entries that it applies before it serves."""
    primary: str | None
    told_seq: int
    """The end of the primary's journal as far as it is known here."""
    missing: int
    """Entries that the primary is known to have had, and which are not here: lost, unless its disk
    comes back."""
    silent_seconds: float | None
    """The time since the primary was heard: what it did meanwhile is not known. None: it never
    was."""
    peers: tuple[PeerVote, ...]
    words: int
    """The votes there are: the nodes that take nothing from the old primary any more, this one
    included. Scripts know them by this name."""
    words_needed: int
    """The number of votes that are needed, where it is not to be forced."""
    objections: tuple[str, ...]
    """The objections, a line each."""
    uncovered: str = ""
    """The objection that nothing shows that the old primary has stopped; empty where the votes do.
    With no objection of either kind it need not be forced."""
    has_fence: bool = False
    """True if a program is to make sure that the old primary is off, where the votes do not."""

    @property
    def is_covered(self) -> bool:
        """True if the votes show that the old primary has stopped."""
        return self.words >= self.words_needed

    @property
    def refusal(self) -> str:
        """The reason why it is refused unless it is forced; empty where it is not."""
        uncovered = self.uncovered if not self.has_fence else ""
        return "; ".join(filter(None, (*self.objections, uncovered)))

    def rows(self) -> list[tuple[str, str]]:
        """Returns the plan as labels and words, for people."""
        return [
            ("reign", f"{self.reign} would begin"),
            ("holds", f"entries up to {self.held_seq}, {self.left_to_apply} of them to be applied"),
            ("lost", self._lost()),
            ("votes", f"{self.words} of {self.words_needed} that are needed"),
            *((f"peer {peer.peer}", peer.in_words()) for peer in self.peers),
        ]

    def _lost(self) -> str:
        if self.primary is None or self.silent_seconds is None:
            return "not known: no primary was ever heard"
        told = (
            f"{self.missing} entries that {self.primary} told of "
            f"({self.held_seq + 1} to {self.told_seq})"
            if self.missing
            else "nothing"
        )
        return (
            f"may be lost: whatever {self.primary} did in the {self.silent_seconds:.0f} s since it "
            f"was heard last. Known to be lost: {told}. Up to entry {self.acknowledged_seq} this "
            "node has everything"
        )


@dataclass(frozen=True, kw_only=True)
class HandoffProgress(Reply):
    """The progress of a handoff, while it goes on, and its end where it came to nothing."""

    peer: str
    reign: str
    """The reign that the peer is to begin."""
    stage: str
    """The stage, as roles/handoff.py has them."""
    head_seq: int
    applied_seq: int
    """The peer has applied so much of what there is."""
    held_seconds: float
    """The time for which changes have been held."""
    is_over: bool
    reason: str | None
    """The reason why it came to nothing; None where it did not."""
    exit_code: int
    """The exit code that goes with *reason*."""
