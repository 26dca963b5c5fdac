"""Packs and indexes: blocks gathered into objects, and where each is. Pure.

A *block* is a chunk of a file's content or a node of a tree. Its id is the BLAKE3 of its plain
bytes, so that it is the same on every node, however it is compressed. Integers are little-endian.

Pack, named "packs/" + the BLAKE3 of all its bytes in hex, never changed:

======= ===========================================================================
bytes   field
======= ===========================================================================
8       magic: "FJPACK1" and "D" (data) or "N" (nodes)
16      random bytes: no pack is ever called as another was that was removed
...     stored blocks, one behind the other: zstd, or plain where that is no longer
44 each directory: id (32), offset (u32), stored bytes (u32), plain bytes (u32)
8       trailer: number of blocks (u32), magic "FJPE"
======= ===========================================================================

A block whose stored and plain bytes are as many is stored plain. Index, named "index/" + the BLAKE3
of all its bytes:

======= ===========================================================================
8       magic: "FJINDEX1"
8       number of packs (u32), number of blocks (u32)
32 each packs, by name
48 each blocks, sorted by id: id (32), pack (u32), offset, stored, plain bytes (u32)
======= ===========================================================================
"""

import struct
import threading
from bisect import bisect_left
from collections.abc import Iterable, Iterator
from os import urandom
from typing import NamedTuple

import zstandard
from blake3 import blake3

from fusejournal.objects.store import StoreError

ID_BYTES = 32
BLOCK_BYTES_MAX = 16 << 20
"""No block that a version has is larger."""
_DATA_MAGIC, _NODE_MAGIC = b"FJPACK1D", b"FJPACK1N"
_NONCE_BYTES = 16
_PACK_HEAD_BYTES = len(_DATA_MAGIC) + _NONCE_BYTES
_TRAILER = struct.Struct("<I4s")
_TRAILER_MAGIC = b"FJPE"
_ROW = struct.Struct("<32sIII")
_INDEX_MAGIC = b"FJINDEX1"
_INDEX_HEAD = struct.Struct("<8sII")
_INDEX_ROW = struct.Struct("<32sIIII")
_LEVEL = 3
_PLAIN_BYTES_MAX = 1 << 30
assert _ROW.size == 44
assert _INDEX_ROW.size == 48


class StoreDamagedError(StoreError):
    """Bytes in a store of versions are not what was put into it. Never skipped."""

    exit_code = 42


class Place(NamedTuple):
    """The place where a block is: an object's name, and a range of its bytes."""

    pack: bytes
    """The BLAKE3 that names the pack."""
    offset: int
    stored_bytes: int
    plain_bytes: int


def block_id(plain: bytes | bytearray | memoryview) -> bytes:
    """Returns the id of a block, 32 bytes."""
    return blake3(plain).digest()


def pack_name(pack: bytes) -> str:
    """Returns the name of the object."""
    return f"packs/{pack.hex()}"


def index_name(content: bytes) -> str:
    """Returns the name of an index with *content*."""
    return f"index/{block_id(content).hex()}"


class Pack:
    """A pack in the making. Not for use by two threads at a time."""

    def __init__(self, *, nodes: bool) -> None:
        self._content = bytearray((_NODE_MAGIC if nodes else _DATA_MAGIC) + urandom(_NONCE_BYTES))
        self._rows: list[tuple[bytes, int, int, int]] = []
        self._zstd = zstandard.ZstdCompressor(level=_LEVEL)

    def __len__(self) -> int:
        return len(self._content)

    @property
    def is_empty(self) -> bool:
        """True while it has no block."""
        return not self._rows

    def add(self, id_: bytes, plain: bytes | bytearray | memoryview) -> Place:
        """Adds a block. Returns its place, in which the pack has no name yet."""
        stored: bytes | bytearray | memoryview = self._zstd.compress(plain)
        if len(stored) >= len(plain):
            stored = plain
        return self.add_stored(id_, stored, len(plain))

    def add_stored(
        self, id_: bytes, stored: bytes | bytearray | memoryview, plain_bytes: int
    ) -> Place:
        """Adds a block as it is to be *stored*; see :meth:`add`."""
        offset = len(self._content)
        self._content += stored
        self._rows.append((id_, offset, len(stored), plain_bytes))
        return Place(b"", offset, len(stored), plain_bytes)

    def stored(self, place: Place) -> bytes:
        """Returns the bytes at *place*."""
        return bytes(self._content[place.offset : place.offset + place.stored_bytes])

    def finish(self) -> tuple[bytes, bytearray, list[tuple[bytes, Place]]]:
        """Returns what names it, its content, and its blocks with their places."""
        for row in self._rows:
            self._content += _ROW.pack(*row)
        self._content += _TRAILER.pack(len(self._rows), _TRAILER_MAGIC)
        pack = block_id(self._content)
        return pack, self._content, [(id_, Place(pack, *rest)) for id_, *rest in self._rows]


def read_directory(where: str, content: bytes) -> Iterator[tuple[bytes, int, int, int]]:
    """Yields id, offset, stored and plain bytes of each block of the pack with *content*. Raises
    StoreDamagedError, which names *where* it was read."""
    if content[: len(_DATA_MAGIC)] not in (_DATA_MAGIC, _NODE_MAGIC):
        raise StoreDamagedError(where, "is no pack")
    try:
        count, magic = _TRAILER.unpack_from(content, len(content) - _TRAILER.size)
        start = len(content) - _TRAILER.size - count * _ROW.size
        if magic != _TRAILER_MAGIC or start < _PACK_HEAD_BYTES:
            raise StoreDamagedError(where, "is a pack without an end")
        yield from _ROW.iter_unpack(content[start : len(content) - _TRAILER.size])
    except struct.error:
        raise StoreDamagedError(where, "is a pack without an end") from None


