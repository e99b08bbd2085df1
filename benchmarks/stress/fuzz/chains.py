"""Whole certificates and revocation lists, almost valid, through every door that they come in by.

An input is two bytes and an encoding. The first byte says what it is: a leaf, an intermediate, a CA, a list; the second
what of it is put right before it is used, see `forging`. It is then presented in handshakes, by a server and by clients
in every mode; loaded as our own and checked; trusted, in place of what was trusted; followed as a file; shown by the
command line. What comes of it is a documented error, or a value; no warning of a library, no line in the log that is an
error, nothing on stderr but one line.
"""

# ruff: noqa: SLF001 -- what a hostile peer does

from __future__ import annotations

import base64
import io
import socket
import tempfile
import threading
import warnings
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import trio
import trio.testing
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from OpenSSL import SSL, crypto
from OpenSSL._util import lib

from benchmarks.stress.log import watching_log
from trionode import (
    CAPool,
    CertAuthManager,
    CertificateError,
    ClientAuth,
    CRLSet,
    FileSource,
    HandshakeError,
    KeyPair,
    NodeName,
    TrustRotationError,
    check_key_pair,
    follow_source,
)
from trionode._credentials import crl as _crl, formats as _formats, pem as _pem, revocation_list as _revocation_list
from trionode._identity import certificate as _certificate, names as _names, outline as _outline
from trionode._identity.peer import established_peer
from trionode._tls import anchors as _anchors, judge as _judge, name_constraints as _name_constraints, paths as _paths
from trionode._tls.failures import HandshakeErrors
from trionode._tls.handshake import handshake_in_memory
from trionode._tls.session import TLSSession
from trionode._tls.verification import Examination
from trionode._util import der as _der
from trionode.cli.program import main
from trionode.pki import CertificateAuthority

from . import forging
from .campaign import Target, Violation

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from random import Random

    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

LEAF, MIDDLE, ROOT, LIST = range(4)
HOST: Final = "localhost"
NAME: Final = NodeName.parse("mallory@localhost")
TRACED: Final = tuple(
    Path(module.__file__ or "")
    for module in (
        *(_certificate, _names, _outline, _der, _anchors, _judge, _name_constraints, _paths, _crl, _formats, _pem),
        _revocation_list,
    )
)
#: Files and sockets are tried with one input in so many.
_FILES_EVERY: Final = 4
_KEY: Final = forging.LEAF_KEY.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def armour(der: bytes, kind: str = "CERTIFICATE") -> bytes:
    """An encoding as PEM."""
    return f"-----BEGIN {kind}-----\n{base64.encodebytes(der).decode()}-----END {kind}-----\n".encode()


# What is presented --------------------------------------------------------------------------------------------------


def presenting(leaf: crypto.X509, others: Sequence[crypto.X509], key: crypto.PKey | Ed25519PrivateKey) -> SSL.Context:
    """A context that presents whatever OpenSSL can be made to present.

    Raises:
        SSL.Error: it cannot.
    """
    context = SSL.Context(SSL.TLS_METHOD)
    context.set_cipher_list(b"ALL:@SECLEVEL=0")
    context.set_mode(0x8)  # SSL_MODE_NO_AUTO_CHAIN
    # Not by pyOpenSSL, which wants certificates and keys that `cryptography` can parse as well.
    taken = lib.SSL_CTX_use_certificate(context._context, leaf._x509)
    for each in others:
        lib.X509_up_ref(each._x509)
        taken &= lib.SSL_CTX_add_extra_chain_cert(context._context, each._x509)
    native = key if isinstance(key, crypto.PKey) else crypto.PKey.from_cryptography_key(key)
    taken &= lib.SSL_CTX_use_PrivateKey(context._context, native._pkey)
    lib.ERR_clear_error()
    if not taken:
        raise SSL.Error
    return context


class Forged:
    """What a hostile peer presents, in place of `TLSContexts`: no more is asked of it than OpenSSL asks."""

    generation = 1
    publisher = None

    def __init__(self, chain: Sequence[bytes]) -> None:
        """Make one.

        Raises:
            crypto.Error: OpenSSL cannot parse a certificate.
            SSL.Error: it does not take them for its own.
        """
        leaf, *others = (crypto.load_certificate(crypto.FILETYPE_ASN1, each) for each in chain)
        self._context = context = presenting(leaf, others, forging.LEAF_KEY)
        context.set_alpn_select_callback(lambda _, offered: offered[0])
        self.client = self.server = self
        self.key_pair = self
        self.certificate = None

    def session(self, *, reference: str | None = None, alpn: Sequence[bytes] = (), **_: object) -> TLSSession:
        """A client's end if there is a reference, else a server's."""
        connection = SSL.Connection(self._context)
        accepting = reference is None
        connection.set_app_data(Examination(accepting=accepting, judge=None, errors=HandshakeErrors()))
        if accepting:
            connection.set_accept_state()
        else:
            connection.set_tlsext_host_name(HOST.encode())
            if alpn:
                connection.set_alpn_protos(list(alpn))
            connection.set_connect_state()
        return TLSSession(connection, connection.get_app_data())


