"""Plans of jobs: a job without one, or with another by now, plans, and does only what was shown."""

import json
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from fusejournal.admin.restore_in_place import PlannedInPlace
from fusejournal.admin.undo import DoneEntries, PlannedUndo
from fusejournal.admin.versions import VolumeVersions
from fusejournal.agent import job_progress, recovery_work, role_work
from fusejournal.agent.fields import Fields
from fusejournal.agent.job_process import Job
from fusejournal.agent.jobs import JobBook, OtherPlanError, read_json
from fusejournal.errors import NotRunningError
from fusejournal.replication.states import PeerState
from fusejournal.types import Seq
from tests.golden.statuses import PRIMARY
from tests.support.consoles import make_story

pytestmark = pytest.mark.mount


class _HereBook(JobBook):
    """A book whose jobs a test does itself."""

    def _start(self, path: Path) -> None:
        pass


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FUSEJOURNAL_STATE_ROOT", str(tmp_path / "volume"))
    monkeypatch.setenv("FUSEJOURNAL_CONFIG_ROOT", str(tmp_path / "etc"))
    monkeypatch.setattr("os.nice", lambda _: 0)  # it would last for all tests after
    (tmp_path / "etc").mkdir()
    (tmp_path / "volume").mkdir()
    make_story(tmp_path / "volume")
    return tmp_path


def _create(root: Path, **fields: Any) -> Path:
    job = _HereBook(root).create(Fields({"volume": "data", "access": "admin", **fields}))
    return root / "jobs" / str(job["id"])


def _order(root: Path, job: Path, order: str, **more: str) -> dict[str, Any]:
    fields = {"id": job.name, "order": order, "access": "admin", "confirm": "data"}
    _HereBook(root).order(Fields(fields | more))
    Job(job).run()
    return _HereBook(root).show(Fields({"id": job.name}))


_KINDS = (
    {"kind": "undo", "op": ["unlink,rmdir"]},
    {"kind": "in-place", "path": "docs", "at": 12},
    {"kind": "prune"},
)


@pytest.mark.parametrize("fields", _KINDS, ids=lambda fields: str(fields["kind"]))
def test_one_that_was_stopped_as_it_planned_plans(root: Path, fields: dict[str, Any]) -> None:
    VolumeVersions("data").kept.init(str(root / "store"), encrypt=False)
    job = _create(root, **fields)
    # As if its process had died in the middle of the plan.
    (job / "progress.json").write_text(json.dumps({"state": "planning", "done": 1}))
    shown = _HereBook(root).show(Fields({"id": job.name}))
    assert (shown["state"], shown["has_plan"]) == ("stopped", False)
    planned = _order(root, job, "do")
    assert (planned["state"], planned["has_plan"]) == ("planned", True), planned["words"]
    # And after a plan that has failed.
    (job / "progress.json").write_text(json.dumps({"state": "failed", "words": "no disk"}))
    assert _order(root, job, "do")["state"] == "planned"


