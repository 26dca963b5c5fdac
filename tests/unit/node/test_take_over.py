"""A state directory of an earlier format becomes one of today's: once, killed at any step, and
never half for an older version of the program."""

import errno
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fusejournal.admin.status import volume_status
from fusejournal.config import Config
from fusejournal.disk import failpoints
from fusejournal.errors import FusejournalError, JournalError
from fusejournal.journal.watermarks import WatermarkPage
from fusejournal.node.claim import claim_volume
from fusejournal.node.spec import MountSpec
from fusejournal.node.state_dir import load_state
from fusejournal.roles.role import Role
from fusejournal.types import Epoch, Reign, Seq
from tests.upgrade.releases import kept

_STEPS = [
    *("state.write", "state.sync", "state.rename", "state.directory"),
    *("state.watermarks.rename", "state.watermarks.directory"),
]
_FENCE = Reign(Epoch(7), 99)


@pytest.fixture(autouse=True)
def _roots(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("FUSEJOURNAL_STATE_ROOT", str(tmp_path / "states"))
    yield
    failpoints.listen(None)


def _volume_json(version: str, directory: Path, **changes: Any) -> dict[str, Any]:
    """As *version* wrote it, of the volume in *directory*."""
    raw: dict[str, Any]
    if version == "0.1.0":
        raw = json.loads("".join(kept("0.1.0")["mirror"]["state"]["volume.json"]["text"]))
    else:  # before 0.2.0 was released
        raw = json.loads("".join(kept("0.1.0")["mirror"]["state"]["volume.json"]["text"]))
        raw["is_uninitialized"] = raw.pop("is_unborn")
    places = {"backing": str(directory / "backing"), "mountpoint": str(directory / "mount")}
    return {**raw, "name": "one", **places, **changes}


@pytest.fixture(params=["0.1.0", "unreleased"])
def base(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """Where a state directory of an earlier version lies, in ``states/one``."""
    state = tmp_path / "states" / "one"
    state.mkdir(mode=0o700, parents=True)
    raw = _volume_json(request.param, tmp_path)
    assert raw["format"] == 1
    (state / "volume.json").write_text(json.dumps(raw, indent=2))
    page = WatermarkPage(state / "marks", raw["created_ns"])
    page.fence = _FENCE
    page.durable_seq = Seq(4711)
    page.confirm()
    page.close()
    return tmp_path


def _spec(base: Path) -> MountSpec:
    places = base / "states" / "one", base / "backing", base / "mount"
    return MountSpec("one", *places, Config(), False, frozenset())


def _check(base: Path, before: bytes) -> None:
    """All is as this version has it."""
    state = base / "states" / "one"
    assert json.loads((state / "volume.json").read_text())["format"] == 2
    assert not (state / "marks").exists()
    assert (state / "watermarks").read_bytes() == before
    known = load_state(state)
    assert known.watermarks == state / "watermarks"
    page = WatermarkPage(known.watermarks, known.created_ns)
    assert (page.fence, page.durable_seq) == (_FENCE, 4711)
    page.close()
    assert sorted(path.name for path in state.iterdir()) == ["lock", "volume.json", "watermarks"]


def test_it_is_taken_over_once(base: Path) -> None:
    before = (base / "states" / "one" / "marks").read_bytes()
    labels: list[str] = []
    failpoints.listen(labels.append)
    with claim_volume(_spec(base)) as state:
        _check(base, before)
        assert state.role is Role.MIRROR
    assert [label for label in labels if label != "state.holder"] == _STEPS
    labels.clear()
    with claim_volume(_spec(base)):
        _check(base, before)
    assert set(labels) == {"state.holder"}


CLAIM = """
import sys
from pathlib import Path
from fusejournal.config import Config
from fusejournal.disk import failpoints
from fusejournal.node.claim import claim_volume
from fusejournal.node.spec import MountSpec
base = Path(sys.argv[1])
failpoints.listen_to_environment()
places = base / "states" / "one", base / "backing", base / "mount"
with claim_volume(MountSpec("one", *places, Config(), False, frozenset())):
    pass
"""


@pytest.mark.parametrize("action", ["kill", "ENOSPC", "EIO"])
@pytest.mark.parametrize("step", _STEPS)
def test_ended_at_a_step_it_goes_on_from_there(base: Path, step: str, action: str) -> None:
    state = base / "states" / "one"
    before = (state / "marks").read_bytes()
    if action == "kill":
        ended = subprocess.run(
            [sys.executable, "-c", CLAIM, str(base)],
            check=False,
            env={**os.environ, "FUSEJOURNAL_FAULT": f"{step}:1:{action}"},
        )
        assert ended.returncode == -signal.SIGKILL
    else:
        failpoints.listen(failpoints.PlannedFault(step, 1, action))
        with pytest.raises(OSError, match="planned") as error, claim_volume(_spec(base)):
            pass
        assert error.value.errno == getattr(errno, action)
        failpoints.listen(None)
    is_of_today = json.loads((state / "volume.json").read_text())["format"] == 2
    # An older version refuses the one, and finds its page in the other.
    assert is_of_today or (state / "marks").read_bytes() == before
    assert [(state / name).exists() for name in ("marks", "watermarks")].count(True) == 1
    known = load_state(state)
    page = WatermarkPage(known.watermarks, known.created_ns)
    assert page.fence == _FENCE
    page.close()
    with claim_volume(_spec(base)):
        _check(base, before)


def test_who_only_reads_leaves_it_as_it_is(base: Path) -> None:
    state = base / "states" / "one"
    before = {path.name: path.read_bytes() for path in state.iterdir()}
    volume_status(load_state(state))
    assert {path.name: path.read_bytes() for path in state.iterdir()} == before


def test_two_pages_are_not_chosen_from(base: Path) -> None:
    state = base / "states" / "one"
    (state / "watermarks").write_bytes((state / "marks").read_bytes())
    before = {path.name: path.read_bytes() for path in state.iterdir()}
    refused = pytest.raises(JournalError, match=r"an older version .* move away")
    with refused, claim_volume(_spec(base)):
        pass
    before["lock"] = (state / "lock").read_bytes()
    assert {path.name: path.read_bytes() for path in state.iterdir()} == before


@pytest.mark.parametrize("version", ["0.1.0", "unreleased"])
@pytest.mark.parametrize("is_new", [False, True])
def test_a_mirror_that_has_heard_from_nobody_stays_one(
    tmp_path: Path, version: str, is_new: bool
) -> None:
    key = "is_unborn" if version == "0.1.0" else "is_uninitialized"
    state = tmp_path / "states" / "one"
    state.mkdir(mode=0o700, parents=True)
    raw = _volume_json(version, tmp_path, **{key: is_new})
    (state / "volume.json").write_text(json.dumps(raw))
    assert (load_state(state).role is Role.UNINITIALIZED) == is_new
    with claim_volume(_spec(tmp_path)) as known:
        assert (known.role is Role.UNINITIALIZED) == is_new
    assert (load_state(state).role is Role.UNINITIALIZED) == is_new


def test_a_format_of_tomorrow_is_refused(tmp_path: Path) -> None:
    raw = _volume_json("unreleased", tmp_path, format=3)
    (tmp_path / "volume.json").write_text(json.dumps(raw))
    with pytest.raises(FusejournalError, match="written by another version"):
        load_state(tmp_path)
