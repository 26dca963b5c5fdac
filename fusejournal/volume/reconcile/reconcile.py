"""Reconciliation: makes the backing that a system crash left equal to the journal, by fid.

Such a backing is up to date as of the last checkpoint; of what came later it has some pages and
lacks others, in any order, and it may have effects of operations that the journal lost. So nothing
is replayed over it. What the journal's entries come to is worked out, and the backing is made
that: first the names, then contents, attributes, and directories' times, of every file that an
entry after the checkpoint is about, and of every other whose inode has changed since.

Names: whatever is not where it belongs is taken into a staging directory, and put where it
belongs. What the journal has removed is removed. A file that is not there, or that an operation
which the journal has lost cut short, is made anew from all its entries, and takes its place only
when it is whole. What the journal does not know is not touched (the import will find it); where it
is in the way, it is given another name. Contents are written anew from all a file's entries; where
those come to much, the entries after the checkpoint are carried out again, in order, which leaves
every byte as the last of them did, whichever of them the disk had.

What is not found: an overwrite in place that the disk has and the journal lost, in the midst of
such a large file. Inodes' change times are the machine's own clock's: where that is behind the
checkpoint, every file is looked at; where it was set back and has caught up since, changes which
the journal lost may be missed.

Killed at any point, it is begun again from the start, and comes to the same. Runs before the mount
is live; nothing else uses the volume meanwhile."""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cached_property
from stat import S_IFDIR, S_IFMT, S_IFREG, S_ISREG

from fusejournal.backing.catalog_store import CatalogNode
from fusejournal.backing.fid_tag import FoundEntry, remove_tag
from fusejournal.disk import calls, failpoints, syscalls
from fusejournal.history.file_states import (
    State,
    lacks_maker,
    rdev_of,
    read_states,
    target_of,
    type_of,
)
from fusejournal.history.lookup import Lookup
from fusejournal.history.name_changes import Dentry
from fusejournal.journal.format import Entry
from fusejournal.journal.outcomes import with_outcomes
from fusejournal.native import kernel
from fusejournal.operations import (
    ControlOperation,
    Create,
    Import,
    ImportLink,
    Link,
    Making,
    Mkdir,
    Operation,
    Rename,
    Symlink,
    Whiteout,
    made_by,
)
from fusejournal.types import NAME_BYTES_MAX, ROOT_FID, Fid, Seq, StageProgress
from fusejournal.volume.checkpoint import CLOCK_SLACK_NS, Checkpoint
from fusejournal.volume.reconcile.contents import Contents
from fusejournal.volume.reconcile.losing import LosingEntries
from fusejournal.volume.reconcile.overwritten import KeptCopies
from fusejournal.volume.reconcile.survey import Survey, UnexpectedName, staging_name
from fusejournal.volume.refusals import named
from fusejournal.volume.volume import Volume

_NEW, _LINK = b".new", b".link"
_ASIDE = b".not-journaled"
_PROGRESS_ENTRIES = 256
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOATIME


