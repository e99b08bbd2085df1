"""The node protocol on the wire, version 1. Sans-IO: bytes in, values out, and back.

This page is the specification; it is meant to suffice for a second implementation. All integers are big-endian.
"MUST" is meant as in RFC 2119; breaking one is a protocol error, which ends the connection.

Underneath
    TLS 1.3 with ALPN `trionode/1`. A client that offers no ALPN is let through TLS and has to speak the hello.

Hello
    Right after TLS, three messages, each a u16 length (at most 4096) and that many bytes of msgpack, a map with string
    keys. Unknown keys are ignored. Names are node names, `name@host`.

    1. Dialer: `versions` (list of protocol versions it speaks), `name` (its own), `incarnation` (u64, drawn at random
       when the node opened), `generation` (of the contexts it took), `limits`, `verified` (whether it verified the
       acceptor's certificate and name in TLS), `replace` (whether it wants this connection although it knows of
       another), `proof` (of the cookie, if it has one; see `_handshake.cookie`), `join` (if this is to be a new link of
       a connection that is there, see Hand-over).
    2. Acceptor: `refusal`, or `version` (the highest that both speak), `name`, `incarnation`, `generation`, `limits`,
       `verified` (whether it verified the dialer's certificate and name), `proof`, `join` (its proof in turn).
    3. Dialer: `refusal`, or nothing.

    `limits` is a map: `max_message_size` (bytes of a message that this side accepts), `window` (credit that each
    channel starts with, towards this side), `max_channels` (that the other side may have open at once).
    `refusal` is a map: `code` and `message`, for people. Who refuses closes.
    The connection exists once the third message has arrived without refusal; the dialer may send frames right
    behind it, the acceptor only after reading it.

Frames
    Then both sides send frames: u32 whose top byte is the kind and whose lower three bytes are the payload's length
    (at most 65 540), u32 channel, payload. Channel 0 is the connection. The dialer opens odd channels, the acceptor
    even ones, each in increasing order, never twice.

    ==== ======== ============================ ======================================================================
    0x01 OPEN     msgpack `service`, `timeout` open a channel to a service; `timeout` is the caller's remaining time
                                               in seconds, null for none
    0x02 MESSAGE  the message                  one whole message, at most 65 536 bytes
    0x03 FIRST    u32 total, then bytes        the first fragment of a message of `total` bytes
    0x04 MORE     bytes                        the next fragment; the message ends when `total` bytes have come
    0x05 DISCARD  none                         the sender gave up the message under way: drop its fragments
    0x06 EOF      none                         half-close: no more messages from this side
    0x07 CLOSE    none                         no more messages from this side, and it reads none; nothing is wrong
    0x08 RESET    msgpack `code`, `message`    the channel is over; a service is cancelled, a caller gets the error
    0x09 CREDIT   u32 bytes                    the receiver of messages grants this much more
    0x0A GOODBYE  msgpack `code`, `message`    on channel 0: the connection is over, nothing follows
    0x0B PING     8 bytes                      on channel 0: answer with the same bytes in a PONG
    0x0C PONG     8 bytes                      on channel 0
    0x0D DRAIN    none                         on channel 0: open no more channels here; those that are open may end
    0x0E RETURN   u32 bytes                    the sender of messages gives back credit that it does not need
    0x0F SWITCH   none                         on channel 0: the last frame on this link, the next is on the new one
    0x10 RENEW    none                         on channel 0, from the acceptor: hand this connection over, please
    ==== ======== ============================ ======================================================================

    Fragments of different channels may interleave; those of one channel are in order, with only CREDIT, RESET and
    CLOSE of that channel between them.

    A channel is over for a side that sent or received CLOSE or RESET. What came before a CLOSE is still delivered.
    Frames for a channel that is over are ignored (they crossed with its end); frames for one that was never opened
    are a protocol error.

    Credit. A message costs its length plus 64 (so that empty ones are not free), debited fragment by fragment, the
    64 with the first. A side MUST NOT send more than it has credit for. The receiver grants as its application
    consumes, and grants a fragmented message its credit to the end. A sender that gave such a message up returns what
    it has beyond the window, from then on. The receiver may grant more than the window where it likes.

Hand-over
    A connection can be moved to a new TLS session between the same two nodes. Only the side that dialled it does so,
    one at a time; the other may ask with RENEW. The dialer opens a second link and says hello on it with `join`, a map:
    `connection` (16 bytes, exported from the connection's first TLS session under the label
    `EXPORTER-trionode-connection`), `attempt` (higher than in any `join` before for this connection), `proof` (see
    `_handshake.join`). Everything that a hello is checked for is checked again; names, incarnations and roles
    MUST be those of the connection, and nothing verified less than before; `limits` stay those of the connection.
    The acceptor's `join` is its own proof. A refusal, or a link that fails up to here, changes nothing.

    The dialer commits by sending SWITCH on the old link and, on the new one, its third message and every frame from
    then on. The acceptor commits when it has that third message: SWITCH on the old link, everything after it on the
    new one. Who receives parses nothing of the new link before it has read SWITCH on the old one, so frames stay in
    order. A side that has sent its SWITCH and read the other's sends close_notify on the old link; the other's
    close_notify tells it that its own SWITCH has arrived. From a side's commit until then, a failure of either link is
    a failure of the connection.

Compatibility
    Versions negotiate what frames mean; within a version, maps may gain keys, and kinds from 0x80 up may be added:
    a receiver ignores kinds from 0x80 that it does not know, and refuses unknown ones below.
"""

