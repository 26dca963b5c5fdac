"""The blocks that a store lacks of a version: what a mirror asks a source for, and what it does
with the answers (the other side is block_source.py).

The two trees of the version are walked from their roots. A block that is in the store already is
not asked for, so that a copy which was stopped goes on where it was, and content that is there
under another name, or in an earlier version, does not come again. Below a node that an own version,
which is known to be whole, has at the same place, nothing is looked at: so the walk costs the
difference.

Memory: 48 bytes for each block in the store (blocks.py); what is being walked, some thousand ids;
and the ids of the nodes above the lowest, which are walked once. Blocks are checked by their ids
before they count; a source that makes names up which cannot be gets an error, and nothing is done
with them."""

from collections.abc import Callable, Sequence
from enum import Enum
from stat import S_IFMT, S_IFREG
from typing import Any, NamedTuple

import msgpack

from fusejournal.types import NAME_BYTES_MAX
from fusejournal.versions.blocks import BlockWriter
from fusejournal.versions.chunk_list import ChunkNodes
from fusejournal.versions.manifest import Version
from fusejournal.versions.packs import BLOCK_BYTES_MAX, ID_BYTES, StoreDamagedError
from fusejournal.versions.records import (
    INODE_KEY_BYTES,
    NAME_VALUE_BYTES,
    blocks_of_inode,
    fid_of_key,
    name_of_key,
)
from fusejournal.versions.sorted_tree import Nodes, SortedTree
from fusejournal.versions.trees import Trees
from fusejournal.wire.block_messages import AskBlocks, Blocks
from fusejournal.wire.frames import WireError

BLOCKS_ASKED_MAX = 64
"""The blocks in one question."""
"""No block of a version is larger by far."""


class _Kind(Enum):
    INODES = "inodes"
    NAMES = "names"
    LIST = "list"
    CHUNK = "chunk"
    XATTRS = "xattrs"


class _Wanted(NamedTuple):
    """A block that the version has."""

    kind: _Kind
    id: bytes


