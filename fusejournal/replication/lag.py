"""Estimates the age of entries: how long the journal has had them, as far as this process has seen.

A lag in seconds is the age of the first entry that a node lacks. It is by the monotonic clock, so
that a clock that is set makes no node late; and it is an upper bound, because notes are taken now
and then.

Used from the event loop's thread."""

import time
from bisect import bisect_left

from fusejournal.types import Seq

_NOTES_MAX = 20_000
_NEAR = 1 / 500
"""Two notes that differ by less, as a part of their age, can be one. So fewer than half as many
notes are left, however long they were taken for."""


class LagMeter:
    """Notes where a journal ended when."""

    def __init__(self) -> None:
        self._seqs: list[Seq] = []
        self._times: list[float] = []
        self._began: float | None = None
        """The time of the first note: what that found may be as old as this, or older."""

    def note(self, head_seq: Seq) -> None:
        """The journal ends with *head_seq* now."""
        now = time.monotonic()
        if self._began is None:
            self._began = now
        if self._seqs and self._seqs[-1] >= head_seq:
            self._times[-1] = now  # it still does: what comes next is younger than this
        else:
            self._seqs.append(head_seq)
            self._times.append(now)
            if len(self._seqs) > _NOTES_MAX:
                self._thin(now)

    def _thin(self, now: float) -> None:
        """Forget most notes: an old one may stand for others that were not much younger."""
        times = self._times
        kept = [len(times) - 1]
        for at in reversed(range(kept[0])):
            if times[kept[-1]] - times[at] >= (now - times[at]) * _NEAR:
                kept.append(at)
        self._seqs = [self._seqs[at] for at in reversed(kept)]
        self._times = [times[at] for at in reversed(kept)]

    def lag(self, seq: Seq, head_seq: Seq) -> float:
        """Returns for how many seconds a node that has everything up to *seq* has lacked something
        of a journal that ends with *head_seq*."""
        if seq >= head_seq or self._began is None:
            return 0.0
        # The first that is lacking came after the last note that does not go beyond *seq*.
        at = bisect_left(self._seqs, seq + 1) - 1
        return time.monotonic() - (self._times[at] if at >= 0 else self._began)
