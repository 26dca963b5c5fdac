"""Doing things as another user, and in processes that are limited or see mounts of their own.

Source: setrlimit(2), unshare(2), user_namespaces(7), mount_namespaces(7)."""

import ctypes
import os
import pickle
import resource
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

SOMEBODY = 1000
ANOTHER = 1001


@contextmanager
def acting(
    uid: int, gid: int | None = None, groups: Sequence[int] = (), umask: int = 0o022
) -> Iterator[None]:
    """Do what is inside with these ids; root's powers are gone meanwhile."""
    old_umask, old_groups = os.umask(umask), os.getgroups()
    os.setgroups(list(groups))
    os.setegid(uid if gid is None else gid)
    os.seteuid(uid)
    try:
        yield
    finally:
        os.seteuid(0)
        os.setegid(0)
        os.setgroups(old_groups)
        os.umask(old_umask)


_THREADS = "/proc/self/task"
_CLONE_NEWNS, _CLONE_NEWUSER = 0x00020000, 0x10000000
_PR_SET_DUMPABLE = 4
_MS_BIND, _MS_REMOUNT, _MS_RDONLY = 4096, 32, 1
_MS_REC, _MS_PRIVATE = 1 << 14, 1 << 18
_libc = ctypes.CDLL(None, use_errno=True)


def in_process(uid: int, act: Callable[[], Any], limits: Mapping[int, int] | None = None) -> Any:
    """Returns the result of *act* in a process of its own, which is user *uid*'s in every respect
    and has these soft *limits*. Raises the OSError that it raises."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        # Whatever happens, the test's own process goes on once.
        try:
            os.close(reading)
            for limit, value in (limits or {}).items():
                resource.setrlimit(limit, (value, resource.getrlimit(limit)[1]))
            os.umask(0o022)
            os.setgroups([])
            os.setresgid(uid, uid, uid)
            os.setresuid(uid, uid, uid)
            result = _outcome(act)
        except BaseException as error:
            result = repr(error), None
        os.write(writing, pickle.dumps(result))
        os._exit(0)
    os.close(writing)
    with open(reading, "rb") as pipe:
        failure, value = pickle.loads(pipe.read())
    os.waitpid(child, 0)
    if isinstance(failure, int):
        raise OSError(failure, os.strerror(failure))
    assert failure is None, failure
    return value


def _outcome(act: Callable[[], Any]) -> tuple[int | str | None, Any]:
    try:
        return None, act()
    except OSError as error:
        return error.errno, None


def enter_namespace(source: bytes, target: Path, *, read_only: bool = False) -> None:
    """Be root of a user namespace of this process's own, as any user may, which sees the tree
    *source* at *target*. The process must have one thread. Raises OSError."""
    uid, gid = os.getuid(), os.getgid()
    # One that has changed its ids may not write the maps of its own.
    _libc.prctl(_PR_SET_DUMPABLE, 1, 0, 0, 0)
    _checked(_libc.unshare(_CLONE_NEWUSER | _CLONE_NEWNS))
    Path("/proc/self/uid_map").write_text(f"0 {uid} 1")
    Path("/proc/self/setgroups").write_text("deny")
    Path("/proc/self/gid_map").write_text(f"0 {gid} 1")
    _mount(source, target, _MS_BIND)
    if read_only:
        _mount(b"none", target, _MS_BIND | _MS_REMOUNT | _MS_RDONLY)


@contextmanager
def own_mounts() -> Iterator[None]:
    """Keeps what this thread mounts inside to it and its children: another process that makes a
    namespace meanwhile would else keep it in use, though it is unmounted here. Ends only when the
    threads have ended that were begun inside."""
    directory, threads = os.getcwd(), set(os.listdir(_THREADS))
    before = os.open("/proc/thread-self/ns/mnt", os.O_RDONLY | os.O_CLOEXEC)
    _checked(_libc.unshare(_CLONE_NEWNS))
    try:
        _mount(b"none", Path("/"), _MS_REC | _MS_PRIVATE)
        yield
    finally:
        while set(os.listdir(_THREADS)) - threads:  # trio keeps its own for ten seconds
            time.sleep(0.05)
        _checked(_libc.setns(before, _CLONE_NEWNS))
        os.close(before)
        os.chdir(directory)


def _mount(source: bytes, target: Path, flags: int) -> None:
    _checked(_libc.mount(source, os.fsencode(target), None, ctypes.c_ulong(flags), None))


def _checked(result: int) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
