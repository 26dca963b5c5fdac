"""Delivery of alerts by the channels: once for each cause, again only as configured, with retries,
and never more often than a channel may be used.

What is due follows from the alerts that there are and from what was told, so there is no queue to
be lost or to fill up. What was told is on the disk after each success: a console that is killed
between the two tells that once more.

A cause that comes and goes is told again once it was gone for a while, and not each time."""

import json
import logging
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

import trio

from fusejournal.console.channels import AlertChannel, DeliveryError, message_of
from fusejournal.console.sessions import RateLimit
from fusejournal.disk.files import UNREADABLE_JSON, Outlives, write_atomically
from fusejournal.errors import UsageError

log = logging.getLogger(__name__)

_SECOND_NS: Final = 10**9
_BACK_NS: Final = 600 * _SECOND_NS
"""The time after which a cause that was gone and came back is told again."""
_RETRY_SECONDS: Final = 5.0
_RETRY_SECONDS_MAX: Final = 600.0


@dataclass
class _ChannelState:
    """One channel's success and failure, in this process."""

    retry_at: float = float("-inf")
    failures: int = 0
    error: str | None = None
    delivered_ns: int | None = None


class AlertDelivery:
    """Delivers by all channels. One task calls :meth:`deliver`; cancelling it may have a message
    come twice."""

    def __init__(self, channels: Sequence[AlertChannel], path: Path) -> None:
        """*path*: where it is kept what was told."""
        self._channels = channels
        self._path = path
        self._states = {channel.name: _ChannelState() for channel in channels}
        self._limits = {
            one.name: RateLimit(one.config.per_hour, 3600 / one.config.per_hour) for one in channels
        }
        self._told: dict[str, dict[str, dict[str, Any]]] = {}
        """Those sent, by channel and key: ``told_ns``, the ``alert``, and ``gone_ns`` where it is
        gone."""
        with suppress(OSError, *UNREADABLE_JSON):
            raw = json.loads(path.read_bytes())["told"]
            self._told = {name: dict(raw[name]) for name in self._states if name in raw}

    @property
    def has_channels(self) -> bool:
        """True if there is anything to deliver by."""
        return bool(self._channels)

    def to_json(self) -> list[dict[str, Any]]:
        """Returns how the channels are."""
        return [
            {"name": name, "error": one.error, "delivered_ns": one.delivered_ns}
            for name, one in self._states.items()
        ]

    async def deliver(self, alerts: list[dict[str, Any]]) -> None:
        """Tells what is due of *alerts*, which are all that there are now. Failures are logged, and
        tried again later. Cancelled, what is being sent is sent, and after a new start once
        more."""
        async with trio.open_nursery() as nursery:
            for channel in self._channels:
                nursery.start_soon(self._deliver_by, channel, alerts)

    async def _deliver_by(self, channel: AlertChannel, alerts: list[dict[str, Any]]) -> None:
        now_ns = time.time_ns()
        told = self._told.setdefault(channel.name, {})
        by_key = {one["key"]: one for one in alerts}
        raised = [one for one in alerts if _is_due(channel, one, told.get(one["key"]), now_ns)]
        gone = [key for key, one in told.items() if key not in by_key and "gone_ns" not in one]
        for key, one in list(told.items()):
            if key not in by_key and one.get("gone_ns", now_ns) < now_ns - _BACK_NS:
                del told[key]
        resolved = [told[key]["alert"] for key in gone] if channel.config.resolved else []
        if not raised and not resolved:
            for key in gone:
                told[key]["gone_ns"] = now_ns
            return
        if not await self._send(channel, message_of(raised, resolved)):
            return
        for one in raised:
            told[one["key"]] = {"told_ns": now_ns, "alert": _kept(one)}
        for key in gone:
            told[key]["gone_ns"] = now_ns
        with suppress(OSError):  # then a console that starts anew tells them once more
            await trio.to_thread.run_sync(self._save)

    async def _send(self, channel: AlertChannel, message: dict[str, Any]) -> bool:
        state, now = self._states[channel.name], trio.current_time()
        if now < state.retry_at or not self._limits[channel.name].take("", now):
            return False
        try:
            await trio.to_thread.run_sync(partial(channel.send, message))
        except DeliveryError as error:
            seconds = min(_RETRY_SECONDS * 2**state.failures, _RETRY_SECONDS_MAX)
            state.failures = min(state.failures + 1, 16)
            state.retry_at, state.error = trio.current_time() + seconds, str(error)
            log.warning("an alert was not delivered: %s; tried again in %g s", error, seconds)
            return False
        state.failures, state.error, state.delivered_ns = 0, None, time.time_ns()
        return True

    async def send_test(self, name: str) -> None:
        """Sends a message by the channel *name* to see whether it works. Cancelled, one that
        is being sent is sent. Raises UsageError, DeliveryError."""
        channel = next((one for one in self._channels if one.name == name), None)
        if channel is None:
            raise UsageError(f"there is no channel {name!r:.80}")
        if not self._limits[name].take("", trio.current_time()):
            raise UsageError(f"{name} is used as often as it may already: wait a while")
        await trio.to_thread.run_sync(partial(channel.send, message_of([], [])))
        state = self._states[name]
        state.failures, state.error, state.delivered_ns = 0, None, time.time_ns()
        state.retry_at = float("-inf")

    def _save(self) -> None:
        content = json.dumps({"told": self._told}).encode()
        write_atomically("console.told", self._path, content, Outlives.MACHINE)


def _is_due(
    channel: AlertChannel, alert: dict[str, Any], told: dict[str, Any] | None, now_ns: int
) -> bool:
    config = channel.config
    if config.severity == "bad" and alert["severity"] != "bad":
        return False
    if alert["acknowledged"] is not None or alert["silenced"] is not None:
        return False
    if told is None:
        return now_ns - int(alert["since_ns"]) >= config.after_seconds * _SECOND_NS
    if (gone_ns := told.get("gone_ns")) is not None:
        return now_ns - max(int(gone_ns), int(alert["since_ns"])) >= _BACK_NS
    if told["alert"]["severity"] != "bad" and alert["severity"] == "bad":
        return True  # it has become worse
    repeat_ns = config.repeat_hours * 3600 * _SECOND_NS
    return bool(repeat_ns) and now_ns - int(told["told_ns"]) >= repeat_ns


def _kept(alert: dict[str, Any]) -> dict[str, Any]:
    keys = ("key", "agent", "volume", "words", "advice", "severity", "since_ns")
    return {key: alert.get(key) for key in keys}
