"""Marks: the points in a journal that an admin has named, but for those that were removed since.

A removal is an entry of its own, which takes all marks of that name away that came before it; one
that is made after it counts. It is a MARK whose name begins with a NUL, as that of no mark can:
0.1.0 takes it for a mark of an odd name, so that none of its mirrors stops there."""

from typing import NamedTuple

from fusejournal.history.lookup import Lookup
from fusejournal.kinds import Kind
from fusejournal.operations import Mark
from fusejournal.types import Fid, Seq

_REMOVAL = "\0"


class MarkedPoint(NamedTuple):
    """A mark."""

    name: str
    seq: Seq
    time_ns: int


def removal_of(name: str) -> Mark:
    """Returns the removal of the marks *name*."""
    return Mark(_REMOVAL + name)


def removed_name(operation: Mark) -> str | None:
    """Returns the name of the marks that *operation* removes; None of a mark."""
    name = operation.name
    return name.removeprefix(_REMOVAL) if name.startswith(_REMOVAL) else None


def find_mark(lookup: Lookup, name: str) -> Seq | None:
    """Returns the seq of the newest mark *name*; None where there is none, or it was removed."""
    keys = [mark.name.encode("utf-8", "surrogateescape") for mark in (Mark(name), removal_of(name))]
    for span in lookup.segments(newest_first=True):
        index = lookup.index(span)
        numbers = sorted(posting.number for key in keys for posting in index.of_name(Fid(0), key))
        for entry, _ in reversed(list(lookup.reader.pick(span.path, numbers))):
            if isinstance(entry.operation, Mark):
                if entry.operation.name == name:
                    return entry.seq
                if removed_name(entry.operation) == name:
                    return None
    return None


def all_marks(lookup: Lookup) -> list[MarkedPoint]:
    """Returns all marks, by seq: also those that have the name of a later one."""
    found: list[MarkedPoint] = []
    for span in lookup.segments():
        if not lookup.index(span).has_kind(1 << Kind.MARK):
            continue
        for entry in lookup.reader.read(span.first_seq, span.end_seq):
            if not isinstance(entry.operation, Mark):
                continue
            removed = removed_name(entry.operation)
            if removed is None:
                found.append(MarkedPoint(entry.operation.name, entry.seq, entry.time_ns))
            else:
                found = [one for one in found if one.name != removed]
    return found
