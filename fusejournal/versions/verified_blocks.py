"""STATE/verified: which chunks of the version that a journal begins with were read back when it was
verified, so that the next pruning reads what is new, and what was read long ago.

======= ===========================================================================
8       magic: "FJVERIF1"
8       checksum: xxh3-64 of all that follows
16      the store's id
8       number of chunks (u64)
8 each  chunks, sorted: xxh3-64 of a chunk's id and the name of the pack it was read from
2 each  in the same order: the day on which each was read, since 1970 (u16)
1 each  in the same order: the verifications that have trusted in that (u8)
======= ===========================================================================

Integers are little-endian. A chunk that a collection has put into another pack is read anew. What
this file says is never taken for more than that a chunk was read: whether its pack is there is
looked up each time. Its loss, and whatever is wrong with it, costs a reading of all; and so does
any damage that is met in the store, because it is forgotten then.

No clock makes it trust for ever: where a day in it is to come, the clock was wrong then or is now,
and nothing in it counts; and one that stands still, or begins anew at each start of the machine, is
trusted for so many verifications only."""

import struct
import sys
from array import array
from bisect import bisect_left
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final
from uuid import UUID

import xxhash

from fusejournal.disk import calls
from fusejournal.disk.files import Outlives, write_atomically
from fusejournal.versions.packs import StoreDamagedError

VERIFIED: Final = "verified"
"""The file's name."""
_DAYS_MAX: Final = 30
"""The days after which a chunk is read again."""
_TRUSTED_MAX: Final = 250
"""The verifications after which a chunk is read again, whatever the day."""
_DAY_END: Final = 1 << 16
_ROW_BYTES: Final = 8 + 2 + 1
_HEAD: Final = struct.Struct("<8sQ16sQ")
_MAGIC: Final = b"FJVERIF1"
_CHECKED_FROM: Final = 16
assert _HEAD.size == 40


class VerifiedBlocks:
    """The chunks of the store with id *store_id* that *path* lists, and those that are read by
    now. *today*: the day, since 1970."""

    def __init__(self, path: Path, store_id: str, today: int) -> None:
        self._path = path
        self._store = UUID(store_id).bytes
        self._today = today
        self._chunks, self._days, self._trusted = array("Q"), array("H"), array("B")
        if self._is_day:
            with suppress(OSError):
                self._load(path.read_bytes())
        self._kept: list[tuple[int, int, int]] = []
        """The chunks of this verification, each with its day, and the verifications that have
        trusted in that."""
        self._saved: int | None = None
        """The number of those that are written down; None while none are."""

    @property
    def is_forgotten(self) -> bool:
        """True if damage was met since this was made: what it has known counts no more."""
        was_there = bool(self._chunks) or self._saved is not None
        return was_there and not self._path.exists()

    @property
    def _is_day(self) -> bool:
        return 0 <= self._today < _DAY_END

    def _load(self, content: bytes) -> None:
        if len(content) < _HEAD.size:
            return
        magic, check, store, count = _HEAD.unpack_from(content)
        fits = magic == _MAGIC and len(content) == _HEAD.size + _ROW_BYTES * count
        if not fits or store != self._store:
            return
        if xxhash.xxh3_64_intdigest(content[_CHECKED_FROM:]) != check:
            return
        days_at = _HEAD.size + 8 * count
        trusted_at = days_at + 2 * count
        days = array("H", content[days_at:trusted_at])
        chunks = array("Q", content[_HEAD.size : days_at])
        if sys.byteorder == "big":
            chunks.byteswap()
            days.byteswap()
        if max(days, default=0) <= self._today:
            self._chunks, self._days = chunks, days
            self._trusted = array("B", content[trusted_at:])

    def knows(self, id_: bytes, pack: bytes) -> bool:
        """Returns True if chunk *id_* need not be read from *pack*: it was, not long ago."""
        chunk = _number(id_, pack)
        at = bisect_left(self._chunks, chunk)
        if at == len(self._chunks) or self._chunks[at] != chunk:
            return False
        day, trusted = self._days[at], self._trusted[at]
        if day <= self._today - _DAYS_MAX or trusted >= _TRUSTED_MAX:
            return False
        self._kept.append((chunk, day, trusted + 1))
        return True

    def add(self, id_: bytes, pack: bytes) -> None:
        """Notes that chunk *id_* was read from *pack*, and is what was put there."""
        self._kept.append((_number(id_, pack), self._today, 0))

    def save_grown(self) -> None:
        """Does what :meth:`save` does, once there are twice as many chunks as are written down:
        where verifications follow each other, all are not to be written each time. Raises
        OSError."""
        if self._saved is None or len(self._kept) >= 2 * self._saved:
            self.save()

    def save(self) -> None:
        """Writes the chunks of this verification down, and no others. Raises OSError."""
        if not self._is_day or len(self._kept) == self._saved:
            return
        kept = sorted(self._kept)
        chunks = array("Q", (chunk for chunk, _, _ in kept))
        days = array("H", (day for _, day, _ in kept))
        trusted = bytes(number for _, _, number in kept)
        if sys.byteorder == "big":
            chunks.byteswap()
            days.byteswap()
        rest = b"".join(
            (
                self._store,
                len(kept).to_bytes(8, "little"),
                chunks.tobytes(),
                days.tobytes(),
                trusted,
            )
        )
        check = xxhash.xxh3_64_intdigest(rest)
        head = _MAGIC + check.to_bytes(8, "little")
        write_atomically("prune.verified", self._path, head + rest, Outlives.MACHINE)
        self._saved = len(kept)


@contextmanager
def forgetting(state_dir: Path) -> Iterator[None]:
    """Has all that was verified for the volume with this state directory be read again by the next
    pruning, where damage is met in its store within the block of this."""
    try:
        yield
    except StoreDamagedError:
        forget(state_dir)
        raise


def forget(state_dir: Path) -> None:
    """Has all be read again by the next pruning. (Where the state cannot be written, none is.)"""
    with suppress(OSError):
        calls.unlink("prune.verified.forget", state_dir / VERIFIED)
        calls.fsync_directory("prune.verified.forgotten", state_dir)


def _number(id_: bytes, pack: bytes) -> int:
    return xxhash.xxh3_64_intdigest(id_ + pack)
