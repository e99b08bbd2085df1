"""Untrusted msgpack into typed structs: the field types that all messages share, and the one place that decodes."""

from __future__ import annotations

from typing import Annotated, Final, TypeAlias, TypeVar

import msgspec
from msgspec import Meta

from trionode._errors import RemoteProtocolError
from trionode._util.decoding import UndecodableError, decode_untrusted

#: The longest code, characters.
MAX_CODE: Final = 64

Name: TypeAlias = Annotated[str, Meta(min_length=1, max_length=255)]
Code: TypeAlias = Annotated[str, Meta(min_length=1, max_length=MAX_CODE)]
Text: TypeAlias = Annotated[str, Meta(max_length=1000)]
Proof: TypeAlias = Annotated[bytes, Meta(max_length=64)]
U32: TypeAlias = Annotated[int, Meta(ge=0, lt=2**32)]
#: Generations and incarnations; msgpack integers end at 2**64 - 1, which msgspec checks by itself.
U64: TypeAlias = Annotated[int, Meta(ge=0)]

T = TypeVar("T")

#: The longest text for people in a message, encoded, bytes; it has to fit into a hello beside the rest.
MAX_TEXT: Final = 1000

#: A struct as msgpack.
encode: Final = msgspec.msgpack.Encoder().encode

_decoders: Final[dict[type, msgspec.msgpack.Decoder[object]]] = {}


def decode(kind: type[T], data: bytes) -> T:
    """Decode untrusted msgpack into a struct.

    Raises:
        RemoteProtocolError: the bytes are not such a struct.
    """
    decoder = _decoders.get(kind) or _decoders.setdefault(kind, msgspec.msgpack.Decoder(kind))
    try:
        return decode_untrusted(decoder, data)  # type: ignore[return-value]  # the table pairs each type with its own
    except UndecodableError as exc:
        msg = f"the peer sent a malformed {kind.__name__} message: {exc}"
        raise RemoteProtocolError(msg) from None


def code(word: str) -> str:
    """A code as it is sent: encodable as UTF-8, and of 1 to 64 characters."""
    return word.encode("utf-8", "backslashreplace").decode()[:MAX_CODE] or "other"


def text(words: str) -> str:
    """Text for people as it is sent: encodable as UTF-8, and cut to 1000 bytes."""
    return words.encode("utf-8", "backslashreplace")[:MAX_TEXT].decode("utf-8", "ignore")
