"""Fills a backing that was empty with the tree at a journal's base: the part of a copy of a tree
(whole_set.py) that makes the files. The catalog has them already, without handles, and gets these.
What later entries removed is left out.

In one pass over the tree's files in the order of their fids, in which most of their contents are
read, too; a directory is made when it comes, or before the first name in it. A regular file gets
its fid last of all: so one that has it is whole. Nothing is flushed here, because nothing counts
until the caller has flushed all of it. What directories are to have comes when all names are there:
each name changes an mtime, and some flags would forbid the rest.

Filling goes on where it was after a kill. After a system crash, which may have kept a fid and lost
a content, each file is made anew. Memory: the fids of directories, and some MiB of contents."""

import errno
import os
from array import array
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from stat import S_IFDIR, S_IFMT, S_IFREG, S_ISDIR, S_ISREG
from typing import Final

from fusejournal.backing.catalog_store import CatalogNode
from fusejournal.backing.fid_tag import FoundEntry
from fusejournal.disk import calls, failpoints, syscalls
from fusejournal.errors import RecoveryError
from fusejournal.file_operations import LOCKING_FLAGS, SetFlags
from fusejournal.journal.base import BaseFile, BasePiece, BaseTree
from fusejournal.operations import Import, ImportLink, Setattr
from fusejournal.types import ROOT_FID, Fid, StageProgress
from fusejournal.volume.volume import Volume

_THREADS: Final = 2
_COMMIT_FILES: Final = 10_000
_PROGRESS_FILES: Final = 256
_PROGRESS_BYTES: Final = 16 << 20


