"""The sidecar index of a sealed segment: which entries touch which fids and names, and where to
begin reading for any of them. A cache of what the segment says: it can be made again at any time,
and one that does not fit its segment is passed over.

It lies beside its segment as ``SEQ.fjx``, in the byte order of the machine that made it (another
kind of machine takes it for none). The sections follow the header in this order, without gaps, and
the checksum of everything before ends the file:

==============  =========================  ====================================================
section         element                    holds
==============  =========================  ====================================================
header          96 bytes                  magic ``89 46 4A 58 0D 0A 1A 0A``, version (2, of 2
                                           bytes), 6 zero; segment UUID, first seq, chain before,
                                           number of entries, chain of the last, time of the
                                           first and last entry (signed), uncompressed size of
                                           the segment, bit mask of the kinds in it
counts          7 x u32, 4 zero            points, fids, fid postings, names, name postings,
                                           uids, bytes of the paths
more counts     6 x u32, 8 zero            deeds, bytes of one (1, 2 or 4), named, owners, bytes
                                           of the path blocks' beginnings, bytes of the texts
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
deed            u64 each, growing          caller << 6 | kind, of all entries
deed of entry   u8, u16 or u32 each        which of the deeds the entry is, from 0
fid named       u8 each                    1 where an entry gives or takes a name of the fid
named number    u32 each, growing          the entries that give a name, once for each fid that
                                           gets one
named fid       u32 each                   which of the fids that is
owner           u32 each                   which of the fids has, or had, the text of that place
path blocks     msgpack                    [[first path, end of the block], ...]
texts           zstd                       names, a slash behind each: the last names of paths and
                                           the names that entries give or take, by name and fid,
                                           each with an owner; then those of directories on paths
paths           zstd of msgpack, blocks    [[path, fid, entry number], ...] as the entries tell
                                           them, by path, some hundred in a block
==============  =========================  ====================================================

A posting is the entry's number in the segment << 8, its kind << 2, 2 where a VOID follows it, 1
where the fid is only the directory of the name (else: what the entry is about). The whiteout that a
WHITEOUT leaves has a posting of kind CREATE.

Version 1 lacks the sections from the deeds to the texts, with their counts, and has its paths in
one block. It is read still, and what it does not have is answered with a superset, or as not known;
the layer makes such a sidecar anew.
"""

import os
import struct
from bisect import bisect_left, bisect_right
from collections.abc import Collection, Iterator, Sequence
from itertools import compress
from pathlib import Path
from typing import Any, Final, NamedTuple
from uuid import UUID

import msgpack
import xxhash
import zstandard

from fusejournal.errors import JournalDamagedError
from fusejournal.journal.format import FormatError
from fusejournal.journal.index_parts import IndexContents, PathTable, RecordedPath, name_key
from fusejournal.journal.segment import Point, SegmentReader
from fusejournal.operations import MOVES, Kind
from fusejournal.types import Fid, Seq

INDEX_SUFFIX: Final = ".fjx"

INDEX_MAGIC: Final = b"\x89FJX\r\n\x1a\n"
INDEX_VERSION: Final = 2
_VERSION_BEFORE: Final = 1
INDEX_HEADER: Final = struct.Struct("=8sH6x16sQQQQqqQQ")
INDEX_COUNTS: Final = struct.Struct("=7I4x")
INDEX_MORE_COUNTS: Final = struct.Struct("=6I8x")
INDEX_CHECKSUM: Final = struct.Struct("=Q")
assert (INDEX_HEADER.size, INDEX_COUNTS.size, INDEX_MORE_COUNTS.size) == (96, 32, 32)
DEED_KIND_BITS: Final = 6
DEED_CODES: Final = {1: "B", 2: "H", 4: "I"}
"""The typecode of a deed's number, by its bytes."""
_KIND_MASK: Final = (1 << DEED_KIND_BITS) - 1