from __future__ import annotations

import struct
from typing import Annotated, Final, TypeAlias, TypeVar

import msgspec
from msgspec import Meta

from trionode._errors import RemoteProtocolError

ALPN: Final = "trionode/1"
VERSIONS: Final = (1,)

#: A hello has names and numbers; 4 KiB is several times the largest honest one. It is read before authentication.
MAX_HELLO: Final = 4096

#: The largest fragment. Large enough that a 64 KiB message is one frame, small enough to interleave.
MAX_FRAGMENT: Final = 64 * 1024
MAX_PAYLOAD: Final = MAX_FRAGMENT + 4
MAX_CONTROL: Final = 4096

#: What a message costs beyond its bytes: about what an empty one occupies while it waits.
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
_KINDS: Final = frozenset(range(OPEN, RENEW + 1))

_HEADER: Final = struct.Struct(">II")
_U16: Final = struct.Struct(">H")
_U32: Final = struct.Struct(">I")

Name: TypeAlias = Annotated[str, Meta(min_length=1, max_length=255)]
Code: TypeAlias = Annotated[str, Meta(min_length=1, max_length=64)]
Text: TypeAlias = Annotated[str, Meta(max_length=1000)]
Proof: TypeAlias = Annotated[bytes, Meta(max_length=64)]
U32: TypeAlias = Annotated[int, Meta(ge=0, lt=2**32)]
#: Generations and incarnations; msgpack integers end at 2**64 - 1, which msgspec checks by itself.
U64: TypeAlias = Annotated[int, Meta(ge=0)]


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """What one side accepts from the other."""

    max_message_size: U32
    window: Annotated[int, Meta(ge=4096, lt=2**31)]
    max_channels: U32


class Refusal(msgspec.Struct, frozen=True, kw_only=True):
    """Why a hello was refused."""

    code: Code
    message: Text = ""


class Join(msgspec.Struct, frozen=True, kw_only=True):
    """In a first message: which connection the link is to carry, and the proof that it may."""

    connection: Annotated[bytes, Meta(min_length=16, max_length=16)]
    attempt: U64
    proof: Proof


class Hello(msgspec.Struct, frozen=True, kw_only=True):
    """First message: who dials."""

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
    """Second message: who accepts, and its verdict on the dialer. With a refusal the rest means nothing."""

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
    """Third message: the dialer's verdict on the acceptor."""

    refusal: Refusal | None = None


class Open(msgspec.Struct, frozen=True, kw_only=True):
    """Payload of OPEN."""

    service: Name
    timeout: Annotated[float, Meta(ge=0)] | None = None


class End(msgspec.Struct, frozen=True, kw_only=True):
    """Payload of RESET and GOODBYE."""

    code: Code
    message: Text = ""


