"""A sorted map as a tree of nodes whose shape follows from what is in it alone (a prolly tree):
equal maps have equal roots, whatever the order in which they came to be.

A node holds items in the order of their keys and ends after a key whose hash, seeded with the
node's level, is small; never with one item only, and at the latest with ``_ITEMS_MAX``. Both limits
count from the node's beginning, so a node's end follows from the items from its beginning on. Each
level above has an item for each node: its last key, its id and how many keys are below. The root is
the one node of the lowest level that has no more than one. Keys alone decide where nodes end: a
value that changes moves no end.

An update reads the nodes that it touches, and writes anew from the beginning of the first one to
where old and new ends meet. So it costs the changes, and a comparison of two trees costs their
difference.

A node is a msgpack array: level, items. An item at level 0 is (key, value), both bytes; above it
is (last key, id, count).

Source: Dolt's prolly trees (dolthub.com), noms' documentation."""

from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from operator import itemgetter
from typing import Any

import msgpack
import xxhash

from fusejournal.versions.blocks import BlockReader, BlockWriter
from fusejournal.versions.kept_nodes import KeptNodes
from fusejournal.versions.packs import ID_BYTES, StoreDamagedError

_MEAN_ITEMS = (40, 64)
"""The mean number of items of a node at level 0, and above."""
_ITEMS_MAX = (320, 512)
_NODES_KEPT = 1024

Item = Any
"""(key, value) or (last key, id, count), as a list or tuple."""
Edit = tuple[bytes, Item | None]
"""A key, and the item that it gets; None: it goes."""
_key: Callable[[Item], bytes] = itemgetter(0)


class Nodes(KeptNodes):
    """The nodes of maps."""

    def __init__(self, blocks: BlockReader) -> None:
        super().__init__(blocks, _NODES_KEPT)

    def _can_be(self, level: int, items: Any) -> bool:
        # One loop: each change of a tree decodes hundreds of nodes.
        before: bytes | None = None
        for item in items:
            if level:
                key, id_, count = item
                fits = isinstance(id_, bytes) and len(id_) == ID_BYTES and type(count) is int
            else:
                key, value = item
                fits = isinstance(value, bytes)
            fits = fits and isinstance(key, bytes) and isinstance(item, tuple)
            if not fits or (before is not None and key <= before):
                return False
            before = key
        return level == 0 or before is not None


class SortedTree:
    """The map whose root is node *root*. Methods raise StoreDamagedError, StoreError."""

    def __init__(self, nodes: Nodes, root: bytes) -> None:
        self.nodes = nodes
        self.root = root
        self._leaf: list[Item] = []
        """The items of the lowest node that was looked into last: keys are mostly asked for in
        their order."""

    @property
    def height(self) -> int:
        """The level of the root."""
        return self.nodes.read(self.root)[0]

    def get(self, key: bytes) -> bytes | None:
        """Returns the value of *key*, or None."""
        items = self._leaf
        if not items or not items[0][0] <= key <= items[-1][0]:
            items = self._leaf = self.node_at(0, key)
        at = bisect_left(items, key, key=_key)
        if at == len(items) or items[at][0] != key:
            return None
        value: bytes = items[at][1]
        return value

    def items(self, from_key: bytes = b"") -> Iterator[tuple[bytes, bytes]]:
        """Yields keys and values from *from_key* on, in order."""
        level, items = self.nodes.read(self.root)
        todo = [(level, items, bisect_left(items, from_key, key=_key))]
        while todo:
            level, items, at = todo.pop()
            if level == 0:
                yield from items[at:]
            elif at < len(items):
                todo.append((level, items, at + 1))
                below, its_items = self.nodes.read(items[at][1])
                todo.append((below, its_items, bisect_left(its_items, from_key, key=_key)))

    def key_ranges(self, items_min: int) -> Iterator[tuple[bytes, bytes | None]]:
        """Yields the ranges of keys, from the first to before the second, in which there are at
        least *items_min* each, but for the last, and not many more."""
        first, count = b"", 0
        height, items = self.nodes.read(self.root)
        todo = [(height, items)] if height else []
        while todo:
            level, items = todo.pop()
            if level > 1:
                todo += [self.nodes.read(item[1]) for item in reversed(items)]
                continue
            for last_key, _, below in items:
                count += below
                if count >= items_min:
                    yield first, last_key + b"\0"
                    first, count = last_key + b"\0", 0
        if count or not first:
            yield first, None

    def below(self, prefix: bytes) -> Iterator[tuple[bytes, bytes]]:
        """Yields keys that begin with *prefix*, and their values, in order."""
        for key, value in self.items(prefix):
            if not key.startswith(prefix):
                return
            yield key, value

    def __len__(self) -> int:
        level, items = self.nodes.read(self.root)
        return sum(item[2] for item in items) if level else len(items)

    def node_at(self, level: int, key: bytes) -> list[Item]:
        """Returns the items of the node at *level* that has *key*, or would."""
        return self.find_node(level, key)[1]

    def find_node(self, level: int, key: bytes) -> tuple[bytes, list[Item]]:
        """Returns the id of that node, and its items."""
        id_ = self.root
        found, items = self.nodes.read(id_)
        while found > level:
            at = min(bisect_left(items, key, key=_key), len(items) - 1)
            id_ = items[at][1]
            found, items = self.nodes.read(id_)
        return id_, items

    def node_after(self, level: int, last_key: bytes) -> list[Item] | None:
        """Returns the items of the node at *level* behind the one that ends with *last_key*."""
        items = self.node_at(level, last_key + b"\0")
        return items if items and items[-1][0] > last_key else None


