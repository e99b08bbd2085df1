"""The codec: what the module's page says of the bytes, and what it makes of bytes that mean nothing."""

from __future__ import annotations

import itertools
import struct
import tracemalloc
from typing import TYPE_CHECKING, Any, Final

import msgspec
import pytest
from hypothesis import example, given, settings, strategies as st
from msgspec import Raw

from effort import effort
from trionode import RemoteProtocolError, _protocol as wire

if TYPE_CHECKING:
    from collections.abc import Sequence

Frame = tuple[int, int, bytes]

KINDS: Final = range(wire.OPEN, wire.RETURN + 1)
#: A decoder may hold one incomplete frame; there are that, the same joined, and the one before. Bytes.
MOST_MEMORY: Final = 5 * 64 * 1024

frames: Final = st.lists(
    st.tuples(st.sampled_from(KINDS), st.integers(0, 2**32 - 1), st.binary(max_size=300)), max_size=20
)
names: Final = st.text(min_size=1, max_size=60)
u32s: Final = st.integers(0, 2**32 - 1)
u64s: Final = st.integers(0, 2**64 - 1)
limits: Final = st.builds(
    wire.Limits,
    max_message_size=u32s,
    window=st.integers(4096, 2**31 - 1),
    max_channels=u32s,
    max_metadata_size=u32s,
)
codes: Final = st.text(min_size=1, max_size=64)
refusals: Final = st.none() | st.builds(wire.Refusal, code=codes, message=st.text(max_size=100))
hellos: Final = st.builds(
    wire.Hello,
    versions=st.lists(u32s, min_size=1, max_size=32),
    name=names,
    incarnation=u64s,
    generation=u64s,
    limits=limits,
    verified=st.booleans(),
    replace=st.booleans(),
    proof=st.binary(max_size=64),
)
answers: Final = st.builds(
    wire.Answer,
    refusal=refusals,
    version=u32s,
    name=names,
    incarnation=u64s,
    generation=u64s,
    limits=limits,
    verified=st.booleans(),
    proof=st.binary(max_size=64),
)
confirmations: Final = st.builds(wire.Confirmation, refusal=refusals)
#: Anything that msgpack can say, nested a little.
junk: Final = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats() | st.text(max_size=9) | st.binary(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=9), inner, max_size=4),
    max_leaves=20,
)


def encoded(frame: Frame) -> bytes:
    """A frame, written as the page says, without the module's help."""
    kind, channel, payload = frame
    return bytes([kind]) + len(payload).to_bytes(3, "big") + channel.to_bytes(4, "big") + payload


@st.composite
def chunked(draw: st.DrawFn, data: st.SearchStrategy[bytes]) -> list[bytes]:
    """Bytes, cut anywhere."""
    whole = draw(data)
    cuts = sorted(draw(st.lists(st.integers(0, len(whole)), max_size=12)))
    return [whole[start:stop] for start, stop in zip([0, *cuts], [*cuts, len(whole)], strict=True)]


def decode_all(chunks: Sequence[bytes]) -> list[Frame]:
    """What a fresh decoder makes of a stream."""
    decoder = wire.FrameDecoder()
    return [frame for chunk in chunks for frame in decoder.feed(chunk)]


# Frames --------------------------------------------------------------------------------------------------------------


@given(frames=frames, data=st.data())
def test_frames_survive_any_chunking(frames: list[Frame], data: st.DataObject) -> None:
    """However the network cuts the stream, the same frames come out, in order, and none too early."""
    whole = b"".join(map(encoded, frames))
    assert decode_all(data.draw(chunked(st.just(whole)))) == frames


@given(frames=frames)
def test_frames_survive_byte_by_byte(frames: list[Frame]) -> None:
    """A frame is there with its last byte, and not before."""
    decoder = wire.FrameDecoder()
    for frame in frames:
        *rest, last = encoded(frame)
        assert [each for byte in rest for each in decoder.feed(bytes([byte]))] == []
        assert decoder.feed(bytes([last])) == [frame]


