"""Mirrors of a primary, three nodes in network namespaces: what is done on one is there on the
others, the same in everything, and no other process changes it there."""

import errno
import mmap
import os
import shutil
import signal
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import chdir
from pathlib import Path
from typing import Any

import pytest

from fusejournal.disk import syscalls
from tests.support import sources
from tests.support.filesystems import filesystem, fill
from tests.support.handles import generation_of, handle_of
from tests.support.mirrors import Node, await_level, check_equal, started, wait_for
from tests.support.network import Cable, network
from tests.support.users import ANOTHER, SOMEBODY, acting

pytestmark = pytest.mark.mount


_FAR = Cable(delay_seconds=0.05, loss=0.02)
_SLOW = Cable(rate_mbit=10)


@pytest.mark.parametrize(
    ("cables", "cascade"),
    [((None, None), True), ((_FAR, _SLOW), False)],
    ids=["a mirror of a mirror", "bad cables"],
)
def test_a_source_tree_unpacked_built_and_deleted(
    tmp_path: Path, cables: tuple[Cable | None, ...], cascade: bool
) -> None:
    archive = tmp_path / "sources.tar"
    sources.make_archive(archive)
    with started(tmp_path, *cables, cascade=cascade) as (primary, *mirrors):
        for name in ("kept", "deleted"):
            place = primary.mountpoint / name
            sources.unpack(archive, place)
            sources.build(place)
        check_equal(primary, *mirrors)
        sources.clean(primary.mountpoint / "deleted")
        check_equal(primary, *mirrors)
        for node in (primary, *mirrors):
            node.stop()


# -- readers -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def three(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Node, Node, Node]]:
    """A primary and two mirrors, for tests that leave them as they were."""
    with started(tmp_path_factory.mktemp("three"), None, None) as (primary, one, other):
        yield primary, one, other


def soon(look: Callable[[], object], expected: object) -> None:
    """Wait until *look* sees *expected*: no longer than a lag of some batches."""

    def sees() -> object:
        try:
            return look()
        except OSError as error:
            return error.errno

    wait_for(lambda: sees() == expected, lambda: (sees(), expected), 5)


def attributes(path: Path) -> tuple[int, ...]:
    """The attributes that stat(2) tells and replay keeps."""
    found = os.lstat(path)
    times = found.st_mtime_ns, found.st_ctime_ns
    owner = found.st_uid, found.st_gid
    return (found.st_ino, found.st_mode, found.st_nlink, found.st_size, *owner, *times)


def test_a_reader_sees_each_change(three: tuple[Node, Node, Node]) -> None:
    """Also of what the kernel there remembers: everything is looked at before it changes."""
    primary, mirror, _ = three
    here, there = primary.mountpoint / "read", mirror.mountpoint / "read"
    soon(lambda: os.path.exists(there), False)
    here.mkdir()
    soon(lambda: os.listdir(there), [])
    for name in ("file", "second", "other"):
        soon((there / name).exists, False)  # a name that is not there is remembered, too
        (here / name).write_text(f"{name} at first")
        soon((there / name).read_text, f"{name} at first")
    soon(lambda: sorted(os.listdir(there)), ["file", "other", "second"])
    soon(lambda: attributes(there / "file"), attributes(here / "file"))

    for change in (
        lambda: os.chmod(here / "file", 0o4711),
        lambda: os.chown(here / "file", 5, 6),
        lambda: os.utime(here / "file", ns=(10**18, 10**18 + 7)),
        lambda: os.truncate(here / "file", 3),
        lambda: os.link(here / "file", here / "linked"),
        lambda: os.setxattr(here / "file", "user.one", b"x"),
    ):
        change()
        soon(lambda: attributes(there / "file"), attributes(here / "file"))
    soon(lambda: os.getxattr(there / "file", "user.one"), b"x")
    os.setxattr(here / "file", "user.one", b"another")
    soon(lambda: os.getxattr(there / "file", "user.one"), b"another")
    soon(lambda: os.stat(there / "linked").st_nlink, 2)
    os.unlink(here / "linked")
    soon(lambda: os.stat(there / "file").st_nlink, 1)
    soon((there / "linked").exists, False)

    os.rename(here / "second", here / "other")
    soon((there / "other").read_text, "second at first")
    soon(lambda: sorted(os.listdir(there)), ["file", "other"])
    check_equal(*three)


def test_a_reader_of_a_file_whose_mtime_was_set_back(three: tuple[Node, Node, Node]) -> None:
    """So do ``touch -r`` and ``rsync --inplace --times``: nothing else tells that it has
    changed."""
    primary, mirror, _ = three
    here, there = (node.mountpoint / "set back" for node in (primary, mirror))
    for content in (b"old" * 1000, b"new" * 1000, b"one" * 1000):
        fd = os.open(here, os.O_WRONLY | os.O_CREAT)
        os.pwrite(fd, content, 0)
        os.utime(fd, ns=(10**18, 10**18))
        os.close(fd)
        await_level(primary, mirror)
        soon(there.read_bytes, content)
    here.unlink()


