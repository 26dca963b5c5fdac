"""Agents that answer nonsense, too much, nothing, or as another version would: each is shown as
what it is, and the other's volumes and alerts stay as they are."""

import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import trio

from fusejournal.address import Address
from fusejournal.console import watch
from fusejournal.console.agents import AgentBook, Agents, KnownAgent
from fusejournal.console.alerts import Alerts
from fusejournal.console.channels import message_of
from fusejournal.console.checked_overview import checked_overview
from fusejournal.console.delivery import AlertDelivery
from fusejournal.console.last_seen import LastSeen
from fusejournal.console.watch import Watch
from fusejournal.errors import WireError
from fusejournal.wire.connection import Connection
from fusejournal.wire.frames import CallPart
from fusejournal.wire.identity import Identity, load_or_make
from fusejournal.wire.listener import serve
from tests.support.patience import PATIENCE_SECONDS

_ENTRIES = {"uid": 1001, "op": "rename", "since": "@1700000000"}
_PROBLEM = {"key": "failed", "words": "read-only", "severity": "bad", "advice": "look"}
_GOOD: dict[str, Any] = {
    "node": "hall",
    "volumes": [{"name": "data", "state": "running", "problems": [_PROBLEM]}],
}
_Answer = Callable[[Connection], Awaitable[None]]


@dataclass
class _Watched:
    """A console's watch of the agent "hall", which is well, and of "liar"."""

    watch: Watch
    answers: list[_Answer] = field(default_factory=list)
    """The liar's: the last of them."""

    async def look(self) -> dict[str, Any]:
        """Returns the overview, made anew."""
        self.watch._made = float("-inf")
        return await self.watch.overview()


def _saying(content: bytes) -> _Answer:
    pieces = [content[at : at + 40_000] for at in range(0, len(content), 40_000)]
    parts = [*(CallPart("more", piece) for piece in pieces), CallPart("end", b"")]
    return lambda connection: connection.send(*parts)


async def _hang(_: Connection) -> None:
    await trio.sleep_forever()


@asynccontextmanager
async def _watched(directory: Path) -> AsyncIterator[_Watched]:
    own = load_or_make(directory / "console", "console")
    pem = own.certificate_path.read_text()
    book = AgentBook(directory / "agents.json")
    alerts = Alerts(directory / "alerts.json")
    told = AlertDelivery([], directory / "told.json")
    agents = Agents(book, own)
    watched = _Watched(Watch(agents, alerts, told, LastSeen(directory / "seen.json")))

    async def start(name: str, answers: list[_Answer]) -> None:
        async def answer(connection: Connection) -> None:
            while await connection.receive() is not None:
                await answers[-1](connection)

        identity: Identity = load_or_make(directory / name, name)
        address: Address = await nursery.start(
            lambda task_status: serve(
                Address("127.0.0.1", 0), identity, lambda: {"console": pem}, insecure=False,
                on_connection=answer, on_pairing=answer, task_status=task_status,
            )
        )  # fmt: skip
        book.put(KnownAgent(name, str(address), identity.certificate_path.read_text()))

    async with trio.open_nursery() as nursery:
        await start("hall", [_saying(json.dumps(_GOOD).encode())])
        await start("liar", watched.answers)
        await nursery.start(watched.watch.run)
        try:
            yield watched
        finally:
            for name in book.all():
                await (await agents.link(name)).aclose()
        nursery.cancel_scope.cancel()


