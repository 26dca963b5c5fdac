"""Reading ranges one after the other: each begins where the one before has ended. Reading beside a
layer that begins a segment."""

import os
from contextlib import closing
from pathlib import Path
from unittest import mock

import pytest

from fusejournal.admin.source import open_reader
from fusejournal.journal import reader as reader_module
from fusejournal.journal import segment
from fusejournal.journal.cut_back import cut_back
from fusejournal.journal.frame_range import FrameRangeReader
from fusejournal.journal.journal import Journal
from fusejournal.journal.positions import position_at
from fusejournal.journal.reader import END, JournalReader
from fusejournal.journal.segment import SegmentReader, first_seq_of, list_segments, segment_path
from fusejournal.journal.segment_writer import JournalOptions
from fusejournal.journal.verify import verify
from fusejournal.operations import Mark
from fusejournal.types import SYSTEM_CALLER, Seq
from tests.support.entries import append_directories, make_directories
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
            with SegmentReader(path) as newest:
                begin = reader._begin(path, newest, following)
            if first_seq_of(path) < following:
                assert begin is not None
                assert begin.seq == following
            seen += [one.seq for one in reader.read(following, END)]
            assert seen == list(range(1, len(seen) + 1))
            assert not list(reader.read(Seq(len(seen) + 1), END))
        assert len(reader.segments()) > 2


def test_the_head_is_found_from_where_it_was(tmp_path: Path) -> None:
    """And anew where what was there is there no more."""
    journal = make_directories(tmp_path, 10)
    journal.sync()
    reader = JournalReader(tmp_path)
    fourth = position_at(reader, Seq(4))
    assert reader.head()[0] == 10
    append_directories(journal, 5)
    journal.sync()
    with mock.patch.object(SegmentReader, "frames", autospec=True, side_effect=_frames) as asked:
        assert reader.head()[0] == 15
    assert [call.args[1].seq for call in asked.call_args_list] == [10]
    append_directories(journal, 400)  # into another segment
    journal.close()
    assert reader.head()[0] == 415
    cut_back(tmp_path, fourth)
    assert reader.head()[0] == 4
    again = Journal.open(tmp_path, journal.uuid, JournalOptions(), unclean_machine=False)
    for _ in range(12):
        now = again.next_time()
        again.append(Mark("other"), SYSTEM_CALLER, now, lambda _: None)
    again.close()
    assert reader.head()[0] == again.head_seq == 16


_frames = SegmentReader.frames


def _begin_next(journal_dir: Path) -> Path:
    """The file of the segment that follows, as its maker leaves it before the header."""
    head_seq, _ = JournalReader(journal_dir).head()
    path = segment_path(journal_dir, Seq(head_seq + 1))
    path.touch()
    return path


def test_a_segment_that_could_not_be_begun_is_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a full disk its maker takes it away again: a reader beside it may have listed it."""
    with open_volume(tmp_path) as volume:
        volume.work(2)
        begun = _begin_next(volume.journal_dir)
        real = segment.list_segments

        def list_and_lose(directory: Path, made: dict[str, Path] | None = None) -> list[Path]:
            paths = real(directory, made)
            begun.unlink(missing_ok=True)
            return paths

        for module in (segment, reader_module):
            monkeypatch.setattr(module, "list_segments", list_and_lose, raising=False)
        reader = JournalReader(volume.journal_dir)
        assert [one.seq for one in reader.read(Seq(1), END)][-1] == volume.volume.journal.head_seq


def test_a_segment_that_is_being_begun_is_none(tmp_path: Path) -> None:
    """Whichever way the journal is named: as a directory, or as files; and for a peer that has all
    that is there."""
    with open_volume(tmp_path) as volume:
        volume.work(2)
        head_seq = volume.volume.journal.head_seq
        begun = _begin_next(volume.journal_dir)
        files = [str(path) for path in list_segments(volume.journal_dir)]
        assert files[-1] == str(begun)
        for texts in ([str(volume.journal_dir)], files):
            reader = open_reader(texts)
            assert [one.seq for one in reader.read(Seq(1), END)][-1] == head_seq
            report = verify(reader.segments(), None, lambda done, total: None)
            assert (report.last_seq, report.damages) == (head_seq, [])
        ranges = FrameRangeReader(volume.journal_dir, volume.volume.journal.uuid)
        with closing(ranges):
            assert ranges.seek(head_seq) == volume.volume.journal.head.chain
        begun.unlink()


def test_a_segment_that_is_gone_goes_by_the_name_it_was_asked_by(tmp_path: Path) -> None:
    path = segment_path(tmp_path, Seq(1))
    with pytest.raises(FileNotFoundError) as caught:
        SegmentReader(path)
    assert caught.value.filename == os.fspath(path)