def test_a_plan_counts_only_once_it_is_shown(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The space that pruning would free is looked for between the plan and its showing."""
    VolumeVersions("data").kept.init(str(root / "store"), encrypt=False)
    job = _create(root, kind="prune")

    def stop(*_: object) -> None:
        raise job_progress.JobStoppedError

    with monkeypatch.context() as patched:
        patched.setattr("fusejournal.admin.prune.Pruning.would_free", stop)
        Job(job).run()
    assert _HereBook(root).show(Fields({"id": job.name}))["has_plan"] is False
    assert _order(root, job, "do")["state"] == "planned"


def test_a_plan_is_compared_as_a_whole(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also what is beyond the actions that are kept for the page."""
    monkeypatch.setattr(recovery_work, "_ACTIONS_MAX", 2)
    monkeypatch.setattr("fusejournal.admin.undo._running", lambda source: source.state)
    done: list[int] = []
    monkeypatch.setattr(
        PlannedUndo, "carry_out", lambda planned, _: done.append(len(planned.actions))
    )
    job = _create(root, kind="undo", seqs=["22-24", "27"])
    Job(job).run()
    progress = read_json(job / "progress.json")
    assert (progress["action_count"], len(progress["actions"])) == (4, 2)
    request = read_json(job / "request.json")
    (job / "request.json").write_text(json.dumps({**request, "seqs": ["22-25", "27"]}))
    changed = _order(root, job, "do")
    assert (changed["state"], changed["action_count"]) == ("planned", 5)
    assert "look at the new one" in changed["words"]
    assert done == []


def test_the_window_is_that_of_the_first_plan(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fusejournal.admin.undo._running", lambda source: source.state)
    done: list[set[Seq]] = []
    monkeypatch.setattr(
        PlannedUndo, "carry_out", lambda planned, _: done.append(planned.plan.chosen)
    )
    monkeypatch.setattr(PlannedUndo, "done", lambda _: DoneEntries(Seq(2), Seq(1), 4711))
    job = _create(root, kind="undo", uid=1001, since="2 hours ago")
    Job(job).run()
    chosen = read_json(job / "progress.json")["chosen"]
    # Three hours later it is another time, and another has been at work.
    later = SimpleNamespace(time_ns=lambda: time.time_ns() + 3 * 3600 * 10**9)
    with monkeypatch.context() as patched:
        patched.setattr("fusejournal.history.moments.time", later)
        # A process of it was stopped before its first step.
        progress = read_json(job / "progress.json")
        told = {**progress, "state": "stopped", "pids": [4711]}
        (job / "progress.json").write_text(json.dumps(told))
        shown = _order(root, job, "do")
    assert (shown["state"], shown["words"]) == ("done", "")
    assert [len(one) for one in done] == [chosen] == [6]


def test_what_was_begun_takes_back_the_same(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fusejournal.admin.undo._running", lambda source: source.state)
    done: list[int] = []
    monkeypatch.setattr(
        PlannedUndo, "carry_out", lambda planned, _: done.append(len(planned.actions))
    )
    job = _create(root, kind="undo", seqs=["24-27"])
    Job(job).run()
    progress = read_json(job / "progress.json")
    told = {**progress, "state": "stopped", "pids": [4711]}
    (job / "progress.json").write_text(json.dumps(told))
    request = read_json(job / "request.json")
    (job / "request.json").write_text(json.dumps({**request, "seqs": ["22-27"]}))
    shown = _order(root, job, "do")
    assert (shown["state"], "look at the new one" in shown["words"]) == ("planned", True)
    assert done == []


def test_a_plan_that_was_not_seen_is_not_done(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two pages show a job; by one it is planned anew."""
    monkeypatch.setattr("fusejournal.admin.undo._running", lambda source: source.state)
    done: list[int] = []
    monkeypatch.setattr(
        PlannedUndo, "carry_out", lambda planned, _: done.append(len(planned.actions))
    )
    monkeypatch.setattr(PlannedUndo, "done", lambda _: DoneEntries(Seq(2), Seq(1), 4711))
    job = _create(root, kind="undo", seqs=["24-27"])
    Job(job).run()
    book = _HereBook(root)
    seen = book.show(Fields({"id": job.name}))["plan"]
    request = read_json(job / "request.json")
    (job / "request.json").write_text(json.dumps({**request, "seqs": ["22-27"]}))
    assert _order(root, job, "plan")["plan"] != seen
    refused = Fields({"id": job.name, "order": "do", "access": "operator", "plan": seen})
    with pytest.raises(OtherPlanError, match="another one by now"):
        book.order(refused)
    # As if it had been planned anew right after the order was looked at.
    (job / "order.json").write_text(json.dumps({"order": "do", "plan": seen}))
    Job(job).run()
    planned = book.show(Fields({"id": job.name}))
    assert (planned["state"], done) == ("planned", [])
    assert _order(root, job, "do", plan=planned["plan"])["state"] == "done"
    assert done == [planned["action_count"]]


def test_of_a_restore_in_place_a_hash_is_kept(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many changes there are, what is written several times a second stays small."""
    monkeypatch.setattr(recovery_work, "_ACTIONS_BYTES_MAX", 400)
    job = _create(root, kind="in-place", path="docs", at=12)
    Job(job).run()
    progress = read_json(job / "progress.json")
    assert (progress["state"], progress["change_count"]) == ("planned", 6)
    assert 0 < len(progress["changes"]) < 6
    assert set(progress["essence"]) == {"count", "hash"}
    assert len(json.dumps(progress)) < 1200


def test_a_begun_restore_in_place_is_shown_what_is_left(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[int] = []
    monkeypatch.setattr("fusejournal.admin.restore_in_place.check_can_apply", lambda _: None)
    monkeypatch.setattr(
        PlannedInPlace, "carry_out", lambda planned, _: done.append(len(planned.plan.changes))
    )
    job = _create(root, kind="in-place", path="docs/note0", at=12)
    Job(job).run()
    path = job / "progress.json"
    progress = read_json(path)
    # It was stopped in its midst, and other changes have come since.
    path.write_text(json.dumps({**progress, "state": "stopped", "pids": [4711], "essence": {}}))
    shown = _order(root, job, "do")
    assert (shown["state"], "look at the new one" in shown["words"]) == ("planned", True)
    assert done == []


@pytest.mark.parametrize("kind", ["handoff", "demote"])
def test_a_change_of_role_is_what_was_shown(
    root: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    done: list[str] = []

    def change(*_: object, **__: object) -> None:
        done.append(kind)
        raise NotRunningError("data")

    replication = PRIMARY.replication
    assert replication is not None
    peer = replication.peers[0]

    def stand(state: PeerState) -> None:
        peers = (replace(peer, state=state), *replication.peers[1:])
        now = replace(PRIMARY, replication=replace(replication, peers=peers))
        monkeypatch.setattr(role_work, "live_status", lambda _: now)

    monkeypatch.setattr(role_work, "hand_over", change)
    monkeypatch.setattr(role_work, "demote_in_words", change)
    stand(PeerState.CATCHING_UP)
    job = _create(root, kind=kind, peer=peer.name)
    (job / "progress.json").write_text(json.dumps({"state": "planning"}))
    assert _order(root, job, "do")["state"] == "planned"
    stand(PeerState.PAUSED)
    other = _order(root, job, "do")
    assert (other["state"], "look at the new plan" in other["words"]) == ("planned", True)
    assert done == []
    assert _order(root, job, "do")["state"] == "failed"
    assert done == [kind]
