"""The digest of a tree: what changes it, what does not, and trees that are hard to read."""

import hashlib
import os
import socket
import stat
import struct
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fusejournal.backing.fid_tag import FID_XATTR
from fusejournal.disk.acls import ACCESS_ACL_XATTR, DEFAULT_ACL_XATTR
from fusejournal.replay.digest import TreeChangedError, digest_tree
from tests.support.trees import image

ACL = struct.pack("<IHHIHHIHHIHHIHHI", 2, 1, 6, ~0 & 0xFFFFFFFF, 2, 4, 1234, 4, 4, 0xFFFFFFFF,
                  16, 4, 0xFFFFFFFF, 32, 0, 0xFFFFFFFF)  # fmt: skip
"""u::rw-,u:1234:r--,g::r--,m::r--,o::---, as xattrs hold it."""
LARGE = 3 << 20
"""More than one chunk, and read by another thread."""
DEEP = 3000
A_TIME = 1_700_000_000_123_456_789


def make(root: Path) -> Path:
    """A tree with one of everything; all its times are equal."""
    (root / "sub" / "empty").mkdir(parents=True)
    (root / "file").write_bytes(b"content")
    (root / "twin").write_bytes(b"content")
    os.link(root / "file", root / "sub" / "link")
    (root / "large").write_bytes(bytes(LARGE))
    (root / "symlink").symlink_to("file")
    (root / "plain").symlink_to("file")
    os.link(root / "symlink", root / "symlink again", follow_symlinks=False)
    os.mkfifo(root / "fifo")
    os.mknod(root / "device", stat.S_IFCHR | 0o600, os.makedev(1, 3))
    os.setxattr(root / "file", "user.one", b"1")
    os.setxattr(root / "symlink", "trusted.one", b"1", follow_symlinks=False)
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(root / "socket"))
    level_times(root)
    return root


def level_times(root: Path) -> None:
    """Give everything one and the same mtime."""
    for directory, directories, files in os.walk(root, topdown=False):
        for name in [*directories, *files, "."]:
            path = os.path.join(directory, name)
            os.utime(path, ns=(A_TIME, A_TIME), follow_symlinks=False)


def later(path: Path) -> None:
    """One nanosecond is enough."""
    os.utime(path, ns=(A_TIME, A_TIME + 1), follow_symlinks=False)


def overwrite(path: Path, offset: int) -> None:
    with open(path, "r+b") as file:
        file.seek(offset)
        file.write(b"X")


def replace_symlink(path: Path) -> None:
    path.unlink()
    path.symlink_to("fild")


def replace_node(path: Path, kind: int, device: int) -> None:
    mode = stat.S_IMODE(path.stat().st_mode)
    path.unlink()
    os.mknod(path, kind, device)
    path.chmod(mode)


CHANGES: dict[str, Callable[[Path], object]] = {
    "name": lambda root: (root / "twin").rename(root / "twim"),
    "name that is not UTF-8": lambda root: os.rename(
        os.fsencode(root / "twin"), os.fsencode(root / "twin") + b"\xff"
    ),
    "directory": lambda root: (root / "fifo").rename(root / "sub" / "fifo"),
    "one more": lambda root: (root / "sub" / "empty" / "new").touch(),
    "one less": lambda root: (root / "sub" / "empty").rmdir(),
    "mode": lambda root: (root / "file").chmod(0o640),
    "setuid": lambda root: (root / "file").chmod(0o4644),
    "setgid": lambda root: (root / "sub").chmod(0o2755),
    "sticky": lambda root: (root / "sub").chmod(0o1755),
    "mode of the root": lambda root: root.chmod(0o700),
    "uid": lambda root: os.chown(root / "file", 1234, -1),
    "gid": lambda root: os.chown(root / "file", -1, 1234),
    "owner of a symlink": lambda root: os.lchown(root / "symlink", 1234, -1),
    "content": lambda root: overwrite(root / "file", 0),
    "content of a large file": lambda root: overwrite(root / "large", LARGE - 1),
    "size": lambda root: os.truncate(root / "file", 6),
    "size of a large file": lambda root: os.truncate(root / "large", LARGE + 1),
    "symlink target": lambda root: replace_symlink(root / "plain"),
    "device minor": lambda root: replace_node(root / "device", stat.S_IFCHR, os.makedev(1, 5)),
    "device major": lambda root: replace_node(root / "device", stat.S_IFCHR, os.makedev(5, 3)),
    "device type": lambda root: replace_node(root / "device", stat.S_IFBLK, os.makedev(1, 3)),
    "fifo, not socket": lambda root: replace_node(root / "fifo", stat.S_IFSOCK, 0),
    "xattr value": lambda root: os.setxattr(root / "file", "user.one", b"2"),
    "xattr more": lambda root: os.setxattr(root / "file", "user.two", b""),
    "xattr less": lambda root: os.removexattr(root / "file", "user.one"),
    "xattr of the root": lambda root: os.setxattr(root, "user.one", b"1"),
    "xattr of a symlink": lambda root: os.setxattr(
        root / "symlink", "trusted.one", b"2", follow_symlinks=False
    ),
    "xattr of a fifo": lambda root: os.setxattr(root / "fifo", "trusted.one", b"1"),
    "trusted xattr": lambda root: os.setxattr(root / "file", FID_XATTR + ".x", b"1"),
    "ACL": lambda root: os.setxattr(root / "file", ACCESS_ACL_XATTR, ACL),
    "default ACL": lambda root: os.setxattr(root / "sub", DEFAULT_ACL_XATTR, ACL),
}


