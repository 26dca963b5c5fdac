"""The files of a version that are to be made, in units of some thousand: all, those below a
directory, or one."""

from array import array
from collections import deque
from collections.abc import Iterator
from stat import S_IFDIR
from typing import Protocol

from fusejournal.types import ROOT_FID, Fid
from fusejournal.versions.packs import StoreDamagedError
from fusejournal.versions.records import InodeRecord, decode_inode, fid_of_key
from fusejournal.versions.version_tree import VersionTree

_UNIT_FILES = 1000

UNITS_FORMAT = 1
"""Raised when units are others than they were, so that marks of before count no more."""


class Selection(Protocol):
    """Files to be made, in units, which are always the same for the same tree and path. Methods
    raise StoreDamagedError, StoreError."""

    top: Fid
    """The directory that the target stands for."""
    units: int
    files: int
    """The number of files, about."""

    def records(self, unit: int) -> Iterator[InodeRecord]:
        """Yields the records of a unit."""
        ...

    def record(self, fid: Fid) -> InodeRecord:
        """Returns the record of one of them."""
        ...

    def names(self, fid: Fid) -> set[bytes]:
        """Returns the names that are to be in a directory, or in the target for *top*."""
        ...

    def is_within(self, fid: Fid) -> bool:
        """Returns True if a directory is *top*, or below it."""
        ...


class WholeTree:
    """All files of *tree*."""

    def __init__(self, tree: VersionTree) -> None:
        """Raises StoreDamagedError, StoreError."""
        self._tree = tree
        self._key_ranges = list(tree.inodes.key_ranges(_UNIT_FILES))
        self.top = ROOT_FID
        self.units = len(self._key_ranges)
        self.files = len(tree.inodes)

    def records(self, unit: int) -> Iterator[InodeRecord]:
        """Implements Selection.records."""
        first, end = self._key_ranges[unit]
        for key, value in self._tree.inodes.items(first):
            if end is not None and key >= end:
                return
            yield decode_inode(fid_of_key(key), value, self._tree.blocks)

    def record(self, fid: Fid) -> InodeRecord:
        """Implements Selection.record."""
        return self._tree.record(fid)

    def names(self, fid: Fid) -> set[bytes]:
        """Implements Selection.names."""
        return {name for name, _ in self._tree.children(fid)}

    def is_within(self, _: Fid) -> bool:
        """Implements Selection.is_within."""
        return True


class PartOfTree:
    """The files below directory *top* of *tree*. Memory: 8 bytes a file, and some 70 a
    directory."""

    def __init__(self, tree: VersionTree, top: Fid) -> None:
        """Raises StoreDamagedError, StoreError."""
        self._tree = tree
        self.top = top
        self._directories = {top}
        found = array("Q")
        todo = deque([top])
        while todo:
            for _, fid in tree.children(todo.popleft()):
                found.append(fid)
                if tree.record(fid).type == S_IFDIR:
                    if fid in self._directories:
                        raise StoreDamagedError(
                            tree.blocks.store.where, f"directory {fid} of a version has two names"
                        )
                    self._directories.add(fid)
                    todo.append(fid)
        # A file with several names in it comes once.
        self._fids = array("Q", sorted(set(found)))
        self.files = len(self._fids)
        self.units = -(-self.files // _UNIT_FILES)

    def records(self, unit: int) -> Iterator[InodeRecord]:
        """Implements Selection.records."""
        for fid in self._fids[unit * _UNIT_FILES : (unit + 1) * _UNIT_FILES]:
            yield self._tree.record(Fid(fid))

    def record(self, fid: Fid) -> InodeRecord:
        """Implements Selection.record."""
        return self._tree.record(fid)

    def names(self, fid: Fid) -> set[bytes]:
        """Implements Selection.names."""
        return {name for name, _ in self._tree.children(fid)}

    def is_within(self, fid: Fid) -> bool:
        """Implements Selection.is_within."""
        return fid in self._directories


class OneFile:
    """The file with *record*, which is no directory, as *name* in the target."""

    top = ROOT_FID
    units = 1
    files = 1

    def __init__(self, record: InodeRecord, name: bytes) -> None:
        self._record = record._replace(links=((ROOT_FID, name),))

    def records(self, _: int) -> Iterator[InodeRecord]:
        """Implements Selection.records."""
        yield self._record

    def record(self, _: Fid) -> InodeRecord:
        """Implements Selection.record."""
        return self._record

    def names(self, _: Fid) -> set[bytes]:
        """Implements Selection.names."""
        return {name for _, name in self._record.links}

    def is_within(self, _: Fid) -> bool:
        """Implements Selection.is_within."""
        return True
