"""The base of a volume's journal at its start: what a removal of segments left is removed, and base
and journal are checked against each other before anything is built on them."""

from collections.abc import Callable
from pathlib import Path
from uuid import UUID

from fusejournal.errors import JournalError
from fusejournal.journal.base import BaseTree, JournalBase, base_path, keep_spare, load_base
from fusejournal.journal.drop import drop_segments
from fusejournal.journal.journal import Journal
from fusejournal.journal.segment import first_seq_of, list_segments
from fusejournal.types import Seq

MakeTree = Callable[[JournalBase], BaseTree]


def prepare_base(state_dir: Path, uuid: UUID, *, read_only: bool) -> JournalBase | None:
    """Returns the base of the journal in *state_dir*, of volume *uuid*, if it has one, with what it
    stands for gone. Raises JournalError where it is another volume's, or segments behind it are
    missing, or it is missing itself; OSError."""
    base, path = load_base(state_dir), base_path(state_dir)
    if not read_only:
        keep_spare(state_dir)
    if base is None:
        _check_whole(state_dir)
        return None
    if base.uuid != uuid:
        raise JournalError(f"{path}: is of volume {base.uuid}, and this is {uuid}")
    starts = [first_seq_of(one) for one in list_segments(state_dir / "journal")]
    if base.seq + 1 not in starts:
        raise JournalError(
            f"{state_dir / 'journal'}: no segment begins with entry {base.seq + 1}, right after "
            f"the base in {path}: restore the segments that are missing, or the newer of the two"
        )
    if not read_only:
        drop_segments(state_dir / "journal", base.seq)
    return base


def _check_whole(state_dir: Path) -> None:
    """Raises JournalError unless the journal in *state_dir* begins with entry 1, or has none."""
    for first in list_segments(state_dir / "journal")[:1]:
        if first_seq_of(first) != 1:
            raise JournalError(
                f"{first.parent}: begins with entry {first_seq_of(first)}, and nothing tells the "
                f"tree before: restore {base_path(state_dir)}, or the segments that are missing"
            )


def attach_base(journal: Journal, base: JournalBase | None, make_tree: MakeTree | None) -> None:
    """Have *journal* go on from *base*, whose tree *make_tree* opens. Raises JournalError where it
    does not follow it; JournalDamagedError."""
    if base is None:
        return
    assert make_tree is not None, "a process that opens a journal with a base can read its tree"
    journal.begin_behind(make_tree(base))
    header, _ = journal.reader.beginning(journal.reader.segments()[0])
    if (header.first_seq, header.chain_before) != (base.seq + 1, base.chain):
        raise JournalError(
            f"{journal.directory}: entry {header.first_seq} does not follow the journal's base, "
            f"{base.position}: it is of another history"
        )


def base_seq_of_journal(journal: Journal) -> Seq:
    """Returns the last entry that is not in *journal* any more; 0 where it has all."""
    return journal.reader.base.base.seq if journal.reader.base is not None else Seq(0)
