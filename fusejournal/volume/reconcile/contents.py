"""Contents and attributes of files that a system crash left in any state: made what entries say.

Contents are written anew from all a file's entries. Where those come to much, the entries after the
checkpoint are carried out again, in order, which leaves every byte as the last of them did,
whichever of them the disk had; and where entries that lost wrote to such a file, those ranges are
made from the entries before that, too."""

import os
from collections.abc import Mapping, Set
from stat import S_IFDIR, S_IFREG

from fusejournal.backing.apply_space import change_space
from fusejournal.backing.fid_tag import remove_xattr, xattr_names
from fusejournal.disk import calls, failpoints, syscalls
from fusejournal.file_operations import FALLOC_KEEP_SIZE, FALLOC_PUNCH_HOLE, Fallocate, SetFlags
from fusejournal.history.file_states import State, lacks_maker
from fusejournal.history.lookup import Lookup
from fusejournal.history.mtimes import mtimes_before
from fusejournal.journal.index import Posting
from fusejournal.operations import (
    WRITING_KINDS,
    ContentOperation,
    ImportData,
    Kind,
    Setattr,
    Setxattr,
    Truncate,
)
from fusejournal.types import Fid, Seq, StageProgress
from fusejournal.volume.importer import fits_one_entry
from fusejournal.volume.reconcile.losing import FAR, ByteRanges
from fusejournal.volume.reconcile.overwritten import KeptCopies
from fusejournal.volume.refusals import named
from fusejournal.volume.volume import Volume

_WHOLE_BYTES_MAX = 16 << 20
_PUNCH = FALLOC_PUNCH_HOLE | FALLOC_KEEP_SIZE


