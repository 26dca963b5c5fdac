"""One short method a FUSE call: build the operation, commit it, answer. Policy lives below.

Decorated methods are ordinary functions: they run from start to end without an await, so nothing
else happens meanwhile. The few that wait are written out as coroutines, and hand the reader's role
over first (see request_loop.py).

The kernel is told to keep attributes and names for long: nothing but this mount changes the tree.
Its requests name files by fid, at any time after any eviction or restart, so every method works
from the fid alone; a fid that is gone is ESTALE.

Source: the FUSE protocol as pyfuse3 and libfuse deliver it;
Documentation/filesystems/nfs/exporting.rst."""

import errno
import logging
import os
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from functools import partial
from stat import S_IFCHR, S_IFDIR, S_IFMT, S_IFREG, S_IMODE, S_ISGID, S_ISUID

import pyfuse3
import trio
from pyfuse3 import EntryAttributes, FileInfo, FUSEError, RequestContext, StatvfsData

from fusejournal.backing.catalog_store import CatalogNode
from fusejournal.backing.fid_tag import HIDDEN_XATTR
from fusejournal.disk import syscalls
from fusejournal.disk.acls import ACCESS_ACL_XATTR, CAPABILITY_XATTR, DEFAULT_ACL_XATTR
from fusejournal.errors import ShortWriteError
from fusejournal.layer import permissions
from fusejournal.layer.kernel_cache import KernelCache, is_known
from fusejournal.layer.open_files import OpenFiles
from fusejournal.layer.replies import changing, entry_of, handler, waiting, writing
from fusejournal.layer.request_loop import RequestLoop
from fusejournal.operations import (
    RENAME_EXCHANGE,
    RENAME_NOREPLACE,
    RENAME_WHITEOUT,
    Create,
    DataOperation,
    Link,
    Mkdir,
    Moving,
    Removexattr,
    Rename,
    Rmdir,
    Setattr,
    Setxattr,
    Symlink,
    TreeOperation,
    Truncate,
    Unlink,
    Whiteout,
    Write,
)
from fusejournal.types import NAME_BYTES_MAX, ROOT_FID, Caller, Fid, Seq, clamp_time
from fusejournal.volume.durability import Durability
from fusejournal.volume.importer import Importer
from fusejournal.volume.volume import Volume
from fusejournal.volume.wait_policy import WaitPolicy

log = logging.getLogger(__name__)

_KEEP_ABSENT_SECONDS = 5.0
_DIRECTORY_READERS = -1
"""The uid that all who have a directory open go by: of a directory it is not known who did."""
_TRUSTED = b"trusted."
_DOT_COOKIE, _DOT_DOT_COOKIE = 2, 3
_ACL_XATTRS = frozenset((ACCESS_ACL_XATTR, DEFAULT_ACL_XATTR))


