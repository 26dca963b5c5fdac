"""The console's application before a real agent: what it answers, and whom it refuses."""

import json
import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
import trio

from fusejournal.console.app import static_directory
from fusejournal.console.gates import COOKIE, DEVICE_COOKIE
from fusejournal.console.routes import ROUTES
from fusejournal.console.serve import is_loopback
from fusejournal.console.sessions import Sessions, WebSession
from fusejournal.console.users import ConsoleUser
from tests.support.consoles import ODD_NAMES, RunningConsole, make_story, running_console

pytestmark = pytest.mark.mount
_VOLUME = "/api/agents/hall/volumes/data"


@pytest.fixture
async def console(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[RunningConsole]:
    monkeypatch.setenv("FUSEJOURNAL_STATE_ROOT", str(tmp_path / "volume"))
    (tmp_path / "volume").mkdir()
    make_story(tmp_path / "volume")
    async with running_console(tmp_path) as console:
        yield console


async def test_nobody_gets_in_without_a_session(console: RunningConsole) -> None:
    assert (await console.get("/api/session"))["name"] == ""
    for route in ROUTES:
        path = re.sub(r"{(\w+)}", "1", route.path)
        answer = await console.client.request(
            route.method, path, headers={"content-type": "application/json"}
        )
        assert answer.status_code == 401, route
    for path in ("/api/overview", "/api/events", "/api/audit", "/api/openapi.json"):
        assert (await console.client.get(path)).status_code == 401


async def test_the_page_and_its_headers(console: RunningConsole) -> None:
    page = await console.client.get("/")
    assert page.text.startswith("<!doctype html>")
    policy = page.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert page.headers["x-content-type-options"] == "nosniff"
    for name in static_directory().iterdir():
        answer = await console.client.get(f"/static/{name.name}")
        assert answer.status_code == 200
        assert "content-security-policy" in answer.headers
        # Nothing takes a text for markup, and nothing comes from elsewhere.
        assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write", answer.text)
        assert not re.search(r"https?://(?!www\.w3\.org/)", answer.text)
    assert (await console.client.get("/static/../app.py")).status_code == 404
    wrong = await console.client.get("/", headers={"host": "evil.example"})
    assert wrong.status_code == 421


async def test_a_page_that_is_left_open_keeps_no_session(
    console: RunningConsole, monkeypatch: pytest.MonkeyPatch
) -> None:
    sessions: list[WebSession] = []
    begin = Sessions.begin

    def begin_and_note(self: Sessions, user: ConsoleUser, now: float) -> tuple[str, WebSession]:
        token, session = begin(self, user, now)
        sessions.append(session)
        return token, session

    monkeypatch.setattr(Sessions, "begin", begin_and_note)
    await console.log_in("viewer")
    (session,) = sessions
    begun = session.seen
    for path in ("/api/session", "/api/overview"):
        assert (await console.client.get(path, headers={"x-poll": "1"})).status_code == 200
    look = console.watch.overview

    async def look_once() -> dict[str, Any]:
        console.stopping.set()
        return await look()

    monkeypatch.setattr(console.watch, "overview", look_once)
    assert "event: overview" in (await console.client.get("/api/events")).text
    assert session.seen == begun
    await console.get("/api/overview")
    assert session.seen > begun


async def test_logins(console: RunningConsole) -> None:
    await console.log_in("viewer")
    cookie = console.client.cookies.jar
    assert {one.name for one in cookie} == {COOKIE, DEVICE_COOKIE}
    for one in cookie:
        assert one.has_nonstandard_attr("HttpOnly")
        assert one.get_nonstandard_attr("SameSite") == "strict"
    await console.post("/api/logout")
    assert (await console.client.get("/api/overview")).status_code == 401
    wrong = {"name": "user-viewer", "password": "wrong"}
    statuses = [
        (await console.client.post("/api/login", json=wrong)).status_code for _ in range(12)
    ]
    assert (statuses[0], statuses[-1]) == (403, 429)
    lines = console.audit.newest(50)
    assert {"login refused", "logout", "password chosen"} <= {line["what"] for line in lines}


async def test_another_site_changes_nothing(console: RunningConsole) -> None:
    await console.log_in("admin")
    body, path = {"name": "here"}, f"{_VOLUME}/marks"
    good = {"x-csrf-token": console.csrf}
    for headers, status in (
        ({}, 403),
        ({"x-csrf-token": "x"}, 403),
        ({**good, "origin": "http://evil.example"}, 403),
        ({**good, "sec-fetch-site": "cross-site"}, 403),
        ({**good, "sec-fetch-site": "same-site"}, 403),
        ({**good, "origin": "http://console", "sec-fetch-site": "same-origin"}, 400),
    ):
        answer = await console.client.post(path, json=body, headers=headers)
        assert answer.status_code == status, (headers, answer.text)
    assert "is not mounted" in answer.text  # only then the agent was asked
    answer = await console.client.post(path, content=b"name=here", headers=good)
    assert answer.status_code == 415
    await console.post(path, 400, name="here", other=1)
    answer = await console.client.post(
        path, content=b"x" * 70_000, headers={**good, "content-type": "application/json"}
    )
    assert answer.status_code == 413


async def test_roles(console: RunningConsole) -> None:
    await console.log_in("viewer")
    content = f"{_VOLUME}/content?path=docs/note1&at=13"
    assert (await console.client.get(content)).status_code == 403
    assert (await console.client.get(f"{_VOLUME}/entries/4?data=1")).status_code == 403
    assert (await console.client.get(f"{_VOLUME}/entries/4")).status_code == 200
    assert (await console.client.get("/api/audit")).status_code == 403
    await console.post("/api/agents/hall/jobs", 403, kind="undo", volume="data", uid=1001)
    await console.post("/api/alerts", 403, key="x")
    await console.log_in("operator")
    answer = await console.client.get(content)
    assert answer.content == b"text 1"
    assert answer.headers["content-disposition"] == "attachment"
    assert (await console.client.get(f"{_VOLUME}/entries/4?data=1")).status_code == 200
    await console.post(f"{_VOLUME}/peers/east/pause", 403)
    assert (await console.client.get("/api/audit")).status_code == 403
    await console.log_in("admin")
    lines = (await console.get("/api/audit"))["lines"]
    assert {"download", "entry data"} <= {line["what"] for line in lines}


async def test_the_audit_has_who_looked_at_what_and_what_was_refused(
    console: RunningConsole,
) -> None:
    await console.log_in("operator")
    await console.get(f"{_VOLUME}/line-difference", path="docs/note1", from_seq=13, to_seq=14)
    (looked,) = [one for one in console.audit.newest(9) if one["what"] == "line-difference data"]
    assert [looked[key] for key in ("user", "path", "from_seq", "to_seq", "in_volume")] == [
        *("user-operator", "docs/note1", "13", "14", "data"),
    ]
    await console.log_in("viewer")
    await console.client.get(f"{_VOLUME}/content", params={"path": "docs/note1"})
    await console.post(f"{_VOLUME}/marks", 403, name="mine")
    wrong = {"x-csrf-token": "wrong"}
    assert (await console.client.post("/api/logout", json={}, headers=wrong)).status_code == 403
    refused = [one for one in console.audit.newest(9) if one["what"] == "refused"]
    assert [(one["method"], one["path"]) for one in refused] == [
        ("POST", "/api/logout"), ("POST", f"{_VOLUME}/marks"), ("GET", f"{_VOLUME}/content"),
    ]  # fmt: skip
    assert {one["user"] for one in refused} == {"user-viewer"}
    assert refused[1]["words"] == "this is for the role operator: user-viewer is viewer"
    # What an agent forbids: the console lets operators ask for jobs.
    await console.log_in("operator")
    await console.post("/api/agents/hall/jobs", 403, kind="prune", volume="data")
    newest, asked = console.audit.newest(2)
    assert (newest["what"], asked["what"]) == ("refused", "job-create")


async def test_refusals_do_not_fill_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FUSEJOURNAL_STATE_ROOT", str(tmp_path / "volume"))
    monkeypatch.setattr("fusejournal.console.gates._FORBIDDEN_MAX", 5)
    (tmp_path / "volume").mkdir()
    async with running_console(tmp_path) as console:
        await console.log_in("operator")
        statuses = [(await console.client.get("/api/audit")).status_code for _ in range(15)]
        assert (statuses[0], statuses[-1]) == (403, 429)
        lines = [one for one in console.audit.newest(99) if one["what"] == "refused"]
        assert len(lines) == statuses.count(403)


async def test_the_overview_and_its_alerts(console: RunningConsole) -> None:
    await console.log_in("operator")
    overview = await console.get("/api/overview")
    (agent,) = overview["agents"]
    (volume,) = agent["volumes"]
    assert (agent["name"], agent["error"], volume["name"]) == ("hall", None, "data")
    assert volume["covered"]["first_seq"] == 1
    (alert,) = overview["alerts"]
    assert (alert["key"], alert["acknowledged"]) == ("hall/data/stopped", None)
    await console.post("/api/alerts", key=alert["key"])
    await console.post("/api/alerts", 400, key="hall/data/other")
    await trio.sleep(1.6)
    (alert,) = (await console.get("/api/overview"))["alerts"]
    assert alert["acknowledged"]["user"] == "user-operator"


async def test_the_timeline_and_one_entry(console: RunningConsole) -> None:
    await console.log_in("viewer")
    page = await console.get(f"{_VOLUME}/entries", uid=1001, count=3)
    assert [one["op"] for one in page["entries"]] == ["rmdir", "unlink", "unlink"]
    rest = await console.get(f"{_VOLUME}/entries", uid=1001, before_seq=page["next_before_seq"])
    assert [one["op"] for one in rest["entries"]] == ["unlink"] * 3
    written = await console.get(f"{_VOLUME}/entries", bytes_min=4, bytes_max=6, count=3)
    assert [(one["op"], one["bytes"]) for one in written["entries"]] == [("write", 6)] * 3
    chart = await console.get(f"{_VOLUME}/histogram", op=["unlink", "rmdir"])
    assert sum(sum(bar.values()) for bar in chart["by_op"]) == 6
    seq = page["entries"][0]["seq"]
    entry = await console.get(f"{_VOLUME}/entries/{seq}")
    assert entry["command"] == f"fusejournal show data {seq}"
    wrong = await console.client.get(f"{_VOLUME}/entries", params={"op": "fly"})
    assert (wrong.status_code, "no operation" in wrong.json()["error"]) == (400, True)
    assert (await console.client.get(f"{_VOLUME}/entries/99999")).status_code == 404
    other = await console.client.get("/api/agents/hall/volumes/other/entries")
    assert other.status_code == 404
    gone = await console.client.get("/api/agents/cellar/volumes/data/entries")
    assert gone.status_code == 400


async def test_the_tree_at_any_moment(console: RunningConsole) -> None:
    await console.log_in("operator")
    now = await console.get(f"{_VOLUME}/tree")
    names = [one["name"].encode("utf-8", "surrogateescape") for one in now["names"]]
    assert names == sorted(ODD_NAMES)
    # By its bytes, as a browser sends a name that is no text.
    for name in ODD_NAMES:
        answer = await console.client.get(f"{_VOLUME}/content?path={quote(name)}")
        assert answer.content == b"odd"
    then = await console.get(f"{_VOLUME}/tree", path="docs", at=13)
    assert [one["name"] for one in then["names"]] == [f"note{number}" for number in range(5)]
    assert {one["size"] for one in then["names"]} == {6}
    rest = await console.get(f"{_VOLUME}/tree", path="docs", at=13, after="note2")
    assert [one["name"] for one in rest["names"]] == ["note3", "note4"]
    missing = await console.client.get(f"{_VOLUME}/tree", params={"path": "docs"})
    assert (missing.status_code, "was not there at that moment" in missing.text) == (404, True)
    moments = await console.get(f"{_VOLUME}/moments", path="docs", at=13)
    assert moments["count"] == len(moments["seqs"]) >= 11
    life = await console.get(f"{_VOLUME}/life", path="docs/note1")
    assert [one["op"] for one in life["lives"][0]["entries"]] == ["unlink", "write", "create"]
    found = await console.get(f"{_VOLUME}/difference", from_seq=13)
    assert {one["letters"] for one in found["changes"]} == {"A", "D"}
    folder = await console.client.get(f"{_VOLUME}/content", params={"path": "docs", "at": 12})
    assert (folder.status_code, "no file but a directory" in folder.text) == (400, True)


async def test_a_job_is_planned_by_the_agent(console: RunningConsole) -> None:
    await console.log_in("operator")
    job = await console.post("/api/agents/hall/jobs", kind="undo", volume="data", uid=1001)
    path = f"/api/agents/hall/jobs/{job['id']}"
    for _ in range(600):
        shown = await console.get(path)
        if not shown["is_running"]:
            break
        await trio.sleep(0.1)
    assert (shown["state"], shown["user"], shown["chosen"]) == ("planned", "user-operator", 6)
    assert (await console.get("/api/agents/hall/jobs"))["jobs"][0]["id"] == job["id"]
    refused = await console.post(path, 409, order="do", plan="0a1b")
    assert "another one by now" in refused["error"]
    assert (await console.post(path, order="remove"))["state"] == "removed"
    await console.post(path, 400, order="do")


async def test_an_agent_that_is_away_is_shown_as_it_was(console: RunningConsole) -> None:
    await console.log_in("viewer")
    await console.get("/api/overview")
    path = console.agents._book._path
    raw = json.loads(path.read_text())
    raw["agents"][0]["address"] = "127.0.0.1:1"
    path.write_text(json.dumps(raw))
    await trio.sleep(1.6)
    overview = await console.get("/api/overview")
    (agent,) = overview["agents"]
    assert "refused" in agent["error"]
    assert (agent["volumes"][0]["name"], overview["alerts"][0]["key"]) == (
        "data",
        "hall//unreachable",
    )
    assert (await console.client.get(f"{_VOLUME}/tree")).status_code == 502


async def test_the_description_has_every_path(console: RunningConsole) -> None:
    await console.log_in("viewer")
    described: dict[str, Any] = await console.get("/api/openapi.json")
    assert described["openapi"] == "3.1.0"
    for route in ROUTES:
        operation = described["paths"][route.path][route.method.lower()]
        assert operation["x-access"] == route.access.label
        named = {one["name"] for one in operation["parameters"] if one["in"] == "path"}
        assert named == set(re.findall(r"{(\w+)}", route.path))
    path = described["paths"]["/api/agents/{agent}/jobs/{id}"]["post"]
    schema = path["requestBody"]["content"]["application/json"]["schema"]
    assert schema["properties"]["order"]["enum"] == [
        "plan", "do", "pause", "resume", "stop", "remove", "remove-restored",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("host", "is_so"),
    [("127.0.0.1", True), ("::1", True), ("localhost", True), ("0.0.0.0", False), ("", False)],
)
def test_loopback(host: str, is_so: bool) -> None:
    assert is_loopback(host) is is_so
