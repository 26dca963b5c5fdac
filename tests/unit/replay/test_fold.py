"""Folding a directory: what it costs, however many names are in it."""

import os
from pathlib import Path

import pytest

from fusejournal.history.file_states import read_states
from fusejournal.history.lookup import Lookup
from fusejournal.journal import index
from fusejournal.journal import reader as reader_module
from fusejournal.journal.index_making import write_index
from fusejournal.journal.journal import Journal
from fusejournal.journal.reader import JournalReader
from fusejournal.journal.segment import SegmentReader, list_segments
from fusejournal.journal.segment_writer import JournalOptions
from fusejournal.operations import Create, Mkdir, Operation, Setxattr, Unlink, Write
from fusejournal.replay.fold import Fold
from fusejournal.replay.restore import restore
from fusejournal.types import ROOT_FID, SYSTEM_CALLER, Fid, Seq
from fusejournal.versions.blocks import BlockReader
from fusejournal.versions.create import create_version
from fusejournal.versions.restore import restore_version
from tests.support.entries import UUID_OF_TESTS
from tests.support.objects import MemoryStore
from tests.support.volumes import show_nothing
from tests.support.workload import make_directory, make_file, unlike, workload_of

_FILES, _LEVELS = 200, 3


def test_indexes_are_looked_at_once_a_level(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And not once for each name, which shows where they do not all fit into memory."""
    options = JournalOptions(segment_entries=25, preallocate_bytes=1 << 14, reserve_bytes=1 << 14)
    journal = Journal.create(tmp_path, UUID_OF_TESTS, options)

    def append(operation: Operation, data: bytes = b"") -> None:
        time_ns = journal.next_time()
        journal.append(operation, SYSTEM_CALLER, time_ns, lambda _: b"a", data)

    above, fid = ROOT_FID, Fid(2)
    for _ in range(_LEVELS):
        directory = fid
        append(Mkdir(directory, above, b"below", 0o755, 0, 0, None, None))
        for number in range(_FILES):
            fid = Fid(fid + 1)
            append(Create(fid, directory, b"%d" % number, 0o100644, 0, 0, 0, None))
            append(Write(fid, 0, None), b"content")
        above, fid = directory, Fid(fid + 1)
    journal.close()
    segments = list_segments(tmp_path)
    for path in segments:
        write_index(path)
    loads: list[Path] = []

    def load_index(path: Path, reader: SegmentReader) -> index.SegmentIndex | None:
        loads.append(path)
        return index.load_index(path, reader)

    monkeypatch.setattr(reader_module, "load_index", load_index)
    monkeypatch.setattr(reader_module, "_INDEX_BYTES_KEPT", 1)
    fold = Fold(Lookup(JournalReader(tmp_path, UUID_OF_TESTS)), Seq(journal.head_seq + 1))
    steps = list(fold.tree(ROOT_FID))
    writes = [step for step in steps if isinstance(step.operation, Write)]
    assert len(writes) == _FILES * _LEVELS
    assert len(segments) > 40
    assert len(loads) <= (2 * (_LEVELS + 1) + 2) * len(segments)


def test_a_file_whose_naming_was_taken_back_is_made_anew(tmp_path: Path) -> None:
    """One without a name that gets one while the disk is full, and then once more: the same fid is
    made twice."""
    workload = workload_of(
        make_directory(Fid(2), ROOT_FID, b"d"),
        make_file(Fid(3), Fid(2), b"a"),
        Setxattr(Fid(3), b"user.early", b"1"),
        Unlink(Fid(3), Fid(2), b"a"),
        make_file(Fid(3), Fid(2), b"b"),
        Setxattr(Fid(3), b"user.late", b"2"),
        make_file(Fid(4), Fid(2), b"c"),
    )
    workload.write(tmp_path / "journal")
    reader = JournalReader(tmp_path / "journal")
    model, end = workload.models[workload.head_seq], Seq(workload.head_seq + 1)
    restore(Lookup(reader), b"d", end, tmp_path / "directory", show_nothing)
    assert not unlike(tmp_path / "directory", model, Fid(2))
    restore(Lookup(reader), b"d/b", end, tmp_path / "file", show_nothing)
    assert os.listxattr(tmp_path / "file" / "b") == ["user.late"]
    store = MemoryStore()
    version = create_version(store, reader, workload.head_seq, "", "n", 1, show_nothing).version
    restore_version(BlockReader(store), version, b"", tmp_path / "version", show_nothing)
    assert not unlike(tmp_path / "version", model)
    fids = [Fid(3)]
    state = read_states(Lookup(reader), fids, end, Seq(0))[Fid(3)]
    assert list(state.xattrs) == [b"user.late"]
