"""Problems of a volume: each with a key that is the same as long as its cause is, however its words
change meanwhile. Consoles make alerts of them."""

import re
import shutil
import time
from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, NamedTuple

from fusejournal.config import AlertsConfig, Config, VersionsConfig, find_config, load_config
from fusejournal.errors import FusejournalError
from fusejournal.node.state_dir import VolumeState
from fusejournal.node.volume_status import Condition, VolumeStatus
from fusejournal.replication.states import MirrorState, PeerState
from fusejournal.replication.status import MirrorStatus, PeerStatus
from fusejournal.volume.trouble import Trouble, TroubleKind

_DEFAULT: Final = AlertsConfig()
_HOUR_SECONDS: Final = 3600.0
_OVERDUE: Final = (
    ("keep_hourly", 3.0),
    ("keep_daily", 50.0),
    ("keep_weekly", 15 * 24.0),
    ("keep_monthly", 62 * 24.0),
)
"""The hours after which a version is overdue where a policy keeps one of each hour, day and so on:
twice its time, and some."""
_STOPPING: Final = {
    TroubleKind.PEER_AWAY, TroubleKind.DIVERGED, TroubleKind.REFUSED, TroubleKind.NEEDS_COPY,
    TroubleKind.PEER_FULL, TroubleKind.PEER_FAILED,
}  # fmt: skip
"""Troubles with a peer that have it fall behind: its lag is no problem of its own then."""
_MIRROR_AWAY: Final = {MirrorState.WAITING, MirrorState.CONNECTING}


class EntriesAbout(NamedTuple):
    """The entries that a problem is about, as the timeline filters them: of a user, of operations,
    from a moment on."""

    uid: int
    op: str
    since: str


@dataclass(frozen=True)
class Problem:
    """A thing that is not well. ``key`` is the same as long as the cause is; ``is_bad``: users or
    data are at risk now."""

    key: str
    words: str
    is_bad: bool
    advice: str = ""
    entries: EntriesAbout | None = None

    def to_json(self) -> dict[str, Any]:
        """Returns it as values."""
        severity = "bad" if self.is_bad else "warning"
        raw = {"key": self.key, "words": self.words, "severity": severity, "advice": self.advice}
        return raw if self.entries is None else raw | {"entries": self.entries._asdict()}


def configuration_of(status: VolumeStatus) -> Config | None:
    """Returns the configuration that a volume is mounted with, or would be; None where that cannot
    be read, which is reported by the process that would use it."""
    file = Path(status.configuration) if status.configuration else find_config(status.name)
    try:
        return load_config(file)
    except FusejournalError:
        return None


def problems_of(status: VolumeStatus, policy: AlertsConfig = _DEFAULT) -> list[Problem]:
    """Returns all that a status shows to be wrong with a volume, each key once; *policy*: of its
    figures. What is a trouble there and can be seen in its figures, too, is one problem. That a
    peer was paused is none: an admin wanted it; how far it is behind by that may be one."""
    peers = status.replication.peers if status.replication is not None else ()
    advices = {peer.name: peer.advice or "" for peer in peers}
    found = [
        Problem(_key_of(one), one.text, True, advices.get(one.about or "", ""))
        for one in status.troubles
        if one.kind is not TroubleKind.PAUSED
    ]
    found = list(_each_once(found))
    known = {one.key for one in found}
    return found + [one for one in _seen_in(status, policy) if one.key not in known]


def _seen_in(status: VolumeStatus, policy: AlertsConfig) -> Iterator[Problem]:
    """Yields the problems that the figures of *status* show, each with a key of its own."""
    if status.state in (Condition.STOPPED, Condition.HELD) and not status.troubles:
        advice = f"fusejournal mount {status.name}"
        yield Problem("stopped", "no layer serves it", status.state is Condition.HELD, advice)
    yield from _problems_of_space(status, policy)
    if (told := status.replication) is not None:
        others = [one for one in status.troubles if one.kind is not TroubleKind.PAUSED]
        in_trouble = {one.about for one in others}
        stopped = {one.about for one in others if one.kind in _STOPPING}
        for peer in told.peers:
            yield from _problems_of_peer(
                peer, policy, is_in_trouble=peer.name in in_trouble, is_stopped=peer.name in stopped
            )
        if told.mirror is not None:
            is_away = status.has(TroubleKind.PRIMARY_AWAY)
            yield from _problems_of_mirror(told.mirror, policy, is_away=is_away)


