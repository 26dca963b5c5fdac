"""The mtimes of directories in which the applier makes, moves or removes names.

A file or directory that is append-only in the backing takes no time from anybody. Where a time
must be set, the flag is lifted for that moment (syscalls.unlocked)."""

from collections.abc import Iterator
from contextlib import contextmanager

from fusejournal.backing.apply_results import MustWork
from fusejournal.backing.tree import Tree
from fusejournal.disk import failpoints, syscalls
from fusejournal.types import Fid

_DIRECTORY_MTIME = MustWork("the mtime of a directory")


def name_changed(tree: Tree, directory: Fid, time_ns: int) -> None:
    """Sets the mtime of *directory*, but for which the operation is done. Raises
    ApplyBrokenError."""
    with _DIRECTORY_MTIME:
        set_mtime(tree, directory, time_ns)


def set_mtime(tree: Tree, directory: Fid, time_ns: int) -> None:
    """Sets the mtime of *directory*. Raises OSError."""
    failpoints.reached("apply.times.directory")
    must_set_mtime(tree.descriptor(directory), time_ns)


@contextmanager
def mtime_kept(tree: Tree, directory: Fid) -> Iterator[None]:
    """Keeps the mtime of *directory* over a block that makes a name in it, as an import does.
    Raises ApplyBrokenError."""
    mtime_ns = tree.stat(directory).st_mtime_ns
    yield
    name_changed(tree, directory, mtime_ns)


def must_set_mtime(fd: int, mtime_ns: int) -> None:
    """Sets the mtime of *fd*, open on a file or directory, even where it is append-only."""
    try:
        syscalls.set_times(fd, None, mtime_ns)
    except PermissionError:
        with syscalls.unlocked(fd):
            syscalls.set_times(fd, None, mtime_ns)
