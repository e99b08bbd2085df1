"""An EST client (RFC 7030): fetches CA certificates, enrols and renews, over connections of cert managers.

Theory. An operation is one client with one connection, so that what is asked for can be tied to it. What a server says
is not believed before its certificate has been verified, with one exception: the first `cacerts` of a client that has
nothing but a join token. That goes out without a certificate, without a secret, and what comes back counts only if it
has the certificate whose fingerprint is in the token; then it is asked for again, over a connection that is verified.
"""

from __future__ import annotations

import base64
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Final, cast, final

import httpx  # noqa: ASYNC127 -- over our own transport
import trio
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import AttributeOID

from trionode._credentials.ca_pool import CAPool
from trionode._credentials.crl import CRLSet
from trionode._credentials.issuing import general_name
from trionode._credentials.key_pair import KeyPair
from trionode._credentials.pem import MAX_CRL_BYTES
from trionode._credentials.policy import TLSPolicy
from trionode._errors import CertificateError, PeerUnverifiedError, TrionodeError
from trionode._identity.certificate import (
    extension,
    fingerprint,
    is_ca,
    is_self_issued,
    issuer_der,
    public_key,
    subject_der,
)
from trionode._identity.names import URI_SCHEME, NodeName, SubjectNames
from trionode._managers.manager import CertManager
from trionode._managers.publisher import Publisher
from trionode._streams.stream import TLSStream, session_of
from trionode._util.text import printable, without_password
from trionode.http.client import HTTPTransport
from trionode.http.connections import Security
from trionode.pki._certificates import subject_name

