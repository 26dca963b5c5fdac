"""The probe of a directory that is to be a backing: whether its file system has what a volume
needs."""

import os
from pathlib import Path

from fusejournal.backing.fid_tag import FID_XATTR
from fusejournal.disk import syscalls
from fusejournal.errors import BackingError
from fusejournal.types import TIME_MAX_NS, TIME_MIN_NS

_PROBE_TIMES_NS = (1_700_000_000_123_456_789, TIME_MIN_NS, TIME_MAX_NS)

CASEFOLDED = (
    "is casefolded (chattr +F), so that one name has many spellings, and a journal tells them "
    "apart: use a directory without it"
)


def probe(root_fd: int, path: Path, read_only: bool) -> None:
    """Refuse a backing that lacks what a volume needs. Leaves nothing behind. Raises
    BackingError."""
    try:
        handle = syscalls.handle_of(root_fd)
        os.close(syscalls.open_by_handle(root_fd, handle, os.O_RDONLY | os.O_DIRECTORY))
    except OSError as error:
        raise BackingError(
            path, f"its file system has no file handles ({error.strerror})"
        ) from None
    if syscalls.is_casefolded(root_fd):
        raise BackingError(path, CASEFOLDED)
    if read_only:
        return
    try:
        # Without a name: the directory's mtime is a user's, too.
        fd = os.open(".", os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600, dir_fd=root_fd)
    except OSError as error:
        raise BackingError(path, f"cannot be written ({error.strerror})") from None
    try:
        try:
            os.setxattr(fd, FID_XATTR, b"probe")
        except OSError as error:
            raise BackingError(
                path, f"its file system has no trusted xattrs ({error.strerror})"
            ) from None
        for time_ns in _PROBE_TIMES_NS:
            os.utime(fd, ns=(time_ns, time_ns))
            if os.fstat(fd).st_mtime_ns != time_ns:
                raise BackingError(
                    path, "its file system does not keep nanosecond times from 1901 to 2446"
                )
    finally:
        os.close(fd)
