"""The entries of a segment that can be about a path or what is below it, by its index alone: a
superset, so that few have to be read where few can match. Pure.

A segment records the path of each fid when an entry first names it, and its postings say which
entries name a fid as the directory of a name. So what is below a path in a segment is what is
recorded below it, and, from there on, what gets a name in one of these directories, with all that
is recorded below that."""

from bisect import bisect_left
from collections.abc import Callable, Collection, Iterator, Sequence

from fusejournal.journal.index import RecordedPath, SegmentIndex
from fusejournal.operations import MOVES, Kind
from fusejournal.types import Fid

_NAMERS = frozenset(
    {Kind.CREATE, Kind.MKDIR, Kind.SYMLINK, Kind.LINK, Kind.IMPORT, Kind.IMPORT_LINK, *MOVES}
)
"""Kinds of entries by which something gets a name."""


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
    told = index.recorded_paths()
    found: set[int] = set()
    names = path.split(b"/")
    for depth, name in enumerate(names):
        for one in _recorded_as(told, b"/".join(names[:depth])):
            for posting in index.of_name(one.fid, name):
                if posting.kind in MOVES and not (depth + 1 == len(names) and are_files(fids)):
                    return None
                found.add(posting.number)
    inside = _Inside(index, told)
    for fid in fids:
        inside.add(fid)
    for one in _recorded_below(told, path):
        inside.add(one.fid)
    found |= inside.numbers()
    return sorted(found)


def _recorded_as(told: Sequence[RecordedPath], path: bytes) -> Iterator[RecordedPath]:
    at = bisect_left(told, (path,))
    while at < len(told) and told[at].path == path:
        yield told[at]
        at += 1


def _recorded_below(told: Sequence[RecordedPath], path: bytes) -> Iterator[RecordedPath]:
    """Yields what is recorded of *path* and what is below it."""
    yield from _recorded_as(told, path)
    below = path + b"/"
    at = bisect_left(told, (below,))
    while at < len(told) and told[at].path.startswith(below):
        yield told[at]
        at += 1


class _Inside:
    """The fids that are below the path at some time in the segment."""

    def __init__(self, index: SegmentIndex, told: Sequence[RecordedPath]) -> None:
        self._index = index
        self._told = told
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
                if posting.is_parent and posting.kind in _NAMERS:
                    self._add_named(posting.number, is_moved=posting.kind in MOVES)
        return found

    def _add_named(self, number: int, *, is_moved: bool) -> None:
        if self._subjects is None:
            self._subjects = subjects_of(self._index)
        for fid in self._subjects.get(number, ()):
            self.add(fid)
            if is_moved:
                for path in self._paths_of(fid):
                    for one in _recorded_below(self._told, path):
                        self.add(one.fid)

    def _paths_of(self, fid: Fid) -> list[bytes]:
        if self._paths is None:
            self._paths = {}
            for one in self._told:
                self._paths.setdefault(one.fid, []).append(one.path)
        return self._paths.get(fid, [])


def subjects_of(index: SegmentIndex) -> dict[int, list[Fid]]:
    """Returns the fids that each entry which gives something a name is about, by its number."""
    found: dict[int, list[Fid]] = {}
    for fid, postings in index.by_fid():
        for packed in postings:
            if not packed & 1 and packed >> 2 & 63 in _NAMERS:
                found.setdefault(packed >> 8, []).append(fid)
    return found
