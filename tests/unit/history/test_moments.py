"""Moments as people type them, with the clock and the zone held still."""

import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fusejournal.history.moments import parse_moment

S = 10**9
M, H, D = 60 * S, 3600 * S, 86_400 * S

# As POSIX rules, so that no zone files are needed.
BERLIN = "CET-1CEST,M3.5.0,M10.5.0/3"
AUCKLAND = "NZST-12NZDT,M9.5.0,M4.1.0/3"
SANTIAGO = "<-04>4<-03>,M9.1.6/24,M4.1.6/24"

# Berlin, two hours ahead of UTC on that day: 2024-05-01T15:30:45.123456789+02:00.
NOW = 1_714_570_245 * S + 123_456_789
MIDNIGHT = 1_714_514_400 * S


@pytest.fixture(autouse=True)
def zone() -> Iterator[Callable[[str], None]]:
    """Local time is Berlin's unless the test sets another zone; afterwards all is as it was."""
    with pytest.MonkeyPatch.context() as patch:

        def set_zone(name: str) -> None:
            patch.setenv("TZ", name)
            time.tzset()

        set_zone(BERLIN)
        yield set_zone
    time.tzset()


def test_the_zone_is_set() -> None:
    assert datetime.fromtimestamp(NOW // S).isoformat() == "2024-05-01T15:30:45"
    assert datetime.fromtimestamp(MIDNIGHT // S).isoformat() == "2024-05-01T00:00:00"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        # dates and times
        ("2024-05-01", MIDNIGHT),
        ("2024-01-01", 1_704_063_600 * S),  # winter: one hour ahead
        ("2024-05-01T14:00", MIDNIGHT + 14 * H),
        ("2024-05-01 14:00", MIDNIGHT + 14 * H),
        ("2024-05-01t9:05", MIDNIGHT + 9 * H + 5 * M),
        ("2024-05-01 14:00:05", MIDNIGHT + 14 * H + 5 * S),
        ("2024-05-01T14:00:05.1", MIDNIGHT + 14 * H + 5 * S + 100_000_000),
        ("2024-05-01T14:00:05,000000001", MIDNIGHT + 14 * H + 5 * S + 1),
        ("2024-05-01T14:00:05.123456789Z", MIDNIGHT + 16 * H + 5 * S + 123_456_789),
        ("2024-05-01T14:00z", MIDNIGHT + 16 * H),
        ("2024-05-01T14:00+02:00", MIDNIGHT + 14 * H),
        ("2024-05-01 14:00 +0200", MIDNIGHT + 14 * H),
        ("2024-05-01 14:00-09", MIDNIGHT + 25 * H),
        ("2024-05-01T14:00-03:30", MIDNIGHT + 19 * H + 30 * M),
        ("1970-01-01T00:00Z", 0),
        ("1969-12-31T23:59:59.999999999Z", -1),
        ("2024-05-01T15:30:45.123456789+02:00", NOW),
        # times of day
        ("14:00", MIDNIGHT + 14 * H),
        ("9:30", MIDNIGHT + 9 * H + 30 * M),
        ("14:00:05", MIDNIGHT + 14 * H + 5 * S),
        ("14:00:05.25", MIDNIGHT + 14 * H + 5 * S + 250_000_000),
        ("23:00", MIDNIGHT + 23 * H),  # not over yet, and still today's
        # words
        ("now", NOW),
        ("NOW", NOW),
        ("today", MIDNIGHT),
        ("yesterday", MIDNIGHT - D),
        ("Yesterday 14:00", MIDNIGHT - 10 * H),
        ("yesterday 14:00:05.000000007", MIDNIGHT - 10 * H + 5 * S + 7),
        ("today 14:00", MIDNIGHT + 14 * H),
        ("  today \t 14:00 ", MIDNIGHT + 14 * H),
        # since 1970
        ("@1700000000", 1_700_000_000 * S),
        ("@1700000000.123", 1_700_000_000 * S + 123_000_000),
        ("@1700000000.000000001", 1_700_000_000 * S + 1),
        ("@0", 0),
    ],
)
def test_points(text: str, expected: int) -> None:
    assert parse_moment(text, NOW) == expected


@pytest.mark.parametrize(
    ("text", "before"),
    [
        *((f"2{unit} ago", 2 * S) for unit in ("s", "sec", "second", "seconds")),
        *((f"2 {unit} ago", 2 * M) for unit in ("m", "min", "minute", "minutes")),
        *((f"2 {unit} ago", 2 * H) for unit in ("h", "hour", "hours")),
        *((f"2{unit} ago", 2 * D) for unit in ("d", "day", "days")),
        *((f"-2 {unit}", 14 * D) for unit in ("w", "week", "weeks")),
        ("0 s ago", 0),
        ("1 DAY AGO", D),
        ("1h 30m ago", H + 30 * M),
        ("1h30m ago", H + 30 * M),
        ("-1h30m15s", H + 30 * M + 15 * S),
        ("- 90 min", 90 * M),
        ("1 day 2 hours ago", D + 2 * H),
        ("an hour ago", H),
        ("a day ago", D),
        ("a week an hour ago", 7 * D + H),
    ],
)
def test_spans(text: str, before: int) -> None:
    assert parse_moment(text, NOW) == NOW - before


