"""The files that ``fusejournal install`` writes, below a directory of the test's."""

import errno
import json
import os
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from fusejournal.admin import install as module
from fusejournal.cli.install import install
from fusejournal.disk import failpoints
from fusejournal.errors import PrivilegeError, UsageError

UNIT = Path("etc/systemd/system/fusejournal@.service")
AGENT_UNIT = Path("etc/systemd/system/fusejournal-agent.service")
CONSOLE_UNIT = Path("etc/systemd/system/fusejournal-console.service")
HELPER = Path("usr/sbin/mount.fusejournal")
REMOUNT_HELPER = Path("usr/sbin/mount.fuse.fusejournal")


def run(*arguments: str | Path) -> str:
    result = CliRunner().invoke(install, [str(one) for one in arguments])
    if result.exception is not None:
        raise result.exception
    return result.stdout


def written(root: Path) -> dict[str, bool]:
    told: dict[str, Any] = json.loads(run("--write", "--json", "--root", root))
    assert told["written"]
    return {file["path"]: file["changed"] for file in told["files"]}


def test_it_prints_what_it_would_write(tmp_path: Path) -> None:
    told = run("--root", tmp_path)
    assert list(tmp_path.iterdir()) == []
    run("--write", "--root", tmp_path)
    for path in (UNIT, AGENT_UNIT, CONSOLE_UNIT, HELPER, REMOUNT_HELPER):
        assert f"# ---- {tmp_path / path}\n{(tmp_path / path).read_text()}" in told


def test_what_it_writes(tmp_path: Path) -> None:
    found = (UNIT, AGENT_UNIT, CONSOLE_UNIT, HELPER, REMOUNT_HELPER)
    paths = [tmp_path / one for one in found]
    assert written(tmp_path) == dict.fromkeys(map(str, paths), True)
    assert [path.stat().st_mode & 0o7777 for path in paths] == [*[0o644] * 3, 0o755, 0o755]
    for path in paths:
        assert "@PROGRAM@" not in path.read_text()
        assert "@MARK@" not in path.read_text()
        assert set(path.parent.iterdir()) <= {*paths}  # nothing temporary is left
    assert written(tmp_path) == dict.fromkeys(map(str, paths), False)


def test_what_it_writes_is_on_the_disk_with_its_name(tmp_path: Path) -> None:
    labels: list[str] = []
    failpoints.listen(labels.append)
    try:
        run("--write", "--root", tmp_path)
    finally:
        failpoints.listen(None)
    steps = ["install.write", "install.sync", "install.rename", "install.directory"]
    assert labels == steps * 5


def test_it_replaces_its_own_older_files(tmp_path: Path) -> None:
    run("--write", "--root", tmp_path)
    unit, helper = tmp_path / UNIT, tmp_path / HELPER
    text = unit.read_text()
    unit.write_text(text.replace("RestartSec=1", "RestartSec=7"))
    helper.chmod(0o644)
    assert written(tmp_path) == {
        str(unit): True,
        str(tmp_path / AGENT_UNIT): False,
        str(tmp_path / CONSOLE_UNIT): False,
        str(helper): True,
        str(tmp_path / REMOUNT_HELPER): False,
    }
    assert unit.read_text() == text
    assert os.access(helper, os.X_OK)


@pytest.mark.parametrize("kind", ["file", "masked", "dangling"])
def test_what_others_wrote_is_left_alone(tmp_path: Path, kind: str) -> None:
    helper = tmp_path / HELPER
    helper.parent.mkdir(parents=True)
    if kind == "file":
        helper.write_text("#!/bin/sh\n")
    else:
        helper.symlink_to("/dev/null" if kind == "masked" else "nowhere")
    with pytest.raises(UsageError, match=f"{helper}: is there already.*move it away"):
        run("--write", "--root", tmp_path)
    assert not (tmp_path / UNIT).exists()  # all or nothing


def test_without_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: object) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), "/usr/sbin/x")

    monkeypatch.setattr(module, "_write", refuse)
    with pytest.raises(PrivilegeError, match="/usr/sbin/x: Permission denied: try sudo"):
        run("--write", "--root", tmp_path)


def test_the_program_it_names_can_be_called(tmp_path: Path) -> None:
    run("--write", "--root", tmp_path)
    done = subprocess.run([tmp_path / HELPER, "/a", "/b", "-f"], capture_output=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    (start,) = (
        line.partition(":")[2]
        for line in (tmp_path / UNIT).read_text().splitlines()
        if line.startswith("ExecStart=")
    )
    program = shlex.split(start)[:-4]
    told = subprocess.run([*program, "--version"], capture_output=True, text=True, cwd="/")
    assert told.stdout.startswith("fusejournal ")
    assert shlex.split(start)[-4:] == ["mount", "-f", "--", "%i"]


@pytest.mark.parametrize("weak", ["program", "directory", "symlink"])
def test_a_program_that_others_can_change(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, weak: str
) -> None:
    """It would be root's at the next boot: it is told, and not installed on this machine."""
    home = tmp_path / "home"
    home.mkdir()
    program = home / "fusejournal"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    if weak == "program":
        program.chmod(0o775)
    elif weak == "directory":
        os.chown(home, 1000, 1000)
    else:
        (tmp_path / "target").mkdir()
        program.rename(tmp_path / "target" / "fusejournal")
        program.symlink_to(tmp_path / "target" / "fusejournal")
        os.lchown(program, 1000, 1000)
    monkeypatch.setattr(sys, "argv", [str(program)])
    told = home if weak == "directory" else program
    result = CliRunner().invoke(install, ["--root", str(tmp_path / "image")])
    assert f"warning: {told}: others than root can change it" in result.output
    monkeypatch.setattr(module, "_write", lambda _: pytest.fail("it was written"))
    with pytest.raises(UsageError, match=f"{told}: others than root can change it"):
        run("--write")


def test_a_program_without_a_script(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["/somewhere/__main__.py"])
    monkeypatch.setattr(sys, "executable", "/opt/odd place/100%/python")
    assert module._program() == ["/opt/odd place/100%/python", "-P", "-m", "fusejournal"]
    unit, _, _, helper, _ = module._files(Path("/"))
    assert 'ExecStart=:"/opt/odd place/100%%/python" -P -m fusejournal mount -f -- %i' in (
        unit.content
    )
    assert "exec '/opt/odd place/100%/python' -P -m fusejournal mount-helper" in helper.content
