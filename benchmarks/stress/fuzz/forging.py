"""Certificates and revocation lists that are almost valid: their DER as a tree, changed, and put right again in part.

A changed certificate fails at its signature, and nothing behind that is ever seen. So an input says what is to be put
right before it is used: the signature and its algorithm, the names, the key, the dates. All keys are Ed25519, whose
signatures are the same each time, and made from the seed that stands here: they are good for nothing else.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Final

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from trionode._util.der import element, elements, encoded

from .mutation import mutate_bytes

if TYPE_CHECKING:
    from random import Random

SHAPES: Final = Path(__file__).with_name("shapes.txt")

ROOT_KEY, MIDDLE_KEY, LEAF_KEY = (Ed25519PrivateKey.from_private_bytes(bytes([number]) * 32) for number in (1, 2, 3))

SEQUENCE, SET, BIT_STRING, OCTET_STRING, INTEGER = 0x30, 0x31, 0x03, 0x04, 0x02
_ED25519: Final = bytes.fromhex("300506032b6570")

#: What an input asks to have put right.
SIGNATURE, NAMES, KEY, DATES = 1, 2, 4, 8
ALL: Final = SIGNATURE | NAMES | KEY | DATES

#: A tag, and what is in it: elements, or bytes.
Node = tuple[int, "list[Node] | bytes"]

_TAGS: Final = (
    *(0x01, 0x02, 0x03, 0x04, 0x05, 0x06, 0x09, 0x0A, 0x0C, 0x12, 0x13, 0x14, 0x16, 0x17, 0x18, 0x1A, 0x1B, 0x1C),
    *(0x1E, 0x30, 0x31, 0x80, 0x81, 0x82, 0x85, 0x86, 0x87, 0x88, 0x89, 0xA0, 0xA1, 0xA3, 0xA4, 0xA5, 0x1F, 0x24),
)
_TEXTS: Final = (
    *(b"", b"\0", b"*", b"*.", b"*.localhost", b"localhost\0.evil", b"a" * 300, b"\xff\xfe", b"\xc3\x28", b"\x1b[2J"),
    *(b"\n", b"xn--", b"xn--a", b"\xd8\x00", b"\xe2\x80\xae", b"foo_bar.example", b"localhost.", b".localhost"),
    *(b"trionode://alpha@localhost", b"trionode://@", b"http://[::1", b"127.0.0.1", b"\x7f\0\0\1", b"\0" * 16, b"%s{}"),
    *(b"000000000000Z", b"99991231235959Z", b"20260231000000Z", b"260101000000+0100", b"00000101000000Z", b"260101Z"),
)
_OIDS: Final = tuple(
    bytes.fromhex(oid)
    for oid in (
        *("550403", "550406", "55040a", "550405", "2a864886f70d010901", "0992268993f22c640119", "60", "80", "ff", ""),
        *("551d0e", "551d0f", "551d11", "551d12", "551d13", "551d14", "551d15", "551d1b", "551d1c", "551d1e", "551d1f"),
        *("551d20", "551d21", "551d23", "551d24", "551d25", "551d36", "551d2e", "2b06010505070101", "2b06010505070118"),
        *(
            "2b06010401d679020402",
            "2b0601050507030e",
            "2b06010505070301",
            "2b06010505070302",
            "551d2500",
            "2a864886f70d01010a",
        ),
    )
)
_NUMBERS: Final = (b"", b"\0", b"\x7f", b"\x80", b"\xff", b"\0\0", b"\xff\xff", b"\x01" * 21, b"\x7f" * 300, b"\0\xff")


# Trees --------------------------------------------------------------------------------------------------------------


def parse(der: bytes) -> Node:
    """The tree of an encoding; what strings of bytes have encoded in them is part of it.

    Raises:
        ValueError: it is none.
    """
    tag, start, end = element(der, 0)
    if end != len(der):
        msg = "there is more than an element"
        raise ValueError(msg)
    return _node(tag, der[start:end])


def _node(tag: int, content: bytes) -> Node:
    inner = content[1:] if tag == BIT_STRING and content[:1] == b"\0" else content
    if tag & 0x20 or (tag in (OCTET_STRING, BIT_STRING) and inner[:1] in (b"\x30", b"\x03", b"\x04")):
        try:
            parts = list(elements(inner, 0, len(inner)))
        except ValueError:
            return tag, content
        return tag, [_node(each, inner[at:after]) for each, _, at, after in parts]
    return tag, content


def write(node: Node) -> bytes:
    """Encode a tree."""
    tag, content = node
    if isinstance(content, list):
        content = b"".join(map(write, content))
        content = b"\0" + content if tag == BIT_STRING else content
    return content if tag == RAW else encoded(tag, content)


#: The tag of what is encoded already, perhaps wrongly.
RAW: Final = -1


def mutate(rng: Random, der: bytes, other: bytes) -> bytes:
    """A certificate or list with its structure changed; where it has none, with its bytes changed."""
    try:
        tree = parse(der)
    except ValueError:
        return mutate_bytes(rng, der, other)
    try:
        spare = parse(other)
    except ValueError:
        spare = (INTEGER, b"\1")
    for _ in range(rng.choice((1, 1, 1, 2, 5))):
        tree = _changed(rng, tree, spare)
    out = write(tree)
    return mutate_bytes(rng, out) if rng.random() < 0.03 else out


def _changed(rng: Random, node: Node, spare: Node) -> Node:
    tag, content = node
    if isinstance(content, list) and content and rng.random() < 0.93:
        parts = list(content)
        at = rng.randrange(len(parts))
        match rng.randrange(16):
            case 0:
                del parts[at]
            case 1:
                parts[at:at] = [parts[at]] * rng.choice((1, 1, 2, 40))
            case 2:
                parts[at] = _piece(rng, spare)
            case 3:
                parts.insert(at, _piece(rng, spare))
            case 4:
                rng.shuffle(parts)
            case _:
                parts[at] = _changed(rng, parts[at], spare)
        return tag, parts
    match rng.randrange(9):
        case 0:
            return rng.choice(_TAGS), content
        case 1:
            return tag, rng.choice(_TEXTS)
        case 2:
            return tag, rng.choice(_NUMBERS)
        case 3:
            return tag, rng.choice(_OIDS)
        case 4:
            return tag, rng.randbytes(rng.choice((1, 2, 4, 16, 20, 32)))
        case 5 if rng.random() < 0.2:
            return RAW, _misencoded(rng, node)
        case 6:
            for _ in range(rng.choice((1, 2, 60))):
                node = (rng.choice((SEQUENCE, SET, OCTET_STRING, 0xA0, 0xA3, 0xA4)), [node])
            return node
        case 7:
            return rng.choice((0x0C, 0x13, 0x14, 0x16, 0x1E, 0x03, 0x17, 0x18, 0x82, 0x86)), rng.choice(_TEXTS)
        case _:
            return tag, mutate_bytes(rng, write((tag, content))[2:])


def _piece(rng: Random, node: Node) -> Node:
    """A branch of a tree."""
    while isinstance(node[1], list) and node[1] and rng.random() < 0.8:
        node = rng.choice(node[1])
    return node


def _misencoded(rng: Random, node: Node) -> bytes:
    """An element whose length is not as DER has it, or is not its length."""
    whole = write(node)
    tag, content = whole[:1] or b"\x30", whole[2:]
    size = len(content)
    return rng.choice(
        (
            tag + b"\x82" + (size % 65536).to_bytes(2, "big") + content,  # longer than need be
            tag + b"\x80" + content + b"\0\0",  # indefinite
            tag + bytes([(size + rng.choice((1, -1, 5))) % 128]) + content,
            tag + b"\x84\xff\xff\xff\xff" + content,
            tag + b"\x88" + (2**64 - 1).to_bytes(8, "big"),
            tag + b"\xff",
            b"\x3f\xff\xff\x7f\x02\1\1",  # a tag of several bytes
        )
    )


# Putting right ------------------------------------------------------------------------------------------------------


def name(text: str) -> bytes:
    """A distinguished name of a common name alone."""
    return x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, text)]).public_bytes()


def spki(key: Ed25519PrivateKey) -> bytes:
    """A public key, as certificates have it."""
    return key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def dates() -> bytes:
    """From yesterday for three months; the same for a day."""
    today = datetime.now(UTC).replace(hour=0, minute=0, second=0)
    both = (f"{today + span:%y%m%d%H%M%SZ}".encode() for span in (timedelta(days=-1), timedelta(days=90)))
    return encoded(SEQUENCE, b"".join(encoded(0x17, each) for each in both))


def certificate(
    der: bytes, put_right: int, *, subject: bytes, key: Ed25519PrivateKey, issuer: bytes, signer: Ed25519PrivateKey
) -> bytes:
    """A certificate with some of its fields put right; as it is where it has too few of them."""
    try:
        parts = _tbs(der)
    except ValueError:
        return der
    at = 1 if parts and parts[0][:1] == b"\xa0" else 0
    if len(parts) < at + 6:
        return der
    if put_right & SIGNATURE:
        parts[at + 1] = _ED25519
    if put_right & NAMES:
        parts[at + 2], parts[at + 4] = issuer, subject
    if put_right & DATES:
        parts[at + 3] = dates()
    if put_right & KEY:
        parts[at + 5] = spki(key)
    return _signed(parts, signer) if put_right & SIGNATURE else der


def crl(der: bytes, put_right: int, *, issuer: bytes, signer: Ed25519PrivateKey) -> bytes:
    """A revocation list, likewise."""
    try:
        parts = _tbs(der)
    except ValueError:
        return der
    at = 1 if parts and parts[0][:1] == b"\x02" else 0
    if len(parts) < at + 4 or not put_right & SIGNATURE:
        return der
    parts[at] = _ED25519
    if put_right & NAMES:
        parts[at + 1] = issuer
    if put_right & DATES:
        both = dates()
        _, start, end = element(both, 0)
        parts[at + 2 : at + 4] = [both[begin:after] for _, begin, _, after in elements(both, start, end)]
    return _signed(parts, signer)


def _tbs(der: bytes) -> list[bytes]:
    _, start, _ = element(der, 0)
    _, start, end = element(der, start)
    return [der[begin:after] for _, begin, _, after in elements(der, start, end)]


def _signed(parts: list[bytes], signer: Ed25519PrivateKey) -> bytes:
    body = encoded(SEQUENCE, b"".join(parts))
    return encoded(SEQUENCE, body + _ED25519 + encoded(BIT_STRING, b"\0" + signer.sign(body)))
