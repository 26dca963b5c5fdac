"""The making of a segment's index (index.py), whole, and of one of before where the segment has
grown since."""

import os
import sys
from array import array
from collections import defaultdict
from collections.abc import Iterator, Sequence
from itertools import accumulate, chain
from pathlib import Path
from typing import Any, Final

import msgpack
import xxhash
import zstandard

from fusejournal.disk.files import Outlives, write_atomically
from fusejournal.journal.format import FRAME_HEADER_BYTES, Frame, NewerFormatError
from fusejournal.journal.index import (
    DEED_CODES,
    DEED_KIND_BITS,
    INDEX_CHECKSUM,
    INDEX_COUNTS,
    INDEX_HEADER,
    INDEX_MAGIC,
    INDEX_MORE_COUNTS,
    INDEX_VERSION,
    NAMERS,
    SegmentIndex,
    index_path,
)
from fusejournal.journal.index_parts import RecordedPath, name_key
from fusejournal.journal.segment import BadFrameError, Point, SegmentReader
from fusejournal.operations import MOVES, NAME_KINDS, ONE_FILE_KINDS, RENAME_EXCHANGE, Kind
from fusejournal.types import Fid, Seq

_ENTRIES_MAX: Final = 1 << 24
_POINT_ENTRIES: Final = 32
_POINT_BYTES: Final = 256 << 10
_NAMED: Final = frozenset(map(int, NAME_KINDS - MOVES))
_OF_NAMES: Final = frozenset(map(int, NAME_KINDS))
_RENAME: Final = int(Kind.RENAME)
_WHITEOUT: Final = int(Kind.WHITEOUT)
_CREATE: Final = int(Kind.CREATE)
_VOID: Final = int(Kind.VOID)
_MARK: Final = int(Kind.MARK)
_DATA: Final = frozenset(map(int, ONE_FILE_KINDS))
_OPERATION_AT: Final = 6
_NO_ENTRY: Final = (ValueError, TypeError, IndexError, OverflowError, AttributeError)
"""The errors in which a payload that is no entry's ends."""
_KINDS_END: Final = max(Kind) + 1
_PATHS_IN_BLOCK: Final = 256
_Paths = list[tuple[bytes, int, int] | RecordedPath]


class _Builder:
    """Collects what the entries of a segment name, in their order."""

    def __init__(self) -> None:
        self.kinds = 0
        self.uids: set[int] = set()
        self.paths: _Paths = []
        self.by_fid: defaultdict[int, array[int]] = defaultdict(lambda: array("I"))
        self.by_name: defaultdict[int, array[int]] = defaultdict(lambda: array("I"))
        self.deeds: dict[int, int] = {}
        self.entry_deeds = array("I")
        self.names: set[tuple[bytes, int]] = set()
        self.given = array("I"), array("Q")
        """The entries that give something a name, and which fid."""

    def add(self, fields: tuple[Any, ...], number: int, refused: bool) -> None:
        """Take in entry *number*; *fields* is its payload."""
        kind = fields[0]
        if kind >= _KINDS_END:
            raise NewerFormatError(f"an entry of kind {kind}")
        if kind <= 0:
            raise ValueError(f"of impossible kind {kind}")
        self.kinds |= 1 << kind
        self.uids.add(fields[2])
        deed = fields[2] << DEED_KIND_BITS | kind
        self.entry_deeds.append(self.deeds.setdefault(deed, len(self.deeds)))
        if fields[5]:
            self.paths.extend((path, fid, number) for fid, path in fields[5].items())
        posting = number << 8 | kind << 2 | refused << 1
        if kind in _NAMED:
            _, _, _, _, _, _, fid, parent, name, *_ = fields
            self.by_fid[fid].append(posting)
            self.by_fid[parent].append(posting | 1)
            self.by_name[name_key(parent, name)].append(posting)
            self.names.add((name, fid))
            if kind in NAMERS:
                self.give(number, fid)
        elif kind == _RENAME:
            self._add_rename(fields[_OPERATION_AT:], posting)
        elif kind == _WHITEOUT:
            *moving, whiteout, _, _, _, _ = fields[_OPERATION_AT:]
            self._add_rename(moving, posting)
            self.by_fid[whiteout].append(number << 8 | _CREATE << 2 | refused << 1)
            self.names.add((moving[2], whiteout))
            self.give(number, whiteout)
        elif kind == _MARK:
            self.by_name[name_key(Fid(0), fields[_OPERATION_AT].encode())].append(posting)
        elif kind in _DATA and len(fields) > _OPERATION_AT:
            self.by_fid[fields[_OPERATION_AT]].append(posting)

    def _add_rename(self, fields: Sequence[Any], posting: int) -> None:
        fid, parent, name, new_parent, new_name, flags, replaced = fields
        self.by_fid[fid].append(posting)
        self.give(posting >> 8, fid)
        self.names.update(((name, fid), (new_name, fid)))
        if replaced and replaced != fid:
            self.by_fid[replaced].append(posting)
            self.names.update(((name, replaced), (new_name, replaced)))
            if flags & RENAME_EXCHANGE:
                self.give(posting >> 8, replaced)
        self.by_fid[parent].append(posting | 1)
        if new_parent != parent:
            self.by_fid[new_parent].append(posting | 1)
        self.by_name[name_key(parent, name)].append(posting)
        self.by_name[name_key(new_parent, new_name)].append(posting)

    def give(self, number: int, fid: int) -> None:
        """Take in that entry *number* gives *fid* a name."""
        numbers, fids = self.given
        numbers.append(number)
        fids.append(fid)


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


