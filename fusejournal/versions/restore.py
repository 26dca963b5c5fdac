"""Restore of a version: the tree, a directory or a file, made by the applier as an import is made
on a mirror, from the version's records and chunks alone.

Chunks are read and uncompressed by several threads, ahead of the one that applies. A restore that
was stopped goes on where it was, as every one does (replay/restore.py)."""

from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from stat import S_IFDIR, S_IMODE
from uuid import UUID

from fusejournal.errors import PathNotFoundError
from fusejournal.file_operations import SetFlags
from fusejournal.operations import ImportData, ImportLink, Setattr, Setxattr
from fusejournal.replay.fold import Step, carry_out
from fusejournal.replay.restore import Restored, restore_into
from fusejournal.replay.target import Progress, Target
from fusejournal.types import ROOT_FID, Fid
from fusejournal.versions.blocks import BlockReader
from fusejournal.versions.builder import Trees
from fusejournal.versions.chunk_list import ChunkNodes
from fusejournal.versions.chunker import RULE
from fusejournal.versions.content import items_of
from fusejournal.versions.manifest import Version, root_hash
from fusejournal.versions.packs import StoreDamagedError
from fusejournal.versions.records import (
    InodeRecord,
    decode_inode,
    decode_name,
    inode_key,
    name_key,
    name_of_key,
)
from fusejournal.versions.sorted_tree import Nodes, SortedTree

_THREADS = 4
_AHEAD_BYTES = 32 << 20
_SMALL_BYTES = 16 << 10
_STEP_BYTES = 1 << 10
"""The least that a step is taken to hold."""
_Waiting = tuple[Step, "Future[bytes] | None", int]
"""A step, whose data may be still to come, and how many bytes."""


def restore_version(
    blocks: BlockReader, version: Version, path: bytes, target: Path, progress: Progress
) -> Restored:
    """Restores *path* of *version*: see :func:`restore_trees`."""
    return restore_trees(blocks, version.uuid, version.trees, path, target, progress)


def restore_trees(
    blocks: BlockReader, uuid: UUID, trees: Trees, path: bytes, target: Path, progress: Progress
) -> Restored:
    """Restores *path* (``b""``: the whole tree) of volume *uuid* by its *trees* as the new
    directory *target*; one file lies in it by its name. *progress* gets the steps done.

    Raises PathNotFoundError, StoreDamagedError, StoreError, and what restore_into raises; *target*
    is not there then."""
    tree = VersionTree(blocks, trees)
    record = tree.find(path)
    purpose: dict[str, object] = {
        "restore": path.decode("utf-8", "surrogateescape"),
        "volume": str(uuid),
        "version": root_hash(uuid, RULE, trees),
    }

    def fill(stage: Target) -> str:
        stage.clear_acls()
        name = b""
        if record.type == S_IFDIR:
            steps = _directory_steps(tree, record)
        else:
            name = path.rpartition(b"/")[2]
            steps = _file_steps(tree, record, ROOT_FID, name)
        with ThreadPoolExecutor(max(_THREADS, blocks.store.uploads)) as pool:
            carry_out(stage, _with_data(blocks, steps, pool), progress)
        return name.decode("utf-8", "surrogateescape")

    return restore_into(target, purpose, fill)


class VersionTree:
    """Names and records of a version. Methods raise StoreDamagedError, StoreError."""

    def __init__(self, blocks: BlockReader, trees: Trees) -> None:
        self.blocks = blocks
        self.chunk_nodes = ChunkNodes(blocks)
        nodes = Nodes(blocks)
        self._inodes = SortedTree(nodes, trees.inodes)
        self._names = SortedTree(nodes, trees.names)

    def find_record(self, fid: Fid) -> InodeRecord | None:
        """Returns the record of *fid*, if it is there."""
        value = self._inodes.get(inode_key(fid))
        return None if value is None else decode_inode(fid, value, self.blocks)

    def child(self, parent: Fid, name: bytes) -> Fid | None:
        """Returns what a name stands for, or None."""
        value = self._names.get(name_key(parent, name))
        return None if value is None else decode_name(value).fid

    def path(self, parent: Fid, name: bytes) -> bytes:
        """Returns the path of a name that is there."""
        parts = [name]
        while parent != ROOT_FID:
            parent, name = self.record(parent).links[0]
            parts.append(name)
        return b"/".join(reversed(parts))

    def record(self, fid: Fid) -> InodeRecord:
        """Returns the record of *fid*, to which a name leads."""
        value = self._inodes.get(inode_key(fid))
        if value is None:
            raise StoreDamagedError(
                self.blocks.store.where, f"fid {fid} of a version has a name and no record"
            )
        return decode_inode(fid, value, self.blocks)

    def children(self, fid: Fid) -> Iterator[tuple[bytes, Fid]]:
        """Yields names and fids of what is in directory *fid*, by name."""
        for key, value in self._names.below(inode_key(fid)):
            yield name_of_key(key), decode_name(value).fid

    def find(self, path: bytes) -> InodeRecord:
        """Returns the record of what *path* stands for. Raises PathNotFoundError."""
        fid = ROOT_FID
        for name in path.split(b"/") if path else ():
            found = self.child(fid, name)
            if found is None:
                shown = "/" + path.decode("utf-8", "backslashreplace")
                raise PathNotFoundError(shown, "was not there at that moment")
            fid = found
        return self.record(fid)


