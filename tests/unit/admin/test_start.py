"""Reports of a layer's process to the one that waits for it."""

import json
import os
from collections.abc import Iterator
from typing import Any

import pytest

from fusejournal.admin import start
from fusejournal.admin.start import PipeReporter, has_parent, reporting_to_parent
from fusejournal.errors import MountError


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
