"""The root directory of a target while it is worked on, and what there is beside it.

It belongs to root then, and only root can enter it, because what it holds on its way through
history is not for users to see or to touch: what the root directory's own mode, owner and ACL are
to be is kept in the scratch directory, and set at the end.

One that was left half-way is gone on with for the same purpose, in the same directory and in the
same boot of the machine."""

import os
from collections.abc import Callable
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

from fusejournal.backing.set_flags import set_locks
from fusejournal.disk import calls, syscalls
from fusejournal.disk.acls import ACCESS_ACL_XATTR, DEFAULT_ACL_XATTR
from fusejournal.disk.boot import boot_id
from fusejournal.disk.files import UNREADABLE_JSON
from fusejournal.errors import PrivilegeError, TargetError
from fusejournal.replay.root_attributes import RootAttributes
from fusejournal.replay.scratch import MARKS, TREE, Scratch, Spot

_ROOT_FILE = "root.json"
_FLAGS_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


def can_go_on(scratch: Scratch, purpose: dict[str, Any]) -> bool:
    """Returns whether the tree in *scratch* was begun for *purpose*, and can be gone on with."""
    try:
        fd = os.open(TREE, _FLAGS_DIRECTORY, dir_fd=scratch.fd)
    except OSError:
        return False
    try:
        return scratch.purpose == _full_purpose(fd, purpose)
    finally:
        os.close(fd)


def check_root() -> None:
    """Raises PrivilegeError where this process is not root's."""
    if os.geteuid() != 0:
        raise PrivilegeError("restoring owners and devices needs root: try sudo")


def _full_purpose(root_fd: int, purpose: dict[str, Any]) -> dict[str, Any]:
    """*purpose*, and what must be as it was for it to be gone on with."""
    found = os.fstat(root_fd)
    root = f"{found.st_dev} {found.st_ino}"
    with suppress(OSError):
        # An inode number is given again; a handle has a generation, too.
        root += " " + syscalls.handle_of(root_fd).hex()
    return {**purpose, "boot": boot_id(), "root": root}


def _prepare_nothing(_: Scratch) -> None:
    """Puts nothing into a scratch directory."""


