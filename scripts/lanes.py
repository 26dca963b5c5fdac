"""Runs all checks and tests, two jobs at a time and the guests beside them: the tests wait as much
as they work.

``python -m scripts.lanes [pytest's options]``; scripts/test calls it, once everything is installed.
A job is a process of its own, most often of pytest over some directories. Two lanes take jobs
from one list, whichever is free the next one, the long ones first; a third has the guests alone
(``tests/support/guest``), which are given the second processor when the list is empty. What a job
wrote is printed whole when it ends; the failures of all come once more at the very end, with the
time that each job and all took.

Each job has a mount namespace of its own. Another that unshares its mounts would otherwise keep
what this one unmounts. It leads a session of its own, so that Ctrl-C reaches it once, from here: an
interrupt, a SIGTERM or a SIGHUP is passed on to pytest, whose fixtures end and unmount what they
began, and waited for; one that comes five seconds later is passed on again. A runner that is killed
ends its jobs likewise (PR_SET_PDEATHSIG). SIGINT and SIGQUIT are as in a terminal in each job,
though a shell has them ignored in the background.

Source: mount_namespaces(7), prctl(2), setsid(2).
"""

import ctypes
import fcntl
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

HERE = Path(__file__).resolve().parent.parent
LIMIT_SECONDS = 20 * 60
"""The time that all should take on two processors. More is a warning, in the last lines, and no
failure: how much else a machine has to do must not decide whether a change lands."""

_BIN = HERE / ".venv/bin"
_LANES = 2
_POLL_SECONDS = 0.2
_AGAIN_SECONDS = 5.0
_LEFT = "fusejournal-test-"
"""The beginning of the names of runs' directories, among temporary files."""
_CLONE_NEWNS = 0x00020000
_MS_REC, _MS_PRIVATE = 1 << 14, 1 << 18
_PR_SET_PDEATHSIG = 1
_libc = ctypes.CDLL(None, use_errno=True)

MEASURED = {"unit": ("tests/unit", "tests/golden"), "property": ("tests/property",)}
"""Jobs whose coverage counts. They run from the sources, into which coverage and the tests' patches
reach; all others run what is compiled."""
LONG_FIRST = ("e2e", "package", "fault", "unit", "property", "model", "browser")
"""The order of the jobs that are known to be long. Each directory that is not named is one more."""


@dataclass
class Job:
    """One command and what came of it."""

    name: str
    commands: Sequence[Sequence[str | Path]]
    """Run one after the other; the job has failed when one of them has."""
    pure: bool = False
    held: Sequence[int] = ()
    """Descriptors that its processes have open, too, for as long as they live."""
    is_check: bool = False
    """True if nothing more is begun after it has failed."""
    log: Path = Path()
    process: subprocess.Popen[bytes] | None = None
    begun: float = 0.0
    seconds: float = 0.0
    failures: list[str] = field(default_factory=list)
    status: int | None = None
    next: int = 0

    def begin(self) -> None:
        """Start the next of its commands."""
        self.begun = self.begun or time.monotonic()
        command, environment = self.commands[self.next], dict(os.environ)
        self.next += 1
        if self.pure:
            environment["FUSEJOURNAL_PURE"] = "1"
        with open(self.log, "ab") as log:
            self.process = subprocess.Popen(
                command,
                cwd=HERE,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                pass_fds=self.held,
                preexec_fn=partial(_alone, os.getpid()),  # this process has one thread
            )

    def is_over(self) -> bool:
        """True once its last command, or one that failed, has ended; begins the next one."""
        assert self.process is not None
        status = self.process.poll()
        if status is None:
            return False
        self.status = self.status or status
        if status == 0 and self.next < len(self.commands):
            self.begin()
            return False
        self.seconds = time.monotonic() - self.begun
        self.failures = failures_of(self.words())
        if self.status != 0 and not self.failures:
            self.failures = [f"it ended with {self.status}"]
        return True

    def words(self) -> str:
        """Everything that it wrote."""
        return self.log.read_text(errors="replace") if self.log.exists() else ""


def _alone(runner: int) -> None:
    """Give the new process of a job of *runner*'s a session's signals and mounts of its own."""
    for number in (signal.SIGINT, signal.SIGQUIT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, set())
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
    if os.getppid() != runner:
        os._exit(1)  # it died before that
    flags = ctypes.c_ulong(_MS_REC | _MS_PRIVATE)
    if _libc.unshare(_CLONE_NEWNS) or _libc.mount(b"none", b"/", None, flags, None):
        reason = os.strerror(ctypes.get_errno())
        os.write(2, f"no mount namespace for a job: {reason}: CAP_SYS_ADMIN is needed\n".encode())
        os._exit(1)


