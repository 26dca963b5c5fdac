"""Making one file equal to another on a mounted volume, so that only what differs is written."""

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import ExitStack, suppress

from fusejournal.backing import syscalls

_COPY_BYTES = 1 << 20


def copy_file(source: int, source_name: bytes, target: int, name: bytes) -> None:
    """Make the file *name* in directory *target* equal to *source_name* in *source*, of the same
    type: content where it differs, owner, mode, xattrs and mtime."""
    flags = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC
    with ExitStack() as stack:

        def opened(directory: int, path: bytes | str, how: int) -> int:
            fd = os.open(path, how | os.O_CLOEXEC, dir_fd=directory)
            stack.callback(os.close, fd)
            return fd

        one, other = opened(source, source_name, flags), opened(target, name, flags)
        found = os.fstat(one)
        if stat.S_ISREG(found.st_mode):
            reading = opened(one, syscalls.descriptor_path(one), os.O_RDONLY)
            writing = opened(other, syscalls.descriptor_path(other), os.O_RDWR)
            _copy_content(reading, writing, found.st_size)
        _copy_attributes(one, other, found)


def _copy_content(reading: int, writing: int, size: int) -> None:
    """Only what differs is written; a hole where nothing was written stays one."""
    was = os.fstat(writing).st_size
    if was > size:
        os.ftruncate(writing, size)
    for offset, length in _pieces(reading, size, from_start=was > 0):
        wanted = os.pread(reading, length, offset)
        if os.pread(writing, length, offset) != wanted:
            os.pwrite(writing, wanted, offset)
    if os.fstat(writing).st_size != size:
        os.ftruncate(writing, size)


def _pieces(fd: int, size: int, *, from_start: bool) -> Iterator[tuple[int, int]]:
    """(offset, length) of all, or (not *from_start*) of what is no hole."""
    offset = 0
    while offset < size:
        end = size
        if not from_start:
            try:
                offset = os.lseek(fd, offset, os.SEEK_DATA)
                end = os.lseek(fd, offset, os.SEEK_HOLE)
            except OSError as error:
                if error.errno == errno.ENXIO:
                    return
                raise
        while offset < end:
            length = min(_COPY_BYTES, end - offset)
            yield offset, length
            offset += length


def _copy_attributes(one: int, other: int, found: os.stat_result) -> None:
    there = os.fstat(other)
    if (there.st_uid, there.st_gid) != (found.st_uid, found.st_gid):
        syscalls.chown(other, found.st_uid, found.st_gid)
    source, target = syscalls.descriptor_path(one), syscalls.descriptor_path(other)
    wanted = _xattrs(source)
    has = _xattrs(target)
    for key in has.keys() - wanted.keys():
        os.removexattr(target, key)
    for key, value in wanted.items():
        if has.get(key) != value:
            os.setxattr(target, key, value)
    if not stat.S_ISLNK(found.st_mode) and os.fstat(other).st_mode != found.st_mode:
        os.chmod(target, stat.S_IMODE(found.st_mode))
    if os.fstat(other).st_mtime_ns != found.st_mtime_ns:
        syscalls.set_times(other, None, found.st_mtime_ns)


def _xattrs(path: str) -> dict[str, bytes]:
    found = {}
    for key in os.listxattr(path):
        with suppress(OSError):
            found[key] = os.getxattr(path, key)
    return found
