"""An EST server (RFC 7030, RFC 8951) as an ASGI application, before a `PKIDirectory`.

Theory. `serve_asgi` says who calls: a client that presented a certificate was verified in the TLS handshake, or did not
get here. So there are two ways to a certificate: a join token, as the password of HTTP's basic authentication, or the
present certificate, which renews under its own names. What is asked for is decided by the directory; here it is taken
off the wire, limited in rate, and answered: with the certificate alone, as RFC 7030 section 4.2.3 has it; what else the
chain needs is among `cacerts`.

A request may be tied to the connection that it comes over: where it has a challengePassword, that has to be the
connection's channel binding (`tls-exporter`, RFC 9266; RFC 7030 has `tls-unique`, which TLS 1.3 does away with). So a
request of our own client is of no use to whoever relays it over a connection of theirs.

Order matters: limits come before anything that costs; clients that show nothing are told so before their request is
read; what is wrong with a request is found before its token is taken; and limits by name count only what was entitled
to the name, so that strangers, and thieves whose certificate was revoked, do not use up what is another's.
"""

from __future__ import annotations

import base64
import binascii
import hmac
import math
from dataclasses import dataclass, field
from datetime import timedelta
from functools import partial
from typing import TYPE_CHECKING, Final, TypeAlias, TypeVar, final

import trio
from cryptography import x509
from cryptography.x509.oid import AttributeOID

from trionode._errors import CertificateError
from trionode._identity.names import NodeName, parse_name
from trionode._util.fields import Checked, Parsed, Such, integer, rule
from trionode._util.log import Log
from trionode._util.rate_limited_log import RateLimitedLog
from trionode._util.text import printable
from trionode._util.threads import Purpose, in_thread
from trionode.http.caller import Caller, caller_of
from trionode.pki import JoinToken, RequestRefusal, RequestRefusedError, parse_request
from trionode.pki._tokens import checked_names, names_match

from ._lifespan import nothing_to_start
from ._limits import RateLimit, address_key
from ._lists import Lists
from ._wire import (
    CERTIFICATES_TYPE,
    CRL_PATH,
    CRLS_PATH,
    CSR_ATTRIBUTES,
    PATH,
    binding_text,
    certificates_body,
    from_base64,
    to_base64,
)

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from trionode.http.lifespan import ASGIApplication, Receive, Scope, Send
    from trionode.pki import PKIDirectory

_T = TypeVar("_T")
Chain: TypeAlias = tuple[x509.Certificate, ...]

_log: Final = Log("trionode.enrolment")

#: A request in base64, with room for line ends. Bytes.
_MAX_BODY: Final = 48 * 1024

_CHALLENGE: Final = 'Basic realm="join token"'

_POSITIVE: Final = Such(lambda value: isinstance(value, timedelta) and value > timedelta(), "a positive timedelta")

_STATUS: Final = {
    RequestRefusal.BAD_REQUEST: 400,
    RequestRefusal.BAD_TOKEN: 401,
    RequestRefusal.NOT_ALLOWED: 403,
    RequestRefusal.REVOKED: 403,
    RequestRefusal.UNKNOWN: 403,
    RequestRefusal.DENIED: 403,
}


def _patterns(value: object) -> tuple[str, ...]:
    return tuple(checked_names(str(each)) for each in value)  # type: ignore[attr-defined]


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class EnrolmentPolicy(Checked):
    """What an EST service issues.

    Attributes:
        names: what it issues for at all: node names, globs over node names, hosts; `*` is everything.
        lifetime: of what it issues.
        crl_lifetime: until the next revocation list is due; it is signed anew at half of that.
        per_address: how many enrolments and renewals an address may ask for within a minute; of IPv6, a /64.
        per_name: how many certificates a name may get within a minute.
    """

    names: Sequence[str] = field(
        default=("*",), metadata=rule(Parsed(_patterns, "a sequence of names and globs", kinds=(list, tuple)))
    )
    lifetime: timedelta = field(default=timedelta(days=1), metadata=rule(_POSITIVE))
    crl_lifetime: timedelta = field(default=timedelta(days=7), metadata=rule(_POSITIVE))
    per_address: int = field(default=60, metadata=rule(integer(1, 2**20)))
    per_name: int = field(default=12, metadata=rule(integer(1, 2**20)))


def est_app(directory: PKIDirectory, policy: EnrolmentPolicy | None = None) -> ASGIApplication:
    """An EST service: `/.well-known/est/` with `cacerts`, `csrattrs`, `simpleenroll` and `simplereenroll`.

    Serve it by `trionode.http.serve_asgi` with a manager whose `client_auth` is `VERIFY_CLIENT_CERT_IF_GIVEN` and whose
    `client_cas` are the directory's `issuers`; `serve_est` does all that. A client enrols with a join token as the
    password of HTTP's basic authentication; the user name is its name, where the token is good for several. It renews
    with its present certificate. `/ca.crl` has the revocation lists as PEM, `/crl` the issuing CA's in DER; they are
    signed anew before they end. What is issued is logged on `trionode.enrolment`, and in the directory's journal.

    Args:
        directory: what issues.
        policy: what is issued; by default everything that a token allows, for a day.
    """
    return _Service(directory, policy or EnrolmentPolicy())


