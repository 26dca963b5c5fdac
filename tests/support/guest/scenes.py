"""Work that is done twice: on a volume's export and on a plain one, with the same answers.

Each scene is what one user does through one client; they build on each other in the order of
:data:`SCENES`."""

import errno
import mmap
import os
import stat
import subprocess
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

from fusejournal.disk import syscalls
from tests.support.guest.client import Deeds
from tests.support.guest.server import wait_until
from tests.support.users import ANOTHER, SOMEBODY

SOMEBODYS_GROUP, SHARED_GROUP, ANOTHERS_GROUP = 2000, 2001, 2002
PAST_NS = 1_234_567_890_123_456_789

Answers = tuple[list[tuple[str, Any]], list[tuple[str, ...]]]


def perform(scene: Callable[[Deeds], None], root: Path) -> Answers:
    """Do *scene* below *root*: its answers, and its changes of names."""
    deeds = Deeds(root)
    scene(deeds)
    return deeds.answers, deeds.changes


def _date(do: Deeds, name: str) -> None:
    """Give *name* a time of the past: it stays until something sets it."""
    do.ask(f"utime {name}", lambda: os.utime(do.at(name), ns=(PAST_NS, PAST_NS)))
    do.look(name)


def neighbour(do: Deeds) -> None:
    """Another user makes what the first then stumbles on."""
    do.mkdir("closed", 0o700)
    do.create("closed/secret", content=b"secret")
    do.create("theirs", 0o644, b"theirs")
    do.create("open to all", content=b"x")
    os.chmod(do.at("open to all"), 0o666)
    do.mkdir("sticky")
    os.chmod(do.at("sticky"), 0o1777)
    do.create("sticky/theirs")
    do.mkdir("shared")
    os.chmod(do.at("shared"), 0o2777)


def names(do: Deeds) -> None:
    """Names of all kinds: made, moved, removed, and refused."""
    do.mkdir("d")
    do.mkdir("d")
    do.mkdir("d/e", 0o700)
    do.rmdir("d")
    do.mkdir("missing/d")
    do.create("f", 0o640, b"content")
    do.create("f")
    do.mkdir("f/x")
    do.symlink("f", "s")
    do.symlink("f", "s")
    do.symlink("nowhere", "dangling")
    do.symlink("t" * 1000, "long target")
    for name in ("s", "dangling", "long target", "f"):
        do.ask(f"readlink {name}", os.readlink, do.at(name))
    do.read("s")
    do.read("dangling")
    do.link("f", "d/hard")
    do.link("f", "s")
    do.link("d", "another d")
    do.link("s", "s2")
    for name in ("f", "d/hard", "s", "s2"):
        do.look(name)
    # Two names of one file: rename(2) leaves both, and there is nothing to tell of.
    do.ask("rename to itself", os.rename, do.at("f"), do.at("d/hard"))
    do.look("f")
    do.rename("f", "d/moved")
    do.look("d/hard")
    do.rename("f", "g")
    do.rename("d", "d/e/below")
    do.rename("d/moved", "d/e")
    do.rename("d/e", "d/moved")
    do.mkdir("full")
    do.create("full/x")
    do.ask("rename onto a full one", _is_full, os.rename, do.at("d/e"), do.at("full"))
    do.rmdir("full")
    do.mkdir("empty")
    do.rename("full", "empty")
    do.rename("d/e", "e")
    do.ask("its parent", lambda: os.path.samefile(do.at("e/.."), do.root))
    do.create("victim", content=b"old")
    do.create("winner", content=b"new")
    do.rename("winner", "victim")
    do.read("victim")
    for flags in (1, 2):
        do.ask(f"rename with flags {flags}", _rename, do.at("victim"), do.at("d/hard"), flags)
    do.unlink("d")
    do.rmdir("victim")
    do.unlink("missing")
    do.unlink("d/moved")
    do.look("d/hard")
    for odd in (b"\xff\xfe\x80", "ä ö ü".encode(), b"new\nline", b"x" * 255, b"x" * 256, b"..."):
        do.create(odd, content=odd)
    deep = "deep"
    for _ in range(12):
        do.mkdir(deep)
        deep += "/" + "d" * 100
    do.ask("list", lambda: sorted(os.listdir(do.root)))


def _is_full(function: Callable[..., None], *arguments: Any) -> bool:
    """True if it is refused for a directory that is not empty: xfs has another word for that, and
    rename(2) allows both."""
    try:
        function(*arguments)
    except OSError as error:
        return error.errno in (errno.ENOTEMPTY, errno.EEXIST)
    return False


def _rename(path: Path, new: Path, flags: int) -> None:
    here = syscalls.AT_FDCWD
    syscalls.rename(here, os.fsencode(path), here, os.fsencode(new), flags)


