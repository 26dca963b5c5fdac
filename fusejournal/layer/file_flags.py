"""File flags, as callers set and see them (chattr, lsattr); and what immutable and append-only
files are kept from.

The backing has all flags but those two. They are the layer's own: the catalog keeps them, and what
they forbid is refused here, before there is an entry, by the rules that the kernel has for local
file systems. So nothing that works on the backing itself is ever in their way.

The kernel sees to it which callers may set flags: the file's owner, and these two one with
CAP_LINUX_IMMUTABLE (fs/ioctl.c, vfs_fileattr_set; since Linux 5.13).

Source: ioctl_iflags(2), ioctl_xfs_fssetxattr(2); the kernel's fs/attr.c (may_setattr), fs/namei.c
(may_delete, may_open), fs/open.c (vfs_fallocate), fs/xattr.c (may_write_xattr)."""

import errno
import os
import struct
from typing import Final

from fusejournal.backing.catalog import Catalog
from fusejournal.backing.tree import Tree
from fusejournal.disk import syscalls
from fusejournal.disk.acls import CAPABILITY_XATTR
from fusejournal.file_operations import (
    FALLOC_KEEP_SIZE,
    FLAG_APPEND,
    FLAG_IMMUTABLE,
    FLAG_NOATIME,
    FLAG_NODUMP,
    FLAG_SYNC,
    JOURNALED_FLAGS,
    LOCKING_FLAGS,
    SetFlags,
)
from fusejournal.layer.kernel_protocol import AttributeChange
from fusejournal.layer.resolve import refusal
from fusejournal.types import Fid

FS_IOC_GETFLAGS: Final = 0x80086601
FS_IOC_SETFLAGS: Final = 0x40086602
FS_IOC_FSGETXATTR: Final = 0x801C581F
FS_IOC_FSSETXATTR: Final = 0x401C5820
QUESTIONS: Final = frozenset({FS_IOC_GETFLAGS, FS_IOC_FSGETXATTR})
SETTINGS: Final = frozenset({FS_IOC_SETFLAGS, FS_IOC_FSSETXATTR})

_FLAGS: Final = struct.Struct("=I")
_FSXATTR: Final = struct.Struct("=5I8x")
"""xflags, extsize, nextents, projid, cowextsize."""
_AS_XFLAGS: Final = {
    FLAG_IMMUTABLE: 0x08,
    FLAG_APPEND: 0x10,
    FLAG_SYNC: 0x20,
    FLAG_NOATIME: 0x40,
    FLAG_NODUMP: 0x80,
}


