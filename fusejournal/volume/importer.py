"""Import: brings files that were in the backing before the layer into the journal, with their
content.

One walk over the backing, top down, reading each file's data once. Every object gets an IMPORT
entry (then its fid, in the catalog and on the file itself), a regular file's content IMPORT_DATA
entries (holes stay holes), a further name of a file an IMPORT_LINK. The objects themselves are not
changed but for the fid: times, owners, modes stay.

A walk that was stopped or killed begins again and passes over what the catalog has whole, so it
reads only what it had not finished. Runs as a generator: between two items the caller may show
progress, wait or stop.

The same goes for what is found in the backing of a running volume. Others are served between two
items then, and a piece of content is journaled an item after it was read: so no caller may get at a
file that is ``unfinished``."""

import errno
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from stat import S_IMODE, S_ISDIR, S_ISLNK, S_ISREG
from typing import NamedTuple

from fusejournal.backing.catalog_store import CatalogNode
from fusejournal.backing.fid_tag import FoundEntry, xattr_names
from fusejournal.backing.probe import CASEFOLDED
from fusejournal.disk import calls, syscalls
from fusejournal.errors import BackingError
from fusejournal.operations import Import, ImportData, ImportLink, Setattr, Setxattr
from fusejournal.types import ROOT_FID, SYSTEM_CALLER, Fid, clamp_time
from fusejournal.volume.volume import Volume

PIECE_BYTES = 1 << 20
_ENTRY_BYTES = 256
"""The size of an entry without content, about."""
_XATTRS_BYTES_MAX = 8 << 20
_XATTR_HEAD_BYTES = 16
_XATTR_BYTES_MAX = (1 << 16) + 255
"""The limit of one, name and value: xattr(7)."""

Xattrs = tuple[tuple[bytes, bytes], ...]
"""Names and values, by name."""


class ImportProgress(NamedTuple):
    """The progress of the walk: names seen and bytes of content journaled."""

    names: int
    bytes: int


