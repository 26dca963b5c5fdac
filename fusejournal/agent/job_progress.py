"""A job as its process keeps it on the disk: its request, its orders, and its progress."""

import hashlib
import json
import os
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final

from fusejournal.agent.job_end import JobEnd, keep_end
from fusejournal.agent.job_states import JobState
from fusejournal.agent.jobs import plan_of, read_json
from fusejournal.disk.files import Outlives, write_atomically

_STEP_SECONDS: Final = 0.2
_PAUSE_SECONDS: Final = 0.1


def essence_of(items: Iterable[Any]) -> dict[str, Any]:
    """Returns what identifies a plan, of the JSON values *items*: their ``count`` and
    ``hash``, however many they are."""
    found, count = hashlib.blake2b(digest_size=32), 0
    for item in items:
        found.update(json.dumps(item).encode() + b"\n")
        count += 1
    return {"count": count, "hash": found.hexdigest()}


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

    def save(
        self,
        state: JobState | None = None,
        *,
        outlives: Outlives = Outlives.PROCESS,
        **changed: Any,
    ) -> None:
        """Keeps *state* (None: as it is) and *changed* in ``values``, and these on the disk, as
        *outlives* has it. Raises OSError."""
        if state is not None:
            changed = {"state": state.value, **changed}
        self.values |= {**changed, "changed_ns": time.time_ns()}
        content = json.dumps(self.values).encode()
        path = self._directory / "progress.json"
        try:
            write_atomically("agent.progress", path, content, outlives)
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(path)) from None

    def end(self, state: JobState, words: str) -> None:
        """Keeps *state* and *words* as what the process leaves, on a full disk too. Raises
        OSError."""
        try:
            self.save(state, words=words)
        except OSError:
            keep_end(self._directory, JobEnd(state, words))

    def begin_changes(self, after_seq: int) -> None:
        """Keeps on the disk, before the first change of this process, that its entries come after
        entry *after_seq*. Those of an earlier one that was killed are not after that. Raises
        OSError."""
        pid = str(os.getpid())
        results = {key: [first, after_seq if last is None else last]
                   for key, (first, last) in self.values.get("results", {}).items()}  # fmt: skip
        self.save(
            JobState.DOING,
            outlives=Outlives.MACHINE,
            words="",
            done=0,
            total=None,
            pids=[*self.values.get("pids", []), os.getpid()],
            results={**results, pid: [results.get(pid, [after_seq + 1])[0], None]},
        )

    def end_changes(self, to_seq: int) -> None:
        """Keeps that the entries of this process end with *to_seq*, to be on the disk with the next
        :meth:`save`."""
        self.values["results"][str(os.getpid())][1] = to_seq

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

    @property
    def has_plan(self) -> bool:
        """True if a plan was shown, which the admin may have approved since."""
        return self.values.get("essence") is not None

    @property
    def has_plan_of_order(self) -> bool:
        """True if a plan was shown, and it is the one that the order names, if it names one."""
        ordered = read_json(self._directory / "order.json").get("plan")
        return self.has_plan and ordered in (None, plan_of(self.values))

    def is_approved(self, essence: dict[str, Any]) -> bool:
        """Returns True if the plan of *essence* (:func:`essence_of`) is the one that was shown
        last: who has the job done then has seen it."""
        return self.has_plan and self.values["essence"] == essence

    def has_aim(self, essence: dict[str, Any]) -> bool:
        """Returns True if the plan that was shown last has the ``aim`` of *essence*: what is left
        of it, once it was begun."""
        shown = self.values.get("essence")
        return isinstance(shown, dict) and "aim" in shown and shown["aim"] == essence["aim"]

    def show_plan(self, essence: dict[str, Any], **values: Any) -> None:
        """Shows the plan of *essence*, which *values* have for people, and has it wait. Only from
        here on is it what an order to do it means. Raises OSError."""
        self.save(JobState.PLANNED, essence=essence, **values)
