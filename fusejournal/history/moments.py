"""Moments as people type them, and the seqs that they mean in a journal.

All is in whole nanoseconds, never by way of a rounded float: a float of seconds since 1970 is only
good to some hundred nanoseconds, while two entries may lie one nanosecond apart.

============================================  ======================================================
typed                                         means
============================================  ======================================================
``2024-05-01``                                that day's 00:00, local
``2024-05-01T14:00:05.123456789+02:00``       that time; a blank for the T, seconds, fraction and
                                              zone (``Z``, ``+hh:mm``) as you like; no zone is local
``14:00``, ``14:00:05``                       today, local, even if that is yet to come
``now``, ``today``, ``yesterday``             this instant; that day's 00:00, local
``yesterday 14:00``, ``today 14:00``          that day, local
``2 hours ago``, ``1h 30m ago``, ``-90 min``  so much before now; a day is 24 hours, a week 7 days
``@1700000000.5``                             seconds since 1970 UTC
============================================  ======================================================

Capitals do not matter. A local time that the clock shows twice is the first of the two; one that
it leaps over is taken as if it had not leapt yet. Source: ISO 8601; PEP 495 (``fold``)."""

import re
import time
from collections.abc import Callable
from datetime import date, datetime, timedelta, timezone
from datetime import time as time_of_day
from functools import cached_property

from fusejournal.errors import NoSuchMomentError
from fusejournal.history.json_values import utc
from fusejournal.history.lookup import Lookup
from fusejournal.history.marks import find_mark
from fusejournal.types import Seq

_SECOND_NS = 10**9
_DAY_SECONDS = 86_400
_MIN_NS = (date(1, 1, 2) - date(1970, 1, 1)).days * _DAY_SECONDS * _SECOND_NS
_MAX_NS = (date(9999, 12, 31) - date(1970, 1, 1)).days * _DAY_SECONDS * _SECOND_NS
"""A day within what datetime can hold, so that every zone can show the time."""
_UNIT_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": _DAY_SECONDS, "w": 7 * _DAY_SECONDS}
"""The seconds of a unit, by its first letter."""

_FLAGS = re.ASCII | re.IGNORECASE
_FRACTION = r"[.,](?P<fraction>\d{1,9})"
_CLOCK = rf"(?P<hour>\d\d?):(?P<minute>\d\d)(?::(?P<second>\d\d)(?:{_FRACTION})?)?"
_ZONE = r"Z|(?P<sign>[+-])(?P<zone_hours>\d\d)(?::?(?P<zone_minutes>[0-5]\d))?"
_DATE = re.compile(rf"(?P<date>\d{{4}}-\d\d-\d\d)(?:[T ]{_CLOCK}(?: ?(?P<zone>{_ZONE}))?)?", _FLAGS)
_DAY = re.compile(rf"(?P<day>today|yesterday)(?: {_CLOCK})?", _FLAGS)
_SINCE_1970 = re.compile(rf"@(?P<seconds>\d{{1,12}})(?:{_FRACTION})?", _FLAGS)
_SPAN_PART = (
    r"(?:(\d{1,12}) ?|an? )"
    r"(s(?:ec(?:ond)?s?)?|m(?:in(?:ute)?s?)?|h(?:(?:ou)?rs?)?|d(?:ays?)?|w(?:eeks?)?)"
)
_SPAN_PARTS = re.compile(_SPAN_PART, _FLAGS)
_SPAN = rf"{_SPAN_PART}(?: ?{_SPAN_PART})*"
_AGO = re.compile(rf"(?P<ago>{_SPAN}) ago|- ?(?P<minus>{_SPAN})", _FLAGS)


def parse_moment(text: str, now_ns: int) -> int | None:
    """The time that *text* means at *now_ns*, both in nanoseconds since 1970 UTC, or None when it
    means none (or one outside the years 1 to 9999, which nothing could show)."""
    try:
        moment_ns = _parse(" ".join(text.split()), now_ns)
    except (ValueError, OverflowError):  # 30 February, 25 o'clock, the year 0
        return None
    return moment_ns if moment_ns is not None and _MIN_NS <= moment_ns < _MAX_NS else None


