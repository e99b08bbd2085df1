"""Targets without I/O: whatever turns bytes of the network, or of a file that others may write, into values."""

from __future__ import annotations

import tempfile
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import msgspec
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.utils import CryptographyDeprecationWarning

from trionode import (
    KeyPair,
    NodeName,
    RemoteError,
    RemoteProtocolError,
    ResolverError,
    _protocol as wire,
)
from trionode._connection import channels as _channels
from trionode._errors import RejectionCode
from trionode._identity import describe as _describe, names as _identity
from trionode._node import typed as _typed
from trionode._tls import session as _session
from trionode._util.text import printable
from trionode.discovery import local as _local
from trionode.pki import CertificateAuthority

from .campaign import Target, Violation
from .mutation import mutate_bytes, mutate_message

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from random import Random

NAME: Final = "alpha@localhost"
LIMITS: Final = wire.Limits(max_message_size=65536, window=4096, max_channels=4, max_metadata_size=1024)
METADATA: Final = msgspec.Raw(wire.encode_metadata({"tenant": "a", "token": b"\0\1"}))
DETAILS: Final = msgspec.Raw(wire.encode_details({"order": 17, "of": ["a", None, 1.5, b"x", True]}))
REFUSAL: Final = wire.Refusal(code="cookie", message="no")
HELLO: Final = wire.Hello(versions=[1], name=NAME, incarnation=1, generation=1, limits=LIMITS, verified=True)
JOIN: Final = wire.Join(connection=bytes(16), attempt=1, proof=bytes(32))
ANSWER: Final = wire.Answer(version=1, name=NAME, incarnation=1, generation=1, limits=LIMITS, proof=bytes(32))

#: One valid message of each kind.
HELLOS: Final[dict[str, list[msgspec.Struct]]] = {
    "hello": [HELLO, msgspec.structs.replace(HELLO, join=JOIN, proof=bytes(32), replace=True)],
    "answer": [ANSWER, wire.Answer(refusal=REFUSAL), msgspec.structs.replace(ANSWER, join=bytes(32))],
    "confirmation": [wire.Confirmation(), wire.Confirmation(refusal=REFUSAL)],
}
CONTROLS: Final[dict[str, list[msgspec.Struct]]] = {
    "open": [
        wire.Open(service="echo"),
        wire.Open(service="echo", timeout=1.5),
        wire.Open(service="echo", metadata=METADATA),
    ],
    "end": [
        wire.End(code="failed", message="words"),
        wire.End(code="limit", not_run=True),
        wire.End(code="not_found", application=True, details=DETAILS, metadata=METADATA),
    ],
    "goodbye": [wire.Goodbye(code="closed", message="words"), wire.Goodbye(code="closed", last=7)],
}


def pieces(data: bytes) -> Iterator[bytes]:
    """Cut bytes as a network might; how is in the bytes themselves, so that a case can be repeated."""
    sizes = (1, 2, 5, 8, 100, 4096, 65536)
    at = 0
    while at < len(data):
        size = sizes[(data[at] + at) % len(sizes)]
        yield data[at : at + size]
        at += size


def said(error: Exception) -> str:
    """What an error says, without what differs from case to case."""
    return "".join(c for c in str(error).split(":")[0] if not c.isdigit())[:60]


