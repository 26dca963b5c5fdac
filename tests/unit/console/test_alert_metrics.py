"""The alerts as metrics: who gets them, and what they count."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from fusejournal.console.alert_metrics import alert_metrics
from fusejournal.console.users import AccessRole
from tests.support.consoles import RunningConsole, make_story, running_console

pytestmark = pytest.mark.mount
_Samples = dict[tuple[str, tuple[tuple[str, str], ...]], float]


@pytest.fixture
async def console(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[RunningConsole]:
    monkeypatch.setenv("FUSEJOURNAL_STATE_ROOT", str(tmp_path / "volume"))
    (tmp_path / "volume").mkdir()
    make_story(tmp_path / "volume")
    async with running_console(tmp_path) as console:
        yield console


async def _get(console: RunningConsole, token: str) -> httpx.Response:
    headers = {"authorization": f"Bearer {token}"}
    return await console.client.get("/api/metrics", headers=headers)


def _read(text: str) -> _Samples:
    return {
        (one.name, tuple(sorted(one.labels.items()))): one.value
        for family in text_string_to_metric_families(text)
        for one in family.samples
    }


def _alert(**labels: str) -> tuple[str, tuple[tuple[str, str], ...]]:
    return "fusejournal_alert", tuple(sorted(labels.items()))


def _sum(severity: str, state: str) -> tuple[str, tuple[tuple[str, str], ...]]:
    return "fusejournal_alerts", (("severity", severity), ("state", state))


async def test_alerts_are_metrics_for_a_token(console: RunningConsole) -> None:
    assert (await console.client.get("/api/metrics")).status_code == 401
    token = console.tokens.create("prometheus", AccessRole.VIEWER, 1, ())
    answer = await _get(console, token)
    assert answer.headers["content-type"].startswith("text/plain; version=")
    found = _read(answer.text)
    stopped = {"server": "hall", "volume": "data", "kind": "stopped", "severity": "warning"}
    assert found[_alert(**stopped, state="active")] == 1
    assert (found[_sum("warning", "active")], found[_sum("bad", "active")]) == (1, 0)
    assert found["fusejournal_server_up", (("server", "hall"),)] == 1
    for action, hours, state in (("acknowledge", 0, "acknowledged"), ("silence", 2, "silenced")):
        await console.watch.act("hall/data/stopped", action, "anna", hours)
        found = _read((await _get(console, token)).text)
        assert found[_alert(**stopped, state=state)] == found[_sum("warning", state)] == 1
        assert found[_sum("warning", "active")] == 0
    other = console.tokens.create("other", AccessRole.VIEWER, 1, ("hall/other",))
    found = _read((await _get(console, other)).text)
    assert found[_sum("warning", "silenced")] == 0
    assert not [name for name, _ in found if name == "fusejournal_alert"]


def test_kinds_are_counted_and_names_are_whatever_they_are() -> None:
    """Two peers that lag are one kind; what is no text spoils nothing."""
    alert: dict[str, Any] = {"severity": "bad", "acknowledged": None, "silenced": None}
    alerts = [
        {**alert, "agent": agent, "volume": volume, "key": f"{agent}/{volume}/{cause}"}
        for agent, volume, cause in (
            ("hall", "data", "lag:east"),
            ("hall", "data", "lag:west"),
            ("hall", 'a"b\n\ud800', "mass:1000:removed"),
            ("cellar", "", "unreachable"),
        )
    ]
    agents = [{"name": "cellar", "error": "no answer", "seen_ns": 0}]
    found = _read(alert_metrics({"agents": agents, "alerts": alerts}).decode())
    common = {"severity": "bad", "state": "active"}
    assert found[_alert(server="hall", volume="data", kind="lag", **common)] == 2
    assert found[_alert(server="hall", volume='a"b\n\\ud800', kind="mass", **common)] == 1
    assert found[_alert(server="cellar", volume="", kind="unreachable", **common)] == 1
    assert found[_sum("bad", "active")] == 4
    assert found["fusejournal_server_up", (("server", "cellar"),)] == 0
