"""Promises to the kernel, in the greeting and in each answer, and that they are kept: what it then
remembers by itself is what the layer would say.

Every promise is here with a test that fails where it is kept wrongly."""

import ctypes
import importlib
import json
import mmap
import os
import struct
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from fusejournal.disk import syscalls
from tests.support.aio import DirectWriter
from tests.support.layer import Layer

pytestmark = pytest.mark.mount

_BLOCK = 4096
_RENAME_EXCHANGE = 2

# By bit of the reply's flags (include/uapi/linux/fuse.h).
PROMISES = {
    0: "test_promises:test_long_reads_and_writes",  # ASYNC_READ
    3: "test_promises:test_pages_are_those_of_the_file",  # ATOMIC_O_TRUNC
    4: "test_handles:test_handles_outlive",  # EXPORT_SUPPORT
    5: "test_promises:test_long_reads_and_writes",  # BIG_WRITES
    13: "test_promises:test_attributes_are_those_of_the_layer",  # DO_READDIRPLUS
    20: "test_permissions:test_acl_and_mode_go_together",  # POSIX_ACL
    22: "test_promises:test_long_reads_and_writes",  # MAX_PAGES
    23: "test_semantics:test_symlink_is_read_from_memory",  # CACHE_SYMLINKS
    28: "test_permissions:test_privileges_are_cleared",  # HANDLE_KILLPRIV_V2
    30: "test_promises:test_every_promise_is_known",  # INIT_EXT: how it is said
}
_NOT_PROMISED = {
    12: "AUTO_INVAL_DATA: test_semantics:test_what_was_written_is_read_from_memory",
    15: "ASYNC_DIO: test_promises:test_direct_writes_beside_buffered_readers",
    18: "PARALLEL_DIROPS",
    16: "WRITEBACK_CACHE",
}


@pytest.fixture
def root(live: Layer) -> Path:
    """The mounted tree of a live volume."""
    return live.mountpoint


def test_every_promise_is_known(root: Path, layer: Layer) -> None:
    """Another libfuse may promise more, which then needs a test."""
    layer.stop()
    layer.export_to_nobody()  # so that what was said is written down
    layer.start()
    reply = bytes.fromhex(json.loads((layer.state / "connection").read_text())["reply"])
    (flags,) = struct.unpack_from("<I", reply, 28)
    promised = {bit for bit in range(32) if flags >> bit & 1}
    assert promised <= PROMISES.keys()
    assert not promised & _NOT_PROMISED.keys()
    for place in PROMISES.values():
        module, _, name = place.partition(":")
        assert hasattr(importlib.import_module(f"tests.e2e.{module}"), name)


# -- content: keep_cache at open, ATOMIC_O_TRUNC, no AUTO_INVAL_DATA, no ASYNC_DIO ----------------


def read_all_the_time(path: Path, blocks: int, stop: threading.Event) -> None:
    fd = os.open(path, os.O_RDONLY)
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_RANDOM)  # each block is a request
    while not stop.is_set():
        for number in reversed(range(blocks)):
            os.pread(fd, _BLOCK, number * _BLOCK)
    os.close(fd)


def test_direct_writes_beside_buffered_readers(root: Path) -> None:
    """A block that is read while it is written, asynchronously and past the kernel's pages, is not
    old for good."""
    path, blocks = root / "file", 64
    path.write_bytes(bytes(blocks * _BLOCK))
    stop = threading.Event()
    readers = [
        threading.Thread(target=read_all_the_time, args=(path, blocks, stop)) for _ in range(2)
    ]
    fd = os.open(path, os.O_RDWR | os.O_DIRECT)
    for reader in readers:
        reader.start()
    old = []
    try:
        with DirectWriter(blocks, _BLOCK) as writer:
            for turn in range(1, 31):
                content = bytes([turn]) * _BLOCK
                writer.write(fd, [(number * _BLOCK, content) for number in range(blocks)])
                old += [turn for number in path.read_bytes()[::_BLOCK] if number != turn]
    finally:
        stop.set()
        for reader in readers:
            reader.join()
        os.close(fd)
    assert old == []


def _write_directly(path: Path) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_DIRECT)
    with mmap.mmap(-1, _BLOCK) as page:
        page[:] = b"d" * _BLOCK
        os.pwrite(fd, page, _BLOCK)
    os.close(fd)


