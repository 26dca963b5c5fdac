"""kill -9 of the layer at every labelled storage call: what was answered holds, the rest is
decided.

A fixed workload runs on the mount and on a plain directory. When the layer dies in the middle of a
step, the tree after the next mount must be the plain directory's before that step or after it,
nothing else; files keep their fids; and the journal alone gives the backing's tree again."""

import errno
import os
import shutil
import signal
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from fusejournal.disk import calls, syscalls
from fusejournal.file_operations import (
    FALLOC_KEEP_SIZE,
    FALLOC_PUNCH_HOLE,
    FALLOC_ZERO_RANGE,
    FLAG_NODUMP,
)
from fusejournal.node.state_dir import load_state
from fusejournal.operations import RENAME_EXCHANGE, RENAME_WHITEOUT
from tests.support.layer import Layer
from tests.support.mapped import write_through_map
from tests.support.trees import difference, fids, image, rebuild

pytestmark = pytest.mark.mount

_GONE = {errno.ENOTCONN, errno.ECONNABORTED, errno.EIO, errno.ENODEV}

_PUNCH = FALLOC_PUNCH_HOLE | FALLOC_KEEP_SIZE

Step = Callable[[str], object]


def _write(
    path: str, data: bytes, offset: int = 0, flags: int = os.O_WRONLY, mode: int = 0o644
) -> None:
    fd = os.open(path, flags, mode)
    # As a user without CAP_FSETID, whose writes clear setuid on every file system.
    os.seteuid(1000)
    try:
        os.pwrite(fd, data, offset)
    finally:
        os.seteuid(0)
        os.close(fd)


def _open_truncate(path: str) -> None:
    os.close(os.open(path, os.O_WRONLY | os.O_TRUNC))


def _write_as_root(path: str, data: bytes) -> None:
    """Write as root, whose writes leave setuid."""
    with open(path, "r+b", buffering=0) as file:
        file.write(data)


def _write_mapped(path: str, data: bytes) -> None:
    """The layer clears setuid then, because it does not know who has written; a local file system
    does not."""
    write_through_map(path, data)
    mode = os.stat(path).st_mode
    if mode & stat.S_ISUID:
        os.chmod(path, stat.S_IMODE(mode) & ~stat.S_ISUID)


def _allocate(path: str, flags: int, offset: int, length: int) -> None:
    fd = os.open(path, os.O_WRONLY)
    try:
        calls.fallocate("test", fd, offset, length, flags)
    finally:
        os.close(fd)


def _set_flags(path: str, flags: int) -> None:
    fd = os.open(path, os.O_RDONLY)
    try:
        syscalls.set_file_flags(fd, syscalls.get_file_flags(fd) & ~FLAG_NODUMP | flags)
    finally:
        os.close(fd)


def _create_as(uid: int, directory: str, name: str) -> None:
    directory_fd = os.open(directory, os.O_RDONLY)
    os.seteuid(uid)
    try:
        os.mknod(name, stat.S_IFREG | 0o600, dir_fd=directory_fd)
    finally:
        os.seteuid(0)
        os.close(directory_fd)


def _fsync(path: str) -> None:
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _exchange(one: str, other: str) -> None:
    here = syscalls.AT_FDCWD
    syscalls.rename(here, os.fsencode(one), here, os.fsencode(other), RENAME_EXCHANGE)


def _leave_whiteout(old: str, new: str) -> None:
    here = syscalls.AT_FDCWD
    syscalls.rename(here, os.fsencode(old), here, os.fsencode(new), RENAME_WHITEOUT)


def steps() -> Iterator[Step]:
    """The workload: every kind of operation, twice, on names that matter to the next ones."""
    for number in range(3):
        yield from _round(number)


