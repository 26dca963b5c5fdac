"""The tree at a journal's base, read from the version that stands for it: as entries that would
make it (journal/base.py). The store is opened when the first question is asked: most that is asked
of a journal is about what came later."""

from collections.abc import Callable, Collection, Iterator
from concurrent.futures import Executor
from functools import cached_property
from pathlib import Path
from stat import S_IMODE

from fusejournal.config import StoreConfig
from fusejournal.file_operations import SetFlags
from fusejournal.journal.base import (
    BaseFile,
    BaseNode,
    BasePiece,
    FileChange,
    IsRead,
    JournalBase,
    all_read,
    base_seq_of,
    content_at,
)
from fusejournal.journal.format import Entry
from fusejournal.journal.index import Posting
from fusejournal.objects.store import ObjectStore, StoreError
from fusejournal.operations import (
    ImportData,
    ImportLink,
    Kind,
    Operation,
    Setattr,
    Setxattr,
)
from fusejournal.types import ROOT_FID, SYSTEM_CALLER, Fid, Seq
from fusejournal.versions.blocks import BlockReader
from fusejournal.versions.chunk_list import ChunkNodes
from fusejournal.versions.content import items_of
from fusejournal.versions.difference import differing
from fusejournal.versions.keys import read_key
from fusejournal.versions.manifest import Version, decode_version
from fusejournal.versions.packs import StoreDamagedError
from fusejournal.versions.past_files import unlike_parts
from fusejournal.versions.place import open_place, read_place
from fusejournal.versions.read_ahead import PlannedPiece, pieces_of, read_ahead
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
from fusejournal.versions.trees import Trees
from fusejournal.versions.version_tree import VersionTree


def base_of(version: Version, store_id: str) -> JournalBase:
    """Returns the base that *version* stands for, in the store with id *store_id*."""
    return JournalBase(
        version.uuid,
        version.epoch,
        version.seq,
        version.chain,
        version.time_ns,
        version.key,
        store_id,
        version.inodes.hex(),
        version.names.hex(),
        version.next_fid,
        version.content_bytes,
    )


def open_base_tree(
    state_dir: Path, base: JournalBase, config: Callable[[], StoreConfig]
) -> "VersionBase":
    """Returns the tree at *base*, that of the journal in *state_dir*. *config* is called where the
    store is opened, for how it is to be dealt with. Its methods raise StoreError where the store is
    not there, and what *config* raises."""

    def open_store() -> ObjectStore:
        place = read_place(state_dir)
        if place is None or place.id != base.store:
            raise StoreError(
                str(state_dir),
                f"its journal begins after entry {base.seq}, and the tree before that is in store "
                f"{base.store}, which is not named here: 'fusejournal version store init' with its "
                "place",
            )
        return open_place(place, writing=False, key=read_key(state_dir), config=config())

    return VersionBase(base, open_store)


