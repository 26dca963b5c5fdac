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
from fusejournal.errors import FusejournalError, JournalError, JournalFullError
from fusejournal.journal.watermarks import WatermarkPage
from fusejournal.node.holding import hold_or_make_volume
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
    """The file as *version* wrote it, of the volume in *directory*."""
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
    """A directory with a state directory of an earlier version in ``states/one``."""
    state = tmp_path / "states" / "one"
    state.mkdir(mode=0o700, parents=True)
    raw = _volume_json(request.param, tmp_path)
    assert raw["format"] == 1
    (state / "volume.json").write_text(json.dumps(raw, indent=2))
    page = WatermarkPage(state / "marks", raw["created_ns"])
    page.write_fence(_FENCE)
    page.write_durable(Seq(4711))
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
    with hold_or_make_volume(_spec(base)) as state:
        _check(base, before)
        assert state.role is Role.MIRROR
    assert [label for label in labels if label != "state.holder"] == _STEPS
    labels.clear()
    with hold_or_make_volume(_spec(base)):
        _check(base, before)
    assert set(labels) == {"state.holder"}


CLAIM = """
import sys
from pathlib import Path
from fusejournal.config import Config
from fusejournal.disk import failpoints
from fusejournal.node.holding import hold_or_make_volume
from fusejournal.node.spec import MountSpec
base = Path(sys.argv[1])
failpoints.listen_to_environment()
places = base / "states" / "one", base / "backing", base / "mount"
with hold_or_make_volume(MountSpec("one", *places, Config(), False, frozenset())):
    pass
"""


@pytest.mark.parametrize("action", ["kill", "EIO"])
@pytest.mark.parametrize("step", _STEPS)
def test_ended_at_a_step_it_goes_on_from_there(base: Path, step: str, action: str) -> None:
    state = base / "states" / "one"
    before = (state / "marks").read_bytes()
    if action == "kill":
        _killed(base, f"{step}:1:{action}")
    else:
        failpoints.listen(failpoints.PlannedFault(step, 1, action))
        with pytest.raises(OSError, match="planned") as error, hold_or_make_volume(_spec(base)):
            pass
        assert error.value.errno == getattr(errno, action)
        failpoints.listen(None)
    _check_goes_on(base, before)


def _killed(base: Path, fault: str, claim: str = CLAIM) -> None:
    ended = subprocess.run(
        [sys.executable, "-c", claim, str(base)],
        check=False,
        env={**os.environ, "FUSEJOURNAL_FAULT": fault},
    )
    assert ended.returncode == -signal.SIGKILL


def _check_goes_on(base: Path, before: bytes) -> None:
    """Ended on the way, it is never half for an older version, and the next claim does the rest."""
    state = base / "states" / "one"
    is_of_today = json.loads((state / "volume.json").read_text())["format"] == 2
    # An older version refuses the one, and finds its page in the other.
    assert is_of_today or (state / "marks").read_bytes() == before
    assert [(state / name).exists() for name in ("marks", "watermarks")].count(True) == 1
    known = load_state(state)
    page = WatermarkPage(known.watermarks, known.created_ns)
    assert page.fence == _FENCE
    page.close()
    with hold_or_make_volume(_spec(base)):
        _check(base, before)


class _Full:
    """No new file has a place; *then* is asked next."""

    def __init__(self, number: int = errno.ENOSPC, then: str = "", action: str = "ENOSPC") -> None:
        self.number = number
        self.then = failpoints.PlannedFault(then, 1, action)
        self.labels: list[str] = []

    def __call__(self, label: str) -> None:
        self.labels.append(label)
        if label == "state.write":
            raise OSError(self.number, "planned")
        self.then(label)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_has_room_for_the_format(base: Path, number: int) -> None:
    state = base / "states" / "one"
    before, text = (state / "marks").read_bytes(), (state / "volume.json").read_text()
    full = _Full(number)
    failpoints.listen(full)
    with hold_or_make_volume(_spec(base)) as known:
        _check(base, before)
        assert known == load_state(state)
    assert (state / "volume.json").read_text() == text.replace('"format": 1', '"format": 2')
    assert [label for label in full.labels if label != "state.holder"] == [
        *("state.write", "state.format.write", "state.format.sync"),
        *_STEPS[-2:],
    ]
    full.labels.clear()
    with hold_or_make_volume(_spec(base)):
        _check(base, before)
    assert set(full.labels) == {"state.holder"}


@pytest.mark.parametrize("step", ["state.sync", "state.rename"])
def test_so_it_has_when_it_is_found_full_later(base: Path, step: str) -> None:
    before = (base / "states" / "one" / "marks").read_bytes()
    failpoints.listen(failpoints.PlannedFault(step, 1, "ENOSPC"))
    with hold_or_make_volume(_spec(base)):
        _check(base, before)