def _volume(**fields: object) -> bytes:
    return json.dumps({"node": "liar", "volumes": [{"name": "data", **fields}]}).encode()


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"\xff\x00 no JSON", "no JSON"),
        (b"[" * 100_000, "no JSON"),
        (b"[1]", "no object"),
        (b'{"node": "liar", "volumes": 7}', "no list of volumes"),
        (b'{"node": "liar", "volumes": [7]}', "without a name"),
        (b'{"node": "liar", "volumes": [{}]}', "without a name"),
        (_volume(name=["data"]), "without a name"),
        (_volume(problems=5), "no list of problems"),
        (_volume(problems=[{"words": "no key"}]), "that is none"),
        (_volume(problems=[{"key": {"a": 1}}]), "that is none"),
        (_volume(problems=[{**_PROBLEM, "entries": 5}]), "that are none"),
        (_volume(problems=[{**_PROBLEM, "entries": {"uid": True}}]), "that are none"),
        (_volume(problems=[{**_PROBLEM, "entries": {**_ENTRIES, "uid": -1}}]), "that are none"),
        (_volume(problems=[{**_PROBLEM, "entries": {**_ENTRIES, "op": "w" * 257}}]), "are none"),
        (_volume(lag=float("nan")), "no JSON"),
        (_volume(lag=1).replace(b"1", b"1e999"), "no JSON"),
        (_volume(deep=json.loads("[" * 50 + "]" * 50)), "too deep"),
        (_volume(junk="x" * (5 << 20)), "too long"),
    ],
    ids=range(18),
)
async def test_nonsense_is_of_one_agent_alone(tmp_path: Path, content: bytes, words: str) -> None:
    async with _watched(tmp_path) as watched:
        watched.answers.append(_saying(content))
        overview = await watched.look()
        hall, liar = overview["agents"]
        assert (hall["error"], hall["volumes"][0]["state"]) == (None, "running")
        assert words in liar["error"]
        alerts = {one["key"]: one["words"] for one in overview["alerts"]}
        assert alerts.pop("hall/data/failed") == "read-only"
        assert words in alerts.pop("liar//answer")
        assert alerts == {}
        json.dumps(overview, allow_nan=False)  # a browser can read it
        # And it is as it was as soon as it answers in order.
        watched.answers.append(_saying(_volume(state="running")))
        await watched.look()
        overview = await watched.look()
        assert [one["error"] for one in overview["agents"]] == [None, None]
        assert [one["key"] for one in overview["alerts"]] == ["hall/data/failed"]


async def test_one_that_hangs_holds_up_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watch, "_ASK_SECONDS", 0.3)
    monkeypatch.setattr(watch, "_WAIT_SECONDS", 0.1)
    async with _watched(tmp_path) as watched:
        watched.answers.append(_hang)
        with trio.fail_after(PATIENCE_SECONDS):
            overview = await watched.look()
            while overview["agents"][0]["seen_ns"] == 0:  # a slow machine
                overview = await watched.look()
            assert overview["agents"][1]["error"] is not None
            while len(overview["alerts"]) < 2:
                overview = await watched.look()
        assert {one["key"] for one in overview["alerts"]} == {
            "hall/data/failed", "liar//unreachable",
        }  # fmt: skip


async def test_an_error_of_the_agent_is_told_in_its_own_words(tmp_path: Path) -> None:
    """It is no sign of another release."""
    said = json.dumps({"error": "/var/lib/x: Input/output error", "exit_code": 1}).encode()
    async with _watched(tmp_path) as watched:
        watched.answers.append(lambda connection: connection.send(CallPart("error", said)))
        overview = await watched.look()
        assert overview["agents"][1]["error"] == "/var/lib/x: Input/output error"
        (alert,) = [one for one in overview["alerts"] if one["agent"] == "liar"]
        assert (alert["key"], alert["words"]) == (
            "liar//agent", "its agent says: /var/lib/x: Input/output error",
        )  # fmt: skip
        assert "journalctl -u fusejournal-agent" in alert["advice"]


def test_entries_that_a_problem_is_about_pass() -> None:
    about = {**_PROBLEM, "entries": {**_ENTRIES, "more": 1}}
    volumes = [{"name": "data", "problems": [about]}]
    (volume,) = checked_overview({"node": "n", "volumes": volumes}).volumes
    assert volume["problems"] == [{**_PROBLEM, "entries": _ENTRIES}]


def test_very_many_problems_hide_no_other_agent() -> None:
    problems = [{**_PROBLEM, "key": f"k{number}"} for number in range(500)]
    volumes: list[dict[str, Any]] = [
        {"name": name, "problems": problems} for name in ("one", "two")
    ]
    told = checked_overview({"node": "n", "volumes": volumes, "new": 1})
    assert [len(one["problems"]) for one in told.volumes] == [101, 1]
    assert "400 more" in told.volumes[0]["problems"][-1]["words"]
    unknown = {**_PROBLEM, "severity": "worst", "words": "w" * 10_000}
    (volume,) = checked_overview({"node": "n", "volumes": [{"name": "v", "problems": [unknown]}]})[
        1
    ]
    assert volume["problems"][0]["severity"] == "bad"
    assert len(volume["problems"][0]["words"]) == 2000
    with pytest.raises(WireError, match="two volumes"):
        checked_overview({"node": "n", "volumes": [{"name": "v"}, {"name": "v"}]})
    many = [{**one, "agent": "liar", "volume": "one"} for one in problems]
    other = {**_PROBLEM, "words": "the other's", "agent": "hall", "volume": "data"}
    assert "the other's" in message_of([*many, other], [])["text"]
