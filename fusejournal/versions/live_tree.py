"""The live tree of a running volume beside the tree that versions and journal record, file by file.

A file is opened by its fid, which is the layer's handle; its content is read past the kernel's
cache of the mount (O_DIRECT) and known by the hashes of its chunks, so that nothing is read from
the store. What the two differ in counts only if no entry since has touched the file or, of a name,
its directory: an entry is in the journal before its change is made, so a reader that looks at the
journal after the file misses none.

Source: open_by_handle_at(2), fuse(4), lseek(2)."""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from stat import S_IFDIR, S_IFLNK, S_IFMT, S_IFREG
from typing import NamedTuple

from fusejournal.backing.fid_tag import HIDDEN_XATTRS, xattr_names
from fusejournal.disk import calls, syscalls
from fusejournal.errors import ConflictError
from fusejournal.history.file_states import State
from fusejournal.journal.reader import END, JournalReader
from fusejournal.operations import Moving, made_by
from fusejournal.replay.attributes import attribute_changes
from fusejournal.replay.undo_files import UndoFiles
from fusejournal.types import ROOT_FID, Fid, Seq
from fusejournal.versions.content import read_content
from fusejournal.versions.packs import block_id
from fusejournal.versions.past_files import parts_of
from fusejournal.versions.records import InodeRecord
from fusejournal.versions.version_tree import VersionTree

_FLAGS_PATH = os.O_PATH | os.O_NOFOLLOW
_FLAGS_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK
_GONE = frozenset({errno.ESTALE, errno.ENOENT, errno.ENOTDIR})
_OF_KERNEL = frozenset({b"security.selinux", b"security.ima", b"security.evm"})
"""Attributes that the kernel sets by itself."""
_PIECE_BYTES = 1 << 20


class TreeFault(NamedTuple):
    """One file that is not as the journal has it."""

    fid: Fid
    what: tuple[str, ...]
    """The things that differ, in words."""
    ranges: tuple[tuple[int, int], ...]
    """Offset and length of the parts of its content that do."""


class LiveTree:
    """The tree of the volume mounted where *root* is open, beside *tree*."""

    def __init__(self, root: int, reader: JournalReader, tree: VersionTree) -> None:
        self._root = root
        self._key = reader.handle_key()
        self.tree = tree
        self.read_bytes = 0
        """The bytes of contents read so far."""

    def compare(self, record: InodeRecord) -> TreeFault | None:
        """Returns in what the file with *record* differs, if anything. Raises OSError where it
        cannot be looked at, StoreDamagedError, StoreError."""
        what: list[str] = []
        ranges: list[tuple[int, int]] = []
        try:
            with self._opened(record.fid, _FLAGS_PATH) as fd:
                found = os.fstat(fd)
                what += self._unlike_attributes(fd, found, record)
                what += self._unlike_names(record)
                if record.type == S_IFDIR == S_IFMT(found.st_mode):
                    what += self._unlike_children(record.fid)
            if record.type == S_IFREG == S_IFMT(found.st_mode) and record.complete:
                ranges = list(self._unlike_ranges(record))
        except OSError as error:
            if error.errno not in _GONE:
                raise
            what.append("is missing")
        if ranges:
            what.append("content")
        return TreeFault(record.fid, tuple(what), tuple(ranges)) if what else None

    def piece(self, fid: Fid, offset: int, length: int, id_: bytes) -> bytes | None:
        """Returns the bytes of the chunk *id_*, if file *fid* has them at *offset*. Raises
        OSError."""
        try:
            with self._opened_to_read(fid) as fd:
                data = self._read(fd, offset, length)
        except OSError as error:
            if error.errno not in _GONE:
                raise
            return None
        return data if block_id(data) == id_ else None

    @contextmanager
    def _opened(self, fid: Fid, flags: int) -> Iterator[int]:
        if fid == ROOT_FID:
            fd = os.open(".", flags | os.O_CLOEXEC, dir_fd=self._root)
        else:
            handle = syscalls.fuse_handle(fid, self._key.generation(fid))
            fd = syscalls.open_by_handle(self._root, handle, flags)
        try:
            yield fd
        finally:
            os.close(fd)

    def _unlike_attributes(
        self, fd: int, found: os.stat_result, record: InodeRecord
    ) -> Iterator[str]:
        if record.mode is None:
            return
        if S_IFMT(found.st_mode) != record.type:
            yield "type"
            return
        if record.type == S_IFLNK:
            if os.readlink(b"", dir_fd=fd) != record.target:
                yield "target"
        elif found.st_mode != record.mode:
            yield "mode"
        if (found.st_uid, found.st_gid) != (record.uid, record.gid):
            yield "owner"
        if found.st_rdev != record.rdev:
            yield "device"
        if record.type == S_IFREG and record.complete and found.st_size != record.size:
            yield "size"
        if found.st_mtime_ns != record.mtime_ns:
            yield "mtime"
        expected = {name: value for name, value in record.xattrs if name not in HIDDEN_XATTRS}
        if _xattrs(fd) != expected:
            yield "xattrs"

    def _unlike_names(self, record: InodeRecord) -> Iterator[str]:
        for parent, name in record.links:
            try:
                with self._opened(parent, _FLAGS_PATH) as directory:
                    found = os.stat(name, dir_fd=directory, follow_symlinks=False).st_ino
            except OSError as error:
                if error.errno not in _GONE:
                    raise
                found = 0
            if found != record.fid:
                yield f"name {os.fsdecode(name)!r}"

    def _unlike_children(self, fid: Fid) -> Iterator[str]:
        with self._opened(fid, _FLAGS_READ | os.O_DIRECTORY) as fd:
            names = set(syscalls.list_directory(fd))
        for name in sorted(names ^ {name for name, _ in self.tree.children(fid)}):
            yield f"{'further' if name in names else 'lacks'} name {os.fsdecode(name)!r}"

    def _unlike_ranges(self, record: InodeRecord) -> Iterator[tuple[int, int]]:
        """Yields the parts of a regular file's content that are not as they should be."""
        with self._opened_to_read(record.fid) as fd:
            for offset, id_, length in parts_of(self.tree, record):
                if id_ is None:
                    yield from self._unlike_hole(fd, offset, length)
                    continue
                data = self._read(fd, offset, length)
                is_inline = record.content is not None and record.content.inline is not None
                if (data if is_inline else block_id(data)) != id_:
                    yield offset, length

    @contextmanager
    def _opened_to_read(self, fid: Fid) -> Iterator[int]:
        try:
            with self._opened(fid, _FLAGS_READ | os.O_DIRECT) as fd:
                yield fd
                return
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
        with self._opened(fid, _FLAGS_READ) as fd:
            yield fd

    def _unlike_hole(self, fd: int, start: int, length: int) -> Iterator[tuple[int, int]]:
        end = start + length
        while start < end:
            try:
                start = os.lseek(fd, start, os.SEEK_DATA)
            except OSError as error:
                if error.errno == errno.ENXIO:
                    return
                raise
            if start < end:
                piece = min(_PIECE_BYTES, end - start)
                if any(self._read(fd, start, piece)):
                    yield start, piece
                start += piece

    def _read(self, fd: int, offset: int, length: int) -> bytes:
        pieces: list[bytes] = []
        while length:
            piece = os.pread(fd, length, offset)
            if not piece:
                break
            pieces.append(piece)
            offset += len(piece)
            length -= len(piece)
        data = b"".join(pieces)
        self.read_bytes += len(data)
        return data


