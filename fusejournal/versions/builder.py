"""The builder: the trees of a version, made of those of an earlier one (or of none) and the entries
between, and of nothing else. No live tree is looked at.

It takes entries in order and folds them, file by file, in memory; :meth:`Builder.finish` brings the
two trees to the state after the last one. The result follows from the entries alone, whatever is
finished when: so a long history is folded a stretch at a time (:func:`build_trees`), and memory
stays bounded. Names, cookies and the next fid are as the catalog has them (backing/catalog.py),
states as in history/file_states.py."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from stat import S_IFDIR, S_IFLNK, S_IFREG
from typing import Any

from fusejournal.disk.acls import ACCESS_ACL_XATTR, DEFAULT_ACL_XATTR
from fusejournal.errors import JournalError
from fusejournal.file_operations import JOURNALED_FLAGS, Fallocate
from fusejournal.history.file_states import State, rdev_of, target_of, type_of
from fusejournal.history.mtimes import directory_mtimes
from fusejournal.journal.format import Entry
from fusejournal.journal.outcomes import Outcome, with_outcomes
from fusejournal.journal.reader import JournalReader
from fusejournal.operations import (
    ONE_FILE_KINDS,
    RENAME_EXCHANGE,
    ControlOperation,
    Import,
    ImportData,
    ImportLink,
    Link,
    Making,
    Moving,
    NewEpoch,
    Operation,
    Removal,
    Truncate,
    Write,
    made_by,
)
from fusejournal.replay.extents import Extents
from fusejournal.types import ROOT_FID, Epoch, Fid, Progress, Seq, cookie_of, first_fid
from fusejournal.versions.blocks import BlockWriter
from fusejournal.versions.chunk_list import ChunkNodes
from fusejournal.versions.content import EMPTY, Content, Overlay, cut_content
from fusejournal.versions.records import (
    InodeRecord,
    Name,
    decode_inode,
    decode_name,
    encode_inode,
    encode_name,
    inode_key,
    name_key,
)
from fusejournal.versions.sorted_tree import Nodes, SortedTree, empty_tree, update_tree
from fusejournal.versions.trees import Trees

_FOLDED_FILES_MAX = 20_000
_FOLDED_BYTES_MAX = 48 << 20
_FOLDED_ENTRIES_MAX = 200_000
_LINK_MODE = S_IFLNK | 0o777


def no_trees(blocks: BlockWriter) -> Trees:
    """Returns the trees before the first entry: nothing but a root of which nothing is told."""
    root = InodeRecord(ROOT_FID, None, None, None, 0, 0, None, (), None, None, (), complete=True)
    empty = empty_tree(blocks)
    inodes = update_tree(Nodes(blocks), empty, [(inode_key(ROOT_FID), encode_inode(root, blocks))])
    return Trees(inodes, empty, first_fid(Epoch(1)), Epoch(0), 0)


def build_trees(
    blocks: BlockWriter,
    base: Trees,
    reader: JournalReader,
    from_seq: Seq,
    to_seq: Seq,
    progress: Progress,
) -> Trees:
    """Returns the trees after some entries.

    Args:
        blocks: where the trees lie, and new blocks are put.
        base: the trees before these entries.
        reader: the journal that they are in.
        from_seq, to_seq: the first of them, and the first that is none of them.
        progress: gets the entries done and all.

    Raises JournalError where one of them is not there; JournalDamagedError, StoreDamagedError,
    StoreFullError, StoreError."""
    builder = Builder(blocks, base)
    # Whether the last one held is told by the one behind it.
    for entry, outcome in with_outcomes(_one_by_one(reader, from_seq, to_seq)):
        if entry.seq >= to_seq:
            break
        progress(entry.seq - from_seq, to_seq - from_seq)
        builder.take(entry, outcome)
        if builder.is_full:
            builder = Builder(blocks, builder.finish())
    return builder.finish()


def _one_by_one(reader: JournalReader, from_seq: Seq, to_seq: Seq) -> Iterator[Entry]:
    """Yields the entries in [from_seq, to_seq), none of which may be missing, and the one behind
    them, if there is one. Raises JournalError."""
    expected = from_seq
    for entry in reader.read(from_seq, Seq(to_seq + 1)):
        if entry.seq != expected:
            break
        expected = Seq(expected + 1)
        yield entry
    if expected < to_seq:
        raise JournalError(f"seq {expected} cannot be read: the tree after {to_seq - 1} needs it")


@dataclass
class _File:
    """One file, as it is folded."""

    state: State
    links: set[tuple[Fid, bytes]] = field(default_factory=set)
    content: Content = EMPTY
    """The content before, of ``old_size`` bytes."""
    old_size: int = 0
    extents: Extents = field(default_factory=Extents)
    complete: bool = True

    @property
    def size(self) -> int:
        """The size of a regular file; else 0."""
        maker = self.state.maker
        is_regular = maker is not None and type_of(maker) == S_IFREG
        return self.state.size if is_regular else 0


class Builder:
    """One stretch of a history. See the module."""

    def __init__(self, blocks: BlockWriter, base: Trees) -> None:
        self._blocks = blocks
        self._base = base
        self._nodes = Nodes(blocks)
        self._chunk_nodes = ChunkNodes(blocks)
        self._inodes = SortedTree(self._nodes, base.inodes)
        self._names = SortedTree(self._nodes, base.names)
        self._next_fid = base.next_fid
        self._epoch = base.epoch
        self._content_bytes = base.content_bytes
        self._files: dict[Fid, _File | None] = {}
        """Files that entries are about; None for those that are gone."""
        self._new_names: dict[bytes, Name | None] = {}
        self._data: dict[Fid, dict[Seq, tuple[int, bytes | None]]] = {}
        self._data_bytes = 0
        self._taken = 0
        """The entries so far: each costs memory, however little it changes."""

    @property
    def is_full(self) -> bool:
        """True if it is time to finish: it holds as much as it should."""
        return (
            self._data_bytes >= _FOLDED_BYTES_MAX
            or len(self._files) >= _FOLDED_FILES_MAX
            or self._taken >= _FOLDED_ENTRIES_MAX
        )

    # -- entries -----------------------------------------------------------------------------------

    def take(self, entry: Entry, outcome: Outcome) -> None:
        """Folds the next entry in. Raises JournalError where trees and journal contradict each
        other; StoreDamagedError, StoreError."""
        operation = entry.operation
        self._taken += 1
        self._count_fid(operation)
        if isinstance(operation, ControlOperation) or not outcome.held:
            return
        made = made_by(operation)
        if operation.kind in ONE_FILE_KINDS:
            self._take_of_file(entry, outcome)
        if isinstance(operation, Moving):
            self._move(operation, entry.seq)
        elif isinstance(operation, Removal):
            self._remove_name(operation.fid, operation.parent, operation.name, entry)
        elif isinstance(operation, Link | ImportLink):
            self._add_name(operation.fid, operation.parent, operation.name, cookie_of(entry.seq))
        if made is not None:
            self._make(made, entry, outcome)
        for fid, mtime_ns in directory_mtimes(entry):
            self._file(fid, entry.seq).state.take_mtime(mtime_ns)

    def _count_fid(self, operation: Operation) -> None:
        """Sees to it that no fid is given twice, nor that of a making that was refused."""
        if isinstance(operation, NewEpoch):
            self._next_fid = max(self._next_fid, first_fid(operation.epoch))
            self._epoch = operation.epoch
        elif (made := made_by(operation)) is not None:
            self._next_fid = max(self._next_fid, Fid(made.fid + 1))

    def _make(self, made: Making, entry: Entry, outcome: Outcome) -> None:
        file = self._files[made.fid] = _File(State(made.fid))
        file.state.take(entry, outcome)
        file.complete = not isinstance(made, Import) or made.complete
        self._add_name(made.fid, made.parent, made.name, cookie_of(entry.seq))

    def _take_of_file(self, entry: Entry, outcome: Outcome) -> None:
        operation: Any = entry.operation
        file = self._file(operation.fid, entry.seq)
        file.state.take(entry, outcome)
        if isinstance(operation, Truncate):
            file.extents.cut(operation.size)
        elif isinstance(operation, Fallocate) and operation.empties:
            # Zeros over what was there before this stretch, too.
            file.extents.put(operation.offset, operation.end, entry.seq)
            self._data.setdefault(operation.fid, {})[entry.seq] = operation.offset, None
        elif isinstance(operation, Write | ImportData) and (data := outcome.data_of(entry)):
            file.extents.put(operation.offset, operation.offset + len(data), entry.seq)
            self._data.setdefault(operation.fid, {})[entry.seq] = operation.offset, bytes(data)
            self._data_bytes += len(data)
        if isinstance(operation, ImportData):
            file.complete = operation.complete

    def _move(self, operation: Moving, seq: Seq) -> None:
        parent, name = operation.parent, operation.name
        new_parent, new_name = operation.new_parent, operation.new_name
        is_within = parent == new_parent
        cookie = self._take_name(operation.fid, parent, name, seq)
        if operation.replaced and operation.flags & RENAME_EXCHANGE:
            other_cookie = self._take_name(operation.replaced, new_parent, new_name, seq)
            if not is_within:
                cookie, other_cookie = cookie_of(seq), cookie_of(seq) + 1
            self._add_name(operation.fid, new_parent, new_name, cookie)
            self._add_name(operation.replaced, parent, name, other_cookie)
            return
        if operation.replaced:
            self._take_name(operation.replaced, new_parent, new_name, seq)
            self._drop_nameless(operation.replaced, seq)
        self._add_name(operation.fid, new_parent, new_name, cookie if is_within else cookie_of(seq))

    def _remove_name(self, fid: Fid, parent: Fid, name: bytes, entry: Entry) -> None:
        self._take_name(fid, parent, name, entry.seq)
        self._drop_nameless(fid, entry.seq)

    # -- names -------------------------------------------------------------------------------------

    def _add_name(self, fid: Fid, parent: Fid, name: bytes, cookie: int) -> None:
        self._new_names[name_key(parent, name)] = Name(fid, cookie)
        file = self._files.get(fid) or self._file(fid, Seq(0))
        file.links.add((parent, name))

    def _take_name(self, fid: Fid, parent: Fid, name: bytes, seq: Seq) -> int:
        """Takes a name of *fid* away. Returns its cookie."""
        key = name_key(parent, name)
        found = self._new_names.get(key)
        if found is None and key not in self._new_names:
            value = self._names.get(key)
            found = decode_name(value) if value is not None else None
        if found is None or found.fid != fid:
            raise _contradiction(seq, fid)
        self._new_names[key] = None
        self._file(fid, seq).links.discard((parent, name))
        return found.cookie

    def _drop_nameless(self, fid: Fid, seq: Seq) -> None:
        """A file without a name is no part of the tree, even while it is open."""
        file = self._file(fid, seq)
        if not file.links:
            self._content_bytes -= file.old_size
            self._files[fid] = None
            kept = self._data.pop(fid, {})
            self._data_bytes -= sum(len(data) for _, data in kept.values() if data)

    # -- files -------------------------------------------------------------------------------------

    def _file(self, fid: Fid, seq: Seq) -> _File:
        """Returns a file that entry *seq* is about."""
        file = self._files.get(fid)
        if file is None:
            value = self._inodes.get(inode_key(fid)) if fid not in self._files else None
            if value is None:
                raise _contradiction(seq, fid)
            file = _of_record(decode_inode(fid, value, self._blocks))
            self._files[fid] = file
        return file

    # -- the end -----------------------------------------------------------------------------------

    def finish(self) -> Trees:
        """Returns the trees after the entries taken so far; this object is not to be used any
        more. Raises StoreDamagedError, StoreFullError, StoreError."""
        changes: list[tuple[bytes, bytes | None]] = []
        for fid, file in sorted(self._files.items()):
            value = None
            if file is not None:
                self._content_bytes += file.size - file.old_size
                value = encode_inode(self._record(fid, file), self._blocks)
            changes.append((inode_key(fid), value))
        inodes = update_tree(self._nodes, self._base.inodes, changes)
        names = update_tree(
            self._nodes,
            self._base.names,
            [
                (key, encode_name(name) if name is not None else None)
                for key, name in sorted(self._new_names.items())
            ],
        )
        return Trees(inodes, names, self._next_fid, self._epoch, self._content_bytes)

    def _record(self, fid: Fid, file: _File) -> InodeRecord:
        state = file.state
        permissions = state.permissions()
        maker = state.maker
        kind = type_of(maker) if maker is not None else S_IFDIR
        mode = _LINK_MODE if kind == S_IFLNK else None
        if permissions.mode is not None and kind != S_IFLNK:
            mode = kind | permissions.mode
        acls = {
            ACCESS_ACL_XATTR: permissions.acl,
            DEFAULT_ACL_XATTR: permissions.default_acl,
        }
        xattrs = state.xattrs | {name: acl for name, acl in acls.items() if acl is not None}
        return InodeRecord(
            fid,
            mode,
            state.uid,
            state.gid,
            rdev_of(maker) if maker is not None else 0,
            file.size,
            state.mtime_ns,
            tuple(sorted(file.links)),
            target_of(maker) if maker is not None else None,
            self._content(fid, file) if kind == S_IFREG else None,
            tuple(sorted(xattrs.items())),
            file.complete,
            (state.flags or 0) & JOURNALED_FLAGS,
        )

    def _content(self, fid: Fid, file: _File) -> Content:
        state = file.state
        extents = list(file.extents)
        if not extents and state.size == file.old_size == state.floor:
            return file.content
        overlay = Overlay(
            self._chunk_nodes,
            file.content,
            min(state.floor, file.old_size),
            extents,
            self._data.get(fid, {}),
            state.size,
        )
        return cut_content(self._chunk_nodes, overlay, file.old_size)


def _of_record(record: InodeRecord) -> _File:
    if record.mode is None:
        state = State(record.fid, record.file_flags)
    else:
        parent, name = record.links[0] if record.links else (ROOT_FID, b"")
        made = record.as_import(parent, name, complete=True)
        state = State.of_import(made, record.file_flags)
    state.take_mtime(record.mtime_ns)
    return _File(
        state,
        set(record.links),
        record.content if record.content is not None else EMPTY,
        record.size,
        complete=record.complete,
    )


def _contradiction(seq: Seq, fid: Fid) -> JournalError:
    return JournalError(
        f"seq {seq} is about fid {fid}, which is not in the version before as the journal has it"
    )
