"""The journal's format, version 1: bytes to entries and back. Pure; nothing here does I/O.

A journal is a directory of segments. A segment is a header, then frames one after the other until
the file ends.

The segment header is in segment_header.py.

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
missing. ``paths`` is nil or a map of fid to path (bytes, relative to the root, before the entry):
every fid the operation touches that this segment has not named yet, so that it can be read alone.

The checksums form a chain: two journals with one checksum at one seq are the same up to there.

Source: the xxHash and msgpack specifications."""

import errno
import os
import struct
from typing import Any, Final, NamedTuple

import msgpack
import xxhash

from fusejournal.file_operations import Fallocate
from fusejournal.operations import (
    OPERATIONS,
    Import,
    Kind,
    Mark,
    Operation,
    Removexattr,
    Setxattr,
    Symlink,
    Whiteout,
)
from fusejournal.types import (
    EPOCH_MAX,
    NAME_BYTES_MAX,
    TIME_MAX_NS,
    TIME_MIN_NS,
    Caller,
    Fid,
    Seq,
)

FORMAT_VERSION: Final = 1
PAYLOAD_BYTES_MAX: Final = 16 << 20
DATA_BYTES_MAX: Final = 16 << 20

_CHECKSUM: Final = struct.Struct("<Q")
FRAME: Final = struct.Struct("<IIQQQ")
_FRAME_COVERED: Final = struct.Struct("<IIQQ")
FRAME_HEADER_BYTES: Final = 32
assert FRAME.size == FRAME_HEADER_BYTES == _FRAME_COVERED.size + _CHECKSUM.size

_PREFIX_FIELDS = 6
_KIND_BYTES_MAX = 16
"""A payload's kind lies within so many bytes."""

# A NamedTuple's own constructor takes twice the time, and this makes four for each entry.
_new: Any = tuple.__new__

_pack = msgpack.Packer(use_bin_type=True).pack


class FormatError(ValueError):
    """Bytes that are no journal; the caller knows the segment and offset and raises what users
    see."""


class NewerFormatError(FormatError):
    """Bytes that are whole, and of a format, a kind or with fields that only a later version of
    this program knows: no damage."""


class Entry(NamedTuple):
    """One entry as it was read: what it says, and where it lies."""

    seq: Seq
    time_ns: int
    who: Caller
    paths: dict[Fid, bytes] | None
    operation: Operation
    data: bytes | memoryview
    flushed: Seq
    chain: int
    """The frame's checksum: the chain up to and including this entry."""
    offset: int
    """The place where the frame begins in the uncompressed segment."""
    frame_bytes: int


class Frame(NamedTuple):
    """One whole frame, checked, and where it lies."""

    seq: Seq
    flushed: Seq
    checksum: int
    offset: int
    """The place where it begins in the uncompressed segment."""
    payload_bytes: int
    content: "memoryview"  # quoted: mypyc looks up what is named where the class is made
    """The frame from its header on."""


def encode_payload(
    operation: Operation, who: Caller, time_ns: int, paths: dict[Fid, bytes] | None
) -> bytes:
    """The msgpack payload of an entry. Raises FormatError where :func:`decode_payload` would."""
    fields = (int(operation.kind), time_ns, *who, paths, *operation)
    _check(fields, operation)
    try:
        return _pack(fields)  # type: ignore[no-any-return]
    except ValueError as error:
        raise FormatError(f"an entry that cannot be packed: {error}") from None


def encode_new(
    operation: Operation, who: Caller, time_ns: int, paths: dict[Fid, bytes] | None
) -> bytes:
    """The payload of an entry that is to be appended. Raises OSError EINVAL where no reader would
    take it."""
    try:
        return encode_payload(operation, who, time_ns, paths)
    except FormatError as error:
        raise OSError(errno.EINVAL, f"{os.strerror(errno.EINVAL)}: {error}") from None


def encode_frame(
    payload: bytes, data: bytes | memoryview, seq: Seq, flushed: Seq, chain_before: int
) -> tuple[bytes, int]:
    """Frame header and payload (the data follows them as it is), and the frame's checksum."""
    covered = _FRAME_COVERED.pack(len(payload), len(data), seq, flushed)
    if len(data) < _COPIED_BYTES_MAX:
        chain = xxhash.xxh3_64_intdigest(b"".join((covered, payload, data)), chain_before)
    else:
        digest = xxhash.xxh3_64(covered + payload, chain_before)
        digest.update(data)
        chain = digest.intdigest()
    return covered + _CHECKSUM.pack(chain) + payload, chain


