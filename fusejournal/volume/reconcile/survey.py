"""A walk through the backing that a system crash left, with the catalog beside it: which names are
as they should be, which are not, which are missing, and what has changed since the checkpoint.

It notes in the catalog the handle of each file that it finds by its fid, wherever that is. What
lies without a fid where an entry after the checkpoint has made something of its kind is that, the
fid had not come to the disk: it gets it now. Nothing else of the backing is changed.

An import as the last entry holds if the survey finds what it found, wherever that is now: only then
it is recorded in the catalog. (It was there before its entry, so it may be changed, moved or gone
by what the journal lost, or have never come to the disk.)"""

import os
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import cached_property
from stat import S_IFLNK, S_IFMT, S_ISDIR
from typing import NamedTuple

from fusejournal.backing.catalog_store import COMMIT_CHANGES
from fusejournal.backing.fid_tag import FoundEntry
from fusejournal.disk import failpoints, syscalls
from fusejournal.history.file_states import rdev_of, target_of, type_of
from fusejournal.history.name_changes import Dentry
from fusejournal.journal.format import Entry
from fusejournal.native import kernel
from fusejournal.native.kernel import FileStat
from fusejournal.operations import Import, Making
from fusejournal.types import ROOT_FID, Fid
from fusejournal.volume.reconcile.losing import LosingEntries
from fusejournal.volume.volume import Volume


def staging_name(volume: Volume) -> bytes:
    """Returns the name in the backing's root under which files are while their places are made
    free. It is the same for every attempt, and no name of a file of the journal's."""
    return volume.tree.hidden_name()


_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOATIME
_PROGRESS_NAMES = 1024


class UnexpectedName(NamedTuple):
    """A name in the backing that the journal does not have there."""

    directory: bytes
    """The handle of the directory that it is in."""
    parent: Fid | None
    """The fid of that directory; None for a directory that is itself not the journal's."""
    name: bytes
    found: FoundEntry
    fid: Fid | None
    """The file of the journal that it is; None for anything else."""
    in_staging: bool

    @property
    def is_directory(self) -> bool:
        """True if it is a directory."""
        return S_ISDIR(self.found.stat.st_mode)