def plain_block(where: str, id_: bytes, stored: bytes, plain_bytes: int) -> bytes:
    """Returns the plain bytes of block *id_*, checked. Raises StoreDamagedError, which names
    *where* it was read."""
    plain = stored
    if len(stored) != plain_bytes:
        try:
            limit = min(plain_bytes, _PLAIN_BYTES_MAX)
            plain = _decompressor().decompress(stored, max_output_size=limit)
        except zstandard.ZstdError as error:
            raise StoreDamagedError(where, f"block {id_.hex()} is spoilt: {error}") from None
    if len(plain) != plain_bytes or block_id(plain) != id_:
        raise StoreDamagedError(where, f"block {id_.hex()} is not what was put there")
    return plain


class _OfThread(threading.local):
    """The decompressor of each thread: two must not use one at a time."""

    zstd: zstandard.ZstdDecompressor | None = None


_of_thread = _OfThread()


def _decompressor() -> zstandard.ZstdDecompressor:
    zstd = _of_thread.zstd
    if zstd is None:
        zstd = _of_thread.zstd = zstandard.ZstdDecompressor()
    return zstd


def holds_nodes(where: str, head: bytes) -> bool:
    """Returns True if the pack that begins with *head* has nodes, False if it has data. Raises
    StoreDamagedError, which names *where* it was read."""
    if head not in (_DATA_MAGIC, _NODE_MAGIC):
        raise StoreDamagedError(where, "is no pack")
    return head == _NODE_MAGIC


PACK_MAGIC_BYTES = len(_DATA_MAGIC)


class _Ids:
    """The ids of an index, as a sequence."""

    def __init__(self, rows: memoryview) -> None:
        self._rows = rows

    def __len__(self) -> int:
        return len(self._rows) // _INDEX_ROW.size

    def __getitem__(self, at: int) -> bytes:
        start = at * _INDEX_ROW.size
        return bytes(self._rows[start : start + ID_BYTES])


class IndexTable:
    """An index, as it was read: 48 bytes of memory a block."""

    def __init__(self, where: str, content: bytes) -> None:
        """Raises StoreDamagedError, which names *where* it was read; so do its methods."""
        self._where = where
        try:
            magic, packs, blocks = _INDEX_HEAD.unpack_from(content)
        except struct.error:
            magic, packs, blocks = b"", 0, 0
        start = _INDEX_HEAD.size + packs * ID_BYTES
        if magic != _INDEX_MAGIC or len(content) != start + blocks * _INDEX_ROW.size:
            raise StoreDamagedError(where, "is no index")
        self.packs = [
            content[at : at + ID_BYTES] for at in range(_INDEX_HEAD.size, start, ID_BYTES)
        ]
        self._rows = memoryview(content)[start:]
        self._ids = _Ids(self._rows)

    def __len__(self) -> int:
        return len(self._ids)

    def find(self, id_: bytes) -> Place | None:
        """Returns the place of block *id_*, or None."""
        at = self.number(id_)
        return None if at is None else self._place(self._row(at))

    def number(self, id_: bytes) -> int | None:
        """Returns the number of block *id_* in the order of ids, from 0, or None."""
        ids = self._ids
        count = len(ids)
        if not count:
            return None
        # Hashes lie evenly: near where it is to be, so that few are looked at.
        guess = int.from_bytes(id_[:8], "big") * count >> 64
        if ids[guess] < id_:
            step, low, high = 8, guess + 1, guess + 9
            while high < count and ids[high] < id_:
                step *= 2
                low, high = high + 1, high + step
            high = min(high, count)
        else:
            step, low, high = 8, guess - 8, guess
            while low > 0 and ids[low] >= id_:
                step *= 2
                low, high = low - step, low
            low = max(low, 0)
        at = bisect_left(ids, id_, low, high)
        return at if at < count and ids[at] == id_ else None

    def __iter__(self) -> Iterator[tuple[bytes, Place]]:
        for row in _INDEX_ROW.iter_unpack(self._rows):
            yield row[0], self._place(row)

    def _row(self, at: int) -> tuple[bytes, int, int, int, int]:
        row: tuple[bytes, int, int, int, int] = _INDEX_ROW.unpack_from(
            self._rows, at * _INDEX_ROW.size
        )
        return row

    def _place(self, row: tuple[bytes, int, int, int, int]) -> Place:
        if row[1] >= len(self.packs):
            raise StoreDamagedError(self._where, "tells of a pack that it does not name")
        return Place(self.packs[row[1]], *row[2:])


def encode_index(blocks: Iterable[tuple[bytes, Place]], *, repeats: int = 0) -> bytes:
    """Returns the content of an index of *blocks*, each once, in any order. *repeats*: so often is
    its first pack named once more, for an index of the same blocks that has another name."""
    numbers: dict[bytes, int] = {}
    rows = []
    seen: set[bytes] = set()
    for id_, place in sorted(blocks):
        if id_ not in seen:
            seen.add(id_)
            number = numbers.setdefault(place.pack, len(numbers))
            rows.append(_INDEX_ROW.pack(id_, number, *place[1:]))
    packs = [*numbers, *list(numbers)[:1] * repeats]
    head = _INDEX_HEAD.pack(_INDEX_MAGIC, len(packs), len(rows))
    return b"".join([head, *packs, *rows])
