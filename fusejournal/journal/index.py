"""The sidecar index of a sealed segment: which entries touch which fids and names, and where to
begin reading for any of them. A cache of what the segment says: it can be made again at any time,
and one that does not fit its segment is passed over.

It lies beside its segment as ``SEQ.fjx``, in the byte order of the machine that made it (another
kind of machine takes it for none). The sections follow the header in this order, without gaps, and
the checksum of everything before ends the file:

==============  =========================  ====================================================
section         element                    holds
==============  =========================  ====================================================
header          96 bytes                  magic ``89 46 4A 58 0D 0A 1A 0A``, version (1, 2
                                           bytes), 6 zero; segment UUID, first seq, chain before,
                                           number of entries, chain of the last, time of the
                                           first and last entry (signed), uncompressed size of
                                           the segment, bit mask of the kinds in it
counts          7 x u32, 4 zero            points, fids, fid postings, names, name postings,
                                           uids, bytes of the paths
point offset    u64 each                   where entry frames begin: a *point* at least every 32
                                           entries or 256 KiB
point chain     u64 each                   the checksum of the frame before the point
point time      i64 each                   time of the point's entry
fid             u64 each, growing          the fids that entries name
name            u64 each, growing          xxh3-64 of a name, seeded with its directory's fid (of
                                           a MARK's: with 0)
uid             u64 each, growing          callers
point number    u32 each                   which entry the point is, from 0
fid start       u32 each, one more         where the fid's postings begin
fid posting     u32 each                   see below
name start      u32 each, one more         where the name's postings begin
name posting    u32 each                   see below
paths           zstd of msgpack            [[path, fid, entry number], ...] as the entries tell
                                           them, by path
==============  =========================  ====================================================

A posting is the entry's number in the segment << 8, its kind << 2, 2 where a VOID follows it, 1
where the fid is only the directory of the name (else: what the entry is about). The whiteout that a
WHITEOUT leaves has a posting of kind CREATE.
"""

import os
import struct
from bisect import bisect_left, bisect_right
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple
from uuid import UUID

import msgpack
import xxhash
import zstandard

from fusejournal.errors import JournalDamagedError
from fusejournal.journal.format import FormatError
from fusejournal.journal.segment import Point, SegmentReader
from fusejournal.types import Fid, Seq

INDEX_SUFFIX: Final = ".fjx"

INDEX_MAGIC: Final = b"\x89FJX\r\n\x1a\n"
INDEX_VERSION: Final = 1
INDEX_HEADER: Final = struct.Struct("=8sH6x16sQQQQqqQQ")
INDEX_COUNTS: Final = struct.Struct("=7I4x")
INDEX_CHECKSUM: Final = struct.Struct("=Q")
assert (INDEX_HEADER.size, INDEX_COUNTS.size) == (96, 32)

_LOOKUP_COST: Final = 16  # of finding one fid, in steps through all of them
_PATHS_BYTES_SPARE: Final = 1 << 20


class Posting(NamedTuple):
    """An entry as an index has it: its place, and what it is."""

    number: int
    kind: int
    refused: bool
    """A VOID follows it."""
    is_parent: bool
    """The fid is only the directory of a name."""


class RecordedPath(NamedTuple):
    """A path that an entry records, as it was before the entry."""

    path: bytes
    fid: Fid
    number: int


def name_key(parent: Fid, name: bytes) -> int:
    """Returns the key that stands for *name* in directory *parent*."""
    return xxhash.xxh3_64_intdigest(name, parent)


def index_path(segment: Path) -> Path:
    """The sidecar of *segment*."""
    return segment.with_suffix(INDEX_SUFFIX)


