"""Requests and replies as bytes, by the kernel's own table of structs."""

import os
import re
import struct
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fusejournal.layer import kernel_protocol, kernel_replies
from fusejournal.layer.kernel_protocol import (
    HANDLE_KILLPRIV_V2,
    SETXATTR_EXT,
    AttributeChange,
    MalformedRequestError,
    Opcode,
    request_kinds,
)
from fusejournal.layer.kernel_replies import (
    encode_statx,
)
from fusejournal.native import kernel
from fusejournal.types import Fid

_HEAD = bytes(40)
_HEADER_FILE = Path("/usr/include/linux/fuse.h")
_SIZES = {"uint64_t": 8, "int64_t": 8, "uint32_t": 4, "int32_t": 4, "uint16_t": 2, "char": 0}


def decode(opcode: Opcode, body: bytes, init_flags: int = 0) -> tuple[Any, ...]:
    """The arguments of a request that goes on with *body* behind its header."""
    return request_kinds(init_flags)[opcode].decode(_HEAD + body)


@pytest.mark.parametrize(
    ("opcode", "body", "arguments"),
    [
        (Opcode.LOOKUP, b"name\0", (b"name",)),
        (Opcode.FORGET, struct.pack("=Q", 3), (3,)),
        (
            Opcode.BATCH_FORGET,
            struct.pack("=IIQQQQ", 2, 0, 4, 1, 5, 2),
            ([(4, 1), (5, 2)],),
        ),
        (Opcode.GETATTR, bytes(16), ()),
        (Opcode.SYMLINK, b"name\0the/target\0", (b"name", b"the/target")),
        (Opcode.MKNOD, struct.pack("=IIII", 0o20644, 0x103, 0o22, 0) + b"n\0",
         (b"n", 0o20644, 0x103, 0o22)),
        (Opcode.MKDIR, struct.pack("=II", 0o755, 0o22) + b"n\0", (b"n", 0o755, 0o22)),
        (Opcode.RENAME, struct.pack("=Q", 7) + b"a\0b\0", (b"a", 7, b"b", 0)),
        (Opcode.RENAME2, struct.pack("=QII", 7, 2, 0) + b"a\0b\0", (b"a", 7, b"b", 2)),
        (Opcode.LINK, struct.pack("=Q", 9) + b"n\0", (9, b"n")),
        (Opcode.OPEN, struct.pack("=II", os.O_RDWR, 0), (os.O_RDWR, False)),
        (Opcode.OPENDIR, struct.pack("=II", os.O_NOATIME, 0), (os.O_NOATIME,)),
        (Opcode.READ, struct.pack("=QQIIQII", 3, 4096, 512, 0, 0, 0, 0), (3, 4096, 512)),
        (Opcode.WRITE, struct.pack("=QQIIQII", 3, 5, 4, 0, 0, 0, 0) + b"data",
         (3, 5, b"data", True)),
        (Opcode.RELEASE, struct.pack("=QIIQ", 3, 0, 0, 0), (3,)),
        (Opcode.FSYNC, struct.pack("=QII", 3, 1, 0), (3,)),
        (Opcode.SETXATTR, struct.pack("=II", 3, 1) + b"user.a\0x\0y", (b"user.a", b"x\0y", 1)),
        (Opcode.GETXATTR, struct.pack("=II", 64, 0) + b"user.a\0", (b"user.a", 64)),
        (Opcode.LISTXATTR, struct.pack("=II", 64, 0), (64,)),
        (Opcode.CREATE, struct.pack("=IIII", 0o100101, 0o100644, 0o22, 0) + b"n\0",
         (b"n", 0o100644, 0o22)),
        (Opcode.READDIRPLUS, struct.pack("=QQIIQII", 1, 3, 4096, 0, 0, 0, 0), (3, 4096)),
        (Opcode.LSEEK, struct.pack("=QqII", 3, -1, os.SEEK_HOLE, 0), (3, -1, os.SEEK_HOLE)),
        (Opcode.STATX, struct.pack("=IIQII", 0, 0, 0, 0, 0xFFF), ()),
    ],
)  # fmt: skip
def test_requests_are_decoded(opcode: Opcode, body: bytes, arguments: tuple[Any, ...]) -> None:
    assert decode(opcode, body) == arguments
    request = memoryview(bytearray(_HEAD + body))
    assert request_kinds(0)[opcode].decode(request) == arguments


