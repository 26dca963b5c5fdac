"""Keeps a copy of what a reconciliation is about to overwrite although it is newer than all that
the journal has.

After a system crash that is what an entry wrote which the journal lost; where the state
directory is an older one than was noticed, it may be a day's work. The copies lie in
STATE/overwritten/EPOCH-SEQ, named for where the journal ended, a file called FID for each; those of
the last ``_KEPT_TIMES`` losses stay. Copies are made whole or not at all, sparse where the file is,
and all of them before the first file is overwritten: a file ``complete`` says so to a
reconciliation that begins again, for which those that it overwrote itself look newer.

What is larger than ``_BYTES_MAX`` together, or than half of the space that is free, is not kept,
and that is reported."""

import os
import shutil
from pathlib import Path

from fusejournal.disk import calls, failpoints
from fusejournal.disk.errnos import CANNOT_GROW
from fusejournal.disk.files import Outlives, replacing
from fusejournal.types import Fid
from fusejournal.volume.volume import Volume

_DIRECTORY = "overwritten"
_KEPT_TIMES = 4
_BYTES_MAX = 4 << 30
_PIECE_BYTES = 8 << 20
_COMPLETE = "complete"


class KeptCopies:
    """The copies that the reconciliation of *volume* makes. See the module."""

    def __init__(self, volume: Volume) -> None:
        self._volume = volume
        journal = volume.journal
        self._known_ns = journal.last_time_ns
        self._above = journal.directory.parent / _DIRECTORY
        self._directory = self._above / f"{journal.epoch}-{journal.head_seq}"
        self._bytes = 0
        self.kept: list[bytes] = []
        """Paths of the files that were newer, and whose copy was made."""
        self.not_kept: list[bytes] = []
        """Paths of the files that were newer, and for whose copy there was no space."""

    def keep(self, fid: Fid) -> None:
        """Copy regular file *fid* if its content is newer than the journal. Raises OSError."""
        path = self._volume.catalog.path(fid) or b"?"
        target = self._directory / str(fid)
        if target.exists():
            self.kept.append(path)
        if target.exists() or (self._directory / _COMPLETE).exists():
            return
        fd = self._volume.tree.descriptor(fid)
        info = os.fstat(fd)
        if info.st_mtime_ns <= self._known_ns or info.st_size == 0:
            return
        if self._has_space(info.st_blocks * 512) and self._copy(fd, info.st_size, target):
            self.kept.append(path)
        else:
            self.not_kept.append(path)

    def keep_unknown(self, fid: Fid, name: bytes, directory: int) -> None:
        """Copy the regular file *name* in *directory*, which bears *fid*, is in no journal, and is
        about to be removed. Raises OSError."""
        target = self._directory / str(fid)
        fd = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=directory)
        try:
            info = os.fstat(fd)
            is_kept = target.exists() or (
                self._has_space(info.st_blocks * 512) and self._copy(fd, info.st_size, target)
            )
        finally:
            os.close(fd)
        (self.kept if is_kept else self.not_kept).append(name)

    def complete(self) -> None:
        """All files have been seen by :meth:`keep`. Raises OSError."""
        marker = self._directory / _COMPLETE
        if marker.exists():
            return
        try:
            self._make_directory()
            failpoints.reached("reconcile.keep.complete")
            marker.touch(mode=0o600)
            calls.fsync_directory("reconcile.keep.complete.directory", self._directory)
        except OSError as error:
            if error.errno not in CANNOT_GROW:
                raise

    def report(self) -> list[str]:
        """Returns what was kept and what not, in words; nothing where nothing was newer."""
        told = []
        if self.kept:
            told.append(
                f"{len(self.kept):,} files had content that is newer than the journal, the first "
                f"is {os.fsdecode(self.kept[0])!r}: it is kept in {self._directory}, by file id"
            )
        if self.not_kept:
            told.append(
                f"{len(self.not_kept):,} files had content that is newer than the journal, and no "
                f"space to keep it, the first is {os.fsdecode(self.not_kept[0])!r}"
            )
        return told

    def _has_space(self, size: int) -> bool:
        above = os.statvfs(self._above.parent)
        self._bytes += size
        return self._bytes <= _BYTES_MAX and size <= above.f_bavail * above.f_frsize // 2

    def _copy(self, fd: int, size: int, target: Path) -> bool:
        """Returns False where there was no space for it."""
        try:
            self._make_directory()
            with replacing("reconcile.keep", target, Outlives.MACHINE) as copy:
                for start, end in calls.data_ranges(fd, 0, size):
                    _copy_range(fd, copy, start, end)
                os.ftruncate(copy, size)
        except OSError as error:
            if error.errno not in CANNOT_GROW:
                raise
            return False
        return True

    def _make_directory(self) -> None:
        if self._directory.exists():
            return
        self._above.mkdir(mode=0o700, exist_ok=True)
        older = sorted(self._above.iterdir(), key=lambda path: path.stat().st_mtime_ns)
        for path in older[: 1 - _KEPT_TIMES]:
            shutil.rmtree(path)
        self._directory.mkdir(mode=0o700)
        calls.fsync_directory("reconcile.keep.make.directory", self._above)


def _copy_range(source: int, target: int, offset: int, end: int) -> None:
    while offset < end:
        data = os.pread(source, min(_PIECE_BYTES, end - offset), offset)
        if not data:
            return
        calls.write_all("reconcile.keep.write", target, data, offset)
        offset += len(data)
