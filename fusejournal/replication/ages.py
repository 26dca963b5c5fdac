"""How old entries are: since when the journal has had them, as far as this process has seen.

A lag in seconds is the age of the first entry that somebody lacks. It is by the monotonic clock, so
that a clock that is set makes nobody late; and it is an upper bound, for notes are taken now and
then.

Used from the event loop's thread."""

import time
from bisect import bisect_left
from collections import deque

from fusejournal.types import Seq

_NOTES_MAX = 20_000


class Ages:
    """Notes where a journal ended when."""

    def __init__(self) -> None:
        self._seqs: deque[Seq] = deque(maxlen=_NOTES_MAX)
        self._times: deque[float] = deque(maxlen=_NOTES_MAX)

    def note(self, head_seq: Seq) -> None:
        """The journal ends with *head_seq* now."""
        now = time.monotonic()
        if self._seqs and self._seqs[-1] >= head_seq:
            self._times[-1] = now  # it still does: what comes next is younger than this
        else:
            self._seqs.append(head_seq)
            self._times.append(now)

    def lag(self, seq: Seq, head_seq: Seq) -> float:
        """For how many seconds somebody who has everything up to *seq* has lacked something of a
        journal that ends with *head_seq*."""
        if seq >= head_seq or not self._seqs:
            return 0.0
        # The first that is lacking came after the last note that does not go beyond *seq*.
        at = bisect_left(self._seqs, seq + 1) - 1
        return time.monotonic() - self._times[max(at, 0)]