T = TypeVar("T")

_encoder: Final = msgspec.msgpack.Encoder()
_decoders: Final[dict[type, msgspec.msgpack.Decoder[object]]] = {
    kind: msgspec.msgpack.Decoder(kind) for kind in (Hello, Answer, Confirmation, Open, End)
}


def decode(kind: type[T], data: bytes) -> T:
    """Decode untrusted msgpack into a struct: the one place where that happens.

    Raises:
        RemoteProtocolError: whatever is wrong with it.
    """
    try:
        return _decoders[kind].decode(data)  # type: ignore[return-value]  # the table pairs each type with its decoder
    except (msgspec.MsgspecError, RecursionError, ValueError, OverflowError) as exc:
        # Junk nested in an unknown field raises RecursionError, bad UTF-8 a ValueError.
        msg = f"the peer sent a malformed {kind.__name__} message ({type(exc).__name__})"
        raise RemoteProtocolError(msg) from None


#: The highest channel; the next one to open there is the connection's last.
LAST_CHANNEL: Final = 2**32 - 1

#: Longest text for people in a control message, encoded; it has to fit a hello beside the rest.
MAX_TEXT: Final = 1000


def text(words: str) -> str:
    """Words as they may travel: encodable, and at most 1000 bytes."""
    return words.encode("utf-8", "backslashreplace")[:MAX_TEXT].decode("utf-8", "ignore")


# Hello messages -----------------------------------------------------------------------------------------------------


def encode_hello(message: Hello | Answer | Confirmation) -> bytes:
    """A hello message with its length in front."""
    body = _encoder.encode(message)
    return _U16.pack(len(body)) + body


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
        if len(self._buffer) < _U16.size:
            return None
        (length,) = _U16.unpack_from(self._buffer)
        if length > MAX_HELLO:
            msg = f"the peer announced a hello message of {length} bytes; at most {MAX_HELLO} are allowed"
            raise RemoteProtocolError(msg)
        end = _U16.size + length
        if len(self._buffer) < end:
            return None
        body, self._buffer = self._buffer[_U16.size : end], self._buffer[end:]
        return decode(kind, body)

    def rest(self) -> bytes:
        """What followed the last message: frames, already."""
        rest, self._buffer = self._buffer, b""
        return rest


# Frames -------------------------------------------------------------------------------------------------------------


def header(kind: int, channel: int, length: int) -> bytes:
    """A frame's header."""
    return _HEADER.pack(kind << 24 | length, channel)


def control(kind: int, channel: int, payload: Open | End | None = None) -> bytes:
    """A whole frame with a msgpack payload, or none."""
    body = b"" if payload is None else _encoder.encode(payload)
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
    """Cuts a stream of bytes into frames; holds at most one incomplete frame (64 KiB)."""

    __slots__ = ("_channel", "_have", "_kind", "_length", "_parts", "_short")

    def __init__(self) -> None:
        # A header that is not complete yet.
        self._short = b""
        # Of a frame whose header is known and whose payload is not complete: joined once, when it is, so that a
        # dripping peer costs linear time, and a payload is copied once.
        self._parts: list[bytes | memoryview] = []
        self._have = 0
        self._kind = 0
        self._channel = 0
        self._length = -1

    @property
    def incomplete(self) -> bool:
        """Whether it holds a part of a frame."""
        return bool(self._short) or self._length >= 0

    def feed(self, data: bytes) -> list[tuple[int, int, bytes]]:
        """The frames that are complete now, as (kind, channel, payload); payloads are copied once, here.

        Raises:
            RemoteProtocolError: a frame is of an unknown kind or too long.
        """
        frames: list[tuple[int, int, bytes]] = []
        offset, end = 0, len(data)
        if self._length >= 0:
            missing = self._length - self._have
            if end < missing:
                self._parts.append(data)
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
                self._parts = [memoryview(data)[offset:]]
                self._have = end - offset
                return frames
            if kind < _FIRST_OPTIONAL_KIND:
                frames.append((kind, channel, data[offset:stop]))
            offset = stop
        self._short = data[offset:]
        return frames
