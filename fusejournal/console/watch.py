"""The overview of all agents, and the alerts in it.

Agents are asked at most every two seconds while a user looks, and a few times a minute where alerts
are to be delivered. One that cannot be reached is shown as it was last seen, with since when; so
are its alerts, which nothing says are gone."""

import logging
import time
from dataclasses import dataclass, field
from typing import Any, Final

import trio

from fusejournal.console.agents import Agents
from fusejournal.console.alerts import Alerts
from fusejournal.console.delivery import AlertDelivery
from fusejournal.errors import FusejournalError

log = logging.getLogger(__name__)

PERIOD_SECONDS: Final = 2.0
_DELIVERY_SECONDS: Final = 10.0
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


class Watch:
    """The overview, made when it is asked for."""

    def __init__(self, agents: Agents, alerts: Alerts, delivery: AlertDelivery) -> None:
        self.alerts = alerts
        self.delivery = delivery
        self._agents = agents
        self._seen: dict[str, _SeenAgent] = {}
        self._turn = trio.Lock()
        self._made = float("-inf")
        self._overview: dict[str, Any] = {}

    async def overview(self) -> dict[str, Any]:
        """Returns all agents, with their volumes and alerts. Cancelled, the next call asks them
        anew. Raises FusejournalError."""
        async with self._turn:
            if trio.current_time() >= self._made + PERIOD_SECONDS * 0.75:
                names = await trio.to_thread.run_sync(self._agents.names)
                async with trio.open_nursery() as nursery:
                    for name in names:
                        nursery.start_soon(self._look, name)
                self._overview = await trio.to_thread.run_sync(self._describe, names)
                self._made = trio.current_time()
            return self._overview

    async def run(self) -> None:
        """Delivers alerts until it is cancelled; returns at once where there is no channel."""
        async with trio.open_nursery() as nursery:
            while self.delivery.has_channels:
                try:
                    self.delivery.begin(nursery, (await self.overview())["alerts"])
                except FusejournalError as error:
                    log.warning("alerts are not looked for: %s", error)
                except Exception as error:
                    # Of an agent of another version, or of a file of ours: the page stays there.
                    log.warning("alerts are not looked for: failed with %r", error)
                await trio.sleep(_DELIVERY_SECONDS)

    async def act(self, key: str, action: str, user: str, hours: int) -> None:
        """Has an alert acknowledged or silenced: see Alerts.act. Cancelled, it is done or not
        begun."""
        async with self._turn:
            await trio.to_thread.run_sync(self.alerts.act, key, action, user, hours)
            self._made = float("-inf")

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
            found += [
                (str(volume["name"]), one)
                for volume in seen.volumes
                for one in volume.get("problems", [])
            ]
            problems += [
                {**one, "agent": name, "volume": volume, "key": f"{name}/{volume}/{one['key']}"}
                for volume, one in found
            ]
        return {
            "agents": agents,
            "alerts": self.alerts.update(problems),
            "channels": self.delivery.to_json(),
        }