@pytest.mark.parametrize(
    "text",
    [
        "", " ", "before-upgrade", "12", "20240501", "2024", "2024-05", "tomorrow", "todays",
        "nowadays", "now ago", "ago", "-", "-5", "5 ago", "5 months ago", "5 ms ago", "h ago",
        "2 hours", "2 hours from now", "-2 hours ago", "ahour ago", "1.5 hours ago", "hour 2 ago",
        "2024-02-30", "2023-02-29", "0000-01-01", "2024-13-01", "24:00", "14:60", "14:00:60", "14",
        "1:2", "14:00Z", "yesterday 25:00", "today yesterday", "yesterday14:00", "now 14:00",
        "2024-05-01T", "2024-05-01Z", "2024-05-01T14", "2024-05-01T14:00:05.",
        "2024-05-01T14:00.5", "2024-05-01T14:00:05.1234567890", "2024-05-01T14:00+24:00",
        "2024-05-01T14:00+02:60", "2024-05-01  x", "@", "@x", "@1.", "@.5", "@1.1234567890", "@-1",
        "@999999999999", "999999999999 weeks ago", "9" * 5000 + " s ago", "@" + "9" * 5000,
        "\u0662 hours ago", "\u0662\u0660\u0662\u0664-05-01", "2 wee\u212as ago",
        "0001-01-01", "0001-01-01T00:00+14:00", "9999-12-31T23:59-12:00",
    ],
)  # fmt: skip
def test_what_is_no_time(text: str) -> None:
    assert parse_moment(text, NOW) is None


def test_days_are_those_of_the_local_calendar(zone: Callable[[str], None]) -> None:
    zone(AUCKLAND)  # 2024-05-02T01:30:45+12:00 there
    assert parse_moment("today", NOW) == parse_moment("2024-05-02T00:00+12:00", NOW)
    assert parse_moment("1:00", NOW) == parse_moment("2024-05-02T01:00+12:00", NOW)
    zone("UTC0")
    assert parse_moment("2024-05-01T15:30", NOW) == parse_moment("2024-05-01T15:30Z", NOW)


def test_hours_that_the_clock_leaps_over_or_shows_twice() -> None:
    assert parse_moment("2024-03-31 02:30", NOW) == parse_moment("2024-03-31T02:30+01:00", NOW)
    assert parse_moment("2024-10-27 02:30", NOW) == parse_moment("2024-10-27T02:30+02:00", NOW)
    # Yesterday is the day before even where that day had 23 hours; a day ago is 24 hours.
    now_ns = parse_moment("2024-04-01 00:30", NOW)
    assert now_ns is not None
    assert parse_moment("yesterday", now_ns) == parse_moment("2024-03-31T00:00+01:00", NOW)
    assert parse_moment("1 day ago", now_ns) == parse_moment("2024-03-30T23:30+01:00", NOW)


def test_midnight_that_does_not_exist(zone: Callable[[str], None]) -> None:
    zone(SANTIAGO)  # on 2024-09-08 the clock went from 23:59:59 to 01:00
    assert parse_moment("2024-09-08", NOW) == parse_moment("2024-09-08T01:00-03:00", NOW)


@given(
    seconds=st.integers(-(2**31), 2**34),
    fraction=st.integers(0, S - 1),
    offset_minutes=st.integers(-23 * 60, 23 * 60),
    separator=st.sampled_from("Tt "),
)
def test_nanoseconds_survive_iso(
    seconds: int, fraction: int, offset_minutes: int, separator: str
) -> None:
    zoned = timezone(timedelta(minutes=offset_minutes))
    at = (datetime(1970, 1, 1, tzinfo=UTC) + timedelta(seconds=seconds)).astimezone(zoned)
    local, zone_text = at.isoformat(separator)[:19], at.isoformat()[19:]
    assert parse_moment(f"{local}.{fraction:09}{zone_text}", NOW) == seconds * S + fraction


@given(seconds=st.integers(0, 2**34), fraction=st.integers(0, S - 1))
def test_nanoseconds_survive_local_time_and_seconds_since_1970(seconds: int, fraction: int) -> None:
    at = datetime.fromtimestamp(seconds)
    expected = seconds * S + fraction
    assert parse_moment(f"@{seconds}.{fraction:09}", NOW) == expected
    if not at.fold:
        assert parse_moment(f"{at.isoformat()}.{fraction:09}", NOW) == expected


@given(st.text(), st.integers(0, 2**34 * S))
def test_any_text_is_a_time_or_none(text: str, now_ns: int) -> None:
    assert isinstance(parse_moment(text, now_ns), int | None)
