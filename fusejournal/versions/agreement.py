"""Checks that the two trees of a version which came from another node agree with each other, and
make one tree: a node that has begun to become what cannot be made could not go back.

Each name stands for a file that has it, and the other way round: by sums of hashes of both, under a
seed of the moment, so that the two are gone through once, each in its order. Each directory is in
one that leads to the root. Each file's content has as many bytes as the file, and each chunk as
many as its list has. Beside a version of this node, which is known to agree, only what differs is
looked at. Blocks are checked by the process that reads them, by their ids.

Memory: the fids of some thousand directories."""

import os
from collections.abc import Callable, Iterator
from stat import S_IFDIR
from typing import Final

import xxhash

from fusejournal.types import ROOT_FID, Fid
from fusejournal.versions.blocks import BlockReader
from fusejournal.versions.chunk_list import ChunkItem, ChunkList, ChunkNodes
from fusejournal.versions.content import Content, items_of
from fusejournal.versions.difference import differing
from fusejournal.versions.manifest import Version
from fusejournal.versions.packs import StoreDamagedError
from fusejournal.versions.records import (
    InodeRecord,
    decode_inode,
    decode_name,
    fid_of_key,
    inode_key,
    name_key,
)
from fusejournal.versions.sorted_tree import Nodes, SortedTree
from fusejournal.versions.trees import Trees

_ROOTED_MAX: Final = 1 << 16
_MASK: Final = (1 << 64) - 1
_CHECK_FILES: Final = 1024

Changes = Iterator[tuple[bytes, bytes | None, bytes | None]]
"""A key, its value before, and its value now."""


def check_agreement(
    blocks: BlockReader, version: Version, whole: Trees | None, check: Callable[[], None]
) -> None:
    """Checks *version*, whose blocks are all in *blocks*. *whole*: the trees of one there that
    agree; None: all is looked at. *check* is called now and then, and may stop it by an exception.
    Raises StoreDamagedError where it is no tree; StoreError."""
    _Agreement(blocks, version, whole, check).run()


class _Agreement:
    """One check under way."""

    def __init__(
        self,
        blocks: BlockReader,
        version: Version,
        whole: Trees | None,
        check: Callable[[], None],
    ) -> None:
        self._blocks = blocks
        self._version = version
        self._whole = whole
        self._check = check
        self._nodes = Nodes(blocks)
        self._lists = ChunkNodes(blocks)
        self._inodes = SortedTree(self._nodes, version.inodes)
        self._names = SortedTree(self._nodes, version.names)
        self._seed = int.from_bytes(os.urandom(8), "little")
        self._rooted: set[Fid] = {ROOT_FID}
        """Directories that lead to the root."""
        self._sum = 0
        """The sum of the hashes of names, less that of links."""
        self._files = self._links = self._content_bytes = 0

    def run(self) -> None:
        """Raises StoreDamagedError, StoreError."""
        whole = self._whole
        for key, was, now in self._changes(self._inodes, None if whole is None else whole.inodes):
            self._files += 1
            if self._files % _CHECK_FILES == 0:
                self._check()
            self._take(fid_of_key(key), was, now)
        for key, was, now in self._changes(self._names, None if whole is None else whole.names):
            if now is not None:
                self._sum += self._hash(key, decode_name(now).fid)
            if was is not None:
                self._sum -= self._hash(key, decode_name(was).fid)
        if self._sum & _MASK:
            raise self._damaged("its two trees do not agree with each other")
        told = self._version.file_count, self._version.name_count, self._version.content_bytes
        if whole is None and (self._files, self._links, self._content_bytes) != told:
            raise self._damaged("it has not as many files, names and bytes as it says")

    def _changes(self, tree: SortedTree, whole: bytes | None) -> Changes:
        if whole is None:
            return ((key, None, value) for key, value in tree.items())
        return differing(self._nodes, whole, tree.root)

    def _hash(self, key: bytes, fid: Fid) -> int:
        return xxhash.xxh3_64_intdigest(key + inode_key(fid), self._seed)

    def _take(self, fid: Fid, was: bytes | None, now: bytes | None) -> None:
        """Look at one file as it was and as it is."""
        old = decode_inode(fid, was, self._blocks) if was is not None else None
        new = decode_inode(fid, now, self._blocks) if now is not None else None
        for parent, name in old.links if old is not None else ():
            self._sum += self._hash(name_key(parent, name), fid)
        if new is None:
            below = self._names.below(inode_key(fid))
            if old is not None and old.type == S_IFDIR and next(below, None) is not None:
                raise self._damaged(f"fid {fid} is gone, and has names below it")
            return
        for parent, name in new.links:
            self._links += 1
            self._sum -= self._hash(name_key(parent, name), fid)
            if parent not in self._rooted:
                self._check_rooted(parent)
        self._content_bytes += new.size if new.content is not None else 0
        if (why := self._fault_of(old, new)) is not None:
            raise self._damaged(f"fid {fid} {why}")
        if new.type == S_IFDIR and fid not in self._rooted:
            self._check_rooted(fid)

    def _fault_of(self, old: InodeRecord | None, new: InodeRecord) -> str | None:
        """Returns why a file cannot be made, in words, if it cannot."""
        if new.fid >= self._version.next_fid:
            return "is there, and the next one is lower"
        if old is not None and old.type != new.type:
            return "is of another type than before"
        if new.fid == ROOT_FID:
            return "is the root, and has a name" if new.links or new.type != S_IFDIR else None
        if new.type == S_IFDIR and len(new.links) != 1:
            return "is a directory with two names"
        content, its = new.content, None if old is None else old.content
        if content is None or content == its:
            return None if old is None or old.size == new.size else "is of another size than before"
        return self._fault_of_content(content, its, new.size)

    def _fault_of_content(self, content: Content, its: Content | None, size: int) -> str | None:
        """Returns why *content*, which before was *its*, cannot be that of a file of so many
        bytes."""
        if content.root is not None and ChunkList(self._lists, content.root).size != size:
            return f"has a list of other bytes than its {size}"
        others = items_of(self._lists, its) if its is not None else iter(())
        other = next(others, None)
        end = len(content.inline or b"")
        for start, item in items_of(self._lists, content):
            if start != end:
                return "has a list whose nodes have other bytes than is said above them"
            end += item.length
            while other is not None and other[0] < start:
                other = next(others, None)
            if other != (start, item) and not self._is_as_long(item):
                return f"has a chunk of other bytes than its {item.length} at byte {start}"
        return None if end == size else f"has {end} bytes in place of {size}"

    def _is_as_long(self, item: ChunkItem) -> bool:
        if item.id is None:
            return True
        place = self._blocks.place(item.id)
        return place is not None and place.plain_bytes == item.length

    def _check_rooted(self, fid: Fid) -> None:
        """Raises StoreDamagedError unless *fid* is a directory that leads to the root."""
        way: set[Fid] = set()
        while fid not in self._rooted:
            value = self._inodes.get(inode_key(fid))
            record = decode_inode(fid, value, self._blocks) if value is not None else None
            if record is None or record.type != S_IFDIR or not record.links or fid in way:
                raise self._damaged(f"fid {fid} has names below it, and is in no directory")
            way.add(fid)
            fid = record.links[0][0]
        if len(self._rooted) > _ROOTED_MAX:
            self._rooted = {ROOT_FID}
        self._rooted |= way

    def _damaged(self, reason: str) -> StoreDamagedError:
        where = f"{self._blocks.store.where}: version {self._version.shown_name}"
        return StoreDamagedError(where, f"{reason}: nothing was made of it")