class FrameTarget(Target):
    """The frame decoder."""

    name = "frames"
    about = "the frame decoder, fed in pieces"
    traced: Sequence[Path] = tuple(Path(wire.__file__).parent.glob("*.py"))
    longest = 16 * 1024

    def seeds(self) -> list[bytes]:
        """Frames of all sizes."""
        sizes = (0, 1, 8, 300, wire.MAX_PAYLOAD)
        return [wire.header(wire.MESSAGE, 1, size) + bytes(size) for size in sizes] + [wire.header(0xFF, 0, 0)]

    def mutate(self, rng: Random, data: bytes, other: bytes) -> bytes:
        """Mostly headers with a wrong length, kind or channel."""
        if rng.random() < 0.5:
            length = rng.choice((0, 1, 9, wire.MAX_PAYLOAD, wire.MAX_PAYLOAD + 1, 2**24 - 1))
            head = wire.header(rng.choice((0, *range(1, 20), 0x7F, 0x80, 0xFF)), rng.choice((0, 1, 2**32 - 1)), length)
            return data + head + other[: rng.randrange(20)]
        return mutate_bytes(rng, data, other)

    def run(self, data: bytes) -> str:
        """The frames of any cut are those of the whole, or the same protocol error."""
        whole = self._decoded([data])
        if self._decoded(pieces(data)) != whole:
            msg = "in pieces it is something else than as a whole"
            raise Violation(msg)
        return whole[1] or "frames"

    @staticmethod
    def _decoded(chunks: Iterator[bytes] | list[bytes]) -> tuple[list[tuple[int, int, bytes]], str]:
        decoder, frames, fed = wire.FrameDecoder(), list[tuple[int, int, bytes]](), 0
        for chunk in chunks:
            fed += len(chunk)
            try:
                found = decoder.feed(chunk)
            except RemoteProtocolError as exc:
                # Frames before it in the same chunk are lost with it: how many, and only that, depends on the cut.
                return [], said(exc)
            frames += found
            if sum(len(payload) + 8 for _, _, payload in frames) > fed:
                msg = "more came out than went in"
                raise Violation(msg)
        return frames, ""


class HelloTarget(Target):
    """The hello reader, for one of the three messages."""

    traced: Sequence[Path] = (*Path(wire.__file__).parent.glob("*.py"), Path(_identity.__file__))
    longest = 3 * wire.MAX_HELLO
    memory = (128 * 1024, 16)

    def __init__(self, name: str) -> None:
        self.name = name
        self.about = f"the hello reader, for the message {name!r}"
        self._kind = type(HELLOS[name][0])

    def seeds(self) -> list[bytes]:
        """Honest messages."""
        return [wire.encode_hello(each) for each in HELLOS[self.name]]  # type: ignore[arg-type]  # by the table

    def mutate(self, rng: Random, data: bytes, other: bytes) -> bytes:
        """Mostly another message of the right length."""
        if rng.random() < 0.3:
            return mutate_bytes(rng, data, other)
        body = mutate_message(rng, data[2:])
        length = len(body) if rng.random() < 0.95 else rng.choice((0, 4096, 4097, 65535))
        return min(length, 65535).to_bytes(2, "big") + body

    def run(self, data: bytes) -> str:
        """A message or a protocol error; and what is done with a message next."""
        reader = wire.HelloReader()
        for piece in pieces(data):
            reader.feed(piece)
            try:
                message = reader.next(self._kind)
            except RemoteProtocolError as exc:
                return said(exc)
            if message is not None:
                break
        else:
            if len(data) > wire.MAX_HELLO + 2:
                msg = f"{len(data)} bytes were taken, and there is neither a message nor an error"
                raise Violation(msg)
            return "incomplete"
        again = wire.decode(self._kind, wire.encode_hello(message)[2:])  # type: ignore[arg-type]  # one of the three
        if again != message:
            msg = f"encoded again it is {again}"
            raise Violation(msg)
        return self._judged(message)

    @staticmethod
    def _judged(message: object) -> str:
        refusal: wire.Refusal | None = getattr(message, "refusal", None)
        if refusal is not None:
            _ = RejectionCode.of(refusal.code), printable(refusal.message, 1000)
            return "refusal"
        try:
            NodeName.parse(getattr(message, "name", NAME))
        except ValueError as exc:
            return said(exc)
        return "message"


