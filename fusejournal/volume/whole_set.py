"""Makes a mirror of a version: its journal begins with that as its base, and its backing becomes
that tree. For a node that has too little in common with its source for their journals to meet: a
new one, or one that was away for longer than the source's journal goes back (roles/rejoin.py).

When the version is in the node's own store, whole, and the segments of the source's journal behind
it are in STATE/journal.new, the intent is written down (STATE/level.json); from then on there is no
other way than through, as with a rollback (rollback.py), and nothing is served before the end. The
next opening of the volume goes through: the watermarks are lowered, the new segments take the place
of the old, the base is written down, the catalog is thrown away. A backing that was empty is
filled, file by file, and the catalog with it; then it is a mirror that has applied no entry after
the base. One that was not empty is known as a tree, too, and gets what differs: it is reconciled
with the journal (reconcile/), as one that a system crash left unknown since the base.

Filling (filling.py) goes on where it was after a kill; one that was filled, and killed before that
was written down to the end, is reconciled. What differs is kept in memory; what differs in a
content is made what the base says with each attempt anew, until all is on the disk.

Only for the process that holds the volume. Blocks."""

import json
import shutil
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Final

from fusejournal.backing.root_mark import BackingRoot
from fusejournal.disk import calls
from fusejournal.disk.boot import boot_id
from fusejournal.disk.files import UNREADABLE_JSON, Outlives, remove, write_atomically
from fusejournal.disk.json_records import checked, hash_of_hex, read_object
from fusejournal.errors import FusejournalError, RecoveryError
from fusejournal.journal.base import FileChange, JournalBase, save_base
from fusejournal.journal.watermarks import WatermarkPage
from fusejournal.types import ROOT_FID, Position, Seq, StageProgress
from fusejournal.volume.checkpoint import Checkpoint, CheckpointFile
from fusejournal.volume.filling import Filling
from fusejournal.volume.reconcile.losing import FAR, ByteRanges, LosingEntries
from fusejournal.volume.volume import Volume

FILE: Final = "level.json"
NEW_JOURNAL: Final = "journal.new"
_FORMAT: Final = 1
_ROOT_BYTES: Final = 32


