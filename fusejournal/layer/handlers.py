"""One short method a FUSE call: build the operation, commit it, answer. Policy lives below.

A call's arguments are who makes it, the fid that the request is about, and what else the request
says (kernel_protocol.py). Its answer is the reply's body, made there, too; the few calls that may
have to wait give a coroutine then (replies.py). Up to there a method runs from start to end without
an await, so nothing else happens meanwhile.

The kernel is asked to keep attributes and names for long: nothing but this mount changes the tree.
Its requests name files by fid, at any time after any eviction or restart, so every method works
from the fid alone; a fid that is gone is ESTALE.

Source: the FUSE protocol; Documentation/filesystems/nfs/exporting.rst."""

import errno
import os
from collections.abc import Callable, Coroutine, Iterator
from functools import partial
from stat import S_IFDIR, S_IFREG, S_IMODE, S_ISREG
from typing import Any

import pyfuse3

from fusejournal.backing.catalog_store import CatalogNode
from fusejournal.backing.fid_tag import HIDDEN_XATTRS
from fusejournal.disk import syscalls
from fusejournal.layer import resolve
from fusejournal.layer.file_calls import FileCalls, forget_attributes
from fusejournal.layer.file_flags import QUESTIONS, SETTINGS
from fusejournal.layer.interrupts import may_end_here
from fusejournal.layer.kernel_protocol import AttributeChange
from fusejournal.layer.kernel_replies import encode_absent, encode_ioctl, encode_open, encode_space
from fusejournal.layer.replies import (
    DONE,
    Answer,
    Body,
    awaited,
    changing,
    take_all,
)
from fusejournal.layer.resolve import check_name, check_new_name, refusal
from fusejournal.layer.xattrs import check_flags, encode_sized, list_xattrs, read_xattr
from fusejournal.native.kernel import FileStat
from fusejournal.operations import (
    RENAME_WHITEOUT,
    Link,
    Removexattr,
    Rmdir,
    Setxattr,
    TreeOperation,
    Unlink,
)
from fusejournal.types import NAME_BYTES_MAX, SYSTEM_CALLER, Caller, Fid

_KEEP_ABSENT_SECONDS = 5
_NAMED_AT_ONCE_BYTES_MAX = 4 << 20
"""The size up to which a file that was made without a name is journaled in one go."""
_DIRECTORY_READERS = -1
"""The uid that all who have a directory open go by: of a directory it is not known who did."""


