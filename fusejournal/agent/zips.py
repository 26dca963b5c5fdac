r"""A directory as it was, as a zip archive, made as it is sent: each file's checksum follows it,
and the archive's own directory waits for the end in a temporary file, so memory does not grow.

Names, types, permissions, times (to the second) and contents are in it; owners are not, nor what
archives.py lacks. A symbolic link is a file of that type, with its target, as Info-ZIP has it. What
a tool on another system would take for the end of a directory's name, or for a drive, is written by
its code, as in a URL: ``\`` is ``%5C``, and ``C:`` at the beginning ``C%3A``.

Source: PKWARE's APPNOTE.TXT 6.3.10, sections 4.3.6 to 4.3.16, 4.4.4, 4.5.3; Info-ZIP's
extrafld.txt (0x5455)."""

import stat
import struct
import time
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from tempfile import TemporaryFile
from typing import IO, Final

from fusejournal.agent.archives import Member, tar_of
from fusejournal.errors import UsageError

_LOCAL: Final = struct.Struct("<4s5H3I2H")
_DESCRIPTOR: Final = struct.Struct("<4sIQQ")
_CENTRAL: Final = struct.Struct("<4s6H3I5H2I")
_SIZES: Final = struct.Struct("<2H3Q")
_TIME: Final = struct.Struct("<2HBi")
_END_64: Final = struct.Struct("<4sQ2H2I4Q")
_LOCATOR: Final = struct.Struct("<4sIQI")
_END: Final = struct.Struct("<4s4H2IH")
assert (_LOCAL.size, _CENTRAL.size, _END_64.size, _END.size) == (30, 46, 56, 22)
_VERSION: Final = 45
"""The specification's version that has sizes of 64 bits: all have, so that there is one form."""
_MADE_BY_UNIX: Final = 3 << 8 | _VERSION
_FOLLOWS: Final = 1 << 3
"""The checksum and the sizes follow the content."""
_UTF_8: Final = 1 << 11
_DEFLATED: Final = 8
_ALL_ONES: Final = 0xFFFFFFFF
_LEVEL: Final = 1
_PIECE_BYTES: Final = 256 << 10
_NAME_BYTES_MAX: Final = 0xFFFF
_TYPES: Final = (stat.S_IFREG, stat.S_IFDIR, stat.S_IFLNK)


@dataclass
class _Sums:
    """The sums of a content, as far as it was packed."""

    checksum: int = 0
    packed: int = 0
    plain: int = 0


def archived(members: Iterator[Member], form: str) -> Iterator[bytes]:
    """Returns the bytes of an archive of *members*, as *form*: "tar" or "zip". Raises UsageError
    for any other, and what *members* raises."""
    forms: dict[str, Callable[[Iterator[Member]], Iterator[bytes]]] = {
        "tar": tar_of, "zip": zip_of,
    }  # fmt: skip
    if form not in forms:
        raise UsageError(f"an archive is a {' or a '.join(forms)}, and no {form!r:.40}")
    return forms[form](members)


def zip_of(members: Iterator[Member]) -> Iterator[bytes]:
    """Yields the bytes of a zip archive of *members*."""
    at = count = 0
    with TemporaryFile() as central:
        for member in members:
            if member.type not in _TYPES:
                continue
            begun = at
            name = _portable(member.path) + (b"/" if member.type == stat.S_IFDIR else b"")
            head = _head(member, name)
            yield head
            at += len(head)
            sums = _Sums()
            for piece in _deflated(member, sums):
                at += len(piece)
                yield piece
            tail = _DESCRIPTOR.pack(b"PK\x07\x08", sums.checksum, sums.packed, sums.plain)
            yield tail
            at += len(tail)
            central.write(_entry(member, name, sums, begun))
            count += 1
        yield from _end(central, count, at)


def _portable(path: bytes) -> bytes:
    """Returns *path* so that its slashes alone divide it, and it begins at no drive, whatever
    system it is unpacked on (4.4.17.1)."""
    path = path.replace(b"\\", b"%5C")
    if path[1:2] == b":" and path[:1].isalpha():
        path = path[:1] + b"%3A" + path[2:]
    return path