_STEPS_IN_PLACE = ["state.format.write", "state.format.sync", *_STEPS[-2:]]
CLAIM_ON_FULL = CLAIM.replace("from pathlib", "import errno\nfrom pathlib").replace(
    "failpoints.listen_to_environment()",
    """failpoints.listen_to_environment()
planned = failpoints._listener
def full(label):
    if label == "state.write":
        raise OSError(errno.ENOSPC, "planned")
    planned(label)
failpoints.listen(full)""",
)


@pytest.mark.parametrize("action", ["kill", "ENOSPC", "EIO"])
@pytest.mark.parametrize("step", _STEPS_IN_PLACE)
def test_ended_on_a_full_disk_it_goes_on_from_there(base: Path, step: str, action: str) -> None:
    state = base / "states" / "one"
    before, text = (state / "marks").read_bytes(), (state / "volume.json").read_bytes()
    if action == "kill":
        _killed(base, f"{step}:1:{action}", CLAIM_ON_FULL)
    else:
        failpoints.listen(_Full(then=step, action=action))
        error, words = {
            "ENOSPC": (JournalFullError, r"volume\.json: no space .*: make space$"),
            "EIO": (OSError, "planned"),
        }[action]
        with pytest.raises(error, match=words), hold_or_make_volume(_spec(base)):
            pass
        if step.startswith("state.format"):
            assert (state / "volume.json").read_bytes() == text
        failpoints.listen(None)
    _check_goes_on(base, before)


def test_a_format_that_may_not_be_on_disk_is_flushed_before_the_page_is_renamed(
    base: Path,
) -> None:
    _killed(base, "state.format.sync:1:kill", CLAIM_ON_FULL)
    labels: list[str] = []
    failpoints.listen(labels.append)
    with hold_or_make_volume(_spec(base)):
        pass
    assert [label for label in labels if label != "state.holder"] == [
        "state.format.flush",
        *_STEPS[-2:],
    ]


@pytest.mark.parametrize(
    "style",
    [
        {"indent": None, "separators": (",", ":")},
        {"indent": "\t", "separators": (" ,", " : ")},
        {"sort_keys": True, "ensure_ascii": False},
    ],
)
@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_on_a_full_disk_others_may_have_written_it(
    base: Path, style: dict[str, Any], newline: str
) -> None:
    state = base / "states" / "one"
    before = (state / "marks").read_bytes()
    raw = json.loads((state / "volume.json").read_text())
    format_last = {"remark": 'ü "format": 1, ', **raw, "format": raw.pop("format")}
    text = json.dumps(format_last, **style) + "\n"
    (state / "volume.json").write_text(text, newline=newline)
    failpoints.listen(_Full())
    with hold_or_make_volume(_spec(base)):
        _check(base, before)
    assert json.loads((state / "volume.json").read_bytes()) == {**format_last, "format": 2}


@pytest.mark.parametrize(
    ("of_ours", "of_another"),
    [
        ('"format": 1', '"format": 1.0'),
        ('"format": 1', '"\\u0066ormat": 1'),
        ('"format": 1', '"deep": {"format": 1}, "format": 1'),
        ('"format": 1', '"format": 1, "format": 1'),
    ],
)
def test_a_text_that_one_byte_does_not_change_is_refused_on_a_full_disk(
    base: Path, of_ours: str, of_another: str
) -> None:
    state = base / "states" / "one"
    text = (state / "volume.json").read_text().replace(of_ours, of_another)
    (state / "volume.json").write_text(text)
    before = (state / "marks").read_bytes()
    failpoints.listen(_Full())
    refused = pytest.raises(JournalFullError, match=r"volume\.json: no space .*: make space$")
    with refused, hold_or_make_volume(_spec(base)):
        pass
    assert (state / "volume.json").read_text() == text
    failpoints.listen(None)
    _check_goes_on(base, before)


def test_another_place_is_refused_on_a_full_disk_with_the_way_out(base: Path) -> None:
    state = base / "states" / "one"
    text = (state / "volume.json").read_text()
    failpoints.listen(_Full())
    spec = MountSpec("one", state, base / "backing", base / "other", Config(), False, frozenset())
    words = rf"volume\.json: no space .* as before: {base}/backing at {base}/mount$"
    with pytest.raises(JournalFullError, match=words), hold_or_make_volume(spec):
        pass
    assert (state / "volume.json").read_text() == text
    with hold_or_make_volume(_spec(base)):
        pass


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
    with refused, hold_or_make_volume(_spec(base)):
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
    with hold_or_make_volume(_spec(tmp_path)) as known:
        assert (known.role is Role.UNINITIALIZED) == is_new
    assert (load_state(state).role is Role.UNINITIALIZED) == is_new


def test_a_format_of_tomorrow_is_refused(tmp_path: Path) -> None:
    raw = _volume_json("unreleased", tmp_path, format=5)
    (tmp_path / "volume.json").write_text(json.dumps(raw))
    with pytest.raises(FusejournalError, match="written by another version"):
        load_state(tmp_path)
