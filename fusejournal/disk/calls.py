"""Labelled storage calls: every call that decides what is on disk goes through here.

Each function does one system call and reports its label to :func:`failpoints.reached` just before,
so that a test can fail it, or end the process there.

Source: open(2), pwritev(2), fallocate(2), fdatasync(2), syncfs(2), statfs(2).
"""

import errno
import fcntl
import os
import struct
from collections.abc import Iterator, Sequence
from contextlib import suppress

from fusejournal.disk.errnos import NO_MEANS
from fusejournal.disk.failpoints import reached
from fusejournal.native import kernel

FALLOC_FL_KEEP_SIZE = 1

_RESERVED = 8
_reserve: list[int] = []
"""Descriptors kept back for :func:`open_with_reserve`."""

_FS_IOC_GETFLAGS, _FS_IOC_SETFLAGS = 0x80086601, 0x40086602
_FS_NOCOW_FL = 0x00800000
_FS_IOC_FIEMAP = 0xC020660B
_FIEMAP = struct.Struct("<QQIIII")
_FIEMAP_EXTENT = struct.Struct("<QQQ32x")
_FIEMAP_LENGTH_MAX = (1 << 64) - 1
_EXTENTS = 32
BTRFS_MAGIC = 0x9123683E


def pwritev(label: str, fd: int, buffers: Sequence[bytes | memoryview], offset: int) -> int:
    """os.pwritev; may write less than asked, as the system call may."""
    reached(label)
    return os.pwritev(fd, buffers, offset)


def write_all(label: str, fd: int, data: bytes | memoryview, offset: int | None = None) -> None:
    """Writes all of *data*, at *offset* or, where that is None, where *fd* stands. A system call
    may take less than it is given (a disk that is nearly full does, and reports it only to the next
    call), so it is called again for the rest. Raises OSError; some of *data* may be written
    then."""
    written = 0
    while written < len(data):
        reached(label)
        rest = data[written:] if written else data
        count = os.write(fd, rest) if offset is None else os.pwrite(fd, rest, offset + written)
        if not count:
            # No progress and no error: to go on would be to go on for ever.
            raise OSError(errno.EIO, "a write wrote nothing")
        written += count


def fdatasync(label: str, fd: int) -> None:
    """os.fdatasync. Blocks: call it in a thread."""
    reached(label)
    os.fdatasync(fd)


def fsync(label: str, fd: int) -> None:
    """os.fsync. Blocks: call it in a thread."""
    reached(label)
    os.fsync(fd)


def syncfs(label: str, fd: int) -> None:
    """syncfs(2) of the file system that *fd* is on. Blocks: call it in a thread. Raises OSError."""
    reached(label)
    kernel.syncfs(fd)


def fallocate(
    label: str, fd: int, offset: int, length: int, flags: int = FALLOC_FL_KEEP_SIZE
) -> None:
    """fallocate(2) of [offset, offset + length); as it is, it reserves blocks without changing the
    file's size. Raises OSError."""
    reached(label)
    kernel.fallocate(fd, flags, offset, length)


def allocated_to(fd: int, offset: int) -> int:
    """Returns the end of the blocks that the file has without a gap from *offset* on, in bytes,
    beyond its size too; *offset* if the file system does not report it.

    Source: the kernel's Documentation/filesystems/fiemap.rst."""
    end = offset
    request = bytearray(_FIEMAP.size + _EXTENTS * _FIEMAP_EXTENT.size)
    while True:
        _FIEMAP.pack_into(request, 0, end, _FIEMAP_LENGTH_MAX - end, 0, 0, _EXTENTS, 0)
        try:
            fcntl.ioctl(fd, _FS_IOC_FIEMAP, request)
        except OSError:
            return end
        found = _FIEMAP.unpack_from(request)[3]
        before = end
        for number in range(found):
            at = _FIEMAP.size + number * _FIEMAP_EXTENT.size
            begin, _, length = _FIEMAP_EXTENT.unpack_from(request, at)
            if begin > end:
                return end
            end = max(end, begin + length)
        if end == before:
            return end


