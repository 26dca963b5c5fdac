"""The journal's format, version 1: bytes to entries and back. Pure; nothing here does I/O.

A journal is a directory of segments. A segment is a header, then frames one after the other until
the file ends.

Segment header, 128 bytes, little-endian:

======  ====  ==================================================================================
offset  size  field
======  ====  ==================================================================================
0       8     magic ``89 46 4A 53 0D 0A 1A 0A`` (\\x89FJS, and line ends that a text copy breaks)
8       2     format version (1)
10      6     zero
16      16    volume UUID
32      8     epoch at the segment's beginning
40      8     first seq: the seq of the first frame
48      8     chain before: the checksum of the frame before the first, 0 for seq 1
56      8     time the segment was begun, ns since 1970, signed
64      56    zero
120     8     xxh3-64 of bytes 0 to 119
======  ====  ==================================================================================

Frame, a 32-byte header, little-endian, then payload, then data:

======  ====  ==================================================================================
offset  size  field
======  ====  ==================================================================================
0       4     payload length in bytes (1 to 16 MiB)
4       4     data length in bytes (0 to 16 MiB)
8       8     seq
16      8     flushed: the highest seq known to be durable when the frame was written
24      8     checksum: xxh3-64 of bytes 0 to 23, payload and data, seeded with the checksum of
              the frame before (of a segment's first frame: with the header's chain before)
32      ...   payload: a msgpack array
        ...   data: the bytes of a WRITE or IMPORT_DATA as they are
======  ====  ==================================================================================

Payload: ``[kind, time_ns, uid, gid, pid, paths, *operation]``, where *operation* is the fields of
the class of that kind in ``operations.py``, in order; trailing fields that have defaults may be
missing. ``paths`` is nil or a map of fid to path (bytes, relative to the root, as it was before
the entry): every fid the operation touches that this segment has not named before, so that one
segment can be read alone.

The checksums form a chain: two journals with the same checksum at the same seq are the same up to
there.

Source: the xxHash and msgpack specifications.
"""

import struct
from typing import Any, Final, NamedTuple
from uuid import UUID

import msgpack
import xxhash

from fusejournal.operations import (
    OPERATIONS,
    Import,
    Kind,
    Mark,
    Operation,
    Removexattr,
    Setxattr,
)
from fusejournal.types import Epoch, Fid, Seq, Who

FORMAT_VERSION: Final = 1
SEGMENT_MAGIC: Final = b"\x89FJS\r\n\x1a\n"
PAYLOAD_BYTES_MAX: Final = 16 << 20
DATA_BYTES_MAX: Final = 16 << 20

_SEGMENT: Final = struct.Struct("<8sH6x16sQQQq56x")
_CHECKSUM: Final = struct.Struct("<Q")
SEGMENT_HEADER_BYTES: Final = 128
assert _SEGMENT.size + _CHECKSUM.size == SEGMENT_HEADER_BYTES

FRAME: Final = struct.Struct("<IIQQQ")
_FRAME_COVERED: Final = struct.Struct("<IIQQ")
FRAME_HEADER_BYTES: Final = 32
assert FRAME.size == FRAME_HEADER_BYTES == _FRAME_COVERED.size + _CHECKSUM.size

_PREFIX_FIELDS = 6
_pack = msgpack.Packer(use_bin_type=True).pack


class FormatError(ValueError):
    """Bytes that are no journal; the caller knows the segment and offset and raises what users
    see."""


class SegmentHeader(NamedTuple):
    """The beginning of a segment."""

    uuid: UUID
    epoch: Epoch
    first_seq: Seq
    chain_before: int
    time_ns: int

    def encode(self) -> bytes:
        """The header's 128 bytes."""
        head = _SEGMENT.pack(
            SEGMENT_MAGIC,
            FORMAT_VERSION,
            self.uuid.bytes,
            self.epoch,
            self.first_seq,
            self.chain_before,
            self.time_ns,
        )
        return head + _CHECKSUM.pack(xxhash.xxh3_64_intdigest(head))

    @classmethod
    def decode(cls, data: bytes) -> "SegmentHeader":
        """The header in the first 128 bytes of *data*. Raises FormatError."""
        if len(data) < SEGMENT_HEADER_BYTES:
            raise FormatError(f"a header of {len(data)} bytes, {SEGMENT_HEADER_BYTES} are needed")
        magic, version, uuid, epoch, first_seq, chain, time_ns = _SEGMENT.unpack_from(data)
        if magic != SEGMENT_MAGIC:
            raise FormatError("not a journal segment")
        if version != FORMAT_VERSION:
            raise FormatError(f"format version {version}; this program reads {FORMAT_VERSION}")
        (checksum,) = _CHECKSUM.unpack_from(data, _SEGMENT.size)
        head = data[: _SEGMENT.size]
        # All bytes count, the unused ones too: a flipped one is damage.
        if xxhash.xxh3_64_intdigest(head) != checksum:
            raise FormatError("the header's checksum is wrong")
        return cls(UUID(bytes=uuid), Epoch(epoch), Seq(first_seq), chain, time_ns)


