"""``fusejournal mount``: in the foreground, or in a process of its own that says when it is
ready."""

import json
import logging
import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import click
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

from fusejournal.config import load_config
from fusejournal.errors import FusejournalError, MountError, PrivilegeError, UsageError
from fusejournal.mountspec import MountSpec
from fusejournal.node import serve
from fusejournal.state import check_name, default_name, state_root

_REPORT_FD = "FUSEJOURNAL_REPORT_FD"
_FLAGS = {"nosuid", "nodev", "noexec"}
_DEFAULTS = {"rw", "suid", "dev", "exec", "defaults"}
_PLAIN_PERIOD_SECONDS = 5.0


@click.command(short_help="Put a journaled layer over a directory.")
@click.argument("backing", type=click.Path(path_type=Path))
@click.argument("mountpoint", type=click.Path(path_type=Path))
@click.option(
    "--name", help="The volume's name; from the mountpoint by default (/srv/data: srv-data)."
)
@click.option(
    "--state",
    type=click.Path(path_type=Path),
    help="State directory  [default: /var/lib/fusejournal/NAME]",
)
@click.option("--config", type=click.Path(path_type=Path), help="Configuration in TOML.")
@click.option(
    "-f",
    "--foreground",
    is_flag=True,
    help="Stay in the foreground; tells systemd when it is ready.",
)
@click.option(
    "-o",
    "options",
    multiple=True,
    metavar="OPT,...",
    help="ro, nosuid, nodev, noexec (and their opposites).",
)
def mount(
    backing: Path,
    mountpoint: Path,
    name: str | None,
    state: Path | None,
    config: Path | None,
    foreground: bool,
    options: tuple[str, ...],
) -> None:
    """Mount a journaled layer over the directory BACKING at MOUNTPOINT; returns when it is live.

    Both may be the same directory: the layer then covers it in place. What BACKING already holds
    is imported into the journal at the first mount. From then on leave BACKING itself alone.

    \b
    Examples:
      fusejournal mount /srv/data /srv/data
      fusejournal mount /disk/homes /home --name homes
      fusejournal mount -f -o nosuid,nodev --config /etc/fusejournal/lab.toml /disk/lab /srv/lab
    """
    if os.geteuid() != 0:
        raise PrivilegeError("mounting needs root: try sudo")
    mountpoint = _resolve(mountpoint)
    words = {word for option in options for word in option.split(",") if word}
    unknown = words - _FLAGS - _DEFAULTS - {"ro"}
    if unknown:
        raise UsageError(
            f"unknown mount option {min(unknown)!r}: ro, {', '.join(sorted(_FLAGS))} are known"
        )
    name = check_name(name or (_name_in(state) if state else None) or default_name(mountpoint))
    spec = MountSpec(
        name=name,
        state_dir=_resolve(state or state_root() / name),
        backing=_resolve(backing),
        mountpoint=mountpoint,
        config=load_config(config),
        read_only="ro" in words,
        mount_flags=frozenset(words & _FLAGS),
    )
    if not foreground:
        _mount_in_background(spec.state_dir)
    elif _REPORT_FD in os.environ:
        _serve_for_parent(spec)
    else:
        _set_up_log(spec)
        with ConsoleReporter() as reporter:
            serve(spec, reporter)


def _resolve(path: Path) -> Path:
    """Absolute, without symlinks; the last part is not touched, for a dead mount may be there."""
    path = Path(os.path.abspath(path))
    if path.parent == path:
        return path
    parent = path.parent.resolve()
    with suppress(OSError):
        if (parent / path.name).is_symlink():
            return (parent / path.name).resolve()
    return parent / path.name


def _name_in(state: Path) -> str | None:
    with suppress(OSError, ValueError, KeyError, TypeError):
        return str(json.loads((state / "volume.json").read_text())["name"])
    return None


def _set_up_log(spec: MountSpec) -> None:
    logging.basicConfig(
        level=spec.config.log.level.upper(),
        format="%(asctime)s %(levelname)s %(name)s: %(message)s",
        stream=sys.stderr,
    )


def sd_notify(message: str) -> None:
    """Tell systemd, if it wants to know. Source: sd_notify(3)."""
    address = os.environ.get("NOTIFY_SOCKET")
    if not address:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender, suppress(OSError):
        sender.connect("\0" + address[1:] if address.startswith("@") else address)
        sender.sendall(message.encode())


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
        """See Reporter."""
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
            click.echo(f"{stage}: {done} of {total if total is not None else '?'} {unit}", err=True)

    def warning(self, text: str) -> None:
        """See Reporter."""
        click.echo(f"fusejournal: warning: {text}", err=True)

    def ready(self) -> None:
        """See Reporter."""
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


class PipeReporter:
    """The background process's side: JSON lines to the process that started it, until it is
    ready."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._sent = 0.0

    def progress(self, stage: str, done: int, total: int | None, unit: str) -> None:
        """See Reporter; ten times a second are enough."""
        if time.monotonic() > self._sent + 0.1:
            self._sent = time.monotonic()
            self.send({"progress": [stage, done, total, unit]})

    def warning(self, text: str) -> None:
        """See Reporter."""
        self.send({"warning": text})

    def ready(self) -> None:
        """See Reporter. Nobody reads from here on."""
        self.send({"ready": True})
        os.close(self._fd)
        self._fd = -1

    def send(self, message: dict[str, Any]) -> None:
        """Send one message; a parent that is gone does not matter."""
        if self._fd >= 0:
            with suppress(OSError):
                os.write(self._fd, json.dumps(message).encode() + b"\n")


def _serve_for_parent(spec: MountSpec) -> None:
    reporter = PipeReporter(int(os.environ.pop(_REPORT_FD)))
    _set_up_log(spec)
    try:
        serve(spec, reporter)
    except FusejournalError as error:
        reporter.send({"error": str(error), "exit_code": error.exit_code})
        raise
    except OSError as error:
        where = f"{os.fsdecode(error.filename)}: " if error.filename else ""
        reporter.send({"error": f"{where}{error.strerror or error}", "exit_code": 1})
        raise


def _mount_in_background(state_dir: Path) -> None:
    """Start this same command with -f in a session of its own, and follow what it reports until it
    is ready."""
    state_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    log_path = state_dir / "log"
    read_fd, write_fd = os.pipe()
    with open(log_path, "ab") as log_file:
        child = subprocess.Popen(
            [sys.executable, "-m", "fusejournal", *sys.argv[1:], "-f"],
            env={**os.environ, _REPORT_FD: str(write_fd)},
            pass_fds=[write_fd],
            stdin=subprocess.DEVNULL,
            stdout=log_file,
            stderr=log_file,
            start_new_session=True,
        )
    os.close(write_fd)
    try:
        with ConsoleReporter() as reporter, open(read_fd, encoding="utf-8") as reports:
            for line in reports:
                report = json.loads(line)
                if "progress" in report:
                    reporter.progress(*report["progress"])
                elif "warning" in report:
                    reporter.warning(report["warning"])
                elif "error" in report:
                    child.wait()
                    failure = FusejournalError(report["error"])
                    failure.exit_code = report["exit_code"]
                    raise failure
                elif "ready" in report:
                    return
    except KeyboardInterrupt:
        child.send_signal(signal.SIGTERM)
        child.wait()
        raise
    child.wait()
    lines = log_path.read_text(errors="replace").strip().splitlines()
    raise MountError(
        f"the layer ended with status {child.returncode}: "
        f"{lines[-1] if lines else 'no word'} (see {log_path})"
    )
