"""Reading ranges one after the other: each begins where the one before has ended."""

from pathlib import Path

import pytest

from fusejournal.journal.reader import JournalReader
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
