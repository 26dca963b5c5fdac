"""The segments of a directory while they are compressed, and where one has two files."""

import os
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from fusejournal.disk import failpoints
from fusejournal.journal.journal import Journal
from fusejournal.journal.reader import END, JournalReader
from fusejournal.journal.segment import list_segments
from fusejournal.journal.segment_writer import JournalOptions
from fusejournal.journal.verify import verify
from fusejournal.operations import Write
from fusejournal.types import SYSTEM_CALLER, Fid, Seq
from tests.support.entries import UUID_OF_TESTS

_OPTIONS = JournalOptions(segment_entries=20, preallocate_bytes=1 << 14, reserve_bytes=1 << 14)


@pytest.fixture(autouse=True)
def _no_fault_left() -> Iterator[None]:
    yield
    failpoints.listen(None)


def _filled(directory: Path, count: int = 100) -> Journal:
    journal = Journal.create(directory, UUID_OF_TESTS, _OPTIONS)
    for _ in range(count):
        time_ns = journal.next_time()
        journal.append(Write(Fid(3), 0, None), SYSTEM_CALLER, time_ns, lambda _: b"a", b"x" * 300)
    journal.sync()
    return journal


def _check_whole(directory: Path) -> None:
    paths = list_segments(directory)
    assert verify(paths, UUID_OF_TESTS, lambda done, total: None, deep=True).damages == []
    reader = JournalReader(directory, UUID_OF_TESTS)
    assert [entry.seq for entry in reader.read(Seq(1), END)] == list(range(1, 101))


def test_none_is_missed_while_they_are_compressed(tmp_path: Path) -> None:
    """A directory is read in pieces: what is renamed from one not read yet into one that was is
    seen all the same."""
    count = 1500
    for number in range(1, count + 1):
        (tmp_path / f"{number:020d}.fj").touch()
        (tmp_path / f"{number:020d}.fjx").touch()
    stop = threading.Event()

    def compress() -> None:
        while not stop.is_set():
            for old, new in ((".fj", ".fjz"), (".fjz", ".fj")):
                for number in range(count, 0, -1):
                    name = tmp_path / f"{number:020d}"
                    (tmp_path / "one.tmp").touch()
                    (tmp_path / "one.tmp").rename(name.with_suffix(new))
                    name.with_suffix(old).unlink()

    thread = threading.Thread(target=compress)
    thread.start()
    try:
        for _ in range(100):
            assert len(list_segments(tmp_path)) == count
    finally:
        stop.set()
        thread.join()


def test_a_whole_segment_counts_and_not_an_old_part_of_it(tmp_path: Path) -> None:
    """A copy that is added to and never cleaned up has both."""
    (tmp_path / "journal").mkdir()
    journal = _filled(tmp_path / "journal")
    copy = tmp_path / "copy"
    parts = journal.sealed.durable()[1:3]
    content = [path.read_bytes() for path in parts]
    for path in journal.sealed.compressible():
        journal.sealed.compress(path)
    journal.close()
    shutil.copytree(journal.directory, copy)
    for path, whole, cut in zip(parts, content, (0.5, 0.0), strict=True):
        (copy / path.name).write_bytes(whole[: int(len(whole) * cut)])
    _check_whole(copy)
    # A volume goes on with it, too, and removes nothing that it cannot account for.
    again = Journal.open(copy, UUID_OF_TESTS, _OPTIONS, unclean_machine=True)
    again.close()
    _check_whole(copy)
    assert all((copy / path.name).exists() for path in parts)


def test_a_torn_compressed_segment_does_not_count(tmp_path: Path) -> None:
    journal = _filled(tmp_path)
    path = journal.sealed.durable()[1]
    plain = path.read_bytes()
    journal.sealed.compress(path)
    journal.close()
    compressed = path.with_suffix(".fjz")
    compressed.write_bytes(compressed.read_bytes()[:-20])
    path.write_bytes(plain)
    assert path in list_segments(tmp_path)
    _check_whole(tmp_path)


def test_an_interrupted_compression_is_ended_by_the_next_start(tmp_path: Path) -> None:
    journal = _filled(tmp_path)
    path = journal.sealed.durable()[1]
    failpoints.listen(failpoints.PlannedFault("journal.compress.unlink", 1, "EIO"))
    with pytest.raises(OSError, match="Input/output"):
        journal.sealed.compress(path)
    failpoints.listen(None)
    assert path.exists()
    assert path.with_suffix(".fjz").exists()
    journal.close()
    _check_whole(tmp_path)
    again = Journal.open(tmp_path, UUID_OF_TESTS, _OPTIONS, unclean_machine=False)
    assert not path.exists()
    assert path not in again.sealed.compressible()
    again.close()
    _check_whole(tmp_path)


def test_what_killed_writers_have_begun_goes(tmp_path: Path) -> None:
    """Compressed segments and indexes that are not whole, as this release calls them, and 0.1.0;
    also of segments that are not there any more. Other files are none of the journal's."""
    _filled(tmp_path).close()
    begun = [f"{seq:020d}{end}" for seq in (1, 7777) for end in (".tmp", ".fjx.tmp", ".fjz.new")]
    others = ["notes.tmp", "1.tmp", f"{1:020d}.new", f"{1:020d}.fj.bak"]
    for name in begun + others:
        (tmp_path / name).write_bytes(b"half")
    Journal.open(tmp_path, UUID_OF_TESTS, _OPTIONS, unclean_machine=False, read_only=True).close()
    assert {*begun, *others} < {*os.listdir(tmp_path)}
    Journal.open(tmp_path, UUID_OF_TESTS, _OPTIONS, unclean_machine=False).close()
    left = {name for name in os.listdir(tmp_path) if (tmp_path / name).read_bytes() == b"half"}
    assert left == {*others}
    _check_whole(tmp_path)


def test_a_long_journal_is_not_listed_again_and_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A question that is asked every few seconds in the event loop costs what is new alone."""
    journal = _filled(tmp_path)
    from fusejournal.journal import index_making

    for path in journal.sealed.without_index():
        index_making.write_index(path)
    assert journal.sealed.without_index() == []

    def listed(_: object) -> None:
        raise AssertionError("listed")

    monkeypatch.setattr(os, "listdir", listed)
    monkeypatch.setattr(Path, "stat", listed)
    assert journal.sealed.without_index() == []
    assert len(journal.sealed.compressible()) == len(journal.sealed.durable()) == 4
    monkeypatch.undo()
    journal.close()
