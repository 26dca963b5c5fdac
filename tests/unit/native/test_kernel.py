"""The functions that are written in C, beside what Python says of the same files."""

import errno
import fcntl
import os
import signal
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from fusejournal.native import kernel
from fusejournal.types import ROOT_FID, TIME_MAX_NS, TIME_MIN_NS

_FIELDS = [name for name in dir(kernel.FileStat) if name.startswith("st_")]


def _told(stat: os.stat_result | kernel.FileStat) -> dict[str, int]:
    return {name: getattr(stat, name) for name in _FIELDS}


@pytest.fixture
def fd(tmp_path: Path) -> int:
    return os.open(tmp_path, os.O_RDONLY)


def test_a_stat_tells_what_pythons_tells(tmp_path: Path, fd: int) -> None:
    assert len(_FIELDS) == 13
    (tmp_path / "file").write_bytes(b"four")
    (tmp_path / "link").symlink_to("nowhere")
    for name in ("file", "link"):
        assert _told(kernel.stat(fd, name.encode())) == _told(os.lstat(tmp_path / name))
    assert _told(kernel.stat(fd)) == _told(os.stat(tmp_path))
    with pytest.raises(FileNotFoundError):
        kernel.stat(fd, b"absent")
    with pytest.raises(OSError, match="Bad file descriptor"):
        kernel.stat(-1)
    with pytest.raises(ValueError, match="null byte"):
        kernel.stat(fd, b"a\0b")
    os.close(fd)


def test_what_exists(tmp_path: Path, fd: int) -> None:
    (tmp_path / "link").symlink_to("nowhere")
    assert kernel.exists(fd, b"link")
    assert not kernel.exists(fd, b"absent")
    with pytest.raises(OSError, match="too long"):
        kernel.exists(fd, b"n" * 256)
    os.close(fd)


@pytest.mark.parametrize(
    "time_ns", [0, -1, 1, -(10**9), 10**18 + 1, 2**63 - 1, 2**63, TIME_MIN_NS, TIME_MAX_NS]
)
def test_times_of_more_than_64_bits(tmp_path: Path, time_ns: int) -> None:
    """Every backing holds them: the directory for temporary files does."""
    path = tmp_path / "file"
    path.touch()
    fd = os.open(path, os.O_RDONLY)
    link = tmp_path / "link"
    link.symlink_to("nowhere")
    to_link = os.open(link, os.O_PATH | os.O_NOFOLLOW)
    for one, where in ((fd, path), (to_link, link)):
        kernel.set_times(one, 7, time_ns)
        kernel.set_times(one, None, None)
        assert os.lstat(where).st_mtime_ns == kernel.stat(one).st_mtime_ns == time_ns
        kernel.set_times(one, time_ns, None)
        assert os.lstat(where).st_atime_ns == kernel.stat(one).st_atime_ns == time_ns
        os.close(one)


@pytest.mark.parametrize("time_ns", [-(2**63), -(2**63) + 1, -(2**63) - 1, -(10**9) - 1, 2**63])
def test_times_are_rounded_down(fd: int, time_ns: int) -> None:
    """Those that fit 64 bits barely, too."""
    reply = kernel.encode_attributes(ROOT_FID, kernel.stat(fd), time_ns, 1, 1)
    (ctime,) = struct.unpack_from("=q", reply, 16 + 40)
    (part_ns,) = struct.unpack_from("=I", reply, 16 + 56)
    assert (ctime, part_ns) == divmod(time_ns, 10**9)
    os.close(fd)


class _Raised(Exception):
    pass


@contextmanager
def _interrupted(handler: Callable[[], object]) -> Iterator[None]:
    """Has *handler* handle the signal that tells of a lease to be given back."""
    before = signal.signal(signal.SIGIO, lambda *_: handler())
    try:
        yield
    finally:
        signal.signal(signal.SIGIO, before)


def test_what_a_signal_interrupts_is_done_all_the_same(tmp_path: Path, fd: int) -> None:
    """Opening a file waits until who has a lease of it gives that back."""
    held = os.open(tmp_path / "file", os.O_RDWR | os.O_CREAT)
    handle = kernel.handle_of(held)

    def give_back() -> None:
        fcntl.fcntl(held, fcntl.F_SETLEASE, fcntl.F_UNLCK)

    def give_back_and_raise() -> None:
        give_back()
        raise _Raised

    fcntl.fcntl(held, fcntl.F_SETLEASE, fcntl.F_WRLCK)
    with _interrupted(give_back):
        os.close(kernel.open_by_handle(fd, handle, os.O_RDONLY))
    fcntl.fcntl(held, fcntl.F_SETLEASE, fcntl.F_WRLCK)
    with _interrupted(give_back_and_raise), pytest.raises(_Raised):
        kernel.open_by_handle(fd, handle, os.O_RDONLY)
    os.close(held)
    os.close(fd)


def test_what_no_kernel_takes_is_refused_before(fd: int) -> None:
    for number in (2**31, -(2**31) - 1):
        with pytest.raises(OverflowError):
            kernel.stat(number)
    with pytest.raises(OverflowError):
        kernel.set_times(fd, None, 2**94)
    with pytest.raises(OverflowError):
        kernel.chown(fd, 2**32, 0)
    with pytest.raises(OverflowError):
        kernel.chown(fd, 0, -1)
    with pytest.raises(TypeError):
        kernel.stat(fd, b"a", b"b")  # type: ignore[call-arg]
    with pytest.raises(TypeError):
        kernel.rename(fd, "text", fd, b"b", 0)  # type: ignore[arg-type]
    with pytest.raises(TypeError):
        kernel.encode_attributes(1, os.stat("/"), 0, 1, 1)  # type: ignore[arg-type]
    for handle in (b"", b"abc", bytes(200)):
        with pytest.raises(OSError, match="Invalid argument"):
            kernel.open_by_handle(fd, handle, os.O_RDONLY)
    os.close(fd)


@pytest.mark.parametrize("spin_ns", [0, 1_000_000])
def test_a_request_is_read_and_a_reply_written(spin_ns: int) -> None:
    """From pipes, in the device's place."""
    device, kernels = os.pipe()
    events, event = os.pipe()
    buffer = bytearray(64)
    assert kernel.read_request(device, events, 0, spin_ns, buffer) == 0
    assert kernel.read_request(device, events, 2_000_000, spin_ns, buffer) == 0
    os.write(event, b"x")
    assert kernel.read_request(device, events, 10**12, spin_ns, buffer) == 1
    os.write(kernels, b"request")
    assert kernel.read_request(device, events, 10**12, spin_ns, buffer) == 2 * 7 + 1
    assert buffer[:7] == b"request"
    kernel.write_reply(kernels, 2**63 + 5, 0, b"body")
    kernel.write_reply(kernels, 6, errno.ENOENT)
    assert os.read(device, 64) == b"".join(
        (
            (20).to_bytes(4, "little") + bytes(4) + (2**63 + 5).to_bytes(8, "little") + b"body",
            (16).to_bytes(4, "little") + (-2).to_bytes(4, "little", signed=True),
            (6).to_bytes(8, "little"),
        )
    )
    for one in (device, kernels, events, event):
        os.close(one)
    with pytest.raises(OSError, match="Bad file descriptor"):
        kernel.write_reply(device, 1, 0)