class HostileServer:
    """A TLS server on a port of its own, in a thread: presents what it is told to."""

    def __init__(self) -> None:
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._socket.getsockname()[1]
        self.presents: Forged | None = None
        threading.Thread(target=self._serve, name="hostile TLS server", daemon=True).start()

    def _serve(self) -> None:
        while True:
            connection, _ = self._socket.accept()
            with connection, suppress(OSError, HandshakeError):
                connection.settimeout(5)
                self._greet(connection)

    def _greet(self, connection: socket.socket) -> None:
        assert self.presents is not None
        session = self.presents.session()
        done = False
        while not done:
            session.feed(connection.recv(16384))
            done = session.handshake()
            connection.sendall(session.outgoing())


# Targets ------------------------------------------------------------------------------------------------------------


@cache
def shapes() -> tuple[bytes, ...]:
    """What there is to begin with: what `trionode.pki` makes, and what OpenSSL made; all put right."""
    ca = CertificateAuthority.create(intermediate=True)
    leaf = ca.issue(NAME, HOST, "127.0.0.1").chain
    plain = CertificateAuthority.create()
    certificates = [*leaf, ca.certificate, plain.certificate, KeyPair.self_signed(HOST).certificate]
    lists = [*plain.revocation_list(plain.issue(NAME).certificate)]
    text = forging.SHAPES.read_bytes()
    certificates += x509.load_pem_x509_certificates(text[: text.index(b"-----BEGIN X509 CRL")])
    lists += CRLSet.from_bytes(text)
    found = [(role, each.public_bytes(Encoding.DER)) for each in certificates for role in (LEAF, MIDDLE, ROOT)]
    found += [(LIST, each.public_bytes(Encoding.DER)) for each in lists]
    return tuple(bytes([role, forging.ALL]) + der for role, der in found)


class Chain:
    """What an input stands for: a chain, a pool, a list, of which one part is the input's.

    Attributes:
        presented: the leaf, and what follows it.
        trusted: what is trusted, in PEM.
        lists: revocation lists, in PEM; empty for none.
        pem: what is in question, as a file.
    """

    def __init__(self, data: bytes) -> None:
        good = good_parts()
        self.role, put_right, der = (data[0] if data else 0) % 4, (data[1] if len(data) > 1 else 0), data[2:]
        if self.role == LIST:
            der = forging.crl(der, put_right, issuer=forging.name("middle"), signer=forging.MIDDLE_KEY)
        else:
            der = forging.certificate(der, put_right, **_PLACES[self.role])
        self.presented = [good[LEAF], good[MIDDLE]]
        self.trusted = armour(good[ROOT])
        self.lists = b""
        if self.role in (LEAF, MIDDLE):
            self.presented[self.role] = der
        elif self.role == ROOT:
            self.trusted = armour(der)
            self.presented.append(der)
        else:
            self.lists = armour(der, "X509 CRL") + armour(good[LIST], "X509 CRL")
        self.der = der
        self.pem = armour(der, "X509 CRL" if self.role == LIST else "CERTIFICATE")


@cache
def good_parts() -> tuple[bytes, bytes, bytes, bytes]:
    """A leaf, an intermediate, a root, and the root's revocation list, as good as can be."""
    ca = CertificateAuthority.create(intermediate=True)
    made = [each.public_bytes(Encoding.DER) for each in (*ca.issue(HOST).chain, ca.certificate)]
    leaf, middle, root = (
        forging.certificate(each, forging.ALL, **_PLACES[role])
        for role, each in zip((LEAF, MIDDLE, ROOT), made, strict=True)
    )
    [crl] = CertificateAuthority.create().revocation_list()
    der = crl.public_bytes(Encoding.DER)
    return leaf, middle, root, forging.crl(der, forging.ALL, issuer=forging.name("root"), signer=forging.ROOT_KEY)


