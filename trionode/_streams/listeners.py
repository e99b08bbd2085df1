"""Where a server's streams come in, of whatever kind."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Final, TypeAlias, cast

import trio

from trionode._transport.interfaces import Listener
from trionode._util.contained import contained
from trionode._util.fields import Items, Rule, check_argument
from trionode._util.log import Log

if TYPE_CHECKING:
    from collections.abc import Sequence

_log: Final = Log("trionode.acceptor")

#: Trio's own listeners, or those of a `Transport`.
AnyListener: TypeAlias = trio.abc.Listener[trio.abc.Stream] | Listener


def shown(listener: AnyListener) -> str:
    """Where a listener listens, for people."""
    if isinstance(listener, trio.SocketListener):
        try:
            name: object = listener.socket.getsockname()
        except OSError:
            return "a closed socket"
        if isinstance(name, tuple):
            return f"{name[0]} port {name[1]}"
        return repr(name)
    address = getattr(listener, "address", None)
    return type(listener).__name__ if address is None else f"{address[0]} port {address[1]}"


def usable_among(listeners: Sequence[AnyListener]) -> list[AnyListener]:
    """Those of what was given that are listeners.

    Raises:
        TypeError: it is no sequence.
    """
    given = check_argument("listeners", listeners, Items(Rule("anything", object)))
    return [each for each in cast("Sequence[AnyListener]", given) if _is_listener(each)]


def _is_listener(given: object) -> bool:
    closes = "aclose" if isinstance(given, trio.abc.Listener) else "close"
    return all(callable(getattr(given, name, None)) for name in ("accept", closes))


async def close_all(listeners: Sequence[AnyListener]) -> None:
    """Close listeners of any kind, cancelled or not; one that fails at it leaves none of the others open."""
    with trio.CancelScope(shield=True):  # a cancellation from outside would come out after the first
        for listener in listeners:
            await contained(partial(_close, listener), _log, "closing a listener")


async def _close(listener: AnyListener) -> None:
    if isinstance(listener, trio.abc.Listener):
        await trio.aclose_forcefully(listener)
    else:
        listener.close()
