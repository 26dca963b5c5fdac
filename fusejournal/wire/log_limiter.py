"""Logs what strangers and peers do wrong, in few lines, however often they do it.

Used from the event loop's thread, by the listener and all shippers of a node."""

import logging
from dataclasses import dataclass
from ipaddress import IPv6Address, ip_address, ip_network
from typing import Final

import trio

log = logging.getLogger(__name__)

WINDOW_SECONDS: Final = 10.0
_WINDOW_SECONDS_MAX: Final = 3600.0
_QUIET_SECONDS: Final = 60.0
"""Longer than a refused peer waits before it comes back."""
_NETWORKS_MAX: Final = 1024
_OTHERS: Final = "connections from other addresses"
_BUGS: Final = "connections that failed on a bug"


@dataclass
class _Held:
    heard_at: float
    ends_at: float
    window_seconds: float = WINDOW_SECONDS
    count: int = 0
    last: str = ""


class LogLimiter:
    """Logs the first fault of a source at once; those that follow are counted, and become one line
    at the end of a window. A source is a network, or a peer. Windows grow up to an hour, until the
    source has been quiet for a minute. The memory is bounded: a /64 of IPv6 is one source, and so
    are all networks past the first thousand. All methods but :meth:`run` return at once."""

    def __init__(self) -> None:
        self._held: dict[str, _Held] = {}

    def stranger(self, host: str, where: str, reason: str) -> None:
        """Logs that the connection from *where*, at the IP address *host*, failed for *reason*."""
        whose = f"connections from {network_of(host)}"
        if whose not in self._held and len(self._held) >= _NETWORKS_MAX:
            whose = _OTHERS
        if self._is_first(whose, reason):
            log.warning("connection from %s: %s", where, reason)

    def peer(self, name: str, reason: str) -> None:
        """Logs that the connection with peer *name* failed for *reason*."""
        if self._is_first(f"peer {name}", reason):
            log.warning("peer %s: %s", name, reason)

    def note(self, name: str, words: str) -> None:
        """Logs *words*, which the peer *name* reported of itself and may report otherwise at any
        time. They are a source of their own, so that no fault of the peer keeps the first one
        back."""
        if self._is_first(f"notes of peer {name}", words):
            log.warning("peer %s: %s", name, words)

    def bug(self, who: str, error: Exception) -> None:
        """Logs *error*, a fault of this program, which ended a connection with *who*."""
        if self._is_first(_BUGS, f"{who}: {type(error).__name__}"):
            log.error("the connection with %s failed on a bug", who, exc_info=error)

    def _is_first(self, whose: str, reason: str) -> bool:
        now = trio.current_time()
        held = self._held.get(whose)
        if held is None:
            self._held[whose] = _Held(heard_at=now, ends_at=now)
            return True
        held.heard_at = now
        held.count += 1
        held.last = reason
        return False

    async def run(self) -> None:
        """Logs at the end of each window how many lines were held back. Runs until cancelled, and
        then drops those of windows that have not ended."""
        while True:
            await trio.sleep(WINDOW_SECONDS)
            self._flush(trio.current_time())

    def _flush(self, now: float) -> None:
        for whose, one in list(self._held.items()):
            is_quiet = now - one.heard_at >= _QUIET_SECONDS
            if one.count and (is_quiet or now >= one.ends_at):
                log.warning("%s: %d more, the last: %s", whose, one.count, one.last)
                one.count = 0
                one.ends_at = now + one.window_seconds
                one.window_seconds = min(one.window_seconds * 2, _WINDOW_SECONDS_MAX)
            if is_quiet:
                del self._held[whose]


def network_of(host: str) -> str:
    """Returns the network that counts as one source: the address of IPv4, the /64 of IPv6."""
    try:
        ip = ip_address(host)
    except ValueError:
        return host
    if isinstance(ip, IPv6Address) and not ip.is_loopback:
        return str(ip_network((int(ip), 64), strict=False))
    return str(ip)
