"""Sealed segments, compressed: independent zstd blocks with a seek table behind them.

The file is in the public "zstd seekable format" (version 0.1.0): ordinary zstd frames, each with
its content checksum, then a skippable frame that holds the seek table, so that the ``zstd`` tool
gives the plain segment back and a reader finds any byte by decompressing one block.

======  ====  ==================================================================================
part    size  field
======  ====  ==================================================================================
table   4     skippable magic 0x184D2A5E
        4     length of what follows
entry   4     compressed bytes of one block                              (repeated for each block)
        4     uncompressed bytes of it
footer  4     number of blocks
        1     descriptor: 0, no checksums in the table
        4     magic 0x8F92EAB1
======  ====  ==================================================================================

Source: contrib/seekable_format/zstd_seekable_compression_format.md of the zstd project.
"""

import os
import struct
from bisect import bisect_right
from pathlib import Path

import xxhash
import zstandard

from fusejournal.disk import calls, failpoints
from fusejournal.disk.files import Outlives, replacing
from fusejournal.journal.format import FormatError

BLOCK_BYTES = 256 << 10

_SKIPPABLE_MAGIC = 0x184D2A5E
_SEEKABLE_MAGIC = 0x8F92EAB1
_TABLE_HEAD = struct.Struct("<II")
_TABLE_ENTRY = struct.Struct("<II")
_FOOTER = struct.Struct("<IBI")
assert (_TABLE_HEAD.size, _TABLE_ENTRY.size, _FOOTER.size) == (8, 8, 9)

_BLOCKS_MAX = 1 << 20


class SeekableFile:
    """Reads a compressed segment. Not for use by two threads at a time."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._starts, self._positions, self.size = _read_table(fd)
        self._decompressor = zstandard.ZstdDecompressor(max_window_size=1 << 27)
        self._blocks: dict[int, bytes] = {}
        """The last two that were read: what is asked for often lies across the end of one."""

    def read_at(self, offset: int, length: int) -> bytes:
        """Returns up to *length* uncompressed bytes from *offset*. Raises FormatError on a damaged
        block."""
        parts: list[bytes] = []
        while length > 0 and offset < self.size:
            block = bisect_right(self._starts, offset) - 1
            content = self._load(block)
            begin = offset - self._starts[block]
            part = content[begin : begin + length]
            if not part:
                raise FormatError(f"compressed block {block} is shorter than the seek table says")
            parts.append(part)
            offset += len(part)
            length -= len(part)
        return b"".join(parts)

    def _load(self, block: int) -> bytes:
        kept = self._blocks.get(block)
        if kept is not None:
            return kept
        start, end = self._positions[block], self._positions[block + 1]
        compressed = os.pread(self._fd, end - start, start)
        try:
            # A block says how large it is, and would be believed.
            if zstandard.frame_content_size(compressed) > BLOCK_BYTES:
                raise FormatError(f"compressed block {block} says that it is too large")
            content = self._decompressor.decompress(compressed, max_output_size=BLOCK_BYTES)
        except zstandard.ZstdError as error:
            raise FormatError(f"compressed block {block} at byte {start}: {error}") from None
        while len(self._blocks) > 1:
            del self._blocks[next(iter(self._blocks))]
        self._blocks[block] = content
        return content


def _read_table(fd: int) -> tuple[list[int], list[int], int]:
    """Returns where each block begins, uncompressed and compressed (with the end of the last), and
    the uncompressed size."""
    file_bytes = os.fstat(fd).st_size
    footer = os.pread(fd, _FOOTER.size, max(0, file_bytes - _FOOTER.size))
    if len(footer) < _FOOTER.size:
        raise FormatError("too short for a compressed segment")
    blocks, descriptor, magic = _FOOTER.unpack(footer)
    table_bytes = blocks * _TABLE_ENTRY.size
    if magic != _SEEKABLE_MAGIC or descriptor != 0 or blocks > _BLOCKS_MAX:
        raise FormatError("the seek table's footer is wrong")
    table_at = file_bytes - _FOOTER.size - table_bytes - _TABLE_HEAD.size
    if table_at < 0:
        raise FormatError("the seek table is longer than the file")
    head = _TABLE_HEAD.unpack(os.pread(fd, _TABLE_HEAD.size, table_at))
    if head != (_SKIPPABLE_MAGIC, table_bytes + _FOOTER.size):
        raise FormatError("the seek table's head is wrong")
    starts, positions = [], [0]
    size = 0
    for compressed, plain in _TABLE_ENTRY.iter_unpack(
        os.pread(fd, table_bytes, table_at + _TABLE_HEAD.size)
    ):
        if plain > BLOCK_BYTES:
            raise FormatError("the seek table has a block that is too large")
        starts.append(size)
        size += plain
        positions.append(positions[-1] + compressed)
    if positions[-1] != table_at:
        raise FormatError("the seek table does not fit the file")
    return starts, positions, size


def compress_file(plain: Path, compressed: Path, level: int) -> None:
    """Write *compressed* from *plain*, durable and compared, then remove *plain*. Blocks: call it
    in a thread.

    Killed at any step it leaves the plain file whole or the compressed one complete, or both.
    Raises OSError, FormatError."""
    with replacing("journal.compress", compressed, Outlives.MACHINE) as fd:
        _compress(plain, fd, level)
    calls.unlink("journal.compress.unlink", plain)


def _compress(plain: Path, target_fd: int, level: int) -> None:
    compressor = zstandard.ZstdCompressor(level=level, write_checksum=True, write_content_size=True)
    table: list[bytes] = []
    digest = xxhash.xxh3_128()
    with open(plain, "rb", buffering=0) as source, open(target_fd, "wb", closefd=False) as target:
        while block := source.read(BLOCK_BYTES):
            digest.update(block)
            packed = compressor.compress(block)
            failpoints.reached("journal.compress.write")
            target.write(packed)
            table.append(_TABLE_ENTRY.pack(len(packed), len(block)))
        table_bytes = len(table) * _TABLE_ENTRY.size
        target.write(_TABLE_HEAD.pack(_SKIPPABLE_MAGIC, table_bytes + _FOOTER.size))
        target.write(b"".join(table) + _FOOTER.pack(len(table), 0, _SEEKABLE_MAGIC))
    if _digest_of(target_fd) != digest.digest():
        raise FormatError(f"{plain}: what was compressed does not read back the same")


def _digest_of(fd: int) -> bytes:
    digest = xxhash.xxh3_128()
    content = SeekableFile(fd)
    for offset in range(0, content.size, BLOCK_BYTES):
        digest.update(content.read_at(offset, BLOCK_BYTES))
    return digest.digest()
