"""The control socket of a running layer: one JSON request a line, one JSON reply a line.

The server's side, which runs in the node's nursery; asking.py is the other. A reply is the
command's own object, or ``{"error": text, "exit_code": n}``. Only root can reach the socket.
"""

import json
import logging
import os
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import trio

from fusejournal.errors import FusejournalError

log = logging.getLogger(__name__)

Command = Callable[[dict[str, Any]], Awaitable[dict[str, Any]]]

_LINE_BYTES_MAX = 64 << 10
_REQUEST_SECONDS = 10.0


async def serve_control(
    path: Path,
    commands: Mapping[str, Command],
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serve *commands* on the socket *path* until cancelled; the socket is removed then."""
    with suppress(FileNotFoundError):
        path.unlink()
    with trio.socket.socket(trio.socket.AF_UNIX, trio.socket.SOCK_STREAM) as listening:
        await _bind(listening, path)
        try:
            listening.listen()
            task_status.started()
            async with trio.open_nursery() as nursery:
                while True:
                    connection, _ = await listening.accept()
                    nursery.start_soon(_serve_one, trio.SocketStream(connection), commands)
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


async def _serve_one(stream: trio.SocketStream, commands: Mapping[str, Command]) -> None:
    async with stream:
        try:
            with trio.fail_after(_REQUEST_SECONDS):
                line = await _read_line(stream)
            reply = await _answer(line, commands)
            await stream.send_all(json.dumps(reply).encode() + b"\n")
        except (trio.TooSlowError, trio.BrokenResourceError, trio.ClosedResourceError):
            return  # a client that went away, or never asked, is its own affair


async def serve_channel(
    stream: trio.SocketStream, commands: Mapping[str, Command], pause_seconds: float
) -> None:
    """Serve *commands* to a process that holds the other end of *stream*: one request after the
    other, with a pause after each, until it closes its end. Raises trio.BrokenResourceError when
    that is cut."""
    while line := await _read_line(stream):
        await stream.send_all(json.dumps(await _answer(line, commands)).encode() + b"\n")
        await trio.sleep(pause_seconds)


async def _read_line(stream: trio.SocketStream) -> bytes:
    line = b""
    while not line.endswith(b"\n") and len(line) < _LINE_BYTES_MAX:
        part = await stream.receive_some(4096)
        if not part:
            break
        line += part
    return line


async def _answer(line: bytes, commands: Mapping[str, Command]) -> dict[str, Any]:
    try:
        request = json.loads(line)
        command = commands[request["command"]]
    except (ValueError, KeyError, TypeError):
        return {"error": "not a command this layer knows", "exit_code": 2}
    try:
        return await command(request)
    except FusejournalError as error:
        return {"error": str(error), "exit_code": error.exit_code}
    except Exception as error:
        log.exception("a command failed on a bug")
        return {"error": f"the layer failed to do it: {error!r}", "exit_code": 1}
