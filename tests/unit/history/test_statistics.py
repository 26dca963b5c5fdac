"""Sums over entries, by one process or by several."""

import pickle
from pathlib import Path

import pytest

from fusejournal.errors import JournalDamagedError
from fusejournal.history.lookup import Lookup
from fusejournal.history.query import Criteria, find
from fusejournal.history.statistics import Tally, sum_matches, sum_segments
from fusejournal.journal.reader import JournalReader
from fusejournal.journal.segment import BadFrameError
from fusejournal.types import Seq
from tests.support.entries import make_directories, write_samples


def test_the_same_by_segments_and_by_matches(tmp_path: Path) -> None:
    write_samples(tmp_path, segment_entries=4).close()
    reader = JournalReader(tmp_path)
    told: list[tuple[int, int | None]] = []
    by_segments = sum_segments(reader.segments(), lambda *done: told.append(done))
    by_matches = sum_matches(find(Lookup(reader), Criteria()))
    count = len(reader.segments())
    assert told == [(number, count) for number in range(1, count + 1)]
    assert count > 2
    for name in ("entries", "refused", "bytes", "frame_bytes", "first", "last"):
        assert getattr(by_segments, name) == getattr(by_matches, name), name
    for name in ("operations", "users", "hours"):
        one, two = getattr(by_segments, name), getattr(by_matches, name)
        assert one.by_key() == two.by_key(), name
    assert sum(count for _, count, _ in by_matches.operations.by_size()) == by_matches.entries


def test_damage_names_its_segment(tmp_path: Path) -> None:
    make_directories(tmp_path, 600).close()
    paths = JournalReader(tmp_path).segments()
    raw = bytearray(paths[1].read_bytes())
    raw[-40] ^= 1
    paths[1].write_bytes(raw)
    with pytest.raises(JournalDamagedError) as found:
        sum_segments(paths, lambda *_: None)
    assert found.value.segment == paths[1]


def test_damage_goes_from_process_to_process() -> None:
    bad = BadFrameError(7, Seq(3), "why", torn=True, is_newer=True)
    assert vars(pickle.loads(pickle.dumps(bad))) == vars(bad)


def test_a_tally_of_many_keys_keeps_the_largest() -> None:
    tally = Tally()
    for key in range(100_001):
        tally.add(key, key)
    rows = tally.by_size()
    assert rows[0] == (100_000, 1, 100_000)
    assert rows[-1][0] is None
    assert sum(count for _, count, _ in rows) == 100_001
