"""A client process that holds files, directories and its working directory open, and does one thing
after the other with them when told."""

import errno
import multiprocessing
import os
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

_ANSWER_SECONDS = 120.0


class Holder:
    """Runs functions in a process of its own, which keeps what they put into its ``held``
    dictionary. Use as a context manager."""

    def __init__(self) -> None:
        ours, theirs = multiprocessing.get_context("fork").Pipe()
        self._connection = ours
        self._process = multiprocessing.get_context("fork").Process(
            target=_serve, args=(theirs,), daemon=True
        )
        self._process.start()
        theirs.close()

    def __enter__(self) -> "Holder":
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.join()
        self._connection.close()

    def begin(self, what: str, *arguments: Any) -> None:
        """Let it begin with *what*, one of this module's functions; :meth:`end` waits for it."""
        self._connection.send((what, arguments))

    def end(self, seconds: float = _ANSWER_SECONDS) -> Any:
        """The result of what was begun. Raises the OSError that it raised, or TimeoutError."""
        if not self._connection.poll(seconds):
            raise TimeoutError(f"the client hangs for {seconds} s")
        result = self._connection.recv()
        if isinstance(result, OSError):
            raise result
        assert not isinstance(result, Exception), result
        return result

    def is_waiting(self, seconds: float) -> bool:
        """True if what was begun is still not over after *seconds*."""
        return not self._connection.poll(seconds)

    def do(self, what: str, *arguments: Any) -> Any:
        """Begin and end."""
        self.begin(what, *arguments)
        return self.end()

    def outcome(self, what: str, *arguments: Any) -> Any:
        """Does :meth:`do`, but an OSError becomes its name, such as "ESTALE"."""
        try:
            return self.do(what, *arguments)
        except OSError as error:
            return errno.errorcode[error.errno or 0]


def _serve(connection: Connection) -> None:
    held: dict[str, int] = {}
    while True:
        try:
            what, arguments = connection.recv()
        except EOFError:
            return
        try:
            result = _FUNCTIONS[what](held, *arguments)
        except Exception as error:
            result = error
        connection.send(result)


def _open(held: dict[str, int], name: str, path: Path, flags: int) -> None:
    held[name] = os.open(path, flags, 0o644)


def _close(held: dict[str, int], name: str) -> None:
    os.close(held.pop(name))


def _read(held: dict[str, int], name: str) -> bytes:
    # Past the client's own cache: the server is to be asked.
    os.posix_fadvise(held[name], 0, 0, os.POSIX_FADV_DONTNEED)
    return os.pread(held[name], 1 << 20, 0)


def _write(held: dict[str, int], name: str, data: bytes, offset: int) -> int:
    written = os.pwrite(held[name], data, offset)
    os.fsync(held[name])
    return written


def _stat(held: dict[str, int], name: str) -> tuple[int, int, int]:
    # On an NFS client a changed mode is the way to have the server asked by fstat.
    info = os.fstat(held[name])
    return info.st_ino, info.st_size, info.st_nlink


def _chmod(held: dict[str, int], name: str, mode: int) -> None:
    os.fchmod(held[name], mode)


def _list(held: dict[str, int], name: str) -> list[str]:
    os.lseek(held[name], 0, os.SEEK_SET)
    return sorted(os.listdir(held[name]))


def _create_in(held: dict[str, int], directory: str, name: str) -> int:
    fd = os.open(name, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644, dir_fd=held[directory])
    try:
        os.write(fd, name.encode())
        os.fsync(fd)
        return os.fstat(fd).st_ino
    finally:
        os.close(fd)


def _chdir(held: dict[str, int], path: Path) -> None:
    os.chdir(path)


def _list_cwd(held: dict[str, int]) -> list[str]:
    return sorted(os.listdir("."))


def _lock(held: dict[str, int], name: str) -> None:
    os.lockf(held[name], os.F_TLOCK, 0)


_FUNCTIONS: dict[str, Callable[..., Any]] = {
    function.__name__[1:]: function
    for function in (
        _open, _close, _read, _write, _stat, _chmod, _list, _create_in, _chdir, _list_cwd, _lock
    )
}  # fmt: skip
