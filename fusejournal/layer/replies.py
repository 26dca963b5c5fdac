"""Makes replies of what calls return and raise: at once, or when what they wait for has come.

A call gives the reply's body; None, where the kernel expects no reply; the body with what it waits
for, a flush; or a coroutine whose result is the body. A coroutine is made only where there is
something else to wait for: what it returns is sent by a task of its own (request_loop.py), and
others are served meanwhile. So an ordinary call costs no task, and from its start to its end
nothing else happens.

Owns what a change waits for before its caller is answered (wait_policy.py), and before it is done:
where mirrors are waited for, it needs a place among those who wait, because what is done cannot be
refused any more."""

import errno
import functools
import logging
from collections.abc import Callable, Coroutine, Iterator
from functools import partial
from typing import Any, Concatenate, Final, NamedTuple, ParamSpec, Protocol, TypeAlias, TypeVar

import trio
from pyfuse3 import FUSEError

from fusejournal.errors import FusejournalError
from fusejournal.layer.interrupts import may_end_here, note_done
from fusejournal.layer.kernel_protocol import Data, MalformedRequestError
from fusejournal.types import Caller, Fid, Seq
from fusejournal.volume.durability import Durability
from fusejournal.volume.wait_policy import WaitPolicy

log = logging.getLogger(__name__)

WAITING_MAX: Final = 512
"""The number of replies that can wait at once, for a flush or for mirrors, before the mount
does."""
_ERRNO_MAX: Final = 511
"""The last that the kernel takes; what a file system beneath gives beyond it is the kernel's own.
Source: fs/fuse/dev.c (fuse_dev_do_write)."""


class OpenReply(NamedTuple):
    """A body that says that something is open, and what is to be done once the kernel has it."""

    body: bytes
    sent: Callable[[], None]


Body: TypeAlias = bytes | OpenReply


class DurableReply:
    """A *body* that waits until *durability* has *seq* on the disk; its caller has waited *since*
    then. *is_done*: it reports that something was changed."""

    __slots__ = ("_durability", "_seq", "_since", "body", "is_done")

    def __init__(
        self, body: Body, is_done: bool, durability: Durability, seq: Seq, since: float
    ) -> None:
        self.body = body
        self.is_done = is_done
        self._durability = durability
        self._seq = seq
        self._since = since

    def call_when_durable(self, done: Callable[[OSError | None], None]) -> None:
        """Call *done* when the body can be sent, with None, or never can, with the error."""
        self._durability.call_when_flushed(self._seq, self._since, done)

    async def wait(self) -> Body:
        """Returns the body when mirrors that are waited for have the entry, too. Raises OSError
        EIO. Cancelling is harmless: the flush goes on for others."""
        if self.is_done:
            note_done()
        await self._durability.wait(self._seq, self._since)
        return self.body


Answer: TypeAlias = Body | DurableReply | Coroutine[Any, Any, Body]
DONE = b""
"""The reply that only reports that it is done."""


def errno_of(error: Exception) -> int:
    """The errno that a caller gets for an exception out of a call: one that the kernel takes."""
    if isinstance(error, FUSEError | OSError):
        number = error.errno
        return number if number is not None and 0 < number <= _ERRNO_MAX else errno.EIO
    if isinstance(error, MalformedRequestError):
        log.error("a request of the kernel makes no sense: %s", error)
    elif isinstance(error, FusejournalError):
        log.warning("refused: %s", error)
    else:
        log.error("a request failed on a bug", exc_info=error)
    return errno.EIO


async def awaited(answer: Answer) -> Body:
    """The reply that *answer* is, or comes to. Cancelling does what it does in the call."""
    if isinstance(answer, DurableReply):
        return await answer.wait()
    return await answer if isinstance(answer, Coroutine) else answer


async def take_all(steps: Iterator[None]) -> None:
    """Take all *steps* of one change, between which others are served. Cancelling does at once what
    is left; the caller's death does not cancel it, so that no other caller waits for that."""
    note_done()
    try:
        for _ in steps:
            await trio.lowlevel.checkpoint()
    finally:
        for _ in steps:
            pass


