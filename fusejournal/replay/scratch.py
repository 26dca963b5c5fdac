"""The scratch directory of a target, and the way to both, in places where users can make names.

A target may lie below a directory that belongs to a user, who can rename, replace and make names
there at any moment, while root is at work. So:

* The way down is walked component by component, each opened from the one above. A symlink is
  followed only where root alone could have put it: in a directory that no other user can
  write to (or a sticky one, if the symlink is root's), all the way from the root directory. What
  the walk has found is used by descriptor, and never looked up again.
* The scratch directory is made with mkdir(2), never taken as found, unless it is gone on with:
  then it must be a directory of root's that no one else can enter, on the file system of the
  directory that it is in. A user can make none that passes, and cannot look into one.
* It is held by flock(2) on a file in it and used by its descriptor, so that it may be renamed
  meanwhile.
  Only names that a scratch directory has are ever removed from it.

Source: path_resolution(7), open(2), flock(2); the kernel's Documentation/admin-guide/sysctl/fs.rst
on protected_symlinks, whose rule covers sticky directories alone.
"""

import errno
import fcntl
import json
import os
import stat
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import xxhash

from fusejournal.disk import syscalls
from fusejournal.disk.files import NEW_SUFFIX, UNREADABLE_JSON, Outlives, write_atomically
from fusejournal.errors import TargetError

TREE = "tree"
"""The name, in the scratch directory of a restore, of what is being restored."""
MARKS = "marks"
"""The name, in it, of the list of a version's units that are done."""
REPLAY = "fusejournal-replay"
"""The purpose of a scratch directory beside a target, in its name."""
_PURPOSE = "purpose.json"
_CATALOG = "catalog"
_LOCK = "lock"
_OWN_NAMES = frozenset({_PURPOSE, _CATALOG, _LOCK, "progress", "root.json", MARKS, TREE})
_NAME_BYTES_MAX = 200
_SYMLINKS_MAX = 40
_FLAGS_WAY = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_FLAGS_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


class Spot:
    """A name in an open directory: where a target is, or is to be. Use as a context manager."""

    def __init__(self, fd: int, name: str, path: Path) -> None:
        self.fd = fd
        """A descriptor of the directory; it cannot be read, only worked in."""
        self.name = name
        self.path = path
        """The path without symlinks; for messages only."""

    def __enter__(self) -> "Spot":
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self.fd)

    def is_there(self) -> bool:
        """True if the directory has the name."""
        try:
            os.stat(self.name, dir_fd=self.fd, follow_symlinks=False)
        except FileNotFoundError:
            return False
        return True

    def open_directory(self) -> int:
        """A descriptor of the directory of that name. Raises OSError."""
        return os.open(self.name, _FLAGS_DIRECTORY, dir_fd=self.fd)

    def sync(self) -> None:
        """Make the name durable. Raises OSError."""
        fd = os.open(".", _FLAGS_DIRECTORY, dir_fd=self.fd)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)


class _Step(NamedTuple):
    """A directory on the way, and whether root alone can change what lies on it."""

    fd: int
    path: Path
    is_roots: bool


def find_spot(path: Path) -> Spot:
    """Walk to where *path* is or would be. Raises TargetError: a directory on the way is not there,
    or a symlink lies where a user could have put it."""
    todo = list(reversed(Path(os.path.abspath(path)).parts[1:]))
    steps = [_first_step()]
    links = 0
    try:
        while todo:
            here, name = steps[-1], todo.pop()
            if name == "..":
                # Only out of a symlink of root's.
                if len(steps) > 1:
                    os.close(steps.pop().fd)
                continue
            found = _stat(here, name, path)
            if found is not None and stat.S_ISLNK(found.st_mode):
                links += 1
                where = here.path / name
                if links > _SYMLINKS_MAX:
                    raise TargetError(path, os.strerror(errno.ELOOP))
                if not here.is_roots or not _is_mine(found):
                    raise TargetError(
                        where,
                        "is a symlink where others than root can make one: give the path that it "
                        "leads to, if that is right",
                    )
                leads_to = Path(os.readlink(name, dir_fd=here.fd))
                if leads_to.is_absolute():
                    while len(steps) > 1:
                        os.close(steps.pop().fd)
                todo += reversed(leads_to.parts[leads_to.is_absolute() :])
                continue
            if not todo:
                return Spot(os.dup(here.fd), name, here.path / name)
            steps.append(_next_step(here, name))
        raise TargetError(path, "cannot be a target: it is in no directory")
    finally:
        for step in steps:
            os.close(step.fd)


