"""A token for some volumes alone sees nothing of others, nor of servers without one of its own,
whichever route of the API is asked."""

from collections.abc import AsyncIterator
from itertools import cycle
from pathlib import Path

import pytest
import trio

from fusejournal.console.agents import AgentBook, KnownAgent
from fusejournal.console.users import AccessRole
from fusejournal.wire.identity import load_or_make
from tests.support.api_requests import requests_of
from tests.support.consoles import RunningConsole, make_story, running_console
from tests.support.nodes import make_volume

pytestmark = pytest.mark.mount
_AWAY = "127.0.0.1:1"
_OTHERS = (b"payroll", b"vault", _AWAY.encode())
"""Another volume on the same server, and a server that is away, with where it is."""


@pytest.fixture
async def console(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[RunningConsole]:
    monkeypatch.setenv("FUSEJOURNAL_STATE_ROOT", str(tmp_path / "volume"))
    (tmp_path / "volume").mkdir()
    make_story(tmp_path / "volume")
    make_volume(tmp_path / "volume/payroll", "payroll")
    async with running_console(tmp_path) as console:
        certificate = load_or_make(tmp_path / "vault", "vault").certificate_path.read_text()
        AgentBook(tmp_path / "agents.json").put(KnownAgent("vault", _AWAY, certificate))
        yield console


async def _job(console: RunningConsole, volume: str) -> str:
    job = await console.post("/api/agents/hall/jobs", kind="undo", volume=volume, uid=1001)
    for _ in range(600):
        if not (await console.get(f"/api/agents/hall/jobs/{job['id']}"))["is_running"]:
            break
        await trio.sleep(0.1)
    return str(job["id"])


@pytest.mark.parametrize("pattern", ["hall/data", "*/data", "hall/d*"])
async def test_no_route_shows_others(console: RunningConsole, pattern: str) -> None:
    await console.log_in("admin")
    jobs = [await _job(console, "data"), await _job(console, "payroll")]
    seen = str(await console.get("/api/overview")).encode()
    assert all(one in seen for one in _OTHERS)  # so there is something to be hidden
    # (Several, because each may ask only so often.)
    tokens = cycle(
        [console.tokens.create(f"some-{at}", AccessRole.ADMIN, 1, (pattern,)) for at in range(4)]
    )
    described = await console.get("/api/openapi.json")
    values = {
        "agent": ["hall", "vault", "no-where"], "volume": ["data", "payroll"], "seq": ["3"],
        "id": jobs, "peer": ["east"], "version": ["1"], "path": [""], "new_path": [""],
        "from_seq": ["1"], "old": ["1"], "new": ["2"],
    }  # fmt: skip
    console.client.cookies.clear()
    answers: dict[str, tuple[int, bytes]] = {}
    for method, _, where in requests_of(described, values):
        answer = await console.client.request(
            method, where, headers={"authorization": f"Bearer {next(tokens)}"},
            json={"kind": "undo", "volume": "payroll", "order": "do"} if method == "post" else None,
        )  # fmt: skip
        assert answer.status_code != 429
        answers[f"{method} {where}"] = answer.status_code, answer.content
        if "payroll" not in where and "vault" not in where and method == "get":
            assert not any(one in answer.content for one in _OTHERS), where
    assert answers["get /api/overview?"][0] == 200
    assert answers[f"get /api/agents/hall/jobs/{jobs[0]}?"][0] == 200
    assert answers[f"get /api/agents/hall/jobs/{jobs[1]}?"][0] == 403
    for where, (status, content) in answers.items():
        if "vault" in where:
            # A server that it is not for is as one that is not there.
            other = answers[where.replace("vault", "no-where")]
            assert other == (status, content.replace(b"vault", b"no-where")), where
            assert _AWAY.encode() not in content, where
        elif "/volumes/payroll" in where:
            assert status == 403, where
        elif where.startswith("post"):
            assert b"payroll" not in content or status == 403, where


async def test_a_server_that_is_away_is_no_secret_to_its_own_token(console: RunningConsole) -> None:
    token = console.tokens.create("own", AccessRole.VIEWER, 1, ("vault/*",))
    await console.log_in("viewer")
    console.client.cookies.clear()
    bearer = {"authorization": f"Bearer {token}"}
    answer = await console.client.get("/api/overview", headers=bearer)
    (agent,) = answer.json()["agents"]
    (alert,) = answer.json()["alerts"]
    assert (agent["name"], alert["key"]) == ("vault", "vault//unreachable")
    assert agent["error"] == alert["words"]
    assert _AWAY not in answer.text
