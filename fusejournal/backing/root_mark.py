"""The mark that ties a volume's backing, its state directory and its journal together, so that a
copied, older or newer one of them is seen before a byte is written.

The backing's root has the mark that every file has (fid_tag.py), and behind it the *position*
of the journal at the last checkpoint: entries up to there were durable in the journal before it was
written. So a journal that ends before it, or has another chain there, is not the one that this
backing goes with: the state directory is older, or was copied and went on elsewhere. The other way
round, the page of watermarks (journal/watermarks.py) has the seq of a position that is known to be
on the backing's disk: a root with an older one is of an older backing. And a root whose mark has
another file's handle is that of a copy.

=========  =====================================================================================
bytes      the root's mark
=========  =====================================================================================
0 to 23    as every file's: the volume's UUID, the fid
24 on      as every file's: the handle
then       epoch, seq, chain of the position, 8 bytes each, little-endian; missing where there was
           no checkpoint yet
=========  =====================================================================================

Which *instance* of a file system it is that holds something tells whether its page cache may have
been lost without the machine: a disk that went away and came back is mounted anew.

Source: xattr(7), statx(2), sysfs(5): a directory there gets another inode number each time it is
made, and a file system's is made by mounting it."""

import fcntl
import os
import struct
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import NamedTuple
from uuid import UUID

from fusejournal.backing.fid_tag import FID_XATTR, pack_tag
from fusejournal.disk import failpoints, syscalls
from fusejournal.disk.errnos import NO_SPACE
from fusejournal.types import ROOT_FID, Epoch, Position, Seq

_POSITION = struct.Struct("<QQQ")
_UUID_BYTES = 16
_NAMES_LOOKED_AT = 256
_INO32_GEN_BYTES = 12
"""A handle's type, inode number and generation, as ext4 makes them."""
_SYSFS = Path("/sys/fs")
_BTRFS_IOC_FS_INFO = 0x8400941F
_BTRFS_INFO_BYTES = 1024


class RootMark(NamedTuple):
    """The words of a backing's root: whose it is, whether it is the root that was marked and no
    copy of it, and up to where the journal was at the last checkpoint (None: it does not say)."""

    owner: UUID | None
    is_original: bool
    position: Position | None


def read_root_mark(root_fd: int) -> RootMark | None:
    """The mark of the root that *root_fd* is open on; None where it has none. Raises OSError."""
    try:
        value = os.getxattr(root_fd, FID_XATTR)
    except OSError as error:
        if syscalls.missing(error):
            return None
        raise
    if len(value) < _UUID_BYTES:
        return RootMark(None, False, None)
    owner = UUID(bytes=value[:_UUID_BYTES])
    whole = pack_tag(owner, ROOT_FID, syscalls.handle_of(root_fd))
    if not value.startswith(whole):
        return RootMark(owner, False, None)
    rest = value[len(whole) :]
    if len(rest) != _POSITION.size:
        return RootMark(owner, not rest, None)
    epoch, seq, chain = _POSITION.unpack(rest)
    return RootMark(owner, True, Position(Epoch(epoch), Seq(seq), chain))


def holds_copies_alone(root_fd: int, uuid: UUID) -> bool:
    """Returns whether, of the first names in the root, all that bear a mark of volume *uuid* have
    another file's: then the tree was copied. (The roots of two file systems may have equal
    handles.) Raises OSError."""
    copies = 0
    with os.scandir(root_fd) as entries:
        names = [os.fsencode(entry.name) for entry in islice(entries, _NAMES_LOOKED_AT)]
    for name in names:
        fd = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=root_fd)
        try:
            value = os.getxattr(syscalls.descriptor_path(fd), FID_XATTR)
            if not value.startswith(uuid.bytes):
                continue
            handle = syscalls.handle_of(fd)
            if value[len(pack_tag(uuid, ROOT_FID, b"")) :] == handle:
                if _proves_its_disk(handle):
                    return False
                continue
            copies += 1
        except OSError as error:
            if not syscalls.missing(error):
                raise
        finally:
            os.close(fd)
    return copies > 0


def _proves_its_disk(handle: bytes) -> bool:
    """Returns whether no other file system has a file with *handle*, but by chance: what mkfs has
    made (lost+found) has the same one everywhere, of generation 0."""
    return len(handle) != _INO32_GEN_BYTES or any(handle[-4:])


class BackingRoot:
    """The root of volume *uuid*'s backing, open on *root_fd*, to be marked. Made in the event
    loop's thread."""

    def __init__(self, root_fd: int, uuid: UUID) -> None:
        self.fd = root_fd
        self._handle = syscalls.handle_of(root_fd)
        self.uuid = uuid
        self.was_marked = False
        """True once :meth:`mark` was here: the state must stay with the backing."""

    def mark_as(self, uuid: UUID) -> None:
        """Make the backing that of volume *uuid*, of whose journal it has nothing yet. On disk with
        the next syncfs(2). Raises OSError."""
        self.uuid = uuid
        self.mark()

    def mark(self, position: Position | None = None) -> None:
        """Record that the backing is this volume's, whose journal is durable up to *position*. On
        disk with the next syncfs(2). Raises OSError."""
        value = pack_tag(self.uuid, ROOT_FID, self._handle)
        if position is not None:
            value += _POSITION.pack(*position)
        failpoints.reached("root.mark")
        os.setxattr(self.fd, FID_XATTR, value)
        self.was_marked = True

    def try_mark(self, position: Position) -> bool:
        """Does what :meth:`mark` does; returns False, with all as it was, where the disk is
        full."""
        try:
            self.mark(position)
        except OSError as error:
            if error.errno not in NO_SPACE:
                raise
            return False
        return True


def filesystem_instance(fd: int) -> str:
    """Returns which mounting of its file system the file is in that *fd* is open on: another string
    when it was mounted anew since, in this boot of the machine. Raises OSError."""
    device = os.fstat(fd).st_dev
    name = f"{os.major(device)}:{os.minor(device)}"
    block = Path("/sys/dev/block") / name
    if block.exists():
        disk = block.resolve().name
        for kind in ("ext4", "xfs", "f2fs"):
            made = _SYSFS / kind / disk
            if made.exists():
                return f"{kind} {made.stat().st_ino}"
    with suppress(OSError):
        buffer = fcntl.ioctl(fd, _BTRFS_IOC_FS_INFO, bytes(_BTRFS_INFO_BYTES))
        made = _SYSFS / "btrfs" / str(UUID(bytes=buffer[16:32]))
        return f"btrfs {made.stat().st_ino}"
    return f"mount {syscalls.mount_id(fd)}"