def _write_asynchronously(path: Path) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_DIRECT)
    with DirectWriter(2, _BLOCK) as writer:
        writer.write(fd, [(0, b"a" * _BLOCK), (_BLOCK, b"b" * _BLOCK)])
    os.close(fd)


def _write_mapped(path: Path) -> None:
    with open(path, "r+b") as file, mmap.mmap(file.fileno(), 0) as pages:
        pages[_BLOCK - 2 : _BLOCK + 2] = b"here"


def _write_and_set_back(path: Path) -> None:
    before = path.stat()
    _write_asynchronously(path)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def _shorten_and_lengthen(path: Path) -> None:
    os.truncate(path, _BLOCK + 10)
    os.truncate(path, 3 * _BLOCK)


def _shorten_at_open(path: Path) -> None:
    os.close(os.open(path, os.O_WRONLY | os.O_TRUNC))


def _replace(path: Path) -> None:
    other = path.with_name("other")
    other.write_bytes(b"o" * 3 * _BLOCK)
    other.read_bytes()
    syscalls.rename(-100, os.fsencode(other), -100, os.fsencode(path), _RENAME_EXCHANGE)


@pytest.mark.parametrize(
    "change",
    [
        lambda path: path.write_bytes(b"w" * _BLOCK),
        _write_directly,
        _write_asynchronously,
        _write_mapped,
        _write_and_set_back,
        _shorten_and_lengthen,
        _shorten_at_open,
        _replace,
    ],
)
def test_pages_are_those_of_the_file(
    root: Path, layer: Layer, change: Callable[[Path], None]
) -> None:
    """Those that the kernel keeps when a file is opened anew, too."""
    path = root / "file"
    path.write_bytes(os.urandom(3 * _BLOCK))
    assert path.read_bytes() == (layer.backing / "file").read_bytes()
    with open(path, "rb") as early:
        change(path)
        assert path.read_bytes() == (layer.backing / "file").read_bytes()
        name = "other" if (root / "other").exists() else "file"
        assert early.read() == (layer.backing / name).read_bytes()


def test_long_reads_and_writes(root: Path, layer: Layer) -> None:
    """Reads and writes of as much as one request takes, and of more."""
    content = os.urandom((3 << 20) + 123)
    fd = os.open(root / "file", os.O_RDWR | os.O_CREAT)
    try:
        assert os.pwrite(fd, content, 777) == len(content)
        with open(layer.backing / "file", "rb") as behind:
            assert behind.read() == bytes(777) + content
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        assert os.pread(fd, len(content) + 9999, 777) == content
        assert os.pread(fd, 1 << 20, (1 << 20) + 1) == content[(1 << 20) - 776 :][: 1 << 20]
    finally:
        os.close(fd)
    written = [e["bytes"] for e in layer.entries() if e["op"] == "write"]
    assert max(written) == 1 << 20


# -- names and attributes: entry_timeout, attr_timeout, READDIRPLUS -------------------------------

_AT_FDCWD, _AT_SYMLINK_NOFOLLOW = -100, 0x100
_STATX_BASIC_STATS = 0x7FF
_AS_REMEMBERED, _ASKED_ANEW = 0x4000, 0x2000
_STATX = struct.Struct("<8xQ II I H 2x Q Q Q 8x 16x 16x 16s 16s")

_libc = ctypes.CDLL(None, use_errno=True)


def attributes(path: Path, how: int) -> tuple[object, ...]:
    """The attributes of *path* that the kernel remembers, or asks the layer for. Source:
    statx(2)."""
    buffer = ctypes.create_string_buffer(256)
    if _libc.statx(
        _AT_FDCWD, os.fsencode(path), _AT_SYMLINK_NOFOLLOW | how, _STATX_BASIC_STATS, buffer
    ):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), str(path))
    _, *found = _STATX.unpack_from(buffer)
    return tuple(found)


_NAMES = ("dir", "dir/sub", "dir/file", "dir/linked", "dir/new", "other", "other/linked", "link")


def _make_all(root: Path) -> None:
    for name in ("dir", "dir/sub", "other"):
        (root / name).mkdir()
    (root / "dir/file").write_bytes(b"content")
    (root / "dir/linked").write_bytes(b"content")
    os.link(root / "dir/linked", root / "other/linked")
    os.symlink("dir", root / "link")