def test_a_reader_who_holds_files_open(three: tuple[Node, Node, Node]) -> None:
    primary, mirror, _ = three
    here, there = primary.mountpoint / "held", mirror.mountpoint / "held"
    (here / "deep").mkdir(parents=True)
    (here / "file").write_bytes(b"a" * 10_000)
    (here / "doomed").write_bytes(b"d" * 10_000)
    soon(lambda: os.path.getsize(there / "doomed"), 10_000)
    fds = {name: os.open(there / name, os.O_RDONLY) for name in ("file", "doomed", "deep", "")}
    try:
        for name in ("file", "doomed"):
            assert len(os.pread(fds[name], 20_000, 0)) == 10_000
        assert os.listdir(fds["deep"]) == []
        mapped = mmap.mmap(fds["file"], 0, prot=mmap.PROT_READ)
        assert mapped[:2] == b"aa"

        with open(here / "file", "r+b") as file:
            file.write(b"b" * 10)
        soon(lambda: os.pread(fds["file"], 11, 0), b"b" * 10 + b"a")
        soon(lambda: mapped[:11], b"b" * 10 + b"a")
        with open(here / "file", "ab") as file:
            file.write(b"more")
        soon(lambda: os.pread(fds["file"], 100, 9999), b"amore")
        soon(lambda: os.fstat(fds["file"]).st_size, 10_004)
        os.truncate(here / "file", 1)
        soon(lambda: os.pread(fds["file"], 100, 0), b"b")
        mapped.close()

        (here / "deep" / "new").touch()
        soon(lambda: os.listdir(fds["deep"]), ["new"])
        os.rename(here / "deep", here / "moved")
        soon(lambda: sorted(os.listdir(fds[""])), ["doomed", "file", "moved"])
        soon(lambda: os.readlink(f"/proc/self/fd/{fds['deep']}"), str(there / "moved"))

        os.unlink(here / "doomed")
        soon((there / "doomed").exists, False)
        assert os.pread(fds["doomed"], 20_000, 0) == b"d" * 10_000
        assert os.fstat(fds["doomed"]).st_nlink == 0
    finally:
        for fd in fds.values():
            os.close(fd)
    check_equal(*three)


# -- no other writes -------------------------------------------------------------------------------


def changes(root: str) -> dict[str, Callable[[], object]]:
    """Every kind of change, to a directory that has ``file``, ``empty`` and ``link``."""
    fifo = stat.S_IFIFO | 0o600
    return {
        "write": lambda: os.open(f"{root}/file", os.O_WRONLY),
        "read and write": lambda: os.open(f"{root}/file", os.O_RDWR),
        "append": lambda: os.open(f"{root}/file", os.O_WRONLY | os.O_APPEND),
        "truncate by open": lambda: os.open(f"{root}/file", os.O_RDONLY | os.O_TRUNC),
        "create": lambda: os.open(f"{root}/new", os.O_WRONLY | os.O_CREAT),
        "create, only to read": lambda: os.open(f"{root}/new", os.O_RDONLY | os.O_CREAT),
        "truncate": lambda: os.truncate(f"{root}/file", 0),
        "mkdir": lambda: os.mkdir(f"{root}/new"),
        "mkfifo": lambda: os.mknod(f"{root}/new", fifo),
        "symlink": lambda: os.symlink("x", f"{root}/new"),
        "link": lambda: os.link(f"{root}/file", f"{root}/new"),
        "unlink": lambda: os.unlink(f"{root}/file"),
        "rmdir": lambda: os.rmdir(f"{root}/empty"),
        "rename": lambda: os.rename(f"{root}/file", f"{root}/new"),
        "rename over": lambda: os.rename(f"{root}/file", f"{root}/link"),
        "chmod": lambda: os.chmod(f"{root}/file", 0o600),
        "chown": lambda: os.chown(f"{root}/file", SOMEBODY, SOMEBODY),
        "utime": lambda: os.utime(f"{root}/file", (1, 1)),
        "setxattr": lambda: os.setxattr(f"{root}/file", "user.two", b""),
        "removexattr": lambda: os.removexattr(f"{root}/file", "user.one"),
    }


def test_a_handle_is_good_on_every_node(three: tuple[Node, Node, Node]) -> None:
    """A client goes on with the handles that it has when the service moves to a mirror."""
    primary, mirror, other = three
    name = "handles/inner/file"
    (primary.mountpoint / name).parent.mkdir(parents=True)
    (primary.mountpoint / name).write_text("content")
    await_level(primary, mirror, other)
    other.kill()
    shutil.rmtree(other.state / "catalog")
    other.start()
    handles = {path: handle_of(primary.mountpoint / path) for path in (name, "handles")}
    assert 0 not in map(generation_of, handles.values())
    for node in (mirror, other):
        root = os.open(node.mountpoint, os.O_RDONLY)
        fd = syscalls.open_by_handle(root, handles[name], os.O_RDONLY)
        assert os.read(fd, 100) == b"content"
        os.close(fd)
        os.close(root)
        assert {path: handle_of(node.mountpoint / path) for path in handles} == handles
    shutil.rmtree(primary.mountpoint / "handles")
    await_level(primary, mirror, other)


