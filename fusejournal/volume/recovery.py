"""Recovery after a process crash, and the rebuilding of a lost catalog: one and the same way.

The kernel kept every page, so the backing has every entry but perhaps the last. The catalog stands
at its last commit (or at nothing): the entries after it are recorded from the journal, the handles
of the objects they made are found in the backing by fid, and the last entry, which alone may be
undone or half done, is decided by looking: done, or done now, or VOID when the backing refuses it.

After a system crash, the backing is first made what the catalog says (volume/reconcile/).

A mirror's backing is behind its journal by what was received and not yet applied; it keeps for
itself how far it came (journal/watermarks.py). Entries before that one are recorded here, that one
is decided by the applier that goes on.

Where there is much to record it is committed piece by piece, nodes without handles too, and the
catalog says so until the handles are found: a recovery that is killed goes on from there. Runs
before the mount is live; nothing else uses the volume meanwhile."""

import errno
import os
from collections.abc import Callable, Iterable, Iterator

from fusejournal.backing.catalog_store import COMMIT_CHANGES, CatalogNode
from fusejournal.backing.fid_tag import FoundEntry
from fusejournal.disk.errnos import NO_SPACE
from fusejournal.errors import JournalDamagedError, RecoveryError
from fusejournal.history.lookup import Lookup
from fusejournal.history.mtimes import kept_mtimes, mtimes_before
from fusejournal.journal.format import Entry
from fusejournal.journal.journal import Journal
from fusejournal.journal.outcomes import with_outcomes
from fusejournal.journal.watermarks import WatermarkPage
from fusejournal.objects.store import StoreError
from fusejournal.operations import (
    Clean,
    ControlOperation,
    Import,
    ImportData,
    ImportLink,
    Mark,
    Moving,
    NewEpoch,
    Operation,
    Void,
    made_by,
)
from fusejournal.types import ROOT_FID, Fid, Progress, Seq
from fusejournal.volume.trouble import Trouble, TroubleKind
from fusejournal.volume.volume import Volume

Reconcile = Callable[[Seq, Entry | None], list[bytes]]
"""Receives the first entry that the catalog does not have, and that entry if it may be half
done; returns the paths of what cannot be made anew. Records that entry if it is an import's whose
file it has found, and leaves all others to recovery."""

_PROGRESS_ENTRIES = 1024


