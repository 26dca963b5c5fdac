"""The tree: fids joined to open files of the backing. Reads it; only the applier (apply.py)
changes it.

Owns the backing's root descriptor, a bounded cache of descriptors by fid, and the *orphans*: files
whose last name is gone while the kernel still knows them. An orphan cannot be opened again by its
handle, so its descriptor is pinned until the kernel forgets the fid and no open file uses it. Users
decide how many there are, so only so many are pinned: the others have a name in a hidden directory
until then, and need no descriptor. So have files that are open: they outlive this process, for the
next that takes over the mount. (A directory cannot have two names. Those that were removed beyond
that number can be used while their descriptor is in the cache, then they are ESTALE. So can files
that no process has open, where there is no space for a hidden name; those that are open keep their
descriptor then, and only beyond that number is the removal refused.)

One descriptor serves all users of a fid: a directory's is opened for reading, a regular file's for
reading and writing (for reading alone where the backing refuses more), all others' with O_PATH.
Permissions are the kernel's matter, not the descriptor's.

Called from the event loop's thread only. Source: open_by_handle_at(2).
"""

import errno
import logging
import os
from collections import OrderedDict
from collections.abc import Container, Iterator
from contextlib import suppress
from stat import S_IFDIR, S_IFLNK, S_IFMT, S_IFREG
from uuid import UUID

from fusejournal.backing.catalog import Catalog
from fusejournal.backing.catalog_store import CatalogNode
from fusejournal.backing.fid_tag import FID_XATTR, FoundEntry, pack_tag, read_tag
from fusejournal.backing.hidden_directory import HiddenFiles
from fusejournal.backing.limits import BackingLimits, probe_limits
from fusejournal.disk import failpoints, syscalls
from fusejournal.disk.acls import CAPABILITY_XATTR, DEFAULT_ACL_XATTR
from fusejournal.native import kernel
from fusejournal.native.kernel import FileStat
from fusejournal.types import ROOT_FID, Fid, Seq

log = logging.getLogger(__name__)

_ORPHAN, _UNNAMED = b".orphan", b".unnamed"
_FLAGS_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOATIME
_FLAGS_FILE = os.O_RDWR | os.O_NOATIME | os.O_NONBLOCK | os.O_LARGEFILE
_FLAGS_FILE_READ = os.O_RDONLY | os.O_NOATIME | os.O_NONBLOCK | os.O_LARGEFILE
_REFUSALS = frozenset({errno.EPERM, errno.EROFS, errno.ETXTBSY, errno.EACCES})