class ControlTarget(Target):
    """The messages in frames."""

    traced: Sequence[Path] = tuple(Path(wire.__file__).parent.glob("*.py"))
    longest = 16 * 1024
    memory = (128 * 1024, 16)

    def __init__(self, name: str) -> None:
        self.name = name
        self.about = f"the control message {name!r}"
        self._kind = type(CONTROLS[name][0])

    def seeds(self) -> list[bytes]:
        """Honest messages."""
        return [msgspec.msgpack.encode(each) for each in CONTROLS[self.name]]

    def mutate(self, rng: Random, data: bytes, other: bytes) -> bytes:
        """Another message."""
        return mutate_message(rng, data) if rng.random() < 0.8 else mutate_bytes(rng, data, other)

    def run(self, data: bytes) -> str:
        """A message or a protocol error."""
        try:
            message = wire.decode(self._kind, data)
            if isinstance(message, wire.Open) and message.metadata:
                wire.decode_metadata(message.metadata, LIMITS.max_metadata_size)
            elif isinstance(message, wire.End):
                repr(_channels._reset_cause(data, LIMITS.max_metadata_size))  # noqa: SLF001 -- what is made of it
        except RemoteProtocolError as exc:
            return f"{said(exc)} {str(exc)[-20:]}"
        if isinstance(message, wire.Open) and message.timeout is not None and not message.timeout >= 0:
            msg = f"a timeout of {message.timeout}"
            raise Violation(msg)
        return "message"


class RecordTarget(Target):
    """The scanner of TLS records."""

    name = "records"
    about = "the scanner of TLS records, fed in pieces"
    traced: Sequence[Path] = (Path(_session.__file__),)

    def seeds(self) -> list[bytes]:
        """Records, empty ones and one that is not complete among them; and many."""
        some = b"\x17\x03\x03\x00\x02ab\x17\x03\x03\x00\x00\x16\x03\x03\x00\x01x\x17\x03\x03\xff\xffabc"
        return [some, b"\x17\x03\x03\x00\x01x" * 200]

    def run(self, data: bytes) -> str:
        """Every cut gives the count that a plain loop gives."""
        for chunks in ([data], pieces(data)):
            scanner = _session.RecordScanner()
            scanner.complete = 0
            for chunk in chunks:
                fed = 0
                while fed < len(chunk):  # it looks at so many records at once
                    fed += scanner.feed(chunk[fed:])
            if scanner.complete != self._count(data):
                msg = f"{scanner.complete} records were counted, there are {self._count(data)}"
                raise Violation(msg)
        return "counted"

    @staticmethod
    def _count(data: bytes) -> int:
        count, at = 0, 0
        while at + 5 <= len(data):
            at += 5 + int.from_bytes(data[at + 3 : at + 5], "big")
            count += at <= len(data)
        return count


@dataclass
class Point:
    """A message of an application."""

    x: int
    label: str = ""


class Tagged(msgspec.Struct, tag=True):
    """A message of an application, too."""

    values: list[float]
    inner: dict[str, int] | None = None


#: What applications agree on, and a value of each.
TYPES: Final[dict[str, tuple[Any, object]]] = {
    "points": (list[Point], [Point(1, "a"), Point(2)]),
    "tagged": (Tagged, Tagged([1.5, 2.0], {"a": 1})),
    "anything": (Any, {"a": [1, "b", None, {"c": 2.5}], 3: b"d"}),
    "sets": (set[int] | None, {1, 2, 3}),
}


class TypedTarget(Target):
    """Messages with types."""

    traced: Sequence[Path] = (Path(_typed.__file__),)
    memory = (128 * 1024, 512)

    def __init__(self, name: str) -> None:
        self.name = f"typed-{name}"
        self.about = f"typed messages of the type {name!r}"
        agreed, self._value = TYPES[name]
        self._decoder = msgspec.msgpack.Decoder(agreed)

    def seeds(self) -> list[bytes]:
        """What an honest peer sends."""
        return [msgspec.msgpack.encode(self._value)]

    def mutate(self, rng: Random, data: bytes, other: bytes) -> bytes:
        """Another message."""
        return mutate_message(rng, data) if rng.random() < 0.8 else mutate_bytes(rng, data, other)

    def run(self, data: bytes) -> str:
        """A value, or the error for a bad message."""
        try:
            _typed._decode(self._decoder, data, None)  # noqa: SLF001 -- the decoder itself is what is looked at
        except RemoteError as exc:
            return said(exc)
        return "value"


