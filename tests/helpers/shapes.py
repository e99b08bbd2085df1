"""Odd certificates and files, by the words that the manual has for them: made here, and judged by us and by `ssl`.

What Go says of each is on record in `shape_verdicts.json`: of chains, `x509.Certificate.Verify` with the host name; of
files, `tls.LoadX509KeyPair`. Run as a program with a directory, this writes all of them there, for a
referee to read: `PYTHONPATH=.:tests/helpers python tests/helpers/shapes.py DIRECTORY`.
"""

from __future__ import annotations

import json
import ssl
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ed25519, padding, rsa
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    pkcs7,
    pkcs12,
)
from OpenSSL import SSL, crypto

from benchmarks.stress.fuzz import forging
from benchmarks.stress.fuzz.chains import armour, presenting
from specimens import key_of, key_pem
from trionode import CAPool, CertificateError, KeyPair
from trionode._credentials.policy import TLSPolicy
from trionode._tls.contexts import TLSContexts
from trionode._tls.failures import HandshakeErrors
from trionode._tls.handshake import handshake_in_memory
from trionode._tls.session import TLSSession
from trionode._tls.verification import Examination
from trionode._util.der import encoded
from trionode.pki import CertificateAuthority

if TYPE_CHECKING:
    from trionode._credentials.pem import PrivateKey

RECORD: Final = Path(__file__).with_name("shape_verdicts.json")
HOST: Final = "localhost"
ED25519: Final = bytes.fromhex("300506032b6570")
SHA1_RSA: Final = bytes.fromhex("300d06092a864886f70d0101050500")
ROOT_KEY, LEAF_KEY = forging.ROOT_KEY, forging.LEAF_KEY
DAY: Final = timedelta(days=1)


@dataclass(frozen=True, kw_only=True)
class Chain:
    """What a server presents.

    Attributes:
        chain: the leaf first, DER.
        key: the leaf's, PEM.
        roots: what is trusted, DER.
        host: what is dialed.
    """

    chain: tuple[bytes, ...]
    key: bytes
    roots: tuple[bytes, ...]
    host: str = HOST


@dataclass(frozen=True, kw_only=True)
class Files:
    """What is given as our own certificate and key."""

    certificate: bytes
    key: bytes


Shape = Chain | Files
Maker = Callable[[], Shape]
SHAPES: dict[str, Maker] = {}


def shape(words: str) -> Callable[[Maker], Maker]:
    """Enter a maker under the manual's words."""

    def enter(maker: Maker) -> Maker:
        SHAPES[words] = cache(maker)
        return maker

    return enter


# Parts --------------------------------------------------------------------------------------------------------------


def seq(*parts: bytes) -> bytes:
    """A SEQUENCE."""
    return encoded(0x30, b"".join(parts))


def oid(hexadecimal: str) -> bytes:
    """An object identifier."""
    return encoded(0x06, bytes.fromhex(hexadecimal))


def rdn(kind: str, tag: int, value: bytes) -> bytes:
    """A name of one attribute."""
    return seq(encoded(0x31, seq(oid(kind), encoded(tag, value))))


def extension(kind: str, value: bytes, *, critical: bool = False) -> bytes:
    """An extension."""
    return seq(oid(kind), b"\1\1\xff" if critical else b"", encoded(0x04, value))


def dns(*names: str) -> bytes:
    """Names of hosts, as a SAN has them."""
    return b"".join(encoded(0x82, each.encode()) for each in names)


def san(*names: bytes, critical: bool = False) -> bytes:
    """The extension."""
    return extension("551d11", seq(*names), critical=critical)


BOTH: Final = extension("551d25", seq(oid("2b06010505070301"), oid("2b06010505070302")))
CA_TRUE: Final = extension("551d13", seq(b"\1\1\xff"), critical=True)
SPKI: Final = forging.spki(LEAF_KEY)
ROOT_NAME: Final = forging.name("root")


def signed(
    *extensions: bytes,
    subject: bytes = forging.name("leaf"),
    issuer: bytes = ROOT_NAME,
    key: bytes = SPKI,
    serial: bytes = b"\x11",
    dates: bytes | None = None,
    version: bytes = b"\xa0\x03\x02\x01\x02",
    signer: ed25519.Ed25519PrivateKey | rsa.RSAPrivateKey = ROOT_KEY,
) -> bytes:
    """A certificate of any parts."""
    algorithm = ED25519 if isinstance(signer, ed25519.Ed25519PrivateKey) else SHA1_RSA
    every = encoded(0xA3, seq(*extensions)) if extensions else b""
    number = encoded(0x02, serial)
    body = seq(version, number, algorithm, issuer, dates or forging.dates(), subject, key, every)
    if isinstance(signer, ed25519.Ed25519PrivateKey):
        signature = signer.sign(body)
    else:
        signature = signer.sign(body, padding.PKCS1v15(), hashes.SHA1())  # noqa: S303 -- that is the shape
    return seq(body, algorithm, encoded(0x03, b"\0" + signature))


