"""Reading the contents of many files ahead: chunks are read and uncompressed by several threads,
while the caller is at work on those before."""

from collections import deque
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, NamedTuple, Self

from fusejournal.versions.blocks import BlockReader
from fusejournal.versions.content import items_of
from fusejournal.versions.packs import StoreDamagedError
from fusejournal.versions.records import InodeRecord
from fusejournal.versions.version_tree import VersionTree

if TYPE_CHECKING:
    from concurrent.futures import Executor, Future

_AHEAD_BYTES = 8 << 20
_FAR_AHEAD_BYTES = 32 << 20
_SMALL_BYTES = 16 << 10
_PIECE_BYTES = 1 << 10
"""The least that a piece is taken to hold."""


class Piece(NamedTuple):
    """Some bytes of a file's content, or all of it."""

    record: InodeRecord
    start: int
    data: bytes
    is_last: bool
    """True for the last one of the file."""


class PlannedPiece(NamedTuple):
    """A piece whose data is not read yet."""

    piece: Piece
    chunk: bytes | None
    """The id of the chunk with its data; None where that is there."""
    length: int


class ReadingThreads:
    """Threads that read, begun by the first task that needs them: one small file needs none. Use as
    a context manager."""

    def __init__(self, count: int) -> None:
        self._count = count
        self._pool: Executor | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._pool is not None:
            self._pool.shutdown()

    def submit(
        self, read: Callable[[bytes, int], bytes], id_: bytes, length: int
    ) -> "Future[bytes]":
        """Has a thread read chunk *id_*, of so many bytes."""
        if self._pool is None:
            from concurrent.futures import ThreadPoolExecutor

            self._pool = ThreadPoolExecutor(self._count)
        return self._pool.submit(read, id_, length)


def pieces_of(tree: VersionTree, record: InodeRecord) -> Iterator[PlannedPiece]:
    """Yields the pieces of a file's content, but for holes; one without data where there are none.
    Raises StoreDamagedError, also where they are not as many bytes as the file has; StoreError."""
    content = record.content
    if content is None or content.inline is not None:
        inline = (content.inline if content is not None else None) or b""
        if content is not None and len(inline) != record.size:
            raise _of_another_size(tree, record)
        yield PlannedPiece(Piece(record, 0, inline, True), None, len(inline))
        return
    before: tuple[int, bytes, int] | None = None
    end = 0
    for start, item in items_of(tree.chunk_nodes, content):
        end = start + item.length
        if end > record.size:
            break
        if item.id is None:
            continue
        if before is not None:
            yield PlannedPiece(Piece(record, before[0], b"", False), before[1], before[2])
        before = start, item.id, item.length
    if end != record.size:
        raise _of_another_size(tree, record)
    if before is None:
        yield PlannedPiece(Piece(record, 0, b"", True), None, 0)
    else:
        yield PlannedPiece(Piece(record, before[0], b"", True), before[1], before[2])


def _of_another_size(tree: VersionTree, record: InodeRecord) -> StoreDamagedError:
    why = f"the content of fid {record.fid} has not the {record.size} bytes that it is to have"
    return StoreDamagedError(tree.blocks.store.where, why)


def read_ahead(
    blocks: BlockReader, pieces: Iterator[PlannedPiece], pool: "Executor | ReadingThreads"
) -> Iterator[Piece]:
    """Yields *pieces* with their data, which *pool* reads ahead: some MiB, of a far store more.
    Raises what reading does."""
    limit = _AHEAD_BYTES if blocks.store.traffic is None else _FAR_AHEAD_BYTES
    waiting: deque[tuple[Piece, Future[bytes] | None, int]] = deque()
    ahead = 0
    try:
        for piece, chunk, length in pieces:
            if chunk is not None and length <= _SMALL_BYTES:
                # Quicker than asking another thread.
                piece = piece._replace(data=blocks.read_chunk(chunk, length))
                chunk = None
            if chunk is None and not waiting:
                yield piece
                continue
            held = max(length, _PIECE_BYTES)
            reading = pool.submit(blocks.read_chunk, chunk, length) if chunk else None
            waiting.append((piece, reading, held))
            ahead += held
            while waiting and (ahead > limit or waiting[0][1] is None):
                found, future, held = waiting.popleft()
                ahead -= held
                yield found if future is None else found._replace(data=future.result())
        for found, future, _ in waiting:
            yield found if future is None else found._replace(data=future.result())
    finally:
        for _, future, _ in waiting:
            if future is not None:
                future.cancel()
