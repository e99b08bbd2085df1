"""Who gets in: five client-auth modes, nine kinds of client certificate, three kinds of client.

The table says what Go's crypto/tls says, with two exceptions: where certificates are verified, one with
`anyExtendedKeyUsage` alone and one whose key usage lacks `digitalSignature` are refused, because OpenSSL does so. What
the refused client is told is OpenSSL's choice of alert.

The clients: Python's own `ssl` (OpenSSL 3.0 at the time of writing), `openssl s_client`, and a trionode dialer (the
OpenSSL inside the `cryptography` wheel, as on the server's side). All three send what they have, whatever CAs the
server hints at; a Go client holds back a certificate that does not fit the hints.
"""

from __future__ import annotations

import base64
import enum
import re
import shutil
import socket
import ssl
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import TYPE_CHECKING, Final, TypeAlias

import pytest
import trio
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from trionode import (
    CAPool,
    CertAuthManager,
    ClientAuth,
    HandshakeError,
    KeyPair,
    PeerRejectedError,
    PeerUnverifiedError,
    RejectionCode,
    RemoteProtocolError,
    Stage,
    UnverifiedReason,
    open_tls_stream,
)
from trionode._handshake.accept import accept_tls
from trionode._tls.stream import SessionStream
from trionode.pki import CertificateAuthority, write_ca_pool, write_key_pair

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from pathlib import Path

#: Every test is bounded by this. Seconds.
PATIENCE = 30
WELCOME = "welcome"
DAY = timedelta(days=1)

needs_openssl = pytest.mark.skipif(shutil.which("openssl") is None, reason="there is no openssl program here")


class Outcome(enum.Enum):
    """What becomes of a client."""

    UNSEEN = "accepted, and the server knows of no certificate"
    TAKEN = "accepted, and the server has the certificate but has not verified it"
    VERIFIED = "accepted, and the server has verified the certificate"
    NO_CERTIFICATE = "refused: it sent none"
    UNKNOWN_CA = "refused: not signed by a CA of the pool"
    SELF_SIGNED = "refused: signed by itself, and not in the pool"
    EXPIRED = "refused: expired"
    NOT_YET_VALID = "refused: not yet valid"
    WRONG_EKU = "refused: not meant for clients"
    NO_SIGNATURES = "refused: not meant to sign with"


UNSEEN, TAKEN, VERIFIED = Outcome.UNSEEN, Outcome.TAKEN, Outcome.VERIFIED
NO_CERTIFICATE, UNKNOWN_CA, EXPIRED = Outcome.NO_CERTIFICATE, Outcome.UNKNOWN_CA, Outcome.EXPIRED
NOT_YET_VALID, WRONG_EKU, NO_SIGNATURES = Outcome.NOT_YET_VALID, Outcome.WRONG_EKU, Outcome.NO_SIGNATURES
SELF_SIGNED = Outcome.SELF_SIGNED

MODES: Final = (
    ClientAuth.NO_CLIENT_CERT,
    ClientAuth.REQUEST_CLIENT_CERT,
    ClientAuth.REQUIRE_ANY_CLIENT_CERT,
    ClientAuth.VERIFY_CLIENT_CERT_IF_GIVEN,
    ClientAuth.REQUIRE_AND_VERIFY_CLIENT_CERT,
)

# fmt: off
TABLE: Final = {
    #                              no      request  require any     verify if given  require and verify
    "no certificate":             (UNSEEN, UNSEEN,  NO_CERTIFICATE, UNSEEN,          NO_CERTIFICATE),
    "good":                       (UNSEEN, TAKEN,   TAKEN,          VERIFIED,        VERIFIED),
    "of an unknown CA":           (UNSEEN, TAKEN,   TAKEN,          UNKNOWN_CA,      UNKNOWN_CA),
    "self-signed":                (UNSEEN, TAKEN,   TAKEN,          SELF_SIGNED,     SELF_SIGNED),
    "expired":                    (UNSEEN, TAKEN,   TAKEN,          EXPIRED,         EXPIRED),
    "not yet valid":              (UNSEEN, TAKEN,   TAKEN,          NOT_YET_VALID,   NOT_YET_VALID),
    "for servers only":           (UNSEEN, TAKEN,   TAKEN,          WRONG_EKU,       WRONG_EKU),
    "anyExtendedKeyUsage only":   (UNSEEN, TAKEN,   TAKEN,          WRONG_EKU,       WRONG_EKU),  # Go: accepted
    "no digitalSignature":        (UNSEEN, TAKEN,   TAKEN,          NO_SIGNATURES,   NO_SIGNATURES),  # Go: accepted
}
# fmt: on