def frame_bytes_at(buffer: bytes, at: int) -> int:
    """The length of the frame whose header is at *at* of *buffer*. Raises FormatError."""
    payload_bytes, data_bytes, _, _, _ = FRAME.unpack_from(buffer, at)
    if not 0 < payload_bytes <= PAYLOAD_BYTES_MAX or data_bytes > DATA_BYTES_MAX:
        raise FormatError(f"a frame of {payload_bytes} + {data_bytes} bytes cannot be")
    return FRAME_HEADER_BYTES + int(payload_bytes) + int(data_bytes)


def read_frame(
    buffer: bytes, view: memoryview, at: int, expected: Seq, chain_before: int, offset: int
) -> Frame | None:
    """The checked frame at *at*; None when the buffer ends before the frame does.

    Args:
        buffer, view: the bytes, and a view of them.
        at, offset: where it is in them, and in its segment.
        expected, chain_before: the seq that it must have, and the chain that it must follow.

    Raises FormatError."""
    if len(buffer) - at < FRAME_HEADER_BYTES:
        return None
    payload_bytes, data_bytes, seq, flushed, checksum = FRAME.unpack_from(buffer, at)
    if not 0 < payload_bytes <= PAYLOAD_BYTES_MAX or data_bytes > DATA_BYTES_MAX:
        raise FormatError(f"a frame of {payload_bytes} + {data_bytes} bytes cannot be")
    payload_at = at + FRAME_HEADER_BYTES
    end = payload_at + payload_bytes + data_bytes
    if end > len(buffer):
        return None
    if seq != expected:
        raise FormatError(f"seq {seq} stands where {expected} belongs")
    if data_bytes < _COPIED_BYTES_MAX:
        covered = buffer[at : at + _FRAME_COVERED.size] + buffer[payload_at:end]
        found = xxhash.xxh3_64_intdigest(covered, chain_before)
    else:
        digest = xxhash.xxh3_64(view[at : at + _FRAME_COVERED.size], chain_before)
        digest.update(view[payload_at:end])
        found = digest.intdigest()
    if found != checksum:
        raise FormatError(f"the checksum is {checksum:016x}, and {found:016x} of what is there")
    frame: Frame = _new(Frame, (seq, flushed, checksum, offset, payload_bytes, view[at:end]))
    return frame


def checked_frame(view: memoryview, at: int, offset: int) -> Frame:
    """The frame at *at* of *view*, which was checked before and lies at *offset* of its segment."""
    payload_bytes, data_bytes, seq, flushed, checksum = FRAME.unpack_from(view, at)
    end = at + FRAME_HEADER_BYTES + payload_bytes + data_bytes
    frame: Frame = _new(Frame, (seq, flushed, checksum, offset, payload_bytes, view[at:end]))
    return frame


def skim_frames(
    buffer: bytes, view: memoryview, seq: Seq, chain_before: int, at: int = 0, to_seq: int = 1 << 63
) -> tuple[int, Seq, int]:
    """Check frames as :func:`read_frame` does; stops before the first that is not whole or not
    good. Returns where that is, its seq, and the chain before it.

    Args:
        buffer, view: the bytes, and a view of them.
        seq, chain_before: of the first frame.
        at: where it is.
        to_seq: stops before this entry, too.

    This is for reading everything quickly: there is no object for a frame, and what is wrong with
    the one it stops at is for read_frame to find."""
    unpack, digest = FRAME.unpack_from, xxhash.xxh3_64_intdigest
    chain, size, covered_bytes = chain_before, len(buffer), _FRAME_COVERED.size
    while (payload_at := at + FRAME_HEADER_BYTES) <= size and seq < to_seq:
        payload_bytes, data_bytes, number, _, checksum = unpack(buffer, at)
        payload_end = payload_at + payload_bytes
        end = payload_end + data_bytes
        if end > size or number != seq:
            break
        if data_bytes < _COPIED_BYTES_MAX:
            covered = buffer[at : at + covered_bytes] + buffer[payload_at:end]
            found = digest(covered, chain)
        else:
            hashing = xxhash.xxh3_64(view[at : at + covered_bytes], chain)
            hashing.update(view[payload_at:end])
            found = hashing.intdigest()
        if found != checksum:
            break
        at, chain = end, checksum
        seq = Seq(seq + 1)
    return at, seq, chain


def kind_of(frame: Frame) -> Kind | None:
    """The kind of the entry in a checked *frame*, without decoding it all; None where it is not
    known."""
    unpacker = msgpack.Unpacker()
    unpacker.feed(frame.content[FRAME_HEADER_BYTES : FRAME_HEADER_BYTES + _KIND_BYTES_MAX])
    try:
        unpacker.read_array_header()
        return Kind(unpacker.unpack())
    except (ValueError, TypeError, msgpack.UnpackException):
        return None