def attributes(do: Deeds) -> None:
    """Modes, owners and times, and which change with what."""
    do.create("a", 0o600, b"12345")
    for mode in (0, 0o777, 0o4755, 0o2755, 0o1644, 0o6777, 0o640):
        do.ask(f"chmod {mode:o}", os.chmod, do.at("a"), mode)
        do.look("a")
    do.ask("chgrp", os.chown, do.at("a"), -1, SHARED_GROUP)
    do.ask("chgrp to a foreign one", os.chown, do.at("a"), -1, ANOTHERS_GROUP)
    do.ask("give away", os.chown, do.at("a"), ANOTHER, -1)
    do.look("a")
    os.chmod(do.at("a"), 0o6755)
    do.ask("chgrp clears", os.chown, do.at("a"), -1, SOMEBODYS_GROUP)
    do.look("a")
    do.ask("setuid", os.chmod, do.at("a"), 0o6755)
    do.write("a", 2, b"x")
    do.look("a")
    do.ask("to a foreign group's setgid", os.chmod, do.at("shared"), 0o777)
    do.mkdir("times")
    do.create("times/file", content=b"x")
    do.create("times/other", content=b"x")
    _date(do, "times/file")
    _date(do, "times")
    for change in (
        lambda: os.chmod(do.at("times/file"), 0o600),
        lambda: os.chmod(do.at("times"), 0o700),
        lambda: os.link(do.at("times/file"), do.at("linked")),
        lambda: write(do.at("times/other"), b"y"),
    ):
        do.ask("what leaves the times", change)
        do.look("times/file")
        do.look("times")
    do.changes.append(("link", "linked"))
    changes: tuple[Callable[[], object], ...] = (
        lambda: do.create("times/new"),
        lambda: do.link("times/file", "times/again"),
        lambda: do.rename("times/new", "times/newer"),
        lambda: do.unlink("times/newer"),
        lambda: do.mkdir("times/sub"),
        lambda: do.rename("times/sub", "sub"),
        lambda: do.symlink("x", "times/soft"),
        lambda: do.mknod("times/fifo", stat.S_IFIFO | 0o600),
    )
    for act in changes:
        _date(do, "times")
        act()
        do.look("times")
    for act in (
        lambda: do.ask("touch -m", _touch, do.at("times/file"), "-m"),
        lambda: do.ask("touch -a", _touch, do.at("times/file"), "-a"),
        lambda: do.write("times/file", 0, b"y"),
        lambda: do.ask("truncate", os.truncate, do.at("times/file"), 7),
        lambda: do.ask("to the same size", os.truncate, do.at("times/file"), 7),
        lambda: do.ask("now", os.utime, do.at("times/file")),
    ):
        _date(do, "times/file")
        act()
        do.look("times/file")
    for time_ns in (0, 1, 999_999_999):
        do.ask(f"utime {time_ns}", lambda: os.utime(do.at("a"), ns=(5, time_ns)))  # noqa: B023
        do.look("a")
    do.ask("utime of a link", lambda: os.utime(do.at("s"), ns=(5, 7), follow_symlinks=False))
    do.look("s")
    do.mkdir("shared/sub")
    do.create("shared/file", 0o2775)
    for name in ("shared", "shared/sub", "shared/file"):
        do.look(name)
    os.umask(0o077)
    do.create("private")
    do.mkdir("private d")
    os.umask(0o022)
    do.look("private")
    do.look("private d")


def _touch(path: Path, which: str) -> None:
    subprocess.run(["touch", which, "-d", "@1000000000.25", path], check=True)


def _write_after_chmod(path: Path) -> bytes:
    fd = os.open(path, os.O_RDWR)
    os.fchmod(fd, 0)
    os.pwrite(fd, b"still open", 0)
    os.fsync(fd)
    answer = os.pread(fd, 100, 0)
    os.close(fd)
    return answer


def write(path: Path, data: bytes) -> None:
    """Write over the beginning."""
    with open(path, "r+b") as file:
        file.write(data)


