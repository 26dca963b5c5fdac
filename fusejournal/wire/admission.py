"""Admission of strangers: connections that no peer is known to be behind yet. Strangers decide how
many they are, but neither what that costs nor who else is kept out.

A network (log_limiter.py: an address of IPv4, a /64 of IPv6) is *trusted* once a peer has proved
itself from there. A peer that shows a pass (passes.py) is a network of its own. Strangers that are
too many are cut off, those of trusted networks last. Every handshake takes a token of its network's
bucket and, unless the network is trusted, one of the bucket that all the others share. A token that
is not there yet is waited for, if not for long.

Pure: times are given in, in seconds by any clock."""

import random
from collections import Counter, OrderedDict
from typing import Final, TypeVar

_TOTAL_PER_SECOND: Final = 20.0
_TOTAL_BURST: Final = 60
_NETWORK_PER_SECOND: Final = 5.0
_NETWORK_BURST: Final = 20
_DELAY_SECONDS_MAX: Final = 5.0
"""Less than a stranger has."""
_NETWORKS_MAX: Final = 1024
_TRUSTED_MAX: Final = 256
_OTHERS: Final = "others"

Occupied = TypeVar("Occupied")


class Bucket:
    """Tokens that come at a steady pace, of which at most *burst* are there at once."""

    def __init__(self, per_second: float, burst: int) -> None:
        self._interval = 1.0 / per_second
        self._ahead = (burst - 1) * self._interval
        self._next = float("-inf")
        """The time at which the next token would come, were there none to spare."""

    def delay(self, now: float) -> float:
        """Returns how long the next token is to be waited for."""
        return max(0.0, self._next - now)

    def take(self, now: float) -> None:
        """Takes the next token."""
        self._next = max(self._next, now - self._ahead) + self._interval

    def is_full(self, now: float) -> bool:
        """Returns True if the bucket is as good as new."""
        return self._next <= now - self._ahead


class Admission:
    """Decides which connections get a handshake, and which lose their place."""

    def __init__(self) -> None:
        self._total = Bucket(_TOTAL_PER_SECOND, _TOTAL_BURST)
        self._networks: dict[str, Bucket] = {}
        self._trusted: OrderedDict[str, None] = OrderedDict()

    def trust(self, network: str) -> None:
        """Notes that a peer has proved itself from *network*."""
        self._trusted[network] = None
        self._trusted.move_to_end(network)
        if len(self._trusted) > _TRUSTED_MAX:
            self._trusted.popitem(last=False)

    def take(self, network: str, now: float) -> float | None:
        """Takes a token for a handshake with *network*. Returns how many seconds to wait before the
        handshake; None, with no token taken, where there are too many already."""
        buckets = [self._bucket(network, now)]
        if network not in self._trusted:
            buckets.append(self._total)
        delay = max(bucket.delay(now) for bucket in buckets)
        if delay > _DELAY_SECONDS_MAX:
            return None
        for bucket in buckets:
            bucket.take(now)
        return delay

    def _bucket(self, network: str, now: float) -> Bucket:
        if network not in self._networks and len(self._networks) >= _NETWORKS_MAX:
            full = [name for name, bucket in self._networks.items() if bucket.is_full(now)]
            for name in full:
                del self._networks[name]
            if not full and network not in self._trusted:
                network = _OTHERS
        return self._networks.setdefault(network, Bucket(_NETWORK_PER_SECOND, _NETWORK_BURST))

    def choose(self, places: dict[Occupied, str]) -> Occupied:
        """Chooses the connection that makes room. *places* has the network of each, oldest first.

        It is the oldest one of the network that has most, so that no network takes the places of
        others; where each has one, any, because a slow one would always be the oldest."""
        strange = {place: one for place, one in places.items() if one not in self._trusted}
        candidates = strange or places
        ((network, count),) = Counter(candidates.values()).most_common(1)
        if count == 1:
            return random.choice(list(candidates))
        return next(place for place, other in candidates.items() if other == network)
