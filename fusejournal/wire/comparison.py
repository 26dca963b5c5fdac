"""Finds the last entry that two journals have in common, asking for few of their chains. Pure."""

from collections.abc import Sequence

from fusejournal.types import Seq
from fusejournal.wire.frames import WireError

_PROBES = 16


class Comparison:
    """Finds the last seq at which two journals have the same chain, by asking for few of them.

    ``agreed_seq`` is known to be the same in both, ``differ_seq`` not; up to ``unknown_seq``
    one of the two has no chain any more, because the beginning of a journal may be gone. The search
    is over when nothing is left between these."""

    def __init__(self, agreed_seq: Seq, differ_seq: Seq) -> None:
        self.agreed_seq = agreed_seq
        self.differ_seq = differ_seq
        self.unknown_seq = Seq(0)

    @property
    def _low(self) -> Seq:
        return max(self.agreed_seq, self.unknown_seq)

    @property
    def gap(self) -> int:
        """Distance between the ends of what is still searched."""
        return self.differ_seq - self._low

    @property
    def is_over(self) -> bool:
        """True if the last common entry is ``agreed_seq``, or cannot be determined."""
        return self.gap <= 1

    @property
    def is_told(self) -> bool:
        """False if another entry than ``agreed_seq`` may be the last common one, because no node
        has what would tell."""
        return self.unknown_seq <= self.agreed_seq

    def probes(self) -> tuple[Seq, ...]:
        """Returns the seqs to compare next, growing."""
        low, between = self._low, self.gap
        steps = {low + between * step // (_PROBES + 1) for step in range(1, _PROBES + 1)}
        return tuple(Seq(seq) for seq in sorted(steps | {low + 1}) if low < seq < self.differ_seq)

    def told(
        self, seqs: Sequence[Seq], mine: Sequence[int | None], theirs: Sequence[int | None]
    ) -> None:
        """Takes the chains of both at *seqs*, all before ``differ_seq``; None where an entry is not
        there any more, which says nothing. Raises WireError when they make no sense."""
        if len(theirs) != len(seqs):
            raise WireError(f"{len(theirs)} chains for {len(seqs)} seqs")
        for seq, one, other in reversed(list(zip(seqs, mine, theirs, strict=True))):
            if one is None or other is None:
                self.unknown_seq = max(self.unknown_seq, seq)
            elif one == other:
                if seq >= self.differ_seq:
                    raise WireError(f"the same chain at {seq}, but not at {self.differ_seq}")
                self.agreed_seq = max(self.agreed_seq, seq)
            else:
                self.differ_seq = min(self.differ_seq, seq)
        if self.agreed_seq >= self.differ_seq:
            raise WireError(f"the same chain at {self.agreed_seq}, but not at {self.differ_seq}")
        if self.unknown_seq >= self.differ_seq:
            raise WireError(f"no chain at {self.unknown_seq}, and one at {self.differ_seq}")
