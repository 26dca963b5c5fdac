"""Jobs: planned, begun, paused, stopped, and found again when their process has died."""

import json
import os
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from fusejournal.agent import job_process
from fusejournal.agent.command_lines import note_way_back
from fusejournal.agent.fields import Fields
from fusejournal.agent.job_kinds import ForbiddenJobError
from fusejournal.agent.job_process import Job
from fusejournal.agent.job_progress import JobProgress
from fusejournal.agent.jobs import JobBook, read_json
from fusejournal.disk import failpoints
from fusejournal.disk.failpoints import PlannedFault
from fusejournal.errors import UsageError, VolumeNotFoundError
from fusejournal.wire.frames import ANSWER_BYTES_MAX
from tests.support.consoles import make_story
from tests.support.nodes import make_volume

pytestmark = pytest.mark.mount
_PID_OF_STORY = 55
"""The process that removed files in it."""


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FUSEJOURNAL_STATE_ROOT", str(tmp_path / "volume"))
    (tmp_path / "volume").mkdir()
    make_story(tmp_path / "volume")
    return tmp_path


class _HereBook(JobBook):
    """A book whose jobs a test does itself."""

    def _start(self, path: Path) -> None:
        pass


def _run(book: JobBook, job: dict[str, Any], root: Path) -> dict[str, Any]:
    Job(root / "jobs" / job["id"]).run()
    return book.show(Fields({"id": job["id"]}))


def _do(book: JobBook, job: dict[str, Any], root: Path) -> dict[str, Any]:
    book.order(Fields({"id": job["id"], "order": "do"}))
    return _run(book, job, root)


def test_an_undo_is_planned_and_waits(root: Path) -> None:
    book = _HereBook(root)
    job = book.create(
        Fields({"kind": "undo", "volume": "data", "op": ["unlink", "rmdir"], "user": "anna"})
    )
    assert (job["state"], job["user"]) == ("stopped", "anna")  # no process is at work on it
    planned = _run(book, job, root)
    assert (planned["state"], planned["chosen"], planned["conflict_count"]) == ("planned", 6, 0)
    assert [one["path"] or one["new_path"] for one in planned["actions"]].count("docs/note1") == 1
    assert planned["command"] == "fusejournal undo data --op unlink,rmdir --apply"
    (listed,) = book.list_all(Fields({}))["jobs"]
    assert "actions" not in listed
    assert listed["id"] == job["id"]


def test_of_a_very_large_plan_the_first_is_told(root: Path) -> None:
    book = _HereBook(root)
    job = book.create(Fields({"kind": "in-place", "volume": "data", "at": 1}))
    changes = [{"action": "make", "path": "\udcff" * 4000} for _ in range(1000)]
    progress = {"state": "planned", "changes": changes, "change_count": 1000, "essence": changes}
    (root / "jobs" / job["id"] / "progress.json").write_text(json.dumps(progress))
    told = book.show(Fields({"id": job["id"]}))
    assert (told["change_count"], told["changes"][0]) == (1000, changes[0])
    assert 100 < len(told["changes"]) < 1000
    assert len(json.dumps(told)) < ANSWER_BYTES_MAX


def test_an_undo_without_a_layer_fails_in_words(root: Path) -> None:
    book = _HereBook(root)
    job = book.create(Fields({"kind": "undo", "volume": "data", "uid": 1001}))
    _run(book, job, root)
    book.order(Fields({"id": job["id"], "order": "do"}))
    failed = _run(book, job, root)
    assert failed["state"] == "failed"
    assert "is not mounted" in failed["words"]
    assert book.order(Fields({"id": job["id"], "order": "remove"}))["state"] == "removed"
    with pytest.raises(UsageError, match="there is no job"):
        book.show(Fields({"id": job["id"]}))


def test_a_directory_is_restored_aside(root: Path) -> None:
    book = _HereBook(root)
    seq = 12
    job = book.create(Fields({"kind": "restore", "volume": "data", "path": "docs", "at": seq}))
    planned = _run(book, job, root)
    assert (planned["state"], planned["has_restored"]) == ("planned", False)
    assert planned["to_restore"] == {
        "names": 5, "files": 5, "content_bytes": 24, "is_directory": True,
    }  # fmt: skip
    assert not Path(planned["target"]).exists()
    done = _do(book, job, root)
    assert (done["state"], done["words"], done["names"]) == ("done", "", 5)
    assert (Path(done["target"]) / "note0").read_bytes() == b"text 0"
    assert sum(path.stat().st_size for path in Path(done["target"]).iterdir()) == 24
    assert f"--target {done['target']}" in done["command"]
    # As if it had been killed before it could write that down.
    progress = {**read_json(root / "jobs" / job["id"] / "progress.json"), "state": "doing"}
    (root / "jobs" / job["id"] / "progress.json").write_text(json.dumps(progress))
    again = _do(book, job, root)
    assert (again["state"], again["names"], again["target"]) == ("done", 5, done["target"])


