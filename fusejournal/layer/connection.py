"""The kernel's connection (an open /dev/fuse), and how it goes from one layer process to the next.

A FUSE mount lives as long as its connection is open somewhere. For a volume that is exported, a
*holder* (connection_holder.py), a small process of its own, holds a second descriptor of it, one of
the backing's directory, which an in-place mount covers, and one of the table of open files. When
the layer dies, its callers' requests wait in the kernel for the layer's next process, which takes
the descriptors from the holder and goes on: no client gets any notice, nfsd's caches and open files
stay good, and nothing is mounted anew. The holder gives up after some seconds; then the mount is
dead, as without one.

What the layer that died had read and not answered is answered by the next one's handshake
(handshake.py).

Source: include/uapi/linux/fuse.h, pidfd_getfd(2)."""

import json
import os
import select
import signal
import struct
import subprocess
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from fusejournal.disk import mounts
from fusejournal.disk.files import UNREADABLE_JSON, Outlives, write_atomically
from fusejournal.disk.process import WORKING_DIRECTORY, python_module
from fusejournal.errors import VolumeBusyError
from fusejournal.layer.kernel_protocol import IN_HEADER
from fusejournal.layer.kernel_replies import OUT_HEADER
from fusejournal.native import kernel

_VERSIONS_AT = IN_HEADER.size
"""The place of the versions in a kernel's INIT."""
_INVAL_ENTRY = struct.Struct("<QII")
"""Parent, length of the name, flags: struct fuse_notify_inval_entry_out."""
_NOTIFY_INVAL_ENTRY, _EXPIRE_ONLY = 3, 1
_MINOR_EXPIRE = 38
_REQUEST_BYTES_MAX = 1 << 16
"""More than an INIT has."""
_NUMBER_MAX = 1 << 31
_HOLDER = "fusejournal.layer.connection_holder"
_HOLDERS = (_HOLDER, "fusejournal.layer.keeper")
"""The modules that a holder may run: the second is one that a layer of 0.1.0 has started, which
this one may go on from (keeper.py)."""


@dataclass
class KernelConnection:
    """A mounted file system's connection. ``init`` is the kernel's greeting, ``reply`` our answer
    (empty until there is one); ``taken_over``: another process answered it before."""

    fd: int
    root_fd: int
    table_fd: int
    """The table of open files (open_files.py)."""
    device: str
    init: bytes
    reply: bytes = b""
    taken_over: bool = False
    holder: int = -1
    """pidfd of the holder that it was taken from."""
    flags: frozenset[str] | None = None
    """The options of the mount that its layer was started with; None: not known."""
    all_answered: bool = False
    """True if the process that it was taken from had answered all that it had read."""

    @property
    def can_expire(self) -> bool:
        """True if the kernel can be made to ask for a name anew without taking the name away, which
        takes what is mounted there with it: from Linux 6.2 on."""
        _, minor = struct.unpack_from("<II", self.init, _VERSIONS_AT)
        return bool(minor >= _MINOR_EXPIRE)

    def note_flags(self, flags: frozenset[str] | None) -> None:
        """The mount has *flags* now; None: in the midst of a change."""
        self.flags = flags

    def note_reply(self, reply: bytes) -> None:
        """The kernel was greeted by *reply*, which it goes by from now on."""
        self.reply = reply

    def expire(self, parent: int, name: bytes) -> None:
        """Make it so. Blocks while a request on the directory *parent* is in progress. Raises
        OSError ENOENT for a name that the kernel does not know."""
        body = _INVAL_ENTRY.pack(parent, len(name), _EXPIRE_ONLY) + name + b"\0"
        head = OUT_HEADER.pack(OUT_HEADER.size + len(body), _NOTIFY_INVAL_ENTRY, 0)
        os.write(self.fd, head + body)


