"""The request loop: reads the kernel's requests, has them answered, and writes the replies.

One task, the *reader*, reads one request after another from the device, which libfuse has greeted
(handshake.py). Most are answered on the spot. A call that has to wait (for mirrors, for an
import) becomes a task of its own with its reply, one that waits for a flush a reply that follows
the flush; and the reader goes on. Only so many may wait at once.

To park in trio for every request would cost more than most requests do (two epoll_wait and an
epoll_ctl). So the reader sleeps in poll(2), on the device and on trio's own descriptor together,
and no longer than until trio's next deadline; when there is something to do for other tasks it
gives them their turn, at the latest when it has read for a slice of time. Only where no request has
come for some milliseconds it parks in trio. While requests follow each other closely, and another
processor is there for the caller, it looks for the next one for some microseconds before it sleeps:
to be woken costs as much, of time and of processor, as a small request itself.

While changes are held (volume.py), a request that would make one is kept, with all it says, and
served anew by :meth:`RequestLoop.serve_held`, when changes are taken again or refused; nothing of
it was done. A caller that dies meanwhile gets EINTR. So many bytes are kept at most; then no
further request is read.

Of a connection that was taken over the kernel may remember names wrongly, because the answers to
what changed them were lost (lost_replies.py), and asks for changes that cannot be: to make what is
there. Until it has been made to forget, a caller that asks for that is to try again.

Rules for calls: no await but in the coroutine that a call returns when it has to wait. Order comes
from code without awaits.

Source: fs/fuse/dev.c (fuse_dev_do_read, fuse_dev_do_write)."""

import errno
import logging
import os
import struct
import time
from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any, Final

import trio

from fusejournal.layer.handlers import Handlers
from fusejournal.layer.handshake import TRY_AGAIN, Handshake
from fusejournal.layer.interrupts import WaitingReply, WaitingRequest
from fusejournal.layer.kernel_protocol import (
    CHANGING_NAMES,
    EXTENSION_BYTES,
    IN_HEADER,
    UNANSWERED,
    Data,
    MalformedRequestError,
    Opcode,
    decode_interrupt,
    request_kinds,
)
from fusejournal.layer.replies import WAITING_MAX, Answer, Body, DurableReply, OpenReply, errno_of
from fusejournal.native.kernel import read_request, write_reply
from fusejournal.types import Caller, Fid
from fusejournal.volume.volume import EHELD

log = logging.getLogger(__name__)

# A NamedTuple's own constructor takes twice the time.
_new: Any = tuple.__new__

_IDLE_NS: Final = 10_000_000
_SLICE_NS: Final = 2_000_000
_SPIN_NS: Final = 20_000
_CLOSE_NS: Final = 60_000
"""The time within which a request comes closely: waking is in it."""
_COPIED_BYTES_MAX: Final = 512
"""The bytes up to which a request is cheaper to decode from a copy."""
_OF_WRONG_NAMES: Final = frozenset((errno.EEXIST, errno.ENOENT, errno.ENOTDIR, errno.EISDIR))
"""The refusals of a change whose caller, the kernel, remembers a name wrongly."""
_HELD_BYTES_MAX: Final = 64 << 20
"""The bytes of requests that are held before no further is read."""


class _Runnable(trio.abc.Instrument):
    """The tasks that are to run and have not had their turn yet. (trio's own count leaves out those
    of the round that is going on.)"""

    def __init__(self) -> None:
        self.tasks: set[trio.lowlevel.Task] = set()

    def task_scheduled(self, task: trio.lowlevel.Task) -> None:
        self.tasks.add(task)

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        self.tasks.discard(task)