class Importer:
    """Imports into *volume*. ``path`` is the backing's, for messages. With *adopt* files are taken
    that bear another volume's mark."""

    def __init__(self, volume: Volume, path: Path, adopt: bool = False) -> None:
        self._volume = volume
        self._path = path
        self._adopt = adopt
        self._names = 0
        self._bytes = 0
        self.imported = 0
        """Names that were not known before."""
        self.unfinished: set[Fid] = set()
        """Files of whose content this process has journaled only a part."""
        self.active: set[Fid] = set()
        """The ones among them that are being journaled."""
        self._found_now = 0
        self._was_whole = False

    @property
    def names(self) -> int:
        """The names that were looked at so far: what is imported has one at least."""
        return self._names

    def is_past(self, bytes_: int | None) -> bool:
        """Returns True if this process has journaled more than so many bytes, about, and is between
        two files."""
        if bytes_ is None or self.active:
            return False
        return self._bytes + self.imported * _ENTRY_BYTES > bytes_

    def run(self) -> Iterator[ImportProgress]:
        """Import the whole backing. Raises BackingError (names the file), OSError ENOSPC when the
        journal is full."""
        self._journal_root()
        pending = [ROOT_FID]
        while pending:
            parent = pending.pop()
            for name in self._names_in(parent):
                yield from self.import_name(parent, name)
                fid = self._volume.catalog.lookup(parent, name)
                if fid is not None and S_ISDIR(self._volume.tree.node(fid).type):
                    pending.append(fid)

    def _names_in(self, directory: Fid) -> list[bytes]:
        """Returns the names in *directory* of the backing; none where it lacks the directory
        itself, which recovery has reported."""
        try:
            return sorted(self._volume.tree.names(directory))
        except OSError as error:
            if error.errno != errno.ESTALE:
                raise
            return []

    def import_name(self, parent: Fid, name: bytes) -> Iterator[ImportProgress]:
        """Import one name, with content (a directory without what is in it); nothing when it is
        known and whole."""
        self._names += 1
        catalog = self._volume.catalog
        known = catalog.lookup(parent, name)
        if known is not None:
            node = self._volume.tree.node(known)
            if not node.complete:
                # It may have been stopped before them.
                xattrs = _xattrs(self._volume.tree.xattr_target(node.fid))
                self._journal_xattrs(node.fid, _divided(xattrs)[1])
                yield from self._import_content(node)
            yield self._progress()
            return
        found = self._volume.tree.probe_name(parent, name)
        if found is None:
            return
        if found.stat.st_dev != self._volume.tree.device:
            raise BackingError(
                self._where(parent, name),
                "another file system is mounted here; a volume is one file system",
            )
        if found.owner not in (None, self._volume.tree.uuid) and not self._adopt:
            raise BackingError(
                self._where(parent, name),
                f"belongs to volume {found.owner}; if that one is no more, mount with -o adopt, "
                "which takes all files of other volumes as its own",
            )
        self.imported += 1
        node_of_tag = catalog.node(found.fid) if found.fid is not None else None
        # By the handle, not by the number alone: that may have been given twice.
        is_link = node_of_tag is not None and node_of_tag.handle == found.handle
        if node_of_tag is not None and is_link and not S_ISDIR(found.stat.st_mode):
            self._volume.journal_existing(ImportLink(node_of_tag.fid, parent, name))
        else:
            yield from self._import_object(parent, name, found)
        yield self._progress()

    def finish(self, fid: Fid) -> Iterator[ImportProgress]:
        """Journal the rest of the content of *fid*, whose import was interrupted, if there is any.
        Raises OSError ENOSPC when the journal is full."""
        node = self._volume.tree.node(fid)
        if not node.complete:
            yield from self._import_content(node)

    def import_found(self, parent: Fid, name: bytes) -> Iterator[ImportProgress]:
        """Import what was put into the backing of a running volume. Its name is known from the
        first item on. What is interrupted stays ``unfinished``, for :meth:`finish` or the next
        mount. Raises as :meth:`run`."""
        catalog = self._volume.catalog
        if not self._found_now:
            self._was_whole = catalog.imported
        self._found_now += 1
        try:
            # The one who put it there changed the directory's mtime with it.
            mtime_ns = clamp_time(self._volume.tree.stat(parent).st_mtime_ns)
            self._volume.commit(Setattr(parent, None, None, None, None, mtime_ns), SYSTEM_CALLER)
            yield from self.import_name(parent, name)
        finally:
            self._found_now -= 1
            if not self._found_now and not self.unfinished and self._was_whole:
                catalog.end_import()

    def _import_object(
        self, parent: Fid, name: bytes, found: FoundEntry
    ) -> Iterator[ImportProgress]:
        stat = found.stat
        fd = os.open(
            name,
            os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC,
            dir_fd=self._volume.tree.descriptor(parent),
        )
        try:
            if S_ISDIR(stat.st_mode):
                self._check_case(parent, name)
            xattrs, further = _divided(_xattrs(syscalls.descriptor_path(fd)))
            target = os.readlink(b"", dir_fd=fd) if S_ISLNK(stat.st_mode) else None
        finally:
            os.close(fd)
        operation = Import(
            fid=self._volume.new_fid(),
            parent=parent,
            name=name,
            mode=stat.st_mode,
            uid=stat.st_uid,
            gid=stat.st_gid,
            rdev=stat.st_rdev,
            size=stat.st_size if S_ISREG(stat.st_mode) else 0,
            mtime_ns=clamp_time(stat.st_mtime_ns),
            target=target,
            xattrs=xattrs,
            complete=not S_ISREG(stat.st_mode) or (stat.st_blocks == 0 and stat.st_size == 0),
        )
        try:
            self._volume.journal_existing(operation, found.handle, stat.st_ino)
        except PermissionError:
            raise BackingError(
                self._where(parent, name),
                "is immutable or append-only: 'chattr -i -a' it, then mount again",
            ) from None
        self._journal_xattrs(operation.fid, further)
        if not operation.complete:
            yield from self._import_content(self._volume.tree.node(operation.fid))

    def _journal_xattrs(self, fid: Fid, xattrs: Xattrs) -> None:
        """Journals the xattrs that the object's own entry had no room for."""
        for name, value in xattrs:
            self._volume.commit(Setxattr(fid, name, value), SYSTEM_CALLER)

    def _check_case(self, parent: Fid, name: bytes) -> None:
        fd = os.open(
            name,
            os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_NOATIME | os.O_CLOEXEC,
            dir_fd=self._volume.tree.descriptor(parent),
        )
        try:
            if syscalls.is_casefolded(fd):
                raise BackingError(self._where(parent, name), CASEFOLDED)
        finally:
            os.close(fd)

    def _import_content(self, node: CatalogNode) -> Iterator[ImportProgress]:
        self.unfinished.add(node.fid)
        self.active.add(node.fid)
        try:
            with self._volume.coming_in_pieces():
                yield from self._import_pieces(node)
            self.unfinished.discard(node.fid)
        finally:
            self.active.discard(node.fid)

    def _import_pieces(self, node: CatalogNode) -> Iterator[ImportProgress]:
        fd = self._volume.tree.descriptor(node.fid)
        stat = os.fstat(fd)
        mtime_ns = clamp_time(stat.st_mtime_ns)
        offset, end = 0, stat.st_size
        held: tuple[int, bytes] | None = None
        # One piece behind, so that the last one can say that it is the last.
        while (piece := self._piece(node.fid, offset, end)) is not None:
            if held is not None:
                self._journal_piece(node.fid, mtime_ns, held, complete=False)
            held = piece
            offset = piece[0] + len(piece[1])
            yield self._progress()
        self._journal_piece(node.fid, mtime_ns, held or (0, b""), complete=True)

    def _piece(self, fid: Fid, offset: int, end: int) -> tuple[int, bytes] | None:
        """The next data of *fid* from *offset* on: where it is and what; None when only a hole is
        left."""
        # Others may use the descriptor cache between two pieces: ask for the descriptor anew.
        fd = self._volume.tree.descriptor(fid)
        found = next(calls.data_ranges(fd, offset, end), None)
        if found is None:
            return None
        offset, hole = found
        data = os.pread(fd, min(PIECE_BYTES, hole - offset), offset)
        return (offset, data) if data else None

    def _journal_piece(
        self, fid: Fid, mtime_ns: int, piece: tuple[int, bytes], complete: bool
    ) -> None:
        offset, data = piece
        self._volume.journal_existing(ImportData(fid, offset, mtime_ns, complete), data=data)
        self._bytes += len(data)

    def _journal_root(self) -> None:
        """The root has no name to import; its attributes are journaled as settings of what it
        has."""
        stat = self._volume.tree.stat(ROOT_FID)
        attributes = Setattr(
            ROOT_FID,
            S_IMODE(stat.st_mode),
            stat.st_uid,
            stat.st_gid,
            None,
            clamp_time(stat.st_mtime_ns),
        )
        for name, value in _xattrs(self._volume.tree.root_fd):
            self._volume.commit(Setxattr(ROOT_FID, name, value), SYSTEM_CALLER)
        self._volume.commit(attributes, SYSTEM_CALLER)

    def _progress(self) -> ImportProgress:
        return ImportProgress(self._names, self._bytes)

    def _where(self, parent: Fid, name: bytes) -> Path:
        directory = self._volume.catalog.path(parent) or b""
        return self._path / os.fsdecode(directory) / os.fsdecode(name)


