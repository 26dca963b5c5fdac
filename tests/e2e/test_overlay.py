"""An overlay (docker's way to keep a container's files) whose upper and work directories are in the
mount: the kernel takes them, and what the upper directory says is the same after a restart, after a
kill of the layer, and where the journal is replayed."""

import json
import os
import shutil
import stat
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from fusejournal.disk import syscalls
from fusejournal.operations import RENAME_NOREPLACE, RENAME_WHITEOUT
from tests.support.layer import Layer
from tests.support.trees import difference, image

pytestmark = pytest.mark.mount


@contextmanager
def _overlay(lower: Path, upper: Path, work: Path, merged: Path) -> Iterator[Path]:
    options = f"lowerdir={lower},upperdir={upper},workdir={work}"
    subprocess.run(["mount", "-t", "overlay", "overlay", "-o", options, str(merged)], check=True)
    try:
        yield merged
    finally:
        subprocess.run(["umount", str(merged)], check=True)


def _lower(base: Path) -> Path:
    lower = base / "lower"
    for directory in ("kept", "emptied", "replaced", "removed/below", "renamed"):
        (lower / directory).mkdir(parents=True)
        for name in ("one", "two"):
            (lower / directory / name).write_text(f"{directory}/{name}")
    return lower


def _change(root: Path) -> None:
    """Everything by which an upper directory says that the lower one's is not so any more."""
    (root / "kept/one").unlink()
    os.rename(root / "kept/two", root / "kept/moved")
    for name in ("one", "two"):
        (root / "emptied" / name).unlink()
    shutil.rmtree(root / "replaced")
    (root / "replaced").mkdir()
    (root / "replaced/new").write_text("new")
    shutil.rmtree(root / "removed")
    os.rename(root / "renamed/one", root / "renamed/two")
    (root / "renamed/one").mkdir()
    with (root / "emptied/again").open("w") as file:
        file.write("again")
    os.rename(root / "emptied/again", root / "renamed/one/deep")
    os.chown(root / "replaced/new", 1000, 1000)
    os.setxattr(root / "kept/moved", "user.key", b"value")


def _content(root: Path) -> object:
    """The tree as a user sees it, but for what an overlay does differently: sizes, links and times
    of directories."""
    found = image(root, times=False)
    return {path: {**item, "nlink": 0, "links": None} for path, item in found.items()}


def _whiteouts(upper: Path) -> list[str]:
    return sorted(
        str(path.relative_to(upper))
        for path in upper.rglob("*")
        if stat.S_ISCHR(path.lstat().st_mode) and path.lstat().st_rdev == 0
    )


def _moves(layer: Layer) -> list[tuple[str, str]]:
    """The old and new paths of renames that left a whiteout."""
    lines = layer.run("log", str(layer.state), "--json").stdout.splitlines()
    found = [one for one in map(json.loads, lines) if one["op"] == "whiteout"]
    return [(one["path"], one["new_path"]) for one in found]


@pytest.mark.parametrize("how", ["stop", "kill"])
def test_an_upper_directory_in_the_mount(tmp_path: Path, how: str) -> None:
    lower = _lower(tmp_path)
    control = tmp_path / "control"
    shutil.copytree(lower, control)
    _change(control)
    merged = tmp_path / "merged"
    merged.mkdir()
    with Layer(tmp_path) as layer:
        layer.start()
        upper, work = layer.mountpoint / "upper", layer.mountpoint / "work"
        upper.mkdir()
        work.mkdir()
        with _overlay(lower, upper, work, merged):
            _change(merged)
            assert _content(merged) == _content(control)
        assert _whiteouts(upper) == [
            "emptied/one", "emptied/two", "kept/one", "kept/two", "removed",
        ]  # fmt: skip
        assert os.getxattr(upper / "replaced", "trusted.overlay.opaque") == b"y"
        # The first is the kernel's trial, in its work directory.
        assert _moves(layer)[1:] == [
            ("upper/kept/two", "upper/kept/moved"),
            ("upper/renamed/one", "upper/renamed/two"),
        ]
        before = image(layer.mountpoint)
        if how == "kill":
            layer.kill()
        else:
            layer.stop()
        layer.start()
        assert not difference(image(layer.mountpoint), before)
        with _overlay(lower, upper, work, merged):
            assert _content(merged) == _content(control)
            (merged / "kept/more").write_text("more")
        (control / "kept/more").write_text("more")
        layer.stop()
        assert "ERROR" not in layer.words()
        target = tmp_path / "rebuilt"
        layer.check_rebuilt(target)
        with _overlay(lower, target / "upper", target / "work", merged):
            assert _content(merged) == _content(control)


def _leave_whiteout(old: Path, new: Path, flags: int = 0) -> None:
    here = syscalls.AT_FDCWD
    syscalls.rename(here, os.fsencode(old), here, os.fsencode(new), flags | RENAME_WHITEOUT)


def test_what_is_told_of_a_whiteout(layer: Layer) -> None:
    layer.start()
    root = layer.mountpoint
    (root / "d").mkdir()
    (root / "d/file").write_text("file")
    (root / "gone").write_text("gone")
    before, head = image(root), layer.entries()[-1]["seq"]
    with pytest.raises(FileExistsError):
        _leave_whiteout(root / "d/file", root / "gone", RENAME_NOREPLACE)
    _leave_whiteout(root / "d/file", root / "gone")
    whiteout = (root / "d/file").lstat()
    assert (whiteout.st_mode, whiteout.st_rdev, whiteout.st_nlink) == (stat.S_IFCHR, 0, 1)
    entry = layer.entries()[-1]
    assert (entry["op"], entry["whiteout"]) == ("whiteout", whiteout.st_ino)
    assert (entry["path"], entry["new_path"]) == ("d/file", "gone")
    log = layer.run("log", "volume", "gone").stdout
    assert "/d/file  -> /gone, leaving a whiteout" in log
    history = layer.run("history", "volume", "d/file").stdout
    assert f"was fid {whiteout.st_ino} (seq {entry['seq']} on)" in history
    changes = layer.run("diff", "volume", str(head), str(entry["seq"])).stdout.splitlines()
    assert [line[:4].strip() for line in changes] == ["A", "R", "D"]
    layer.run("undo", "volume", str(entry["seq"]), "--apply")
    assert not difference(image(root), before)
    layer.stop()
