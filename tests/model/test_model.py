"""Random operations on a mounted layer and on a plain directory, side by side: same answers, same
trees.

A kill -9 of the layer, a clean restart and the loss of the catalog are operations like any other.
In the end the journal alone must give the backing's tree, to the nanosecond. The seed is in the
test's name; a failure repeats."""

import errno
import os
import random
import shutil
import stat
from collections.abc import Callable
from pathlib import Path
from uuid import UUID

import pytest

from fusejournal.state import load_state
from tests.support.layer import Layer
from tests.support.trees import difference, fids, image, rebuild

pytestmark = pytest.mark.mount

NAMES = [b"a", b"b", b"c", b"d", b"\xff\xfe", "ä ö".encode(), b"x" * 255]


class Twins:
    """The same random operation on two directories; they must agree."""

    def __init__(self, seed: int, one: Path, other: Path) -> None:
        self.random = random.Random(seed)
        self.roots = (os.fsencode(one), os.fsencode(other))
        self.history: list[str] = []

    def place(self) -> bytes:
        """A path at most three deep; most exist, some do not."""
        return b"/".join(
            self.random.choice(NAMES) for _ in range(self.random.choice((1, 1, 2, 2, 3)))
        )

    def both(self, what: str, act: Callable[[bytes], object]) -> None:
        """Do *act* under both roots and compare what comes of it."""
        self.history.append(what)
        results = []
        for root in self.roots:
            try:
                results.append(act(root + b"/"))
            except OSError as error:
                results.append(errno.errorcode[error.errno or 0])
        assert results[0] == results[1], f"{what}: {results}\n" + "\n".join(self.history[-20:])

    def step(self) -> None:
        """One random operation."""
        name = self.random.choice([n for n in dir(self) if n.startswith("do_")])
        getattr(self, name)()

    def do_create(self) -> None:
        path, mode = self.place(), self.random.choice((0o644, 0o600, 0o755, 0o1777))
        flags = (
            os.O_CREAT
            | os.O_RDWR
            | os.O_NONBLOCK
            | self.random.choice((0, os.O_EXCL, os.O_TRUNC, os.O_APPEND))
        )
        data = self.random.randbytes(self.random.choice((0, 1, 100, 5000)))

        def act(root: bytes) -> int:
            fd = os.open(root + path, flags, mode)
            try:
                return os.write(fd, data)
            finally:
                os.close(fd)

        self.both(f"create {path!r} {flags:o}", act)

    def do_write(self) -> None:
        path, offset = self.place(), self.random.choice((0, 10, 4096, 100_000))
        data = self.random.randbytes(self.random.choice((1, 100, 5000, 300_000)))

        def act(root: bytes) -> int:
            fd = os.open(root + path, os.O_WRONLY | os.O_NONBLOCK)
            try:
                return os.pwrite(fd, data, offset)
            finally:
                os.close(fd)

        self.both(f"write {path!r} {offset} {len(data)}", act)

    def do_read(self) -> None:
        path = self.place()

        def act(root: bytes) -> bytes:
            fd = os.open(root + path, os.O_RDONLY | os.O_NONBLOCK)
            try:
                return os.read(fd, 1 << 24)
            finally:
                os.close(fd)

        self.both(f"read {path!r}", act)

    def do_mkdir(self) -> None:
        path, mode = self.place(), self.random.choice((0o755, 0o2775, 0o1777))
        self.both(f"mkdir {path!r}", lambda root: os.mkdir(root + path, mode))

    def do_unlink(self) -> None:
        path = self.place()
        self.both(f"unlink {path!r}", lambda root: os.unlink(root + path))

    def do_rmdir(self) -> None:
        path = self.place()
        self.both(f"rmdir {path!r}", lambda root: os.rmdir(root + path))

    def do_rename(self) -> None:
        old, new = self.place(), self.place()
        self.both(f"rename {old!r} {new!r}", lambda root: os.rename(root + old, root + new))

    def do_exchange(self) -> None:
        from fusejournal.backing import syscalls

        old, new, flags = self.place(), self.place(), self.random.choice((1, 2))
        self.both(
            f"renameat2 {old!r} {new!r} {flags}",
            lambda root: syscalls.rename(
                syscalls.AT_FDCWD, root + old, syscalls.AT_FDCWD, root + new, flags
            ),
        )

    def do_link(self) -> None:
        old, new = self.place(), self.place()
        self.both(
            f"link {old!r} {new!r}",
            lambda root: os.link(root + old, root + new, follow_symlinks=False),
        )

    def do_symlink(self) -> None:
        path, target = self.place(), self.random.choice(NAMES)
        self.both(f"symlink {path!r}", lambda root: os.symlink(target, root + path))

    def do_mknod(self) -> None:
        path = self.place()
        mode, device = self.random.choice(
            (
                (stat.S_IFIFO, 0),
                (stat.S_IFSOCK, 0),
                (stat.S_IFCHR, os.makedev(1, 3)),
                (stat.S_IFREG, 0),
            )
        )
        self.both(f"mknod {path!r}", lambda root: os.mknod(root + path, mode | 0o640, device))

    def do_chmod(self) -> None:
        path, mode = self.place(), self.random.choice((0o600, 0o755, 0o711, 0o1770))
        self.both(f"chmod {path!r} {mode:o}", lambda root: os.chmod(root + path, mode))

    def do_chown(self) -> None:
        path, uid, gid = (
            self.place(),
            self.random.choice((0, 1000, -1)),
            self.random.choice((0, 100, -1)),
        )
        self.both(f"chown {path!r} {uid} {gid}", lambda root: os.lchown(root + path, uid, gid))

    def do_truncate(self) -> None:
        path, size = self.place(), self.random.choice((0, 5, 4096, 3 << 20))
        self.both(f"truncate {path!r} {size}", lambda root: os.truncate(root + path, size))

    def do_utime(self) -> None:
        path = self.place()
        mtime = self.random.choice((0, 1_234_567_890_123_456_789, -(10**9)))
        self.both(
            f"utime {path!r}",
            lambda root: os.utime(root + path, ns=(mtime, mtime), follow_symlinks=False),
        )

    def do_xattr(self) -> None:
        path, key = self.place(), self.random.choice(("user.one", "user.two", "trusted.three"))
        value = self.random.randbytes(self.random.choice((0, 1, 200)))
        flags = self.random.choice((0, 0, os.XATTR_CREATE, os.XATTR_REPLACE))
        self.both(
            f"setxattr {path!r} {key}", lambda root: os.setxattr(root + path, key, value, flags)
        )

    def do_removexattr(self) -> None:
        path, key = self.place(), self.random.choice(("user.one", "user.two", "trusted.three"))
        self.both(f"removexattr {path!r} {key}", lambda root: os.removexattr(root + path, key))

    def do_list(self) -> None:
        path = self.place()
        self.both(f"list {path!r}", lambda root: sorted(os.listdir(root + path)))

    def do_stat(self) -> None:
        path = self.place()

        def act(root: bytes) -> tuple[int, ...]:
            info = os.lstat(root + path)
            size = 0 if stat.S_ISDIR(info.st_mode) else info.st_size
            return info.st_mode, info.st_nlink, info.st_uid, info.st_gid, size

        self.both(f"stat {path!r}", act)