class Recovery:
    """Brings *volume*'s catalog from its last commit to the journal's head. See the module."""

    def __init__(
        self,
        volume: Volume,
        past_damage: bool,
        applying_seq: Seq | None = None,
        reconcile: Reconcile | None = None,
        held_seq: Seq = Seq(0),
    ) -> None:
        """*past_damage*: for a read-only mount, end before a damage rather than fail.
        *applying_seq*: of a copied journal, the entry that may or may not be applied; none after
        it is. *reconcile*: after a system crash, makes the backing what the catalog says.
        *held_seq*: entries up to here are known to be applied."""
        self._volume = volume
        self._past_damage = past_damage
        self._catalog = volume.catalog
        self._applying_seq = applying_seq
        self._reconcile = reconcile
        self._held_seq = held_seq
        self._made: list[Fid] = []
        self._in_flight: Entry | None = None
        self.damage: JournalDamagedError | None = None
        """The place where the journal could not be read on."""
        self.missing: list[bytes] = []
        """Paths that the journal has and the backing has not: it was changed behind
        the layer."""

        self.left = ""
        """Anything that was not made as the journal says, because a store is away."""

    def troubles(self) -> Iterator[Trouble]:
        """Yields what the run has found, and left as it is."""
        if self.damage is not None:
            yield Trouble.of_damage(self.damage)
        if self.left:
            yield Trouble(TroubleKind.STORE_AWAY, self.left)
        if self.missing:
            yield Trouble(
                TroubleKind.MISSING_FILES,
                f"{len(self.missing)} files of the journal are missing in the backing, the first "
                f"is {os.fsdecode(self.missing[0])!r}: something else has changed the backing "
                "directory",
            )

    def run(self, progress: Progress) -> int:
        """Recover. Returns how many entries the catalog lacked. Raises RecoveryError,
        JournalDamagedError, OSError."""
        self._record_base(progress)
        first = Seq(self._catalog.applied_seq + 1)
        head = self._volume.journal.head_seq
        if self._applying_seq is not None:
            head = Seq(max(self._applying_seq, first) - 1)
        try:
            self._record_entries(first, head, progress)
            if self._applying_seq is not None:
                self._in_flight = self._entry(Seq(head + 1))
        except JournalDamagedError as error:
            if not self._past_damage:
                raise
            self.damage = error
        if self._reconcile is not None:
            self.missing += self._reconcile(Seq(self._catalog.applied_seq + 1), self._in_flight)
            self._made.clear()
            if self._in_flight is not None and self._catalog.applied_seq >= self._in_flight.seq:
                self._in_flight = None  # an import whose file was found
        else:
            self._find_handles()
        if self._in_flight is not None and self._applying_seq is None:
            self._redo(self._in_flight)
            self._in_flight = None
            self._find_handles()
        if self._volume.journal.is_writable and not self._volume.journal.ends_clean:
            self._restore_root_mtime()
        self._commit()
        if self._volume.journal.reader.base is not None:
            self._volume.journal.reader.base.forget()
        return head - first + 1

    def _entry(self, seq: Seq) -> Entry | None:
        """Entry *seq* if there is one, and it changes the tree."""
        if seq > self._volume.journal.head_seq:
            return None
        entry = next(iter(self._volume.journal.reader.read(seq, Seq(seq + 1))))
        return None if isinstance(entry.operation, ControlOperation) else entry

    def _restore_root_mtime(self) -> None:
        """Set it anew, because a process that died while it made or removed the hidden directory
        has left it changed."""
        root = self._catalog.node(ROOT_FID)
        mtime_ns = self._volume.tree.stat(ROOT_FID).st_mtime_ns
        if root is None or mtime_ns == root.ctime_ns or self.damage is not None:
            return  # as its last entry has set it, most likely: the journal need not be asked
        before_seq = Seq(self._catalog.applied_seq + 1)
        try:
            known = mtimes_before(Lookup(self._volume.journal.reader), {ROOT_FID}, before_seq)
        except JournalDamagedError as error:
            if not self._past_damage:
                raise
            self.damage = error
            return
        except StoreError as error:
            self.left = f"the time of the root directory stays as it is found: {error}"
            return
        if known.get(ROOT_FID, mtime_ns) != mtime_ns:
            self._volume.set_mtime(ROOT_FID, known[ROOT_FID])

    def _commit(self) -> None:
        if not self._volume.journal.is_writable:
            return  # the last entry was not decided: this catalog is for reading only
        try:
            self._catalog.commit()
        except OSError as error:
            # On a full disk what is recorded stays in the transaction; the running volume tries
            # again.
            if error.errno not in NO_SPACE:
                raise

    def _record_base(self, progress: Progress) -> None:
        """Begin a catalog that has nothing with the tree at the journal's base."""
        catalog, tree = self._catalog, self._volume.journal.reader.base
        if tree is None or catalog.applied_seq >= tree.base.seq:
            return
        for number, node in enumerate(tree.nodes()):
            catalog.record_base(node, tree.base)
            if catalog.changes >= COMMIT_CHANGES:
                catalog.note_handles(have_all=False)
                self._commit()
            if number % _PROGRESS_ENTRIES == 0:
                progress(number, number)
        # A process that is killed before this is recorded begins anew.
        catalog.end_base(tree.base)
        catalog.note_handles(have_all=False)

    def _record_entries(self, first: Seq, head: Seq, progress: Progress) -> None:
        catalog = self._catalog
        entries = self._volume.journal.reader.read(first, Seq(head + 1))
        for entry, (held, void) in with_outcomes(entries):
            operation = entry.operation
            if isinstance(operation, NewEpoch | Mark | Clean):
                catalog.record_control(operation, entry.seq)
            elif void is not None:
                if held:
                    self._record(operation, entry)
                else:
                    catalog.record_control(operation, entry.seq)
                catalog.record_control(void, Seq(entry.seq + 1))
            elif entry.seq == head and self._may_be_in_flight(entry):
                self._in_flight = entry
            else:
                self._record(operation, entry)
            if catalog.changes >= COMMIT_CHANGES:
                catalog.note_handles(have_all=False)
                self._made.clear()
                self._commit()
            if entry.seq % _PROGRESS_ENTRIES == 0:
                progress(entry.seq - first + 1, head - first + 1)

    def _may_be_in_flight(self, entry: Entry) -> bool:
        """True if the last entry may not have been applied. (An import's data and further names
        were there before it.)"""
        return (
            self._volume.journal.is_writable
            and self._applying_seq is None
            and entry.seq > self._held_seq
            and not isinstance(entry.operation, ImportData | ImportLink)
        )

    def _record(self, operation: Operation, entry: Entry) -> None:
        assert not isinstance(operation, NewEpoch | Mark | Clean | Void)
        try:
            self._catalog.record(operation, entry.seq, entry.time_ns)
        except KeyError as error:
            first_seq = self._volume.journal.reader.first_seq
            raise RecoveryError(
                f"entry {entry.seq} ({operation.kind.name}) does not fit the catalog ({error}): "
                + (
                    "delete the volume's catalog directory and mount again, to rebuild it from the "
                    "journal"
                    if first_seq == 1 or self._volume.journal.reader.base is not None
                    else f"it cannot be made anew without the entries before {first_seq}, which "
                    "are not in the journal any more; restore their segments"
                )
            ) from None
        if (making := made_by(operation)) is not None:
            self._made.append(making.fid)

    # -- handles -----------------------------------------------------------------------------------

    def _find_handles(self) -> None:
        """Find the backing's handle of every object that the recorded entries made and that still
        has a name."""
        lacking: Iterable[Fid] = self._made
        if self._catalog.lacks_handles:
            lacking = self._catalog.fids_without_handle()
        left = []
        for fid in lacking:
            node = self._catalog.node(fid)
            if node is None or self._find_handle(node):
                continue
            if self._is_in_flight(fid):
                left.append(fid)
            else:
                self.missing.append(self._catalog.path(fid) or b"?")
        self._made = left
        self._catalog.note_handles(have_all=True)

    def _is_in_flight(self, fid: Fid) -> bool:
        """True if the entry in flight may have taken *fid*'s name away."""
        if self._in_flight is None:
            return False
        operation = self._in_flight.operation
        return fid in (getattr(operation, "fid", 0), getattr(operation, "replaced", 0))

    def _find_handle(self, node: CatalogNode) -> bool:
        """Find one handle, its directories' first: their depth has no bound, so without
        recursion."""
        wanted = [node.fid]
        tried: set[Fid] = set()
        while wanted:
            fid = wanted[-1]
            current = self._catalog.node(fid)
            if current is None or current.handle or self._look_for(current):
                wanted.pop()
                continue
            directories = [parent for parent, _ in self._dentries(current)]
            lacking = [
                parent
                for parent in directories
                if parent not in tried
                and (directory := self._catalog.node(parent)) is not None
                and not directory.handle
            ]
            tried.update(lacking)
            if lacking:
                wanted += lacking
            else:
                wanted.pop()
        found = self._catalog.node(node.fid)
        return found is not None and bool(found.handle)

    def _look_for(self, node: CatalogNode) -> bool:
        """Look for *node* in those of its directories that are found already."""
        for parent, name in self._dentries(node):
            directory = self._catalog.node(parent)
            if directory is None or not directory.handle:
                continue
            try:
                found = self._volume.tree.probe_name(parent, name)
            except OSError as error:
                if error.errno != errno.ESTALE:
                    raise
                continue  # the backing lacks the directory itself
            if found is not None and found.fid == node.fid:
                self._catalog.note_object(node, found.handle, found.stat.st_ino)
                return True
        return False

    def _dentries(self, node: CatalogNode) -> list[tuple[Fid, bytes]]:
        """Returns the dentries where *node* may be found: its names, and the name that the entry in
        flight may have given it."""
        dentries = list(self._catalog.dentries(node))
        operation = self._in_flight.operation if self._in_flight is not None else None
        if isinstance(operation, Moving) and operation.fid == node.fid:
            dentries.append((operation.new_parent, operation.new_name))
        elif isinstance(operation, Moving) and operation.replaced == node.fid:
            dentries.append((operation.parent, operation.name))
        return dentries

    # -- the entry in flight -----------------------------------------------------------------------

    def _redo(self, entry: Entry) -> None:
        operation = entry.operation
        assert not isinstance(operation, NewEpoch | Mark | Clean | Void)
        if isinstance(operation, Import):
            self._redo_import(operation, entry)
        else:
            mtimes = kept_mtimes(Lookup(self._volume.journal.reader), entry)
            self._volume.redo_last(operation, entry.seq, entry.time_ns, bytes(entry.data))
            for fid, mtime_ns in mtimes.items():
                self._volume.set_mtime(fid, mtime_ns)

    def _redo_import(self, operation: Import, entry: Entry) -> None:
        found: FoundEntry | None = None
        if self._reconcile is None:
            found = self._volume.tree.probe_name(operation.parent, operation.name)
        # (Else the survey of the whole backing has looked for it already.)
        if found is None or found.fid not in (None, operation.fid):
            self._volume.void(entry.seq, operation, errno.ENOENT if found is None else errno.EEXIST)
            return
        try:
            self._volume.tag_imported(operation, found.handle)
        except OSError as error:
            self._volume.void(entry.seq, operation, error.errno or errno.EIO)
            return
        self._catalog.record(operation, entry.seq, entry.time_ns, found.handle, found.stat.st_ino)


def committed_end(journal: Journal, watermarks: WatermarkPage) -> Seq:
    """Returns the last entry of a mirror's *journal* that its sender had applied: only the last of
    all can be one that was refused, whose VOID did not come or is lost."""
    head_seq, has_outcome = journal.reader.head()
    return head_seq if has_outcome or watermarks.committed_seq == head_seq else Seq(head_seq - 1)


def decide_in_doubt(volume: Volume, committed_seq: Seq) -> None:
    """Have the entry of a mirror that may be applied, wholly or in part, be applied, and recorded:
    for a caller that lets no applier follow. *committed_seq*: no entry after this one was begun.
    Raises JournalDamagedError, StoreError, OSError."""
    seq, reader = Seq(volume.catalog.applied_seq + 1), volume.journal.reader
    if seq > min(committed_seq, volume.journal.head_seq):
        return
    # (With the VOID, if one follows.)
    for entry, outcome in with_outcomes(reader.read(seq, Seq(seq + 2))):
        mtimes = kept_mtimes(Lookup(reader), entry)
        volume.apply_received(entry, outcome, redo=True)
        for fid, mtime_ns in mtimes.items():
            volume.set_mtime(fid, mtime_ns)
        return