def open_new(
    root_fd: int, table_fd: int, mountpoint: Path, name: str, flags: frozenset[str]
) -> KernelConnection:
    """Mount a new file system at *mountpoint*, whose open files are to be in the empty table
    *table_fd*. Raises MountError."""
    fd = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
    mounts.mount(fd, mountpoint, name, flags)
    init = os.read(fd, _REQUEST_BYTES_MAX)  # the mount has sent it
    os.set_blocking(fd, False)
    device = mounts.device_of(mountpoint)
    return KernelConnection(fd, root_fd, table_fd, device, init, flags=flags)


class ConnectionHolder:
    """The process that holds *connection* beside this one. :meth:`dismiss` it in an orderly end;
    without that it holds the connection for *hold_seconds* after this process has ended."""

    def __init__(
        self,
        connection: KernelConnection,
        record: Path,
        hold_seconds: float,
        backing: Path,
        mountpoint: Path,
    ) -> None:
        watched, self._life = os.pipe()
        self._record = record
        self._places = {"backing": str(backing), "mountpoint": str(mountpoint)}
        try:
            self._process = subprocess.Popen(
                python_module(
                    _HOLDER, str(connection.fd), str(watched), str(hold_seconds)
                ),
                pass_fds=(connection.fd, connection.root_fd, connection.table_fd, watched),
                cwd=WORKING_DIRECTORY,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
            )  # fmt: skip
        finally:
            os.close(watched)
        self.note(connection)
        if connection.holder >= 0:
            # The one that it was taken from has done its work.
            with suppress(ProcessLookupError):
                signal.pidfd_send_signal(connection.holder, signal.SIGKILL)
            # After a restart it is our own child.
            with suppress(ChildProcessError):
                os.waitid(os.P_PIDFD, connection.holder, os.WEXITED)
            os.close(connection.holder)
            connection.holder = -1

    def note(self, connection: KernelConnection) -> None:
        """Write down *connection* for the next process, as it is now. Raises OSError."""
        pid = self._process.pid
        record = {
            "pid": pid,
            "started": _started(pid),
            "fd": connection.fd,
            "root_fd": connection.root_fd,
            "table_fd": connection.table_fd,
            "device": connection.device,
            "init": connection.init.hex(),
            "reply": connection.reply.hex(),
            "flags": None if connection.flags is None else sorted(connection.flags),
            **self._places,
        }
        content = json.dumps(record).encode()
        write_atomically("connection", self._record, content, Outlives.PROCESS)

    def all_is_answered(self) -> None:
        """Write down for the next process that this one has answered all that it has read."""
        with suppress(OSError):
            pid = self._process.pid
            _answered(self._record).write_text(_word(pid, _started(pid)))

    def is_alive(self) -> bool:
        """Returns True while it runs."""
        return self._process.poll() is None

    def dismiss(self) -> None:
        """Let the holder end; its descriptors go with it. Blocks for a moment."""
        with suppress(OSError):
            os.write(self._life, b"x")
        os.close(self._life)
        self._process.wait()
        self._record.unlink(missing_ok=True)
        _answered(self._record).unlink(missing_ok=True)


def _answered(record: Path) -> Path:
    return record.with_suffix(".answered")


def _word(pid: int, started: str) -> str:
    return f"keeper {pid} of {started}"  # as holders of 0.1.0 write it


class _HolderRecord(NamedTuple):
    """A holder by its record. Places and flags are None where an older version wrote it."""

    pid: int
    started: str
    fd: int
    root_fd: int
    table_fd: int
    device: str
    init: bytes
    reply: bytes
    backing: Path | None
    mountpoint: Path | None
    flags: frozenset[str] | None


def _read(record: Path) -> _HolderRecord | None:
    """The holder by *record*; None where that is not there, or not as it was written."""
    try:
        told = json.loads(record.read_text())
        numbers = [int(told[key]) for key in ("pid", "fd", "root_fd", "table_fd")]
        if not all(0 <= number < _NUMBER_MAX for number in numbers):
            return None
        pid, fd, root_fd, table_fd = numbers
        backing, mountpoint = (
            None if (place := told.get(key)) is None else Path(place)
            for key in ("backing", "mountpoint")
        )
        init, reply = (bytes.fromhex(told[key]) for key in ("init", "reply"))
        started, device = str(told["started"]), str(told["device"])
        flags = None if (words := told.get("flags")) is None else frozenset(map(str, words))
        return _HolderRecord(
            *(pid, started, fd, root_fd, table_fd, device, init, reply, backing, mountpoint, flags)
        )
    except (OSError, *UNREADABLE_JSON):
        return None


