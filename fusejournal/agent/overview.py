"""The state of all volumes of this machine, as the overview shows it: the status that ``fusejournal
status`` has, the range that the journal covers, the newest version, and what is wrong, in words."""

import time
from contextlib import suppress
from typing import Any

from fusejournal.admin.source import JournalSource, open_source
from fusejournal.admin.status import volume_status
from fusejournal.admin.stopped_journals import StoppedJournals
from fusejournal.agent.mass_changes import FILES, MassChanges
from fusejournal.agent.newest_versions import NewestVersions
from fusejournal.agent.problems import (
    Problem,
    configuration_of,
    nearly_full,
    problems_of,
    problems_of_versions,
)
from fusejournal.config import AlertsConfig
from fusejournal.errors import FusejournalError
from fusejournal.journal.reader import JournalReader
from fusejournal.node.registry import all_volumes
from fusejournal.node.state_dir import VolumeState
from fusejournal.node.volume_status import VolumeStatus

_KEPT_SECONDS = 1.0
_READERS_MAX = 32
_MASS_SECONDS = 5.0
"""The time between two looks for mass changes."""


class Overview:
    """Makes the overview, at most once a second however many ask: each asks every layer. Not for
    two threads at a time."""

    def __init__(self, mass_files: int = FILES) -> None:
        """*mass_files*: see MassChanges."""
        self._made = float("-inf")
        self._mass = MassChanges(mass_files)
        self._mass_problems: dict[str, tuple[float, list[Problem]]] = {}
        self._volumes: list[dict[str, Any]] = []
        self._journals = StoppedJournals()
        self._readers: dict[str, JournalReader] = {}
        self._versions = NewestVersions()

    def volumes(self) -> list[dict[str, Any]]:
        """Returns the state of each volume, by name."""
        if time.monotonic() > self._made + _KEPT_SECONDS:
            states = all_volumes()
            versions = self._versions.find(states)
            self._volumes = [
                self._describe(state, versions.get(state.directory)) for state in states
            ]
            self._made = time.monotonic()
        return self._volumes

    def _describe(self, state: VolumeState, version: dict[str, Any] | None) -> dict[str, Any]:
        try:
            status = volume_status(state, self._journals)
        except (FusejournalError, OSError) as error:
            problem = Problem("status", str(error), True)
            return {"name": state.name, "state": "unknown", "problems": [problem.to_json()]}
        raw = status.to_json()
        raw["covered"] = _covered(state, status)
        raw["version"] = version
        config = configuration_of(status)
        policy = config.alerts if config is not None else AlertsConfig()
        problems = problems_of(status, policy)
        problems += problems_of_versions(
            state, status, version, config.versions if config is not None else None
        )
        problems += self._mass_changes(state, status)
        with suppress(OSError):
            problems += nearly_full(state, problems, policy)
        raw["problems"] = [one.to_json() for one in problems]
        return raw

    def _mass_changes(self, state: VolumeState, status: VolumeStatus) -> list[Problem]:
        """Returns those of a primary: its mirrors would only report the same once more."""
        if status.role != "primary":
            return []
        key, now = str(state.directory), time.monotonic()
        looked, problems = self._mass_problems.get(key, (float("-inf"), []))
        if now > looked + _MASS_SECONDS:
            try:
                problems = self._mass.look(self._source(state))
            except (FusejournalError, OSError):  # the status says what is wrong with it
                self._readers.clear()
            self._mass_problems[key] = now, problems
        return problems

    def _source(self, state: VolumeState) -> JournalSource:
        """Returns the journal of a volume, with the reader of before: it knows where the end was.
        Raises FusejournalError."""
        source = open_source(str(state.directory))
        key, now = f"{state.directory} {source.reader.uuid}", source.reader.base
        known = self._readers.pop(key, None) or source.reader
        if now is not None and (known.base is None or known.base.base != now.base):
            known.begin_behind(now)
        self._readers[key] = known
        while len(self._readers) > _READERS_MAX:
            del self._readers[next(iter(self._readers))]
        return JournalSource(source.name, known, source.state)


def _covered(state: VolumeState, status: VolumeStatus) -> dict[str, Any] | None:
    """Returns the first seq and time from which on every moment can be had."""
    reader = JournalReader(state.journal_dir, state.uuid)
    try:
        segments = reader.segments()
        if not segments:
            return None
        header, first = reader.beginning(segments[0])
        newest, _ = reader.beginning(segments[-1])
    except (FusejournalError, OSError):
        return None  # the status says what is wrong with it
    return {
        "first_seq": int(reader.first_seq),
        "first_time_ns": first.time_ns if first is not None else header.time_ns,
        "last_seq": status.head_seq,
        "newest_segment_time_ns": newest.time_ns,
    }