class SegmentIndex:
    """The index of one segment. Made by :func:`build_index` or :func:`load_index`; never
    changes."""

    def __init__(self, content: bytes) -> None:
        """Raises FormatError when *content* is no index."""
        self.content = content
        least = INDEX_HEADER.size + INDEX_COUNTS.size + INDEX_CHECKSUM.size
        if len(content) < least:
            raise FormatError(f"an index of {len(content)} bytes, {least} are needed")
        magic, version, uuid, first_seq, *numbers = INDEX_HEADER.unpack_from(content)
        if magic != INDEX_MAGIC or version != INDEX_VERSION:
            raise FormatError(
                f"not an index of this version: begins with {magic!r} and {version}, "
                f"not {INDEX_MAGIC!r} and {INDEX_VERSION}"
            )
        (checksum,) = INDEX_CHECKSUM.unpack_from(content, len(content) - INDEX_CHECKSUM.size)
        view = memoryview(content)
        if (found := xxhash.xxh3_64_intdigest(view[: -INDEX_CHECKSUM.size])) != checksum:
            raise FormatError(
                f"the index's checksum is {checksum:016x}, and {found:016x} of what is there"
            )
        self.uuid = UUID(bytes=uuid)
        self.first_seq = Seq(first_seq)
        self.chain_before, self.entries, self.chain = numbers[:3]
        self.first_time_ns, self.last_time_ns, self.segment_bytes, self.kinds = numbers[3:]
        counts = INDEX_COUNTS.unpack_from(content, INDEX_HEADER.size)
        points, fids, fid_postings, names, name_postings, uids, self._paths_bytes = counts
        at = INDEX_HEADER.size + INDEX_COUNTS.size
        layout = (
            ("Q", points), ("Q", points), ("q", points), ("Q", fids), ("Q", names), ("Q", uids),
            ("I", points), ("I", fids + 1), ("I", fid_postings), ("I", names + 1),
            ("I", name_postings),
        )  # fmt: skip
        whole = at + sum(struct.calcsize(code) * count for code, count in layout)
        if whole + self._paths_bytes + INDEX_CHECKSUM.size != len(content) or bool(points) != bool(
            self.entries
        ):
            raise FormatError("the index's sections do not fit")
        sections: list[Any] = []
        for code, count in layout:
            end = at + count * struct.calcsize(code)
            sections.append(view[at:end].cast(code))  # type: ignore[call-overload]
            at = end
        self._point_offsets, self._point_chains, self._point_times = sections[:3]
        self._fids, self._names, self._uids, self._point_numbers = sections[3:7]
        self._fid_starts, self._fid_postings = sections[7:9]
        self._name_starts, self._name_postings = sections[9:]
        self._paths_at = at

    @property
    def last_seq(self) -> Seq:
        """The segment's last seq; one before the first when it is empty."""
        return Seq(self.first_seq + self.entries - 1)

    def has_kind(self, kinds: int) -> bool:
        """Returns True if an entry of one of *kinds*, a bit mask, is in the segment."""
        return bool(self.kinds & kinds)

    def has_uid(self, uid: int) -> bool:
        """Returns True if *uid* asked for an entry of the segment."""
        at = bisect_left(self._uids, uid)
        return at < len(self._uids) and self._uids[at] == uid

    def has_fid(self, fid: Fid) -> bool:
        """Returns True if an entry names *fid*."""
        at = bisect_left(self._fids, fid)
        return at < len(self._fids) and self._fids[at] == fid

    def of_fid(self, fid: Fid) -> Iterator[Posting]:
        """The entries that name *fid*, in order."""
        return _postings(self._fids, self._fid_starts, self._fid_postings, fid)

    def held_of_fid(self, fid: Fid, kinds: int) -> list[int]:
        """Returns the numbers of the entries of *kinds*, a bit mask, that are about *fid* itself
        and were not refused, in order. It costs little however often *fid* is a directory."""
        at = bisect_left(self._fids, fid)
        if at == len(self._fids) or self._fids[at] != fid:
            return []
        packed = self._fid_postings[self._fid_starts[at] : self._fid_starts[at + 1]]
        return [one >> 8 for one in packed if not one & 3 and kinds >> (one >> 2 & 63) & 1]

    def by_fid(self) -> Iterator[tuple[Fid, Sequence[int]]]:
        """Yields each fid with its postings, as they are packed."""
        for at, fid in enumerate(self._fids):
            yield fid, self._fid_postings[self._fid_starts[at] : self._fid_starts[at + 1]]

    def by_name(self) -> Iterator[tuple[int, Sequence[int]]]:
        """Yields the key of each name with its postings, as they are packed."""
        for at, key in enumerate(self._names):
            yield key, self._name_postings[self._name_starts[at] : self._name_starts[at + 1]]

    @property
    def uids(self) -> Sequence[int]:
        """The callers."""
        uids: Sequence[int] = self._uids
        return uids

    def of_name(self, parent: Fid, name: bytes) -> Iterator[Posting]:
        """The entries about *name* in directory *parent*, in order; seldom, others too."""
        key = name_key(parent, name)
        return _postings(self._names, self._name_starts, self._name_postings, key)

    def which_of(self, fids: Collection[Fid]) -> Iterator[Fid]:
        """The ones of *fids* that an entry names; *fids* tells quickly what it has."""
        if len(fids) * _LOOKUP_COST < len(self._fids):
            return filter(self.has_fid, fids)
        return filter(fids.__contains__, self._fids)

    def recorded_paths(self) -> list[RecordedPath]:
        """Every path that an entry records, sorted. Raises JournalDamagedError."""
        packed = self.content[self._paths_at : self._paths_at + self._paths_bytes]
        try:
            # It says how large it is, and would be believed.
            if zstandard.frame_content_size(packed) > 2 * self.segment_bytes + _PATHS_BYTES_SPARE:
                raise ValueError("they say that they are too large")
            plain = zstandard.ZstdDecompressor().decompress(packed)
            return [RecordedPath(*told) for told in msgpack.unpackb(plain, use_list=False)]
        except (zstandard.ZstdError, ValueError, TypeError) as error:
            name = f"{self.first_seq:020d}{INDEX_SUFFIX}"
            reason = f"the paths of the index: {error}; delete it, it is only a cache"
            raise JournalDamagedError(name, 0, self.first_seq, reason) from None

    def points(self) -> Iterator[tuple[int, int, int, int]]:
        """Yields number, offset, chain before and time of each point."""
        return zip(
            self._point_numbers,
            self._point_offsets,
            self._point_chains,
            self._point_times,
            strict=True,
        )

    def point_before(self, number: int) -> Point:
        """The nearest point at or before entry *number*."""
        return self._point(bisect_right(self._point_numbers, number) - 1)

    def point_before_time(self, time_ns: int) -> Point:
        """The nearest point whose entry is not later than *time_ns*; the first if none is."""
        return self._point(max(0, bisect_right(self._point_times, time_ns) - 1))

    def _point(self, at: int) -> Point:
        seq = Seq(self.first_seq + self._point_numbers[at])
        return Point(seq, self._point_offsets[at], self._point_chains[at])


def _postings(keys: Any, starts: Any, postings: Any, key: int) -> Iterator[Posting]:
    at = bisect_left(keys, key)
    if at < len(keys) and keys[at] == key:
        for packed in postings[starts[at] : starts[at + 1]]:
            yield Posting(packed >> 8, packed >> 2 & 63, bool(packed & 2), bool(packed & 1))


def load_index(segment: Path, reader: SegmentReader) -> SegmentIndex | None:
    """The sidecar of *segment*, or None when there is none that fits it."""
    try:
        index = SegmentIndex(index_path(segment).read_bytes())
    except (OSError, FormatError):
        return None
    header = reader.header
    fits = (index.uuid, index.first_seq, index.chain_before, index.segment_bytes) == (
        header.uuid,
        header.first_seq,
        header.chain_before,
        reader.size,
    )
    return index if fits else None


def has_index(segment: Path) -> bool:
    """Returns True if there is a file that should be the sidecar of *segment*."""
    return os.path.exists(index_path(segment))
