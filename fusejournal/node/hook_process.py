"""The process that runs the hooks that are shipped (cli/hook_process.py), for as long as a change
of the role goes on.

It is begun when the change is, and has started by the time when the first hook is due. A hook whose
process is gone before it was called gets another. May be used from one thread after the other, and
ended by one while another waits for a hook."""

import json
import os
import signal
import subprocess
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO, Final

import trio

from fusejournal.disk.process import WORKING_DIRECTORY, python_module
from fusejournal.errors import FusejournalError
from fusejournal.node.replies import HookOutcome

_COMMAND = "fusejournal"
_GRACE_SECONDS: Final = 5.0


class HookProcess:
    """The process, when there is one."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._called: subprocess.Popen[bytes] | None = None
        """The process that runs a hook, while it does."""

    def begin(self) -> None:
        """Start it, unless it runs; returns at once. Raises OSError."""
        if self._process is not None and self._process.poll() is None:
            return
        self.end()
        self._process = subprocess.Popen(
            python_module("fusejournal.cli.hook_process"),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=WORKING_DIRECTORY,
        )

    def run(self, arguments: Sequence[str], environment: Mapping[str, str]) -> tuple[int, bytes]:
        """Run a hook by its *arguments* of the command line, with *environment* beside what the
        process has; returns its status and output. Blocks, until another thread calls :meth:`end`
        at the latest. Raises OSError."""
        self.begin()
        process = self._process
        if process is None:
            raise ProcessLookupError
        call = {"arguments": list(arguments), "environment": dict(environment)}
        answer, self._called = b"", process
        with suppress(BrokenPipeError, ValueError):  # it is gone, or its pipes are closed, too
            _pipe(process.stdin).write(json.dumps(call).encode() + b"\n")
            _pipe(process.stdin).flush()
            answer = _pipe(process.stdout).readline()
        if self._called is process:
            self._called = None
        if not answer.endswith(b"\n"):
            raise ChildProcessError("its process has died")
        try:
            outcome = HookOutcome.from_line("its process", answer)
        except FusejournalError as error:
            raise ChildProcessError(str(error)) from None
        return outcome.status, outcome.output.encode()

    def end(self) -> None:
        """End it, also in the midst of a hook: that is interrupted, ends what it runs, and is
        killed where this takes longer than ``_GRACE_SECONDS``. Blocks."""
        process, self._process = self._process, None
        if process is not None:
            self._end(process)

    async def end_aside(self) -> None:
        """Do :meth:`end` in a thread. Cancelling does nothing."""
        process, self._process = self._process, None
        if process is not None:
            with trio.CancelScope(shield=True):
                await trio.to_thread.run_sync(self._end, process)

    def _end(self, process: subprocess.Popen[bytes]) -> None:
        with suppress(BrokenPipeError):
            _pipe(process.stdin).close()  # which ends one that runs no hook
        if self._called is process:
            process.send_signal(signal.SIGINT)
        with suppress(subprocess.TimeoutExpired):
            process.wait(_GRACE_SECONDS)
        process.kill()
        with process:  # waits for its end, and closes the pipes
            pass


def shipped(arguments: Sequence[str]) -> list[str] | None:
    """Returns the arguments of the command line that the program with *arguments* is given, where
    it is one of our own hooks, of this installation; None: it is another's."""
    module = python_module(_COMMAND)
    ours = Path(module[0]).parent / _COMMAND
    if list(arguments[: len(module)]) == module:
        rest = list(arguments[len(module) :])
    elif os.path.realpath(arguments[0]) == os.path.realpath(ours):
        rest = list(arguments[1:])
    else:
        return None
    return rest if rest[:1] == ["hook"] else None


def _pipe(end: IO[bytes] | None) -> IO[bytes]:
    assert end is not None
    return end
