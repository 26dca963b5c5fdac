"""Carrying an undo's plan out on the live volume, through the layer, as any user's changes go: so
it is journaled, shipped, and can be undone itself.

Users work on meanwhile. So nothing is reached by a path, and each thing is looked at before it is
changed (undo_files.py). Only a name that is taken away must be found by name; it is moved into a
directory that only root can enter first, looked at there, and moved back if it is not what was
planned. What comes back is made in that directory (undo_make.py), and then gets its name. What
slips in between a look and a change, the journal records (undo_others.py).

At whatever point it is stopped, nothing is lost: what is on its way lies in the private directory,
and undoing its own entries gives back the tree as it was.

Source: rename(2), linkat(2) (AT_EMPTY_PATH), fuse(4)."""

import errno
import os
import stat
from collections.abc import Collection, Iterator
from contextlib import ExitStack, suppress
from functools import partial
from typing import NamedTuple

from fusejournal.backing.apply_new import FLAGS_PATH
from fusejournal.disk import calls, syscalls
from fusejournal.errors import ConflictError
from fusejournal.file_operations import FALLOC_KEEP_SIZE, FALLOC_PUNCH_HOLE
from fusejournal.history.file_states import State
from fusejournal.history.name_changes import Dentry
from fusejournal.operations import RENAME_NOREPLACE
from fusejournal.replay.attributes import attribute_changes
from fusejournal.replay.undo_files import UndoFiles
from fusejournal.replay.undo_flags import UndoFlags
from fusejournal.replay.undo_make import UndoMaker, batches
from fusejournal.replay.undo_others import Overlap
from fusejournal.replay.wanted import WantedFile, WantedFiles, zeros
from fusejournal.types import ROOT_FID, Fid

_PUNCH = FALLOC_PUNCH_HOLE | FALLOC_KEEP_SIZE


class _Seen(NamedTuple):
    """The part of a file's attributes that changes when a process writes to it, and not when its
    name moves."""

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


class WantedNames(NamedTuple):
    """The names that are to change."""

    wanted: dict[Dentry, Fid | None]
    """The files that they are to stand for; None: nothing."""
    now: dict[Dentry, Fid]
    """The files that those which are to go or change stand for now."""
    new: set[Fid]
    """Files in ``wanted`` that are to be made anew."""
    dentries: dict[Fid, list[Dentry]]
    """The names that the other files have now."""


