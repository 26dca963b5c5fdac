"""Errors out of calls, and replies that wait."""

import errno
import inspect
import logging
import os
from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import trio
import trio.testing
from pyfuse3 import FUSEError

from fusejournal.disk import failpoints
from fusejournal.errors import FusejournalError
from fusejournal.layer.handlers import Handlers
from fusejournal.layer.interrupts import WaitingRequest
from fusejournal.layer.kernel_protocol import (
    HANDLE_KILLPRIV_V2,
    SETXATTR_EXT,
    MalformedRequestError,
    request_kinds,
)
from fusejournal.layer.replies import ReplyWaits, awaited, errno_of, take_all
from fusejournal.types import Seq
from tests.support.volumes import OpenVolume, open_volume


@pytest.mark.parametrize(
    ("error", "number", "words"),
    [
        (OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), errno.ENOSPC, ""),
        (OSError("without a number"), errno.EIO, ""),
        (FUSEError(errno.ESTALE), errno.ESTALE, ""),
        (OSError(511, "the last that the kernel takes"), 511, ""),
        (OSError(512, "none of a caller's"), errno.EIO, ""),
        (OSError(524, "ENOTSUPP, out of the kernel"), errno.EIO, ""),
        (OSError(-1, "no error"), errno.EIO, ""),
        (FUSEError(524), errno.EIO, ""),
        (FusejournalError("planned"), errno.EIO, "refused: planned"),
        (MalformedRequestError("planned"), errno.EIO, "makes no sense: planned"),
        (ZeroDivisionError("planned"), errno.EIO, "on a bug"),
    ],
)
def test_every_error_is_an_errno(
    error: Exception, number: int, words: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        assert errno_of(error) == number
    assert words in caplog.text
    assert bool(caplog.text) == bool(words)
    caplog.clear()


@pytest.mark.parametrize("init_flags", [0, SETXATTR_EXT | HANDLE_KILLPRIV_V2])
def test_each_request_has_its_call(init_flags: int) -> None:
    """With as many arguments as its decoder makes."""
    for kind in request_kinds(init_flags).values():
        made = inspect.get_annotations(kind.decode)["return"]
        # (Compiled, a decoder that may raise cannot be said to return an empty tuple.)
        count = 0 if made in (tuple[()], tuple[Any, ...]) else len(made.__args__)
        taken = inspect.signature(getattr(Handlers, kind.call)).parameters
        assert len(taken) == 3 + count, kind.call


class _Full:
    """Mirrors that do not answer: there is no place to wait in."""

    def try_enter(self, uid: int) -> bool:
        return False

    async def enter(self, uid: int) -> None:
        raise OSError(errno.EAGAIN, os.strerror(errno.EAGAIN))


def _steps(taken: list[int], count: int) -> Iterator[None]:
    for number in range(count):
        taken.append(number)
        yield


async def test_a_change_in_pieces_that_is_refused_a_place_is_not_begun() -> None:
    taken: list[int] = []
    durability: Any = SimpleNamespace(hooks=SimpleNamespace(quorum=_Full()))
    waits = ReplyWaits(durability, lambda: Seq(1))
    with pytest.raises(OSError, match="temporarily"):
        await waits.change_in_pieces(1000, _steps(taken, 3), lambda: b"")
    assert not taken


async def test_others_are_served_between_the_pieces_of_a_caller_that_dies() -> None:
    taken: list[int] = []
    seen: list[int] = []
    request = WaitingRequest(0)

    async def look() -> None:
        while len(taken) < 20:
            seen.append(len(taken))
            if request._may_end:
                request._scope.cancel()  # as watch() does for a caller that dies
            await trio.lowlevel.checkpoint()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(look)
        with suppress(InterruptedError):
            await request.outcome(take_all(_steps(taken, 20)))
    assert taken == list(range(20))
    assert len(set(seen)) > 5


def _refused(opened: OpenVolume) -> bytes:
    failpoints.listen(failpoints.PlannedFault("apply.write", 1, "EDQUOT"))
    try:
        opened.create("file", b"data")
    finally:
        failpoints.listen(None)
    return b""


@pytest.mark.parametrize("in_pieces", [False, True])
async def test_a_refusal_waits_for_its_void(in_pieces: bool, tmp_path: Path) -> None:
    """Else a system crash could leave the entry alone, and the next start would carry it out."""
    with open_volume(tmp_path) as opened:
        journal, durability = opened.volume.journal, opened.durability
        waits = ReplyWaits(durability, lambda: journal.head_seq)

        def steps() -> Iterator[None]:
            _refused(opened)
            yield

        async with trio.open_nursery() as nursery:
            nursery.start_soon(durability.run)
            await trio.testing.wait_all_tasks_blocked()
            if in_pieces:
                change = waits.change_in_pieces(1000, steps(), lambda: b"")
            else:
                change = awaited(waits.change(1000, partial(_refused, opened)))
            with pytest.raises(OSError, match="quota"):
                await change
            assert journal.durable_seq == journal.head_seq
            nursery.cancel_scope.cancel()


def test_a_refusal_that_is_no_entry_waits_for_nothing() -> None:
    def act() -> bytes:
        raise FileExistsError

    durability: Any = SimpleNamespace(hooks=SimpleNamespace(quorum=None))
    with pytest.raises(FileExistsError):
        ReplyWaits(durability, lambda: Seq(1)).change(1000, act)
