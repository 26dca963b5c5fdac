"""Answers of a mounted layer where a plain passthrough would differ from a local file system."""

import errno
import fcntl
import mmap
import os
import shutil
import signal
import stat
import struct
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from fusejournal.disk import syscalls
from tests.support.layer import Layer
from tests.support.users import SOMEBODY, acting

pytestmark = pytest.mark.mount

_RENAME_NOREPLACE, _RENAME_EXCHANGE = 1, 2


def mode_of(path: Path) -> int:
    return stat.S_IMODE(path.lstat().st_mode)


def refused(number: int, act: Callable[[], object]) -> None:
    with pytest.raises(OSError) as caught:  # noqa: PT011 - the errno is what counts
        act()
    assert caught.value.errno == number, caught.value


# -- files without names -----------------------------------------------------------------------


def test_unlinked_file_lives_while_it_is_open(root: Path, layer: Layer) -> None:
    file = root / "file"
    file.write_bytes(b"before")
    fd = os.open(file, os.O_RDWR)
    entries = layer.head_seq()
    file.unlink()
    os.pwrite(fd, b"after all", 0)
    os.ftruncate(fd, 5)
    os.fchmod(fd, 0o600)
    os.fchown(fd, SOMEBODY, SOMEBODY)
    os.setxattr(fd, "user.key", b"value")
    os.fsync(fd)
    assert os.pread(fd, 100, 0) == b"after"
    info = os.fstat(fd)
    assert (info.st_nlink, info.st_size, stat.S_IMODE(info.st_mode)) == (0, 5, 0o600)
    assert info.st_uid == SOMEBODY
    assert os.getxattr(fd, "user.key") == b"value"
    before = info.st_ctime_ns
    os.fchmod(fd, 0o640)
    assert os.fstat(fd).st_ctime_ns > before
    os.close(fd)
    # Only the UNLINK was journaled.
    assert layer.head_seq() == entries + 1


def test_unlinked_file_lives_while_the_kernel_knows_it(layer: Layer) -> None:
    """Without being open to the layer, and whatever the kernel forgot before."""
    layer.program = "tests.support.faulty:forgetting_late"
    layer.start()
    file = layer.mountpoint / "file"
    file.write_bytes(b"content")
    fd = os.open(file, os.O_PATH)
    file.unlink()
    assert os.fstat(fd).st_size == 7
    with open(f"/proc/self/fd/{fd}", "rb") as again:
        assert again.read() == b"content"
    os.close(fd)
    orphans = layer.backing.stat().st_dev, os.listdir(layer.backing)
    assert orphans[1] == []
    layer.stop()


def test_replaced_file_lives_while_it_is_open(root: Path) -> None:
    (root / "old").write_text("old")
    (root / "new").write_text("new")
    with open(root / "old") as old:
        os.rename(root / "new", root / "old")
        assert old.read() == "old"
    assert (root / "old").read_text() == "new"


def test_removed_directory_is_empty_for_who_is_in_it(root: Path) -> None:
    (root / "gone").mkdir()
    fd = os.open(root / "gone", os.O_RDONLY)
    os.rmdir(root / "gone")
    assert os.listdir(fd) == []
    assert os.fstat(fd).st_nlink == 0
    refused(errno.ENOENT, lambda: os.open("file", os.O_CREAT | os.O_WRONLY, dir_fd=fd))
    os.close(fd)


# -- opening ---------------------------------------------------------------------------------------


def test_open_flags(root: Path) -> None:
    file = root / "file"
    os.close(os.open(file, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o400))
    refused(errno.EEXIST, lambda: os.open(file, os.O_CREAT | os.O_EXCL | os.O_WRONLY))
    file.chmod(0o644)
    one, other = (os.open(file, os.O_WRONLY | os.O_APPEND) for _ in range(2))
    for number in range(10):
        os.write(one if number % 2 else other, b"%d" % number)
    assert file.read_bytes() == b"0123456789"
    os.close(os.open(file, os.O_WRONLY | os.O_TRUNC))
    assert file.stat().st_size == 0
    refused(errno.EISDIR, lambda: os.open(root, os.O_WRONLY))
    os.symlink("file", root / "link")
    refused(errno.ELOOP, lambda: os.open(root / "link", os.O_RDONLY | os.O_NOFOLLOW))
    for fd in (one, other):
        os.close(fd)