@given(frames=st.lists(st.tuples(st.sampled_from([*KINDS, *range(0x80, 0x100)]), u32s, st.binary(max_size=50))))
def test_optional_kinds_are_skipped(frames: list[Frame]) -> None:
    """Kinds from 0x80 up are left out, whatever they hold; what is around them is not disturbed."""
    whole = b"".join(map(encoded, frames))
    assert decode_all([whole]) == [frame for frame in frames if frame[0] < 0x80]


@pytest.mark.parametrize("kind", [0x00, *range(wire.RENEW + 1, 0x80)])
def test_unknown_kinds_below_are_refused(kind: int) -> None:
    """Whoever sends one expects us to understand it."""
    with pytest.raises(RemoteProtocolError, match=f"{kind:#04x}"):
        decode_all([encoded((kind, 1, b"x"))])


@pytest.mark.parametrize("kind", [wire.MESSAGE, wire.FIRST, 0x80, 0xFF, 0x00])
@pytest.mark.parametrize("length", [wire.MAX_PAYLOAD + 1, 2**24 - 1])
def test_a_frame_that_is_too_long_is_refused_with_its_header(kind: int, length: int) -> None:
    """Before a byte of its payload came, so that nobody is made to wait for, or to hold, what will be refused."""
    head = struct.pack(">II", kind << 24 | length, 1)
    assert decode_all([head[:7]]) == []
    with pytest.raises(RemoteProtocolError, match=str(length)):
        decode_all([head])


def test_the_longest_frame_is_accepted() -> None:
    """65 540 bytes: a first fragment of 64 KiB and its total."""
    frame = (wire.FIRST, 1, bytes(65540))
    assert decode_all([encoded(frame)]) == [frame]


@given(chunks=chunked(st.binary(max_size=400)))
@example(chunks=[b"\x02\x00\x00\x01\x00\x00\x00\x01"])
@example(chunks=[b"\xff" * 400])
def test_any_bytes_give_frames_or_a_protocol_error(chunks: list[bytes]) -> None:
    """Nothing else ever comes out of the decoder."""
    try:
        found = decode_all(chunks)
    except RemoteProtocolError:
        return
    for kind, channel, payload in found:
        assert kind in KINDS
        assert 0 <= channel < 2**32
        assert len(payload) <= wire.MAX_PAYLOAD
    assert sum(8 + len(payload) for _, _, payload in found) <= sum(map(len, chunks))


@pytest.mark.parametrize("pieces", [(1,), (2,), (7,), (1000,), (4095,), (4096,), (4096, 1), (1, 4095)])
def test_a_dripping_peer_costs_bounded_memory_and_linear_time(pieces: tuple[int, ...]) -> None:
    """A stream in small pieces: at any time one incomplete frame is held, and each byte is joined once."""
    payload = bytes(wire.MAX_PAYLOAD)
    whole = encoded((wire.MESSAGE, 1, payload)) * 2
    decoder, count = wire.FrameDecoder(), 0
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        tracemalloc.reset_peak()
        start = 0
        for piece in itertools.cycle(pieces):
            if start >= len(whole):
                break
            given, start = whole[start : start + piece], start + piece
            for frame in decoder.feed(given):
                assert frame == (wire.MESSAGE, 1, payload)
                count += 1
            assert decoder._have <= wire.MAX_PAYLOAD + 8
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert count == 2
    assert peak - before < MOST_MEMORY


# What the page says of the bytes --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("frame", "as_bytes"),
    [
        (wire.header(wire.MESSAGE, 5, 3) + b"abc", "02000003 00000005 616263"),
        (wire.header(wire.MESSAGE, 2**32 - 1, 65536), "02010000 ffffffff"),
        (wire.first(7, 100_000, 2) + b"ab", "03000006 00000007 000186a0 6162"),
        (wire.header(wire.MORE, 7, 1) + b"c", "04000001 00000007 63"),
        (wire.header(wire.DISCARD, 7, 0), "05000000 00000007"),
        (wire.header(wire.EOF, 2, 0), "06000000 00000002"),
        (wire.header(wire.CLOSE, 2, 0), "07000000 00000002"),
        (wire.credit(3, 65536), "09000004 00000003 00010000"),
        (wire.header(wire.PING, 0, 8) + b"12345678", "0b000008 00000000 3132333435363738"),
        (wire.header(wire.PONG, 0, 8) + b"12345678", "0c000008 00000000 3132333435363738"),
        (wire.header(wire.DRAIN, 0, 0), "0d000000 00000000"),
        (wire.credit(3, 1, wire.RETURN), "0e000004 00000003 00000001"),
    ],
)
def test_frames_byte_by_byte(frame: bytes, as_bytes: str) -> None:
    """A second implementation can be written from the page: these are its frames, to the byte."""
    assert frame == bytes.fromhex(as_bytes)