class Reconciliation:
    """One reconciliation.

    Args:
        volume: its catalog is what the journal says before *before_seq*, and knows no handles.
        checkpoint: up to this one the backing is known to have been on disk.
        before_seq, in_flight: the first entry that does not count, and what it may have done, in
            part: its place is made free, for the caller to decide it.
        may_be_ahead: the backing may have what the journal lost, because entries were applied
            before they were durable; an import in flight is decided here then. (Else it was made,
            as any other file is, and stays where it is.)
        progress: called now and then.
        losing: what entries have touched that were in the journal and are not any more."""

    def __init__(
        self,
        volume: Volume,
        checkpoint: Checkpoint,
        before_seq: Seq,
        in_flight: Entry | None,
        may_be_ahead: bool,
        progress: StageProgress,
        losing: LosingEntries | None = None,
    ) -> None:
        self._volume = volume
        self._tree = volume.tree
        self._catalog = volume.catalog
        self._before_seq = before_seq
        self._checkpoint = checkpoint
        self._in_flight: Operation | None = None
        last_import: Entry | None = None
        if in_flight is not None and may_be_ahead and isinstance(in_flight.operation, Import):
            last_import = in_flight
        elif in_flight is not None:
            self._in_flight = in_flight.operation
        self._may_be_ahead = may_be_ahead
        self._goes_back = losing is not None
        self._losing = LosingEntries() if losing is None else losing
        self._cause = "the system crashed" if losing is None else losing.cause
        self._progress = progress
        self._lookup = Lookup(volume.journal.reader)
        self._made: dict[Fid, Making] = {}
        """Makers among the entries after the checkpoint."""
        self._survey = Survey(
            volume,
            checkpoint.since_ns,
            self._made,
            lambda done: progress("surveying the backing", done, None, "names"),
            last_import,
        )
        self._states: dict[Fid, State] = {}
        self._new: set[Fid] = set()
        """Files that are made from all their entries."""
        self._staged: dict[Fid, bytes] = {}
        """Names in the staging directory."""
        self._staging_name = staging_name(volume)
        self._staging_fd = -1
        self._mtime_dirty_directories: set[Fid] = set()
        """Directories in which names were changed just now."""
        self._kept = KeptCopies(volume)
        self._moved = 0
        self._removed = 0
        self.missing: list[bytes] = []
        """Paths that the journal does not have enough of to make them anew."""
        self.aside: list[bytes] = []
        """Paths of what was in the way, as they are now."""
        self.in_part: list[bytes] = []
        """Paths of what is made anew though its import had not come to its end."""

    def run(self) -> None:
        """Raises RecoveryError, JournalDamagedError, OSError."""
        touched = self._touched()
        self._clear_staging()
        self._survey.run()
        self._before_seq = Seq(self._catalog.applied_seq + 1)
        touched |= self._survey.changed.keys()
        lost = set(self._catalog.fids_without_handle())
        self._states = read_states(
            self._lookup,
            {fid for fid in touched | lost if self._catalog.node(fid) is not None},
            self._before_seq,
            self._checkpoint.seq,
        )
        self._choose_new(lost)
        contents = Contents(
            self._volume,
            self._lookup,
            self._states,
            self._before_seq,
            self._checkpoint.seq,
            self._kept,
            self._progress,
            self._losing.contents,
            self._losing.flagged,
            keeps_losing=self._may_be_ahead,
        )
        with self._staging():
            self._free_dentries()
            self._make_new()
            contents.write(self._new, self._overwritten())
            if self._new:
                # After another system crash they are whole, where they are.
                calls.syncfs("reconcile.syncfs", self._tree.root_fd)
            self._fill_dentries()
        contents.set_attributes(self._new)
        contents.set_directory_times(self._mtime_dirty_directories)

    def report(self) -> list[str]:
        """Returns what was done, in words; nothing where nothing was to be."""
        said = [
            (len(self._states) - len(self._new), "brought up to date"),
            (len(self._new), "made anew from the journal"),
            (self._moved, "moved to where they belong"),
            (self._removed, "removed, as the journal says"),
        ]
        told = [f"{count:,} {what}" for count, what in said if count]
        lost = [f"{self._cause}: of the backing's files {', '.join(told)}"] if told else []
        return lost + self._kept.report()

    # -- what is to be done ------------------------------------------------------------------------

    def _touched(self) -> set[Fid]:
        """Files that entries after the checkpoint are about, and directories whose mtimes they
        set."""
        touched = set(self._losing.fids)
        first = Seq(self._checkpoint.seq + 1)
        entries = self._volume.journal.reader.read(first, self._before_seq)
        for entry, outcome in with_outcomes(entries):
            operation = entry.operation
            if isinstance(operation, ControlOperation) or not outcome.held:
                continue
            if (making := made_by(operation)) is not None:
                self._made[making.fid] = making
                touched.add(making.fid)
            touched.add(operation.fid)
            touched.update(operation.touched_fids)
            if entry.seq % _PROGRESS_ENTRIES == 0:
                self._progress("reading", entry.seq - first, self._before_seq - first, "entries")
        return touched

    def _choose_new(self, lost: set[Fid]) -> None:
        """Choose the files that are to be made anew: those that are *lost*, and those that are
        shorter than they can be without an operation that the journal has not."""
        for fid, state in self._states.items():
            node = self._node(fid)
            if fid not in lost and not self._is_cut_short(node, state):
                continue
            if lacks_maker(state):
                if fid in lost:
                    self.missing.append(self._catalog.path(fid) or b"?")
                continue
            if not node.complete:
                self.in_part.append(self._catalog.path(fid) or b"?")
            self._new.add(fid)
            for dentry in self._catalog.dentries(node):
                self._survey.missing_names[dentry] = fid

    def _is_cut_short(self, node: CatalogNode, state: State) -> bool:
        return (
            node.type == S_IFREG
            and node.complete
            and node.fid not in self._losing.contents
            and state.made_seq <= self._checkpoint.seq
            and not lacks_maker(state)
            and self._tree.stat(node.fid).st_size < state.floor
        )

    def _overwritten(self) -> set[Fid]:
        """Files of whose contents the backing may have what no entry says: they had no fid, or
        were changed after their last entry."""
        changed = self._survey.changed
        if not self._may_be_ahead:
            return self._survey.retagged
        return self._survey.retagged | {
            fid
            for fid, state in self._states.items()
            if changed.get(fid, 0) > state.last_time_ns + CLOCK_SLACK_NS
        }

    def _node(self, fid: Fid) -> CatalogNode:
        node = self._catalog.node(fid)
        assert node is not None, fid
        return node

    # -- the staging directory ---------------------------------------------------------------------

    def _clear_staging(self) -> None:
        """Remove what another attempt had begun to make."""
        try:
            fd = os.open(self._staging_name, _DIRECTORY, dir_fd=self._tree.root_fd)
        except FileNotFoundError:
            return
        try:
            for name in syscalls.list_directory(fd):
                if name.endswith((_NEW, _LINK)):
                    os.unlink(name, dir_fd=fd)
        finally:
            os.close(fd)

    @contextmanager
    def _staging(self) -> Iterator[None]:
        """Have the staging directory, if there is need of it, and take it away in the end."""
        root_fd = self._tree.root_fd
        if self._survey.missing_names or any(
            unexpected.fid is not None for unexpected in self._survey.unexpected_names
        ):
            with suppress(FileExistsError):
                failpoints.reached("reconcile.staging")
                os.mkdir(self._staging_name, 0o700, dir_fd=root_fd)
            self._staging_fd = os.open(self._staging_name, _DIRECTORY, dir_fd=root_fd)
        try:
            yield
            if self._staging_fd >= 0 or kernel.exists(root_fd, self._staging_name):
                failpoints.reached("reconcile.unstaging")
                os.rmdir(self._staging_name, dir_fd=root_fd)
                self._mtime_dirty_directories.add(ROOT_FID)
        finally:
            if self._staging_fd >= 0:
                os.close(self._staging_fd)

    # -- names -------------------------------------------------------------------------------------

    def _free_dentries(self) -> None:
        # What is in the staging directory first: to move another name of a file over that one would
        # do nothing, rename(2).
        for unexpected in sorted(
            self._survey.unexpected_names, key=lambda unexpected: not unexpected.in_staging
        ):
            if unexpected.fid is not None:
                self._take_home(unexpected, unexpected.fid)
        # Directories after what is in them.
        for unexpected in reversed(self._survey.unexpected_names):
            if unexpected.fid is None:
                self._clear_away(unexpected)

    def _take_home(self, unexpected: UnexpectedName, fid: Fid) -> None:
        """Take a file of the journal from where it should not be."""
        with self._directory(unexpected) as directory:
            if fid in self._staged or fid in self._new or self._is_at_home(fid):
                failpoints.reached("reconcile.unlink.extra")
                os.unlink(unexpected.name, dir_fd=directory)
                self._removed += 1
            elif unexpected.in_staging:
                self._staged[fid] = unexpected.name
            else:
                name = b"%d" % fid
                failpoints.reached("reconcile.take")
                os.rename(unexpected.name, name, src_dir_fd=directory, dst_dir_fd=self._staging_fd)
                self._staged[fid] = name
                self._moved += 1

    def _is_at_home(self, fid: Fid) -> bool:
        return any(
            dentry not in self._survey.missing_names
            for dentry in self._catalog.dentries(self._node(fid))
        )

    def _clear_away(self, unexpected: UnexpectedName) -> None:
        """Move or remove what is not a file of the journal as it is now."""
        found = unexpected.found
        # (What a primary did last before a crash, neither its journal nor the branch has.)
        is_lost_too = self._goes_back and self._may_be_ahead and found.fid is not None
        has_lost = is_lost_too or found.fid in self._losing.made
        was_removed = has_lost or found.fid in self._known_unexpected
        dentry = unexpected.parent, unexpected.name
        is_half_made = dentry in self._dentries_in_flight and self._may_be_in_flight(found)
        if is_half_made and isinstance(self._in_flight, Import) and not has_lost:
            return
        is_empty = not (S_ISREG(found.stat.st_mode) and found.stat.st_size)
        is_half = is_half_made or self._survey.may_have_begun(dentry, found, self._losing)
        is_waste = was_removed or unexpected.in_staging or (is_half and is_empty)
        in_the_way = dentry in self._survey.missing_names or dentry in self._dentries_in_flight
        with self._directory(unexpected) as directory:
            if is_lost_too and found.fid not in self._losing.made and not is_empty:
                assert found.fid is not None
                self._kept.keep_unknown(found.fid, unexpected.name, directory)
            if is_waste and self._remove(unexpected, directory):
                return
            if found.fid is not None:
                remove_tag(directory, unexpected.name)
            if unexpected.in_staging:
                self._put_aside(unexpected, directory, self._tree.root_fd, ROOT_FID)
            elif in_the_way and unexpected.parent is not None:
                self._put_aside(unexpected, directory, directory, unexpected.parent)

    @cached_property
    def _known_unexpected(self) -> set[Fid]:
        """The fids of unexpected_names that entries which count name: so the journal knows that
        they are gone. Each segment's index is looked at once for all of them."""
        missing_names = {
            unexpected.found.fid
            for unexpected in self._survey.unexpected_names
            if unexpected.found.fid is not None
        }
        base = self._lookup.base
        known = {fid for fid in missing_names if base is not None and base.node(fid) is not None}
        missing_names -= known
        for span in self._lookup.segments(to_seq=self._before_seq):
            if not missing_names:
                break
            index = self._lookup.index(span)
            for fid in list(index.which_of(missing_names)):
                first = next(index.of_fid(fid))
                if index.first_seq + first.number < self._before_seq:
                    known.add(fid)
                    missing_names.discard(fid)
        return known

    @property
    def _dentries_in_flight(self) -> list[Dentry]:
        """The names that the entry in flight may have made."""
        match self._in_flight:
            case Create() | Mkdir() | Symlink() | Link() | Import() | ImportLink():
                return [(self._in_flight.parent, self._in_flight.name)]
            case Rename():
                return [(self._in_flight.new_parent, self._in_flight.new_name)]
            case Whiteout() as moving:
                return [(moving.parent, moving.name), (moving.new_parent, moving.new_name)]
        return []

    def _may_be_in_flight(self, found: FoundEntry) -> bool:
        """True if the entry in flight may have made what was found at its place."""
        match self._in_flight:
            case Import() as operation:
                return found.owner is None or found.fid == operation.fid
            case Create() | Mkdir() | Symlink() as operation:
                if found.owner is None:
                    return S_IFMT(found.stat.st_mode) == type_of(operation)
                return found.fid == operation.fid
            case Whiteout() as operation:
                return found.fid == operation.whiteout  # it has its fid before its name
        return False

    def _remove(self, unexpected: UnexpectedName, directory: int) -> bool:
        """Returns False where it could not be removed: a directory with something in it that the
        journal does not know."""
        failpoints.reached("reconcile.unlink")
        try:
            (os.rmdir if unexpected.is_directory else os.unlink)(unexpected.name, dir_fd=directory)
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
            return False
        self._removed += 1
        return True

    def _put_aside(
        self, unexpected: UnexpectedName, directory: int, aside: int, parent: Fid
    ) -> None:
        """Give it another name in *parent*, which is open on *aside*."""
        number = 0
        while True:
            ending = _ASIDE + (b"-%d" % number if number else b"")
            name = unexpected.name[: NAME_BYTES_MAX - len(ending)] + ending
            if self._catalog.lookup(parent, name) is None and not kernel.exists(aside, name):
                break
            number += 1
        failpoints.reached("reconcile.aside")
        os.rename(unexpected.name, name, src_dir_fd=directory, dst_dir_fd=aside)
        above = self._catalog.path(parent) or b""
        self.aside.append(above + b"/" + name if above else name)

    @contextmanager
    def _directory(self, unexpected: UnexpectedName) -> Iterator[int]:
        """The directory that *unexpected* is in, whose names are about to change."""
        if unexpected.parent is not None:
            self._mtime_dirty_directories.add(unexpected.parent)
        fd = syscalls.open_by_handle(self._tree.root_fd, unexpected.directory, _DIRECTORY)
        try:
            yield fd
        finally:
            os.close(fd)

    def _make_new(self) -> None:
        """Make the files of which there is none, empty, in the staging directory."""
        for done, fid in enumerate(self._new):
            state, node = self._states[fid], self._node(fid)
            name = b"%d" % fid
            if node.type != S_IFDIR:
                name += _NEW
            failpoints.reached("reconcile.make")
            assert state.maker is not None
            with named(self._volume, state.maker):
                self._make(name, state.maker, node.type)
            fd = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=self._staging_fd)
            try:
                self._tree.forget_descriptor(fid)
                node = self._node(fid)
                failpoints.reached("reconcile.tag")
                handle = self._tree.identify(fid, fd, syscalls.descriptor_path(fd))
                self._catalog.note_object(node, handle, os.fstat(fd).st_ino)
            finally:
                os.close(fd)
            self._staged[fid] = name
            self._progress("making files anew", done, len(self._new), "files")

    def _make(self, name: bytes, maker: Making, type_: int) -> None:
        target = target_of(maker)
        if type_ == S_IFDIR:
            os.mkdir(name, 0o700, dir_fd=self._staging_fd)
        elif target is not None:
            os.symlink(target, name, dir_fd=self._staging_fd)
        else:
            os.mknod(name, type_ | 0o600, rdev_of(maker), dir_fd=self._staging_fd)

    def _fill_dentries(self) -> None:
        """Put everything where it belongs."""
        for (parent, name), fid in self._survey.missing_names.items():
            node = self._node(fid)
            if not node.handle:
                continue  # it is missing
            self._mtime_dirty_directories.add(parent)
            directory = self._tree.descriptor(parent)
            staged = self._staged.pop(fid, None)
            if staged is None:
                # A name of a file that is made anew may still stand for the old one.
                staged = b"%d" % fid + _LINK
                fd, directory = self._tree.pair(fid, parent)
                with named(self._volume, Link(fid, parent, name)):
                    syscalls.link(fd, self._staging_fd, staged)
            failpoints.reached("reconcile.place")
            os.rename(staged, name, src_dir_fd=self._staging_fd, dst_dir_fd=directory)