def _round(n: int) -> tuple[Step, ...]:
    return (
        lambda r: os.mkdir(f"{r}/d{n}", 0o2755),
        lambda r: os.mknod(f"{r}/d{n}/f", stat.S_IFREG | 0o640),
        lambda r: os.chown(f"{r}/d{n}", 1000, 1000),
        lambda r: _create_as(1000, f"{r}/d{n}", "mine"),
        lambda r: _write(f"{r}/d{n}/f", b"one" * 2000),
        lambda r: os.link(f"{r}/d{n}/f", f"{r}/hard{n}"),
        lambda r: os.symlink("target", f"{r}/d{n}/s"),
        lambda r: os.mkfifo(f"{r}/d{n}/fifo"),
        lambda r: os.chmod(f"{r}/hard{n}", 0o4755),
        lambda r: _write(f"{r}/hard{n}", b"x", 9000),
        lambda r: os.chown(f"{r}/hard{n}", 5, 6),
        lambda r: os.chmod(f"{r}/hard{n}", 0o4755),
        lambda r: _write_as_root(f"{r}/hard{n}", b"y" * 40_000),
        lambda r: _write_mapped(f"{r}/hard{n}", b"z" * 5000),
        lambda r: os.utime(f"{r}/hard{n}", ns=(10**18, 10**18 + 7)),
        lambda r: os.setxattr(f"{r}/d{n}", "user.key", b"value%d" % n),
        lambda r: _allocate(f"{r}/hard{n}", 0, 30_000, 30_000),
        lambda r: _allocate(f"{r}/hard{n}", _PUNCH, 5000, 20_000),
        lambda r: _allocate(f"{r}/hard{n}", FALLOC_ZERO_RANGE, 50_000, 40_000),
        lambda r: os.truncate(f"{r}/hard{n}", 100),
        lambda r: _fsync(f"{r}/hard{n}"),
        lambda r: os.rename(f"{r}/d{n}", f"{r}/e{n}"),
        lambda r: os.mknod(f"{r}/victim{n}", stat.S_IFREG | 0o600),
        lambda r: os.rename(f"{r}/e{n}/s", f"{r}/victim{n}"),
        lambda r: _exchange(f"{r}/e{n}", f"{r}/victim{n}"),
        lambda r: _open_truncate(f"{r}/hard{n}"),
        lambda r: _leave_whiteout(f"{r}/hard{n}", f"{r}/moved{n}"),
        lambda r: _leave_whiteout(f"{r}/moved{n}", f"{r}/hard{n}"),
        lambda r: os.mkdir(f"{r}/replaced{n}"),
        lambda r: os.mkdir(f"{r}/replacing{n}"),
        lambda r: _leave_whiteout(f"{r}/replacing{n}", f"{r}/replaced{n}"),
        lambda r: os.unlink(f"{r}/victim{n}/f"),
        lambda r: os.removexattr(f"{r}/victim{n}", "user.key"),
        lambda r: _set_flags(f"{r}/victim{n}", FLAG_NODUMP),
        lambda r: os.mkdir(f"{r}/victim{n}/sub"),
        lambda r: _set_flags(f"{r}/victim{n}", 0),
        lambda r: os.rmdir(f"{r}/victim{n}/sub"),
        lambda r: os.unlink(f"{r}/hard{n}"),
    )


CALLS = {
    "apply.create": (1, 4),
    "apply.chown": (1,),
    "apply.chmod": (1,),
    "apply.tag": (1, 2, 4, 5),
    "apply.times": (1, 4),
    "apply.times.directory": (1, 6, 8, 10),
    "apply.open": (1, 2),
    "apply.mkdir": (1, 2),
    "apply.symlink": (1,),
    "apply.link": (1,),
    "apply.unlink": (1, 2),
    "apply.rmdir": (1,),
    "apply.rename": (1, 2, 3),
    "apply.exchange": (1,),
    "apply.whiteout.make": (1, 2, 3),
    "apply.whiteout.move": (1, 2, 3),
    "apply.whiteout.leave": (1, 2, 3),
    "apply.whiteout.remove": (1, 2),
    "orphan.directory": (1, 3),
    "orphan.times": (1, 2, 5),
    "orphan.leave": (1, 3),
    "apply.write": (1, 2),
    "apply.write.mode": (1,),
    "apply.write.times": (1, 3),
    "apply.truncate": (1,),
    "apply.fallocate": (1, 2, 3),
    "apply.fallocate.take": (1, 2),
    "apply.fallocate.grow": (1, 2),
    "apply.fallocate.empty": (1, 2),
    "apply.setattr": (1, 2),
    "apply.setattr.mode": (1, 3),
    "apply.setattr.times": (1,),
    "apply.setxattr": (1,),
    "apply.removexattr": (1,),
    "apply.flags": (1, 2),
    "journal.append": (1, 3, 9, 30, 60),
    "journal.fallocate": (1, 2),
    "journal.ahead": (1,),
    "journal.create": (1, 2),
    "journal.header": (1, 2),
    "journal.seal": (1,),
    "journal.sync": (1, 2),
    "journal.sync.directory": (2,),
    "catalog.commit": (1, 2, 3),
    "catalog.reserve": (2,),
    "catalog.sync": (1,),
    "checkpoint.syncfs": (1,),
    "boot.sync": (1,),
    "boot.write": (1,),
}

_CONFIG = """
[journal]
segment_bytes = 65536
compress = false
flush_interval_seconds = 0.05
checkpoint_interval_seconds = 0.05
"""


def _run(layer: Layer, plain: Path) -> list[Path]:
    """Run the workload until the layer dies. The twin directories that the mount may now look
    like."""
    before = plain
    for number, step in enumerate(steps()):
        try:
            step(str(layer.mountpoint))
        except OSError as error:
            if error.errno not in _GONE:
                raise AssertionError(f"step {number}") from error
            layer.wait()
            after = plain.with_name("after")
            os.system(f"cp -a {plain} {after}")
            step(str(after))
            return [before, after]
        step(str(plain))
    return [plain]


