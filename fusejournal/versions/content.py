"""Contents of files in a version: read, and made of the one before and what was written since.

A content of up to 128 bytes is kept with the file's record, as is a list of up to 8 items; a longer
list is a tree (chunk_list.py). Which of these it is follows from the content alone. Only what
changed is cut anew (chunker.py): the bytes come from the chunks before and from the journal."""

from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

from fusejournal.types import Seq
from fusejournal.versions.blocks import BlockWriter
from fusejournal.versions.chunk_list import (
    ChunkItem,
    ChunkList,
    ChunkNodes,
    Splice,
    build_list,
    count_of,
    splice_list,
)
from fusejournal.versions.chunker import BEFORE_BYTES, PAGE_BYTES, Cutter

if TYPE_CHECKING:
    from fusejournal.replay.extents import Extent

_INLINE_BYTES_MAX = 128
_INLINE_ITEMS_MAX = 8
_PIECE_BYTES = 1 << 20


class Content(NamedTuple):
    """A content: its bytes, or its items, or the root of the tree of these."""

    inline: bytes | None = None
    items: tuple[ChunkItem, ...] = ()
    root: bytes | None = None


EMPTY = Content(inline=b"")


def items_of(
    nodes: ChunkNodes, content: Content, offset: int = 0
) -> Iterator[tuple[int, ChunkItem]]:
    """Yields chunks and holes of *content*, which is not inline, from the one at byte *offset* on,
    each with where it begins. Raises StoreDamagedError, StoreError."""
    if content.root is not None:
        yield from ChunkList(nodes, content.root).items(offset)
        return
    start = 0
    for item in content.items:
        if start + item.length > offset:
            yield start, item
        start += item.length


def read_content(nodes: ChunkNodes, content: Content, start: int, end: int) -> bytes:
    """Returns the bytes [start, end) of *content*, which has them. Raises StoreDamagedError,
    StoreError."""
    if content.inline is not None:
        return content.inline[start:end]
    pieces: list[bytes] = []
    for begun, item in items_of(nodes, content, start):
        if begun >= end:
            break
        first, last = max(start - begun, 0), min(end - begun, item.length)
        if item.id is None:
            pieces.append(bytes(last - first))
        else:
            pieces.append(nodes.blocks.read_chunk(item.id, item.length)[first:last])
    return b"".join(pieces)


class Overlay:
    """A content as it is to become.

    Args:
        nodes: where *before* is read.
        before, kept: the content that it had, and how many of its first bytes stay; zeros follow.
        extents: what entries put over that.
        data: by their seqs, the offset of what each entry has, and the bytes, or None for zeros.
        size: of the new content, in bytes."""

    def __init__(
        self,
        nodes: ChunkNodes,
        before: Content,
        kept: int,
        extents: "Sequence[Extent]",
        data: Mapping[Seq, tuple[int, bytes | None]],
        size: int,
    ) -> None:
        self.size = size
        self.before = before
        self.kept = min(kept, size)
        self._nodes = nodes
        self._extents = [one for one in extents if one.start < size]
        self._starts = [one.start for one in self._extents]
        self._data = data

    def read(self, start: int, end: int) -> bytes | bytearray:
        """Returns the bytes [start, end)."""
        kept_end = min(end, self.kept)
        found = bytearray()
        if start < kept_end:
            found += read_content(self._nodes, self.before, start, kept_end)
        found += bytes(end - start - len(found))
        for extent in self._extents[max(bisect_right(self._starts, start) - 1, 0) :]:
            if extent.start >= end:
                break
            first, last = max(extent.start, start), min(extent.end, end)
            if first < last:
                offset, data = self._data_of(extent)
                part = bytes(last - first) if data is None else data[first - offset : last - offset]
                found[first - start : last - start] = part
        return found

    def _data_of(self, extent: "Extent") -> tuple[int, bytes | None]:
        assert extent.seq is not None
        return self._data[extent.seq]

    def next_data(self, start: int) -> int:
        """Returns where, from *start* on, the first byte is that may be none of a hole."""
        found = self.size
        for extent in self._extents[max(bisect_right(self._starts, start) - 1, 0) :]:
            if extent.end > start and self._data_of(extent)[1] is not None:
                found = max(extent.start, start)
                break
        if start < self.kept:
            if self.before.inline is not None:
                return start
            for begun, item in items_of(self._nodes, self.before, start):
                if begun >= min(self.kept, found):
                    break
                if item.id is not None:
                    return min(max(begun, start), found)
        return found

    def changes(self, old_size: int) -> list[tuple[int, int]]:
        """Returns the ranges that may not be as they were in a content of *old_size* bytes, sorted
        and apart."""
        ranges = [(one.start, min(one.end, self.size)) for one in self._extents]
        if self.kept < self.size:
            ranges.append((self.kept, self.size))
        if old_size > self.size:
            ranges.append((max(self.size - 1, 0), self.size))
        joined: list[tuple[int, int]] = []
        for start, end in sorted(ranges):
            if joined and start <= joined[-1][1]:
                joined[-1] = joined[-1][0], max(joined[-1][1], end)
            else:
                joined.append((start, end))
        return joined