@dataclass(frozen=True, kw_only=True)
class Refusal:
    """How a refusal looks from both sides.

    Attributes:
        reason: of the server's exception.
        alert: what the client is told.
        remedy: words that the server's text has, besides the certificate.
        wanted: a part of the exception's `wanted`.
    """

    reason: UnverifiedReason
    alert: RejectionCode
    remedy: str
    wanted: str


REFUSALS: Final = {
    NO_CERTIFICATE: Refusal(
        reason=UnverifiedReason.NO_CERTIFICATE,
        alert=RejectionCode.CERTIFICATE_REQUIRED,
        remedy="Give the client a key pair signed by a CA of our client-CA pool",
        wanted="a client certificate",
    ),
    UNKNOWN_CA: Refusal(
        reason=UnverifiedReason.UNKNOWN_CA,
        alert=RejectionCode.UNKNOWN_CA,
        remedy="Add its CA to client_cas (with rotate_trust() while in use)",
        wanted="CN=cluster CA",
    ),
    SELF_SIGNED: Refusal(
        reason=UnverifiedReason.UNKNOWN_CA,
        alert=RejectionCode.UNKNOWN_CA,
        remedy="trust this very certificate, by adding it to client_cas (with rotate_trust() while in use)",
        wanted="CN=cluster CA",
    ),
    EXPIRED: Refusal(
        reason=UnverifiedReason.EXPIRED,
        alert=RejectionCode.CERTIFICATE_EXPIRED,
        remedy="The peer must rotate it",
        wanted="a certificate valid at",
    ),
    NOT_YET_VALID: Refusal(
        reason=UnverifiedReason.NOT_YET_VALID,
        alert=RejectionCode.BAD_CERTIFICATE,
        remedy="Check the clocks of this machine, the peer and the CA",
        wanted="a certificate valid at",
    ),
    WRONG_EKU: Refusal(
        reason=UnverifiedReason.WRONG_EKU,
        alert=RejectionCode.UNSUPPORTED_CERTIFICATE,
        remedy="Issue it with both serverAuth and clientAuth",
        wanted="clientAuth",
    ),
    NO_SIGNATURES: Refusal(
        reason=UnverifiedReason.WRONG_EKU,
        alert=RejectionCode.UNSUPPORTED_CERTIFICATE,
        remedy="does not allow signatures (key usage). Issue it with digitalSignature",
        wanted="clientAuth",
    ),
}


# The certificates ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Holder:
    """A client's certificate, as the three kinds of client need it.

    Attributes:
        key_pair: the certificate, or None.
        files: the same as PEM files: certificate, key.
        when: how far off the true time a clock is by which the certificate is valid.
    """

    key_pair: KeyPair | None = None
    files: tuple[Path, Path] | None = None
    when: timedelta = field(default=timedelta(0))


@dataclass(frozen=True, kw_only=True)
class World:
    """The CA, its certificate in a file, the server's key pair and every kind of client certificate."""

    ca: CertificateAuthority
    ca_file: Path
    server: KeyPair
    holders: dict[str, Holder]


def issue_for_encryption(ca: CertificateAuthority) -> KeyPair:
    """A certificate whose key usage has keyEncipherment alone, as for the RSA key exchange of old."""
    key = ec.generate_private_key(ec.SECP256R1())
    uses = dict.fromkeys(
        ("digital_signature", "content_commitment", "data_encipherment", "key_agreement", "key_cert_sign", "crl_sign"),
        False,
    )
    signer = ca._key
    assert isinstance(signer, ec.EllipticCurvePrivateKey)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "client")]))
        .issuer_name(ca.certificate.subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(datetime.now(UTC) - DAY)
        .not_valid_after(datetime.now(UTC) + DAY)
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .add_extension(
            x509.KeyUsage(key_encipherment=True, encipher_only=False, decipher_only=False, **uses), critical=True
        )
        .sign(signer, hashes.SHA256())
    )
    return KeyPair([certificate], key)


