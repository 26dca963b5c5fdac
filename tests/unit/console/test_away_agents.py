"""A console that starts anew while an agent is away: it shows the agent as it was last seen, and
nothing that is known of its alerts is lost, or reported as gone, until it answers."""

import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import trio

from fusejournal.address import Address
from fusejournal.console import last_seen, watch
from fusejournal.console.agents import AgentBook, Agents, KnownAgent
from fusejournal.console.alerts import Alerts
from fusejournal.console.channels import AlertCommand, CommandConfig
from fusejournal.console.delivery import AlertDelivery
from fusejournal.console.last_seen import LastSeen, SeenOverview
from fusejournal.console.watch import Watch
from fusejournal.wire.connection import Connection
from fusejournal.wire.frames import CallPart
from fusejournal.wire.identity import load_or_make
from fusejournal.wire.listener import serve
from tests.support.patience import PATIENCE_SECONDS

_LOW = {"key": "space", "words": "only 5 MiB are left", "severity": "bad", "advice": ""}
_KEY = "cellar/data/space"
_SILENCE_HOURS = 24


def _volume(**fields: Any) -> dict[str, Any]:
    return {"name": "data", "state": "running", "problems": [], **fields}


@asynccontextmanager
async def _agent(
    directory: Path, volume: dict[str, Any], *, hangs: bool = False
) -> AsyncIterator[None]:
    """The agent "cellar", which answers with *volume*, or not at all."""
    own = load_or_make(directory / "console", "console")
    pem = own.certificate_path.read_text()
    content = json.dumps({"node": "cellar", "volumes": [volume]}).encode()

    async def answer(connection: Connection) -> None:
        while await connection.receive() is not None:
            if hangs:
                await trio.sleep_forever()
            await connection.send(CallPart("end", content))

    identity = load_or_make(directory / "cellar", "cellar")
    async with trio.open_nursery() as nursery:
        address: Address = await nursery.start(
            lambda task_status: serve(
                Address("127.0.0.1", 0), identity, lambda: {"console": pem}, insecure=False,
                on_connection=answer, on_pairing=answer, task_status=task_status,
            )
        )  # fmt: skip
        certificate = identity.certificate_path.read_text()
        AgentBook(directory / "agents.json").put(KnownAgent("cellar", str(address), certificate))
        yield
        nursery.cancel_scope.cancel()


@dataclass
class _Console:
    """A console's watch, and a channel that writes down what it is told."""

    watch: Watch
    pager: AlertDelivery
    messages: Path

    async def look(self) -> dict[str, Any]:
        """Returns the overview, made anew, after what is due in it was delivered."""
        self.watch._made = float("-inf")
        overview = await self.watch.overview()
        await self.pager.deliver(overview["alerts"], self.watch._unanswered)
        return overview

    async def look_until_answered(self) -> dict[str, Any]:
        """Returns the overview with the agent's answer."""
        with trio.fail_after(PATIENCE_SECONDS):
            overview = await self.look()
            while overview["agents"][0]["error"] is not None:
                overview = await self.look()
        return overview

    def told(self) -> list[list[list[str]]]:
        """Returns the keys of what was told as there, and as gone, a message each."""
        lines = self.messages.read_text().splitlines() if self.messages.exists() else []
        return [
            [[one["key"] for one in json.loads(line)[what]] for what in ("alerts", "resolved")]
            for line in lines
        ]


@asynccontextmanager
async def _console(directory: Path) -> AsyncIterator[_Console]:
    own, book = load_or_make(directory / "console", "console"), AgentBook(directory / "agents.json")
    messages = directory / "messages"
    argv = ["/bin/sh", "-c", f"cat >> '{messages}' && echo >> '{messages}'"]
    channel = AlertCommand("pager", CommandConfig(argv=argv, after_seconds=0.0))
    agents = Agents(book, own)
    looking = Watch(
        agents,
        Alerts(directory / "alerts.json"),
        AlertDelivery([], directory / "none.json"),
        LastSeen(directory / "seen.json"),
    )
    pager = AlertDelivery([channel], directory / "told.json")
    async with trio.open_nursery() as nursery:
        await nursery.start(looking.run)
        yield _Console(looking, pager, messages)
        for name in book.all():
            await (await agents.link(name)).aclose()
        nursery.cancel_scope.cancel()