def test_a_file_is_restored_aside(root: Path) -> None:
    book = _HereBook(root)
    fields = {"kind": "restore", "volume": "data", "path": "docs/note1", "at": 12}
    job = book.create(Fields(fields))
    size = _run(book, job, root)["to_restore"]
    assert size == {"names": 1, "files": 1, "content_bytes": 6, "is_directory": False}
    done = _do(book, job, root)
    assert (done["state"], done["names"]) == ("done", 1)
    assert Path(done["target"]).read_bytes() == b"text 1"


def test_what_was_restored_aside_is_removed(root: Path) -> None:
    """And nothing else is, whatever lies in its place."""
    book, outside = _HereBook(root), root / "outside"
    (outside / "kept").mkdir(parents=True)
    job = book.create(Fields({"kind": "restore", "volume": "data", "path": "", "at": 12}))
    fields = {"id": job["id"], "order": "remove-restored"}
    with pytest.raises(UsageError, match="nothing that the job has restored"):
        book.order(Fields(fields))
    _run(book, job, root)
    done = _do(book, job, root)
    tree = root / "restored" / job["id"]
    assert done["has_restored"]
    assert done["remove_command"] == f"rm -rf --one-file-system -- {tree}"
    (tree / "link").symlink_to(outside)
    subprocess.run(["chattr", "+i", str(tree / "docs" / "note0"), str(tree / "docs")], check=True)
    with pytest.raises(ForbiddenJobError):
        book.order(Fields({**fields, "access": "viewer"}))
    removed = book.order(Fields({**fields, "access": "operator"}))
    assert (removed["state"], removed["has_restored"]) == ("done", False)
    assert os.listdir(root / "restored") == []
    tree.symlink_to(outside)
    book.order(Fields(fields))
    assert os.listdir(root / "restored") == []
    assert os.listdir(outside) == ["kept"]
    undo = book.create(Fields({"kind": "undo", "volume": "data", "uid": 1001}))
    with pytest.raises(UsageError, match="nothing that the job has restored"):
        book.order(Fields({**fields, "id": undo["id"]}))


def test_what_a_stopped_restore_left_goes_with_its_job(root: Path) -> None:
    book = _HereBook(root)
    job = book.create(Fields({"kind": "restore", "volume": "data", "path": "", "at": 12}))
    _run(book, job, root)
    book.order(Fields({"id": job["id"], "order": "do"}))
    failpoints.listen(PlannedFault("agent.progress.write", 3, "ENOSPC+"))
    try:
        assert _run(book, job, root)["state"] == "failed"
    finally:
        failpoints.listen(None)
    assert len(os.listdir(root / "restored")) == 1
    book.order(Fields({"id": job["id"], "order": "remove"}))
    assert os.listdir(root / "restored") == []


def test_a_job_of_its_own_process_stops_as_told(root: Path) -> None:
    """And the one that did not come to its end is told as such, and gone on with."""
    book = JobBook(root)
    job = book.create(Fields({"kind": "restore", "volume": "data", "path": "", "at": 12}))
    path = root / "jobs" / job["id"]
    deadline = time.monotonic() + 60
    for state in ("planned", "done"):
        while (shown := book.show(Fields({"id": job["id"]})))["is_running"]:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        assert shown["state"] == state, (path / "log").read_text()
        if state == "planned":
            book.order(Fields({"id": job["id"], "order": "do"}))
    # As if its process had died in the middle.
    (path / "progress.json").write_text(json.dumps({"state": "doing", "done": 3}))
    shown = book.show(Fields({"id": job["id"]}))
    assert (shown["state"], shown["is_running"]) == ("stopped", False)
    assert "'do' goes on with it" in shown["words"]
    with pytest.raises(UsageError, match="cannot be told to pause"):
        book.order(Fields({"id": job["id"], "order": "pause"}))