@pytest.fixture(scope="module")
def world(ca: CertificateAuthority, rogue_ca: CertificateAuthority, tmp_path_factory: pytest.TempPathFactory) -> World:
    """Issue everything, once."""
    folder = tmp_path_factory.mktemp("client-certificates")
    now = datetime.now(UTC)
    issue = partial(ca.issue, "client@localhost")

    def held(key_pair: KeyPair, when: timedelta = timedelta(0)) -> Holder:
        files = (folder / f"{key_pair.fingerprint}.pem", folder / f"{key_pair.fingerprint}.key")
        write_key_pair(key_pair, *files)
        return Holder(key_pair=key_pair, files=files, when=when)

    any_use = ExtendedKeyUsageOID.ANY_EXTENDED_KEY_USAGE
    holders = {
        "no certificate": Holder(),
        "good": held(issue()),
        "of an unknown CA": held(rogue_ca.issue("client@localhost")),
        "self-signed": held(KeyPair.self_signed("localhost")),
        "expired": held(issue(not_before=now - 10 * DAY, not_after=now - DAY), -5 * DAY),
        "not yet valid": held(issue(not_before=now + DAY, not_after=now + 10 * DAY), 5 * DAY),
        "for servers only": held(issue(extended_key_usage=[ExtendedKeyUsageOID.SERVER_AUTH])),
        "anyExtendedKeyUsage only": held(issue(extended_key_usage=[any_use])),
        "no digitalSignature": held(issue_for_encryption(ca)),
    }
    ca_file = folder / "ca.pem"
    write_ca_pool(ca.pool, ca_file)
    return World(ca=ca, ca_file=ca_file, server=ca.issue("server@localhost"), holders=holders)


# The clients: each connects, reads and returns what it was told, `welcome` or the name of an alert ------------------


async def stdlib_client(world: World, holder: Holder, port: int) -> str:
    """Python's own `ssl`, blocking, in a thread."""

    def talk() -> str:
        context = ssl.create_default_context(cafile=world.ca_file)
        if holder.files is not None:
            context.load_cert_chain(*holder.files)
        with socket.create_connection(("127.0.0.1", port), timeout=PATIENCE) as transport:
            # In TLS 1.3 the client's handshake succeeds before the server has judged it.
            with context.wrap_socket(transport, server_hostname="localhost") as stream:
                assert stream.version() == "TLSv1.3"
                try:
                    return stream.recv(100).decode()
                except ssl.SSLError as exc:
                    return re.sub(r"(SSLV3|TLSV1|TLSV13)_ALERT_", "", exc.reason or "").lower()

    return await trio.to_thread.run_sync(talk)


async def openssl_client(world: World, holder: Holder, port: int) -> str:
    """The command line of OpenSSL."""
    command = ["openssl", "s_client", "-connect", f"127.0.0.1:{port}", "-quiet", "-CAfile", str(world.ca_file)]
    command += ["-verify_return_error", "-verify_hostname", "localhost", "-servername", "localhost"]
    if holder.files is not None:
        certificate, key = holder.files
        command += ["-cert", str(certificate), "-key", str(key)]
    done = await trio.run_process(command, capture_stdout=True, capture_stderr=True, check=False)
    alert = re.search(rb" alert ([a-z ]+):", done.stderr)
    return done.stdout.decode() if alert is None else alert[1].decode().replace(" ", "_")


async def trionode_client(world: World, holder: Holder, port: int) -> str:
    """A dialer of our own, whose clock makes it present what no client should present."""
    assert holder.key_pair is not None
    manager = CertAuthManager(holder.key_pair, root_cas=world.ca.pool, clock=lambda: datetime.now(UTC) + holder.when)
    async with await open_tls_stream("127.0.0.1", port, cert_manager=manager, server_name="localhost") as stream:
        assert stream.verified
        try:
            return (await stream.receive_some()).decode()
        except trio.BrokenResourceError as exc:
            cause = exc.__cause__
            assert isinstance(cause, PeerRejectedError)
            assert cause.presented == holder.key_pair.certificate
            assert cause.stage is Stage.TLS
            assert cause.code in REFUSED_CODES
            return cause.code


