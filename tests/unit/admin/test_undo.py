"""An undo: what it comes to, asked of a copy of a journal; other tests have it done."""

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio
from click.testing import CliRunner

from fusejournal.admin.undo import PlannedUndo, UndoRequest
from fusejournal.cli.undo import undo
from fusejournal.control.server import serve_control
from fusejournal.errors import ConflictError, NoSuchSeqError, UsageError
from fusejournal.node.state_dir import VolumeState, save_state
from fusejournal.operations import Clean, Create
from fusejournal.replay.undo_plan import OnUndoConflict
from fusejournal.roles.role import Role
from fusejournal.types import SYSTEM_CALLER, Fid
from tests.golden.statuses import PRIMARY
from tests.support.entries import make_directories
from tests.support.volumes import show_nothing


@pytest.fixture
def copy(tmp_path: Path) -> str:
    """Entries 1 to 10 make directories d1 to d10; 11 makes a file in d3; 12 tells that it held."""
    journal = make_directories(tmp_path, 10)
    file = Create(Fid(12), Fid(4), b"file \xff", 0o100644, 0, 0, 0, None)
    journal.append(file, SYSTEM_CALLER, 11, {Fid(4): b"d3"}.get)
    journal.append(Clean(), SYSTEM_CALLER, 12, lambda _: None)
    journal.close()
    return str(tmp_path)


async def test_a_mirror_is_undone_on_its_primary(tmp_path: Path) -> None:
    (tmp_path / "journal").mkdir()
    journal = make_directories(tmp_path / "journal", 1)
    journal.close()
    state = VolumeState(tmp_path, journal.uuid, "data", tmp_path, tmp_path, 1, role=Role.MIRROR)
    save_state(state)

    async def status(_: dict[str, Any]) -> dict[str, Any]:
        return replace(PRIMARY, role="mirror").to_json()

    async with trio.open_nursery() as nursery:
        await nursery.start(serve_control, tmp_path / "control.sock", {"status": status})
        with pytest.raises(UsageError, match="undo on its primary"):
            await trio.to_thread.run_sync(partial(UndoRequest, str(tmp_path), ["1"], do_apply=True))
        nursery.cancel_scope.cancel()


def _planned(copy: str, *seqs: str, on_conflict: OnUndoConflict = "stop") -> PlannedUndo:
    return UndoRequest(copy, seqs, do_apply=False).plan(show_nothing, on_conflict)


def test_a_plan_as_values(copy: str) -> None:
    planned = _planned(copy, "3-4", "11")
    planned.check()
    found = planned.to_json(None)
    assert (found["chosen"], found["kept"], found["conflicts"]) == (3, 0, [])
    assert [(one["action"], one["path"], one["takes_back"]) for one in found["actions"]] == [
        ("remove", "d3", 3),
        ("remove", "d3/file \udcff", 11),
        ("remove", "d4", 4),
    ]
    assert found["applied"] is None


def test_what_is_in_the_way(copy: str) -> None:
    planned = _planned(copy, "3-4")
    assert [one["seq"] for one in planned.to_json(None)["conflicts"]] == [11]
    with pytest.raises(ConflictError, match="1 later change in the way"):
        planned.check()
    planned = _planned(copy, "3-4", on_conflict="skip")
    planned.check()
    assert (planned.plan.chosen, planned.plan.kept) == ({4}, 1)
    planned = _planned(copy, "3", on_conflict="skip")
    with pytest.raises(ConflictError, match="nothing can be taken back: later changes rely on it"):
        planned.check()


def test_nothing_to_take_back_is_said(copy: str) -> None:
    done = CliRunner().invoke(undo, [copy, "--since", "2200-01-01"])
    assert done.exit_code == 0
    assert "0 operations to take back" in done.output
    assert "nothing was found to take back: the newest entry is 12, of 1970-01-01T" in done.output


def test_what_cannot_be_asked(copy: str) -> None:
    with pytest.raises(UsageError, match="say which"):
        UndoRequest(copy, (), without=["4"], do_apply=False)
    with pytest.raises(UsageError, match="only a volume can be undone"):
        UndoRequest(copy, ["4"], do_apply=True)
    with pytest.raises(UsageError, match="process 77 has begun no undo"):
        UndoRequest(copy, ["4"], resumed=[77], do_apply=False)
    with pytest.raises(NoSuchSeqError):
        UndoRequest(copy, ["13"], do_apply=False)