@pytest.mark.parametrize("seed", range(4))
def test_random_operations_with_kills(seed: int, layer: Layer, tmp_path: Path) -> None:
    plain = tmp_path / "plain"
    plain.mkdir()
    layer.start()
    twins = Twins(seed, layer.mountpoint, plain)
    chance = random.Random(seed)
    for _ in range(8):
        for _ in range(350):
            twins.step()
        before = fids(layer.mountpoint)
        how = chance.choice(("kill", "kill", "stop", "lose catalog"))
        twins.history.append(how)
        if how == "stop":
            layer.stop()
        else:
            layer.kill()
        if how == "lose catalog":
            shutil.rmtree(layer.state / "catalog")
        layer.start()
        assert fids(layer.mountpoint) == before
        found = difference(image(layer.mountpoint, times=False), image(plain, times=False))
        assert not found, found
    layer.stop()
    assert "ERROR" not in layer.words()
    target = tmp_path / "rebuilt"
    target.mkdir()
    rebuild(layer.state, target, load_state(layer.state).uuid)
    assert not difference(image(target), image(layer.backing))


def test_import_of_what_was_there(layer: Layer, tmp_path: Path) -> None:
    plain = tmp_path / "plain"
    plain.mkdir()
    twins = Twins(99, layer.backing, plain)
    for _ in range(600):
        twins.step()
    before = image(layer.backing)
    layer.start()
    assert not difference(image(layer.mountpoint), before)
    layer.stop()
    assert not difference(image(layer.backing), before)
    target = tmp_path / "rebuilt"
    target.mkdir()
    rebuild(
        layer.state,
        target,
        UUID(layer.run("status", str(layer.state), "--json").stdout.split('"uuid": "')[1][:36]),
    )
    assert not difference(image(target), before)
