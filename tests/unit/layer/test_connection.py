"""What the kernel is told in answer to its greeting."""

import struct

import pytest

from fusejournal.layer.connection import _in_our_words

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