class UndoExecutor:
    """Carries out one plan: *names* are to change, and files are to be as in *wanted*."""

    def __init__(
        self,
        files: UndoFiles,
        names: WantedNames,
        wanted: WantedFiles,
        stack: ExitStack,
    ) -> None:
        """*stack* closes what is opened."""
        self._files = files
        self._wanted_files = wanted
        self._stack = stack
        self._wanted = names.wanted
        self._now = names.now
        self._new = names.new
        self._dentries = names.dentries
        self._maker = UndoMaker(files, wanted)
        self._flags = UndoFlags(files, wanted)

    def run(
        self,
        changed: Collection[Fid],
        with_content: Collection[Fid],
        directories: Collection[Fid],
    ) -> None:
        """Does everything: names, then the content and attributes of the *changed* files, of which
        those *with_content* have other content, too, and last the mtimes of *directories*, in which
        names were changed."""
        self._files.types.update(self._wanted_files.types(self._new))
        times = self._wanted_times({*changed, *directories})
        self._watch(changed, times.keys())
        self._check_all(changed)
        self._stack.callback(os.umask, os.umask(0))
        with self._flags.lifted(self._concerned({*changed, *times})):
            with self._files.private_directory():
                staged = self._maker.make(self._wanted, self._new)
                self._stage_alive(staged)
                self._remove()
                times |= self._put_in_place(staged)
                self._rewrite_all(changed, set(with_content))
            self._set_times(times)
            self._flags.set(
                {fid: dentry for dentry, fid in self._wanted.items() if fid in self._new}
            )
        os.fsync(self._files.root)  # the journal's flush, and with it everything above

    def overlaps(self) -> list[Overlap]:
        """Returns what other processes changed in the moment between a look at it and this undo's
        change; to be asked at the end, however that came. Raises JournalDamagedError."""
        return self._files.others.overlaps()

    # -- before anything is changed ----------------------------------------------------------------

    def _wanted_times(self, changed: Collection[Fid]) -> dict[Fid, int]:
        """The mtimes, as they are to be, of all directories that are there and of which names or
        something else (*changed*) changes; where the journal here does not record, as they are."""
        fids = {fid for fid in changed if self._files.is_directory(fid)}
        fids |= {dentry[0] for dentry in self._wanted} - self._new
        fids -= {fid for fid in self._now.values() if fid not in self._wanted.values()}
        times = self._wanted_files.mtimes(fids)
        for fid in {*fids, ROOT_FID} - times.keys():
            times[fid] = os.fstat(self._files.directory(fid)).st_mtime_ns
        if ROOT_FID not in fids:
            times[ROOT_FID] = os.fstat(self._files.root).st_mtime_ns
        return times

    def _concerned(self, changed: Collection[Fid]) -> set[Fid]:
        """All files and directories that are there and that the undo changes, names or moves."""
        fids = {
            *changed,
            *self._now.values(),
            *(dentry[0] for dentry in (*self._wanted, *self._now)),
        }
        return (fids | {fid for fid in self._wanted.values() if fid is not None}) - self._new

    def _watch(self, changed: Collection[Fid], directories: Collection[Fid]) -> None:
        fids = {*changed, *self._now.values(), *directories}
        fids |= {fid for fid in self._wanted.values() if fid is not None} - self._new
        self._files.others.watch(fids, {*self._wanted, *self._now})
        self._files.others.watch_mtimes(directories)

    def _check_all(self, changed: Collection[Fid]) -> None:
        """Checks all before anything is written; each is looked at again when its turn comes."""
        for dentry, fid in self._now.items():
            self._files.step("check")
            self._files.types[fid] = stat.S_IFMT(self._files.check_name(dentry, fid).st_mode)
        for fid in changed:
            self._files.step("check")
            with self._files.opened(fid, FLAGS_PATH) as fd:
                self._files.check(fid, os.fstat(fd))
        for dentry, wanted in self._wanted.items():
            if wanted is None or dentry in self._now or dentry[0] in self._new:
                continue
            with suppress(FileNotFoundError):
                os.stat(dentry[1], dir_fd=self._files.directory(dentry[0]), follow_symlinks=False)
                raise self._files.name_taken(dentry)

    # -- names -------------------------------------------------------------------------------------

    def _stage_alive(self, staged: dict[Dentry, bytes]) -> None:
        """Further names, in the private directory, for files that are there; directories move."""
        for dentry, fid in self._wanted.items():
            if fid is None or fid in self._new:
                continue
            self._files.step("stage")
            staged[dentry] = name = self._maker.name(fid)
            if self._files.is_directory(fid):
                old = next(one for one in self._dentries[fid])
                self._move_away(old, fid, name)
                self._now.pop(old, None)
                continue
            with self._files.opened(fid, FLAGS_PATH) as fd:
                self._files.check(fid, os.fstat(fd))
                self._files.moment("stage link")
                with self._files.guarded(partial(self._files.changed_meanwhile, fid)):
                    syscalls.link(fd, self._files.staging, name)
                self._files.note(fid, fd)

    def _move_away(self, dentry: Dentry, fid: Fid, name: bytes) -> None:
        """Move what has the name *dentry*, which must be *fid* as it was planned, into the private
        directory; if it turns out to be something else, move it back. Raises ConflictError."""
        seen = _Seen.of(self._files.check_name(dentry, fid))
        parent = self._files.directory(dentry[0])
        self._files.moment("move away")
        with self._files.guarded(partial(self._files.name_changed, dentry)):
            syscalls.rename(parent, dentry[1], self._files.staging, name, RENAME_NOREPLACE)
        found = os.stat(name, dir_fd=self._files.staging, follow_symlinks=False)
        if _Seen.of(found) != seen and not (found.st_ino == fid and stat.S_ISDIR(found.st_mode)):
            is_back = self._move_back(dentry, name)
            raise (
                self._files.name_changed(dentry)
                if is_back
                else self._files.left_behind(dentry, name)
            )
        if not stat.S_ISDIR(found.st_mode):
            self._files.note_time(fid, found)

    def _move_back(self, dentry: Dentry, name: bytes) -> bool:
        """Move *name* in the private directory back to *dentry*; returns whether that is free."""
        self._files.moment("move back")
        try:
            self._put(name, dentry)
        except (OSError, ConflictError):
            return False
        return True

    def _put(self, name: bytes, dentry: Dentry) -> None:
        """Move *name* in the private directory to *dentry*. Raises OSError, FileExistsError where
        that is taken, and ConflictError where the directory has changed."""
        directory_fd = self._files.directory(dentry[0])
        syscalls.rename(self._files.staging, name, directory_fd, dentry[1], RENAME_NOREPLACE)

    def _remove(self) -> None:
        """Take names away. A directory goes with all that is in it, after a look that there is
        nothing else."""
        below: dict[Fid, dict[bytes, Fid]] = {}
        for dentry, fid in self._now.items():
            below.setdefault(dentry[0], {})[dentry[1]] = fid
        doomed = set(self._now.values())
        for dentry, fid in self._now.items():
            if dentry[0] in doomed and self._files.is_directory(dentry[0]):
                continue  # goes with that
            self._files.step("remove")
            name = self._maker.name(fid)
            self._move_away(dentry, fid, name)
            order: list[_Doomed] = []
            if self._files.is_directory(fid):
                try:
                    with self._files.guarded(partial(self._files.name_changed, dentry)):
                        order = list(self._walk_doomed(fid, below))
                except BaseException as error:
                    if self._move_back(dentry, name):
                        raise
                    raise self._files.left_behind(dentry, name) from error
            try:
                with self._files.guarded(partial(self._files.name_changed, dentry)):
                    for one in reversed(order):
                        self._files.step("remove")
                        self._remove_one(self._files.directory(one.directory), one)
                    self._remove_one(self._files.staging, _Doomed(ROOT_FID, name, fid))
            except ConflictError as error:
                raise self._files.left_behind(dentry, name) from error

    def _walk_doomed(self, top: Fid, below: dict[Fid, dict[bytes, Fid]]) -> Iterator[_Doomed]:
        """All names in directory *top*, what is in a directory after it. Raises ConflictError when
        there are others than planned."""
        todo = [top]
        while todo:
            directory = todo.pop()
            expected = below.get(directory, {})
            found = set(syscalls.list_directory(self._files.directory(directory)))
            for name in found ^ expected.keys():
                raise self._files.name_changed((directory, name))
            for name, fid in expected.items():
                self._files.step("check")
                self._files.check_name((directory, name), fid)
                yield _Doomed(directory, name, fid)
                if self._files.is_directory(fid):
                    todo.append(fid)

    def _remove_one(self, directory: int, one: _Doomed) -> None:
        if self._files.is_directory(one.fid):
            self._files.moment("rmdir")
            os.rmdir(one.name, dir_fd=directory)
            return
        found = os.stat(one.name, dir_fd=directory, follow_symlinks=False)
        if found.st_ino != one.fid:
            raise self._files.changed_meanwhile(one.fid)
        self._files.check(one.fid, found)
        self._files.moment("unlink")
        os.unlink(one.name, dir_fd=directory)
        if found.st_nlink > 1:
            # What it has other names for may yet be changed: this was us.
            with suppress(ConflictError), self._files.opened(one.fid, FLAGS_PATH) as fd:
                self._files.note(one.fid, fd)

    def _put_in_place(self, staged: dict[Dentry, bytes]) -> dict[Fid, int]:
        """Give what is staged its names. Returns the mtimes that new directories are to have again
        after that, by their fids in the plan."""
        filled = {dentry[0] for dentry in staged} & self._maker.mtimes.keys()
        self._files.others.watch_mtimes(
            {Fid(os.fstat(self._files.directory(fid)).st_ino) for fid in filled}
        )
        for dentry, name in staged.items():
            self._files.step("put in place")
            # (A directory cannot get below itself.)
            with self._files.guarded(partial(self._files.left_behind, dentry, name), errno.EINVAL):
                try:
                    self._put(name, dentry)
                except FileExistsError:
                    raise self._files.name_taken(dentry, name) from None
            fid = self._wanted[dentry]
            if fid is not None and self._files.was_changed(fid):
                with suppress(ConflictError), self._files.opened(fid, FLAGS_PATH) as fd:
                    self._files.note(fid, fd)
        return {fid: self._maker.mtimes[fid] for fid in filled}

    def _set_times(self, times: dict[Fid, int]) -> None:
        """Set the mtimes of directories, but where other processes have set them since: what comes
        between a look and the setting is looked at in a further round."""
        left = times
        while left:
            self._files.others.look()
            done = {}
            for fid, time_ns in left.items():
                self._files.step("times")
                # Where it is gone by now, nothing is to be done.
                with (
                    suppress(ConflictError),
                    self._files.guarded(partial(self._files.changed_meanwhile, fid)),
                ):
                    fd = self._files.directory(fid)
                    found = os.fstat(fd)
                    mtime_ns = self._files.others.mtime_ns(Fid(found.st_ino), time_ns)
                    if found.st_mtime_ns != mtime_ns:
                        self._files.moment("set time")
                        done[fid] = time_ns
                        syscalls.set_times(fd, None, mtime_ns)
            left = done

    # -- files that are there ----------------------------------------------------------------------

    def _rewrite_all(self, changed: Collection[Fid], with_content: set[Fid]) -> None:
        """Give files the content and attributes that they are to have."""
        for batch in batches(changed):
            written = {fid for fid in batch if fid in with_content}
            wanted = self._wanted_files.files(batch, self._files.tick, rewritten=written)
            for fid in batch:
                self._files.step("rewrite")
                if self._files.is_directory(fid):
                    fd = self._files.directory(fid)
                    self._files.check(fid, os.fstat(fd))
                    self._set_attributes(fd, wanted[fid].state, fid)
                    continue
                kind = self._files.types[fid]
                flags = os.O_RDWR if kind == stat.S_IFREG and fid in written else FLAGS_PATH
                with self._files.opened(fid, flags | os.O_NONBLOCK) as fd:
                    self._files.check(fid, os.fstat(fd))
                    if fid in written:
                        self._rewrite(fid, fd, wanted[fid])
                    self._set_attributes(fd, wanted[fid].state, fid)

    def _rewrite(self, fid: Fid, fd: int, wanted: WantedFile) -> None:
        """Write what may differ, and only where it does."""
        size = wanted.state.size
        if os.fstat(fd).st_size > size:
            self._files.change(fid, fd, lambda: calls.ftruncate("undo.shorten", fd, size))
        for offset, data in wanted.unlike():
            self._files.step("write")
            if os.pread(fd, len(data), offset) != data:
                self._files.change(
                    fid,
                    fd,
                    partial(calls.write_all, "undo.write", fd, data, offset),
                )
        for offset, length in wanted.holes():
            self._empty(fid, fd, offset, length)
        if os.fstat(fd).st_size != size:
            self._files.change(fid, fd, lambda: calls.ftruncate("undo.lengthen", fd, size))

    def _empty(self, fid: Fid, fd: int, start: int, length: int) -> None:
        """Make a hole of what has data; where the backing has none, it gets zeros."""
        end = min(start + length, os.fstat(fd).st_size)
        try:
            if start >= end or os.lseek(fd, start, os.SEEK_DATA) >= end:
                return
        except OSError as error:
            if error.errno == errno.ENXIO:
                return  # it is one up to the end
            raise
        self._files.step("punch")
        try:
            punch = partial(calls.fallocate, "undo.punch", fd, start, end - start, _PUNCH)
            self._files.change(fid, fd, punch)
        except OSError as error:
            if error.errno != errno.EOPNOTSUPP:
                raise
            for offset, data in zeros(start, end):
                if os.pread(fd, len(data), offset) != data:
                    write = partial(calls.write_all, "undo.zero", fd, data, offset)
                    self._files.change(fid, fd, write)

    # -- attributes of what is there ---------------------------------------------------------------

    def _set_attributes(self, fd: int, state: State, fid: Fid | None = None) -> None:
        """Make owner, mode, xattrs and, but for a directory, the mtime what *state* has. *fd* is
        open on *fid*, or (None) on a directory that no other process can reach yet."""
        for change in attribute_changes(fd, state):
            if fid is None:
                change()
            else:
                self._files.change(fid, fd, change)
