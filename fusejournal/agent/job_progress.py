"""A job as its process keeps it on the disk: its request, its orders, and its progress."""

import json
import os
import time
from pathlib import Path
from typing import Any, Final

from fusejournal.agent.job_states import JobState
from fusejournal.agent.jobs import read_json
from fusejournal.disk.files import Outlives, write_atomically

_STEP_SECONDS: Final = 0.2
_PAUSE_SECONDS: Final = 0.1


class JobStoppedError(Exception):
    """The job was asked to stop."""


class JobProgress:
    """One job, held by this process: see jobs.py for what each file is."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self.request = read_json(directory / "request.json")
        self.values = read_json(directory / "progress.json")
        """Everything that is reported of it, the state among it."""
        self._saved = float("-inf")
        self._stamp = 0
        """The time of the last order that was looked at."""

    def save(self, state: JobState | None = None, **changed: Any) -> None:
        """Keeps *state* (None: as it is) and *changed* in ``values``, and these on the disk. Raises
        OSError."""
        if state is not None:
            changed = {"state": state.value, **changed}
        self.values |= {**changed, "changed_ns": time.time_ns()}
        content = json.dumps(self.values).encode()
        path = self._directory / "progress.json"
        write_atomically("agent.progress", path, content, Outlives.PROCESS)

    def keep(self, **values: Any) -> None:
        """Keeps *values* among the others, to be on the disk with the next :meth:`save`."""
        self.values |= values

    def order(self) -> str:
        """Returns what it is to do now."""
        return str(read_json(self._directory / "order.json").get("order", "do"))

    def show(self, done: int, total: int | None, **more: Any) -> None:
        """Keeps how far it is, a few times a second. Raises OSError."""
        if time.monotonic() >= self._saved + _STEP_SECONDS:
            self.save(done=done, total=total, **more)
            self._saved = time.monotonic()

    def step(self, done: int, total: int | None) -> None:
        """Keeps how far it is, between two steps, and waits while it is to pause. Raises
        JobStoppedError."""
        stamp = os.stat(self._directory / "order.json").st_mtime_ns
        if stamp == self._stamp and time.monotonic() < self._saved + _STEP_SECONDS:
            return
        self._stamp = stamp
        self.save(done=done, total=total)
        while (order := self.order()) == "pause":
            time.sleep(_PAUSE_SECONDS)
        if order == "stop":
            raise JobStoppedError
        self._saved = time.monotonic()

    def check(self) -> None:
        """Raises JobStoppedError if it is to stop: for works that wait for others."""
        if self.order() == "stop":
            raise JobStoppedError

    def plan_again(self, essence: Any) -> bool:
        """Returns True if what is to be done is not what the admin has seen: *essence* is compared
        with that of the plan before, and kept in its place. Call it for each plan."""
        approved = self.values.get("essence")
        found = json.loads(json.dumps(essence))
        self.values["essence"] = found
        return approved is not None and approved != found