class _Making:
    """The making of an index: what was taken in of a segment so far, but for its last entry, of
    which it is not known yet whether a VOID follows."""

    def __init__(self, start: Point) -> None:
        self.start = start
        self.builder = _Builder()
        self.points = _Points()
        self.number = -1
        self.chain, self.end, self.last_time = start.chain_before, start.offset, 0
        self.point_at = -_POINT_BYTES
        self.held: tuple[Any, ...] | None = None

    @classmethod
    def gone_on(cls, index: SegmentIndex, start: Point, held: tuple[Any, ...]) -> "_Making":
        """Returns what *index* was made of; *held* is the payload of its last entry. Raises
        JournalDamagedError."""
        making = cls(start)
        making.builder = _builder_of(index, index.entries - 1)
        points = making.points
        for point in index.points():
            points.add(*point)
        making.number = index.entries - 1
        making.chain, making.end = index.chain, index.segment_bytes
        making.last_time, making.point_at = index.last_time_ns, points.offsets[-1]
        making.held = held
        return making

    def take_in(self, frames: Iterator[Frame], *, allow_torn: bool) -> None:
        """Take in *frames*. With *allow_torn* a frame that is not whole ends it (an append under
        way). Raises BadFrameError."""
        try:
            for frame in frames:
                _, _, checksum, offset, payload_bytes, content = frame
                self.number += 1
                try:
                    fields = _payload(content, payload_bytes)
                    if self.held is not None:
                        self.builder.add(self.held, self.number - 1, fields[0] == _VOID)
                    self.held = fields
                    if self.number % _POINT_ENTRIES == 0 or offset - self.point_at >= _POINT_BYTES:
                        self.point_at = offset
                        self.points.add(self.number, offset, self.chain, fields[1])
                    self.last_time = fields[1]
                except _NO_ENTRY as error:
                    raise _no_entry(offset, frame.seq, error) from None
                self.chain = checksum
                self.end = offset + len(content)
        except BadFrameError as bad:
            if not (allow_torn and bad.torn):
                raise

    def finish(self, reader: SegmentReader) -> SegmentIndex:
        """Returns the index. Raises BadFrameError."""
        points, number = self.points, self.number
        try:
            if self.held is not None:
                self.builder.add(self.held, number, False)
            if not -(2**63) <= self.last_time < 2**63:
                raise ValueError("a time that cannot be")
        except _NO_ENTRY as error:
            raise _no_entry(self.end, Seq(self.start.seq + number), error) from None
        if number >= _ENTRIES_MAX:
            raise BadFrameError(
                self.end, reader.header.first_seq, "too many entries", torn=False
            )  # fmt: skip
        head = INDEX_HEADER.pack(
            INDEX_MAGIC,
            INDEX_VERSION,
            reader.header.uuid.bytes,
            self.start.seq,
            self.start.chain_before,
            number + 1,
            self.chain,
            points.times[0] if points.times else 0,
            self.last_time,
            self.end,
            self.builder.kinds,
        )
        try:
            return SegmentIndex(_packed(head, points, self.builder))
        except (OverflowError, TypeError, AttributeError):
            raise BadFrameError(
                self.end, self.start.seq, "a name, fid or uid that cannot be", torn=False
            ) from None


