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
import sys
from array import array
from bisect import bisect_left, bisect_right
from collections import defaultdict
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple
from uuid import UUID

import msgpack
import xxhash
import zstandard

from fusejournal.disk.files import Outlives, write_atomically
from fusejournal.errors import JournalDamagedError
from fusejournal.journal.format import FRAME_HEADER_BYTES, FormatError, NewerFormatError
from fusejournal.journal.segment import BadFrameError, Point, SegmentReader
from fusejournal.operations import MOVES, NAME_KINDS, ONE_FILE_KINDS, Kind
from fusejournal.types import Fid, Seq

INDEX_SUFFIX: Final = ".fjx"

_MAGIC: Final = b"\x89FJX\r\n\x1a\n"
_VERSION: Final = 1
_HEADER: Final = struct.Struct("=8sH6x16sQQQQqqQQ")
_COUNTS: Final = struct.Struct("=7I4x")
_CHECKSUM: Final = struct.Struct("=Q")
assert (_HEADER.size, _COUNTS.size) == (96, 32)

_POINT_ENTRIES: Final = 32
_POINT_BYTES: Final = 256 << 10
_LOOKUP_COST: Final = 16  # of finding one fid, in steps through all of them
_ENTRIES_MAX: Final = 1 << 24
_PATHS_BYTES_SPARE: Final = 1 << 20

_NAMED: Final = frozenset(map(int, NAME_KINDS - MOVES))
_RENAME: Final = int(Kind.RENAME)
_WHITEOUT: Final = int(Kind.WHITEOUT)
_CREATE: Final = int(Kind.CREATE)
_VOID: Final = int(Kind.VOID)
_MARK: Final = int(Kind.MARK)
_DATA: Final = frozenset(map(int, ONE_FILE_KINDS))
_OPERATION_AT: Final = 6
_KINDS_END: Final = max(Kind) + 1


class Posting(NamedTuple):
    """An entry as an index has it: its place, and what it is."""

    number: int
    kind: int
    refused: bool
    """A VOID follows it."""
    is_parent: bool
    """The fid is only the directory of a name."""


