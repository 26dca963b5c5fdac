"""The control socket of a running layer: one JSON request a line, one JSON reply a line.

The server's side, which runs in the node's nursery; client.py is the other. A reply is the
command's own object, or ``{"error": text, "exit_code": n}``. Only root can reach the socket; even
so a script of root's that goes wrong costs the layer little. ``_ASKING_MAX`` connections may be
asking at a time, of which the oldest makes room for a new one; ``_BUSY_MAX`` requests may be at
work; a client that asks or reads too slowly is cut off; and a lack of descriptors only makes
callers wait.

A request with ``"follow": true`` is one for a command that may take long: until the reply comes,
there is a line ``{"working": true, ...}`` every ``_WORKING_SECONDS``, and the command is cancelled
when the client is gone, as it is after Ctrl-C."""

import json
import logging
import os
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import trio

from fusejournal.disk.errnos import EXHAUSTED
from fusejournal.disk.files import UNREADABLE_JSON
from fusejournal.errors import FusejournalError

log = logging.getLogger(__name__)

Command = Callable[[dict[str, Any]], Awaitable[dict[str, Any]]]
ProgressReport = Callable[[], Mapping[str, Any]]
"""Returns what is reported of a command that is at work, as keys of a JSON object."""
_UNTOLD: Mapping[str, ProgressReport] = {}

_LINE_BYTES_MAX = 64 << 10
_REQUEST_SECONDS = 10.0
_REPLY_SECONDS = 10.0
_WORKING_SECONDS = 2.0
_ASKING_MAX = 32
_BUSY_MAX = 32
_PAUSE_SECONDS = 0.1
"""The errors of accept(2) while the process or the machine lacks something."""


async def serve_control(
    path: Path,
    commands: Mapping[str, Command],
    progress: Mapping[str, ProgressReport] = _UNTOLD,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serves *commands* on the socket *path* until cancelled; the socket is removed then.
    *progress*: what is reported of some of them while they are followed."""
    with suppress(FileNotFoundError):
        path.unlink()
    with trio.socket.socket(trio.socket.AF_UNIX, trio.socket.SOCK_STREAM) as listening:
        await _bind(listening, path)
        try:
            listening.listen()
            task_status.started()
            await _Server(commands, progress).run(listening)
        finally:
            with suppress(FileNotFoundError):
                path.unlink()


async def _bind(listening: trio.socket.SocketType, path: Path) -> None:
    # A socket's path may have 108 bytes; through the directory's descriptor any will do.
    fd = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        await listening.bind(f"/proc/self/fd/{fd}/{path.name}")
    finally:
        os.close(fd)
    path.chmod(0o600)


class _Server:
    def __init__(
        self, commands: Mapping[str, Command], progress: Mapping[str, ProgressReport]
    ) -> None:
        self._commands = commands
        self._progress = progress
        self._asking: dict[trio.CancelScope, None] = {}
        """The scopes of connections that have not asked yet, oldest first."""
        self._busy = 0

    async def run(self, listening: trio.socket.SocketType) -> None:
        async with trio.open_nursery() as nursery:
            while True:
                try:
                    connection, _ = await listening.accept()
                except OSError as error:
                    if error.errno not in EXHAUSTED:
                        raise
                    await trio.sleep(_PAUSE_SECONDS)
                    continue
                if len(self._asking) >= _ASKING_MAX:
                    oldest = next(iter(self._asking))
                    del self._asking[oldest]
                    oldest.cancel()
                scope = trio.CancelScope(deadline=trio.current_time() + _REQUEST_SECONDS)
                self._asking[scope] = None
                nursery.start_soon(self._serve_one, trio.SocketStream(connection), scope)

    async def _serve_one(self, stream: trio.SocketStream, scope: trio.CancelScope) -> None:
        async with stream:
            try:
                line = None
                try:
                    with scope:
                        line = await _read_line(stream)
                finally:
                    self._asking.pop(scope, None)
                if line is not None:
                    request = _parsed(line)
                    if request is not None and request.get("follow"):
                        reply = await self._followed(stream, request)
                    else:
                        reply = await self._reply(request)
                    if reply is not None:
                        await _say(stream, reply)
            except (trio.BrokenResourceError, trio.ClosedResourceError):
                return  # a client that went away, or never asked, is its own affair

    async def _followed(
        self, stream: trio.SocketStream, request: dict[str, Any]
    ) -> dict[str, Any] | None:
        """Returns the reply to *request*; None where the client is gone, and the command was
        cancelled."""
        reply: dict[str, Any] | None = None
        done = trio.Event()
        async with trio.open_nursery() as nursery:

            async def work() -> None:
                nonlocal reply
                reply = await self._reply(request)
                done.set()

            async def watch() -> None:
                with suppress(trio.BrokenResourceError):
                    while await stream.receive_some(_LINE_BYTES_MAX):
                        pass  # it has nothing more to say
                nursery.cancel_scope.cancel()

            nursery.start_soon(work)
            nursery.start_soon(watch)
            tell = self._progress.get(str(request.get("command")), dict)
            while not done.is_set():
                with trio.move_on_after(_WORKING_SECONDS):
                    await done.wait()
                # (Not by a task of its own, which would end in the midst of a line.)
                if not done.is_set() and not await _say(stream, {"working": True, **tell()}):
                    break
            nursery.cancel_scope.cancel()
        return reply

    async def _reply(self, request: dict[str, Any] | None) -> dict[str, Any]:
        if self._busy >= _BUSY_MAX:
            return {"error": f"{_BUSY_MAX} requests are at work already", "exit_code": 1}
        self._busy += 1
        try:
            return await _answer(request, self._commands)
        finally:
            self._busy -= 1


async def serve_channel(
    stream: trio.SocketStream, commands: Mapping[str, Command], pause_seconds: float
) -> None:
    """Serves *commands* to a process that holds the other end of *stream*: one request after the
    other, with a pause after each, until it closes its end. Cancelling leaves a request
    without its reply. Raises trio.BrokenResourceError when the stream is cut."""
    while line := await _read_line(stream):
        reply = await _answer(_parsed(line), commands)
        await stream.send_all(json.dumps(reply).encode() + b"\n")
        await trio.sleep(pause_seconds)


async def _read_line(stream: trio.SocketStream) -> bytes:
    line = b""
    while not line.endswith(b"\n") and len(line) < _LINE_BYTES_MAX:
        part = await stream.receive_some(4096)
        if not part:
            break
        line += part
    return line


async def _say(stream: trio.SocketStream, reply: Mapping[str, Any]) -> bool:
    """Send *reply* as a line. Returns False for a client that does not read."""
    with trio.move_on_after(_REPLY_SECONDS) as sending:
        await stream.send_all(json.dumps(reply).encode() + b"\n")
    return not sending.cancelled_caught


def _parsed(line: bytes) -> dict[str, Any] | None:
    """Returns the request in *line*; None where it is none."""
    try:
        request = json.loads(line)
    except UNREADABLE_JSON:
        return None
    return request if isinstance(request, dict) else None


async def _answer(
    request: dict[str, Any] | None, commands: Mapping[str, Command]
) -> dict[str, Any]:
    command = commands.get(str(request.get("command"))) if request is not None else None
    if request is None or command is None:
        return {"error": "not a command this layer knows", "exit_code": 2}
    try:
        return await command(request)
    except FusejournalError as error:
        return {"error": str(error), "exit_code": error.exit_code}
    except Exception as error:
        log.exception("a command failed on a bug")
        return {"error": f"the layer failed to do it: {error!r}", "exit_code": 1}
