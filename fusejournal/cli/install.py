"""``fusejournal install``: the systemd unit and the helper of mount(8), whose texts are in
``fusejournal/systemd``.

A file is replaced only if its marker says that an earlier ``install`` wrote it."""

import os
import re
import shlex
import shutil
import stat
import subprocess
import sys
from importlib import resources
from pathlib import Path
from typing import NamedTuple

import click

from fusejournal.cli import text
from fusejournal.disk.files import Outlives, write_atomically
from fusejournal.disk.process import DIRECTORY, python_module
from fusejournal.errors import FusejournalError, PrivilegeError, UsageError
from fusejournal.node.registry import all_volumes, unit_instance

_OURS = "Written by 'fusejournal install"
_MARK = f"{_OURS} --write', which replaces it."


class _File(NamedTuple):
    path: Path
    mode: int
    content: str

    def is_there(self) -> bool:
        """Whether the file is as it should be."""
        found = _read(self.path)
        return found == self.content and self.path.stat().st_mode & 0o7777 == self.mode


@click.command(short_help="Set systemd and fstab up for volumes.")
@click.option("--write", is_flag=True, help="Install the files instead of printing them.")
@click.option(
    "--root",
    type=click.Path(path_type=Path),
    default=Path("/"),
    help="Install below this directory, for a package or an image.",
)
@click.option("--json", "as_json", is_flag=True, help="One JSON object: the paths, and changes.")
def install(write: bool, root: Path, as_json: bool) -> None:
    """Print a systemd unit that mounts a volume at boot, and a helper for 'mount -t fusejournal',
    or write them to where they belong.

    The files name this very program: it must lie where only root can write.

    With the unit, 'systemctl enable --now fusejournal@NAME' mounts the volume NAME, again if its
    layer should die, and before the NFS server starts. With the helper, fstab can have a line such
    as '/srv/data /srv/data fusejournal name=data,nosuid,nofail 0 0'. A volume needs one of them.

    \b
    Examples:
      fusejournal install
      fusejournal install --write
      fusejournal install --write --root debian/fusejournal --json
    """
    files = _files(root)
    changed = [not file.is_there() for file in files]
    weak = _others_can_change()
    if weak is not None:
        why = (
            f"{weak}: others than root can change it, and the files would have root run what it "
            "leads to at every boot"
        )
        if write and root.resolve() == Path("/"):
            raise UsageError(f"{why}: install fusejournal where only root can write, first")
        text.echo(f"fusejournal: warning: {why}", err=True)
    if write:
        for file in files:
            _check_ours(file.path)
        try:
            for file, differs in zip(files, changed, strict=True):
                if differs:
                    _write(file)
        except PermissionError as error:
            raise PrivilegeError(f"{error.filename}: {error.strerror}: try sudo") from None
        reloaded = any(changed) and _reload(root)
    if as_json:
        text.echo_json(
            {
                "written": write,
                "files": [
                    {"path": str(file.path), "changed": differs}
                    for file, differs in zip(files, changed, strict=True)
                ],
            }
        )
    elif write:
        for file, differs in zip(files, changed, strict=True):
            text.echo(f"{file.path}: {'written' if differs else 'was up to date'}")
        if reloaded:
            text.echo("systemd: has read it")
        if root.resolve() == Path("/"):
            text.echo(f"next: {_next_step()}")
    else:
        text.echo_lines("\n".join(f"# ---- {file.path}\n{file.content}" for file in files))


def _files(root: Path) -> tuple[_File, _File]:
    unit = _text("fusejournal@.service.in", " ".join(map(_quoted, _program())))
    helper = _text("mount.fusejournal.in", shlex.join(_program()))
    return (
        _File(root / "etc/systemd/system/fusejournal@.service", 0o644, unit),
        _File(root / "usr/sbin/mount.fusejournal", 0o755, helper),
    )


def _text(name: str, program: str) -> str:
    template = resources.files("fusejournal").joinpath("systemd", name).read_text(encoding="utf-8")
    return template.replace("@MARK@", _MARK).replace("@PROGRAM@", program)


def _program() -> list[str]:
    """How to call this very program from anywhere."""
    called = Path(os.path.abspath(sys.argv[0]))
    for script in (called, Path(sys.executable).with_name("fusejournal")):
        if script.name == "fusejournal" and script.is_file() and os.access(script, os.X_OK):
            return [str(script)]
    return python_module("fusejournal")


def _others_can_change() -> Path | None:
    """The first file or directory, of those that this program is loaded by way of, which others
    than root can change or replace; None where there is none."""
    for used in (Path(_program()[0]), Path(sys.executable), Path(__file__).parent.parent):
        for path in (used, used.resolve()):
            for one in (path, *path.parents):
                found = one.lstat()
                is_shared = not stat.S_ISLNK(found.st_mode) and found.st_mode & 0o022
                # (In a sticky directory nobody else can replace what is root's.)
                if found.st_uid != 0 or (is_shared and not found.st_mode & stat.S_ISVTX):
                    return one
    return None


def _quoted(word: str) -> str:
    """*word* for a command line in a unit whose ExecStart= begins with a colon. JournalSource:
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


def _write(file: _File) -> None:
    file.path.parent.mkdir(parents=True, exist_ok=True)
    content = file.content.encode()
    write_atomically("install", file.path, content, Outlives.MACHINE, mode=file.mode)


def _reload(root: Path) -> bool:
    """Make systemd, where it runs, read its units anew. Raises FusejournalError."""
    systemctl = shutil.which("systemctl")
    if root.resolve() != Path("/") or not Path("/run/systemd/system").is_dir() or not systemctl:
        return False
    done = subprocess.run(
        [systemctl, "daemon-reload"], capture_output=True, text=True, check=False, cwd=DIRECTORY
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
