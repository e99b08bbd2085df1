"""EST servers that are not ours, as RFC 7030 lets them be: what our client makes of them."""

from __future__ import annotations

import base64
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from functools import partial
from typing import TYPE_CHECKING, Any

import httpx
import pytest
import trio
import trio.testing
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec

from asgi_apps import body_of
from moving_clock import Clock
from specimens import authority
from trionode import CertAuthManager, ClientAuth
from trionode.enrolment import EnrolmentError, EnrolmentReason, ESTSource
from trionode.enrolment._client import Server, _refusal, _seconds, key_pair_of
from trionode.enrolment._schedule import Schedule
from trionode.enrolment._wire import certificates_body
from trionode.http import caller_of, serve_asgi
from trionode.pki import CertificateAuthority, parse_request

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from trionode import CAPool

NAME = "alpha@host-a.example"


class Strict:
    """A server that has its own mind about subjects and names, and insists on what the protocol says of renewals.

    Attributes:
        requests: that came, in DER.
        answers: what comes before a certificate: status and headers.
        clock: by which it issues.
    """

    def __init__(self) -> None:
        self.clock = Clock()
        self.ca = CertificateAuthority.create(clock=self.clock)
        self.requests: list[tuple[str, bytes]] = []
        self.answers: list[tuple[int, dict[str, str]]] = []
        self.lifetime = timedelta(days=1)
        self.port = 0

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """An ASGI application."""
        if scope["type"] != "http":
            return
        data = await body_of(receive)
        status, headers, answer = self.answer(scope, data)
        fields = [(name.encode(), value.encode()) for name, value in headers.items()]
        await send({"type": "http.response.start", "status": status, "headers": fields})
        await send({"type": "http.response.body", "body": answer})

    def answer(self, scope: Any, data: bytes) -> tuple[int, dict[str, str], bytes]:
        """Status, headers and body."""
        resource = scope["path"].removeprefix("/.well-known/est/")
        if resource == "cacerts":
            return 200, {}, certificates_body([self.ca.certificate])
        if not data:
            return 404, {}, b""
        self.requests.append((resource, base64.b64decode(data)))
        asked = parse_request(self.requests[-1][1])
        present = caller_of(scope).certificate
        if present is not None:
            names = [
                each.extensions.get_extension_for_class(x509.SubjectAlternativeName).value for each in (asked, present)
            ]
            if asked.subject != present.subject or names[0] != names[1]:
                return 400, {}, b"subject and names have to be those of the present certificate"
        if self.answers:
            status, headers = self.answers.pop(0)
            return status, headers, b""
        leaf = self.ca.issue("host-a.example", common_name="device 7", lifetime=self.lifetime).certificate
        return 200, {}, certificates_body([reissued(self.ca, leaf, asked)])

    def source(self, **more: Any) -> ESTSource:
        """A client."""
        return ESTSource(
            f"https://localhost:{self.port}",
            NAME,
            **{"auth": ("user", "pass"), "root_cas": self.pool, "clock": self.clock, "draw": lambda: 0.0, **more},
        )

    @property
    def pool(self) -> CAPool:
        """What it is known by."""
        return self.ca.pool


def reissued(
    ca: CertificateAuthority, leaf: x509.Certificate, asked: x509.CertificateSigningRequest
) -> x509.Certificate:
    """A certificate for the key of a request."""
    builder = x509.CertificateBuilder(
        subject_name=leaf.subject,
        issuer_name=leaf.issuer,
        public_key=asked.public_key(),
        serial_number=x509.random_serial_number(),
        not_valid_before=leaf.not_valid_before_utc,
        not_valid_after=leaf.not_valid_after_utc,
    )
    for each in leaf.extensions:
        if not isinstance(each.value, x509.SubjectKeyIdentifier):
            builder = builder.add_extension(each.value, each.critical)
    return builder.sign(ca._key, leaf.signature_hash_algorithm)  # type: ignore[arg-type]


@asynccontextmanager
async def serving() -> AsyncIterator[Strict]:
    """One that runs."""
    server = Strict()
    manager = CertAuthManager(
        server.ca.issue("localhost", lifetime=timedelta(days=90)),
        client_cas=server.pool,
        client_auth=ClientAuth.VERIFY_CLIENT_CERT_IF_GIVEN,
        clock=server.clock,
    )
    async with trio.open_nursery() as nursery:
        [listener, *_] = await nursery.start(partial(serve_asgi, server, 0, host="127.0.0.1", cert_manager=manager))
        server.port = listener.socket.getsockname()[1]
        yield server
        nursery.cancel_scope.cancel()


