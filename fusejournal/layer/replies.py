"""How methods become FUSE handlers, and what comes of their results and errors.

All handlers are made here: any other error than pyfuse3's own would end the request loop, and with
it the layer."""

import errno
import functools
import logging
import operator
import os
from collections.abc import Awaitable, Callable
from typing import Concatenate, ParamSpec, Protocol, TypeVar

from pyfuse3 import EntryAttributes, FUSEError

from fusejournal.errors import FusejournalError
from fusejournal.types import Fid, Seq

log = logging.getLogger(__name__)

_KEEP_SECONDS = 3600.0


class Waiter(Protocol):
    """What :func:`changing` needs of the object whose methods it wraps."""

    names_wait: bool
    writes_wait: bool

    def head_seq(self) -> Seq:
        """The last entry."""

    async def wait(self, seq: Seq) -> None:
        """Return when the journal is durable up to *seq*."""


P = ParamSpec("P")
R = TypeVar("R")
H = TypeVar("H")
W = TypeVar("W", bound=Waiter)


def failing(error: Exception) -> FUSEError:
    """The reply for an exception out of a handler."""
    if isinstance(error, FUSEError):
        return error
    if isinstance(error, OSError):
        return FUSEError(error.errno or errno.EIO)
    if isinstance(error, FusejournalError):
        log.warning("refused: %s", error)
        return FUSEError(errno.EIO)
    log.error("a request failed on a bug", exc_info=error)
    return FUSEError(errno.EIO)


def handler(
    method: Callable[Concatenate[H, P], R],
) -> Callable[Concatenate[H, P], Awaitable[R]]:
    """Make a FUSE handler of an ordinary method; its OSErrors become the reply."""

    @functools.wraps(method)
    async def answer(self: H, *args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return method(self, *args, **kwargs)
        except Exception as error:
            raise failing(error) from None

    return answer  # type: ignore[return-value]


def waiting(
    method: Callable[Concatenate[H, P], Awaitable[R]],
) -> Callable[Concatenate[H, P], Awaitable[R]]:
    """The same for one that waits by itself."""

    @functools.wraps(method)
    async def answer(self: H, *args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return await method(self, *args, **kwargs)
        except Exception as error:
            raise failing(error) from None

    return answer  # type: ignore[return-value]


def _waiting(
    asks: Callable[[W], bool],
) -> Callable[[Callable[Concatenate[W, P], R]], Callable[Concatenate[W, P], Awaitable[R]]]:
    """The same for changes, whose reply waits until what was just committed is durable if the
    object *asks* for that."""

    def decorate(
        method: Callable[Concatenate[W, P], R],
    ) -> Callable[Concatenate[W, P], Awaitable[R]]:
        @functools.wraps(method)
        async def answer(self: W, *args: P.args, **kwargs: P.kwargs) -> R:
            try:
                reply = method(self, *args, **kwargs)
                if asks(self):
                    await self.wait(self.head_seq())
            except Exception as error:
                raise failing(error) from None
            return reply

        return answer  # type: ignore[return-value]

    return decorate


def changing(
    method: Callable[Concatenate[W, P], R],
) -> Callable[Concatenate[W, P], Awaitable[R]]:
    """Make a handler of a change of names and attributes: it waits in the durability modes ``nfs``
    and ``strict``."""
    return _waiting(_NAMES_WAIT)(method)


def writing(
    method: Callable[Concatenate[W, P], R],
) -> Callable[Concatenate[W, P], Awaitable[R]]:
    """Make a handler of a change of content: it waits in the durability mode ``strict`` alone."""
    return _waiting(_WRITES_WAIT)(method)


_NAMES_WAIT = operator.attrgetter("names_wait")
_WRITES_WAIT = operator.attrgetter("writes_wait")


def entry_of(fid: Fid, stat: os.stat_result, ctime_ns: int) -> EntryAttributes:
    """The reply that tells *fid*'s attributes. The kernel may keep them: only this mount changes
    the tree."""
    entry = EntryAttributes()
    entry.st_ino = fid
    entry.entry_timeout = _KEEP_SECONDS
    entry.attr_timeout = _KEEP_SECONDS
    entry.st_mode = stat.st_mode
    entry.st_nlink = stat.st_nlink
    entry.st_uid = stat.st_uid
    entry.st_gid = stat.st_gid
    entry.st_rdev = stat.st_rdev
    entry.st_size = stat.st_size
    entry.st_blocks = stat.st_blocks
    entry.st_blksize = stat.st_blksize
    entry.st_atime_ns = stat.st_atime_ns
    entry.st_mtime_ns = stat.st_mtime_ns
    entry.st_ctime_ns = ctime_ns
    return entry
