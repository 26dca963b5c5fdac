"""A temporary directory for one work, which goes with it: also where the process is killed, because
the next work that needs one removes what those before have left.

It lies in TMPDIR, which may be a directory in which users can make names. A file in it is
locked by flock(2) as long as the work lasts; children that a process forks hold the lock, too. Only
a directory whose name begins with ``_PREFIX``, that is the caller's own, that no other user can
enter, and whose lock is free is removed, by descriptors alone. So nothing of a work of another
version is, which locks nothing.

Blocks; used from any thread. Source: flock(2), mkdtemp(3), inode(7)."""

import fcntl
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_PREFIX = "fusejournal-work."
_LOCK = "lock"
_WORK = "work"
_FLAGS_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_FLAGS_LOCK = os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC


@contextmanager
def temporary_directory() -> Iterator[Path]:
    """Yields an empty directory, which is the caller's alone, and is removed at the end of the
    block; first removes those of works that were killed. Raises OSError."""
    remove_left()
    directory, lock_fd = _make()
    try:
        work = directory / _WORK
        work.mkdir(mode=0o700)
        yield work
    finally:
        # The lock last, so that what is left is found by the next.
        with suppress(OSError):
            shutil.rmtree(directory / _WORK)
            (directory / _LOCK).unlink()
            directory.rmdir()
        os.close(lock_fd)


def remove_left() -> None:
    """Removes the directories of works that were killed, as far as that goes."""
    with suppress(OSError):
        parent_fd = os.open(tempfile.gettempdir(), _FLAGS_DIRECTORY & ~os.O_NOFOLLOW)
        try:
            for name in os.listdir(parent_fd):
                if name.startswith(_PREFIX):
                    with suppress(OSError):
                        _remove_if_left(parent_fd, name)
        finally:
            os.close(parent_fd)


def _make() -> tuple[Path, int]:
    """Makes a directory. Returns it and its lock, which is held. Raises OSError."""
    while True:
        directory = Path(tempfile.mkdtemp(prefix=_PREFIX))
        # Until it is locked, another process may take it for one that was left.
        try:
            lock_fd = os.open(directory / _LOCK, _FLAGS_LOCK | os.O_CREAT | os.O_EXCL, 0o600)
        except FileNotFoundError:
            continue
        with suppress(OSError):
            fcntl.flock(lock_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.fstat(lock_fd).st_nlink:
                return directory, lock_fd
        os.close(lock_fd)


def _remove_if_left(parent_fd: int, name: str) -> None:
    """Removes the directory *name* if the process that made it is gone. Raises OSError."""
    fd = os.open(name, _FLAGS_DIRECTORY, dir_fd=parent_fd)
    try:
        found = os.fstat(fd)
        if found.st_uid != os.geteuid() or stat.S_IMODE(found.st_mode) & 0o077:
            return
        try:
            lock_fd = os.open(_LOCK, _FLAGS_LOCK, dir_fd=fd)
        except FileNotFoundError:
            os.rmdir(name, dir_fd=parent_fd)  # killed before it was locked: it is empty
            return
        try:
            fcntl.flock(lock_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.fstat(lock_fd).st_nlink:  # else another process has removed it meanwhile
                with suppress(FileNotFoundError):
                    shutil.rmtree(_WORK, dir_fd=fd)
                os.unlink(_LOCK, dir_fd=fd)
                os.rmdir(name, dir_fd=parent_fd)
        finally:
            os.close(lock_fd)
    finally:
        os.close(fd)