class Handlers(pyfuse3.Operations):
    """The FUSE calls of one mounted volume."""

    enable_acl = True
    supports_dot_lookup = True
    enable_writeback_cache = False

    def __init__(
        self,
        volume: Volume,
        durability: Durability,
        loop: RequestLoop,
        importer: Importer,
        files: OpenFiles,
        policy: WaitPolicy,
        kernel_cache: KernelCache | None = None,
    ) -> None:
        """*kernel_cache*: of a mirror, whose tree changes without the kernel."""
        super().__init__()
        self.volume = volume
        self._catalog = volume.catalog
        self._tree = volume.tree
        self._durability = durability
        self._loop = loop
        self._importer = importer
        self.policy = policy
        self._kernel_cache = kernel_cache
        self.files = files
        self._forgotten: set[Fid] = set()
        self._import_ended = trio.Event()
        """Set, and made anew, whenever the import of a file that was found has ended."""

    # -- committing --------------------------------------------------------------------------------

    def _change(self, operation: DataOperation, who: Caller, data: bytes = b"") -> None:
        """Commit a change of a file that may have lost its last name."""
        if self._tree.is_orphan(operation.fid):
            self.volume.change_orphan(operation, who, data)
        else:
            self.volume.commit(operation, who, data)

    def _commit_name(self, operation: TreeOperation, parent: Fid, name: bytes, who: Caller) -> None:
        """Commit a change of *name*. A refusal for what the kernel should have known by itself says
        that it remembers the name wrongly, as it may after a layer died: it is told to forget."""
        try:
            self.volume.commit(operation, who)
        except (FileExistsError, FileNotFoundError):
            pyfuse3.invalidate_entry_async(parent, name, ignore_enoent=True)
            raise

    def head_seq(self) -> Seq:
        """The last entry."""
        return self.volume.journal.head_seq

    async def wait(self, seq: Seq) -> None:
        """Wait until the journal is durable up to *seq*, on mirrors too where that is wanted;
        others are served meanwhile. Raises OSError EIO when it cannot be."""
        since = self._durability.try_flush_inline(seq)
        if since is None:
            return
        self._loop.hand_over()
        await self._durability.wait(seq, since)

    @property
    def is_crowded(self) -> bool:
        """Tells whether who is to wait needs a place first (:meth:`place`)."""
        return self._durability.hooks.quorum is not None

    @asynccontextmanager
    async def place(self, uid: int) -> AsyncIterator[None]:
        """Have a place among those who wait for mirrors, for a caller with *uid*: before anything
        is done, because what is done cannot be refused. Others are served meanwhile. Raises OSError
        EAGAIN where there is none, and none will be soon."""
        quorum = self._durability.hooks.quorum
        if quorum is not None and not quorum.try_enter(uid):
            self._loop.hand_over()
            await quorum.enter(uid)
        try:
            yield
        finally:
            if quorum is not None:
                quorum.leave(uid)

    def opener(self, handle: int) -> int:
        """The uid of who opened *handle*. Raises OSError ESTALE."""
        return self.files[handle][1].uid

    # -- looking -----------------------------------------------------------------------------------

    @waiting
    async def lookup(self, parent: Fid, name: bytes, ctx: RequestContext) -> EntryAttributes:
        """Also answers "." and ".." of any fid, which is how nfsd turns a handle back into a
        file. What somebody put into the backing is journaled first; others are served meanwhile,
        and cancelling leaves the rest to the next who asks for it."""
        try:
            entry = self._lookup(parent, name)
        except FileNotFoundError:
            if self._kernel_cache is not None:
                raise  # a name may come at any time
            if not self._shows_foreign(parent, name):
                absent = EntryAttributes()
                absent.st_ino = 0
                absent.entry_timeout = _KEEP_ABSENT_SECONDS
                return absent
            await self._import_found(parent, name)
            return self._lookup(parent, name)
        except _UnfinishedError as unfinished:
            await self._finish_import(unfinished.fid)
            return self._lookup(parent, name)
        if self._kernel_cache is not None:
            self._kernel_cache.note_lookup(Fid(entry.st_ino))
            entry.entry_timeout = 0.0
        return entry

    def _shows_foreign(self, parent: Fid, name: bytes) -> bool:
        """Whether *name* is to be found behind the layer. Raises OSError ENOENT where that cannot
        be told."""
        try:
            return self._is_foreign(parent, name)
        except OSError:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT)) from None

    async def _import_found(self, parent: Fid, name: bytes) -> None:
        """Journal what somebody put into the backing. Raises as Importer.run."""
        log.warning("found in the backing, imported: %r in fid %d", name, parent)
        await self._run_import(self._importer.import_found(parent, name))

    async def _finish_import(self, fid: Fid) -> None:
        """Return when the content of *fid* is journaled: wait for who is at it, or do the rest.
        Raises OSError."""
        while fid in self._importer.unfinished:
            if fid in self._importer.active:
                self._loop.hand_over()
                await self._import_ended.wait()
            else:
                await self._run_import(self._importer.finish(fid))

    async def _run_import(self, steps: Iterator[object]) -> None:
        """Take all *steps*, and let others be served between two."""
        self._loop.hand_over()
        try:
            for _ in steps:
                await trio.lowlevel.checkpoint()
        finally:
            ended, self._import_ended = self._import_ended, trio.Event()
            ended.set()

    def _is_foreign(self, parent: Fid, name: bytes) -> bool:
        """Whether *name*, which the catalog does not know, is something that somebody put into the
        backing. It is journaled first, then served: a read-only volume does not show it."""
        if self.volume.write_errno is not None or self._tree.is_hidden(parent, name):
            return False
        try:
            self._tree.stat_name(parent, name)
        except FileNotFoundError:
            return False
        return True

    def _lookup(self, parent: Fid, name: bytes) -> EntryAttributes:
        if name in (b".", b".."):
            if parent in self._importer.unfinished:
                raise _UnfinishedError(parent)
            node = self._tree.node(parent)
            self._forgotten.discard(parent)
            return self._entry(parent if name == b"." else node.parent)
        _check_name(name)
        fid = self._catalog.lookup(parent, name)
        if fid is None:
            self._tree.node(parent)
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
        if fid in self._importer.unfinished:
            raise _UnfinishedError(fid)
        node = self._tree.node(fid)
        try:
            stat = self._tree.stat_name(parent, name)
        except FileNotFoundError:
            stat = None
        if stat is None or stat.st_ino != node.ino:
            log.error(
                "the backing was changed behind the layer: %r in fid %d is not fid %d",
                name,
                parent,
                fid,
            )
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))
        return self._with_generation(entry_of(fid, stat, node.ctime_ns))

    def _with_generation(self, entry: EntryAttributes) -> EntryAttributes:
        """*entry*, for a reply from which the kernel makes an inode: all of them must tell the same
        generation of a fid, or the kernel takes it for another file's."""
        entry.generation = self.volume.journal.handle_key.generation(Fid(entry.st_ino))
        return entry

    def _entry(self, fid: Fid) -> EntryAttributes:
        """The reply that a name stands for *fid*."""
        return self._with_generation(self._attributes(fid))

    def _attributes(self, fid: Fid) -> EntryAttributes:
        entry = entry_of(fid, self._tree.stat(fid), self._tree.node(fid).ctime_ns)
        entry.st_nlink -= self._tree.hidden_links(fid)
        return entry

    def _child(self, parent: Fid, name: bytes) -> CatalogNode:
        """The node under *name*. Raises OSError ENOENT."""
        _check_name(name)
        fid = self._catalog.lookup(parent, name)
        if fid is None:
            pyfuse3.invalidate_entry_async(parent, name, ignore_enoent=True)  # as _commit_name does
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
        return self._tree.node(fid)

    @handler
    def getattr(self, inode: Fid, ctx: RequestContext) -> EntryAttributes:
        """The attributes of *inode*."""
        return self._attributes(inode)

    @handler
    def readlink(self, inode: Fid, ctx: RequestContext) -> bytes:
        """The target of a symlink."""
        return self._tree.readlink(inode)

    @handler
    def statfs(self, ctx: RequestContext) -> StatvfsData:
        """The backing's space."""
        space = os.fstatvfs(self._tree.root_fd)
        reply = StatvfsData()
        for field in (
            "f_bsize",
            "f_frsize",
            "f_blocks",
            "f_bfree",
            "f_bavail",
            "f_files",
            "f_ffree",
            "f_favail",
        ):
            setattr(reply, field, getattr(space, field))
        reply.f_namemax = NAME_BYTES_MAX
        return reply

    async def forget(self, inode_list: Sequence[tuple[Fid, int]]) -> None:
        """The kernel has dropped these fids. Only orphans mind: everything else is found again by
        its fid."""
        for fid, times in inode_list:
            if self._kernel_cache is not None:
                self._kernel_cache.note_forget(fid, times)
            try:
                if self._tree.is_orphan(fid) and not is_known(fid):
                    self._forgotten.add(fid)
                    self._drop_if_unused(fid)
            except Exception:  # there is no reply to say it in
                log.exception("fid %d, which nobody uses any more, is kept", fid)

    def _drop_if_unused(self, fid: Fid) -> None:
        """The kernel may forget an orphan before it says that the last open is over."""
        if fid in self._forgotten and fid not in self.files:
            self._forgotten.discard(fid)
            self.volume.drop_orphan(fid)

    # -- making ------------------------------------------------------------------------------------

    def _make(self, parent: Fid, name: bytes, mode: int, rdev: int, ctx: RequestContext) -> Fid:
        """Make a directory, file, fifo, socket or device with the results of umask, ACL and
        setgid."""
        _check_name(name)
        volume = self.volume
        gid, new = self._inherit(parent, mode, ctx)
        fid = volume.new_fid()
        operation: Create | Mkdir
        if S_IFMT(mode) == S_IFDIR:
            operation = Mkdir(fid, parent, name, new.mode, ctx.uid, gid, new.acl, new.default_acl)
        else:
            operation = Create(fid, parent, name, new.mode, ctx.uid, gid, rdev, new.acl)
        self._commit_name(operation, parent, name, _who(ctx))
        return fid

    def _inherit(
        self, parent: Fid, mode: int, ctx: RequestContext
    ) -> tuple[int, permissions.NewMode]:
        """Group, mode and ACLs of what is made in *parent* with *mode*."""
        stat, node = self._tree.stat(parent), self._tree.node(parent)
        default_acl = self._tree.default_acl(node)
        return permissions.inherited(mode, ctx.umask, _who(ctx), stat, default_acl)

    @changing
    def mknod(
        self, parent: Fid, name: bytes, mode: int, rdev: int, ctx: RequestContext
    ) -> EntryAttributes:
        """A file of any kind but a directory."""
        return self._entry(self._make(parent, name, mode, rdev, ctx))

    @changing
    def mkdir(self, parent: Fid, name: bytes, mode: int, ctx: RequestContext) -> EntryAttributes:
        """A directory."""
        return self._entry(self._make(parent, name, S_IFDIR | S_IMODE(mode), 0, ctx))

    @changing
    def symlink(
        self, parent: Fid, name: bytes, target: bytes, ctx: RequestContext
    ) -> EntryAttributes:
        """A symbolic link."""
        _check_name(name)
        parent_stat = self._tree.stat(parent)
        gid = permissions.new_group(ctx.gid, parent_stat.st_mode, parent_stat.st_gid)
        fid = self.volume.new_fid()
        operation = Symlink(fid, parent, name, target, ctx.uid, gid)
        self._commit_name(operation, parent, name, _who(ctx))
        return self._entry(fid)

    @changing
    def link(
        self, inode: Fid, new_parent: Fid, new_name: bytes, ctx: RequestContext
    ) -> EntryAttributes:
        """A further name."""
        _check_name(new_name)
        if self._tree.is_orphan(inode):
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
        operation = Link(inode, new_parent, new_name)
        self._commit_name(operation, new_parent, new_name, _who(ctx))
        return self._entry(inode)

    # -- removing and moving -----------------------------------------------------------------------

    @changing
    def unlink(self, parent: Fid, name: bytes, ctx: RequestContext) -> None:
        """Take a name away."""
        self.volume.commit(Unlink(self._child(parent, name).fid, parent, name), _who(ctx))

    @changing
    def rmdir(self, parent: Fid, name: bytes, ctx: RequestContext) -> None:
        """Take an empty directory away."""
        node = self._child(parent, name)
        if node.type == S_IFDIR and not self._catalog.is_empty(node.fid):
            raise OSError(errno.ENOTEMPTY, os.strerror(errno.ENOTEMPTY))
        self.volume.commit(Rmdir(node.fid, parent, name), _who(ctx))

    @waiting
    async def rename(
        self,
        parent_old: Fid,
        name_old: bytes,
        parent_new: Fid,
        name_new: bytes,
        flags: int,
        ctx: RequestContext,
    ) -> None:
        """Move a name, onto another one, or exchange two. What somebody put into the backing under
        the new name is journaled before it is replaced."""
        names = (parent_old, name_old, parent_new, name_new)
        try:
            await self._rename(*names, flags, ctx)
        except FUSEError as error:
            is_known = self._catalog.lookup(parent_new, name_new) is not None
            if error.errno != errno.EEXIST or flags & ~RENAME_WHITEOUT or is_known:
                raise
        else:
            return
        await self._import_found(parent_new, name_new)
        await self._rename(*names, flags, ctx)

    @changing
    def _rename(
        self,
        parent_old: Fid,
        name_old: bytes,
        parent_new: Fid,
        name_new: bytes,
        flags: int,
        ctx: RequestContext,
    ) -> None:
        if flags & ~(RENAME_NOREPLACE | RENAME_EXCHANGE | RENAME_WHITEOUT):
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        _check_name(name_new)
        node = self._child(parent_old, name_old)
        replaced = self._catalog.lookup(parent_new, name_new) or Fid(0)
        if replaced and flags & RENAME_NOREPLACE:
            raise OSError(errno.EEXIST, os.strerror(errno.EEXIST))
        if not replaced and flags & RENAME_EXCHANGE:
            raise OSError(errno.ENOENT, os.strerror(errno.ENOENT))
        if replaced == node.fid:
            return  # two names of one file: rename(2) leaves both
        operation: Moving
        operation = Rename(node.fid, parent_old, name_old, parent_new, name_new, flags, replaced)
        if flags & RENAME_WHITEOUT:
            gid, new = self._inherit(parent_old, S_IFCHR, ctx)
            fid = self.volume.new_fid()
            operation = Whiteout(*operation, fid, new.mode, ctx.uid, gid, new.acl)
        self.volume.commit(operation, _who(ctx))

    # -- attributes --------------------------------------------------------------------------------

    def _drop_capabilities(self, fid: Fid, who: Caller) -> None:
        """Before a truncation or a new owner. Before a WRITE the kernel sees to it, by itself."""
        try:
            os.getxattr(self._tree.descriptor(fid), CAPABILITY_XATTR)
        except OSError as error:
            if not syscalls.missing(error):
                raise
        else:
            self._change(Removexattr(fid, CAPABILITY_XATTR), who)

    @changing
    def setattr(
        self,
        inode: Fid,
        attr: EntryAttributes,
        fields: pyfuse3.SetattrFields,
        fh: int | None,
        ctx: RequestContext,
    ) -> EntryAttributes:
        """Size, mode, owner and times, each alone or together. Nothing at all says that the file is
        to lose its privileges: chown(2) without a new owner, or a write, does that."""
        who = _who(ctx)
        mode = S_IMODE(attr.st_mode) if fields.update_mode else None
        new_owner = fields.update_uid or fields.update_gid
        nothing = not (
            new_owner
            or fields.update_mode
            or fields.update_size
            or fields.update_atime
            or fields.update_mtime
        )
        if fields.update_size or new_owner or nothing:
            old_mode = self._tree.stat(inode).st_mode
            if S_IFMT(old_mode) == S_IFREG:
                self._drop_capabilities(inode, who)
            if fields.update_size:
                cleared = permissions.after_truncation(old_mode, ctx.uid)
                self._change(Truncate(inode, attr.st_size, cleared), who)
            if mode is None and (new_owner or nothing) and S_IFMT(old_mode) != S_IFDIR:
                mode = permissions.without_privileges(old_mode)
        operation = Setattr(
            inode,
            mode,
            attr.st_uid if fields.update_uid else None,
            attr.st_gid if fields.update_gid else None,
            clamp_time(attr.st_atime_ns) if fields.update_atime else None,
            clamp_time(attr.st_mtime_ns) if fields.update_mtime else None,
        )
        if operation.mtime_ns is not None:
            self.volume.journal.clock.touched(operation.mtime_ns)
        if any(value is not None for value in operation[1:]):
            self._change(operation, who)
        return self._attributes(inode)

    @handler
    def getxattr(self, inode: Fid, name: bytes, ctx: RequestContext) -> bytes:
        """The value of an extended attribute; the layer's own is not there for anybody."""
        if name == HIDDEN_XATTR:
            raise OSError(errno.ENODATA, os.strerror(errno.ENODATA))
        return os.getxattr(self._tree.xattr_target(inode), name)

    @handler
    def listxattr(self, inode: Fid, ctx: RequestContext) -> list[bytes]:
        """The names of all extended attributes; those for administrators are for them alone."""
        found = map(os.fsencode, os.listxattr(self._tree.xattr_target(inode)))
        names = [name for name in found if name != HIDDEN_XATTR]
        if any(name.startswith(_TRUSTED) for name in names) and not permissions.is_admin(_who(ctx)):
            names = [name for name in names if not name.startswith(_TRUSTED)]
        return names

    @changing
    def setxattr(self, inode: Fid, name: bytes, value: bytes, ctx: RequestContext) -> None:
        """Set an extended attribute (ACLs come this way too).

        The layer's own cannot be set, for what it says is true of one file in one place. Who copies
        all attributes of a backing's files into the mount (the kernel lets only administrators)
        is not troubled with that: no answer but success is one that rsync and tar go on from
        without an error."""
        if name == HIDDEN_XATTR:
            self._refuse_if_read_only()
            return
        who = _who(ctx)
        mode = S_IMODE(self._tree.stat(inode).st_mode) if name in _ACL_XATTRS else 0
        # A local file system drops setgid when somebody outside the group sets the ACL
        # (posix_acl_update_mode). Before, for if it ends here, there is no setgid too many.
        drops = (
            name == ACCESS_ACL_XATTR
            and mode & S_ISGID
            and not permissions.in_group(who, self._tree.stat(inode).st_gid)
        )
        if drops:
            self._change(Setattr(inode, mode & ~S_ISGID, None, None, None, None), who)
        try:
            self._change(Setxattr(inode, name, value), who)
        except OSError:
            if drops:
                self._change(Setattr(inode, mode, None, None, None, None), who)
            raise

    @changing
    def removexattr(self, inode: Fid, name: bytes, ctx: RequestContext) -> None:
        """Remove an extended attribute."""
        if name == HIDDEN_XATTR:
            raise OSError(errno.ENODATA, os.strerror(errno.ENODATA))
        try:
            os.getxattr(self._tree.xattr_target(inode), name)
        except OSError as error:
            # Answered without an entry. An ACL that is not there can be removed: acl(5).
            if name in _ACL_XATTRS and syscalls.missing(error):
                return
            raise
        self._change(Removexattr(inode, name), _who(ctx))

    # -- files -------------------------------------------------------------------------------------

    def _opened(self, fid: Fid, ctx: RequestContext) -> FileInfo:
        handle = self.files.add(fid, _who(ctx))
        self._loop.when_answered(partial(self.files.answered, handle))
        keep = self._kernel_cache is None or self._kernel_cache.opened(fid)
        return FileInfo(fh=handle, keep_cache=keep)

    @waiting
    async def open(self, inode: Fid, flags: int, ctx: RequestContext) -> FileInfo:
        """Open a file; with O_TRUNC this is a change."""
        if self.volume.write_errno is None:
            await self._finish_import(inode)
        if flags & os.O_TRUNC and self.policy.names_wait:
            async with self.place(ctx.uid):
                self._open(inode, flags, ctx)
                await self.wait(self.head_seq())
        else:
            self._open(inode, flags, ctx)
        return self._opened(inode, ctx)

    def _open(self, inode: Fid, flags: int, ctx: RequestContext) -> None:
        if flags & os.O_TRUNC:
            mode = self._tree.stat(inode).st_mode
            self._drop_capabilities(inode, _who(ctx))
            self._change(Truncate(inode, 0, permissions.after_truncation(mode, ctx.uid)), _who(ctx))
        elif flags & os.O_ACCMODE == os.O_RDONLY:
            self._tree.descriptor(inode)
        else:
            self._refuse_if_read_only()
            self._tree.writable(inode)

    def _refuse_if_read_only(self) -> None:
        if self.volume.write_errno is not None:
            raise OSError(self.volume.write_errno, os.strerror(self.volume.write_errno))

    @changing
    def create(
        self, parent: Fid, name: bytes, mode: int, flags: int, ctx: RequestContext
    ) -> tuple[FileInfo, EntryAttributes]:
        """Make a regular file and open it."""
        fid = self._make(parent, name, S_IFREG | S_IMODE(mode), 0, ctx)
        return self._opened(fid, ctx), self._entry(fid)

    @handler
    def read(self, fh: int, off: int, size: int) -> bytes:
        """Up to *size* bytes at *off*."""
        return os.pread(self._tree.descriptor(self.files[fh][0]), size, off)

    @writing
    def write(self, fh: int, off: int, buf: bytes) -> int:
        """Write all of *buf* at *off*, or as much as the backing takes."""
        fid, who = self.files[fh]
        mode = os.fstat(self._tree.writable(fid)).st_mode
        cleared = permissions.without_privileges(mode) if mode & (S_ISUID | S_ISGID) else None
        try:
            self._change(Write(fid, off, cleared), who, buf)
        except ShortWriteError as error:
            return error.written
        if cleared is not None:
            # The kernel would go on to run the file by the mode it remembers. Attributes alone:
            # cannot block.
            pyfuse3.invalidate_inode(fid, attr_only=True)
        return len(buf)

    @handler
    def flush(self, fh: int) -> None:
        """A descriptor was closed; nothing is buffered here, and the kernel need not ask again."""
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    @handler
    def release(self, fh: int) -> None:
        """The last descriptor of an open was closed."""
        fid, is_open = self.files.remove(fh)
        if not is_open:
            self._drop_if_unused(fid)

    @waiting
    async def fsync(self, fh: int, datasync: bool) -> None:
        """Wait until the journal is durable up to the file's last entry."""
        fid, who = self.files[fh]
        seq = self._last_seq(fid)
        if self._durability.is_durable(seq):
            return  # without a place: none may be left
        async with self.place(who.uid):
            await self.wait(seq)

    def _last_seq(self, fid: Fid) -> Seq:
        node = self._catalog.node(fid)
        # What happened to a file before its last name went is somewhere below the head.
        return node.last_seq if node is not None else self.volume.journal.head_seq

    # -- directories -------------------------------------------------------------------------------

    @handler
    def opendir(self, inode: Fid, ctx: RequestContext) -> int:
        """Open a directory: its handle is its fid, for a listing needs no state."""
        self._tree.node(inode)
        return inode

    @handler
    def releasedir(self, fh: int) -> None:
        """Nothing to close."""

    @handler
    def readdir(self, fh: int, start_id: int, token: pyfuse3.ReaddirToken) -> None:
        """List names with cookies above *start_id*, in the order in which the names were made."""
        directory = Fid(fh)
        if start_id < _DOT_DOT_COOKIE and not self._list_dots(directory, start_id, token):
            return
        dir_fd = self._tree.descriptor(directory)
        unfinished = self._importer.unfinished
        for name, fid, cookie in self._catalog.list(directory, max(start_id, _DOT_DOT_COOKIE)):
            if fid in unfinished:
                continue
            try:
                stat = os.stat(name, dir_fd=dir_fd, follow_symlinks=False)
            except FileNotFoundError:
                log.error(
                    "the backing was changed behind the layer: %r of fid %d is gone",
                    name,
                    directory,
                )
                continue
            ctime_ns = self._catalog.change_time(fid)
            if ctime_ns is None:
                return
            entry = self._with_generation(entry_of(fid, stat, ctime_ns))
            if self._kernel_cache is not None:
                entry.entry_timeout = 0.0
            if not pyfuse3.readdir_reply(token, name, entry, cookie):
                return
            if self._kernel_cache is not None:
                self._kernel_cache.note_lookup(fid)

    def _list_dots(self, directory: Fid, start_id: int, token: pyfuse3.ReaddirToken) -> bool:
        node = self._catalog.node(directory)
        if node is None:
            return False  # removed while open: an empty listing, as everywhere
        if start_id < _DOT_COOKIE and not pyfuse3.readdir_reply(
            token, b".", self._entry(directory), _DOT_COOKIE
        ):
            return False
        parent = node.parent if directory != ROOT_FID else ROOT_FID
        return bool(pyfuse3.readdir_reply(token, b"..", self._entry(parent), _DOT_DOT_COOKIE))

    @waiting
    async def fsyncdir(self, fh: int, datasync: bool) -> None:
        """Wait until the journal is durable up to the directory's last entry."""
        async with self.place(_DIRECTORY_READERS):
            await self.wait(self._last_seq(Fid(fh)))


class _UnfinishedError(Exception):
    """The import of *fid* has not come to its end."""

    def __init__(self, fid: Fid) -> None:
        super().__init__(fid)
        self.fid = fid


def _who(ctx: RequestContext) -> Caller:
    return Caller(ctx.uid, ctx.gid, ctx.pid)


def _check_name(name: bytes) -> None:
    if len(name) > NAME_BYTES_MAX:
        raise OSError(errno.ENAMETOOLONG, os.strerror(errno.ENAMETOOLONG))