async def fails(source: ESTSource, reason: EnrolmentReason) -> EnrolmentError:
    """Insist that a reading does, for this reason."""
    with pytest.raises(EnrolmentError) as caught:
        await source.read()
    assert caught.value.reason is reason
    return caught.value


async def test_a_renewal_asks_for_what_the_certificate_says() -> None:
    """Not for what was asked for at first: subject and names are identical (RFC 7030 section 4.2.2)."""
    async with serving() as server:
        source = server.source()
        first = await source.read()
        server.clock.forward(timedelta(hours=17))
        assert (await source.read()).key_pair.fingerprint != first.key_pair.fingerprint
        assert [resource for resource, _ in server.requests] == ["simpleenroll", "simplereenroll"]


async def test_a_server_that_wants_time_is_asked_for_the_same_again() -> None:
    """With the key that it has seen (section 4.2.3), when it said. After the certificate, the next key is new."""
    async with serving() as server:
        server.answers = [(202, {"retry-after": "3600"}), (202, {})]
        source = server.source()
        pending = await fails(source, EnrolmentReason.UNREACHABLE)
        assert "not decided yet" in str(pending)
        assert pending.retry_after == 3600
        await fails(source, EnrolmentReason.UNREACHABLE)
        await source.read()
        assert len({data for _, data in server.requests}) == 1
        server.clock.forward(timedelta(hours=17))
        await source.read()
        assert len({data for _, data in server.requests}) == 2


async def test_a_refusal_ends_a_request() -> None:
    """What is asked for next has another key."""
    async with serving() as server:
        server.answers = [(400, {})]
        source = server.source()
        await fails(source, EnrolmentReason.REFUSED)
        await source.read()
        assert len({data for _, data in server.requests}) == 2


@pytest.mark.parametrize("kind", ["seconds", "date"])
async def test_it_waits_for_as_long_as_it_was_told(kind: str, autojump_clock: trio.testing.MockClock) -> None:
    """In seconds or as a date; longer than it would by itself."""
    after = "3600" if kind == "seconds" else format_datetime(datetime.now(UTC) + timedelta(hours=1), usegmt=True)
    schedule = Schedule(NAME, renew_after=2 / 3, clock=None, draw=lambda: 0.0)
    server = Server("https://ca.example", seconds=1)
    schedule.failed(_refusal(503, "", httpx.Headers({"retry-after": after}), b"", server))
    assert 3000 < schedule.wait() <= 3600


@pytest.mark.parametrize("after", ["", "soon", "-1", "Mon, 99 Foo 2026 00:00:00 GMT", "9" * 30])
def test_times_that_are_none(after: str) -> None:
    """As if nothing had been said."""
    assert _seconds(after) is None


async def test_a_server_may_lead_elsewhere_within_itself() -> None:
    """Another path is tried with the same request; another server is not, as it would get the password."""
    async with serving() as server:
        server.answers = [(307, {"location": "/.well-known/est/simpleenroll?again"})]
        await server.source().read()
        assert len({data for _, data in server.requests}) == 1
        for place in ("https://elsewhere.example/est", "http://localhost/x", "//[", ""):
            server.answers = [(302, {"location": place})]
            error = await fails(server.source(), EnrolmentReason.REFUSED)
            assert "another server" in str(error)
        server.answers = [(302, {"location": "/.well-known/est/simpleenroll"})] * 4
        await fails(server.source(), EnrolmentReason.REFUSED)
        assert server.answers == []


async def test_a_certificate_that_has_ended_already() -> None:
    """Clocks that differ by more than a lifetime: trouble, and the server is not asked on and on."""
    async with serving() as server:
        server.lifetime = timedelta(hours=1)
        late = server.clock.now + timedelta(hours=2)
        source = server.source(clock=lambda: late)
        error = await fails(source, EnrolmentReason.BAD_ANSWER)
        assert "has ended, by this machine's clock" in str(error)
        assert source._schedule.wait(None) > 1


def test_a_certificate_for_some_of_the_names() -> None:
    """Is not what was asked for."""
    pair = authority().issue("a.example", "b.example")
    found = list(pair.chain)
    assert isinstance(pair.private_key, ec.EllipticCurvePrivateKey)
    assert key_pair_of(["a.example", "b.example"], pair.private_key, found) == pair
    with pytest.raises(ValueError, match=r"does not speak for c\.example"):
        key_pair_of(["a.example", "c.example"], pair.private_key, found)
