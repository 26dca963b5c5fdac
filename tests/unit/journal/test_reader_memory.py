"""A reader keeps few indexes, and of the others what tells which of them are needed."""

from pathlib import Path

import pytest

from fusejournal.history.lookup import Lookup
from fusejournal.journal import reader as reader_module
from fusejournal.journal.index import SegmentIndex, load_index
from fusejournal.journal.index_making import write_index
from fusejournal.journal.journal import Journal
from fusejournal.journal.reader import END, JournalReader
from fusejournal.journal.segment import SegmentReader, list_segments
from fusejournal.journal.segment_writer import JournalOptions
from fusejournal.operations import Create, Write
from fusejournal.types import ROOT_FID, SYSTEM_CALLER, Fid, Seq
from tests.support.entries import UUID_OF_TESTS

_FILES = 40


@pytest.fixture
def journal(tmp_path: Path) -> Path:
    """A journal with a file in each segment, that is written only there."""
    journal = Journal.create(tmp_path, UUID_OF_TESTS, JournalOptions(segment_entries=4))
    for number in range(_FILES):
        fid, name = Fid(2 + number), b"f%d" % number
        journal.append(
            Create(fid, ROOT_FID, name, 0o100644, 0, 0, 0, None), SYSTEM_CALLER,
            10 * number + 1, {ROOT_FID: b""}.get,
        )  # fmt: skip
        for at in range(3):
            journal.append(
                Write(fid, at, None), SYSTEM_CALLER, 10 * number + 2 + at, {fid: name}.get, b"x"
            )
    journal.close()
    for path in list_segments(tmp_path)[:-1]:
        write_index(path)
    return tmp_path


def test_what_is_not_kept_is_loaded_where_it_is_needed(
    journal: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reader_module, "_INDEX_BYTES_KEPT", 1)
    loaded: list[Path] = []

    def load_noted(path: Path, reader: SegmentReader) -> SegmentIndex | None:
        loaded.append(path)
        return load_index(path, reader)

    monkeypatch.setattr(reader_module, "load_index", load_noted)
    reader = JournalReader(journal)
    segments = reader.segments()
    for number in range(_FILES):
        lookup = Lookup(reader)
        loaded.clear()
        fid = Fid(2 + number)
        assert len(list(lookup.entries_of(fid))) == 4
        assert lookup.fid_at(b"f%d" % number, END) == fid
        assert lookup.path_before(fid, END) == b"f%d" % number
        if number:
            assert set(loaded) <= {segments[number], segments[-1]}
    assert len(reader._indexes) <= 2
    assert lookup.tenures(b"nosuch") == []


def test_nothing_is_kept_of_another_history(journal: Path) -> None:
    """A journal is another one, too, where its segments begin with the same seqs."""
    reader = JournalReader(journal)
    assert Lookup(reader).fid_at(b"f7", END) == Fid(9)
    segments = len(reader.segments())
    for path in journal.glob("*.fj*"):
        path.unlink()
    other = Journal.create(journal, UUID_OF_TESTS, JournalOptions(segment_entries=4))
    for number in range(_FILES):
        for at in range(4):
            fid, name = Fid(2 + 4 * number + at), b"g%d" % (4 * number + at)
            create = Create(fid, ROOT_FID, name, 0o100644, 0, 0, 0, None)
            other.append(create, SYSTEM_CALLER, 10 * number + at + 1, {ROOT_FID: b""}.get)
    other.close()
    lookup = Lookup(reader)
    assert len(reader.segments()) == segments
    assert lookup.fid_at(b"f7", END) is None
    assert [lookup.fid_at(b"g%d" % at, END) for at in range(160)] == list(range(2, 162))


def test_even_that_is_bounded(journal: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reader_module, "_INDEX_BYTES_KEPT", 1)
    monkeypatch.setattr(reader_module, "_CONTENTS_BYTES_KEPT", 200)
    reader = JournalReader(journal)
    lookup = Lookup(reader)
    for number in range(_FILES):
        assert [entry.seq for entry, _ in lookup.entries_of(Fid(2 + number))] == [
            Seq(4 * number + at) for at in range(1, 5)
        ]
    assert reader._contents_bytes <= 200
    assert sum(one.nbytes for one in reader._contents.values()) == reader._contents_bytes
