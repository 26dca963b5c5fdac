"""The kernel's NFS server beneath an export: whether it runs, what it still holds of a mount, and
how to make it let go.

Nothing here changes what is exported (exports.py does). Blocks; for the command line, or a thread.

What holds a mount once it is no longer exported:

- nfsd's caches of exports and handles, until they are flushed. A flush marks everything up to this
  second as old and clears it away; one more within the same second marks up to the next, and clears
  nothing until that has come. So they are flushed only as often as they can be.
- NFSv4 opens, locks, delegations and layouts, until the client gives them up. A delegation is only
  a promise to ask: it is recalled by opening the file for writing.
- NFSv3 locks, which lockd holds for clients; NFSv3 knows no opens.
- nfsd's cache of open files, for some seconds.

Source: nfsd(7), rpc.nfsd(8), the kernel's fs/nfsd/nfs4state.c (client_info_show,
client_states_show), fs/locks.c (locks_show), net/sunrpc/cache.c (write_flush, cache_clean)."""

import os
import re
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

from fusejournal.disk.mounts import device_of, mounts
from fusejournal.disk.process import WORKING_DIRECTORY
from fusejournal.disk.syscalls import fuse_handle, open_by_handle
from fusejournal.errors import ExportError
from fusejournal.journal.handle_key import HandleKey
from fusejournal.types import Fid

_COMMAND_SECONDS = 120.0
_POLL_SECONDS = 0.05
_CLIENTS_NAMED_MAX = 5
_FILES_NAMED_MAX = 5
_IN_SCOPE = 'echo "$1" >/proc/sys/kernel/hostname && shift && exec "$@"'
_KINDS = {"deleg": "delegated", "layout": "laid out", "lock": "locked"}
_HOLDING = (12, 18, 50)
_STATE = re.compile(
    r'^- 0x\w+: \{.*?type: (\w+),.*?superblock: "([0-9a-f]+):([0-9a-f]+):(\d+)"', re.MULTILINE
)
_LOCK = re.compile(r"^\d+: \S+ +\S+ +\S+ +(\d+) ([0-9a-f]+):([0-9a-f]+):(\d+) ", re.MULTILINE)
_FIELD = re.compile(r'^(address|name|status|seconds from last renew): "?(.*?)"?$', re.MULTILINE)


class Holder(NamedTuple):
    """One thing that nfsd holds for a client on a mount: an ``open``, ``lock``, ``deleg`` or
    ``layout`` of the file with this inode number."""

    kind: str
    inode: int
    client: Path | None
    """The client's directory in /proc/fs/nfsd/clients; None for NFSv3, where the kernel does not
    report it."""


def root() -> Path:
    """Returns the directory that all paths of the NFS server's are below; tests set
    FUSEJOURNAL_NFS_ROOT."""
    return Path(os.environ.get("FUSEJOURNAL_NFS_ROOT", "/"))