def test_created_file_without_permissions_can_be_written_by_its_maker(root: Path) -> None:
    with acting(SOMEBODY):
        fd = os.open(root / "file", os.O_CREAT | os.O_WRONLY, 0)
        os.write(fd, b"x")
        os.close(fd)
        refused(errno.EACCES, lambda: os.open(root / "file", os.O_RDONLY))


def test_running_program_cannot_be_written(root: Path) -> None:
    program = root / "sleep"
    shutil.copy("/bin/sleep", program)
    running = subprocess.Popen([program, "60"])
    try:
        refused(errno.ETXTBSY, lambda: os.open(program, os.O_WRONLY))
    finally:
        running.kill()
        running.wait()


# -- names -----------------------------------------------------------------------------------------


def test_names(root: Path) -> None:
    base = os.fsencode(root)
    for name in (b"\xff\xfe\x80", "ä ö ü".encode(), b"new\nline", b"x" * 255, b"-", b"...", b" "):
        with open(base + b"/" + name, "wb") as file:
            file.write(name)
        assert name in os.listdir(base)
        with open(base + b"/" + name, "rb") as file:
            assert file.read() == name
    refused(errno.ENAMETOOLONG, lambda: os.mkdir(base + b"/" + b"x" * 256))
    refused(errno.ENAMETOOLONG, lambda: os.symlink(b"x", base + b"/" + b"x" * 256))
    refused(errno.ENAMETOOLONG, lambda: os.stat(base + b"/" + b"x" * 256))
    refused(errno.ENAMETOOLONG, lambda: os.rename(base + b"/-", base + b"/" + b"x" * 256))
    deep = base
    for _ in range(60):
        deep += b"/" + b"d" * 60
        os.mkdir(deep)
    assert os.stat(deep).st_nlink == 2
    os.symlink("loop", root / "loop")
    refused(errno.ELOOP, lambda: os.stat(root / "loop"))
    os.symlink("x" * 4095, root / "long")
    assert os.readlink(root / "long") == "x" * 4095


def test_rename_flags(root: Path) -> None:
    here = syscalls.AT_FDCWD
    one, other = root / "one", root / "other"
    one.write_text("one")
    other.mkdir()
    paths = here, os.fsencode(one), here, os.fsencode(other)
    refused(errno.EEXIST, lambda: syscalls.rename(*paths, _RENAME_NOREPLACE))
    inodes = one.stat().st_ino, other.stat().st_ino
    syscalls.rename(*paths, _RENAME_EXCHANGE)
    assert (other.stat().st_ino, one.stat().st_ino) == inodes
    assert other.read_text() == "one"
    refused(errno.EINVAL, lambda: os.rename(one, one / "below"))
    one.rmdir()
    one.write_text("one again")
    refused(errno.EINVAL, lambda: syscalls.rename(*paths, 8))


def test_hard_links(root: Path) -> None:
    (root / "sub").mkdir()
    (root / "a").write_text("x")
    os.link(root / "a", root / "sub" / "b")
    assert (root / "a").stat().st_nlink == 2
    assert (root / "a").stat().st_ino == (root / "sub" / "b").stat().st_ino
    os.rename(root / "a", root / "sub" / "b")  # two names of one file: both stay
    assert sorted(os.listdir(root / "sub")) == ["b"]
    assert (root / "a").exists()
    (root / "sub" / "b").write_text("changed")
    assert (root / "a").read_text() == "changed"
    refused(errno.EPERM, lambda: os.link(root / "sub", root / "directory"))


# -- data ------------------------------------------------------------------------------------------


def test_large_sparse_file(root: Path, layer: Layer) -> None:
    file = root / "sparse"
    with open(file, "wb") as target:
        for offset in (0, 5 << 30, (7 << 30) - 1):
            target.seek(offset)
            target.write(b"data")
    assert file.stat().st_size == (7 << 30) + 3
    assert file.stat().st_blocks * 512 < 1 << 20
    assert (layer.backing / "sparse").stat().st_blocks * 512 < 1 << 20
    with open(file, "rb") as source:
        source.seek((5 << 30) - 2)
        assert source.read(8) == b"\0\0data\0\0"
    os.truncate(file, (6 << 30) + 7)
    assert file.stat().st_size == (6 << 30) + 7


def test_memory_maps(root: Path, layer: Layer) -> None:
    file = root / "mapped"
    file.write_bytes(bytes(1 << 16))
    with open(file, "r+b") as source, mmap.mmap(source.fileno(), 0) as pages:
        pages[10_000:10_004] = b"here"
        pages.flush()
    assert (layer.backing / "mapped").read_bytes()[10_000:10_004] == b"here"
    assert [entry["op"] for entry in layer.entries()].count("write") >= 2