def _is_path(path: bytes) -> bool:
    """Returns True if *path* leads by names alone from the volume's root (empty: the root)."""
    return not path or (b"\0" not in path and not _NO_NAMES.intersection(path.split(b"/")))


def _is_name(name: bytes) -> bool:
    is_one = name not in _NO_NAMES and len(name) <= NAME_BYTES_MAX
    return is_one and b"/" not in name and b"\0" not in name


_COPIED_BYTES_MAX: Final = 2048
"""The size below which copying the covered bytes together is cheaper than hashing twice."""


def decode_entry(frame: Frame) -> Entry:
    """The entry in a checked *frame*. Raises FormatError."""
    seq, flushed, checksum, offset, payload_bytes, content = frame
    payload_end = FRAME_HEADER_BYTES + payload_bytes
    time_ns, who, paths, operation = decode_payload(content[FRAME_HEADER_BYTES:payload_end])
    data = content[payload_end:]
    entry: Entry = _new(
        Entry,
        (seq, time_ns, who, paths, operation, data, flushed, checksum, offset, len(content)),
    )
    return entry


def decode_payload(
    payload: bytes | memoryview,
) -> tuple[int, Caller, dict[Fid, bytes] | None, Operation]:
    """Time, caller, paths and operation of an entry's *payload*. Raises FormatError, and
    NewerFormatError where only its kind, or a field beyond the known ones, is not known."""
    try:
        fields = msgpack.unpackb(payload, use_list=False, strict_map_key=False, raw=False)
    except (ValueError, TypeError, OverflowError) as error:
        raise FormatError(f"the payload is not msgpack: {error}") from None
    if type(fields) is not tuple or len(fields) < _PREFIX_FIELDS:
        raise FormatError("the payload is not an entry")
    kind = fields[0]
    cls = _CLASSES.get(kind) if type(kind) is int else None
    if cls is None:
        if type(kind) is int and 0 < kind <= _KIND_MAX:
            raise NewerFormatError(f"an entry of kind {kind}")
        raise FormatError(f"an entry of impossible kind {kind!r}")
    operation = _new(cls, fields[_PREFIX_FIELDS:])
    if len(operation) != len(cls._fields):
        if len(operation) > len(cls._fields):
            raise NewerFormatError(f"{cls.__name__} with {len(operation)} fields")
        try:
            operation = cls(*operation)  # the last ones may have defaults
        except TypeError:
            raise FormatError(f"{cls.__name__} with {len(operation)} fields") from None
    _check(fields, operation)
    return fields[1], _new(Caller, fields[2:5]), fields[5], operation


def _check(fields: tuple[Any, ...], operation: Any) -> None:
    """Check that an entry, as its payload has it and with its *operation*, is one that this program
    reads and carries out. Asked for what is written and for what is read alike, so that nothing can
    be written that is not read. Raises FormatError."""
    kind, time_ns, uid, gid, pid, paths = fields[:_PREFIX_FIELDS]
    # What types the fields have is looked up as a whole, because most entries look like others.
    types = tuple(map(type, fields))
    if types not in _GOOD_TYPES[kind]:
        _check_types(operation, fields)
        _GOOD_TYPES[kind].add(types)
    if not -_NUMBER_MAX <= time_ns <= _NUMBER_MAX:
        raise FormatError(f"a time of {time_ns} cannot be")
    if not (0 <= uid <= _ID_MAX and 0 <= gid <= _ID_MAX and 0 <= pid <= _ID_MAX):
        raise FormatError(f"a caller with uid {uid}, gid {gid}, pid {pid} cannot be")
    for index, least, most in _NUMBERS[kind]:
        number = operation[index]
        if number is not None and not least <= number <= most:
            name = type(operation)._fields[index]
            raise FormatError(f"{type(operation).__name__}.{name} cannot be {number}")
    for index in _NAMES[kind]:
        name = operation[index]
        if not _is_name(name):
            raise FormatError(f"{name!r} cannot be a name")
    if kind in _CHECKED_FURTHER:
        _check_further(operation)
    if paths is not None:
        for fid, path in paths.items():
            if type(fid) is not int or type(path) is not bytes or not 0 < fid <= _NUMBER_MAX:
                raise FormatError("the payload's paths are no paths")
            if not _is_path(path):
                raise FormatError(f"{path!r} cannot be a path in the volume")


