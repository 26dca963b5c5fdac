"""The making of a version's tree, or a part of it, in a new directory, by several processes.

Files are made in the order of their fids, in units of some thousand: the tree of records is in that
order, and so, mostly, are chunks in packs. A unit that is done has a mark in a file, so that a tree
whose making was stopped is gone on with; a unit that was under way then is made anew. When all
names are there, directories get what they are to have, and are looked over."""

import os
from array import array
from contextlib import closing
from typing import NamedTuple

from fusejournal.disk import calls
from fusejournal.types import Fid, Progress
from fusejournal.versions.by_processes import by_processes
from fusejournal.versions.make_files import FileMaker, MadeFiles
from fusejournal.versions.read_ahead import ReadingThreads
from fusejournal.versions.selection import Selection
from fusejournal.versions.version_tree import VersionTree

_UNIT_DIRECTORIES = 500
_THREADS = 2
_BAR_STEP = 1024


class Marks:
    """The file, open as *fd*, that records which units are done: a byte each."""

    def __init__(self, fd: int, units: int) -> None:
        """Raises OSError."""
        self._fd = fd
        self._done = os.pread(fd, units, 0)
        self.is_begun = bool(self._done)
        """True if a process has been at work before."""
        if not self.is_begun:
            calls.write_all("restore.begin", fd, b"\0", 0)

    def close(self) -> None:
        """Closes the file."""
        os.close(self._fd)

    def is_done(self, unit: int) -> bool:
        """Returns True if a unit was done when this was made."""
        return self._done[unit : unit + 1] == b"\1"

    def set(self, unit: int) -> None:
        """Marks a unit as done. Raises OSError."""
        calls.write_all("restore.mark", self._fd, b"\1", unit)


class MadeTree(NamedTuple):
    """A tree that is made."""

    names: int
    locked: list[Fid]
    """Files that are to be immutable or append-only at the end."""


def make_tree(
    tree: VersionTree,
    selection: Selection,
    root_fd: int,
    marks: Marks,
    progress: Progress,
    *,
    flush: bool = False,
) -> MadeTree:
    """Makes files of a version in a directory, and goes on where it was stopped.

    Args:
        tree, selection: the version's tree, and which of its files.
        root_fd: the directory, opened.
        marks: what is done already.
        progress: gets how many are made; may raise.
        flush: as in :class:`FileMaker`.

    Raises OSError, TargetError, StoreDamagedError, StoreError."""
    work = _Work(tree, selection, root_fd, marks, flush=flush)
    # A far store's requests do not outlive a fork, and it is not the processor that one waits for.
    alone = tree.blocks.store.traffic is not None
    done = 0
    directories = array("Q", [selection.top])
    locked: list[Fid] = []
    each = -(-selection.files // max(selection.units, 1))

    def waiting() -> None:
        progress(done - done % _BAR_STEP, selection.files)

    with closing(by_processes(selection.units, work.make, waiting, alone=alone)) as units:
        for _, made in units:
            directories.extend(made.directories)
            locked += made.locked
            done = min(done + each, selection.files)
    work.directories = directories
    count = -(-len(directories) // _UNIT_DIRECTORIES)
    names = 0
    with closing(by_processes(count, work.finish, waiting, alone=alone)) as counts:
        for _, found in counts:
            names += found
    return MadeTree(names, locked)


class _Work:
    """The work of each process."""

    def __init__(
        self,
        tree: VersionTree,
        selection: Selection,
        root_fd: int,
        marks: Marks,
        *,
        flush: bool,
    ) -> None:
        self._tree = tree
        self._flush = flush
        self._selection = selection
        self._root_fd = root_fd
        self._marks = marks
        self.directories = array("Q")

    def _maker(self) -> FileMaker:
        return FileMaker(self._tree, self._selection, self._root_fd, flush=self._flush)

    def make(self, unit: int, again: bool) -> MadeFiles:
        """Makes the files of a unit."""
        is_done = self._marks.is_done(unit)
        threads = max(_THREADS, self._tree.blocks.store.uploads)
        with closing(self._maker()) as maker, ReadingThreads(threads) as pool:
            made = maker.make(
                self._selection.records(unit),
                pool,
                is_done=is_done,
                again=again or self._marks.is_begun,
            )
        if not is_done:
            self._marks.set(unit)
        return made

    def finish(self, unit: int, _: bool) -> int:
        """Gives directories what they are to have. Returns how many names are in them."""
        names = 0
        first = unit * _UNIT_DIRECTORIES
        with closing(self._maker()) as maker:
            for fid in self.directories[first : first + _UNIT_DIRECTORIES]:
                names += maker.finish_directory(Fid(fid))
        return names