class StagedTree:
    """A directory that is closed to all but root until :meth:`open_root`. Use as a context
    manager."""

    def __init__(
        self,
        path: Path,
        root_fd: int,
        scratch: Scratch,
        purpose: dict[str, Any],
        prepare: Callable[[Scratch], None] = _prepare_nothing,
    ) -> None:
        """Closes the directory to all others.

        Args:
            path: its path, for messages.
            root_fd, scratch: the directory, opened, and the scratch directory: they go over to this
                object.
            purpose: what it is worked on for; the same where it is gone on with.
            prepare: puts what there is to be in the scratch directory of one that is begun.

        Raises TargetError."""
        self.path = path
        self.root_fd = root_fd
        """The descriptor of the directory, good until :meth:`close`."""
        self.scratch = scratch
        with ExitStack() as stack:
            stack.callback(scratch.close)
            stack.callback(os.close, root_fd)
            self.resumed, self.root = self._claim(purpose, prepare)
            """True if this goes on with what was begun earlier; and the attributes that the
            directory is to have at the end."""
            self._open = stack.pop_all()

    @classmethod
    def within(
        cls,
        scratch: Scratch,
        purpose: dict[str, Any],
        prepare: Callable[[Scratch], None] = _prepare_nothing,
    ) -> "StagedTree":
        """Returns the one of the tree in *scratch*, which goes over to it. Raises TargetError."""
        path = scratch.path / TREE
        try:
            root_fd = os.open(TREE, _FLAGS_DIRECTORY, dir_fd=scratch.fd)
        except OSError as error:
            scratch.close()
            raise TargetError(path, error.strerror or "cannot be opened") from None
        return cls(path, root_fd, scratch, purpose, prepare)

    def __enter__(self) -> "StagedTree":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Closes the files; what is done so far is kept, to go on from there."""
        self._open.close()

    def finish(self, *, is_flushed: bool = False) -> None:
        """Opens the directory to others, as it is to be, and flushes it (its root alone, where the
        rest *is_flushed*). Raises OSError, TargetError."""
        try:
            self.open_root()
        except OSError as error:
            raise TargetError(self.path, error.strerror or "cannot be changed") from None
        self.flush(is_flushed=is_flushed)

    def open_root(self) -> None:
        """Gives the directory mode, owner and ACL. Raises OSError."""
        self.root.set(self.root_fd)

    def flush(self, *, is_flushed: bool) -> None:
        """Flushes the file system, or the directory alone where the rest *is_flushed*. Raises
        OSError."""
        if is_flushed:
            calls.fsync("target.sync", self.root_fd)
        else:
            calls.syncfs("target.syncfs", self.root_fd)

    def discard(self, spot: Spot) -> None:
        """Deletes the scratch directory beside *spot*, with a tree that is in it. Raises
        OSError."""
        self.scratch.remove(spot)

    def open_marks(self) -> int:
        """Returns a descriptor of the file in the scratch directory in which the caller notes what
        is done, where that is no seq. Raises OSError."""
        return self.scratch.open(MARKS, os.O_RDWR | os.O_CREAT)

    def keep_root(self, root: RootAttributes) -> None:
        """Writes down what the directory is to have at the end. Raises OSError."""
        self.scratch.write(_ROOT_FILE, root.to_json())
        self.root = root

    def clear_acls(self) -> None:
        """Takes away what a new directory inherited from the one that it is in: only what the
        journal records belongs to it. Raises TargetError."""
        try:
            self.keep_root(self.root._replace(acl=None))
            os.removexattr(self.root_fd, DEFAULT_ACL_XATTR)
        except OSError as error:
            if not syscalls.missing(error):
                raise TargetError(self.path, error.strerror or "cannot be changed") from None

    def _claim(
        self, purpose: dict[str, Any], prepare: Callable[[Scratch], None]
    ) -> tuple[bool, RootAttributes]:
        """Returns whether this goes on with what was begun earlier, and the attributes that are
        kept for the directory."""
        scratch = self.scratch
        wanted = _full_purpose(self.root_fd, purpose)
        try:
            begun = scratch.purpose
            if begun is not None:
                self._check_purpose(wanted, begun)
            else:
                scratch.empty(but=TREE)
                prepare(scratch)
                scratch.write(_ROOT_FILE, RootAttributes.of(self.root_fd).to_json())
                scratch.note_purpose(wanted)
            root = self._kept_root()
            self._shut_root()
        except OSError as error:
            raise TargetError(
                self.path, f"{scratch.path} cannot be made: {error.strerror}"
            ) from None
        return begun is not None, root

    def _check_purpose(self, wanted: dict[str, Any], found: dict[str, Any]) -> None:
        if found.get("boot") != wanted["boot"]:
            raise TargetError(
                self.path,
                "was begun before the machine was restarted, and may lack what was written then: "
                f"delete it and {self.scratch.path}, and begin again",
            )
        if found.get("root") != wanted["root"]:
            raise TargetError(
                self.path,
                f"is not the directory that was begun in: to begin again, delete "
                f"{self.scratch.path}",
            )
        if found != wanted:
            different = sorted(
                key for key in {*wanted, *found} if found.get(key) != wanted.get(key)
            )
            raise TargetError(
                self.path,
                f"is half done with other options ({', '.join(different)}): finish that, or delete "
                f"it and {self.scratch.path}",
            )

    def _shut_root(self) -> None:
        """Lets root alone enter. Raises OSError."""
        if syscalls.is_locked(self.root_fd):  # by an earlier replay: see Target.lock
            set_locks(self.root_fd, 0)
        os.fchmod(self.root_fd, 0o700)
        os.fchown(self.root_fd, 0, 0)
        try:
            os.removexattr(self.root_fd, ACCESS_ACL_XATTR)
        except OSError as error:
            if not syscalls.missing(error):
                raise

    def _kept_root(self) -> RootAttributes:
        try:
            return RootAttributes.from_json(self.scratch.read(_ROOT_FILE) or {})
        except UNREADABLE_JSON:
            raise TargetError(
                self.path, f"was begun by another version: delete it and {self.scratch.path}"
            ) from None
