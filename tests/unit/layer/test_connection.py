"""What the kernel is told in answer to its greeting."""

import errno
import os
import socket
import struct
from contextlib import suppress
from pathlib import Path

import pytest

from fusejournal.layer.connection import Handshake, KernelConnection, _in_our_words

_AUTO_INVAL_DATA, _CACHE_SYMLINKS, _HANDLE_KILLPRIV_V2 = 1 << 12, 1 << 23, 1 << 28
_ASYNC_DIO = 1 << 15
_OTHERS = 1 << 0 | 1 << 13


def greeting(flags: int) -> bytes:
    """As struct fuse_in_header and fuse_init_in begin."""
    return bytes(40) + struct.pack("<IIII", 7, 38, 1 << 20, flags) + bytes(48)


def answer(flags: int) -> bytes:
    """As struct fuse_out_header and fuse_init_out are."""
    head = struct.pack("<IiQ", 80, 0, 2)
    return head + struct.pack("<IIII", 7, 31, 1 << 20, flags) + bytes(range(48))


@pytest.mark.parametrize(
    ("offered", "changes_alone", "flags"),
    [
        (_HANDLE_KILLPRIV_V2 | _CACHE_SYMLINKS, True, _HANDLE_KILLPRIV_V2 | _CACHE_SYMLINKS),
        (_HANDLE_KILLPRIV_V2, False, _HANDLE_KILLPRIV_V2 | _AUTO_INVAL_DATA | _ASYNC_DIO),
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
    assert answered == [(16, -errno.EAGAIN, number) for number in range(18, 0, -2)]


def test_a_refusal_is_passed_on() -> None:
    refusal = struct.pack("<IiQ", 16, -71, 2)
    assert _in_our_words(refusal, greeting(_HANDLE_KILLPRIV_V2), True) == refusal


def test_an_earlier_answer_that_promises_less_will_do() -> None:
    """But where a mirror's pages would stay that are to be dropped, it will not."""
    init = greeting(_HANDLE_KILLPRIV_V2 | _CACHE_SYMLINKS)
    earlier = answer(_OTHERS | _AUTO_INVAL_DATA)
    for changes_alone in (True, False):
        now = _in_our_words(answer(_OTHERS | _AUTO_INVAL_DATA), init, changes_alone)
        assert _in_our_words(earlier, init, changes_alone) == now
    of_a_primary = _in_our_words(earlier, init, True)
    now = _in_our_words(answer(_OTHERS | _AUTO_INVAL_DATA), init, False)
    assert _in_our_words(of_a_primary, init, False) != now