class FileFlags:
    """The flags of the files of *tree*, whose *catalog* has those that lock them."""

    def __init__(self, tree: Tree, catalog: Catalog) -> None:
        self._tree = tree
        self._catalog = catalog

    # -- seeing and setting ------------------------------------------------------------------------

    def answer(self, fid: Fid, question: int) -> bytes:
        """The answer to one of QUESTIONS about *fid*. Raises the OSError of a backing that has no
        flags."""
        locks = self._locks(fid)
        if question == FS_IOC_GETFLAGS:
            return _FLAGS.pack(syscalls.get_file_flags(self._tree.descriptor(fid)) | locks)
        xflags, *others = self._xattr(fid)
        return _FSXATTR.pack(xflags | _as_xflags(locks), *others)

    def asked_for(self, fid: Fid, setting: int, data: bytes) -> SetFlags | None:
        """The change that one of SETTINGS with *data* asks for; None where all is so already.
        Raises OSError."""
        has = syscalls.get_file_flags(self._tree.descriptor(fid)) | self._locks(fid)
        wanted = self._wanted(fid, has, setting, data)
        if (wanted ^ has) & ~JOURNALED_FLAGS:
            raise refusal(errno.EOPNOTSUPP)
        if wanted == has:
            return None
        if wanted & has & FLAG_IMMUTABLE:
            raise refusal(errno.EPERM)
        return SetFlags(fid, wanted & JOURNALED_FLAGS)

    def _wanted(self, fid: Fid, has: int, setting: int, data: bytes) -> int:
        form = _FLAGS if setting == FS_IOC_SETFLAGS else _FSXATTR
        if len(data) < form.size:
            raise refusal(errno.EINVAL)
        if setting == FS_IOC_SETFLAGS:
            return int(_FLAGS.unpack_from(data)[0])
        xflags, extsize, _, *others = _FSXATTR.unpack_from(data)
        has_xflags, has_extsize, _, *has_others = self._xattr(fid)
        known = _as_xflags(JOURNALED_FLAGS)
        if (xflags ^ has_xflags) & ~known or [extsize, *others] != [has_extsize, *has_others]:
            raise refusal(errno.EOPNOTSUPP)
        for flag, as_xflag in _AS_XFLAGS.items():
            has = has | flag if xflags & as_xflag else has & ~flag
        return has

    def _xattr(self, fid: Fid) -> tuple[int, ...]:
        return _FSXATTR.unpack(syscalls.ask_extended_flags(self._tree.descriptor(fid)))

    # -- what they forbid --------------------------------------------------------------------------

    def _locks(self, fid: Fid) -> int:
        if not self._catalog.has_locked:
            return 0
        return self._tree.node(fid).file_flags & LOCKING_FLAGS

    def check_open(self, fid: Fid, flags: int) -> None:
        """Raises PermissionError if *fid* cannot be opened with *flags*."""
        locks = self._locks(fid)
        if not locks or (flags & os.O_ACCMODE == os.O_RDONLY and not flags & os.O_TRUNC):
            return
        if locks & FLAG_IMMUTABLE or not flags & os.O_APPEND or flags & os.O_TRUNC:
            raise refusal(errno.EPERM)

    def check_write(self, fid: Fid, offset: int) -> None:
        """Raises PermissionError if *fid* cannot be written at *offset*. (What a file was opened
        for before it was append-only is not known here: only what is added to it is taken.)"""
        locks = self._locks(fid)
        if locks & FLAG_IMMUTABLE or (
            locks and offset < os.fstat(self._tree.descriptor(fid)).st_size
        ):
            raise refusal(errno.EPERM)

    def check_allocation(self, fid: Fid, flags: int) -> None:
        """Raises PermissionError if no space of *fid* can be taken or given back as *flags* say."""
        locks = self._locks(fid)
        if locks & FLAG_IMMUTABLE or (locks and flags & ~FALLOC_KEEP_SIZE):
            raise refusal(errno.EPERM)

    def check_attributes(self, fid: Fid, change: AttributeChange) -> None:
        """Raises PermissionError if *change* cannot be made. A process that only adds to a file may
        have its times be now, and takes setuid from it."""
        locks = self._locks(fid)
        if locks & FLAG_IMMUTABLE or (
            locks
            and (
                change.sets_times
                or change.size is not None
                or change.mode is not None
                or change.uid is not None
                or change.gid is not None
            )
        ):
            raise refusal(errno.EPERM)

    def check_xattr(self, fid: Fid, name: bytes) -> None:
        """Raises PermissionError if attribute *name* cannot be set or removed. The kernel itself
        takes the capability of a file that is added to."""
        locks = self._locks(fid)
        if locks and (locks & FLAG_IMMUTABLE or name != CAPABILITY_XATTR):
            raise refusal(errno.EPERM)

    def check_making(self, parent: Fid) -> None:
        """Raises PermissionError if no name can be made in *parent*."""
        if self._locks(parent) & FLAG_IMMUTABLE:
            raise refusal(errno.EPERM)

    def check_link(self, fid: Fid, parent: Fid) -> None:
        """Raises PermissionError if *fid* cannot get a name in *parent*."""
        self.check_making(parent)
        if self._locks(fid):
            raise refusal(errno.EPERM)

    def check_removal(self, parent: Fid, fid: Fid) -> None:
        """Raises PermissionError if *fid* cannot lose a name in *parent*."""
        if self._locks(parent) or self._locks(fid):
            raise refusal(errno.EPERM)

    def check_move(self, fid: Fid, parent: Fid, new_parent: Fid, replaced: Fid | None) -> None:
        """Raises PermissionError if *fid* cannot move from *parent* to *new_parent*, and be there
        in place of *replaced*."""
        self.check_removal(parent, fid)
        if replaced is None:
            self.check_making(new_parent)
        else:
            self.check_removal(new_parent, replaced)


def _as_xflags(flags: int) -> int:
    return sum(as_xflag for flag, as_xflag in _AS_XFLAGS.items() if flags & flag)