REFUSED_CODES: Final = {refusal.alert for refusal in REFUSALS.values()}
Client: TypeAlias = "Callable[[World, Holder, int], Awaitable[str]]"
CLIENTS: Final[dict[str, Client]] = {
    "stdlib": stdlib_client,
    "s_client": openssl_client,
    "trionode": trionode_client,
}


# The server ---------------------------------------------------------------------------------------------------------


async def meet(
    manager: CertAuthManager, client: Callable[[int], Awaitable[str]]
) -> tuple[HandshakeError | SessionStream, str]:
    """One client, one handshake: what the server got out of it, and what the client was told."""
    told: list[str] = []
    with trio.fail_after(PATIENCE):
        [listener] = await trio.open_tcp_listeners(0, host="127.0.0.1")
        async with listener, trio.open_nursery() as nursery:

            async def call() -> None:
                told.append(await client(listener.socket.getsockname()[1]))

            nursery.start_soon(call)
            transport = await listener.accept()
            result: HandshakeError | SessionStream
            try:
                result = await accept_tls(transport, manager.contexts, alpn=(), handshake_timeout=PATIENCE)
            except HandshakeError as exc:
                result = exc
                assert transport.socket.fileno() == -1, "a refused client's connection is closed"
            else:
                await result.send_all(WELCOME.encode())
                await result.aclose()
    return result, told[0]


def check_refusal(error: HandshakeError | SessionStream, refusal: Refusal, sent: x509.Certificate | None) -> None:
    """The server's exception has the class, the reason and every fact of the certificate, as data and in the text."""
    assert type(error) is PeerUnverifiedError
    assert error.reason is refusal.reason
    assert error.stage is Stage.TLS
    assert error.generation == 1
    assert error.address is not None
    assert error.address[0] == "127.0.0.1"
    assert error.certificate == sent
    assert refusal.wanted in (error.wanted or "")
    text = str(error)
    assert refusal.remedy in text
    assert f"at 127.0.0.1 port {error.address[1]}" in text
    if sent is not None:
        assert f"{sent.subject.rfc4514_string()} (DNS:localhost" in text
        assert f"issuer {sent.issuer.rfc4514_string()}" in text
        assert f"{sent.not_valid_before_utc:from %Y-%m-%d %H:%M:%S}" in text
        assert f"{sent.not_valid_after_utc:to %Y-%m-%d %H:%M:%S UTC}" in text


CELLS: Final = [
    pytest.param(
        mode,
        certificate,
        client,
        outcome,
        id=f"{mode.value}-{certificate}-{client}",
        marks=[needs_openssl] if client == "s_client" else [],
    )
    for certificate, row in TABLE.items()
    for mode, outcome in zip(MODES, row, strict=True)
    for client in CLIENTS
    if (certificate, client) != ("no certificate", "trionode")  # a manager always has a key pair
]


@pytest.mark.parametrize(("mode", "certificate", "client", "outcome"), CELLS)
async def test_who_gets_in_and_who_is_told_what(
    world: World, mode: ClientAuth, certificate: str, client: str, outcome: Outcome
) -> None:
    """Every cell of the table, from both sides: the server's verdict with its facts, and the alert at the client."""
    manager = CertAuthManager(world.server, client_cas=world.ca.pool, client_auth=mode)
    holder = world.holders[certificate]
    sent = None if holder.key_pair is None else holder.key_pair.certificate

    result, told = await meet(manager, partial(CLIENTS[client], world, holder))

    if outcome in REFUSALS:
        check_refusal(result, REFUSALS[outcome], sent)
        assert told == REFUSALS[outcome].alert
    else:
        assert isinstance(result, SessionStream), result
        assert told == WELCOME
        assert result.verified is (outcome is VERIFIED)
        assert result.peer_certificate == (None if outcome is UNSEEN else sent)


def test_the_table_is_complete(world: World) -> None:
    """Every mode has a column, every certificate a row, and every refusal is described."""
    assert set(MODES) == set(ClientAuth)
    assert TABLE.keys() == world.holders.keys()
    outcomes = {outcome for row in TABLE.values() for outcome in row}
    assert outcomes == set(Outcome)
    assert REFUSALS.keys() == outcomes - {UNSEEN, TAKEN, VERIFIED}