async def test_a_new_start_while_an_agent_is_away_gives_no_all_clear(tmp_path: Path) -> None:
    async with (
        _agent(tmp_path, _volume(head_seq=7, problems=[_LOW])),
        _console(tmp_path) as console,
    ):
        before = await console.look_until_answered()
        await console.watch.act(_KEY, "silence", "anna", _SILENCE_HOURS)
        await console.watch.act(_KEY, "acknowledge", "anna", 0)
        (alert,) = (await console.look())["alerts"]
    for _ in range(2):
        async with _console(tmp_path) as console:
            overview = await console.look()
            while (agent := overview["agents"][0])["error"] == "has not answered yet":
                overview = await console.look()
            assert "refused" in agent["error"]
            seen_ns = before["agents"][0]["seen_ns"]
            assert (agent["node"], agent["seen_ns"]) == ("cellar", seen_ns)
            assert agent["volumes"] == [_volume(head_seq=7, problems=[_LOW])]
            assert {one["key"]: one for one in overview["alerts"]}[_KEY] == alert
            assert [_KEY in one for told in console.told() for one in told] == [
                *(True, False), *(False, False),
            ]  # fmt: skip
    async with _agent(tmp_path, _volume()), _console(tmp_path) as console:
        assert (await console.look_until_answered())["alerts"] == []
        assert sorted(console.told()[-1][1]) == ["cellar//unreachable", _KEY]


async def test_a_slow_first_answer_gives_no_all_clear(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where what was last seen is not on the disk, as after an upgrade."""
    async with _agent(tmp_path, _volume(problems=[_LOW])), _console(tmp_path) as console:
        await console.look_until_answered()
        await console.watch.act(_KEY, "silence", "anna", _SILENCE_HOURS)
        (alert,) = (await console.look())["alerts"]
    (tmp_path / "seen.json").unlink()
    monkeypatch.setattr(watch, "_WAIT_SECONDS", 0.0)
    async with _agent(tmp_path, _volume(), hangs=True), _console(tmp_path) as console:
        assert (await console.look())["agents"][0]["error"] == "has not answered yet"
    async with _agent(tmp_path, _volume(problems=[_LOW])), _console(tmp_path) as console:
        assert (await console.look_until_answered())["alerts"] == [alert]
        assert console.told() == [[[_KEY], []]]


async def test_an_agent_that_is_forgotten_has_no_alerts(tmp_path: Path) -> None:
    async with _agent(tmp_path, _volume(problems=[_LOW])), _console(tmp_path) as console:
        await console.look_until_answered()
    AgentBook(tmp_path / "agents.json").remove("cellar")
    async with _console(tmp_path) as console:
        overview = await console.look()
        assert (overview["agents"], overview["alerts"]) == ([], [])
        assert console.told()[-1] == [[], [_KEY]]
    assert LastSeen(tmp_path / "seen.json").find("cellar") is None


def _seen(count: int, *problems: dict[str, Any], padding: str = "") -> SeenOverview:
    return SeenOverview("n", [_volume(problems=list(problems), padding=padding)], count)


def test_not_each_look_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "seen.json"
    kept, now = LastSeen(path), [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])

    def seen_ns() -> int:
        found = LastSeen(path).find("cellar")
        assert found is not None
        return found.seen_ns

    for count in range(1, 4):
        kept.keep({"cellar": _seen(count)})
    assert seen_ns() == 1
    kept.keep({"cellar": _seen(4, _LOW)})  # something else is wrong
    assert seen_ns() == 4
    kept.keep({"cellar": _seen(5, {**_LOW, "words": "only 4 MiB are left"})})
    assert seen_ns() == 4
    now[0] += 60.0
    kept.keep({"cellar": _seen(6, _LOW)})
    assert seen_ns() == 6


def test_what_is_kept_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(last_seen, "_BYTES_MAX", 2000)
    path = tmp_path / "seen.json"
    LastSeen(path).keep({"liar": _seen(1, padding="\U0001f4be" * 400), "hall": _seen(2, _LOW)})
    assert path.stat().st_size <= 2000
    found = LastSeen(path)
    assert (found.find("hall"), found.find("liar")) == (_seen(2, _LOW), None)
    path.write_text('{"agents": {"hall": {"node": "n", "volumes": [], "seen_ns": "soon"}}}')
    assert LastSeen(path).find("hall") is None
