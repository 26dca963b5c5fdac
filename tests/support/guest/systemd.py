"""Debian's systemd in the guest: process 1 of namespaces of its own (processes, mounts), with
/run, /proc and cgroups to match, and no units but its own basic ones and what a test installs.

It boots in some five seconds, and again on the same configuration after :meth:`Systemd.power_off`.
What it mounts is seen only there: tests look through :meth:`Systemd.run`."""

import subprocess
import uuid
from pathlib import Path

from tests.support.guest.server import sh, wait_until

_BEGIN = r"""
mount -t tmpfs tmpfs /run
mount --bind "$1" /etc/systemd
for directory in /usr/lib/systemd/system/*.target.wants; do
  case ${directory##*/} in
    sysinit.*) mount -t tmpfs tmpfs $directory; ln -s ../systemd-journald.service $directory ;;
    local-fs.* | sockets.* | timers.* | multi-user.*) mount -t tmpfs tmpfs $directory ;;
  esac
done
export container=guest
exec /lib/systemd/systemd --system --unit=multi-user.target --log-target=journal --show-status=no
"""
_GENERATORS = ("systemd-fstab-generator", "nfs-server-generator")
_START_SECONDS = 60.0
_STOP_SECONDS = 120.0


class Systemd:
    """One system manager; *configuration* becomes its /etc/systemd and stays when it ends. Use as
    a context manager."""

    def __init__(self, configuration: Path) -> None:
        self._configuration = configuration
        self._process: subprocess.Popen[bytes] | None = None
        masked = configuration / "system-generators"
        masked.mkdir(parents=True)
        for generator in Path("/usr/lib/systemd/system-generators").iterdir():
            if generator.name not in _GENERATORS:
                (masked / generator.name).symlink_to("/dev/null")
        (configuration / "system").mkdir()
        identity = Path("/etc/machine-id")
        if not identity.exists() or not identity.read_text().strip():
            identity.write_text(f"{uuid.uuid4().hex}\n")  # without, it would set everything up

    def __enter__(self) -> "Systemd":
        self.boot()
        return self

    def __exit__(self, *_: object) -> None:
        if self._process is not None:
            self._process.kill()  # and with it, all that runs in its namespace
            self._process.wait()

    def boot(self) -> None:
        """Start it; returns when it has started what it is to start at boot."""
        self._process = subprocess.Popen(
            ["unshare", "--pid", "--fork", "--mount", "--mount-proc", "--kill-child",
             "bash", "-c", _BEGIN, "systemd", str(self._configuration)],
            stdin=subprocess.DEVNULL,
            cwd="/",
        )  # fmt: skip
        socket = Path(f"/proc/{self._process.pid}/root/run/systemd/private")
        wait_until("systemd's start", socket.exists, _START_SECONDS)
        self.run("systemctl", "is-system-running", "--wait", check=False)

    def power_off(self) -> None:
        """Shut it down in order, as a machine is."""
        assert self._process is not None
        self.run("systemctl", "poweroff", check=False)
        self._process.wait(_STOP_SECONDS)
        self._process = None

    def run(self, *command: str | Path, check: bool = True) -> str:
        """Run a command under it; its output. Raises AssertionError when it fails."""
        return sh(*self._entering(), *command, check=check)

    def result(self, *command: str | Path) -> subprocess.CompletedProcess[str]:
        """Run a command that may fail."""
        return subprocess.run(
            [*self._entering(), *command], capture_output=True, text=True, check=False
        )

    def _entering(self) -> list[str]:
        assert self._process is not None
        process = f"/proc/{self._process.pid}"
        return ["nsenter", f"--mount={process}/ns/mnt", f"--pid={process}/ns/pid_for_children",
                f"--root={process}/root", f"--wd={process}/root", "--"]  # fmt: skip

    def show(self, unit: str, name: str) -> str:
        """One property of *unit*."""
        return self.run("systemctl", "show", "--value", "-p", name, unit).strip()

    def said(self, *units: str) -> str:
        """Returns the lines that *units*, and systemd about them, have written to the log since
        boot."""
        self.run("journalctl", "--sync")
        chosen = [f"--unit={unit}" for unit in units]
        return self.run("journalctl", "--no-pager", "--output=cat", *chosen)
