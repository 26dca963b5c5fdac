"""A user cannot use up the descriptors that the layer lives on, and running out of them is no end
of anything."""

import errno
import os
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from stat import S_IFCHR

import pytest

from fusejournal.disk import calls, failpoints
from fusejournal.operations import RENAME_WHITEOUT, Rename, Setattr, Whiteout, Write
from fusejournal.types import ROOT_FID, Fid
from tests.support import users
from tests.support.descriptors import no_descriptors_left
from tests.support.layer import Layer
from tests.support.losses import Died, crash_system, dying_at
from tests.support.trees import difference, image
from tests.support.volumes import (
    SMALL_SEGMENTS,
    SOMEBODY,
    OpenVolume,
    Usage,
    check_copies,
    open_volume,
)

pytestmark = pytest.mark.mount

_LIMIT = 300
_FILES = 1500
_CONFIG = """
[journal]
segment_bytes = 65536
"""

_USER = """
import os, sys
root, count, uid = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
os.setgid(uid); os.setuid(uid)
files, directories = [], []
for number in range(count):
    fd = os.open(f"{root}/file", os.O_RDWR | os.O_CREAT | os.O_EXCL)
    os.write(fd, b"content %d" % number)
    os.unlink(f"{root}/file")
    files.append(fd)
    os.mkdir(f"{root}/directory")
    directories.append(os.open(f"{root}/directory", os.O_RDONLY))
    os.rmdir(f"{root}/directory")
print("made", flush=True)
sys.stdin.readline()
for number, fd in enumerate(files):
    assert os.pread(fd, 100, 0) == b"content %d" % number, number
    assert os.fstat(fd).st_nlink == 0
    os.pwrite(fd, b"CONTENT", 0)
    os.ftruncate(fd, 7)
    assert os.pread(fd, 100, 0) == b"CONTENT"
    try:
        os.link(f"/proc/self/fd/{fd}", f"{root}/again", src_dir_fd=directories[0])
        raise AssertionError("linked")
    except FileNotFoundError:
        pass
print("read", flush=True)
sys.stdin.readline()
"""


def _check_refused(root: Path, name: str) -> None:
    """No user gets a file of that name; in other directories it is a name like others."""
    moved, inside = root / "moved", root / "inside"
    inside.mkdir()
    (inside / name).touch()
    makers: list[Callable[[Path], object]] = [
        Path.mkdir, Path.touch, os.mkfifo, moved.rename, moved.replace, (inside / name).rename,
        lambda path: path.symlink_to("x"), lambda path: path.hardlink_to(moved),
    ]  # fmt: skip
    moved.touch()
    for make in makers:
        with pytest.raises(PermissionError):
            make(root / name)
    moved.unlink()
    shutil.rmtree(inside)


def test_open_removed_files_of_a_user(layer: Layer, tmp_path: Path) -> None:
    """More than the layer may have open: all of them work, so do all others, and in the end nothing
    is left of them."""
    layer.reconfigure(_CONFIG)
    layer.prefix = ("prlimit", f"--nofile={_LIMIT}:{_LIMIT}")
    layer.start()
    layer.mountpoint.chmod(0o777)
    for directory in tmp_path, *tmp_path.parents[:2]:
        directory.chmod(0o755)
    user = subprocess.Popen(
        [sys.executable, "-c", _USER, str(layer.mountpoint), str(_FILES), str(users.SOMEBODY)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (8192, 8192)),
    )
    assert user.stdin is not None
    assert user.stdout is not None
    try:
        assert user.stdout.readline() == "made\n"
        assert len(os.listdir(f"/proc/{layer.pid}/fd")) <= _LIMIT - 30
        assert [name for name in os.listdir(layer.backing) if name.startswith(".fusejournal.")]
        assert os.listdir(layer.mountpoint) == []
        hidden = next(iter(os.listdir(layer.backing)))
        assert not (layer.mountpoint / hidden).exists()
        _check_refused(layer.mountpoint, hidden)
        _check_refused(layer.mountpoint, hidden + ".")
        # Others go on, and so does the journal into its next segments.
        for number in range(20):
            path = layer.mountpoint / f"other{number}"
            path.write_bytes(bytes(20_000))
        assert layer.ask()["state"] == "running"
        user.stdin.write("go on\n")
        user.stdin.flush()
        assert user.stdout.readline() == "read\n"
        user.stdin.write("go on\n")
        user.stdin.flush()
        assert user.wait(timeout=60) == 0
    finally:
        user.kill()
        user.communicate()
    layer.stop()
    assert sorted(os.listdir(layer.backing)) == sorted(f"other{number}" for number in range(20))
    layer.check_rebuilt(tmp_path / "rebuilt")


