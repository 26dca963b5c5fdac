"""Files as they are to be after a change of a live volume: what its making asks of a journal, or of
a version's trees. All methods raise JournalError, JournalDamagedError, or what a store raises."""

from collections.abc import Callable, Collection, Iterator
from typing import Protocol

from fusejournal.history.file_flags import flags_before
from fusejournal.history.file_states import State
from fusejournal.history.lookup import Lookup
from fusejournal.history.mtimes import mtimes_before
from fusejournal.replay.extents import read_extents
from fusejournal.replay.images import Image, read_images, unknown_fid
from fusejournal.types import Fid, Progress, Seq

_PIECE_BYTES = 1 << 20


class WantedFile(Protocol):
    """One file or directory."""

    @property
    def state(self) -> State:
        """Its attributes, its size, and what made it."""
        ...

    def pieces(self) -> Iterator[tuple[int, bytes | memoryview]]:
        """Yields all of the content that is no hole, with the offset of each piece."""
        ...

    def unlike(self) -> Iterator[tuple[int, bytes | memoryview]]:
        """Yields what may differ from the content that is there, with the offset of each piece;
        only of a file for which that was asked."""
        ...

    def holes(self) -> Iterator[tuple[int, int]]:
        """Yields offset and length of what is to be a hole, and may not be one."""
        ...


class WantedFiles(Protocol):
    """Files, by the fids that a plan has for them."""

    def types(self, fids: Collection[Fid]) -> dict[Fid, int]:
        """Returns the type bits of files that are to be made."""
        ...

    def mtimes(self, directories: Collection[Fid]) -> dict[Fid, int]:
        """Returns the mtimes of directories in nanoseconds, as far as they are known."""
        ...

    def flags_now(self, fids: Collection[Fid]) -> dict[Fid, int]:
        """Returns the file flags that files have now."""
        ...

    def flags(self, fids: Collection[Fid]) -> dict[Fid, int]:
        """Returns those that they are to have."""
        ...

    def files(
        self,
        fids: Collection[Fid],
        progress: Progress,
        *,
        with_data: bool = False,
        rewritten: Collection[Fid] = (),
    ) -> dict[Fid, WantedFile]:
        """Returns files. *with_data*: their content is asked for next; of those *rewritten*, what
        differs."""
        ...


class JournalFiles:
    """Files as they are after those entries up to *end*, which is not one of them, that *counts*
    chooses."""

    def __init__(self, lookup: Lookup, counts: Callable[[Seq], bool], end: Seq) -> None:
        self._lookup = lookup
        self._counts = counts
        self._end = end

    def types(self, fids: Collection[Fid]) -> dict[Fid, int]:
        """Implements WantedFiles.types."""
        found = self._lookup.types_of_many(fids)
        for fid in fids:
            if fid not in found:
                raise unknown_fid(self._lookup, fid)
        return found

    def mtimes(self, directories: Collection[Fid]) -> dict[Fid, int]:
        """Implements WantedFiles.mtimes."""
        return mtimes_before(self._lookup, directories, self._end, self._counts)

    def flags_now(self, fids: Collection[Fid]) -> dict[Fid, int]:
        """Implements WantedFiles.flags_now."""
        return flags_before(self._lookup, fids, self._end)

    def flags(self, fids: Collection[Fid]) -> dict[Fid, int]:
        """Implements WantedFiles.flags."""
        return flags_before(self._lookup, fids, self._end, self._counts)

    def files(
        self,
        fids: Collection[Fid],
        progress: Progress,
        *,
        with_data: bool = False,
        rewritten: Collection[Fid] = (),
    ) -> dict[Fid, WantedFile]:
        """Implements WantedFiles.files."""
        wanted = read_images(
            self._lookup, fids, self._end, self._counts, progress, with_data=with_data
        )
        now = read_images(self._lookup, rewritten, self._end, None, progress)
        for fid, image in wanted.items():
            if image.state.uid is None:
                raise unknown_fid(self._lookup, fid)
        return {
            fid: _JournalFile(self._lookup, image, now.get(fid)) for fid, image in wanted.items()
        }


class _JournalFile:
    """One file by the journal, with what it is now."""

    def __init__(self, lookup: Lookup, wanted: Image, now: Image | None) -> None:
        self._lookup = lookup
        self._wanted = wanted
        self._now = now

    @property
    def state(self) -> State:
        return self._wanted.state

    def pieces(self) -> Iterator[tuple[int, bytes | memoryview]]:
        return self._wanted.pieces(self._lookup)

    def unlike(self) -> Iterator[tuple[int, bytes | memoryview]]:
        """Yields what comes from other entries than it does now: what is a hole in both is not
        even read, however large it is."""
        assert self._now is not None
        found = list(self._wanted.extents.unlike(self._now.extents, self.state.size))
        yield from read_extents(self._lookup, [one for one in found if one.seq is not None])
        for start, end, seq in found:
            if seq is None:
                yield from zeros(start, end)

    def holes(self) -> Iterator[tuple[int, int]]:
        """Yields none: where nothing was written is what is zero here (nodes of earlier versions
        read no entry that makes a hole)."""
        yield from ()


def zeros(start: int, end: int) -> Iterator[tuple[int, bytes]]:
    """Yields zeros for the bytes [start, end), in pieces."""
    for offset in range(start, end, _PIECE_BYTES):
        yield offset, bytes(min(_PIECE_BYTES, end - offset))