def _take_word(record: Path, told: _HolderRecord) -> bool:
    """Returns True if the process before had answered all, as it wrote beside *record* of its
    holder; that is taken away, because what comes now may go unanswered."""
    path = _answered(record)
    try:
        return path.read_text() == _word(told.pid, told.started)
    except (OSError, ValueError):
        return False
    finally:
        path.unlink(missing_ok=True)


def take_over(record: Path, mountpoint: Path) -> KernelConnection | None:
    """The connection of the mount at *mountpoint* from the holder that *record* describes; None
    when there is none to be had. Only for the process that holds the volume's lock."""
    known = _find(record)
    if known is None:
        return None
    told, holder = known
    found: list[int] = []
    try:
        if mounts.device_of(mountpoint) != told.device:
            return None
        for number in (told.fd, told.root_fd, told.table_fd):
            try:
                found.append(kernel.pidfd_getfd(holder, number))
            except OSError:
                return None
        fd, root_fd, table_fd = found
        connection = KernelConnection(
            fd,
            root_fd,
            table_fd,
            told.device,
            told.init,
            told.reply,
            taken_over=True,
            holder=holder,
            flags=told.flags,
            all_answered=_take_word(record, told),
        )
        holder, found = -1, []
        return connection
    finally:
        for fd in (*found, holder):
            if fd >= 0:
                os.close(fd)


def check_held(record: Path, name: str, backing: Path, mountpoint: Path) -> None:
    """Refuse another mount of the volume *name* while the holder that *record* describes holds one:
    its users would be cut off. Raises VolumeBusyError."""
    known = _find(record)
    if known is None:
        return
    told, holder = known
    os.close(holder)
    held, held_backing = told.mountpoint or mountpoint, told.backing or backing
    if not any(m.mountpoint == held and m.device == told.device for m in mounts.mounts()):
        return  # the admin took it away
    if (held_backing, held) != (backing, mountpoint):
        raise VolumeBusyError(
            f"volume {name} waits for its next layer with {held_backing} mounted at {held}: "
            f"mount it so ('fusejournal mount {name}'), or end that first "
            f"('fusejournal umount {name}')"
        )
    if mounts.device_of(held) != told.device:
        raise VolumeBusyError(
            f"{held}: something else is mounted over volume {name}, which waits for its next "
            "layer: unmount that first"
        )


def is_held(record: Path) -> bool:
    """Returns True if the holder that *record* describes still runs."""
    known = _find(record)
    if known is None:
        return False
    os.close(known[1])
    return True


def release_kept(record: Path) -> None:
    """End the holder that *record* describes, if it still runs: what it holds goes with it."""
    known = _find(record)
    if known is None:
        return
    _, holder = known
    with suppress(ProcessLookupError):
        signal.pidfd_send_signal(holder, signal.SIGKILL)
        select.select((holder,), (), ())
    os.close(holder)
    record.unlink(missing_ok=True)


def _find(record: Path) -> tuple[_HolderRecord, int] | None:
    """Reads *record*, and opens a pidfd of its holder; None where that does not run any more."""
    told = _read(record)
    if told is None:
        return None
    try:
        holder = os.pidfd_open(told.pid)
    except OSError:
        return None
    if _started(told.pid) == told.started:
        words = _command_line(told.pid)
        if any(module in words for module in _HOLDERS):
            return told, holder
    os.close(holder)
    return None


def _started(pid: int) -> str:
    """The time at which the process was started: with the pid this is one process for as long as
    the machine runs. Source: proc(5), /proc/pid/stat, field 22."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except OSError:
        return ""


def _command_line(pid: int) -> str:
    """Empty for a process that has ended and was not waited for."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_text(errors="replace")
    except OSError:
        return ""
