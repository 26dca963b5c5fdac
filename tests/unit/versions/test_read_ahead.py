"""Reading ahead of a restore: how much it holds."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from stat import S_IFREG

from fusejournal.types import Fid
from fusejournal.versions.blocks import BlockReader
from fusejournal.versions.content import Content
from fusejournal.versions.read_ahead import Piece, PlannedPiece, read_ahead
from fusejournal.versions.records import InodeRecord
from tests.support.objects import MemoryStore

_PIECES = 100_000


def test_pieces_without_data_are_not_read_ahead_without_end() -> None:
    planned: list[int] = []
    content = Content(inline=b"")
    record = InodeRecord(Fid(2), S_IFREG, 0, 0, 0, 0, 0, ((Fid(1), b"n"),), None, content, (), True)
    piece = Piece(record, 0, b"", True)

    def plan() -> Iterator[PlannedPiece]:
        yield PlannedPiece(piece, bytes(32), 1 << 20)
        for number in range(_PIECES):
            planned.append(number)
            yield PlannedPiece(piece, None, 0)

    blocks = _Reader(MemoryStore())
    with ThreadPoolExecutor(1) as pool:
        pieces = read_ahead(blocks, plan(), pool)
        assert next(pieces).data == b"content"
        assert 1000 < len(planned) < _PIECES // 2
        assert sum(1 for _ in pieces) == _PIECES


class _Reader(BlockReader):
    """A reader of the block that is always there."""

    def read_chunk(self, id_: bytes, length: int) -> bytes:
        return b"content"
