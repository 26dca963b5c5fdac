"""The one way in which a small file is replaced: a new one beside it, then a rename.

A reader of the path finds the old content or the new, whole, at every instruction at which the
writer may end. Each caller chooses what the replacement must outlive (:class:`Outlives`).

The new file is called as the old one with ``.new`` behind it. One that a killed writer left is
written anew by the next. Two writers of one path, in one process or two, wait for each other: the
new file is locked (flock(2)) from before it is emptied until after it has its name.

Each step has a failpoint: LABEL.write (with :func:`write_atomically`), LABEL.sync, LABEL.rename,
LABEL.directory. All functions block.

Source: rename(2), fsync(2), flock(2), open(2) on O_NOFOLLOW."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from enum import Enum, auto
from pathlib import Path

from fusejournal.disk import calls

NEW_SUFFIX = ".new"
"""Behind a file's name: the name of the one that is to replace it."""
UNREADABLE_JSON = (
    *(ValueError, KeyError, TypeError, AttributeError),
    *(OverflowError, RecursionError),  # of an infinite number, and of lists in lists
)
"""The errors in which JSON that is not as it was written ends."""
_FLAGS = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


class Outlives(Enum):
    """Ends of the writer that a replacement survives, whole."""

    PROCESS = auto()
    """The process: the kernel has it, and nothing waits for the disk."""
    MACHINE = auto()
    """The machine: content and name are on the disk when the write returns."""


def write_atomically(
    label: str,
    path: str | os.PathLike[str],
    content: bytes,
    outlives: Outlives,
    *,
    mode: int = 0o600,
    dir_fd: int | None = None,
) -> None:
    """Replaces a file, or makes it.

    Args:
        label: of its storage calls.
        path: the file.
        content, mode: what it gets.
        outlives: what this must survive, once it returns.
        dir_fd: a descriptor of the directory that *path* is relative to.

    Raises OSError: the file is as before then, or, where only the directory's flush failed, already
    the new one."""
    with replacing(label, path, outlives, mode=mode, dir_fd=dir_fd) as fd:
        calls.write_all(f"{label}.write", fd, content)


@contextmanager
def replacing(
    label: str,
    path: str | os.PathLike[str],
    outlives: Outlives,
    *,
    mode: int = 0o600,
    dir_fd: int | None = None,
) -> Iterator[int]:
    """Yields the descriptor of an empty file, to be read and written, that replaces the one at
    *path* at the end of the block; a block that raises leaves all as it was. Otherwise as
    :func:`write_atomically`."""
    new = os.fspath(path) + NEW_SUFFIX
    fd = _open_alone(new, dir_fd)
    try:
        try:
            os.fchmod(fd, mode)
            yield fd
            if outlives is Outlives.MACHINE:
                calls.fsync(f"{label}.sync", fd)
            calls.rename(f"{label}.rename", new, path, dir_fd)
        except BaseException:
            # Half of it may be the rest of a full disk.
            with suppress(OSError):
                os.unlink(new, dir_fd=dir_fd)
            raise
    finally:
        os.close(fd)
    if outlives is Outlives.MACHINE:
        if dir_fd is None:
            calls.fsync_directory(f"{label}.directory", Path(path).parent)
        else:
            calls.fsync(f"{label}.directory", dir_fd)


def make_directories(label: str, path: Path, *, mode: int = 0o700) -> None:
    """Makes the directory *path* with *mode*, and those above it that are missing: their names are
    on the disk when this returns. Those that are there stay as they are. Failpoint: LABEL. Raises
    OSError."""
    missing = []
    while not path.is_dir():
        missing.append(path)
        path = path.parent
    for one in reversed(missing):
        one.mkdir(mode=mode, exist_ok=True)
        calls.fsync_directory(label, one.parent)


def remove(label: str, path: Path) -> None:
    """Removes the file *path* for good: its name does not come back after a system crash.
    It may be gone already, and its directory too. Failpoints: LABEL.unlink, LABEL.directory. Raises
    OSError."""
    with suppress(FileNotFoundError):
        calls.unlink(f"{label}.unlink", path)
    with suppress(FileNotFoundError):
        calls.fsync_directory(f"{label}.directory", path.parent)


def write_new(label: str, path: Path, content: bytes, *, mode: int = 0o600) -> None:
    """Makes the file *path*, which must not be there, with *content* on the disk; its name is, once
    its directory is flushed. Failpoints: LABEL.write, LABEL.sync. Raises OSError; half of it may be
    there then."""
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
    try:
        calls.write_all(f"{label}.write", fd, content)
        calls.fsync(f"{label}.sync", fd)
    finally:
        os.close(fd)


def _open_alone(new: str, dir_fd: int | None) -> int:
    """Returns the descriptor of an empty file *new* that no other writer has."""
    while True:
        fd = os.open(new, _FLAGS, 0o600, dir_fd=dir_fd)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
            # The writer before has renamed it, or removed it, while this one waited.
            if _is_called(fd, new, dir_fd):
                os.ftruncate(fd, 0)
                return fd
        except BaseException:
            os.close(fd)
            raise
        os.close(fd)


def _is_called(fd: int, name: str, dir_fd: int | None) -> bool:
    try:
        found = os.stat(name, dir_fd=dir_fd, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return os.path.samestat(found, os.fstat(fd))