class Contents:
    """The contents of the files in *states*, which say what they are before entry *before_seq*."""

    def __init__(
        self,
        volume: Volume,
        lookup: Lookup,
        states: dict[Fid, State],
        before_seq: Seq,
        checkpoint_seq: Seq,
        kept: KeptCopies,
        progress: StageProgress,
        losing: Mapping[Fid, ByteRanges],
        unflagged: Set[Fid],
        *,
        keeps_losing: bool,
    ) -> None:
        """Changes nothing yet.

        Args:
            volume, lookup: the volume, and questions to its journal.
            states: what the files are before entry *before_seq*.
            before_seq: the first entry that does not count.
            checkpoint_seq: up to this entry the backing is known to have been on disk.
            kept: gets to see each file before a byte of any is overwritten.
            progress: called now and then.
            losing: the ranges of files that entries wrote which are in the journal no more, and in
                a branch; those files are not shown to *kept*,
            keeps_losing: or are.
            unflagged: the files of which such entries set the file flags."""
        self._volume = volume
        self._kept = kept
        self._lookup = lookup
        self._states = states
        self._before_seq = before_seq
        self._checkpoint_seq = checkpoint_seq
        self._progress = progress
        self._losing = losing
        self._unflagged = unflagged
        self._keeps_losing = keeps_losing

    def write(self, new: set[Fid], overwritten: set[Fid]) -> None:
        """Carry out what entries did to contents: all of them, or, where that is much, those after
        the checkpoint. *new* are files that were made anew, and are empty; *overwritten* those of
        which nothing is to be kept."""
        files = {fid for fid in self._states if self._has_contents(fid)}
        whole = {
            fid
            for fid in files
            if fid in new or fid in overwritten or self._is_small(self._states[fid])
        }
        half_imported = {fid for fid in self._states if self._is_half_imported(fid)}
        files |= half_imported
        whole |= half_imported & new
        in_part = {fid for fid in self._losing if self._is_in_part(fid)}
        files |= in_part
        whole |= in_part
        for fid in files - new:
            if self._keeps_losing or fid not in self._losing:
                self._kept.keep(fid)
        self._kept.complete()
        for fid in files - whole:
            if fid in self._losing:
                self._clear(fid, 0, FAR)
        emptied = set(new)

        def is_read(fid: Fid, begin: int, end: int) -> bool:
            ranges = self._losing.get(fid)
            return fid in whole or (ranges is not None and any(ranges.within(begin, end)))

        for done, (entry, outcome) in enumerate(
            self._lookup.entries_of_many(files, self._before_seq, _is_of_contents, is_read)
        ):
            operation = entry.operation
            assert isinstance(operation, ContentOperation | ImportData)
            if operation.fid in whole:
                self._empty(operation.fid, emptied)
            elif entry.seq <= self._checkpoint_seq:
                self._put_back(operation, outcome.data_of(entry))
                continue
            fd = self._volume.tree.writable(operation.fid)
            data = outcome.data_of(entry)
            with named(self._volume, operation, len(data)):
                if isinstance(operation, Truncate):
                    failpoints.reached("reconcile.truncate")
                    os.ftruncate(fd, operation.size)
                elif isinstance(operation, Fallocate):
                    change_space(fd, operation)
                else:
                    calls.write_all("reconcile.write", fd, data, operation.offset)
            self._progress("writing contents", done, None, "entries")
        for fid in files:
            if fid in whole:
                self._empty(fid, emptied)
            fd = self._volume.tree.writable(fid)
            if os.fstat(fd).st_size != self._states[fid].size:
                size = self._states[fid].size
                with named(self._volume, Truncate(fid, size, None)):
                    os.ftruncate(fd, size)

    def _put_back(self, operation: ContentOperation | ImportData, data: bytes | memoryview) -> None:
        """Do what *operation* did to those ranges that lost, and to nothing else."""
        fid = operation.fid
        if fid not in self._losing:
            return
        if isinstance(operation, Truncate):
            self._clear(fid, operation.size, FAR)
            return
        if isinstance(operation, Fallocate):
            if operation.empties:
                self._clear(fid, operation.offset, operation.end)
            return
        fd, begin = self._volume.tree.writable(fid), operation.offset
        for first, last in self._losing[fid].within(begin, begin + len(data)):
            piece = data[first - begin : last - begin]
            with named(self._volume, operation, len(piece)):
                calls.write_all("reconcile.put_back", fd, piece, first)

    def _clear(self, fid: Fid, begin: int, end: int) -> None:
        """Make zeros of what of [*begin*, *end*) lost, as far as the file goes."""
        fd = self._volume.tree.writable(fid)
        size = os.fstat(fd).st_size
        for first, last in self._losing[fid].within(begin, min(end, size)):
            if last == size:
                calls.ftruncate("reconcile.clear.end", fd, first)
                calls.ftruncate("reconcile.clear.size", fd, size)
            else:
                failpoints.reached("reconcile.clear.hole")
                change_space(fd, Fallocate(fid, _PUNCH, first, last - first, None))

    def _empty(self, fid: Fid, emptied: set[Fid]) -> None:
        """Empties it before its first byte is written. Killed from here on, it leaves a file that
        was just changed, and so is written again."""
        if fid not in emptied:
            emptied.add(fid)
            failpoints.reached("reconcile.empty")
            os.ftruncate(self._volume.tree.writable(fid), 0)

    def _has_contents(self, fid: Fid) -> bool:
        """True if it is a regular file that the journal has the whole content of."""
        return self._is_there(fid) and self._volume.tree.node(fid).complete

    def _is_half_imported(self, fid: Fid) -> bool:
        """True if its import had not come to its end, and the disk has less of it than there was:
        then what the journal has of it is all there is."""
        return (
            self._is_there(fid)
            and not self._volume.tree.node(fid).complete
            and self._volume.tree.stat(fid).st_size < self._states[fid].size
        )

    def _is_in_part(self, fid: Fid) -> bool:
        """True if entries that lost went on with the import of it: what there is by now, the
        journal has."""
        return fid in self._states and self._is_there(fid) and not self._has_contents(fid)

    def _is_there(self, fid: Fid) -> bool:
        node = self._volume.tree.node(fid)
        return node.type == S_IFREG and bool(node.handle) and not lacks_maker(self._states[fid])

    def _is_small(self, state: State) -> bool:
        return state.written_bytes <= _WHOLE_BYTES_MAX

    # -- attributes --------------------------------------------------------------------------------

    def set_attributes(self, new: set[Fid]) -> None:
        """Set what they should have, but for the times of directories, and of a file whose import
        has yet to take what is there (unless it is *new*). Raises OSError."""
        for done, (fid, state) in enumerate(self._states.items()):
            node = self._volume.tree.node(fid)
            if not node.handle or lacks_maker(state):
                continue
            if state.uid is None:
                continue  # the root, which the journal does not tell of yet
            self._set_attributes_of(state)
            is_ours = node.complete or fid in new or fid in self._losing
            if node.type != S_IFDIR and is_ours:
                self._set_mtime(fid, state.mtime_ns)
            self._progress("setting attributes", done, len(self._states), "files")

    def _set_attributes_of(self, state: State) -> None:
        apply, fid = self._volume.applier.apply, state.fid
        stat = self._volume.tree.stat(fid)
        if (stat.st_uid, stat.st_gid) != (state.uid, state.gid):
            assert state.uid is not None
            assert state.gid is not None
            failpoints.reached("reconcile.chown")
            syscalls.chown(self._volume.tree.descriptor(fid), state.uid, state.gid)
        self._set_xattrs(state)
        for step in state.steps:
            apply(step, 0, b"", True)
        if state.flags is not None or fid in self._unflagged:
            apply(SetFlags(fid, state.flags or 0), 0, b"", True)

    def _set_xattrs(self, state: State) -> None:
        """Set the xattrs that it should have, and remove all others, ACLs with them (but not those
        that its import has yet to journal)."""
        target = self._volume.tree.xattr_target(state.fid)
        names = set(xattr_names(target))
        is_whole = self._volume.tree.node(state.fid).complete or fits_one_entry(state.xattrs)
        for name in names - state.xattrs.keys() if is_whole else ():
            failpoints.reached("reconcile.removexattr")
            remove_xattr(target, name)
        for name, value in state.xattrs.items():
            if name not in names or os.getxattr(target, name) != value:
                failpoints.reached("reconcile.setxattr")
                with named(self._volume, Setxattr(state.fid, name, value)):
                    os.setxattr(target, name, value)

    def _set_mtime(self, fid: Fid, mtime_ns: int | None) -> None:
        if mtime_ns is not None:
            self._volume.applier.apply(Setattr(fid, None, None, None, None, mtime_ns), 0, b"", True)

    def set_directory_times(self, mtime_dirty_directories: set[Fid]) -> None:
        """Set directories' mtimes, last, because all that was done to names has changed them: also
        those of *mtime_dirty_directories*, in which names were changed just now. Raises OSError."""
        nodes = map(self._volume.catalog.node, mtime_dirty_directories | self._states.keys())
        fids = {node.fid for node in nodes if node and node.handle and node.type == S_IFDIR}
        for fid, mtime_ns in mtimes_before(self._lookup, fids, self._before_seq).items():
            self._set_mtime(fid, mtime_ns)


def _is_of_contents(posting: Posting) -> bool:
    if posting.is_parent or posting.kind not in WRITING_KINDS:
        return False
    return not posting.refused or posting.kind == Kind.WRITE
