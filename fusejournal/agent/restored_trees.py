"""The trees that jobs have restored aside, each by its job's id, in a directory that only root can
enter: finding and removing them.

Nothing but what a job of that id has made is ever removed: its tree, what a restore that did not
come to its end left beside it, and what is left of an earlier removal. All are names in that one
directory, used by its descriptor; a symbolic link is removed as such, and never followed. A tree is
renamed before it is removed, so that none is there in part."""

import os
import shlex
import stat
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final

from fusejournal.disk import syscalls
from fusejournal.disk.process import WORKING_DIRECTORY
from fusejournal.errors import FusejournalError
from fusejournal.file_operations import LOCKING_FLAGS
from fusejournal.replay.made_aside import scratch_of_restore

_DIRECTORY: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_ANY: Final = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


class RestoredTrees:
    """The trees in *directory*, which is there. Blocks; any thread may call it, one at a time for
    each job."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def place(self, job: str) -> Path:
        """Returns where the tree of *job* is, or would be."""
        return self._directory / job

    def facts(self, job: str) -> dict[str, Any]:
        """Returns, as values, whether there is anything that :meth:`remove` would remove, and the
        command line that does the same to a whole tree."""
        names = (job, _gone(job), _scratch(job))
        return {
            "has_restored": any(os.path.lexists(self._directory / name) for name in names),
            "remove_command": f"rm -rf --one-file-system -- {shlex.quote(str(self.place(job)))}",
        }

    def remove(self, job: str) -> None:
        """Removes the tree of *job*, and what is left of one that is not whole. Raises
        FusejournalError, OSError: what is left can be removed by another try."""
        with self._opened() as fd:
            _remove(fd, _gone(job))  # of a try before
            with suppress(FileNotFoundError):
                _unlock(f"/proc/self/fd/{fd}/{job}")
                os.rename(job, _gone(job), src_dir_fd=fd, dst_dir_fd=fd)
            _remove(fd, _gone(job))
            _remove(fd, _scratch(job))

    def remove_unfinished(self, job: str) -> None:
        """Removes what is left of a restore of *job* that is not whole. Raises as
        :meth:`remove`."""
        with self._opened() as fd:
            _remove(fd, _scratch(job))

    @contextmanager
    def _opened(self) -> Iterator[int]:
        fd = os.open(self._directory, _DIRECTORY)
        try:
            yield fd
        finally:
            os.close(fd)


def _gone(job: str) -> str:
    return f".{job}.removed"


def _scratch(job: str) -> str:
    return scratch_of_restore(Path(job)).name


def _remove(directory: int, name: str) -> None:
    path = f"/proc/self/fd/{directory}/{name}"
    if not os.path.lexists(path):
        return
    # Not by Python: trees can be deeper than it recurses.
    command = ["rm", "-rf", "--one-file-system", "--", path]
    done = subprocess.run(
        command, pass_fds=[directory], cwd=WORKING_DIRECTORY, capture_output=True, check=False
    )
    if done.returncode:
        # (Immutable files are rare: only then is each looked at.)
        _unlock_below(path)
        done = subprocess.run(
            command, pass_fds=[directory], cwd=WORKING_DIRECTORY, capture_output=True, check=False
        )
    if done.returncode:
        words = done.stderr.decode(errors="replace").strip().partition("\n")[0]
        raise FusejournalError(f"what was restored cannot be removed: {words}")


def _unlock_below(path: str) -> None:
    todo = [path]
    while todo:
        here = todo.pop()
        _unlock(here)
        with suppress(NotADirectoryError), os.scandir(here) as found:
            for one in found:
                if one.is_dir(follow_symlinks=False):
                    todo.append(one.path)
                elif one.is_file(follow_symlinks=False):
                    _unlock(one.path)


def _unlock(path: str) -> None:
    """Have a file or directory be neither immutable nor append-only, where it is one."""
    if not stat.S_ISREG(mode := os.lstat(path).st_mode) and not stat.S_ISDIR(mode):
        return
    fd = os.open(path, _ANY)
    try:
        with suppress(OSError):  # a file system without flags
            flags = syscalls.get_file_flags(fd)
            if flags & LOCKING_FLAGS:
                syscalls.set_file_flags(fd, flags & ~LOCKING_FLAGS)
    finally:
        os.close(fd)
