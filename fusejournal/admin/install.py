"""Sets systemd and fstab up: the units of volumes, agent and console, and the helper of mount(8),
whose texts are in ``fusejournal/systemd``.

A file is replaced only if its marker says that an earlier installation wrote it."""

import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from importlib import resources
from pathlib import Path
from typing import NamedTuple

from fusejournal.disk.files import Outlives, write_atomically
from fusejournal.disk.ownership import weak_place
from fusejournal.disk.process import WORKING_DIRECTORY, python_module
from fusejournal.errors import FusejournalError, PrivilegeError, UsageError
from fusejournal.node.registry import all_volumes, unit_instance

_OURS = "Written by 'fusejournal install"
_MARK = f"{_OURS} --write', which replaces it."
_UNITS = (
    "fusejournal@.service",
    "fusejournal-agent.service",
    "fusejournal-console.service",
)


class InstalledFile(NamedTuple):
    """A file as it is to be."""

    path: Path
    mode: int
    content: str

    def is_there(self) -> bool:
        """True if the file is as it should be."""
        found = _read(self.path)
        return found == self.content and self.path.stat().st_mode & 0o7777 == self.mode


class Installation(NamedTuple):
    """The files below a root, in each case with whether it differed from what it is to be."""

    files: tuple[tuple[InstalledFile, bool], ...]
    written: bool
    reloaded: bool = False
    """True if systemd has read its units anew."""
    next_step: str | None = None
    """The command to type next, where the root is this machine's."""

    def to_json(self) -> dict[str, object]:
        """The values by the keys that scripts read."""
        return {
            "written": self.written,
            "files": [{"path": str(file.path), "changed": differs} for file, differs in self.files],
        }


def install_files(root: Path, *, write: bool, warn: Callable[[str], None]) -> Installation:
    """Returns the files for volumes below *root*; with *write* they are written where they differ.
    *warn* is called with what is unsafe of them, a line. Raises UsageError where it is unsafe to
    write them, or a file is not ours; PrivilegeError, OSError, FusejournalError."""
    files = [(file, not file.is_there()) for file in _files(root)]
    is_here = root.resolve() == Path("/")
    weak = _others_can_change()
    if weak is not None:
        why = (
            f"{weak}: others than root can change it, and the files would have root run what it "
            "leads to at every boot"
        )
        if write and is_here:
            raise UsageError(f"{why}: install fusejournal where only root can write, first")
        warn(why)
    if not write:
        return Installation(tuple(files), written=False)
    for file, _ in files:
        _check_ours(file.path)
    try:
        for file, differs in files:
            if differs:
                _write(file)
    except PermissionError as error:
        raise PrivilegeError(f"{error.filename}: {error.strerror}: try sudo") from None
    reloaded = any(differs for _, differs in files) and _reload(root)
    return Installation(tuple(files), True, reloaded, _next_step() if is_here else None)


def _files(root: Path) -> tuple[InstalledFile, ...]:
    program = " ".join(map(_quoted, _program()))
    helper = _text("mount.fusejournal.in", shlex.join(_program()))
    units = root / "etc/systemd/system"
    return (
        *(InstalledFile(units / name, 0o644, _text(f"{name}.in", program)) for name in _UNITS),
        InstalledFile(root / "usr/sbin/mount.fusejournal", 0o755, helper),
        # The type that a mount has in /proc/mounts, where mount(8) looks it up to remount it.
        InstalledFile(root / "usr/sbin/mount.fuse.fusejournal", 0o755, helper),
    )


def _text(name: str, program: str) -> str:
    template = resources.files("fusejournal").joinpath("systemd", name).read_text(encoding="utf-8")
    return template.replace("@MARK@", _MARK).replace("@PROGRAM@", program)


def _program() -> list[str]:
    """Returns the words that call this very program from anywhere."""
    called = Path(os.path.abspath(sys.argv[0]))
    for script in (called, Path(sys.executable).with_name("fusejournal")):
        if script.name == "fusejournal" and script.is_file() and os.access(script, os.X_OK):
            return [str(script)]
    return python_module("fusejournal")


def _others_can_change() -> Path | None:
    """The first file or directory, of those that this program is loaded by way of, which others
    than root can change or replace; None where there is none."""
    for used in (Path(_program()[0]), Path(sys.executable), Path(__file__).parent.parent):
        if (weak := weak_place(used)) is not None:
            return weak
    return None


def _quoted(word: str) -> str:
    """*word* for a command line in a unit whose ExecStart= begins with a colon. Source:
    systemd.service(5), "Command Lines"; systemd.unit(5), "Specifiers"."""
    word = word.replace("%", "%%")
    if re.fullmatch(r"[\w@%+=:,./-]+", word, re.ASCII):
        return word
    return '"' + word.replace("\\", "\\\\").replace('"', '\\"') + '"'


def _read(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return None


def _check_ours(path: Path) -> None:
    found = _read(path)
    if found is None and not path.is_symlink():
        return
    if found is None or _OURS not in found or path.is_symlink():
        raise UsageError(
            f"{path}: is there already, and 'fusejournal install' did not write it: "
            "move it away first"
        )


def _write(file: InstalledFile) -> None:
    file.path.parent.mkdir(parents=True, exist_ok=True)
    content = file.content.encode()
    write_atomically("install", file.path, content, Outlives.MACHINE, mode=file.mode)


def _reload(root: Path) -> bool:
    """Make systemd, where it runs, read its units anew. Raises FusejournalError."""
    systemctl = shutil.which("systemctl")
    if root.resolve() != Path("/") or not Path("/run/systemd/system").is_dir() or not systemctl:
        return False
    done = subprocess.run(
        [systemctl, "daemon-reload"],
        capture_output=True,
        text=True,
        check=False,
        cwd=WORKING_DIRECTORY,
    )
    if done.returncode != 0:
        raise FusejournalError(
            f"the files are written, but 'systemctl daemon-reload' failed: {done.stderr.strip()}"
        )
    return True


def _next_step() -> str:
    units = [shlex.quote(f"fusejournal@{unit_instance(volume.name)}") for volume in all_volumes()]
    if units:
        return f"systemctl enable --now {units[0] if len(units) == 1 else 'fusejournal@NAME'}"
    return (
        "fusejournal mount BACKING MOUNTPOINT and fusejournal umount NAME, for the first import; "
        "then systemctl enable --now fusejournal@NAME"
    )