from ._errors import EnrolmentError, EnrolmentReason
from ._wire import (
    BINDING_BYTES,
    BINDING_LABEL,
    CHALLENGE_PASSWORD,
    CRLS_PATH,
    PATH,
    REQUEST_TYPE,
    binding_text,
    certificates_of,
    from_base64,
    to_base64,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable

    from trionode._credentials.policy import Clock

#: More than any answer of EST has. Bytes.
_MAX_ANSWER: Final = 1024 * 1024
#: What is shown of a server's words.
_MAX_WORDS: Final = 300
#: Redirections are followed within one server, a few times (RFC 7030 section 3.2.1).
_REDIRECTIONS: Final = 3
_MOVED: Final = (301, 302, 307, 308)


class AnonymousManager(CertManager):
    """A manager of clients that have no certificate yet."""

    def __init__(self, root_cas: CAPool | None, *, clock: Clock | None = None) -> None:
        """Make one.

        Args:
            root_cas: the anchors for servers; None for the system's.
            clock: source of "now".
        """
        placeholder = KeyPair.self_signed("localhost")
        self._publisher = Publisher(placeholder, TLSPolicy(root_cas=root_cas, clock=clock, anonymous=True))


@final
class Server:
    """Where an EST server is."""

    def __init__(self, url: str, *, seconds: float) -> None:
        """Take its URL apart.

        Args:
            url: `https://HOST[:PORT]`, with a path before `/.well-known/est` or up to and with it, if it has one.
            seconds: how long one exchange may take.

        Raises:
            ValueError: it is no such URL.
        """
        try:
            parsed = httpx.URL(url)
        except httpx.InvalidURL as exc:
            msg = f"{without_password(url)} is no URL: {exc}"
            raise ValueError(msg) from None
        if parsed.scheme != "https" or not parsed.host or parsed.userinfo or parsed.query or parsed.fragment:
            msg = (
                f"the URL of an EST server is https://HOST[:PORT], without user and query, not {without_password(url)}"
            )
            raise ValueError(msg)
        base = str(parsed).rstrip("/")
        self.est: Final = base if PATH in base else base + PATH
        self.lists: Final = base.partition(PATH)[0] + CRLS_PATH
        self.url: Final = base
        self.seconds: Final = seconds

    def __repr__(self) -> str:
        return self.url

    @asynccontextmanager
    async def exchange(self, manager: CertManager, *, unverified: bool = False) -> AsyncIterator[Exchange]:
        """A client with one connection, for the length of a block.

        Args:
            manager: what it presents and verifies with.
            unverified: whether any server will do.
        """
        limits = httpx.Limits(max_connections=1)
        transport = HTTPTransport(cert_manager=manager, limits=limits)
        if unverified:
            # No loosening that is to be logged: what comes is compared with a fingerprint.
            transport._security = Security(manager, ("http/1.1",), named=True, insecure_skip_verify=True)  # noqa: SLF001
        async with transport:
            yield Exchange(self, transport)


@final
class Exchange:
    """One connection to a server, and what is asked over it."""

    def __init__(self, server: Server, transport: HTTPTransport) -> None:
        self._server = server
        self._transport = transport
        self._stream: TLSStream | None = None

    async def ca_certificates(self) -> list[x509.Certificate]:
        """What `cacerts` has.

        Raises:
            EnrolmentError: nothing came, or not that.
        """
        return self._certificates(await self._ask("GET", f"{self._server.est}/cacerts"))

    async def revocation_lists(self) -> CRLSet:
        """The lists that the server has.

        Raises:
            EnrolmentError: nothing came, or not that.
        """
        body = await self._ask("GET", self._server.lists, limit=MAX_CRL_BYTES)
        try:
            return CRLSet.from_bytes(body)
        except CertificateError as exc:
            raise self._bad_answer(exc) from None

    async def enrol(
        self, wanted: Wanted, *, auth: tuple[str, str] | None, intermediates: Iterable[x509.Certificate]
    ) -> KeyPair:
        """A key pair with a new key.

        Args:
            wanted: what is asked for.
            auth: user name and password.
            intermediates: the server's CA certificates, for the chain.

        Raises:
            EnrolmentError: there is none, and whether the server has issued one is not known unless the reason is
                `refused`.
        """
        attributes = await self._attributes()
        name, key = wanted.name, wanted.key
        request = wanted.request(self._binding() if CHALLENGE_PASSWORD in attributes else None)
        which = "simpleenroll" if wanted.renews is None else "simplereenroll"
        body = await self._ask("POST", f"{self._server.est}/{which}", content=to_base64(request), auth=auth)
        issued, known = self._certificates(body), list(intermediates)
        try:
            pair = key_pair_of([name], key, [*issued, *known])
            if not _reaches(pair, known):
                # The CA has changed since it was asked for its certificates.
                known = await self.ca_certificates()
                pair = key_pair_of([name], key, [*issued, *known])
        except (CertificateError, ValueError) as exc:
            raise self._bad_answer(exc) from None
        if not _reaches(pair, known):
            msg = f"{self._server}: the certificate that came is of none of the CAs that it has"
            raise EnrolmentError(msg, reason=EnrolmentReason.BAD_ANSWER)
        return pair

    async def _attributes(self) -> bytes:
        try:
            return from_base64(await self._ask("GET", f"{self._server.est}/csrattrs"))
        except (EnrolmentError, ValueError) as exc:
            if isinstance(exc, EnrolmentError) and exc.reason is not EnrolmentReason.REFUSED:
                raise
            return b""  # the resource is optional

    def _binding(self) -> str | None:
        if self._stream is None:
            return None
        return binding_text(session_of(self._stream).export_keying_material(BINDING_LABEL, BINDING_BYTES))

    def _certificates(self, body: bytes) -> list[x509.Certificate]:
        try:
            return certificates_of(body)
        except ValueError as exc:
            raise self._bad_answer(exc) from None

    def _bad_answer(self, exc: Exception) -> EnrolmentError:
        return EnrolmentError(f"{self._server}: {exc}", reason=EnrolmentReason.BAD_ANSWER)

    async def _ask(
        self,
        method: str,
        url: str,
        *,
        content: bytes | None = None,
        auth: tuple[str, str] | None = None,
        limit: int = _MAX_ANSWER,
    ) -> bytes:
        headers = {} if content is None else {"content-type": REQUEST_TYPE, "content-transfer-encoding": "base64"}
        if auth is not None:
            headers["authorization"] = f"Basic {base64.b64encode(':'.join(auth).encode()).decode()}"
        seconds = self._server.seconds
        timeout = {"timeout": httpx.Timeout(seconds).as_dict()}
        with trio.move_on_after(seconds):
            for left in range(_REDIRECTIONS, -1, -1):
                request = httpx.Request(method, url, headers=headers, content=content, extensions=timeout)
                try:
                    status, reason, fields, body = await self._exchange(request, limit)
                except (httpx.HTTPError, TrionodeError) as exc:
                    raise _failure(exc, self._server) from exc
                if status == httpx.codes.OK:
                    return body
                place = _place_within(request.url, fields.get("location")) if status in _MOVED else None
                if place is None or not left:
                    raise _refusal(status, reason, fields, body, self._server)
                url = place
        msg = f"{self._server} cannot be reached: no answer within {seconds:g} s"
        raise EnrolmentError(msg, reason=EnrolmentReason.UNREACHABLE)

    async def _exchange(self, request: httpx.Request, limit: int) -> tuple[int, str, httpx.Headers, bytes]:
        response = await self._transport.handle_async_request(request)
        found = bytearray()
        try:
            stream = response.extensions["network_stream"].get_extra_info("tls_stream")
            self._stream = cast("TLSStream", stream)
            # Cancelled rather than left: generators within httpcore's then end in order.
            with trio.CancelScope() as reading:
                async for part in cast("httpx.AsyncByteStream", response.stream):
                    found += part
                    if len(found) > limit:
                        reading.cancel()
            if len(found) > limit:
                msg = f"{request.url} answers with more than {limit} bytes"
                raise EnrolmentError(msg, reason=EnrolmentReason.BAD_ANSWER)
        finally:
            with trio.move_on_after(1, shield=True):
                await cast("httpx.AsyncByteStream", response.stream).aclose()
        return response.status_code, response.reason_phrase, response.headers, bytes(found)


def _failure(exc: Exception, server: Server) -> EnrolmentError:
    if isinstance(exc, EnrolmentError):
        return exc
    ours = exc if isinstance(exc, TrionodeError) else exc.__cause__
    text = str(exc) or type(exc).__name__
    if isinstance(ours, PeerUnverifiedError):
        return EnrolmentError(f"{server} is not trusted: {text}", reason=EnrolmentReason.UNTRUSTED)
    return EnrolmentError(f"{server} cannot be reached: {text}", reason=EnrolmentReason.UNREACHABLE)


def _place_within(url: httpx.URL, location: str | None) -> str | None:
    """Where a redirection leads, if that is the same server."""
    try:
        place = url.join(location or "")
    except httpx.InvalidURL:
        return None
    same = (place.scheme, place.host, place.port) == (url.scheme, url.host, url.port)
    return str(place) if location and same else None


def _refusal(status: int, reason: str, headers: httpx.Headers, body: bytes, server: Server) -> EnrolmentError:
    words = printable(" ".join(body[:_MAX_WORDS].decode(errors="replace").split()))
    text = f"{server} answers {status}: {words or reason}"
    if status in _MOVED:
        where = printable(headers.get("location", "nowhere"))
        text = f"{server} answers {status} and leads to {where}, which is another server, or leads nowhere"
    if status == httpx.codes.ACCEPTED:
        text = f"{server} has taken the request and not decided yet (202): {words or reason}"
    if status in (httpx.codes.ACCEPTED, httpx.codes.TOO_MANY_REQUESTS) or status >= 500:
        seconds = _seconds(headers.get("retry-after", ""))
        return EnrolmentError(text, reason=EnrolmentReason.UNREACHABLE, retry_after=seconds)
    return EnrolmentError(text, reason=EnrolmentReason.REFUSED)


def _seconds(after: str) -> float | None:
    """What a Retry-After says (RFC 9110 section 10.2.3): seconds, or a date."""
    if after.isascii() and after.isdigit() and len(after) < 8:
        return float(after)
    try:
        return max(0.0, (parsedate_to_datetime(after).astimezone(UTC) - datetime.now(UTC)).total_seconds())
    except (ValueError, TypeError, OverflowError):
        return None


@final
class Wanted:
    """A certificate that is asked for, until there is an answer: with one key, however often it is asked.

    A server that wants time to decide (202) is asked for the same again (RFC 7030 section 4.2.3); and who renews asks
    for subject and names as they stand in the present certificate (section 4.2.2), which some servers insist on.

    Attributes:
        name: what it is to speak for.
        renews: the certificate in whose place it is to be; None for a first one.
        key: its key.
    """

    def __init__(self, name: NodeName | str, renews: x509.Certificate | None) -> None:
        """Make a key.

        Args:
            name: see the attributes.
            renews: see the attributes.
        """
        self.name: Final = name
        self.renews: Final = renews
        self.key: Final = ec.generate_private_key(ec.SECP256R1())
        self._signed: dict[str | None, bytes] = {}

    def request(self, binding: str | None) -> bytes:
        """The request, in DER; the same each time, as far as it is not tied to another connection.

        Args:
            binding: of the connection, where the request is to be tied to it.
        """
        if binding not in self._signed:
            self._signed = {binding: self._sign(binding)}
        return self._signed[binding]

    def _sign(self, binding: str | None) -> bytes:
        subject, names = _first_names(self.name) if self.renews is None else _names_of(self.renews)
        builder = x509.CertificateSigningRequestBuilder().subject_name(subject)
        if names is not None:
            builder = builder.add_extension(names, critical=False)
        if binding is not None:
            builder = builder.add_attribute(AttributeOID.CHALLENGE_PASSWORD, binding.encode())
        return builder.sign(self.key, hashes.SHA256()).public_bytes(Encoding.DER)


def _first_names(name: NodeName | str) -> tuple[x509.Name, x509.SubjectAlternativeName]:
    host = name.host if isinstance(name, NodeName) else name
    names: list[x509.GeneralName] = [general_name(host)]
    if isinstance(name, NodeName):
        names.append(x509.UniformResourceIdentifier(f"{URI_SCHEME}://{name}"))
    return subject_name(str(name)), x509.SubjectAlternativeName(names)


def _names_of(present: x509.Certificate) -> tuple[x509.Name, x509.SubjectAlternativeName | None]:
    return present.subject, extension(present, x509.SubjectAlternativeName)


def key_pair_of(
    wanted: Iterable[NodeName | str], key: ec.EllipticCurvePrivateKey, found: list[x509.Certificate]
) -> KeyPair:
    """The key pair of a key, with its chain in order, roots left out.

    Args:
        wanted: what the certificate has to speak for.
        key: its key.
        found: the certificate, and others, in any order.

    Raises:
        ValueError: there is no certificate of the key, or it does not speak for a name.
        CertificateError: it cannot be used.
    """
    mine = [each for each in found if not is_ca(each) and public_key(each) == key.public_key()]
    if not mine:
        msg = "the answer has no certificate for the key that was asked for"
        raise ValueError(msg)
    chain = [mine[0]]
    names = SubjectNames.of(chain[0])
    for name in wanted:
        if not (names.cover_node(name) if isinstance(name, NodeName) else names.cover_host(name)):
            msg = f"the certificate that came does not speak for {name}"
            raise ValueError(msg)
    while issuers := [
        each
        for each in found
        if is_ca(each)
        and not is_self_issued(each)
        and each not in chain
        and subject_der(each) == issuer_der(chain[-1])
        and _has_signed(each, chain[-1])
    ]:
        chain.append(issuers[0])
    return KeyPair(chain, key)


def _reaches(pair: KeyPair, cas: Iterable[x509.Certificate]) -> bool:
    """Whether a chain ends in one of these CAs, or was signed by one."""
    last = pair.chain[-1]
    return any(
        is_ca(each) and (each == last or (subject_der(each) == issuer_der(last) and _has_signed(each, last)))
        for each in cas
    )


def _has_signed(issuer: x509.Certificate, certificate: x509.Certificate) -> bool:
    try:
        certificate.verify_directly_issued_by(issuer)
    except Exception:  # noqa: BLE001 -- of hostile certificates: whatever it is, it has not
        return False
    return True


def roots_in(certificates: Iterable[x509.Certificate]) -> CAPool | None:
    """The self-signed CAs among some certificates; None if there are none."""
    roots = [each for each in certificates if is_ca(each) and is_self_issued(each)]
    return CAPool(roots) if roots else None


def pinned(certificates: Iterable[x509.Certificate], wanted: str, server: Server) -> CAPool:
    """The CA that a join token names, alone.

    Raises:
        EnrolmentError: it is not among them.
    """
    for each in certificates:
        if fingerprint(each) == wanted:
            return CAPool([each])
    msg = (
        f"{server} does not have the CA of the join token (SHA-256 {wanted}): it is another CA's server, or this is "
        "not who it seems to be. Nothing was sent to it"
    )
    raise EnrolmentError(msg, reason=EnrolmentReason.UNTRUSTED)
