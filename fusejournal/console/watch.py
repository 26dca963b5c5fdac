"""The overview of all agents, and the alerts in it.

Agents are asked at most every two seconds, and only while a user looks. One that cannot be
reached is shown as it was last seen, with since when. An alert is one cause on one volume: it is
there once, from when it was first seen until it is gone, and who acknowledged it is kept."""

import json
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import trio

from fusejournal.console.agents import Agents
from fusejournal.disk.files import UNREADABLE_JSON, Outlives, write_atomically
from fusejournal.errors import FusejournalError, UsageError

PERIOD_SECONDS: Final = 2.0
_ASK_SECONDS: Final = 6.0


@dataclass
class _SeenAgent:
    """The last answer of an agent."""

    node: str = ""
    volumes: list[dict[str, Any]] = field(default_factory=list)
    seen_ns: int = 0
    error: str | None = None

    def problem(self, name: str) -> dict[str, Any]:
        """Returns the problem of one that cannot be reached."""
        return {
            "key": "unreachable", "severity": "bad", "words": f"cannot be reached: {self.error}",
            "advice": f"see 'systemctl status fusejournal-agent' on {name}",
        }  # fmt: skip


class Alerts:
    """The alerts that are there, by key."""

    def __init__(self, path: Path) -> None:
        """*path*: where acknowledged ones are kept."""
        self._path = path
        self._acknowledged: dict[str, dict[str, Any]] = {}
        self._since_ns: dict[str, int] = {}
        with suppress(OSError, *UNREADABLE_JSON):
            self._acknowledged = dict(json.loads(path.read_bytes()))

    def update(self, problems: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Takes in all *problems* that there are now, each with its key, and returns the alerts,
        the worst and newest first."""
        now_ns = time.time_ns()
        keys = {one["key"] for one in problems}
        self._since_ns = {key: self._since_ns.get(key, now_ns) for key in sorted(keys)}
        found = [
            {
                **one,
                "since_ns": self._since_ns[one["key"]],
                "acknowledged": self._acknowledged.get(one["key"]),
            }
            for one in problems
        ]
        found.sort(key=lambda one: (one["severity"] != "bad", -one["since_ns"]))
        return found

    def acknowledge(self, key: str, user: str) -> None:
        """Notes that *user* knows of the alert *key*. Blocks. Raises UsageError where there is no
        such alert, OSError."""
        if key not in self._since_ns:
            raise UsageError("there is no such alert any more")
        kept = {one: self._acknowledged[one] for one in self._acknowledged if one in self._since_ns}
        kept[key] = {"user": user, "time_ns": time.time_ns()}
        content = json.dumps(kept).encode()
        write_atomically("console.alerts", self._path, content, Outlives.MACHINE)
        self._acknowledged = kept


class Watch:
    """The overview, made when it is asked for."""

    def __init__(self, agents: Agents, alerts: Alerts) -> None:
        self.alerts = alerts
        self._agents = agents
        self._seen: dict[str, _SeenAgent] = {}
        self._turn = trio.Lock()
        self._made = float("-inf")
        self._overview: dict[str, Any] = {}

    async def overview(self) -> dict[str, Any]:
        """Returns all agents, with their volumes and alerts. Raises FusejournalError."""
        async with self._turn:
            if trio.current_time() >= self._made + PERIOD_SECONDS * 0.75:
                names = await trio.to_thread.run_sync(self._agents.names)
                async with trio.open_nursery() as nursery:
                    for name in names:
                        nursery.start_soon(self._look, name)
                self._overview = self._describe(names)
                self._made = trio.current_time()
            return self._overview

    async def _look(self, name: str) -> None:
        seen = self._seen.setdefault(name, _SeenAgent())
        try:
            with trio.fail_after(_ASK_SECONDS):
                answer = await (await self._agents.link(name)).call("overview")
        except trio.TooSlowError:
            seen.error = f"no answer within {_ASK_SECONDS:g} s"
        except FusejournalError as error:
            seen.error = str(error)
        else:
            seen.node, seen.volumes = str(answer.get("node")), list(answer.get("volumes", []))
            seen.seen_ns, seen.error = time.time_ns(), None

    def _describe(self, names: list[str]) -> dict[str, Any]:
        agents, problems = [], []
        for name in names:
            seen = self._seen[name]
            agents.append(
                {
                    "name": name, "node": seen.node, "error": seen.error,
                    "seen_ns": seen.seen_ns, "volumes": seen.volumes,
                }
            )  # fmt: skip
            found = [] if seen.error is None else [("", seen.problem(name))]
            if seen.error is None:
                found = [
                    (str(volume["name"]), one)
                    for volume in seen.volumes
                    for one in volume.get("problems", [])
                ]
            problems += [
                {**one, "agent": name, "volume": volume, "key": f"{name}/{volume}/{one['key']}"}
                for volume, one in found
            ]
        return {"agents": agents, "alerts": self.alerts.update(problems)}
