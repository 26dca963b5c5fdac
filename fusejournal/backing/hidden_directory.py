"""The hidden directory in a backing's root: what is in it has no name for anybody else (tree.py),
and it is no part of the tree.

The layer lets no caller make its name, nor that with dots behind it. A journal may have such a name
all the same, from a release that allowed it: as long as a user's file has the name, the hidden
directory goes by one with more dots, and keeps that when the file goes. So one that was left is not
known by its name alone, but by what it is: a directory that only its owner may enter and that has
no fid, as all that is the tree's has."""

import errno
import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from stat import S_IFDIR
from uuid import UUID

from fusejournal.backing.catalog import Catalog
from fusejournal.backing.fid_tag import FID_XATTR
from fusejournal.disk import failpoints, syscalls
from fusejournal.errors import ApplyBrokenError
from fusejournal.types import NAME_BYTES_MAX, ROOT_FID, Fid

log = logging.getLogger(__name__)

_PREFIX = b".fusejournal."
_FLAGS_HIDDEN = os.O_RDONLY | os.O_DIRECTORY | os.O_NOATIME | os.O_NOFOLLOW | os.O_CLOEXEC
HIDDEN_MODE = 0o700


def is_reserved(name: bytes, uuid: UUID) -> bool:
    """Returns whether *name*, in the root, is kept for the hidden directory of volume *uuid*."""
    return name.startswith(_PREFIX) and name.rstrip(b".") == _shortest_name(uuid)


def hidden_names(uuid: UUID) -> Iterator[bytes]:
    """The names that it can have, the usual one first."""
    name = _shortest_name(uuid)
    while len(name) <= NAME_BYTES_MAX:
        yield name
        name += b"."


def find_hidden_directory(
    root_fd: int, uuid: UUID, is_a_users: Callable[[bytes], bool]
) -> bytes | None:
    """Returns the name of the hidden directory that is in *root_fd*, or None. *is_a_users* tells
    whether the tree has a file of a name. Raises OSError."""
    for name in hidden_names(uuid):
        if not is_a_users(name) and _is_hidden_directory(root_fd, name):
            return name
    return None


def without_hidden(root_fd: int, names: list[bytes]) -> list[bytes]:
    """*names* of the directory that *root_fd* is open on, but for the hidden directory if that is
    the root of a volume's backing. Raises OSError."""
    try:
        uuid = UUID(bytes=os.getxattr(root_fd, FID_XATTR)[:16])
    except (OSError, ValueError):
        return names
    return [
        name
        for name in names
        if not (is_reserved(name, uuid) and _is_hidden_directory(root_fd, name))
    ]


def _shortest_name(uuid: UUID) -> bytes:
    return _PREFIX + uuid.hex.encode()


def _is_hidden_directory(directory: int, name: bytes) -> bool:
    """The owner does not matter: it is a user until it is made root's, and may have been left
    before that."""
    try:
        fd = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=directory)
    except FileNotFoundError:
        return False
    try:
        if os.fstat(fd).st_mode != S_IFDIR | HIDDEN_MODE:
            return False
        os.getxattr(syscalls.descriptor_path(fd), FID_XATTR)
    except OSError as error:
        if not syscalls.missing(error):
            raise
        return True
    finally:
        os.close(fd)
    return False


