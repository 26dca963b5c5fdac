"""pytest in the guest: tests with the marker ``guest`` run there, and are reported here.

The guest-marked tests of one module share one boot. Guests run beside the host's own tests, on one
processor (a guest has one), and on the others when those are over; their tests are told last. Those
with ``guest(early=True)`` are begun first, because they take longest. With ``--guests-alone-when
FILE`` the host's own tests are over when another process has made FILE.

What takes a host's speed is prepared there: ``guest(prepare=function)`` names a function that gets
an empty directory and returns disk images, which are /dev/ubdd, /dev/ubde ...
``guest(memory_mib=N)`` gives the guest so much memory and not 2048.

Inside, the same pytest runs the same tests by node id and writes each report as a line of JSON to
/out, as pytest-xdist sends them between processes; here they are told as if the tests had run
here, skips included. A guest that dies fails the tests that it still owed, with the end of its
console.

``--guest-dir DIR`` keeps consoles, output and reports."""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.guest.machine import CHECKOUT, MEMORY_MIB, unavailable
from tests.support.guest.runner import INSIDE

_REPORTS = "reports.jsonl"
_POLL_SECONDS = 0.1


def pytest_addoption(parser: pytest.Parser) -> None:
    """``--guest-dir``: where to keep what the guests leave."""
    parser.addoption("--guest-dir", type=Path, help="keep the guests' consoles and output here")
    parser.addoption(
        "--guests-alone-when",
        type=Path,
        help="leave the other processors alone until this file is there",
    )


def pytest_configure(config: pytest.Config) -> None:
    """Be one half or the other."""
    if os.environ.get(INSIDE):
        config.pluginmanager.register(Inside(config, Path("/out") / _REPORTS))
    else:
        config.pluginmanager.register(Outside(config))


class Inside:
    """In the guest: writes each report down."""

    def __init__(self, config: pytest.Config, path: Path) -> None:
        self._config = config
        self._file = open(path, "w", encoding="utf-8")  # noqa: SIM115  # open until the guest ends

    def _write(self, message: dict[str, Any]) -> None:
        self._file.write(json.dumps(message) + "\n")
        self._file.flush()

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """One phase of a test is over."""
        data = self._config.hook.pytest_report_to_serializable(config=self._config, report=report)
        self._write({"test": report.nodeid, "report": data})

    def pytest_runtest_logfinish(self, nodeid: str) -> None:
        """All phases are."""
        self._write({"test": nodeid, "report": None})


