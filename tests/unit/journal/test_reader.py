"""Reading ranges one after the other: each begins where the one before has ended."""

from pathlib import Path

import pytest

from fusejournal.journal.reader import END, JournalReader
from fusejournal.journal.segment import SegmentReader, first_seq_of
from fusejournal.types import Seq
from tests.support.volumes import open_volume


@pytest.mark.parametrize("first", [1, 2, 5])
def test_an_empty_range_is_empty_and_leaves_no_wrong_place(tmp_path: Path, first: int) -> None:
    with open_volume(tmp_path) as volume:
        volume.work(3)
        reader = JournalReader(volume.journal_dir)
        assert [one.seq for one in reader.read(Seq(1), Seq(first))] == list(range(1, first))
        for seq in (first, first - 1):
            assert not list(reader.read(Seq(first), Seq(seq)))
        after = [one.seq for one in reader.read(Seq(first), Seq(first + 4))]
        assert after == list(range(first, first + 4))


def test_what_a_journal_gains_is_read_without_what_was_before(tmp_path: Path) -> None:
    with open_volume(tmp_path) as volume:
        reader = JournalReader(volume.journal_dir)
        seen: list[int] = []
        for number in range(80):  # over several segments
            volume.work(1, number)
            following = Seq(len(seen) + 1)
            path = reader.segments()[-1]
            with SegmentReader(path) as segment:
                begin = reader._begin(path, segment, following)
            if first_seq_of(path) < following:
                assert begin is not None
                assert begin.seq == following
            seen += [one.seq for one in reader.read(following, END)]
            assert seen == list(range(1, len(seen) + 1))
            assert not list(reader.read(Seq(len(seen) + 1), END))
        assert len(reader.segments()) > 2
