"""Restores in place: a path of a live volume is again what it was, by changes like any other."""

import json
import os
import re
import subprocess
from pathlib import Path

import pytest

from fusejournal.admin.restore_in_place import Moment, planned_in_place
from fusejournal.disk import syscalls
from fusejournal.errors import ConflictError
from fusejournal.file_operations import LOCKING_FLAGS
from fusejournal.replay import undo_files
from fusejournal.replay.digest import digest_tree
from fusejournal.versions import in_place
from tests.support.layer import Layer
from tests.support.mirrors import check_equal, started
from tests.support.trees import Image, difference, image
from tests.support.volumes import show_nothing

pytestmark = pytest.mark.mount


@pytest.fixture
def volume(live: Layer, tmp_path: Path) -> Layer:
    """A live volume with a store of versions in ``kept``."""
    live.run("version", "store", "init", str(live.state), "--store", str(tmp_path / "kept"))
    return live


def _restore(volume: Layer, *arguments: str, code: int = 0) -> str:
    done = volume.run("restore", str(volume.state), *arguments, "--in-place", check=False)
    assert done.returncode == code, done.stderr
    return done.stdout if code == 0 else done.stderr


def _fill(root: Path) -> None:
    (root / "a/deep").mkdir(parents=True)
    (root / "other").mkdir()
    for number in range(5):
        (root / f"a/file{number}").write_bytes(os.urandom(50_000))
    os.link(root / "a/file0", root / "a/deep/linked")
    os.link(root / "a/file1", root / "other/shared")
    os.symlink("nowhere", root / "a/symlink")
    (root / "a/deep/kept").write_text("kept")
    with open(root / "a/sparse", "wb") as file:
        file.seek(1 << 20)
        file.write(b"island")
        file.truncate(4 << 20)
    os.setxattr(root / "a/file2", "user.note", b"value")
    os.chown(root / "a/file3", 1000, 1001)
    os.utime(root / "a/deep", ns=(5, 1_234_567_890_123_456_789))


def _change(root: Path) -> None:
    (root / "a/file0").write_text("shorter")
    with open(root / "a/file2", "r+b") as file:
        file.seek(20_000)
        file.write(b"changed")
    os.unlink(root / "a/file3")
    os.rename(root / "a/file4", root / "a/renamed")
    os.rename(root / "a/deep", root / "a/moved")
    (root / "a/new").mkdir()
    (root / "a/new/file").write_text("new")
    os.unlink(root / "a/symlink")
    os.symlink("elsewhere", root / "a/symlink")
    os.removexattr(root / "a/file2", "user.note")
    os.chmod(root / "a/sparse", 0o600)
    with open(root / "a/sparse", "r+b") as file:
        file.seek(3 << 20)
        file.write(b"x" * 200_000)


def _unlike(root: Path, before: Image, *passed_over: bytes) -> object:
    """Returns what differs from *before*, but for names at the root and in ``other``, which are
    none of the path."""
    found = image(root)
    for name in passed_over:
        del found[name]
    for name in (b".", b"other"):
        found[name]["mtime"] = before[name]["mtime"]
    return difference(found, before)


@pytest.mark.parametrize("with_version", [True, False])
def test_a_directory_is_as_it_was(volume: Layer, with_version: bool) -> None:
    root = volume.mountpoint
    _fill(root)
    if with_version:
        volume.run("version", "create", str(volume.state), "then")
    seq = str(volume.head_seq())
    before = image(root)
    inodes = {path: os.lstat(path).st_ino for path in root.rglob("*")}
    _change(root)
    (root / "other/later").write_text("stays")
    changed = image(root)
    shown = _restore(volume, "a", "--to-seq", seq)
    assert "nothing was written" in shown
    assert ("by version then" if with_version else "by the journal alone") in shown
    assert not difference(image(root), changed)
    said = _restore(volume, "a", "--to-seq", seq, "--apply")
    assert not _unlike(root, before, b"other/later")
    # What was there keeps its id, and what was a hole is one.
    for path, inode in inodes.items():
        if path.name not in ("file3", "symlink"):
            assert os.lstat(path).st_ino == inode, path
    assert os.stat(root / "a/sparse").st_blocks * 512 < 1 << 20
    head_seq = volume.head_seq()
    assert "all is as it was" in _restore(volume, "a", "--to-seq", seq, "--apply")
    assert volume.head_seq() == head_seq
    # And back again, by what it told.
    (command,) = re.findall(r"fusejournal (undo .*)", said)
    _, _, *rest = command.split()
    volume.run("undo", str(volume.state), *rest)
    assert not difference(image(root), changed)