class Entry(NamedTuple):
    """One entry as it was read: what it says, and where it lies."""

    seq: Seq
    time_ns: int
    who: Who
    paths: dict[Fid, bytes] | None
    operation: Operation
    data: bytes | memoryview
    flushed: Seq
    chain: int
    """The frame's checksum: the chain up to and including this entry."""
    offset: int
    """Where the frame begins in the uncompressed segment."""
    frame_bytes: int


class FrameHeader(NamedTuple):
    """The fixed part of a frame."""

    payload_bytes: int
    data_bytes: int
    seq: Seq
    flushed: Seq
    checksum: int

    @property
    def frame_bytes(self) -> int:
        """Length of the whole frame."""
        return FRAME_HEADER_BYTES + self.payload_bytes + self.data_bytes


def encode_payload(
    operation: Operation, who: Who, time_ns: int, paths: dict[Fid, bytes] | None
) -> bytes:
    """The msgpack payload of an entry."""
    return _pack((int(operation.kind), time_ns, *who, paths, *operation))  # type: ignore[no-any-return]


def encode_frame(
    payload: bytes, data: bytes | memoryview, seq: Seq, flushed: Seq, chain_before: int
) -> tuple[bytes, int]:
    """Frame header and payload (the data follows them as it is), and the frame's checksum."""
    covered = _FRAME_COVERED.pack(len(payload), len(data), seq, flushed)
    chain = frame_checksum(covered, payload, data, chain_before)
    return covered + _CHECKSUM.pack(chain) + payload, chain


def frame_checksum(
    covered: bytes | memoryview,
    payload: bytes | memoryview,
    data: bytes | memoryview,
    chain_before: int,
) -> int:
    """The checksum of a frame; *covered* is its header but for the checksum."""
    digest = xxhash.xxh3_64(covered, seed=chain_before)
    digest.update(payload)
    if len(data):
        digest.update(data)
    return digest.intdigest()


def decode_frame_header(data: bytes | memoryview, offset: int = 0) -> FrameHeader:
    """The frame header at *offset* of *data*. Raises FormatError when its lengths cannot be."""
    payload_bytes, data_bytes, seq, flushed, checksum = FRAME.unpack_from(data, offset)
    if not 0 < payload_bytes <= PAYLOAD_BYTES_MAX or data_bytes > DATA_BYTES_MAX:
        raise FormatError(f"a frame of {payload_bytes} + {data_bytes} bytes cannot be")
    return FrameHeader(payload_bytes, data_bytes, Seq(seq), Seq(flushed), checksum)


def check_frame(header: FrameHeader, frame: memoryview, expected: Seq, chain_before: int) -> None:
    """Check that *frame*, whole, is entry *expected* and follows *chain_before*. Raises
    FormatError."""
    if header.seq != expected:
        raise FormatError(f"seq {header.seq} stands where {expected} belongs")
    covered = frame[: _FRAME_COVERED.size]
    # Payload and data lie side by side: one pass over both.
    if frame_checksum(covered, frame[FRAME_HEADER_BYTES:], b"", chain_before) != header.checksum:
        raise FormatError("the checksum is wrong")


def decode_entry(header: FrameHeader, frame: memoryview, offset: int) -> Entry:
    """The entry in a checked *frame* that lies at *offset* of its segment. Raises FormatError."""
    payload_end = FRAME_HEADER_BYTES + header.payload_bytes
    try:
        fields = msgpack.unpackb(
            frame[FRAME_HEADER_BYTES:payload_end], use_list=False, strict_map_key=False, raw=False
        )
    except (ValueError, TypeError, OverflowError) as error:
        raise FormatError(f"the payload is not msgpack: {error}") from None
    who, time_ns, paths, operation = _decode_fields(fields)
    return Entry(
        header.seq,
        time_ns,
        who,
        paths,
        operation,
        frame[payload_end:],
        header.flushed,
        header.checksum,
        offset,
        header.frame_bytes,
    )