def without_the_layer(layer: Layer, act: Callable[[], bytes]) -> bytes | None:
    """Returns what *act* finds while the layer answers nothing; None where it needs an answer."""
    found: list[bytes] = []
    acting_alone = threading.Thread(target=lambda: found.append(act()))
    os.kill(layer.pid, signal.SIGSTOP)
    try:
        acting_alone.start()
        acting_alone.join(10)
        return found[0] if found else None
    finally:
        os.kill(layer.pid, signal.SIGCONT)
        acting_alone.join()


def test_what_was_written_is_read_from_memory(root: Path, layer: Layer) -> None:
    """That a write changed the mtime is no reason to fetch again what was written."""
    content = os.urandom(1 << 20)
    fd = os.open(root / "file", os.O_CREAT | os.O_RDWR)
    try:
        os.write(fd, content)
        os.fstat(fd)
        assert without_the_layer(layer, lambda: os.pread(fd, len(content), 0)) == content
    finally:
        os.close(fd)


def test_symlink_is_read_from_memory(root: Path, layer: Layer) -> None:
    link = os.fsencode(root / "link")
    os.symlink(b"target", link)
    assert os.readlink(link) == b"target"
    assert without_the_layer(layer, lambda: os.readlink(link)) == b"target"
    os.unlink(link)
    os.symlink(b"another", link)
    assert os.readlink(link) == b"another"


def test_locks(root: Path) -> None:
    (root / "file").write_text("x")
    with open(root / "file", "r+") as one, open(root / "file", "r+") as other:
        fcntl.flock(one, fcntl.LOCK_EX)
        refused(errno.EAGAIN, lambda: fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB))
        fcntl.flock(one, fcntl.LOCK_UN)
        wanted = struct.pack("hhqqi4x", fcntl.F_WRLCK, os.SEEK_SET, 0, 10, 0)
        ofd_setlk = 37
        fcntl.fcntl(one, ofd_setlk, wanted)
        refused(errno.EAGAIN, lambda: fcntl.fcntl(other, ofd_setlk, wanted))


def test_times_to_the_nanosecond(root: Path) -> None:
    file = root / "file"
    file.write_text("x")
    for time_ns in (1, 1_700_000_000_123_456_789, -(10**9) + 1):
        os.utime(file, ns=(time_ns, time_ns + 1))
        assert (file.stat().st_atime_ns, file.stat().st_mtime_ns) == (time_ns, time_ns + 1)
    before = file.stat().st_mtime_ns
    file.chmod(0o600)
    os.setxattr(file, "user.key", b"")
    os.link(file, root / "other")
    assert file.stat().st_mtime_ns == before
    with acting(SOMEBODY):
        refused(errno.EPERM, lambda: os.utime(file, ns=(0, 0)))


def test_change_time_grows_with_every_change(root: Path) -> None:
    file = root / "file"
    file.write_text("x")
    seen = [file.stat().st_ctime_ns]
    for number in range(20):
        file.chmod(0o600 + number % 2)
        seen.append(file.stat().st_ctime_ns)
    assert seen == sorted(set(seen))


# -- the journal tells it ----------------------------------------------------------------------


def test_entries_hold_results(root: Path, layer: Layer) -> None:
    with acting(SOMEBODY, umask=0o027):
        fd = os.open(root / "file", os.O_CREAT | os.O_WRONLY | os.O_APPEND, 0o666)
        os.write(fd, b"one")
        os.write(fd, b"two")
        os.close(fd)
        refused(errno.ENOENT, lambda: os.unlink(root / "nothing"))
        (root / "sub").mkdir()
        (root / "sub" / "x").write_text("x")
        refused(errno.ENOTEMPTY, lambda: os.rmdir(root / "sub"))
    made, first, second = (e for e in layer.entries() if e["path"] == "file")
    assert (made["op"], made["uid"], made["gid"]) == ("create", SOMEBODY, SOMEBODY)
    assert stat.S_IMODE(made["mode"]) == 0o640
    assert made["pid"] == os.getpid()
    assert (first["op"], first["offset"], first["bytes"]) == ("write", 0, 3)
    assert (second["op"], second["offset"], second["bytes"]) == ("write", 3, 3)
    assert second["uid"] == SOMEBODY
    assert made["fid"] == (root / "file").stat().st_ino
    assert [e["seq"] for e in layer.entries()] == list(range(1, layer.head_seq() + 1))
