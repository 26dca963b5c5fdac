"""A user who does anything, without end, to a small tree: every kind of change, in two threads,
as fast as the layer allows or slower. And one who reads it all the while.

Both bear whatever a layer that dies under them makes of their calls, and go on when it is back."""

import errno
import os
import random
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Self

from fusejournal.disk import syscalls
from fusejournal.layer.handshake import TRY_AGAIN
from tests.support.mapped import write_through_map

_GONE = {errno.ENOTCONN, errno.ECONNABORTED, errno.EIO, errno.ENODEV, errno.ESTALE, TRY_AGAIN}
_GONE_PAUSE_SECONDS = 0.05
_DEPTH = 3
_NAMES = ("a", "b", "c", "d", "e")
_MODES = (0o600, 0o644, 0o755, 0o4755, 0o2770)
_EXCHANGE = 2


class Busy:
    """Threads that do something over and over, and can be made to pause."""

    def __init__(self, threads: int, seed: int) -> None:
        self._going = threading.Event()
        self._over = False
        self._idle = [threading.Event() for _ in range(threads)]
        self._failures: list[BaseException] = []
        self._threads = [
            threading.Thread(target=self._run, args=(random.Random(seed * 100 + n), idle))
            for n, idle in enumerate(self._idle)
        ]
        self.done = 0
        """The number of calls that have worked, about."""

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        self.go_on()
        return self

    def __exit__(self, *_: object) -> None:
        self._over = True
        self._going.set()
        for thread in self._threads:
            thread.join()

    def go_on(self) -> None:
        """Begin, or end a pause."""
        for idle in self._idle:
            idle.clear()
        self._going.set()

    def pause(self) -> None:
        """Return when nothing is being done. Raises what went wrong for a reason of its own."""
        self._going.clear()
        for idle in self._idle:
            assert idle.wait(60), "a call does not come back"
        for failure in self._failures:
            raise failure

    def _run(self, dice: random.Random, idle: threading.Event) -> None:
        while not self._over:
            if not self._going.is_set():
                idle.set()
                self._going.wait()
                continue
            try:
                self.once(dice)
                self.done += 1
            except OSError as error:
                if error.errno in _GONE:
                    time.sleep(_GONE_PAUSE_SECONDS)
            except BaseException as error:
                self._failures.append(error)
                idle.set()
                return

    def once(self, dice: random.Random) -> None:
        """Do something. May raise OSError."""
        raise NotImplementedError


class Mischief(Busy):
    """Changes below *root*; a call every *pause_seconds* or less often."""

    def __init__(self, root: Path, seed: int, pause_seconds: float = 0.0, threads: int = 2) -> None:
        super().__init__(threads, seed)
        self._root = os.fspath(root)
        self._pause_seconds = pause_seconds
        self._kinds: list[Callable[[random.Random, str], None]] = [
            *[self._write] * 8,
            *[self._mkdir] * 6,
            *[self._rename] * 6,
            *[self._append] * 4,
            *(self._unlink, self._unlink, self._link, self._link, self._symlink, self._fifo),
            *(self._rmdir, self._truncate, self._chmod, self._chown, self._utime, self._exchange),
            *(
                self._write_mapped,
                self._setxattr,
                self._removexattr,
                self._replace,
                self._replace,
                self._fsync,
            ),
        ]

    def once(self, dice: random.Random) -> None:
        if self._pause_seconds:
            time.sleep(self._pause_seconds)
        dice.choice(self._kinds)(dice, self._path(dice))

    def _path(self, dice: random.Random) -> str:
        depth = dice.randint(1, _DEPTH)
        return "/".join((self._root, *(dice.choice(_NAMES) for _ in range(depth))))

    def _write(self, dice: random.Random, path: str) -> None:
        fd = os.open(
            path, os.O_WRONLY | os.O_CREAT | os.O_NONBLOCK | dice.choice((0, os.O_TRUNC)), 0o644
        )
        try:
            for _ in range(dice.choice((1, 1, 3))):
                os.pwrite(
                    fd, dice.randbytes(dice.choice((1, 100, 5000, 30_000))), dice.choice((0, 9))
                )
        finally:
            os.close(fd)

    def _write_mapped(self, dice: random.Random, path: str) -> None:
        if os.stat(path).st_size >= 100:
            os.chmod(path, dice.choice(_MODES))
            write_through_map(path, dice.randbytes(100))

    def _append(self, dice: random.Random, path: str) -> None:
        fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_NONBLOCK)
        try:
            if os.fstat(fd).st_size < 1 << 20:
                os.write(fd, b"a line that is put to the others\n" * dice.choice((1, 40)))
        finally:
            os.close(fd)

    def _replace(self, dice: random.Random, path: str) -> None:
        self._write(dice, f"{path}.new")
        os.rename(f"{path}.new", path)

    def _rename(self, dice: random.Random, path: str) -> None:
        os.rename(path, self._path(dice))

    def _exchange(self, dice: random.Random, path: str) -> None:
        one, other = os.fsencode(path), os.fsencode(self._path(dice))
        syscalls.rename(syscalls.AT_FDCWD, one, syscalls.AT_FDCWD, other, _EXCHANGE)

    def _link(self, dice: random.Random, path: str) -> None:
        os.link(path, self._path(dice), follow_symlinks=False)

    def _mkdir(self, dice: random.Random, path: str) -> None:
        os.mkdir(path, dice.choice((0o755, 0o2775)))

    def _symlink(self, dice: random.Random, path: str) -> None:
        os.symlink(dice.choice(_NAMES), path)

    def _fifo(self, _: random.Random, path: str) -> None:
        os.mkfifo(path)

    def _unlink(self, _: random.Random, path: str) -> None:
        os.unlink(path)

    def _rmdir(self, _: random.Random, path: str) -> None:
        os.rmdir(path)

    def _truncate(self, dice: random.Random, path: str) -> None:
        _only_files(path)
        os.truncate(path, dice.choice((0, 10, 4096, 100_000)))

    def _chmod(self, dice: random.Random, path: str) -> None:
        os.chmod(path, dice.choice(_MODES))

    def _chown(self, dice: random.Random, path: str) -> None:
        os.chown(path, dice.randrange(3), dice.randrange(3), follow_symlinks=False)

    def _utime(self, dice: random.Random, path: str) -> None:
        os.utime(path, ns=(5, dice.randrange(1 << 60)), follow_symlinks=False)

    def _setxattr(self, dice: random.Random, path: str) -> None:
        os.setxattr(path, "user.one", dice.randbytes(20))

    def _removexattr(self, _: random.Random, path: str) -> None:
        os.removexattr(path, "user.one")

    def _fsync(self, _: random.Random, path: str) -> None:
        _only_files(path)
        fd = os.open(path, os.O_RDONLY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)


class Reading(Busy):
    """Reads all there is below *root*, so that the kernel remembers it."""

    def __init__(self, root: Path) -> None:
        super().__init__(1, 0)
        self._root = os.fspath(root)

    def once(self, dice: random.Random) -> None:
        time.sleep(0.01)
        for directory, _, files in os.walk(self._root):
            for name in files:
                path = os.path.join(directory, name)
                with suppress(FileNotFoundError, NotADirectoryError):
                    _only_files(path)
                    with open(path, "rb") as file:
                        file.read(200_000)
            if not self._going.is_set():
                return


def _only_files(path: str) -> None:
    """Opening a fifo would wait for a process at its other end. Raises OSError."""
    if not os.path.isfile(path) or os.path.islink(path):
        raise FileNotFoundError(errno.ENOENT, "no regular file", path)
