"""The last answers of agents, on the disk: a console that starts anew while a server is away shows
it as it was last seen, with since when.

The file is written when the agents, or what is wrong with their volumes, change, and otherwise once
a minute at most, however often they answer. It is bounded: where it has no room for all, those that
are largest are left out."""

import json
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Final, NamedTuple

from fusejournal.console.checked_overview import checked_overview
from fusejournal.disk.files import UNREADABLE_JSON, Outlives, write_atomically
from fusejournal.disk.json_records import checked, read_object
from fusejournal.errors import WireError

_BYTES_MAX: Final = 64 << 20
_EVERY_SECONDS: Final = 60.0


class SeenOverview(NamedTuple):
    """An agent's answer: the node's name, its volumes as CheckedOverview has them, and when it
    came (nanoseconds since 1970)."""

    node: str
    volumes: list[dict[str, Any]]
    seen_ns: int


class _SeenAt(NamedTuple):
    seen_ns: int


class LastSeen:
    """The last answers in one file. Any thread may call it, one at a time."""

    def __init__(self, path: Path) -> None:
        """*path*: the file; one that cannot be read is as one that is not there."""
        self._path = path
        self._agents: dict[str, SeenOverview] = {}
        with suppress(OSError, *UNREADABLE_JSON):
            for name, raw in read_object(path, _BYTES_MAX)["agents"].items():
                with suppress(WireError):  # of another release
                    seen_ns = checked(_SeenAt(raw["seen_ns"])).seen_ns
                    self._agents[name] = SeenOverview(*checked_overview(raw), seen_ns)
        self._causes = _causes_in(self._agents)
        self._saved = float("-inf")

    def find(self, name: str) -> SeenOverview | None:
        """Returns the last answer of the agent *name*; None where none is known."""
        return self._agents.get(name)

    def keep(self, agents: Mapping[str, SeenOverview]) -> None:
        """Keeps the last answers of *agents*, by name, and forgets all others. Blocks; a full disk
        only has a later start know less."""
        is_newer = {name: one.seen_ns for name, one in agents.items()} != {
            name: one.seen_ns for name, one in self._agents.items()
        }
        self._agents = dict(agents)
        causes, now = _causes_in(agents), time.monotonic()
        if causes == self._causes and (not is_newer or now < self._saved + _EVERY_SECONDS):
            return
        self._causes, self._saved = causes, now
        with suppress(OSError):
            write_atomically("console.seen", self._path, self._content(), Outlives.MACHINE)

    def _content(self) -> bytes:
        texts = {name: json.dumps(one._asdict()) for name, one in self._agents.items()}
        parts: list[str] = []
        left = _BYTES_MAX - len('{"agents": {}}')
        for name in sorted(texts, key=lambda name: len(texts[name])):
            part = f"{json.dumps(name)}: {texts[name]}"
            left -= len(part) + len(", ")
            if left < 0:
                break
            parts.append(part)
        return ('{"agents": {' + ", ".join(parts) + "}}").encode()


def _causes_in(agents: Mapping[str, SeenOverview]) -> frozenset[tuple[str, ...]]:
    """Returns the agents, and what is wrong with their volumes, without what changes all the
    time."""
    problems = {
        (name, str(volume["name"]), problem["key"], problem["severity"])
        for name, one in agents.items()
        for volume in one.volumes
        for problem in volume["problems"]
    }
    return frozenset({*problems, *((name,) for name in agents)})
