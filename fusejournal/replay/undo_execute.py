"""Carrying an undo's plan out on the live volume, through the layer, as any user's changes go: so
it is journaled, shipped, and can be undone itself.

Users work on meanwhile. So nothing is reached by a path: directories and files are opened by their
fid, which is the layer's file handle, and a descriptor is the file that the plan means or none.
Only a name that is taken away must be found by name; it is moved into a directory that nobody else
can enter first, looked at there, and moved back if it is not what was planned. A file's ctime on a
volume is the time of its last entry: it tells, before each change, whether another process changed
the file since the plan. Of a directory, and of what slips in between that look and the change, the
journal tells (undo_others.py).

What comes back is made in that directory first, whole, and then gets its name: of a tree only the
topmost directory, so that all of it is there at once.

At whatever point it is stopped, nothing is lost: what is on its way lies in the private directory,
and undoing its own entries gives back the tree as it was.

Source: open_by_handle_at(2), rename(2), linkat(2) (AT_EMPTY_PATH), fuse(4)."""

import errno
import os
import re
import stat
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterator
from contextlib import ExitStack, contextmanager, suppress
from itertools import count, islice
from pathlib import Path
from typing import NamedTuple

from fusejournal.disk import calls, syscalls
from fusejournal.disk.acls import ACCESS_ACL_XATTR, DEFAULT_ACL_XATTR
from fusejournal.errors import ConflictError
from fusejournal.history.file_states import State, rdev_of, target_of, type_of
from fusejournal.history.lookup import Lookup
from fusejournal.history.mtimes import mtimes_before
from fusejournal.history.name_changes import Dentry
from fusejournal.operations import RENAME_NOREPLACE
from fusejournal.replay.attributes import attribute_changes, set_new_attributes
from fusejournal.replay.divergence import Divergence
from fusejournal.replay.extents import Extent, read_extents
from fusejournal.replay.images import Image, not_told, read_images
from fusejournal.replay.target import Progress
from fusejournal.replay.undo_others import OtherChanges, Overlap
from fusejournal.types import ROOT_FID, Fid, Seq

_PRIVATE_NAME = re.compile(rb"\.fusejournal-undo\.(\d+)\.\d+")
_DESCRIPTORS_MAX = 256
_BATCH_FILES = 2048
_COPY_BYTES = 1 << 20
_FLAGS_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW
_FLAGS_NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_FLAGS_PATH = os.O_PATH | os.O_NOFOLLOW
_OF_OTHERS = frozenset(
    {
        errno.ENOENT, errno.ESTALE, errno.EEXIST, errno.ENOTEMPTY, errno.ENOTDIR, errno.EISDIR,
        errno.ELOOP, errno.ENODATA,
    }
)  # fmt: skip
"""How a call fails when another process has changed what it is about since the last look."""


def _ignore(_: str) -> None:
    pass


on_step: Callable[[str], None] = _ignore
"""Called before each step that somebody else could come before; for tests."""


def pid_of_private(name: bytes) -> int | None:
    """The process whose undo made the private directory *name* at the root; None if it is none."""
    found = _PRIVATE_NAME.fullmatch(name)
    return None if found is None else int(found[1])


class _Seen(NamedTuple):
    """What of a file changes when somebody writes to it, and not when its name moves."""

    ino: int
    mode: int
    uid: int
    gid: int
    size: int
    mtime_ns: int

    @classmethod
    def of(cls, found: os.stat_result) -> "_Seen":
        size = 0 if stat.S_ISDIR(found.st_mode) else found.st_size
        return cls(found.st_ino, found.st_mode, found.st_uid, found.st_gid, size, found.st_mtime_ns)


class _Doomed(NamedTuple):
    """A name to be removed: its directory, and what it stands for."""

    directory: Fid
    name: bytes
    fid: Fid


