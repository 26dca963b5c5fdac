"""The files of a volume as an undo works with them: opened by fid, and looked at before each
change, because users work on meanwhile.

A fid is the layer's file handle, so a descriptor is the file that the plan means or none. A file's
ctime on a volume is the time of its last entry: it tells, before each change, whether another
process changed the file since the plan. Of a directory the journal records (undo_others.py).

Source: open_by_handle_at(2), fuse(4)."""

import errno
import os
import re
import stat
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from itertools import count
from pathlib import Path

from fusejournal.backing.apply_new import FLAGS_PATH
from fusejournal.disk import syscalls
from fusejournal.disk.acls import ACCESS_ACL_XATTR, DEFAULT_ACL_XATTR
from fusejournal.errors import ConflictError
from fusejournal.history.lookup import Lookup
from fusejournal.history.name_changes import Dentry
from fusejournal.replay.undo_others import OtherChanges
from fusejournal.types import ROOT_FID, Fid, Progress, Seq

FLAGS_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW

_PRIVATE_NAME = re.compile(rb"\.fusejournal-undo\.(\d+)\.\d+")
_PRIVATE_PREFIX = b".fusejournal-undo"
_DESCRIPTORS_MAX = 256
_OF_OTHERS = frozenset(
    {
        errno.ENOENT, errno.ESTALE, errno.EEXIST, errno.ENOTEMPTY, errno.ENOTDIR, errno.EISDIR,
        errno.ELOOP, errno.ENODATA,
    }
)  # fmt: skip
"""Errors of a call when another process has changed what it is about since the last look."""


def _ignore(_: str) -> None:
    pass


on_step: Callable[[str], None] = _ignore
"""Runs before each step that another process could come before; for tests."""


def pid_of_private(name: bytes) -> int | None:
    """The process whose undo made the private directory *name* at the root; None if it is none."""
    found = _PRIVATE_NAME.fullmatch(name)
    return None if found is None else int(found[1])


