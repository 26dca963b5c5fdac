"""A file's content as a list of items, each a chunk or a hole, in a tree of nodes whose shape
follows from the items alone, as that of a sorted map does (sorted_tree.py). A list is found at a
byte offset: nodes record how many bytes are below.

Where a node ends is decided by the hash of its last item, seeded with the level; never after one
item, and at the latest after ``_ITEMS_MAX``, counted from the node's beginning.

A node is a msgpack array: level, items. An item at level 0 is (id or nil for a hole, bytes); above
it is (id of the node, bytes, number of items at level 0)."""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import msgpack
import xxhash

from fusejournal.versions.blocks import BlockReader, BlockWriter
from fusejournal.versions.kept_nodes import KeptNodes
from fusejournal.versions.packs import BLOCK_BYTES_MAX, ID_BYTES

_MEAN_ITEMS = 64
_ITEMS_MAX = 512
_SEED = 1 << 32
"""Keeps the hashes apart from those of sorted maps."""
_NODES_KEPT = 256


class ChunkItem(NamedTuple):
    """A part of a content: a chunk, or, without an id, a hole."""

    id: bytes | None
    length: int


class Splice(NamedTuple):
    """The bytes [start, end) of a list, both at ends of items, give way to *items*."""

    start: int
    end: int
    items: list[Any]


def _ends(level: int, item: Any, items: int) -> bool:
    if items >= _ITEMS_MAX:
        return True
    key = (item[0] or b"") + item[1].to_bytes(8, "big")
    hashed = xxhash.xxh3_64_intdigest(key, seed=_SEED + level)
    return items > 1 and hashed < (1 << 64) // _MEAN_ITEMS


class ChunkNodes(KeptNodes):
    """The nodes of lists."""

    def __init__(self, blocks: BlockReader) -> None:
        super().__init__(blocks, _NODES_KEPT)

    def _can_be(self, level: int, items: Any) -> bool:
        return len(items) > 0 and all(_fits(level, item) for item in items)


def _fits(level: int, item: Any) -> bool:
    """Returns True if *item*, as it was decoded, can be one at *level*. Raises ValueError,
    TypeError."""
    if level == 0:
        return is_chunk_item(item)
    id_, length, count = item
    return _is_id(id_) and all(type(one) is int and one > 0 for one in (length, count))


def is_chunk_item(item: Any) -> bool:
    """Returns True if *item*, as it was decoded, can be one."""
    id_, length = item
    if type(length) is not int or length <= 0:
        return False
    return id_ is None or (_is_id(id_) and length <= BLOCK_BYTES_MAX)


def _is_id(what: Any) -> bool:
    return isinstance(what, bytes) and len(what) == ID_BYTES


class ChunkList:
    """The list whose root is node *root*. Methods raise StoreDamagedError, StoreError."""

    def __init__(self, nodes: ChunkNodes, root: bytes) -> None:
        self._nodes = nodes
        self.root = root

    @property
    def height(self) -> int:
        """The level of the root."""
        return self._nodes.read(self.root)[0]

    @property
    def size(self) -> int:
        """The number of bytes."""
        return sum(item[1] for item in self._nodes.read(self.root)[1])

    def items(self, offset: int = 0) -> Iterator[tuple[int, ChunkItem]]:
        """Yields the items from the one at byte *offset* on, each with where it begins."""
        todo = [(0, self.root)]
        while todo:
            start, id_ = todo.pop()
            level, items = self._nodes.read(id_)
            below = []
            for item in items:
                end = start + item[1]
                if end > offset and level:
                    below.append((start, item[0]))
                elif end > offset:
                    yield start, ChunkItem(*item)
                start = end
            todo += reversed(below)

    def node_at(self, level: int, offset: int) -> tuple[int, Sequence[Any]]:
        """Returns the node at *level* that has byte *offset* (the last one, for the end): where it
        begins, and its items."""
        start = 0
        found, items = self._nodes.read(self.root)
        while found > level:
            for number, item in enumerate(items):
                if offset < start + item[1] or number == len(items) - 1:
                    found, items = self._nodes.read(item[0])
                    break
                start += item[1]
        return start, items


def build_list(blocks: BlockWriter, items: Sequence[Any]) -> bytes:
    """Returns the root of the list of *items*, which are some. Raises StoreFullError,
    StoreError."""
    return _build(blocks, 0, list(items))


