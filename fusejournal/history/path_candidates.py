"""The entries of a segment that can be about a path or what is below it, by its index alone: a
superset, so that few have to be read where few can match. Pure.

A segment records the path of each fid when an entry first names it, and its postings say which
entries name a fid as the directory of a name. So what is below a path in a segment is what is
recorded below it, and, from there on, what gets a name in one of these directories, with all that
is recorded below that."""

from collections.abc import Callable, Collection, Sequence

from fusejournal.journal.index import NAMERS, SegmentIndex
from fusejournal.journal.index_parts import PathTable
from fusejournal.operations import MOVES, Kind
from fusejournal.types import Fid

_OF_FILES = frozenset({Kind.CREATE, Kind.SYMLINK, Kind.LINK, Kind.IMPORT_LINK})
"""Kinds of entries by which something gets a name that is no directory."""


def candidates(
    index: SegmentIndex,
    path: bytes,
    fids: Collection[Fid],
    are_files: Callable[[Collection[Fid]], bool],
) -> list[int] | None:
    """Returns the numbers of the entries that can be about *path* or what is below it, in order.

    Args:
        fids: the files that the path stood for at any time.
        are_files: returns True if none of some of them was ever a directory.

    None where any may be: a directory on the way to the path, or it itself, got its name in the
    segment by a move, so that earlier entries record another path. (A file that got it so, as
    editors save, has nothing below it, and is one of *fids*.) Raises JournalDamagedError."""
    table = index.path_table()
    found: set[int] = set()
    names = path.split(b"/")
    for depth, name in enumerate(names):
        for one in table.at(b"/".join(names[:depth])):
            for posting in index.of_name(one.fid, name):
                if posting.kind in MOVES and not (depth + 1 == len(names) and are_files(fids)):
                    return None
                found.add(posting.number)
    inside = _Inside(index, table)
    for fid in fids:
        inside.add(fid)
    for one in table.below(path):
        inside.add(one.fid)
    found |= inside.numbers()
    return sorted(found)


class _Inside:
    """The fids that are below the path at some time in the segment."""

    def __init__(self, index: SegmentIndex, table: PathTable) -> None:
        self._index = index
        self._table = table
        self._fids: set[Fid] = set()
        self._todo: list[Fid] = []
        self._subjects: dict[int, list[Fid]] | None = None
        self._paths: dict[Fid, list[bytes]] | None = None

    def add(self, fid: Fid) -> None:
        """Takes in a fid."""
        if fid not in self._fids:
            self._fids.add(fid)
            self._todo.append(fid)

    def numbers(self) -> set[int]:
        """Returns the numbers of all entries that name one of the fids, and takes in what gets a
        name in one of them."""
        found: set[int] = set()
        while self._todo:
            for posting in self._index.of_fid(self._todo.pop()):
                found.add(posting.number)
                if posting.is_parent and posting.kind in NAMERS:
                    self._add_named(posting.number, is_moved=posting.kind in MOVES)
        return found

    def _add_named(self, number: int, *, is_moved: bool) -> None:
        for fid in self._subjects_of(number):
            self.add(fid)
            if is_moved and not self._is_made_as_file(fid):
                for path in self._paths_of(fid):
                    for one in self._table.below(path):
                        self.add(one.fid)

    def _subjects_of(self, number: int) -> Sequence[Fid]:
        known = self._index.named_by(number)
        if known is not None:
            return known
        if self._subjects is None:
            self._subjects = subjects_of(self._index)
        return self._subjects.get(number, ())

    def _is_made_as_file(self, fid: Fid) -> bool:
        """Returns True if the segment's first entry about *fid* shows that nothing can be below
        it."""
        about = (one for one in self._index.of_fid(fid) if not one.is_parent)
        first = next(about, None)
        return first is not None and first.kind in _OF_FILES

    def _paths_of(self, fid: Fid) -> list[bytes]:
        if self._paths is None:
            self._paths = {}
            for one in self._table.starting(b""):
                self._paths.setdefault(one.fid, []).append(one.path)
        return self._paths.get(fid, [])


def subjects_of(index: SegmentIndex) -> dict[int, list[Fid]]:
    """Returns the fids that each entry which gives something a name is about, by its number."""
    found: dict[int, list[Fid]] = {}
    for fid, postings in index.by_fid():
        for packed in postings:
            if not packed & 1 and packed >> 2 & 63 in NAMERS:
                found.setdefault(packed >> 8, []).append(fid)
    return found