class Filling:
    """The making of all files of *tree* in *volume*'s backing. *trusts_mtimes*: what another
    attempt has made is there with its content."""

    def __init__(
        self, volume: Volume, tree: BaseTree, progress: StageProgress, *, trusts_mtimes: bool
    ) -> None:
        self._volume = volume
        self._tree = volume.tree
        self._catalog = volume.catalog
        self._applier = volume.applier
        self._base = tree
        self._progress = progress
        self._trusts_mtimes = trusts_mtimes
        self._goes_on = False
        """True if there may be files that another attempt has made."""
        self._directories = array("Q", [ROOT_FID])
        self._waiting: dict[Fid, tuple[BaseFile, CatalogNode]] = {}
        """Regular files whose contents are being read."""
        self._fd = -1
        """The descriptor of the one that is being written."""
        self._files = 0
        self._done_bytes = self._reported_bytes = 0

    def run(self) -> None:
        """Raises StoreError, OSError, RecoveryError."""
        self._goes_on = next(self._tree.names(ROOT_FID), None) is not None
        with ThreadPoolExecutor(_THREADS) as pool:
            try:
                for piece in self._base.contents(self._begin, pool):
                    self._take(piece)
            finally:
                if self._fd >= 0:
                    os.close(self._fd)
        for directory in self._directories:
            self._finish_directory(Fid(directory))

    # -- a file ------------------------------------------------------------------------------------

    def _begin(self, file: BaseFile) -> bool:
        """Make a file that is no regular one, or find it made. Returns True if its content is to
        come, with which it is made."""
        self._files += 1
        if self._files % _PROGRESS_FILES == 0:
            self._report_progress()
        if self._files % _COMMIT_FILES == 0:
            self._catalog.note_handles(have_all=False)
            self._catalog.commit()
        making = file.making
        node = self._catalog.node(making.fid)
        if node is None:
            return False
        if S_ISDIR(making.mode):
            self._directories.append(making.fid)
            self._directory(making.fid)
            return False
        for parent, name in file.dentries:
            if not self._directory(parent):
                continue
            making = making._replace(parent=parent, name=name)
            found = self._tree.probe_name(parent, name) if self._goes_on else None
            if found is not None and found.fid not in (None, making.fid):
                continue  # an entry after the base has given it to another
            if found is not None and self._is_done(making, found):
                self._note(node, found.handle, found.stat.st_ino)
                self._finish(file, making)
                return False
            if found is not None:
                self._remove(making)
            self._remove_links(file, making)
            file = file._replace(making=making)
            if S_ISREG(making.mode):
                self._waiting[making.fid] = file, node
                return True
            made = self._applier.apply(making, 0, b"", False)
            self._note(node, made.handle, made.ino)
            self._finish(file, making)
            return False
        return False

    def _take(self, piece: BasePiece) -> None:
        """Write a piece of a file's content, and make the file before the first, and give it what
        it is to have after the last."""
        fid, start, data, is_last = piece
        file, node = self._waiting[fid]
        imports = self._applier.imports
        if self._fd < 0:
            self._fd = imports.begin(file.making)
        if data:
            failpoints.reached("level.fill")
            calls.write_all("level.write", self._fd, data, start)
        self._done_bytes += len(data)
        if is_last:
            made = imports.end(file.making, self._fd, start + len(data))
            os.close(self._fd)
            self._fd = -1
            del self._waiting[fid]
            self._note(node, made.handle, made.ino)
            self._finish(file, file.making)
        if self._done_bytes - self._reported_bytes >= _PROGRESS_BYTES:
            self._report_progress()

    def _note(self, node: CatalogNode, handle: bytes, ino: int) -> None:
        self._tree.forget_descriptor(node.fid)
        self._catalog.note_object(node, handle, ino)

    def _finish(self, file: BaseFile, making: Import) -> None:
        """Give a file that is there its further names and its flags."""
        fid = making.fid
        for parent, name in file.dentries if len(file.dentries) > 1 else ():
            if (parent, name) != (making.parent, making.name) and self._directory(parent):
                with suppress(FileExistsError):  # an entry after the base gave it to another
                    self._applier.apply(ImportLink(fid, parent, name), 0, b"", self._goes_on)
        if file.flags:
            self._applier.apply(SetFlags(fid, file.flags), 0, b"", True)

    def _is_done(self, making: Import, found: FoundEntry) -> bool:
        """Returns True if *found* is what *making* is to make, with its content."""
        if found.fid != making.fid or S_IFMT(found.stat.st_mode) != S_IFMT(making.mode):
            return False
        is_as_made = (found.stat.st_size, found.stat.st_mtime_ns) == (making.size, making.mtime_ns)
        return self._trusts_mtimes and (is_as_made or making.target is not None)

    def _remove_links(self, file: BaseFile, making: Import) -> None:
        """Take away the further names that another attempt has given to what is made anew: a link
        to them would be taken for made, and they would lead to what may be lost."""
        if not self._goes_on or len(file.dentries) < 2:
            return
        for parent, name in file.dentries:
            further = making._replace(parent=parent, name=name)
            if further != making and self._directory(parent):
                found = self._tree.probe_name(parent, name)
                if found is not None and found.fid == making.fid:
                    self._remove(further)

    def _remove(self, making: Import) -> None:
        """Take away what another attempt had begun to make, or may have lost."""
        directory = self._tree.descriptor(making.parent)
        self._tree.forget_descriptor(making.fid)
        failpoints.reached("level.remove")
        try:
            os.unlink(making.name, dir_fd=directory)
        except PermissionError:
            if S_IFMT(making.mode) not in (S_IFREG, S_IFDIR):
                raise
            flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
            fd = os.open(making.name, flags, dir_fd=directory)
            try:
                _unlock(fd)
            finally:
                os.close(fd)
            os.unlink(making.name, dir_fd=directory)

    # -- directories -------------------------------------------------------------------------------

    def _directory(self, fid: Fid) -> bool:
        """Have directory *fid* be there, with those above it. Returns False where it has gone
        since, or its name is another's."""
        node = self._catalog.node(fid)
        if node is None or node.handle:
            return node is not None
        return all(map(self._make_directory, self._way_to(fid)))

    def _way_to(self, fid: Fid) -> Iterator[BaseFile]:
        """Yields those directories that are to be made for *fid* to be there, the highest first.
        Raises RecoveryError where the tree is none."""
        way: list[BaseFile] = []
        seen: set[Fid] = set()
        while (node := self._catalog.node(fid)) is None or not node.handle:
            file = self._base.file(fid)
            if file is None or fid in seen or not S_ISDIR(file.making.mode):
                raise RecoveryError(
                    f"the tree of the base is none: fid {fid} is no directory in it"
                )
            seen.add(fid)
            way.append(file)
            fid = file.making.parent
        yield from reversed(way)

    def _make_directory(self, file: BaseFile) -> bool:
        making = file.making
        node = self._catalog.node(making.fid)
        if node is None:
            return False
        if self._goes_on:
            found = self._tree.probe_name(making.parent, making.name)
            if found is not None and found.fid not in (None, making.fid):
                return False
            if found is not None and found.fid == making.fid and S_ISDIR(found.stat.st_mode):
                self._note(node, found.handle, found.stat.st_ino)
                if file.flags:
                    _unlock(self._tree.descriptor(making.fid))
                return True
        made = self._applier.apply(making, 0, b"", self._goes_on)
        self._note(node, made.handle, made.ino)
        return True

    def _finish_directory(self, fid: Fid) -> None:
        """Set what the making of names in it has changed, or would be kept from."""
        node, made = self._base.node(fid), self._catalog.node(fid)
        if node is None or made is None or not made.handle:
            return
        if node.mtime_ns is not None:
            setting = Setattr(fid, None, None, None, None, node.mtime_ns)
            try:
                self._applier.apply(setting, 0, b"", True)
            except PermissionError as error:
                if error.errno != errno.EPERM:
                    raise  # (One that is immutable has its time: nothing was made in it.)
        if node.flags:
            self._applier.apply(SetFlags(fid, node.flags), 0, b"", True)

    def _report_progress(self) -> None:
        self._reported_bytes = self._done_bytes
        self._progress("making the files", self._done_bytes, self._base.base.content_bytes, "bytes")


def _unlock(fd: int) -> None:
    """Have the file or directory be neither immutable nor append-only. Raises OSError."""
    syscalls.set_file_flags(fd, syscalls.get_file_flags(fd) & ~LOCKING_FLAGS)