# Chains and pins ----------------------------------------------------------------------------------------------------

VERIFYING: Final = [mode for mode in MODES if mode.verifies]


@pytest.mark.parametrize("mode", VERIFYING, ids=lambda mode: mode.value)
async def test_a_client_brings_its_intermediates(world: World, mode: ClientAuth) -> None:
    """A pool that holds the root verifies a client that sends its intermediate, and none that keeps it back."""
    issuer = CertificateAuthority.create(intermediate=True)
    manager = CertAuthManager(world.server, client_cas=issuer.pool, client_auth=mode)
    complete = issuer.issue("client@localhost")
    leaf_alone = KeyPair(complete.chain[:1], complete.private_key)
    assert len(complete.chain) == 2

    result, told = await meet(manager, partial(trionode_client, world, Holder(key_pair=complete)))
    assert isinstance(result, SessionStream)
    assert result.verified
    assert told == WELCOME

    result, told = await meet(manager, partial(trionode_client, world, Holder(key_pair=leaf_alone)))
    assert isinstance(result, PeerUnverifiedError)
    assert result.reason is UnverifiedReason.UNKNOWN_CA
    assert result.certificate == complete.certificate
    assert "have the peer send its intermediates" in str(result)
    assert told == RejectionCode.UNKNOWN_CA


@pytest.mark.parametrize("mode", VERIFYING, ids=lambda mode: mode.value)
async def test_a_chain_that_fails_above_the_leaf_is_named_where_it_fails(world: World, mode: ClientAuth) -> None:
    """A client whose chain leads to a root that is not in the pool: the refusal says whose it is and where it fails."""
    elsewhere = CertificateAuthority.create(intermediate=True)
    manager = CertAuthManager(world.server, client_cas=world.ca.pool, client_auth=mode)
    key_pair = elsewhere.issue("client@localhost")

    result, told = await meet(manager, partial(trionode_client, world, Holder(key_pair=key_pair)))
    assert isinstance(result, PeerUnverifiedError)
    assert result.reason is UnverifiedReason.UNKNOWN_CA
    assert result.certificate == key_pair.certificate
    assert result.failed_at == elsewhere.intermediate
    assert "certificate 2 of its chain" in str(result)
    assert told == RejectionCode.UNKNOWN_CA


@pytest.mark.parametrize("mode", VERIFYING, ids=lambda mode: mode.value)
async def test_every_certificate_of_the_pool_is_an_anchor(world: World, mode: ClientAuth) -> None:
    """A pool may hold the intermediate alone, or a leaf itself, self-signed or not; its siblings stay out."""
    issuer = CertificateAuthority.create(intermediate=True)
    assert issuer.intermediate is not None
    pinned, sibling = issuer.issue("client@localhost"), issuer.issue("client@localhost")
    self_signed = KeyPair.self_signed("localhost")
    for pool, key_pair in (
        (CAPool([issuer.intermediate]), pinned),
        (CAPool([pinned.certificate]), pinned),
        (CAPool([self_signed.certificate]), self_signed),
    ):
        manager = CertAuthManager(world.server, client_cas=pool, client_auth=mode)
        holder = Holder(key_pair=key_pair)
        result, told = await meet(manager, partial(trionode_client, world, holder))
        assert isinstance(result, SessionStream), result
        assert result.verified
        assert told == WELCOME

    manager = CertAuthManager(world.server, client_cas=CAPool([pinned.certificate]), client_auth=mode)
    result, told = await meet(manager, partial(trionode_client, world, Holder(key_pair=sibling)))
    assert isinstance(result, PeerUnverifiedError)
    assert result.reason is UnverifiedReason.UNKNOWN_CA
    assert told == RejectionCode.UNKNOWN_CA


# Hints --------------------------------------------------------------------------------------------------------------


@needs_openssl
@pytest.mark.parametrize("mode", MODES, ids=lambda mode: mode.value)
async def test_a_server_that_asks_hints_at_its_cas(world: World, mode: ClientAuth) -> None:
    """Clients that choose among several certificates are told which CAs the server trusts, if it asks at all."""
    manager = CertAuthManager(world.server, client_cas=world.ca.pool, client_auth=mode)
    output: list[str] = []

    async def look(port: int) -> str:
        command = ["openssl", "s_client", "-connect", f"127.0.0.1:{port}", "-CAfile", str(world.ca_file), "-ign_eof"]
        done = await trio.run_process(command, capture_stdout=True, capture_stderr=True, check=False)
        output.append(done.stdout.decode())
        return ""

    await meet(manager, look)
    assert ("Acceptable client certificate CA names" in output[0]) is mode.requests
    assert ("No client certificate CA names sent" in output[0]) is not mode.requests


