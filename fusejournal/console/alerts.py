"""Alerts: each one cause, known by its key, from when it was first seen until it is gone. Since
when it is there, and who acknowledged or silenced it, is kept on the disk.

A cause that is gone and comes back is as silenced as it was, until the silence ends, and within ten
minutes as acknowledged as it was, too: a user who knows of it need not be told anew each time. An
acknowledgement of a warning ends where the same cause becomes bad."""

import json
import time
from collections.abc import Collection
from contextlib import suppress
from pathlib import Path
from typing import Any, Final, NamedTuple

from fusejournal.disk.files import UNREADABLE_JSON, Outlives, write_atomically
from fusejournal.disk.json_records import checked, read_object
from fusejournal.errors import UsageError

BACK_NS: Final = 600 * 10**9
"""The time after which a cause that was gone and came back is as a new one."""
_HOUR_NS: Final = 3600 * 10**9
HOURS_MAX: Final = 24 * 366
KNOWN_BYTES_MAX: Final = 64 << 20
"""The most that the file of the alerts, or of those that were told, has: more than the alerts of a
hundred agents, each reported by ten channels."""
_ACTIONS: Final = ("acknowledge", "silence", "unsilence")


class _Acknowledged(NamedTuple):
    user: str
    time_ns: int
    severity: str | None = None
    """The severity that the user has seen: that, and a milder one, is acknowledged."""


class _Silenced(NamedTuple):
    user: str
    until_ns: int


class _KnownAlert(NamedTuple):
    since_ns: int
    acknowledged: _Acknowledged | None
    silenced: _Silenced | None
    gone_ns: int


class Alerts:
    """The alerts that are there, by key. Any thread may call it, one at a time."""

    def __init__(self, path: Path) -> None:
        """*path*: where what is known of them is kept."""
        self._path = path
        self._known: dict[str, dict[str, Any]] = {}
        """The alerts by key: ``since_ns``, ``acknowledged``, ``silenced``, and ``gone_ns`` where it
        is gone, and what users wanted of it still holds."""
        with suppress(OSError, *UNREADABLE_JSON):
            raw = read_object(path, KNOWN_BYTES_MAX)["alerts"]
            self._known = {key: _known_of(one) for key, one in raw.items()}
        self._severities: dict[str, str] = {}
        """The severities of those that there are now, by key."""

    def update(
        self, problems: list[dict[str, Any]], unanswered: Collection[str] = ()
    ) -> list[dict[str, Any]]:
        """Takes in all *problems* that there are now, each with its key, and returns the alerts,
        the worst and newest first. What is known of those of the agents *unanswered*, which have
        not answered this process, stays. Blocks; a full disk only has a later start forget."""
        now_ns = time.time_ns()
        by_key = {one["key"]: one for one in problems}
        known: dict[str, dict[str, Any]] = {}
        for key, one in self._known.items():
            if "gone_ns" not in one and key not in by_key and agent_of(key) not in unanswered:
                one = {**one, "gone_ns": now_ns}
            if (left := _left_of(one, now_ns)) is not None:
                known[key] = left
        for key in by_key:
            one = known.get(key, {})
            if "gone_ns" in one or not one:
                known[key] = {**one, "since_ns": now_ns}
                known[key].pop("gone_ns", None)
            known[key] = _unless_worse(known[key], by_key[key].get("severity", "bad"))
        has_changed = known != self._known
        self._known = known
        if has_changed:
            with suppress(OSError):
                self._save()
        found = [{**one, **_standing(self._known[key], now_ns)} for key, one in by_key.items()]
        found.sort(key=lambda one: (one["severity"] != "bad", -one["since_ns"]))
        self._severities = {key: one["severity"] for key, one in by_key.items()}
        return found

    def act(self, key: str, action: str, user: str, hours: int) -> None:
        """Notes that *user* knows of the alert *key*, or wants it not sent for so many *hours*, or
        sent again. Blocks. Raises UsageError where there is no such alert, OSError."""
        if action not in _ACTIONS:
            raise UsageError(f"{action!r:.80} is none of {', '.join(_ACTIONS)}")
        if key not in self._known:
            raise UsageError("there is no such alert any more")
        now_ns = time.time_ns()
        one = dict(self._known[key])
        if action == "acknowledge":
            one["acknowledged"] = {
                "user": user, "time_ns": now_ns, "severity": self._severities.get(key),
            }  # fmt: skip
        elif action == "unsilence":
            one["silenced"] = None
        elif not 0 < hours <= HOURS_MAX:
            raise UsageError(f"an alert is silenced for 1 to {HOURS_MAX} hours")
        else:
            one["silenced"] = {"user": user, "until_ns": now_ns + hours * _HOUR_NS}
        before, self._known = self._known, {**self._known, key: one}
        try:
            self._save()
        except OSError:
            self._known = before
            raise

    def _save(self) -> None:
        content = json.dumps({"alerts": self._known}).encode()
        write_atomically("console.alerts", self._path, content, Outlives.MACHINE)


def agent_of(key: str) -> str:
    """Returns the agent that the alert *key* is of: keys are AGENT/VOLUME/CAUSE."""
    return key.partition("/")[0]


def _known_of(raw: dict[str, Any]) -> dict[str, Any]:
    """Returns *raw*, all that was kept of an alert. Raises what UNREADABLE_JSON has."""
    by_user, silenced = raw.get("acknowledged"), raw.get("silenced")
    checked(
        _KnownAlert(
            raw["since_ns"],
            _Acknowledged(**by_user) if by_user is not None else None,
            _Silenced(**silenced) if silenced is not None else None,
            raw.get("gone_ns", 0),
        )
    )
    return raw


def _left_of(known: dict[str, Any], now_ns: int) -> dict[str, Any] | None:
    """Returns what still holds of what is known of an alert; None for nothing of one that is
    gone."""
    gone_ns = known.get("gone_ns")
    if gone_ns is None:
        return known
    silenced, acknowledged = known.get("silenced"), known.get("acknowledged")
    left = {"since_ns": known["since_ns"], "gone_ns": gone_ns}
    if silenced is not None and silenced["until_ns"] > now_ns:
        left["silenced"] = silenced
    if acknowledged is not None and now_ns - gone_ns < BACK_NS:
        left["acknowledged"] = acknowledged
    return left if len(left) > 2 else None


def _unless_worse(known: dict[str, Any], severity: str) -> dict[str, Any]:
    """Returns what is known of an alert that has *severity* now, without the acknowledgement of a
    milder one."""
    acknowledged = known.get("acknowledged")
    if acknowledged is None:
        return known
    seen = acknowledged.get("severity") or severity
    is_worse = severity == "bad" and seen != "bad"
    return {**known, "acknowledged": None if is_worse else {**acknowledged, "severity": seen}}


def _standing(known: dict[str, Any], now_ns: int) -> dict[str, Any]:
    silenced = known.get("silenced")
    if silenced is not None and silenced["until_ns"] <= now_ns:
        silenced = None
    return {
        "since_ns": known["since_ns"],
        "acknowledged": known.get("acknowledged"),
        "silenced": silenced,
    }