def test_a_longer_setxattr_is_one_where_that_was_agreed_on() -> None:
    body = struct.pack("=IIII", 3, 1, 1, 0) + b"user.a\0abc"
    assert decode(Opcode.SETXATTR, body, SETXATTR_EXT) == (b"user.a", b"abc", 1)


def test_attributes_are_set_one_by_one() -> None:
    def setattr_in(valid: int) -> bytes:
        times = (-3, 9, 11, 5, 6, 7)
        return struct.pack("=IIQQQqqqIIIIIIII", valid, 0, 1, 77, 0, *times, 0o640, 0, 8, 9, 0)

    nothing = AttributeChange(None, None, None, None, None, None)
    for bit, value in enumerate((0o640, 8, 9, 77, -3 * 10**9 + 5, 9 * 10**9 + 6)):
        field = AttributeChange._fields[bit]
        changed: dict[str, Any] = {field: value, "sets_times": field.endswith("_ns")}
        expected = nothing._replace(**changed)
        assert decode(Opcode.SETATTR, setattr_in(1 << bit)) == (expected,)
    # The handle, "now" beside a time, the owner of a lock, ctime: no change by themselves.
    assert decode(Opcode.SETATTR, setattr_in(0b111_1100_0000)) == (nothing,)
    (touched,) = decode(Opcode.SETATTR, setattr_in(0b1_1011_0000))
    assert touched == nothing._replace(atime_ns=-3 * 10**9 + 5, mtime_ns=9 * 10**9 + 6)


@pytest.mark.parametrize(
    ("opcode", "body", "clears"),
    [
        (Opcode.OPEN, struct.pack("=II", os.O_TRUNC, 0), False),
        (Opcode.OPEN, struct.pack("=II", os.O_TRUNC, 1), True),
        (Opcode.WRITE, struct.pack("=QQIIQII", 3, 5, 0, 0, 0, 0, 0), False),
        (Opcode.WRITE, struct.pack("=QQIIQII", 3, 5, 0, 2, 0, 0, 0), False),  # LOCKOWNER
        (Opcode.WRITE, struct.pack("=QQIIQII", 3, 5, 0, 4, 0, 0, 0), True),
        (Opcode.WRITE, struct.pack("=QQIIQII", 3, 5, 0, 1, 0, 0, 0), True),  # of changed pages
        (Opcode.SETATTR, struct.pack("=I84x", 1 << 3), False),
        (Opcode.SETATTR, struct.pack("=I84x", 1 << 3 | 1 << 11), True),
    ],
)
def test_a_kernel_says_what_takes_privileges_where_that_was_agreed_on(
    opcode: Opcode, body: bytes, clears: bool
) -> None:
    def decoded(uid: int, init_flags: int) -> bool:
        head = struct.pack("=IIQQIIIHH", 0, opcode, 2, 1, uid, uid, 3, 0, 0)
        last = request_kinds(init_flags)[opcode].decode(head + body)[-1]
        return bool(last.clears if isinstance(last, AttributeChange) else last)

    assert decoded(0, HANDLE_KILLPRIV_V2) == decoded(1000, HANDLE_KILLPRIV_V2) == clears
    assert decoded(1000, 0)
    assert decoded(0, 0) == (opcode == Opcode.WRITE)


def test_an_ioctl_brings_as_many_bytes_as_it_says() -> None:
    def ioctl_in(size: int, data: bytes) -> bytes:
        return struct.pack("=QIIQII", 7, 0, 0x40086602, 0, size, 0) + data

    assert decode(Opcode.IOCTL, ioctl_in(4, b"abcd")) == (0x40086602, b"abcd")
    assert decode(Opcode.IOCTL, ioctl_in(0, b"")) == (0x40086602, b"")
    with pytest.raises(MalformedRequestError):
        decode(Opcode.IOCTL, ioctl_in(5, b"abcd"))


@given(st.sampled_from(sorted(request_kinds(0))), st.binary(max_size=200), st.booleans())
def test_nonsense_is_refused(opcode: int, body: bytes, is_long: bool) -> None:
    """By these errors and no others."""
    kinds = request_kinds(SETXATTR_EXT | HANDLE_KILLPRIV_V2 if is_long else 0)
    with suppress(MalformedRequestError, struct.error):
        kinds[opcode].decode(_HEAD + body)