def _builder_of(index: SegmentIndex, end: int) -> _Builder:
    """Returns what the entries before number *end* brought to *index*, but that kinds and users may
    be some too many. Raises JournalDamagedError."""
    builder = _Builder()
    builder.kinds, builder.uids = index.kinds, set(index.uids)
    deeds, of_entries = index.deeds()
    builder.deeds = {deed: at for at, deed in enumerate(deeds)}
    builder.entry_deeds = array("I", of_entries[:end])
    builder.names = set(index.owned_names())
    for number, fid in index.given_names():
        if number < end:
            builder.give(number, fid)
    builder.paths = [one for one in index.recorded_paths() if one.number < end]
    for found, keys in ((builder.by_fid, index.by_fid()), (builder.by_name, index.by_name())):
        for key, postings in keys:
            kept = array("I", postings)
            while kept and kept[-1] >> 8 >= end:
                kept.pop()
            if kept:
                found[key] = kept
    return builder


def _payload(content: Any, payload_bytes: int) -> tuple[Any, ...]:
    payload = content[FRAME_HEADER_BYTES : FRAME_HEADER_BYTES + payload_bytes]
    fields: tuple[Any, ...] = msgpack.unpackb(payload, use_list=False, strict_map_key=False)
    return fields


def build_index(reader: SegmentReader, *, allow_torn: bool = False) -> SegmentIndex:
    """The index of a segment, from reading all of it; every frame is checked. With *allow_torn* a
    frame that is not whole ends it (an append under way). Raises BadFrameError."""
    making = _Making(reader.start)
    making.take_in(reader.frames(), allow_torn=allow_torn)
    return making.finish(reader)


def extend_index(
    index: SegmentIndex, reader: SegmentReader, *, allow_torn: bool
) -> SegmentIndex | None:
    """Returns the index of a segment of which *index* was made before it grew: *index* itself,
    where it did not. Only what came since is read, and the last entry before, which by its chain
    stands for all before it; None where that is there no more. Raises BadFrameError,
    JournalDamagedError."""
    header = reader.header
    known = index.uuid, index.first_seq, index.chain_before
    if known != (header.uuid, header.first_seq, header.chain_before):
        return None
    if not (index.is_current and index.entries):
        return None
    frames = reader.frames(index.point_before(index.entries - 1))
    try:
        last = next(frame for frame in frames if frame.seq == index.last_seq)
    except (BadFrameError, StopIteration):
        return None  # the entries were cut back: building it anew tells more
    if last.checksum != index.chain:
        return None
    try:
        first = next(frames, None)
    except BadFrameError as bad:
        if not (allow_torn and bad.torn):
            raise
        first = None
    if first is None:
        return index
    held = _payload(last.content, last.payload_bytes)
    making = _Making.gone_on(index, reader.start, held)
    making.take_in(chain((first,), frames), allow_torn=allow_torn)
    return making.finish(reader)