class Survey:
    """Surveys *volume*'s backing; *progress* is called with the number of names so far."""

    def __init__(
        self,
        volume: Volume,
        since_ns: int,
        made: Mapping[Fid, Making],
        progress: Callable[[int], None],
        last_import: Entry | None,
    ) -> None:
        """*made*: what the entries after the checkpoint have made. *last_import*: the last entry,
        if that is an import, which the catalog lacks."""
        self._volume = volume
        self._made = made
        self._last_import = last_import
        self._since_ns = since_ns
        self._progress = progress
        self._names = 0
        self._staging = b""
        self.unexpected_names: list[UnexpectedName] = []
        """A directory's before those of what is in it."""
        self.missing_names: dict[Dentry, Fid] = {}
        """Names of the journal that do not stand for their file in the backing."""
        self.changed: dict[Fid, int] = {}
        """Files of the journal whose inodes were changed at *since_ns* or later, and when."""
        self.retagged: set[Fid] = set()
        """Files that had no fid."""

    def run(self) -> None:
        """Raises OSError."""
        catalog, tree = self._volume.catalog, self._volume.tree
        self._staging = staging_name(self._volume)
        pending: list[tuple[bytes, Fid | None, bool]] = [
            (syscalls.handle_of(tree.root_fd), ROOT_FID, False)
        ]
        while pending:
            handle, fid, is_staging = pending.pop()
            fd = syscalls.open_by_handle(tree.root_fd, handle, _DIRECTORY)
            try:
                pending += self._directory(fd, handle, fid, is_staging)
            finally:
                os.close(fd)
        for fid in catalog.fids_without_handle():
            # Nothing is in a directory that is not there.
            self.missing_names.update({(fid, one.name): one.fid for one in catalog.list(fid, 0)})
        if self._last_import is not None:
            self._decide_import(self._last_import)
        catalog.note_handles(have_all=True)

    def may_have_begun(
        self, dentry: tuple[Fid | None, bytes], found: FoundEntry, losing: LosingEntries
    ) -> bool:
        """Returns True if *found*, at *dentry*, may be what an entry after the checkpoint, or one
        that is *losing*, had half made there: it has no fid, and is of the kind. (The file may have
        got another name since.)"""
        types = self._made_at.get(dentry), losing.dentries.get(dentry)
        return found.owner is None and S_IFMT(found.stat.st_mode) in types

    @cached_property
    def _made_at(self) -> dict[tuple[Fid | None, bytes], int]:
        """The places where entries after the checkpoint have made something, and its type."""
        return {(one.parent, one.name): type_of(one) for one in self._made.values()}

    def _directory(
        self, fd: int, handle: bytes, fid: Fid | None, is_staging: bool
    ) -> list[tuple[bytes, Fid | None, bool]]:
        """One directory. Returns those below it."""
        catalog, tree = self._volume.catalog, self._volume.tree
        expected = {}
        if fid is not None:
            expected = {one.name: one.fid for one in catalog.list(fid, 0)}
            self._note_change(fid, kernel.stat(fd))
        below: list[tuple[bytes, Fid | None, bool]] = []
        for name in syscalls.list_directory(fd):
            found = tree.probe_in(fd, name)
            if found is None or found.stat.st_dev != tree.device:
                continue
            if fid == ROOT_FID and name == self._staging:
                below.append((found.handle, None, True))
                continue
            known = self._known(found)
            if known is None and name in expected:
                known = self._retagged(found, fd, name, expected[name])
            if S_ISDIR(found.stat.st_mode):
                below.append((found.handle, known, False))
            elif known is not None:
                self._note_change(known, found.stat)
            if known is not None and expected.get(name) == known:
                del expected[name]
            else:
                self.unexpected_names.append(
                    UnexpectedName(handle, fid, name, found, known, is_staging)
                )
            self._count()
        if fid is not None:
            self.missing_names.update({(fid, name): missing for name, missing in expected.items()})
        return below

    def _known(self, found: FoundEntry) -> Fid | None:
        """The fid of what was found, if it is a file of the journal's, and the first one with that
        fid. Notes its handle."""
        node = self._volume.catalog.node(found.fid) if found.fid is not None else None
        if node is None or node.type != S_IFMT(found.stat.st_mode):
            return None
        if not node.handle:
            self._volume.catalog.note_object(node, found.handle, found.stat.st_ino)
        return node.fid if node.handle == found.handle else None

    def _retagged(
        self, found: FoundEntry, directory: int, name: bytes, expected: Fid
    ) -> Fid | None:
        """*expected* if what was found, which has no fid, is it, and has got its fid now."""
        maker, node = self._made.get(expected), self._volume.catalog.node(expected)
        if maker is None or node is None or node.handle:
            return None
        if not self._may_be_made_by(maker, found, directory, name):
            return None
        fd = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=directory)
        try:
            failpoints.reached("reconcile.retag")
            made = self._volume.tree.identify(expected, fd, syscalls.descriptor_path(fd))
            self._volume.catalog.note_object(node, made, found.stat.st_ino)
        finally:
            os.close(fd)
        self.changed[expected] = found.stat.st_ctime_ns
        self.retagged.add(expected)
        return expected

    def _may_be_made_by(
        self, maker: Making, found: FoundEntry, directory: int, name: bytes
    ) -> bool:
        """True if what was found has no fid, and is what *maker* makes. (What was imported may have
        had a fid that the journal does not know any more, or another volume's.)"""
        if found.owner is not None and (
            not isinstance(maker, Import)
            or (found.fid is not None and self._volume.catalog.node(found.fid) is not None)
        ):
            return False
        if type_of(maker) != S_IFMT(found.stat.st_mode) or rdev_of(maker) != found.stat.st_rdev:
            return False
        return type_of(maker) != S_IFLNK or os.readlink(name, dir_fd=directory) == target_of(maker)

    def _decide_import(self, entry: Entry) -> None:
        """Record it if what it found is there: with its fid, wherever that is, or without one in
        its place."""
        operation, names = entry.operation, self.unexpected_names
        assert isinstance(operation, Import)
        type_, home = S_IFMT(operation.mode), (operation.parent, operation.name)
        candidates = [
            found
            for _, _, _, found, _, _ in names
            if found.fid == operation.fid and type_ == S_IFMT(found.stat.st_mode)
        ]
        if not candidates:
            candidates = [one.found for one in names if (one.parent, one.name) == home]
            if not candidates or not self._is_taken(operation, candidates[0]):
                return
        found = candidates[0]
        self._volume.catalog.record(
            operation, entry.seq, entry.time_ns, found.handle, found.stat.st_ino
        )
        self.changed[operation.fid] = found.stat.st_ctime_ns
        others = [one for one in names if one.found.handle != found.handle]
        its = [one for one in names if one.found.handle == found.handle]
        away = [one._replace(fid=operation.fid) for one in its if (one.parent, one.name) != home]
        if len(away) == len(its):
            self.missing_names[home] = operation.fid
        self.unexpected_names = others + away

    def _is_taken(self, operation: Import, found: FoundEntry) -> bool:
        """Returns True if *found*, in its place, may be what it found, and has got its fid now."""
        directory = self._volume.tree.descriptor(operation.parent)
        if not self._may_be_made_by(operation, found, directory, operation.name):
            return False
        self._volume.tag_imported(operation, found.handle)
        self.retagged.add(operation.fid)
        return True

    def _note_change(self, fid: Fid, stat: FileStat) -> None:
        if stat.st_ctime_ns >= self._since_ns:
            self.changed[fid] = stat.st_ctime_ns

    def _count(self) -> None:
        self._names += 1
        if self._names % _PROGRESS_NAMES == 0:
            self._progress(self._names)
        if self._names % COMMIT_CHANGES == 0:
            # The catalog would keep all it was told in memory; on a full disk it has to.
            self._volume.catalog.note_handles(have_all=False)
            with suppress(OSError):
                self._volume.catalog.commit()
