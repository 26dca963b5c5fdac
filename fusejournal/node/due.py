"""The moments at which a work that is done again and again is due. Pure: the caller gives the time,
in seconds of a clock that never leaps and counts while the machine sleeps (CLOCK_BOOTTIME), so that
no other clock has a say in it, but for one question at the start: how long ago it was done last.

The moments lie on a grid, a period apart, each put off by its own chance part of a tenth of the
period: nodes that share a store do not all come at once, and an hourly work is done in each hour.
What was missed, because the machine was off or the work took long, is made up for once."""

import random
from collections.abc import Callable

_JITTER = 0.1
_JITTER_SECONDS_MAX = 600.0
_RETRY_SECONDS = 60.0
_RETRY_SECONDS_MAX = 3600.0


class Due:
    """The moments at which one work is due."""

    def __init__(
        self,
        every_seconds: float,
        now: float,
        done_seconds_ago: float | None,
        chance: Callable[[], float] = random.random,
    ) -> None:
        """*done_seconds_ago*: None if it never was. (Less than nothing, by a clock that was put
        back since, counts as just now.) *chance* returns a number from 0 to 1."""
        self._every = every_seconds
        self._chance = chance
        ago = every_seconds if done_seconds_ago is None else max(0.0, done_seconds_ago)
        self._base = now + max(0.0, every_seconds - ago)
        self.failures = 0
        """Its failures since it was done."""
        self.at = self._base + self._jitter()
        """The moment when it is due."""

    def _jitter(self) -> float:
        return self._chance() * min(self._every * _JITTER, _JITTER_SECONDS_MAX)

    def done(self, now: float, in_seconds: float | None = None) -> None:
        """Notes that it was done; next it is due a period later, or, if given, *in_seconds* from
        *now*."""
        self.failures = 0
        if in_seconds is not None or self._base > now:
            self._base = now + (self._every if in_seconds is None else in_seconds)
        else:
            periods = max(1, int((now - self._base) // self._every) + 1)
            self._base += periods * self._every
        self.at = self._base + self._jitter()

    def failed(self, now: float) -> None:
        """Notes that it failed: it is tried again soon, and less and less soon."""
        pause = min(_RETRY_SECONDS * 2.0 ** min(self.failures, 16), _RETRY_SECONDS_MAX)
        pause = min(pause, max(self._every, 1.0))
        self.failures += 1
        self.at = now + pause * (1 + _JITTER * self._chance())

    def hasten(self, now: float, in_seconds: float) -> None:
        """Notes that it is wanted *in_seconds* from *now* at the latest."""
        self.at = min(self.at, now + in_seconds)
