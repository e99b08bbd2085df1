"""Facts: what a log record is about, as attributes of the record, for programs that read logs.

Theory. A message is for people; whoever writes it gives what it is about beside it, by name, as the objects that are at
hand: `_log.info("connection up: %s", connection, connection=connection)`. An object may tell more facts than its own,
which the table here says: a connection tells its peer, and a peer its address. What was given by name stands; what is
told fills the gaps. Nothing is read off the objects unless the record is made, and then all values are plain: `str` and
`int` (`bool` is one), text escaped and bounded as in messages, so that every formatter can show them.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, TypeAlias, final

from .text import printable, said, shown

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

#: What every value is in the end.
Plain: TypeAlias = str | int


def _plain(given: object) -> Plain:
    """A flag or a number as it is, an address as `host:port`, anything else in its own words."""
    match given:
        case bool() | int():
            return given
        case (str() as host, int() as port):
            return printable(f"[{host}]:{port}" if ":" in host else f"{host}:{port}")
        case _:
            return said(given)


def _name_of_peer(given: object) -> Plain:
    """Of a peer, or a name."""
    return _plain(getattr(given, "name", given) if hasattr(given, "verified") else given)


def _id_of_connection(given: object) -> Plain:
    return _plain(getattr(given, "id", given))


def _number_of_channel(given: object) -> Plain:
    return _plain(getattr(given, "number", given))


def _class_of_error(given: object) -> Plain:
    return type(given).__name__


@final
@dataclass(frozen=True, slots=True)
class Fact:
    """One fact that a record may have.

    Attributes:
        meaning: what it says, as the manual has it.
        read: makes it of what was given.
        tells: what else an object says that may be given for it: facts, and the attributes that they are read off.
    """

    meaning: str
    read: Callable[[object], Plain] = _plain
    tells: Mapping[str, str] = field(default_factory=dict)


#: Every fact that there is, by name. None is an attribute that records of `logging` have anyway.
FACTS: Final[Mapping[str, Fact]] = {
    "node": Fact("the node that reports"),
    "connection": Fact(
        "the connection, by an identifier that both sides have for it and that hand-overs do not change",
        _id_of_connection,
        {"node": "node", "peer": "peer", "generation": "generation"},
    ),
    "channel": Fact(
        "the channel, by its number on the connection",
        _number_of_channel,
        {"connection": "connection", "peer": "peer", "service": "service"},
    ),
    "service": Fact("the service's name"),
    "peer": Fact(
        "the other end's node name; a claim unless `verified`",
        _name_of_peer,
        {"verified": "verified", "address": "address"},
    ),
    "verified": Fact("whether the peer's name was established (a flag)"),
    "address": Fact("the other end, as `host:port`"),
    "acceptor": Fact("where an acceptor or a server listens, in words: `127.0.0.1 port 15000`"),
    "side": Fact("`accept` or `dial`: which side of the connection we are"),
    "error": Fact(
        "the exception's class",
        _class_of_error,
        {
            "reason": "reason",
            "stage": "stage",
            "code": "raw_code",
            "address": "address",
            "generation": "generation",
        },
    ),
    "reason": Fact("why, in one word of the tables of [Errors](errors.md) and of this page"),
    "cause": Fact("why a connection was to be handed over: `rotated`, `expiring`, `worn`, `asked` or `by_hand`"),
    "stage": Fact("how far a handshake had come: `resolve`, `connect`, `tls` or `hello`"),
    "code": Fact("the code that a service refused with; of a finding about a certificate, its code"),
    "generation": Fact("of the contexts that a link took; or that a manager publishes (a number)"),
    "certificate": Fact("SHA-256 of a certificate of ours, lower-case hex"),
    "issuer": Fact("whose revocation list it is (RFC 4514)"),
    "left": Fact("time until a certificate or a revocation list ends; 0 when it has (seconds)"),
    "option": Fact("the option that loosens"),
    "source": Fact("the source of credentials, the resolver or the directory, by its `repr`", shown),
    "serial": Fact("the serial number of a certificate that was issued, hex"),
    "status": Fact("the HTTP status of an answer (a number)"),
    "signal": Fact("the signal (a number)"),
    "left_out": Fact("how many records like those before were left out (a number)"),
}


def read_facts(given: Mapping[str, object]) -> dict[str, Plain]:
    """The facts of one record: those given, and what their objects tell besides.

    Args:
        given: by name; None says that there is none.
    """
    found = {name: value for name, value in given.items() if value is not None}
    for name, value in list(found.items()):
        for told, attribute in _told(name, value):
            found.setdefault(told, attribute)
    return {name: FACTS[name].read(value) for name, value in found.items()}


def _told(name: str, value: object) -> Iterator[tuple[str, object]]:
    for fact, attribute in FACTS[name].tells.items():
        told = getattr(value, attribute, None)
        if told is not None:
            yield fact, told
            yield from _told(fact, told)
