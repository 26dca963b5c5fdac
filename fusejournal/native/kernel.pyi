"""See kernel.c. Names, paths and options are bytes without a NUL; times are in nanoseconds. Each
function raises the OSError of its errno, and TypeError or OverflowError for what is no argument."""

from fusejournal.types import Fid

def handle_of(fd: int, name: bytes = b"", /) -> bytes:
    """Returns the handle of *name* in directory *fd* (not followed), or of *fd* itself when *name*
    is empty."""

def open_by_handle(mount_fd: int, handle: bytes, flags: int, /) -> int:
    """Returns a new descriptor, close-on-exec, of the file that *handle* names, on the file system
    of *mount_fd*. ESTALE when it is gone."""

def set_times(fd: int, atime_ns: int | None, mtime_ns: int | None, /) -> None:
    """Sets the given times of *fd*, which may be an O_PATH descriptor; None leaves one as it is."""

def chown(fd: int, uid: int, gid: int, /) -> None:
    """Sets owner and group of *fd*, which may be an O_PATH descriptor of a symlink."""

def rename(old_dir: int, old: bytes, new_dir: int, new: bytes, flags: int, /) -> None:
    """renameat2(2) between two directory descriptors."""

def link(fd: int, new_dir: int, name: bytes, /) -> None:
    """Gives the file that *fd* is open on (O_PATH will do) a further name."""

class FileStat:
    """The attributes of a file: those of os.stat_result that are asked for, and the others for
    replies alone."""

    @property
    def st_mode(self) -> int: ...
    @property
    def st_ino(self) -> int: ...
    @property
    def st_dev(self) -> int: ...
    @property
    def st_nlink(self) -> int: ...
    @property
    def st_uid(self) -> int: ...
    @property
    def st_gid(self) -> int: ...
    @property
    def st_rdev(self) -> int: ...
    @property
    def st_size(self) -> int: ...
    @property
    def st_blksize(self) -> int: ...
    @property
    def st_blocks(self) -> int: ...
    @property
    def st_atime_ns(self) -> int: ...
    @property
    def st_mtime_ns(self) -> int: ...
    @property
    def st_ctime_ns(self) -> int: ...

def stat(fd: int, name: bytes = ..., /) -> FileStat:
    """Returns the attributes of *fd*, or of *name* in directory *fd*, not followed. (Half the time
    of os.stat.)"""

def exists(fd: int, name: bytes, /) -> bool:
    """Returns whether there is *name* in directory *fd*, not followed. (os.access changes the
    credentials for it, and os.stat makes an exception of its absence.)"""

def read_request(
    device: int, events: int, timeout_ns: int, spin_ns: int, buffer: bytearray, /
) -> int:
    """Waits until *device* or *events* is readable, no longer than *timeout_ns* and for the first
    *spin_ns* of it without sleep, and reads a request from *device* into *buffer*. Returns twice
    its size, 0 for none (also where it was taken back meanwhile), and 1 more where *events* is
    readable."""

def write_reply(device: int, request: int, error: int, body: bytes = b"", /) -> None:
    """Answers *request* with errno *error*, or with 0 and *body*."""

def encode_attributes(
    fid: Fid, stat: FileStat, ctime_ns: int, nlink: int, keep_seconds: int, /
) -> bytes:
    """The attributes of *fid*, which the kernel may keep for *keep_seconds*."""

def encode_entry(
    fid: Fid,
    stat: FileStat,
    ctime_ns: int,
    nlink: int,
    generation: int,
    keep_name_seconds: int,
    keep_seconds: int,
    /,
) -> bytes:
    """A name stands for *fid*; the kernel may keep that, and the attributes, for so long."""

def encode_listed(
    fid: Fid,
    stat: FileStat,
    ctime_ns: int,
    nlink: int,
    generation: int,
    keep_name_seconds: int,
    keep_seconds: int,
    name: bytes,
    cookie: int,
    /,
) -> bytes:
    """The same of *name*, at *cookie* in a listing."""

def fallocate(fd: int, mode: int, offset: int, length: int, /) -> None:
    """fallocate(2)."""

def syncfs(fd: int, /) -> None:
    """syncfs(2)."""

def filesystem_magic(fd: int, /) -> int:
    """Returns the number of the kind of file system that *fd* is on (statfs(2))."""

def mount_id(fd: int, /) -> int:
    """Returns the number of the mount that *fd* was opened in: never given twice in a boot where
    the kernel has such numbers (6.8), else not while it is mounted."""

def birth_time(fd: int, /) -> int | None:
    """Returns when the file that *fd* is open on was made; None where its file system does not keep
    that."""

def prctl(option: int, argument: int = 0, /) -> int:
    """prctl(2), with zeros for what follows *argument*."""

def setfsuid(uid: int, /) -> int:
    """setfsuid(2). Raises no OSError: the system call does not tell."""

def drop_capability(number: int, /) -> None:
    """Takes a capability out of this thread's effective ones."""

def setns(fd: int, kind: int, /) -> None:
    """setns(2)."""

def pidfd_getfd(pidfd: int, number: int, /) -> int:
    """Returns a copy of another process's descriptor *number*."""

def mount(
    source: bytes | None,
    target: bytes,
    kind: bytes | None,
    flags: int,
    options: bytes | None,
    /,
) -> None:
    """mount(2)."""

def umount(target: bytes, flags: int, /) -> None:
    """umount2(2)."""
