"""The runner of all tests: no test is in no job, each job is waited for, and its end is told."""

import fcntl
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from scripts.lanes import HERE, Job, all_jobs, failures_of, highest_floor, is_of_guests

_RUN = """
import sys
from pathlib import Path
from scripts.lanes import Job, Runner

directory = Path(sys.argv[1])
jobs = [Job(str(number), [["sh", "-c", text]]) for number, text in enumerate(sys.argv[2:])]
sys.exit(Runner(directory, jobs[1:], jobs[0]).run())
"""
_WAITS = "trap 'sleep 0.2; echo cleaned up; exit 2' INT; echo up; while :; do sleep 0.05; done"


_GUESTS = "pytestmark = pytest.mark.guest\n"


def _runner(directory: Path, *scripts: str) -> "subprocess.Popen[str]":
    """A runner of these jobs, the first in place of the guests."""
    return subprocess.Popen(
        [sys.executable, "-c", _RUN, str(directory), *scripts],
        cwd=HERE,
        stdout=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_IGN),
    )


def _await_word(path: Path, word: str) -> None:
    deadline = time.monotonic() + 60
    while word not in (path.read_text() if path.exists() else ""):
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_each_test_is_in_one_job(tmp_path: Path) -> None:
    jobs, guests = all_jobs(tmp_path, ["--strict-skips"], (7,))
    assert all(job.held == (7,) for job in (*jobs, guests))
    command = guests.commands[0]
    assert command[command.index("-m", 3) :][:2] == ("-m", "guest")
    assert "tests" in command
    places = [str(word) for job in jobs for word in job.commands[0] if str(word)[:6] == "tests/"]
    for path in HERE.glob("tests/**/test_*.py"):
        directory = path.relative_to(HERE).parts[1]
        assert places.count(f"tests/{directory}") == (not is_of_guests(directory)), path
    for job in jobs:
        assert job.name == "checks" or "--strict-skips" in job.commands[0]


def test_a_module_beside_the_directories_is_a_job_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, text in (("test_x", ""), ("unit/test_y", ""), ("nfs/test_z", _GUESTS)):
        (tmp_path / f"tests/{name}.py").parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / f"tests/{name}.py").write_text(text)
    (tmp_path / "tests/test_guests.py").write_text(_GUESTS)
    monkeypatch.setattr("scripts.lanes.HERE", tmp_path)
    jobs, _ = all_jobs(tmp_path, [])
    assert [job.name for job in jobs] == ["checks", "unit", "property", "test_x.py"]
    assert "tests/test_x.py" in jobs[-1].commands[0]


def test_what_failed_is_told_last_and_in_the_exit_code(tmp_path: Path) -> None:
    failing = "echo '== short test summary info =='; echo 'FAILED tests/x.py::test_y - no'; exit 1"
    runner = _runner(tmp_path, "echo guests", "echo first", failing, "sleep 0.3; echo last")
    said, _ = runner.communicate(timeout=60)
    assert runner.returncode == 1
    assert all(f"\n{word}\n" in said for word in ("guests", "first", "last"))
    assert "2: FAILED tests/x.py::test_y - no\nall took " in said
    runner = _runner(tmp_path, "true", "true")
    said, _ = runner.communicate(timeout=60)
    assert (runner.returncode, "FAILED" in said) == (0, False)