# Certificates that cannot be read -----------------------------------------------------------------------------------


def tlv(tag: int, body: bytes) -> bytes:
    """One element of DER."""
    if len(body) < 128:
        return bytes([tag, len(body)]) + body
    length = len(body).to_bytes((len(body).bit_length() + 7) // 8, "big")
    return bytes([tag, 0x80 | len(length)]) + length + body


def elements(der: bytes) -> list[tuple[int, bytes]]:
    """The elements of some DER, as tags and bodies."""
    found: list[tuple[int, bytes]] = []
    while der:
        long = der[1] & 0x80
        start = 2 + (der[1] & 0x7F if long else 0)
        end = start + (int.from_bytes(der[2:start], "big") if long else der[1])
        found.append((der[0], der[start:end]))
        der = der[end:]
    return found


def forge(field: int, replacement: bytes) -> bytes:
    """A certificate and its key as PEM: self-signed, sound but for one field of what is signed (RFC 5280 4.1)."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "forged")])
    sound = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(datetime.now(UTC) - DAY)
        .not_valid_after(datetime.now(UTC) + DAY)
        .sign(key, hashes.SHA256())
    )
    fields = [tlv(*element) for element in elements(elements(sound.tbs_certificate_bytes)[0][1])]
    fields[field] = replacement
    signed = tlv(0x30, b"".join(fields))
    signature = tlv(0x03, b"\0" + key.sign(signed, ec.ECDSA(hashes.SHA256())))
    der = tlv(0x30, signed + fields[2] + signature)
    pem = b"-----BEGIN CERTIFICATE-----\n" + base64.encodebytes(der) + b"-----END CERTIFICATE-----\n"
    return pem + key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def utc_times(*times: bytes) -> bytes:
    """A validity of these times as they are."""
    return tlv(0x30, b"".join(tlv(0x17 if len(time) < 15 else 0x18, time) for time in times))


# What OpenSSL reads, in other peoples' programs and in ours, and `cryptography` does not.
UNREADABLE: Final = {
    "version 6": forge(0, bytes.fromhex("a003020105")),
    "a negative version": forge(0, bytes.fromhex("a0030201ff")),
    "a month that is none": forge(4, utc_times(b"991332250000Z", b"301231235959Z")),
    "the year 0": forge(4, utc_times(b"00000101000000Z", b"99991231235959Z")),
    "a time with a zone": forge(4, utc_times(b"2001010000+0100", b"301231235959Z")),
}


@pytest.mark.parametrize("pem", UNREADABLE.values(), ids=UNREADABLE.keys())
@pytest.mark.parametrize("mode", MODES, ids=lambda mode: mode.value)
async def test_a_certificate_that_cannot_be_read_is_refused_and_harms_nobody(
    world: World, mode: ClientAuth, pem: bytes, tmp_path: Path
) -> None:
    """Whatever a client sends, the worst that comes of it is a HandshakeError, in modes that do not verify as well."""
    file = tmp_path / "unreadable.pem"
    file.write_bytes(pem)
    manager = CertAuthManager(world.server, client_cas=world.ca.pool, client_auth=mode)
    result, told = await meet(manager, partial(stdlib_client, world, Holder(files=(file, file))))
    if mode is ClientAuth.NO_CLIENT_CERT:
        assert isinstance(result, SessionStream)
        assert told == WELCOME
    elif mode.verifies:
        assert isinstance(result, PeerUnverifiedError)
        # Dates that cannot be read are outside of every validity period; here the CA is not known either.
        assert result.reason in (UnverifiedReason.BAD_CHAIN, UnverifiedReason.UNKNOWN_CA)
        assert str(result).isprintable()
    else:
        assert type(result) is HandshakeError
        assert isinstance(result.__cause__, RemoteProtocolError)
        assert "certificate cannot be parsed" in str(result)