def test_hidden_orphans_of_a_dead_process_go(tmp_path: Path) -> None:
    with open_volume(tmp_path, orderly=False) as opened:
        opened.volume.tree._pinned_max = 0
        opened.create("before", b"x")
        fid = opened.create("gone", b"content")
        before = image(opened.backing)
        opened.volume.tree.pin(fid, is_open=False)  # as a process that dies right before it unlinks
        hidden = opened.volume.tree.hidden_name()
        assert os.listdir(opened.backing / os.fsdecode(hidden)) == [f"{fid}.orphan"]
        opened.volume.tree._hidden.clear()
    with open_volume(tmp_path) as opened:
        assert opened.volume.tree.is_hidden(ROOT_FID, hidden)
        opened.volume.tree.take_over_orphans(())
        assert not difference(image(opened.backing), before)


@pytest.mark.parametrize("number", ["EMFILE", "ENFILE", "ENOMEM"])
@pytest.mark.parametrize(
    "label", ["journal.create", "journal.fallocate", "journal.append", "apply.open", "orphan.link"]
)
def test_no_descriptors_or_memory_refuse_one_change(
    tmp_path: Path, label: str, number: str
) -> None:
    with open_volume(tmp_path) as opened:
        opened.volume.tree._pinned_max = 0
        before = image(opened.backing)
        fault = failpoints.PlannedFault(label, 1, number)
        failpoints.listen(fault)
        refused: list[int | None] = []
        made = 0
        try:
            while fault.left > 0:
                try:
                    fid = opened.create(f"file{made}", b"x" * 1000)
                    opened.unlink(fid, f"file{made}")
                    opened.mkdir(f"directory{made}")
                except OSError as error:
                    refused.append(error.errno)
                made += 1
                assert made < 500, "never reached"
        finally:
            failpoints.listen(None)
        # Or none: with space ahead, or for a removal, the journal goes on where it is.
        assert refused in ([getattr(errno, number)], [])
        assert opened.volume.failure is None
        opened.create("after", b"x")
        assert difference(image(opened.backing), before)
        opened.volume.journal.sync()


@pytest.mark.parametrize("label", ["orphan.directory", "orphan.link"])
@pytest.mark.parametrize("is_open", [False, True], ids=["closed", "open"])
def test_a_full_disk_refuses_no_removal(tmp_path: Path, label: str, is_open: bool) -> None:
    """There is no space for a hidden name: the file stays usable by its descriptor."""
    with open_volume(tmp_path) as opened:
        volume = opened.volume
        opened.usage.everything_is_open = is_open
        if not is_open:
            volume.tree._pinned_max = 0
        fid = opened.create("file", b"content")
        failpoints.listen(failpoints.PlannedFault(label, 1, "ENOSPC+"))
        try:
            opened.unlink(fid, "file")
        finally:
            failpoints.listen(None)
        assert os.listdir(opened.backing) == []
        assert volume.failure is None
        assert volume.tree.is_orphan(fid)
        assert os.pread(volume.tree.descriptor(fid), 99, 0) == b"content"
        volume.tree.drop_orphan(fid)
        with pytest.raises(OSError, match="Stale"):
            volume.tree.descriptor(fid)


def test_an_open_file_too_many_on_a_full_disk_is_not_removed(tmp_path: Path) -> None:
    with open_volume(tmp_path) as opened:
        volume = opened.volume
        opened.usage.everything_is_open = True
        volume.tree._pinned_max = 0
        fid = opened.create("file", b"content")
        failpoints.listen(failpoints.PlannedFault("orphan.link", 1, "ENOSPC"))
        try:
            with pytest.raises(OSError, match="space"):
                opened.unlink(fid, "file")
        finally:
            failpoints.listen(None)
        assert os.listdir(opened.backing) == ["file"]
        assert volume.failure is None
        opened.unlink(fid, "file")
        volume.tree.drop_orphan(fid)
        assert os.listdir(opened.backing) == []


def _remove_open_file(opened: OpenVolume, directory: Fid, fid: Fid) -> None:
    opened.usage.everything_is_open = True
    opened.unlink(fid, "file", directory)
    opened.volume.drop_orphan(fid)


def _leave_whiteout(opened: OpenVolume, directory: Fid, fid: Fid) -> None:
    moved = Rename(fid, directory, b"file", directory, b"moved", RENAME_WHITEOUT, Fid(0))
    made = (opened.volume.new_fid(), S_IFCHR, 0, 0, None)
    opened.volume.commit(Whiteout(*moved, *made), SOMEBODY)