@pytest.mark.parametrize("what", CHANGES)
def test_what_is_covered_changes_it(tmp_path: Path, what: str) -> None:
    root = make(tmp_path / "tree")
    before = digest_tree(root)
    CHANGES[what](root)
    level_times(root)
    assert digest_tree(root).digest != before.digest


@pytest.mark.parametrize("name", [".", "file", "large", "sub", "symlink", "fifo", "device"])
def test_every_mtime_counts(tmp_path: Path, name: str) -> None:
    root = make(tmp_path / "tree")
    before = digest_tree(root)
    later(root / name)
    assert digest_tree(root).digest != before.digest


def grow_directory(root: Path) -> None:
    size = (root / "sub").stat().st_size
    for number in range(500):
        (root / "sub" / f"{number:0200}").touch()
    for number in range(500):
        (root / "sub" / f"{number:0200}").unlink()
    assert (root / "sub").stat().st_size > size


def fill_hole(root: Path) -> None:
    (root / "large").write_bytes(b"")
    os.truncate(root / "large", LARGE)


UNCOVERED: dict[str, Callable[[Path], object]] = {
    "atime": lambda root: os.utime(root / "file", ns=(1, A_TIME)),
    "ctime": lambda root: (root / "file").chmod(0o644),
    "size of a directory": grow_directory,
    "name outside": lambda root: os.link(root / "file", root.parent / "outside"),
    "only name inside": lambda root: os.link(root / "twin", root.parent / "outside"),
    "hole": fill_hole,
    "mark of the volume": lambda root: os.setxattr(root / "file", FID_XATTR, b"1"),
    "inode number": lambda root: (
        (root / "twin").rename(root.parent / "old twin"),
        (root / "twin").write_bytes(b"content"),
    ),
}


@pytest.mark.parametrize("what", UNCOVERED)
def test_what_is_not_covered_does_not(tmp_path: Path, what: str) -> None:
    root = make(tmp_path / "tree")
    before = digest_tree(root)
    UNCOVERED[what](root)
    if what != "atime":
        level_times(root)
    assert digest_tree(root) == before


def test_which_names_are_one_file_counts(tmp_path: Path) -> None:
    found = set()
    for partition in ("abc", "aac", "aba", "abb", "aaa"):
        root = tmp_path / partition
        root.mkdir()
        for name, first in zip("abc", partition, strict=True):
            if name == first:
                (root / name).write_bytes(b"content")
            else:
                os.link(root / first, root / name)
        level_times(root)
        found.add(digest_tree(root).digest)
    assert len(found) == 5


def test_counts(tmp_path: Path) -> None:
    found = digest_tree(make(tmp_path / "tree"))
    assert found[1:] == (13, 3, 3, LARGE + 14)


def test_order_of_creation_and_place_do_not_matter(tmp_path: Path) -> None:
    names = [os.fsencode(f"{number}") for number in range(300)]
    for root, order in (("one", names), ("other/place", names[::-1])):
        (tmp_path / root).mkdir(parents=True)
        for name in order:
            (tmp_path / root / os.fsdecode(name)).write_bytes(name)
        level_times(tmp_path / root)
    assert digest_tree(tmp_path / "one") == digest_tree(tmp_path / "other/place")