def public(key: PrivateKey | Any) -> bytes:
    """SubjectPublicKeyInfo."""
    return key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


ROOT: Final = signed(CA_TRUE, subject=ROOT_NAME, key=forging.spki(ROOT_KEY))
KEY: Final = key_pem(LEAF_KEY)
GOOD: Final = san(dns(HOST))


def served(*extensions: bytes, **parts: Any) -> Chain:
    """A leaf alone, below the root."""
    return Chain(chain=(signed(*(extensions or (GOOD, BOTH)), **parts),), key=KEY, roots=(ROOT,))


# Chains -------------------------------------------------------------------------------------------------------------


@shape("a subject attribute of type BIT STRING")
def _bit_string() -> Shape:
    return served(subject=rdn("550403", 0x03, b"\0\1\2"))


@shape("a subject in TeletexString, with octets beyond ASCII")
def _teletex() -> Shape:
    return served(subject=rdn("55040a", 0x14, b"M\xfcnchen"))


@shape("a subject in BMPString")
def _bmp() -> Shape:
    return served(subject=rdn("55040a", 0x1E, "Österreich".encode("utf-16-be")))


@shape("a PrintableString with `&`, `*`")
def _printable() -> Shape:
    return served(subject=rdn("55040a", 0x13, b"Sons & Co *"))


@shape("a PrintableString with `_`, `@`")
def _printable_other() -> Shape:
    return served(subject=rdn("55040a", 0x13, b"ops_1 @ home"))


@shape("an empty subject")
def _no_subject() -> Shape:
    return served(subject=seq())


@shape("a policy notice in an odd encoding")
def _policy() -> Shape:
    notice = seq(oid("2b06010505070202"), seq(encoded(0x14, b"\xff\xfe")))
    return served(GOOD, BOTH, extension("551d20", seq(seq(oid("2a0304"), seq(notice)))))


@shape("a SAN with an ediPartyName beside the host")
def _edi() -> Shape:
    return served(san(encoded(0xA5, encoded(0xA1, encoded(0x0C, b"x"))), dns(HOST)), BOTH)


@shape("a SAN with a directoryName in Latin-1 beside the host")
def _latin() -> Shape:
    return served(san(encoded(0xA4, rdn("55040a", 0x13, b"M\xfcnchen")), dns(HOST)), BOTH)


@shape("a garbage SCT list")
def _sct() -> Shape:
    return served(GOOD, BOTH, extension("2b06010401d679020402", b"\x04\x03abc"))


@shape("an unknown extension")
def _unknown() -> Shape:
    return served(GOOD, BOTH, extension("2a0304", b"\5\0"))


@shape("an unknown extension that is critical")
def _critical() -> Shape:
    return served(GOOD, BOTH, extension("2a0304", b"\5\0", critical=True))


@shape("the SAN extension twice")
def _twice() -> Shape:
    return served(GOOD, GOOD, BOTH)


@shape("a host name with an underscore")
def _underscore() -> Shape:
    return replace(served(san(dns("foo_bar.example.com")), BOTH), host="foo_bar.example.com")


@shape("no SAN, the host as Common Name")
def _common_name() -> Shape:
    return served(BOTH, subject=forging.name(HOST))


@shape("a serial number of zero")
def _zero() -> Shape:
    return served(serial=b"\0")


@shape("a serial number below zero")
def _negative() -> Shape:
    return served(serial=b"\x80")


@shape("a serial number of 21 octets")
def _long_serial() -> Shape:
    return served(serial=b"\x11" * 21)


@shape("version 1, without extensions")
def _version_1() -> Shape:
    der = signed(subject=forging.name(HOST), version=b"")
    return Chain(chain=(der,), key=KEY, roots=(ROOT,))


@shape("dates before 2050 as GeneralizedTime")
def _generalized() -> Shape:
    now = datetime.now(UTC)
    both = (encoded(0x18, f"{each:%Y%m%d%H%M%SZ}".encode()) for each in (now - DAY, now + 9 * DAY))
    return served(dates=seq(*both))


@shape("a year beyond 2049")
def _far() -> Shape:
    start = encoded(0x17, f"{datetime.now(UTC) - DAY:%y%m%d%H%M%SZ}".encode())
    return served(dates=seq(start, encoded(0x18, b"99991231235959Z")))


