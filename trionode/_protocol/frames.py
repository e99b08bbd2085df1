"""Frames: what the two sides of a connection send each other after the hello."""

from __future__ import annotations

import struct
from typing import Annotated, Final

import msgspec
from msgspec import Meta, Raw

from trionode._errors import RemoteProtocolError

from .codec import U32, Code, Name, Text, encode
from .metadata import ABSENT

#: The largest fragment, bytes: a message of 64 KiB is one frame, and the frames of other channels need not wait long.
MAX_FRAGMENT: Final = 64 * 1024
MAX_PAYLOAD: Final = MAX_FRAGMENT + 4

#: What a message costs beyond its bytes: about the memory of an empty one that waits to be received.
MESSAGE_OVERHEAD: Final = 64

OPEN: Final = 0x01
MESSAGE: Final = 0x02
FIRST: Final = 0x03
MORE: Final = 0x04
DISCARD: Final = 0x05
EOF: Final = 0x06
CLOSE: Final = 0x07
RESET: Final = 0x08
CREDIT: Final = 0x09
GOODBYE: Final = 0x0A
PING: Final = 0x0B
PONG: Final = 0x0C
DRAIN: Final = 0x0D
RETURN: Final = 0x0E
SWITCH: Final = 0x0F
RENEW: Final = 0x10

_FIRST_OPTIONAL_KIND: Final = 0x80
#: Pieces of a frame that are smaller are put together as they come. Bytes.
_SMALL: Final = 4096
_KINDS: Final = frozenset(range(OPEN, RENEW + 1))

#: The highest channel number: once it is used, the connection opens no more.
LAST_CHANNEL: Final = 2**32 - 1

_HEADER: Final = struct.Struct(">II")
_U32: Final = struct.Struct(">I")


class Open(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Payload of OPEN."""

    service: Name
    timeout: Annotated[float, Meta(ge=0)] | None = None
    call: bool = False
    metadata: Raw = ABSENT


class End(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Payload of RESET."""

    code: Code
    message: Text = ""
    not_run: bool = False
    application: bool = False
    details: Raw = ABSENT
    metadata: Raw = ABSENT


class Goodbye(msgspec.Struct, frozen=True, kw_only=True):
    """Payload of GOODBYE."""

    code: Code
    message: Text = ""
    last: U32 | msgspec.UnsetType = msgspec.UNSET


def header(kind: int, channel: int, length: int) -> bytes:
    """A frame's header."""
    return _HEADER.pack(kind << 24 | length, channel)


def control(kind: int, channel: int, payload: Open | End | Goodbye | None = None) -> bytes:
    """A whole frame with a msgpack payload, or none."""
    body = b"" if payload is None else encode(payload)
    return _HEADER.pack(kind << 24 | len(body), channel) + body


def first(channel: int, total: int, length: int) -> bytes:
    """The header of a FIRST frame whose fragment has `length` bytes, of a message of `total`."""
    return _HEADER.pack(FIRST << 24 | length + 4, channel) + _U32.pack(total)


def credit(channel: int, amount: int, kind: int = CREDIT) -> bytes:
    """A whole CREDIT frame, or RETURN."""
    return _HEADER.pack(kind << 24 | 4, channel) + _U32.pack(amount)


def unpack_u32(payload: bytes) -> int:
    """The u32 at the start of a CREDIT or FIRST payload.

    Raises:
        RemoteProtocolError: it is too short.
    """
    if len(payload) < _U32.size:
        msg = "the peer sent a frame whose payload is too short"
        raise RemoteProtocolError(msg)
    (value,) = _U32.unpack_from(payload)
    return int(value)


class FrameDecoder:
    """Splits a stream of bytes into frames; holds at most one incomplete frame (64 KiB), in however many pieces.

    A large one may keep the whole read that it began in (160 KiB), which spares a copy.
    """

    __slots__ = ("_channel", "_have", "_kind", "_length", "_parts", "_short")

    def __init__(self) -> None:
        # An incomplete header.
        self._short = b""
        # Of a frame whose header is known, the payload so far: joined once, when it is complete, so that a peer that
        # drips bytes costs linear time, and a payload is copied once.
        # Small pieces are put together as they come: each by itself would take 20 times its size.
        self._parts: list[bytes | bytearray | memoryview] = []
        self._have = 0
        self._kind = 0
        self._channel = 0
        self._length = -1

    @property
    def incomplete(self) -> bool:
        """Whether it holds a part of a frame."""
        return bool(self._short) or self._length >= 0

    def feed(self, data: bytes) -> list[tuple[int, int, bytes]]:
        """Take bytes from the stream, and return the frames that are complete now, as (kind, channel, payload).

        Raises:
            RemoteProtocolError: a frame is of an unknown kind or too long.
        """
        frames: list[tuple[int, int, bytes]] = []
        offset, end = 0, len(data)
        if self._length >= 0:
            missing = self._length - self._have
            if end < missing:
                if end >= _SMALL:
                    self._parts.append(data)
                elif isinstance(self._parts[-1], bytearray):
                    self._parts[-1] += data
                else:
                    self._parts.append(bytearray(data))
                self._have += end
                return frames
            self._parts.append(memoryview(data)[:missing])
            if self._kind < _FIRST_OPTIONAL_KIND:
                frames.append((self._kind, self._channel, b"".join(self._parts)))
            self._parts = []
            self._length = -1
            offset = missing
        elif self._short:
            data = self._short + data
            self._short = b""
            end = len(data)
        unpack = _HEADER.unpack_from
        while end - offset >= 8:
            word, channel = unpack(data, offset)
            kind, length = word >> 24, word & 0xFFFFFF
            if length > MAX_PAYLOAD:
                msg = f"the peer announced a frame of {length} bytes; at most {MAX_PAYLOAD} are allowed"
                raise RemoteProtocolError(msg)
            offset += 8
            if kind not in _KINDS and kind < _FIRST_OPTIONAL_KIND:
                msg = f"the peer sent a frame of unknown kind {kind:#04x}"
                raise RemoteProtocolError(msg)
            stop = offset + length
            if stop > end:
                self._kind, self._channel, self._length = kind, channel, length
                self._parts = [memoryview(data)[offset:] if end - offset >= _SMALL else bytearray(data[offset:])]
                self._have = end - offset
                return frames
            if kind < _FIRST_OPTIONAL_KIND:
                frames.append((kind, channel, data[offset:stop]))
            offset = stop
        self._short = data[offset:]
        return frames
