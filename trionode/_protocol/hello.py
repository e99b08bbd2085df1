"""The hello: three messages right after TLS, in which two nodes say who they are and whether they accept each other."""

from __future__ import annotations

import struct
from typing import Annotated, Final, TypeVar

import msgspec
from msgspec import Meta

from trionode._errors import RemoteProtocolError

from .codec import U32, U64, Code, Name, Proof, Text, decode, encode

T = TypeVar("T")

ALPN: Final = "trionode/1"
VERSIONS: Final = (1,)

#: A hello holds names and numbers: 4 KiB is several times the largest honest one. It is read before the peer is
#: authenticated.
MAX_HELLO: Final = 4096

_LENGTH: Final = struct.Struct(">H")


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """What one side accepts from the other."""

    max_message_size: U32
    window: Annotated[int, Meta(ge=4096, lt=2**31)]
    max_channels: U32
    max_metadata_size: U32 = 0


class Refusal(msgspec.Struct, frozen=True, kw_only=True):
    """Why a hello was refused."""

    code: Code
    message: Text = ""


class Join(msgspec.Struct, frozen=True, kw_only=True):
    """In a first message: which connection the new link is for, and the proof that it is the same two nodes."""

    connection: Annotated[bytes, Meta(min_length=16, max_length=16)]
    attempt: U64
    proof: Proof


class Hello(msgspec.Struct, frozen=True, kw_only=True):
    """The first message: what the dialer says of itself."""

    versions: Annotated[list[U32], Meta(min_length=1, max_length=32)]
    name: Name
    incarnation: U64
    generation: U64
    limits: Limits
    verified: bool = False
    replace: bool = False
    proof: Proof = b""
    join: Join | None = None


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """The second message: what the acceptor says of itself, or its refusal; with one the rest means nothing."""

    refusal: Refusal | None = None
    version: U32 = 0
    name: Name = "-"
    incarnation: U64 = 0
    generation: U64 = 0
    limits: Limits = Limits(max_message_size=0, window=4096, max_channels=0)
    verified: bool = False
    proof: Proof = b""
    join: Proof = b""


class Confirmation(msgspec.Struct, frozen=True, kw_only=True):
    """The third message: the dialer accepts, or refuses."""

    refusal: Refusal | None = None


def encode_hello(message: Hello | Answer | Confirmation) -> bytes:
    """A hello message, its length first."""
    body = encode(message)
    return _LENGTH.pack(len(body)) + body


class HelloReader:
    """Collects one hello message after another from a stream of bytes; never holds more than what was fed."""

    def __init__(self) -> None:
        self._buffer = b""

    def feed(self, data: bytes) -> None:
        """Take bytes from the stream."""
        self._buffer += data

    def next(self, kind: type[T]) -> T | None:
        """The next message, or None while it is incomplete.

        Raises:
            RemoteProtocolError: it is too long or malformed.
        """
        if len(self._buffer) < _LENGTH.size:
            return None
        (length,) = _LENGTH.unpack_from(self._buffer)
        if length > MAX_HELLO:
            msg = f"the peer announced a hello message of {length} bytes; at most {MAX_HELLO} are allowed"
            raise RemoteProtocolError(msg)
        end = _LENGTH.size + length
        if len(self._buffer) < end:
            return None
        body, self._buffer = self._buffer[_LENGTH.size : end], self._buffer[end:]
        return decode(kind, body)

    def rest(self) -> bytes:
        """The bytes behind the last message: the first frames."""
        rest, self._buffer = self._buffer, b""
        return rest