@pytest.mark.parametrize("change", [_remove_open_file, _leave_whiteout])
@pytest.mark.parametrize("death", range(1, 8))
def test_killed_at_each_step_of_a_hidden_name(
    tmp_path: Path, change: Callable[[OpenVolume, Fid, Fid], None], death: int
) -> None:
    """The root, in which the hidden directory is made and removed, keeps its mtime."""
    with open_volume(tmp_path, orderly=False) as opened:
        opened.keep_orphans = True
        directory = opened.mkdir("directory")
        fid = opened.create("file", b"content", directory)
        opened.volume.commit(Setattr(ROOT_FID, None, None, None, None, 10**18), SOMEBODY)
        with suppress(Died), dying_at("orphan.", death):
            change(opened, directory, fid)
        opened.volume.catalog.commit()
    with open_volume(tmp_path) as opened:
        opened.volume.tree.take_over_orphans(())
        check_copies(tmp_path, opened.volume.journal.uuid, tmp_path)


_ONE_SEGMENT = bytes(SMALL_SEGMENTS.segment_bytes)


def test_the_journal_has_descriptors_of_its_own(tmp_path: Path) -> None:
    """With the process's last descriptor gone, segments are begun and flushed."""
    with open_volume(tmp_path) as opened:
        fid = opened.create("file", b"x")
        opened.volume.journal.sync()
        calls.keep_reserve()
        with no_descriptors_left():
            for _ in range(3):
                opened.volume.commit(Write(fid, 0, None), SOMEBODY, _ONE_SEGMENT)
                opened.make_checkpoint()
        assert len(opened.volume.journal.sealed.durable()) >= 2
        assert opened.volume.failure is None


@pytest.mark.parametrize("is_lost", [False, True], ids=["removal kept", "removal lost"])
def test_orphans_of_a_system_crash(tmp_path: Path, is_lost: bool) -> None:
    """They are gone where the journal has their removal, and at home where it lost that."""
    with open_volume(tmp_path, orderly=False) as opened:
        opened.usage.everything_is_open = True
        fid = opened.create("file", b"content")
        before = image(opened.backing)
        last_seq = opened.volume.journal.head_seq
        opened.unlink(fid, "file")
        if not is_lost:
            before = {b".": {**image(opened.backing)[b"."]}}
            last_seq = opened.volume.journal.head_seq
        opened.volume.journal.sync()
        opened.keep_orphans = True
    crash_system(tmp_path / "state", last_seq)
    with open_volume(tmp_path) as opened:
        opened.volume.tree.take_over_orphans(())
        assert not difference(image(opened.backing), before)


@pytest.mark.parametrize("is_lost", [False, True], ids=["killed", "lost"])
def test_orphans_outlive_a_users_file_of_the_hidden_name(tmp_path: Path, is_lost: bool) -> None:
    """A release that let users have that name may have left the orphans in another place, from
    where the journal's last entries took the reason away."""
    with open_volume(tmp_path, orderly=False) as opened:
        name = os.fsdecode(opened.volume.tree.hidden_name())
        taken = [opened.create(name + "." * dots, b"a user's") for dots in range(2)]
        opened.usage.everything_is_open = True
        fid = opened.create("file", b"content")
        opened.unlink(fid, "file")
        assert (opened.backing / f"{name}..").is_dir()
        for dots, other in enumerate(taken):
            opened.volume.tree.pin(other, is_open=False)
            opened.unlink(other, name + "." * dots)
        opened.volume.journal.sync()
        opened.keep_orphans = True
        before = {b".": image(opened.backing)[b"."]}
        last_seq = opened.volume.journal.head_seq
    if is_lost:
        crash_system(tmp_path / "state", last_seq)
    with open_volume(tmp_path) as opened:
        tree = opened.volume.tree
        tree.take_over_orphans({fid})
        assert [*tree.names(ROOT_FID)] == []
        if not is_lost:
            assert os.pread(tree.descriptor(fid), 99, 0) == b"content"
            tree.drop_orphan(fid)
        assert not difference(image(opened.backing), before)


@pytest.mark.parametrize("label", ["orphan.directory", "orphan.link", "apply.unlink"])
def test_an_open_file_outlives_a_removal_that_is_redone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, label: str
) -> None:
    """The process died at the removal; who has the file open goes on with the next one."""
    monkeypatch.setattr(Usage, "is_open", lambda self, fid: True)
    with open_volume(tmp_path, orderly=False) as opened:
        opened.keep_orphans = True
        fid = opened.create("file", b"content")
        with pytest.raises(Died), dying_at(label, 1):
            opened.unlink(fid, "file")
        opened.volume.catalog.commit()
    with open_volume(tmp_path) as opened:
        tree = opened.volume.tree
        tree.take_over_orphans({fid})
        assert not (opened.backing / "file").exists()
        assert tree.is_orphan(fid)
        assert os.pread(tree.descriptor(fid), 99, 0) == b"content"
        opened.volume.drop_orphan(fid)
    assert os.listdir(tmp_path / "backing") == []
