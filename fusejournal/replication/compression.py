"""Chooses the zstd level of a link: the one at which compressing and sending take about as long.

Where senders wait for the link, a higher level makes less to send; where the link is faster than
the compression, a lower one does, down to none at all for large batches, which then go as they are.
What does not compress is tried again only now and then."""

_START_LEVEL = 1
_WEIGHT = 0.25
_BUSY = 1.5
_IDLE = 0.5
_POOR_RATIO = 0.97
_POOR_PAUSE = 16
_LARGE_BYTES = 256 << 10


class Compression:
    """Chooses ``level`` from what the last batches took. Times in seconds."""

    def __init__(self, level_max: int) -> None:
        self._level_max = level_max
        self.level = min(_START_LEVEL, level_max)
        self._compress = 0.0
        self._blocked = 0.0
        self._pause = 0
        self._unchanged = 0

    def level_for(self, size: int) -> int:
        """The level for a batch of *size* bytes; 0: as it is."""
        if self._pause and size >= _LARGE_BYTES:
            self._pause -= 1
            return 0
        if self.level == 0 and size < _LARGE_BYTES:
            return 1  # costs next to nothing, and small batches are what slow links see most
        return self.level

    def took(self, size: int, sent: int, compress_seconds: float, blocked_seconds: float) -> None:
        """A batch of *size* bytes became *sent*; what compressing took, and how long sending waited
        for the link."""
        self._compress += (compress_seconds - self._compress) * _WEIGHT
        self._blocked += (blocked_seconds - self._blocked) * _WEIGHT
        if size >= _LARGE_BYTES and compress_seconds and sent > size * _POOR_RATIO:
            self._pause = _POOR_PAUSE
        self._unchanged += 1
        if self._unchanged < 1 / _WEIGHT:
            return
        if self._blocked > _BUSY * self._compress and self.level < self._level_max:
            self.level += 1
            self._unchanged = 0
        elif self._blocked < _IDLE * self._compress and self.level > 0:
            self.level -= 1
            self._unchanged = 0