def _xattrs(fd: int) -> dict[bytes, bytes]:
    path = syscalls.descriptor_path(fd)
    found = {}
    for name in xattr_names(path):
        if name not in _OF_KERNEL:
            with suppress(OSError):
                found[name] = os.getxattr(path, name)
    return found


class TouchedSince:
    """The files and directories that entries after *seq* are about."""

    def __init__(self, reader: JournalReader, seq: Seq) -> None:
        self._reader = reader
        self._next_seq = Seq(seq + 1)
        self._fids: set[Fid] = set()

    def look(self) -> None:
        """Reads what the journal has gained. Raises JournalDamagedError."""
        for entry in self._reader.read(self._next_seq, END):
            self._next_seq = Seq(entry.seq + 1)
            operation = entry.operation
            self._fids.update(operation.touched_fids)
            if (made := made_by(operation)) is not None:
                self._fids.add(made.fid)
            if isinstance(operation, Moving):
                self._fids.add(operation.replaced)

    def has(self, record: InodeRecord) -> bool:
        """Returns True if the file, or a directory with a name of it, is among them."""
        parents = (parent for parent, _ in record.links)
        return record.fid in self._fids or not self._fids.isdisjoint(parents)


def can_be_repaired(record: InodeRecord, fault: TreeFault) -> bool:
    """Returns True if only content and attributes differ, of a file that is there."""
    whole = ("is missing", "type", "target", "device")
    is_other = any(one in whole or " name " in f" {one} " for one in fault.what)
    return not is_other and record.mode is not None


def repair(files: UndoFiles, tree: VersionTree, record: InodeRecord, fault: TreeFault) -> bool:
    """Puts content and attributes of a file right through the mount of a primary, as changes like
    any other, from what *tree* has; where another process changes it meanwhile it is let be.
    Returns False where it is of another kind, or names differ. Raises StoreDamagedError,
    StoreError, OSError."""
    if not can_be_repaired(record, fault):
        return False
    is_written = record.type == S_IFREG and ("size" in fault.what or fault.ranges)
    flags = (os.O_RDWR if is_written else os.O_PATH) | os.O_NOFOLLOW | os.O_NONBLOCK
    parent, name = record.links[0] if record.links else (ROOT_FID, b"")
    state = State.of_import(record.as_import(parent, name, complete=True))
    with suppress(ConflictError), files.opened(record.fid, flags) as fd:
        files.check(record.fid, os.fstat(fd))
        if is_written:
            _rewrite(files, tree, record, fault, fd)
        for change in attribute_changes(fd, state):
            files.change(record.fid, fd, change)
        if record.type == S_IFDIR and os.fstat(fd).st_mtime_ns != record.mtime_ns:
            set_times = partial(syscalls.set_times, fd, None, record.mtime_ns)
            files.change(record.fid, fd, set_times)
        return True
    return False


def _rewrite(
    files: UndoFiles, tree: VersionTree, record: InodeRecord, fault: TreeFault, fd: int
) -> None:
    """Writes what differs, though a cached page may look as it should."""
    assert record.content is not None
    if os.fstat(fd).st_size != record.size:
        files.change(record.fid, fd, partial(calls.ftruncate, "scrub.truncate", fd, record.size))
    for offset, length in fault.ranges:
        data = read_content(tree.chunk_nodes, record.content, offset, offset + length)
        files.change(record.fid, fd, partial(calls.write_all, "scrub.write", fd, data, offset))
