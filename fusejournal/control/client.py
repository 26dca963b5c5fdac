"""Asking a running layer over its control socket (server.py), from the command line. Blocks."""

import json
import os
import socket
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from fusejournal.disk.files import UNREADABLE_JSON
from fusejournal.disk.json_records import parse_object
from fusejournal.errors import FusejournalError, NotRunningError

_REPLY_SECONDS = 60.0


class RemoteError(FusejournalError):
    """An error that the layer answered instead of a reply, with its exit code."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code


def ask(state_dir: Path, command: str, **fields: Any) -> dict[str, Any]:
    """Asks the layer of the volume in *state_dir*. Raises NotRunningError, RemoteError."""
    for reply in _converse(state_dir, {"command": command, **fields}):
        return reply
    raise NotRunningError(f"the layer of {state_dir} ended")


def follow(
    state_dir: Path, command: str, working: Callable[[Mapping[str, Any]], None], **fields: Any
) -> dict[str, Any]:
    """Asks for a command that may take long, and follows it to its end: while it is at work,
    *working* is called every some seconds with what the layer reports of it. An exception of that,
    as KeyboardInterrupt at any time, has the layer cancel the command, unless it was done already.
    Raises NotRunningError, RemoteError."""
    for reply in _converse(state_dir, {"command": command, "follow": True, **fields}):
        if "working" not in reply:
            return reply
        working(reply)
    raise NotRunningError(f"the layer of {state_dir} ended")


def _converse(state_dir: Path, request: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Sends *request*, and gives what comes, until the layer closes the connection."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(_REPLY_SECONDS)
        _connect(connection, state_dir)
        try:
            connection.sendall(json.dumps(request).encode() + b"\n")
            with connection.makefile("rb") as lines:
                for line in lines:
                    if not line.endswith(b"\n"):  # not even half an answer counts
                        break
                    yield reply_in(f"the layer of {state_dir}", line)
        except TimeoutError:
            raise FusejournalError(f"the layer of {state_dir} does not answer") from None
        except (ConnectionResetError, BrokenPipeError):
            raise NotRunningError(f"the layer of {state_dir} ended") from None
        except OSError as error:
            raise FusejournalError(
                f"the layer of {state_dir} went away: {error.strerror}"
            ) from None


def reply_in(who: str, line: bytes) -> dict[str, Any]:
    """Returns the reply in *line*, which *who*, a layer in words, has sent. Raises RemoteError for
    an error that it reports, FusejournalError for what is no reply."""
    try:
        reply = parse_object(line)
    except UNREADABLE_JSON:
        raise FusejournalError(f"{who} answers what is no reply") from None
    if "error" in reply:
        code = reply.get("exit_code")
        raise RemoteError(str(reply["error"]), code if type(code) is int else 1)
    return reply


def _connect(connection: socket.socket, state_dir: Path) -> None:
    try:
        fd = os.open(state_dir, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            connection.connect(f"/proc/self/fd/{fd}/control.sock")
        finally:
            os.close(fd)
    except (FileNotFoundError, ConnectionRefusedError):
        raise NotRunningError(f"no layer is running on {state_dir}") from None
    except OSError as error:
        raise FusejournalError(f"{state_dir}/control.sock: {error.strerror}") from None
