"""API tokens: what each may, and when it is no more."""

import json
import time
from collections.abc import AsyncIterator
from pathlib import Path
from urllib.parse import quote

import httpx
import pytest

from fusejournal.agent.fields import Fields
from fusejournal.console.tokens import TokenBook
from fusejournal.console.users import AccessRole
from fusejournal.errors import UsageError
from tests.support.consoles import RunningConsole, make_story, running_console

pytestmark = pytest.mark.mount
_VOLUME = "/api/agents/hall/volumes/data"


@pytest.fixture
async def console(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[RunningConsole]:
    monkeypatch.setenv("FUSEJOURNAL_STATE_ROOT", str(tmp_path / "volume"))
    (tmp_path / "volume").mkdir()
    make_story(tmp_path / "volume")
    async with running_console(tmp_path) as console:
        yield console


async def _get(console: RunningConsole, token: str, path: str) -> httpx.Response:
    return await console.client.get(path, headers={"authorization": f"Bearer {token}"})


async def _post(console: RunningConsole, token: str, path: str, **body: object) -> httpx.Response:
    headers = {"authorization": f"Bearer {token}"}
    return await console.client.post(path, json=body, headers=headers)


async def test_a_token_is_a_way_in_without_a_session(console: RunningConsole) -> None:
    viewer = console.tokens.create("look", AccessRole.VIEWER, 1, ())
    operator = console.tokens.create("work", AccessRole.OPERATOR, 1, ())
    assert (await _get(console, viewer, "/api/overview")).status_code == 200
    assert (await _get(console, viewer, f"{_VOLUME}/entries")).status_code == 200
    content = f"{_VOLUME}/content?path=docs/note1&at=13"
    assert (await _get(console, viewer, content)).status_code == 403
    assert (await _get(console, operator, content)).content == b"text 1"
    refused = await _post(console, viewer, f"{_VOLUME}/marks", name="here")
    assert refused.status_code == 403
    asked = await _post(console, operator, f"{_VOLUME}/marks", name="here")
    assert (asked.status_code, "is not mounted" in asked.text) == (400, True)
    prune = {"kind": "prune", "volume": "data"}
    refused = await _post(console, operator, "/api/agents/hall/jobs", **prune)
    assert (refused.status_code, "for the role admin" in refused.text) == (403, True)
    lines = console.audit.newest(50)
    assert {"token work"} == {one["user"] for one in lines if one["what"] == "mark"}
    # Its hash is kept, and not itself.
    kept = (console.tokens._path).read_text()
    assert operator not in kept
    assert console.tokens._path.stat().st_mode & 0o777 == 0o600


async def test_a_token_ends(console: RunningConsole) -> None:
    text = console.tokens.create("look", AccessRole.ADMIN, 1, ())
    assert (await _get(console, text, "/api/audit")).status_code == 200
    raw = json.loads(console.tokens._path.read_text())
    raw["tokens"][0]["expires"] = time.time() - 1
    console.tokens._path.write_text(json.dumps(raw))
    assert (await _get(console, text, "/api/audit")).status_code == 401
    console.tokens.revoke("look")
    again = console.tokens.create("look", AccessRole.ADMIN, 1, ())
    assert (await _get(console, text, "/api/audit")).status_code == 401
    assert (await _get(console, again, "/api/audit")).status_code == 200
    # A session does not help a wrong token, and wrong ones cannot be tried for ever.
    await console.log_in("admin")
    statuses = [(await _get(console, "fjt_x", "/api/audit")).status_code for _ in range(25)]
    assert (statuses[0], statuses[-1]) == (401, 429)
    basic = await console.client.get("/api/audit", headers={"authorization": f"Basic {again}"})
    assert basic.status_code in (401, 429)


async def test_a_token_for_some_volumes_alone(console: RunningConsole) -> None:
    other = console.tokens.create("other", AccessRole.ADMIN, 1, ("hall/other", "east/*"))
    own = console.tokens.create("own", AccessRole.ADMIN, 1, ("hall/da*",))
    job = (await _post(console, own, "/api/agents/hall/jobs", kind="undo", volume="data")).json()
    for path in (
        f"{_VOLUME}/entries", f"{_VOLUME}/versions", f"/api/agents/hall/jobs/{job['id']}",
    ):  # fmt: skip
        assert (await _get(console, own, path)).status_code == 200, path
        assert (await _get(console, other, path)).status_code == 403, path
    assert (await _get(console, other, "/api/agents/hall/jobs")).json() == {"jobs": []}
    assert len((await _get(console, own, "/api/agents/hall/jobs")).json()["jobs"]) == 1
    for path, body in (
        ("/api/agents/hall/jobs", {"kind": "undo", "volume": "data"}),
        (f"/api/agents/hall/jobs/{job['id']}", {"order": "remove"}),
        ("/api/alerts", {"key": "hall/data/stopped"}),
        ("/api/channels", {"name": "webhook ops"}),
    ):
        assert (await _post(console, other, path, **body)).status_code == 403, path
    assert (await _get(console, own, "/api/audit")).status_code == 403
    (agent,) = (await _get(console, other, "/api/overview")).json()["agents"]
    assert agent["volumes"] == []
    found = (await _get(console, own, "/api/overview")).json()
    assert [one["name"] for one in found["agents"][0]["volumes"]] == ["data"]
    assert {one["volume"] for one in found["alerts"]} == {"data"}


async def test_a_volume_goes_by_its_name_alone(console: RunningConsole, tmp_path: Path) -> None:
    """By a path, or what stands for one, a pattern of names would let in what it does not mean."""
    token = console.tokens.create("own", AccessRole.ADMIN, 1, (f"hall/{tmp_path.parts[1]}*",))
    state = str(tmp_path / "volume/state")
    paths = (
        f"{tmp_path.parts[1]}/" + "../" * 40 + state[1:],
        state[1:].replace("-", "\\x2d").replace("/", "-"),
    )
    for path in paths:
        asked = await _post(console, token, "/api/agents/hall/jobs", kind="undo", volume=path)
        assert asked.status_code in (403, 404), asked.text
    asked = await _get(console, token, f"/api/agents/hall/volumes/{quote(paths[1])}/entries")
    assert asked.status_code in (403, 404), asked.text
    assert console.jobs.list_all(Fields({})) == {"jobs": []}


def test_what_cannot_be_a_token(tmp_path: Path) -> None:
    book = TokenBook(tmp_path / "tokens.json")
    book.create("one", AccessRole.VIEWER, 1, ())
    for name, days, volumes in (
        ("one", 1, ()), ("a b", 1, ()), ("two", 0, ()), ("two", 9999, ()), ("two", 1, ("data",)),
        ("two", 1, ("/data",)), ("two", 1, ("a/b/c",)),
    ):  # fmt: skip
        with pytest.raises(UsageError):
            book.create(name, AccessRole.VIEWER, days, volumes)
    with pytest.raises(UsageError, match="no token"):
        book.revoke("two")
