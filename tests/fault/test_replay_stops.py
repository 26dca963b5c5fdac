"""A replay that is stopped at any step, by a kill, a full disk or Ctrl-C, goes on with the same
command and ends with the same tree."""

import errno
import os
import random
import signal
import subprocess
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from stat import S_IFREG

import pytest

from fusejournal.cli.main import main
from fusejournal.disk import failpoints
from fusejournal.history.lookup import Lookup
from fusejournal.journal.reader import JournalReader
from fusejournal.operations import Create, NewEpoch, Setattr, Write
from fusejournal.replay.restore import restore
from fusejournal.replay.scratch import scratch_of
from fusejournal.types import ROOT_FID, Caller, Epoch, Fid, Seq
from tests.support.filesystems import filesystem, fill
from tests.support.model import Model
from tests.support.random_workloads import make_workload
from tests.support.workload import Step, Workload, unlike, workspace

_FULL = 21
_CONFLICT = 22
_INTERRUPTED = 130
_STEPS = 60
_FEW_STEPS = 25
_TURNS = 400


@pytest.fixture
def base() -> Iterator[Path]:
    """A directory in memory."""
    with workspace() as path:
        yield path


def _random_workload(seed: int, steps: int = _STEPS) -> Workload:
    dice = random.Random(seed)
    return make_workload(
        [dice.randbytes(12) for _ in range(6)],
        [dice.randbytes(12) for _ in range(steps)],
        25,
        b"\0\3",
    )


class _Watch:
    """Does something at the *count*-th labelled call of the applier; counts them."""

    def __init__(self, count: int, act: Callable[[str], None]) -> None:
        self.count = count
        self.act = act
        self.seen = 0

    def __call__(self, label: str) -> None:
        if label.startswith("apply."):
            self.seen += 1
            if self.seen == self.count:
                self.act(label)


def _kill(_: str) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _interrupt(_: str) -> None:
    os.kill(os.getpid(), signal.SIGINT)


def _fail(label: str) -> None:
    raise OSError(errno.ENOSPC, f"{os.strerror(errno.ENOSPC)} (planned at {label})")


def _replay(base: Path, *options: str, listener: Callable[[str], None] | None = None) -> int:
    """The command in a child of this process, which spares starting Python; its exit code, or
    minus the signal that ended it. What it said is in ``words``."""
    child = os.fork()
    if child == 0:
        code = 99
        try:
            words = os.open(base / "words", os.O_CREAT | os.O_TRUNC | os.O_WRONLY)
            os.dup2(words, 1)
            os.dup2(words, 2)
            sys.stdout = sys.stderr = open(words, "w", errors="backslashreplace")  # noqa: SIM115
            failpoints.listen(listener)
            sys.argv = ["fusejournal", "replay", str(base / "journal"), str(base / "target")]
            sys.argv += options
            main()
        except SystemExit as end:
            code = int(end.code or 0)
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            os._exit(code)
    _, status = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status)


def _words(base: Path) -> str:
    return (base / "words").read_text()


def _begin_again(base: Path) -> None:
    subprocess.run(["rm", "-rf", base / "target", scratch_of(base / "target")], check=True)


def _check(base: Path, model: Model) -> None:
    assert not unlike(base / "target", model)
    assert not scratch_of(base / "target").exists()


# -- kills -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(2))
def test_killed_at_every_call(base: Path, seed: int) -> None:
    """Killed once, at the first call, the second, and so on to the last."""
    _stop_at_every_call(base, _random_workload(seed, _FEW_STEPS), _kill, -signal.SIGKILL)


def test_import_killed_at_every_call(base: Path) -> None:
    """An import leaves the mtimes of directories alone, also when it was stopped in between."""
    dice = random.Random(1)
    imports = [dice.randbytes(12) for _ in range(12)]
    workload = make_workload(imports, [], 25, b"\0")
    _stop_at_every_call(base, workload, _kill, -signal.SIGKILL)


def _stop_at_every_call(
    base: Path, workload: Workload, stop: Callable[[str], None], status: int
) -> None:
    """Stopped once by *stop*, which ends it with *status*; and it goes on."""
    workload.write(base / "journal")
    count = 0
    while True:
        count += 1
        _begin_again(base)
        ended = _replay(base, listener=_Watch(count, stop))
        if ended == 0:
            break
        assert ended == status, (count, _words(base))
        assert _replay(base) == 0, (count, _words(base))
        _check(base, workload.head)
    assert count > 15


