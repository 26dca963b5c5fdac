"""chattr and lsattr on a mount: flags forbid what they forbid on plain file systems; who may set
them; and the same flags after a kill, on a mirror, in a restore, and back again by an undo."""

import errno
import fcntl
import os
import struct
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from fusejournal.disk import calls, syscalls
from fusejournal.file_operations import (
    FALLOC_KEEP_SIZE,
    FALLOC_PUNCH_HOLE,
    FLAG_APPEND,
    FLAG_IMMUTABLE,
    FLAG_NODUMP,
    JOURNALED_FLAGS,
    LOCKING_FLAGS,
    flag_letters,
)
from fusejournal.layer.file_flags import FS_IOC_FSGETXATTR, FS_IOC_FSSETXATTR
from fusejournal.native import kernel
from fusejournal.operations import RENAME_EXCHANGE
from tests.support.filesystems import KINDS, filesystem
from tests.support.layer import Layer
from tests.support.mirrors import Node, check_equal
from tests.support.network import network
from tests.support.users import in_process

pytestmark = pytest.mark.mount

_CAP_LINUX_IMMUTABLE = 9
_PUNCH = FALLOC_PUNCH_HOLE | FALLOC_KEEP_SIZE


def _flags(path: Path, *, journaled: bool = True) -> int:
    fd = os.open(path, os.O_RDONLY)
    try:
        found = syscalls.get_file_flags(fd)
    finally:
        os.close(fd)
    return found & JOURNALED_FLAGS if journaled else found


def _chattr(change: str, *paths: Path) -> None:
    subprocess.run(["chattr", change, *paths], check=True)


@contextmanager
def _unlocking(*roots: Path) -> Iterator[None]:
    """At the end nothing below *roots* keeps the test's directory from being removed."""
    try:
        yield
    finally:
        for root in roots:
            if root.exists():
                arguments = ["chattr", "-R", "-f", "-i", "-a", str(root)]
                subprocess.run(arguments, check=False, capture_output=True)


def _told(act: Callable[[], object]) -> str:
    try:
        act()
    except OSError as error:
        return errno.errorcode[error.errno or 0]
    return ""


def _open(path: Path, flags: int) -> None:
    os.close(os.open(path, flags))


def _append(path: Path) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_APPEND)
    try:
        os.write(fd, b"more")
    finally:
        os.close(fd)


def _allocate(path: Path, flags: int) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_APPEND)
    try:
        calls.fallocate("test", fd, 0, 100, flags)
    finally:
        os.close(fd)


def _exchange(one: Path, other: Path) -> None:
    here = syscalls.AT_FDCWD
    syscalls.rename(here, os.fsencode(one), here, os.fsencode(other), RENAME_EXCHANGE)


def _acts(at: Path) -> Iterator[tuple[str, Callable[[], object]]]:
    """Each way to change file, directory and what is in it."""
    file, directory, child = at / "file", at / "directory", at / "directory" / "child"
    yield "open", lambda: _open(file, os.O_RDONLY)
    yield "open to write", lambda: _open(file, os.O_RDWR)
    yield "open to append", lambda: _open(file, os.O_WRONLY | os.O_APPEND)
    yield "open and truncate", lambda: _open(file, os.O_WRONLY | os.O_APPEND | os.O_TRUNC)
    yield "truncate", lambda: os.truncate(file, 3)
    yield "append", lambda: _append(file)
    yield "punch", lambda: _allocate(file, _PUNCH)
    yield "allocate", lambda: _allocate(file, FALLOC_KEEP_SIZE)
    yield "chmod", lambda: file.chmod(0o640)
    yield "chown", lambda: os.chown(file, 1, 1)
    yield "touch", lambda: os.utime(file)
    yield "set time", lambda: os.utime(file, ns=(5, 5))
    yield "set attribute", lambda: os.setxattr(file, "user.a", b"b")
    yield "remove attribute", lambda: os.removexattr(file, "user.there")
    yield "link", lambda: os.link(file, at / "linked")
    yield "rename", lambda: file.rename(at / "renamed")
    yield "replace", lambda: (at / "other").rename(file)
    yield "exchange", lambda: _exchange(at / "third", file)
    yield "unlink", lambda: file.unlink()
    yield "directory: chmod", lambda: directory.chmod(0o750)
    yield "directory: touch", lambda: os.utime(directory)
    yield "directory: create", lambda: (directory / "new").write_text("new")
    yield "directory: mkdir", lambda: (directory / "below").mkdir()
    yield "directory: symlink", lambda: (directory / "symlink").symlink_to("a")
    yield "directory: tmpfile", lambda: _open(directory, os.O_TMPFILE | os.O_RDWR)
    yield "directory: write", lambda: child.write_text("written")
    yield "directory: rename within", lambda: child.rename(directory / "moved")
    yield "directory: rename into", lambda: (at / "fourth").rename(directory / "fourth")
    yield "directory: replace", lambda: (at / "fifth").rename(child)
    yield "directory: unlink", lambda: child.unlink()
    yield "directory: rmdir", lambda: directory.rmdir()