def test_names_are_bytes(tmp_path: Path) -> None:
    base = os.fsencode(tmp_path)
    found = set()
    for name in (b"\xff", b"\xfe", b"\xed\xb3\xbf", b"\n", "\U0001f600".encode()):
        os.mkdir(base + b"/" + name)
        (tmp_path / os.fsdecode(name) / os.fsdecode(name)).touch()
        level_times(tmp_path / os.fsdecode(name))
        found.add(digest_tree(tmp_path / os.fsdecode(name)).digest)
    assert len(found) == 5


def test_a_single_file_has_no_name(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).write_bytes(b"content")
        os.utime(tmp_path / name, ns=(A_TIME, A_TIME))
    assert digest_tree(tmp_path / "one") == digest_tree(tmp_path / "two")
    assert digest_tree(tmp_path / "one")[1:] == (1, 1, 0, 7)
    overwrite(tmp_path / "one", 0)
    os.utime(tmp_path / "one", ns=(A_TIME, A_TIME))
    assert digest_tree(tmp_path / "one").digest != digest_tree(tmp_path / "two").digest


def test_the_format_is_what_is_written_down(tmp_path: Path) -> None:
    """Made by hand from the module's words alone: changing the format needs a new version."""
    root = tmp_path / "tree"
    root.mkdir()
    (root / "b").write_bytes(b"content")
    os.link(root / "b", root / "c")
    (root / "a").symlink_to("to")
    (root / "b").chmod(0o4755)
    root.chmod(0o755)
    os.chown(root / "b", 7, 8)
    os.chmod(root / "b", 0o4755)
    os.setxattr(root / "b", "user.x", b"yz")
    for name in ("a", "b", "."):
        os.utime(root / name, ns=(0, -1), follow_symlinks=False)

    def attributes(mode: int, uid: int, gid: int, xattrs: int) -> bytes:
        return struct.pack("<IIIqII", mode, uid, gid, -1, 999_999_999, xattrs)

    def blob(data: bytes) -> bytes:
        return struct.pack("<I", len(data)) + data

    expected = hashlib.sha256(
        b"fusejournal tree digest 1\n"
        + (b"D" + blob(b"") + attributes(0o755, 0, 0, 0))
        + (b"L" + blob(b"a") + attributes(0o777, 0, 0, 0) + blob(b"to"))
        + (b"F" + blob(b"b") + attributes(0o4755, 7, 8, 1) + blob(b"user.x") + blob(b"yz"))
        + (struct.pack("<Q", 7) + hashlib.sha256(b"content").digest())
        + (b"=" + blob(b"c") + struct.pack("<Q", 2))
        + b"."
    )
    assert digest_tree(root).digest == expected.hexdigest()


@pytest.fixture
def deep(tmp_path: Path) -> Iterator[Path]:
    """A directory of 3,000 levels, which no path can name and pytest cannot remove."""
    fd = os.open(tmp_path, os.O_RDONLY)
    for _ in range(DEEP):
        os.mkdir("level", dir_fd=fd)
        below = os.open("level", os.O_RDONLY, dir_fd=fd)
        os.close(fd)
        fd = below
    yield tmp_path / "level"
    os.close(fd)
    # From the top: the rest is moved up, so that no path grows long.
    while True:
        try:
            (tmp_path / "level" / "level").rename(tmp_path / "rest")
        except FileNotFoundError:
            break
        (tmp_path / "level").rmdir()
        (tmp_path / "rest").rename(tmp_path / "level")