def _first_step() -> _Step:
    fd = os.open("/", _FLAGS_WAY)
    return _Step(fd, Path("/"), _is_roots_alone(os.fstat(fd)))


def _next_step(here: _Step, name: str) -> _Step:
    try:
        fd = os.open(name, _FLAGS_WAY, dir_fd=here.fd)
    except FileNotFoundError:
        raise TargetError(here.path / name, "no such directory") from None
    except OSError as error:
        raise TargetError(here.path / name, error.strerror or "cannot be opened") from None
    return _Step(fd, here.path / name, here.is_roots and _is_roots_alone(os.fstat(fd)))


def _stat(here: _Step, name: str, path: Path) -> os.stat_result | None:
    try:
        return os.stat(name, dir_fd=here.fd, follow_symlinks=False)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise TargetError(path, error.strerror or "cannot be used") from None


def _is_mine(found: os.stat_result) -> bool:
    return found.st_uid in (0, os.geteuid())


def _is_roots_alone(found: os.stat_result) -> bool:
    """Returns whether no other user can replace what root has put into this directory."""
    is_shared = found.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
    return _is_mine(found) and (not is_shared or bool(found.st_mode & stat.S_ISVTX))


def beside(target: Path, what: str) -> Path:
    """A hidden name next to *target*, for *what*."""
    return target.parent / _hidden(target.name, what)


def _hidden(name: str, what: str) -> str:
    if len(os.fsencode(name)) > _NAME_BYTES_MAX:
        name = xxhash.xxh3_64_hexdigest(os.fsencode(name))
    return f".{name}.{what}"