class MissingBlocks:
    """The walk through *version*, whose blocks are to be in the store of *blocks*; *whole*: the
    trees of a version there that is known to be whole; *check* is called often, and may stop it by
    an exception."""

    def __init__(
        self,
        blocks: BlockWriter,
        version: Version,
        whole: Trees | None,
        check: Callable[[], None] = lambda: None,
    ) -> None:
        self._check = check
        self._blocks = blocks
        self._nodes = Nodes(blocks)
        self._lists = ChunkNodes(blocks)
        self._whole: dict[_Kind, SortedTree] = {}
        if whole is not None:
            roots = ((_Kind.INODES, whole.inodes), (_Kind.NAMES, whole.names))
            self._whole = {kind: SortedTree(self._nodes, root) for kind, root in roots}
        self._todo: list[_Wanted] = []
        self._asked: list[tuple[_Wanted, ...]] = []
        """Questions that are not answered wholly, the oldest first."""
        self._answered = 0
        """The number of blocks of the oldest that came."""
        self._on_the_way: set[_Wanted] = set()
        self._walked: set[_Wanted] = set()
        """The nodes above the lowest whose items were seen: a source may name one again and
        again."""
        self.files = 0
        """The number of files and directories that were walked."""
        self.fetched_blocks = 0
        """The number of blocks that came."""
        self.fetched_bytes = 0
        """The bytes of the blocks that came, on the link."""
        for kind, root in ((_Kind.NAMES, version.names), (_Kind.INODES, version.inodes)):
            tree = self._whole.get(kind)
            if tree is None or tree.root != root:
                self._todo.append(_Wanted(kind, root))

    def __len__(self) -> int:
        """The number of questions that are not answered wholly."""
        return len(self._asked)

    @property
    def is_done(self) -> bool:
        """True if all of the version is there."""
        return not self._todo and not self._asked

    def next_question(self) -> AskBlocks | None:
        """Returns the next blocks to be asked for; None where there is nothing to ask for before an
        answer has come. Raises StoreDamagedError, StoreError."""
        wanted: list[_Wanted] = []
        while self._todo and len(wanted) < BLOCKS_ASKED_MAX:
            one = self._todo.pop()
            if one in self._on_the_way:
                continue  # the same content, which is walked once
            if self._blocks.has(one.id):
                self._walk(one)
            else:
                self._on_the_way.add(one)
                wanted.append(one)
        if not wanted:
            return None
        self._asked.append(tuple(wanted))
        return AskBlocks(tuple(one.id for one in wanted))

    def take(self, answer: Blocks) -> None:
        """Takes the blocks that came next. Raises WireError where they are not what was asked for;
        StoreDamagedError where a block is not what its id says, or gone at the source;
        StoreFullError, StoreError."""
        if not self._asked or not 0 < len(answer.stored) == len(answer.plain):
            raise WireError("blocks that were not asked for")
        start = 0
        for stored_bytes, plain_bytes in zip(answer.stored, answer.plain, strict=True):
            if not self._asked or plain_bytes > BLOCK_BYTES_MAX:
                raise WireError("blocks that were not asked for")
            one = self._asked[0][self._answered]
            self._take(one, answer.content[start : start + stored_bytes], plain_bytes)
            start += stored_bytes
            self._answered += 1
            if self._answered == len(self._asked[0]):
                del self._asked[0]
                self._answered = 0
        if start != len(answer.content):
            raise WireError("blocks of other lengths than is said")

    def _take(self, one: _Wanted, stored: bytes, plain_bytes: int) -> None:
        if not stored and not plain_bytes:
            raise GoneError(self._blocks.store.where, f"block {one.id.hex()} is gone at the source")
        is_node = one.kind is not _Kind.CHUNK
        self._blocks.add_stored(one.id, stored, plain_bytes, is_node=is_node)
        self._on_the_way.discard(one)
        self.fetched_blocks += 1
        self.fetched_bytes += len(stored)
        self._walk(one)

    # -- what is in a block that is there ----------------------------------------------------------

    def _walk(self, one: _Wanted) -> None:
        self._check()
        if one in self._walked:
            return
        if one.kind in (_Kind.INODES, _Kind.NAMES):
            self._walk_map(one)
        elif one.kind is _Kind.LIST:
            level, items = self._lists.read(one.id)
            if level:
                self._walked.add(one)
            below = _Kind.LIST if level else _Kind.CHUNK
            ids = dict.fromkeys(item[0] for item in items if item[0] is not None)
            self._todo += [_Wanted(below, id_) for id_ in ids]

    def _walk_map(self, one: _Wanted) -> None:
        level, items = self._nodes.read(one.id)
        if level:
            self._walked.add(one)
            if len({item[1] for item in items}) < len(items):
                raise WireError(f"a node that cannot be: {one.id.hex()} has one below it twice")
        known = self._known(one.kind, level, items)
        if level:
            for item in items:
                if tuple(item) not in known:
                    self._todo.append(_Wanted(one.kind, item[1]))
                elif one.kind is _Kind.INODES:
                    self.files += item[2]
            return
        for key, value in items:
            if (key, value) in known:
                self.files += one.kind is _Kind.INODES
            elif one.kind is _Kind.NAMES:
                self._check_name(name_of_key(key))
                if len(value) != NAME_VALUE_BYTES:
                    raise WireError(f"a name of nothing: {value!r:.80}")
            elif len(key) != INODE_KEY_BYTES:
                raise WireError(f"a key that cannot be: {key!r:.80}")
            else:
                self._walk_inode(key, value)

    def _known(self, kind: _Kind, level: int, items: Sequence[Any]) -> set[tuple[Any, ...]]:
        """Returns those of *items* of a node at *level* that the whole version has, too."""
        tree = self._whole.get(kind)
        if tree is None or not items or tree.height < level:
            return set()
        wanted = {tuple(item) for item in items}
        found: set[tuple[Any, ...]] = set()
        # (Its nodes may end at other keys.)
        node: list[Any] | None = tree.node_at(level, items[0][0])
        while node:
            found |= wanted & {tuple(item) for item in node}
            if node[-1][0] >= items[-1][0]:
                break
            node = tree.node_after(level, node[-1][0])
        return found

    def _walk_inode(self, key: bytes, value: bytes) -> None:
        fid, where = fid_of_key(key), self._blocks.store.where
        found, root = blocks_of_inode(fid, value, where)
        try:
            fields = msgpack.unpackb(value, use_list=False)
            is_content = fields[0] is not None and S_IFMT(fields[0]) == S_IFREG
            xattrs = {fields[8]} if isinstance(fields[8], bytes) else set()
            for _, name in fields[6]:
                self._check_name(name)
            for id_ in (*found, *(() if root is None else (root,))):
                if not isinstance(id_, bytes) or len(id_) != ID_BYTES:
                    raise ValueError("it names what is no block")
        except (ValueError, TypeError, IndexError, OverflowError) as error:
            raise StoreDamagedError(where, f"the record of fid {fid} is spoilt: {error}") from None
        if root is not None:
            self._todo.append(_Wanted(_Kind.LIST, root))
        for id_ in found:
            is_chunk = is_content and id_ not in xattrs
            self._todo.append(_Wanted(_Kind.CHUNK if is_chunk else _Kind.XATTRS, id_))
        self.files += 1

    @staticmethod
    def _check_name(name: object) -> None:
        """Raises WireError for what can be no name in a directory: what is made of it is made by
        root."""
        if (
            not isinstance(name, bytes)
            or not 0 < len(name) <= NAME_BYTES_MAX
            or name in (b".", b"..")
            or b"/" in name
            or b"\0" in name
        ):
            raise WireError(f"a name that cannot be: {name!r:.80}")


class GoneError(StoreDamagedError):
    """A block was removed at the source while it was copied: a later version has to be asked
    for."""
