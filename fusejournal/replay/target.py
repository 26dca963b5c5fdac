"""A target: a plain directory that operations are applied to, by the same applier as the layer's.

Files are found by their names, not by handles or marks, so any file system that takes the
operations will do, and nothing is left with the files. Which fid has which names is in a catalog
in a scratch directory beside the target.

A target can be left half-way and gone on with: the scratch directory keeps the catalog, what is
being done, and the last seq that was carried out, in a page shared with the kernel, so that even a
killed process leaves it right. The one entry that was in flight then is settled by looking."""

import errno
import fcntl
import json
import mmap
import os
import shutil
import struct
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from stat import S_IFDIR, S_IFMT, S_IFREG
from typing import Any
from uuid import UUID

import xxhash

from fusejournal import storage
from fusejournal.backing import syscalls
from fusejournal.backing.apply import Applier, ApplyBrokenError
from fusejournal.backing.catalog import Catalog
from fusejournal.backing.catalog_store import COMMIT_CHANGES, CatalogSpoiltError, Node
from fusejournal.backing.tree import ACCESS_ACL_XATTR, DEFAULT_ACL_XATTR, Look, Tree
from fusejournal.errors import (
    ConflictError,
    FusejournalError,
    PrivilegeError,
    TargetError,
    TargetFullError,
)
from fusejournal.operations import (
    RENAME_EXCHANGE,
    TOUCHED,
    Kind,
    Operation,
    Rename,
    TreeOperation,
)
from fusejournal.types import ROOT_FID, Fid, Seq

_DESCRIPTORS_MAX = 512
_PURPOSE = "purpose.json"
_NAME_BYTES_MAX = 200
_PROGRESS = struct.Struct("<QQ")
_BEFORE = struct.Struct("<QQq")
_MTIME_KEPT = frozenset({Kind.IMPORT, Kind.IMPORT_LINK})
_NOTED = _MTIME_KEPT | {Kind.LINK, Kind.UNLINK, Kind.RMDIR, Kind.RENAME}
"""Operations of which only a look at inode numbers or times tells whether they were done."""
_FULL = frozenset({errno.ENOSPC, errno.EDQUOT})
_REFUSED = frozenset({errno.EPERM, errno.EACCES})
_FLAGS_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_FLAGS_FILE = os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_FLAGS_OTHER = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC


class PlacedTree(Tree):
    """A tree whose files are opened by a name that the catalog knows for them."""

    def __init__(self, root_fd: int, catalog: Catalog, descriptors_max: int) -> None:
        super().__init__(root_fd, UUID(int=0), catalog, descriptors_max)
        self.settling: Fid | None = None
        """The fid of the operation that may have been done already."""

    def identify(self, fid: Fid, fd: int, path: int | str) -> bytes:
        """Nothing is written to the file: its name is enough."""
        return b""

    def _open(self, node: Node) -> int:
        # From the nearest directory above that is open already; a loop, for trees can be deep.
        steps: list[tuple[Node, bytes]] = []
        above = node
        while above.fid not in self._pinned and above.fid not in self._descriptors:
            place = self.catalog.place(above)
            if place is None:
                raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))
            steps.append((above, place[1]))
            above = self.node(place[0])
        directory = self._pinned.get(above.fid, -1)
        if directory < 0:
            directory = self._descriptors[above.fid]
        fd = -1
        for step, name in reversed(steps):
            fd = os.open(name, _flags(step.type), dir_fd=directory)
            if step is not node:
                self._keep(step.fid, fd)
                directory = fd
        return fd

    def look(self, parent: Fid, name: bytes) -> Look | None:
        """What is under *name* now, told by its inode number."""
        try:
            stat = self.stat_name(parent, name)
        except FileNotFoundError:
            return None
        known = (self.catalog.lookup(parent, name), self.settling)
        for fid in known:
            node = self.catalog.node(fid) if fid is not None else None
            if node is not None and node.ino == stat.st_ino:
                return Look(stat, b"", fid, None)
        return Look(stat, b"", None, None)


def _flags(type_: int) -> int:
    if type_ == S_IFDIR:
        return _FLAGS_DIRECTORY
    return _FLAGS_FILE if type_ == S_IFREG else _FLAGS_OTHER


def scratch_of(target: Path) -> Path:
    """The scratch directory of *target*, beside it."""
    return beside(target, "fusejournal-replay")


