"""The times of entries: from the kernel's coarse clock, growing, and honest about a clock that was
put back.

The kernel gives files that are touched the time of its coarse clock (``UTIME_NOW``), which stands
still between two ticks of it. An entry's time is a tick behind that clock, so that what is touched
after a write is never older than what was written; and it is not below a time that the kernel gave
since, so that what is written after a touch is never older than what was touched. (Within one tick
both cannot hold for what is written between two touches: it may be newer than the second by as
many nanoseconds as there were entries.)

Times grow strictly, so a clock that was put back cannot be followed at once. Entries then keep a
constant distance ahead of it, the *lead*, and with that they begin a segment: its header has the
clock's time, so a reader of the segment can tell the lead (:func:`lead_ns`), and find entries by
what the clock said when they were made. The lead shrinks whenever nothing is journaled for a
while, and is gone when the clock has caught up.

Used by the journal's owner alone. Source: clock_gettime(2), utimensat(2);
Documentation/core-api/timekeeping.rst of Linux."""

import time
from datetime import UTC, datetime
from typing import Final

_COARSE: Final = 5
"""CLOCK_REALTIME_COARSE, which Python's time module does not name."""
_TICK_NS: Final = int(time.clock_getres(_COARSE) * 1e9)
LAG_NS: Final = 5 * _TICK_NS
"""The time by which an entry is at most behind what the backing's kernel gives to the file that the
entry makes: a tick, one that begins between the two, and what a busy machine moves its coarse clock
on too late, which the kernel is ahead of then (since 6.13, for files that are looked at)."""
SLACK_NS: Final = 10**9
"""A clock that is put back by less, as time servers do all the time, is waited for."""
_LEAP_NS: Final = 3600 * 10**9
_REPORTED_NS: Final = 24 * _LEAP_NS
_TOUCH_NS: Final = 10**9


def now_ns() -> int:
    """The time that the kernel gives to files now."""
    return time.clock_gettime_ns(_COARSE)


def _boot_ns() -> int:
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME)


def lead_ns(header_time_ns: int, last_time_ns: int) -> int:
    """Returns how far the entries of a segment are ahead of the clock, which said *header_time_ns*
    when it was begun; the entry before it is of *last_time_ns*."""
    lead = last_time_ns + 1 - header_time_ns
    return lead if lead > SLACK_NS else 0


class EntryClock:
    """The clock of a journal's entries: see the module."""

    def __init__(self) -> None:
        self.lead_ns = 0
        """The time that the current segment's entries are ahead of the clock."""
        self.begins_ns: int | None = None
        """The clock's time where the next entry is to begin a segment, with a lead of its own."""
        self._touched_ns = 0
        self._seen_ns = self._seen_boot_ns = 0
        self._leapt_ns = self._leapt_boot_ns = 0

    def next(self, last_ns: int) -> int:
        """The time of the next entry; *last_ns* is the last one's. Sets ``begins_ns``."""
        now = now_ns()
        if not 0 <= now - self._seen_ns < SLACK_NS:
            # (A leap is none within less: the other clock need not be asked for each entry.)
            self._watch(now)
        lead = self.lead_ns
        self.begins_ns = None
        if self._is_apart(now, last_ns):
            self.begins_ns = now
            lead = lead_ns(now, last_ns)
        floor = now - _TICK_NS + lead
        if not lead and floor < self._touched_ns <= time.time_ns():
            floor = self._touched_ns
        return max(floor, last_ns + 1)

    def header_ns(self, last_ns: int) -> int:
        """Returns the time for the header of a segment that begins now, so that the lead is the one
        with which the next entry's time was made."""
        if self.begins_ns is not None:
            return self.begins_ns
        return last_ns + 1 - self.lead_ns if self.lead_ns else now_ns()

    def go_on(self, lead: int) -> None:
        """Go on with a segment whose entries are *lead* nanoseconds ahead of the clock."""
        self.lead_ns = lead

    def begun(self, header_time_ns: int, last_ns: int) -> None:
        """A segment was begun, with a header that says *header_time_ns*."""
        self.begins_ns = None
        self.lead_ns = lead_ns(header_time_ns, last_ns) if last_ns else 0

    def touched(self, time_ns: int) -> None:
        """A file was given *time_ns*: perhaps what the kernel calls now."""
        # (Since 6.13 what the kernel calls now can be ahead of its coarse clock, which a busy
        # machine may move on late.)
        if 0 <= time.time_ns() - time_ns < _TOUCH_NS:
            self._touched_ns = max(self._touched_ns, time_ns)

    def faults(self, last_ns: int) -> list[str]:
        """Returns what is wrong with the clock, a line each; *last_ns* is the last entry's time."""
        now = now_ns()
        if last_ns - now > SLACK_NS:
            return [
                f"the clock was put back, to {_shown(now)}: the last entry is of "
                f"{_shown(last_ns)}, and what is journaled now is dated ahead of the clock, until "
                "that has caught up; a time given to a command means the clock's, and finds it"
            ]
        if self._leapt_ns and _boot_ns() - self._leapt_boot_ns < _REPORTED_NS:
            return [
                f"the clock leapt ahead by {self._leapt_ns // 10**9:,} s, and entries with it: if "
                "it is wrong, put it right soon"
            ]
        return []

    def _is_apart(self, now: int, last_ns: int) -> bool:
        """True if the lead is not what it should be any more."""
        ahead = last_ns + 1 - now
        if ahead - self.lead_ns > SLACK_NS:
            return True
        return self.lead_ns > 0 and (ahead <= 0 or self.lead_ns - ahead > _LEAP_NS)

    def _watch(self, now: int) -> None:
        boot = _boot_ns()
        if self._seen_ns:
            leapt = (now - self._seen_ns) - (boot - self._seen_boot_ns)
            if leapt > _LEAP_NS:
                self._leapt_ns, self._leapt_boot_ns = leapt, boot
                # Only here: a process that only reads a journal should not wait for it to load.
                import logging

                log = logging.getLogger(__name__)
                log.warning("the clock leapt ahead by %d s", leapt // 10**9)
        self._seen_ns, self._seen_boot_ns = now, boot


def _shown(time_ns: int) -> str:
    return datetime.fromtimestamp(time_ns // 10**9, UTC).isoformat(" ")
