"""Times of entries, beside a clock that goes on, leaps ahead and is put back."""

import tempfile
from pathlib import Path
from typing import NamedTuple

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from fusejournal.history.lookup import Lookup
from fusejournal.journal import clock
from fusejournal.journal.journal import Journal
from fusejournal.journal.reader import END, JournalReader
from fusejournal.journal.segment_writer import JournalOptions
from fusejournal.operations import Clean, Void, Write
from fusejournal.types import SYSTEM_CALLER, Fid, Seq
from tests.support.entries import UUID_OF_TESTS
from tests.support.volumes import open_volume

_SECOND = 10**9
_HOUR = 3600 * _SECOND
_START = 1_790_000_000 * _SECOND
_OPTIONS = JournalOptions(segment_entries=6, preallocate_bytes=1 << 14, reserve_bytes=1 << 14)


class _Clock:
    """The machine's clocks, in a test's hands."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now, self.boot = _START, _HOUR
        monkeypatch.setattr(clock, "now_ns", lambda: self.now)
        monkeypatch.setattr(clock, "_boot_ns", lambda: self.boot)

    def go(self, seconds: float) -> None:
        self.now += int(seconds * _SECOND)
        self.boot += int(seconds * _SECOND)


class _Made(NamedTuple):
    seq: Seq
    clock_ns: int


def _append(journal: Journal, count: int = 1) -> None:
    for _ in range(count):
        journal.append(Write(Fid(3), 0, None), SYSTEM_CALLER, journal.next_time(), lambda _: b"a")


def _expected(made: list[_Made], time_ns: int) -> Seq:
    """The first seq after *time_ns*, by what the clock said: in the last range of entries through
    which the clock went on, of those that begin no later."""
    begin = 0
    runs: list[list[_Made]] = []
    for at in range(1, len(made) + 1):
        if at == len(made) or made[at].clock_ns < made[at - 1].clock_ns:
            runs.append(made[begin:at])
            begin = at
    for run in reversed(runs):
        if run[0].clock_ns <= time_ns:
            return Seq(max(one.seq for one in run if one.clock_ns <= time_ns) + 1)
    return Seq(1)


_STEPS = st.one_of(
    st.tuples(st.just("go"), st.integers(10, 2 * 3600)),
    st.tuples(st.just("leap"), st.sampled_from([-87600, -30, -2, -1, 1, 3, 50, 87600])),
    st.tuples(st.just("append"), st.integers(1, 8)),
    st.tuples(st.just("again"), st.just(0)),
)


@given(steps=st.lists(_STEPS, min_size=3, max_size=30))
@example([("append", 1), ("leap", -87600), ("append", 1), ("leap", 1), ("append", 1)])
@settings(max_examples=300, deadline=None)
def test_entries_are_found_by_what_the_clock_said(steps: list[tuple[str, int]]) -> None:
    with tempfile.TemporaryDirectory() as name, pytest.MonkeyPatch.context() as monkeypatch:
        directory = Path(name)
        machine = _Clock(monkeypatch)
        journal = Journal.create(directory, UUID_OF_TESTS, _OPTIONS)
        made: list[_Made] = []
        for what, amount in [*steps, ("append", 1)]:
            if what == "go":
                machine.go(amount)
            elif what == "leap":
                machine.now += amount * _HOUR
            elif what == "append":
                for _ in range(amount):
                    machine.go(10)
                    _append(journal)
                    made.append(_Made(journal.head_seq, machine.now))
            else:
                journal.sync()
                journal.close()
                journal = Journal.open(directory, UUID_OF_TESTS, _OPTIONS, unclean_machine=False)
        times = [entry.time_ns for entry in journal.reader.read(Seq(1), END)]
        assert times == sorted(set(times))
        lookup = Lookup(JournalReader(directory, UUID_OF_TESTS))
        for one in made:
            for time_ns in (one.clock_ns - 5 * _SECOND, one.clock_ns + 5 * _SECOND):
                assert lookup.seq_after(time_ns) == _expected(made, time_ns), (one, time_ns)
            assert lookup.seq_dated_after(times[one.seq - 1]) == one.seq + 1
        journal.close()


def test_what_a_clock_that_was_put_back_costs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is said for as long as it lasts; entries go on at the clock's speed; and when the clock
    has caught up they are of its time again."""
    machine = _Clock(monkeypatch)
    journal = Journal.create(tmp_path, UUID_OF_TESTS, _OPTIONS)
    _append(journal)
    assert journal.clock.faults(journal.last_time_ns) == []
    machine.now += 5 * _HOUR
    _append(journal)
    (words,) = journal.clock.faults(journal.last_time_ns)
    assert "leapt ahead by 18,000 s" in words
    machine.now -= 5 * _HOUR
    _append(journal)
    for _ in range(100):
        machine.go(60)
        _append(journal)
        assert journal.last_time_ns - machine.now <= 5 * _HOUR
        (words,) = journal.clock.faults(journal.last_time_ns)
        assert "the clock was put back" in words
    machine.go(4 * 3600)  # nothing happens: what is ahead shrinks
    _append(journal)
    assert journal.last_time_ns - machine.now < 2 * _HOUR
    machine.go(2 * 3600)
    _append(journal)
    assert 0 <= machine.now - journal.last_time_ns < _SECOND
    assert all("put back" not in words for words in journal.clock.faults(journal.last_time_ns))
    journal.close()


