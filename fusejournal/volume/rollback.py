"""Takes a volume back to an earlier entry of its own journal, because what came after it lost to
another history and is kept as a branch (journal/branches.py).

First the intent is on the disk (STATE/rejoin.json); from then on there is no other way than
through. The next opening of the volume, in whichever process, goes through it: watermarks, the
root's mark and the checkpoint are lowered, the journal is cut back, the catalog is thrown away, and
the backing is reconciled with what the journal says then (reconcile/), as one that a system crash
left unknown, where what the branch's entries touched is known from the branch. The intent goes when
the backing is on the disk. Killed at any step, the next opening does all of it again, to the same
end; until then nothing is served.

Only for the process that holds the volume. Blocks."""

import json
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

from fusejournal.backing.root_mark import BackingRoot
from fusejournal.disk import calls
from fusejournal.disk.files import UNREADABLE_JSON, Outlives, remove, write_atomically
from fusejournal.disk.json_records import checked, position_of, read_object
from fusejournal.errors import FusejournalError, RecoveryError
from fusejournal.journal.branches import find_branch
from fusejournal.journal.cut_back import cut_back
from fusejournal.journal.watermarks import WatermarkPage
from fusejournal.types import Position, Seq, StageProgress
from fusejournal.volume.checkpoint import CheckpointFile
from fusejournal.volume.reconcile.losing import LosingEntries
from fusejournal.volume.volume import Volume
from fusejournal.volume.whole_set import WholeSet, load_whole_set

REJOIN_FILE: Final = "rejoin.json"
_FORMAT: Final = 1


@dataclass(frozen=True)
class Rollback:
    """The intent to take the volume of the state directory back to *position*.

    Args:
        branch: the branch that has what comes after it; None where nothing does.
        may_be_ahead: the backing may have what not even the branch has: a primary's after a system
            crash."""

    position: Position
    branch: str | None
    may_be_ahead: bool

    def save(self, state_dir: Path) -> None:
        """Have it on the disk. Raises OSError: then it is not there."""
        content = json.dumps({"format": _FORMAT, **asdict(self)}, indent=2).encode()
        write_atomically("rejoin.intent", state_dir / REJOIN_FILE, content, Outlives.MACHINE)

    def losing(self, state_dir: Path) -> LosingEntries:
        """Returns what the entries that lost have touched. Raises FusejournalError, OSError."""
        if self.branch is None:
            return LosingEntries()
        branch = find_branch(state_dir, self.branch)
        return LosingEntries.read(branch.reader(), branch.parted.seq, branch.head.seq)

    def begin(
        self,
        state_dir: Path,
        page: WatermarkPage,
        root: BackingRoot,
        *,
        read_only: bool,
        is_mirror: bool,
    ) -> None:
        """Have nothing of the volume speak of what comes after the position any more, but its
        backing. Raises RecoveryError in a *read_only* opening, which may not, and where it is no
        mirror yet; FusejournalError, OSError."""
        if not is_mirror:
            raise RecoveryError(
                f"{state_dir}: a rejoin has begun, and its role has yet to change: 'fusejournal "
                "rejoin' goes on"
            )
        if read_only:
            raise RecoveryError(
                f"{state_dir}: a rejoin has begun and is not at its end: mount it without -o ro, "
                "and it goes on"
            )
        seq = self.position.seq
        if self.branch is not None:
            find_branch(state_dir, self.branch)  # or the only copy would go
        # What tells of more than there is would be taken for damage: so it is lowered first.
        page.lower_to(seq)
        CheckpointFile(state_dir / "checkpoint", page).lower(Seq(seq - 1))
        root.mark(self.position)
        calls.fsync("rejoin.root", root.fd)
        catalog = state_dir / "catalog"
        if catalog.exists():
            shutil.rmtree(catalog)
        cut_back(state_dir / "journal", self.position)

    def prepare(self, _: Volume, state_dir: Path, __: StageProgress) -> LosingEntries:
        """Returns what the reconciliation has to put right: see :meth:`losing`."""
        return self.losing(state_dir)

    def end(self, state_dir: Path, page: WatermarkPage) -> None:
        """The backing is what it should be, and on the disk. Raises OSError."""
        page.sync()
        remove("rejoin.done", state_dir / REJOIN_FILE)

    def __str__(self) -> str:
        """The deed in words."""
        return f"rejoin: taken back to entry {self.position.seq}" + (
            f"; what came after it is branch {self.branch}" if self.branch else ""
        )


def load_rollback(state_dir: Path) -> Rollback | None:
    """Returns the intent that a rejoin left in *state_dir*; None where there is none. Raises
    FusejournalError, OSError."""
    path = state_dir / REJOIN_FILE
    try:
        raw = read_object(path)
        if raw["format"] != _FORMAT:
            raise FusejournalError(f"{path}: written by another version of fusejournal")
        return checked(Rollback(position_of(raw["position"]), raw["branch"], raw["may_be_ahead"]))
    except FileNotFoundError:
        return None
    except UNREADABLE_JSON as error:
        raise FusejournalError(f"{path}: cannot be read: {error}") from None


def load_intent(state_dir: Path) -> Rollback | WholeSet | None:
    """Returns what a rejoin has begun in *state_dir*, of either kind; None where nothing. Raises
    FusejournalError, OSError."""
    return load_rollback(state_dir) or load_whole_set(state_dir)
