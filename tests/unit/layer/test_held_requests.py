"""Requests that are held, and those of a kernel that remembers names wrongly."""

import errno
import struct

import pytest
import trio

from fusejournal.layer import interrupts, request_loop
from fusejournal.layer.handshake import TRY_AGAIN
from fusejournal.layer.kernel_protocol import Opcode
from fusejournal.volume.volume import EHELD
from tests.support.loop_kernel import ask_directory, request, serving


@pytest.mark.parametrize("waits_first", [False, True])
@pytest.mark.parametrize("end", [None, errno.EROFS])
async def test_a_change_that_is_held_is_done_later_or_refused(
    waits_first: bool, end: int | None
) -> None:
    """Others are served meanwhile, and it may be held once more."""
    async with serving() as kernel:
        calls = kernel.calls
        calls.write_errno, calls.waits_first = EHELD, waits_first
        for number in (1, 2):
            ask_directory(kernel, number, b"x" * 600 * (number - 1) + b"%d" % number)
        kernel.ask(Opcode.STATFS, 3)
        assert await kernel.reply() == (3, 0, b"7 by 1000")
        kernel.loop.serve_held()
        kernel.ask(Opcode.STATFS, 4)
        assert await kernel.reply() == (4, 0, b"7 by 1000")
        assert calls.served == 2
        calls.write_errno = end
        kernel.loop.serve_held()
        replies = sorted([await kernel.reply(), await kernel.reply()])
        if end is None:
            assert replies == [(1, 0, b"made 1"), (2, 0, b"made " + b"x" * 600 + b"2")]
        else:
            assert replies == [(1, end, b""), (2, end, b"")]


async def test_a_caller_that_dies_while_it_is_held_is_let_go(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(interrupts, "is_dying", lambda thread: thread == 4242)
    async with serving() as kernel:
        kernel.calls.write_errno = EHELD
        ask_directory(kernel, 1, b"one")
        kernel.ask(Opcode.INTERRUPT, 2, struct.pack("=Q", 1))
        assert await kernel.reply() == (1, errno.EINTR, b"")
        assert kernel.calls.served == 0


async def test_only_so_much_is_held(monkeypatch: pytest.MonkeyPatch) -> None:
    """Then nothing more is read, until it is let go."""
    monkeypatch.setattr(request_loop, "_HELD_BYTES_MAX", 100)
    async with serving() as kernel:
        kernel.calls.write_errno = EHELD
        ask_directory(kernel, 1, b"x" * 200)
        kernel.ask(Opcode.STATFS, 2)
        with trio.move_on_after(0.05) as waiting:
            await kernel.reply()
        assert waiting.cancelled_caught
        kernel.calls.write_errno = None
        kernel.loop.serve_held()
        assert {(await kernel.reply())[0] for _ in range(2)} == {1, 2}


@pytest.mark.parametrize("waits_first", [False, True])
@pytest.mark.parametrize(
    "refusal", [errno.EEXIST, errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ENOSPC]
)
async def test_who_asks_by_a_wrong_name_is_to_try_again(refusal: int, waits_first: bool) -> None:
    """Until the kernel, whose layer died before it answered, has forgotten such names."""
    async with serving(request(Opcode.STATFS, 2)) as kernel:
        assert await kernel.reply() == (2, 0, b"7 by 1000")
        kernel.calls.write_errno, kernel.calls.waits_first = refusal, waits_first
        ask_directory(kernel, 4, b"one")
        wanted = refusal if refusal == errno.ENOSPC else TRY_AGAIN
        assert await kernel.reply() == (4, wanted, b"")
        kernel.loop.note_forgotten()
        ask_directory(kernel, 6, b"one")
        assert await kernel.reply() == (6, refusal, b"")


async def test_who_asks_a_new_layer_is_refused_at_once() -> None:
    async with serving() as kernel:
        kernel.calls.write_errno = errno.EEXIST
        ask_directory(kernel, 2, b"one")
        assert await kernel.reply() == (2, errno.EEXIST, b"")