NAMERS: Final = frozenset(
    {Kind.CREATE, Kind.MKDIR, Kind.SYMLINK, Kind.LINK, Kind.IMPORT, Kind.IMPORT_LINK, *MOVES}
)
"""Kinds of entries by which something gets a name."""

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
        if magic != INDEX_MAGIC or version not in (INDEX_VERSION, _VERSION_BEFORE):
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
        self.is_current = version == INDEX_VERSION
        """True if it has all that this version of the program keeps in one."""
        self.uuid = UUID(bytes=uuid)
        self.first_seq = Seq(first_seq)
        self.chain_before, self.entries, self.chain = numbers[:3]
        self.first_time_ns, self.last_time_ns, self.segment_bytes, self.kinds = numbers[3:]
        counts = INDEX_COUNTS.unpack_from(content, INDEX_HEADER.size)
        points, fids, fid_postings, names, name_postings, uids, paths_bytes = counts
        at = INDEX_HEADER.size + INDEX_COUNTS.size
        layout = [
            ("Q", points), ("Q", points), ("q", points), ("Q", fids), ("Q", names), ("Q", uids),
            ("I", points), ("I", fids + 1), ("I", fid_postings), ("I", names + 1),
            ("I", name_postings),
        ]  # fmt: skip
        if self.is_current:
            if len(content) < least + INDEX_MORE_COUNTS.size:
                raise FormatError(f"an index of {len(content)} bytes is too short for its version")
            more = INDEX_MORE_COUNTS.unpack_from(content, at)
            at += INDEX_MORE_COUNTS.size
            deeds, deed_bytes, named, owners, blocks_bytes, texts_bytes = more
            if deed_bytes not in DEED_CODES:
                raise FormatError(f"deeds of {deed_bytes} bytes")
            layout += [
                ("Q", deeds), (DEED_CODES[deed_bytes], self.entries), ("B", fids), ("I", named),
                ("I", named), ("I", owners), ("B", blocks_bytes), ("B", texts_bytes),
            ]  # fmt: skip
        layout.append(("B", paths_bytes))
        whole = at + sum(struct.calcsize(code) * count for code, count in layout)
        if whole + INDEX_CHECKSUM.size != len(content) or bool(points) != bool(self.entries):
            raise FormatError("the index's sections do not fit")
        sections: list[Any] = []
        for code, count in layout:
            end = at + count * struct.calcsize(code)
            sections.append(view[at:end].cast(code))  # type: ignore[call-overload]
            at = end
        self._point_offsets, self._point_chains, self._point_times = sections[:3]
        self._fids, self._names, self._uids, self._point_numbers = sections[3:7]
        self._fid_starts, self._fid_postings = sections[7:9]
        self._name_starts, self._name_postings = sections[9:11]
        self._packed_paths = sections[-1]
        if self.is_current:
            self._deeds, self._entry_deeds, self._are_named = sections[11:14]
            self._named_numbers, self._named_fids, self._owners = sections[14:17]
            self._path_blocks, self._texts = sections[17:19]

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

    def has_deed(self, uid: int | None, kinds: int) -> bool:
        """Returns True if *uid* (None: anyone) can have asked for an entry of *kinds*, a bit mask
        (0: of any). Raises JournalDamagedError."""
        if kinds and not self.has_kind(kinds):
            return False
        if uid is not None and not self.has_uid(uid):
            return False
        return not (kinds and uid is not None and self.is_current) or bool(self._which(uid, kinds))

    def of_deed(
        self, uid: int | None, kinds: int, numbers: Sequence[int] | None = None
    ) -> Sequence[int] | None:
        """Returns those of *numbers* (None: of all) that are of entries of *kinds*, a bit mask (0:
        of any), for which *uid* (None: anyone) asked. Where the index does not have that, what was
        given."""
        if not self.is_current or (uid is None and not kinds):
            return numbers
        wanted = self._which(uid, kinds)
        if not wanted:
            return ()
        if numbers is not None:
            of_entry = self._entry_deeds
            return [number for number in numbers if of_entry[number] in wanted]
        if self._entry_deeds.itemsize > 1:
            return [number for number, at in enumerate(self._entry_deeds) if at in wanted]
        chosen = bytes(at in wanted for at in range(256))
        return list(compress(range(self.entries), self._entry_deeds.tobytes().translate(chosen)))

    def _which(self, uid: int | None, kinds: int) -> frozenset[int]:
        return frozenset(
            at
            for at, deed in enumerate(self._deeds)
            if (uid is None or deed >> DEED_KIND_BITS == uid)
            and (not kinds or kinds >> (deed & _KIND_MASK) & 1)
        )

    def deeds(self) -> tuple[Sequence[int], Sequence[int]]:
        """The deeds, and of each entry which one it is; empty in an index of before."""
        return (self._deeds, self._entry_deeds) if self.is_current else ((), ())

    def named_by(self, number: int) -> Sequence[Fid] | None:
        """Returns the fids that entry *number* gives a name; None where the index does not have
        that."""
        if not self.is_current:
            return None
        first = bisect_left(self._named_numbers, number)
        end = bisect_right(self._named_numbers, number, first)
        fids = self._fids
        return [fids[at] for at in self._named_fids[first:end] if at < len(fids)]

    def given_names(self) -> Iterator[tuple[int, Fid]]:
        """Yields the number of each entry that gives a name, with the fid that gets it; none where
        the index does not have them."""
        if self.is_current:
            for number, at in zip(self._named_numbers, self._named_fids, strict=True):
                if at < len(self._fids):
                    yield number, self._fids[at]

    def may_be_named(self, fid: Fid) -> bool:
        """Returns True if an entry can have given or taken a name of *fid*."""
        at = bisect_left(self._fids, fid)
        is_there = at < len(self._fids) and self._fids[at] == fid
        return is_there and (not self.is_current or bool(self._are_named[at]))

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

    def may_have_name(self, parent: Fid, name: bytes) -> bool:
        """Returns True if an entry can be about *name* in directory *parent*."""
        return next(self.of_name(parent, name), None) is not None

    def contents(self) -> IndexContents:
        """Returns what is in it, for a tenth of the memory."""
        are_named = self._are_named.tobytes() if self.is_current else None
        return IndexContents(self.last_seq, self.chain, self._fids, self._names, are_named)

    def of_name(self, parent: Fid, name: bytes) -> Iterator[Posting]:
        """The entries about *name* in directory *parent*, in order; seldom, others too."""
        key = name_key(parent, name)
        return _postings(self._names, self._name_starts, self._name_postings, key)

    def which_of(self, fids: Collection[Fid]) -> Iterator[Fid]:
        """The ones of *fids* that an entry names; *fids* tells quickly what it has."""
        if len(fids) * _LOOKUP_COST < len(self._fids):
            return filter(self.has_fid, fids)
        return filter(fids.__contains__, self._fids)

    def texts(self) -> bytes | None:
        """Every name that an entry gives, takes or records, or that is on a path which one records,
        a slash before and behind each; None where the index does not have them. Raises
        JournalDamagedError."""
        if not self.is_current:
            return None
        return b"/" + self._unpacked(self._texts, "names")

    def owned_names(self) -> Iterator[tuple[bytes, Fid]]:
        """Yields each name that an entry gives, takes or records as a path's last, with the fid
        that it was of; none where the index does not have them. Raises JournalDamagedError."""
        texts = (self.texts() or b"/")[1:].split(b"/")
        fids = self._fids
        for name, at in zip(texts, self._owners if self.is_current else (), strict=False):
            if at < len(fids):
                yield name, fids[at]

    def recorded_paths(self) -> list[RecordedPath]:
        """Every path that an entry records, sorted. Raises JournalDamagedError."""
        return list(self.path_table().starting(b""))

    def path_table(self) -> PathTable:
        """The paths that entries record, to be asked for some of them. Raises
        JournalDamagedError."""
        ends: list[tuple[bytes, int]] = [(b"", len(self._packed_paths))]
        if self.is_current:
            try:
                packed = msgpack.unpackb(self._path_blocks, use_list=False)
                ends = [(bytes(path), int(end)) for path, end in packed]
            except (ValueError, TypeError) as error:
                raise self._damaged("paths", error) from None
        return PathTable(ends, self._rows)

    def _rows(self, begin: int, end: int) -> list[RecordedPath]:
        plain = self._unpacked(self._packed_paths[begin:end], "paths")
        try:
            return [RecordedPath(*told) for told in msgpack.unpackb(plain, use_list=False)]
        except (ValueError, TypeError) as error:
            raise self._damaged("paths", error) from None

    def _unpacked(self, packed: Any, what: str) -> bytes:
        try:
            # It says how large it is, and would be believed.
            if zstandard.frame_content_size(packed) > 2 * self.segment_bytes + _PATHS_BYTES_SPARE:
                raise ValueError("they say that they are too large")
            return zstandard.ZstdDecompressor().decompress(packed)
        except (zstandard.ZstdError, ValueError) as error:
            raise self._damaged(what, error) from None

    def _damaged(self, what: str, error: Exception) -> JournalDamagedError:
        name = f"{self.first_seq:020d}{INDEX_SUFFIX}"
        reason = f"the {what} of the index: {error}; delete it, it is only a cache"
        return JournalDamagedError(name, 0, self.first_seq, reason)

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


def has_current_index(segment: Path) -> bool:
    """Returns True if there is a file that should be the sidecar of *segment*, of this version."""
    try:
        with open(index_path(segment), "rb", buffering=0) as file:
            head = file.read(INDEX_HEADER.size)
    except OSError:
        return False
    return len(head) == INDEX_HEADER.size and INDEX_HEADER.unpack(head)[1] == INDEX_VERSION
