"""The rule by which contents are cut: where a file's chunks and holes end. Pure.

It follows from the content alone. A hole is a longest run of zero blocks (4 KiB, aligned; the last
one of a file may be shorter) of at least 64 KiB. What is between holes is cut by FastCDC (2020;
32 KiB at least, 128 KiB on average, 512 KiB at most), anew from each hole on and from each cut on.
So cutting can begin at any end of an item that is ``BEFORE_BYTES`` or more before the first byte
that changed, and stop where it meets an old end behind the last one.

Small chunks, because an overwrite in place stores its whole chunk anew; content-defined ones,
because a file that is rewritten with a shift would store all of itself. Measured: DECISIONS.md.

Source: Xia et al., "The Design of Fast Content-Defined Chunking for Data Deduplication Based
Storage Systems", IEEE TPDS 2020."""

from collections.abc import Iterator

_SLOW = "pyfastcdc is installed without its compiled part, a hundred times slower"
RULE = "fastcdc-128k-v1"
"""The name of this rule. It is part of a version's root hash."""
PAGE_BYTES = 4 << 10
HOLE_BYTES = 64 << 10
BEFORE_BYTES = HOLE_BYTES + PAGE_BYTES
_MIN_BYTES, _MEAN_BYTES, CHUNK_BYTES_MAX = 32 << 10, 128 << 10, 512 << 10
_ZEROS = bytes(PAGE_BYTES)


class Cutter:
    """Cuts a content from byte *start* on, where an item ends, to its end. Feed it in order; it
    yields the items that end: a chunk's bytes, or how many zeros a hole has."""

    def __init__(self, start: int) -> None:
        # Only here: most of what is done with versions cuts nothing.
        from pyfastcdc import FastCDC

        if FastCDC.__module__.startswith("pyfastcdc.py"):
            raise ImportError(_SLOW)
        self._cdc = FastCDC(
            avg_size=_MEAN_BYTES, min_size=_MIN_BYTES, max_size=CHUNK_BYTES_MAX, seed=0
        )
        self._at = start
        """Bytes taken so far, from the content's beginning."""
        self._buffer = bytearray()
        """Bytes behind the last cut, without :attr:`_zeros`."""
        self._zeros = 0
        """Zeros at the end, in blocks that may belong to a hole."""

    def data(self, data: bytes | bytearray | memoryview) -> Iterator[bytes | int]:
        """Takes bytes, which end at the end of a block unless they are the last."""
        view = memoryview(data)
        head = min(-self._at % PAGE_BYTES, len(view))
        # The beginning of a block in which an item ended: no part of a hole.
        if head:
            yield from self._bytes(view[:head])
        begun = at = head
        while at < len(view):
            end = min(at + PAGE_BYTES, len(view))
            if view[at:end] == _ZEROS[: end - at]:
                yield from self._bytes(view[begun:at])
                self._zeros += end - at
                begun = end
            elif self._zeros:
                yield from self._end_zeros()
            at = end
        yield from self._bytes(view[begun:])
        self._at += len(view)
        yield from self._cut(is_end=False)

    def zeros(self, count: int) -> Iterator[bytes | int]:
        """Takes *count* zeros, at the beginning of a block and to the end of one, unless they are
        the last."""
        assert self._at % PAGE_BYTES == 0
        self._zeros += count
        self._at += count
        yield from ()

    def finish(self) -> Iterator[bytes | int]:
        """The content ends here."""
        yield from self._end_zeros()
        yield from self._cut(is_end=True)

    def _bytes(self, view: memoryview) -> Iterator[bytes | int]:
        if view:
            yield from self._end_zeros()
            self._buffer += view

    def _end_zeros(self) -> Iterator[bytes | int]:
        """The zeros so far are followed by something else."""
        count, self._zeros = self._zeros, 0
        if count >= HOLE_BYTES:
            yield from self._cut(is_end=True)
            yield count
        else:
            self._buffer += bytes(count)

    def _cut(self, *, is_end: bool) -> Iterator[bytes]:
        """Yields the chunks of the buffer that cannot become longer; at the end of a stretch of
        data, all."""
        if not self._buffer or (not is_end and len(self._buffer) < CHUNK_BYTES_MAX):
            return
        data = bytes(self._buffer)
        lengths = [chunk.length for chunk in self._cdc.cut_buf(data)]
        if not is_end:
            lengths.pop()
        done = 0
        for length in lengths:
            yield data[done : done + length]
            done += length
        del self._buffer[:done]