class Scratch:
    """A scratch directory, held. See the module."""

    def __init__(self, fd: int, lock: int, spot: Spot, name: str) -> None:
        self.fd = fd
        self._lock = lock
        self.name = name
        self.path = spot.path.parent / name
        """The path, for messages only."""

    @classmethod
    def find(cls, spot: Spot, what: str) -> "Scratch | None":
        """The scratch directory for *what* beside *spot*, held until :meth:`close`; None where
        there is none. Raises TargetError: it is not root's, or another process is at it."""
        name = _hidden(spot.name, what)
        path = spot.path.parent / name
        while True:
            try:
                fd = os.open(name, _FLAGS_DIRECTORY, dir_fd=spot.fd)
            except FileNotFoundError:
                return None
            except OSError as error:
                if error.errno in (errno.ENOTDIR, errno.ELOOP):
                    raise _not_ours(path) from None
                raise TargetError(path, error.strerror or "cannot be opened") from None
            try:
                found, above = os.fstat(fd), os.fstat(spot.fd)
                if (
                    not _is_mine(found)
                    or found.st_mode & (stat.S_IRWXG | stat.S_IRWXO)
                    or found.st_dev != above.st_dev
                    or not {one.removesuffix(NEW_SUFFIX) for one in os.listdir(fd)} <= _OWN_NAMES
                ):
                    raise _not_ours(path)
                lock = _lock(fd, spot.path)
            except OSError as error:
                os.close(fd)
                raise TargetError(path, error.strerror or "cannot be used") from None
            except TargetError:
                os.close(fd)
                raise
            if _is_at(fd, spot.fd, name):
                return cls(fd, lock, spot, name)
            os.close(lock)
            os.close(fd)

    @classmethod
    def make(cls, spot: Spot, what: str) -> "Scratch":
        """A new one. Raises TargetError, also where there is one."""
        name = _hidden(spot.name, what)
        try:
            os.mkdir(name, 0o700, dir_fd=spot.fd)
        except OSError as error:
            path = spot.path.parent / name
            raise TargetError(spot.path, f"{path} cannot be made: {error.strerror}") from None
        made = cls.find(spot, what)
        if made is None:
            raise TargetError(spot.path, f"{spot.path.parent / name} was taken away")
        return made

    def close(self) -> None:
        """Let it go, for another process to go on with."""
        os.close(self._lock)
        os.close(self.fd)

    @property
    def catalog(self) -> Path:
        """The directory of the catalog, by the descriptor: good until :meth:`close`."""
        return Path(f"/proc/self/fd/{self.fd}/{_CATALOG}")

    @property
    def purpose(self) -> dict[str, Any] | None:
        """The purpose of what was begun here, or None."""
        return self.read(_PURPOSE)

    def note_purpose(self, purpose: dict[str, Any]) -> None:
        """Write *purpose* down: what is begun here from now on is for it. Raises OSError."""
        self.write(_PURPOSE, purpose)

    def read(self, name: str) -> dict[str, Any] | None:
        """Returns what :meth:`write` wrote, or None where there is nothing of the kind."""
        try:
            fd = self.open(name, os.O_RDONLY)
        except OSError:
            return None
        with open(fd, encoding="utf-8") as file, suppress(*UNREADABLE_JSON):
            found = json.load(file)
            return found if isinstance(found, dict) else None
        return None

    def write(self, name: str, value: dict[str, Any]) -> None:
        """Replace file *name* in one step, as far as a process that is killed goes. Raises
        OSError."""
        content = json.dumps(value).encode()
        write_atomically("scratch", name, content, Outlives.PROCESS, dir_fd=self.fd)

    def open(self, name: str, flags: int) -> int:
        """A descriptor of file *name* in it. Raises OSError."""
        return os.open(name, flags | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600, dir_fd=self.fd)

    def empty(self, but: str = "") -> None:
        """Remove all that is in it, *but* this and what it is held by. Raises OSError."""
        if self.read(_PURPOSE) is not None:
            os.unlink(_PURPOSE, dir_fd=self.fd)  # first: without it, nothing is gone on with
        for name in map(os.fsdecode, syscalls.list_directory(self.fd)):
            if name in (but, _LOCK):
                continue
            # What removes these is loaded here only: mostly there is neither.
            if name == TREE:
                import subprocess

                from fusejournal.disk.process import WORKING_DIRECTORY

                # Not by Python: trees can be deeper than it recurses.
                path = f"/proc/self/fd/{self.fd}/{name}"
                subprocess.run(
                    ["rm", "-rf", "--one-file-system", "--", path],
                    check=True, pass_fds=[self.fd], cwd=WORKING_DIRECTORY,
                )  # fmt: skip
            elif name == _CATALOG:
                import shutil

                shutil.rmtree(name, dir_fd=self.fd)
            else:
                os.unlink(name, dir_fd=self.fd)

    def remove(self, spot: Spot) -> None:
        """Remove it, which has served, if it still is beside *spot*. Raises OSError."""
        self.empty()
        os.unlink(_LOCK, dir_fd=self.fd)
        if _is_at(self.fd, spot.fd, self.name):
            try:
                os.rmdir(self.name, dir_fd=spot.fd)
            except OSError as error:
                if error.errno != errno.ENOTEMPTY:
                    raise  # (another process is about to begin in it)


def scratch_of(target: Path) -> Path:
    """The scratch directory of *target*, beside it."""
    return beside(target, REPLAY)


def purpose_of(target: Path) -> dict[str, Any] | None:
    """Returns what *target* was begun for and is not finished with, or None."""
    with suppress(TargetError), find_spot(target) as spot:
        scratch = Scratch.find(spot, REPLAY)
        if scratch is not None:
            try:
                return scratch.purpose
            finally:
                scratch.close()
    return None


def _lock(directory: int, target: Path) -> int:
    """A descriptor that holds the scratch directory against others. (A file in it, because a
    directory cannot be locked on NFS.) Raises TargetError, OSError."""
    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
    fd = os.open(_LOCK, flags, 0o600, dir_fd=directory)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(fd)
        raise TargetError(target, "another process is at work on it") from None
    return fd


def _is_at(fd: int, directory: int, name: str) -> bool:
    """Returns whether *name* in *directory* stands for what *fd* is open on."""
    try:
        found = os.stat(name, dir_fd=directory, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return os.path.samestat(found, os.fstat(fd))


def _not_ours(path: Path) -> TargetError:
    return TargetError(
        path,
        "is not what a replay or a restore of this version leaves (a directory of root's that "
        "no one else can enter): look at it, and delete it",
    )