def test_names_without_an_end_are_refused() -> None:
    for body in (b"", b"\0", b"name", b"na\0me\0"):
        with pytest.raises(MalformedRequestError):
            decode(Opcode.LOOKUP, body)
    for body in (b"a\0", b"a\0b", b"\0b\0", b"a\0b\0c\0"):
        with pytest.raises(MalformedRequestError):
            decode(Opcode.SYMLINK, body)
    with pytest.raises(MalformedRequestError):
        decode(Opcode.WRITE, struct.pack("=QQIIQII", 3, 5, 5, 0, 0, 0, 0) + b"data")


def test_replies_tell_a_files_attributes(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(b"four")
    os.utime(file, ns=(-1, 1_700_000_000_123_456_789))
    stat = file.stat()
    attr = (
        *(9, 4, stat.st_blocks, -1, 1_700_000_000, 5, 999_999_999, 123_456_789, 6),
        *(stat.st_mode, 3, stat.st_uid, stat.st_gid, 0, stat.st_blksize, 0),
    )
    layout = "QQQqqqIIIIIIIIII"
    with open(file) as opened:
        found = kernel.stat(opened.fileno())
    ctime_ns = 5 * 10**9 + 6
    entry = kernel.encode_entry(Fid(9), found, ctime_ns, 3, 4711, 3600, 3600)
    assert struct.unpack("=QQQQII" + layout, entry) == (9, 4711, 3600, 3600, 0, 0, *attr)
    attributes = kernel.encode_attributes(Fid(9), found, ctime_ns, 3, 3600)
    assert struct.unpack("=QII" + layout, attributes) == (3600, 0, 0, *attr)
    for name in (b"name", b"n" * 255, b"eight888"):
        listed = kernel.encode_listed(Fid(9), found, ctime_ns, 3, 4711, 3600, 3600, name, 12)
        dirent = struct.pack("=QQII", 9, 12, len(name), 8)
        assert listed == entry + dirent + name + bytes(-len(name) % 8)
    for birth_ns, mask, birth in ((None, 0x7FF, (0, 0)), (-1, 0xFFF, (-1, 999_999_999))):
        told = struct.unpack(
            "=QII16xIIQIIIHHQQQQqIiqIiqIiqIiIIII112x",
            encode_statx(Fid(9), found, ctime_ns, 3, birth_ns),
        )
        assert told == (
            *(3600, 0, 0, mask, stat.st_blksize, 0, 3, stat.st_uid, stat.st_gid, stat.st_mode, 0),
            *(9, 4, stat.st_blocks, 0, -1, 999_999_999, 0, *birth, 0, 5, 6, 0),
            *(1_700_000_000, 123_456_789, 0, 0, 0, 0, 0),
        )


@pytest.mark.skipif(not _HEADER_FILE.exists(), reason="the kernel's headers are not there")
def test_the_kernels_header_has_the_same_structs() -> None:
    """Each struct of the modules' tables: its size, and its fields in order."""
    text = re.sub(r"/\*.*?\*/", "", _HEADER_FILE.read_text(), flags=re.DOTALL)
    structs = {
        name: re.findall(r"(u?int\d+_t|char|struct \w+)\s+(\w+)(?:\[(\d*)\])?;", body)
        for name, body in re.findall(r"struct (\w+) \{(.*?)\};", text, re.DOTALL)
    }

    def size(name: str) -> int:
        total = 0
        for kind, _, count in structs[name]:
            one = size(kind.removeprefix("struct ")) if kind not in _SIZES else _SIZES[kind]
            total += one * int(count or 1)
        return total

    table = f"{kernel_protocol.__doc__}\n{kernel_replies.__doc__}"
    rows = re.findall(r"^(fuse_\w+) +(\d+)  ((?:.+\n(?: {33}.+\n)*))", table, re.MULTILINE)
    assert len(rows) > 25
    for name, bytes_, fields in rows:
        if name == "fuse_setxattr_in":
            continue  # it has grown; INIT says which is sent
        if name.startswith("fuse_statx") and "fuse_statx" not in structs:
            continue  # a header of before Linux 6.6
        assert size(name) == int(bytes_), name
        of_struct = " ".join(fields.partition(";")[0].replace("\n", " ").split())
        declared = [field for kind, field, _ in structs[name] if kind != "char"]
        if name == "fuse_statx_out":
            declared.remove("stat")  # its fields follow
        assert re.sub(r"\[\d\]", "", of_struct).split(", ") == declared, name
