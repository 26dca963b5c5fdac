"""Delivery of alerts by the channels: once for each cause, again only as configured, with retries,
and never more often than a channel may be used.

What is due follows from the alerts that there are and from what was reported, so there is no queue
to be lost or to fill up. What was reported is on the disk after each success: a console that is
killed between the two sends that once more.

A cause that comes and goes is reported again once it was gone for a while, and not each time.

Each channel has a task of its own while it sends, and a limit for the whole of it, so that a peer
that hangs, drips or answers nonsense holds up no other channel, and never ends the console."""

import json
import logging
import time
from collections.abc import Collection, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Final, NamedTuple

import trio

from fusejournal.console.alerts import BACK_NS, KNOWN_BYTES_MAX, agent_of
from fusejournal.console.channels import AlertChannel, DeliveryError, message_of
from fusejournal.console.sessions import RateLimit
from fusejournal.disk.files import UNREADABLE_JSON, Outlives, write_atomically
from fusejournal.disk.json_records import checked, read_object
from fusejournal.errors import UsageError

log = logging.getLogger(__name__)

_SECOND_NS: Final = 10**9
_KEPT_CHARS_MAX: Final = 500
_RETRY_SECONDS: Final = 5.0
_RETRY_SECONDS_MAX: Final = 600.0
_SEND_SECONDS: Final = 60.0
"""The time that one message may take as a whole. Its thread is left to itself then: what it waits
for may still come, and the message twice."""
_THREADS_MAX: Final = 4
"""Threads of one channel, those left to themselves counted."""


@dataclass
class _ChannelState:
    """One channel's success and failure, in this process."""

    retry_at: float = float("-inf")
    failures: int = 0
    error: str | None = None
    delivered_ns: int | None = None
    is_busy: bool = False
    threads: trio.CapacityLimiter = field(
        default_factory=lambda: trio.CapacityLimiter(_THREADS_MAX)
    )
    """Its own ones: those left to themselves use up none that others need."""


class AlertDelivery:
    """Delivers by all channels. One task calls :meth:`begin` or :meth:`deliver`; cancelling what
    they do may have a message come twice."""

    def __init__(self, channels: Sequence[AlertChannel], path: Path) -> None:
        """*path*: where it is kept what was reported."""
        self._channels = channels
        self._path = path
        self._states = {channel.name: _ChannelState() for channel in channels}
        self._limits = {
            one.name: RateLimit(one.config.per_hour, 3600 / one.config.per_hour) for one in channels
        }
        self._told: dict[str, dict[str, dict[str, Any]]] = {}
        """The alerts sent, by channel and key: ``told_ns``, the ``alert``, and ``gone_ns`` where it
        is gone."""
        self._saving = trio.Lock()
        with suppress(OSError, *UNREADABLE_JSON):
            raw = read_object(path, KNOWN_BYTES_MAX)["told"]
            self._told = {
                name: {key: _sent_alert(one) for key, one in raw[name].items()}
                for name in self._states
                if name in raw
            }

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

    async def deliver(self, alerts: list[dict[str, Any]], unanswered: Collection[str] = ()) -> None:
        """Delivers what is due of *alerts* as :meth:`begin` does, and waits for it. Cancelled, what
        is being sent may be sent, and after a new start once more."""
        async with trio.open_nursery() as nursery:
            self.begin(nursery, alerts, unanswered)

    def begin(
        self,
        nursery: trio.Nursery,
        alerts: list[dict[str, Any]],
        unanswered: Collection[str] = (),
    ) -> None:
        """Begins to deliver what is due of *alerts*, which are all that there are now, in tasks of
        *nursery*, one a channel; a channel that is still sending is left out. No alert of the
        agents *unanswered*, which have not answered this process, is gone. Failures are logged,
        and tried again later; none ends the nursery. Cancelled, what is being sent may be sent, and
        after a new start once more."""
        for channel in self._channels:
            state = self._states[channel.name]
            if not state.is_busy:
                state.is_busy = True
                nursery.start_soon(self._deliver_by, channel, alerts, unanswered)

    async def _deliver_by(
        self, channel: AlertChannel, alerts: list[dict[str, Any]], unanswered: Collection[str]
    ) -> None:
        try:
            await self._send_all(channel, alerts, unanswered)
        except Exception as error:
            # One channel's, whatever it is: it must end neither the others nor the console.
            self._note_failure(channel, _delivery_error(channel, error))
        finally:
            self._states[channel.name].is_busy = False

    async def _send_all(
        self, channel: AlertChannel, alerts: list[dict[str, Any]], unanswered: Collection[str]
    ) -> None:
        now_ns = time.time_ns()
        told = self._told.setdefault(channel.name, {})
        by_key = {one["key"]: one for one in alerts}
        raised = [one for one in alerts if _is_due(channel, one, told.get(one["key"]), now_ns)]
        gone = [
            key
            for key, one in told.items()
            if key not in by_key and "gone_ns" not in one and agent_of(key) not in unanswered
        ]
        for key, one in list(told.items()):
            if key not in by_key and one.get("gone_ns", now_ns) < now_ns - BACK_NS:
                del told[key]
        resolved = [told[key]["alert"] for key in gone] if channel.config.resolved else []
        if not raised and not resolved:
            for key in gone:
                told[key]["gone_ns"] = now_ns
            return
        state, now = self._states[channel.name], trio.current_time()
        if now < state.retry_at or not self._limits[channel.name].take("", now):
            return
        await self._send(channel, message_of(raised, resolved))
        for one in raised:
            told[one["key"]] = {"told_ns": now_ns, "alert": _kept(one)}
        for key in gone:
            told[key]["gone_ns"] = now_ns
        with suppress(OSError):  # then a console that starts anew tells them once more
            await self._save()

    def _note_failure(self, channel: AlertChannel, error: DeliveryError) -> None:
        state = self._states[channel.name]
        seconds = min(_RETRY_SECONDS * 2**state.failures, _RETRY_SECONDS_MAX)
        state.failures = min(state.failures + 1, 16)
        state.retry_at, state.error = trio.current_time() + seconds, str(error)
        log.warning("an alert was not delivered: %s; tried again in %g s", error, seconds)

    async def _send(self, channel: AlertChannel, message: dict[str, Any]) -> None:
        state, name = self._states[channel.name], channel.name
        if state.threads.available_tokens < 1:
            raise DeliveryError(f"{name}: {_THREADS_MAX} messages to it still hang")
        try:
            with trio.fail_after(_SEND_SECONDS):
                await trio.to_thread.run_sync(
                    partial(channel.send, message), abandon_on_cancel=True, limiter=state.threads
                )
        except trio.TooSlowError:
            raise DeliveryError(f"{name}: not done within {_SEND_SECONDS:g} s") from None
        except Exception as error:
            raise _delivery_error(channel, error) from None
        state.failures, state.error, state.delivered_ns = 0, None, time.time_ns()

    async def send_test(self, name: str) -> None:
        """Sends a message by the channel *name* to see whether it works. Cancelled, one that
        is being sent may be sent. Raises UsageError, DeliveryError."""
        channel = next((one for one in self._channels if one.name == name), None)
        if channel is None:
            raise UsageError(f"there is no channel {name!r:.80}")
        if not self._limits[name].take("", trio.current_time()):
            raise UsageError(f"{name} is used as often as it may already: wait a while")
        await self._send(channel, message_of([], []))
        self._states[name].retry_at = float("-inf")

    async def _save(self) -> None:
        # Also where it is cancelled: what was sent is not to be sent again.
        with trio.CancelScope(shield=True):
            async with self._saving:  # an older content must not be written after a newer one
                content = json.dumps({"told": self._told}).encode()
                await trio.to_thread.run_sync(
                    write_atomically, "console.told", self._path, content, Outlives.MACHINE
                )


