"""Details of errors on the wire: a plain msgpack value, within RESET."""

from __future__ import annotations

from typing import Final

import msgspec

from trionode._errors import RemoteProtocolError
from trionode._util.decoding import UndecodableError, decode_untrusted
from trionode._util.details import as_details

from .codec import encode

_decoder: Final = msgspec.msgpack.Decoder()


def encode_details(details: object) -> bytes:
    """Details as they travel.

    Args:
        details: what `as_details` gave.
    """
    return encode(details)


def decode_details(field: msgspec.Raw) -> object:
    """Untrusted details; None for none.

    Args:
        field: what a message has in their place, no larger than this side takes.

    Raises:
        RemoteProtocolError: they are no plain value, nested too deep, or too many.
    """
    if not field:
        return None
    try:
        return as_details(decode_untrusted(_decoder, bytes(field)))
    except (UndecodableError, TypeError, ValueError) as exc:
        msg = f"the peer sent malformed details of an error: {exc}"
        raise RemoteProtocolError(msg) from None