def splice_list(nodes: ChunkNodes, root: bytes, splices: list[Splice]) -> bytes | None:
    """Returns the root of a list after *splices*, which are sorted and apart; None where nothing is
    left. *nodes* are a BlockWriter's. Raises StoreDamagedError, StoreFullError, StoreError."""
    blocks = nodes.blocks
    assert isinstance(blocks, BlockWriter)
    old = ChunkList(nodes, root)
    size, height = old.size, old.height
    for level in range(height + 1):
        splices = _splice_level(blocks, old, level, size, splices)
        if not splices:
            return root
    left = _merge(0, [_node_item(blocks, height, nodes.read(root)[1])], splices, is_last=True)
    if not left:
        return None
    if len(left) > 1:
        return _build(blocks, height + 1, left)
    new: bytes = left[0][0]
    while True:
        level, items = nodes.read(new)
        if level == 0 or len(items) > 1:
            return new
        new = items[0][0]


def _build(blocks: BlockWriter, level: int, items: list[Any]) -> bytes:
    while True:
        ends = _ListEnds(blocks, level)
        items = [*ends.take(items), *ends.finish()]
        if len(items) == 1:
            root: bytes = items[0][0]
            return root
        level += 1


def _splice_level(
    blocks: BlockWriter, old: ChunkList, level: int, size: int, splices: list[Splice]
) -> list[Splice]:
    """Applies *splices* to one level of *old*, which has *size* bytes, and returns those of the
    level above."""
    above: list[Splice] = []
    done = 0
    while done < len(splices):
        begun, node = old.node_at(level, splices[done].start)
        start = begun
        ends = _ListEnds(blocks, level)
        before: list[Any] = []
        after: list[Any] = []
        while True:
            end = start + sum(item[1] for item in node)
            is_last = end == size
            touching = [
                one for one in splices[done:] if one.start < end or (is_last and one.start == end)
            ]
            before.append(_node_item(blocks, level, node))
            after += ends.take(_merge(start, node, touching, is_last=is_last))
            while done < len(splices) and splices[done].end <= end and splices[done] in touching:
                done += 1
            if is_last:
                after += ends.finish()
                break
            if ends.is_between and not (done < len(splices) and splices[done].start < end):
                break
            start, node = old.node_at(level, end)
        if before != after:
            above.append(Splice(begun, end, after))
    return above


def _merge(start: int, items: Sequence[Any], splices: list[Splice], *, is_last: bool) -> list[Any]:
    """Returns *items*, a node's that begins at *start*, after *splices*: what one brings comes with
    the node in which it begins."""
    merged: list[Any] = []
    left = list(splices)
    at = start
    for item in items:
        while left and left[0].end <= at and left[0].start < at:
            del left[0]
        if left and left[0].start == at:
            merged += left[0].items
        if not (left and left[0].start <= at < left[0].end):
            merged.append(item)
        at += item[1]
    if is_last:
        merged += [item for one in left if one.start == at for item in one.items]
    return merged


class _ListEnds:
    """Makes nodes of the items of one level."""

    def __init__(self, blocks: BlockWriter, level: int) -> None:
        self._blocks = blocks
        self._level = level
        self._items: list[Any] = []

    @property
    def is_between(self) -> bool:
        """True if the next item begins a node."""
        return not self._items

    def take(self, items: Sequence[Any]) -> Iterator[Any]:
        """Takes the next items. Yields an item of the level above for each node that ends."""
        for item in items:
            self._items.append(item)
            if _ends(self._level, item, len(self._items)):
                yield from self.finish()

    def finish(self) -> Iterator[Any]:
        """Ends the last node, if there is one."""
        if self._items:
            items, self._items = self._items, []
            yield _node_item(self._blocks, self._level, items)


def _node_item(blocks: BlockWriter, level: int, items: Sequence[Any]) -> tuple[bytes, int, int]:
    """Writes a node, if it is new, and returns its item in the level above."""
    id_ = blocks.add_node(msgpack.packb((level, items)))
    count = sum(item[2] for item in items) if level else len(items)
    return id_, sum(item[1] for item in items), count


def count_of(nodes: ChunkNodes, root: bytes) -> int:
    """Returns how many chunks and holes the list has."""
    level, items = nodes.read(root)
    return sum(item[2] for item in items) if level else len(items)
