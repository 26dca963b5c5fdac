"""The lock of a state directory: flock'ed by the process that has the volume, with a word in it of
who that is.

A process that only asks which one holds it has the lock for a moment, too. A program that takes
this one's place by execv(2) inherits it, so that no other gets in between. Source: flock(2)."""

import fcntl
import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

from fusejournal.disk import calls
from fusejournal.disk.files import UNREADABLE_JSON
from fusejournal.disk.json_records import checked, parse_object
from fusejournal.disk.mounts import words_of_copies
from fusejournal.errors import VolumeBusyError

_HOLDER_BYTES = 512
_WAIT_CHARACTERS = 1500
_LOCK_ATTEMPTS = 10
_LOCK_PAUSE_SECONDS = 0.01
_LOCK_FD = "FUSEJOURNAL_LOCK_FD"
_BACKING_FD = "FUSEJOURNAL_BACKING_FD"
"""The variables by which a program that takes this one's place finds the lock."""

_held: dict[Path, tuple[int, dict[str, Any]]] = {}
"""The descriptors of the locks, and what stands in them."""


class _Holder(NamedTuple):
    """The word of the process that has the volume."""

    pid: int
    name: str
    mountpoint: str


@contextmanager
def hold(
    directory: Path, name: str, mountpoint: Path, check: Callable[[], None], refusal: str = ""
) -> Iterator[None]:
    """Hold the volume *name* in *directory* until the end of the block; *check* is called when
    no other process holds it, before anything is changed. Raises VolumeBusyError naming the holder,
    with the *refusal*'s words, and what *check* raises."""
    fd = _inherited_lock(directory)
    if fd is None:
        fd = os.open(directory / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        if not _lock(fd) or not _is_lock_of(directory, fd):
            holder = _read_holder(fd)
            place = holder.get("mountpoint", "?")
            raise VolumeBusyError(
                f"volume {name} is held by process {holder.get('pid', '?')}, "
                + (words_of_copies(name, Path(place)) or f"mounted at {place}{refusal}")
            )
        check()
        holding = {"pid": os.getpid(), "name": name, "mountpoint": str(mountpoint)}
        _held[directory] = fd, holding
        _write_holder(fd, json.dumps(holding))
        yield
        _write_holder(fd, "")
    finally:
        if directory in _held and _held[directory][0] == fd:
            del _held[directory]
        os.close(fd)


def note_wait(directory: Path, words: str | None) -> None:
    """Have those who ask for the holder of *directory* hear what its start waits for, which has no
    control socket yet; None: for nothing any more. A full disk may keep it out."""
    if directory not in _held:
        return
    fd, holding = _held[directory]
    told = holding if words is None else {**holding, "waits_for": words[:_WAIT_CHARACTERS]}
    with suppress(OSError):
        _write_holder(fd, json.dumps(told))


def pass_on(directory: Path) -> None:
    """Let the lock of *directory* go to the program that is about to take this one's place by
    execv(2): its :func:`hold` finds it, and no other gets in between."""
    fd, _ = _held[directory]
    os.set_inheritable(fd, True)
    os.environ[_LOCK_FD] = str(fd)


def pass_backing_on(fd: int) -> None:
    """Let *fd*, of the backing, which a dead mount may cover, go to that program, too."""
    os.set_inheritable(fd, True)
    os.environ[_BACKING_FD] = str(fd)


def inherited_backing() -> int | None:
    """Returns the descriptor that :func:`pass_backing_on` left, if one was."""
    try:
        fd = int(os.environ.pop(_BACKING_FD, ""))
        os.set_inheritable(fd, False)
    except (ValueError, OSError):
        return None
    return fd


def _inherited_lock(directory: Path) -> int | None:
    """The lock that :func:`pass_on` left, if it is this directory's."""
    try:
        fd = int(os.environ.pop(_LOCK_FD, ""))
        os.set_inheritable(fd, False)
        if os.path.samestat(os.fstat(fd), os.stat(directory / "lock")):
            return fd
    except (ValueError, OSError):
        pass
    return None


def _lock(fd: int) -> bool:
    """Returns True if *fd* could be locked, at once or after those who only look."""
    for attempt in range(_LOCK_ATTEMPTS):
        if attempt:
            time.sleep(_LOCK_PAUSE_SECONDS)
        with suppress(BlockingIOError):
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
    return False


def _is_lock_of(directory: Path, fd: int) -> bool:
    """Returns True unless a refused first start has taken the lock away while *fd* waited."""
    with suppress(FileNotFoundError):
        return os.path.samestat(os.fstat(fd), os.stat(directory / "lock"))
    return False


def holder_of(directory: Path) -> dict[str, Any] | None:
    """Returns the holder of the volume in *directory*: pid, name, mountpoint, and what its start
    waits for, if it does; None when there is none."""
    try:
        fd = os.open(directory / "lock", os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return _read_holder(fd)
    else:
        return None
    finally:
        os.close(fd)


def _write_holder(fd: int, holder: str) -> None:
    # Never cut: on a full disk the old content's block is all there is.
    size = max(_HOLDER_BYTES, os.fstat(fd).st_size)
    calls.write_all("state.holder", fd, holder.encode().ljust(size), 0)


def _read_holder(fd: int) -> dict[str, Any]:
    try:
        holder = parse_object(os.pread(fd, 65536, 0))
        checked(_Holder(holder["pid"], holder["name"], holder["mountpoint"]))
    except UNREADABLE_JSON:
        return {}
    return holder
