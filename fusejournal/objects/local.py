"""A store of objects in a local directory (or one on a file server): a file for each object.

An object is written to a temporary file beside its place, flushed, and linked to its name, which
fails if there is one; then the directory is flushed. So a reader, and the machine after a loss of
power, finds it whole or not at all. A temporary file is locked (flock(2)) by its writer; those that
killed writers left are removed when the store is opened for writing. A killed writer may also have
left a name that is not on the disk yet: opening flushes the directories.

The directory is root's alone, because versions hold everybody's files, and no one else may be able
to write to a directory above it: a user who can could put another store in its place. Reading
writes nothing, and takes no lock. All functions block; an object may be used by several threads.

Source: link(2), flock(2), fsync(2)."""

import errno
import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from uuid import uuid4

from fusejournal.disk import calls
from fusejournal.disk.errnos import NO_SPACE
from fusejournal.disk.files import make_directories
from fusejournal.disk.ownership import weak_place
from fusejournal.objects.store import (
    ObjectExistsError,
    ObjectMissingError,
    ObjectNotFlushedError,
    StoreError,
    StoreFullError,
    check_name,
)

_TEMPORARY = "."
"""The beginning of a temporary file's name, which no object has."""
_FLAGS_NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_FLAGS_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_NO_LINKS = frozenset({errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK})


