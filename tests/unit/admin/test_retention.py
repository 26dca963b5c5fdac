"""The day on which the policy lets each version go, by the schedule, and who shows it alike."""

import json
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from click.testing import CliRunner

from fusejournal.admin.prune import Pruning
from fusejournal.admin.retention import PolicyForecast, find_retention
from fusejournal.agent import kept_versions
from fusejournal.agent.fields import Fields
from fusejournal.cli.version import version
from fusejournal.node.volume_status import VersionStatus
from tests.support.consoles import make_story
from tests.support.dated_versions import make_another, make_dated_versions

pytestmark = pytest.mark.mount
_HOUR_NS = 3600 * 10**9
_POLICY = "[versions]\nevery = '6h'\nprune_every = '1d'\nkeep_daily = 3\nkeep_monthly = 2\n"


def _ns(text: str) -> int:
    return int(datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp()) * 10**9


_NOW = _ns("2024-03-12T13:00")
_NAMES = {"2024-02-20T12:00": "", "2024-03-10T12:00": "before", "2024-03-12T00:00": ""}
_TIMES = {**dict.fromkeys(("2024-01-31T12:00", "2024-02-10T12:00"), ""), **_NAMES}


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FUSEJOURNAL_STATE_ROOT", str(tmp_path / "volume"))
    monkeypatch.setenv("FUSEJOURNAL_CONFIG_ROOT", str(tmp_path))
    (tmp_path / "volume").mkdir()
    (tmp_path / "dated.toml").write_text(_POLICY)
    times = {_ns(when): name for when, name in [*_TIMES.items(), ("2024-03-12T12:00", "")]}
    make_dated_versions(tmp_path / "volume", tmp_path / "store", times)
    return tmp_path


def _day(time_ns: int | None) -> str | None:
    if time_ns is None:
        return None
    return datetime.fromtimestamp(time_ns // 10**9, UTC).strftime("%F %H:%M")


def _found(next_make: str | None = None, next_prune: str | None = None) -> PolicyForecast:
    """Returns what is found where the layer would say when it makes and prunes next."""
    known = replace(
        VersionStatus(store="", store_id=""),
        next_make=None if next_make is None else _ns(next_make) / 1e9,
        next_prune=None if next_prune is None else _ns(next_prune) / 1e9,
    )
    with mock.patch.object(Pruning, "status_of_layer", return_value=known):
        return find_retention("dated", clock=lambda: _NOW)


def test_each_version_has_its_day(root: Path) -> None:
    found = _found("2024-03-12T18:00", "2024-03-13T02:00")
    told = [(one.reasons, _day(one.let_go_ns), _day(one.prune_ns)) for one in found.versions]
    pruned = "2024-03-13 02:00"
    assert told == [
        # Nothing keeps them: of these months there is a newer one, or two newer months have any.
        ((), None, pruned),
        ((), None, pruned),
        # Of three days there are four once there is one of the 13th; April is a third month.
        (("daily", "monthly"), "2024-04-01 00:00", "2024-04-01 02:00"),
        (("named", "daily"), None, None),
        ((), None, pruned),
        (("the newest", "daily", "monthly"), "2024-03-12 18:00", pruned),
    ]
    assert found.next_make_ns == _ns("2024-03-12T18:00")
    assert found.looked_until_ns is not None
    assert found.looked_until_ns > _NOW + 9 * 365 * 24 * _HOUR_NS
    assert [one.is_for_good for one in found.versions] == [False] * 3 + [True] + [False] * 2


def test_what_is_said_is_what_pruning_does_then(root: Path) -> None:
    """The versions that the schedule goes on to make are really made, and the policy asked."""
    found = [one for one in _found("2024-03-12T18:00").versions if one.reasons]
    for time_ns in (_ns("2024-03-12T18:00"), _ns("2024-03-13T00:00")):
        make_another(root / "volume", time_ns)
        stays = {one.version.seq: one.stays for one in Pruning("dated").verdicts()}
        for one in found:
            is_let_go = one.let_go_ns is not None and one.let_go_ns <= time_ns
            assert stays[one.version.seq] is not is_let_go
    assert not stays[found[-1].version.seq]


def test_without_a_schedule_nothing_is_foretold(root: Path) -> None:
    (root / "dated.toml").write_text("[versions]\nkeep_daily = 3\n")
    found = find_retention("dated", clock=lambda: _NOW)
    assert found.looked_until_ns is None
    assert {(one.let_go_ns, one.prune_ns) for one in found.versions} == {(None, None)}
    told = CliRunner().invoke(version, ["calendar", "dated"]).output
    assert "goes: no rule keeps it" in told
    assert "is not known: [versions] has no schedule" in told


def test_the_command_and_the_agent_say_the_same(root: Path) -> None:
    told = CliRunner().invoke(version, ["calendar", "dated"]).output.splitlines()
    assert len(told) == 6
    assert told[3].endswith("2024-03-10 12:00 UTC  keep: named, daily (before)")
    assert "; let go on " in told[2]
    plain = json.loads(CliRunner().invoke(version, ["calendar", "dated", "--json"]).output)
    answer = kept_versions.retention(Fields({"volume": "dated"}))
    assert answer["command"] == "fusejournal version calendar dated"
    for key in ("policy", "every_seconds", "prune_every_seconds", "next_make_ns"):
        assert answer[key] == plain[key]
    # (The next version is due by now, and so at another moment each time.)
    assert [_without_days(one) for one in answer["versions"]] == [
        _without_days(one) for one in plain["versions"]
    ]
    (root / "store").rename(root / "away")
    assert "store" in kept_versions.retention(Fields({"volume": "dated"}))["error"]


def _without_days(one: dict[str, Any]) -> dict[str, Any]:
    return {**one, "let_go_ns": one["let_go_ns"] is not None}


def test_a_volume_without_a_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FUSEJOURNAL_STATE_ROOT", str(tmp_path / "volume"))
    (tmp_path / "volume").mkdir()
    make_story(tmp_path / "volume")
    found = kept_versions.retention(Fields({"volume": "data"}))
    assert (found["error"], found.get("versions")) == ("versions are kept nowhere yet", None)
