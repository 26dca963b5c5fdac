"""Starts a volume's layer: in a process of its own, which reports to the one that waits for it how
far it is. Both ends of that pipe are here; the process that waits never loads the node.

A report is a line of JSON: progress, a warning, an error with its exit code, or that the mount is
live, which is the last."""

import json
import os
import select
import shlex
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from fusejournal.admin.live import live_status
from fusejournal.admin.mount_options import MountOptions
from fusejournal.control.client import RemoteError
from fusejournal.control.reply import Reply
from fusejournal.disk import calls, mounts
from fusejournal.disk.process import WORKING_DIRECTORY, python_module
from fusejournal.errors import FusejournalError, MountError, VolumeNotFoundError
from fusejournal.node.spec import MountSpec, Reporter
from fusejournal.node.state_dir import VolumeState, load_state, make_directory
from fusejournal.node.volume_status import Condition
from fusejournal.roles.role import Role

_REPORT_FD = "FUSEJOURNAL_REPORT_FD"
"""The variable in the environment of a layer's process that names where it reports to."""
_IMPORT_BYTES = "FUSEJOURNAL_IMPORT_BYTES"
"""The variable in that environment that tells MountSpec.import_bytes. It is not in the arguments,
by which the process is started again."""
_REPORT_SECONDS = 0.1
_STOP_SECONDS = 60.0


@dataclass(frozen=True, kw_only=True)
class StartReport(Reply):
    """A line that the layer's process reports: it has one of these."""

    OMITTED: ClassVar[frozenset[str]] = frozenset(
        {"progress", "warning", "error", "exit_code", "ready", "imported"}
    )

    progress: tuple[str, int, int | None, str] | None = None
    """The stage, how much of how much is done, and the unit of that."""
    warning: str | None = None
    error: str | None = None
    """The error that ends the process."""
    exit_code: int | None = None
    ready: bool | None = None
    """True once the mount is live."""
    imported: int | None = None
    """The number of files and directories that were imported."""


# -- the process that waits ------------------------------------------------------------------------


def foreground_arguments(spec: MountSpec, asked: MountOptions) -> list[str]:
    """The command line of the layer's process for the mount *spec*, which came of what was
    *asked*: the same in whichever directory."""
    arguments = ["mount", "-f", f"--name={spec.name}", f"--state={spec.state_dir}"]
    arguments += asked.as_arguments()
    return [*arguments, "--", str(spec.backing), str(spec.mountpoint)]


def start_volume(
    spec: MountSpec,
    asked: MountOptions,
    reporter: Reporter,
    *,
    import_bytes: int | None = None,
) -> int:
    """Make the mount *spec*, which came of what was *asked*, in a process of its own; return when
    it is live, while *reporter* gets how far it is. Returns how many files and directories were
    imported. *import_bytes*: see MountSpec. KeyboardInterrupt stops it. Raises FusejournalError, as
    the process reported it."""
    log_path = spec.state_dir / "log"
    is_made, is_log_made = not spec.state_dir.is_dir(), not log_path.exists()
    make_directory(spec.state_dir)
    read_fd, write_fd = os.pipe()
    limits = {} if import_bytes is None else {_IMPORT_BYTES: str(import_bytes)}
    with open(log_path, "ab") as log_file:
        child = subprocess.Popen(
            python_module("fusejournal", *foreground_arguments(spec, asked)),
            env={**os.environ, **limits, _REPORT_FD: str(write_fd)},
            pass_fds=[write_fd],
            # Neither the caller's directory nor its session is the layer's to hold.
            cwd=WORKING_DIRECTORY,
            start_new_session=True,
            stdin=subprocess.DEVNULL,
            stdout=log_file,
            stderr=log_file,
        )
    os.close(write_fd)
    report: StartReport | None = None
    try:
        with open(read_fd, encoding="utf-8") as reports:
            for line in reports:
                report = StartReport.from_line("the layer", line)
                if report.progress is not None:
                    reporter.progress(*report.progress)
                if report.warning is not None:
                    reporter.warning(report.warning)
                if report.error is not None:
                    break
                if report.ready:
                    return report.imported or 0
    except (KeyboardInterrupt, FusejournalError):
        child.send_signal(signal.SIGTERM)
        child.wait()
        raise
    child.wait()
    if report is not None and report.error is not None:
        _take_back(spec.state_dir, is_made, is_log_made)
        raise RemoteError(report.error, report.exit_code or 1)
    lines = log_path.read_text(errors="replace").strip().splitlines()
    raise MountError(
        f"the layer ended with status {child.returncode}: "
        f"{lines[-1] if lines else 'no word'} (see {log_path})"
    )