def _decode_fields(fields: Any) -> tuple[Who, int, dict[Fid, bytes] | None, Operation]:
    if not isinstance(fields, tuple) or len(fields) < _PREFIX_FIELDS:
        raise FormatError("the payload is not an entry")
    kind, time_ns, uid, gid, pid, paths = fields[:_PREFIX_FIELDS]
    if not all(isinstance(value, int) for value in (kind, time_ns, uid, gid, pid)):
        raise FormatError("the payload is not an entry")
    if not -_NUMBER_MAX <= time_ns <= _NUMBER_MAX:
        raise FormatError(f"a time of {time_ns} cannot be")
    if paths is not None and not (
        isinstance(paths, dict)
        and all(
            isinstance(k, int) and 0 < k <= _NUMBER_MAX and isinstance(v, bytes)
            for k, v in paths.items()
        )
    ):
        raise FormatError("the payload's paths are no paths")
    return Who(uid, gid, pid), time_ns, paths, _decode_operation(kind, fields[_PREFIX_FIELDS:])


# Which types each kind's fields may have, from the annotations, so that later code need not doubt
# them.
_FIELD_TYPES: dict[str, tuple[type, ...]] = {
    "fid": (int,),
    "parent": (int,),
    "name": (bytes, str),
    "mode": (int, type(None)),
    "uid": (int, type(None)),
    "gid": (int, type(None)),
    "rdev": (int,),
    "acl": (bytes, type(None)),
    "default_acl": (bytes, type(None)),
    "target": (bytes, type(None)),
    "new_parent": (int,),
    "new_name": (bytes,),
    "flags": (int,),
    "replaced": (int,),
    "offset": (int,),
    "size": (int,),
    "atime_ns": (int, type(None)),
    "mtime_ns": (int, type(None)),
    "value": (bytes,),
    "xattrs": (tuple,),
    "complete": (bool,),
    "seq": (int,),
    "errno": (int,),
    "written": (int,),
    "epoch": (int,),
    "reason": (str,),
}


_NUMBER_MAX: Final = 2**63 - 1
_NAME_BYTES_MAX: Final = 255


def _least(field: str) -> int:
    if field in ("atime_ns", "mtime_ns"):
        return -_NUMBER_MAX
    return 1 if field in ("fid", "parent", "new_parent") else 0


def _check_names(operation: Operation) -> None:
    """A name is one step of a path, whoever made the entry; an attribute's has no zero byte."""
    if isinstance(operation, Mark):
        if not isinstance(operation.name, str):
            raise FormatError("Mark.name is no text")
        return
    for field in ("name", "new_name"):
        name = getattr(operation, field, None)
        if name is None:
            continue
        if not isinstance(name, bytes) or not 0 < len(name) <= _NAME_BYTES_MAX or b"\0" in name:
            raise FormatError(f"{field} cannot be a name")
        if isinstance(operation, Setxattr | Removexattr):
            continue
        if b"/" in name or name in (b".", b".."):
            raise FormatError(f"{name!r} cannot be a name")


def _decode_operation(kind: int, fields: tuple[Any, ...]) -> Operation:
    try:
        cls = OPERATIONS[Kind(kind)]
    except ValueError:
        raise FormatError(f"an entry of unknown kind {kind}") from None
    try:
        operation = cls(*fields)
    except TypeError:
        raise FormatError(f"{cls.__name__} with {len(fields)} fields") from None
    for name, value in zip(cls._fields, operation, strict=True):
        if not isinstance(value, _FIELD_TYPES[name]):
            raise FormatError(f"{cls.__name__}.{name} is {type(value).__name__}")
        if isinstance(value, int) and not _least(name) <= value <= _NUMBER_MAX:
            raise FormatError(f"{cls.__name__}.{name} cannot be {value}")
    _check_names(operation)
    if isinstance(operation, Import) and not all(
        isinstance(pair, tuple) and len(pair) == 2 and all(isinstance(part, bytes) for part in pair)
        for pair in operation.xattrs
    ):
        raise FormatError("Import.xattrs are no pairs")
    return operation