def _key_of(trouble: Trouble) -> str:
    if trouble.kind is TroubleKind.OTHER:
        # Its words are all there is; numbers and quoted names in them change, the cause does not.
        return "degraded:" + re.sub(r"\d[\d,./]*|'[^']*'", "#", trouble.text)[:80]
    return trouble.kind if trouble.about is None else f"{trouble.kind}:{trouble.about}"


def _each_once(problems: list[Problem]) -> Iterator[Problem]:
    counts: dict[str, int] = {}
    for one in problems:
        count = counts[one.key] = counts.get(one.key, 0) + 1
        key = one.key if count == 1 else f"{one.key}:{count}"
        yield replace(one, key=key)


def _problems_of_space(status: VolumeStatus, policy: AlertsConfig) -> Iterator[Problem]:
    if status.disk_free_bytes < policy.free_bytes:
        words = f"only {status.disk_free_bytes >> 20} MiB are left for the journal"
        yield Problem(TroubleKind.LOW_SPACE, words, True)
    free = status.backing_free_bytes
    if free is not None and free < policy.backing_free_bytes:
        yield Problem("backing-space", f"only {free >> 20} MiB are left in the backing", False)


def nearly_full(
    state: VolumeState, others: Collection[Problem], policy: AlertsConfig = _DEFAULT
) -> Iterator[Problem]:
    """Yields the problem of a disk with the journal that is nearly full by *policy*, where none of
    *others* is that it is, or is worse. Raises OSError."""
    if any(one.key == TroubleKind.LOW_SPACE for one in others):
        return
    usage = shutil.disk_usage(state.directory)
    if usage.free < usage.total * policy.free_share:
        share = 100 * usage.free / usage.total
        words = f"the disk with the journal is nearly full: {share:.1f} % are left"
        # (The key of what it is going to be: then the same alert becomes worse.)
        yield Problem(TroubleKind.LOW_SPACE, words, False)


def _problems_of_peer(
    peer: PeerStatus, policy: AlertsConfig, *, is_in_trouble: bool, is_stopped: bool
) -> Iterator[Problem]:
    is_paused = peer.state is PeerState.PAUSED
    is_failing = (
        peer.last_error
        and not is_paused
        and (peer.lag_entries or peer.state == PeerState.CONNECTING)
    )
    if is_failing and not is_in_trouble:
        words = f"peer {peer.name}: {peer.last_error}"
        # (The key of what it is going to be, if it lasts: then the same alert becomes worse.)
        key = f"{TroubleKind.PEER_AWAY}:{peer.name}"
        yield Problem(key, words, False, peer.advice or "")
    if peer.lag_seconds > policy.lag_seconds and not is_failing and not is_stopped:
        words = f"peer {peer.name} is behind by {peer.lag_seconds:.0f} s"
        if is_paused:
            words += ", because it is paused"
        yield Problem(f"lag:{peer.name}", words, False, (peer.advice or "") if is_paused else "")


def _problems_of_mirror(
    mirror: MirrorStatus, policy: AlertsConfig, *, is_away: bool
) -> Iterator[Problem]:
    if mirror.trouble or is_away:
        return  # What keeps it from taking anything is among the troubles, and its lag comes of it.
    if mirror.state in _MIRROR_AWAY and (mirror.heard_seconds_ago or 0) > policy.silent_seconds:
        words = f"its primary was heard last {mirror.heard_seconds_ago:.0f} s ago"
        yield Problem(TroubleKind.PRIMARY_AWAY, words, False)
    elif mirror.lag_seconds > policy.lag_seconds:
        words = f"behind its primary by {mirror.lag_seconds:.0f} s"
        yield Problem("lag", words, False)


def problems_of_versions(
    state: VolumeState,
    status: VolumeStatus,
    version: dict[str, Any] | None,
    policy: VersionsConfig | None,
) -> Iterator[Problem]:
    """Yields what is wrong with a volume's versions, of which *version* is the newest, with how
    many there are; nothing before the store's first answer. One is overdue by *policy*, if there is
    one, and only where entries came since."""
    if not version:
        return
    if (error := version.get("error")) is not None:
        yield Problem("store", f"its versions: {error}", True)
        return
    hours = _overdue_hours(policy) if policy is not None else None
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


def _overdue_hours(policy: VersionsConfig) -> float | None:
    return next((hours for key, hours in _OVERDUE if _keeps(policy, key)), None)


def _keeps(policy: VersionsConfig, key: str) -> bool:
    return bool(getattr(policy, key))