class RegistryTarget(Target):
    """A file of the local registry."""

    name = "registry"
    about = "a file of the local registry that another program has written"
    repeats = False  # it is read to 16 KiB, whatever it has
    traced: Sequence[Path] = (Path(_local.__file__), Path(_identity.__file__))
    longest = 32 * 1024

    def __init__(self) -> None:
        self._node = NodeName.parse(NAME)

    def seeds(self) -> list[bytes]:
        """What a node of this process would write."""
        own = 1
        started = _local._process_started(own)  # noqa: SLF001 -- nothing else says what an entry has to have
        entry = {"name": NAME, "process": own, "started": started, "endpoints": [["127.0.0.1", 15000], ["::1", 1]]}
        return [msgspec.json.encode(entry)]

    def mutate(self, rng: Random, data: bytes, other: bytes) -> bytes:
        """Another file."""
        if rng.random() < 0.5:
            return mutate_bytes(rng, data, other)
        at = rng.randrange(len(data) + 1)
        inserted = rng.choice(
            (b"[" * 3000, b"1" * 5000, b"-1", b"1e999", b'"\\ud800"', b'"x\\u0000"', b"null", b"\xff", b'"",')
        )
        return data[:at] + inserted + data[at + rng.choice((0, 1, 5)) :]

    def run(self, data: bytes) -> str:
        """Endpoints, none, or a `ResolverError`."""
        with tempfile.TemporaryDirectory() as directory:
            file = Path(directory, _local._file_name(str(self._node)))  # noqa: SLF001 -- ditto
            file.write_bytes(data)
            registry = _local.LocalRegistry(directory)
            try:
                found = registry._look_up(self._node)  # noqa: SLF001 -- what its thread does
            except ResolverError as exc:
                return said(exc)
            registry._publish("beta@localhost", [])  # noqa: SLF001 -- ditto
        return "endpoints" if found else "nothing"


class CertificateTarget(Target):
    """What errors say of a certificate that is not verified."""

    name = "certificates"
    about = "a peer's certificate: which names it speaks for, and what errors say of it"
    repeats = False  # its length is in it
    traced: Sequence[Path] = (Path(_identity.__file__), Path(_describe.__file__))
    memory = (512 * 1024, 256)

    def seeds(self) -> list[bytes]:
        """Certificates with names of all kinds."""
        hosts = (["localhost"], ["a.example", "10.0.0.1", "::1"], [f"host-{number}.example" for number in range(9)])
        pairs = [CertificateAuthority.create().issue(NAME), *(KeyPair.self_signed(*each) for each in hosts)]
        return [pair.certificate.public_bytes(Encoding.DER) for pair in pairs]

    def run(self, data: bytes) -> str:
        """Names and descriptions, or what says that it is no certificate."""
        try:
            with warnings.catch_warnings(category=CryptographyDeprecationWarning, action="ignore"):
                certificate = x509.load_der_x509_certificate(data)
            _ = certificate.not_valid_before_utc, certificate.not_valid_after_utc  # as the engine does
        except (ValueError, x509.InvalidVersion) as exc:
            return f"no certificate: {said(exc)[:30]}"
        texts = [_describe.describe(certificate), _describe.describe_names(certificate)]
        texts += [_describe.describe_dates(certificate), _describe.describe_issuer(certificate)]
        if not all(text.isprintable() for text in texts):
            msg = f"not printable: {texts}"
            raise Violation(msg)
        try:
            names = _identity.SubjectNames.of(certificate)
        except ValueError:
            return "names cannot be read"  # in the handshake that is a refusal
        covers = names.cover_host("localhost"), names.cover_node(NodeName.parse(NAME))
        return f"{covers}, unusable {bool(names.unusable)}"


def targets() -> list[Target]:
    """All of them."""
    return [
        FrameTarget(),
        *map(HelloTarget, HELLOS),
        *map(ControlTarget, CONTROLS),
        RecordTarget(),
        *map(TypedTarget, TYPES),
        RegistryTarget(),
        CertificateTarget(),
    ]
