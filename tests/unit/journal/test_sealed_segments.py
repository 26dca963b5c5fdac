"""The list of sealed segments: the end of each, what they occupy, and what is left to do."""

import time
import tracemalloc
from pathlib import Path

import pytest

from fusejournal.journal import sealed_segments
from fusejournal.journal.index_making import write_index
from fusejournal.journal.journal import Journal
from fusejournal.journal.sealed_segments import SealedSegments
from fusejournal.journal.segment import first_seq_of, segment_path
from fusejournal.journal.segment_writer import JournalOptions
from fusejournal.operations import Write
from fusejournal.types import SYSTEM_CALLER, Fid, Seq
from tests.support.entries import UUID_OF_TESTS

OPTIONS = JournalOptions(segment_bytes=1 << 16, segment_entries=10)


@pytest.fixture
def journal(tmp_path: Path) -> Journal:
    journal = Journal.create(tmp_path, UUID_OF_TESTS, OPTIONS)
    for _ in range(35):
        time_ns = journal.next_time()
        journal.append(Write(Fid(7), 0, None), SYSTEM_CALLER, time_ns, lambda _: b"a", b"x" * 1000)
    return journal


def _starts(paths: list[Path]) -> list[int]:
    return [first_seq_of(path) for path in paths]


def test_what_is_not_flushed_is_left_alone(journal: Journal) -> None:
    assert len(journal.sealed) == 3
    assert journal.sealed.durable() == journal.sealed.compressible() == []
    journal.sync()
    assert _starts(journal.sealed.durable()) == [1, 11, 21]


def test_one_can_be_compressed_from_its_own_end_on(journal: Journal) -> None:
    journal.sync()
    ends = {20: [1], 21: [1, 11], 30: [1, 11], 31: [1, 11, 21]}
    for to_seq, starts in ends.items():
        assert _starts(journal.sealed.compressible(Seq(to_seq))) == starts
    for path in journal.sealed.compressible():
        journal.sealed.compress(path)
    assert journal.sealed.compressible() == []
    assert {path.suffix for path in journal.sealed.durable()} == {".fjz"}


def test_the_list_is_the_same_after_a_start(journal: Journal, tmp_path: Path) -> None:
    journal.sync()
    journal.sealed.compress(journal.sealed.durable()[0])
    write_index(journal.sealed.durable()[1])
    sizes = [journal.bytes_from(Seq(seq)) for seq in (1, 5, 11, 25, 31, 35, 36)]
    total_bytes = journal.total_bytes
    journal.close()
    again = Journal.open(tmp_path, UUID_OF_TESTS, OPTIONS, unclean_machine=False)
    again.sync()
    assert [again.bytes_from(Seq(seq)) for seq in (1, 5, 11, 25, 31, 35, 36)] == sizes
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[-1] == 0
    assert sizes[0] == again.total_bytes == total_bytes
    assert again.segment_count == 4
    assert _starts(again.sealed.without_index()) == [1, 21]
    again.close()


def test_many_of_them_take_little_memory() -> None:
    """Once each has its index; and little time, when it is asked what is left to do."""
    sealed, count = SealedSegments(3), 20_000
    tracemalloc.start()
    try:
        for number in range(count):
            first_seq = Seq(1 + number * 65_536)
            path = segment_path(Path("/somewhere/journal"), first_seq, number < count - 2)
            sealed.add(path, 1000, Seq(first_seq + 65_536))
            sealed._lacking_index.clear()
        own = tracemalloc.Filter(True, sealed_segments.__file__)
        traces = tracemalloc.take_snapshot().filter_traces([own]).traces
        assert sum(trace.size for trace in traces) < 30 * count
    finally:
        tracemalloc.stop()
    assert sealed.total_bytes == 1000 * count
    assert sealed.bytes_from(Seq(1 + 65_536 * (count - 3) + 32_768)) == 2500
    begun = time.process_time()
    for _ in range(100):
        assert len(sealed.compressible()) == 2
    assert time.process_time() - begun < 1  # and not the seconds that a look at each takes
    sealed.remove_last()
    assert len(sealed.compressible(Seq(1 + 65_536 * (count - 1)))) == 1
    assert sealed.compressible(Seq(65_536 * (count - 1))) == []