def test_a_void_follows_its_entry_whatever_the_clock_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine = _Clock(monkeypatch)
    journal = Journal.create(tmp_path, UUID_OF_TESTS, JournalOptions())
    for leap in (-3, 3, -30, 50):
        _append(journal)
        machine.now += leap * _HOUR
        void = Void(journal.head_seq, 28, 0)
        journal.append(void, SYSTEM_CALLER, journal.next_time(), lambda _: None)
    journal.append(Clean(), SYSTEM_CALLER, journal.next_time(), lambda _: None)
    for path in journal.reader.segments():
        _, first = journal.reader.beginning(path)
        assert first is not None
        assert not isinstance(first.operation, Void)
    journal.close()


def test_journals_that_crept_on_are_found_by_their_segments(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An earlier version wrote such: entries a nanosecond apart, in segments whose headers have the
    clock's time."""
    machine = _Clock(monkeypatch)
    journal = Journal.create(tmp_path, UUID_OF_TESTS, _OPTIONS)
    monkeypatch.setattr(
        journal.clock, "next", lambda last: max(clock.now_ns(), last + 1), raising=True
    )
    monkeypatch.setattr(journal.clock, "header_ns", lambda last: clock.now_ns())
    _append(journal, 3)
    machine.now += 87600 * _HOUR
    _append(journal, 3)
    machine.now -= 87600 * _HOUR
    for _ in range(5):
        machine.go(3600)
        _append(journal, 6)
    journal.close()
    lookup = Lookup(JournalReader(tmp_path, UUID_OF_TESTS))
    assert [lookup.seq_after(_START + hour * _HOUR + _HOUR // 2) for hour in range(1, 6)] == [
        13,
        19,
        25,
        31,
        37,
    ]


@pytest.mark.mount
def test_order_with_what_the_kernel_calls_now(tmp_path: Path) -> None:
    """A file that was written is never newer than one that is touched after it; nor is one that
    is touched newer than one that is written after it."""
    with open_volume(tmp_path) as opened:
        fid = opened.create("written", b"content")
        journal = opened.volume.journal
        for _ in range(300):
            opened.volume.commit(Write(fid, 0, None), SYSTEM_CALLER, b"x")
            touched = clock.now_ns()
            assert opened.volume.tree.stat(fid).st_mtime_ns <= touched
            journal.clock.touched(touched)
            opened.volume.commit(Write(fid, 0, None), SYSTEM_CALLER, b"y")
            assert opened.volume.tree.stat(fid).st_mtime_ns >= touched
            while clock.now_ns() == touched:
                pass
