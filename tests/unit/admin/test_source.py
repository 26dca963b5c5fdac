"""Journals that can be opened, by which words, and what is asked of them in words."""

from pathlib import Path

import pytest

from fusejournal.admin.source import JournalSource, open_reader, open_source
from fusejournal.errors import (
    NoSuchMomentError,
    NoSuchSeqError,
    PathNotFoundError,
    UsageError,
    VolumeNotFoundError,
)
from fusejournal.journal.reader import END
from fusejournal.journal.segment import list_segments
from fusejournal.operations import Kind, Mark
from fusejournal.types import SYSTEM_CALLER
from tests.support.entries import make_directories


def test_sources(tmp_path: Path) -> None:
    make_directories(tmp_path, 300).close()
    first = list_segments(tmp_path)[0]
    assert open_source(str(first)).reader.segments() == [first]
    assert len(open_source(str(tmp_path)).reader.segments()) == 2
    assert open_reader([str(one) for one in list_segments(tmp_path)]).segments() == (
        list_segments(tmp_path)
    )
    with pytest.raises(VolumeNotFoundError):
        open_source(str(tmp_path / "nothing"))
    (tmp_path / "other").write_text("")
    with pytest.raises(UsageError, match="no segment"):
        open_source(str(tmp_path / "other"))


@pytest.fixture
def source(tmp_path: Path) -> JournalSource:
    """Entries 1 to 10 make directories d1 to d10, at 1 to 10 ns after 1970; 11 is a mark."""
    journal = make_directories(tmp_path, 10)
    journal.append(Mark("here"), SYSTEM_CALLER, 11, lambda _: b"")
    journal.close()
    return open_source(str(tmp_path))


def test_an_end_in_each_way(source: JournalSource) -> None:
    assert source.end_of(to_seq=4) == 5
    assert source.end_of(before_seq=4) == 4
    assert source.end_of(to_time="@0.000000004") == 5
    assert source.end_of(to_mark="here") == 12


def test_an_end_that_is_none(source: JournalSource) -> None:
    with pytest.raises(UsageError, match="give one of"):
        source.end_of()
    with pytest.raises(UsageError, match="give one of"):
        source.end_of(to_seq=4, to_mark="here")
    with pytest.raises(NoSuchSeqError, match="has 1 to 11"):
        source.end_of(to_seq=12)
    with pytest.raises(NoSuchMomentError):
        source.end_of(to_time="here")
    with pytest.raises(NoSuchMomentError, match="its first entry is 1, of 1970-01-01T00:00:00"):
        source.end_of(to_time="@0")
    with pytest.raises(NoSuchMomentError):
        source.end_of(to_mark="there")


def test_criteria_in_words(source: JournalSource) -> None:
    found = source.criteria(
        since="@0.000000003", until="here", ops=["mkdir,mark"], paths=["/d4"], only=["4-6"]
    )
    assert (found.from_seq, found.to_seq) == (3, 12)
    assert found.kinds == {Kind.MKDIR, Kind.MARK}
    assert found.paths == (b"d4",)
    assert found.only == ((4, 7),)
    assert source.criteria(from_seq=5, since="@0", to_seq=7).from_seq == 5
    assert source.criteria(paths=["/"]) == source.criteria()
    assert source.criteria().to_seq == END


def test_a_path_that_never_was(source: JournalSource) -> None:
    with pytest.raises(PathNotFoundError, match="/nowhere: never was in the journal"):
        source.criteria(paths=["nowhere"])
    assert source.criteria(paths=["nowhere"], check_paths=False).paths == (b"nowhere",)
    assert source.criteria(paths=["no*"]).paths == (b"no*",)
