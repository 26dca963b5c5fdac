"""Which entries held: pairs each entry with the VOID that follows it. Pure; used by recovery, log
and replay."""

from collections.abc import Iterable, Iterator

from fusejournal.errors import RecoveryError
from fusejournal.journal.format import Entry
from fusejournal.operations import Void


def with_outcomes(entries: Iterable[Entry]) -> Iterator[tuple[Entry, Void | None]]:
    """Each entry with the VOID that follows it, or None; VOID entries do not come by themselves.

    The last entry comes with None when no VOID follows: whether it holds is for the applied
    watermark to say. A leading VOID belongs to an entry before the range and is passed over.
    Raises RecoveryError on a VOID that names another entry than the one before it."""
    held: Entry | None = None
    first = True
    for entry in entries:
        if isinstance(entry.operation, Void):
            if held is not None and held.seq == entry.operation.seq:
                yield held, entry.operation
            elif not first:
                raise RecoveryError(
                    f"entry {entry.seq} voids {entry.operation.seq}, which is not before it"
                )
            held = None
        else:
            if held is not None:
                yield held, None
            held = entry
        first = False
    if held is not None:
        yield held, None