def test_a_job_that_ended_without_a_summary_has_failed(tmp_path: Path) -> None:
    runner = _runner(tmp_path, "true", "kill -9 $$")
    assert "1: it ended with -9" in runner.communicate(timeout=60)[0]
    assert runner.returncode == 1
    log = "skipped, and not on the list: ['x']\n== short test summary info ==\nSKIPPED [1] y: x\n"
    assert failures_of(log) == ["skipped, and not on the list: ['x']"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_reaches_each_job_once_and_they_are_waited_for(
    tmp_path: Path, number: int
) -> None:
    """Also where the runner was begun with interrupts ignored, as in the background of a shell."""
    runner = _runner(tmp_path, _WAITS, _WAITS, _WAITS, "echo never")
    for name in "012":
        _await_word(tmp_path / f"{name}.log", "up")
    os.kill(runner.pid, number)
    os.kill(runner.pid, number)
    said, _ = runner.communicate(timeout=60)
    assert runner.returncode == 1
    assert said.count("\ncleaned up\n") == 3
    assert "\nnever\n" not in said


def test_a_runner_that_is_killed_ends_its_jobs(tmp_path: Path) -> None:
    runner = _runner(tmp_path, _WAITS.replace("INT", "TERM"), "true")
    _await_word(tmp_path / "0.log", "up")
    runner.kill()
    runner.communicate(timeout=60)
    _await_word(tmp_path / "0.log", "cleaned up")


def test_the_directory_of_a_run_is_kept_until_its_jobs_are_over(tmp_path: Path) -> None:
    """Also those of a runner that is killed: they end only then."""
    text = _RUN.replace("jobs = [Job(", "lock = int(sys.argv.pop(2))\njobs = [Job(")
    text = text.replace("text]])", "text]], held=[lock])")
    ending = f"trap 'cat {tmp_path}/go; exit 2' TERM; echo up; while :; do sleep 0.05; done"
    os.mkfifo(tmp_path / "go")
    lock = os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY)
    fcntl.flock(lock, fcntl.LOCK_EX)
    runner = subprocess.Popen(
        [sys.executable, "-c", text, str(tmp_path), str(lock), ending, "true"],
        cwd=HERE,
        stdout=subprocess.PIPE,
        pass_fds=[lock],
    )
    os.close(lock)
    _await_word(tmp_path / "0.log", "up")
    runner.kill()
    runner.communicate(timeout=60)
    another = os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY)
    with open(tmp_path / "go", "w"), pytest.raises(BlockingIOError):  # it cleans up now
        fcntl.flock(another, fcntl.LOCK_EX | fcntl.LOCK_NB)
    fcntl.flock(another, fcntl.LOCK_EX)
    os.close(another)


def test_a_failed_check_ends_all(tmp_path: Path) -> None:
    text = _RUN.replace("sys.exit(", "jobs[1].is_check = True\nsys.exit(")
    command = [sys.executable, "-c", text, str(tmp_path), _WAITS, "exit 1", "sleep 0.1", "true"]
    done = subprocess.run(command, cwd=HERE, stdout=subprocess.PIPE, text=True, timeout=60)
    assert done.returncode == 1
    assert "cleaned up" in done.stdout or "0: it ended with" in done.stdout


def test_mounts_of_a_job_are_its_own(tmp_path: Path) -> None:
    (tmp_path / "x").mkdir()
    mounting = f"mount -t tmpfs tmpfs {tmp_path}/x && touch {tmp_path}/x/file && echo mounted"
    runner = _runner(tmp_path, "true", mounting)
    assert "\nmounted\n" in runner.communicate(timeout=60)[0]
    assert not list((tmp_path / "x").iterdir())


def test_a_job_has_failed_with_any_of_its_commands(tmp_path: Path) -> None:
    job = Job("checks", [["true"], ["false"], ["echo", "never"]], log=tmp_path / "log")
    job.begin()
    while not job.is_over():
        time.sleep(0.02)
    assert (job.status, job.words()) == (1, "")


def test_the_highest_floor_is_that_of_the_whole_history(tmp_path: Path) -> None:
    def git(*words: str) -> None:
        who = ("-c", "user.name=name", "-c", "user.email=name@example.org")
        subprocess.run(["git", *who, *words], cwd=tmp_path, check=True)

    assert highest_floor(tmp_path) == 0
    git("init", "-q")
    for floor in (80, 84, 83):
        (tmp_path / "pyproject.toml").write_text(f"[report]\nfail_under = {floor}\n")
        git("add", "pyproject.toml")
        git("commit", "-q", "-m", f"Have a floor of {floor}")
    assert highest_floor(tmp_path) == 84
