"""Asking a running layer over its control socket (server.py), from the command line. Blocks."""

import json
import os
import socket
from pathlib import Path
from typing import Any

from fusejournal.errors import FusejournalError, NotRunningError

_REPLY_SECONDS = 60.0


class RemoteError(FusejournalError):
    """An error that the layer answered instead of a reply, with its exit code."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code


def ask(state_dir: Path, command: str, **fields: Any) -> dict[str, Any]:
    """Asks the layer of the volume in *state_dir*. Raises NotRunningError, RemoteError."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(_REPLY_SECONDS)
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
        try:
            connection.sendall(json.dumps({"command": command, **fields}).encode() + b"\n")
            with connection.makefile("rb") as lines:
                line = lines.readline()
        except TimeoutError:
            raise FusejournalError(f"the layer of {state_dir} does not answer") from None
        except (ConnectionResetError, BrokenPipeError):
            raise NotRunningError(f"the layer of {state_dir} ended") from None
        except OSError as error:
            raise FusejournalError(
                f"the layer of {state_dir} went away: {error.strerror}"
            ) from None
    if not line.endswith(b"\n"):  # not even half an answer counts
        raise NotRunningError(f"the layer of {state_dir} ended")
    reply: dict[str, Any] = json.loads(line)
    if "error" in reply:
        raise RemoteError(str(reply["error"]), int(reply.get("exit_code", 1)))
    return reply
