"""Work in units by several processes: each is done, whatever becomes of the processes."""

import multiprocessing
import os
import signal
import threading
import time
from contextlib import closing, suppress
from pathlib import Path

import pytest

from fusejournal.versions.by_processes import by_processes
from tests.support.patience import wait_until

_PARENT = os.getpid()


@pytest.fixture(autouse=True)
def two_processors(monkeypatch: pytest.MonkeyPatch) -> None:
    """However many the machine has, and whatever threads other tests have left waiting."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 2})
    monkeypatch.setattr(threading, "active_count", lambda: 1)


def _nothing() -> None:
    """Nothing to be done meanwhile."""


def _who(unit: int, again: bool) -> tuple[int, int, bool]:
    return os.getpid(), unit * unit, again


def test_units_are_done_by_others() -> None:
    found = dict(by_processes(20, _who, _nothing))
    assert [square for _, square, _ in map(found.__getitem__, range(20))] == [
        unit * unit for unit in range(20)
    ]
    assert os.getpid() not in {pid for pid, _, _ in found.values()}


@pytest.mark.parametrize("units", [0, 1, 7])
def test_units_are_done_here(units: int) -> None:
    found = dict(by_processes(units, _who, _nothing, alone=True))
    assert found == {unit: (os.getpid(), unit * unit, False) for unit in range(units)}


def test_an_error_is_raised_here() -> None:
    def fail(unit: int, again: bool) -> int:
        if unit == 5:
            raise ValueError(f"unit 5, {again}, {os.getpid() == _PARENT}")
        return unit

    with pytest.raises(ValueError, match="unit 5, True, True"):
        list(by_processes(12, fail, _nothing))


def test_what_a_killed_process_had_is_done_here() -> None:
    def die(unit: int, again: bool) -> int:
        if unit == 5 and os.getpid() != _PARENT:
            os.kill(os.getpid(), signal.SIGKILL)
        return unit + 100 * again

    found = dict(by_processes(12, die, _nothing))
    assert found.keys() == set(range(12))
    assert found[5] == 105


def test_an_interrupt_ends_the_processes() -> None:
    pids: list[int] = []

    def stall(unit: int, _: bool) -> int:
        if unit:
            time.sleep(60)
        return os.getpid()

    def interrupt() -> None:
        if pids:
            raise KeyboardInterrupt

    def work() -> None:
        with closing(by_processes(9, stall, interrupt)) as units:
            for _, pid in units:
                pids.append(pid)

    before = {child.pid for child in multiprocessing.active_children()}
    began = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        work()
    assert time.monotonic() - began < 30
    assert {child.pid for child in multiprocessing.active_children()} == before
    with pytest.raises(ProcessLookupError):
        os.kill(pids[0], 0)


@pytest.mark.parametrize("size", [0, 1 << 20])
def test_they_end_where_the_one_that_asked_is_killed(tmp_path: Path, size: int) -> None:
    """Also those that are sending what does not fit into the pipe."""

    def slow(unit: int, _: bool) -> bytes:
        (tmp_path / f"{os.getpid()}").touch()
        time.sleep(0.05)
        return bytes(size)

    def ask() -> None:
        for _ in by_processes(10_000, slow, _nothing):
            time.sleep(60)

    asking = multiprocessing.get_context("fork").Process(target=ask)
    asking.start()
    children: list[int] = []
    while len(children) < 3:
        time.sleep(0.01)
        children = [int(path.name) for path in tmp_path.iterdir()]
    time.sleep(0.5)
    asking.kill()
    asking.join()
    try:
        wait_until(lambda: not any(_is_running(child) for child in children))
    finally:
        for child in children:
            with suppress(ProcessLookupError):
                os.kill(child, signal.SIGKILL)


def _is_running(pid: int) -> bool:
    """Returns True if the process is there, and not only left for its parent to be waited for."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False
