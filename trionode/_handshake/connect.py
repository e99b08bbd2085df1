"""Connecting: resolve a host and open the transport's connection, within a deadline.

Over TCP, connecting resolves without blocking and tries addresses the happy-eyeballs way (RFC 8305, Trio's
`open_tcp_stream`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import trio

from trionode._errors import HandshakeReason, Stage
from trionode._tls.failures import HandshakeErrors
from trionode._transport.tcp import TCP

if TYPE_CHECKING:
    from trionode._transport.interfaces import Transport


async def connect(
    host: str, port: int, *, connect_timeout: float, transport: Transport | None = None
) -> trio.abc.Stream:
    """Resolve and connect.

    Args:
        host: a DNS name or an address, brackets or not.
        port: where the node listens there.
        connect_timeout: for resolving and connecting together, seconds.
        transport: what carries the bytes; None for TCP.

    Raises:
        HandshakeTimeoutError: it took longer.
        HandshakeError: stage `connect`; `__cause__` is the `OSError`.
    """
    errors = HandshakeErrors(address=(host, port), stage=Stage.CONNECT)
    with trio.move_on_after(connect_timeout):
        try:
            return await (TCP if transport is None else transport).connect(host, port)
        except OSError as exc:
            text = (
                f"cannot connect to {host} port {port}: {_explain(exc)}. Is the node running there, and the way to it "
                "open?"
            )
            raise errors.failed(HandshakeReason.UNREACHABLE, text, exc) from exc
    raise errors.timed_out(
        f"cannot connect to {host} port {port} within connect_timeout ({connect_timeout:g} s): no answer; a firewall "
        "may drop the packets"
    )


def _explain(exc: OSError) -> str:
    """The system's own words: `open_tcp_stream` hides them in its cause, one error per address."""
    cause = exc.__cause__
    if isinstance(cause, BaseExceptionGroup):
        return "; ".join(dict.fromkeys(str(inner) for inner in cause.exceptions))
    return str(cause or exc)
