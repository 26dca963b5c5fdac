"""The answer to the kernel's greeting, and the record of the connection."""

import errno
import json
import os
import socket
import struct
import subprocess
import time
from contextlib import suppress
from pathlib import Path

import pytest

from fusejournal.disk.process import python_module
from fusejournal.layer.connection import (
    KernelConnection,
    _started,
    check_held,
    is_held,
    release_kept,
    take_over,
)
from fusejournal.layer.handshake import TRY_AGAIN, Handshake, _in_our_words
from fusejournal.layer.kernel_protocol import HANDLE_KILLPRIV_V2

_AUTO_INVAL_DATA, _CACHE_SYMLINKS = 1 << 12, 1 << 23
_ASYNC_DIO = 1 << 15
_OTHERS = 1 << 0 | 1 << 13


def greeting(flags: int) -> bytes:
    """A greeting, as struct fuse_in_header and fuse_init_in begin."""
    return bytes(40) + struct.pack("<IIII", 7, 38, 1 << 20, flags) + bytes(48)


def answer(flags: int) -> bytes:
    """An answer, as struct fuse_out_header and fuse_init_out are."""
    head = struct.pack("<IiQ", 80, 0, 2)
    return head + struct.pack("<IIII", 7, 31, 1 << 20, flags) + bytes(range(48))


@pytest.mark.parametrize(
    ("offered", "changes_alone", "flags"),
    [
        (HANDLE_KILLPRIV_V2 | _CACHE_SYMLINKS, True, HANDLE_KILLPRIV_V2 | _CACHE_SYMLINKS),
        (HANDLE_KILLPRIV_V2, False, HANDLE_KILLPRIV_V2 | _AUTO_INVAL_DATA | _ASYNC_DIO),
        (0, True, 0),
        (0, False, _AUTO_INVAL_DATA | _ASYNC_DIO),
    ],
)
def test_only_what_the_kernel_offers_is_promised(
    offered: int, changes_alone: bool, flags: int
) -> None:
    reply = answer(_OTHERS | _AUTO_INVAL_DATA | _ASYNC_DIO)
    said = _in_our_words(reply, greeting(offered | _OTHERS), changes_alone)
    assert said == answer(_OTHERS | flags)


def test_requests_that_died_are_answered_though_one_is_taken_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The request that woke the layer was interrupted before it was read."""
    kernel, fd = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    request = struct.pack("<IIQ", 40, 17, 20) + bytes(24)
    kernel.send(request)
    read = os.read
    turns: list[int] = []

    def interrupted(fd: int, size: int) -> bytes:
        turns.append(size)
        if len(turns) == 1:
            raise BlockingIOError(errno.EAGAIN, "taken back")
        return read(fd, size)

    connection = KernelConnection(fd.fileno(), -1, -1, "", greeting(0), answer(0), taken_over=True)
    handshake = Handshake(connection, tmp_path, changes_alone=True)
    try:
        monkeypatch.setattr(os, "read", interrupted)
        assert handshake._first_request() == request
        kernel.setblocking(False)
        answered = []
        with suppress(BlockingIOError):
            while True:
                answered.append(struct.unpack("<IiQ", kernel.recv(64)))
    finally:
        os.close(handshake.fd)
        handshake._ours.close()
        kernel.close()
        fd.close()
    assert answered == [(16, -TRY_AGAIN, number) for number in range(18, 0, -2)]


def test_a_refusal_is_passed_on() -> None:
    refusal = struct.pack("<IiQ", 16, -71, 2)
    assert _in_our_words(refusal, greeting(HANDLE_KILLPRIV_V2), True) == refusal


def test_an_earlier_answer_that_promises_less_will_do() -> None:
    """But where a mirror's pages would stay that are to be dropped, it will not."""
    init = greeting(HANDLE_KILLPRIV_V2 | _CACHE_SYMLINKS)
    earlier = answer(_OTHERS | _AUTO_INVAL_DATA)
    for changes_alone in (True, False):
        now = _in_our_words(answer(_OTHERS | _AUTO_INVAL_DATA), init, changes_alone)
        assert _in_our_words(earlier, init, changes_alone) == now
    of_a_primary = _in_our_words(earlier, init, True)
    now = _in_our_words(answer(_OTHERS | _AUTO_INVAL_DATA), init, False)
    assert _in_our_words(of_a_primary, init, False) != now


_SPOILT: tuple[object, ...] = (
    None,
    [],
    {},
    "x",
    7,
    -1,
    1 << 70,
    1.5,
    float("inf"),
    float("nan"),
    True,
    ["x"],
)


@pytest.mark.parametrize(
    "key", [None, *["pid", "started", "fd", "root_fd", "table_fd", "device", "init", "reply"]]
)
def test_spoilt_record_of_a_holder_is_none(tmp_path: Path, key: str | None) -> None:
    """No process is taken for the holder by it, and none ends of it."""
    watched, life = os.pipe()
    command = python_module("fusejournal.layer.connection_holder", "0", str(watched), "1")
    holder = subprocess.Popen(command, pass_fds=(watched,), stdin=subprocess.DEVNULL)
    record = tmp_path / "connection"
    told = {
        "pid": holder.pid,
        "started": _started(holder.pid),
        **dict.fromkeys(("fd", "root_fd", "table_fd"), 0),
        "device": "0:1",
        "init": "00",
        "reply": "00",
        "backing": str(tmp_path),
        "mountpoint": str(tmp_path),
    }
    try:
        record.write_text(json.dumps(told))
        deadline = time.monotonic() + 20
        while not is_held(record):
            assert time.monotonic() < deadline
            time.sleep(0.01)
        spoilt = [json.dumps(value if key is None else {**told, key: value}) for value in _SPOILT]
        nested = "[" * 100_000
        for text in (*spoilt, *(() if key else ("", "\0", nested, json.dumps(told)[:-9]))):
            record.write_text(text)
            assert take_over(record, tmp_path) is None
            check_held(record, "volume", tmp_path, tmp_path)
        for place in ("backing", "mountpoint"):
            for value in _SPOILT:
                record.write_text(json.dumps({**told, place: value}))
                assert take_over(record, tmp_path) is None
                check_held(record, "volume", tmp_path, tmp_path)
        record.write_bytes(b"\xff\xfe")
        release_kept(record)
        assert holder.poll() is None
    finally:
        holder.kill()
        holder.wait()
        os.close(watched)
        os.close(life)
