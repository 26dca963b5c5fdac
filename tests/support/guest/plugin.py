"""pytest in the guest: tests with the marker ``guest`` run there, and are reported here.

The guest-marked tests of one module share one boot. They come last, for the host's own tests change
this process's user and umask at times; then guests run one at a time on each processor, for a guest
has one. What takes a host's speed is prepared there: ``guest(prepare=function)`` names a
function that gets an empty directory and returns disk images, which are /dev/ubdd, /dev/ubde ...

Inside, the same pytest runs the same tests by node id and writes each report as a line of JSON to
/out, as pytest-xdist sends them between processes; here they are told as if the tests had run
here, skips included. A guest that dies fails the tests that it still owed, with the end of its
console.

``--guest-dir DIR`` keeps consoles, output and reports."""

import json
import os
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any

import pytest

from tests.support.guest.machine import Guest, unavailable

INSIDE = "FUSEJOURNAL_GUEST"
"""Set in the guest's environment."""

_REPORTS = "reports.jsonl"
_LIMIT_SECONDS = 900
_DISKS_MIB = (8192, 4096, 4096)
_POLL_SECONDS = 0.1


def pytest_addoption(parser: pytest.Parser) -> None:
    """``--guest-dir``: where to keep what the guests leave."""
    parser.addoption("--guest-dir", type=Path, help="keep the guests' consoles and output here")


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
    """On the host: boots guests and tells what they report."""

    def __init__(self, config: pytest.Config) -> None:
        self._config = config
        self._runs: dict[str, _Run] = {}
        self._threads: list[threading.Thread] = []
        self._stopping = threading.Event()
        self._kept: Path | None = config.getoption("--guest-dir")
        self._directory = Path()

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
            self._runs.setdefault(module, _Run(module, prepare)).tests.append(item.nodeid)
        items.sort(key=lambda item: item.get_closest_marker("guest") is not None)

    @pytest.hookimpl(wrapper=True)
    def pytest_runtestloop(self) -> Iterator[None]:
        """End the guests with the tests."""
        if not self._runs or self._config.option.collectonly:
            return (yield)
        self._directory = self._kept or Path(tempfile.mkdtemp(prefix="fusejournal-guest-"))
        try:
            return (yield)
        finally:
            self._stopping.set()
            for thread in self._threads:
                thread.join()
            if not self._kept:
                shutil.rmtree(self._directory, ignore_errors=True)

    def _start(self) -> None:
        """Let the guests run."""
        waiting: SimpleQueue[_Run] = SimpleQueue()
        for run in self._runs.values():
            waiting.put(run)
        for cpu in sorted(os.sched_getaffinity(0), reverse=True):
            self._threads.append(threading.Thread(target=self._run_all, args=(waiting, cpu)))
            self._threads[-1].start()

    def _run_all(self, waiting: "SimpleQueue[_Run]", cpu: int) -> None:
        while not self._stopping.is_set():
            try:
                run = waiting.get_nowait()
            except Empty:
                return
            run.run(self._directory / Path(run.module).stem, cpu, self._stopping)

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> bool | None:
        """Tell what the guest said of *item*."""
        run = self._runs.get(item.nodeid.partition("::")[0])
        if run is None or not item.get_closest_marker("guest"):
            return None
        if not self._threads:
            self._start()
        item.ihook.pytest_runtest_logstart(nodeid=item.nodeid, location=item.location)
        for data in run.reports_of(item.nodeid):
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


class _Run:
    """One guest for the tests of one module."""

    def __init__(self, module: str, prepare: Callable[[Path], list[Path]] | None) -> None:
        self.module = module
        self._prepare = prepare
        self.tests: list[str] = []
        self.finished: set[str] = set()
        self.failure = ""
        self._reports: dict[str, list[dict[str, Any]]] = {}
        self._ended = threading.Event()

    def run(self, out: Path, cpu: int, stopping: threading.Event) -> None:
        """Boot it on processor *cpu* and read its reports until it ends."""
        shutil.rmtree(out, ignore_errors=True)
        out.mkdir(parents=True)
        (out / "tests").write_text("\n".join(self.tests))
        # No plugin of this session's but those of pyproject.toml and conftest.py; no cache: the
        # checkout is the host's.
        command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "@/out/tests"]
        images: list[Path] = []
        try:
            if self._prepare is not None:
                (out / "prepared").mkdir()
                images = self._prepare(out / "prepared")
            with Guest(
                command, out, disk_mib=_DISKS_MIB, images=images, cpu=cpu, environment={INSIDE: "1"}
            ) as guest:
                limit = time.monotonic() + _LIMIT_SECONDS
                place = 0
                while guest.is_alive() and time.monotonic() < limit and not stopping.is_set():
                    place = self._read(out / _REPORTS, place)
                    guest.nudge()
                    time.sleep(_POLL_SECONDS)
                self._read(out / _REPORTS, place)
                self.failure = guest.words()
        except Exception as error:
            # A thread's exceptions are nobody's: the tests that it owes fail with it.
            self.failure = f"{error!r}"
        finally:
            for image in images:
                image.unlink(missing_ok=True)
            self._ended.set()

    def _read(self, path: Path, place: int) -> int:
        if not path.exists():
            return place
        with open(path, "rb") as file:
            file.seek(place)
            for line in file:
                if not line.endswith(b"\n"):
                    break
                place += len(line)
                message = json.loads(line)
                if message["report"] is None:
                    self.finished.add(message["test"])
                else:
                    self._reports.setdefault(message["test"], []).append(message["report"])
        return place

    def reports_of(self, test: str) -> list[dict[str, Any]]:
        """All reports of *test*, once it is over or the guest is."""
        while test not in self.finished and not self._ended.is_set():
            time.sleep(_POLL_SECONDS)
        return self._reports.get(test, [])