class LocalStore:
    """The store in *directory*, which must be there. See the module."""

    uploads = 1
    traffic = None

    def __init__(self, directory: Path, *, writing: bool = False) -> None:
        """*writing*: objects are to be made or removed. Raises StoreError where the directory is
        missing, or others than root (or the caller) can reach into it, or replace it by way of a
        directory above it."""
        self.where = str(directory)
        self._directory = directory
        try:
            fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                found = os.fstat(fd)
            finally:
                os.close(fd)
        except OSError as error:
            raise self._error(error) from None
        self._identity = found.st_dev, found.st_ino
        owners = 0, os.geteuid()
        if found.st_uid not in owners or found.st_mode & 0o077:
            raise StoreError(
                self.where,
                "versions hold everybody's files: the directory must be root's, and closed to "
                "others (chmod 0700)",
            )
        with self._errors():
            weak = weak_place(directory, owners=owners)
        if weak is not None:
            raise StoreError(
                self.where,
                f"others than root own {weak} or can write to it, and so could put another store "
                f"in this one's place: 'chown root {weak}; chmod go-w {weak}', or keep the "
                "versions elsewhere",
            )
        if writing:
            with self._errors():
                self._tidy()

    @classmethod
    def make(cls, directory: Path) -> "LocalStore":
        """Makes the directory, if it is not there, and opens it for writing. Raises StoreError."""
        try:
            make_directories("object.store.make", directory)
        except OSError as error:
            raise StoreError(str(directory), error.strerror or "cannot be made") from None
        return cls(directory, writing=True)

    def waiting(self) -> None:
        """Raises nothing: no caller waits for a disk for long."""

    def put_new(self, name: str, data: bytes | bytearray | memoryview) -> None:
        """Implements ObjectStore.put_new."""
        path = self._path(name)
        with self._errors():
            self._have_directory(path.parent)
            temporary, fd = self._open_temporary(path.parent)
            try:
                calls.write_all("object.write", fd, memoryview(data))
                calls.fdatasync("object.sync", fd)
                self._link(temporary, path)
                self._flush("object.directory", path)
            finally:
                # Before it is closed: what is not locked is removed by others.
                with suppress(FileNotFoundError):
                    calls.unlink("object.temporary.unlink", temporary)
                os.close(fd)

    def get(self, name: str) -> bytes:
        """Implements ObjectStore.get."""
        with self._errors(name), self._reading(name) as fd:
            return _read(fd, 0, os.fstat(fd).st_size)

    def get_range(self, name: str, start: int, length: int) -> bytes:
        """Implements ObjectStore.get_range."""
        with self._errors(name), self._reading(name) as fd:
            return _read(fd, start, length)

    def names(self, prefix: str) -> Iterator[str]:
        """Implements ObjectStore.names."""
        directory = self._path(prefix.removesuffix("/"))
        try:
            found = sorted(os.listdir(directory))
        except (FileNotFoundError, NotADirectoryError):
            return
        except OSError as error:
            raise self._error(error) from None
        yield from (f"{prefix}{name}" for name in found if not name.startswith(_TEMPORARY))

    def remove(self, name: str) -> None:
        """Implements ObjectStore.remove."""
        path = self._path(name)
        with self._errors():
            with suppress(FileNotFoundError):
                calls.unlink("object.remove", path)
            with suppress(FileNotFoundError):
                calls.fsync_directory("object.remove.directory", path.parent)

    def _path(self, name: str) -> Path:
        return self._directory / check_name(name)

    def _link(self, temporary: Path, path: Path) -> None:
        """Gives the file *temporary* its name. Raises OSError, ObjectExistsError,
        ObjectNotFlushedError."""
        try:
            calls.link("object.link", temporary, path)
        except FileExistsError:
            # Its maker may have died before the name was on the disk.
            self._flush("object.exists.directory", path)
            raise ObjectExistsError(self.where, f"{path.name} is there already") from None
        except OSError as error:
            if error.errno not in _NO_LINKS:
                raise
            raise StoreError(
                self.where, "its file system has no hard links, by which objects get their names"
            ) from None

    def _have_directory(self, directory: Path) -> None:
        """Makes *directory* of the store, if it is not there: not the store's own, which is gone
        where its disk is not mounted any more. Raises OSError, StoreError."""
        if directory.is_dir():
            return
        found = os.stat(self._directory)
        if (found.st_dev, found.st_ino) != self._identity:
            raise StoreError(self.where, "is another directory by now: is its disk mounted?")
        directory.mkdir(0o700, exist_ok=True)
        calls.fsync_directory("object.directory.make", self._directory)

    def _flush(self, label: str, path: Path) -> None:
        """Puts the name *path* on the disk. Raises StoreFullError, ObjectNotFlushedError."""
        try:
            calls.fsync_directory(label, path.parent)
        except OSError as error:
            if error.errno in NO_SPACE:
                raise self._error(error) from None
            reason = f"{path.name} is not on the disk for good: {error.strerror}"
            raise ObjectNotFlushedError(self.where, reason) from None

    def _open_temporary(self, directory: Path) -> tuple[Path, int]:
        """Returns a new file, locked: its path and descriptor. Raises OSError."""
        while True:
            path = directory / f"{_TEMPORARY}{uuid4().hex}"
            fd = os.open(path, _FLAGS_NEW, 0o600)
            try:
                fcntl.flock(fd, fcntl.LOCK_EX)
                # Another process may have removed it before it was locked.
                if path.exists():
                    return path, fd
            except BaseException:
                os.close(fd)
                raise
            os.close(fd)

    def _tidy(self) -> None:
        """Removes what killed writers left, and flushes the directories. Raises OSError."""
        directories = [path for path in self._directory.iterdir() if path.is_dir()]
        for directory in (self._directory, *directories):
            for path in directory.glob(f"{_TEMPORARY}*"):
                _remove_unlocked(path)
            calls.fsync_directory("object.tidy.directory", directory)

    @contextmanager
    def _reading(self, name: str) -> Iterator[int]:
        fd = os.open(self._path(name), _FLAGS_READ)
        try:
            yield fd
        finally:
            os.close(fd)

    @contextmanager
    def _errors(self, name: str = "") -> Iterator[None]:
        try:
            yield
        except FileNotFoundError as error:
            if name and self._directory.is_dir():
                raise ObjectMissingError(self.where, f"{name} is missing") from None
            raise self._error(error) from None
        except OSError as error:
            raise self._error(error) from None

    def _error(self, error: OSError) -> StoreError:
        if error.errno in NO_SPACE:
            return StoreFullError(self.where, "no space left: make some and try again")
        return StoreError(self.where, error.strerror or str(error))


def _read(fd: int, start: int, length: int) -> bytes:
    """Returns *length* bytes from *start* on, or what there is of them. Raises OSError."""
    pieces = []
    while length:
        piece = os.pread(fd, length, start)
        if not piece:
            break
        pieces.append(piece)
        start += len(piece)
        length -= len(piece)
    return pieces[0] if len(pieces) == 1 else b"".join(pieces)


def _remove_unlocked(path: Path) -> None:
    """Removes a temporary file unless its writer is at work. Raises OSError."""
    try:
        fd = os.open(path, _FLAGS_READ)
    except FileNotFoundError:
        return
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        calls.unlink("object.tidy.unlink", path)
    except (BlockingIOError, FileNotFoundError):
        pass
    finally:
        os.close(fd)
