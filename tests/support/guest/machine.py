"""A guest with a kernel of its own, as an ordinary process: Debian's user-mode-linux kernel, which
needs neither KVM nor modules of the host, and has a real nfsd and NFS client.

The guest sees the host's files (this checkout and its virtual environment among them) below an
overlay, so what it writes there is gone when it stops; disks of its own as /dev/ubda, /dev/ubdb
...; and one directory of the host as /out. :func:`run` boots one for a command.

``python -m tests.support.guest.machine`` fetches the packages and unpacks them below
~/.cache/fusejournal/guest, once; nothing is installed on the host."""

import os
import platform
import re
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

HERE = Path(__file__).resolve().parent
CHECKOUT = HERE.parents[2]

_PACKAGES = (
    "user-mode-linux", "busybox-static", "kmod", "rpcbind", "nfs-kernel-server", "nfs-common",
    "libnfsidmap1", "libwrap0", "keyutils", "liburcu8", "libinih1", "liblzo2-2", "xfsprogs",
    "btrfs-progs", "dmsetup", "libdevmapper1.02.1", "nfs4-acl-tools", "acl", "attr", "systemd",
    "libsystemd-shared", "libapparmor1", "libcap2", "libip4tc2", "libkmod2", "libseccomp2",
)  # fmt: skip
MEMORY_MIB = 2048
"""The memory of a guest that is given none of its own."""
_LAYOUT = 1
"""Grows when what is unpacked, or how, changes."""


class GuestError(Exception):
    """The guest did not do what it was booted for; says where its console is."""


def cache() -> Path:
    """The directory of unpacked packages."""
    base = Path(os.environ.get("XDG_CACHE_HOME", "") or Path.home() / ".cache")
    return base / "fusejournal" / "guest"


def unavailable() -> str | None:
    """Returns the reason why no guest can run here, or None."""
    if platform.machine() != "x86_64":
        return f"the guest's kernel is for x86_64, not {platform.machine()}"
    if not _is_ready():
        return "the guest is not set up: run scripts/test, which fetches it"
    return None


def _stamp() -> str:
    return f"{_LAYOUT} {' '.join(_PACKAGES)}\n{(HERE / 'xstate.c').read_text()}"


def _is_ready() -> bool:
    ready = cache() / "ready"
    return ready.exists() and ready.read_text() == _stamp()


def set_up() -> None:
    """Fetch and unpack what a guest needs: some 50 MB from Debian's archive. Raises
    CalledProcessError."""
    if _is_ready() or platform.machine() != "x86_64":
        return
    print("fetching the guest for the NFS tests", flush=True)
    top = cache()
    shutil.rmtree(top, ignore_errors=True)
    packages, files = top / "packages", top / "files"
    packages.mkdir(parents=True)
    download = ["apt-get", "download", "-q", "-o", "APT::Sandbox::User=root", *_PACKAGES]
    if subprocess.run(download, cwd=packages, capture_output=True).returncode:
        subprocess.run(["apt-get", "update", "-qq"], check=True)
        subprocess.run(download, cwd=packages, check=True, stdout=subprocess.DEVNULL)
    for package in packages.glob("*.deb"):
        subprocess.run(["dpkg", "-x", str(package), str(files)], check=True)
    shutil.rmtree(packages)
    # /bin, /sbin and /lib are symlinks on the host; directories of these names would hide them.
    for name in ("bin", "sbin", "lib"):
        if (files / name).is_dir() and not (files / name).is_symlink():
            shutil.copytree(files / name, files / "usr" / name, symlinks=True, dirs_exist_ok=True)
            shutil.rmtree(files / name)
    (kernel,) = (files / "usr/lib/uml/modules").iterdir()
    modules = files / "usr/lib/modules"
    modules.mkdir(exist_ok=True)
    kernel.rename(modules / kernel.name)
    subprocess.run(
        ["depmod", "-b", str(files / "usr"), kernel.name],
        executable=files / "usr/bin/kmod",
        check=True,
        stderr=subprocess.DEVNULL,
    )
    subprocess.run(
        ["gcc", "-O2", "-Wall", "-Werror", "-shared", "-fPIC", "-o", str(top / "xstate.so"),
         str(HERE / "xstate.c"), "-ldl"],
        check=True,
    )  # fmt: skip
    (top / "ready").write_text(_stamp())


