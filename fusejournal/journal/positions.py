"""Finds the positions of a journal's entries. Pure reading; all functions block."""

from fusejournal.errors import JournalError
from fusejournal.journal.reader import JournalReader
from fusejournal.journal.segment import first_seq_of
from fusejournal.operations import NewEpoch
from fusejournal.types import Epoch, Position, Seq


def position_at(reader: JournalReader, seq: Seq) -> Position:
    """Returns the position of entry *seq* of *reader*'s journal, or of the one before its first: of
    0, too. Reads that entry's segment up to it. Raises JournalError where the journal does not have
    it, JournalDamagedError."""
    if seq == 0:
        return Position(Epoch(0), seq, 0)
    start = max(reader.segment_start(seq), reader.first_seq)
    (path,) = (one for one in reader.segments() if first_seq_of(one) == start)
    header, _ = reader.beginning(path)
    epoch, at, chain = header.epoch, Seq(header.first_seq - 1), header.chain_before
    for entry in reader.read(header.first_seq, Seq(seq + 1)):
        at, chain = entry.seq, entry.chain
        if isinstance(entry.operation, NewEpoch):
            epoch = entry.operation.epoch
    if at != seq:
        raise JournalError(f"{path}: the journal has no entry {seq}")
    return Position(epoch, seq, chain)