def test_only_what_differs_is_written(volume: Layer) -> None:
    root = volume.mountpoint
    (root / "large").write_bytes(os.urandom(2 << 20))
    volume.run("version", "create", str(volume.state), "then")
    with open(root / "large", "r+b") as file:
        file.seek(1 << 20)
        file.write(b"changed")
    first = volume.head_seq() + 1
    told = json.loads(_restore(volume, "large", "--to-version", "then", "--apply", "--json"))
    (change,) = told["changes"]
    assert (change["action"], change["path"]) == ("rewrite", "large")
    assert 0 < change["bytes"] <= 512 << 10
    applied = told["applied"]
    assert applied["from_seq"] == first
    assert applied["to_seq"] - first < 12


def test_file_flags_come_back_and_are_no_hindrance(volume: Layer) -> None:
    root = volume.mountpoint
    _fill(root)
    for name in ("a/file0", "a/file3", "a/deep"):
        _chattr("+i", root / name)
    seq = str(volume.head_seq())
    flags = {name: _flags(root / name) for name in ("a/file0", "a/file3", "a/file4", "a/deep")}
    before = image(root)
    for name in ("a/file0", "a/file3", "a/deep"):
        _chattr("-i", root / name)
    _change(root)
    _chattr("+i", root / "a/file2")
    _chattr("+a", root / "a/new")
    _restore(volume, "a", "--to-seq", seq, "--apply")
    assert not _unlike(root, before)
    assert {name: _flags(root / name) for name in flags} == flags
    assert not _flags(root / "a/file2") & LOCKING_FLAGS
    for name in ("a/file0", "a/file3", "a/deep"):
        _chattr("-i", root / name)


def _chattr(change: str, path: Path) -> None:
    subprocess.run(["chattr", change, path], check=True)


def _flags(path: Path) -> int:
    fd = os.open(path, os.O_RDONLY)
    try:
        return syscalls.get_file_flags(fd)
    finally:
        os.close(fd)


def test_the_whole_tree_and_a_file(volume: Layer) -> None:
    root = volume.mountpoint
    _fill(root)
    volume.run("mark", str(volume.state), "then")
    before, digest = image(root), digest_tree(root).digest
    _change(root)
    (root / "other/later").write_text("goes")
    _restore(volume, "a/file2", "--to-mark", "then", "--apply")
    assert image(root)[b"a/file2"] == before[b"a/file2"]
    _restore(volume, "--to-mark", "then", "--apply")
    assert digest_tree(root).digest == digest
    assert not difference(image(root), before)
    # The way to it has gone, too.
    seq = volume.head_seq()
    volume.run("version", "create", str(volume.state), "now")
    for name in ("linked", "kept"):
        os.unlink(root / "a/deep" / name)
    os.rmdir(root / "a/deep")
    _restore(volume, "a/deep/kept", "--to-seq", str(seq), "--apply")
    assert (root / "a/deep/kept").read_text() == "kept"
    assert os.listdir(root / "a/deep") == ["kept"]
    _restore(volume, "a/deep", "--to-version", "now", "--apply")
    _restore(volume, "a", "--to-version", "now", "--apply")
    assert not difference(image(root), before)


def test_what_another_name_shares_is_told(volume: Layer) -> None:
    root = volume.mountpoint
    _fill(root)
    seq = str(volume.head_seq())
    was = (root / "a/file1").read_bytes()
    (root / "a/file1").write_text("now")
    os.rename(root / "a/file2", root / "other/moved")
    (root / "other/moved").write_text("moved and changed")
    os.link(root / "a/file4", root / "other/new")
    (root / "a/file4").write_text("linked and changed")
    shown = _restore(volume, "a", "--to-seq", seq, "--apply")
    assert "/a/file1  (48.8 KiB)  (the same file as /other/shared)" in shown
    assert (root / "other/shared").read_bytes() == was
    # What has come to be outside since stays as it is.
    assert (root / "other/moved").read_text() == "moved and changed"
    assert (root / "other/new").read_text() == "linked and changed"
    assert os.stat(root / "a/file4").st_nlink == 1


