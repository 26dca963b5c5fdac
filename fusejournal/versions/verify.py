"""Verifying a version: all that it relies on is read back and is what was put there, its two trees
agree with each other, and, if asked for, every chunk of every file is there with its bytes."""

from collections.abc import Callable
from stat import S_IFREG
from typing import NamedTuple

from fusejournal.types import ROOT_FID
from fusejournal.versions.blocks import BlockReader
from fusejournal.versions.chunk_list import ChunkNodes
from fusejournal.versions.content import Content, items_of
from fusejournal.versions.difference import differing
from fusejournal.versions.manifest import Version
from fusejournal.versions.packs import Place, StoreDamagedError, pack_name
from fusejournal.versions.records import (
    InodeRecord,
    decode_inode,
    decode_name,
    fid_of_key,
    inode_key,
    name_key,
    name_of_key,
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
    return work.run(progress, with_data=with_data)


class VerifiedSeries:
    """Versions of one volume that one process verifies with their data, one after the other: of
    each but the first it looks only at what the one before had not. What was verified has to be
    there yet: where a pack is gone, as where a collection has put its blocks elsewhere, or where a
    verification fails, the next one looks at all."""

    def __init__(self) -> None:
        self._begin_anew()

    def _begin_anew(self) -> None:
        self._last: Version | None = None
        self._seen: set[bytes] = set()
        self._packs: set[str] = set()
        """The packs from which something was verified."""

    def verify(
        self,
        blocks: BlockReader,
        version: Version,
        progress: Callable[[int, int | None], None],
        verified: VerifiedBlocks,
    ) -> Verified:
        """Verifies the next version: see verify_version."""
        last = self._last
        seen, packs = self._seen, self._packs
        self._begin_anew()
        work = _Verification(blocks, version, seen, verified)
        if last is None or not packs <= work.packs:
            last = None
            seen.clear()
            packs = set()
        done = work.run(progress, with_data=True, since=last)
        self._last, self._seen, self._packs = version, seen, packs | work.packs_read
        return done


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
        self.packs = self._list_packs()
        """The packs that are there."""
        self.packs_read: set[str] = set()
        """The packs in which its chunks are."""
        self.files = self.names = self.chunks = self.bytes = self._content_bytes = 0

    def run(
        self,
        progress: Callable[[int, int | None], None],
        *,
        with_data: bool,
        since: Version | None = None,
    ) -> Verified:
        """Verifies all of it, or what differs from the version *since*, which was."""
        version, blocks = self._version, self._blocks
        if since is None:
            for key, value in SortedTree(self.nodes, version.inodes).items():
                progress(self.files, version.file_count)
                self.take(decode_inode(fid_of_key(key), value, blocks), with_data=with_data)
        else:
            self.files, self.names = since.file_count, since.name_count
            self._content_bytes = since.content_bytes
            for key, old, new in differing(self.nodes, since.inodes, version.inodes):
                progress(self.files, version.file_count)
                if old is not None:
                    self._leave(decode_inode(fid_of_key(key), old, blocks))
                if new is not None:
                    self.take(decode_inode(fid_of_key(key), new, blocks), with_data=with_data)
            self._check_names_since(since)
        self.check_names()
        return Verified(self.files, self.names, self.chunks, self.bytes)

    def _leave(self, record: InodeRecord) -> None:
        """Has a file of the version before that is another now, or none, not count."""
        self.files -= 1
        self.names -= len(record.links)
        if record.type == S_IFREG:
            self._content_bytes -= record.size

    def _check_names_since(self, since: Version) -> None:
        """Raises StoreDamagedError where a name that is new since stands for a file that does not
        have it. (That none is lacking of those that files have is told by their number.)"""
        inodes = SortedTree(self.nodes, self._version.inodes)
        for key, _, new in differing(self.nodes, since.names, self._version.names):
            if new is None:
                continue
            fid = decode_name(new).fid
            value = inodes.get(inode_key(fid))
            name = fid_of_key(key), name_of_key(key)
            if value is None or name not in decode_inode(fid, value, self._blocks).links:
                raise self._damaged(f"a directory has a name of fid {fid} that this has not")

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
        elif pack_name(place.pack) not in self.packs:
            self._find_again(id_)
        if (place := self._blocks.place(id_)) is not None:
            self.packs_read.add(pack_name(place.pack))

    def _is_verified(self, id_: bytes, place: Place) -> bool:
        if self._verified is None or pack_name(place.pack) not in self.packs:
            return False
        return self._verified.knows(id_, place.pack)

    def _find_again(self, id_: bytes) -> None:
        """Raises StoreDamagedError, unless the block is in another pack, as where a collection has
        put it elsewhere meanwhile."""
        self._blocks.look_again()
        self.packs = self._list_packs()
        if not any(pack_name(place.pack) in self.packs for place in self._blocks.places(id_)):
            raise self._damaged(f"block {id_.hex()} is missing with its pack")

    def _list_packs(self) -> set[str]:
        return set(self._blocks.store.names("packs/"))

    def check_names(self) -> None:
        """Raises StoreDamagedError where the counts are not those that the version gives."""
        version = self._version
        told = version.file_count, version.name_count, version.content_bytes
        if len(self._names) != self.names or (self.files, self.names, self._content_bytes) != told:
            raise self._damaged("its two trees do not agree with each other")

    def _damaged(self, reason: str) -> StoreDamagedError:
        where = f"{self._blocks.store.where}: version {self._version.shown_name}"
        return StoreDamagedError(where, reason)