@final
class _Answer(Exception):  # noqa: N818 -- it is an answer
    """What ends a request early."""

    def __init__(self, status: int, text: str, **headers: str) -> None:
        super().__init__(text)
        self.status = status
        self.headers = headers


@final
class _Request:
    """One request, as far as it matters here."""

    def __init__(self, scope: Scope, receive: Receive) -> None:
        self._receive = receive
        self.method: str = scope["method"]
        self.path: str = scope["path"]
        self.headers: dict[bytes, bytes] = {name.lower(): value for name, value in scope["headers"]}
        client = scope.get("client")
        self.address: str = str(client[0]) if client else "unknown"
        try:
            self.caller: Caller | None = caller_of(scope)
        except LookupError:
            self.caller = None

    async def body(self) -> bytes:
        """All of it, if it is not too long."""
        found = bytearray()
        while True:
            message = await self._receive()
            if message["type"] != "http.request":
                raise _Answer(400, "the request has ended early")
            found += message.get("body", b"")
            if len(found) > _MAX_BODY:
                raise _Answer(413, f"a request has at most {_MAX_BODY} bytes")
            if not message.get("more_body", False):
                return bytes(found)

    def credentials(self) -> tuple[str, str] | None:
        """User name and password of basic authentication (RFC 7617), if there are any."""
        kind, _, encoded = self.headers.get(b"authorization", b"").partition(b" ")
        if kind.lower() != b"basic":
            return None
        try:
            # A token has no colon, and the name of a node at an IPv6 address has some.
            name, colon, password = base64.b64decode(encoded.strip(), validate=True).decode().rpartition(":")
        except (binascii.Error, UnicodeDecodeError):
            return None
        return (name, password) if colon else None