def test_a_restore_that_was_stopped_goes_on(volume: Layer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stopped at each of its steps in turn, the next attempt leaves the tree as it was."""
    root = volume.mountpoint
    _fill(root)
    volume.run("version", "create", str(volume.state), "then")
    before = image(root)
    steps: list[str] = []

    def stop_at(number: int) -> None:
        steps.clear()

        def step(name: str) -> None:
            steps.append(name)
            if len(steps) == number:
                raise KeyboardInterrupt

        monkeypatch.setattr(undo_files, "on_step", step)

    def attempt(number: int) -> bool:
        stop_at(number)
        moment = Moment(to_version="then")
        with planned_in_place(str(volume.state), "a", moment, show_nothing) as planned:
            try:
                planned.carry_out(show_nothing)
            except KeyboardInterrupt:
                return False
        return True

    number = 1
    while True:
        _change(root)
        done = attempt(number)
        # The process that was stopped is taken for one that has ended.
        monkeypatch.setattr(in_place, "_is_at_work", lambda _: False)
        assert attempt(0)
        assert not _unlike(root, before)
        if done:
            break
        number += 7
    assert number > 20


def test_what_others_change_meanwhile_is_left_alone(volume: Layer) -> None:
    root = volume.mountpoint
    _fill(root)
    seq = volume.head_seq()
    _change(root)
    with planned_in_place(str(volume.state), "a", Moment(to_seq=seq), show_nothing) as planned:
        (root / "a/renamed").write_text("changed after the plan")
        with pytest.raises(ConflictError, match="/a/renamed: another process changed it"):
            planned.carry_out(show_nothing)
    assert (root / "a/renamed").read_text() == "changed after the plan"
    assert [name for name in os.listdir(root) if name.startswith(".fuse")] == []


def test_what_cannot_be_is_refused(volume: Layer, tmp_path: Path) -> None:
    root = volume.mountpoint
    _fill(root)
    seq = str(volume.head_seq())
    state = str(volume.state)

    def refused(*arguments: str) -> tuple[int, str]:
        done = volume.run("restore", state, *arguments, check=False)
        assert done.stderr.count("\n") == 1, done.stderr
        return done.returncode, done.stderr

    assert refused("a", "--to-seq", seq)[0] == 2
    assert refused("a", "--in-place")[0] == 2
    assert refused("a", "--in-place", "--to-seq", seq, "--to-time", "now")[0] == 2
    assert refused("a", "--in-place", "--to-seq", seq, "--target", str(tmp_path / "x"))[0] == 2
    assert refused("a", "--in-place", "--to-seq", seq, "--dry-run", "--apply")[0] == 2
    assert refused("a", "--target", str(tmp_path / "x"), "--to-seq", seq, "--apply")[0] == 2
    assert refused("none", "--in-place", "--to-seq", seq)[0] == 17
    assert refused("a", "--in-place", "--to-version", "none")[0] == 43
    os.rename(root / "a", root / "b")
    (root / "a").write_text("no directory")
    code, told = refused("a/file0", "--in-place", "--to-seq", seq)
    assert (code, "/a is no directory any more" in told) == (22, True)
    volume.stop()
    assert refused("b", "--in-place", "--to-seq", seq, "--apply")[0] == 7


def test_a_mirror_follows_and_refuses(tmp_path: Path) -> None:
    with started(tmp_path, None) as (primary, mirror):
        _fill(primary.mountpoint)
        seq = str(primary.head_seq())
        _change(primary.mountpoint)
        check_equal(primary, mirror)
        refused = mirror.run(
            *("restore", str(mirror.state), "a", "--to-seq", seq, "--in-place", "--apply"),
            check=False,
        )
        assert (refused.returncode, "is a mirror" in refused.stderr) == (2, True)
        assert refused.stdout == ""
        _restore(primary, "a", "--to-seq", seq, "--apply")
        check_equal(primary, mirror)
        for node in (primary, mirror):
            node.stop()