# Which types each kind's fields may have, from the annotations, so that later code need not doubt
# them.
_FIELD_TYPES: dict[str, tuple[type, ...]] = {
    **dict.fromkeys(
        (
            *("fid", "parent", "new_parent", "replaced", "whiteout", "rdev", "flags"),
            *("offset", "size", "length", "seq", "errno", "written", "epoch"),
        ),
        (int,),
    ),
    "name": (bytes,),
    "mode": (int, type(None)),
    "uid": (int, type(None)),
    "gid": (int, type(None)),
    "acl": (bytes, type(None)),
    "default_acl": (bytes, type(None)),
    "target": (bytes, type(None)),
    "new_name": (bytes,),
    "atime_ns": (int, type(None)),
    "mtime_ns": (int, type(None)),
    "value": (bytes,),
    "xattrs": (tuple,),
    "complete": (bool,),
    "reason": (str,),
}


_NUMBER_MAX: Final = 2**63 - 1
_ID_MAX: Final = 2**32 - 1
_KIND_MAX: Final = 63
"""Kinds that may come yet: an index's mask of kinds has as many bits."""
_LIMITS: Final[dict[str, tuple[int, int]]] = {
    **dict.fromkeys(("fid", "parent", "new_parent", "whiteout"), (1, _NUMBER_MAX)),
    **dict.fromkeys(("uid", "gid", "rdev", "flags"), (0, _ID_MAX)),
    **dict.fromkeys(("atime_ns", "mtime_ns"), (TIME_MIN_NS, TIME_MAX_NS)),
    "mode": (0, 0o177777),
    "errno": (0, 2**31 - 1),
    "epoch": (1, EPOCH_MAX),
}
"""The least and the most that a number can be, where that is not 0 and ``_NUMBER_MAX``: what the
system calls that carry the operation out take."""
_TARGET_BYTES_MAX: Final = 4095
_NO_NAMES: Final = frozenset({b"", b".", b".."})
_FILE_NAMES: Final = frozenset({"name", "new_name"})
_NO_FILE_NAMES: Final = frozenset({Kind.SETXATTR, Kind.REMOVEXATTR, Kind.MARK})
_CHECKED_FURTHER: Final = frozenset(
    map(
        int,
        (
            *(Kind.SETXATTR, Kind.REMOVEXATTR, Kind.IMPORT, Kind.SYMLINK, Kind.WHITEOUT),
            Kind.FALLOCATE,
        ),
    )
)

# By kind, so that an entry is checked without a look at its class: the class, the type signatures
# seen to be good, the fields that are numbers with the least and most each can be, those that are
# names.
_CLASSES: Final[dict[int, Any]] = {int(kind): cls for kind, cls in OPERATIONS.items()}
_GOOD_TYPES: Final[dict[int, set[tuple[type, ...]]]] = {kind: set() for kind in _CLASSES}
_NUMBERS: Final = {
    kind: tuple(
        (index, *_LIMITS.get(field, (0, _NUMBER_MAX)))
        for index, field in enumerate(cls._fields)
        if int in _FIELD_TYPES[field]
    )
    for kind, cls in _CLASSES.items()
}
_NAMES: Final = {
    kind: tuple(
        index
        for index, field in enumerate(cls._fields)
        if field in _FILE_NAMES and kind not in _NO_FILE_NAMES
    )
    for kind, cls in _CLASSES.items()
}


def _check_types(operation: Operation, fields: tuple[Any, ...]) -> None:
    if any(type(field) is not int for field in fields[1:5]):
        raise FormatError("the payload is not an entry")
    if not isinstance(fields[5], dict | None):
        raise FormatError("the payload's paths are no paths")
    cls = type(operation)
    for name, value in zip(cls._fields, operation, strict=True):
        good = (str,) if cls is Mark else _FIELD_TYPES[name]
        if type(value) not in good:
            raise FormatError(f"{cls.__name__}.{name} is {type(value).__name__}")


def _check_further(operation: Operation) -> None:
    if isinstance(operation, Setxattr | Removexattr):
        _check_xattr_name(operation.name)
    elif isinstance(operation, Symlink):
        _check_target(operation.target)
    elif isinstance(operation, Whiteout):
        if not operation.can_be():
            raise FormatError("a whiteout that cannot be")
    elif isinstance(operation, Fallocate):
        if not operation.can_be():
            raise FormatError("an allocation that cannot be")
    elif isinstance(operation, Import):
        for pair in operation.xattrs:
            if type(pair) is not tuple or tuple(map(type, pair)) != (bytes, bytes):
                raise FormatError("Import.xattrs are no pairs")
            _check_xattr_name(pair[0])
        if operation.target is not None:
            _check_target(operation.target)


def _check_xattr_name(name: bytes) -> None:
    if not 0 < len(name) <= NAME_BYTES_MAX or b"\0" in name:
        raise FormatError(f"{name!r} cannot be an attribute's name")


def _check_target(target: bytes | None) -> None:
    if not target or len(target) > _TARGET_BYTES_MAX or b"\0" in target:
        raise FormatError("a symbolic link's target that cannot be")