def _fill(at: Path) -> None:
    at.mkdir()
    (at / "directory").mkdir()
    names = ("file", "other", "third", "fourth", "fifth", "directory/child")
    for name in names:
        (at / name).write_text("content of " + name)
    os.setxattr(at / "file", "user.there", b"value")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("letter", ["i", "a"])
def test_they_forbid_what_they_forbid_on_a_plain_file_system(
    tmp_path: Path, kind: str, letter: str
) -> None:
    with (
        filesystem(kind, tmp_path, "disk", 512) as disk,
        Layer(tmp_path, backing=disk / "backing") as layer,
    ):
        layer.start()
        trees = layer.mountpoint / "tree", disk / "tree"
        for tree in trees:
            _fill(tree)
            _chattr(f"+{letter}", tree / "file", tree / "directory")
        wanted = {"i": FLAG_IMMUTABLE, "a": FLAG_APPEND}[letter]
        assert _flags(trees[0] / "file") == _flags(trees[0] / "directory") == wanted
        head = layer.ask()["head_seq"]
        for (what, on_mount), (_, on_plain) in zip(*map(_acts, trees), strict=True):
            assert (what, _told(on_mount)) == (what, _told(on_plain))
        refused = layer.run("log", "volume", "--from-seq", str(head), "--json").stdout
        assert '"EPERM"' not in refused  # no entry is made for what is refused
        for tree in trees:
            with suppress(FileNotFoundError):
                _chattr(f"-{letter}", tree / "file")
            _chattr(f"-{letter}", tree / "directory")
        assert _told(lambda: (trees[0] / "file").unlink()) == ""
        layer.stop()


def test_who_may_set_them(tmp_path: Path) -> None:
    with Layer(tmp_path) as layer:
        layer.start()
        layer.mountpoint.chmod(0o777)
        mine, roots = layer.mountpoint / "mine", layer.mountpoint / "roots"
        mine.write_text("mine")
        roots.write_text("root's")
        os.chown(mine, 1000, 1000)
        roots.chmod(0o666)

        opened = {path: os.open(path, os.O_RDONLY) for path in (mine, roots)}

        def set_flags(path: Path, flags: int) -> Callable[[], None]:
            fd = opened[path]
            has = syscalls.get_file_flags(fd)
            return lambda: syscalls.set_file_flags(fd, has | flags)

        def without_capability() -> None:
            kernel.drop_capability(_CAP_LINUX_IMMUTABLE)
            set_flags(roots, FLAG_IMMUTABLE)()

        in_process(1000, set_flags(mine, FLAG_NODUMP))
        assert _flags(mine) == FLAG_NODUMP
        for path, flags in ((mine, FLAG_IMMUTABLE), (mine, FLAG_APPEND), (roots, FLAG_NODUMP)):
            with pytest.raises(PermissionError):
                in_process(1000, set_flags(path, flags))
        with pytest.raises(PermissionError):
            in_process(0, without_capability)
        assert _flags(mine) == FLAG_NODUMP
        assert _flags(roots) == 0
        for fd in opened.values():
            os.close(fd)
        layer.stop()


def _fssetxattr(path: Path, xflags: int, projid: int = 0) -> None:
    fd = os.open(path, os.O_RDONLY)
    try:
        found = list(struct.unpack("=5I8x", fcntl.ioctl(fd, FS_IOC_FSGETXATTR, bytes(28))))
        found[0], found[3] = xflags, projid or found[3]
        fcntl.ioctl(fd, FS_IOC_FSSETXATTR, struct.pack("=5I8x", *found))
    finally:
        os.close(fd)


