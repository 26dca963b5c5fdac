"""Outcomes: which entries held, known by the VOID that follows an entry that did not. Pure; used by
recovery, queries and replay alike."""

from collections.abc import Iterable, Iterator
from typing import NamedTuple

from fusejournal.errors import RecoveryError
from fusejournal.journal.format import Entry
from fusejournal.operations import Void


class Outcome(NamedTuple):
    """An entry's outcome. *held*: it is to be carried out, wholly or, a WRITE that was cut short,
    as far as *void* says; *void* is the entry that follows it if it was refused or cut short."""

    held: bool
    void: Void | None

    @classmethod
    def of(cls, void: Void | None) -> "Outcome":
        """The outcome of an entry that *void* follows, or nothing about it."""
        return HELD if void is None else cls(void.written > 0, void)

    def data_of(self, entry: Entry) -> bytes | memoryview:
        """The data of *entry*, whose outcome this is, that held."""
        return entry.data if self.void is None else entry.data[: self.void.written]


HELD = Outcome(True, None)
"""The outcome of nearly every entry: one object, because making one for each costs a tenth of
reading it."""


def with_outcomes(entries: Iterable[Entry]) -> Iterator[tuple[Entry, Outcome]]:
    """Pairs each entry with its outcome; VOID entries do not come by themselves.

    The last entry comes as one that held when no VOID follows: whether it does is for the applied
    watermark to say. A leading VOID belongs to an entry before the range and is passed over.
    Raises RecoveryError on a VOID that names another entry than the one before it."""
    last: Entry | None = None
    first = True
    for entry in entries:
        if isinstance(entry.operation, Void):
            if last is not None and last.seq == entry.operation.seq:
                yield last, Outcome.of(entry.operation)
            elif not first:
                raise RecoveryError(
                    f"entry {entry.seq} voids {entry.operation.seq}, which is not before it"
                )
            last = None
        else:
            if last is not None:
                yield last, HELD
            last = entry
        first = False
    if last is not None:
        yield last, HELD