def data_ranges(fd: int, start: int, end: int) -> Iterator[tuple[int, int]]:
    """Yields the parts of [start, end) that are no holes, as far as the file goes: start and end of
    each. All of it where the file system does not know. Raises OSError."""
    while start < end:
        try:
            start = os.lseek(fd, start, os.SEEK_DATA)
            hole = os.lseek(fd, start, os.SEEK_HOLE)
        except OSError as error:
            if error.errno != errno.ENXIO:
                raise
            return
        if start < end:
            yield start, min(hole, end)
        start = hole


def frees_whole_extents_only(fd: int) -> bool:
    """Returns True if the file system of *fd* keeps an allocated extent for as long as a part of it
    is used, as btrfs does: cutting a file off does not give the rest of its last one back. Raises
    OSError."""
    return filesystem_magic(fd) == BTRFS_MAGIC


def overwrite_in_place(directory: str | os.PathLike[str]) -> None:
    """Has the file system write new bytes over the old ones, in files that are made in *directory*
    from now on. Btrfs writes them to another place otherwise, which a full disk does not have, be
    the space of the old ones allocated or not. (It keeps no checksums of its own then.) Where it
    cannot be had, files are as ever."""
    try:
        fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except FileNotFoundError:
        return
    try:
        if filesystem_magic(fd) != BTRFS_MAGIC:
            return
        flags = int.from_bytes(fcntl.ioctl(fd, _FS_IOC_GETFLAGS, bytes(4)), "little")
        if not flags & _FS_NOCOW_FL:
            fcntl.ioctl(fd, _FS_IOC_SETFLAGS, (flags | _FS_NOCOW_FL).to_bytes(4, "little"))
    except OSError as error:
        # Only here: most commands have nothing to log, and should not wait for it to load.
        import logging

        log = logging.getLogger(__name__)
        log.warning("%s: not to be written in place: %s", directory, error.strerror)
    finally:
        os.close(fd)


def filesystem_magic(fd: int) -> int:
    """Returns the number of the kind of file system that *fd* is on (statfs(2)). Raises
    OSError."""
    return kernel.filesystem_magic(fd)


def ftruncate(label: str, fd: int, size: int) -> None:
    """os.ftruncate."""
    reached(label)
    os.ftruncate(fd, size)


def rename(
    label: str,
    old: str | os.PathLike[str],
    new: str | os.PathLike[str],
    dir_fd: int | None = None,
) -> None:
    """os.rename, within the directory of *dir_fd* where there is one."""
    reached(label)
    os.rename(old, new, src_dir_fd=dir_fd, dst_dir_fd=dir_fd)


def link(label: str, old: str | os.PathLike[str], new: str | os.PathLike[str]) -> None:
    """os.link: gives the file *old* a further name; raises FileExistsError if that is taken."""
    reached(label)
    os.link(old, new)


def unlink(label: str, path: str | os.PathLike[str]) -> None:
    """os.unlink."""
    reached(label)
    os.unlink(path)


def keep_reserve() -> None:
    """Keeps descriptors back, for journal and checkpoints: whatever else uses them up, those go
    on. As many as there are to be had."""
    with suppress(OSError):
        while len(_reserve) < _RESERVED:
            _reserve.append(os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC))


def open_with_reserve(path: str | os.PathLike[str], flags: int, mode: int = 0o777) -> int:
    """os.open, for what must not fail for lack of descriptors."""
    try:
        fd = os.open(path, flags | os.O_CLOEXEC, mode)
    except OSError as error:
        if error.errno not in NO_MEANS or not _reserve:
            raise
        os.close(_reserve.pop())
        return os.open(path, flags | os.O_CLOEXEC, mode)
    if _reserve and len(_reserve) < _RESERVED:
        keep_reserve()
    return fd


def fsync_directory(label: str, path: str | os.PathLike[str]) -> None:
    """Makes the names in directory *path* durable. Blocks: call it in a thread."""
    fd = open_with_reserve(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fsync(label, fd)
    finally:
        os.close(fd)