def _write_to_it(root: Path) -> None:
    with open(root / "dir/file", "ab") as file:
        file.write(b"more")


def _set_an_acl(root: Path) -> None:
    acl = struct.pack("<I", 2) + b"".join(
        struct.pack("<HHI", *entry)
        for entry in ((1, 6, 0xFFFFFFFF), (2, 4, 1000), (4, 4, 0xFFFFFFFF), (16, 6, 0xFFFFFFFF),
                      (32, 0, 0xFFFFFFFF))
    )  # fmt: skip
    os.setxattr(root / "dir/file", "system.posix_acl_access", acl)


def _exchange(root: Path) -> None:
    paths = (os.fsencode(root / "dir/file"), os.fsencode(root / "dir/sub"))
    syscalls.rename(_AT_FDCWD, paths[0], _AT_FDCWD, paths[1], _RENAME_EXCHANGE)


def _be_refused(root: Path) -> None:
    for attempt in (
        lambda: os.rename(root / "dir/file", root / "other"),
        lambda: os.rmdir(root / "dir"),
        lambda: os.link(root / "dir/file", root / "dir/sub"),
        lambda: os.mkdir(root / "dir/sub"),
    ):
        with pytest.raises(OSError):  # noqa: PT011
            attempt()


CHANGES: list[Callable[[Path], object]] = [
    _write_to_it,
    _set_an_acl,
    _exchange,
    _be_refused,
    lambda root: os.truncate(root / "dir/file", 3),
    lambda root: _write_directly(root / "dir/file"),
    lambda root: _write_mapped_short(root / "dir/file"),
    lambda root: os.close(os.open(root / "dir/file", os.O_WRONLY | os.O_TRUNC)),
    lambda root: os.chmod(root / "dir/file", 0o4755),
    lambda root: os.chown(root / "dir/linked", 1, 1),
    lambda root: os.utime(root / "dir/file", ns=(1, 10**18 + 1)),
    lambda root: os.setxattr(root / "dir/file", "user.a", b"b"),
    lambda root: os.unlink(root / "dir/linked"),
    lambda root: os.unlink(root / "link"),
    lambda root: os.rmdir(root / "dir/sub"),
    lambda root: os.link(root / "dir/file", root / "dir/new"),
    lambda root: os.mkdir(root / "dir/new"),
    lambda root: os.mkfifo(root / "dir/new"),
    lambda root: os.symlink("x", root / "dir/new"),
    lambda root: (root / "dir/new").write_bytes(b"new"),
    lambda root: os.rename(root / "dir/file", root / "dir/new"),
    lambda root: os.rename(root / "dir/file", root / "dir/linked"),
    lambda root: os.rename(root / "dir/linked", root / "other/linked"),
    lambda root: os.rename(root / "dir/sub", root / "other/sub"),
    lambda root: os.rename(root / "dir", root / "other/dir"),
]


def _write_mapped_short(path: Path) -> None:
    with open(path, "r+b") as file, mmap.mmap(file.fileno(), 0) as pages:
        pages[:4] = b"here"
        pages.flush()


def test_attributes_are_those_of_the_layer(root: Path, layer: Layer) -> None:
    """After every kind of change: those of what was changed, of its directories, and of what has
    another name; and names are those of the backing."""
    for number, change in enumerate(CHANGES):
        base = root / f"{number}"
        base.mkdir()
        _make_all(base)
        for directory, _, names in os.walk(base):  # which asks for attributes with the names
            for name in names:
                os.lstat(os.path.join(directory, name))
        for name in (*_NAMES, "other/dir", "other/sub", "other/dir/file"):
            os.path.lexists(base / name)  # and for those that are not there
        change(base)
        seen = 0
        for name in (".", *_NAMES, "other/dir", "other/sub", "other/dir/file"):
            path, behind = base / name, layer.backing / f"{number}" / name
            assert os.path.lexists(path) == os.path.lexists(behind), (number, name)
            if not os.path.lexists(path):
                continue
            seen += 1
            kernel_cache = attributes(path, _AS_REMEMBERED)
            assert kernel_cache == attributes(path, _ASKED_ANEW), (number, name)
        assert seen > 4
