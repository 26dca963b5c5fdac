"""The size of what a restore aside would make, and whether there is room for it: asked before
anything is written.

Holes take no space, so they do not count: of a file as the journal has it, no more counts than was
written to it; of one in a version, its chunks. Contents that are packed on the disk by its file
system may fit nevertheless: who knows that can restore by the command line."""

import os
import stat
from collections import deque
from pathlib import Path
from typing import Final, NamedTuple

from fusejournal.admin.copy_space import shown_bytes
from fusejournal.admin.source import JournalSource
from fusejournal.history.file_states import State, read_states, type_of
from fusejournal.node.disk_space import DiskSpace, disk_space
from fusejournal.replay.fold import find_file
from fusejournal.types import ROOT_FID, Fid, Progress, Seq
from fusejournal.versions.content import items_of
from fusejournal.versions.records import InodeRecord
from fusejournal.versions.version_tree import VersionTree

_BATCH: Final = 10_000
"""Files that are asked about together."""
_LARGE_BYTES: Final = 1 << 20
"""The size from which on a file of a version is searched for holes."""


class RestoreSize(NamedTuple):
    """The names that a restore makes, the files and directories that they stand for, and the bytes
    of the contents; and whether it is of a directory."""

    names: int
    files: int
    content_bytes: int
    is_directory: bool

    def to_json(self) -> dict[str, int]:
        """Returns it as values."""
        return self._asdict()


class Room(NamedTuple):
    """The result of a look for room: why there is none, and what else an admin should know; each
    may be empty."""

    refusal: str
    warning: str


def size_at(source: JournalSource, path: bytes, end: Seq, progress: Progress) -> RestoreSize:
    """Returns the size of *path* (``b""``: the whole tree) as it was before entry *end*. Raises
    PathNotFoundError, JournalError, JournalDamagedError, and what *progress* raises."""
    lookup = source.lookup
    top = find_file(lookup, path, end)
    todo, seen = deque[Fid](), {top}
    names = content_bytes = 0

    def take(fids: set[Fid]) -> None:
        nonlocal content_bytes
        for fid, state in read_states(lookup, fids, end, end).items():
            content_bytes += _content_of_state(state)
            if fid == ROOT_FID or _type_of_state(state) == stat.S_IFDIR:
                todo.append(fid)

    take({top})
    is_directory = bool(todo)
    while todo:
        new: set[Fid] = set()
        while todo and len(new) < _BATCH:
            fids = lookup.children(todo.popleft(), end).values()
            names += len(fids)
            new |= set(fids) - seen
        seen |= new
        progress(names, None)
        take(new)
    if not is_directory:
        return RestoreSize(1, 1, content_bytes, is_directory=False)
    return RestoreSize(names, len(seen) - 1, content_bytes, is_directory=True)


def _type_of_state(state: State) -> int:
    return 0 if state.maker is None else type_of(state.maker)


def _content_of_state(state: State) -> int:
    if _type_of_state(state) != stat.S_IFREG:
        return 0
    return min(state.size, state.written_bytes)


def size_in_version(tree: VersionTree, path: bytes, progress: Progress) -> RestoreSize:
    """Returns the size of *path* (``b""``: the whole tree) of a version. Raises PathNotFoundError,
    StoreError, and what *progress* raises."""
    top = tree.find(path)
    if top.type != stat.S_IFDIR:
        return RestoreSize(1, 1, _content_of_record(tree, top), is_directory=False)
    todo, seen = deque([top.fid]), {top.fid}
    names = content_bytes = 0
    while todo:
        for _, fid in tree.children(todo.popleft()):
            names += 1
            if fid in seen:
                continue
            seen.add(fid)
            progress(names, None)
            record = tree.record(fid)
            content_bytes += _content_of_record(tree, record)
            if record.type == stat.S_IFDIR:
                todo.append(fid)
    return RestoreSize(names, len(seen) - 1, content_bytes, is_directory=True)


def _content_of_record(tree: VersionTree, record: InodeRecord) -> int:
    kept = record.content
    if record.type != stat.S_IFREG or kept is None:
        return 0
    if kept.inline is not None or record.size < _LARGE_BYTES:
        return record.size
    found = sum(item.length for _, item in items_of(tree.chunk_nodes, kept) if item.id is not None)
    return min(record.size, found)


def find_room(place: Path, size: RestoreSize) -> Room:
    """Returns whether the file system at *place* has room for *size*. Raises OSError."""
    space = disk_space(place)
    left = space.free_bytes - size.content_bytes
    advice = "make room there, or restore it elsewhere by the command line"
    if left < 0:
        words = (
            f"it has {shown_bytes(size.content_bytes)} of contents, and {place} has "
            f"{shown_bytes(space.free_bytes)} free: {advice}"
        )
        return Room(words, "")
    inodes = os.statvfs(place)
    if inodes.f_files and inodes.f_favail < size.files:
        words = (
            f"it has {size.files:,} files and directories, and {place} has room for "
            f"{inodes.f_favail:,} (inodes): {advice}"
        )
        return Room(words, "")
    if DiskSpace(left, space.size_bytes).is_low:
        words = f"it would leave {shown_bytes(left)} of the file system at {place}"
        return Room("", words)
    return Room("", "")