def test_the_other_way_to_set_them_and_what_is_not_set(tmp_path: Path) -> None:
    with (
        filesystem("ext4", tmp_path, "disk", 64) as disk,
        Layer(tmp_path, backing=disk / "backing") as layer,
    ):
        layer.start()
        file = layer.mountpoint / "file"
        file.write_text("content")
        was = file.stat()
        _fssetxattr(file, 0x08 | 0x80)
        assert _flags(file) == FLAG_IMMUTABLE | FLAG_NODUMP
        assert _flags(layer.backing / "file") == FLAG_NODUMP
        now = file.stat()
        assert now.st_ctime_ns > was.st_ctime_ns
        assert now.st_mtime_ns == was.st_mtime_ns
        assert _told(lambda: _fssetxattr(file, 0x08)) == "EPERM"  # first unlock it
        _fssetxattr(file, 0)
        assert _flags(file) == 0
        head = layer.ask()["head_seq"]
        _fssetxattr(file, 0)
        assert _told(lambda: _fssetxattr(file, 0, projid=7)) == "ENOTSUP"
        assert _told(lambda: _fssetxattr(file, 0x200)) == "ENOTSUP"  # project inheritance
        refused = subprocess.run(["chattr", "+j", file], check=False, capture_output=True)
        assert refused.returncode != 0
        assert layer.ask()["head_seq"] == head
        # What an admin has locked behind the layer, it unlocks for who may ask for that.
        _chattr("+i", layer.backing / "file")
        assert _flags(file) == FLAG_IMMUTABLE
        _chattr("-i", file)
        assert _flags(layer.backing / "file") == 0
        file.write_text("written")
        layer.stop()


def test_they_outlive_a_kill_and_the_loss_of_the_catalog(tmp_path: Path) -> None:
    with Layer(tmp_path) as layer:
        layer.start()
        file, directory = layer.mountpoint / "file", layer.mountpoint / "directory"
        file.write_text("content")
        directory.mkdir()
        _chattr("+ad", file)
        _chattr("+i", directory)
        _append(file)

        def check() -> None:
            assert _flags(file) == FLAG_APPEND | FLAG_NODUMP
            assert _flags(directory) == FLAG_IMMUTABLE
            with pytest.raises(PermissionError):
                file.write_text("anew")
            with pytest.raises(PermissionError):
                (directory / "new").mkdir()
            assert not _flags(layer.backing / "file") & LOCKING_FLAGS

        layer.kill()
        layer.start()
        check()
        layer.stop()
        for path in (layer.state / "catalog").iterdir():
            path.unlink()
        layer.start()
        check()
        layer.stop()
        assert "ERROR" not in layer.words()


@pytest.mark.parametrize("fault", ["apply.flags:1:kill", "journal.append:5:kill"])
def test_a_kill_while_they_are_set(tmp_path: Path, fault: str) -> None:
    """They are set wholly or not at all, for the layer as in the backing."""
    with Layer(tmp_path) as layer:
        layer.start(fault=fault)
        file = layer.mountpoint / "file"
        file.write_text("content")
        wanted = FLAG_IMMUTABLE | FLAG_NODUMP
        subprocess.run(["chattr", "+id", file], check=False, capture_output=True)
        layer.wait()
        layer.start()
        is_set = layer.ask()["head_seq"] and _flags(file) == wanted
        assert _flags(file) == (wanted if is_set else 0)
        assert _flags(layer.backing / "file") == (FLAG_NODUMP if is_set else 0)
        assert (_told(lambda: _append(file)) == "EPERM") == is_set
        assert is_set == (fault.startswith("apply"))
        layer.stop()
        assert "ERROR" not in layer.words()


def test_an_undo_takes_them_back_and_passes_those_that_stay(tmp_path: Path) -> None:
    with Layer(tmp_path) as layer:
        layer.start()
        mount = layer.mountpoint
        (mount / "kept").mkdir()
        (mount / "kept" / "file").write_text("old")
        seq = layer.ask()["head_seq"]
        (mount / "kept" / "file").write_text("new")
        (mount / "kept" / "more").write_text("more")
        last = layer.ask()["head_seq"]
        _chattr("+i", mount / "kept" / "file", mount / "kept")
        layer.run("undo", "volume", f"{seq + 1}-{last}", "--apply")
        assert (mount / "kept" / "file").read_text() == "old"
        assert sorted(os.listdir(mount / "kept")) == ["file"]
        assert _flags(mount / "kept" / "file") == _flags(mount / "kept") == FLAG_IMMUTABLE
        # The flags themselves, and back again.
        end = layer.ask()["head_seq"]
        _chattr("-i", mount / "kept", mount / "kept" / "file")
        _chattr("+a", mount / "kept")
        changed = layer.ask()["head_seq"]
        assert "P" in layer.run("diff", "volume", str(end), str(changed)).stdout
        assert "setflags" in layer.run("log", "volume", "--op", "setflags").stdout
        layer.run("undo", "volume", f"{end + 1}-{changed}", "--apply")
        assert _flags(mount / "kept" / "file") == _flags(mount / "kept") == FLAG_IMMUTABLE
        # A file that was removed comes back with them, and what was made goes with them.
        _chattr("-i", mount / "kept")
        _chattr("-i", mount / "kept" / "file")
        before = layer.ask()["head_seq"]
        _chattr("+a", mount / "kept" / "file")
        _chattr("-a", mount / "kept" / "file")
        removed = layer.ask()["head_seq"]
        (mount / "kept" / "file").unlink()
        layer.run("undo", "volume", f"{removed}-{removed + 1}", "--apply")
        assert _flags(mount / "kept" / "file") == FLAG_APPEND
        assert (mount / "kept" / "file").read_text() == "old"
        assert before < removed
        layer.stop()