def test_nobody_else_changes_a_mirror(three: tuple[Node, Node, Node]) -> None:
    primary, mirror, _ = three
    place = primary.mountpoint / "fixed"
    place.mkdir()
    os.chmod(place, 0o777)
    (place / "file").write_text("fixed")
    os.setxattr(place / "file", "user.one", b"1")
    os.chown(place / "file", SOMEBODY, SOMEBODY)
    (place / "empty").mkdir()
    os.chown(place / "empty", SOMEBODY, SOMEBODY)
    (place / "link").symlink_to("file")
    check_equal(*three)
    head_seq = mirror.head_seq()
    found: dict[str, set[int | None]] = {}
    for uid in (0, SOMEBODY, ANOTHER):
        # (The directories above are only root's.)
        with chdir(mirror.mountpoint / "fixed"), acting(uid):
            for name, change in changes(".").items():
                if uid != ANOTHER or "create" in name or name in ("mkdir", "symlink"):
                    found.setdefault(name, set()).add(errno_of(change))
    assert found == {name: {errno.EROFS} for name in found}
    assert mirror.head_seq() == head_seq
    assert (mirror.mountpoint / "fixed" / "file").read_text() == "fixed"
    check_equal(*three)


def errno_of(act: Callable[[], object]) -> int | None:
    try:
        act()
    except OSError as error:
        return error.errno
    return None


# -- peers that are slow, dead, paused, full -----------------------------------------------------


def fill_file(path: Path, mib: int) -> None:
    """Write so much that does not compress."""
    with open(path, "wb") as file:
        for _ in range(mib):
            file.write(os.urandom(1 << 20))


def test_a_peer_that_hangs_or_is_cut_off_slows_nobody(three: tuple[Node, Node, Node]) -> None:
    primary, mirror, bad = three
    for begin, end in (
        (lambda: os.kill(bad.pid, signal.SIGSTOP), lambda: os.kill(bad.pid, signal.SIGCONT)),
        (bad.host.cut, bad.host.mend),
    ):
        before = bad.mirroring()["received_seq"]
        begin()
        fill_file(primary.mountpoint / "large", 30)  # more than is sent ahead
        await_level(primary, mirror, seconds=20)
        status = primary.peer(bad)
        assert status["lag_entries"] > 0
        assert status["acked_seq"] <= before + 1000
        end()
        check_equal(*three)


def test_a_paused_peer(three: tuple[Node, Node, Node]) -> None:
    primary, mirror, other = three
    primary.pause(other)
    primary.await_peer(other, "paused")
    seq = other.head_seq()
    (primary.mountpoint / "paused").mkdir()
    await_level(primary, mirror)
    assert other.head_seq() == seq
    assert not (other.mountpoint / "paused").exists()
    assert primary.peer(other)["lag_entries"] > 0
    primary.resume(other)
    check_equal(*three)
    primary.await_peer(other, "streaming")


@pytest.mark.parametrize("what", ["journal", "backing"])
def test_a_full_mirror_goes_on_when_there_is_space(tmp_path: Path, what: str) -> None:
    with (
        network() as net,
        filesystem("tmpfs", tmp_path, "disk", 96) as disk,
        Node(tmp_path / "primary", net.host(), "primary") as primary,
    ):
        places: dict[str, Any] = (
            {"state": disk / "state"} if what == "journal" else {"backing": disk / "backing"}
        )
        with Node(tmp_path / "mirror", net.host(), "mirror", **places) as mirror:
            primary.ships_to(mirror)
            primary.start()
            mirror.start()
            (primary.mountpoint / "first").mkdir()
            check_equal(primary, mirror)
            fill(disk / "ballast", 20 << 20)
            fill_file(primary.mountpoint / "large", 30)
            status = primary.await_peer(mirror, "mirror full")
            assert "space" in status["last_error"]
            assert "goes on by itself" in status["advice"]
            assert "space" in mirror.mirroring()["trouble"]
            assert mirror.mirroring()["state"] == "mirror full"
            # The primary does not mind, and neither do the mirror's readers.
            (primary.mountpoint / "second").mkdir()
            assert (mirror.mountpoint / "first").is_dir()
            applied_seq = mirror.mirroring()["applied_seq"]
            time.sleep(1.5)  # it tries again, and nothing is skipped
            assert mirror.mirroring()["applied_seq"] == applied_seq
            (disk / "ballast").unlink()
            check_equal(primary, mirror)
            primary.await_peer(mirror, "streaming")
            assert mirror.mirroring()["trouble"] is None
