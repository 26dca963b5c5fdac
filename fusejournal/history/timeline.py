"""The paths of a file through time, with those that directories above gave it by moving. Pure:
lookup.py reads the entries."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any

from fusejournal.history.name_changes import Dentry, name_changes
from fusejournal.journal.format import Entry
from fusejournal.journal.reader import END
from fusejournal.types import ROOT_FID, Fid, Seq

_NOWHERE = Fid(0)
_Names = tuple[bytes, Any]
"""A name, and those below it: None, or the same again."""


def _joined(names: _Names | None) -> bytes:
    found: list[bytes] = []
    while names is not None:
        name, names = names
        found.append(name)
    return b"/".join(found)


Moves = list[tuple[Seq, Dentry | None]]
"""The oldest name of a file from each seq (after that entry) on; None without one."""


def moves_in(
    fid: Fid, entries: Iterable[tuple[Entry, object]]
) -> Iterator[tuple[Seq, Dentry | None]]:
    """The moves of *fid*, made from all *entries* that held and did something to its names, in
    order."""
    dentries: dict[Dentry, None] = {}
    shown: Dentry | None = None
    begun = False
    for entry, _ in entries:
        gone = [one for one in name_changes(entry.operation) if one.before == fid]
        got = [one for one in name_changes(entry.operation) if one.after == fid]
        if gone and not begun:
            begun, shown = True, (gone[0].parent, gone[0].name)
            yield Seq(0), shown  # its making is not in this journal
            dentries[shown] = None
        if gone and got:
            # A name that moves keeps its rank.
            old, new = (gone[0].parent, gone[0].name), (got[0].parent, got[0].name)
            dentries = {new if dentry == old else dentry: None for dentry in dentries}
        else:
            for change in gone:
                dentries.pop((change.parent, change.name), None)
            for change in got:
                dentries[change.parent, change.name] = None
        first = next(iter(dentries), None)
        if first != shown or not begun:
            begun, shown = True, first
            yield entry.seq, first


def paths_of(fid: Fid, moves_of: Callable[[Fid], Moves]) -> Iterator[tuple[Seq, bytes | None]]:
    """The paths of *fid* from each seq on; *moves_of* tells those of a directory above.

    It is a step for each directory above at that time: over all time, two directories may well have
    been above each other. A stack of what is left to do, in order, because trees can be deep."""
    todo: list[tuple[Seq, Seq, Fid, _Names | None]] = [(Seq(0), END, fid, None)]
    while todo:
        from_seq, to_seq, fid, below = todo.pop()
        if fid in (ROOT_FID, _NOWHERE):
            yield from_seq, _joined(below) if fid == ROOT_FID else None
            continue
        moves = moves_of(fid)
        steps: list[tuple[Seq, Seq, Fid, _Names | None]] = []
        for number, (begun, dentry) in enumerate(moves):
            first = max(begun, from_seq)
            end = min(moves[number + 1][0] if number + 1 < len(moves) else END, to_seq)
            if first >= end:
                continue
            if dentry is None:
                steps.append((first, end, _NOWHERE, None))
            else:
                steps.append((first, end, dentry[0], (dentry[1], below)))
        todo.extend(reversed(steps))