def mounted_words(state: VolumeState, *, read_only: bool) -> str:
    """Returns what is mounted, once it is live, and what comes of changes there; where none are
    taken, what to do."""
    words = f"volume {state.name} is mounted at {state.mountpoint}"
    if read_only:
        return f"{words}, to be read only"
    if state.role is Role.UNINITIALIZED:
        return (
            f"{words}: a mirror that no primary has shipped to; if the two are not paired: "
            f"'fusejournal pair {shlex.quote(state.name)}' here first"
        )
    if state.is_mirror:
        return f"{words}: a mirror, which only its primary changes"
    with suppress(FusejournalError):
        if live_status(state).state is Condition.READ_ONLY:
            return (
                f"{words}, but takes no change: 'fusejournal status {shlex.quote(state.name)}' "
                "says what to do"
            )
    return f"{words}: changes there are journaled"


def _take_back(state_dir: Path, is_made: bool, is_log_made: bool) -> None:
    """Remove what was made here for a volume of which the layer, refused, has left nothing."""
    with suppress(OSError):
        if is_log_made and os.listdir(state_dir) == ["log"]:
            (state_dir / "log").unlink()
            if is_made:
                state_dir.rmdir()


def start_unless_live(spec: MountSpec, asked: MountOptions, reporter: Reporter) -> bool:
    """Does what :func:`start_volume` does, unless the volume is mounted there already; waits for a
    layer whose mount was taken away. Returns False where nothing was done. Raises
    FusejournalError."""
    if is_live(spec):
        return False
    _await_stop(spec)
    if is_live(spec):
        return False
    start_volume(spec, asked, reporter)
    return True


def is_live(spec: MountSpec) -> bool:
    """Returns True if this very volume is mounted there by a layer that lives. Does not touch the
    mount, which may hang."""
    return _holder(spec).get("mountpoint") == str(spec.mountpoint) and any(
        one.mountpoint == spec.mountpoint and one.type == mounts.FILESYSTEM_TYPE
        for one in mounts.mounts()
    )


def _holder(spec: MountSpec) -> dict[str, Any]:
    """Returns the word that the layer which has this volume left in its lock; empty when none has
    it."""
    with suppress(VolumeNotFoundError):
        return load_state(spec.state_dir).holder() or {}
    return {}


def _await_stop(spec: MountSpec) -> None:
    """Wait for a layer whose mount was taken away to end, for as long as that may take; one that
    is only starting may get its mount meanwhile."""
    deadline = time.monotonic() + _STOP_SECONDS
    try:
        process = os.pidfd_open(_holder(spec)["pid"])
    except (KeyError, ProcessLookupError):
        return
    try:
        while not is_live(spec) and time.monotonic() < deadline:
            if select.select([process], [], [], 0.2)[0]:
                return
    finally:
        os.close(process)


# -- the layer's process ---------------------------------------------------------------------------


class PipeReporter:
    """Reports through a pipe, until the mount is live; a reader that is gone does not matter."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._sent = 0.0

    def progress(self, stage: str, done: int, total: int | None, unit: str) -> None:
        """Report progress; not more often than ten times a second."""
        if time.monotonic() > self._sent + _REPORT_SECONDS:
            self._sent = time.monotonic()
            self._send(StartReport(progress=(stage, done, total, unit)))

    def warning(self, text: str) -> None:
        """Report a warning."""
        self._send(StartReport(warning=text))

    def error(self, text: str, exit_code: int) -> None:
        """Report what ends the process. Nothing is reported after it."""
        self._send(StartReport(error=text, exit_code=exit_code))
        self._close()

    def ready(self, imported: int) -> None:
        """Report that the mount is live. The pipe has no reader from here on."""
        self._send(StartReport(ready=True, imported=imported))
        self._close()

    def _close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _send(self, report: StartReport) -> None:
        if self._fd >= 0:
            with suppress(OSError):
                line = json.dumps(report.to_json()).encode() + b"\n"
                calls.write_all("reporter.send", self._fd, line)


def has_parent() -> bool:
    """True if :func:`start_volume` began this process, and waits for its reports."""
    return _REPORT_FD in os.environ


def take_import_bytes() -> int | None:
    """Returns MountSpec.import_bytes as the process that waits has said it, once."""
    told = os.environ.pop(_IMPORT_BYTES, None)
    return None if told is None else int(told)


@contextmanager
def reporting_to_parent() -> Iterator[Reporter]:
    """A reporter to the process that waits; an error that ends the block is reported, too."""
    reporter = PipeReporter(int(os.environ.pop(_REPORT_FD)))
    try:
        yield reporter
    except FusejournalError as error:
        reporter.error(str(error), error.exit_code)
        raise
    except OSError as error:
        where = f"{os.fsdecode(error.filename)}: " if error.filename else ""
        reporter.error(f"{where}{error.strerror or error}", 1)
        raise
