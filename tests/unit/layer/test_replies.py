"""Errors out of calls, and replies that wait."""

import errno
import inspect
import logging
import os
from typing import Any

import pytest
from pyfuse3 import FUSEError

from fusejournal.errors import FusejournalError
from fusejournal.layer.handlers import Handlers
from fusejournal.layer.kernel_protocol import SETXATTR_EXT, MalformedRequestError, request_kinds
from fusejournal.layer.replies import errno_of


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


@pytest.mark.parametrize("init_flags", [0, SETXATTR_EXT])
def test_each_request_has_its_call(init_flags: int) -> None:
    """With as many arguments as its decoder makes."""
    for kind in request_kinds(init_flags).values():
        made = inspect.get_annotations(kind.decode)["return"]
        # (Compiled, a decoder that may raise cannot be said to return an empty tuple.)
        count = 0 if made in (tuple[()], tuple[Any, ...]) else len(made.__args__)
        taken = inspect.signature(getattr(Handlers, kind.call)).parameters
        assert len(taken) == 3 + count, kind.call
