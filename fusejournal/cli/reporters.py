"""Shows how far the start of a layer is: on the console, and to systemd."""

import logging
import os
import socket
import time
from contextlib import suppress
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

from fusejournal.cli.text import echo, line

_PLAIN_PERIOD_SECONDS = 5.0


class LineFormatter(logging.Formatter):
    """Formats a record as one line, whatever names are in it; a traceback follows line by line."""

    def formatMessage(self, record: logging.LogRecord) -> str:
        """Returns the record as one line, whatever names are in it."""
        return line(super().formatMessage(record))

    def formatException(self, ei: Any) -> str:
        """Returns the traceback, each of its lines as one."""
        return "\n".join(map(line, super().formatException(ei).split("\n")))


def sd_notify(message: str) -> None:
    """Send *message* to systemd, if it wants to know. Source: sd_notify(3)."""
    address = os.environ.get("NOTIFY_SOCKET")
    if not address:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender, suppress(OSError):
        sender.connect("\0" + address[1:] if address.startswith("@") else address)
        # A line each: a name could bring a message of its own otherwise.
        sender.sendall(line(message).encode())


class ConsoleReporter:
    """Shows progress as a bar on a terminal, as a line now and then elsewhere."""

    def __init__(self) -> None:
        self._console = Console(stderr=True)
        self._progress: Progress | None = None
        self._task: Any = None
        self._stage = ""
        self._said = 0.0

    def __enter__(self) -> "ConsoleReporter":
        return self

    def __exit__(self, *_: object) -> None:
        self._end_stage()

    def progress(self, stage: str, done: int, total: int | None, unit: str) -> None:
        """Show progress: on a terminal at once, elsewhere now and then."""
        if stage != self._stage:
            self._end_stage()
            self._stage = stage
            self._said = time.monotonic()
            if self._console.is_terminal:
                self._progress = _bar(unit, self._console)
                self._task = self._progress.add_task(stage, total=total)
                self._progress.start()
        if self._progress is not None:
            self._progress.update(self._task, completed=done, total=total)
        elif time.monotonic() > self._said + _PLAIN_PERIOD_SECONDS:
            self._said = time.monotonic()
            told = f"{stage}: {done} of {total if total is not None else '?'} {unit}"
            echo(told, err=True)
            sd_notify(f"STATUS={told}")

    def warning(self, text: str) -> None:
        """Print a warning."""
        echo(f"fusejournal: warning: {text}", err=True)

    def ready(self, imported: int) -> None:
        """End the bar, and tell systemd."""
        self._end_stage()
        sd_notify("READY=1")

    def _end_stage(self) -> None:
        if self._progress is not None:
            self._progress.stop()
            self._progress = None
        self._stage = ""


def _bar(unit: str, console: Console) -> Progress:
    if unit == "bytes":
        return Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            DownloadColumn(),
            TransferSpeedColumn(),
            TimeRemainingColumn(),
            console=console,
        )
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=console,
    )
