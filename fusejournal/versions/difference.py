"""The difference of two versions, in time of the difference: subtrees that both have are passed
over without being read.

Two trees are compared item by item; where both are at a node of the same id, all below it is equal.
Since a node's end follows from the keys, the two meet again right behind a change."""

from collections.abc import Callable, Iterator
from stat import S_IFDIR

from fusejournal.history.changes import Change
from fusejournal.types import ROOT_FID, Fid
from fusejournal.versions.blocks import BlockReader
from fusejournal.versions.records import InodeRecord, decode_inode, fid_of_key
from fusejournal.versions.sorted_tree import Nodes
from fusejournal.versions.trees import Trees
from fusejournal.versions.version_tree import VersionTree

Differing = tuple[bytes, bytes | None, bytes | None]
"""A key, and its value in the one and the other map; None where it is not there."""


class _Side:
    """One map, read in order: what is next is a node (level, id) or a pair of key and value."""

    def __init__(self, nodes: Nodes, root: bytes) -> None:
        self._nodes = nodes
        self._todo: list[tuple[int, bytes, bytes]] = [(nodes.read(root)[0], root, b"")]
        """Level and id of nodes; level -1 with key and value of pairs; the next one last."""

    @property
    def next(self) -> tuple[int, bytes, bytes] | None:
        return self._todo[-1] if self._todo else None

    def skip(self) -> None:
        self._todo.pop()

    def open(self) -> None:
        """Puts what is in the next node in its place."""
        level, id_, _ = self._todo.pop()
        items = self._nodes.read(id_)[1]
        if level:
            self._todo += [(level - 1, item[1], b"") for item in reversed(items)]
        else:
            self._todo += [(-1, *item) for item in reversed(items)]


def differing(nodes: Nodes, old: bytes, new: bytes) -> Iterator[Differing]:
    """Yields the keys whose values differ in the maps with roots *old* and *new*, in order. Raises
    StoreDamagedError, StoreError."""
    one, other = _Side(nodes, old), _Side(nodes, new)
    while (mine := one.next) is not None or one.next is not other.next:
        theirs = other.next
        if mine is not None and mine == theirs:
            one.skip()
            other.skip()
        elif mine is not None and mine[0] >= max(0, theirs[0] if theirs is not None else 0):
            one.open()
        elif theirs is not None and theirs[0] >= 0:
            other.open()
        elif mine is None or (theirs is not None and theirs[1] < mine[1]):
            assert theirs is not None
            other.skip()
            yield theirs[1], None, theirs[2]
        elif theirs is None or mine[1] < theirs[1]:
            one.skip()
            yield mine[1], mine[2], None
        else:
            one.skip()
            other.skip()
            yield mine[1], mine[2], theirs[2]


class _Paths:
    """Paths of files in one version."""

    def __init__(self, blocks: BlockReader, trees: Trees) -> None:
        self._tree = VersionTree(blocks, trees)
        self._directories: dict[Fid, bytes] = {ROOT_FID: b""}

    def of(self, dentry: tuple[Fid, bytes]) -> bytes:
        """Returns the path of a name. Raises StoreDamagedError, StoreError."""
        way: dict[Fid, bytes] = {}
        directory, name = dentry
        while directory not in self._directories:
            if directory in way:
                raise self._tree.lies_in_itself(directory)
            parent, way[directory] = self._tree.record(directory).links[0]
            directory = parent
        above = self._directories[directory]
        for directory, its in reversed(way.items()):
            above = self._directories[directory] = _below(above, its)
        return _below(above, name)


def _below(directory: bytes, name: bytes) -> bytes:
    return directory + b"/" + name if directory else name


def find_version_changes(
    blocks: BlockReader,
    old: Trees,
    new: Trees,
    below: bytes,
    progress: Callable[[int, int | None], None],
) -> list[Change]:
    """Returns what differs, by path; files that only moved with a directory are left out. With
    *below*, a path: only that and what is below it, by the old or the new name. Memory grows with
    the difference. Raises StoreDamagedError, StoreError."""
    nodes = Nodes(blocks)
    before, after = _Paths(blocks, old), _Paths(blocks, new)
    found: list[Change] = []
    for number, (key, was, now) in enumerate(differing(nodes, old.inodes, new.inodes)):
        progress(number, None)
        fid = fid_of_key(key)
        old_record = decode_inode(fid, was, blocks) if was is not None else None
        new_record = decode_inode(fid, now, blocks) if now is not None else None
        found += _changes(fid, old_record, new_record, before, after)
    if below:
        paths = below, below + b"/"
        found = [
            one
            for one in found
            if any(
                path is not None and (path == below or path.startswith(paths[1]))
                for path in (one.old_path, one.new_path)
            )
        ]
    return sorted(found, key=Change.main_path)


def _changes(
    fid: Fid, old: InodeRecord | None, new: InodeRecord | None, before: _Paths, after: _Paths
) -> Iterator[Change]:
    had = {dentry: before.of(dentry) for dentry in (old.links if old else ())}
    has = {dentry: after.of(dentry) for dentry in (new.links if new else ())}
    if fid == ROOT_FID:
        had = has = {(ROOT_FID, b""): b""}
    content = old is not None and new is not None and _content_differs(old, new)
    attributes = (
        old is not None and new is not None and _attributes_differ(old, new, content=content)
    )
    lost = [dentry for dentry in had if dentry not in has]
    gained = [dentry for dentry in has if dentry not in had]
    kept = next((dentry for dentry in had if dentry in has), None)
    if kept is not None:
        if content or attributes:
            yield Change(fid, had[kept], has[kept], content, attributes, False, 0, ())
    elif lost or gained:
        was = had[lost.pop(0)] if lost else None
        now = has[gained.pop(0)] if gained else None
        yield Change(fid, was, now, content, attributes, False, 0, ())
    for dentry in lost:
        yield Change(fid, had[dentry], None, False, False, True, 0, ())
    for dentry in gained:
        yield Change(fid, None, has[dentry], False, False, True, 0, ())


def _content_differs(old: InodeRecord, new: InodeRecord) -> bool:
    return (old.size, old.content) != (new.size, new.content)


def _attributes_differ(old: InodeRecord, new: InodeRecord, *, content: bool) -> bool:
    """Returns True if mode, owner, xattrs or file flags differ, or, where nothing else tells why,
    the mtime."""
    if (old.mode, old.uid, old.gid, old.xattrs) != (new.mode, new.uid, new.gid, new.xattrs):
        return True
    if old.file_flags != new.file_flags:
        return True
    return not content and old.type != S_IFDIR and old.mtime_ns != new.mtime_ns