def failures_of(log: str) -> list[str]:
    """The lines of pytest's summary that name what failed, and that of skips that may not be."""
    _, _, summary = log.rpartition("short test summary info")
    unlisted = re.findall(r"^skipped, and not on the list.*", log, re.M)
    return unlisted + re.findall(r"^(?:FAILED|ERROR) .*", summary, re.M)


def all_jobs(
    directory: Path, options: Sequence[str], descriptors: Sequence[int] = ()
) -> tuple[list[Job], Job]:
    """The jobs of the two lanes, in their order, and the guests'; what they keep for a while goes
    to *directory*, whose lock is among the *descriptors* that they have open, too."""

    def pytest(name: str, *arguments: str, by: Sequence[str | Path] = (_BIN / "python",)) -> Job:
        temporary = f"--basetemp={directory / name}"
        command = (*by, "-m", "pytest", temporary, *arguments, *options)
        return Job(name, [command], pure=name in MEASURED, held=descriptors)

    jobs = {}
    for name, tests in MEASURED.items():
        coverage = (_BIN / "coverage", "run", f"--data-file={directory / name}.coverage")
        jobs[name] = pytest(name, "-m", "not guest", *tests, by=coverage)
    held = {test for tests in MEASURED.values() for test in tests}
    for path in sorted({path.relative_to(HERE).parts[1] for path in tests_of_all()}):
        if f"tests/{path}" not in held and not is_of_guests(path):
            jobs[path] = pytest(path, "-m", "not guest", f"tests/{path}")
    order = {name: number for number, name in enumerate(LONG_FIRST)}
    checks = Job(
        "checks",
        [
            (_BIN / "ruff", "check", "."),
            (_BIN / "ruff", "format", "--check", "."),
            (_BIN / "lint-imports",),
            (_BIN / "mypy",),
        ],
        held=descriptors,
        is_check=True,
    )
    listed = sorted(jobs.values(), key=lambda job: order.get(job.name, len(order)))
    over = f"--guests-alone-when={directory / 'over'}"
    return [checks, *listed], pytest("guests", "-m", "guest", over, "tests")


def tests_of_all() -> list[Path]:
    """The modules of all tests."""
    return list(HERE.glob("tests/**/test_*.py"))


def is_of_guests(name: str) -> bool:
    """True if all tests of tests/NAME, a directory or a module, are marked to run in guests."""
    place = HERE / "tests" / name
    modules = [place] if place.is_file() else place.rglob("test_*.py")
    return all("pytestmark = pytest.mark.guest" in path.read_text() for path in modules)


class Runner:
    """Both lanes and the guests."""

    def __init__(self, directory: Path, jobs: Sequence[Job], guests: Job) -> None:
        """Logs, and the sign that the lanes are through, go to *directory*."""
        self._directory = directory
        self._waiting = list(jobs)
        self._guests = guests
        self._running: list[Job] = []
        self._done: list[Job] = []
        self._is_told = False
        """True if a signal has come that is not passed on yet."""
        self._is_ending = False
        self._told_at = 0.0
        self._shown = 0.0
        self.seconds = 0.0
        """The time that all took."""

    def run(self) -> int:
        """Returns the exit code of the whole."""
        begun = time.monotonic()
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, self._note)
        try:
            self._begin(self._guests)
            while self._running or self._waiting:
                if self._is_told:
                    self._is_told = False
                    self.end()
                self._fill_lanes()
                self._reap()
                self._show_progress()
                time.sleep(_POLL_SECONDS)
        except BaseException:
            self.end()
            for job in self._running:
                if job.process is not None:
                    job.process.wait()
            raise
        self.seconds = time.monotonic() - begun
        self._sum_up()
        return 1 if self._is_ending or any(job.status for job in self._done) else 0

    def _note(self, *_: object) -> None:
        # Only this: a job that is being begun is in no list yet.
        self._is_told = True

    def end(self) -> None:
        """Begin nothing more, and tell what runs to clean up and end."""
        self._is_ending = True
        self._waiting.clear()
        now = time.monotonic()
        if now - self._told_at < _AGAIN_SECONDS:
            return
        self._told_at = now
        for job in self._running:
            # By its status, which is 0 until then, no other command of it is begun.
            job.status = job.status or 130
            job.next = len(job.commands)
            if job.process is not None and job.process.poll() is None:
                job.process.send_signal(signal.SIGINT)
        _say("ends, as it was told; waiting until all has been cleaned up")

    def _begin(self, job: Job) -> None:
        job.log = self._directory / f"{job.name}.log"
        job.begin()
        self._running.append(job)
        if not sys.stdout.isatty():
            _say(f"{job.name} begins")

    def _fill_lanes(self) -> None:
        beside = self._guests in self._running
        while self._waiting and len(self._running) - beside < _LANES:
            self._begin(self._waiting.pop(0))
        if not self._waiting and not [job for job in self._running if job is not self._guests]:
            (self._directory / "over").touch()

    def _reap(self) -> None:
        for job in [job for job in self._running if job.is_over()]:
            self._running.remove(job)
            self._done.append(job)
            _say(f"---- {job.name}, {job.seconds:.0f} s " + "-" * 60)
            print(job.words(), flush=True)
            if job.is_check and job.status != 0:
                self.end()

    def _show_progress(self) -> None:
        if not sys.stdout.isatty() or time.monotonic() - self._shown < 1:
            return
        self._shown = time.monotonic()
        shown = []
        for job in self._running:
            percents = re.findall(r"\[ *(\d+%)\]", job.words()[-2000:])
            shown.append(f"{job.name} {percents[-1] if percents else '...'}")
        print("\r\x1b[K" + "   ".join(shown), end="", flush=True)

    def _sum_up(self) -> None:
        for job in sorted(self._done, key=lambda job: -job.seconds):
            print(f"{job.name:12} {job.seconds:6.0f} s  {'FAILED' if job.status else 'passed'}")
        for job in self._done:
            for line in job.failures if job.status else ():
                print(f"{job.name}: {line}")
        print(f"all took {self.seconds:.0f} s", flush=True)