class ToldPath(NamedTuple):
    """A path that an entry tells, as it was before the entry."""

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
        if len(content) < _HEADER.size + _COUNTS.size + _CHECKSUM.size:
            raise FormatError("too short for an index")
        magic, version, uuid, first_seq, *numbers = _HEADER.unpack_from(content)
        if magic != _MAGIC or version != _VERSION:
            raise FormatError("not an index of this version")
        (checksum,) = _CHECKSUM.unpack_from(content, len(content) - _CHECKSUM.size)
        view = memoryview(content)
        if xxhash.xxh3_64_intdigest(view[: -_CHECKSUM.size]) != checksum:
            raise FormatError("the index's checksum is wrong")
        self.uuid = UUID(bytes=uuid)
        self.first_seq = Seq(first_seq)
        self.chain_before, self.entries, self.chain = numbers[:3]
        self.first_time_ns, self.last_time_ns, self.segment_bytes, self.kinds = numbers[3:]
        counts = _COUNTS.unpack_from(content, _HEADER.size)
        points, fids, fid_postings, names, name_postings, uids, self._paths_bytes = counts
        at = _HEADER.size + _COUNTS.size
        layout = (
            ("Q", points), ("Q", points), ("q", points), ("Q", fids), ("Q", names), ("Q", uids),
            ("I", points), ("I", fids + 1), ("I", fid_postings), ("I", names + 1),
            ("I", name_postings),
        )  # fmt: skip
        whole = at + sum(struct.calcsize(code) * count for code, count in layout)
        if whole + self._paths_bytes + _CHECKSUM.size != len(content) or bool(points) != bool(
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

    def of_name(self, parent: Fid, name: bytes) -> Iterator[Posting]:
        """The entries about *name* in directory *parent*, in order; seldom, others too."""
        key = name_key(parent, name)
        return _postings(self._names, self._name_starts, self._name_postings, key)

    def which_of(self, fids: Collection[Fid]) -> Iterator[Fid]:
        """Those of *fids* that an entry names; *fids* tells quickly what it has."""
        if len(fids) * _LOOKUP_COST < len(self._fids):
            return filter(self.has_fid, fids)
        return filter(fids.__contains__, self._fids)

    def told_paths(self) -> list[ToldPath]:
        """Every path that an entry tells, sorted. Raises JournalDamagedError."""
        packed = self.content[self._paths_at : self._paths_at + self._paths_bytes]
        try:
            # It says how large it is, and would be believed.
            if zstandard.frame_content_size(packed) > 2 * self.segment_bytes + _PATHS_BYTES_SPARE:
                raise ValueError("they say that they are too large")
            plain = zstandard.ZstdDecompressor().decompress(packed)
            return [ToldPath(*told) for told in msgpack.unpackb(plain, use_list=False)]
        except (zstandard.ZstdError, ValueError, TypeError) as error:
            name = f"{self.first_seq:020d}{INDEX_SUFFIX}"
            reason = f"the paths of the index: {error}; delete it, it is only a cache"
            raise JournalDamagedError(name, 0, self.first_seq, reason) from None

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


class _Builder:
    """Collects what the entries of a segment name, in their order."""

    def __init__(self) -> None:
        self.kinds = 0
        self.uids: set[int] = set()
        self.paths: list[tuple[bytes, int, int]] = []
        self.by_fid: defaultdict[int, array[int]] = defaultdict(lambda: array("I"))
        self.by_name: defaultdict[int, array[int]] = defaultdict(lambda: array("I"))

    def add(self, fields: tuple[Any, ...], number: int, refused: bool) -> None:
        """Take in entry *number*; *fields* is its payload."""
        kind = fields[0]
        if kind >= _KINDS_END:
            raise NewerFormatError(f"an entry of kind {kind}")
        if kind <= 0:
            raise ValueError(f"of impossible kind {kind}")
        self.kinds |= 1 << kind
        self.uids.add(fields[2])
        if fields[5]:
            self.paths.extend((path, fid, number) for fid, path in fields[5].items())
        posting = number << 8 | kind << 2 | refused << 1
        if kind in _NAMED:
            _, _, _, _, _, _, fid, parent, name, *_ = fields
            self.by_fid[fid].append(posting)
            self.by_fid[parent].append(posting | 1)
            self.by_name[name_key(parent, name)].append(posting)
        elif kind == _RENAME:
            self._add_rename(fields[_OPERATION_AT:], posting)
        elif kind == _WHITEOUT:
            *moving, whiteout, _, _, _, _ = fields[_OPERATION_AT:]
            self._add_rename(moving, posting)
            self.by_fid[whiteout].append(number << 8 | _CREATE << 2 | refused << 1)
        elif kind == _MARK:
            self.by_name[name_key(Fid(0), fields[_OPERATION_AT].encode())].append(posting)
        elif kind in _DATA and len(fields) > _OPERATION_AT:
            self.by_fid[fields[_OPERATION_AT]].append(posting)

    def _add_rename(self, fields: Sequence[Any], posting: int) -> None:
        fid, parent, name, new_parent, new_name, _, replaced = fields
        self.by_fid[fid].append(posting)
        if replaced and replaced != fid:
            self.by_fid[replaced].append(posting)
        self.by_fid[parent].append(posting | 1)
        if new_parent != parent:
            self.by_fid[new_parent].append(posting | 1)
        self.by_name[name_key(parent, name)].append(posting)
        self.by_name[name_key(new_parent, new_name)].append(posting)


class _Points:
    """Collects the sparse points of a segment: a number of an entry, its offset, the chain before
    it, its time."""

    def __init__(self) -> None:
        self.numbers, self.offsets = array("I"), array("Q")
        self.chains, self.times = array("Q"), array("q")

    def add(self, number: int, offset: int, chain: int, time_ns: int) -> None:
        """Take in the point at entry *number*."""
        self.numbers.append(number)
        self.offsets.append(offset)
        self.chains.append(chain)
        self.times.append(time_ns)


def build_index(reader: SegmentReader, *, allow_torn: bool = False) -> SegmentIndex:
    """The index of a segment, from reading all of it; every frame is checked. With *allow_torn* a
    frame that is not whole ends it (an append under way). Raises BadFrameError."""
    start = reader.start
    builder = _Builder()
    points = _Points()
    number, chain, end, last_time = -1, start.chain_before, start.offset, 0
    point_at = -_POINT_BYTES
    held: tuple[Any, ...] | None = None
    unpack = msgpack.unpackb
    try:
        for frame in reader.frames():
            _, _, checksum, offset, payload_bytes, content = frame
            number += 1
            payload = content[FRAME_HEADER_BYTES : FRAME_HEADER_BYTES + payload_bytes]
            try:
                fields = unpack(payload, use_list=False, strict_map_key=False)
                if held is not None:
                    builder.add(held, number - 1, fields[0] == _VOID)
                held = fields
                if number % _POINT_ENTRIES == 0 or offset - point_at >= _POINT_BYTES:
                    point_at = offset
                    points.add(number, offset, chain, fields[1])
                last_time = fields[1]
            except (ValueError, TypeError, IndexError, OverflowError, AttributeError) as error:
                raise _no_entry(offset, frame.seq, error) from None
            chain = checksum
            end = offset + len(content)
    except BadFrameError as bad:
        if not (allow_torn and bad.torn):
            raise
    try:
        if held is not None:
            builder.add(held, number, False)
        if not -(2**63) <= last_time < 2**63:
            raise ValueError("a time that cannot be")
    except (ValueError, TypeError, IndexError, OverflowError, AttributeError) as error:
        raise _no_entry(end, Seq(start.seq + number), error) from None
    if number >= _ENTRIES_MAX:
        raise BadFrameError(end, reader.header.first_seq, "too many entries", torn=False)
    head = _HEADER.pack(
        _MAGIC,
        _VERSION,
        reader.header.uuid.bytes,
        start.seq,
        start.chain_before,
        number + 1,
        chain,
        points.times[0] if points.times else 0,
        last_time,
        end,
        builder.kinds,
    )
    try:
        return SegmentIndex(_packed(head, points, builder))
    except OverflowError:
        raise BadFrameError(end, start.seq, "a fid or uid that cannot be", torn=False) from None


def _packed(head: bytes, points: _Points, builder: _Builder) -> bytes:
    """The content of an index whose header is *head*. Raises OverflowError."""
    paths = zstandard.compress(msgpack.packb(sorted(builder.paths)), 3)
    fids, fid_starts, fid_postings = _flatten(builder.by_fid)
    names, name_starts, name_postings = _flatten(builder.by_name)
    uids = array("Q", sorted(builder.uids))
    counts = _COUNTS.pack(
        len(points.numbers),
        len(fids),
        len(fid_postings),
        len(names),
        len(name_postings),
        len(uids),
        len(paths),
    )
    sections = (
        points.offsets, points.chains, points.times, fids, names, uids, points.numbers,
        fid_starts, fid_postings, name_starts, name_postings,
    )  # fmt: skip
    body = b"".join((head, counts, *(section.tobytes() for section in sections), paths))
    return body + _CHECKSUM.pack(xxhash.xxh3_64_intdigest(body))


def _no_entry(offset: int, seq: Seq, error: Exception) -> BadFrameError:
    if isinstance(error, NewerFormatError):
        return BadFrameError.undecodable(offset, seq, error)
    return BadFrameError(offset, seq, f"no entry: {error}", torn=False)


def _flatten(lists: dict[int, "array[int]"]) -> tuple["array[int]", "array[int]", "array[int]"]:
    keys = array("Q", sorted(lists))
    starts, postings = array("I", (0,)), array("I")
    for key in keys:
        postings.extend(lists[key])
        starts.append(len(postings))
    return keys, starts, postings


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


def write_index(segment: Path) -> None:
    """Make the sidecar of *segment*, which is sealed. Blocks. Raises OSError, BadFrameError."""
    with SegmentReader(segment) as reader:
        index = build_index(reader)
    write_atomically("index", index_path(segment), index.content, Outlives.MACHINE)


def has_index(segment: Path) -> bool:
    """Returns True if there is a file that should be the sidecar of *segment*."""
    return os.path.exists(index_path(segment))


if __name__ == "__main__":
    # The layer has indexes made by processes of their own: in a thread this would hold up the
    # interpreter, and with it every request.
    os.nice(19)
    write_index(Path(sys.argv[1]))
