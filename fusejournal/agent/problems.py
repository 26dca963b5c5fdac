"""Problems of a volume: each with a key that is the same as long as its cause is, however its words
change meanwhile. Consoles make alerts of them."""

import re
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from fusejournal.config import VersionsConfig, find_config, load_config
from fusejournal.errors import FusejournalError
from fusejournal.node.state_dir import VolumeState
from fusejournal.node.volume_status import Condition, VolumeStatus
from fusejournal.replication.states import MirrorState, PeerState
from fusejournal.replication.status import MirrorStatus, PeerStatus

_LAG_SECONDS: Final = 60.0
"""A lag from which on an admin should know of it."""
_SILENT_SECONDS: Final = 60.0
_FREE_BYTES_LOW: Final = 1 << 30
_FREE_SHARE_LOW: Final = 0.05
_HOUR_SECONDS: Final = 3600.0
_OVERDUE: Final = (
    ("keep_hourly", 3.0),
    ("keep_daily", 50.0),
    ("keep_weekly", 15 * 24.0),
    ("keep_monthly", 62 * 24.0),
)
"""The hours after which a version is overdue where a policy keeps one of each hour, day and so on:
twice its time, and some."""
_KEYS: Final = tuple(
    (re.compile(pattern), key)
    for pattern, key in (
        ("^read-only:", "failed"),
        ("fenced|reigns? ", "fenced"),
        ("damage", "damage"),
        ("^no space under|^takes nothing more", "no-space"),
        ("^the last scrub found", "scrub"),
        ("has a copy of its state", "copy"),
        ("^segments are not compressed", "compression"),
        ("^its mount is dead|^its layer died", "layer"),
        ("^was not stopped in order", "unclean"),
        ("^a rejoin has begun", "rejoin"),
        ("clock", "clock"),
        ("^waits for .* mirrors", "mirrors"),
    )
)
"""The keys of what a status calls degraded, by its words."""
_PEER_AWAY: Final = {
    PeerState.MIRROR_FULL, PeerState.MIRROR_FAILED, PeerState.DIVERGED, PeerState.REFUSED,
    PeerState.NEEDS_COPY,
}  # fmt: skip
_MIRROR_AWAY: Final = {MirrorState.WAITING, MirrorState.CONNECTING}


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


def problems_of(status: VolumeStatus) -> list[Problem]:
    """Returns all that a status says is wrong with a volume, each key once."""
    found = [Problem(_key_of(line), line, True) for line in status.degraded]
    if status.state in (Condition.STOPPED, Condition.HELD) and not status.degraded:
        advice = f"fusejournal mount {status.name}"
        found.append(
            Problem("stopped", "no layer serves it", status.state is Condition.HELD, advice)
        )
    found += _problems_of_space(status)
    if (told := status.replication) is not None:
        for peer in told.peers:
            found += _problems_of_peer(peer)
        if told.mirror is not None:
            found += _problems_of_mirror(told.mirror)
    return list(_each_once(found))


def _key_of(line: str) -> str:
    for pattern, key in _KEYS:
        if pattern.search(line):
            return key
    # Numbers and quoted names change while the cause does not.
    return "degraded:" + re.sub(r"\d[\d,./]*|'[^']*'", "#", line)[:80]


def _each_once(problems: list[Problem]) -> Iterator[Problem]:
    counts: dict[str, int] = {}
    for one in problems:
        count = counts[one.key] = counts.get(one.key, 0) + 1
        key = one.key if count == 1 else f"{one.key}:{count}"
        yield Problem(key, one.words, one.is_bad, one.advice)


def _problems_of_space(status: VolumeStatus) -> Iterator[Problem]:
    if status.disk_free_bytes < _FREE_BYTES_LOW:
        words = f"only {status.disk_free_bytes >> 20} MiB are left for the journal"
        yield Problem("space", words, True)
    free = status.backing_free_bytes
    if free is not None and free < _FREE_BYTES_LOW:
        yield Problem("backing-space", f"only {free >> 20} MiB are left in the backing", False)


def nearly_full(state: VolumeState) -> Iterator[Problem]:
    """Yields the problem of a disk with the journal that is nearly full, and has more than what is
    reported as a problem in any case. Raises OSError."""
    usage = shutil.disk_usage(state.directory)
    if usage.free >= _FREE_BYTES_LOW and usage.free < usage.total * _FREE_SHARE_LOW:
        share = 100 * usage.free / usage.total
        words = f"the disk with the journal is nearly full: {share:.1f} % are left"
        yield Problem("nearly-full", words, False)


def _problems_of_peer(peer: PeerStatus) -> Iterator[Problem]:
    key = f"peer:{peer.name}"
    advice = peer.advice or ""
    if peer.state in _PEER_AWAY:
        yield Problem(key, f"peer {peer.name}: {_with_error(peer)}", True, advice)
    elif peer.last_error and (peer.lag_entries or peer.state == PeerState.CONNECTING):
        yield Problem(key, f"peer {peer.name}: {peer.last_error}", False, advice)
    if peer.lag_seconds > _LAG_SECONDS:
        words = f"peer {peer.name} is behind by {peer.lag_seconds:.0f} s"
        yield Problem(f"lag:{peer.name}", words, False)


def _with_error(peer: PeerStatus) -> str:
    return f"{peer.state}: {peer.last_error}" if peer.last_error else peer.state


def _problems_of_mirror(mirror: MirrorStatus) -> Iterator[Problem]:
    if mirror.trouble:
        yield Problem("mirror", mirror.trouble, True)
    elif mirror.state in _MIRROR_AWAY and (mirror.heard_seconds_ago or 0) > _SILENT_SECONDS:
        words = f"its primary was heard last {mirror.heard_seconds_ago:.0f} s ago"
        yield Problem("primary-away", words, False)
    if mirror.lag_seconds > _LAG_SECONDS:
        words = f"behind its primary by {mirror.lag_seconds:.0f} s"
        yield Problem("lag", words, False)


def problems_of_versions(
    state: VolumeState, status: VolumeStatus, version: dict[str, Any] | None
) -> Iterator[Problem]:
    """Yields what is wrong with a volume's versions, of which *version* tells the newest, and how
    many there are. One is overdue by the policy in the configuration, if there is one, and only
    where entries came since."""
    if version is None:
        return
    if (error := version.get("error")) is not None:
        yield Problem("store", f"its versions: {error}", True)
        return
    hours = _overdue_hours(status)
    if hours is None or version.get("seq") == status.head_seq:
        return
    made_ns = version.get("made_ns", state.created_ns)
    age_seconds = time.time() - made_ns / 1e9
    if age_seconds > hours * _HOUR_SECONDS:
        words = f"its newest version was made {age_seconds / _HOUR_SECONDS:.0f} hours ago"
        if not version["count"]:
            words = "it has no version yet"
        advice = f"fusejournal version create {status.name}"
        yield Problem("overdue", words, False, advice)


def _overdue_hours(status: VolumeStatus) -> float | None:
    file = Path(status.configuration) if status.configuration else find_config(status.name)
    try:
        policy = load_config(file).versions
    except FusejournalError:
        return None  # it is reported by the process that would use it
    return next((hours for key, hours in _OVERDUE if _keeps(policy, key)), None)


def _keeps(policy: VersionsConfig, key: str) -> bool:
    return bool(getattr(policy, key))
