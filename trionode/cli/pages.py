"""The pages of `trionode serve --metrics`: metrics, and whether it is ready and alive."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from .exits import ExitStatus, Trouble, listening_by
from .given import place_to_listen

if TYPE_CHECKING:
    from collections.abc import Sequence

    import trio

    from trionode import Node, ServerMonitor
    from trionode.health import Health


def place_of_pages(text: str | None, *, hint: str = "--metrics") -> tuple[str, int] | None:
    """Where they are to be served, if they are.

    Args:
        text: HOST:PORT; `*` for all interfaces.
        hint: where that was given.

    Raises:
        click.BadParameter: it is not.
        Trouble: the extra is missing.
    """
    if text is None:
        return None
    host, port = place_to_listen(text, hint=hint)
    try:
        import trionode.metrics  # noqa: F401 -- whether it is there
    except ModuleNotFoundError as exc:
        raise Trouble(str(exc), ExitStatus.USAGE) from None
    return "" if host == "*" else host, port


async def serve_pages(
    place: tuple[str, int], what: Sequence[Node | ServerMonitor], health: Health, nursery: trio.Nursery
) -> int:
    """Serve them in a nursery; returns the port.

    Args:
        place: host and port.
        what: whose numbers.
        health: says whether it is ready.
        nursery: where they are served.

    Raises:
        Trouble: the port is in use.
    """
    from trionode.metrics import serve_metrics

    host, port = place
    with listening_by("--metrics"):
        bound: int = await nursery.start(partial(serve_metrics, what, port, host=host, health=health))
    return bound
