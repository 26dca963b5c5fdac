"""The files that entries of a history which lost have touched, and which parts of their contents:
what a rollback has to put right (volume/rollback.py).

In memory: a number for each file, and for each file whose content was changed the ranges of it,
which are merged where there come to be many. The entry on which both histories agree is among them,
because the other history may say that it did not hold."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final

from fusejournal.file_operations import Fallocate, SetFlags
from fusejournal.history.file_states import type_of
from fusejournal.journal.reader import JournalReader
from fusejournal.operations import (
    ControlOperation,
    ImportData,
    Truncate,
    Write,
    made_by,
)
from fusejournal.types import Fid, Seq

_RANGES_MAX: Final = 1024
FAR: Final = 1 << 63
"""Behind the end of every file."""


class ByteRanges:
    """Ranges of bytes, half-open. Adding many of them may add what lies between."""

    def __init__(self) -> None:
        self._ranges: list[tuple[int, int]] = []
        self._merged_count = 0

    def add(self, begin: int, end: int) -> None:
        """Add [begin, end)."""
        if end > begin:
            self._ranges.append((begin, end))
            if len(self._ranges) > self._merged_count + _RANGES_MAX:
                self._merge()

    def _merge(self) -> None:
        merged: list[tuple[int, int]] = []
        for begin, end in sorted(self._ranges):
            if merged and begin <= merged[-1][1]:
                merged[-1] = merged[-1][0], max(merged[-1][1], end)
            else:
                merged.append((begin, end))
        if len(merged) > _RANGES_MAX:
            merged = [(merged[0][0], merged[-1][1])]
        self._ranges = merged
        self._merged_count = len(merged)

    def __bool__(self) -> bool:
        return bool(self._ranges)

    def within(self, begin: int, end: int) -> Iterator[tuple[int, int]]:
        """The parts of [begin, end) that are in it, in order."""
        self._merge()
        for first, last in self._ranges:
            if max(first, begin) < min(last, end):
                yield max(first, begin), min(last, end)


@dataclass
class LosingEntries:
    """Everything that such entries have touched."""

    fids: set[Fid] = field(default_factory=set)
    """All files and directories that they are about."""
    made: set[Fid] = field(default_factory=set)
    """The files that they made."""
    dentries: dict[tuple[Fid | None, bytes], int] = field(default_factory=dict)
    """The dentries of these files, with the type: what lies there without a fid may be one that was
    half made."""
    contents: dict[Fid, ByteRanges] = field(default_factory=dict)
    """The files whose content they changed, and where."""
    flagged: set[Fid] = field(default_factory=set)
    """The files whose file flags they set."""
    cause: str = "its end lost"
    """The reason for the work, in words."""

    @classmethod
    def read(cls, reader: JournalReader, parted_seq: Seq, head_seq: Seq) -> "LosingEntries":
        """Returns what the entries from *parted_seq* to *head_seq* have touched, refused ones too.
        Raises JournalDamagedError."""
        found = cls()
        for entry in reader.read(parted_seq, Seq(head_seq + 1)):
            operation = entry.operation
            if isinstance(operation, ControlOperation):
                continue
            found.fids.add(operation.fid)
            found.fids.update(operation.touched_fids)
            if (making := made_by(operation)) is not None:
                found.fids.add(making.fid)
                found.made.add(making.fid)
                found.dentries[making.parent, making.name] = type_of(making)
            match operation:
                case Write(fid=fid, offset=offset) | ImportData(fid=fid, offset=offset):
                    ranges = found.contents.setdefault(fid, ByteRanges())
                    ranges.add(offset, offset + len(entry.data))
                case Fallocate(fid=fid, offset=offset, length=length):
                    ranges = found.contents.setdefault(fid, ByteRanges())
                    ranges.add(offset, offset + length)
                case Truncate(fid=fid, size=size):
                    found.contents.setdefault(fid, ByteRanges()).add(size, FAR)
                case SetFlags(fid=fid):
                    found.flagged.add(fid)
        return found
