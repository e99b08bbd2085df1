"""What callers give, checked before anything is opened."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence


def check_port(port: int, *, lowest: int) -> None:
    """Refuse a number that can be no port.

    Raises:
        ValueError: it cannot.
    """
    if not lowest <= port <= 65535:  # the system would take the rest of a division, and connect elsewhere
        msg = f"a port is from {lowest} to 65535, not {port}"
        raise ValueError(msg)


def protocols(alpn: Sequence[str]) -> tuple[str, ...]:
    """Protocols as they can go on the wire (RFC 7301 section 3.1), checked before a handshake has to fail of them.

    Raises:
        TypeError: it is one protocol, and no sequence of them.
        ValueError: one is empty, too long or not ASCII.
    """
    if isinstance(alpn, str):
        msg = f"alpn is a sequence of protocols, not one: give [{alpn!r}]"
        raise TypeError(msg)
    for protocol in alpn:
        if not protocol.isascii() or not 1 <= len(protocol) <= 255:
            msg = f"an application protocol has 1 to 255 ASCII characters, which {protocol!r} has not"
            raise ValueError(msg)
    return tuple(alpn)
