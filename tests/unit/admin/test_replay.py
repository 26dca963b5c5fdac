"""A replay: what it comes to, and doing it on a directory."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fusejournal.admin.replay import ReplayRequest, conflict_path
from fusejournal.errors import ConflictError, TargetError, UsageError
from fusejournal.operations import Clean, Create
from fusejournal.replay.scratch import scratch_of
from fusejournal.types import SYSTEM_CALLER, Fid
from tests.support.entries import make_directories
from tests.support.volumes import show_nothing


@pytest.fixture
def copy(tmp_path: Path) -> str:
    """Entries 1 to 10 make directories d1 to d10; 11 makes a file in d3; 12 tells that it held."""
    directory = tmp_path / "journal"
    directory.mkdir()
    journal = make_directories(directory, 10)
    file = Create(Fid(12), Fid(4), b"file", 0o100644, 0, 0, 0, None)
    journal.append(file, SYSTEM_CALLER, 11, {Fid(4): b"d3"}.get)
    journal.append(Clean(), SYSTEM_CALLER, 12, lambda _: None)
    journal.close()
    return str(directory)


def test_what_relies_on_what_is_left_out(copy: str, tmp_path: Path) -> None:
    request = ReplayRequest(copy, tmp_path / "target", without=["3"])
    plan = request.plan(show_nothing, whole=False)
    found = plan.to_json()
    assert (found["would_do"], found["left_out"], found["conflict_count"]) == (9, 1, 1)
    (conflict,) = plan.conflicts
    assert conflict_path(request.source, conflict) == ("create", b"d3/file")
    with pytest.raises(ConflictError, match="1 operation cannot be carried out"):
        request.check(plan)
    skipping = ReplayRequest(copy, tmp_path / "target", without=["3"], on_conflict="skip")
    skipping.check(plan)


def test_a_range_the_wrong_way_round(copy: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--to-seq 3 is before --from-seq 4"):
        ReplayRequest(copy, tmp_path / "target", from_seq=4, to_seq=3)


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
def test_it_is_carried_out(copy: str, tmp_path: Path) -> None:
    request = ReplayRequest(copy, tmp_path / "target", without=["3"], on_conflict="skip")
    with request.open_target() as target:
        request.check_target(target, show_nothing)
        results = [result.to_json() for result in request.run(target, show_nothing, None)]
        target.finish()
    assert sorted(os.listdir(request.target_path)) == sorted(
        f"d{number}" for number in range(1, 11) if number != 3
    )
    assert results[-1] == {
        "seq": 11,
        "op": "create",
        "result": "skipped",
        "reason": "its directory is missing",
        "because_of": 3,
    }
    assert request.to_json() == {
        "target": str(tmp_path / "target"),
        "done": 9,
        "skipped": 1,
        "refused": 0,
    }


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda purpose: purpose["replay"].pop("to_seq"), "replay"),
        (lambda purpose: purpose["replay"].update(to_seq="4"), "replay"),
        (lambda purpose: purpose.update(replay=[4]), "replay"),
        (lambda purpose: purpose.update(weather="fine"), "weather"),
    ],
)
def test_one_that_another_version_has_begun_is_not_gone_on_with(
    copy: str, tmp_path: Path, change: Callable[[dict[str, Any]], object], named: str
) -> None:
    target = tmp_path / "target"
    request = ReplayRequest(copy, target)
    with pytest.raises(ConflictError), request.open_target():
        raise ConflictError("stopped")
    place = scratch_of(target) / "purpose.json"
    purpose = json.loads(place.read_text())
    with ReplayRequest(copy, target).open_target() as again:
        assert again.resumed
    change(purpose)
    place.write_text(json.dumps(purpose))
    with (
        pytest.raises(TargetError, match=rf"half done with other options \({named}\)"),
        ReplayRequest(copy, target).open_target(),
    ):
        pass
    assert json.loads(place.read_text()) == purpose
