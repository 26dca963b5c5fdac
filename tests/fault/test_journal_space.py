"""A journal occupies about what is in it, on every kind of file system: what was allocated ahead of
its end goes back when a segment is sealed or closed."""

import os
from pathlib import Path

import pytest

from fusejournal.disk import calls
from fusejournal.journal.journal import Journal
from fusejournal.journal.segment_writer import JournalOptions
from fusejournal.operations import Write
from fusejournal.types import SYSTEM_CALLER, Fid
from tests.support.entries import UUID_OF_TESTS
from tests.support.filesystems import filesystem

pytestmark = pytest.mark.mount

_RESTARTS = 30
_SLACK_BYTES = 2 << 20
"""Space that the file system takes for itself meanwhile, and that a last block does not fill."""


def _occupied_bytes(root: Path) -> int:
    fd = os.open(root, os.O_RDONLY)
    try:
        calls.syncfs("test.syncfs", fd)
        usage = os.fstatvfs(fd)
        return (usage.f_blocks - usage.f_bfree) * usage.f_frsize
    finally:
        os.close(fd)


def _write(journal: Journal, size: int) -> None:
    journal.append(
        Write(Fid(7), 0, None),
        SYSTEM_CALLER,
        journal.last_time_ns + 1,
        lambda _: b"file",
        os.urandom(size),
    )


@pytest.mark.parametrize("kind", ["ext4", "xfs", "btrfs"])
def test_sealed_segments_occupy_what_is_in_them(tmp_path: Path, kind: str) -> None:
    with filesystem(kind, tmp_path, "disk", 1024) as disk:
        before_bytes = _occupied_bytes(disk)
        journal = Journal.create(disk, UUID_OF_TESTS, JournalOptions(segment_bytes=256 << 10))
        for _ in range(3000):
            _write(journal, 3000)
        size = journal.total_bytes
        assert journal.segment_count > 30
        journal.close()
        assert _occupied_bytes(disk) - before_bytes < size * 1.35 + _SLACK_BYTES


@pytest.mark.parametrize("kind", ["ext4", "xfs", "btrfs"])
@pytest.mark.parametrize("end", ["close", "kill"])
def test_restarts_leave_little_allocated(tmp_path: Path, kind: str, end: str) -> None:
    with filesystem(kind, tmp_path, "disk", 1024) as disk:
        Journal.create(disk, UUID_OF_TESTS, JournalOptions()).close()
        before_bytes = _occupied_bytes(disk)
        for _ in range(_RESTARTS):
            journal = Journal.open(disk, UUID_OF_TESTS, JournalOptions(), unclean_machine=False)
            _write(journal, 30_000)
            journal.sync()
            if end == "close":
                journal.close()
            else:
                assert journal._current is not None
                os.close(journal._current.fd)
        journal = Journal.open(disk, UUID_OF_TESTS, JournalOptions(), unclean_machine=False)
        size = journal.total_bytes
        journal.close()
        left_bytes = _occupied_bytes(disk) - before_bytes - size
        assert left_bytes < _RESTARTS * (256 << 10) + _SLACK_BYTES
