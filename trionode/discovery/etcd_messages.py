"""What etcd v3 says and is asked, as its JSON gateway writes it: bytes in base64, 64-bit numbers as strings.

Only the fields that are used are here; others are ignored, and absent ones are zero, as in Protocol Buffers.
"""

from __future__ import annotations

from enum import IntEnum
from typing import Final, Literal, TypeVar, final

import msgspec

from trionode._node.resolvers import ResolverError
from trionode._util.decoding import UndecodableError, decode_untrusted
from trionode._util.text import printable

T = TypeVar("T")


class Header(msgspec.Struct, frozen=True):
    """Of every reply: the revision of the store."""

    revision: int = 0


class KeyValue(msgspec.Struct, frozen=True):
    """A key, its value, and the revision that put it."""

    key: bytes
    value: bytes = b""
    mod_revision: int = 0


class RangeReply(msgspec.Struct, frozen=True):
    """Keys."""

    header: Header
    kvs: list[KeyValue] = []


class Event(msgspec.Struct, frozen=True):
    """A key was put or deleted."""

    kv: KeyValue
    type: Literal["PUT", "DELETE"] = "PUT"


class WatchReply(msgspec.Struct, frozen=True):
    """What a watch says."""

    header: Header
    events: list[Event] = []
    canceled: bool = False
    compact_revision: int = 0


class Failure(msgspec.Struct, frozen=True):
    """An error in the gateway's words; in a stream it is spelt otherwise."""

    code: int = 0
    message: str = ""
    grpc_code: int = 0


class WatchLine(msgspec.Struct, frozen=True):
    """A line of a watch's stream."""

    result: WatchReply | None = None
    error: Failure | None = None


class GrantReply(msgspec.Struct, frozen=True, rename={"id": "ID"}):
    """A new lease."""

    id: int


class Renewal(msgspec.Struct, frozen=True, rename={"ttl": "TTL"}):
    """A lease: the seconds that it has left."""

    ttl: int = 0


class KeepAliveReply(msgspec.Struct, frozen=True):
    """A line of a stream of renewals."""

    result: Renewal


class Token(msgspec.Struct, frozen=True):
    """What a password was good for."""

    token: str


class Nothing(msgspec.Struct, frozen=True):
    """A reply that says no more than that it was done."""


class Code(IntEnum):
    """Status codes of gRPC."""

    DEADLINE_EXCEEDED = 4
    NOT_FOUND = 5
    RESOURCE_EXHAUSTED = 8
    ABORTED = 10
    INTERNAL = 13
    UNAVAILABLE = 14
    UNAUTHENTICATED = 16


#: What another member, or the same one later, may do.
_TEMPORARY: Final = (Code.DEADLINE_EXCEEDED, Code.ABORTED, Code.INTERNAL, Code.UNAVAILABLE)
#: What etcd says of a token that it does not know (any more); by its version with one code or another.
_TOKEN: Final = "invalid auth token"  # noqa: S105 -- words of an error


#: What etcd's gateway insists on, so that a name is not taken for the user.
_NO_COMMON_NAME: Final = "; with passwords on, it takes client certificates without a Common Name, or none at all"


@final
class EtcdError(Exception):
    """Etcd refused a request.

    Attributes:
        temporary: whether it may do it later, or another of its members now.
        token: whether it does not know our token.
        missing: whether there is no such thing.
    """

    def __init__(self, failure: Failure) -> None:
        hint = _NO_COMMON_NAME if "CommonName" in failure.message else ""
        super().__init__(f"etcd refused: {printable(failure.message.strip(), 200)}{hint}")
        code = failure.code or failure.grpc_code
        self.temporary: bool = code in _TEMPORARY or code == Code.RESOURCE_EXHAUSTED
        self.token: bool = code == Code.UNAUTHENTICATED or _TOKEN in failure.message
        self.missing: bool = code == Code.NOT_FOUND


def request(**fields: object) -> bytes:
    """A message to etcd: bytes become base64, and what is None is left out."""
    return msgspec.json.encode({name: value for name, value in fields.items() if value is not None})


def reply(decoder: msgspec.json.Decoder[T], data: bytes) -> T:
    """A message of etcd.

    Raises:
        ResolverError: it is none.
    """
    try:
        return decode_untrusted(decoder, data)
    except UndecodableError as exc:
        msg = f"etcd answers what is not understood: {exc}"
        raise ResolverError(msg, temporary=True) from exc
