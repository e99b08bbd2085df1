"""TCP connections to hosts: the addresses of a name are tried one after the other, each a little later (RFC 8305)."""

from __future__ import annotations

from itertools import chain, zip_longest
from typing import TYPE_CHECKING, Final

import trio

from trionode._identity.names import host_address
from trionode._util.home import close_in_children

from .lookup import look_up

if TYPE_CHECKING:
    from collections.abc import Sequence

    from .lookup import SocketAddress

#: How long an attempt may take before the next address is tried beside it (RFC 8305 section 5). Seconds.
_ATTEMPT_DELAY: Final = 0.25


async def connect_tcp(host: str, port: int, *, local_address: str | None = None) -> trio.SocketStream:
    """Connect to the first address of a host that answers. The deadline is the caller's; cancelling leaves nothing.

    Args:
        host: a canonical DNS name or address, IPv6 in brackets.
        port: from 1 to 65535.
        local_address: to connect from; None for what the system chooses.

    Raises:
        socket.gaierror: the name does not resolve.
        OSError: no address answers; `__cause__` is an `ExceptionGroup` where there are several.
    """
    address = host_address(host)
    if address is not None:
        family = trio.socket.AF_INET if address.version == 4 else trio.socket.AF_INET6
        return trio.SocketStream(await _connected((family, (str(address), port)), local_address))
    found = await look_up(host, port)
    if len(found) == 1:
        return trio.SocketStream(await _connected(found[0], local_address))
    return trio.SocketStream(await _first_of(_alternating(found), f"{host} port {port}", local_address))


async def _connected(address: SocketAddress, local_address: str | None = None) -> trio.socket.SocketType:
    family, where = address
    sock = trio.socket.socket(family, trio.socket.SOCK_STREAM)
    try:
        close_in_children(sock)
        if local_address is not None:
            await sock.bind((local_address, 0))
        await sock.connect(where)
    except BaseException:
        sock.close()
        raise
    return sock


async def _first_of(
    addresses: Sequence[SocketAddress], where: str, local_address: str | None = None
) -> trio.socket.SocketType:
    winner: trio.socket.SocketType | None = None
    errors: list[OSError] = []

    async def attempt(address: SocketAddress, failed: trio.Event) -> None:
        nonlocal winner
        try:
            sock = await _connected(address, local_address)
        except OSError as exc:
            errors.append(exc)
            failed.set()
            return
        if winner is None:
            winner = sock
            nursery.cancel_scope.cancel()
        else:
            sock.close()

    try:
        async with trio.open_nursery() as nursery:
            for address in addresses:
                failed = trio.Event()
                nursery.start_soon(attempt, address, failed)
                with trio.move_on_after(_ATTEMPT_DELAY):
                    await failed.wait()
    except BaseException:
        if winner is not None:
            winner.close()
        raise
    if winner is not None:
        return winner
    msg = f"all attempts to connect to {where} failed"
    raise OSError(msg) from ExceptionGroup(msg, errors)


def _alternating(addresses: Sequence[SocketAddress]) -> list[SocketAddress]:
    """The first family's addresses and the others' in turn (RFC 8305 section 4)."""
    first = addresses[0][0]
    own = [each for each in addresses if each[0] == first]
    other = [each for each in addresses if each[0] != first]
    return [each for each in chain.from_iterable(zip_longest(own, other)) if each is not None]
