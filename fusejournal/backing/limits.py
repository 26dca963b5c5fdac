"""The limits of a backing's file system: how large and how many its files, names and attributes may
be.

A mirror has to hold whatever its primary took, and the two may lie on file systems of different
kinds: ext4 ends a file at 16 TiB and keeps 4 KiB of attributes with one, xfs ends a symlink at 1023
bytes and takes fewer device numbers. So each node finds its limits out when it starts, peers report
to each other (wire/frames.py), and an entry that does not fit is distinguished from a disk that is
full.

What can be tried is tried with a file that has no name, because the mtime of the backing's root is
a user's. What would need names, or thousands of them, is known of each kind of file system.

Keeps no state. Source: the kernel's fs/ext4/xattr.c, fs/ext4/namei.c (ext4_symlink),
fs/xfs/libxfs/xfs_format.h (XFS_SYMLINK_MAXLEN), fs/btrfs/ctree.h (BTRFS_LINK_MAX), statvfs(3),
xattr(7); fs/xfs/xfs_iops.c (xfs_vn_mknod), kdev_t.h (new_encode_dev)."""

import errno
import os
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import astuple, dataclass, fields
from typing import ClassVar, Final

from fusejournal.backing.fid_tag import FID_XATTR
from fusejournal.control.reply import Reply
from fusejournal.disk import calls, syscalls
from fusejournal.disk.acls import ACCESS_ACL_XATTR, DEFAULT_ACL_XATTR
from fusejournal.errors import printable
from fusejournal.file_operations import Fallocate
from fusejournal.operations import (
    Create,
    Import,
    ImportData,
    Setxattr,
    TreeOperation,
    Truncate,
    Write,
)

NO_LIMIT: Final = 2**63 - 1
"""A number for a limit that no file meets; of files' sizes it is the kernel's own."""

_XATTR_BYTES_MAX: Final = 64 << 10
"""The kernel's own limit of one value (XATTR_SIZE_MAX)."""
_PATH_BYTES_MAX: Final = 4095
"""The kernel's own limit of a symlink's target (PATH_MAX without its end)."""
_EXT4_MAGIC: Final = 0xEF53
_XFS_MAGIC: Final = 0x58465342
_TMPFS_MAGIC: Final = 0x01021994
_LINKS: Final = {
    _EXT4_MAGIC: 65_000,
    _XFS_MAGIC: 2**31 - 1,
    calls.BTRFS_MAGIC: 65_535,
    _TMPFS_MAGIC: NO_LIMIT,
}
_DEVICES: Final = {
    _EXT4_MAGIC: (4095, 2**20 - 1),
    _XFS_MAGIC: (511, 2**18 - 1),
    calls.BTRFS_MAGIC: (4095, 2**20 - 1),
    _TMPFS_MAGIC: (4095, 2**20 - 1),
}
"""The highest major and minor number; the kernel itself has none that are higher."""
_MARK_HEAD_BYTES: Final = 24
_VALUE: Final = f"{FID_XATTR}-probe"
_REST_BYTES: Final = 256
_REST_COUNT: Final = 16
"""The number of attributes of that size that are tried beside the largest one."""
_SPACE_BYTES: Final = 1 << 20
"""The space below which a value may be refused that would fit otherwise."""


@dataclass(frozen=True)
class BackingLimits(Reply):
    """The limits of one file system; each None where it is not known."""

    OMITTED: ClassVar[frozenset[str]] = frozenset({"device_major", "device_minor"})

    file_bytes: int | None = None
    """The size of a file."""
    xattr_value_bytes: int | None = None
    """The bytes of one extended attribute, of a file that has no other but the layer's own."""
    xattr_total_bytes: int | None = None
    """The bytes, about, of all extended attributes of one file."""
    symlink_bytes: int | None = None
    """The target of a symlink."""
    name_bytes: int | None = None
    links: int | None = None
    """The names of one file."""
    device_major: int | None = None
    """The highest major number of a device."""
    device_minor: int | None = None
    """The highest minor number of a device."""

    def to_wire(self) -> tuple[int, ...]:
        """Returns the limits as peers report them to each other: in the order of the fields, 0 for
        what is not known."""
        return tuple(value or 0 for value in astuple(self))

    @classmethod
    def from_wire(cls, values: tuple[int, ...]) -> "BackingLimits | None":
        """Returns what a peer has reported; None where that is nothing. Limits that this program
        does not know are left out."""
        known = [value or None for value in values[: len(fields(cls))]]
        return cls(*known) if any(known) else None

    def lower_than(self, other: "BackingLimits") -> list[str]:
        """Returns which limits are lower than those of *other*, in words, one each."""
        found = []
        for one in fields(self):
            mine, theirs = getattr(self, one.name), getattr(other, one.name)
            if mine is not None and theirs is not None and mine < theirs:
                words, of = _WORDS[one.name], _amount(one.name, mine)
                found.append(f"{words} up to {of}, here up to {_amount(one.name, theirs)}")
        return found

    def describe(self) -> list[str]:
        """Returns what the limits are, in words, one each."""
        return [
            f"{_WORDS[one.name]} up to {_amount(one.name, getattr(self, one.name))}"
            for one in fields(self)
        ]


