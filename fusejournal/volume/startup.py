"""Opens a volume: from a state directory and a backing to a :class:`Volume` that is ready to be
mounted.

In order: the journal (cut or refused as it is found), the catalog, recovery of what the catalog
lacks (after a system crash, of what the backing lacks, too), a new epoch where one is due, the
import of what the journal does not know. Before all that, what a rejoin has begun is gone on with
(rollback.py). Nothing here waits for the network or serves callers; a process killed at any point
of it leaves a state that the next one goes on from.

Between :meth:`VolumeStartup.open` and :meth:`VolumeStartup.recover` a primary that has lost its
machine may append what it gets back from others."""

import logging
import shutil
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from pathlib import Path
from uuid import UUID

from fusejournal.backing.catalog_store import COMMIT_CHANGES
from fusejournal.backing.probe import probe
from fusejournal.backing.root_mark import BackingRoot
from fusejournal.backing.tree import Tree
from fusejournal.disk import calls
from fusejournal.disk.errnos import NO_SPACE
from fusejournal.disk.process import files_open_max
from fusejournal.errors import JournalDamagedError, JournalError, JournalFailedError
from fusejournal.journal.format import Entry
from fusejournal.journal.journal import Journal
from fusejournal.journal.segment import list_segments
from fusejournal.journal.segment_writer import JournalOptions
from fusejournal.journal.watermarks import WatermarkPage
from fusejournal.operations import Clean, NewEpoch
from fusejournal.types import Epoch, Seq
from fusejournal.volume.base import MakeTree, attach_base, prepare_base
from fusejournal.volume.boot_record import BootRecord
from fusejournal.volume.checkpoint import Checkpoint, CheckpointFile, explain_full, suppress_full
from fusejournal.volume.commit_due import CommitDue
from fusejournal.volume.importer import Importer, survey
from fusejournal.volume.observer import VolumeObserver, Watcher
from fusejournal.volume.reconcile.after_loss import reconcile_after_loss, troubles_of
from fusejournal.volume.recovery import Recovery, committed_end
from fusejournal.volume.rollback import Rollback, load_intent
from fusejournal.volume.standing import UNOPPOSED, Standing
from fusejournal.volume.ties import BackingTies, open_catalog
from fusejournal.volume.trouble import Trouble, TroubleKind
from fusejournal.volume.volume import Volume
from fusejournal.volume.wait_policy import WaitPolicy
from fusejournal.volume.whole_set import WholeSet

log = logging.getLogger(__name__)

_CHECKPOINT_SECONDS = 30.0
_IMPORT_NEEDS = (
    "for the import, which needs as much as the files hold; make space or choose another --state, "
    "then mount again: it goes on where it stopped"
)
_UNRECOVERED = "the backing is as the system crash left it: mount it once without -o ro"
_UNFINISHED = "the import was not finished: files that it lacks do not show"
_STOP_NEEDS = (
    "to stop in order: nothing is lost, and the next start goes through the last entries again; "
    "make space before it"
)


