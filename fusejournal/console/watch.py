"""The overview of all agents, and the alerts in it.

Agents are asked at most every two seconds while a user looks, and a few times a minute where alerts
are to be delivered. One that cannot be reached is shown as it was last seen, with since when; so
are its alerts, which nothing says are gone. That holds over a new start of the console, too: what
was last seen is on the disk (last_seen.py), and until an agent has answered this process no alert
of it is gone.

Each agent is asked by a task of its own, one at a time, in the nursery of :meth:`Watch.run`. The
overview waits a moment for all, and is made without those that take longer: one that hangs, or
answers nonsense, holds up and spoils nothing of the others."""

import logging
import time
from dataclasses import dataclass, field
from typing import Any, Final

import trio

from fusejournal.console.agents import Agents, CallFailedError
from fusejournal.console.alerts import Alerts
from fusejournal.console.checked_overview import checked_overview
from fusejournal.console.delivery import AlertDelivery
from fusejournal.console.last_seen import LastSeen, SeenOverview
from fusejournal.errors import FusejournalError, PeerLostError, UsageError

log = logging.getLogger(__name__)

PERIOD_SECONDS: Final = 2.0
_DELIVERY_SECONDS: Final = 10.0
_ASK_SECONDS: Final = 6.0
_WAIT_SECONDS: Final = 1.5
"""The time that an overview waits for agents that answered the last time."""
_WAIT_LONGER_SECONDS: Final = 0.5
"""The time that it then waits for agents that did not answer the last time."""


@dataclass
class _SeenAgent:
    """The last answer of an agent, and what is wrong with it since then."""

    node: str = ""
    volumes: list[dict[str, Any]] = field(default_factory=list)
    seen_ns: int = 0
    has_answered: bool = False
    """False where that answer is of a process before."""
    error: str | None = None
    fault: str = "unreachable"
    """The kind of the error: "unreachable"; "answer", where what it answers is of no use; "agent",
    where it is the agent's own word."""
    looked: trio.Event | None = None
    """Set at the end of the look that is under way."""

    def problem(self, name: str) -> dict[str, Any] | None:
        """Returns the problem of one that cannot be reached or understood; None without any."""
        if self.error is None:
            return None
        if self.fault == "agent":
            return {
                "key": "agent", "severity": "bad", "words": f"its agent says: {self.error}",
                "advice": f"see 'journalctl -u fusejournal-agent' on {name}",
            }  # fmt: skip
        if self.fault == "answer":
            return {
                "key": "answer", "severity": "bad",
                "words": f"its answer is of no use: {self.error}",
                "advice": f"bring the console and the agent on {name} to one release",
            }  # fmt: skip
        return {
            "key": "unreachable", "severity": "bad", "words": f"cannot be reached: {self.error}",
            "advice": f"see 'systemctl status fusejournal-agent' on {name}",
        }  # fmt: skip


