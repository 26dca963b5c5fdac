"""Fills a backing that was empty with the tree at a journal's base, and enters it in a catalog that
has nothing yet: the part of a copy of a tree (whole_set.py) that makes the files.

In one pass over the tree's files in the order of their fids, in which most of their contents are
read, too; a directory is made when it comes, or before the first name in it. A regular file gets
its fid last of all: so one that has it is whole. Nothing is flushed here, because nothing counts
until the caller has flushed all of it. What directories are to have comes when all names are there:
each name changes an mtime, and some flags would forbid the rest.

Filling goes on where it was after a kill, with a catalog that is begun anew. After a system crash,
which may have kept a fid and lost a content, each file is made anew. Memory: the fids of
directories, and some MiB of contents."""

import errno
import os
from array import array
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from stat import S_IFDIR, S_IFMT, S_IFREG, S_ISDIR, S_ISREG
from typing import Final

from fusejournal.backing.catalog_store import COMMIT_CHANGES
from fusejournal.backing.fid_tag import FoundEntry, remove_xattr, xattr_names
from fusejournal.disk import calls, failpoints, syscalls
from fusejournal.errors import RecoveryError
from fusejournal.file_operations import LOCKING_FLAGS, SetFlags
from fusejournal.journal.base import BaseFile, BaseNode, BasePiece, BaseTree
from fusejournal.operations import Import, ImportLink, Setattr, Setxattr
from fusejournal.types import ROOT_FID, Fid, StageProgress
from fusejournal.volume.volume import Volume

_THREADS: Final = 2
_PROGRESS_FILES: Final = 256
_PROGRESS_BYTES: Final = 16 << 20


