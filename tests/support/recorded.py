"""Requests of a kernel and their answers, byte for byte: recorded at a mount, and asked again
without one.

``python -m tests.support.recorded FILE`` records the requests of the kernel that it runs on: a
short life of a tree in which each kind of request comes."""

import fcntl
import json
import os
import platform
import struct
import sys
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from fusejournal.disk import calls, syscalls
from fusejournal.file_operations import FALLOC_KEEP_SIZE, FALLOC_PUNCH_HOLE
from fusejournal.layer.file_flags import FS_IOC_SETFLAGS
from fusejournal.layer.kernel_protocol import IN_HEADER, Opcode
from fusejournal.layer.kernel_replies import OUT_HEADER
from fusejournal.layer.request_loop import RequestLoop
from fusejournal.operations import RENAME_EXCHANGE, RENAME_NOREPLACE

_RECORD = "RECORDED_REQUESTS"
_GENERATION, _TIMES = slice(8, 16), slice(24, 60)
"""The parts of fuse_entry_out, and of fuse_attr, that another run has otherwise."""
_SIZE, _BLOCKS, _BLKSIZE, _MODE_AT = slice(8, 16), slice(16, 24), slice(80, 84), 60
_ATTR_BYTES = 88
_STATX_BLKSIZE, _STATX_BLOCKS, _STATX_TIMES = slice(4, 8), slice(48, 56), slice(64, 128)
"""The same of fuse_statx."""
_ENTRIES = frozenset(
    (Opcode.LOOKUP, Opcode.CREATE, Opcode.MKDIR, Opcode.MKNOD, Opcode.SYMLINK, Opcode.LINK)
)
"""Requests whose reply begins with an entry."""


class Recorded(NamedTuple):
    """One request, and its reply; empty where it has none."""

    request: bytes
    reply: bytes

    @property
    def opcode(self) -> int:
        return int(IN_HEADER.unpack_from(self.request)[1])


def read_recorded(path: Path) -> list[Recorded]:
    """Reads the file that :func:`main` has written to *path*, in the order of the requests."""
    exchanges = json.loads(path.read_text())["exchanges"]
    return [Recorded(bytes.fromhex(one), bytes.fromhex(two)) for _, one, two in exchanges]


def comparable(recorded: Recorded) -> bytes:
    """The reply without what another run, or another file system below it, tells otherwise."""
    reply = bytearray(recorded.reply)
    head = 16
    if len(reply) == head or recorded.opcode == Opcode.STATFS:
        return bytes(reply[:head])
    match recorded.opcode:
        case (
            Opcode.LOOKUP
            | Opcode.CREATE
            | Opcode.MKDIR
            | Opcode.MKNOD
            | Opcode.SYMLINK
            | Opcode.LINK
            | Opcode.TMPFILE
        ):
            _mask_entry(memoryview(reply)[head:])
        case Opcode.GETATTR | Opcode.SETATTR:
            _mask_attr(memoryview(reply)[head + 16 :])
        case Opcode.STATX:
            _mask_statx(memoryview(reply)[head + 32 :])
        case Opcode.READDIRPLUS:
            at = head
            while at < len(reply):
                _mask_entry(memoryview(reply)[at:])
                (length,) = struct.unpack_from("=I", reply, at + 128 + 16)
                at += (152 + length + 7) & ~7
        case _:
            pass
    return bytes(reply)


def _mask_entry(entry: memoryview) -> None:
    entry[_GENERATION] = bytes(8)
    _mask_attr(entry[40 : 40 + _ATTR_BYTES])


def _mask_attr(attr: memoryview) -> None:
    (mode,) = struct.unpack_from("=I", attr, _MODE_AT)
    attr[_TIMES] = bytes(36)
    attr[_BLOCKS] = bytes(8)
    attr[_BLKSIZE] = bytes(4)
    if mode & 0o170000 == 0o040000:
        attr[_SIZE] = bytes(8)


def _mask_statx(attr: memoryview) -> None:
    attr[_STATX_BLKSIZE], attr[_STATX_BLOCKS] = bytes(4), bytes(8)
    attr[_STATX_TIMES] = bytes(64)


def recording() -> None:
    """The program, with a record of what it reads and writes at the device."""
    from fusejournal.cli.main import main as command_line

    file = open(os.environ[_RECORD], "w", encoding="ascii", buffering=1)  # noqa: SIM115
    serve, send = RequestLoop._serve, RequestLoop._send

    def serving(self: RequestLoop, data: Any) -> None:
        file.write(f"request {bytes(data).hex()}\n")
        serve(self, data)

    def sending(self: RequestLoop, number: int, refusal: int, body: bytes) -> None:
        head = OUT_HEADER.pack(OUT_HEADER.size + len(body), -refusal, number)
        file.write(f"reply {(head + body).hex()}\n")
        send(self, number, refusal, body)

    RequestLoop._serve = serving  # type: ignore[method-assign]
    RequestLoop._send = sending  # type: ignore[method-assign]
    command_line()