def test_a_job_heeds_its_orders_between_two_steps(root: Path) -> None:
    book = _HereBook(root)
    job = book.create(Fields({"kind": "restore", "volume": "data", "path": "", "at": 12}))
    path = root / "jobs" / job["id"]
    _run(book, job, root)
    (path / "order.json").write_text(json.dumps({"order": "stop"}))
    stopped = _run(book, job, root)
    assert (stopped["state"], stopped["words"]) == (
        "stopped",
        "stopped as told: 'do' goes on with it",
    )
    book.order(Fields({"id": job["id"], "order": "do"}))
    assert _run(book, job, root)["state"] == "done"


def test_the_way_back_is_that_of_all_processes(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The entries of a killed one end where the next one began, or with the last entry."""
    book = _HereBook(root)
    job = book.create(Fields({"kind": "undo", "volume": "data", "uid": 1001}))
    path = root / "jobs" / job["id"]
    monkeypatch.setattr("os.getpid", lambda: 4711)
    JobProgress(path).save(done=7, total=9)  # of its plan
    JobProgress(path).begin_changes(19)
    shown = book.show(Fields({"id": job["id"]}))
    assert (shown["done"], shown["total"]) == (0, None)
    assert shown["undo_command"] == "fusejournal undo data 20-28 --pid 4711 --apply"
    monkeypatch.setattr("os.getpid", lambda: 4712)
    second = JobProgress(path)
    second.begin_changes(22)
    second.end_changes(25)
    second.save()
    monkeypatch.setattr("os.getpid", lambda: 4713)
    third = JobProgress(path)
    third.begin_changes(25)
    third.end_changes(25)  # it made none
    note_way_back(third.values, "data")
    third.save()
    assert third.values["results"] == {"4711": [20, 22], "4712": [23, 25], "4713": [26, 25]}
    assert third.values["pids"] == [4711, 4712, 4713]
    shown = book.show(Fields({"id": job["id"]}))
    assert shown["undo_command"] == (
        "fusejournal undo data 20-22 23-25 --pid 4711 --pid 4712 --apply"
    )


def test_a_job_is_taken_back_by_a_job(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    book = _HereBook(root)
    job = book.create(Fields({"kind": "undo", "volume": "data", "uid": 1001}))
    back = {"kind": "undo", "volume": "data", "job": job["id"]}
    with pytest.raises(UsageError, match="has changed nothing"):
        book.create(Fields(back))
    path = root / "jobs" / job["id"]
    monkeypatch.setattr("os.getpid", lambda: _PID_OF_STORY)
    JobProgress(path).begin_changes(21)
    with job_process._held(path), pytest.raises(UsageError, match="at work"):
        book.create(Fields(back))
    for more, words in (
        ({"seqs": ["1"]}, "the job that they are of"), ({"job": "0-1"}, "there is no job"),
    ):  # fmt: skip
        with pytest.raises(UsageError, match=words):
            book.create(Fields(back | more))
    make_volume(root / "volume/other", "other")
    with pytest.raises(UsageError, match=r"there is no job .* of other"):
        book.create(Fields(back | {"volume": "other"}))
    made = book.create(Fields(back))
    assert (made["of_job"], made["seqs"], made["of_pids"]) == (
        job["id"],
        ["22-28"],
        [_PID_OF_STORY],
    )
    planned = _run(book, made, root)
    assert (planned["state"], planned["chosen"]) == ("planned", 6)
    assert planned["command"] == book.show(Fields({"id": job["id"]}))["undo_command"]


def test_what_cannot_be_a_job(root: Path) -> None:
    book = _HereBook(root)
    with pytest.raises(UsageError, match="no kind of job"):
        book.create(Fields({"kind": "format", "volume": "data"}))
    with pytest.raises(VolumeNotFoundError):
        book.create(Fields({"kind": "undo", "volume": "other"}))
    with pytest.raises(UsageError, match="on_conflict"):
        book.create(Fields({"kind": "undo", "volume": "data", "on_conflict": "x"}))
    for name in ("../jobs", "", "ffff"):
        with pytest.raises(UsageError, match="there is no job"):
            book.show(Fields({"id": name}))
    spoilt = root / "jobs" / "abcd"
    spoilt.mkdir()
    Job(spoilt).run()
    assert "cannot be read" in read_json(spoilt / "progress.json")["words"]
    assert os.listdir(root / "restored") == []
