"""Connecting: resolve a host and open the transport's connection, within a deadline.

Over TCP, connecting resolves without blocking and tries addresses the happy-eyeballs way (RFC 8305).
"""

from __future__ import annotations

import errno
import socket
from typing import TYPE_CHECKING, Final

import trio

from trionode._errors import HandshakeReason, Stage
from trionode._tls.failures import HandshakeErrors
from trionode._transport.lookup import LookupExhaustedError, LookupTimeoutError
from trionode._transport.tcp import TCP
from trionode._util.exhausted import exhausted
from trionode._util.turns import turns

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
        HandshakeError: stage `resolve` or `connect`; `__cause__` is the `OSError`.
    """
    handshakes = turns()
    await handshakes.wait_calm()  # no timeout runs while a handshake would only wait for the processor
    handshakes.connecting += 1
    try:
        return await _connect(host, port, connect_timeout, TCP if transport is None else transport)
    finally:
        handshakes.connecting -= 1


async def _connect(host: str, port: int, connect_timeout: float, transport: Transport) -> trio.abc.Stream:
    errors = HandshakeErrors(address=(host, port), stage=Stage.CONNECT)
    with trio.move_on_after(connect_timeout) as scope:
        try:
            return await transport.connect(host, port)
        except LookupTimeoutError as exc:
            if trio.current_effective_deadline() < scope.deadline:
                # The caller's own deadline is about to pass: a cancellation, and no error.
                await trio.sleep_forever()  # noqa: ASYNC120 -- it is what shall take the error's place
            raise errors.at_stage(Stage.RESOLVE).timed_out(
                f"cannot look up {host}: {exc.strerror}, most of connect_timeout ({connect_timeout:g} s). See to the "
                "name servers of this machine, or give an address as the route's host"
            ) from exc
        except socket.gaierror as exc:
            text = (
                f"cannot look up {host}: {exc.strerror or exc}. Check its spelling and the name servers of this "
                "machine, or give an address as the route's host"
            )
            raise errors.at_stage(Stage.RESOLVE).failed(HandshakeReason.UNREACHABLE, text, exc) from exc
        except LookupExhaustedError as exc:
            text = f"cannot look up {host}: {exc.strerror}. {exhausted(exc)}"
            raise errors.at_stage(Stage.RESOLVE).failed(HandshakeReason.EXHAUSTED, text, exc) from exc
        except OSError as exc:
            reason, remedy = _remedy(exc)
            text = f"cannot connect to {host} port {port}: {_explain(exc)}. {remedy}"
            raise errors.failed(reason, text, exc) from exc
    raise errors.timed_out(
        f"cannot connect to {host} port {port} within connect_timeout ({connect_timeout:g} s): no answer; a firewall "
        "may drop the packets"
    )


#: Of a dial, that is our own trouble, too.
_NO_PORT: Final = "No address or port of this machine is left for it (net.ipv4.ip_local_port_range)"
_REMEDIES: Final = {
    errno.ECONNREFUSED: "Nothing listens there. Is the node running there, and is the port right?",
    errno.EHOSTUNREACH: "There is no way to that host: is it up, and the address right?",
    errno.ENETUNREACH: "There is no way to that network from this machine",
    errno.EACCES: "This machine does not allow it: a local firewall or a security policy",
    errno.EPERM: "This machine does not allow it: a local firewall or a security policy",
}


def _remedy(exc: OSError) -> tuple[HandshakeReason, str]:
    """Whose fault it is, and what to do about it."""
    group = exc.__cause__
    errors = group.exceptions if isinstance(group, ExceptionGroup) else (exc,)
    codes = [each.errno for each in errors if isinstance(each, OSError)]
    for each in errors:
        ours = exhausted(each)
        if ours is not None:
            return HandshakeReason.EXHAUSTED, ours
    if errno.EADDRNOTAVAIL in codes:
        return HandshakeReason.EXHAUSTED, _NO_PORT
    first = next(
        (_REMEDIES[code] for code in codes if code in _REMEDIES), "Is the node running there, and the way to it open?"
    )
    return HandshakeReason.UNREACHABLE, first


def _explain(exc: OSError) -> str:
    """The system's own words: in the cause, one error per address, where there were several."""
    cause = exc.__cause__
    if isinstance(cause, BaseExceptionGroup):
        return "; ".join(dict.fromkeys(str(inner) for inner in cause.exceptions))
    return str(cause or exc)
