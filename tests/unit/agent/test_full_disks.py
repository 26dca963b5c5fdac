"""Jobs on a machine whose disk is full: they fail in words, and go on once there is room."""

import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fusejournal.admin.restore_size import RestoreSize, find_room
from fusejournal.agent.fields import Fields
from fusejournal.agent.job_process import Job
from fusejournal.agent.jobs import JobBook
from fusejournal.disk import failpoints
from fusejournal.disk.failpoints import PlannedFault
from fusejournal.node.disk_space import disk_space
from fusejournal.node.state_dir import load_state
from fusejournal.operations import Write
from tests.support.consoles import make_story
from tests.support.filesystems import filesystem, fill
from tests.support.volumes import SOMEBODY, open_volume

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
    told = book.order(Fields({"id": job["id"], "order": "plan"}))
    assert "No space" not in told["words"]
    assert _run(book, job, disk)["state"] == "planned"


@pytest.mark.parametrize("leave_kib", [0, 8, 24, 32, 40])
def test_a_restore_onto_a_full_disk_fails(disk: Path, leave_kib: int) -> None:
    """There is room for its first steps, and then for nothing."""
    book = _HereBook(disk)
    job = book.create(Fields(_RESTORE))
    _run(book, job, disk)
    book.order(Fields({"id": job["id"], "order": "do"}))
    fill(disk / "full", leave_kib << 10)
    failed = _run(book, job, disk)
    assert failed["state"] == "failed"
    assert re.search("space left|has 0.0 MB free", failed["words"])
    (disk / "full").unlink()
    book.order(Fields({"id": job["id"], "order": "do"}))
    done = _run(book, job, disk)
    assert done["state"] == "done"
    assert (Path(done["target"]) / "docs" / "note0").read_bytes() == b"text 0"


def test_what_has_no_room_is_not_begun(disk: Path, tmp_path: Path) -> None:
    """A file of 3 MiB is too much, one of a hole is not."""
    uuid = load_state(tmp_path / "volume" / "state").uuid
    with open_volume(tmp_path / "volume", uuid=uuid) as volume:
        large, sparse = (volume.create(name) for name in ("large", "sparse"))
        for number in range(3):
            data = bytes([number]) * (1 << 20)
            volume.volume.commit(Write(large, number << 20, None), SOMEBODY, data)
        volume.volume.commit(Write(sparse, 3 << 30, None), SOMEBODY, b"end")
        head_seq = int(volume.volume.journal.head_seq)
    book = _HereBook(disk)
    jobs = {
        name: book.create(
            Fields({"kind": "restore", "volume": "data", "path": name, "at": head_seq})
        )
        for name in ("large", "sparse")
    }
    fill(disk / "full", 2 << 20)
    planned = {name: _run(book, job, disk) for name, job in jobs.items()}
    assert planned["large"]["refusal"].startswith("it has 3.1 MB of contents, and ")
    assert "make room there" in planned["large"]["refusal"]
    assert (planned["sparse"]["refusal"], planned["sparse"]["to_restore"]["content_bytes"]) == (
        *("", 3),
    )
    # Who does not look is refused, too, and nothing was written.
    book.order(Fields({"id": jobs["large"]["id"], "order": "do"}))
    failed = _run(book, jobs["large"], disk)
    assert (failed["state"], failed["words"]) == ("failed", planned["large"]["refusal"])
    assert os.listdir(disk / "restored") == []
    (disk / "full").unlink()
    book.order(Fields({"id": jobs["large"]["id"], "order": "do"}))
    assert _run(book, jobs["large"], disk)["state"] == "done"


def test_little_room_is_reported(disk: Path) -> None:
    free = disk_space(disk).free_bytes
    low = find_room(disk, RestoreSize(1, 1, free - 1000, is_directory=False))
    assert (low.refusal, low.warning) == ("", f"it would leave 0.0 MB of the file system at {disk}")
    many = find_room(disk, RestoreSize(1 << 40, 1 << 40, 0, is_directory=True))
    assert "(inodes): make room there" in many.refusal
    assert find_room(disk, RestoreSize(1, 1, 1000, is_directory=False)) == ("", "")


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