@shape("an RSA key of 1024 bits")
def _small() -> Shape:
    key = key_of("rsa-1024")
    return Chain(chain=(signed(GOOD, BOTH, key=public(key)),), key=key_pem(key), roots=(ROOT,))


@shape("a signature with SHA-1")
def _sha1() -> Shape:
    signer = key_of("rsa")
    assert isinstance(signer, rsa.RSAPrivateKey)
    authority = signed(CA_TRUE, subject=ROOT_NAME, key=public(signer), signer=signer)
    return Chain(chain=(signed(GOOD, BOTH, signer=signer),), key=KEY, roots=(authority,))


@shape("an EC key with explicit curve parameters")
def _explicit() -> Shape:
    key, own = (_openssl("ecparam", "-genkey", "-name", "prime256v1", "-noout", "-param_enc", "explicit"), "pkey")
    der = _openssl(own, "-pubout", "-outform", "DER", given=key)
    return Chain(chain=(signed(GOOD, BOTH, key=der),), key=key, roots=(ROOT,))


@shape("an RSA key that is limited to PSS")
def _pss() -> Shape:
    key = _openssl("genpkey", "-algorithm", "RSA-PSS", "-pkeyopt", "rsa_keygen_bits:2048")
    der = _openssl("pkey", "-pubout", "-outform", "DER", given=key)
    return Chain(chain=(signed(GOOD, BOTH, key=der),), key=key, roots=(ROOT,))


@shape("a leaf with the name of its CA")
def _same_name() -> Shape:
    return served(subject=ROOT_NAME)


@shape("a name that a CA's name constraints exclude")
def _constrained() -> Shape:
    constraints = extension("551d1e", seq(encoded(0xA1, seq(encoded(0x82, b"localhost")))), critical=True)
    authority = signed(CA_TRUE, constraints, subject=ROOT_NAME, key=forging.spki(ROOT_KEY))
    return Chain(chain=(signed(GOOD, BOTH),), key=KEY, roots=(authority,))


@shape("a trusted CA that has expired")
def _expired() -> Shape:
    both = (encoded(0x17, each) for each in (b"200101000000Z", b"210101000000Z"))
    authority = signed(CA_TRUE, subject=ROOT_NAME, key=forging.spki(ROOT_KEY), dates=seq(*both))
    return Chain(chain=(signed(GOOD, BOTH),), key=KEY, roots=(authority,))


@shape("the leaf twice in the chain")
def _duplicate() -> Shape:
    [leaf] = served().chain
    return Chain(chain=(leaf, leaf), key=KEY, roots=(ROOT,))


@shape("an intermediate that two roots have signed, both certificates")
def _cross_signed() -> Shape:
    name, key = forging.name("middle"), forging.spki(forging.MIDDLE_KEY)
    one = signed(CA_TRUE, subject=name, key=key)
    other = signed(CA_TRUE, subject=name, key=key, issuer=forging.name("other"), signer=LEAF_KEY)
    leaf = signed(GOOD, BOTH, issuer=name, signer=forging.MIDDLE_KEY)
    return Chain(chain=(leaf, other, one), key=KEY, roots=(ROOT,))


# Files --------------------------------------------------------------------------------------------------------------


@cache
def _pair() -> KeyPair:
    return CertificateAuthority.create(intermediate=True).issue(HOST)


def _pem() -> bytes:
    return b"".join(each.public_bytes(Encoding.PEM) for each in _pair().chain)


def _own(certificate: bytes, key: bytes | None = None) -> Files:
    return Files(certificate=certificate, key=key_pem(_pair().private_key) if key is None else key)


@shape("files: PEM with CRLF, text before it, a byte order mark")
def _crlf() -> Shape:
    return _own(b"\xef\xbb\xbfSubject: leaf\r\n\r\n" + _pem().replace(b"\n", b"\r\n"))


@shape("files: a certificate twice")
def _own_twice() -> Shape:
    return _own(_pem() + _pem())


@shape("files: the chain in another order")
def _own_disorder() -> Shape:
    every = [each.public_bytes(Encoding.PEM) for each in _pair().chain]
    stranger = CertificateAuthority.create().certificate.public_bytes(Encoding.PEM)
    return _own(every[0] + stranger + every[1])


@shape("files: DER")
def _own_der() -> Shape:
    private = _pair().private_key.private_bytes(Encoding.DER, PrivateFormat.PKCS8, NoEncryption())
    return _own(_pair().certificate.public_bytes(Encoding.DER), private)


@shape("files: PKCS#7 with the chain")
def _own_pkcs7() -> Shape:
    return _own(pkcs7.serialize_certificates(list(_pair().chain), Encoding.PEM))