class UndoExecutor:
    """Carries out one plan: *divergence* tells names, *counts* which entries stay, *places* what
    names the files concerned have after entry *head_seq*."""

    def __init__(
        self,
        lookup: Lookup,
        divergence: Divergence,
        counts: Callable[[Seq], bool],
        head_seq: Seq,
        places: dict[Fid, list[Dentry]],
        mountpoint: Path,
        stack: ExitStack,
    ) -> None:
        self._lookup = lookup
        self._handle_key = lookup.reader.handle_key()
        self._counts = counts
        self._head_seq = head_seq
        self._end = Seq(head_seq + 1)
        self._places = places
        self._stack = stack
        self._progress: Progress = lambda done, total: None
        self._done = 0
        self._wanted = {place: fid for place, fid, _ in divergence.changed_places()}
        """What names are to stand for; None: nothing."""
        self._now = {place: fid for fid, found in divergence.lacking.items() for place in found}
        """What those of them that stand for something now stand for."""
        self._new = {
            fid for fid in self._wanted.values() if fid is not None and not self._is_there(fid)
        }
        """Files that are gone, and have to be made anew."""
        self._types: dict[Fid, int] = {}
        self._descriptors: OrderedDict[Fid, int] = OrderedDict()
        self._made: dict[Fid, bytes] = {}
        """Handles of new directories."""
        stack.callback(self._close)
        self._root = os.open(mountpoint, _FLAGS_DIRECTORY | os.O_CLOEXEC)
        stack.callback(os.close, self._root)
        self._last_ns: dict[Fid, int] = {}
        """The ctimes that our own last changes gave to files that were there."""
        self._others: OtherChanges | None = None
        (head,) = lookup.reader.read(head_seq, self._end)
        self._planned_ns = head.time_ns
        self._numbers = count()
        self._new_times: dict[Fid, int] = {}

    def _is_there(self, fid: Fid) -> bool:
        return fid == ROOT_FID or bool(self._places.get(fid))

    def run(
        self,
        changed: Collection[Fid],
        with_content: Collection[Fid],
        directories: Collection[Fid],
        progress: Progress,
    ) -> None:
        """Everything: names, then the content and attributes of the *changed* files, of which those
        *with_content* have other content, too, and last the mtimes of *directories*, in which names
        were changed."""
        self._progress = progress
        self._types = self._lookup.types_of_many(self._new)
        for fid in self._new:
            if fid not in self._types:
                raise not_told(self._lookup, fid)
        times = self._wanted_times({*changed, *directories})
        self._others = self._watch(changed, times.keys())
        self._check_all(changed)
        self._stack.callback(os.umask, os.umask(0))
        with self._private_directory():
            staged = self._make_new()
            self._stage_alive(staged)
            self._remove()
            times |= self._put_in_place(staged)
            self._rewrite_all(changed, set(with_content))
        self._set_times(times)
        os.fsync(self._root)  # the journal's flush, and with it everything above

    def overlaps(self) -> list[Overlap]:
        """What other processes changed in the moment between a look at it and this undo's change;
        to be asked at the end, however that came. Raises JournalDamagedError."""
        return [] if self._others is None else self._others.overlaps()

    def _tick(self, _: int, __: int | None) -> None:
        """While the journal is read."""
        self._done += 1
        self._progress(self._done, None)

    def _step(self, step: str) -> None:
        """Between two steps: Ctrl-C comes in here."""
        self._tick(0, None)
        on_step(step)

    # -- directories -------------------------------------------------------------------------------

    def _directory(self, fid: Fid) -> int:
        """A descriptor of directory *fid*, good for some time: not all can be open at once.
        Raises ConflictError when it is gone."""
        if fid == ROOT_FID:
            return self._root
        fd = self._descriptors.get(fid)
        if fd is not None:
            self._descriptors.move_to_end(fid)
            return fd
        return self._keep(fid, self._open(fid, _FLAGS_DIRECTORY))

    def _open(self, fid: Fid, flags: int) -> int:
        """Open a file of the volume that is there, or one that was made anew. Raises
        ConflictError."""
        handle = self._made.get(fid)
        if handle is None:
            handle = syscalls.fuse_handle(fid, self._handle_key.generation(fid))
        try:
            return syscalls.open_by_handle(self._root, handle, flags)
        except OSError as error:
            if error.errno in (errno.ESTALE, errno.ENOTDIR, errno.ENOENT):
                raise self._changed_meanwhile(fid) from error
            raise

    def _keep(self, fid: Fid, fd: int) -> int:
        self._descriptors[fid] = fd
        if len(self._descriptors) > _DESCRIPTORS_MAX:
            os.close(self._descriptors.popitem(last=False)[1])
        return fd

    def _close(self) -> None:
        for fd in self._descriptors.values():
            os.close(fd)

    @contextmanager
    def _private_directory(self) -> Iterator[None]:
        """A new hidden directory at the root, which nobody but root can enter, is there for the
        length of the block. What is in it after a failure stays."""
        for number in count():
            name = b".fusejournal-undo.%d.%d" % (os.getpid(), number)
            with suppress(FileExistsError):
                os.mkdir(name, 0o700, dir_fd=self._root)
                break
        self._staging_name = name
        self._staging = os.open(name, _FLAGS_DIRECTORY | os.O_CLOEXEC, dir_fd=self._root)
        self._stack.callback(os.close, self._staging)
        # Nothing that is made in it shall inherit anything.
        for key in (ACCESS_ACL_XATTR, DEFAULT_ACL_XATTR):
            try:
                os.removexattr(self._staging, key)
            except OSError as error:
                if not syscalls.missing(error):
                    raise
        os.fchmod(self._staging, 0o700)
        assert self._others is not None
        self._others.begin(Fid(os.fstat(self._staging).st_ino))
        try:
            yield
        except BaseException:
            with suppress(OSError):  # something is in it
                os.rmdir(name, dir_fd=self._root)
            raise
        os.rmdir(name, dir_fd=self._root)

    def _wanted_times(self, changed: Collection[Fid]) -> dict[Fid, int]:
        """The mtimes, as they are to be, of all directories that are there and of which names or
        something else (*changed*) changes; where the journal here does not tell, as they are."""
        fids = {fid for fid in changed if self._is_directory(fid)}
        fids |= {place[0] for place in self._wanted} - self._new
        fids -= {fid for fid in self._now.values() if fid not in self._wanted.values()}
        times = mtimes_before(self._lookup, fids, self._end, self._counts)
        for fid in {*fids, ROOT_FID} - times.keys():
            times[fid] = os.fstat(self._directory(fid)).st_mtime_ns
        if ROOT_FID not in fids:
            times[ROOT_FID] = os.fstat(self._root).st_mtime_ns
        return times

    def _is_directory(self, fid: Fid) -> bool:
        """Of a file that is there. Raises ConflictError when it is gone."""
        if fid not in self._types:
            if fid == ROOT_FID:
                self._types[fid] = stat.S_IFDIR
            else:
                with self._opened(fid, _FLAGS_PATH) as fd:
                    self._types[fid] = stat.S_IFMT(os.fstat(fd).st_mode)
        return self._types[fid] == stat.S_IFDIR

    @contextmanager
    def _opened(self, fid: Fid, flags: int) -> Iterator[int]:
        fd = self._open(fid, flags)
        try:
            yield fd
        finally:
            os.close(fd)

    # -- whether another process was at it ---------------------------------------------------------

    def _watch(self, changed: Collection[Fid], directories: Collection[Fid]) -> OtherChanges:
        fids = {*changed, *self._now.values(), *directories}
        fids |= {fid for fid in self._wanted.values() if fid is not None} - self._new
        return OtherChanges(
            self._lookup.reader, self._end, fids, {*self._wanted, *self._now}, directories
        )

    def _check(self, fid: Fid, found: os.stat_result) -> None:
        """Raises ConflictError when another process changed *fid* since the plan, or since we
        did."""
        known = self._last_ns.get(fid)
        if found.st_ctime_ns == known or (known is None and found.st_ctime_ns <= self._planned_ns):
            return
        if stat.S_ISDIR(found.st_mode):
            # It may be the time of a name in it: those are looked at themselves.
            assert self._others is not None
            self._others.look()
            if not self._others.have_changed(fid):
                return
        raise self._changed_meanwhile(fid)

    def _note(self, fid: Fid, fd: int) -> None:
        """What was just changed was changed by us."""
        self._last_ns[fid] = os.fstat(fd).st_ctime_ns

    def _check_name(self, place: Dentry, fid: Fid) -> os.stat_result:
        """Raises ConflictError when the name does not stand for *fid* any more, or that was
        changed."""
        try:
            found = os.stat(place[1], dir_fd=self._directory(place[0]), follow_symlinks=False)
        except FileNotFoundError:
            raise self._name_changed(place) from None
        if found.st_ino != fid:
            raise self._name_changed(place)
        self._check(fid, found)
        return found

    def _check_all(self, changed: Collection[Fid]) -> None:
        """Before anything is written; each is looked at again when its turn comes."""
        for place, fid in self._now.items():
            self._step("check")
            self._types[fid] = stat.S_IFMT(self._check_name(place, fid).st_mode)
        for fid in changed:
            self._step("check")
            with self._opened(fid, _FLAGS_PATH) as fd:
                self._check(fid, os.fstat(fd))
        for place, wanted in self._wanted.items():
            if wanted is None or place in self._now or place[0] in self._new:
                continue
            with suppress(FileNotFoundError):
                os.stat(place[1], dir_fd=self._directory(place[0]), follow_symlinks=False)
                raise self._name_taken(place)

    @contextmanager
    def _guarded(self, conflict: Callable[[], ConflictError], *more: int) -> Iterator[None]:
        """What fails inside as only another process can have made it fail (*more*: errnos for
        which this is so here, too) raises *conflict*."""
        try:
            yield
        except OSError as error:
            if error.errno in _OF_OTHERS or error.errno in more:
                raise conflict() from error
            raise

    def _shown(self, fid: Fid) -> str:
        path = self._lookup.path_before(fid, self._end)
        return "/" + path.decode("utf-8", "backslashreplace") if path is not None else f"fid {fid}"

    def _changed_meanwhile(self, fid: Fid) -> ConflictError:
        return ConflictError(f"{self._shown(fid)}: somebody changed it since this was planned")

    def _shown_name(self, place: Dentry) -> str:
        path = self._lookup.join(*place, self._end)
        return "/" + (path or b"?/" + place[1]).decode("utf-8", "backslashreplace")

    def _name_changed(self, place: Dentry) -> ConflictError:
        shown = self._shown_name(place)
        return ConflictError(f"{shown}: somebody changed it since this was planned")

    def _name_taken(self, place: Dentry, staged: bytes | None = None) -> ConflictError:
        where = "" if staged is None else f"; what is to have it is {self._shown_staged(staged)}"
        shown = self._shown_name(place)
        return ConflictError(f"{shown}: somebody took the name since this was planned{where}")

    def _left_behind(self, place: Dentry, staged: bytes) -> ConflictError:
        return ConflictError(
            f"{self._shown_name(place)}: somebody changed it since this was planned; what was to "
            f"go or to come is {self._shown_staged(staged)}"
        )

    def _shown_staged(self, name: bytes) -> str:
        return os.fsdecode(b"/" + self._staging_name + b"/" + name)

    # -- what comes back ---------------------------------------------------------------------------

    def _make_new(self) -> dict[Dentry, bytes]:
        """Make all that is gone: what has its place in a new directory there, and all else in the
        private directory. Returns the names in that, by the places where they belong."""
        inside: dict[Fid, list[tuple[bytes, Fid]]] = {}
        staged: dict[Dentry, bytes] = {}
        for place, fid in self._wanted.items():
            if fid is None:
                continue
            if place[0] in self._new and fid in self._new:
                inside.setdefault(place[0], []).append((place[1], fid))
            elif fid in self._new:
                staged[place] = self._name(fid)
        directories: list[Fid] = []
        files: list[tuple[Fid, bytes, Fid]] = []
        # ROOT_FID stands for the private directory here.
        level = [(ROOT_FID, name, self._wanted[place]) for place, name in staged.items()]
        while level:
            below: list[tuple[Fid, bytes, Fid | None]] = []
            for parent, name, fid in level:
                assert fid is not None
                if self._types[fid] != stat.S_IFDIR:
                    files.append((parent, name, fid))
                    continue
                self._step("mkdir")
                self._make_directory(parent, name, fid)
                directories.append(fid)
                below += [(fid, child, one) for child, one in inside.get(fid, ())]
            level = below
        self._make_files(files)
        self._finish_directories(directories)
        return staged

    def _name(self, fid: Fid) -> bytes:
        """A new name for *fid* in the private directory."""
        return b"%d.%d" % (fid, next(self._numbers))

    def _parent(self, fid: Fid) -> int:
        return self._staging if fid == ROOT_FID else self._directory(fid)

    def _make_directory(self, parent: Fid, name: bytes, fid: Fid) -> None:
        directory = self._parent(parent)
        os.mkdir(name, 0o700, dir_fd=directory)
        fd = os.open(name, _FLAGS_DIRECTORY | os.O_CLOEXEC, dir_fd=directory)
        self._made[fid] = syscalls.handle_of(fd)
        self._keep(fid, fd)

    def _finish_directories(self, fids: list[Fid]) -> None:
        """Attributes, last, for what is made in a directory would inherit them and change its
        mtime."""
        self._new_times = times = mtimes_before(self._lookup, fids, self._end, self._counts)
        for batch in _batches(fids):
            images = self._images(batch)
            for fid in batch:
                self._step("attributes")
                fd = self._directory(fid)
                self._set_attributes(fd, images[fid].state)
                if fid in times:
                    syscalls.set_times(fd, None, times[fid])

    def _images(self, fids: Collection[Fid], *, with_data: bool = False) -> dict[Fid, Image]:
        """What files are to be. Raises JournalError."""
        images = read_images(
            self._lookup, fids, self._end, self._counts, self._tick, with_data=with_data
        )
        for fid, image in images.items():
            if image.state.uid is None:
                raise not_told(self._lookup, fid)
        return images

    def _make_files(self, files: list[tuple[Fid, bytes, Fid]]) -> None:
        """Make files at (directory, name, fid); those with several places are linked."""
        first: dict[Fid, tuple[Fid, bytes]] = {}
        links: list[tuple[Fid, bytes, Fid]] = []
        for parent, name, fid in files:
            if fid in first:
                links.append((parent, name, fid))
            else:
                first[fid] = parent, name
        for batch in _batches(first):
            images = self._images(batch, with_data=True)
            for fid in batch:
                self._step("make")
                parent, name = first[fid]
                self._make_file(images.pop(fid), self._parent(parent), name)
        for parent, name, fid in links:
            self._step("link")
            there, known = first[fid]
            os.link(
                known, name, src_dir_fd=self._parent(there), dst_dir_fd=self._parent(parent),
                follow_symlinks=False,
            )  # fmt: skip

    def _make_file(self, image: Image, directory: int, name: bytes) -> None:
        """Make a file that is no directory, as *image* has it."""
        state = image.state
        assert state.maker is not None
        kind, mode = type_of(state.maker), state.permissions().mode or 0
        # The mode as far as it can be now: a later write or chown would clear the rest.
        mode &= 0o777
        target = target_of(state.maker)
        if kind == stat.S_IFREG:
            fd = os.open(name, _FLAGS_NEW, mode, dir_fd=directory)
        else:
            if target is not None:
                os.symlink(target, name, dir_fd=directory)
            else:
                os.mknod(name, kind | mode, rdev_of(state.maker), dir_fd=directory)
            fd = os.open(name, _FLAGS_PATH | os.O_CLOEXEC, dir_fd=directory)
        try:
            if kind == stat.S_IFREG:
                end = 0
                for offset, data in image.pieces(self._lookup):
                    self._step("write")
                    calls.write_all("undo.write", fd, data, offset)
                    end = max(end, offset + len(data))
                if state.size != end:
                    calls.ftruncate("undo.truncate", fd, state.size)
            set_new_attributes(fd, state, mode)
            assert state.mtime_ns is not None
            syscalls.set_times(fd, None, state.mtime_ns)
        finally:
            os.close(fd)

    # -- names -------------------------------------------------------------------------------------

    def _stage_alive(self, staged: dict[Dentry, bytes]) -> None:
        """Further names, in the private directory, for files that are there; directories move."""
        for place, fid in self._wanted.items():
            if fid is None or fid in self._new:
                continue
            self._step("stage")
            staged[place] = name = self._name(fid)
            if self._is_directory(fid):
                old = next(one for one in self._places[fid])
                self._move_away(old, fid, name)
                self._now.pop(old, None)
                continue
            with self._opened(fid, _FLAGS_PATH) as fd:
                self._check(fid, os.fstat(fd))
                on_step("stage link")
                with self._guarded(lambda: self._changed_meanwhile(fid)):  # noqa: B023
                    syscalls.link(fd, self._staging, name)
                self._note(fid, fd)

    def _move_away(self, place: Dentry, fid: Fid, name: bytes) -> None:
        """Move what has the name *place*, which must be *fid* as it was planned, into the private
        directory; if it turns out to be something else, move it back. Raises ConflictError."""
        seen = _Seen.of(self._check_name(place, fid))
        parent = self._directory(place[0])
        on_step("move away")
        with self._guarded(lambda: self._name_changed(place)):
            syscalls.rename(parent, place[1], self._staging, name, RENAME_NOREPLACE)
        found = os.stat(name, dir_fd=self._staging, follow_symlinks=False)
        if _Seen.of(found) != seen and not (found.st_ino == fid and stat.S_ISDIR(found.st_mode)):
            is_back = self._move_back(place, name)
            raise self._name_changed(place) if is_back else self._left_behind(place, name)
        if not stat.S_ISDIR(found.st_mode):
            self._last_ns[fid] = found.st_ctime_ns

    def _move_back(self, place: Dentry, name: bytes) -> bool:
        """Move *name* in the private directory back to *place*; returns whether that is free."""
        on_step("move back")
        try:
            syscalls.rename(
                self._staging, name, self._directory(place[0]), place[1], RENAME_NOREPLACE
            )
        except (OSError, ConflictError):
            return False
        return True

    def _remove(self) -> None:
        """Take names away. A directory goes with all that is in it, after a look that there is
        nothing else."""
        below: dict[Fid, dict[bytes, Fid]] = {}
        for place, fid in self._now.items():
            below.setdefault(place[0], {})[place[1]] = fid
        doomed = set(self._now.values())
        for place, fid in self._now.items():
            if place[0] in doomed and self._is_directory(place[0]):
                continue  # goes with that
            self._step("remove")
            name = self._name(fid)
            self._move_away(place, fid, name)
            order: list[_Doomed] = []
            if self._is_directory(fid):
                try:
                    with self._guarded(lambda: self._name_changed(place)):  # noqa: B023
                        order = list(self._walk_doomed(fid, below))
                except BaseException as error:
                    if self._move_back(place, name):
                        raise
                    raise self._left_behind(place, name) from error
            try:
                with self._guarded(lambda: self._name_changed(place)):  # noqa: B023
                    for one in reversed(order):
                        self._step("remove")
                        self._remove_one(self._directory(one.directory), one)
                    self._remove_one(self._staging, _Doomed(ROOT_FID, name, fid))
            except ConflictError as error:
                raise self._left_behind(place, name) from error

    def _walk_doomed(self, top: Fid, below: dict[Fid, dict[bytes, Fid]]) -> Iterator[_Doomed]:
        """All names in directory *top*, what is in a directory after it. Raises ConflictError when
        there are others than planned."""
        todo = [top]
        while todo:
            directory = todo.pop()
            expected = below.get(directory, {})
            found = set(syscalls.list_directory(self._directory(directory)))
            for name in found ^ expected.keys():
                raise self._name_changed((directory, name))
            for name, fid in expected.items():
                self._step("check")
                self._check_name((directory, name), fid)
                yield _Doomed(directory, name, fid)
                if self._is_directory(fid):
                    todo.append(fid)

    def _remove_one(self, directory: int, one: _Doomed) -> None:
        if self._is_directory(one.fid):
            on_step("rmdir")
            os.rmdir(one.name, dir_fd=directory)
            return
        found = os.stat(one.name, dir_fd=directory, follow_symlinks=False)
        if found.st_ino != one.fid:
            raise self._changed_meanwhile(one.fid)
        self._check(one.fid, found)
        on_step("unlink")
        os.unlink(one.name, dir_fd=directory)
        if found.st_nlink > 1:
            # What it has other names for may yet be changed: this was us.
            with suppress(ConflictError), self._opened(one.fid, _FLAGS_PATH) as fd:
                self._note(one.fid, fd)

    def _put_in_place(self, staged: dict[Dentry, bytes]) -> dict[Fid, int]:
        """Give what is staged its names. Returns the mtimes that new directories are to have again
        after that, by their fids in the plan."""
        filled = {place[0] for place in staged} & self._new_times.keys()
        assert self._others is not None
        self._others.watch_mtimes({Fid(os.fstat(self._directory(fid)).st_ino) for fid in filled})
        for place, name in staged.items():
            self._step("put in place")
            # (A directory cannot get below itself.)
            with self._guarded(lambda: self._left_behind(place, name), errno.EINVAL):  # noqa: B023
                try:
                    syscalls.rename(
                        self._staging, name, self._directory(place[0]), place[1], RENAME_NOREPLACE
                    )
                except FileExistsError:
                    raise self._name_taken(place, name) from None
            fid = self._wanted[place]
            if fid in self._last_ns:
                with suppress(ConflictError), self._opened(fid, _FLAGS_PATH) as fd:
                    self._note(fid, fd)
        return {fid: self._new_times[fid] for fid in filled}

    def _set_times(self, times: dict[Fid, int]) -> None:
        """Set the mtimes of directories, but where other processes have set them since: what comes
        between a look and the setting is looked at in a further round."""
        assert self._others is not None
        left = times
        while left:
            self._others.look()
            done = {}
            for fid, time_ns in left.items():
                self._step("times")
                # Where it is gone by now, nothing is to be done.
                with suppress(ConflictError), self._guarded(lambda: self._changed_meanwhile(fid)):  # noqa: B023
                    fd = self._directory(fid)
                    found = os.fstat(fd)
                    mtime_ns = self._others.mtime_ns(Fid(found.st_ino), time_ns)
                    if found.st_mtime_ns != mtime_ns:
                        on_step("set time")
                        done[fid] = time_ns
                        syscalls.set_times(fd, None, mtime_ns)
            left = done

    # -- files that are there ----------------------------------------------------------------------

    def _rewrite_all(self, changed: Collection[Fid], with_content: set[Fid]) -> None:
        """Give files the content and attributes that they are to have."""
        for batch in _batches(changed):
            wanted = self._images(batch)
            written = [fid for fid in batch if fid in with_content]
            now = read_images(self._lookup, written, self._end, None, self._tick)
            for fid in batch:
                self._step("rewrite")
                if self._is_directory(fid):
                    fd = self._directory(fid)
                    self._check(fid, os.fstat(fd))
                    self._set_attributes(fd, wanted[fid].state, fid)
                    continue
                kind = self._types[fid]
                flags = os.O_RDWR if kind == stat.S_IFREG and fid in now else _FLAGS_PATH
                with self._opened(fid, flags | os.O_NONBLOCK) as fd:
                    self._check(fid, os.fstat(fd))
                    if fid in now:
                        self._rewrite(fid, fd, wanted[fid], now[fid])
                    self._set_attributes(fd, wanted[fid].state, fid)

    def _rewrite(self, fid: Fid, fd: int, wanted: Image, now: Image) -> None:
        """Write what comes from other entries than it does now, and only where it differs: what is
        a hole in both is not even read, however large it is."""
        size = wanted.state.size
        if os.fstat(fd).st_size > size:
            self._change(fid, fd, lambda: calls.ftruncate("undo.truncate", fd, size))
        unlike = list(wanted.extents.unlike(now.extents, size))
        for offset, data in self._contents(unlike):
            self._step("write")
            if os.pread(fd, len(data), offset) != data:
                self._change(
                    fid,
                    fd,
                    lambda: calls.write_all("undo.write", fd, data, offset),  # noqa: B023
                )
        if os.fstat(fd).st_size != size:
            self._change(fid, fd, lambda: calls.ftruncate("undo.truncate", fd, size))

    def _contents(self, extents: list[Extent]) -> Iterator[tuple[int, bytes | memoryview]]:
        yield from read_extents(self._lookup, [one for one in extents if one.seq is not None])
        for start, end, seq in extents:
            if seq is None:
                for offset in range(start, end, _COPY_BYTES):
                    yield offset, bytes(min(_COPY_BYTES, end - offset))

    def _change(self, fid: Fid, fd: int, change: Callable[[], None]) -> None:
        """Change a file that is there, if no other process did. Raises ConflictError."""
        on_step("change")
        self._check(fid, os.fstat(fd))
        on_step("between")
        with self._guarded(lambda: self._changed_meanwhile(fid)):
            change()
        self._note(fid, fd)

    # -- attributes of what is there ---------------------------------------------------------------

    def _set_attributes(self, fd: int, state: State, fid: Fid | None = None) -> None:
        """Make owner, mode, xattrs and, but for a directory, the mtime what *state* has. *fd* is
        open on *fid*, or (None) on a directory that nobody else can reach yet."""
        for change in attribute_changes(fd, state):
            if fid is None:
                change()
            else:
                self._change(fid, fd, change)


def _batches(fids: Collection[Fid]) -> Iterator[list[Fid]]:
    left = iter(fids)
    while batch := list(islice(left, _BATCH_FILES)):
        yield batch