def empty_tree(blocks: BlockWriter) -> bytes:
    """Returns the root of a map with nothing in it."""
    root: bytes = _write_node(blocks, 0, [])[1]
    return root


def update_tree(nodes: Nodes, root: bytes, changes: list[tuple[bytes, bytes | None]]) -> bytes:
    """Returns the root of the map after *changes*, which are sorted by key, each once: a value, or
    None where the key goes. *nodes* are a BlockWriter's. Raises StoreDamagedError, StoreFullError,
    StoreError."""
    blocks = nodes.blocks
    assert isinstance(blocks, BlockWriter)
    tree = SortedTree(nodes, root)
    edits: list[Edit] = [(key, None if value is None else (key, value)) for key, value in changes]
    height, items = nodes.read(root)
    for level in range(height + 1):
        edits = _update_level(blocks, tree, level, edits)
        if not edits:
            return root
    # Above the old root: one item, for the root itself.
    last = [(items[-1][0], root, len(tree))] if items else []
    left = _merge(last, edits)
    level = height + 1
    while len(left) > 1:
        left = _Ends(blocks, level).all_of(left)
        level += 1
    if not left:
        return empty_tree(blocks)
    new = left[0][1]
    while True:
        level, items = nodes.read(new)
        if level == 0 or len(items) > 1:
            return bytes(new)
        new = items[0][1]


def _update_level(
    blocks: BlockWriter, tree: SortedTree, level: int, edits: list[Edit]
) -> list[Edit]:
    """Applies *edits* to one level of *tree*, and returns those of the level above."""
    removed: dict[bytes, Item] = {}
    added: dict[bytes, Item] = {}
    top = tree.nodes.read(tree.root)[1]
    end_key = _key(top[-1]) if top else b""
    done = 0
    while done < len(edits):
        ends = _Ends(blocks, level)
        key = edits[done][0]
        while True:
            id_, node = tree.find_node(level, key)
            last_key = _key(node[-1]) if node else b""
            is_last = last_key == end_key
            if last_key < key and not is_last:
                where = f"{id_.hex()} ends before the key that the node above it tells"
                raise StoreDamagedError(blocks.store.where, where)
            first = done
            while done < len(edits) and (is_last or edits[done][0] <= last_key):
                done += 1
            if node:
                removed[last_key] = (last_key, id_, _count(level, node))
            for item in ends.take(_merge(node, edits[first:done])):
                added[item[0]] = item
            if is_last:
                for item in ends.finish():
                    added[item[0]] = item
            if is_last or ends.is_between:
                break
            key = last_key + b"\0"
    return [
        (key, added.get(key))
        for key in sorted(removed.keys() | added.keys())
        if added.get(key) != removed.get(key)
    ]


def _merge(items: Sequence[Item], edits: Sequence[Edit]) -> list[Item]:
    """Returns *items* after *edits*, both sorted."""
    if not edits:
        return list(items)
    merged = {_key(item): item for item in items}
    for key, item in edits:
        if item is None:
            merged.pop(key, None)
        else:
            merged[key] = item
    return [merged[key] for key in sorted(merged)]


class _Ends:
    """Makes nodes of the items of one level."""

    def __init__(self, blocks: BlockWriter, level: int) -> None:
        self._blocks = blocks
        self._level = level
        self._items: list[Item] = []

    @property
    def is_between(self) -> bool:
        """True if the next item begins a node."""
        return not self._items

    def take(self, items: Sequence[Item]) -> Iterator[Item]:
        """Takes the next items. Yields an item of the level above for each node that ends."""
        level, which = self._level, min(self._level, 1)
        items_max, bound = _ITEMS_MAX[which], (1 << 64) // _MEAN_ITEMS[which]
        digest = xxhash.xxh3_64_intdigest
        for item in items:
            self._items.append(item)
            count = len(self._items)
            if count >= items_max or (count > 1 and digest(item[0], seed=level) < bound):
                yield from self.finish()

    def finish(self) -> Iterator[Item]:
        """Ends the last node, if there is one."""
        if self._items:
            yield _write_node(self._blocks, self._level, self._items)
            self._items = []

    def all_of(self, items: Sequence[Item]) -> list[Item]:
        """Returns the items of the level above for all of *items*."""
        return [*self.take(items), *self.finish()]


def _encode(level: int, items: Sequence[Item]) -> bytes:
    packed: bytes = msgpack.packb((level, items))
    return packed


def _count(level: int, items: Sequence[Item]) -> int:
    return sum(item[2] for item in items) if level else len(items)


def _write_node(blocks: BlockWriter, level: int, items: Sequence[Item]) -> Item:
    id_ = blocks.add_node(_encode(level, items))
    return (items[-1][0] if items else b"", id_, _count(level, items))