def data(do: Deeds) -> None:
    """Contents: written at any place in any way, and read back."""
    do.create("data", content=b"0123456789")
    do.write("data", 5, b"abc")
    do.write("data", 0, b"end", os.O_APPEND)
    do.write("data", 100_000, b"far")
    do.read("data", 4, 20)
    do.read("data", 99_990)
    do.read("data", 200_000)
    do.ask("truncate down", os.truncate, do.at("data"), 7)
    do.ask("truncate up", os.truncate, do.at("data"), 5000)
    do.read("data")
    do.write("data", 0, b"short", os.O_TRUNC)
    do.look("data")
    do.ask("negative", os.truncate, do.at("data"), -1)
    big = b"".join(sha256(b"%d" % number).digest() for number in range(40_000))
    do.create("big", content=big)
    do.ask("big", lambda: sha256(do.at("big").read_bytes()).hexdigest())
    do.ask("copy", _copy, do.at("big"), do.at("copied"))
    do.changes.append(("create", "copied"))
    do.ask("map", _map, do.at("big"))
    do.ask("direct", _direct, do.at("big"))
    do.ask("allocate", _allocate, do.at("data"), 20_000)
    do.look("data")
    do.create("closing")
    do.ask("write after chmod", _write_after_chmod, do.at("closing"))
    do.look("closing")
    do.create("log")
    do.ask("append by turns", _append_by_turns, do.at("log"))
    do.read("log")
    do.create("holes")
    for offset in (64 << 20, 1 << 20, (64 << 20) + 100_000):
        do.write("holes", offset, b"data")
    do.look("holes")
    do.read("holes", (1 << 20) - 4, 12)
    do.ask("few blocks", lambda: do.at("holes").stat().st_blocks * 512 < 1 << 20)


def _copy(path: Path, new: Path) -> int:
    source, target = os.open(path, os.O_RDONLY), os.open(new, os.O_CREAT | os.O_WRONLY)
    try:
        done = 0
        while copied := os.copy_file_range(source, target, 1 << 20):
            done += copied
        return done
    finally:
        os.close(source)
        os.close(target)


def _map(path: Path) -> bytes:
    with open(path, "r+b") as file, mmap.mmap(file.fileno(), 0) as pages:
        pages[10_000:10_004] = b"here"
        pages.flush()
        return pages[9_999:10_005]


def _direct(path: Path) -> tuple[int, bytes]:
    fd = os.open(path, os.O_RDWR | os.O_DIRECT)
    try:
        with mmap.mmap(-1, 8192) as pages:
            os.preadv(fd, [pages], 8192)
            pages[:6] = b"direct"
            return os.pwritev(fd, [pages], 40_960), os.pread(fd, 6, 40_960)
    finally:
        os.close(fd)


def _allocate(path: Path, size: int) -> None:
    with open(path, "r+b") as file:
        os.posix_fallocate(file.fileno(), 0, size)


def _append_by_turns(path: Path) -> None:
    fds = [os.open(path, os.O_WRONLY | os.O_APPEND) for _ in range(2)]
    for number in range(10):
        os.write(fds[number % 2], b"%d" % number)
    for fd in fds:
        os.close(fd)


def refusals(do: Deeds) -> None:
    """Work on files of another user."""
    do.ask("list closed", os.listdir, do.at("closed"))
    do.look("closed/secret")
    do.read("closed/secret")
    do.create("closed/mine")
    do.read("theirs")
    do.write("theirs", 0, b"x")
    do.write("theirs", 0, b"", os.O_TRUNC)
    do.ask("truncate", os.truncate, do.at("theirs"), 0)
    do.ask("chmod", os.chmod, do.at("theirs"), 0o777)
    do.ask("chown", os.chown, do.at("theirs"), SOMEBODY, -1)
    do.ask("utime now", os.utime, do.at("theirs"))
    do.ask("utime", lambda: os.utime(do.at("theirs"), ns=(1, 1)))
    do.write("open to all", 0, b"y")
    do.ask("utime now, of what can be written", os.utime, do.at("open to all"))
    do.unlink("sticky/theirs")
    do.rename("sticky/theirs", "sticky/mine")
    do.create("sticky/own")
    do.rename("sticky/own", "sticky/theirs")
    do.unlink("sticky/own")
    do.unlink("theirs")
    do.create("unreadable", 0, b"written by its maker")
    do.read("unreadable")
    do.create("readonly", 0o444, b"x")
    do.write("readonly", 0, b"y")
    for name in ("theirs", "closed", "closed/secret", "readonly", "shared"):
        for how in (os.R_OK, os.W_OK, os.X_OK):
            do.ask(f"access {name} {how}", os.access, do.at(name), how)


def special_files(do: Deeds) -> None:
    """Fifos, sockets and devices; root alone may make these."""
    for name, mode, device in (
        ("fifo", stat.S_IFIFO | 0o640, 0),
        ("socket", stat.S_IFSOCK | 0o666, 0),
        ("tty", stat.S_IFCHR | 0o600, os.makedev(4, 65)),
        ("disk", stat.S_IFBLK | 0o660, os.makedev(259, 1_000)),
    ):
        prefix = f"{os.getuid()} "
        if do.mknod(prefix + name, mode, device):
            do.look(prefix + name)
            do.ask("chmod", os.chmod, do.at(prefix + name), 0o601)
            do.look(prefix + name)


def _visible(directory: Path) -> list[str]:
    return sorted("?" if name.startswith(".nfs") else name for name in os.listdir(directory))


