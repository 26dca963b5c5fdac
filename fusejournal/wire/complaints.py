"""What strangers do wrong, in few lines of the log, however often they do it."""

import logging
from dataclasses import dataclass
from ipaddress import IPv6Address, ip_address, ip_network
from typing import Final

import trio

log = logging.getLogger(__name__)

WINDOW_SECONDS: Final = 10.0
_REMOTES_MAX: Final = 1024
_OTHERS: Final = "other addresses"


@dataclass
class _Held:
    count: int = 0
    last: str = ""


class Complaints:
    """The first complaint about a remote is logged at once, those that follow are counted and
    become one line at the end of each window. What is kept is bounded: a network of IPv6 counts as
    one, and so do all remotes past the first so many. All but :meth:`run` return at once."""

    def __init__(self) -> None:
        self._held: dict[str, _Held] = {}

    def add(self, remote: str, where: str, reason: str) -> None:
        """Complain that *where*, which is at the IP address *remote*, did *reason*."""
        key = _key(remote)
        if key not in self._held and len(self._held) >= _REMOTES_MAX:
            key = _OTHERS
        held = self._held.get(key)
        if held is None:
            self._held[key] = _Held()
            log.warning("connection from %s: %s", where, reason)
        else:
            held.count += 1
            held.last = reason

    async def run(self) -> None:
        """Say at the end of each window what was held back. Runs until cancelled."""
        while True:
            await trio.sleep(WINDOW_SECONDS)
            self.flush()

    def flush(self) -> None:
        """End the window."""
        held, self._held = self._held, {}
        for key, one in held.items():
            if one.count:
                self._held[key] = _Held()  # still at it: nothing at once in the next window either
                log.warning("connections from %s: %d more, the last: %s", key, one.count, one.last)


def _key(remote: str) -> str:
    try:
        ip = ip_address(remote)
    except ValueError:
        return remote
    if isinstance(ip, IPv6Address) and not ip.is_loopback:
        return str(ip_network((int(ip), 64), strict=False))
    return str(ip)