class ReplyWaits:
    """Waits for what was changed to be durable, here and on mirrors. *head_seq* is the journal's
    last entry now."""

    def __init__(self, durability: Durability, head_seq: Callable[[], Seq]) -> None:
        self._durability = durability
        self._head_seq = head_seq

    def change(self, uid: int, act: Callable[[], Body]) -> Answer:
        """Do *act* for a caller with *uid*, and reply when what it changed is durable, or that it
        was refused. Raises OSError, also out of the coroutine: EAGAIN, with nothing done, where
        there is no place and none will be soon; EIO where it cannot be durable."""
        if self._durability.hooks.quorum is not None:
            return self._in_place(uid, partial(self._change, act))
        return self._change(act)

    def _change(self, act: Callable[[], Body]) -> Answer:
        before = self._head_seq()
        try:
            body = act()
        except (OSError, FUSEError) as error:
            refused = self._refused(before, error)
            if refused is None:
                raise
            return refused
        return self._when_durable(self._head_seq(), body, is_done=True)

    def _refused(self, before: Seq, error: Exception) -> Coroutine[Any, Any, Body] | None:
        """Returns a coroutine that raises *error* once the VOID of what was refused is durable: a
        system crash must not leave the entry alone, which the next start would carry out. None
        where nothing need be waited for, of what came after the entry *before*."""
        seq = self._head_seq()
        if seq == before:
            return None
        since = self._durability.try_flush_inline(seq)
        return None if since is None else self._raise_when_durable(seq, since, error)

    async def _raise_when_durable(self, seq: Seq, since: float, error: Exception) -> Body:
        await self._durability.wait(seq, since)
        raise error

    async def change_in_pieces(
        self, uid: int, steps: Iterator[None], reply: Callable[[], Body]
    ) -> Body:
        """Do all *steps* of one change, then *reply*, as :meth:`change`. The place that a refusal
        may be for is had before the first. Cancelling as :func:`take_all`."""
        act = partial(self._change_in_pieces, steps, reply)
        if self._durability.hooks.quorum is not None:
            return await self._in_place(uid, act)
        return await act()

    async def _change_in_pieces(self, steps: Iterator[None], reply: Callable[[], Body]) -> Body:
        before = self._head_seq()
        try:
            await take_all(steps)
        except (OSError, FUSEError) as error:
            refused = self._refused(before, error)
            if refused is None:
                raise
            return await refused
        return await awaited(self._change(reply))

    def until_durable(self, uid: int, seq: Seq) -> Answer:
        """Reply when the journal is durable up to *seq*. Raises as :meth:`change`."""
        if self._durability.is_durable(seq):
            return DONE  # without a place: none may be left
        if self._durability.hooks.quorum is not None:
            return self._in_place(uid, partial(self._when_durable, seq, DONE))
        return self._when_durable(seq, DONE)

    def _when_durable(self, seq: Seq, body: Body, *, is_done: bool = False) -> Answer:
        """*is_done*: the reply reports that something was changed."""
        since = self._durability.try_flush_inline(seq)
        return body if since is None else DurableReply(body, is_done, self._durability, seq, since)

    async def _in_place(self, uid: int, act: Callable[[], Answer]) -> Body:
        """Do *act* with a place among those who wait for mirrors, for a caller with *uid*.
        Cancelling before there is one leaves it undone. Raises OSError EAGAIN where there is none,
        and none will be soon."""
        quorum = self._durability.hooks.quorum
        assert quorum is not None
        if not quorum.try_enter(uid):
            await quorum.enter(uid)
        try:
            await may_end_here()
            return await awaited(act())
        finally:
            quorum.leave(uid)


class Waiter(Protocol):
    """The object whose methods :func:`changing` and :func:`writing` wrap."""

    policy: WaitPolicy
    waits: ReplyWaits

    def opener(self, handle: int) -> Caller:
        """The caller who opened *handle*. Raises OSError ESTALE."""


P = ParamSpec("P")
W = TypeVar("W", bound=Waiter)


def changing(
    method: Callable[Concatenate[W, Caller, P], Body],
) -> Callable[Concatenate[W, Caller, P], Answer]:
    """Make a call of a change of names and attributes: its reply waits in the durability modes
    ``nfs`` and ``strict``."""

    @functools.wraps(method)
    def answer(self: W, who: Caller, /, *args: P.args, **kwargs: P.kwargs) -> Answer:
        if not self.policy.names_wait:
            return method(self, who, *args, **kwargs)
        return self.waits.change(who.uid, partial(method, self, who, *args, **kwargs))

    return answer


def writing(
    method: Callable[[W, Caller, Fid, int, int, Data, bool], Body],
) -> Callable[[W, Caller, Fid, int, int, Data, bool], Answer]:
    """Make a call of a change of content: its reply waits in the durability mode ``strict`` alone,
    and on account of the caller that opened the file, because a WRITE may come from any."""

    @functools.wraps(method)
    def answer(
        self: W, who: Caller, fid: Fid, handle: int, offset: int, data: Data, clears: bool
    ) -> Answer:
        if not self.policy.writes_wait:
            return method(self, who, fid, handle, offset, data, clears)
        # It may be done later, when *data* lies elsewhere.
        act = partial(method, self, who, fid, handle, offset, bytes(data), clears)
        return self.waits.change(self.opener(handle).uid, act)

    return answer