_Planned = tuple[Step, bytes | None, int]
"""A step, and the chunk with its data, of so many bytes."""


def _directory_steps(tree: VersionTree, top: InodeRecord) -> Iterator[_Planned]:
    """Yields the steps that make directory *top*, with all below it, of the target's root."""
    made: set[Fid] = set()
    """Files with several names, under the first of which they are made."""
    for step in _root_steps(top):
        yield step, None, 0
    todo = deque([(top.fid, ROOT_FID)])
    while todo:
        directory, there = todo.popleft()
        for name, fid in tree.children(directory):
            if fid in made:
                yield Step(ImportLink(fid, there, name), 0), None, 0
                continue
            record = tree.record(fid)
            if len(record.links) > 1:
                made.add(fid)
            yield from _file_steps(tree, record, there, name)
            if record.type == S_IFDIR:
                todo.append((fid, fid))


def _root_steps(record: InodeRecord) -> Iterator[Step]:
    """Yields the steps to the attributes of the target's root."""
    if record.mode is None:
        return
    mode = S_IMODE(record.mode)
    yield Step(Setattr(ROOT_FID, mode, record.uid, record.gid, None, None), 0)
    for name, value in record.xattrs:
        yield Step(Setxattr(ROOT_FID, name, value), 0)
    # An ACL sets the mode, and what is made below leaves the mtime as it is.
    yield Step(Setattr(ROOT_FID, mode, None, None, None, record.mtime_ns), 0)
    if record.file_flags:
        yield Step(SetFlags(ROOT_FID, record.file_flags), 0)


def _file_steps(
    tree: VersionTree, record: InodeRecord, parent: Fid, name: bytes
) -> Iterator[_Planned]:
    """Yields the steps that make a file, or a directory without what is in it, under a name."""
    content = record.content
    inline = content.inline if content is not None else None
    chunks: list[tuple[int, bytes, int]] = []
    if content is not None and content.inline is None:
        chunks = [
            (start, item.id, item.length)
            for start, item in items_of(tree.chunk_nodes, content)
            if item.id is not None
        ]
    is_whole = not chunks and not inline
    yield Step(record.as_import(parent, name, complete=is_whole), 0), None, 0
    mtime_ns = record.mtime_ns or 0
    if inline:
        yield Step(ImportData(record.fid, 0, mtime_ns, True), 0, inline), None, 0
    for number, (start, id_, length) in enumerate(chunks, 1):
        is_last = number == len(chunks)
        yield Step(ImportData(record.fid, start, mtime_ns, is_last), 0), id_, length
    if record.file_flags:
        yield Step(SetFlags(record.fid, record.file_flags), 0), None, 0


def _with_data(
    blocks: BlockReader, steps: Iterator[_Planned], pool: ThreadPoolExecutor
) -> Iterator[Step]:
    """Yields *steps* with their data, which *pool* reads ahead."""
    waiting: deque[_Waiting] = deque()
    ahead = 0
    try:
        for step, id_, length in steps:
            if id_ is not None and length <= _SMALL_BYTES:
                step = step._replace(data=blocks.read(id_))  # quicker than asking another thread
                id_ = None
            length = max(length, _STEP_BYTES)
            waiting.append((step, pool.submit(blocks.read, id_) if id_ else None, length))
            ahead += length
            while waiting and (ahead > _AHEAD_BYTES or waiting[0][1] is None):
                found = waiting.popleft()
                ahead -= found[2]
                yield _finished(found)
        while waiting:
            yield _finished(waiting.popleft())
    finally:
        for _, future, _ in waiting:
            if future is not None:
                future.cancel()


def _finished(waiting: _Waiting) -> Step:
    step, future, _ = waiting
    return step if future is None else step._replace(data=future.result())