_PLACES: Final[dict[int, dict[str, Any]]] = {
    LEAF: {
        "subject": forging.name("leaf"),
        "key": forging.LEAF_KEY,
        "issuer": forging.name("middle"),
        "signer": forging.MIDDLE_KEY,
    },
    MIDDLE: {
        "subject": forging.name("middle"),
        "key": forging.MIDDLE_KEY,
        "issuer": forging.name("root"),
        "signer": forging.ROOT_KEY,
    },
    ROOT: {
        "subject": forging.name("root"),
        "key": forging.ROOT_KEY,
        "issuer": forging.name("root"),
        "signer": forging.ROOT_KEY,
    },
}


class ForgedTarget(Target):
    """Inputs that are certificates and lists."""

    repeats = False  # lengths are in it
    longest = 8192

    def seeds(self) -> list[bytes]:
        """All shapes, put right."""
        return list(shapes())

    def mutate(self, rng: Random, data: bytes, other: bytes) -> bytes:
        """Another certificate; now and then in another place, or with less of it put right."""
        if rng.random() < (0.1 if _is_parsable(data) else 0.9):  # what cannot be parsed comes no further when changed
            data = rng.choice(shapes())
        role, put_right = data[:1] or b"\0", data[1:2] or b"\0"
        if rng.random() < 0.15:
            put_right = bytes([rng.randrange(16)])
        if rng.random() < 0.05 and role[0] != LIST:
            role = bytes([rng.randrange(LIST)])
        return role + put_right + forging.mutate(rng, data[2:], other[2:])


def _is_parsable(data: bytes) -> bool:
    load = x509.load_der_x509_crl if data[:1] == bytes([LIST]) else x509.load_der_x509_certificate
    with warnings.catch_warnings(action="ignore"):
        try:
            load(data[2:])
        except (ValueError, x509.InvalidVersion):
            return False
    return True


class ChainTarget(ForgedTarget):
    """Every door but those of nodes."""

    name = "chains"
    about = "certificates and revocation lists that are almost valid, as every command and function meets them"
    traced: Sequence[Path] = TRACED
    memory = (24 * 2**20, 4096)
    measured = 16

    def __init__(self) -> None:
        self._server: HostileServer | None = None
        honest = CertificateAuthority.create()
        self._key_pair, self._pool = honest.issue(HOST), honest.pool

    def run(self, data: bytes) -> str:
        """What came of it, door by door."""
        chain = Chain(data)
        with nothing_but_errors():
            said = [self._handshakes(chain), self._own(chain), self._rotate(chain)]
            if sum(data) % _FILES_EVERY == 0:
                said += [self._follow(chain), self._show(chain), self._explain(chain)]
        return " | ".join(said)

    def _trust(self, chain: Chain) -> tuple[CAPool, CRLSet | None]:
        return CAPool.from_pem(chain.trusted), CRLSet.from_bytes(chain.lists) if chain.lists else None

    def _handshakes(self, chain: Chain) -> str:
        """As a server, and as a client in every mode."""
        forged = forged_of(chain)
        if forged is None:
            return "not for OpenSSL"
        try:
            pool, crls = self._trust(chain)
            managers = [
                CertAuthManager(self._key_pair, client_cas=pool, root_cas=pool, crls=crls, client_auth=mode)
                for mode in ClientAuth
            ]
        except CertificateError as exc:
            return f"trust {exc.reason}"
        contexts = [manager._publisher.channel.current for manager in managers]
        client = contexts[0].client.session(reference=HOST, node=NAME)
        said = [_outcome(handshake_in_memory(forged.session(), client), client)]
        for each in contexts[1:]:
            server = each.server.session()
            said.append(_outcome(handshake_in_memory(server, forged.session(reference=HOST)), server))
        return " ".join(dict.fromkeys(said))

    def _own(self, chain: Chain) -> str:
        """As our own."""
        try:
            pool, crls = self._trust(chain)
            pair = KeyPair.from_pem(b"".join(map(armour, chain.presented)), _KEY)
            found = check_key_pair(
                pair,
                client_cas=pool,
                root_cas=pool,
                client_auth=ClientAuth.REQUIRE_AND_VERIFY_CLIENT_CERT,
                names=[NAME, HOST],
                crls=crls,
            )
            repr((pair, pool, crls, hash(pair), CertAuthManager(pair, client_cas=pool, root_cas=pool, crls=crls)))
        except CertificateError as exc:
            return f"own {exc.reason}"
        return f"own {sorted({each.code for each in found})}"

    def _rotate(self, chain: Chain) -> str:
        """As what is trusted from now on."""
        mode = ClientAuth.REQUIRE_AND_VERIFY_CLIENT_CERT
        manager = CertAuthManager(self._key_pair, client_cas=self._pool, root_cas=self._pool, client_auth=mode)
        try:
            pool, crls = self._trust(chain)
            manager.stranded_by(client_cas=pool, root_cas=pool, crls=crls)
            manager.rotate_trust(client_cas=pool, root_cas=pool, crls=crls)
        except CertificateError as exc:
            return f"rotate {exc.reason}"
        repr(manager)
        return "rotated"

    def _follow(self, chain: Chain) -> str:
        """As files that are followed."""
        mode = ClientAuth.REQUIRE_AND_VERIFY_CLIENT_CERT
        manager = CertAuthManager(self._key_pair, client_cas=self._pool, root_cas=self._pool, client_auth=mode)
        with tempfile.TemporaryDirectory() as directory:
            cert, key, ca, crl = (Path(directory, name) for name in ("cert.pem", "key.pem", "ca.pem", "ca.crl"))
            cert.write_bytes(b"".join(map(armour, chain.presented)))
            key.write_bytes(_KEY)
            ca.write_bytes(chain.trusted)
            crl.write_bytes(chain.lists)
            source = FileSource(
                cert,
                key,
                client_ca_files=[ca],
                root_ca_files=[ca],
                crl_files=[crl] if chain.lists else [],
                settle=0.001,
                patience=0,
            )

            async def follow() -> str:
                async with trio.open_nursery() as nursery:
                    try:
                        follower = await nursery.start(follow_source, manager, source)
                    except (CertificateError, TrustRotationError):
                        return "not followed"  # noqa: ASYNC121 -- out of the whole case
                    repr((follower, follower.status))
                    nursery.cancel_scope.cancel()
                return "followed"

            return trio.run(follow)

    def _show(self, chain: Chain) -> str:
        """By the command line."""
        with tempfile.TemporaryDirectory() as directory:
            said = []
            for name, content in ("it.pem", chain.pem), ("it.der", chain.der):
                file = Path(directory, name)
                file.write_bytes(content)
                said += [command("pki", "show", file), command("pki", "show", "--json", file)]
        return f"show {said}"

    def _explain(self, chain: Chain) -> str:
        forged = forged_of(chain)
        if forged is None:
            return "no server"
        if self._server is None:
            self._server = HostileServer()
        self._server.presents = forged
        with tempfile.TemporaryDirectory() as directory:
            ca, crl = Path(directory, "ca.pem"), Path(directory, "ca.crl")
            ca.write_bytes(chain.trusted)
            crl.write_bytes(chain.lists)
            options = ["--root-ca", ca, *(["--crl", crl] if chain.lists else [])]
            status = command("explain", f"127.0.0.1:{self._server.port}", "--server-name", HOST, *options)
        return f"explain {status}"