@pytest.mark.parametrize(
    ("frame", "kind", "channel", "payload"),
    [
        (wire.control(wire.OPEN, 1, wire.Open(service="feed")), 0x01, 1, {"service": "feed"}),
        (wire.control(wire.OPEN, 1, wire.Open(service="a", call=True)), 0x01, 1, {"service": "a", "call": True}),
        (wire.control(wire.OPEN, 3, wire.Open(service="é", timeout=1.5)), 0x01, 3, {"service": "é", "timeout": 1.5}),
        (
            wire.control(
                wire.OPEN, 1, wire.Open(service="a", metadata=Raw(wire.encode_metadata({"t": "x", "b": b"y"})))
            ),
            0x01,
            1,
            {"service": "a", "metadata": {"t": "x", "b": b"y"}},
        ),
        (wire.control(wire.RESET, 4, wire.End(code="failed")), 0x08, 4, {"code": "failed"}),
        (
            wire.control(
                wire.RESET,
                4,
                wire.End(
                    code="gone",
                    message="m",
                    application=True,
                    details=Raw(wire.encode_details([1, None])),
                    metadata=Raw(wire.encode_metadata({"k": b"v"})),
                ),
            ),
            0x08,
            4,
            {"code": "gone", "message": "m", "application": True, "details": [1, None], "metadata": {"k": b"v"}},
        ),
        (
            wire.control(wire.RESET, 4, wire.End(code="limit", not_run=True)),
            0x08,
            4,
            {"code": "limit", "not_run": True},
        ),
        (wire.control(wire.GOODBYE, 0, wire.Goodbye(code="c", message="m")), 0x0A, 0, {"code": "c", "message": "m"}),
        (
            wire.control(wire.GOODBYE, 0, wire.Goodbye(code="c", last=7)),
            0x0A,
            0,
            {"code": "c", "message": "", "last": 7},
        ),
    ],
)
def test_control_frames_hold_a_msgpack_map_with_string_keys(
    frame: bytes, kind: int, channel: int, payload: dict[str, object]
) -> None:
    """Any msgpack library can read them."""
    word, at = struct.unpack_from(">II", frame)
    assert (word >> 24, word & 0xFFFFFF, at) == (kind, len(frame) - 8, channel)
    assert msgspec.msgpack.decode(frame[8:]) == payload


def test_a_hello_byte_by_byte() -> None:
    """A u16 length, then a msgpack map, with the keys that the page names."""
    hello = wire.Hello(
        versions=[1],
        name="a@b",
        incarnation=2**64 - 1,
        generation=3,
        limits=wire.Limits(max_message_size=1, window=4096, max_channels=2),
    )
    data = wire.encode_hello(hello)
    assert int.from_bytes(data[:2], "big") == len(data) - 2
    assert msgspec.msgpack.decode(data[2:]) == {
        "versions": [1],
        "name": "a@b",
        "incarnation": 2**64 - 1,
        "generation": 3,
        "limits": {"max_message_size": 1, "window": 4096, "max_channels": 2, "max_metadata_size": 0},
        "verified": False,
        "replace": False,
        "proof": b"",
        "join": None,
    }
    assert wire.encode_hello(wire.Confirmation()) == b"\x00\x0a\x81\xa7refusal\xc0"


# Hellos --------------------------------------------------------------------------------------------------------------