class VolumeStartup:
    """Opens one volume. ``degraded``, the troubles, and ``repairs``, a line each, are for its
    status page."""

    def __init__(
        self,
        state_dir: Path,
        uuid: UUID,
        backing: Path,
        root_fd: int,
        options: JournalOptions,
        watcher: Watcher,
        page: WatermarkPage,
        *,
        is_mirror: bool = False,
        is_uninitialized: bool = False,
        adopt: bool = False,
        observer: VolumeObserver | None = None,
        policy: WaitPolicy | None = None,
        base_tree: MakeTree | None = None,
    ) -> None:
        """Opens nothing yet, but takes *root_fd* over.

        Args:
            state_dir, uuid, backing: the volume's state directory, its id, where its files are.
            root_fd: the backing's root, opened; closed with the volume.
            options: how the journal is written.
            watcher: called with how far a long step is.
            page: the node's watermarks; closed with the volume.
            is_mirror: the journal is a copy.
            is_uninitialized: it has no journal yet, and will be whichever volume its primary's is.
            adopt: files that bear another volume's mark are imported all the same.
            observer, policy: of the volume.
            base_tree: opens the tree at the journal's base; None: that cannot be read."""
        self._base_tree = base_tree
        self._observer = observer
        self._policy = policy
        self.page = page
        self._adopt = adopt
        self._watermarks = page if is_mirror else None
        self.root = BackingRoot(root_fd, uuid)
        self._ties = BackingTies(
            state_dir, backing, self.root, page, is_mirror=is_mirror, adopt=adopt
        )
        self.is_uninitialized = is_uninitialized
        self._state_dir = state_dir
        self._uuid = uuid
        self._backing = backing
        self._root_fd = root_fd
        self._options = options
        self._watcher = watcher
        self._boot = BootRecord(state_dir, self.root)
        self.checkpoint = CheckpointFile(state_dir / "checkpoint", page)
        self.commit_due = CommitDue()
        self.repairs: list[str] = []
        self.degraded: list[Trouble] = []
        self._volume: Volume | None = None
        self._importer: Importer | None = None
        self._check: Callable[[], None] = lambda: None
        self._looks_only = False
        self.system_crash = False
        """True if entries may be gone that this volume had acknowledged."""
        self._rollback: Rollback | WholeSet | None = None
        self.lost_page = False
        """True if the page of watermarks is missing, with what it knew of other reigns."""

    @property
    def volume(self) -> Volume:
        """The volume, once :meth:`open` has returned."""
        assert self._volume is not None
        return self._volume

    @property
    def importer(self) -> Importer:
        """The importer of that."""
        assert self._importer is not None
        return self._importer

    def open(self, read_only: bool) -> None:
        """Open journal and catalog as they are. Raises FusejournalError, OSError."""
        journal_dir, catalog_dir = self._state_dir / "journal", self._state_dir / "catalog"
        if not list_segments(journal_dir):
            probe(self._root_fd, self._backing, read_only)
        if not read_only:
            for directory in (self._state_dir, journal_dir, catalog_dir):
                calls.overwrite_in_place(directory)
        if self.is_uninitialized:
            self._ties.check_empty()
        else:
            self._ties.read_mark(read_only)
        self._begin_rollback(read_only)
        boot = self._boot.read()
        same_boot = boot.is_this
        base = prepare_base(self._state_dir, self._uuid, read_only=read_only)
        journal = self._open_journal(read_only, same_boot)
        attach_base(journal, base, self._base_tree)
        # A CLEAN that was the last entry when it was opened again says nothing of what came then.
        clean = journal.head_seq == 0 or (
            journal.ends_clean and journal.head_seq > boot.began_seq
            if self._watermarks is None
            else self._watermarks.stopped_seq == journal.head_seq
        )
        self._ties.check(journal)
        self.lost_page = self._ties.has_lost_page(journal)
        if self.lost_page:
            self._repaired("the page of watermarks was missing, and is made anew")
        lost_progress = self.lost_page and self._watermarks is not None
        is_unclean = not clean and (not same_boot or lost_progress)
        self.system_crash = is_unclean or self._rollback is not None
        if self.system_crash and catalog_dir.exists():
            # Its pages reached the disk in any order.
            shutil.rmtree(catalog_dir)
        catalog = open_catalog(
            catalog_dir, self._root_fd, journal, self._repaired, self.commit_due.note
        )
        tree = Tree(self._root_fd, self._uuid, catalog, files_open_max())
        self._volume = Volume(journal, catalog, tree, self._observer, self._policy)
        self._importer = Importer(self._volume, self._backing, self._adopt)
        if read_only:
            self._looks_only = True
            self.volume.refuse_changes()

    def recover(
        self,
        read_only: bool,
        held_seq: Seq = Seq(0),
        check: Callable[[], None] = lambda: None,
    ) -> None:
        """Make catalog and backing what the journal says. *held_seq*: entries up to here are known
        to be applied, because a mirror has them. *check* is called often, and may stop it by an
        exception: the next opening goes on. Raises FusejournalError, OSError."""
        watermarks = self._watermarks
        self._check = check
        if not read_only:
            self.volume.tree.find_limits()
        if watermarks is None:
            self._recover(read_only, None, held_seq)
        elif read_only or not self.volume.journal.head_seq:
            self._recover(read_only, watermarks.applying_seq, held_seq)
        else:
            watermarks.write_committed(committed_end(self.volume.journal, watermarks))
            applying_seq, begun = watermarks.applying_seq, self._rollback
            if isinstance(begun, WholeSet) and begun.is_to_fill:
                begun.fill(self.volume, self._state_dir, self.checkpoint, self.root, self._progress)
                applying_seq = Seq(begun.position.seq + 1)
            else:
                if self.system_crash:
                    # How far the backing had come is unknown now: it is made what it should be.
                    applying_seq = Seq(watermarks.committed_seq + 1)
                self._recover(read_only, applying_seq, held_seq)
            watermarks.write_applying(applying_seq)
            self._end_rollback()

    def start_epoch_and_import(
        self, read_only: bool, standing: Standing = UNOPPOSED
    ) -> Iterator[None]:
        """Do what comes before the volume takes changes; between two yields the caller may stop it.
        Raises FusejournalError, OSError."""
        catalog = self.volume.catalog
        if read_only:
            if self.system_crash:
                self.note_degraded([Trouble(TroubleKind.UNRECOVERED, _UNRECOVERED)])
            if not catalog.imported and self._watermarks is None:
                self.note_degraded([Trouble(TroubleKind.UNFINISHED_IMPORT, _UNFINISHED)])
            return
        self.volume.tree.find_hidden()
        if self._watermarks is not None:
            self.volume.refuse_changes()
            self._watermarks.write_stopped(Seq(0))
            self._watermarks.raise_durable(self.volume.journal.durable_seq)
            self._watermarks.confirm()
            self._watermarks.sync()
            if not self.is_uninitialized and not self._boot.read().is_this:
                self._boot.remember(self.volume.journal.head_seq)
            return
        if standing.fenced is not None:
            self.volume.fail(standing.fenced.text, standing.fenced.kind)
            if not catalog.imported:
                self.note_degraded([Trouble(TroubleKind.UNFINISHED_IMPORT, _UNFINISHED)])
            return
        with suppress_full():
            self.page.confirm()
        self._begin(standing)
        if not catalog.imported:
            yield from self._import()

    def note_degraded(self, troubles: Iterable[Trouble]) -> None:
        """Keep *troubles* for the status page."""
        self.degraded += troubles

    def _repaired(self, what: str) -> None:
        """Keep *what* for the status page, and log it, because this start may be refused or killed
        yet, and the next one finds nothing to repair."""
        self.repairs.append(what)
        log.warning("%s", what)

    # -- steps -------------------------------------------------------------------------------------

    def _begin_rollback(self, read_only: bool) -> None:
        """Go on with what a rejoin has begun, if one has. Raises RecoveryError, OSError."""
        self._rollback = load_intent(self._state_dir)
        if self._rollback is not None:
            is_mirror, parts = self._watermarks is not None, (self.page, self.root)
            self._rollback.begin(self._state_dir, *parts, read_only=read_only, is_mirror=is_mirror)
            self._ties.take_back_to(self._rollback.position)

    def _end_rollback(self) -> None:
        if self._rollback is not None:
            self._rollback.end(self._state_dir, self.page)
            self._repaired(str(self._rollback))
            self._rollback = None

    def join_volume(self, uuid: UUID) -> None:
        """Become a mirror of volume *uuid*: the first primary has said which that is. Raises
        OSError."""
        self._ties.mark_root(uuid)
        self._uuid = uuid
        self.volume.tree.join_volume(uuid)
        self.volume.journal.join_volume(uuid)
        self.is_uninitialized = False
        self._boot.remember(self.volume.journal.head_seq)

    def _open_journal(self, read_only: bool, same_boot: bool) -> Journal:
        directory = self._state_dir / "journal"
        if not list_segments(directory):
            # (A mirror has its first segment only when the first entries have come.)
            had_entries = bool(self._known_durable() or self._ties.position_seq)
            if had_entries or (self._boot.exists() and self._watermarks is None):
                raise JournalError(
                    f"{directory}: has no segments, but this volume had; restore them"
                )
            directory.mkdir(mode=0o700, exist_ok=True)
            make = Journal.create if self._watermarks is None else Journal
            # Whichever thread flushes it: the kernel reports only once what it dropped.
            return make(directory, self._uuid, self._options, on_flush_failed=self.mark_unclean)
        # A killed layer is recovered for a read-only mount too, as file systems do. After a lost
        # machine that would write under the old epoch, and damage forbids it: then nothing is.
        try:
            journal = self._open_existing(directory, same_boot, read_only and not same_boot)
        except JournalDamagedError:
            if not read_only:
                raise
            journal = self._open_existing(directory, same_boot, read_only)
        on_disk = self._known_durable()
        if on_disk > journal.head_seq and journal.damage is None:
            raise JournalDamagedError(
                directory,
                0,
                journal.head_seq + 1,
                f"entries up to {on_disk} were on disk; segments are missing at the end",
            )
        for repair in journal.repairs:
            self._repaired(str(repair))
        if journal.damage is not None:
            self.degraded.append(Trouble.of_damage(journal.damage))
        return journal

    def _open_existing(self, directory: Path, same_boot: bool, read_only: bool) -> Journal:
        # What the backing's root tells of, too, is nothing to be cut off.
        rooted_seq = self._ties.position.seq if self._ties.position is not None else Seq(0)
        return Journal.open(
            directory,
            self._uuid,
            self._options,
            self.mark_unclean,
            unclean_machine=not same_boot,
            read_only=read_only,
            is_copy=self._watermarks is not None,
            known_durable=max(self._known_durable(), rooted_seq),
        )

    def _known_durable(self) -> Seq:
        """The seq up to which the journal is known to have been on disk, whatever is left of it."""
        return max(self.page.durable_seq, self.checkpoint.load().seq)

    def _recover(self, read_only: bool, applying_seq: Seq | None, held_seq: Seq) -> None:
        reconcile = self._reconcile if self.system_crash and not read_only else None
        checkpoint_seq = self.checkpoint.load().seq
        if checkpoint_seq <= self.volume.journal.head_seq:
            held_seq = max(held_seq, checkpoint_seq)
        recovery = Recovery(self.volume, read_only, applying_seq, reconcile, held_seq)
        recovery.run(lambda done, total: self._progress("recovering", done, total, "entries"))
        self.note_degraded(recovery.troubles())
        if recovery.missing:
            self._watcher.warning(self.degraded[-1].text)

    def _progress(self, stage: str, done: int, total: int | None, unit: str) -> None:
        self._check()
        self._watcher.progress(stage, done, total, unit)

    def _reconcile(self, before_seq: Seq, in_flight: Entry | None) -> list[bytes]:
        """Reconciles after a system crash, or a history that lost. Returns what cannot be made
        anew. Raises RecoveryError, JournalDamagedError."""
        rollback, is_mirror = self._rollback, self._watermarks is not None
        parts = self.volume, self._state_dir, self._progress
        losing = rollback.prepare(*parts) if rollback is not None else None
        work = reconcile_after_loss(
            self.volume,
            self._backing,
            self.checkpoint,
            before_seq,
            in_flight,
            self._progress,
            self._make_checkpoint,
            may_be_ahead=not is_mirror if rollback is None else rollback.may_be_ahead,
            losing=losing,
        )
        for repair in work.report():
            self._repaired(repair)
        self.note_degraded(troubles_of(work, is_mirror=is_mirror))
        return work.missing

    def _begin(self, standing: Standing) -> None:
        """Journal that a reign begins where one does, and remember this boot."""
        volume = self.volume
        if volume.journal.head_seq == 0:
            volume.note(NewEpoch(Epoch(1), "a new volume"))
        elif (due := self.due_epoch(standing)) is not None:
            volume.note(due)
            volume.journal.sync()  # before a peer hears of it
        if not self._boot.read().is_this:
            volume.journal.sync()
            self._boot.remember(self.volume.journal.head_seq)
        elif volume.journal.ends_clean:
            # (A killed layer's journal says by itself that it was not stopped in order.)
            self._boot.remember(self.volume.journal.head_seq)

    def due_epoch(self, standing: Standing) -> NewEpoch | None:
        """Implements Standing.due_epoch."""
        epoch = self.volume.journal.epoch
        return standing.due_epoch(self._boot.read(), epoch, system_crash=self.system_crash)

    def mark_unclean(self) -> None:
        """Have the next opening take what the disks were given for lost, because one has failed."""
        self._boot.mark_unclean(self.volume.journal.head_seq)

    def _import(self) -> Iterator[None]:
        """Import what is in the backing. Yields between items."""
        total = survey(self._root_fd)
        catalog = self.volume.catalog
        with explain_full(self._state_dir, _IMPORT_NEEDS):
            due = time.monotonic() + _CHECKPOINT_SECONDS
            for done in self.importer.run():
                self._watcher.progress("importing", done.bytes, total.bytes, "bytes")
                if catalog.changes >= COMMIT_CHANGES:
                    catalog.commit()
                if time.monotonic() > due:
                    self._make_checkpoint()
                    due = time.monotonic() + _CHECKPOINT_SECONDS
                yield
            catalog.end_import()
            # The fids must be on the files before a caller removes or renames one.
            self._make_checkpoint()
            catalog.commit()

    def _make_checkpoint(self) -> None:
        journal = self.volume.journal
        checkpoint = Checkpoint.begin(self.volume.catalog.applied_seq, journal.head)
        journal.sync()
        self._flush_backing(checkpoint)

    def _flush_backing(self, checkpoint: Checkpoint) -> None:
        try:
            self.checkpoint.make(checkpoint, self.root)
        except OSError:
            self.mark_unclean()  # whatever it says: what the kernel dropped is not there
            raise

    # -- the end -----------------------------------------------------------------------------------

    def close(
        self, *, keep_orphans: bool = False, becomes_mirror: bool = False, goes_on: bool = False
    ) -> None:
        """An orderly stop, blocking: everything flushed, a CLEAN entry (or, of a mirror, whose
        journal has no entry of its own, a word in its page), everything closed. A disk that fails
        at it is remembered, as one that fails earlier. *keep_orphans*: open files without a name
        stay, for the next process. *becomes_mirror*: a primary ends as a mirror. *goes_on*: callers
        wait for the next opening, so no seal is made. Raises FusejournalError, OSError."""
        volume = self.volume
        # (All of them, whichever fails: what is still open would keep a file system in use.)
        with ExitStack() as stack:
            stack.callback(self.page.close)
            stack.callback(volume.journal.close)
            stack.callback(volume.tree.close, keep_orphans=keep_orphans)
            stack.callback(volume.catalog.close)
            try:
                self._finish(becomes_mirror, seals=not goes_on)
            except (OSError, JournalFailedError) as error:
                if getattr(error, "errno", None) not in NO_SPACE:
                    self.mark_unclean()
                raise

    def _finish(self, becomes_mirror: bool, *, seals: bool) -> None:
        volume, page = self.volume, self.page
        journal, catalog = volume.journal, volume.catalog
        is_mirror = self._watermarks is not None and volume.failure is None and journal.is_writable
        is_mirror = is_mirror or (becomes_mirror and not self._boot.is_unclean)
        if self._looks_only or (volume.write_errno is not None and not is_mirror):
            return
        last = Checkpoint.begin(catalog.applied_seq, journal.head)
        journal.sync()
        self._flush_backing(last)
        catalog.note_checkpoint(catalog.applied_seq)
        # (A mirror's backing has nothing that its journal does not know.)
        if is_mirror and not self.is_uninitialized:
            catalog.end_import()
        with explain_full(self._state_dir, _STOP_NEEDS):
            catalog.commit()
        catalog.sync()
        if seals:
            with suppress_full():
                catalog.seal()
        if is_mirror:
            # On a full disk it is no orderly stop, which the next start can do without.
            with suppress_full():
                if page.applying_seq != catalog.applied_seq + 1:  # (Else that one is in doubt yet.)
                    page.write_applying(catalog.applied_seq)
                if becomes_mirror:
                    page.write_committed(catalog.applied_seq)
                    if catalog.applied_seq < journal.head_seq:
                        # The volume failed amid this entry: the applier looks what came of it.
                        page.write_applying(Seq(catalog.applied_seq + 1))
                page.sync_stopped(journal.head_seq)
            return
        # Last, and not in the catalog any more: CLEAN says that the catalog is whole on disk.
        with explain_full(self._state_dir, _STOP_NEEDS):
            volume.note(Clean())
        journal.sync()
        with suppress_full():
            page.write_durable(journal.durable_seq)
            if self.root.try_mark(journal.head):
                calls.fsync("root.sync", self._root_fd)
                page.write_rooted(journal.head_seq)
            page.sync()
