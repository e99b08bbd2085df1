"""HTTP on cert managers: a transport for httpx and httpx2, a server for ASGI applications; needs the extra `http`.

The client's half needs httpx or httpx2, the server's half hypercorn; each is imported when its first name is asked for
(PEP 562), so that either works where the other's libraries are absent.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Final

from trionode._util.public_names import show_as as _show_as

if TYPE_CHECKING:
    from .caller import Caller as Caller, caller_of as caller_of
    from .client import HTTPTransport as HTTPTransport
    from .lifespan import LifespanError as LifespanError
    from .server import serve_asgi as serve_asgi

__all__ = ["Caller", "HTTPTransport", "LifespanError", "caller_of", "serve_asgi"]

_HOMES: Final = {
    "Caller": "caller",
    "HTTPTransport": "client",
    "LifespanError": "lifespan",
    "caller_of": "caller",
    "serve_asgi": "server",
}


def __getattr__(name: str) -> object:
    home = _HOMES.get(name)
    if home is None:
        msg = f"module {__name__!r} has no attribute {name!r}"
        raise AttributeError(msg)
    value = globals()[name] = getattr(import_module(f".{home}", __name__), name)
    _show_as(__name__, {name: value})
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