class Filling:
    """The making of all files of *tree* in *volume*'s backing. *trusts_mtimes*: what another
    attempt has made is there with its content."""

    def __init__(
        self, volume: Volume, tree: BaseTree, progress: StageProgress, *, trusts_mtimes: bool
    ) -> None:
        self._tree = volume.tree
        self._catalog = volume.catalog
        self._applier = volume.applier
        self._base = tree
        self._progress = progress
        self._trusts_mtimes = trusts_mtimes
        self._goes_on = False
        """True if there may be files that another attempt has made."""
        self._directories = array("Q")
        self._waiting: dict[Fid, BaseFile] = {}
        """Regular files whose contents are being read."""
        self._fd = -1
        """The descriptor of the one that is being written."""
        self._files = 0
        self._done_bytes = self._reported_bytes = 0

    def run(self) -> None:
        """Raises StoreError, OSError, RecoveryError."""
        self._goes_on = next(self._tree.names(ROOT_FID), None) is not None
        root = self._base.node(ROOT_FID)
        if root is None:
            raise RecoveryError("the tree of the base is none: it has no root")
        self._catalog.record_base(root, self._base.base)
        if self._goes_on and root.flags:
            _unlock(self._tree.descriptor(ROOT_FID))
        with ThreadPoolExecutor(_THREADS) as pool:
            try:
                for piece in self._base.contents(self._begin, pool):
                    self._take(piece)
            finally:
                if self._fd >= 0:
                    os.close(self._fd)
        for directory in self._directories:
            self._finish_directory(Fid(directory))
        self._finish_root()
        self._catalog.end_base(self._base.base)

    # -- a file ------------------------------------------------------------------------------------

    def _begin(self, file: BaseFile) -> bool:
        """Make a file that is no regular one, or find it made. Returns True if its content is to
        come, with which it is made."""
        self._files += 1
        if self._files % _PROGRESS_FILES == 0:
            self._report_progress()
        making = file.making
        if S_ISDIR(making.mode):
            self._directories.append(making.fid)
            if self._catalog.node(making.fid) is None:
                self._directory(making.parent)
                self._make_directory(file)
            return False
        self._directory(making.parent)
        if self._goes_on and self._is_there(file):
            return False
        if S_ISREG(making.mode):
            self._waiting[making.fid] = file
            return True
        made = self._applier.apply(making, 0, b"", False)
        self._finish(file, made.handle, made.ino)
        return False

    def _is_there(self, file: BaseFile) -> bool:
        """Returns True if another attempt has made *file*. Else nothing of it is left."""
        making = file.making
        found = self._tree.probe_name(making.parent, making.name)
        if found is not None and self._is_done(making, found):
            self._finish(file, found.handle, found.stat.st_ino)
            return True
        if found is not None:
            self._remove(making)
        self._remove_links(file)
        return False

    def _take(self, piece: BasePiece) -> None:
        """Write a piece of a file's content, and make the file before the first, and give it what
        it is to have after the last."""
        fid, start, data, is_last = piece
        file = self._waiting[fid]
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
            self._finish(file, made.handle, made.ino)
        if self._done_bytes - self._reported_bytes >= _PROGRESS_BYTES:
            self._report_progress()

    def _finish(self, file: BaseFile, handle: bytes, ino: int) -> None:
        """Enter a file that is there in the catalog, and give it its further names and its
        flags."""
        self._note(file.node, handle, ino)
        fid, dentries, flags = file.making.fid, file.node.dentries, file.node.flags
        if len(dentries) > 1:
            for parent, name, _ in dentries[1:]:
                self._directory(parent)
                self._applier.apply(ImportLink(fid, parent, name), 0, b"", self._goes_on)
        if flags:
            self._applier.apply(SetFlags(fid, flags), 0, b"", True)

    def _note(self, node: BaseNode, handle: bytes, ino: int) -> None:
        self._catalog.record_base(node, self._base.base, handle, ino)
        if self._catalog.changes >= COMMIT_CHANGES:
            self._catalog.commit()

    def _is_done(self, making: Import, found: FoundEntry) -> bool:
        """Returns True if *found* is what *making* is to make, with its content."""
        if found.fid != making.fid or S_IFMT(found.stat.st_mode) != S_IFMT(making.mode):
            return False
        is_as_made = (found.stat.st_size, found.stat.st_mtime_ns) == (making.size, making.mtime_ns)
        return self._trusts_mtimes and (is_as_made or making.target is not None)

    def _remove_links(self, file: BaseFile) -> None:
        """Take away the further names that another attempt has given to what is made anew: a link
        to them would be taken for made, and they would lead to what may be lost."""
        making = file.making
        for parent, name, _ in file.node.dentries[1:]:
            self._directory(parent)
            found = self._tree.probe_name(parent, name)
            if found is not None and found.fid == making.fid:
                self._remove(making._replace(parent=parent, name=name))

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

    def _directory(self, fid: Fid) -> None:
        """Have directory *fid* be there, with those above it."""
        if self._catalog.node(fid) is None:
            for file in self._way_to(fid):
                self._make_directory(file)

    def _way_to(self, fid: Fid) -> Iterator[BaseFile]:
        """Yields those directories that are to be made for *fid* to be there, the highest first.
        Raises RecoveryError where the tree is none."""
        way: list[BaseFile] = []
        seen: set[Fid] = set()
        while self._catalog.node(fid) is None:
            file = self._base.file(fid)
            if file is None or fid in seen or not S_ISDIR(file.making.mode):
                raise RecoveryError(
                    f"the tree of the base is none: fid {fid} is no directory in it"
                )
            seen.add(fid)
            way.append(file)
            fid = file.making.parent
        yield from reversed(way)

    def _make_directory(self, file: BaseFile) -> None:
        making = file.making
        if self._goes_on:
            found = self._tree.probe_name(making.parent, making.name)
            if found is not None and found.fid == making.fid and S_ISDIR(found.stat.st_mode):
                self._note(file.node, found.handle, found.stat.st_ino)
                if file.node.flags:
                    _unlock(self._tree.descriptor(making.fid))
                return
        made = self._applier.apply(making, 0, b"", self._goes_on)
        self._note(file.node, made.handle, made.ino)

    def _finish_directory(self, fid: Fid) -> None:
        """Set what the making of names in it has changed, or would be kept from."""
        node = self._base.node(fid)
        assert node is not None, "it was made"
        if node.mtime_ns is not None:
            setting = Setattr(fid, None, None, None, None, node.mtime_ns)
            try:
                self._applier.apply(setting, 0, b"", True)
            except PermissionError as error:
                if error.errno != errno.EPERM:
                    raise  # (One that is immutable has its time: nothing was made in it.)
        if node.flags:
            self._applier.apply(SetFlags(fid, node.flags), 0, b"", True)

    def _finish_root(self) -> None:
        """Have the root be as the base has it, where that tells; it was there before."""
        entries = self._base.entries({ROOT_FID}, lambda posting: not posting.is_parent)
        operations = [
            one
            for one in (entry.operation for entry in entries)
            if isinstance(one, Setattr | Setxattr | SetFlags)
        ]
        if not operations:
            return
        wanted = {one.name for one in operations if isinstance(one, Setxattr)}
        fd = self._tree.descriptor(ROOT_FID)
        for name in xattr_names(fd):
            if name not in wanted:
                failpoints.reached("level.root.removexattr")
                remove_xattr(fd, name)
        for operation in operations:
            self._applier.apply(operation, 0, b"", True)

    def _report_progress(self) -> None:
        self._reported_bytes = self._done_bytes
        self._progress("making the files", self._done_bytes, self._base.base.content_bytes, "bytes")


def _unlock(fd: int) -> None:
    """Have the file or directory be neither immutable nor append-only. Raises OSError."""
    syscalls.set_file_flags(fd, syscalls.get_file_flags(fd) & ~LOCKING_FLAGS)
