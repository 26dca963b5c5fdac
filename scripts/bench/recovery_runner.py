"""Commands that are run to their end, with their time, and the memory that they and their workers
take."""

import ctypes
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

MB = 10**6
_PR_SET_CHILD_SUBREAPER = 36


class Ran(NamedTuple):
    """The time, the memory and the output of a command."""

    seconds: float
    rss_mb: float
    output: bytes


class Runner:
    """Runs commands and keeps the peak memory of each kind of them."""

    def __init__(self, base: Path, environment: dict[str, str]) -> None:
        self._base = base
        self._environment = environment
        self.rss_mb: dict[str, float] = {}
        # Workers whose parent ended first become ours, so that their memory is counted, too.
        if ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
            raise OSError("prctl")

    def fusejournal(self, label: str, *arguments: object, keep: bool = True) -> Ran:
        """Run a fusejournal command; *keep* its output or throw it away."""
        ran = self.run(sys.executable, "-m", "fusejournal", *arguments, keep=keep)
        self.rss_mb[label] = max(self.rss_mb.get(label, 0), ran.rss_mb)
        return ran

    def run(self, *command: object, keep: bool = True) -> Ran:
        """Run a command to its end. Raises SystemExit when it fails."""
        with tempfile.TemporaryFile(dir=self._base) as output:
            begun = time.perf_counter()
            process = subprocess.Popen(
                [str(word) for word in command],
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=output if keep else subprocess.DEVNULL,
                start_new_session=True,
            )
            try:
                seconds, rss_mb = self._wait(process, begun)
            except BaseException:
                os.killpg(process.pid, signal.SIGKILL)
                while _reap(process.pid) is not None:
                    pass
                process.returncode = -signal.SIGKILL
                raise
            if process.returncode != 0:
                raise SystemExit(f"{process.args!r}: ended with {process.returncode}")
            output.seek(0)
            return Ran(seconds, rss_mb, output.read())

    def _wait(self, process: subprocess.Popen[bytes], begun: float) -> tuple[float, float]:
        """Wait for *process* and all that it leaves behind; seconds until its own end, and peak
        memory."""
        seconds = rss_mb = 0.0
        while (ended := _reap(process.pid)) is not None:
            pid, status, usage = ended
            rss_mb = max(rss_mb, usage.ru_maxrss * 1024 / MB)
            if pid == process.pid:
                seconds = time.perf_counter() - begun
                process.returncode = os.waitstatus_to_exitcode(status)
        return seconds, rss_mb


def _reap(group: int) -> tuple[int, int, Any] | None:
    try:
        return os.wait4(-group, 0)
    except ChildProcessError:
        return None


def warm(paths: Iterable[Path]) -> None:
    """Have these files in the page cache."""
    buffer = bytearray(1 << 20)
    for path in paths:
        if path.is_file() and not path.is_symlink():
            with open(path, "rb", buffering=0) as file:
                while file.readinto(buffer):
                    pass
