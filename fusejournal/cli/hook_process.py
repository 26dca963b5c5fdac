"""Runs shipped hooks, one after the other, in one process: for a volume that calls several of them
at one change of its role, because each as a program of its own would take longer to start than for
all that it does, and NFS clients wait meanwhile.

    python -m fusejournal.cli.hook_process

Each line of its standard input is a call, in JSON: ``arguments``, as of the command line, and
``environment``, the variables that are set for it. The answer is a line on its standard output:
``status`` and ``output``. It ends with its input, that is, with the volume's process at the latest.
SIGTERM, which systemd sends to all processes of a unit that stops, does not end it in the midst of
a call: the volume's process is to undo what was done. SIGINT ends a call, and what that runs."""

import io
import json
import os
import signal
import sys
from collections.abc import Sequence
from contextlib import redirect_stderr, redirect_stdout, suppress
from typing import IO

from fusejournal.cli.main import main as command_line
from fusejournal.errors import FusejournalError
from fusejournal.node.replies import HookOutcome


def serve(calls: IO[bytes], answers: IO[bytes]) -> None:
    """Run what *calls* has, and tell *answers* what came of it, until there is no more."""
    for line in calls:
        call = json.loads(line)
        os.environ.update(call["environment"])
        status, output = run(call["arguments"])
        outcome = HookOutcome(status=status, output=output)
        answers.write(json.dumps(outcome.to_json()).encode() + b"\n")
        answers.flush()


def run(arguments: Sequence[str]) -> tuple[int, str]:
    """Run the command line with *arguments*; returns its status and what it has printed."""
    printed = io.TextIOWrapper(io.BytesIO(), "utf-8", "backslashreplace", write_through=True)
    status = 0
    with redirect_stdout(printed), redirect_stderr(printed):
        try:
            command_line(arguments)
        except SystemExit as ended:
            status = ended.code if isinstance(ended.code, int) else 1
    printed.seek(0)
    return status, printed.read()


def main() -> None:
    """The process."""
    signal.signal(signal.SIGINT, signal.default_int_handler)  # (It may be ignored.)
    # (What is ignored would be ignored by the programs that hooks start, too.)
    signal.signal(signal.SIGTERM, lambda *_: None)
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    # What the first call would load and ask for while clients wait.
    import fusejournal.admin.nfs_move
    import fusejournal.cli.hook  # noqa: F401
    from fusejournal.nfs.client_records import remember_places

    with suppress(FusejournalError):  # told when it is asked for again
        remember_places()
    with suppress(KeyboardInterrupt):  # between two calls
        serve(sys.stdin.buffer, answers)


if __name__ == "__main__":
    main()