class RequestLoop:
    """Answers the requests of the *handshake*'s connection by *handlers*."""

    def __init__(self, handshake: Handshake, handlers: Handlers) -> None:
        self._handshake = handshake
        self._handlers = handlers
        self._fd = -1
        self._is_misled = False
        """True while the kernel may remember names wrongly."""
        self._calls: dict[
            int, tuple[Callable[[Data], tuple[Any, ...]], Callable[..., Answer | None]]
        ] = {}
        self._nursery: trio.Nursery | None = None
        self._runnable = _Runnable()
        self._is_closed = False
        self._parked = trio.CancelScope()
        self._waiting: dict[int, WaitingRequest | WaitingReply] = {}
        """Requests that wait now, by number."""
        self._has_room = trio.Event()
        """Set, and made anew, when one of them waits no more."""
        self._released = trio.Event()
        """Set, and made anew, when those that are held are to be served."""
        self._held_bytes = 0

    async def run(self) -> None:
        """Serve requests until the file system is unmounted, or :meth:`leave` is called and those
        that wait are answered. Raises GreetingError. Cancelling leaves callers that wait
        unanswered; so does the connection's end."""
        first_request = await self._handshake.greet()
        self._is_misled = bool(first_request)
        self._fd = self._handshake.fd
        self._calls = {
            opcode: (kind.decode, getattr(self._handlers, kind.call))
            for opcode, kind in request_kinds(self._handshake.init_flags).items()
        }
        self._calls[int(Opcode.INTERRUPT)] = decode_interrupt, self._interrupt
        trio.lowlevel.add_instrument(self._runnable)
        try:
            async with trio.open_nursery() as self._nursery:
                if first_request:
                    self._serve(first_request)
                await self._read_requests()
                while self._waiting:
                    await self._has_room.wait()
        finally:
            # A flush that ends later finds no caller to be answered.
            self._waiting.clear()
            trio.lowlevel.remove_instrument(self._runnable)

    def leave(self) -> None:
        """Read no more requests; :meth:`run` returns when those that were read are answered."""
        self._is_closed = True
        self._parked.cancel()

    def note_forgotten(self) -> None:
        """The kernel remembers no name wrongly, from now on."""
        self._is_misled = False

    def serve_held(self) -> None:
        """Serve the requests that are held: changes are taken again, or refused."""
        released, self._released = self._released, trio.Event()
        released.set()

    # -- reading -----------------------------------------------------------------------------------

    async def _read_requests(self) -> None:
        fd, clock, runnable = self._fd, time.monotonic_ns, self._runnable.tasks
        buffer = bytearray(self._handshake.request_bytes_max)
        view, events_fd = memoryview(buffer), _events_fd()
        has_request = has_event = False
        can_spin, spin_ns = len(os.sched_getaffinity(0)) > 1, 0
        turn = _Turn(clock())
        while not self._is_closed:
            now_ns = clock()
            is_due = has_event or bool(runnable) or now_ns >= turn.deadline_ns
            if is_due and (not has_request or now_ns >= turn.ends_ns):
                await trio.lowlevel.checkpoint()
                turn, has_request, has_event = _Turn(clock()), True, False
                continue
            sleep_ns = 0 if is_due else int(min(_IDLE_NS, turn.deadline_ns - now_ns))
            try:
                found = read_request(fd, events_fd, sleep_ns, spin_ns if sleep_ns else 0, buffer)
            except OSError as error:
                if error.errno != errno.ENODEV:
                    raise
                # Unmounted, perhaps by force, or cut: no caller is there to be answered, and what
                # is waited for may never come.
                assert self._nursery is not None
                self._nursery.cancel_scope.cancel()
                return
            spin_ns = _SPIN_NS if can_spin and clock() - now_ns < _CLOSE_NS else 0
            has_event = has_event or bool(found & 1)
            size = found >> 1
            has_request = size > 0
            if has_request:
                self._serve(view[:size].tobytes() if size <= _COPIED_BYTES_MAX else view[:size])
                if len(self._waiting) >= WAITING_MAX or self._held_bytes > _HELD_BYTES_MAX:
                    await self._has_room.wait()
            elif sleep_ns == _IDLE_NS and not has_event:
                await self._park()
                turn, has_request = _Turn(clock()), True

    async def _park(self) -> None:
        """Wait for a request in trio, as long as it takes, or for :meth:`leave`."""
        with trio.CancelScope() as self._parked:
            await trio.lowlevel.wait_readable(self._fd)

    # -- answering ---------------------------------------------------------------------------------

    def _serve(self, data: Data) -> None:
        """Answer the request *data*, or have it answered."""
        try:
            length, opcode, number, fid, uid, gid, pid, extensions, _ = IN_HEADER.unpack_from(data)
        except struct.error:
            log.error("a request of the kernel makes no sense: it has %d bytes", len(data))
            return
        whole = data
        try:
            if length != len(data):
                raise MalformedRequestError(f"it says {length} bytes and has {len(data)}")
            if extensions:
                data = data[: length - extensions * EXTENSION_BYTES]
            decode, call = self._calls[opcode]
            try:
                arguments = decode(data)
            except struct.error as error:
                raise MalformedRequestError(f"opcode {opcode}: {error}") from error
            answer = call(_new(Caller, (uid, gid, pid)), fid, *arguments)
        except Exception as error:
            if _is_held(error):
                self._hold(opcode, number, pid, bytes(whole))
            else:
                self._refuse(opcode, number, error)
            return
        if isinstance(answer, bytes | OpenReply):
            self._reply(number, answer)
        elif isinstance(answer, DurableReply):
            self._await_flush(opcode, number, pid, answer)
        elif answer is not None:
            assert self._nursery is not None
            self._waiting[number] = request = WaitingRequest(pid)
            # It may be held later, when the reader's buffer has another request.
            self._nursery.start_soon(
                self._finish, opcode, number, pid, request, answer, bytes(whole)
            )

    def _await_flush(self, opcode: int, number: int, thread: int, answer: DurableReply) -> None:
        """Reply when *answer* is durable, by the call that follows the flush: a task of the
        request's own would cost more than the request."""
        done = partial(self._end_wait, opcode, number, answer.body)
        end = None if answer.is_done else partial(done, InterruptedError(errno.EINTR, "dying"))
        self._waiting[number] = WaitingReply(thread, end)
        answer.call_when_durable(done)

    def _end_wait(self, opcode: int, number: int, body: Body, error: OSError | None) -> None:
        """Reply to request *number* with *body*, or refuse it, unless that was done, or no caller
        is left to be answered."""
        request = self._waiting.get(number)
        if isinstance(request, WaitingReply):
            request.note_answered()
            self._forget(number)
            if error is None:
                self._reply(number, body)
            else:
                self._refuse(opcode, number, error)

    def _forget(self, number: int) -> None:
        """Request *number* waits no more."""
        del self._waiting[number]
        has_room, self._has_room = self._has_room, trio.Event()
        has_room.set()

    def _interrupt(self, _: Caller, __: Fid, number: int) -> None:
        """The caller of request *number* has got a signal."""
        request = self._waiting.get(number)
        if request is not None:
            assert self._nursery is not None
            self._nursery.start_soon(request.watch)

    async def _finish(
        self,
        opcode: int,
        number: int,
        thread: int,
        request: WaitingRequest,
        answer: Coroutine[Any, Any, Body],
        data: bytes,
    ) -> None:
        """Reply to request *data* when *answer* has come to its end, or its caller to his; or hold
        it, because nothing was done. Cancelling leaves the request unanswered."""
        is_held = False
        try:
            body = await request.outcome(answer)
        except Exception as error:
            is_held = _is_held(error)
            if not is_held:
                self._refuse(opcode, number, error)
        else:
            self._reply(number, body)
        finally:
            self._forget(number)
        if is_held:
            self._hold(opcode, number, thread, data)

    def _hold(self, opcode: int, number: int, thread: int, data: bytes) -> None:
        """Keep request *data* until those that are held are to be served."""
        assert self._nursery is not None
        self._waiting[number] = request = WaitingRequest(thread)
        self._held_bytes += len(data)
        self._nursery.start_soon(self._serve_later, opcode, number, request, data, self._released)

    async def _serve_later(
        self,
        opcode: int,
        number: int,
        request: WaitingRequest,
        data: bytes,
        released: trio.Event,
    ) -> None:
        """Serve request *data* when it is *released*, unless its caller has come to his end.
        Cancelling leaves it unanswered."""
        is_over = False
        try:
            await request.outcome(released.wait())
            is_over = True
        except InterruptedError as error:
            self._refuse(opcode, number, error)
        finally:
            self._held_bytes -= len(data)
            self._forget(number)
        if is_over:
            self._serve(data)

    def _refuse(self, opcode: int, number: int, error: Exception) -> None:
        """Answer request *number* with the errno of *error*, if it is of a kind to be answered."""
        if isinstance(error, KeyError) and opcode not in self._calls:
            refusal = errno.ENOSYS
        else:
            refusal = errno_of(error)
            if self._is_misled and opcode in CHANGING_NAMES and refusal in _OF_WRONG_NAMES:
                refusal = TRY_AGAIN
        if opcode not in UNANSWERED:
            self._send(number, refusal, b"")

    def _reply(self, number: int, body: Body) -> None:
        if isinstance(body, bytes):
            self._send(number, 0, body)
        else:
            self._send(number, 0, body.body)
            body.sent()

    def _send(self, number: int, refusal: int, body: bytes) -> None:
        """Answer request *number*. If the kernel does not take it, the caller, who would wait for
        ever, gets EIO."""
        error = self._write(number, refusal, body)
        if error is not None:
            log.error("a reply was not taken: %s", error)
            error = self._write(number, errno.EIO, b"")
            if error is not None:
                log.error("nor that it was not: %s", error)

    def _write(self, number: int, refusal: int, body: bytes) -> OSError | None:
        """Returns why the kernel does not take a reply; None also where no caller waits for it."""
        try:
            write_reply(self._fd, number, refusal, body)
        except OSError as error:
            # The caller does not wait any more, or the mount is gone.
            return None if error.errno in (errno.ENOENT, errno.ENODEV) else error
        return None


class _Turn:
    """A period in which the reader reads, from *now_ns* on: up to ``ends_ns`` though
    others are to run, and up to ``deadline_ns``, when the next timer is due, in any case."""

    __slots__ = ("deadline_ns", "ends_ns")

    def __init__(self, now_ns: int) -> None:
        left_seconds = trio.lowlevel.current_statistics().seconds_to_next_deadline
        self.deadline_ns = now_ns + left_seconds * 1e9
        self.ends_ns = now_ns + _SLICE_NS


def _is_held(error: Exception) -> bool:
    """Returns True if *error* says that a change was not made, because changes are held."""
    return isinstance(error, OSError) and error.errno == EHELD


def _events_fd() -> int:
    """The descriptor that is readable when something that a task waits for has happened. (trio has
    no public name for it.)"""
    runner = trio._core._run.GLOBAL_RUN_CONTEXT.runner
    return int(runner.io_manager._epoll.fileno())