@dataclass(frozen=True)
class WholeSet:
    """The intent to have the volume of the state directory be as of *base*.

    Args:
        inodes, names: the roots of the tree that the backing has, in hex; None where it was empty.
        made_ns: the time when that was so, and on the disk.
        boot: the boot of the machine in which the backing was begun to be filled.
        is_filled: the backing has the tree of the base, and that is on the disk.
        branch: the branch that has the journal of before, all on the disk; None where none was."""

    base: JournalBase
    inodes: str | None
    names: str | None
    made_ns: int
    boot: str
    is_filled: bool = False
    branch: str | None = None

    @classmethod
    def begun(
        cls, base: JournalBase, inodes: str | None, names: str | None, branch: str | None = None
    ) -> "WholeSet":
        """Returns one that begins now."""
        return cls(base, inodes, names, time.time_ns(), boot_id(), inodes is not None, branch)

    @property
    def position(self) -> Position:
        """The position of the base."""
        return self.base.position

    @property
    def is_to_fill(self) -> bool:
        """True if the backing was empty, and is not known to have the tree of the base yet."""
        return self.inodes is None and not self.is_filled

    @property
    def may_be_ahead(self) -> bool:
        """False: the backing has nothing that neither the journal has nor the tree."""
        return False

    def save(self, state_dir: Path) -> None:
        """Have it on the disk. Raises OSError: then all is as before."""
        raw = {**asdict(self), "base": self.base.to_json()}
        content = json.dumps({"format": _FORMAT, **raw}, indent=1).encode()
        write_atomically("level.intent", state_dir / FILE, content, Outlives.MACHINE)

    def begin(
        self,
        state_dir: Path,
        page: WatermarkPage,
        root: BackingRoot,
        *,
        read_only: bool,
        is_mirror: bool,
    ) -> None:
        """Have nothing of the volume speak of another history any more, but its backing. Raises
        RecoveryError in a *read_only* opening, which may not, and where it is no mirror yet;
        FusejournalError, OSError."""
        if not is_mirror or read_only:
            why = "mount it without -o ro" if is_mirror else "'fusejournal rejoin'"
            raise RecoveryError(f"{state_dir}: a copy of the tree is not at its end: {why} goes on")
        seq = self.position.seq
        page.lower_to(seq)
        checkpoints = CheckpointFile(state_dir / "checkpoint", page)
        checkpoints.lower(Seq(0))
        root.mark(self.position)
        calls.fsync("level.root", root.fd)
        if (state_dir / "catalog").exists():
            shutil.rmtree(state_dir / "catalog")
        self._take_journal(state_dir)
        save_base(state_dir, self.base)
        if self.is_filled:
            checkpoints.make(Checkpoint(seq, self.made_ns, self.position), root)

    @staticmethod
    def _take_journal(state_dir: Path) -> None:
        """Have the new segments be the journal. What the old ones had is kept as a branch."""
        new, journal = state_dir / NEW_JOURNAL, state_dir / "journal"
        if new.exists():
            shutil.rmtree(journal, ignore_errors=True)
            calls.rename("level.journal", new, journal)
            calls.fsync_directory("level.journal.directory", state_dir)

    def prepare(self, volume: Volume, _: Path, progress: StageProgress) -> LosingEntries:
        """Returns what the reconciliation has to do for the backing to be the tree of the base. The
        catalog has the tree already, without handles. Raises StoreError."""
        tree = volume.journal.reader.base
        assert tree is not None
        losing = LosingEntries({ROOT_FID}, cause="it was away")
        if self.inodes is not None and self.names is not None:
            for number, change in enumerate(tree.changes_from(self.inodes, self.names)):
                progress("comparing the trees", number, None, "files")
                self._take_change(volume, change, losing)
        return losing

    def fill(
        self,
        volume: Volume,
        state_dir: Path,
        checkpoints: CheckpointFile,
        root: BackingRoot,
        progress: StageProgress,
    ) -> None:
        """Have backing and catalog, which has nothing, be the tree of the base, and the backing on
        the disk. Raises StoreError, RecoveryError."""
        tree = volume.journal.reader.base
        assert tree is not None
        try:
            Filling(volume, tree, progress, trusts_mtimes=self.boot == boot_id()).run()
            volume.catalog.commit()
            made_ns = time.time_ns()  # nothing is changed from here to the flush
            checkpoints.make(Checkpoint(self.position.seq, made_ns, self.position), root)
            replace(self, is_filled=True, made_ns=made_ns).save(state_dir)
        except OSError as error:
            raise RecoveryError(
                f"{state_dir}: the files of the tree cannot be made in its backing: "
                f"{error.strerror}; mend that, and the same command goes on"
            ) from error
        tree.forget()

    @staticmethod
    def _take_change(volume: Volume, change: FileChange, losing: LosingEntries) -> None:
        """Have the reconciliation bring a file to what the base says. Nothing is written before
        that knows each file by its fid: by the path that the other tree has, an earlier attempt may
        have left another, or nothing."""
        fid = change.fid
        losing.fids.add(fid)
        if volume.catalog.node(fid) is None:
            losing.made.add(fid)  # it is not there any more
        if change.has_flags:
            losing.flagged.add(fid)
        if change.size is not None and change.other_path is not None:
            ranges = losing.contents[fid] = ByteRanges()
            for start, length in change.ranges:
                ranges.add(start, start + length)
            ranges.add(change.size, FAR)

    def end(self, state_dir: Path, page: WatermarkPage) -> None:
        """The backing is what it should be, and on the disk. Raises OSError."""
        page.sync()
        remove("level.done", state_dir / FILE)

    def __str__(self) -> str:
        """The deed in words."""
        return f"rejoin: begun anew with the tree as of entry {self.position.seq}"


def load_whole_set(state_dir: Path) -> WholeSet | None:
    """Returns the intent in *state_dir*; None where there is none. Raises FusejournalError,
    OSError."""
    path = state_dir / FILE
    try:
        raw = read_object(path)
        if raw.pop("format") != _FORMAT:
            raise FusejournalError(f"{path}: written by another version of fusejournal")
        found = checked(WholeSet(**{**raw, "base": JournalBase.from_json(raw["base"])}))
        if (found.inodes is None) != (found.names is None):
            raise ValueError("it has one root of two")
        for name, root in (("inodes", found.inodes), ("names", found.names)):
            if root is not None:
                hash_of_hex(name, root, _ROOT_BYTES)
        return found
    except FileNotFoundError:
        return None
    except UNREADABLE_JSON as error:
        raise FusejournalError(f"{path}: cannot be read: {error}") from None
