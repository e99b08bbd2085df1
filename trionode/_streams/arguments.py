"""What callers give, checked before anything is opened: by the rules of option classes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from trionode._identity.names import canonical_host
from trionode._managers.manager import CertManager
from trionode._util.fields import SECONDS, Items, Parsed, Rule, Such, check_argument, integer, rule_of, show

from .monitor import ServerMonitor

if TYPE_CHECKING:
    from collections.abc import Sequence


def _check_protocol(protocol: str) -> None:
    """As it can go on the wire (RFC 7301 section 3.1), before a handshake has to fail of it."""
    if not protocol.isascii() or not 1 <= len(protocol) <= 255:
        msg = f"an application protocol has 1 to 255 ASCII characters, which {show(protocol)} has not"
        raise ValueError(msg)


_HOST: Final = Parsed(canonical_host, "a DNS name or an IP address", keep=True)
_ALPN: Final = Items(Parsed(_check_protocol, "the name of an application protocol", keep=True))
_COUNT: Final = integer(1, 2**20)


#: What belongs in the arguments of streams, clients and servers, by name.
def _is_stream(given: object) -> bool:
    return all(callable(getattr(given, name, None)) for name in ("send_all", "receive_some", "aclose"))


_RULES: Final[dict[str, Rule]] = {
    "cert_manager": rule_of(CertManager),
    "connect_timeout": SECONDS,
    "handshake_timeout": SECONDS,
    "host": _HOST,
    "insecure_skip_verify": rule_of(bool),
    "max_handshakes": _COUNT,
    "max_handshakes_per_address": _COUNT,
    "monitor": rule_of(ServerMonitor | None),
    "reuse_port": rule_of(bool),
    "server_name": _HOST,
    "stream": Such(_is_stream, "a stream (trio.abc.Stream)"),
}


def check_arguments(**given: object) -> None:
    """Hold arguments against the rules of their names.

    Raises:
        TypeError: one is of the wrong kind.
        ValueError: one is a wrong value of the right kind.
    """
    for name, value in given.items():
        check_argument(name, value, _RULES[name])


def check_port(port: int, *, lowest: int) -> None:
    """Refuse what can be no port: the system would take the rest of a division, and connect elsewhere.

    Raises:
        TypeError, ValueError: it cannot.
    """
    check_argument("port", port, integer(lowest, 65535))


def protocols(alpn: Sequence[str]) -> tuple[str, ...]:
    """Application protocols, checked.

    Raises:
        TypeError: it is one protocol, and no sequence of them.
        ValueError: one is empty, too long or not ASCII.
    """
    kept = check_argument("alpn", alpn, _ALPN)
    assert isinstance(kept, tuple)
    return kept