def test_a_deep_tree(deep: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    found = digest_tree(deep)
    assert found[1:] == (DEEP, 0, DEEP, 0)
    assert digest_tree(deep) == found
    assert len(os.listdir("/proc/self/fd")) <= before  # what earlier tests left may be collected


def at(root: Path, entries: int, act: Callable[[], object]) -> Callable[[int, int], None]:
    """A progress that does *act* when the walk comes to entry number *entries*."""
    acts = [act]

    def progress(done: int, _: int) -> None:
        if done == entries and acts:
            acts.pop()()

    return progress


def _link_instead(path: Path, target: str) -> None:
    path.unlink()
    path.symlink_to(target)


MISHAPS: dict[str, tuple[str, Callable[[Path], object]]] = {
    "file vanishes": ("b", lambda root: (root / "b").unlink()),
    "becomes a symlink": (
        "",
        lambda root: _link_instead(root / "b", "a"),
    ),
    "directory gets a file": ("", lambda root: (root / "new").touch()),
    "directory is moved": ("", lambda root: (root / "d").rename(root.parent / "moved")),
}


@pytest.mark.parametrize("what", MISHAPS)
def test_a_tree_that_changes(tmp_path: Path, what: str) -> None:
    root = tmp_path / "tree"
    (root / "d" / "e").mkdir(parents=True)
    (root / "a").touch()
    (root / "b").write_bytes(b"content")
    level_times(root)
    name, mishap = MISHAPS[what]
    # Entry 3 is b, once a is done; entry 5 is e, in d.
    when = 5 if "moved" in what else 3
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(TreeChangedError, match=f"^{root / name}") as caught:
        digest_tree(root, at(root, when, lambda: mishap(root)))
    assert caught.value.exit_code == 18
    assert len(os.listdir("/proc/self/fd")) <= before  # what earlier tests left may be collected


@pytest.mark.parametrize("size", [1000, LARGE])
@pytest.mark.parametrize("change", [0, 500, 100])
def test_a_file_that_changes(tmp_path: Path, size: int, change: int) -> None:
    """It shrinks, grows, or is written in place, after the first of it was read."""
    path = tmp_path / "file"
    path.write_bytes(bytes(size))
    os.utime(path, ns=(A_TIME, A_TIME))

    def act() -> None:
        if change == 100:
            overwrite(path, change)
        else:
            os.truncate(path, size + change if change else 1)

    acts = [act]

    def progress(_: int, done: int) -> None:
        if done and acts:
            acts.pop()()

    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(TreeChangedError, match=f"^{path}: changed"):
        digest_tree(tmp_path, progress)
    assert len(os.listdir("/proc/self/fd")) <= before  # what earlier tests left may be collected


def test_a_root_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        digest_tree(tmp_path / "nothing")


def test_many_large_files_are_read_ahead_within_bounds(tmp_path: Path) -> None:
    for number in range(200):
        (tmp_path / f"{number:03}").write_bytes(bytes([number]) * (300 << 10))
    before, most = len(os.listdir("/proc/self/fd")), 0

    def progress(*_: int) -> None:
        nonlocal most
        most = max(most, len(os.listdir("/proc/self/fd")))

    one = digest_tree(tmp_path, progress)
    assert one[1:] == (201, 200, 1, 200 * (300 << 10))
    assert most - before < 100
    assert digest_tree(tmp_path) == one


# -- against another way to compare trees ----------------------------------------------------------

Plan = list[tuple[str, tuple[int, int, int]]]
NAMES = ("a", "b", "d/a", "d/b", "d/c/a")
plans: st.SearchStrategy[Plan] = st.lists(
    st.tuples(
        st.sampled_from(["file", "link", "symlink", "mode", "time", "xattr", "owner"]),
        st.tuples(st.integers(0, 4), st.integers(0, 4), st.integers(0, 2)),
    ),
    max_size=6,
)


def build(root: Path, plan: Plan) -> None:
    """A small tree; what a step cannot do, it leaves."""
    (root / "d" / "c").mkdir(parents=True)
    times: dict[Path, int] = {}
    for kind, (first, second, value) in plan:
        path, other = root / NAMES[first], root / NAMES[second]
        there = os.path.lexists(path)
        if kind == "file" and not path.is_symlink():
            path.write_bytes(b"x" * value)
        elif kind == "symlink" and not there:
            path.symlink_to(str(value))
        elif kind == "link" and os.path.lexists(other) and not there:
            os.link(other, path, follow_symlinks=False)
        elif kind == "mode" and there and not path.is_symlink():
            path.chmod((0o644, 0o4755, 0o600)[value])
        elif kind == "time" and there:
            times[path] = A_TIME + value
        elif kind == "xattr" and there:
            os.setxattr(path, "trusted.x", bytes(value), follow_symlinks=False)
        elif kind == "owner" and there:
            os.lchown(path, value, second)
    level_times(root)
    for path, time_ns in times.items():
        os.utime(path, ns=(time_ns, time_ns), follow_symlinks=False)


@settings(max_examples=300)
@given(one=plans, other=plans | st.none())
def test_equal_digests_are_equal_trees(one: Plan, other: Plan | None) -> None:
    with tempfile.TemporaryDirectory() as base:
        roots = Path(base, "one"), Path(base, "other")
        build(roots[0], one)
        build(roots[1], one[:-1] if other is None else other)
        digests = {digest_tree(root).digest for root in roots}
        assert (len(digests) == 1) == (image(roots[0]) == image(roots[1]))