@pytest.mark.parametrize("seed", range(10, 20))
def test_killed_again_and_again(base: Path, seed: int) -> None:
    """Killed after a few calls in every run, so that what went on is stopped, too."""
    workload = _random_workload(seed)
    workload.write(base / "journal")
    dice = random.Random(seed)
    for _ in range(_TURNS):
        ended = _replay(base, listener=_Watch(dice.randint(3, 12), _kill))
        assert ended in (0, -signal.SIGKILL), _words(base)
        if ended == 0:
            break
    assert ended == 0
    _check(base, workload.head)


def test_killed_command(base: Path) -> None:
    """The same by the command itself and the environment."""
    workload = _random_workload(100)
    workload.write(base / "journal")
    command: list[str | Path] = [
        sys.executable,
        "-m",
        "fusejournal",
        "replay",
        base / "journal",
        base / "target",
    ]
    for count in (1, 5, 20, 40):
        environment = {**os.environ, "FUSEJOURNAL_FAULT": f"apply.*:{count}:kill"}
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        assert done.returncode == -signal.SIGKILL, done.stderr
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "going on after seq" in done.stderr
    _check(base, workload.head)


@pytest.mark.parametrize("seed", range(4))
def test_second_part_killed(base: Path, seed: int) -> None:
    """A replay that goes on from an earlier one knows its files only by their names."""
    workload = _random_workload(seed)
    workload.write(base / "journal")
    half = workload.head_seq // 2
    while workload.steps[half - 1].void is not None:
        half += 1
    dice = random.Random(seed)
    assert _replay(base, "--to-seq", str(half)) == 0
    rest = ("--from-seq", str(half + 1))
    for _ in range(_TURNS):
        ended = _replay(base, *rest, listener=_Watch(dice.randint(3, 12), _kill))
        assert ended in (0, -signal.SIGKILL), _words(base)
        if ended == 0:
            break
    _check(base, workload.head)


@pytest.mark.parametrize("seed", range(6))
def test_selection_killed(base: Path, seed: int) -> None:
    """With conflicts skipped, a replay in pieces makes the same tree as one in a piece."""
    workload = _random_workload(seed)
    workload.write(base / "journal")
    options = ("--except", f"{5 + seed}-{9 + seed},30-33", "--on-conflict", "skip")
    assert _replay(base, *options) == 0, _words(base)
    (base / "target").rename(base / "whole")
    dice = random.Random(seed)
    for _ in range(_TURNS):
        ended = _replay(base, *options, listener=_Watch(dice.randint(3, 12), _kill))
        assert ended in (0, -signal.SIGKILL), _words(base)
        if ended == 0:
            break
    different = _compare_directories(base / "whole", base / "target")
    assert not different, different


def _compare_directories(one: Path, other: Path) -> str:
    from tests.support.trees import difference, image

    return difference(image(one), image(other))


# -- full disks ------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(2))
def test_refused_at_every_call(base: Path, seed: int) -> None:
    """ENOSPC once at each call: exit code 21, and it goes on."""
    _stop_at_every_call(base, _random_workload(seed, _FEW_STEPS), _fail, _FULL)


def test_refused_again_and_again(base: Path) -> None:
    workload = _random_workload(7)
    workload.write(base / "journal")
    dice = random.Random(7)
    for _ in range(_TURNS):
        ended = _replay(base, listener=_Watch(dice.randint(3, 12), _fail))
        assert ended in (0, _FULL), _words(base)
        if ended == 0:
            break
    _check(base, workload.head)


def test_full_target(base: Path) -> None:
    """A file system that is really full in the middle of a WRITE."""
    content = os.urandom(200_000)
    workload = _files(12, content)
    workload.write(base / "journal")
    with filesystem("tmpfs", base, "disk", 16) as disk:
        target = disk / "target"
        (base / "target").symlink_to(target)
        command: list[str | Path] = [
            sys.executable,
            "-m",
            "fusejournal",
            "replay",
            base / "journal",
            target,
        ]
        fill(disk / "ballast", leave_bytes=2 << 20)
        refusals = 0
        while True:
            done = subprocess.run(command, capture_output=True, text=True)
            if done.returncode == 0:
                break
            assert done.returncode == _FULL, done.stderr
            assert "no space left" in done.stderr
            refusals += 1
            assert refusals < 20
            room = (disk / "ballast").stat().st_size - (1 << 20)
            os.truncate(disk / "ballast", max(0, room))
        assert refusals > 0
        assert not unlike(target, workload.head)
        assert not scratch_of(target).exists()