_WORDS: Final = {
    "file_bytes": "files",
    "xattr_value_bytes": "an extended attribute",
    "xattr_total_bytes": "all of one file's",
    "symlink_bytes": "symlinks",
    "name_bytes": "names",
    "links": "links to a file",
    "device_major": "devices' major numbers",
    "device_minor": "devices' minor numbers",
}
_NUMBERS: Final = frozenset({"links", "device_major", "device_minor"})
"""Limits that are no bytes."""
_EXACT_BYTES_MAX: Final = 1 << 20
_UNITS: Final = ("bytes", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB")


def _amount(name: str, value: int | None) -> str:
    if value is None:
        return "an unknown number"
    if value == NO_LIMIT and name != "file_bytes":
        return "any number"
    if name in _NUMBERS:
        return f"{value:,}"
    if value < _EXACT_BYTES_MAX:
        return f"{value:,} bytes"
    power = (value.bit_length() - 1) // 10
    return f"{value / 1024**power:.4g} {_UNITS[power]}"


def probe_limits(root_fd: int) -> BackingLimits:
    """Returns the limits of the file system that directory *root_fd* is on. What is tried is left
    out where that cannot be: on a file system that is full, or read-only. Leaves nothing behind."""
    try:
        magic, space = calls.filesystem_magic(root_fd), os.fstatvfs(root_fd)
    except OSError:
        return BackingLimits()
    file_bytes = value_bytes = total_bytes = None
    with suppress(OSError), unnamed_file(root_fd) as fd:
        file_bytes = _largest(NO_LIMIT, lambda size: _seeks(fd, size))
        if space.f_bfree * space.f_frsize >= _SPACE_BYTES:
            value_bytes, total_bytes = _probe_xattrs(fd)
    return BackingLimits(
        file_bytes,
        value_bytes,
        total_bytes,
        _symlink_bytes(magic, space.f_bsize),
        space.f_namemax,
        _LINKS.get(magic),
        *_DEVICES.get(magic, (None, None)),
    )


@contextmanager
def unnamed_file(root_fd: int) -> Iterator[int]:
    """A new file without a name, on the file system of directory *root_fd*, for the length of the
    block. Raises OSError."""
    fd = os.open(".", os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600, dir_fd=root_fd)
    try:
        yield fd
    finally:
        os.close(fd)


def _largest(bound: int, fits: Callable[[int], bool]) -> int:
    """The largest number up to *bound* that *fits*; 0 does."""
    if fits(bound):
        return bound
    low, high = 0, bound
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


def _seeks(fd: int, size: int) -> bool:
    """Returns True if *fd* may be as large. (The kernel seeks as far as a file may go, and no
    further; nothing is written.)"""
    try:
        os.lseek(fd, size, os.SEEK_SET)
    except OSError:
        return False
    return True


def _probe_xattrs(fd: int) -> tuple[int | None, int | None]:
    """The largest value that new file *fd* takes, and about what it takes in all."""
    mark_bytes = _MARK_HEAD_BYTES + len(syscalls.handle_of(fd))
    if not _takes(fd, FID_XATTR, mark_bytes) or not _takes(fd, _VALUE, _REST_BYTES):
        return None, None  # for lack of space, or of such attributes
    value_bytes = _largest(_XATTR_BYTES_MAX, lambda size: _takes(fd, _VALUE, size))
    _takes(fd, _VALUE, value_bytes)
    for number in range(_REST_COUNT):
        if not _takes(fd, f"{_VALUE}{number}", _REST_BYTES):
            return value_bytes, value_bytes + number * _REST_BYTES
    return value_bytes, NO_LIMIT


def _takes(fd: int, name: str, size: int) -> bool:
    with suppress(OSError):
        os.removexattr(fd, name)  # btrfs takes a little less in place of another
    try:
        os.setxattr(fd, name, b"x" * size)
    except OSError:
        return False
    return True


def _symlink_bytes(magic: int, block_bytes: int) -> int | None:
    if magic == _XFS_MAGIC:
        return 1023
    if magic == _EXT4_MAGIC:
        return min(block_bytes - 1, _PATH_BYTES_MAX)
    return _PATH_BYTES_MAX if magic in _LINKS else None


# -- which limit an operation has met --------------------------------------------------------------


def limit_met(
    operation: TreeOperation, number: int, size: int, root_fd: int, limits: BackingLimits
) -> str | None:
    """Returns which limit the backing refused *operation* for with errno *number*, in words; None
    where it was for another reason, such as a full disk. *size*: bytes of the entry's data. Tries a
    value that was refused on a file without a name, so it may take a millisecond."""
    if number == errno.EFBIG:
        end = _end_of(operation, size)
        return f"{end:,} bytes, and a file may have {_amount('file_bytes', limits.file_bytes)}"
    if number == errno.ENAMETOOLONG:
        target = getattr(operation, "target", None)
        if target is not None and len(target) > (limits.symlink_bytes or 0):
            most = _amount("symlink_bytes", limits.symlink_bytes)
            return f"a symlink to {len(target):,} bytes, and one may have {most}"
        return f"its name is longer than {_amount('name_bytes', limits.name_bytes)}"
    if number == errno.EMLINK:
        return f"one link too many, and a file may have {_amount('links', limits.links)}"
    if number == errno.EINVAL:
        return _device_limit_met(operation, limits)
    if number in (errno.ENOSPC, errno.E2BIG):
        return _xattr_limit_met(operation, root_fd)
    return None


def _device_limit_met(operation: TreeOperation, limits: BackingLimits) -> str | None:
    if not isinstance(operation, Create | Import):
        return None
    if not (stat.S_ISCHR(operation.mode) or stat.S_ISBLK(operation.mode)):
        return None
    major, minor = os.major(operation.rdev), os.minor(operation.rdev)
    majors, minors = limits.device_major, limits.device_minor
    if majors is None or minors is None or (major <= majors and minor <= minors):
        return None
    return f"device {major}:{minor}, and its numbers may be up to {majors}:{minors}"


def _end_of(operation: TreeOperation, size: int) -> int:
    if isinstance(operation, Write | ImportData):
        return operation.offset + size
    if isinstance(operation, Fallocate):
        return operation.end
    return operation.size if isinstance(operation, Truncate | Import) else size


def _xattrs_of(operation: TreeOperation) -> list[tuple[bytes, int]]:
    """Name and size of the attributes that *operation* sets, but the layer's own."""
    if isinstance(operation, Setxattr):
        return [(operation.name, len(operation.value))]
    if isinstance(operation, Import):
        return [(name, len(value)) for name, value in operation.xattrs]
    acls = (
        (ACCESS_ACL_XATTR, getattr(operation, "acl", None)),
        (DEFAULT_ACL_XATTR, getattr(operation, "default_acl", None)),
    )
    return [(name, len(acl)) for name, acl in acls if acl is not None]


def _xattr_limit_met(operation: TreeOperation, root_fd: int) -> str | None:
    xattrs = _xattrs_of(operation)
    if not xattrs:
        return None
    limits = probe_limits(root_fd)  # as they are now: the disk may have been full before
    if limits.xattr_value_bytes is None or limits.xattr_total_bytes is None:
        return None
    name, largest = max(xattrs, key=lambda one: one[1])
    most = _amount("xattr_value_bytes", limits.xattr_value_bytes)
    if largest > limits.xattr_value_bytes:
        shown = printable(name)
        return f"extended attribute {shown} of {largest:,} bytes, and one may have {most}"
    # A new file took as large a value just now, so it is not the disk that lacks space. What is
    # made by the operation has no other attributes; what was there before has.
    total = sum(size for _, size in xattrs)
    if isinstance(operation, Setxattr) or total > limits.xattr_total_bytes:
        return f"extended attributes of more than {most} together, which is all that one file holds"
    return None
