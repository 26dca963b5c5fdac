"""Parts of an index (index.py) that are asked alone: the paths that entries record, unpacked as far
as a question needs them, and what is kept in memory of an index that is not."""

import sys
from bisect import bisect_left
from collections.abc import Callable, Iterator
from itertools import islice, takewhile
from typing import Any, Final, NamedTuple

import xxhash

from fusejournal.types import Fid, Seq

_HIGH_HALF: Final = 1 if sys.byteorder == "little" else 0


class RecordedPath(NamedTuple):
    """A path that an entry records, as it was before the entry."""

    path: bytes
    fid: Fid
    number: int


class IndexContents:
    """The fids and names of an index that itself is kept no more. Of a name, the upper half of its
    key is kept: it may be that of another."""

    def __init__(
        self, last_seq: Seq, chain: int, fids: Any, names: Any, are_named: bytes | None
    ) -> None:
        """*are_named* of each fid: see SegmentIndex.may_be_named; None where it is not known."""
        self.last_seq = last_seq
        """The segment's last seq."""
        self.chain = chain
        """The chain of its last entry."""
        # Fids are close to each other: the upper half is mostly the same.
        self._above = fids[0] >> 32 if len(fids) else 0
        is_one = len(fids) > 0 and fids[-1] >> 32 == self._above
        low = _halves(fids, 1 - _HIGH_HALF) if is_one else fids.tobytes()
        self._fids = memoryview(low).cast("I" if is_one else "Q")
        self._names = memoryview(_halves(names, _HIGH_HALF)).cast("I")
        self._are_named = are_named
        self.nbytes = self._fids.nbytes + self._names.nbytes + len(are_named or b"")

    def _place(self, fid: Fid) -> int | None:
        fids, wanted = self._fids, int(fid)
        if fids.itemsize == 4:
            if fid >> 32 != self._above:
                return None
            wanted &= 0xFFFFFFFF
        at = bisect_left(fids, wanted)
        return at if at < len(fids) and fids[at] == wanted else None

    def has_fid(self, fid: Fid) -> bool:
        """Returns True if an entry names *fid*."""
        return self._place(fid) is not None

    def may_be_named(self, fid: Fid) -> bool:
        """Returns True if an entry can have given or taken a name of *fid*."""
        at = self._place(fid)
        return at is not None and (self._are_named is None or bool(self._are_named[at]))

    def may_have_name(self, parent: Fid, name: bytes) -> bool:
        """Returns True if an entry can be about *name* in directory *parent*."""
        half = name_key(parent, name) >> 32
        at = bisect_left(self._names, half)
        return at < len(self._names) and self._names[at] == half


def _halves(numbers: Any, which: int) -> bytes:
    """Returns the upper or the lower half of each of *numbers*, u64."""
    found: bytes = numbers.cast("B").cast("I")[which::2].tobytes()
    return found


class PathTable:
    """Paths, sorted, in blocks of which no more are unpacked than what is asked for needs. For one
    question: it keeps what it has unpacked. Its methods raise JournalDamagedError."""

    def __init__(
        self, ends: list[tuple[bytes, int]], unpack: Callable[[int, int], list[RecordedPath]]
    ) -> None:
        """*ends*: of each block its first path, and where it ends; *unpack* gets where a block
        begins and ends."""
        self._ends = ends
        self._unpack = unpack
        self._blocks: dict[int, list[RecordedPath]] = {}

    def starting(self, path: bytes) -> Iterator[RecordedPath]:
        """Yields the paths from *path* on, in order."""
        # Some of the same path may be at the end of the block before.
        for number in range(max(0, bisect_left(self._ends, (path,)) - 1), len(self._ends)):
            rows = self._blocks.get(number)
            if rows is None:
                begin = self._ends[number - 1][1] if number else 0
                rows = self._blocks[number] = self._unpack(begin, self._ends[number][1])
            yield from islice(rows, bisect_left(rows, (path,)), None)

    def at(self, path: bytes) -> Iterator[RecordedPath]:
        """Yields what is recorded as *path* itself."""
        return takewhile(lambda one: one.path == path, self.starting(path))

    def below(self, path: bytes) -> Iterator[RecordedPath]:
        """Yields what is recorded as *path* and as what is below it."""
        yield from self.at(path)
        below = path + b"/"
        yield from takewhile(lambda one: one.path.startswith(below), self.starting(below))


def name_key(parent: Fid, name: bytes) -> int:
    """Returns the key that stands for *name* in directory *parent*."""
    return xxhash.xxh3_64_intdigest(name, parent)
