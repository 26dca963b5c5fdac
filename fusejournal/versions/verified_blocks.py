"""STATE/verified: which chunks of the version that a journal begins with were read back when it was
verified, so that the next pruning reads what is new, and what was read long ago.

======= ===========================================================================
8       magic: "FJVERIF1"
8       checksum: xxh3-64 of all that follows
16      the store's id
8       number of chunks (u64)
8 each  chunks, sorted: xxh3-64 of a chunk's id and the name of the pack it was read from
2 each  in the same order: the day on which each was read, since 1970 (u16)
======= ===========================================================================

Integers are little-endian. A chunk that a collection has put into another pack is read anew. What
this file says is never taken for more than that a chunk was read: whether its pack is there is
looked up each time. Its loss, and whatever is wrong with it, costs a reading of all."""

import struct
import sys
from array import array
from bisect import bisect_left
from contextlib import suppress
from pathlib import Path
from typing import Final
from uuid import UUID

import xxhash

from fusejournal.disk.files import Outlives, write_atomically

VERIFIED: Final = "verified"
"""The file's name."""
_DAYS_MAX: Final = 30
"""The days after which a chunk is read again."""
_HEAD: Final = struct.Struct("<8sQ16sQ")
_MAGIC: Final = b"FJVERIF1"
_CHECKED_FROM: Final = 16
assert _HEAD.size == 40


class VerifiedBlocks:
    """The chunks of the store with id *store_id* that *path* tells of, and those that are read by
    now. *today*: the day, since 1970."""

    def __init__(self, path: Path, store_id: str, today: int) -> None:
        self._path = path
        self._store = UUID(store_id).bytes
        self._today = today
        self._chunks, self._days = array("Q"), array("H")
        with suppress(OSError):
            self._load(path.read_bytes())
        self._kept: list[tuple[int, int]] = []
        """The chunks of this verification, with their days."""

    def _load(self, content: bytes) -> None:
        if len(content) < _HEAD.size:
            return
        magic, check, store, count = _HEAD.unpack_from(content)
        fits = magic == _MAGIC and len(content) == _HEAD.size + 10 * count
        if not fits or store != self._store:
            return
        if xxhash.xxh3_64_intdigest(content[_CHECKED_FROM:]) != check:
            return
        middle = _HEAD.size + 8 * count
        self._chunks.frombytes(content[_HEAD.size : middle])
        self._days.frombytes(content[middle:])
        if sys.byteorder == "big":
            self._chunks.byteswap()
            self._days.byteswap()

    def knows(self, id_: bytes, pack: bytes) -> bool:
        """Returns True if chunk *id_* need not be read from *pack*: it was, not long ago."""
        chunk = _number(id_, pack)
        at = bisect_left(self._chunks, chunk)
        if at == len(self._chunks) or self._chunks[at] != chunk:
            return False
        day = self._days[at]
        # One of the future is of a clock that was wrong then, or is now.
        if not self._today - _DAYS_MAX < day <= self._today:
            return False
        self._kept.append((chunk, day))
        return True

    def add(self, id_: bytes, pack: bytes) -> None:
        """Notes that chunk *id_* was read from *pack*, and is what was put there."""
        self._kept.append((_number(id_, pack), self._today))

    def save(self) -> None:
        """Writes the chunks of this verification down, and no others. Raises OSError."""
        kept = sorted(self._kept)
        chunks = array("Q", (chunk for chunk, _ in kept))
        days = array("H", (day for _, day in kept))
        if sys.byteorder == "big":
            chunks.byteswap()
            days.byteswap()
        rest = b"".join(
            (self._store, len(kept).to_bytes(8, "little"), chunks.tobytes(), days.tobytes())
        )
        check = xxhash.xxh3_64_intdigest(rest)
        head = _MAGIC + check.to_bytes(8, "little")
        write_atomically("prune.verified", self._path, head + rest, Outlives.MACHINE)


def _number(id_: bytes, pack: bytes) -> int:
    return xxhash.xxh3_64_intdigest(id_ + pack)