def _divided(xattrs: Xattrs) -> tuple[Xattrs, Xattrs]:
    """Returns as many as an entry can hold beside the rest of it, and the others: 65,536 bytes in
    each of a thousand are more than that."""
    total = 0
    for number, (name, value) in enumerate(xattrs):
        total += _bytes_of(name, value)
        if total > _XATTRS_BYTES_MAX:
            return xattrs[:number], xattrs[number:]
    return xattrs, ()


def fits_one_entry(xattrs: Mapping[bytes, bytes]) -> bool:
    """True if an IMPORT with *xattrs* had room for any further one, and so has all of them."""
    total = sum(_bytes_of(name, value) for name, value in xattrs.items())
    return total + _XATTR_BYTES_MAX + _XATTR_HEAD_BYTES <= _XATTRS_BYTES_MAX


def _bytes_of(name: bytes, value: bytes) -> int:
    return len(name) + len(value) + _XATTR_HEAD_BYTES


def _xattrs(target: int | str) -> Xattrs:
    """All xattrs but hidden ones, by name."""
    return tuple((name, os.getxattr(target, name)) for name in xattr_names(target))


def survey(root_fd: int) -> ImportProgress:
    """Count names and bytes below *root_fd* without reading any file, for a progress bar's
    total."""
    names, total = 0, 0
    # Handles rather than paths or descriptors: there may be more levels than either can have.
    pending = [syscalls.handle_of(root_fd)]
    while pending:
        fd = syscalls.open_by_handle(root_fd, pending.pop(), os.O_RDONLY | os.O_DIRECTORY)
        try:
            with os.scandir(fd) as entries:
                for entry in entries:
                    names += 1
                    stat = entry.stat(follow_symlinks=False)
                    if S_ISREG(stat.st_mode):
                        total += min(stat.st_size, stat.st_blocks * 512)
                    elif S_ISDIR(stat.st_mode):
                        pending.append(syscalls.handle_of(fd, os.fsencode(entry.name)))
        finally:
            os.close(fd)
    return ImportProgress(names, total)