@shape("files: PKCS#12")
def _own_pkcs12() -> Shape:
    pair = _pair()
    data = pkcs12.serialize_key_and_certificates(
        b"", pair.private_key, pair.certificate, pair.chain[1:], NoEncryption()
    )
    return _own(data, data)


@shape("files: a TRUSTED CERTIFICATE block")
def _own_trusted() -> Shape:
    return _own(_openssl("x509", "-trustout", "-addtrust", "serverAuth", given=_pem()))


@shape("files: UTF-16")
def _own_utf16() -> Shape:
    return _own(_pem().decode().encode("utf-16"))


@shape("files: an RSA key of three primes")
def _own_primes() -> Shape:
    key = _openssl(
        "genpkey", "-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:2048", "-pkeyopt", "rsa_keygen_primes:3"
    )
    der = _openssl("pkey", "-pubout", "-outform", "DER", given=key)
    return Files(certificate=armour(signed(GOOD, BOTH, key=der)), key=key)


@shape("files: an EC key with explicit curve parameters")
def _own_explicit() -> Shape:
    made = SHAPES["an EC key with explicit curve parameters"]()
    assert isinstance(made, Chain)
    return Files(certificate=armour(made.chain[0]), key=made.key)


@shape("files: an RSA key that is limited to PSS")
def _own_pss() -> Shape:
    made = SHAPES["an RSA key that is limited to PSS"]()
    assert isinstance(made, Chain)
    return Files(certificate=armour(made.chain[0]), key=made.key)


def _openssl(*arguments: str, given: bytes = b"") -> bytes:
    return subprocess.run(["openssl", *arguments], input=given, capture_output=True, check=True).stdout


# Verdicts -----------------------------------------------------------------------------------------------------------


def _serves(made: Chain) -> TLSSession:
    """A server that presents it, whatever it is."""
    leaf, *others = (crypto.load_certificate(crypto.FILETYPE_ASN1, each) for each in made.chain)
    context = presenting(leaf, others, crypto.load_privatekey(crypto.FILETYPE_PEM, made.key))
    connection = SSL.Connection(context)
    connection.set_accept_state()
    connection.set_app_data(Examination(accepting=True, judge=None, errors=HandshakeErrors()))
    return TLSSession(connection, connection.get_app_data())


def ours(made: Shape) -> str:
    """`accepted`, or why not."""
    if isinstance(made, Files):
        try:
            with tempfile.TemporaryDirectory() as directory:
                TLSContexts.build(1, KeyPair.load(*_written(made, Path(directory))), TLSPolicy())
        except CertificateError as exc:
            return str(exc)
        return "accepted"
    pool = CAPool.from_pem(b"".join(map(armour, made.roots)))
    contexts = TLSContexts.build(1, KeyPair.self_signed(HOST), TLSPolicy(root_cas=pool))
    client = contexts.client.session(reference=made.host)
    failure = handshake_in_memory(_serves(made), client)
    return "accepted" if failure is None else str(failure)


def of_ssl(made: Shape) -> str:
    """What Python's `ssl` says, which is what OpenSSL says."""
    if isinstance(made, Files):
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        try:
            with tempfile.TemporaryDirectory() as directory:
                context.load_cert_chain(*_written(made, Path(directory)))
        except ssl.SSLError as exc:
            return str(exc)
        return "accepted"
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(cadata="".join(armour(each).decode() for each in made.roots))
    server, (come, go) = _serves(made), (ssl.MemoryBIO(), ssl.MemoryBIO())
    client = context.wrap_bio(come, go, server_hostname=made.host)
    for _ in range(4):
        try:
            client.do_handshake()
        except ssl.SSLWantReadError:
            pass
        except (ssl.SSLError, ssl.CertificateError) as exc:
            return str(exc)
        else:
            return "accepted"
        server.feed(go.read())
        server.handshake()
        come.write(server.outgoing())
    return "no end"


def _written(made: Files, directory: Path) -> tuple[Path, Path]:
    (directory / "cert").write_bytes(made.certificate)
    (directory / "key").write_bytes(made.key)
    return directory / "cert", directory / "key"


def write_all(directory: Path) -> None:
    """Every shape in a directory of its own, with `index.json` for a referee."""
    index = []
    for number, (words, make) in enumerate(SHAPES.items()):
        made, folder = make(), directory / str(number)
        folder.mkdir(parents=True)
        if isinstance(made, Files):
            _written(made, folder)
        else:
            (folder / "chain.pem").write_bytes(b"".join(map(armour, made.chain)))
            (folder / "roots.pem").write_bytes(b"".join(map(armour, made.roots)))
        index.append({"words": words, "folder": str(folder), "host": getattr(made, "host", "")})
    (directory / "index.json").write_text(json.dumps(index))


if __name__ == "__main__":
    write_all(Path(sys.argv[1]))
