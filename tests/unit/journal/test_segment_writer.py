"""The space ahead of the end of the segment that is written."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from fusejournal.disk import failpoints
from fusejournal.errors import JournalFullError
from fusejournal.journal.journal import Journal
from fusejournal.journal.segment_writer import JournalOptions
from fusejournal.operations import Write
from fusejournal.types import SYSTEM_CALLER, Fid, Seq
from tests.support.disks import SmallDisk
from tests.support.entries import UUID_OF_TESTS

_DISK_MIB = 64


@pytest.fixture(autouse=True)
def _no_fault_left() -> Iterator[None]:
    yield
    failpoints.listen(None)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[SmallDisk]:
    found = SmallDisk(tmp_path / "image", tmp_path / "disk", _DISK_MIB)
    yield found
    found.remove()


def append(journal: Journal, size: int) -> None:
    write = Write(Fid(7), 0, None)
    data = os.urandom(size)
    journal.append(write, SYSTEM_CALLER, journal.last_time_ns + 1, lambda _: b"path", data)


def commits(disk: SmallDisk) -> int:
    """The number of commits of the file system's own journal."""
    info = Path(f"/proc/fs/jbd2/{Path(disk.device).name}-8/info").read_text()
    return int(info.split()[0])


def test_small_flushes_need_no_commit_of_the_file_system(disk: SmallDisk) -> None:
    journal = Journal.create(disk.mountpoint, UUID_OF_TESTS, JournalOptions())
    journal.sync()
    made = []
    for is_prepared in (False, True):
        before = commits(disk)
        for _ in range(40):
            append(journal, 4096)
            if is_prepared:
                journal.write_ahead()
            journal.sync()
        made.append(commits(disk) - before)
    assert made[0] >= 40
    assert made[1] <= 4
    journal.close()


def test_zeros_ahead_overwrite_no_entry(tmp_path: Path) -> None:
    options = JournalOptions(
        segment_bytes=1 << 18, preallocate_bytes=1 << 16, reserve_bytes=1 << 14
    )
    journal = Journal.create(tmp_path, UUID_OF_TESTS, options)
    for number in range(300):
        append(journal, number * 97 % 5000)
        if number % 3 == 0:
            journal.write_ahead()
        if number % 7 == 0:
            journal.sync()
    assert len(list(journal.reader.read(Seq(1), Seq(301)))) == 300
    # As after a kill: what is ahead of the end is there, and no entry.
    again = Journal.open(tmp_path, UUID_OF_TESTS, options, unclean_machine=True)
    assert (again.head, again.repairs) == (journal.head, [])
    append(again, 100)
    again.write_ahead()
    append(again, 100)
    assert len(list(again.reader.read(Seq(1), Seq(303)))) == 302
    again.close()


def test_large_flushes_are_not_prepared(tmp_path: Path) -> None:
    journal = Journal.create(tmp_path, UUID_OF_TESTS, JournalOptions())
    seen: list[str] = []
    failpoints.listen(seen.append)
    append(journal, 1 << 20)
    journal.write_ahead()
    assert "journal.ahead" not in seen
    journal.sync()
    journal.write_ahead()
    assert seen.count("journal.ahead") == 1
    journal.write_ahead()
    assert seen.count("journal.ahead") == 1
    journal.close()


def test_space_that_was_cut_off_is_written_anew(tmp_path: Path) -> None:
    """And a disk that refuses it costs nothing but speed."""
    journal = Journal.create(tmp_path, UUID_OF_TESTS, JournalOptions())
    failpoints.listen(failpoints.PlannedFault("journal.ahead", 1, "ENOSPC"))
    journal.write_ahead()
    journal.write_ahead()
    failpoints.listen(failpoints.PlannedFault("journal.append", 1, "ENOSPC"))
    with pytest.raises(JournalFullError):
        append(journal, 10)
    failpoints.listen(None)
    for _ in range(3):
        append(journal, 10)
        journal.write_ahead()
        journal.sync()
    assert len(list(journal.reader.read(Seq(1), Seq(4)))) == 3
    journal.close()