def _fields(member: Member, name: bytes) -> tuple[int, ...]:
    """Returns the fields that a file's two headers share: from the version that reads it to the
    date."""
    flags = _FOLLOWS
    try:
        name.decode()
        flags |= _UTF_8
    except UnicodeDecodeError:
        pass  # its bytes as they are
    moment = time.localtime(_seconds(member))
    year = min(max(moment.tm_year, 1980), 2107)
    clock = moment.tm_hour << 11 | moment.tm_min << 5 | moment.tm_sec // 2
    day = (year - 1980) << 9 | moment.tm_mon << 5 | moment.tm_mday
    return _VERSION, flags, _DEFLATED, clock, day


def _seconds(member: Member) -> int:
    return min(max(member.mtime_ns // 10**9, 0), (1 << 31) - 1)


def _head(member: Member, name: bytes) -> bytes:
    if len(name) > _NAME_BYTES_MAX:
        raise UsageError(
            f"a path of {len(name):,} bytes is too long for a zip: download the directory as tar"
        )
    # Both sizes are zero, and of 64 bits: so are those that follow, then.
    sizes = struct.pack("<2H2Q", 1, 16, 0, 0)
    extra = sizes + _TIME.pack(0x5455, 5, 1, _seconds(member))
    fields = _fields(member, name)
    head = _LOCAL.pack(b"PK\x03\x04", *fields, 0, _ALL_ONES, _ALL_ONES, len(name), len(extra))
    return head + name + extra


def _entry(member: Member, name: bytes, sums: _Sums, begun: int) -> bytes:
    extra = _SIZES.pack(1, 24, sums.plain, sums.packed, begun)
    extra += _TIME.pack(0x5455, 5, 1, _seconds(member))
    # The upper half is the mode as Unix has it, the lower DOS's attribute of a directory.
    attributes = (member.type | member.mode) << 16 | (member.type == stat.S_IFDIR) << 4
    fields = _fields(member, name)
    entry = _CENTRAL.pack(
        b"PK\x01\x02", _MADE_BY_UNIX, *fields, sums.checksum, _ALL_ONES, _ALL_ONES, len(name),
        len(extra), 0, 0, 0, attributes, _ALL_ONES,
    )  # fmt: skip
    return entry + name + extra


def _deflated(member: Member, sums: _Sums) -> Iterator[bytes]:
    """Yields the content as it is packed."""
    packer = zlib.compressobj(_LEVEL, zlib.DEFLATED, -zlib.MAX_WBITS)
    for piece in _plain(member):
        sums.checksum, sums.plain = zlib.crc32(piece, sums.checksum), sums.plain + len(piece)
        if content := packer.compress(piece):
            sums.packed += len(content)
            yield content
    content = packer.flush()
    sums.packed += len(content)
    yield content


def _plain(member: Member) -> Iterator[bytes]:
    if member.type == stat.S_IFLNK:
        yield member.target
    elif member.type == stat.S_IFREG and member.size:
        left = member.size
        for piece in member.content:
            wanted = piece[:left]
            left -= len(wanted)
            yield wanted
        while left:  # a hole at its end
            wanted = bytes(min(left, _PIECE_BYTES))
            left -= len(wanted)
            yield wanted


def _end(central: IO[bytes], count: int, at: int) -> Iterator[bytes]:
    """Yields the directory, and what says where it begins."""
    size = central.tell()
    central.seek(0)
    while piece := central.read(_PIECE_BYTES):
        yield piece
    yield _END_64.pack(
        b"PK\x06\x06", _END_64.size - 12, _MADE_BY_UNIX, _VERSION, 0, 0, count, count, size, at
    )
    yield _LOCATOR.pack(b"PK\x06\x07", 0, at + size, 1)
    yield _END.pack(b"PK\x05\x06", 0, 0, 0xFFFF, 0xFFFF, _ALL_ONES, _ALL_ONES, 0)
