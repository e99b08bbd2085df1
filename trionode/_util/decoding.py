"""Bytes from outside into typed values: the value, or one error, whatever the bytes are.

msgspec's own exceptions depend on its version and on the Python that runs it: `ValidationError` for another type,
`DecodeError` or a bare `ValueError` for bad encoding, `RecursionError` for deep nesting, `TypeError` for a map whose
key is a map (before 0.22), `OverflowError` for numbers. Types of an application may raise anything.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, TypeVar

import msgspec

from .text import printable

if TYPE_CHECKING:
    from .text import Buffer

T_co = TypeVar("T_co", covariant=True)
T = TypeVar("T")


class UndecodableError(ValueError):
    """The bytes are no value of the type; the text says why, and is safe to show."""


class Decoder(Protocol[T_co]):
    """`msgspec.json.Decoder`, `msgspec.msgpack.Decoder`."""

    def decode(self, buf: Buffer, /) -> T_co:
        """Decode one value."""


def decode_untrusted(decoder: Decoder[T], data: Buffer) -> T:
    """Decode untrusted bytes; the caller has to bound their size.

    Raises:
        UndecodableError: they are no value of the decoder's type.
    """
    try:
        return decoder.decode(data)
    except msgspec.ValidationError as exc:
        raise UndecodableError(printable(str(exc))) from None
    except Exception as exc:  # noqa: BLE001 -- see the module's theory
        kind = "JSON" if isinstance(decoder, msgspec.json.Decoder) else "msgpack"
        msg = f"not {kind} ({type(exc).__name__})"
        raise UndecodableError(msg) from None