def _files(count: int, content: bytes) -> Workload:
    """A journal of so many files with *content*."""
    operations: list[tuple[object, bytes]] = [
        (NewEpoch(Epoch(1), "new"), b""),
        (Setattr(ROOT_FID, 0o755, 0, 0, None, 5), b""),
    ]
    for number in range(count):
        fid = Fid(2 + number)
        operations.append(
            (Create(fid, ROOT_FID, b"%d" % number, S_IFREG | 0o644, 0, 0, 0, None), b"")
        )
        if content:
            operations.append((Write(fid, 0, None), content))
    return _as_workload(operations)


def _as_workload(operations: Sequence[tuple[object, bytes]]) -> Workload:
    workload = Workload(segment_entries=5000)
    model = Model()
    for operation, data in operations:
        step = Step(operation, Caller(0, 0, 0), len(workload.steps) + 1, data)  # type: ignore[arg-type]
        step.apply_to(model)
        workload.steps.append(step)
        workload.models.append(model)
    # The newest entry of a journal that no layer runs may still be refused, for all one knows.
    workload.steps.append(Step(NewEpoch(Epoch(2), "end"), Caller(0, 0, 0), len(workload.steps) + 1))
    workload.models.append(model)
    return workload


# -- Ctrl-C ----------------------------------------------------------------------------------------


def test_interrupted(base: Path) -> None:
    """Ctrl-C ends it between two operations."""
    workload = _files(3000, b"")
    workload.write(base / "journal")
    ended = _replay(base, listener=_Watch(700, _interrupt))
    assert ended == _INTERRUPTED, _words(base)
    assert "interrupted" in _words(base)
    made = len(os.listdir(base / "target"))
    assert 100 < made < 3000
    assert _replay(base) == 0, _words(base)
    assert "going on after seq" in _words(base)
    _check(base, workload.head)


def test_interrupted_in_a_short_journal(base: Path) -> None:
    """Not only after a thousand operations: some of them may be slow."""
    workload = _files(100, b"")
    workload.write(base / "journal")
    assert _replay(base, listener=_Watch(50, _interrupt)) == _INTERRUPTED
    assert _replay(base) == 0, _words(base)
    _check(base, workload.head)


# -- other options ---------------------------------------------------------------------------------


def test_goes_on_only_with_the_same_options(base: Path) -> None:
    workload = _random_workload(3)
    workload.write(base / "journal")
    assert _replay(base, listener=_Watch(20, _kill)) == -signal.SIGKILL
    assert _replay(base, "--uid", "0", "--on-conflict", "skip") == 20
    assert "is half done with other options" in _words(base)
    assert _replay(base) == 0, _words(base)
    _check(base, workload.head)


def test_conflict_writes_nothing(base: Path) -> None:
    workload = _files(3, b"")
    workload.steps.insert(4, Step(Write(Fid(3), 0, None), Caller(0, 0, 0), 0, b"x"))
    workload.models.insert(4, workload.models[4])
    for number, step in enumerate(workload.steps):
        workload.steps[number] = step._replace(time_ns=number + 1)
    workload.write(base / "journal")
    assert _replay(base, "--except", "4") == _CONFLICT
    assert not (base / "target").exists()


# -- restores --------------------------------------------------------------------------------------


@pytest.mark.parametrize("whole", [True, False])
def test_restore_killed_at_every_call(base: Path, whole: bool) -> None:
    """Until it is whole there is nothing; then it is as if it had been made in one go, and nothing
    else is left."""
    workload = _random_workload(5, _FEW_STEPS)
    workload.write(base / "journal")
    model = workload.head
    path = b"" if whole else max(one for one in model.all_paths() if one.count(b"/") < 1 and one)
    before = sorted(os.listdir(base))
    count = 0
    while True:
        count += 1
        ended = _restore_in_a_child(base, path, _Watch(count, _kill))
        if ended == 0:
            break
        assert ended == -signal.SIGKILL, count
        assert not (base / "target").exists()
        assert _restore_in_a_child(base, path, None) == 0, count
        assert sorted(os.listdir(base)) == sorted([*before, "target"])
        if whole:
            assert not unlike(base / "target", model)
        subprocess.run(["rm", "-rf", base / "target"], check=True)
    assert count > (15 if whole else 1)


def _restore_in_a_child(base: Path, path: bytes, listener: Callable[[str], None] | None) -> int:
    child = os.fork()
    if child == 0:
        code = 99
        try:
            failpoints.listen(listener)
            lookup = Lookup(JournalReader(base / "journal"))
            end = Seq(lookup.reader.head()[0] + 1)
            restore(lookup, path, end, base / "target", lambda done, total: None)
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    _, status = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status)
