"""The works on versions that a layer has done by schedule, and the schedule that has them done."""

import errno
import json
import os
import subprocess
import time
from dataclasses import replace
from pathlib import Path

import pytest
import trio

from fusejournal.admin import keep_versions
from fusejournal.admin.keep_versions import VersionKeeping
from fusejournal.admin.mark import list_marks
from fusejournal.admin.versions import VolumeVersions
from fusejournal.config import load_config
from fusejournal.disk.process import python_module
from fusejournal.errors import FusejournalError
from fusejournal.journal.base import load_base
from fusejournal.node.spec import MountSpec
from fusejournal.node.version_record import WorkOutcome, load_version_status
from fusejournal.node.version_schedule import VersionSchedule
from fusejournal.node.volume_status import VersionStatus
from fusejournal.types import ROOT_FID, Fid, Seq
from tests.support.bases import stopped_volume
from tests.support.losses import failing_at
from tests.support.workload import make_directory, make_file, workload_of

_POLICY = """
[journal]
keep_bytes = 0
[versions]
every = "1s"
prune_every = "2s"
keep_last = 1
"""


@pytest.fixture
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A stopped volume with 40 entries, and versions of the entries 10 and 20."""
    monkeypatch.setenv("FUSEJOURNAL_STATE_ROOT", str(tmp_path / "root"))
    files = [make_file(Fid(3 + number), Fid(2), b"file%d" % number) for number in range(38)]
    workload = workload_of(make_directory(Fid(2), ROOT_FID, b"d"), *files)
    (tmp_path / "policy.toml").write_text(_POLICY)
    return stopped_volume(tmp_path, replace(workload, segment_entries=7), [Seq(10), Seq(20)])


def _keeping(state: Path) -> VersionKeeping:
    return VersionKeeping(state, state.parent / "policy.toml")


def test_looks_makes_and_prunes(state: Path) -> None:
    outcome = _keeping(state).do("look")
    status = outcome.status
    assert outcome.done
    assert (status.reachable, status.count, status.first_seq, status.last_seq) == (True, 2, 10, 20)
    assert load_version_status(state) == status
    assert (status.made, status.pruned) == (None, None)
    made = _keeping(state).do("make").status
    assert made.made is not None
    head_seq = made.last_seq
    assert head_seq is not None
    assert head_seq > 20
    # Where nothing has changed there is no other.
    again = _keeping(state).do("make").status
    assert (again.count, again.last_key) == (3, made.last_key)
    assert again.reachable_since == status.reachable_since
    pruned = _keeping(state).do("prune").status
    base = load_base(state)
    assert base is not None
    assert (pruned.first_seq, pruned.last_seq, pruned.count) == (base.seq, head_seq, 2)
    assert pruned.pruned is not None
    assert pruned.freed_bytes > 0
    # A collection of another node since then is not done once more.
    collected = replace(pruned, plan=1)
    assert _keeping(state).do("prune").status.plan >= collected.plan


@pytest.mark.parametrize("between", ["", "look", "prune"])
def test_another_node_s_version_is_left_at_that_once(
    state: Path, monkeypatch: pytest.MonkeyPatch, between: str
) -> None:
    """A look or a pruning in between changes nothing; if no other comes, this node makes one."""
    policy = '[versions]\nevery = "1h"\nprune_every = "1h"\n'
    (state.parent / "policy.toml").write_text(policy)
    VolumeVersions(f"{state}/").create("", lambda _, __: None)  # this node's
    with monkeypatch.context() as patched:
        patched.setattr(keep_versions, "node_name", lambda _: "another")
        assert _keeping(state).do("look").done
        if between:
            assert _keeping(state).do(between).done
        other = _keeping(state).do("make")
    assert other.again_in_seconds is not None
    assert other.again_in_seconds > 3600
    last_key = other.status.last_key
    assert last_key
    with monkeypatch.context() as patched:
        patched.setattr(keep_versions, "node_name", lambda _: "another")
        assert _keeping(state).do("look").done
        due = _keeping(state).do("make")
    assert due.again_in_seconds is None
    assert due.status.last_key == last_key  # nothing has changed


def test_a_store_that_is_away_is_told_with_the_moment(state: Path) -> None:
    kept = state.parent / "kept"
    here = _keeping(state).do("make").status
    os.rename(kept, state.parent / "away")
    for work, failures in (("make", 1), ("prune", 2), ("look", 3)):
        outcome = _keeping(state).do(work)
        assert not outcome.done
        status = outcome.status
        assert (status.reachable, status.failures) == (False, failures)
        assert str(kept) in (status.error or "")
        assert (status.last_key, status.made) == (here.last_key, here.made)
    since = status.reachable_since
    assert since is not None
    assert since > (here.reachable_since or 0)
    os.rename(state.parent / "away", kept)
    back = _keeping(state).do("look").status
    assert (back.reachable, back.error, back.failures) == (True, None, 0)
    assert (back.reachable_since or 0) > since


def test_a_full_disk_keeps_the_record_out_and_nothing_else(state: Path) -> None:
    full = OSError(errno.ENOSPC, "No space left on device")
    with failing_at("version.record.write", 1, full):
        outcome = _keeping(state).do("make")
    assert outcome.done
    assert outcome.status.count == 3


def test_there_is_nothing_to_do_without_a_store(state: Path) -> None:
    (state / "store.json").unlink()
    with pytest.raises(FusejournalError, match="has no store of versions"):
        _keeping(state)
    assert list_marks(f"{state}/") == []


def test_the_process_ends_with_its_layer(state: Path) -> None:
    command = python_module("fusejournal.admin.keep_versions", "look", str(state), "")
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd="/"
    ) as process:
        told, _ = process.stdout.read() if process.stdout else b"", process.wait()
        assert process.returncode == 0
        assert WorkOutcome.from_json(json.loads(told)).status.count == 2
    with subprocess.Popen(
        [*command[:3], "-c", "import fusejournal.admin.keep_versions as k, time\n"
         "k.threading.Thread(target=k._end_with_the_layer).start()\ntime.sleep(60)"],
        stdin=subprocess.PIPE, cwd="/",
    ) as process:  # fmt: skip
        assert process.stdin is not None
        process.stdin.close()
        assert process.wait(20) == 1


async def _until(schedule: VersionSchedule, wanted: str) -> VersionStatus:
    with trio.fail_after(60):
        while True:
            status = schedule.status()
            if status is not None and getattr(status, wanted):
                return status
            await trio.sleep(0.05)


async def test_a_schedule_has_it_done_and_tries_again(state: Path) -> None:
    file = state.parent / "policy.toml"
    nowhere = Path("/nowhere")
    spec = MountSpec(
        "v", state, nowhere, nowhere, load_config(file), False, frozenset(), None, file
    )
    schedule = VersionSchedule(spec, is_mirror=False)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(schedule.run)
        await _until(schedule, "made")  # either can be first: each is put off by chance
        status = await _until(schedule, "pruned")
        assert status.next_prune is not None
        assert abs(status.next_prune - time.time()) < 60
        assert list(schedule.degraded(status)) == []
        os.rename(state.parent / "kept", state.parent / "away")
        status = await _until(schedule, "error")
        line = ""
        with trio.fail_after(60):
            while "; tried again in " not in line:
                await trio.sleep(0.05)
                (line,) = map(str, schedule.degraded(schedule.status()))
        assert line.startswith("versions fail since ")
        os.rename(state.parent / "away", state.parent / "kept")
        with trio.fail_after(60):
            while status.error is not None:
                await trio.sleep(0.05)
                status = schedule.status() or status
        nursery.cancel_scope.cancel()
    assert (await trio.to_thread.run_sync(load_version_status, state) or status).error is None