@final
class _Service:
    """The application."""

    def __init__(self, directory: PKIDirectory, policy: EnrolmentPolicy) -> None:
        self._directory = directory
        self._policy = policy
        self._lists = Lists(directory, policy.crl_lifetime)
        self._by_address = RateLimit(policy.per_address)
        self._by_name = RateLimit(policy.per_name)
        self._issuing = trio.Lock()
        self._refusals = RateLimitedLog(_log, "requests were refused")
        self._resources: dict[str, tuple[str, Callable[[_Request], Awaitable[tuple[str, bytes]]]]] = {
            f"{PATH}/cacerts": ("GET", self._ca_certificates),
            f"{PATH}/csrattrs": ("GET", self._attributes),
            f"{PATH}/simpleenroll": ("POST", self._enrol),
            f"{PATH}/simplereenroll": ("POST", self._renew),
            CRLS_PATH: ("GET", self._list),
            CRL_PATH: ("GET", self._list),
        }

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request; an ASGI application."""
        if scope["type"] == "lifespan":
            await nothing_to_start(receive, send)
        if scope["type"] != "http":
            return
        request = _Request(scope, receive)
        try:
            kind, body = await self._answer(request)
        except _Answer as answer:
            self._refusals.warning(
                "%s %s from %s: %s",
                request.method,
                request.path,
                request.address,
                answer,
                address=request.address,
                status=answer.status,
            )
            await _send(send, answer.status, "text/plain; charset=utf-8", f"{answer}\n".encode(), answer.headers)
        else:
            await _send(send, 200, kind, body, {})

    async def _answer(self, request: _Request) -> tuple[str, bytes]:
        method, answer = self._resources.get(request.path, ("", None))
        if answer is None:
            raise _Answer(404, "there is no such resource; those of EST are below /.well-known/est/")
        if request.method != method and not (method == "GET" and request.method == "HEAD"):
            raise _Answer(405, f"this resource knows {method} alone", allow=method)
        try:
            return await answer(request)
        except RequestRefusedError as exc:
            challenge = {"www-authenticate": _CHALLENGE} if _STATUS[exc.reason] == 401 else {}
            raise _Answer(_STATUS[exc.reason], str(exc), **challenge) from None
        except (CertificateError, OSError) as exc:
            _log.error("%r cannot issue: %s", self._directory, exc, source=self._directory, error=exc)
            raise _Answer(503, "the CA cannot issue now; its log says why") from None

    # Reading

    async def _ca_certificates(self, _: _Request) -> tuple[str, bytes]:
        roots, signs = await _in_thread(lambda: (self._directory.roots, self._directory.authority))
        intermediates = () if signs.intermediate is None else (signs.intermediate,)
        return CERTIFICATES_TYPE, certificates_body([*roots, *intermediates])

    async def _attributes(self, _: _Request) -> tuple[str, bytes]:
        return "application/csrattrs", to_base64(CSR_ATTRIBUTES)

    async def _list(self, request: _Request) -> tuple[str, bytes]:
        found = await self._lists.answer(request.path)
        assert found is not None  # it is one of its paths
        return found

    # Issuing

    async def _enrol(self, request: _Request) -> tuple[str, bytes]:
        self._count(request)
        caller, credentials = request.caller, request.credentials()
        if credentials is None:
            if caller is not None and caller.verified and caller.certificate is not None:
                return await self._renewed(request, caller.certificate)
            msg = "a join token is needed, as the password of basic authentication; `trionode pki token` makes one"
            raise _Answer(401, msg, **{"www-authenticate": _CHALLENGE})
        asked = await _asked(request)
        user, password = credentials
        try:
            token = JoinToken.parse(password)
        except ValueError as exc:
            raise RequestRefusedError(str(exc), reason=RequestRefusal.BAD_TOKEN) from None
        name = self._checked_name(user or token.names)
        enrol = partial(
            self._directory.enrol, asked, token, name=name, lifetime=self._policy.lifetime, address=request.address
        )
        chain = await self._issued(str(name), enrol)
        _log.info(
            "%s has joined, from %s, with serial %x",
            name,
            request.address,
            chain[0].serial_number,
            peer=name,
            address=request.address,
            serial=f"{chain[0].serial_number:x}",
        )
        return f"{CERTIFICATES_TYPE}; smime-type=certs-only", certificates_body(chain[:1])

    async def _renew(self, request: _Request) -> tuple[str, bytes]:
        self._count(request)
        caller = request.caller
        if caller is None or caller.certificate is None or not caller.verified:
            raise _Answer(403, "only who presents the certificate, over TLS, can renew it")
        return await self._renewed(request, caller.certificate)

    async def _renewed(self, request: _Request, certificate: x509.Certificate) -> tuple[str, bytes]:
        asked, caller = await _asked(request), request.caller
        assert caller is not None
        names = [each.removeprefix("trionode://") for each in caller.uris or caller.names]
        name = ", ".join(names)
        for each in names:
            self._checked_name(each)
        renew = partial(
            self._directory.renew, asked, certificate, lifetime=self._policy.lifetime, address=request.address
        )
        chain = await self._issued(name, renew)
        _log.info(
            "%s has renewed, from %s, with serial %x",
            name,
            request.address,
            chain[0].serial_number,
            peer=name,
            address=request.address,
            serial=f"{chain[0].serial_number:x}",
        )
        return f"{CERTIFICATES_TYPE}; smime-type=certs-only", certificates_body(chain[:1])

    async def _issued(self, name: str, issue: Callable[[], Chain]) -> Chain:
        """What the directory issues for a name, within its limit; what it refuses does not count."""
        async with self._issuing:  # one is counted before the next one looks
            self._slow_down(self._by_name.wait(name, trio.current_time()))
            chain = await _in_thread(issue)
            self._by_name.take(name, trio.current_time())
        return chain

    def _count(self, request: _Request) -> None:
        """Hold a request against the limit of its address, before anything else is looked at."""
        self._slow_down(self._by_address.take(address_key(request.address), trio.current_time()))

    def _checked_name(self, name: str) -> NodeName | str:
        """A name in canonical form, if the policy has it."""
        try:
            wanted = parse_name(name)
        except ValueError as exc:
            raise _Answer(403, f"which name? {exc}") from None
        if not any(names_match(each, wanted) for each in self._policy.names):
            raise _Answer(403, f"this service does not issue for {printable(name)}")
        return wanted

    def _slow_down(self, wait: float) -> None:
        if wait:
            raise _Answer(429, "too many requests; wait", **{"retry-after": str(math.ceil(wait))})


async def _asked(request: _Request) -> x509.CertificateSigningRequest:
    """The certificate signing request in the body."""
    try:
        asked = parse_request(from_base64(await request.body()))
    except ValueError as exc:
        raise _Answer(400, str(exc)) from None
    _insist_on_binding(asked, request.caller)
    return asked


def _insist_on_binding(asked: x509.CertificateSigningRequest, caller: Caller | None) -> None:
    """Insist that a request that is tied to a connection has come over that one."""
    try:
        said = asked.attributes.get_attribute_for_oid(AttributeOID.CHALLENGE_PASSWORD).value
    except x509.AttributeNotFound:
        return
    except ValueError:
        raise _Answer(400, "the request's attributes cannot be read") from None
    expected = b"" if caller is None else binding_text(caller.channel_binding).encode()
    if not hmac.compare_digest(said, expected):
        raise _Answer(400, "the request is tied to another TLS connection (its challengePassword): it was relayed")


async def _in_thread(function: Callable[[], _T]) -> _T:
    return await in_thread(Purpose.ISSUING, function)


async def _send(send: Send, status: int, kind: str, body: bytes, headers: dict[str, str]) -> None:
    fields = {"content-type": kind, "content-length": str(len(body)), "cache-control": "no-store", **headers}
    await send(
        {
            "type": "http.response.start",
            "status": status,
            "headers": [(name.encode(), value.encode("latin-1")) for name, value in fields.items()],
        }
    )
    await send({"type": "http.response.body", "body": body})
