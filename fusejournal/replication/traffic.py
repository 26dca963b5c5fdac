"""What was shipped to one peer since the node began, and how fast it goes now.

Used from the event loop's thread."""

from collections import deque
from dataclasses import dataclass, field

import trio

from fusejournal.types import Seq

_RATE_SECONDS = 10.0


@dataclass
class Traffic:
    """Counts, and samples of the last seconds."""

    batches: int = 0
    entries: int = 0
    content_bytes: int = 0
    """Of entries, before compression,"""
    sent_bytes: int = 0
    """and after."""
    resent_entries: int = 0
    errors: int = 0
    sessions: int = 0
    _samples: deque[tuple[float, Seq, int]] = field(default_factory=deque)

    def sent(self, entries: int, content_bytes: int, sent_bytes: int) -> None:
        """A batch was sent."""
        self.batches += 1
        self.entries += entries
        self.content_bytes += content_bytes
        self.sent_bytes += sent_bytes

    def sample(self, applied_seq: Seq) -> None:
        """The peer has applied up to *applied_seq* now. Called about once a second."""
        now = trio.current_time()
        self._samples.append((now, applied_seq, self.content_bytes))
        while self._samples[0][0] < now - _RATE_SECONDS:
            self._samples.popleft()

    def rates(self) -> tuple[float, float]:
        """Entries that the peer applies, and bytes of entries that are sent, a second."""
        if len(self._samples) < 2:
            return 0.0, 0.0
        (began, seq, size), (ended, last_seq, last_size) = self._samples[0], self._samples[-1]
        seconds = max(ended - began, 0.001)
        return (last_seq - seq) / seconds, (last_size - size) / seconds
