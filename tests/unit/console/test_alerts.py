"""Silences and acknowledgements hold while an alert's cause comes and goes, and no longer."""

import json
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import pytest

from fusejournal.console.alerts import Alerts
from fusejournal.console.channels import AlertCommand, CommandConfig
from fusejournal.console.delivery import AlertDelivery

_LAG = {
    "key": "hall/data/lag:east", "words": "peer east is behind by 70 s", "severity": "warning",
    "advice": "", "agent": "hall", "volume": "data",
}  # fmt: skip
_KEY = _LAG["key"]
_SECOND_NS = 10**9
_HOUR_NS = 3600 * _SECOND_NS


class _Clock:
    now_ns = 1_700_000_000 * _SECOND_NS


@pytest.fixture
def clock() -> Iterator[_Clock]:
    """The time of the machine, as the test moves it."""
    found = _Clock()
    with mock.patch("time.time_ns", side_effect=lambda: found.now_ns):
        yield found


class _Pager:
    """A channel that writes a line for each message."""

    def __init__(self, directory: Path) -> None:
        self._path = directory / "messages"
        argv = ["/bin/sh", "-c", f"echo told >> '{self._path}'"]
        channel = AlertCommand("pager", CommandConfig(argv=argv, after_seconds=30.0))
        self.delivery = AlertDelivery([channel], directory / "told.json")

    @property
    def count(self) -> int:
        return len(self._path.read_text().splitlines()) if self._path.exists() else 0


async def test_a_silence_holds_until_its_end(tmp_path: Path, clock: _Clock) -> None:
    alerts, pager = Alerts(tmp_path / "alerts.json"), _Pager(tmp_path)
    alerts.update([_LAG])
    alerts.act(_KEY, "silence", "anna", 24)
    until_ns = clock.now_ns + 24 * _HOUR_NS
    for _ in range(2):
        assert alerts.update([]) == []
        clock.now_ns += 11 * _HOUR_NS
        assert alerts.update([]) == []
        alerts = Alerts(tmp_path / "alerts.json")
        alerts.update([_LAG])
        clock.now_ns += 40 * _SECOND_NS
        (alert,) = alerts.update([_LAG])
        assert alert["silenced"] == {"user": "anna", "until_ns": until_ns}
        assert alert["since_ns"] == clock.now_ns - 40 * _SECOND_NS
        await pager.delivery.deliver([alert])
        assert pager.count == 0
    clock.now_ns = until_ns
    (alert,) = alerts.update([_LAG])
    assert alert["silenced"] is None
    await pager.delivery.deliver([alert])
    assert pager.count == 1


async def test_an_acknowledgement_survives_a_short_absence(tmp_path: Path, clock: _Clock) -> None:
    alerts, pager = Alerts(tmp_path / "alerts.json"), _Pager(tmp_path)
    alerts.update([_LAG])
    alerts.act(_KEY, "acknowledge", "anna", 0)
    (before,) = alerts.update([_LAG])
    for is_long in (False, False, True):
        alerts.update([])
        clock.now_ns += (600 if is_long else 599) * _SECOND_NS
        alerts = Alerts(tmp_path / "alerts.json")
        alerts.update([_LAG])
        clock.now_ns += 40 * _SECOND_NS
        (alert,) = alerts.update([_LAG])
        assert alert["acknowledged"] == (None if is_long else before["acknowledged"])
        await pager.delivery.deliver([alert])
        assert pager.count == is_long


def test_nothing_is_known_of_what_is_over(tmp_path: Path, clock: _Clock) -> None:
    """A cause that is gone is kept only where a user did something about it."""
    alerts = Alerts(tmp_path / "alerts.json")
    alerts.update([_LAG, {**_LAG, "key": "hall/data/full"}])
    alerts.act(_KEY, "acknowledge", "anna", 0)
    alerts.update([])
    assert set(alerts._known) == {_KEY}
    clock.now_ns += 600 * _SECOND_NS
    alerts.update([])
    assert alerts._known == {}
    assert Alerts(tmp_path / "alerts.json")._known == {}


async def test_an_acknowledged_warning_that_becomes_bad_is_told(
    tmp_path: Path, clock: _Clock
) -> None:
    alerts, pager = Alerts(tmp_path / "alerts.json"), _Pager(tmp_path)
    worse = {**_LAG, "severity": "bad"}

    async def told_of(problem: dict[str, str]) -> int:
        clock.now_ns += 40 * _SECOND_NS
        await pager.delivery.deliver(alerts.update([problem]))
        return pager.count

    await told_of(_LAG)
    alerts.act(_KEY, "acknowledge", "anna", 0)
    assert await told_of(_LAG) == 0
    alerts = Alerts(tmp_path / "alerts.json")
    assert await told_of(worse) == 1
    # One that was acknowledged as bad is not told again, whatever becomes of it.
    alerts.act(_KEY, "acknowledge", "anna", 0)
    for problem in (worse, _LAG, worse):
        assert await told_of(problem) == 1
    (alert,) = alerts.update([worse])
    assert alert["acknowledged"]["user"] == "anna"


async def test_a_rise_is_told_also_where_the_cause_was_gone_for_a_moment(
    tmp_path: Path, clock: _Clock
) -> None:
    alerts, pager = Alerts(tmp_path / "alerts.json"), _Pager(tmp_path)
    for problems, count in (([_LAG], 0), ([_LAG], 1), ([], 2), ([_LAG], 2), ([_LAG], 2)):
        await pager.delivery.deliver(alerts.update(problems))
        assert pager.count == count
        clock.now_ns += 40 * _SECOND_NS
    await pager.delivery.deliver(alerts.update([{**_LAG, "severity": "bad"}]))
    assert pager.count == 3


def test_an_acknowledgement_of_before_goes_by_how_bad_it_is_now(
    tmp_path: Path, clock: _Clock
) -> None:
    """The file had no severity."""
    known = {"since_ns": 1, "acknowledged": {"user": "anna", "time_ns": 1}}
    (tmp_path / "alerts.json").write_text(json.dumps({"alerts": {_KEY: known}}))
    alerts = Alerts(tmp_path / "alerts.json")
    for severity in ("warning", "bad"):
        (alert,) = alerts.update([{**_LAG, "severity": severity}])
        assert (alert["acknowledged"] is None) == (severity == "bad")
