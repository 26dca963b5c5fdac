"""The state of all volumes of this machine, as the overview shows it: the status that ``fusejournal
status`` has, the range that the journal covers, the newest version, and what is wrong, in words."""

import time
from dataclasses import dataclass
from typing import Any

from fusejournal.admin.status import volume_status
from fusejournal.admin.versions import VolumeVersions
from fusejournal.errors import FusejournalError
from fusejournal.journal.reader import JournalReader
from fusejournal.node.registry import all_volumes
from fusejournal.node.state_dir import VolumeState
from fusejournal.node.volume_status import VolumeStatus
from fusejournal.replication.status import MirrorStatus, PeerStatus

_LAG_SECONDS = 60.0
"""A lag from which on an admin should know of it."""
_FREE_BYTES_LOW = 1 << 30
_KEPT_SECONDS = 1.0
_VERSION_SECONDS = 60.0
"""The time for which the newest version is kept: its store may be far away."""
_STORE_SECONDS = 3.0


@dataclass(frozen=True)
class Problem:
    """A thing that is not well. ``key`` is the same as long as the cause is; ``is_bad``: users or
    data are at risk now."""

    key: str
    words: str
    is_bad: bool
    advice: str = ""

    def to_json(self) -> dict[str, Any]:
        """Returns it as values."""
        severity = "bad" if self.is_bad else "warning"
        return {
            "key": self.key, "words": self.words, "severity": severity, "advice": self.advice,
        }  # fmt: skip


class Overview:
    """Makes the overview, at most once a second however many ask: each asks every layer. Not for
    two threads at a time."""

    def __init__(self) -> None:
        self._made = float("-inf")
        self._volumes: list[dict[str, Any]] = []
        self._versions: dict[str, tuple[float, dict[str, Any] | None]] = {}

    def volumes(self) -> list[dict[str, Any]]:
        """Returns the state of each volume, by name."""
        if time.monotonic() > self._made + _KEPT_SECONDS:
            self._volumes = [self._describe(state) for state in all_volumes()]
            self._made = time.monotonic()
        return self._volumes

    def _describe(self, state: VolumeState) -> dict[str, Any]:
        try:
            status = volume_status(state)
        except (FusejournalError, OSError) as error:
            problem = Problem("status", str(error), True)
            return {"name": state.name, "state": "unknown", "problems": [problem.to_json()]}
        raw = status.to_json()
        raw["problems"] = [one.to_json() for one in problems_of(status)]
        raw["covered"] = _covered(state, status)
        raw["version"] = self._version(state)
        return raw

    def _version(self, state: VolumeState) -> dict[str, Any] | None:
        key, now = str(state.directory), time.monotonic()
        made, version = self._versions.get(key, (float("-inf"), None))
        if now > made + _VERSION_SECONDS:
            version = _newest_version(state)
            self._versions[key] = now, version
        return version


def problems_of(status: VolumeStatus) -> list[Problem]:
    """Returns all that is wrong with a volume."""
    found = [Problem(f"degraded:{line}", line, True) for line in status.degraded]
    if status.state in ("stopped", "held") and not status.degraded:
        advice = f"fusejournal mount {status.name}"
        found.append(Problem("stopped", "no layer serves it", status.state == "held", advice))
    if status.disk_free_bytes < _FREE_BYTES_LOW:
        words = f"only {status.disk_free_bytes >> 20} MiB are left for the journal"
        found.append(Problem("space", words, True))
    if (told := status.replication) is not None:
        for peer in told.peers:
            found += _problems_of_peer(peer)
        if told.mirror is not None:
            found += _problems_of_mirror(told.mirror)
    return found


def _problems_of_peer(peer: PeerStatus) -> list[Problem]:
    found = []
    if peer.last_error and peer.lag_entries:
        words = f"peer {peer.name}: {peer.last_error}"
        found.append(Problem(f"peer:{peer.name}", words, False, peer.advice or ""))
    if peer.lag_seconds > _LAG_SECONDS:
        words = f"peer {peer.name} is behind by {peer.lag_seconds:.0f} s"
        found.append(Problem(f"lag:{peer.name}", words, False))
    return found


def _problems_of_mirror(mirror: MirrorStatus) -> list[Problem]:
    found = []
    if mirror.trouble:
        found.append(Problem("mirror", mirror.trouble, True))
    if mirror.lag_seconds > _LAG_SECONDS:
        words = f"behind its primary by {mirror.lag_seconds:.0f} s"
        found.append(Problem("lag", words, False))
    return found


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


def _newest_version(state: VolumeState) -> dict[str, Any] | None:
    if not state.has_versions:
        return None
    deadline = time.monotonic() + _STORE_SECONDS

    def give_up() -> None:
        if time.monotonic() > deadline:
            raise FusejournalError("its store does not answer")

    try:
        found, unreadable = VolumeVersions(state.name, give_up).all()
    except (FusejournalError, OSError) as error:
        return {"error": str(error)}
    if unreadable:
        return {"error": str(unreadable[0].error)}
    listed = [one for one in found if one.history != "lost"]
    if not listed:
        return {"count": 0}
    version = listed[-1].version
    return {
        "count": len(listed),
        "name": version.name,
        "seq": int(version.seq),
        "time_ns": version.time_ns,
        "made_ns": version.made_ns,
    }
