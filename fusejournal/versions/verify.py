"""Verifying a version: all that it relies on is read back and is what was put there, its two trees
agree with each other, and, if asked for, every chunk of every file is there with its bytes."""

from collections.abc import Callable
from stat import S_IFREG
from typing import NamedTuple

from fusejournal.types import ROOT_FID
from fusejournal.versions.blocks import BlockReader
from fusejournal.versions.chunk_list import ChunkNodes
from fusejournal.versions.content import Content, items_of
from fusejournal.versions.manifest import Version
from fusejournal.versions.packs import Place, StoreDamagedError, pack_name
from fusejournal.versions.records import (
    InodeRecord,
    decode_inode,
    decode_name,
    fid_of_key,
    name_key,
)
from fusejournal.versions.sorted_tree import Nodes, SortedTree
from fusejournal.versions.verified_blocks import VerifiedBlocks


class Verified(NamedTuple):
    """The extent of what was verified."""

    files: int
    names: int
    chunks: int
    """Different chunks that were read; 0 where they were only looked up."""
    bytes: int
    """The bytes of these."""


def verify_version(
    blocks: BlockReader,
    version: Version,
    progress: Callable[[int, int | None], None],
    *,
    with_data: bool,
    seen: set[bytes] | None = None,
    verified: VerifiedBlocks | None = None,
) -> Verified:
    """Verifies a version. Memory grows by some 100 bytes a chunk, and 200 a pack.

    Args:
        blocks, version: where it lies, and which.
        progress: gets the files done and all.
        with_data: every chunk is read; otherwise it is looked up in the indexes, and its pack
            among the objects.
        seen: chunks that were verified before; these are added.
        verified: chunks that were read not long ago, and are only looked up; these are added.

    Raises StoreDamagedError for the first thing that is not as it should be; StoreError."""
    work = _Verification(blocks, version, set() if seen is None else seen, verified)
    inodes = SortedTree(work.nodes, version.inodes)
    for key, value in inodes.items():
        progress(work.files, version.file_count)
        work.take(decode_inode(fid_of_key(key), value, blocks), with_data=with_data)
    work.check_names()
    return Verified(work.files, work.names, work.chunks, work.bytes)


class _Verification:
    """One verification under way."""

    def __init__(
        self,
        blocks: BlockReader,
        version: Version,
        seen: set[bytes],
        verified: VerifiedBlocks | None,
    ) -> None:
        self._blocks = blocks
        self._version = version
        self.nodes = Nodes(blocks)
        self._chunk_nodes = ChunkNodes(blocks)
        self._names = SortedTree(self.nodes, version.names)
        self._seen = seen
        self._verified = verified
        self._packs = self._list_packs()
        self.files = self.names = self.chunks = self.bytes = self._content_bytes = 0

    def take(self, record: InodeRecord, *, with_data: bool) -> None:
        self.files += 1
        fid = record.fid
        if record.fid >= self._version.next_fid:
            raise self._damaged(f"fid {fid} is there, and the next one is lower")
        for parent, name in record.links:
            self.names += 1
            value = self._names.get(name_key(parent, name))
            if value is None or decode_name(value).fid != fid:
                raise self._damaged(f"fid {fid} has a name that no directory has")
        if record.type == S_IFREG:
            assert record.content is not None
            self._content_bytes += record.size
            self._take_content(record, record.content, with_data=with_data)
        elif fid == ROOT_FID and record.links:
            raise self._damaged("the root has a name")

    def _take_content(self, record: InodeRecord, content: Content, *, with_data: bool) -> None:
        size = 0
        if content.inline is not None:
            size = len(content.inline)
        else:
            for start, item in items_of(self._chunk_nodes, content):
                size = start + item.length
                if item.id is not None and item.id not in self._seen:
                    self._seen.add(item.id)
                    self._take_chunk(item.id, item.length, with_data=with_data)
        if size != record.size:
            raise self._damaged(f"fid {record.fid} has {size} bytes in place of {record.size}")

    def _take_chunk(self, id_: bytes, length: int, *, with_data: bool) -> None:
        place = self._blocks.place(id_)
        if place is None or place.plain_bytes != length:
            raise self._damaged(self._blocks.missing(id_).reason)
        if with_data and not self._is_verified(id_, place):
            self._blocks.read(id_)
            self.chunks += 1
            self.bytes += length
            read_at = self._blocks.place(id_)
            if self._verified is not None and read_at is not None:
                self._verified.add(id_, read_at.pack)
        elif pack_name(place.pack) not in self._packs:
            self._find_again(id_)

    def _is_verified(self, id_: bytes, place: Place) -> bool:
        if self._verified is None or pack_name(place.pack) not in self._packs:
            return False
        return self._verified.knows(id_, place.pack)

    def _find_again(self, id_: bytes) -> None:
        """Raises StoreDamagedError, unless the block is in another pack, as where a collection has
        put it elsewhere meanwhile."""
        self._blocks.look_again()
        self._packs = self._list_packs()
        if not any(pack_name(place.pack) in self._packs for place in self._blocks.places(id_)):
            raise self._damaged(f"block {id_.hex()} is missing with its pack")

    def _list_packs(self) -> set[str]:
        return set(self._blocks.store.names("packs/"))

    def check_names(self) -> None:
        """Raises StoreDamagedError where the counts are not those that the version tells."""
        version = self._version
        told = version.file_count, version.name_count, version.content_bytes
        if len(self._names) != self.names or (self.files, self.names, self._content_bytes) != told:
            raise self._damaged("its two trees do not agree with each other")

    def _damaged(self, reason: str) -> StoreDamagedError:
        where = f"{self._blocks.store.where}: version {self._version.shown_name}"
        return StoreDamagedError(where, reason)
