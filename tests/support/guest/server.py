"""The NFS service inside the guest: Debian's own daemons and the kernel's nfsd, over loopback."""

import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_NFSD = Path("/proc/fs/nfsd")
_USERS = (
    "_rpc:x:900:65534::/run/rpcbind:/usr/sbin/nologin",
    "statd:x:901:65534::/var/lib/nfs:/usr/sbin/nologin",
)
LEASE_SECONDS = 10


def sh(*command: str | os.PathLike[str], check: bool = True) -> str:
    """Run a command; its output. Raises AssertionError with what it said when it failed."""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert not check or done.returncode == 0, f"{command}: {done.stderr or done.stdout}"
    return done.stdout


def prepare_services() -> None:
    """Give the daemons the users and files that they expect."""
    for path in ("v4recovery", "sm", "sm.bak"):
        Path("/var/lib/nfs", path).mkdir(parents=True, exist_ok=True)
    for path in ("/var/lib/nfs/etab", "/var/lib/nfs/rmtab", "/etc/exports"):
        Path(path).touch()
    Path("/etc/exports.d").mkdir(exist_ok=True)
    with open("/etc/passwd", "r+", encoding="utf-8") as file:
        known = file.read()
        file.write("".join(f"{user}\n" for user in _USERS if user.split(":")[0] not in known))


class NfsServer:
    """rpcbind, statd, mountd and nfsd. Use as a context manager; its end stops what it started."""

    def __init__(self, threads: int = 4) -> None:
        self._threads = threads

    def __enter__(self) -> "NfsServer":
        for path in ("rpc_pipefs", "rpcbind"):
            Path("/run", path).mkdir(exist_ok=True)
        prepare_services()
        sh("mount", "-t", "nfsd", "nfsd", _NFSD)
        sh("mount", "-t", "rpc_pipefs", "sunrpc", "/run/rpc_pipefs")
        # A grace period makes clients wait that reclaim locks after a restart: short ones here.
        Path("/proc/sys/fs/nfs/nlm_timeout").write_text("3")
        Path("/proc/sys/fs/nfs/nlm_grace_period").write_text("3")
        sh("rpcbind", "-w")
        sh("rpc.statd", "--no-notify")
        sh("exportfs", "-ra")
        sh("rpc.mountd", "--no-udp")
        (_NFSD / "nfsv4leasetime").write_text(str(LEASE_SECONDS))
        (_NFSD / "nfsv4gracetime").write_text(str(LEASE_SECONDS))
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        sh("exportfs", "-ua", check=False)
        sh("exportfs", "-f", check=False)
        self.stop()
        for name in ("rpc.mountd", "rpc.statd", "rpcbind"):
            for pid in _pids(name):
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGTERM)
        for mountpoint in ("/run/rpc_pipefs", _NFSD):
            sh("umount", mountpoint, check=False)

    def start(self) -> None:
        """Start nfsd's threads, with no grace period to wait for."""
        sh("rpc.nfsd", "--no-udp", str(self._threads))
        with suppress(OSError):
            (_NFSD / "v4_end_grace").write_text("Y")

    def stop(self) -> None:
        """Stop them: clients wait until they are back."""
        sh("rpc.nfsd", "0")

    @contextmanager
    def client(self, version: str, path: Path, mountpoint: Path, *options: str) -> Iterator[Path]:
        """Mount the export *path* of this server with NFS *version* at *mountpoint*."""
        mountpoint.mkdir(parents=True, exist_ok=True)
        words = ",".join((f"vers={version}", "proto=tcp", *options))
        sh("mount", "-t", "nfs", "-o", words, f"127.0.0.1:{path}", mountpoint)
        try:
            yield mountpoint
        finally:
            sh("umount", "-f", "-l", mountpoint)


@contextmanager
def exported(path: Path, *options: str, mode: str = "sync") -> Iterator[None]:
    """*path* exported to this machine by a line of its own, for what is not a volume."""
    line = ",".join(("rw", mode, "no_subtree_check", *options))
    file = Path("/etc/exports.d") / f"{'_'.join(path.parts[1:])}.exports"
    file.write_text(f"{path} 127.0.0.1({line})\n")
    sh("exportfs", "-ra")
    try:
        yield
    finally:
        file.unlink()
        sh("exportfs", "-ra")
        sh("exportfs", "-f")


def _pids(name: str) -> list[int]:
    found = []
    for process in Path("/proc").iterdir():
        if process.name.isdigit():
            with suppress(OSError):
                if (process / "comm").read_text().strip() == name[:15]:
                    found.append(int(process.name))
    return found


def drop_caches() -> None:
    """Make the kernel forget every inode and page that it can."""
    os.sync()
    Path("/proc/sys/vm/drop_caches").write_text("3")


def make_disk(kind: str, device: Path, mountpoint: Path) -> None:
    """A new file system of *kind* on *device*, mounted."""
    force = "-F" if kind == "ext4" else "-f"
    sh(f"mkfs.{kind}", "-q", force, device)
    mountpoint.mkdir(parents=True, exist_ok=True)
    sh("mount", device, mountpoint)


def wait_until(what: str, condition: Callable[[], bool], seconds: float = 30.0) -> None:
    """Wait for *condition*. Raises TimeoutError saying *what* did not come."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(what)
        time.sleep(0.02)