def _packed(head: bytes, points: _Points, builder: _Builder) -> bytes:
    """The content of an index whose header is *head*. Raises OverflowError, TypeError,
    AttributeError."""
    fids, fid_starts, fid_postings = _flatten(builder.by_fid)
    names, name_starts, name_postings = _flatten(builder.by_name)
    uids = array("Q", sorted(builder.uids))
    deeds, entry_deeds = _deeds(builder)
    place = {fid: at for at, fid in enumerate(fids)}
    named_numbers = builder.given[0]
    named_fids = array("I", map(place.__getitem__, builder.given[1]))
    paths = sorted(builder.paths)
    owners, texts = _texts(builder.names, paths, place)
    path_blocks, packed_paths = _in_blocks(paths)
    counts = INDEX_COUNTS.pack(
        len(points.numbers),
        len(fids),
        len(fid_postings),
        len(names),
        len(name_postings),
        len(uids),
        len(packed_paths),
    )
    counts += INDEX_MORE_COUNTS.pack(
        len(deeds),
        entry_deeds.itemsize,
        len(named_numbers),
        len(owners),
        len(path_blocks),
        len(texts),
    )
    sections = (
        points.offsets, points.chains, points.times, fids, names, uids, points.numbers,
        fid_starts, fid_postings, name_starts, name_postings, deeds, entry_deeds,
        _is_named(fids, fid_starts, fid_postings), named_numbers, named_fids, owners,
    )  # fmt: skip
    arrays = (section.tobytes() for section in sections)
    body = b"".join((head, counts, *arrays, path_blocks, texts, packed_paths))
    return body + INDEX_CHECKSUM.pack(xxhash.xxh3_64_intdigest(body))


def _deeds(builder: _Builder) -> tuple["array[int]", "array[int]"]:
    """Returns the deeds, growing, and which one each entry is, in as few bytes as that takes.
    Raises OverflowError."""
    deeds = array("Q", sorted(builder.deeds))
    place = {deed: at for at, deed in enumerate(deeds)}
    new = [0] * len(deeds)
    for deed, at in builder.deeds.items():
        new[at] = place[deed]
    item_bytes = 1 if len(deeds) <= 1 << 8 else 2 if len(deeds) <= 1 << 16 else 4
    return deeds, array(DEED_CODES[item_bytes], map(new.__getitem__, builder.entry_deeds))


def _is_named(fids: "array[int]", starts: "array[int]", postings: "array[int]") -> "array[int]":
    """Returns 1 for each of *fids* that an entry gives or takes a name of, else 0."""
    return array(
        "B",
        (
            any(
                not packed & 1 and packed >> 2 & 63 in _OF_NAMES
                for packed in postings[starts[at] : starts[at + 1]]
            )
            for at in range(len(fids))
        ),
    )


def _texts(
    names: set[tuple[bytes, int]], paths: _Paths, place: dict[int, int]
) -> tuple["array[int]", bytes]:
    """Returns the place of each owner among the fids, and all the names, packed."""
    owned = {(path.rpartition(b"/")[2], fid) for path, fid, _ in paths if fid in place and path}
    ordered = sorted(owned | names)
    above = {path.rpartition(b"/")[0] for path, _, _ in paths}
    further = sorted({name for path in above for name in path.split(b"/") if name})
    text = b"".join(name + b"/" for name in [*(name for name, _ in ordered), *further])
    return array("I", (place[fid] for _, fid in ordered)), zstandard.compress(text, 3)


def _in_blocks(paths: _Paths) -> tuple[bytes, bytes]:
    """Returns where the blocks of *paths*, sorted, begin and end, and the blocks."""
    blocks = [paths[at : at + _PATHS_IN_BLOCK] for at in range(0, len(paths), _PATHS_IN_BLOCK)]
    packed = [zstandard.compress(msgpack.packb(block), 3) for block in blocks]
    ends = accumulate(map(len, packed))
    table = [(block[0][0], end) for block, end in zip(blocks, ends, strict=True)]
    return msgpack.packb(table), b"".join(packed)


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


def write_index(segment: Path) -> None:
    """Make the sidecar of *segment*, which is sealed. Blocks. Raises OSError, BadFrameError."""
    with SegmentReader(segment) as reader:
        index = build_index(reader)
    write_atomically("index", index_path(segment), index.content, Outlives.MACHINE)


if __name__ == "__main__":
    # The layer has indexes made by processes of their own: in a thread this would hold up the
    # interpreter, and with it every request.
    os.nice(19)
    write_index(Path(sys.argv[1]))
