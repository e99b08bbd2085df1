"""Rate limits: how many requests a key (an address, a name) may make in a while; memory is bounded."""

from __future__ import annotations

import ipaddress
from collections import OrderedDict
from typing import Final, final

#: Keys that are remembered; the one that was quiet for longest is forgotten first.
_KEYS: Final = 10_000
#: The span that limits are counted in. Seconds.
SPAN: Final = 60.0


@final
class RateLimit:
    """A token bucket for each key: `count` at once, and as many again within a minute."""

    def __init__(self, count: int) -> None:
        self._count = count
        self._levels: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def wait(self, key: str, now: float) -> float:
        """Seconds until there is room for another request; 0 if there is.

        Args:
            key: whose.
            now: on any clock that runs forward, seconds.
        """
        return max(0.0, (1 - self._level(key, now)) * SPAN / self._count)

    def take(self, key: str, now: float) -> float:
        """Count a request if there is room for it; else as `wait`."""
        wait = self.wait(key, now)
        if not wait:
            self._levels[key] = self._level(key, now) - 1, now
            self._levels.move_to_end(key)
            if len(self._levels) > _KEYS:
                self._levels.popitem(last=False)
        return wait

    def _level(self, key: str, now: float) -> float:
        level, since = self._levels.get(key, (float(self._count), now))
        return min(float(self._count), level + (now - since) * self._count / SPAN)


def address_key(host: str) -> str:
    """What an address is counted by: an IPv6 host has a whole /64 to call from."""
    try:
        address = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return host
    if isinstance(address, ipaddress.IPv4Address):
        return str(address)
    if address.ipv4_mapped is not None:
        return str(address.ipv4_mapped)
    return str(ipaddress.ip_network((address, 64), strict=False))
