"""Jobs on a machine whose disk is full: they fail in words, and go on once there is room."""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fusejournal.agent.fields import Fields
from fusejournal.agent.job_process import Job
from fusejournal.agent.jobs import JobBook
from fusejournal.disk import failpoints
from fusejournal.disk.failpoints import PlannedFault
from tests.support.consoles import make_story
from tests.support.filesystems import filesystem, fill

pytestmark = pytest.mark.mount
_RESTORE = {"kind": "restore", "volume": "data", "path": "", "at": 12}


@pytest.fixture
def disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A small file system for the agent; the volume is elsewhere."""
    monkeypatch.setenv("FUSEJOURNAL_STATE_ROOT", str(tmp_path / "volume"))
    (tmp_path / "volume").mkdir()
    make_story(tmp_path / "volume")
    with filesystem("tmpfs", tmp_path, "disk", 8) as mounted:
        yield mounted


class _HereBook(JobBook):
    """A book whose jobs a test does itself."""

    def _start(self, path: Path) -> None:
        pass


def _run(book: JobBook, job: dict[str, Any], disk: Path) -> dict[str, Any]:
    Job(disk / "jobs" / job["id"]).run()
    return book.show(Fields({"id": job["id"]}))


def test_a_job_that_cannot_keep_its_progress_fails(disk: Path) -> None:
    book = _HereBook(disk)
    job = book.create(Fields(_RESTORE))
    fill(disk / "full")
    failed = _run(book, job, disk)
    assert failed["state"] == "failed"
    assert "No space left on device" in failed["words"]
    assert "make room" in failed["words"]
    (disk / "full").unlink()
    told = book.order(Fields({"id": job["id"], "order": "do"}))
    assert "No space" not in told["words"]
    assert _run(book, job, disk)["state"] == "done"


@pytest.mark.parametrize("leave_kib", [0, 8, 24, 32, 40])
def test_a_restore_onto_a_full_disk_fails(disk: Path, leave_kib: int) -> None:
    """There is room for its first steps, and then for nothing."""
    book = _HereBook(disk)
    job = book.create(Fields(_RESTORE))
    fill(disk / "full", leave_kib << 10)
    failed = _run(book, job, disk)
    assert (failed["state"], "space left" in failed["words"]) == ("failed", True)
    (disk / "full").unlink()
    book.order(Fields({"id": job["id"], "order": "do"}))
    done = _run(book, job, disk)
    assert done["state"] == "done"
    assert (Path(done["target"]) / "docs" / "note0").read_bytes() == b"text 0"


def test_a_stop_is_kept_on_a_full_disk(disk: Path) -> None:
    """The disk is full from when it stops on."""
    book = _HereBook(disk)
    job = book.create(Fields(_RESTORE))
    (disk / "jobs" / job["id"] / "order.json").write_text(json.dumps({"order": "stop"}))
    failpoints.listen(PlannedFault("agent.progress.write", 3, "ENOSPC+"))
    try:
        stopped = _run(book, job, disk)
    finally:
        failpoints.listen(None)
    assert (stopped["state"], stopped["words"]) == (
        *("stopped", "stopped as told: 'do' goes on with it"),
    )


def test_a_job_that_cannot_be_kept_is_none(disk: Path) -> None:
    book = _HereBook(disk)
    fill(disk / "full")
    with pytest.raises(OSError, match="No space left"):
        book.create(Fields(_RESTORE))
    assert os.listdir(disk / "jobs") == []