class _SentAlert(NamedTuple):
    told_ns: int
    gone_ns: int
    severity: str
    words: str
    since_ns: int


def _sent_alert(raw: dict[str, Any]) -> dict[str, Any]:
    """Returns *raw*, all that was kept of an alert that was reported. Raises what UNREADABLE_JSON
    has."""
    alert = raw["alert"]
    words = alert["severity"], alert["words"], alert["since_ns"]
    checked(_SentAlert(raw["told_ns"], raw.get("gone_ns", 0), *words))
    return raw


def _delivery_error(channel: AlertChannel, error: Exception) -> DeliveryError:
    if isinstance(error, DeliveryError):
        return error
    # Not its words: there may be a secret in them.
    return DeliveryError(f"{channel.name}: failed with {type(error).__name__}")


def _is_due(
    channel: AlertChannel, alert: dict[str, Any], told: dict[str, Any] | None, now_ns: int
) -> bool:
    config = channel.config
    if config.severity == "bad" and alert["severity"] != "bad":
        return False
    if alert["acknowledged"] is not None or alert["silenced"] is not None:
        return False
    is_bad = alert["severity"] == "bad"
    has_risen = is_bad and told is not None and told["alert"]["severity"] != "bad"
    if told is None or has_risen:
        return now_ns - int(alert["since_ns"]) >= config.after_seconds * _SECOND_NS
    if (gone_ns := told.get("gone_ns")) is not None:
        return now_ns - max(int(gone_ns), int(alert["since_ns"])) >= BACK_NS
    repeat_ns = config.repeat_hours * 3600 * _SECOND_NS
    return bool(repeat_ns) and now_ns - int(told["told_ns"]) >= repeat_ns


def _kept(alert: dict[str, Any]) -> dict[str, Any]:
    """Returns what is sent of *alert* once it is gone."""
    keys = ("key", "agent", "volume", "words", "advice", "severity", "since_ns")
    found = {key: alert.get(key) for key in keys}
    for key in ("words", "advice"):
        found[key] = str(found[key] or "")[:_KEPT_CHARS_MAX]
    return found