class VersionBase:
    """The tree at *base*, in the store that *open_store* opens."""

    def __init__(self, base: JournalBase, open_store: Callable[[], ObjectStore]) -> None:
        self.base = base
        self._open_store = open_store

    def forget(self) -> None:
        """Drops what it keeps in memory; the next question opens the store again."""
        for name in ("blocks", "_nodes", "_chunk_nodes", "_inodes", "_names"):
            self.__dict__.pop(name, None)

    def check_there(self) -> None:
        """Implements BaseTree.check_there."""
        store, name = self._open_store(), f"versions/{self.base.version}"
        version = decode_version(f"{store.where}/{name}", store.get(name))
        if (version.inodes.hex(), version.names.hex()) != (self.base.inodes, self.base.names):
            raise StoreDamagedError(f"{store.where}/{name}", "is not the version that it was")

    @cached_property
    def blocks(self) -> BlockReader:
        """Reads what the store has."""
        return BlockReader(self._open_store())

    @cached_property
    def _nodes(self) -> Nodes:
        return Nodes(self.blocks)

    @cached_property
    def _chunk_nodes(self) -> ChunkNodes:
        return ChunkNodes(self.blocks)

    @cached_property
    def _inodes(self) -> SortedTree:
        return SortedTree(self._nodes, bytes.fromhex(self.base.inodes))

    @cached_property
    def _names(self) -> SortedTree:
        return SortedTree(self._nodes, bytes.fromhex(self.base.names))

    # -- what there is -----------------------------------------------------------------------------

    def node(self, fid: Fid) -> BaseNode | None:
        """Returns what *fid* was; None where it had no name."""
        record = self._record(fid)
        return None if record is None else self._node(record)

    def nodes(self) -> Iterator[BaseNode]:
        """Yields all, the root too, by fid."""
        for key, value in self._inodes.items():
            yield self._node(decode_inode(fid_of_key(key), value, self.blocks))

    def fid_of_name(self, directory: Fid, name: bytes) -> Fid | None:
        """Returns the fid that a name stood for."""
        value = self._names.get(name_key(directory, name))
        return None if value is None else decode_name(value).fid

    def children(self, directory: Fid) -> Iterator[tuple[bytes, Fid]]:
        """Yields the names in a directory, and what they stood for."""
        for key, value in self._names.below(inode_key(directory)):
            yield name_of_key(key), decode_name(value).fid

    def file(self, fid: Fid) -> BaseFile | None:
        """Returns what makes *fid*; None where it had no name."""
        record = self._record(fid)
        return None if record is None or fid == ROOT_FID else self._file(record)

    def contents(
        self, is_wanted: Callable[[BaseFile], bool], pool: Executor
    ) -> Iterator[BasePiece]:
        """Yields the contents of files: see BaseTree.contents."""
        blocks = self.blocks.by_windows()
        tree = VersionTree(blocks, self._trees)

        def planned() -> Iterator[PlannedPiece]:
            for key, value in tree.inodes.items():
                record = decode_inode(fid_of_key(key), value, blocks)
                if record.fid != ROOT_FID and is_wanted(self._file(record)):
                    yield from pieces_of(tree, record)

        for record, start, data, is_last in read_ahead(blocks, planned(), pool):
            yield BasePiece(record.fid, start, data, is_last)

    @property
    def _trees(self) -> Trees:
        inodes, names = bytes.fromhex(self.base.inodes), bytes.fromhex(self.base.names)
        return Trees(inodes, names, self.base.next_fid, self.base.epoch, 0)

    def changes_from(self, inodes: str, names: str) -> Iterator[FileChange]:
        """Yields what the tree with these roots has otherwise, in time of the difference."""
        base, old = self.base, (bytes.fromhex(inodes), bytes.fromhex(names))
        new = bytes.fromhex(base.inodes), bytes.fromhex(base.names)
        mine, other = (
            VersionTree(self.blocks, Trees(*roots, base.next_fid, base.epoch, 0))
            for roots in (new, old)
        )
        for key, *_ in differing(self._nodes, old[0], new[0]):
            fid = fid_of_key(key)
            yield _change(mine, other, mine.find_record(fid), other.find_record(fid), fid)

    def _record(self, fid: Fid) -> InodeRecord | None:
        value = self._inodes.get(inode_key(fid))
        return None if value is None else decode_inode(fid, value, self.blocks)

    def _node(self, record: InodeRecord) -> BaseNode:
        return BaseNode(
            record.fid,
            record.type,
            record.size,
            record.mtime_ns,
            record.complete,
            self._dentries(record),
            record.file_flags,
        )

    def _file(self, record: InodeRecord) -> BaseFile:
        node = self._node(record)
        parent, name, _ = node.dentries[0]
        return BaseFile(record.as_import(parent, name, complete=True), node)

    def _dentries(self, record: InodeRecord) -> tuple[tuple[Fid, bytes, int], ...]:
        """Returns its names, the oldest first: cookies grow."""
        found = []
        for parent, name in record.links:
            value = self._names.get(name_key(parent, name))
            its = None if value is None else decode_name(value)
            if its is None or its.fid != record.fid:  # as another node may send it
                raise StoreDamagedError(
                    self.blocks.store.where, f"fid {record.fid} has a name that no directory has"
                )
            found.append((parent, name, its.cookie))
        if len(found) > 1:
            found.sort(key=lambda dentry: dentry[2])
        return tuple(found)

    # -- as entries --------------------------------------------------------------------------------

    def entries(
        self,
        fids: Collection[Fid],
        wanted: Callable[[Posting], bool],
        is_read: IsRead = all_read,
    ) -> Iterator[Entry]:
        """Yields those entries for *fids* for which *wanted* holds: see BaseTree.entries."""
        for fid in sorted(fids):
            record = self._record(fid)
            if record is None:
                continue
            for operation in self._making(record):
                if wanted(_posting(operation, is_parent=False)):
                    yield self._entry(operation, base_seq_of(fid))
            if record.content is not None and wanted(Posting(0, Kind.IMPORT_DATA, False, False)):
                yield from self._contents(record, is_read)
            name = ImportLink(fid, fid, b"-")
            if wanted(_posting(name, is_parent=True)):
                for key, value in self._names.below(inode_key(fid)):
                    link = ImportLink(decode_name(value).fid, fid, name_of_key(key))
                    yield self._entry(link, base_seq_of(fid))

    def _making(self, record: InodeRecord) -> Iterator[Operation]:
        """Yields the operations that make a file, but for its content."""
        if record.fid == ROOT_FID:
            if record.mode is None:
                return
            mode = S_IMODE(record.mode)
            yield Setattr(ROOT_FID, mode, record.uid, record.gid, None, None)
            for name, value in record.xattrs:
                yield Setxattr(ROOT_FID, name, value)
            # An ACL sets the mode.
            yield Setattr(ROOT_FID, mode, None, None, None, record.mtime_ns)
            yield from _flags(record)
            return
        (parent, name, _), *others = self._dentries(record)
        is_whole = record.complete and next(self._pieces(record), None) is None
        yield record.as_import(parent, name, complete=is_whole)
        for other, its_name, _ in others:
            yield ImportLink(record.fid, other, its_name)
        yield from _flags(record)

    def _pieces(self, record: InodeRecord) -> Iterator[tuple[int, bytes | None, int]]:
        """Yields what of a content is no hole: where a piece begins, its chunk, if it has one, and
        its length."""
        content = record.content
        if content is not None and content.inline is not None:
            if content.inline:
                yield 0, None, len(content.inline)
        elif content is not None:
            for start, item in items_of(self._chunk_nodes, content):
                if item.id is not None:
                    yield start, item.id, item.length

    def _contents(self, record: InodeRecord, is_read: IsRead) -> Iterator[Entry]:
        """Yields the content of a file, piece by piece; the last one tells whether that is all."""
        pieces = self._pieces(record)
        piece = next(pieces, None)
        while piece is not None:
            (start, id_, length), piece = piece, next(pieces, None)
            is_last = record.complete and piece is None
            operation = ImportData(record.fid, start, record.mtime_ns or 0, is_last)
            if is_read(record.fid, start, start + length):
                data = self._bytes(record, id_, length)
            else:
                data = bytes(length)
            yield self._entry(operation, base_seq_of(record.fid, start), data)

    def _bytes(self, record: InodeRecord, id_: bytes | None, length: int) -> bytes:
        if id_ is not None:
            return self.blocks.read_chunk(id_, length)
        assert record.content is not None
        return record.content.inline or b""

    def data(self, seq: Seq) -> Entry:
        """Returns the entry with a content that has this seq."""
        fid, offset = content_at(seq)
        record = self._record(fid)
        assert record is not None
        assert record.content is not None
        id_, length = None, 0
        if record.content.inline is None:
            _, (id_, length) = next(items_of(self._chunk_nodes, record.content, offset))
        operation = ImportData(fid, offset, record.mtime_ns or 0, False)
        return self._entry(operation, seq, self._bytes(record, id_, length))

    def _entry(self, operation: Operation, seq: Seq, data: bytes = b"") -> Entry:
        time_ns = self.base.time_ns
        return Entry(seq, time_ns, SYSTEM_CALLER, None, operation, data, Seq(0), 0, 0, 0)


def _change(
    mine: VersionTree,
    other: VersionTree,
    record: InodeRecord | None,
    its: InodeRecord | None,
    fid: Fid,
) -> FileChange:
    path = None
    if its is not None:
        path = other.path(*its.links[0]) if its.links else b""
    ranges: list[tuple[int, int]] = []
    has_content = record is not None and record.content is not None
    if record is not None and has_content and (its is None or its.content != record.content):
        ranges = [(start, size) for start, _, size in unlike_parts(mine, record, other, its)]
    flags = [one.file_flags for one in (record, its) if one is not None]
    size = record.size if record is not None and has_content else None
    return FileChange(fid, path, size, tuple(ranges), any(flags))


def _flags(record: InodeRecord) -> Iterator[Operation]:
    if record.file_flags:
        yield SetFlags(record.fid, record.file_flags)


def _posting(operation: Operation, *, is_parent: bool) -> Posting:
    return Posting(0, operation.kind, False, is_parent)