class Outside:
    """On the host: has guests booted (runner.py) and tells what they report."""

    def __init__(self, config: pytest.Config) -> None:
        self._config = config
        self._runs: dict[str, _Run] = {}
        self._kept: Path | None = config.getoption("--guest-dir")
        self._runner: subprocess.Popen[str] | None = None
        self._is_alone = False
        """True if the host's own tests are over."""
        self._sign: Path | None = config.getoption("--guests-alone-when")

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        """Skip them where no guest can run, with the reason."""
        ours = [item for item in items if item.get_closest_marker("guest")]
        reason = unavailable() if ours else None
        if reason is not None:
            for item in ours:
                item.add_marker(pytest.mark.skip(reason=reason))
            return
        for item in ours:
            module = item.nodeid.partition("::")[0]
            marker = item.get_closest_marker("guest")
            prepare = marker.kwargs.get("prepare") if marker else None
            name = f"{prepare.__module__}:{prepare.__name__}" if prepare else None
            run = self._runs.setdefault(module, _Run(module, name))
            run.is_early = bool(marker and marker.kwargs.get("early"))
            run.memory_mib = marker.kwargs.get("memory_mib", MEMORY_MIB) if marker else MEMORY_MIB
            run.tests.append(item.nodeid)
        items.sort(key=lambda item: item.get_closest_marker("guest") is not None)

    @pytest.hookimpl(wrapper=True)
    def pytest_runtestloop(self) -> Iterator[None]:
        """Guests begin and end with the tests."""
        if not self._runs or self._config.option.collectonly:
            return (yield)
        directory = self._kept or Path(tempfile.mkdtemp(prefix="fusejournal-guest-"))
        for run in self._runs.values():
            run.out = directory / Path(run.module).stem
            shutil.rmtree(run.out, ignore_errors=True)
        plan = {
            "runs": [
                run.plan() for run in sorted(self._runs.values(), key=lambda run: not run.is_early)
            ],
            "cpus": sorted(os.sched_getaffinity(0), reverse=True),
        }
        self._runner = subprocess.Popen(
            [sys.executable, "-m", "tests.support.guest.runner"],
            cwd=CHECKOUT,
            stdin=subprocess.PIPE,
            text=True,
            start_new_session=True,  # an interrupt is for this process, which ends the other
        )
        try:
            self._tell_runner(json.dumps(plan))
            return (yield)
        finally:
            assert self._runner.stdin is not None
            self._runner.stdin.close()
            self._runner.wait()
            if not self._kept:
                shutil.rmtree(directory, ignore_errors=True)

    def _tell_runner(self, line: str) -> None:
        assert self._runner is not None
        assert self._runner.stdin is not None
        self._runner.stdin.write(line + "\n")
        self._runner.stdin.flush()

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> bool | None:
        """Report what the guest reported of *item*."""
        run = self._runs.get(item.nodeid.partition("::")[0])
        if run is None or not item.get_closest_marker("guest"):
            return None
        assert self._runner is not None
        item.ihook.pytest_runtest_logstart(nodeid=item.nodeid, location=item.location)
        for data in run.reports_of(item.nodeid, self._runner, self._look_whether_alone):
            report = self._config.hook.pytest_report_from_serializable(
                config=self._config, data=data
            )
            item.ihook.pytest_runtest_logreport(report=report)
        if item.nodeid not in run.finished:
            report = pytest.TestReport(
                item.nodeid, item.location, {}, "failed",
                f"the guest ended before this test did: {run.failure}", "call",
            )  # fmt: skip
            item.ihook.pytest_runtest_logreport(report=report)
        item.ihook.pytest_runtest_logfinish(nodeid=item.nodeid, location=item.location)
        return True

    def _look_whether_alone(self) -> None:
        """Have guests use all processors once the host's own tests are over: those of this process
        are, and those of another when its sign is there."""
        if not self._is_alone and (self._sign is None or self._sign.exists()):
            self._is_alone = True
            self._tell_runner("alone")


class _Run:
    """One guest for the tests of one module."""

    def __init__(self, module: str, prepare: str | None) -> None:
        self.module = module
        self._prepare = prepare
        self.is_early = False
        self.memory_mib = MEMORY_MIB
        self.tests: list[str] = []
        self.finished: set[str] = set()
        self.failure = ""
        self.out = Path()
        self._place = 0
        self._reports: dict[str, list[dict[str, Any]]] = {}

    def plan(self) -> dict[str, Any]:
        """Returns all that the runner has to know."""
        return {
            "module": self.module,
            "tests": self.tests,
            "prepare": self._prepare,
            "memory_mib": self.memory_mib,
            "out": str(self.out),
        }

    def _read(self) -> None:
        path = self.out / _REPORTS
        if not path.exists():
            return
        with open(path, "rb") as file:
            file.seek(self._place)
            for line in file:
                if not line.endswith(b"\n"):
                    break
                self._place += len(line)
                message = json.loads(line)
                if message["report"] is None:
                    self.finished.add(message["test"])
                else:
                    self._reports.setdefault(message["test"], []).append(message["report"])

    def reports_of(
        self, test: str, runner: "subprocess.Popen[str]", meanwhile: Callable[[], None]
    ) -> list[dict[str, Any]]:
        """All reports of *test*, once it is over or the guest is; calls *meanwhile* until then."""
        while True:
            meanwhile()
            is_over = (self.out / "ended").exists()
            is_lost = runner.poll() is not None
            self._read()
            if test in self.finished:
                break
            if is_over or is_lost:
                words = (self.out / "ended").read_text() if is_over else ""
                self.failure = words or f"the runner ended with {runner.poll()}"
                break
            time.sleep(_POLL_SECONDS)
        return self._reports.get(test, [])