@given(hello=hellos, answer=answers, confirmation=confirmations, rest=st.binary(max_size=50), data=st.data())
def test_a_hello_survives_any_chunking(
    hello: wire.Hello, answer: wire.Answer, confirmation: wire.Confirmation, rest: bytes, data: st.DataObject
) -> None:
    """Three messages come out as they went in, each with its last byte; what follows them is kept for the frames."""
    messages: list[Any] = [hello, answer, confirmation]
    whole = b"".join(map(wire.encode_hello, messages)) + rest
    reader = wire.HelloReader()
    found: list[object] = []
    for chunk in data.draw(chunked(st.just(whole))):
        reader.feed(chunk)
        while len(found) < 3:
            message = reader.next(type(messages[len(found)]))
            if message is None:
                break
            found.append(message)
    assert found == messages
    assert reader.rest() == rest
    assert reader.rest() == b""


@given(chunks=chunked(st.binary(max_size=300)), kind=st.sampled_from([wire.Hello, wire.Answer, wire.Confirmation]))
@example(chunks=[b"\x00\x00"], kind=wire.Hello)
@example(chunks=[b"\x00\x01\x80"], kind=wire.Hello)
@example(chunks=[b"\x00\x01\x80"], kind=wire.Confirmation)
def test_any_bytes_give_hellos_or_a_protocol_error(chunks: list[bytes], kind: type[Any]) -> None:
    """Nothing else ever comes out of the reader, and it never holds more than it was fed."""
    reader = wire.HelloReader()
    fed = 0
    try:
        for chunk in chunks:
            reader.feed(chunk)
            fed += len(chunk)
            while (message := reader.next(kind)) is not None:
                assert isinstance(message, kind)
            assert len(reader._buffer) <= fed
    except RemoteProtocolError:
        pass


@pytest.mark.parametrize("length", [wire.MAX_HELLO + 1, 2**16 - 1])
def test_a_hello_that_is_too_long_is_refused_with_its_length(length: int) -> None:
    """Nobody who is not authenticated makes us hold more than 4 KiB."""
    reader = wire.HelloReader()
    reader.feed(length.to_bytes(2, "big"))
    with pytest.raises(RemoteProtocolError, match=str(length)):
        reader.next(wire.Hello)


def test_the_longest_hello_is_accepted() -> None:
    """4096 bytes, padded by a key that nobody knows."""
    fields: dict[str, object] = {"refusal": None, "pad": b""}
    fields["pad"] = bytes(wire.MAX_HELLO - len(msgspec.msgpack.encode(fields)) - 1)
    body = msgspec.msgpack.encode(fields)
    assert len(body) == wire.MAX_HELLO
    reader = wire.HelloReader()
    reader.feed(len(body).to_bytes(2, "big") + body)
    assert reader.next(wire.Confirmation) == wire.Confirmation()


# Untrusted msgpack ---------------------------------------------------------------------------------------------------


STRUCTS: Final[dict[type[Any], dict[str, object]]] = {
    wire.Hello: {
        "versions": [1],
        "name": "a@b",
        "incarnation": 1,
        "generation": 1,
        "limits": {"max_message_size": 1, "window": 4096, "max_channels": 1},
    },
    wire.Answer: {"version": 1, "name": "a@b"},
    wire.Confirmation: {"refusal": {"code": "cookie"}},
    wire.Open: {"service": "feed"},
    wire.End: {"code": "failed"},
}


@pytest.mark.parametrize("kind", STRUCTS)
@given(data=st.binary(max_size=200))
def test_any_bytes_decode_or_are_refused(kind: type[Any], data: bytes) -> None:
    """Whatever msgpack a peer makes up: a value or `RemoteProtocolError`."""
    try:
        value = wire.decode(kind, data)
    except RemoteProtocolError:
        return
    assert isinstance(value, kind)


@pytest.mark.parametrize("kind", STRUCTS)
@given(data=st.data())
def test_any_msgpack_decodes_or_is_refused(kind: type[Any], data: st.DataObject) -> None:
    """As well where it is msgpack, and a map with the right keys and anything in them."""
    fields = {key: data.draw(st.just(value) | junk) for key, value in STRUCTS[kind].items()}
    fields |= data.draw(st.dictionaries(st.text(max_size=9), junk, max_size=3))
    try:
        value = wire.decode(kind, msgspec.msgpack.encode(fields))
    except RemoteProtocolError:
        return
    assert isinstance(value, kind)