def cut_content(nodes: ChunkNodes, overlay: Overlay, old_size: int) -> Content:
    """Returns the content that *overlay* comes to, over one of *old_size* bytes, with all its
    chunks and nodes in the store. *nodes* are a BlockWriter's. Raises StoreDamagedError,
    StoreFullError, StoreError."""
    if overlay.size <= _INLINE_BYTES_MAX:
        return Content(inline=bytes(overlay.read(0, overlay.size)))
    before = overlay.before
    if before.inline is not None:
        items, _ = _Run(nodes, overlay, [(0, overlay.size)], 0).cut()
        return _as_content(nodes, items)
    changes = overlay.changes(old_size)
    splices: list[Splice] = []
    while changes:
        start = _restart(nodes, before, changes[0][0], old_size)
        items, end = _Run(nodes, overlay, changes, start).cut()
        # A content that grew or shrank is cut to its end.
        splices.append(Splice(start, old_size if end == overlay.size else end, list(items)))
        changes = [one for one in changes if one[1] > end]
    if not splices:
        return before
    if before.root is None:
        return _as_content(nodes, _spliced(before.items, splices))
    root = splice_list(nodes, before.root, splices)
    if root is None or count_of(nodes, root) > _INLINE_ITEMS_MAX:
        return Content(root=root) if root is not None else Content()
    return Content(items=tuple(item for _, item in ChunkList(nodes, root).items()))


def _as_content(nodes: ChunkNodes, items: Sequence[ChunkItem]) -> Content:
    if len(items) <= _INLINE_ITEMS_MAX:
        return Content(items=tuple(items))
    assert isinstance(nodes.blocks, BlockWriter)
    return Content(root=build_list(nodes.blocks, items))


def _spliced(items: Sequence[ChunkItem], splices: list[Splice]) -> list[ChunkItem]:
    found: list[ChunkItem] = []
    at = 0
    left = list(splices)
    for item in items:
        if left and left[0].start == at:
            found += left[0].items
        if not (left and left[0].start <= at < left[0].end):
            found.append(item)
        at += item.length
        while left and left[0].end <= at and left[0].start < at:
            del left[0]
    return found + [item for one in left for item in one.items]


def _restart(nodes: ChunkNodes, before: Content, change: int, old_size: int) -> int:
    """Returns the end of an item from which on to cut anew for a change at byte *change*."""
    latest = min(change, old_size) // PAGE_BYTES * PAGE_BYTES - BEFORE_BYTES
    return _end_at(nodes, before, latest) if latest > 0 else 0


def _end_at(nodes: ChunkNodes, content: Content, offset: int) -> int:
    """Returns the last end of an item that is not behind byte *offset*, one of the content's."""
    return next((start for start, _ in items_of(nodes, content, offset)), offset)


class _Run:
    """Cuts an overlay from *start* on, an end of an item before and after, until behind as many of
    *changes* as are near each other."""

    def __init__(
        self, nodes: ChunkNodes, overlay: Overlay, changes: list[tuple[int, int]], start: int
    ) -> None:
        assert isinstance(nodes.blocks, BlockWriter)
        self._nodes = nodes
        self._blocks = nodes.blocks
        self._overlay = overlay
        self._changes = list(changes)
        self._start = start

    def cut(self) -> tuple[list[ChunkItem], int]:
        """Returns the new items, and the byte up to which they go."""
        items: list[ChunkItem] = []
        end = self._start
        for found in self._pieces():
            if isinstance(found, int):
                items.append(ChunkItem(None, found))
            else:
                items.append(ChunkItem(self._blocks.add_chunk(found), len(found)))
            end += items[-1].length
            if self._meets(end):
                break
        return items, end

    def _pieces(self) -> Iterator[bytes | int]:
        overlay, at = self._overlay, self._start
        cutter = Cutter(at)
        while at < overlay.size:
            data_at = overlay.next_data(at)
            if data_at < overlay.size:
                data_at = data_at // PAGE_BYTES * PAGE_BYTES
            if data_at > at and at % PAGE_BYTES == 0:
                yield from cutter.zeros(data_at - at)
                at = data_at
                continue
            end = min((at // _PIECE_BYTES + 1) * _PIECE_BYTES, overlay.size)
            yield from cutter.data(overlay.read(at, end))
            at = end
        yield from cutter.finish()

    def _meets(self, end: int) -> bool:
        """Returns True if all from byte *end* on is cut as before, up to a change that is far."""
        while self._changes and self._changes[0][1] <= end:
            del self._changes[0]
        kept = self._overlay.kept
        if end >= kept:
            return False
        if self._changes:
            far = self._changes[0][0] // PAGE_BYTES * PAGE_BYTES - BEFORE_BYTES
            if far < end:
                return False
        return _end_at(self._nodes, self._overlay.before, end) == end