class Watch:
    """The overview, made when it is asked for, while :meth:`run` runs."""

    def __init__(
        self, agents: Agents, alerts: Alerts, delivery: AlertDelivery, last_seen: LastSeen
    ) -> None:
        self.alerts = alerts
        self.delivery = delivery
        self._agents = agents
        self._last_seen = last_seen
        self._seen: dict[str, _SeenAgent] = {}
        self._unanswered: frozenset[str] = frozenset()
        """The agents that had not answered when the overview was made."""
        self._nursery: trio.Nursery | None = None
        self._turn = trio.Lock()
        self._made = float("-inf")
        self._overview: dict[str, Any] = {}

    async def overview(self) -> dict[str, Any]:
        """Returns all agents, with their volumes and alerts. Cancelled, the next call asks them
        anew. Raises FusejournalError."""
        async with self._turn:
            if trio.current_time() >= self._made + PERIOD_SECONDS * 0.75:
                names = await trio.to_thread.run_sync(self._agents.names)
                await self._look_at(names)
                self._overview = await trio.to_thread.run_sync(self._describe, names)
                self._made = trio.current_time()
            return self._overview

    async def run(
        self, task_status: trio.TaskStatus[trio.CancelScope] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Asks agents, and delivers alerts, until cancelled. *task_status* gets what cancels it."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            task_status.started(nursery.cancel_scope)
            try:
                await self._deliver(nursery)
            finally:
                self._nursery = None

    async def _deliver(self, nursery: trio.Nursery) -> None:
        while True:
            try:
                if self.delivery.has_channels:
                    alerts = (await self.overview())["alerts"]
                    self.delivery.begin(nursery, alerts, self._unanswered)
            except FusejournalError as error:
                log.warning("alerts are not looked for: %s", error)
            except Exception as error:
                # Of a file of ours: the page stays there.
                log.warning("alerts are not looked for: failed with %r", error)
            await trio.sleep(_DELIVERY_SECONDS)

    async def act(self, key: str, action: str, user: str, hours: int) -> None:
        """Has an alert acknowledged or silenced: see Alerts.act. Cancelled, it is done or not
        begun."""
        async with self._turn:
            await trio.to_thread.run_sync(self.alerts.act, key, action, user, hours)
            self._made = float("-inf")

    async def _look_at(self, names: list[str]) -> None:
        """Begins to ask all agents that are not being asked, and waits for a moment."""
        if self._nursery is None:
            raise FusejournalError("the console is stopping")
        self._seen = {name: self._seen.get(name) or self._seen_before(name) for name in names}
        idle = [(name, seen) for name, seen in self._seen.items() if seen.looked is None]
        begun: dict[bool, list[trio.Event]] = {False: [], True: []}
        for name, seen in idle:
            seen.looked = looked = trio.Event()
            begun[seen.error is not None].append(looked)
            self._nursery.start_soon(self._look, name, seen, looked)
        for has_failed, seconds in ((False, _WAIT_SECONDS), (True, _WAIT_LONGER_SECONDS)):
            with trio.move_on_after(seconds):
                for looked in begun[has_failed]:
                    await looked.wait()

    def _seen_before(self, name: str) -> _SeenAgent:
        """Returns an agent as a process before has seen it."""
        kept = self._last_seen.find(name)
        return _SeenAgent() if kept is None else _SeenAgent(*kept)

    async def _look(self, name: str, seen: _SeenAgent, looked: trio.Event) -> None:
        """Asks one agent. Whatever comes of it is this agent's alone."""
        before, link = seen.error, None
        try:
            with trio.fail_after(_ASK_SECONDS):
                link = await self._agents.link(name)
                answer = await link.call("overview")
            seen.node, seen.volumes = checked_overview(answer)
            seen.seen_ns, seen.has_answered, seen.error = time.time_ns(), True, None
        except trio.TooSlowError:
            seen.error, seen.fault = f"no answer within {_ASK_SECONDS:g} s", "unreachable"
        except (PeerLostError, UsageError) as error:
            seen.error, seen.fault = str(error), "unreachable"
        except CallFailedError as error:
            seen.error, seen.fault = f"{error!s:.2000}", "agent"
        except FusejournalError as error:
            seen.error, seen.fault = str(error), "answer"
        except Exception as error:
            seen.error, seen.fault = f"failed with {error!r:.200}", "unreachable"
            if before is None:
                log.exception("%s: asking it failed", name)
        finally:
            if link is not None and seen.error is not None:
                await link.drop_kept()
            seen.looked = None
            looked.set()

    def _describe(self, names: list[str]) -> dict[str, Any]:
        agents, problems = [], []
        for name in names:
            seen = self._seen[name]
            error = seen.error or (None if seen.has_answered else "has not answered yet")
            agents.append(
                {
                    "name": name, "node": seen.node, "error": error,
                    "seen_ns": seen.seen_ns, "volumes": seen.volumes,
                }
            )  # fmt: skip
            own = seen.problem(name)
            found = [] if own is None else [("", own)]
            found += [
                (str(volume["name"]), one) for volume in seen.volumes for one in volume["problems"]
            ]
            problems += [
                {**one, "agent": name, "volume": volume, "key": f"{name}/{volume}/{one['key']}"}
                for volume, one in found
            ]
        self._last_seen.keep(
            {
                name: SeenOverview(seen.node, seen.volumes, seen.seen_ns)
                for name, seen in self._seen.items()
                if seen.seen_ns
            }
        )
        self._unanswered = frozenset(
            name for name, seen in self._seen.items() if not seen.has_answered
        )
        return {
            "agents": agents,
            "alerts": self.alerts.update(problems, self._unanswered),
            "channels": self.delivery.to_json(),
        }
