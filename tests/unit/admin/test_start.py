"""Reports of a layer's process to the one that waits for it."""

import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fusejournal.admin import start
from fusejournal.admin.mount_options import MountOptions
from fusejournal.admin.start import PipeReporter, has_parent, reporting_to_parent
from fusejournal.config import Config
from fusejournal.errors import FusejournalError, MountError
from fusejournal.node.spec import MountSpec


@pytest.fixture
def pipe(monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """The reading end of the pipe to the process that waits."""
    read_fd, write_fd = os.pipe()
    monkeypatch.setenv(start._REPORT_FD, str(write_fd))
    yield read_fd
    os.close(read_fd)


def reports(read_fd: int) -> list[dict[str, Any]]:
    return [json.loads(line) for line in os.read(read_fd, 1 << 16).splitlines()]


def test_it_reports_until_the_mount_is_live(pipe: int) -> None:
    assert has_parent()
    with reporting_to_parent() as reporter:
        assert not has_parent()  # what this process starts has none
        reporter.warning("the backing is open")
        reporter.progress("importing", 1, None, "bytes")
        reporter.progress("importing", 2, 9, "bytes")  # too soon after the first
        reporter.ready(7)
        reporter.warning("has no reader any more")
    assert reports(pipe) == [
        {"warning": "the backing is open"},
        {"progress": ["importing", 1, None, "bytes"]},
        {"ready": True, "imported": 7},
    ]
    assert os.read(pipe, 1) == b""  # closed


def test_an_error_is_reported_with_its_code(pipe: int) -> None:
    with pytest.raises(MountError), reporting_to_parent():
        raise MountError("no such place")
    assert reports(pipe) == [{"error": "no such place", "exit_code": MountError.exit_code}]


def test_an_error_of_the_system_is_reported_with_its_file(pipe: int) -> None:
    with pytest.raises(FileNotFoundError), reporting_to_parent():
        open("/nowhere/at all")  # noqa: SIM115
    assert reports(pipe) == [
        {"error": "/nowhere/at all: No such file or directory", "exit_code": 1}
    ]


def test_a_parent_that_is_gone_does_not_matter() -> None:
    read_fd, write_fd = os.pipe()
    os.close(read_fd)
    reporter = PipeReporter(write_fd)
    reporter.warning("nobody reads this")
    reporter.ready(7)


@pytest.mark.parametrize("line", ["Traceback (most recent call last):", "[]", '{"ready": "yes"}'])
def test_what_is_no_report_ends_the_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, line: str
) -> None:
    """In one line, and the layer's process does not outlive it."""
    script = tmp_path / "layer.py"
    script.write_text(
        "import os, time\n"
        f"os.write(int(os.environ[{start._REPORT_FD!r}]), {line + chr(10)!r}.encode())\n"
        f"open({str(tmp_path / 'pid')!r}, 'w').write(str(os.getpid()))\n"
        "time.sleep(600)\n"
    )
    monkeypatch.setattr(start, "python_module", lambda *_: [sys.executable, str(script)])
    spec = MountSpec(
        *("vol", tmp_path / "state", tmp_path, tmp_path, Config(), False, frozenset[str]())
    )
    reporter: Any = None
    with pytest.raises(FusejournalError, match=r"^the layer answers what is no reply: "):
        start.start_volume(spec, MountOptions(), reporter)
    pid = (tmp_path / "pid").read_text() if (tmp_path / "pid").exists() else ""
    assert not pid or not Path("/proc", pid).exists()