@pytest.mark.parametrize(
    ("label", "count"), [(label, count) for label, counts in CALLS.items() for count in counts]
)
def test_kill_at(label: str, count: int, tmp_path: Path) -> None:
    plain = tmp_path / "plain"
    plain.mkdir()
    with Layer(tmp_path, config=_CONFIG) as layer:
        layer.start(fault=f"{label}:{count}:kill")
        candidates = _run(layer, plain) if layer.is_alive() else [plain]
        # Calls of the background tasks come a moment after the workload.
        assert layer.wait() == -signal.SIGKILL
        layer.start()
        now = image(layer.mountpoint, times=False)
        differences = [difference(now, image(one, times=False)) for one in candidates]
        assert "" in differences, "\n---\n".join(differences)
        known = fids(layer.mountpoint)
        layer.stop()
        assert "ERROR" not in layer.words()
        layer.start()
        assert fids(layer.mountpoint) == known
        layer.stop()
        layer.check_rebuilt(tmp_path / "rebuilt")


IMPORT_CALLS = {
    "catalog.begin": (1,),
    "import.tag": (1, 2, 9),
    "journal.append": (1, 2, 3, 20, 30),
    "catalog.commit": (1, 2),
    "journal.sync": (1, 2),
}


@pytest.mark.parametrize(
    ("label", "count"),
    [(label, count) for label, counts in IMPORT_CALLS.items() for count in counts],
)
def test_kill_while_importing(label: str, count: int, tmp_path: Path) -> None:
    with Layer(tmp_path, config=_CONFIG) as layer:
        for step in steps():
            step(str(layer.backing))
        os.mkdir(layer.backing / "more")
        for n in range(4):
            _write(f"{layer.backing}/more/{n}", os.urandom(3 << 20), flags=os.O_WRONLY | os.O_CREAT)
        before = image(layer.backing)
        layer.start(fault=f"{label}:{count}:kill")
        assert layer.wait() == -signal.SIGKILL
        layer.start()
        assert not difference(image(layer.mountpoint), before)
        layer.stop()
        target = tmp_path / "rebuilt"
        target.mkdir()
        rebuild(layer.state, target, load_state(layer.state).uuid)
        assert not difference(image(target), before)


@pytest.mark.parametrize("count", [1, 2])
def test_kill_while_rebuilding_the_catalog(layer: Layer, tmp_path: Path, count: int) -> None:
    layer.start()
    for n in range(70):
        os.mkdir(layer.mountpoint / f"d{n}")
        for m in range(100):
            os.mknod(layer.mountpoint / f"d{n}" / f"f{m}")
    os.rename(layer.mountpoint / "d7", layer.mountpoint / "moved")
    known, before = fids(layer.mountpoint), image(layer.mountpoint)
    layer.kill()
    shutil.rmtree(layer.state / "catalog")
    layer.start(fault=f"catalog.commit:{count}:kill")
    assert layer.wait() == -signal.SIGKILL
    layer.start()
    assert fids(layer.mountpoint) == known
    assert not difference(image(layer.mountpoint), before)
    (layer.mountpoint / "moved" / "f5").write_text("still here")
    layer.stop()
    assert "ERROR" not in layer.words()
    layer.check_rebuilt(tmp_path / "rebuilt")


@pytest.mark.parametrize(
    "label",
    [
        "catalog.unseal", "catalog.seal.write", "catalog.seal.sync", "catalog.seal.rename",
        "catalog.seal.directory",
    ],
)  # fmt: skip
def test_kill_around_the_seal_of_the_catalog(layer: Layer, label: str) -> None:
    """The seal, if there is one, never is that of what the file was before."""
    layer.start()
    (layer.mountpoint / "before").mkdir()
    layer.stop()
    layer.start(fault=f"{label}:1:kill")
    names = {"before"}
    if layer.is_alive():
        (layer.mountpoint / "after").mkdir()
        names.add("after")
        os.kill(layer.pid, signal.SIGTERM)
    assert layer.wait() == -signal.SIGKILL
    for _ in range(2):
        layer.start()
        assert set(os.listdir(layer.mountpoint)) == names
        layer.stop()
    assert "made anew" not in layer.words()


@pytest.mark.parametrize("label", ["apply.*", "catalog.commit"])
def test_kill_while_recovering(tmp_path: Path, label: str) -> None:
    """The recovery of a kill between append and apply is killed, too."""
    plain = tmp_path / "plain"
    plain.mkdir()
    with Layer(tmp_path, config=_CONFIG) as layer:
        layer.start(fault="apply.rename:2:kill")
        candidates = _run(layer, plain)
        assert layer.wait() == -signal.SIGKILL
        layer.start(fault=f"{label}:1:kill")
        assert layer.wait() == -signal.SIGKILL
        layer.start()
        now = image(layer.mountpoint, times=False)
        differences = [difference(now, image(one, times=False)) for one in candidates]
        assert "" in differences, "\n---\n".join(differences)
        layer.stop()
        layer.check_rebuilt(tmp_path / "rebuilt")