class Guest:
    """One running guest. Use as a context manager: its end kills it."""

    def __init__(
        self,
        command: Sequence[str],
        out: Path,
        *,
        disk_mib: Sequence[int] = (),
        images: Sequence[Path] = (),
        cpu: int | None = None,
        memory_mib: int = MEMORY_MIB,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        """Boot it for *command*, which runs as root in this checkout's directory; *out* becomes
        /out and takes ``console``, ``output`` and ``status``; an empty disk for each of
        *disk_mib*, which takes no space but for what is written, then the *images*; on processor
        *cpu*, with *memory_mib* of memory."""
        self.out = out
        out.mkdir(parents=True, exist_ok=True)
        variables = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C.UTF-8", "HOME": "/root"}
        variables |= environment or {}
        (out / "command").write_text(
            "".join(f"export {name}={shlex.quote(text)}\n" for name, text in variables.items())
            + f"cd {shlex.quote(str(CHECKOUT))}\nexec {shlex.join(command)} >/out/output 2>&1\n"
        )
        for name in ("output", "status"):
            (out / name).unlink(missing_ok=True)
        disks = []
        self._images = []
        for number, size_mib in enumerate(disk_mib):
            image = out / f"disk{number}"
            with open(image, "wb") as file:
                file.truncate(size_mib << 20)
            self._images.append(image)
            disks.append(f"ubd{number}={image}")
        disks += [f"ubd{number}={image}" for number, image in enumerate(images, len(disks))]
        if cpu is None:
            cpu = max(os.sched_getaffinity(0))
        top = cache()
        with open(out / "console", "wb") as console:
            self._process = subprocess.Popen(
                # Its processes take turns, and waking one on another processor costs more than most
                # system calls do: it runs some five times faster on one.
                ["taskset", "-c", str(cpu),
                 str(top / "files/usr/bin/linux.uml"), f"mem={memory_mib}M", *disks,
                 "rootfstype=hostfs", "rootflags=/", "ro", "quiet", f"init={HERE / 'init'}",
                 "con=null", "con0=null,fd:1", "con1=null",
                 f"GUEST_FILES={top / 'files'}", f"GUEST_OUT={out}"],
                # The guest's memory is a file in TMPDIR.
                env={**os.environ, "TMPDIR": "/dev/shm", "LD_PRELOAD": str(top / "xstate.so")},
                stdin=subprocess.DEVNULL,
                stdout=console,
                stderr=console,
                start_new_session=True,
            )  # fmt: skip

    def __enter__(self) -> "Guest":
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()
        for image in self._images:
            image.unlink(missing_ok=True)

    def kill(self) -> None:
        """End the guest at once, and all its processes, which the host sees as its children."""
        if self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()

    def is_alive(self) -> bool:
        """True if it still runs."""
        return self._process.poll() is None

    def nudge(self) -> None:
        """Give its kernel a timer signal. Once in some hundred minutes it loses one (seen: nothing
        armed, the idle loop spinning, all asleep), and would then wait for ever; one more than it
        asked for does nothing."""
        # Before its command begins it may not have a handler yet, and would die of it.
        if self.is_alive() and (self.out / "output").exists():
            self._process.send_signal(signal.SIGALRM)

    def wait(self, limit_seconds: float) -> int:
        """The command's status when the guest has ended. Raises GuestError when it did not come
        to that."""
        try:
            self._process.wait(limit_seconds)
        except subprocess.TimeoutExpired:
            self.kill()
            raise GuestError(f"no end after {limit_seconds} s; {self.words()}") from None
        try:
            return int((self.out / "status").read_text())
        except (FileNotFoundError, ValueError):
            raise GuestError(f"it died; {self.words()}") from None

    def words(self) -> str:
        """The end of what the guest's kernel and its command had to say."""
        told = [f"its process: {self._process.poll()}"]
        for name in ("console", "output"):
            path = self.out / name
            text = path.read_text(errors="replace") if path.exists() else ""
            text = re.sub(r"\x1b\[[0-9;]*m", "", text)
            told.append(f"--- {path}\n" + "\n".join(text.splitlines()[-60:]))
        return "\n".join(told)


if __name__ == "__main__":
    try:
        set_up()
    except subprocess.CalledProcessError as failed:
        sys.exit(f"the guest cannot be fetched: {shlex.join(map(str, failed.cmd))} failed")