def test_a_restore_and_a_replay_have_them(tmp_path: Path) -> None:
    with Layer(tmp_path) as layer, _unlocking(tmp_path / "restored"):
        layer.start()
        mount = layer.mountpoint
        (mount / "top").mkdir()
        (mount / "top" / "file").write_text("content")
        seq = layer.ask()["head_seq"]
        _chattr("+i", mount / "top" / "file", mount / "top")
        _chattr("+d", mount)
        _chattr("+a", mount)
        targets = tmp_path / "restored"
        targets.mkdir()
        now = "--to-seq", str(layer.ask()["head_seq"])
        arguments = "restore", "volume", "/top", "--target"
        layer.run(*arguments, str(targets / "top"), *now)
        assert _flags(targets / "top") == _flags(targets / "top" / "file") == FLAG_IMMUTABLE
        assert (targets / "top" / "file").read_text() == "content"
        layer.run(*arguments, str(targets / "before"), "--to-seq", str(seq))
        assert _flags(targets / "before") == _flags(targets / "before" / "file") == 0
        layer.run("restore", "volume", "/top/file", "--target", str(targets / "one"), *now)
        assert _flags(targets / "one" / "file") == FLAG_IMMUTABLE
        layer.run("restore", "volume", "/", "--target", str(targets / "all"), *now)
        assert _flags(targets / "all") == FLAG_APPEND | FLAG_NODUMP
        layer.run("replay", "volume", str(targets / "replay"))
        assert _flags(targets / "replay" / "top") == FLAG_IMMUTABLE
        digests = {
            layer.run("digest", str(tree)).stdout.split()[0]
            for tree in (mount, targets / "all", targets / "replay")
        }
        assert len(digests) == 1
        # A later part is replayed onto what is locked already.
        end = layer.ask()["head_seq"]
        _chattr("-i", mount / "top", mount / "top" / "file")
        (mount / "top" / "file").write_text("later")
        _chattr("+i", mount / "top")
        again = "replay", "volume", str(targets / "replay")
        layer.run(*again, "--from-seq", str(end + 1))
        assert (targets / "replay" / "top" / "file").read_text() == "later"
        assert _flags(targets / "replay" / "top") == FLAG_IMMUTABLE
        assert _flags(targets / "replay" / "top" / "file") == 0
        layer.stop()


def test_a_mirror_has_them(tmp_path: Path) -> None:
    """One whose file system lacks some, too."""
    with (
        filesystem("btrfs", tmp_path, "other", 512) as other,
        network() as net,
        Node(tmp_path / "primary", net.host(), "primary", backing=other / "backing") as primary,
        Node(tmp_path / "mirror", net.host(), "mirror") as mirror,
    ):
        primary.ships_to(mirror)
        for node in (primary, mirror):
            node.start(wait=False)
        for node in (primary, mirror):
            node.await_live()
        file, directory = primary.mountpoint / "file", primary.mountpoint / "directory"
        file.touch()
        directory.mkdir()
        _chattr("+Cd", file)
        file.write_text("content")
        _chattr("+a", file)
        _append(file)
        _chattr("+i", directory)
        check_equal(primary, mirror)
        assert flag_letters(_flags(file)) == "adC"
        assert flag_letters(_flags(mirror.mountpoint / "file")) == "ad"
        assert _flags(mirror.mountpoint / "directory") == FLAG_IMMUTABLE
        _chattr("-i", directory)
        directory.rmdir()
        check_equal(primary, mirror)
        for node in (primary, mirror):
            node.stop()