class Handlers(FileCalls):
    """The FUSE calls of one mounted volume: here, those about names, attributes and directories."""

    # -- committing --------------------------------------------------------------------------------

    def _commit_name(self, operation: TreeOperation, parent: Fid, name: bytes, who: Caller) -> None:
        """Commit a change of *name*. A refusal for what the kernel should have known by itself
        means that it remembers the name wrongly, as it may after a layer died: it is made to
        forget."""
        try:
            self.volume.commit(operation, who)
        except (FileExistsError, FileNotFoundError):
            pyfuse3.invalidate_entry_async(parent, name, ignore_enoent=True)
            raise

    # -- looking -----------------------------------------------------------------------------------

    def lookup(self, who: Caller, parent: Fid, name: bytes) -> Answer:
        """Looks up a name; answers "." and ".." of any fid, too: so nfsd turns a handle back into a
        file."""
        if name == b"." or name == b"..":
            return self._lookup_dot(parent, name)
        check_name(name)
        fid = self._catalog.lookup(parent, name)
        if fid is None:
            return self._lookup_absent(parent, name)
        if fid in self._found.unfinished:
            return self._lookup_after(self._found.finish(fid), parent, name)
        return self._entries.named_entry(parent, name, fid)

    def _lookup_dot(self, fid: Fid, name: bytes) -> Answer:
        if fid in self._found.unfinished:
            return self._lookup_after(self._found.finish(fid), fid, name)
        node = self._tree.node(fid)
        self._forgotten.discard(fid)
        return self._entries.noted_entry(fid if name == b"." else node.parent)

    def _lookup_absent(self, parent: Fid, name: bytes) -> Answer:
        """The answer for *name*, which the catalog does not know."""
        self._tree.node(parent)
        if self._kernel_cache is not None:
            raise refusal(errno.ENOENT)  # a name may come at any time
        if self._found.has(parent, name):
            return self._lookup_after(self._found.import_name(parent, name), parent, name)
        return encode_absent(_KEEP_ABSENT_SECONDS)

    async def _lookup_after(
        self, importing: Coroutine[Any, Any, None], parent: Fid, name: bytes
    ) -> Body:
        """Cancelling leaves the rest of the import to the next caller."""
        await importing
        return await awaited(self.lookup(SYSTEM_CALLER, parent, name))

    def _child(self, parent: Fid, name: bytes) -> CatalogNode:
        """The node under *name*. Raises OSError ENOENT."""
        check_name(name)
        fid = self._catalog.lookup(parent, name)
        if fid is None:
            pyfuse3.invalidate_entry_async(parent, name, ignore_enoent=True)  # as _commit_name does
            raise refusal(errno.ENOENT)
        return self._tree.node(fid)

    def getattr(self, who: Caller, fid: Fid) -> Body:
        """The attributes of *fid*."""
        return self._entries.attributes(fid)

    def statx(self, who: Caller, fid: Fid) -> Body:
        """The attributes of *fid*, and the time of its birth."""
        return self._entries.attributes_and_birth(fid)

    def readlink(self, who: Caller, fid: Fid) -> Body:
        """The target of a symlink."""
        return self._tree.readlink(fid)

    def statfs(self, who: Caller, fid: Fid) -> Body:
        """The backing's space."""
        space = os.fstatvfs(self._tree.root_fd)
        return encode_space(space, NAME_BYTES_MAX)

    # -- making ------------------------------------------------------------------------------------

    def _make(self, who: Caller, parent: Fid, name: bytes, mode: int, rdev: int, umask: int) -> Fid:
        """Make a directory, file, fifo, socket or device with the results of umask, ACL and
        setgid."""
        check_new_name(parent, name, self._tree.uuid)
        self._flags.check_making(parent)
        stat, acl = self._inherited(parent)
        fid = self.volume.new_fid()
        operation = resolve.make(who, fid, parent, name, mode, rdev, umask, stat, acl)
        self._commit_name(operation, parent, name, who)
        return fid

    def _inherited(self, parent: Fid) -> tuple[FileStat, bytes | None]:
        """Attributes and default ACL of *parent*, from which an object made there inherits."""
        stat, node = self._tree.stat(parent), self._tree.node(parent)
        return stat, self._tree.default_acl(node)

    @changing
    def mknod(
        self, who: Caller, parent: Fid, name: bytes, mode: int, rdev: int, umask: int
    ) -> Body:
        """A file of any kind but a directory."""
        return self._entries.entry(self._make(who, parent, name, mode, rdev, umask))

    @changing
    def mkdir(self, who: Caller, parent: Fid, name: bytes, mode: int, umask: int) -> Body:
        """A directory."""
        return self._entries.entry(self._make(who, parent, name, S_IFDIR | S_IMODE(mode), 0, umask))

    @changing
    def symlink(self, who: Caller, parent: Fid, name: bytes, target: bytes) -> Body:
        """A symbolic link."""
        check_new_name(parent, name, self._tree.uuid)
        self._flags.check_making(parent)
        fid = self.volume.new_fid()
        operation = resolve.symlink(who, fid, parent, name, target, self._tree.stat(parent))
        self._commit_name(operation, parent, name, who)
        return self._entries.entry(fid)

    def tmpfile(self, who: Caller, parent: Fid, mode: int, umask: int) -> Body:
        """Make a regular file that has no name, as one in *parent* would be, and open it."""
        self._refuse_if_read_only()
        self._flags.check_making(parent)
        stat, acl = self._inherited(parent)
        fid = self._unnamed.new_fid()
        self.volume.make_unnamed(resolve.unnamed(who, fid, parent, mode, umask, stat, acl), who)
        return self._opened(who, fid, self._entries.entry(fid))

    def link(self, who: Caller, new_parent: Fid, fid: Fid, new_name: bytes) -> Answer:
        """A further name, or the first of a file that was made without one. Of a large one,
        cancelling does at once what is left, if it was begun."""
        check_new_name(new_parent, new_name, self._tree.uuid)
        self._flags.check_link(fid, new_parent)
        if not self._tree.is_orphan(fid):
            return self._link(who, new_parent, fid, new_name)
        if fid not in self._tree.unnamed:
            raise refusal(errno.ENOENT)
        steps = self._naming(who, fid, new_parent, new_name)
        if self._tree.stat(fid).st_size > _NAMED_AT_ONCE_BYTES_MAX:
            return self._name_in_pieces(who, fid, steps)
        return self._name(who, fid, steps)

    @changing
    def _link(self, who: Caller, new_parent: Fid, fid: Fid, new_name: bytes) -> Body:
        self._commit_name(Link(fid, new_parent, new_name), new_parent, new_name, who)
        return self._entries.entry(fid)

    def _naming(self, who: Caller, fid: Fid, parent: Fid, name: bytes) -> Iterator[None]:
        """The steps that give *fid* its first name; or a further one, if it has one by the time of
        the first step. Raises as :meth:`_commit_name`."""
        if not self._tree.is_orphan(fid):
            self._commit_name(Link(fid, parent, name), parent, name, who)
            return
        try:
            yield from self._unnamed.name(fid, parent, name, who)
        except (FileExistsError, FileNotFoundError):
            pyfuse3.invalidate_entry_async(parent, name, ignore_enoent=True)
            raise

    @changing
    def _name(self, who: Caller, fid: Fid, steps: Iterator[None]) -> Body:
        for _ in steps:
            pass
        return self._entries.entry(fid)

    async def _name_in_pieces(self, who: Caller, fid: Fid, steps: Iterator[None]) -> Body:
        reply = partial(self._entries.entry, fid)
        if self.policy.names_wait:
            return await self.waits.change_in_pieces(who.uid, steps, reply)
        await take_all(steps)
        return reply()

    @changing
    def create(self, who: Caller, parent: Fid, name: bytes, mode: int, umask: int) -> Body:
        """Make a regular file and open it."""
        fid = self._make(who, parent, name, S_IFREG | S_IMODE(mode), 0, umask)
        return self._opened(who, fid, self._entries.entry(fid))

    # -- removing and moving -----------------------------------------------------------------------

    @changing
    def unlink(self, who: Caller, parent: Fid, name: bytes) -> Body:
        """Take a name away."""
        fid = self._child(parent, name).fid
        self._flags.check_removal(parent, fid)
        self.volume.commit(Unlink(fid, parent, name), who)
        return DONE

    @changing
    def rmdir(self, who: Caller, parent: Fid, name: bytes) -> Body:
        """Take an empty directory away."""
        node = self._child(parent, name)
        self._flags.check_removal(parent, node.fid)
        if node.type == S_IFDIR and not self._catalog.is_empty(node.fid):
            raise refusal(errno.ENOTEMPTY)
        self.volume.commit(Rmdir(node.fid, parent, name), who)
        return DONE

    def rename(
        self, who: Caller, parent: Fid, name: bytes, new_parent: Fid, new_name: bytes, flags: int
    ) -> Answer:
        """Move a name, onto another one, or exchange two. What an admin put into the backing under
        the new name is journaled before it is replaced; cancelling leaves that undone, or done."""
        move = partial(self._rename, who, parent, name, new_parent, new_name, flags)
        first: Answer | FileExistsError
        try:
            first = move()
        except FileExistsError as error:
            first = error
        if isinstance(first, bytes):
            return first
        return self._rename_in_turn(first, move, new_parent, new_name, flags)

    async def _rename_in_turn(
        self,
        first: Answer | FileExistsError,
        move: Callable[[], Answer],
        new_parent: Fid,
        new_name: bytes,
        flags: int,
    ) -> Body:
        try:
            if isinstance(first, FileExistsError):
                raise first
            return await awaited(first)
        except FileExistsError:
            is_known = self._catalog.lookup(new_parent, new_name) is not None
            if is_known or flags & ~RENAME_WHITEOUT:
                raise
        await self._found.import_name(new_parent, new_name)
        await may_end_here()
        return await awaited(move())

    @changing
    def _rename(
        self, who: Caller, parent: Fid, name: bytes, new_parent: Fid, new_name: bytes, flags: int
    ) -> Body:
        check_new_name(new_parent, new_name, self._tree.uuid)
        node = self._child(parent, name)
        replaced = self._catalog.lookup(new_parent, new_name)
        operation = resolve.rename(node.fid, parent, name, new_parent, new_name, flags, replaced)
        if operation is None:
            return DONE
        self._flags.check_move(node.fid, parent, new_parent, replaced)
        if flags & RENAME_WHITEOUT:
            stat, acl = self._inherited(parent)
            whiteout = resolve.whiteout(who, operation, self.volume.new_fid(), stat, acl)
            self.volume.commit(whiteout, who)
        else:
            self.volume.commit(operation, who)
        return DONE

    # -- attributes --------------------------------------------------------------------------------

    @changing
    def setattr(self, who: Caller, fid: Fid, change: AttributeChange) -> Body:
        """Size, mode, owner and times, each alone or together."""
        self._flags.check_attributes(fid, change)
        old = None
        if resolve.takes_privileges(change):
            old = self._tree.stat(fid)
            if S_ISREG(old.st_mode):
                self._drop_capabilities(fid, who)
            if change.size is not None:
                resizing = resolve.truncation(who, fid, change.size, old, change.clears)
                self._change(resizing, who)
        operation = resolve.setattr(who, fid, change, old)
        if operation is not None:
            if operation.mtime_ns is not None:
                self.volume.journal.clock.touched(operation.mtime_ns)
            self._change(operation, who)
        return self._entries.attributes(fid)

    def ioctl(self, who: Caller, fid: Fid, command: int, data: bytes) -> Answer:
        """Answer which flags a file has, or set them. Nothing else is asked by ioctl(2)."""
        if command in QUESTIONS:
            return encode_ioctl(self._flags.answer(fid, command))
        if command not in SETTINGS:
            raise refusal(errno.ENOSYS)
        return self._set_flags(who, fid, command, data)

    @changing
    def _set_flags(self, who: Caller, fid: Fid, command: int, data: bytes) -> Body:
        self._refuse_if_read_only()
        operation = self._flags.asked_for(fid, command, data)
        if operation is not None:
            self._change(operation, who)
            forget_attributes(fid)
        return encode_ioctl(b"")

    def getxattr(self, who: Caller, fid: Fid, name: bytes, size: int) -> Body:
        """An extended attribute, or how large it is."""
        return encode_sized(read_xattr(self._tree, fid, name), size)

    def listxattr(self, who: Caller, fid: Fid, size: int) -> Body:
        """The names of all extended attributes."""
        return encode_sized(list_xattrs(self._tree, fid, who), size)

    @changing
    def setxattr(self, who: Caller, fid: Fid, name: bytes, value: bytes, flags: int) -> Body:
        """Set an extended attribute (ACLs come this way too).

        The layer's own cannot be set, because what it says is true of one file in one place. A
        caller who copies all attributes of a backing's files into the mount (the kernel lets only
        administrators) is answered success: from any other answer rsync and tar do not go on
        without an error."""
        check_flags(self._tree, fid, name, flags)
        if name in HIDDEN_XATTRS:
            self._refuse_if_read_only()
            return DONE
        self._flags.check_xattr(fid, name)
        drop, restore = None, None
        if name in resolve.ACL_XATTRS:
            drop, restore = resolve.setgid_around_acl(who, fid, name, self._tree.stat(fid))
        if drop is not None:
            self._change(drop, who)  # first: if it ends here, there is no setgid too many
        try:
            self._change(Setxattr(fid, name, value), who)
        except OSError:
            if restore is not None:
                self._change(restore, who)
            raise
        return DONE

    @changing
    def removexattr(self, who: Caller, fid: Fid, name: bytes) -> Body:
        """Remove an extended attribute."""
        self._flags.check_xattr(fid, name)
        try:
            read_xattr(self._tree, fid, name)
        except OSError as error:
            # Answered without an entry. An ACL that is not there can be removed: acl(5).
            if name in resolve.ACL_XATTRS and syscalls.missing(error):
                return DONE
            raise
        self._change(Removexattr(fid, name), who)
        return DONE

    # -- directories -------------------------------------------------------------------------------

    def opendir(self, who: Caller, fid: Fid, flags: int) -> Body:
        """Open a directory: its handle is its fid, because a listing needs no state."""
        self._tree.node(fid)
        if self._access_times is not None:
            self._access_times.note_open(fid, flags)
        return encode_open(fid, keep_cache=False)

    def releasedir(self, who: Caller, fid: Fid) -> Body:
        """Nothing to close."""
        return DONE

    def readdirplus(self, who: Caller, fid: Fid, cookie: int, size: int) -> Body:
        """List names with cookies above *cookie*, and what they stand for."""
        return self._entries.listing(fid, cookie, size)

    def fsyncdir(self, who: Caller, fid: Fid) -> Answer:
        """Wait until the journal is durable up to the directory's last entry."""
        return self.waits.until_durable(_DIRECTORY_READERS, self._last_seq(fid))