def highest_floor(top: Path) -> int:
    """The highest ``fail_under`` that the pyproject.toml in *top* has had by its history in git; 0
    where that is not there."""
    command = ["git", "log", "-p", "--format=", "-G^fail_under", "--", "pyproject.toml"]
    try:
        done = subprocess.run(command, cwd=top, capture_output=True, text=True)
    except FileNotFoundError:
        return 0
    return max(map(int, re.findall(r"^[+-]fail_under = (\d+)", done.stdout, re.M)), default=0)


def report_coverage(directory: Path) -> int:
    """Report what the measured jobs left in *directory*: 0 if it is as pyproject.toml wants it.
    Coverage is measured where the tests' own process does the work: in layers it would cost more
    than it tells."""
    coverage, data = _BIN / "coverage", [directory / f"{name}.coverage" for name in MEASURED]
    if not all(path.exists() for path in data):
        _say("coverage: was not measured")
        return 1
    subprocess.run([coverage, "combine", "-q", *data], cwd=HERE, check=True)
    done = subprocess.run([coverage, "report"], cwd=HERE, stdout=subprocess.PIPE, text=True)
    print(done.stdout, flush=True)
    project = tomllib.loads((HERE / "pyproject.toml").read_text())
    floor = project["tool"]["coverage"]["report"]["fail_under"]
    if floor < (highest := highest_floor(HERE)):
        _say(f"coverage: fail_under in pyproject.toml is {floor}, was {highest}, and only grows")
        return 1
    total = re.search(r"^TOTAL .* (\d+)%$", done.stdout, re.M)
    if total is None or int(total[1]) > floor + 2:
        _say("coverage: has grown by more than two percent: raise fail_under in pyproject.toml")
        return 1
    if done.returncode:
        _say(f"coverage: is below {floor} percent")
    return done.returncode


def _say(line: str) -> None:
    print("\r\x1b[K" + line if sys.stdout.isatty() else line, flush=True)


def _new_directory() -> tuple[Path, int]:
    """A directory for this run, and the descriptor whose lock says that the run lives, or one of
    its jobs, which may clean up after a runner that was killed; what runs left that do not live any
    more is removed."""
    top = Path(tempfile.gettempdir())
    for path in top.glob(f"{_LEFT}*"):
        try:
            fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        except OSError:
            continue  # another user's, or another run has just removed it
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(path, ignore_errors=True)
        except BlockingIOError:
            continue
        finally:
            os.close(fd)
    made = Path(tempfile.mkdtemp(prefix=_LEFT))
    fd = os.open(made, os.O_RDONLY | os.O_DIRECTORY)
    fcntl.flock(fd, fcntl.LOCK_EX)
    return made, fd


def main() -> None:
    """Run it all; the exit code is 0 if everything holds."""
    directory, fd = _new_directory()
    jobs, guests = all_jobs(directory, sys.argv[1:], (fd,))
    runner = Runner(directory, jobs, guests)
    status = runner.run()
    # Where a job was ended, what it would have reached is not known.
    if not status:
        status = report_coverage(directory)
    if status == 0:
        shutil.rmtree(directory, ignore_errors=True)
    else:
        print(f"what it left is in {directory}, until the next run")
    if runner.seconds > LIMIT_SECONDS:
        _say(f"warning: all took {runner.seconds:.0f} s, and should take {LIMIT_SECONDS} s at most")
    os.close(fd)
    sys.exit(status)


if __name__ == "__main__":
    main()
