"""Plans how a node that left the common history becomes a mirror again: chooses by how much the two
journals have in common, and reports what that would do. Reads, and changes nothing.

=====  ====================================  =======================================================
rung   what the journals have in common      what becomes level
=====  ====================================  =======================================================
1      this one is a beginning of the other  nothing: what is missing comes by itself
2      the entries up to where they part     what this one's own entries touched, from the entries
                                             before (volume/rollback.py); they are kept as a branch
3      something, or nothing, that they do   what the two trees have otherwise, by a copy of
       not both have any more                what differs; all of this journal becomes a branch
4      nothing, because this node is new     all, by a copy of the tree
=====  ====================================  =======================================================

The entries of the other journal from there on come as to any mirror that is behind. Rungs 3 and 4
are one mechanism, and need the source itself to be asked (tree_copy.py, admin/rejoin_whole.py)."""

from dataclasses import dataclass
from pathlib import Path
from typing import Final

from fusejournal.errors import FusejournalError
from fusejournal.journal.positions import position_at
from fusejournal.journal.reader import JournalReader
from fusejournal.replication.parting import Parting
from fusejournal.types import Position, Seq
from fusejournal.volume.reconcile.losing import LosingEntries

ANEW: Final = (
    "--from a peer that has an address here ('fusejournal peer add') copies what differs; or keep "
    "what its own entries are wanted for ('fusejournal restore'), then begin it anew: mount an "
    "empty directory with --role mirror and a new --state"
)


class RejoinError(FusejournalError):
    """A node that cannot be brought level as things are."""

    exit_code = 35


class TooLittleInCommonError(RejoinError):
    """Two journals of which not enough is there to make one follow from the other."""


@dataclass(frozen=True)
class RejoinPlan:
    """The effect that a rejoin would have."""

    parting: Parting
    position: Position
    """The place that this node goes back to: its own end, where that is the other's, too."""
    head: Position
    """The end of this node's journal."""
    losing: LosingEntries
    """Everything that its own entries have touched; nothing on rung 1."""

    @property
    def rung(self) -> int:
        """The number of the way; see the module."""
        return 1 if self.position.seq == self.head.seq else 2

    @property
    def own_entries(self) -> int:
        """The number of entries that only this node has."""
        return self.head.seq - self.position.seq


def plan_rejoin(
    journal_dir: Path, reader: JournalReader, head: Position, parting: Parting
) -> RejoinPlan:
    """Returns what a rejoin would do to the node whose journal, in *journal_dir*, *reader* reads,
    and which ends with *head*. Raises RejoinError where the journals do not have enough in common,
    JournalDamagedError."""
    seq = Seq(parting.seq)
    if seq > head.seq:
        raise RejoinError(
            f"{parting.peer} parts after entry {seq}, and this journal ends with {head.seq} now: "
            "mount the volume, so that the two are compared again"
        )
    if seq == head.seq:
        return RejoinPlan(parting, head, head, LosingEntries())
    if seq == 0:
        raise TooLittleInCommonError(
            f"{parting.peer} and this node have no entry in common that both still have: {ANEW}"
        )
    first_seq = reader.first_seq
    if first_seq != 1 and (reader.base is None or seq < first_seq):
        raise TooLittleInCommonError(
            f"the journal here begins with entry {first_seq}, and the tree as of entry {seq}, "
            f"where the two part, cannot be made from it: {ANEW}"
        )
    parted = position_at(reader, seq)
    if parted.chain != parting.chain:
        raise RejoinError(
            f"{journal_dir}: entry {seq} is another one than when {parting.peer} was compared: "
            "have it compared again (mount this node, or give --from)"
        )
    losing = LosingEntries.read(reader, seq, head.seq)
    return RejoinPlan(parting, parted, head, losing)