def _parse(words: str, now_ns: int) -> int | None:
    if words.lower() == "now":
        return now_ns
    if found := _DATE.fullmatch(words):
        return _at(date.fromisoformat(found["date"]), found, _zone(found))
    if found := _DAY.fullmatch(words) or _DAY.fullmatch(f"today {words}"):
        day = datetime.fromtimestamp(now_ns // _SECOND_NS).date()
        if found["day"].lower() == "yesterday":
            day -= timedelta(days=1)
        return _at(day, found, None)
    if found := _SINCE_1970.fullmatch(words):
        return int(found["seconds"]) * _SECOND_NS + _fraction_ns(found)
    if found := _AGO.fullmatch(words):
        return now_ns - _span_ns(found["ago"] or found["minus"])
    return None


def _at(day: date, clock: re.Match[str], zone: timezone | None) -> int:
    """*day* at the time of day in *clock* (00:00 if it has none), in *zone* or locally."""
    hour, minute, second = (int(clock[name] or 0) for name in ("hour", "minute", "second"))
    at = datetime.combine(day, time_of_day(hour, minute, second), zone)
    # Whole seconds, which the float holds exactly. (astimezone would take a local time that the
    # clock leaps over for one before the leap.)
    return int(at.timestamp()) * _SECOND_NS + _fraction_ns(clock)


def _zone(found: re.Match[str]) -> timezone | None:
    if found["zone"] is None:
        return None
    offset = timedelta(hours=int(found["zone_hours"] or 0), minutes=int(found["zone_minutes"] or 0))
    return timezone(-offset if found["sign"] == "-" else offset)


def _fraction_ns(found: re.Match[str]) -> int:
    return int((found["fraction"] or "").ljust(9, "0"))


def _span_ns(span: str) -> int:
    return _SECOND_NS * sum(
        int(number or 1) * _UNIT_SECONDS[unit[0].lower()]
        for number, unit in _SPAN_PARTS.findall(span)
    )


class Moments:
    """Finds the seqs that times and marks, as people type them, mean in one journal.

    Args:
        name: what the journal is called in errors.
        lookup: answers about the journal.
        head_seq: called, at most once, for the last entry with an outcome.

    "Now" is when the object was made."""

    def __init__(self, name: str, lookup: Lookup, head_seq: Callable[[], Seq]) -> None:
        self._name = name
        self._lookup = lookup
        self._head_seq = head_seq
        self._now_ns = time.time_ns()

    def since(self, text: str) -> Seq:
        """Returns the first seq at or after a time or mark. Raises NoSuchMomentError."""
        time_ns = parse_moment(text, self._now_ns)
        if time_ns is not None:
            return self._seq_after(time_ns - 1)
        return self._time_or_mark(text)

    def until(self, text: str) -> Seq:
        """Returns the first seq after a time or mark: the end, half-open, of all up to it. Raises
        NoSuchMomentError."""
        time_ns = parse_moment(text, self._now_ns)
        if time_ns is not None:
            return self._seq_after(time_ns)
        return Seq(self._time_or_mark(text) + 1)

    def is_before(self, text: str, time_ns: int) -> bool:
        """Returns True if *text* means a time before *time_ns*."""
        found_ns = parse_moment(text, self._now_ns)
        return found_ns is not None and found_ns < time_ns

    def at_time(self, text: str, nearest: Callable[[Seq], str] = lambda _: "") -> Seq:
        """Returns the end, half-open, of all up to a time, which must not be before the journal;
        *nearest* says then which moments near the first entry there are. Raises
        NoSuchMomentError."""
        time_ns = parse_moment(text, self._now_ns)
        if time_ns is None:
            raise NoSuchMomentError(f"{text!r} is no time (2026-01-31 14:00, '2 hours ago')")
        if time_ns > max(self._now_ns, self.last_time_ns):
            raise NoSuchMomentError(f"{text!r} is yet to come")
        before_seq = self._seq_after(time_ns)
        first_seq = self._lookup.reader.first_seq
        base = self._lookup.base
        is_of_base = base is not None and base.base.time_ns <= time_ns
        if before_seq < first_seq or (before_seq == first_seq and not is_of_base):
            raise NoSuchMomentError(
                f"{text!r} is before the journal: its first entry is {first_seq}"
                + self._time_of_first()
                + nearest(Seq(first_seq - 1))
            )
        return before_seq

    def _time_of_first(self) -> str:
        reader = self._lookup.reader
        for entry in reader.read(reader.first_seq, Seq(reader.first_seq + 1)):
            return f", of {utc(entry.time_ns)}"
        return ""

    def at_mark(self, name: str) -> Seq:
        """Returns the end, half-open, of all up to a mark. Raises NoSuchMomentError."""
        seq = find_mark(self._lookup, name)
        if seq is None:
            raise NoSuchMomentError(
                f"{self._name} has no mark {name!r}; it has: fusejournal mark {self._name} --list"
            )
        return Seq(seq + 1)

    def _time_or_mark(self, text: str) -> Seq:
        seq = find_mark(self._lookup, text)
        if seq is None:
            raise NoSuchMomentError(
                f"{text!r} is neither a time (2026-01-31 14:00, '2 hours ago') nor a mark of "
                f"{self._name}; its marks: fusejournal mark {self._name} --list"
            )
        return seq

    @cached_property
    def last_time_ns(self) -> int:
        """The date of the last entry, which is yet to come where the clock was put back since."""
        head_seq = self._head_seq()
        last = next(self._lookup.reader.read(head_seq, Seq(head_seq + 1)), None)
        return last.time_ns if last is not None else 0

    def _seq_after(self, time_ns: int) -> Seq:
        """The first seq after a time. One that is yet to come can only be an entry's date."""
        if time_ns > self._now_ns:
            return self._lookup.seq_dated_after(time_ns)
        return self._lookup.seq_after(time_ns)