class HiddenFiles:
    """The files with a name in the hidden directory, which is there while any has: the part of
    Tree that knows it."""

    def __init__(self, root_fd: int, uuid: UUID, catalog: Catalog) -> None:
        self.root_fd = root_fd
        self.uuid = uuid
        self.catalog = catalog
        self._hidden: dict[Fid, bytes] = {}
        """Files with a name in the hidden directory, and that name."""
        self._hidden_fd = -1
        """The descriptor of that directory; -1 while it is not open."""
        self._hidden_in = b""
        """The name that it has while it is there; else empty."""
        self._has_searched = False
        """True once what the process before this one left is known."""

    def join_volume(self, uuid: UUID) -> None:
        """Be the tree of volume *uuid* from now on, while nothing is in it."""
        self.uuid = uuid

    def is_hidden(self, parent: Fid, name: bytes) -> bool:
        """Returns whether *name* in *parent* is the hidden directory, which is no part of the
        tree."""
        return name == self._hidden_in and parent == ROOT_FID

    def hidden_name(self) -> bytes:
        """Returns the name, in the root, of a directory for what no user may name but what must not
        go: that of the one there, or else the first that no user's file has. Raises OSError."""
        left = find_hidden_directory(self.root_fd, self.uuid, self._is_a_users)
        return left if left is not None else self._free_hidden_name()

    def _free_hidden_name(self) -> bytes:
        for name in hidden_names(self.uuid):
            if not self._is_a_users(name):
                return name
        raise OSError(errno.EEXIST, "users have all the names of the hidden directory")

    def _is_a_users(self, name: bytes) -> bool:
        return self.catalog.lookup(ROOT_FID, name) is not None

    @contextmanager
    def staging(self) -> Iterator[int]:
        """The hidden directory, open on the descriptor given, for what has no place of its own for
        a moment. Raises OSError before anything is done, ApplyBrokenError."""
        if self._hidden_fd < 0:
            self._hidden_fd = self._open_hidden()
        try:
            yield self._hidden_fd
        finally:
            if not self._hidden:
                self._remove_hidden()

    def _open_hidden(self) -> int:
        self.find_hidden()
        if self._hidden_fd >= 0:
            return self._hidden_fd
        name = self._free_hidden_name()
        failpoints.reached("orphan.directory")
        with self._root_mtime_kept():
            with suppress(FileExistsError):
                os.mkdir(name, HIDDEN_MODE, dir_fd=self.root_fd)
            self._hidden_in = name
        return self._open_as_root(name)

    def _open_as_root(self, name: bytes) -> int:
        fd = os.open(name, _FLAGS_HIDDEN, dir_fd=self.root_fd)
        if os.fstat(fd).st_uid != 0:
            os.fchown(fd, 0, 0)  # made in the name of a user
        return fd

    def _remove_hidden(self) -> None:
        """Take the hidden directory away if nothing is in it. One that cannot be removed stays, out
        of sight, until the next process that leaves it, or the next mount. Raises
        ApplyBrokenError."""
        try:
            with self._root_mtime_kept():
                failpoints.reached("orphan.leave")
                os.rmdir(self._hidden_in, dir_fd=self.root_fd)
        except FileNotFoundError:
            pass
        except OSError as error:
            # (Reconciliation uses it too, and may have left something in it for the next attempt;
            # or the process before this one has.)
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                log.warning("the hidden directory is not removed now: %s", error)
            return
        os.close(self._hidden_fd)
        self._hidden_fd = -1
        self._hidden_in = b""

    def find_hidden(self) -> None:
        """Know the hidden directory that the process before this one left. The catalog has the
        root's names by now. Raises OSError."""
        if self._has_searched:
            return
        name = find_hidden_directory(self.root_fd, self.uuid, self._is_a_users)
        if name is not None:
            self._hidden_fd = self._open_as_root(name)
            self._hidden_in = name
        self._has_searched = True

    @contextmanager
    def _root_mtime_kept(self) -> Iterator[None]:
        """Keep the root's mtime, which is a user's, as it is before the block. Raises
        ApplyBrokenError where that cannot be had."""
        mtime_ns = os.fstat(self.root_fd).st_mtime_ns
        try:
            yield
        finally:
            if os.fstat(self.root_fd).st_mtime_ns != mtime_ns:
                try:
                    failpoints.reached("orphan.times")
                    syscalls.set_times(self.root_fd, None, mtime_ns)
                except OSError as error:
                    raise ApplyBrokenError(
                        f"the mtime of the root could not be set back: {error}",
                        error.errno or errno.EIO,
                    ) from error
