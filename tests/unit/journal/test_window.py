"""The segments that are beyond the window of a policy."""

from pathlib import Path

import pytest

from fusejournal.journal import clock
from fusejournal.journal.journal import Journal
from fusejournal.journal.reader import JournalReader
from fusejournal.journal.segment_writer import JournalOptions
from fusejournal.journal.window import (
    PrunableSegment,
    aged_by_entries,
    beyond_window,
    prunable_segments,
)
from fusejournal.operations import Clean
from fusejournal.types import SYSTEM_CALLER, Seq
from tests.support.entries import UUID_OF_TESTS

_SEGMENTS = [
    PrunableSegment(Path(str(number)), Seq(number * 10), 100, number * 1000)
    for number in range(1, 6)
]


@pytest.mark.parametrize(
    ("keep_bytes", "keep_ns", "last_seq"),
    [
        (None, None, 0),
        (0, None, 50),
        (199, None, 40),
        (200, None, 30),
        (499, None, 10),
        (500, None, 0),
        (None, 0, 50),
        (None, 4000, 10),
        (None, 4001, 10),
        (None, 5000, 0),
        (499, 2500, 30),
        (150, 1 << 60, 40),
    ],
)
def test_what_is_beyond_goes(keep_bytes: int | None, keep_ns: int | None, last_seq: int) -> None:
    now_ns = 5999
    assert beyond_window(_SEGMENTS, now_ns, keep_bytes, keep_ns) == last_seq
    assert beyond_window([], now_ns, keep_bytes, keep_ns) == 0


_DAY_NS = 86_400 * 10**9
_OPTIONS = JournalOptions(segment_entries=4, preallocate_bytes=1 << 14, reserve_bytes=1 << 14)


def test_a_clock_that_was_put_back_once_makes_nothing_old(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Segments were begun while it was: what was written before is as young as it is."""
    begun_ns, wrong_days = 20_000 * _DAY_NS, 3650
    monkeypatch.setattr(clock, "now_ns", lambda: begun_ns)
    journal = Journal.create(tmp_path, UUID_OF_TESTS, _OPTIONS)
    for day in range(10):
        is_wrong = day in (4, 5)
        now_ns = begun_ns + (day - wrong_days * is_wrong) * _DAY_NS
        monkeypatch.setattr(clock, "now_ns", lambda now_ns=now_ns: now_ns)
        for _ in range(4):
            journal.append(Clean(), SYSTEM_CALLER, journal.next_time(), lambda _: None)
    journal.close()
    segments = prunable_segments(JournalReader(tmp_path))
    ended_ns = [one.ended_ns for one in segments]
    assert ended_ns == sorted(ended_ns)
    assert len(segments) >= 9
    now_ns = begun_ns + 9 * _DAY_NS
    assert beyond_window(segments, now_ns, None, 10 * _DAY_NS) == 0
    assert 4 <= beyond_window(segments, now_ns, None, 7 * _DAY_NS) <= 8


_HOUR_NS = 3600 * 10**9


def _journal_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hours: list[float]) -> None:
    """Makes a journal with an entry at each of *hours*, as the clock says, 40 to a segment."""
    options = JournalOptions(segment_entries=40, preallocate_bytes=1 << 14, reserve_bytes=1 << 14)
    now_ns = 20_000 * _DAY_NS
    monkeypatch.setattr(clock, "now_ns", lambda: now_ns)
    journal = Journal.create(tmp_path, UUID_OF_TESTS, options)
    for hour in hours:
        now_ns = 20_000 * _DAY_NS + int(hour * _HOUR_NS)
        journal.append(Clean(), SYSTEM_CALLER, journal.next_time(), lambda _: None)
    journal.close()


_STEADY = [float(hour) for hour in range(0, 960, 2)]
"""Forty days."""
_YEAR = 8760.0


@pytest.mark.parametrize("leap_at", [400, 410, 439, 440, 479])
@pytest.mark.parametrize("ahead", [_YEAR, 8 * 24.0])
def test_a_clock_that_leapt_ahead_makes_nothing_old(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, leap_at: int, ahead: float
) -> None:
    """Entries were made while it was ahead: wherever in a segment the leap lies, it is told."""
    hours = [hour + ahead * (number >= leap_at) for number, hour in enumerate(_STEADY)]
    _journal_of(tmp_path, monkeypatch, hours)
    reader = JournalReader(tmp_path)
    aged_seq, span = aged_by_entries(reader, 30 * _DAY_NS)
    assert 80 <= aged_seq <= 120  # ten days of forty, by segments of 80 hours
    assert span is not None
    assert span.after_seq == leap_at
    assert abs(span.span_ns / _HOUR_NS - 2 - ahead) < 0.1
    if ahead == _YEAR:
        now_ns = 20_000 * _DAY_NS + int(hours[-1] * _HOUR_NS)
        segments = prunable_segments(reader)
        assert beyond_window(segments, now_ns, None, 30 * _DAY_NS) >= leap_at - 40


def test_a_clock_that_leapt_and_was_put_right_makes_nothing_old(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At four starts it was ahead; what is journaled then keeps its distance for a year."""
    hours = [hour + _YEAR * (number % 100 == 99) for number, hour in enumerate(_STEADY)]
    _journal_of(tmp_path, monkeypatch, hours)
    aged_seq, span = aged_by_entries(JournalReader(tmp_path), 30 * _DAY_NS)
    assert 40 <= aged_seq <= 120
    assert span is not None


def test_time_that_has_passed_makes_old(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nights and weekends without an entry count."""
    _journal_of(tmp_path, monkeypatch, [hour for hour in _STEADY if hour % 168 < 120])
    reader = JournalReader(tmp_path)
    aged_seq, span = aged_by_entries(reader, 30 * _DAY_NS)
    now_ns = 20_000 * _DAY_NS + int(_STEADY[-1] * _HOUR_NS)
    assert aged_seq >= beyond_window(prunable_segments(reader), now_ns, None, 30 * _DAY_NS) > 0
    assert span is None
    assert aged_by_entries(reader, 50 * _DAY_NS) == (0, None)
    assert aged_by_entries(reader, 0)[0] > aged_seq


def test_segments_that_are_compressed_meanwhile(tmp_path: Path) -> None:
    """Between the listing and the look at each, as a running layer compresses them."""
    journal = Journal.create(tmp_path, UUID_OF_TESTS, _OPTIONS)
    for _ in range(20):
        journal.append(Clean(), SYSTEM_CALLER, journal.next_time(), lambda _: None)
    journal.sync()
    reader = JournalReader(tmp_path)
    expected = [one.last_seq for one in prunable_segments(reader)]
    listed = reader.segments()
    for path in journal.sealed.durable():
        journal.sealed.compress(path)
    assert not listed[0].exists()
    found = prunable_segments(JournalReader(listed))
    assert [one.last_seq for one in found] == expected
    assert all(one.size for one in found)
    journal.close()