@pytest.mark.parametrize("kind", STRUCTS)
@given(extra=st.dictionaries(st.text(max_size=9).map(lambda key: f"x-{key}"), junk, max_size=4))
def test_unknown_keys_are_ignored(kind: type[Any], extra: dict[str, object]) -> None:
    """Within a version maps may gain keys."""
    plain = wire.decode(kind, msgspec.msgpack.encode(STRUCTS[kind]))
    assert wire.decode(kind, msgspec.msgpack.encode(extra | STRUCTS[kind])) == plain


@pytest.mark.parametrize("kind", STRUCTS)
@pytest.mark.parametrize("nest", [b"\x91", b"\x81\xa1k", b"\x81\x91", b"\xdd\xff\xff\xff\xff", b"\xdf\xff\xff\xff\xff"])
def test_deep_nesting_and_bold_lengths_are_refused_cheaply(kind: type[Any], nest: bytes) -> None:
    """In an unknown key, where the decoder has to skip it, and in a known one; in bounded memory."""
    good = msgspec.msgpack.encode(STRUCTS[kind])
    bomb = nest * (60_000 // len(nest))
    tracemalloc.start()
    try:
        for key in ("unknown", next(iter(STRUCTS[kind]))):
            data = bytes([good[0] + 1]) + good[1:] + msgspec.msgpack.encode(key) + bomb
            with pytest.raises(RemoteProtocolError):
                wire.decode(kind, data)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < MOST_MEMORY


@pytest.mark.parametrize(
    ("kind", "change"),
    [
        (wire.Hello, {"versions": []}),
        (wire.Hello, {"versions": [1] * 33}),
        (wire.Hello, {"versions": [-1]}),
        (wire.Hello, {"name": ""}),
        (wire.Hello, {"name": "n" * 256}),
        (wire.Hello, {"incarnation": -1}),
        (wire.Hello, {"generation": 1.5}),
        (wire.Hello, {"proof": bytes(65)}),
        (wire.Hello, {"limits": {"max_message_size": 1, "window": 4095, "max_channels": 1}}),
        (wire.Hello, {"limits": {"max_message_size": 1, "window": 2**31, "max_channels": 1}}),
        (wire.Hello, {"limits": {"max_message_size": 2**32, "window": 4096, "max_channels": 1}}),
        (
            wire.Hello,
            {"limits": {"max_message_size": 1, "window": 4096, "max_channels": 1, "max_metadata_size": -1}},
        ),
        (wire.Answer, {"version": 2**32}),
        (wire.Confirmation, {"refusal": {"code": ""}}),
        (wire.Confirmation, {"refusal": {"code": "c" * 65}}),
        (wire.Confirmation, {"refusal": {"code": "c", "message": "m" * 1001}}),
        (wire.Open, {"service": "s" * 256}),
        (wire.Open, {"timeout": -0.1}),
        (wire.Open, {"timeout": float("nan")}),
        (wire.Open, {"timeout": "soon"}),
        (wire.End, {"code": 7}),
        (wire.End, {"message": b"bytes"}),
    ],
)
def test_values_out_of_bounds_are_refused(kind: type[Any], change: dict[str, object]) -> None:
    """What is checked here nobody has to check later."""
    with pytest.raises(RemoteProtocolError, match=f"malformed {kind.__name__}"):
        wire.decode(kind, msgspec.msgpack.encode(STRUCTS[kind] | change))


@given(payload=st.binary(max_size=8))
def test_u32_payloads(payload: bytes) -> None:
    """Four bytes are a number, fewer a protocol error."""
    if len(payload) < 4:
        with pytest.raises(RemoteProtocolError):
            wire.unpack_u32(payload)
    else:
        assert wire.unpack_u32(payload) == int.from_bytes(payload[:4], "big")


@given(words=st.text(max_size=2000) | st.text(st.characters(categories=["Cs", "Lo"]), max_size=2000))
@settings(max_examples=effort(50))
def test_words_for_people_always_fit(words: str) -> None:
    """Whatever an error's text is, lone surrogates included, it travels, cut to what the other side accepts."""
    frame = wire.control(wire.RESET, 1, wire.End(code="failed", message=wire.text(words)))
    [(_, _, payload)] = decode_all([frame])
    assert len(wire.decode(wire.End, payload).message.encode()) <= 1000
