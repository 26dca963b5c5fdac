"""A mirror exported read-only: its clients see each change of the primary's, whatever the kernel,
nfsd and an NFSv4 client remember; and they change nothing."""

import errno
import os
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from fusejournal.replay.digest import digest_tree
from tests.nfs.conftest import mounted
from tests.support.guest.client import Person
from tests.support.guest.server import NfsServer, drop_caches, wait_until
from tests.support.guest.sites import FRESH
from tests.support.layer import Layer
from tests.support.users import SOMEBODY

pytestmark = pytest.mark.guest

_PORT = 7711


class Mirrored(NamedTuple):
    """A primary, its mirror, and where a client has the mirror mounted."""

    primary: Layer
    mirror: Layer
    client: Path

    def catch_up(self) -> None:
        """Wait until the mirror has applied all that the primary has."""
        head_seq = self.primary.head_seq()
        wait_until(
            "the mirror is level",
            lambda: self.mirror.ask()["replication"]["mirror"]["applied_seq"] >= head_seq,
        )

    def sees(self, what: Callable[[], Any], expected: Any) -> None:
        """The client comes to see *expected*, within a moment after the mirror applied it."""
        self.catch_up()

        def seen() -> bool:
            try:
                return bool(what() == expected)
            except OSError:
                return False

        wait_until(f"{expected!r}, and not {what!r}", seen, 10)


@pytest.fixture
def mirrored(
    nfs: NfsServer, version: str, disks: dict[str, Path], tmp_path: Path
) -> Iterator[Mirrored]:
    base = mounted(disks, "ext4") / tmp_path.name
    with Layer(base / "primary") as primary, Layer(base / "mirror") as mirror:
        mirror.start("--role", "mirror", "--listen", f"127.0.0.1:{_PORT}", "--insecure")
        primary.start("--peer", f"east=127.0.0.1:{_PORT}", "--insecure")
        (primary.mountpoint / "first").write_text("first")
        wait_until("the mirror has the file", (mirror.mountpoint / "first").exists)
        mirror.run(
            "export", "volume", "127.0.0.1", "--no-root-squash", "--option", "insecure", "--write"
        )
        with nfs.client(version, mirror.mountpoint, Path("/nfs") / base.name, *FRESH) as client:
            yield Mirrored(primary, mirror, client)
        mirror.run("export", "volume", "--remove")
        primary.stop()
        mirror.stop()
    shutil.rmtree(base, ignore_errors=True)


def _read(fd: int) -> bytes:
    return os.pread(fd, 1 << 20, 0)


def test_clients_see_each_change(mirrored: Mirrored, version: str) -> None:
    primary, mirror, client = mirrored
    served = primary.mountpoint
    (served / "dir").mkdir()
    (served / "dir" / "file").write_bytes(b"one" * 5000)
    mirrored.sees(lambda: (client / "dir" / "file").read_bytes(), b"one" * 5000)
    fd = os.open(client / "dir" / "file", os.O_RDONLY)
    try:
        assert _read(fd) == b"one" * 5000
        assert os.listdir(client / "dir") == ["file"]
        if version != "3":
            states = [path.read_text() for path in Path("/proc/fs/nfsd/clients").glob("*/states")]
            assert any("type: deleg" in state for state in states), states
        (served / "dir" / "file").write_bytes(b"two" * 6000)
        mirrored.sees(lambda: _read(fd), b"two" * 6000)
        with open(served / "dir" / "file", "r+b") as file:  # neither size nor name change
            file.write(b"THREE")
        mirrored.sees(lambda: _read(fd)[:7], b"THREEot")
        (served / "dir" / "file").chmod(0o640)
        mirrored.sees(lambda: (client / "dir" / "file").stat().st_mode & 0o777, 0o640)
        os.truncate(served / "dir" / "file", 3)
        mirrored.sees(lambda: _read(fd), b"THR")
        os.link(served / "dir" / "file", served / "other")
        mirrored.sees(lambda: (client / "other").stat().st_nlink, 2)
        (served / "dir").rename(served / "moved")
        mirrored.sees(lambda: sorted(os.listdir(client)), ["first", "moved", "other"])
        assert _read(fd) == b"THR"
        (served / "new").write_text("new")
        (served / "new").rename(served / "other")
        mirrored.sees((client / "other").read_text, "new")
        assert _read(fd) == b"THR"
        shutil.rmtree(served / "moved")
        mirrored.sees(lambda: sorted(os.listdir(client)), ["first", "other"])
        mirrored.sees((client / "moved").exists, False)
        (served / "absent").write_text("now")
        mirrored.sees((client / "absent").read_text, "now")
    finally:
        os.close(fd)
    assert (client / "first").stat().st_ino == (served / "first").stat().st_ino
    assert (client / "first").stat().st_mtime_ns == (served / "first").stat().st_mtime_ns
    assert digest_tree(mirror.backing).digest == digest_tree(primary.backing).digest


def _changes(root: Path) -> list[Callable[[], Any]]:
    file = root / "first"
    return [
        lambda: file.write_text("mine"),
        lambda: file.chmod(0o777),
        lambda: os.utime(file),
        lambda: os.chown(file, 5, 5),
        lambda: os.truncate(file, 0),
        lambda: file.rename(root / "second"),
        lambda: os.link(file, root / "second"),
        lambda: file.unlink(),
        lambda: (root / "dir").mkdir(),
        lambda: (root / "link").symlink_to("first"),
        lambda: os.setxattr(file, "user.mine", b"1"),
        lambda: os.mkfifo(root / "fifo"),
    ]


def _refusals(root: Path) -> list[int]:
    found = []
    for change in _changes(root):
        try:
            change()
        except OSError as error:
            found.append(error.errno or 0)
        else:
            found.append(0)
    return found


def test_nobody_changes_a_mirror(mirrored: Mirrored) -> None:
    primary, mirror, client = mirrored
    before = digest_tree(mirror.backing).digest
    head_seq = mirror.head_seq()
    assert set(_refusals(mirror.mountpoint)) == {errno.EROFS}
    # (Attributes of users do not go over NFS at all; and what a client asks first whether it may,
    # the server may say that it may not.)
    refusals = set(_refusals(client))
    assert {errno.EROFS} <= refusals <= {errno.EROFS, errno.EACCES, errno.EOPNOTSUPP}
    (primary.mountpoint / "first").chmod(0o777)
    mirrored.catch_up()
    with Person(SOMEBODY) as somebody:
        assert 0 not in somebody.ask(_refusals, mirror.mountpoint)
        assert 0 not in somebody.ask(_refusals, client)
    (primary.mountpoint / "first").chmod(0o644)
    mirrored.catch_up()
    assert digest_tree(mirror.backing).digest == before
    assert mirror.head_seq() == head_seq + 2


def test_handles_outlive_a_restart_of_the_mirror(mirrored: Mirrored) -> None:
    primary, mirror, client = mirrored
    (primary.mountpoint / "dir").mkdir()
    (primary.mountpoint / "dir" / "file").write_text("one")
    mirrored.sees((client / "dir" / "file").read_text, "one")
    with open(client / "dir" / "file") as held:
        mirror.kill()
        (primary.mountpoint / "dir" / "file").write_text("two, longer")
        time.sleep(0.2)
        mirror.start("--insecure")
        drop_caches()
        mirrored.sees((client / "dir" / "file").read_text, "two, longer")
        held.seek(0)
        assert held.read() == "two, longer"
