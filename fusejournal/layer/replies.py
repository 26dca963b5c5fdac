"""How methods become FUSE handlers, and what comes of their results and errors.

All handlers are made here: any other error than pyfuse3's own would end the request loop, and with
it the layer."""

import errno
import functools
import logging
import operator
import os
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from typing import Any, Concatenate, ParamSpec, Protocol, TypeVar

from pyfuse3 import EntryAttributes, FUSEError

from fusejournal.errors import FusejournalError
from fusejournal.types import Fid, Seq
from fusejournal.volume.wait_policy import WaitPolicy

log = logging.getLogger(__name__)

_KEEP_SECONDS = 3600.0


class Waiter(Protocol):
    """What :func:`changing` needs of the object whose methods it wraps."""

    policy: WaitPolicy

    @property
    def is_crowded(self) -> bool:
        """Whether who is to wait needs a place first."""

    def place(self, uid: int) -> AbstractAsyncContextManager[None]:
        """Have one, for a caller with *uid*."""

    def opener(self, handle: int) -> int:
        """The uid of who opened *handle*."""

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
    whose: Callable[[W, tuple[Any, ...]], int],
) -> Callable[[Callable[Concatenate[W, P], R]], Callable[Concatenate[W, P], Awaitable[R]]]:
    """The same for changes, whose reply waits until what was just committed is durable if the
    object *asks* for that. *whose* tells by the arguments who has asked, as a uid."""

    def decorate(
        method: Callable[Concatenate[W, P], R],
    ) -> Callable[Concatenate[W, P], Awaitable[R]]:
        async def change(self: W, *args: P.args, **kwargs: P.kwargs) -> R:
            reply = method(self, *args, **kwargs)
            await self.wait(self.head_seq())
            return reply

        @functools.wraps(method)
        async def answer(self: W, *args: P.args, **kwargs: P.kwargs) -> R:
            try:
                if not asks(self):
                    return method(self, *args, **kwargs)
                if not self.is_crowded:
                    return await change(self, *args, **kwargs)
                async with self.place(whose(self, args)):
                    return await change(self, *args, **kwargs)
            except Exception as error:
                raise failing(error) from None

        return answer  # type: ignore[return-value]

    return decorate


def changing(
    method: Callable[Concatenate[W, P], R],
) -> Callable[Concatenate[W, P], Awaitable[R]]:
    """Make a handler of a change of names and attributes: it waits in the durability modes ``nfs``
    and ``strict``."""
    return _waiting(_NAMES_WAIT, _caller)(method)


def writing(
    method: Callable[Concatenate[W, P], R],
) -> Callable[Concatenate[W, P], Awaitable[R]]:
    """Make a handler of a change of content: it waits in the durability mode ``strict`` alone."""
    return _waiting(_WRITES_WAIT, _opener)(method)


def _caller(_: W, args: tuple[Any, ...]) -> int:
    """Of a request that says who makes it."""
    return int(args[-1].uid)


def _opener(waiter: W, args: tuple[Any, ...]) -> int:
    """Of one that says only by which handle."""
    return waiter.opener(args[0])


_NAMES_WAIT = operator.attrgetter("policy.names_wait")
_WRITES_WAIT = operator.attrgetter("policy.writes_wait")


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
