"""Averages and histograms of how long flushes took. Each belongs to one thread at a time."""

from bisect import bisect_left

_AVERAGED = 64
"""The number of flushes over which what they take is averaged, by weights that fade."""


class Waits:
    """A histogram of how long callers waited for what they asked to be durable. ``counts`` has one
    number for each of ``BOUNDS`` (seconds, inclusive), and one for all that took longer."""

    BOUNDS = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)

    def __init__(self) -> None:
        self.counts = [0] * (len(self.BOUNDS) + 1)
        self.seconds = 0.0
        """The sum of them."""

    def took(self, seconds: float) -> None:
        """Count a caller that waited so long."""
        self.counts[bisect_left(self.BOUNDS, seconds)] += 1
        self.seconds += seconds


class Average:
    """A moving average, 0 before the first value; the first ones weigh alike."""

    def __init__(self) -> None:
        self.value = 0.0
        self._count = 0

    def add(self, value: float) -> None:
        """Count *value* in."""
        self._count = min(self._count + 1, _AVERAGED)
        self.value += (value - self.value) / self._count