class Tree(HiddenFiles):
    """A tree of open files. ``descriptors_max`` bounds the descriptors held beside the pinned ones,
    and half as many are pinned at the most."""

    def __init__(self, root_fd: int, uuid: UUID, catalog: Catalog, descriptors_max: int) -> None:
        super().__init__(root_fd, uuid, catalog)
        self.device = os.fstat(root_fd).st_dev
        self.limits = BackingLimits()
        """The limits of the backing's file system; not known before :meth:`find_limits`."""
        self._descriptors: OrderedDict[Fid, int] = OrderedDict()
        """The descriptors in the order of their use: the newest last."""
        self._descriptors_max = descriptors_max
        self._read_only: set[Fid] = set()
        self._orphans: dict[Fid, CatalogNode] = {}
        self._pinned: dict[Fid, int] = {ROOT_FID: root_fd}
        self._pinned_max = descriptors_max // 2
        self.unnamed: set[Fid] = set()
        """Orphans that were made without a name, and may get one."""

    def find_limits(self) -> None:
        """Finds out ``limits``, with a file without a name. Blocks."""
        self.limits = probe_limits(self.root_fd)

    # -- nodes -------------------------------------------------------------------------------------

    def node(self, fid: Fid) -> CatalogNode:
        """The node of *fid*, orphans included. Raises OSError ESTALE when the file is gone."""
        node = self.catalog.node(fid) or self._orphans.get(fid)
        if node is None:
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))
        return node

    def is_orphan(self, fid: Fid) -> bool:
        """Returns whether *fid* has lost its last name: changes to it are no longer journaled."""
        return fid in self._orphans

    def stat(self, fid: Fid) -> FileStat:
        """The backing's own attributes of *fid*."""
        return kernel.stat(self.descriptor(fid))

    def stat_name(self, parent: Fid, name: bytes) -> FileStat:
        """The backing's own attributes of *name* in *parent*, not followed. Raises OSError
        ENOENT."""
        return kernel.stat(self.descriptor(parent), name)

    # -- descriptors -------------------------------------------------------------------------------

    def descriptor(self, fid: Fid) -> int:
        """An open descriptor of *fid*, good until the next call of any method here. Raises OSError
        ESTALE."""
        fd = self._descriptors.get(fid, -1)
        if fd >= 0:
            self._descriptors.move_to_end(fid)
            return fd
        fd = self._pinned.get(fid, -1)
        if fd >= 0:
            return fd
        fd = self._open(self.node(fid))
        self._keep(fid, fd)
        return fd

    def writable(self, fid: Fid) -> int:
        """A descriptor of the regular file *fid* that can be written. Raises the OSError of the
        backing's refusal."""
        fd = self.descriptor(fid)
        if fid not in self._read_only:
            return fd
        again = os.open(syscalls.descriptor_path(fd), _FLAGS_FILE | os.O_CLOEXEC)
        self._read_only.discard(fid)
        if fid in self._pinned:
            os.close(fd)
            self._pinned[fid] = again
        else:
            self.forget_descriptor(fid)
            self._keep(fid, again)
        return again

    def pair(self, first: Fid, second: Fid) -> tuple[int, int]:
        """Descriptors of both fids, good together until the next call."""
        self.descriptor(first)
        fd = self.descriptor(second)
        return self.descriptor(first), fd

    def keep_made(self, fid: Fid, fd: int) -> None:
        """Keep *fd*, open on the new file *fid* as :meth:`descriptor` would open it."""
        self._keep(fid, fd)

    def forget_descriptor(self, fid: Fid) -> None:
        """Close the cached descriptor of *fid*, if there is one."""
        fd = self._descriptors.pop(fid, -1)
        if fd >= 0:
            self._read_only.discard(fid)
            os.close(fd)

    def _open(self, node: CatalogNode) -> int:
        if not node.handle:
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))
        if node.type == S_IFDIR:
            return syscalls.open_by_handle(self.root_fd, node.handle, _FLAGS_DIRECTORY)
        if node.type != S_IFREG:
            return syscalls.open_by_handle(self.root_fd, node.handle, os.O_PATH)
        try:
            return syscalls.open_by_handle(self.root_fd, node.handle, _FLAGS_FILE)
        except OSError as error:
            if error.errno not in _REFUSALS:
                raise
        fd = syscalls.open_by_handle(self.root_fd, node.handle, _FLAGS_FILE_READ)
        self._read_only.add(node.fid)
        return fd

    def _keep(self, fid: Fid, fd: int) -> None:
        if len(self._descriptors) >= self._descriptors_max:
            self.forget_descriptor(next(iter(self._descriptors)))
        self._descriptors[fid] = fd

    # -- orphans -----------------------------------------------------------------------------------

    def pin(self, fid: Fid, is_open: bool) -> None:
        """Keeps the file of *fid*, whose last name the next operation may take.
        Raises OSError, ApplyBrokenError."""
        if fid in self._pinned or fid in self._hidden:
            return
        fd = self.descriptor(fid)
        is_full = len(self._pinned) > self._pinned_max
        if (is_full or (is_open and os.fstat(fd).st_nlink == 1)) and self.node(fid).type != S_IFDIR:
            try:
                self._hide(fid, fd)
            except OSError:
                # A removal needs no space, and is what makes some: it goes on without the name.
                if is_full and is_open:
                    raise
            else:
                return
        if is_full:
            return
        self._pinned[fid] = fd
        del self._descriptors[fid]

    def unpin(self, node: CatalogNode) -> None:
        """Ends what :meth:`pin` began, after the operation: without a name the file is an orphan
        now, with one it is like any other. Raises ApplyBrokenError."""
        if self.catalog.node(node.fid) is None:
            self._orphans[node.fid] = node
        elif node.fid in self._hidden:
            self._reveal(node.fid)
        elif node.fid in self._pinned:
            self._keep(node.fid, self._pinned.pop(node.fid))

    def drop_orphan(self, fid: Fid) -> None:
        """Lets an orphan go for good that the kernel has forgotten and no process has open. Raises
        ApplyBrokenError."""
        if self._orphans.pop(fid, None) is None:
            return
        self.unnamed.discard(fid)
        fd = self._pinned.pop(fid, -1)
        if fd >= 0:
            self._read_only.discard(fid)
            os.close(fd)
        else:
            self.forget_descriptor(fid)
        if fid in self._hidden:
            self._reveal(fid)

    def hidden_links(self, fid: Fid) -> int:
        """Returns how many of *fid*'s names are in the hidden directory: 1 or 0."""
        return int(fid in self._hidden)

    def keep_unnamed(self, node: CatalogNode, fd: int) -> None:
        """Take over *fd*, open on *node*, which was made without a name: an orphan, but for which
        the hidden directory has a name, so that it outlasts the process. Raises OSError,
        ApplyBrokenError."""
        self._hide(node.fid, fd, _UNNAMED)
        self._orphans[node.fid] = node
        self.unnamed.add(node.fid)
        self._keep(node.fid, fd)

    def find_unnamed(self, fid: Fid) -> bool:
        """Know the file *fid* that a process which died has made without a name. Returns False
        where there is none. Raises OSError."""
        name = b"%d" % fid + _UNNAMED
        self.find_hidden()
        found = self.probe_in(self._hidden_fd, name) if self._hidden_fd >= 0 else None
        if found is None or found.fid != fid:
            return False
        self._note_orphan(fid, found, name)
        return True

    def note_named(self, fid: Fid) -> None:
        """*fid*, which was made without a name, has one now; the hidden directory's stays until
        :meth:`reveal`."""
        self._orphans.pop(fid, None)
        self.unnamed.discard(fid)

    def reveal(self, fid: Fid) -> None:
        """Take *fid*'s name out of the hidden directory. Raises ApplyBrokenError."""
        if fid in self._hidden:
            self._reveal(fid)

    def _note_orphan(self, fid: Fid, found: FoundEntry, name: bytes) -> None:
        self._orphans[fid] = _orphan(fid, found)
        self._hidden[fid] = name
        if name.endswith(_UNNAMED):
            self.unnamed.add(fid)

    def _hide(self, fid: Fid, fd: int, suffix: bytes = _ORPHAN) -> None:
        """Give *fid*, open on *fd*, a name in the hidden directory. Raises OSError,
        ApplyBrokenError."""
        name = b"%d" % fid + suffix
        if self._hidden_fd < 0:
            self._hidden_fd = self._open_hidden()
        try:
            failpoints.reached("orphan.link")
            with suppress(FileExistsError):
                syscalls.link(fd, self._hidden_fd, name)
        except OSError:
            if not self._hidden:
                self._remove_hidden()
            raise
        self._hidden[fid] = name

    def _reveal(self, fid: Fid) -> None:
        """Take that name away, and the directory with the last of them."""
        try:
            failpoints.reached("orphan.unlink")
            os.unlink(self._hidden[fid], dir_fd=self._hidden_fd)
        except OSError as error:
            log.warning("fid %d keeps its place until the next mount: %s", fid, error)
        del self._hidden[fid]
        if not self._hidden:
            self._remove_hidden()

    def take_over_orphans(self, is_open: Container[Fid]) -> list[Fid]:
        """Go on with the orphans of the process before this one, after :meth:`find_hidden`: those
        among *is_open*; let the others go. Returns the files that were made without a name and have
        got one, and were perhaps not journaled to the end. Raises OSError."""
        if self._hidden_fd < 0:
            return []
        named: list[Fid] = []
        for name in syscalls.list_directory(self._hidden_fd):
            word, _, suffix = name.partition(b".")
            if b"." + suffix not in (_ORPHAN, _UNNAMED):
                continue
            fid = Fid(int(word))
            is_named = self.catalog.node(fid) is not None
            found = self.probe_in(self._hidden_fd, name)
            is_ours = found is not None and found.fid == fid
            if is_ours and is_named and name.endswith(_UNNAMED):
                self._hidden[fid] = name
                named.append(fid)
            elif found is not None and is_ours and not is_named and fid in is_open:
                self._note_orphan(fid, found, name)
            else:
                os.unlink(name, dir_fd=self._hidden_fd)
        if not self._hidden:
            self._remove_hidden()
        return named

    # -- identity with the file --------------------------------------------------------------------

    def identify(self, fid: Fid, fd: int, path: int | str) -> bytes:
        """Make the new file that *fd* is open on, which *path* reaches, the fid's own. Returns its
        handle."""
        handle = syscalls.handle_of(fd)
        self.tag(path, fid, handle)
        return handle

    def tag(self, target: int | str, fid: Fid, handle: bytes) -> None:
        """Write the fid to the file itself; *target* is a descriptor or a /proc/self/fd path."""
        os.setxattr(target, FID_XATTR, pack_tag(self.uuid, fid, handle))

    def probe_name(self, parent: Fid, name: bytes) -> FoundEntry | None:
        """Returns what the backing itself has under *name* in *parent*, whatever the catalog says;
        None for nothing."""
        return self.probe_in(self.descriptor(parent), name)

    def probe_in(self, directory: int, name: bytes) -> FoundEntry | None:
        """The same of a directory that is open on descriptor *directory*."""
        try:
            fd = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=directory)
        except FileNotFoundError:
            return None
        try:
            handle = syscalls.handle_of(fd)
            owner, number = read_tag(fd, handle) or (None, None)
            return FoundEntry(
                kernel.stat(fd), handle, number if owner == self.uuid else None, owner
            )
        finally:
            os.close(fd)

    def names(self, parent: Fid) -> Iterator[bytes]:
        """The names that the backing itself has in *parent*."""
        for name in syscalls.list_directory(self.descriptor(parent)):
            if not self.is_hidden(parent, name):
                yield name

    # -- attributes --------------------------------------------------------------------------------

    def default_acl(self, node: CatalogNode) -> bytes | None:
        """The default ACL of directory *node*, in the xattr's own format, or None."""
        if node.default_acl is None:
            try:
                node.default_acl = os.getxattr(self.descriptor(node.fid), DEFAULT_ACL_XATTR)
            except OSError as error:
                if not syscalls.missing(error):
                    raise
                node.default_acl = b""
        return node.default_acl or None

    def capability(self, node: CatalogNode, fd: int) -> bytes | None:
        """The file capability of regular file *node*, which is open on *fd*, in the xattr's own
        format, or None."""
        if node.capability is None:
            try:
                node.capability = os.getxattr(fd, CAPABILITY_XATTR)
            except OSError as error:
                if not syscalls.missing(error):
                    raise
                node.capability = b""
        return node.capability or None

    def xattr_target(self, fid: Fid) -> int | str:
        """Returns what to give to os.getxattr and the like for *fid*."""
        fd = self.descriptor(fid)
        if self.node(fid).type in (S_IFDIR, S_IFREG):
            return fd
        return syscalls.descriptor_path(fd)

    def readlink(self, fid: Fid) -> bytes:
        """The target of symlink *fid*."""
        if self.node(fid).type != S_IFLNK:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        return os.readlink(b"", dir_fd=self.descriptor(fid))

    def close(self, *, keep_orphans: bool = False) -> None:
        """Close every descriptor, the root's included. Orphans are no more; with *keep_orphans*
        those with a hidden name stay, for the next process."""
        try:
            if not keep_orphans and self._hidden_fd >= 0:
                for fid in tuple(self._hidden):
                    self._reveal(fid)
                if self._hidden_fd >= 0:
                    self._remove_hidden()  # which had failed once
        finally:
            for fd in (*self._descriptors.values(), *self._pinned.values()):
                os.close(fd)
            self._descriptors.clear()
            self._pinned.clear()
            if self._hidden_fd >= 0:
                os.close(self._hidden_fd)
                self._hidden_fd = -1


def _orphan(fid: Fid, found: FoundEntry) -> CatalogNode:
    type_, ctime_ns = S_IFMT(found.stat.st_mode), found.stat.st_ctime_ns
    return CatalogNode(fid, type_, ctime_ns, Seq(0), Fid(0), 0, found.handle, found.stat.st_ino)