def beside(target: Path, what: str) -> Path:
    """A hidden name next to *target*, for *what*."""
    name = target.name
    if len(os.fsencode(name)) > _NAME_BYTES_MAX:
        name = xxhash.xxh3_64_hexdigest(os.fsencode(name))
    return target.parent / f".{name}.{what}"


def can_go_on(target: Path, purpose: dict[str, Any]) -> bool:
    """Whether *target* was begun for *purpose*, and can be gone on with."""
    found = purpose_of(target)
    return found is not None and target.is_dir() and found == _full_purpose(target, purpose)


def purpose_of(target: Path) -> dict[str, Any] | None:
    """What *target* was begun for and is not finished with, or None."""
    try:
        found = json.loads((scratch_of(target) / _PURPOSE).read_text())
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def _full_purpose(target: Path, purpose: dict[str, Any]) -> dict[str, Any]:
    """*purpose*, and what must be as it was for it to be gone on with."""
    try:
        fd = os.open(target, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise TargetError(target, error.strerror or "cannot be used") from None
    try:
        found = os.fstat(fd)
        root = f"{found.st_dev} {found.st_ino}"
        with suppress(OSError):
            # An inode number is given again; a handle has a generation, too.
            root += " " + syscalls.handle_of(fd).hex()
    finally:
        os.close(fd)
    return {**purpose, "boot": _boot_id(), "root": root}


def lock_scratch(target: Path) -> int:
    """A descriptor that holds the scratch directory of *target*, which must be there, against
    others. Raises TargetError, OSError."""
    fd = os.open(scratch_of(target) / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(fd)
        raise TargetError(target, "another process is at work on it") from None
    return fd


class Target:
    """See the module. Use as a context manager; :meth:`finish` when all is done."""

    def __init__(self, path: Path, purpose: dict[str, Any]) -> None:
        """Open the directory *path*; *purpose* says what for, and must be the same when a target is
        gone on with. Raises TargetError, PrivilegeError."""
        if os.geteuid() != 0:
            raise PrivilegeError("restoring owners and devices needs root: try sudo")
        self.path = path
        self.scratch = scratch_of(path)
        self.resumed = self._claim(purpose)
        try:
            self._root_fd = os.open(path, _FLAGS_DIRECTORY & ~os.O_NOFOLLOW)
        except OSError as error:
            raise TargetError(path, error.strerror or "cannot be opened") from None
        try:
            self.catalog = Catalog(self.scratch / "catalog")
        except OSError as error:
            os.close(self._root_fd)
            raise self._scratch_error(error) from None
        except CatalogSpoiltError:
            os.close(self._root_fd)
            raise TargetError(
                path, f"cannot be gone on with: {self.scratch} is spoilt; delete both"
            ) from None
        if self.catalog.node(ROOT_FID) is None:
            self.catalog.add_root(b"", os.fstat(self._root_fd).st_ino)
        self.tree = PlacedTree(self._root_fd, self.catalog, _DESCRIPTORS_MAX)
        self._applier = Applier(self.tree)
        self._has_unbound = self.resumed
        """Whether the catalog may have files whose inode numbers are not known."""
        with open(self.scratch / "progress", "r+b") as file:
            self._progress = mmap.mmap(file.fileno(), mmap.PAGESIZE)
        self.done_seq, self._begun_seq = map(Seq, _PROGRESS.unpack_from(self._progress))

    def __enter__(self) -> "Target":
        return self

    def __exit__(self, *_: object) -> None:
        """Keep what is done so far, to go on from there."""
        if self.scratch.exists():
            # Without it, what was done since the last commit is recorded again.
            with suppress(OSError):
                self.catalog.commit()
        self.close()

    def close(self) -> None:
        """Close the files."""
        self.tree.close()
        self.catalog.close()
        self._progress.close()
        os.close(self._lock)

    def finish(self) -> None:
        """All is done: flush the target and delete the scratch directory. Raises OSError."""
        fd = os.open(self.path, _FLAGS_DIRECTORY & ~os.O_NOFOLLOW)
        try:
            storage.syncfs("target.syncfs", fd)
        finally:
            os.close(fd)
        shutil.rmtree(self.scratch)

    def _claim(self, purpose: dict[str, Any]) -> bool:
        """Whether this goes on with what was begun earlier."""
        wanted = _full_purpose(self.path, purpose)
        record = self.scratch / _PURPOSE
        try:
            self.scratch.mkdir(mode=0o700, exist_ok=True)
            self._lock = lock_scratch(self.path)
            if record.exists():
                return self._check_purpose(wanted, json.loads(record.read_text()))
            shutil.rmtree(self.scratch / "catalog", ignore_errors=True)
            (self.scratch / "progress").write_bytes(bytes(mmap.PAGESIZE))
            written = self.scratch / "purpose.new"
            written.write_text(json.dumps(wanted))
            written.rename(record)
        except OSError as error:
            raise TargetError(
                self.path, f"{self.scratch} cannot be made: {error.strerror}"
            ) from None
        return False

    def _check_purpose(self, wanted: dict[str, Any], found: dict[str, Any]) -> bool:
        if found.get("boot") != wanted["boot"]:
            raise TargetError(
                self.path,
                "was begun before the machine was restarted, and may lack what was written then: "
                f"delete it and {self.scratch}, and begin again",
            )
        if found.get("root") != wanted["root"]:
            raise TargetError(
                self.path,
                f"is not the directory that was begun in: to begin again, delete {self.scratch}",
            )
        if found != wanted:
            different = sorted(key for key in wanted if found.get(key) != wanted[key])
            raise TargetError(
                self.path,
                f"is half done with other options ({', '.join(different)}): finish that, or delete "
                f"it and {self.scratch}",
            )
        return True

    def clear_acls(self) -> None:
        """Take away what a new target inherited from the directory that it is in: only what the
        journal tells belongs to it. Raises TargetError."""
        for name in (ACCESS_ACL_XATTR, DEFAULT_ACL_XATTR):
            try:
                os.removexattr(self._root_fd, name)
            except OSError as error:
                if not syscalls.missing(error):
                    raise TargetError(self.path, error.strerror or "cannot be changed") from None

    # -- operations --------------------------------------------------------------------------------

    def record(self, operation: TreeOperation, seq: Seq, time_ns: int) -> None:
        """Take in an entry that the target has already."""
        self.catalog.record(operation, seq, time_ns)
        self._has_unbound = True
        self._commit_in_time()

    def apply(
        self, operation: TreeOperation, seq: Seq, time_ns: int, data: bytes | memoryview
    ) -> None:
        """Carry out one operation. Raises ConflictError, TargetFullError, PrivilegeError,
        TargetError; the operation is then not done, and may be tried again."""
        if isinstance(operation, Rename) and not operation.flags & RENAME_EXCHANGE:
            # What it replaced in the journal's own tree may be missing here.
            there = self.catalog.lookup(operation.new_parent, operation.new_name)
            operation = operation._replace(replaced=there or Fid(0))
        if seq <= self.done_seq:
            # Done before the process died, after the catalog's last commit.
            self.record(operation, seq, time_ns)
            return
        settle = seq == self._begun_seq
        try:
            if settle:
                self._recall(operation)
            if self._has_unbound:
                self._bind(operation)
            if not settle and operation.kind in _NOTED:
                self._note(operation)
            _PROGRESS.pack_into(self._progress, 0, self.done_seq, seq)
            self.tree.settling = operation.fid if settle else None
            made = self._applier.apply(operation, time_ns, data, settle)
        except (OSError, ApplyBrokenError) as error:
            self._begun_seq = seq  # it may be tried again by this very process
            raise self._error(operation, seq, error) from error
        self.catalog.record(operation, seq, time_ns, made.handle, made.ino)
        if self.catalog.node(operation.fid) is None:
            self.tree.forget_descriptor(operation.fid)
        if isinstance(operation, Rename) and self.catalog.node(operation.replaced) is None:
            self.tree.forget_descriptor(operation.replaced)
        self.done_seq = seq
        _PROGRESS.pack_into(self._progress, 0, seq, seq)
        self._commit_in_time()

    def _commit_in_time(self) -> None:
        if self.catalog.changes >= COMMIT_CHANGES:
            try:
                self.catalog.commit()
            except OSError as error:
                raise self._scratch_error(error) from None

    def _scratch_error(self, error: OSError) -> TargetError:
        if error.errno in _FULL:
            return TargetFullError(self.path, "no space left beside it; run the same again")
        return TargetError(self.scratch, error.strerror or "cannot be written")

    def _note(self, operation: TreeOperation) -> None:
        """Keep what it takes to tell, after a kill, whether the operation was done: the inode
        numbers of what it is about, and the mtime of a directory that is to keep it."""
        node = self.catalog.node(operation.fid)
        other = self.catalog.node(operation.replaced) if isinstance(operation, Rename) else None
        mtime_ns = 0
        if operation.kind in _MTIME_KEPT:
            mtime_ns = self.tree.stat(operation.parent).st_mtime_ns  # type: ignore[union-attr]
        inos = (one.ino if one is not None else 0 for one in (node, other))
        _BEFORE.pack_into(self._progress, _PROGRESS.size, *inos, mtime_ns)

    def _recall(self, operation: TreeOperation) -> None:
        """Before an operation is settled: what :meth:`_note` kept. Its names may be others by now,
        so the inode numbers cannot be had from them. Raises OSError."""
        self._has_unbound = True
        if operation.kind not in _NOTED:
            return
        *inos, mtime_ns = _BEFORE.unpack_from(self._progress, _PROGRESS.size)
        fids = (operation.fid, getattr(operation, "replaced", Fid(0)))
        for fid, ino in zip(fids, inos, strict=True):
            node = self.catalog.node(fid)
            if node is not None and ino:
                node.ino = ino
                self.catalog.touch(node)
        if operation.kind in _MTIME_KEPT:
            directory: Fid = operation.parent  # type: ignore[union-attr]
            self.bind(directory)
            syscalls.set_times(self.tree.descriptor(directory), None, mtime_ns)

    def _bind(self, operation: TreeOperation) -> None:
        """Make sure of the files that were in the target before: their inode numbers are not
        known yet. Raises OSError."""
        for index in TOUCHED[operation.kind]:
            self.bind(operation[index])  # type: ignore[arg-type]
        if isinstance(operation, Rename) and operation.replaced:
            self.bind(operation.replaced)

    def bind(self, fid: Fid) -> None:
        """Check that *fid* is where the catalog says and of the right type. Raises OSError."""
        node = self.catalog.node(fid)
        if node is None:
            raise OSError(errno.ENOENT, os.strerror(errno.ENOENT))
        if node.ino == 0:
            place = self.catalog.place(node)
            if place is None:
                raise OSError(errno.ENOENT, os.strerror(errno.ENOENT))
            stat = self.tree.stat_name(*place)
            if S_IFMT(stat.st_mode) != node.type:
                raise OSError(errno.EEXIST, "a file of another type")
            node.ino = stat.st_ino
            self.catalog.touch(node)

    def _error(
        self, operation: TreeOperation, seq: Seq, error: OSError | ApplyBrokenError
    ) -> FusejournalError:
        """What an operation's failure is for the user."""
        cause = error if isinstance(error, OSError) else error.__cause__
        number = getattr(cause, "errno", None) or errno.EIO
        path = self.where(operation)
        reason = os.strerror(number)
        if number in _FULL:
            return TargetFullError(
                self.path, f"no space left at seq {seq} ({path}); make some and run the same again"
            )
        if number in _REFUSED:
            return PrivilegeError(f"{path}: {reason} (seq {seq})")
        if number == errno.EOPNOTSUPP:
            return TargetError(self.path, f"its file system cannot hold what seq {seq} sets")
        if isinstance(error, ApplyBrokenError) or number == errno.EIO:
            return TargetError(path, f"seq {seq}: {error}")
        return ConflictError(
            f"seq {seq} ({operation.kind.name.lower()} {path}): {reason}; the target is not as the "
            "journal had it"
        )

    def where(self, operation: Operation) -> str:
        """The path in the target that *operation* is about, for messages."""
        parent = getattr(operation, "parent", None)
        if parent is not None:
            directory = self.catalog.path(parent)
            name: Any = operation.name  # type: ignore[union-attr]
            path = None if directory is None else os.path.join(directory, name)
        else:
            path = self.catalog.path(operation.fid)  # type: ignore[union-attr]
        return os.fsdecode(os.path.join(os.fsencode(self.path), path or b"?"))


def _boot_id() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def is_empty(path: Path) -> bool:
    """Whether the directory *path* holds nothing (``lost+found`` of a new file system aside)."""
    return all(name == "lost+found" for name in os.listdir(path))


Progress = Callable[[int, int | None], None]