def removed_while_open(do: Deeds) -> None:
    """The client keeps what it has open under another name until it is closed."""
    do.mkdir("silly")
    do.create("silly/file", content=b"before")
    do.create("silly/new", content=b"new")
    do.create("silly/old", content=b"old")
    fd = os.open(do.at("silly/file"), os.O_RDWR)
    old_fd = os.open(do.at("silly/old"), os.O_RDONLY)
    do.ask("unlink", os.unlink, do.at("silly/file"))
    do.changes.append(("rename", "silly/file", "silly/.nfs"))
    do.ask("list", _visible, do.at("silly"))
    do.ask("write", os.pwrite, fd, b"after all", 0)
    do.ask("truncate", os.ftruncate, fd, 5)
    do.ask("chmod", os.fchmod, fd, 0o600)
    do.ask("sync", os.fsync, fd)
    do.ask("read", os.pread, fd, 100, 0)
    do.rmdir("silly")
    do.create("silly/file", content=b"the next")
    do.ask("rename over", os.rename, do.at("silly/new"), do.at("silly/old"))
    do.changes += [
        ("rename", "silly/old", "silly/.nfs"),
        ("rename", "silly/new", "silly/old"),
    ]
    do.ask("read the old", os.pread, old_fd, 100, 0)
    do.read("silly/old")
    do.ask("list", _visible, do.at("silly"))
    for one, left in ((fd, ["?", "file", "old"]), (old_fd, ["file", "old"])):
        os.close(one)
        # The client removes it when it comes to that.
        wait_until("the removal", lambda: _visible(do.at("silly")) == left)  # noqa: B023
        do.changes.append(("unlink", "silly/.nfs"))


def root(do: Deeds) -> None:
    """Work that only root may do, unless it is squashed."""
    do.read("closed/secret")
    do.create("closed/roots", content=b"x")
    do.ask("chown", os.chown, do.at("theirs"), SOMEBODY, SHARED_GROUP)
    do.look("theirs")
    do.ask("chmod", os.chmod, do.at("theirs"), 0o6711)
    do.look("theirs")
    do.ask("chown clears", os.chown, do.at("theirs"), -1, SOMEBODYS_GROUP)
    do.look("theirs")
    do.ask("lchown", lambda: os.chown(do.at("s"), ANOTHER, ANOTHER, follow_symlinks=False))
    do.look("s")
    do.create("roots", 0o644, b"x")
    do.look("roots")
    do.mkdir("roots d")
    do.look("roots d")
    do.mkdir("shared/roots d")
    do.look("shared/roots d")
    do.ask("truncate", os.truncate, do.at("private"), 100)
    do.write("private", 0, b"root was here")
    do.look("private")
    do.unlink("sticky/theirs")
    do.rename("victim", "sticky/victim")
    special_files(do)


SCENES: tuple[tuple[int, Callable[[Deeds], None]], ...] = (
    (ANOTHER, neighbour),
    *((SOMEBODY, scene) for scene in (names, attributes, data, refusals, special_files)),
    (SOMEBODY, removed_while_open),
    (0, root),
)
GROUPS: dict[int, tuple[int, ...]] = {
    0: (0,), SOMEBODY: (SOMEBODYS_GROUP, SHARED_GROUP), ANOTHER: (ANOTHERS_GROUP,)
}  # fmt: skip
"""Each user's group, and further ones."""


def busy(do: Deeds) -> None:
    """Much of everything that a client asks a server to change, and nothing that is refused."""
    base = f"{os.getuid()}"
    do.mkdir(base)
    for number in range(25):
        name = f"{base}/{number}"
        do.mkdir(f"{name} d")
        # Not O_EXCL: that takes two requests.
        do.ask("create", _make, do.at(name))
        do.changes.append(("create", name))
        do.write(name, number, name.encode())
        do.ask("chmod", os.chmod, do.at(name), 0o600)
        do.symlink(name, f"{name} s")
        do.mknod(f"{name} fifo", stat.S_IFIFO | 0o600)
        do.link(name, f"{name} l")
        do.rename(f"{name} l", f"{name} r")
        do.rename(f"{name} r", f"{name} d/r")
        do.unlink(f"{name} s")
        do.unlink(f"{name} d/r")
        do.rmdir(f"{name} d")


def _make(path: Path) -> None:
    os.close(os.open(path, os.O_CREAT | os.O_WRONLY, 0o640))


BUSY_REQUESTS = {
    "3": {"create": 25, "mkdir": 26, "symlink": 25, "mknod": 25, "remove": 50, "rmdir": 25,
          "rename": 50, "link": 25, "setattr": 25, "write": 25},
    "4.2": {"create": 76, "remove": 75, "rename": 50, "link": 25, "setattr": 25, "write": 25},
}  # fmt: skip
"""The requests that :func:`busy` makes of a server, in the words of each version."""
