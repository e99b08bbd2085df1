"""Metadata on the wire: a msgpack map of text to text or bytes, within OPEN."""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING, Annotated, Final

import msgspec
from msgspec import Meta, Raw

from trionode._errors import RemoteProtocolError
from trionode._util.decoding import UndecodableError, decode_untrusted
from trionode._util.metadata import MAX_ENTRIES, MAX_KEY, NO_METADATA

from .codec import encode

if TYPE_CHECKING:
    from trionode._util.metadata import Metadata

#: What a side may say that it takes, at most, bytes: there is room beside it for the rest of a frame.
MAX_METADATA: Final = 60 * 1024
#: The field of a message that has none; false, as no other is.
ABSENT: Final = Raw()

# Values are decoded one by one: msgspec has no unions of text and bytes, and whatever else a peer nests is not built.
_decoder: Final = msgspec.msgpack.Decoder(dict[Annotated[str, Meta(min_length=1, max_length=MAX_KEY)], Raw])
_text: Final = msgspec.msgpack.Decoder(str)
_bytes: Final = msgspec.msgpack.Decoder(bytes)


def encode_metadata(metadata: Metadata) -> bytes:
    """Metadata as it travels.

    Args:
        metadata: what `as_metadata` gave.
    """
    return encode(dict(metadata))


def decode_metadata(field: Raw, limit: int) -> Metadata:
    """Untrusted metadata, read-only; empty for none.

    Args:
        field: what a message has in its place.
        limit: bytes that this side takes, as its hello said.

    Raises:
        RemoteProtocolError: it is larger, no such map, or has too many entries or one key twice.
    """
    if not field:
        return NO_METADATA
    data = bytes(field)
    if len(data) > limit:
        msg = f"the peer sent {len(data)} bytes of metadata; at most {limit} are allowed"
        raise RemoteProtocolError(msg)
    count = _entries(data)
    if count > MAX_ENTRIES:
        msg = f"the peer sent {count} entries of metadata; at most {MAX_ENTRIES} are allowed"
        raise RemoteProtocolError(msg)
    try:
        metadata = {key: _value(bytes(value)) for key, value in decode_untrusted(_decoder, data).items()}
    except UndecodableError as exc:
        msg = f"the peer sent malformed metadata: {exc}"
        raise RemoteProtocolError(msg) from None
    if len(metadata) < count:
        msg = "the peer sent malformed metadata: a key occurs twice"
        raise RemoteProtocolError(msg)
    return MappingProxyType(metadata)


def _value(data: bytes) -> str | bytes:
    return decode_untrusted(_bytes, data) if data[0] in (0xC4, 0xC5, 0xC6) else decode_untrusted(_text, data)


def _entries(data: bytes) -> int:
    """How many a msgpack map says that it has; 0 of what is none, which the decoder refuses."""
    kind = data[0]
    if kind >> 4 == 0x8:
        return kind & 0xF
    return int.from_bytes(data[1 : {0xDE: 3, 0xDF: 5}.get(kind, 1)], "big")