def _live(tree: Path) -> None:
    """Have the kernel ask for everything that it can ask for."""
    os.umask(0o027)
    (tree / "directory").mkdir(0o2775)
    file = tree / "directory" / "file"
    fd = os.open(file, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o664)
    os.write(fd, b"content" * 100)
    os.pread(fd, 100, 7)
    os.fsync(fd)
    os.fdatasync(fd)
    os.ftruncate(fd, 10)
    for flags in (0, FALLOC_PUNCH_HOLE | FALLOC_KEEP_SIZE):
        calls.fallocate("recorded", fd, 5, 4096, flags)
    os.lseek(fd, 0, os.SEEK_DATA)
    with suppress(OSError):
        os.lseek(fd, 10, os.SEEK_HOLE)
    syscalls.birth_time(fd)
    os.copy_file_range(fd, fd, 5, 0, 4096)
    with suppress(OSError):
        fcntl.ioctl(fd, FS_IOC_SETFLAGS, struct.pack("I", 1 << 28))  # no flag of any file system
    unnamed = os.open(tree / "directory", os.O_TMPFILE | os.O_RDWR, 0o640)
    os.write(unnamed, b"unnamed")
    here = syscalls.AT_FDCWD
    for name in ("named", "named"):
        with suppress(FileExistsError):
            syscalls.link(unnamed, here, os.fsencode(tree / "directory" / name))
    os.close(unnamed)
    os.close(fd)
    file.read_bytes()
    assert not (tree / "absent").exists()
    os.mkfifo(tree / "fifo", 0o620)
    os.mknod(tree / "device", 0o020640, os.makedev(711, 300_000))
    os.symlink("a/target", tree / "symlink")
    os.readlink(tree / "symlink")
    os.link(file, tree / "link")
    os.chmod(file, 0o4751)
    os.chown(file, 1000, 100)
    os.utime(file, ns=(-(10**18) - 1, 1_700_000_000_123_456_789))
    os.utime(tree / "fifo")
    os.truncate(file, 3)
    os.setxattr(file, "user.name", b"va\0lue")
    for flags in (os.XATTR_CREATE, os.XATTR_REPLACE):
        with suppress(OSError):
            os.setxattr(file, "user.name", b"another", flags)
        with suppress(OSError):
            os.setxattr(file, f"user.flag{flags}", b"", flags)
    os.listxattr(file)
    os.getxattr(file, "user.name")
    os.removexattr(file, "user.name")
    with suppress(OSError):
        os.getxattr(file, "user.name")
    with open(file, "r+b", buffering=0) as opened:
        opened.write(bytes(9000))
    os.close(os.open(file, os.O_WRONLY | os.O_TRUNC))
    os.rename(tree / "fifo", tree / "directory" / "fifo")
    os.rename(tree / "directory" / "fifo", tree / "symlink")
    for number in range(3):
        (tree / f"empty{number}").mkdir()
    top = os.open(tree, os.O_RDONLY | os.O_DIRECTORY)
    syscalls.rename(top, b"link", top, b"another", RENAME_NOREPLACE)
    syscalls.rename(top, b"another", top, b"empty0", RENAME_EXCHANGE)
    os.close(top)
    for name in ("empty0", "another", "x" * 255):
        with suppress(OSError):
            (tree / name).mkdir()
    for directory in (tree, tree / "directory"):
        with os.scandir(directory) as entries:
            for entry in entries:
                entry.stat(follow_symlinks=False)
    fd = os.open(tree / "directory", os.O_RDONLY | os.O_DIRECTORY)
    os.fsync(fd)
    os.close(fd)
    with suppress(OSError):
        (tree / "directory").rmdir()
    (tree / "empty1").rmdir()
    os.statvfs(tree)
    (tree / "device").unlink()


def main() -> None:
    """Record into the file that the command line names."""
    from tests.support.layer import Layer

    target = Path(sys.argv[1])
    with tempfile.TemporaryDirectory() as base, Layer(Path(base)) as layer:
        record = Path(base) / "record"
        layer.environment[_RECORD] = str(record)
        layer.program = "tests.support.recorded:recording"
        layer.start()
        _live(layer.mountpoint)
        layer.stop()
        lines = [line.split() for line in record.read_text().splitlines()]
    exchanges: dict[int, list[str]] = {}
    for kind, word in lines:
        data = bytes.fromhex(word)
        number = struct.unpack_from("=Q", data, 8)[0]  # at the same place in both headers
        if kind == "request":
            (opcode,) = struct.unpack_from("=I", data, 4)
            name = Opcode(opcode).name if opcode in Opcode.__members__.values() else str(opcode)
            exchanges[number] = [name, word, ""]
        else:
            exchanges[number][2] = word
    content = {"kernel": platform.release(), "exchanges": list(exchanges.values())}
    target.write_text(json.dumps(content, indent=0) + "\n")
    print(f"{target}: {len(exchanges)} requests")


if __name__ == "__main__":
    main()