class UndoFiles:
    """The files of a mounted volume, for one plan.

    Args:
        lookup: questions to its journal.
        head_seq: the last entry when the plan was made.
        mountpoint: where the volume is mounted.
        progress: called while the journal is read.
        stack: closes what is opened here.
        private_prefix: the private directory's name begins with it, and goes on with the
            process."""

    def __init__(
        self,
        lookup: Lookup,
        head_seq: Seq,
        mountpoint: Path,
        progress: Progress,
        stack: ExitStack,
        private_prefix: bytes = _PRIVATE_PREFIX,
    ) -> None:
        self._private_prefix = private_prefix
        self._lookup = lookup
        self._handle_key = lookup.reader.handle_key()
        self._end = Seq(head_seq + 1)
        (head,) = lookup.reader.read(head_seq, self._end)
        self._planned_ns = head.time_ns
        self._stack = stack
        self._progress = progress
        self._done = 0
        self.types: dict[Fid, int] = {}
        """Type bits of modes, as far as they are known; also those of files to be made."""
        self.others = OtherChanges(lookup.reader, self._end)
        self._descriptors: OrderedDict[Fid, int] = OrderedDict()
        self._made: dict[Fid, bytes] = {}
        """Handles of new directories."""
        self._last_ns: dict[Fid, int] = {}
        """The ctimes that our own last changes gave to files that were there."""
        stack.callback(self._close)
        self.root = os.open(mountpoint, FLAGS_DIRECTORY | os.O_CLOEXEC)
        stack.callback(os.close, self.root)
        self.staging = -1
        """The private directory, while there is one."""
        self._staging_name = b""

    def tick(self, _: int, __: int | None) -> None:
        """Runs while the journal is read."""
        self._done += 1
        self._progress(self._done, None)

    def step(self, step: str) -> None:
        """Runs between two steps: Ctrl-C comes in here."""
        self.tick(0, None)
        self.moment(step)

    def moment(self, step: str) -> None:
        """Runs where other processes may come before *step*."""
        on_step(step)

    # -- opening -----------------------------------------------------------------------------------

    def directory(self, fid: Fid) -> int:
        """A descriptor of directory *fid*, good for some time: not all can be open at once.
        Raises ConflictError when it is gone."""
        if fid == ROOT_FID:
            return self.root
        fd = self._descriptors.get(fid)
        if fd is not None:
            self._descriptors.move_to_end(fid)
            return fd
        return self._keep(fid, self._open(fid, FLAGS_DIRECTORY))

    def _open(self, fid: Fid, flags: int) -> int:
        """Open a file of the volume that is there, or one that was made anew. Raises
        ConflictError."""
        handle = self._made.get(fid)
        if handle is None:
            handle = syscalls.fuse_handle(fid, self._handle_key.generation(fid))
        try:
            return syscalls.open_by_handle(self.root, handle, flags)
        except OSError as error:
            if error.errno in (errno.ESTALE, errno.ENOTDIR, errno.ENOENT):
                raise self.changed_meanwhile(fid) from error
            raise

    def _keep(self, fid: Fid, fd: int) -> int:
        self._descriptors[fid] = fd
        if len(self._descriptors) > _DESCRIPTORS_MAX:
            os.close(self._descriptors.popitem(last=False)[1])
        return fd

    def note_made(self, fid: Fid, fd: int) -> None:
        """*fid* is the new directory that *fd*, which goes over to this object, is open on."""
        self._made[fid] = syscalls.handle_of(fd)
        self._keep(fid, fd)

    def _close(self) -> None:
        for fd in self._descriptors.values():
            os.close(fd)

    def is_directory(self, fid: Fid) -> bool:
        """Returns whether *fid*, which is there, is one. Raises ConflictError when it is gone."""
        if fid not in self.types:
            if fid == ROOT_FID:
                self.types[fid] = stat.S_IFDIR
            else:
                with self.opened(fid, FLAGS_PATH) as fd:
                    self.types[fid] = stat.S_IFMT(os.fstat(fd).st_mode)
        return self.types[fid] == stat.S_IFDIR

    @contextmanager
    def opened(self, fid: Fid, flags: int) -> Iterator[int]:
        """A descriptor of *fid* for the length of the block. Raises ConflictError."""
        fd = self._open(fid, flags)
        try:
            yield fd
        finally:
            os.close(fd)

    # -- the private directory ---------------------------------------------------------------------

    @contextmanager
    def private_directory(self) -> Iterator[None]:
        """A new hidden directory at the root, which only root can enter, is there for the
        length of the block. What is in it after a failure stays."""
        for number in count():
            name = b"%s.%d.%d" % (self._private_prefix, os.getpid(), number)
            with suppress(FileExistsError):
                os.mkdir(name, 0o700, dir_fd=self.root)
                break
        self._staging_name = name
        self.staging = os.open(name, FLAGS_DIRECTORY | os.O_CLOEXEC, dir_fd=self.root)
        self._stack.callback(os.close, self.staging)
        # Nothing that is made in it shall inherit anything.
        for key in (ACCESS_ACL_XATTR, DEFAULT_ACL_XATTR):
            try:
                os.removexattr(self.staging, key)
            except OSError as error:
                if not syscalls.missing(error):
                    raise
        os.fchmod(self.staging, 0o700)
        self.others.begin(Fid(os.fstat(self.staging).st_ino))
        try:
            yield
        except BaseException:
            with suppress(OSError):  # something is in it
                os.rmdir(name, dir_fd=self.root)
            raise
        os.rmdir(name, dir_fd=self.root)

    # -- whether another process was at it ---------------------------------------------------------

    def check(self, fid: Fid, found: os.stat_result) -> None:
        """Raises ConflictError when another process changed *fid* since the plan, or since we
        did."""
        known = self._last_ns.get(fid)
        if found.st_ctime_ns == known or (known is None and found.st_ctime_ns <= self._planned_ns):
            return
        if stat.S_ISDIR(found.st_mode):
            # It may be the time of a name in it: those are looked at themselves.
            self.others.look()
            if not self.others.have_changed(fid):
                return
        raise self.changed_meanwhile(fid)

    def note(self, fid: Fid, fd: int) -> None:
        """Notes that *fid*, open on *fd*, was changed just now by us."""
        self.note_time(fid, os.fstat(fd))

    def note_time(self, fid: Fid, found: os.stat_result) -> None:
        """The same, where what it was *found* as is known."""
        self._last_ns[fid] = found.st_ctime_ns

    def was_changed(self, fid: Fid) -> bool:
        """True if *fid* was noted as changed by us."""
        return fid in self._last_ns

    def check_name(self, dentry: Dentry, fid: Fid) -> os.stat_result:
        """Raises ConflictError when the name does not stand for *fid* any more, or that was
        changed."""
        try:
            found = os.stat(dentry[1], dir_fd=self.directory(dentry[0]), follow_symlinks=False)
        except FileNotFoundError:
            raise self.name_changed(dentry) from None
        if found.st_ino != fid:
            raise self.name_changed(dentry)
        self.check(fid, found)
        return found

    @contextmanager
    def guarded(self, conflict: Callable[[], ConflictError], *more: int) -> Iterator[None]:
        """Raises *conflict* where the block fails as only another process can have made it fail
        (*more*: errnos for which this is so here, too)."""
        try:
            yield
        except OSError as error:
            if error.errno in _OF_OTHERS or error.errno in more:
                raise conflict() from error
            raise

    def _shown(self, fid: Fid) -> str:
        path = self._lookup.path_before(fid, self._end)
        return "/" + path.decode("utf-8", "backslashreplace") if path is not None else f"fid {fid}"

    def changed_meanwhile(self, fid: Fid) -> ConflictError:
        """The error where another process changed *fid*."""
        return ConflictError(
            f"{self._shown(fid)}: another process changed it since this was planned"
        )

    def _shown_name(self, dentry: Dentry) -> str:
        path = self._lookup.join(*dentry, self._end)
        return "/" + (path or b"?/" + dentry[1]).decode("utf-8", "backslashreplace")

    def name_changed(self, dentry: Dentry) -> ConflictError:
        """The error where it changed what *dentry* stands for."""
        shown = self._shown_name(dentry)
        return ConflictError(f"{shown}: another process changed it since this was planned")

    def name_taken(self, dentry: Dentry, staged: bytes | None = None) -> ConflictError:
        """The error where it took *dentry*, which was for what is *staged*, if it is already."""
        where = "" if staged is None else f"; what is to have it is {self._shown_staged(staged)}"
        shown = self._shown_name(dentry)
        return ConflictError(
            f"{shown}: another process took the name since this was planned{where}"
        )

    def left_behind(self, dentry: Dentry, staged: bytes) -> ConflictError:
        """The error where what is *staged* can go neither to *dentry* nor away."""
        return ConflictError(
            f"{self._shown_name(dentry)}: another process changed it since this was planned; what "
            f"was to go or to come is {self._shown_staged(staged)}"
        )

    def _shown_staged(self, name: bytes) -> str:
        return os.fsdecode(b"/" + self._staging_name + b"/" + name)

    def change(self, fid: Fid, fd: int, change: Callable[[], None]) -> None:
        """Change a file that is there, if no other process did. Raises ConflictError."""
        self.moment("change")
        self.check(fid, os.fstat(fd))
        self.moment("between")
        with self.guarded(partial(self.changed_meanwhile, fid)):
            change()
        self.note(fid, fd)