def forged_of(chain: Chain) -> Forged | None:
    """What OpenSSL presents of it; None if it does not."""
    try:
        return Forged(chain.presented)
    except (crypto.Error, SSL.Error):
        return None


def _outcome(failure: HandshakeError | None, ours: TLSSession) -> str:
    """How a handshake ended on our side; what is said of the peer is said, so that it is looked at."""
    if failure is not None:
        if not str(failure).isprintable():
            msg = f"not printable: {str(failure)!r}"
            raise Violation(msg)
        return f"{type(failure).__name__} {failure.reason}"
    leaf = ours.peer_certificate
    peer = established_peer(NAME, certificate=leaf, verified=ours.verified, address=None, incarnation=1)
    if not repr(peer).isprintable():
        msg = f"not printable: {peer!r}"
        raise Violation(msg)
    _ = ours.peer_chain, ours.shown_chain
    return f"verified {ours.verified}"


@contextmanager
def nothing_but_errors() -> Iterator[None]:
    """What raises no documented error leaves no other trace: no warning of a library, no error in the log.

    Raises:
        Violation: it does.
    """
    with warnings.catch_warnings(action="error"), watching_log() as log:
        yield
    if log.errors:
        raise Violation("; ".join(log.errors))


def command(*arguments: object) -> int:
    """Run the command line; its exit status.

    Raises:
        Violation: it ended as it must not.
    """
    out, told = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(told):
        status = main([str(each) for each in arguments])
    lines = told.getvalue().splitlines()
    if status not in (0, 1, 3) or len(lines) > 1 or "Traceback" in out.getvalue():
        msg = f"{arguments[:2]} ended with {status}: {told.getvalue()}"
        raise Violation(msg)
    return status


def targets() -> list[Target]:
    """The one here; `live` has one for nodes."""
    return [ChainTarget()]