def tool(name: str) -> str | None:
    """Returns the path of the NFS server's command *name*, or None."""
    base = root()
    if base != Path("/"):
        return shutil.which(name, path=str(base / "usr/sbin"))
    return shutil.which(name, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")


def run(name: str, *arguments: str) -> tuple[int, list[str]]:
    """Run the command *name*: its status and what it printed. Raises ExportError where it is not
    there or does not end."""
    path = tool(name)
    if path is None:
        raise ExportError(f"{name} is not there: apt install nfs-kernel-server")
    try:
        done = subprocess.run(
            (path, *arguments),
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_COMMAND_SECONDS,
            stdin=subprocess.DEVNULL,
            cwd=WORKING_DIRECTORY,
        )
    except subprocess.TimeoutExpired:
        raise ExportError(
            f"{name} {' '.join(arguments)} has not ended after {_COMMAND_SECONDS:g} s: "
            "does the name service answer?"
        ) from None
    lines = (done.stdout + done.stderr).splitlines()
    return done.returncode, [line.removeprefix(f"{name}: ").strip() for line in lines if line]


def threads() -> int:
    """Returns the number of nfsd's threads: 0 when it does not run."""
    return int(read_kernel("proc/fs/nfsd/threads").strip() or 0)


def read_kernel(path: str | Path) -> str:
    """Returns what the kernel reports at *path*, or an empty text."""
    try:
        return (root() / path).read_text(errors="surrogateescape")
    except OSError:
        return ""


# -- caches ----------------------------------------------------------------------------------------


def caches(mountpoint: Path) -> bool:
    """Returns True if nfsd's cache of exports has *mountpoint*, old or not."""
    path = "".join(f"\\{ord(char):03o}" if char in " \t\n\\" else char for char in str(mountpoint))
    lines = read_kernel("proc/net/rpc/nfsd.export/content").splitlines()
    return any(line.removeprefix("# ").split("\t")[0] == path for line in lines)


def flushes_in() -> float:
    """Returns the seconds after which a flush clears the caches."""
    flushed = read_kernel("proc/net/rpc/nfsd.export/flush").strip() or "0"
    return max(0.0, int(flushed) + 1 - time.time())


def flush() -> None:
    """Flush the caches."""
    run("exportfs", "-f")


# -- holders ---------------------------------------------------------------------------------------


def holders(mountpoint: Path) -> list[Holder]:
    """Returns what nfsd and lockd hold for clients of the mount at *mountpoint*."""
    device = _number(device_of(mountpoint))
    if device is None:
        return []
    found = [
        Holder(kind, inode, client) for client, kind, where, inode in _states() if where == device
    ]
    for match in _LOCK.finditer(read_kernel("proc/locks")):
        pid, major, minor, inode = match.groups()
        if (int(major, 16), int(minor, 16)) == device and _is_lockd(pid):
            found.append(Holder("lock", int(inode), None))
    return found


def _number(device: str) -> tuple[int, int] | None:
    major, _, minor = device.partition(":")
    return (int(major), int(minor)) if minor else None


def _is_lockd(pid: str) -> bool:
    return read_kernel(f"proc/{pid}/comm").strip() == "lockd"


def _states() -> Iterator[tuple[Path, str, tuple[int, int], int]]:
    """Client, kind, device and inode of all that NFSv4 clients have on any file system."""
    base = root() / "proc/fs/nfsd/clients"
    with suppress(OSError):
        for client in sorted(base.iterdir()):
            for match in _STATE.finditer(read_kernel(client / "states")):
                kind, major, minor, inode = match.groups()
                yield client, kind, (int(major, 16), int(minor, 16)), int(inode)


def idle_clients() -> frozenset[bytes]:
    """Returns the names of those NFSv4 clients for which nfsd holds nothing: no open file, so no
    lock and no delegation either; none where not all can be looked at, because a client that was
    started anew has two entries of one name."""
    idle, busy = set[bytes](), set[bytes]()
    try:
        for client in (root() / "proc/fs/nfsd/clients").iterdir():
            states, name = (client / "states").read_bytes(), _info(client).get("name", "")
            (busy if states.strip() else idle).add(_unescaped(name))
    except OSError:
        return frozenset()
    return frozenset(idle - busy)


def _unescaped(name: str) -> bytes:
    """Returns *name* as it is; the kernel writes bytes that are not printable as \\xHH."""
    return re.sub(
        rb"\\x([0-9a-f]{2})", lambda match: bytes.fromhex(match[1].decode()), os.fsencode(name)
    )


def times_opened() -> int | None:
    """Returns how often NFSv4 clients have asked for what they then hold (RFC 8881: LOCK, OPEN,
    LAYOUTGET): nfsd counts it when it has answered. None where it does not tell."""
    for line in read_kernel("proc/net/rpc/nfsd").splitlines():
        name, *counts = line.split()
        with suppress(ValueError, IndexError):
            if name == "proc4ops":
                return sum(
                    int(counts[1 + number]) for number in _HOLDING if number < len(counts) - 1
                )
    return None


def has_lost_files() -> bool:
    """Returns True if living NFSv4 clients have files open on a file system that is mounted no
    more: they answer EIO until nfsd is restarted."""
    known = {_number(mount.device) for mount in mounts()}
    for line in read_kernel("proc/1/mountinfo").splitlines():
        known.add(_number(line.split()[2]))  # nfsd may have another's view
    lost = {client for client, _, device, _ in _states() if device[0] == 0 and device not in known}
    return any(_info(client).get("status") != "courtesy" for client in lost)


def _info(client: Path) -> dict[str, str]:
    return dict(_FIELD.findall(read_kernel(client / "info")))


def describe(found: list[Holder], mountpoint: Path, handle_key: HandleKey) -> str:
    """Returns in words for people who that is: the first clients, each with the first of its files
    below *mountpoint*, and how many more there are."""
    told = []
    clients = sorted({holder.client for holder in found}, key=str)
    for client in clients[:_CLIENTS_NAMED_MAX]:
        files: dict[int, set[str]] = {}
        for holder in found:
            if holder.client == client:
                files.setdefault(holder.inode, set()).add(_KINDS.get(holder.kind, holder.kind))
        names = [
            f"{_name(inode, mountpoint, handle_key)} ({', '.join(sorted(kinds, reverse=True))})"
            for inode, kinds in list(files.items())[:_FILES_NAMED_MAX]
        ]
        if len(files) > _FILES_NAMED_MAX:
            names.append(f"{len(files) - _FILES_NAMED_MAX} more")
        told.append(f"{_client(client)} has {', '.join(names)}")
    if len(clients) > _CLIENTS_NAMED_MAX:
        told.append(f"{len(clients) - _CLIENTS_NAMED_MAX:,} more clients have files, too")
    return "; ".join(told)


def _client(directory: Path | None) -> str:
    if directory is None:
        hosts = []
        with suppress(OSError):
            hosts = sorted(path.name for path in (root() / "var/lib/nfs/sm").iterdir())
        return f"an NFSv3 client (out of {', '.join(hosts)})" if hosts else "an NFSv3 client"
    fields = _info(directory)
    address = fields.get("address", "?").rpartition(":")[0]
    words = f"NFSv4 client {address} ({fields.get('name', '?')})"
    if fields.get("status") == "courtesy":
        words += f", silent for {fields.get('seconds from last renew', '?')} s,"
    return words


def _name(inode: int, mountpoint: Path, handle_key: HandleKey) -> str:
    try:
        fd = _open(inode, mountpoint, handle_key, os.O_PATH)
    except OSError:
        return f"inode {inode}"
    try:
        path = os.readlink(f"/proc/self/fd/{fd}")
    finally:
        os.close(fd)
    name = path.removeprefix(f"{mountpoint}/")
    return name if name.isprintable() else repr(name)


def _open(inode: int, mountpoint: Path, handle_key: HandleKey, flags: int) -> int:
    """Open a file of the layer by its inode number, which is the node id in the kernel's handle;
    the volume's key has its generation (fs/fuse/inode.c, fuse_encode_fh)."""
    mount_fd = os.open(mountpoint, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        handle = fuse_handle(inode, handle_key.generation(Fid(inode)))
        return open_by_handle(mount_fd, handle, flags)
    finally:
        os.close(mount_fd)


# -- letting go ------------------------------------------------------------------------------------


def recall(mountpoint: Path, handle_key: HandleKey, seconds: float) -> list[Holder]:
    """Ask for all delegations of the volume with *handle_key* back, and wait up to *seconds* for
    them; returns who still holds what."""
    found = holders(mountpoint)
    for inode in {holder.inode for holder in found if holder.kind == "deleg"}:
        with suppress(OSError):
            os.close(_open(inode, mountpoint, handle_key, os.O_WRONLY | os.O_NONBLOCK))
    deadline = time.monotonic() + seconds
    while any(holder.kind == "deleg" for holder in found) and time.monotonic() < deadline:
        time.sleep(_POLL_SECONDS)
        found = holders(mountpoint)
    return found


def take_away(mountpoint: Path) -> None:
    """Take from the clients what they hold on *mountpoint*. An NFSv4 client that older kernels
    (before 6.9) cannot be asked to leave one file system loses what it has on the others, too,
    and asks for it anew."""
    unlock = root() / "proc/fs/nfsd/unlock_filesystem"
    with suppress(OSError):
        unlock.write_bytes(os.fsencode(mountpoint) + b"\n")
    for client in {holder.client for holder in holders(mountpoint)}:
        if client is not None:
            with suppress(OSError):
                (client / "ctl").write_text("expire\n")


_remembered: dict[tuple[Path, str, str], str] = {}


def remember(*keys: tuple[str, str]) -> None:
    """Have :func:`configured` know the values of *keys*, each a section and a key, by what they are
    now: each takes a process to ask for."""
    for section, key in keys:
        _remembered[root(), section, key] = configured(section, key)


def configured(section: str, key: str) -> str:
    """Returns the value of *key* in *section* of nfs.conf(5), or an empty text."""
    if (known := _remembered.get((root(), section, key))) is not None:
        return known
    if tool("nfsconf") is None:
        return ""
    code, lines = run("nfsconf", "--get", section, key)
    return lines[0] if code == 0 and lines else ""


def scope() -> str:
    """Returns the name by which NFSv4.1 clients take two servers for one, and so take their locks
    back from the other (RFC 8881, 2.10.4), where nfs.conf has one; nfsd's own is the host's."""
    return configured("nfsd", "scope")


def stop() -> None:
    """Stop nfsd: all its clients wait. By rpc.nfsd also where systemd started it, because that
    would stop mountd, too, and forget what was exported by hand. Raises ExportError."""
    _, words = run("rpc.nfsd", "0")
    if threads():
        raise ExportError(f"nfsd does not stop ({'; '.join(words) or 'no word'})")


def start(count: int | None = None) -> None:
    """Start nfsd with *count* threads, or as many as nfs.conf says, and with its scope. Raises
    ExportError."""
    if not count and (root() / "run/systemd/system").is_dir():
        # At a boot, what belongs to it may not run yet. (It is no more than nothing where only
        # rpc.nfsd had stopped it.)
        run("systemctl", "start", "nfs-server")
        if threads():
            return
    arguments = (str(count),) if count else ()
    name, path = scope(), tool("rpc.nfsd")
    if name and path is not None:
        # Programs before 2.6.3 do not know the scope; nfsd's is the name of the host as the one
        # only the process sees that starts it.
        code, words = run("unshare", "--uts", "sh", "-c", _IN_SCOPE, "sh", name, path, *arguments)
    else:
        code, words = run("rpc.nfsd", *arguments)
    if code or not threads():
        raise ExportError(
            f"nfsd does not start ({'; '.join(words) or 'no word'}): systemctl restart nfs-server"
        )


def end_lock_grace() -> None:
    """Have lockd give new locks, where no NFSv3 client is to take any back: NFSv4 clients wait for
    that, too, though all of them may have taken theirs."""
    with suppress(OSError):
        (root() / "proc/fs/lockd/nlm_end_grace").write_text("Y\n")


@contextmanager
def stopped() -> Iterator[None]:
    """Stop nfsd for the length of the block."""
    count = threads()
    if count:
        stop()
    try:
        yield
    finally:
        if count:
            start(count)
