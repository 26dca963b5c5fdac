"""The progress of a node that applies a journal: how fast it is, how far behind in time, and
whether it is catching up. The same on both sides of a session.

Used from the event loop's thread."""

from collections import deque

import trio

from fusejournal.replication.lag import LagMeter
from fusejournal.types import Seq

_RATE_SECONDS = 10.0
_LIVE_SECONDS = 3.0
"""A node that is no further behind is up to date, but for what is on its way."""


class CatchUpMeter:
    """Measures the progress of one node; *lag_meter* knows how old entries are."""

    def __init__(self, lag_meter: LagMeter) -> None:
        self._goal_seq = Seq(0)
        """The end of the journal when the session began."""
        self._lag_meter = lag_meter
        self._samples: deque[tuple[float, Seq, int]] = deque()

    def begin(self, head_seq: Seq) -> None:
        """A session begins, while the journal ends with *head_seq*."""
        self._goal_seq = head_seq
        self.clear()

    def lag_seconds(self, applied_seq: Seq, head_seq: Seq) -> float:
        """Returns how long something has been lacking that is in the journal, which ends with
        *head_seq*."""
        return self._lag_meter.lag(applied_seq, head_seq)

    def is_catching_up(self, applied_seq: Seq, head_seq: Seq) -> bool:
        """Returns True if there is more to apply than what comes now."""
        return applied_seq < self._goal_seq or (
            self.lag_seconds(applied_seq, head_seq) > _LIVE_SECONDS
        )

    def sample(self, applied_seq: Seq, transferred_bytes: int) -> None:
        """Everything up to *applied_seq* is applied now. Called about once a second."""
        now = trio.current_time()
        self._samples.append((now, applied_seq, transferred_bytes))
        while self._samples[0][0] < now - _RATE_SECONDS:
            self._samples.popleft()

    def clear(self) -> None:
        """Measure anew: what comes next does not follow."""
        self._samples.clear()

    def rates(self) -> tuple[float, float]:
        """Entries that are applied, and bytes that are transferred, a second."""
        if len(self._samples) < 2:
            return 0.0, 0.0
        (began, seq, size), (ended, last_seq, last_size) = self._samples[0], self._samples[-1]
        seconds = max(ended - began, 0.001)
        return (last_seq - seq) / seconds, (last_size - size) / seconds

    def eta_seconds(self, lag_entries: int) -> float | None:
        """Returns when so many entries will be applied, at this rate; None where that is not
        known."""
        entries_rate, _ = self.rates()
        return round(lag_entries / entries_rate, 1) if entries_rate and lag_entries else None
