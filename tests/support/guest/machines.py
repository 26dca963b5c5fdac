"""Machines inside the guest: each has a network, mounts, a name and a configuration of its own, and
an NFS service of its own, because nfsd, lockd and the daemons go by the network namespace.

All share the guest's kernel, clock and file systems. What a machine mounts is seen only there."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from tests.support.guest.server import prepare_services, sh, wait_until
from tests.support.mirrors import Node
from tests.support.network import Host

LEASE_SECONDS = 10
GRACE_SECONDS = 15
SCOPE = "files.example.org"
_STATD = 901
_NOGROUP = 65534
_MODULES = ("veth", "bridge")
_CONFIGURATION = f"""\
[nfsd]
scope = {SCOPE}
threads = 4
lease-time = {LEASE_SECONDS}
grace-time = {GRACE_SECONDS}
"""
_START = 'hostname "$(nfsconf --get nfsd scope)" && exec rpc.nfsd'
_PREPARE = r"""
mount --make-rprivate /
mount --bind "$1/nfs" /var/lib/nfs
mount --bind "$1/exports.d" /etc/exports.d
mount --bind "$1/nfs.conf" /etc/nfs.conf
mount -t tmpfs tmpfs /run
mkdir -p /run/rpcbind /run/rpc_pipefs
mount -t rpc_pipefs sunrpc /run/rpc_pipefs
mount -t nfsd nfsd /proc/fs/nfsd
hostname "$2"
exec sleep infinity
"""


def prepare_guest(floating: str) -> None:
    """Have the guest's kernel and files as the machines need them; *floating* gets a name."""
    for module in _MODULES:
        sh("modprobe", module)
    prepare_services()
    Path("/etc/nfs.conf").touch()
    hosts = Path("/etc/hosts")
    if floating not in hosts.read_text().split():
        hosts.write_text(f"{hosts.read_text()}\n{floating} {SCOPE}\n")


class Machine:
    """One machine, named *name*, on the network as *host*; its files are below *base*. Use as a
    context manager, which ends all that it runs."""

    def __init__(self, host: Host, base: Path, name: str) -> None:
        self.host = host
        self.name = name
        self._nfs = base / "nfs"
        (base / "exports.d").mkdir(parents=True)
        (base / "nfs.conf").write_text(_CONFIGURATION)
        for part in ("", "sm", "sm.bak", "v4recovery", "nfsdcld"):
            (self._nfs / part).mkdir()
        for part in ("", "sm", "sm.bak"):
            os.chown(self._nfs / part, _STATD, _NOGROUP)
        for part in ("etab", "rmtab"):
            (self._nfs / part).touch()
        self._anchor = subprocess.Popen(
            [*host.prefix, "unshare", "--mount", "--uts", "bash", "-c", _PREPARE, "machine",
             str(base), name],
            stdin=subprocess.DEVNULL, cwd="/",
        )  # fmt: skip
        comm = Path(f"/proc/{self._anchor.pid}/comm")
        wait_until("the machine", lambda: comm.read_text() == "sleep\n")

    def __enter__(self) -> "Machine":
        return self

    def __exit__(self, *_: object) -> None:
        self.end()

    @property
    def prefix(self) -> tuple[str, ...]:
        """The beginning of a command line that is to run here."""
        process = f"/proc/{self._anchor.pid}"
        # (The root of its mounts is not the guest's.)
        return ("nsenter", f"--net={process}/ns/net", f"--mount={process}/ns/mnt",
                f"--uts={process}/ns/uts", f"--root={process}/root", f"--wd={process}/root",
                "--")  # fmt: skip

    def sh(self, *command: str | Path, check: bool = True) -> str:
        """Run a command here; its output. Raises AssertionError when it fails."""
        return sh(*self.prefix, *map(str, command), check=check)

    def mounts(self) -> bytes:
        """Returns the mounts here, as /proc/mounts tells."""
        return Path(f"/proc/{self._anchor.pid}/mounts").read_bytes()

    def start_client_services(self) -> None:
        """Start what an NFSv3 client needs for its locks."""
        self.sh("rpcbind", "-w")
        self.sh("rpc.statd", "--no-notify")

    def start_server_services(self) -> None:
        """Start what a server runs from its boot on."""
        self.start_client_services()
        self.sh("nfsdcld", "-p", "/run/rpc_pipefs")
        self.sh("rpc.mountd", "--no-udp")
        # As the manual has it for programs that do not know the scope.
        self.sh("unshare", "--uts", "sh", "-c", _START)
        self.sh(
            "sh", "-c", "echo Y >/proc/fs/nfsd/v4_end_grace; echo Y >/proc/fs/lockd/nlm_end_grace"
        )

    def states(self) -> str:
        """Returns the states that nfsd holds for NFSv4 clients."""
        return self.sh("sh", "-c", "cat /proc/fs/nfsd/clients/*/states", check=False)

    def cut_power(self) -> None:
        """From one moment to the next it is off: it answers no client any more, and none of its
        processes does anything. (Its kernel is the guest's: what nfsd has in memory stays, and
        reaches no peer.)"""
        self.host.cut()
        self._kill()

    def end(self) -> None:
        """Take it away with all that it runs."""
        self.sh("rpc.nfsd", "0", check=False)
        self._kill()
        self._anchor.kill()
        self._anchor.wait()

    def _kill(self) -> None:
        ours = os.readlink(f"/proc/{self._anchor.pid}/ns/mnt")
        for process in Path("/proc").iterdir():
            if process.name.isdigit() and int(process.name) != self._anchor.pid:
                with suppress(OSError):
                    if os.readlink(process / "ns/mnt") == ours:
                        os.kill(int(process.name), signal.SIGKILL)

    @contextmanager
    def nfs_mount(self, version: str, source: str, where: Path, *options: str) -> Iterator[Path]:
        """Mount *source* by NFS as this machine, at *where* in the guest's own mounts."""
        where.mkdir(parents=True, exist_ok=True)
        words = ",".join((f"vers={version}", "proto=tcp", *options))
        command = f'hostname "$0"; exec mount -t nfs -o {words} "$1" "$2"'
        sh(*self.host.prefix, "unshare", "--uts", "sh", "-c", command, self.name, source, where)
        try:
            yield where
        finally:
            sh("umount", "-f", "-l", where)


class Server(Node):
    """A volume of *machine*, which has its files below *base* and serves at *mountpoint*."""

    def __init__(
        self, machine: Machine, base: Path, mountpoint: Path, role: str, config: str
    ) -> None:
        super().__init__(base, machine.host, role, config)
        self.machine = machine
        self.mountpoint = mountpoint
        mountpoint.mkdir(parents=True, exist_ok=True)
        self.prefix = machine.prefix

    def run(self, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run a fusejournal command on the machine to its end."""
        done = subprocess.run(
            [*self.prefix, *self.command(*arguments)],
            env=self.environment, capture_output=True, text=True, check=False, timeout=120,
        )  # fmt: skip
        assert not check or done.returncode == 0, done
        return done

    def is_mounted(self) -> bool:
        """True if something of ours is mounted at the mountpoint, alive or dead."""
        return b" %s fuse.fusejournal " % os.fsencode(self.mountpoint) in self.machine.mounts()

    def detach(self) -> None:
        """Take whatever is left of the mount away."""
        while self.is_mounted():
            self.machine.sh("umount", "-l", self.mountpoint)


def hook(*words: str) -> str:
    """The command line of a shipped hook, by the interpreter that runs the tests."""
    return " ".join((sys.executable, "-P", "-m", "fusejournal", "hook", *words))
