"""`ACMESource`: a certificate from an ACME CA (RFC 8555), as a `Source` for `follow_source`.

Theory. The protocol is spoken by `acme`, the library of certbot, which blocks; so each order runs in a worker thread of
its own. What proves that this machine is who it says is HTTP-01 (RFC 8555 section 8.3): the CA fetches a file by plain
HTTP from port 80 of each name. While an order is under way that is answered here, on `http_port`; or, where something
else listens there, by `challenge_app` within that.

The thread writes answers into a dict and takes them out; the event loop only reads it, so no lock is needed.
"""

from __future__ import annotations

import os
import random
import socket
from contextlib import ExitStack
from datetime import datetime, timedelta
from functools import partial
from typing import TYPE_CHECKING, Any, Final, cast, final

import trio
from acme import challenges, client, errors, messages
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, load_pem_private_key
from hypercorn.config import Config, Sockets
from hypercorn.trio import serve
from josepy.jwa import ES256
from josepy.jwk import JWKEC

from trionode._credentials.issuing import general_name
from trionode._credentials.pem import Secret, as_path, parse_certificates, private_key_to_pem, read_file
from trionode._errors import CertificateError, CertificateReason
from trionode._identity.names import canonical_host
from trionode._managers.sources import Credentials
from trionode._transport.tcp import open_listeners
from trionode._util.fields import SECONDS, check_argument
from trionode._util.log import Log
from trionode._util.text import printable, without_password
from trionode._util.threads import Purpose, in_thread
from trionode.pki._files import PRIVATE, replace_files

from ._client import key_pair_of
from ._errors import EnrolmentError, EnrolmentReason
from ._lifespan import nothing_to_start
from ._schedule import Schedule

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    import requests

    from trionode._credentials.key_pair import KeyPair
    from trionode._credentials.pem import FilePath
    from trionode._credentials.policy import Clock
    from trionode.http.lifespan import ASGIApplication, Receive, Scope, Send

_log: Final = Log("trionode.enrolment")

_PREFIX: Final = "/.well-known/acme-challenge/"
#: Attempts with another nonce; each is two of the library's.
_NONCES: Final = 4
#: Clocks are looked at this often: machines sleep, and clocks are set. Seconds.
_LOOK: Final = 30.0


@final
class ACMESource:
    """A certificate from an ACME CA, for `follow_source`: step-ca, Vault, Let's Encrypt and others.

    The key is made here, anew for each certificate, and stays in memory. A CA that cannot be reached is trouble that
    the follower tells, with the time that is left; it never ends anything.

    Attributes:
        challenge_app: answers the CA's HTTP-01 requests, as an ASGI application, for servers of yours on port 80.
    """

    challenge_app: ASGIApplication

    def __init__(
        self,
        url: str,
        *names: str,
        agree_to_terms: bool = False,
        contact: Sequence[str] = (),
        account_key_file: FilePath | None = None,
        ca_file: FilePath | None = None,
        http_host: str | None = None,
        http_port: int | None = 80,
        renew_after: float = 2 / 3,
        order_timeout: float = 120.0,
        clock: Clock | None = None,
        draw: Callable[[], float] = random.random,
    ) -> None:
        """Say where, and for what; nothing is sent yet.

        Args:
            url: of the CA's directory (RFC 8555 section 7.1.1).
            names: DNS names, at least one.
            agree_to_terms: that you agree to the CA's terms of service; most CAs insist on it.
            contact: where the CA may write to: `mailto:` URLs.
            account_key_file: keeps the account's key (PEM, mode 0600), so that a restart is the same account.
            ca_file: the anchors for the CA's own HTTPS, PEM; by default those of the package `certifi`.
            http_host: the address to answer on; None for all interfaces.
            http_port: the port to answer on while an order is under way, to which the CA's requests to port 80 have to
                come; None where `challenge_app` is served by something else.
            renew_after: at which share of the lifetime to renew, at the latest; up to a tenth earlier, at random.
            order_timeout: how long an order may take. Seconds.
            clock: source of "now" (aware); by default the machine's clock.
            draw: a random number from 0 to 1.

        Raises:
            ValueError, TypeError: an argument is not what belongs there.
        """
        check_argument("order_timeout", order_timeout, SECONDS)
        if not names:
            msg = "a certificate needs at least one name"
            raise ValueError(msg)
        if isinstance(contact, str):
            msg = "contact is a sequence of URLs: write [url] for a single one"
            raise TypeError(msg)
        self._url, self._contact, self._agree = url, tuple(contact), agree_to_terms
        self._shown = without_password(url)
        self._names = tuple(map(canonical_host, names))
        self._account_file = None if account_key_file is None else as_path(account_key_file)
        self._ca_file = None if ca_file is None else as_path(ca_file)
        self._host, self._port, self._seconds = http_host, http_port, order_timeout
        self._schedule = Schedule(self._names[0], renew_after=renew_after, clock=clock, draw=draw)
        self._account_key: ec.EllipticCurvePrivateKey | None = None
        self._answers: dict[str, str] = {}
        self._lock = trio.Lock()
        self.challenge_app = self._answer

    def __repr__(self) -> str:
        return f"<ACMESource {', '.join(self._names)} from {self._shown}>"

    async def read(self) -> Credentials:
        """What it has now; ordered anew if it is due. Cancelling abandons a thread, which ends by itself.

        Raises:
            EnrolmentError: there is no new certificate; the text says for how long the present one lasts.
            CertificateError: the account's key is damaged.
            ListenError: the port is in use.
            OSError: the account's key cannot be written.
        """
        async with self._lock:
            schedule = self._schedule
            if schedule.is_due():
                began = schedule.now()
                try:
                    pair = await self._ordered()
                    schedule.take(pair, began)
                except EnrolmentError as exc:
                    schedule.failed(exc)
                    raise schedule.told(exc) from exc
                schedule.succeeded()
                _log.info("%r: %r", self, pair, source=self, certificate=pair.fingerprint)
            assert schedule.pair is not None
            return Credentials(key_pair=schedule.pair)

    def read_now(self) -> Credentials:
        """As `read()`, outside of a Trio run: to make the manager. Blocks for as long as that takes.

        Raises:
            EnrolmentError: see `read()`.
            CertificateError: see `read()`.
            OSError: see `read()`.
        """
        found = trio.run(self.read)
        self._schedule.another_run()
        return found

    async def wait_changed(self, seen: Credentials | None, /) -> None:
        """Wait until the certificate is due, or until it is time to try again what failed.

        Args:
            seen: what the caller has.
        """
        schedule = self._schedule
        while True:
            pair = schedule.pair
            wait = schedule.wait(schedule.renewal())
            if wait <= 0 or (seen is not None and pair is not None and seen.key_pair != pair):
                await trio.lowlevel.checkpoint()
                return
            await trio.sleep(min(wait, _LOOK))

    # Orders

    async def _ordered(self) -> KeyPair:
        key = ec.generate_private_key(ec.SECP256R1())
        request = (
            x509.CertificateSigningRequestBuilder()
            .subject_name(x509.Name([]))
            .add_extension(x509.SubjectAlternativeName(map(general_name, self._names)), critical=False)
            .sign(key, hashes.SHA256())
        )
        with trio.move_on_after(self._seconds):
            chain = await self._while_answering(request.public_bytes(Encoding.PEM))
            try:
                found = parse_certificates(Secret(chain), f"the answer of {self._shown}")
                return key_pair_of(self._names, key, list(found))
            except (ValueError, CertificateError) as exc:
                raise EnrolmentError(f"{self._shown}: {exc}", reason=EnrolmentReason.BAD_ANSWER) from None
        msg = f"{self._shown} has not issued within {self._seconds:g} s"
        raise EnrolmentError(msg, reason=EnrolmentReason.UNREACHABLE)

    def _order(self, request: bytes) -> bytes:
        """Order a certificate; in a thread.

        Raises:
            EnrolmentError: the CA has not issued it.
            CertificateError: the account's key is damaged.
            OSError: it cannot be written.
        """
        self._key()
        deadline = datetime.now() + timedelta(seconds=self._seconds)  # noqa: DTZ005 -- as the library compares it
        try:
            ca = self._logged_in()
            order = ca.new_order(request)
            for authorization in _each(order.authorizations):
                if authorization.body.status == messages.STATUS_PENDING:
                    self._accept(ca, authorization)
            issued = ca.poll_and_finalize(order, deadline)
        except (errors.ValidationError, messages.Error) as exc:
            raise EnrolmentError(f"{self._shown} refuses: {_words(exc)}", reason=EnrolmentReason.REFUSED) from exc
        except (errors.Error, OSError, ValueError) as exc:
            msg = f"{self._shown} cannot be reached: {printable(str(exc)) or type(exc).__name__}"
            raise EnrolmentError(msg, reason=EnrolmentReason.UNREACHABLE) from exc
        except EnrolmentError:
            raise
        except Exception as exc:  # what the library makes of an answer that is not ACME's
            msg = f"{self._shown} answers with something else than ACME ({type(exc).__name__}: {printable(str(exc))})"
            raise EnrolmentError(msg, reason=EnrolmentReason.BAD_ANSWER) from exc
        finally:
            self._answers.clear()
        return str(issued.fullchain_pem).encode()

    def _logged_in(self) -> client.ClientV2:
        key = JWKEC(key=self._key())
        verify = True if self._ca_file is None else str(self._ca_file)
        # The library hands it to `requests`, which takes a path, too.
        net = _Network(key, alg=ES256, verify_ssl=verify, user_agent="trionode")  # type: ignore[arg-type]
        ca = client.ClientV2(client.ClientV2.get_directory(self._url, net), net)
        account = messages.NewRegistration(contact=self._contact, terms_of_service_agreed=self._agree or None)
        try:
            ca.new_account(account)
        except errors.ConflictError as exc:
            net.account = messages.RegistrationResource(uri=exc.location, body=messages.Registration())
        return ca

    def _accept(self, ca: client.ClientV2, authorization: messages.AuthorizationResource) -> None:
        for each in _each(authorization.body.challenges):
            if isinstance(each.chall, challenges.HTTP01):
                response, validation = each.chall.response_and_validation(JWKEC(key=self._key()))
                self._answers[each.chall.path] = validation
                ca.answer_challenge(each, response)
                return
        name = authorization.body.identifier.value
        msg = f"{self._shown} does not offer HTTP-01 for {printable(str(name))}, and no other challenge is known here"
        raise EnrolmentError(msg, reason=EnrolmentReason.REFUSED)

    def _key(self) -> ec.EllipticCurvePrivateKey:
        """The account's key, from its file, or a new one."""
        file = self._account_file
        if self._account_key is None and file is not None and file.exists():
            try:
                found = load_pem_private_key(read_file(file).data, None)
            except (ValueError, TypeError):
                found = None
            if not isinstance(found, ec.EllipticCurvePrivateKey):
                msg = f"{file} holds no ECDSA key of an ACME account; remove it, and a new account is made"
                raise CertificateError(msg, reason=CertificateReason.UNREADABLE)
            self._account_key = found
        if self._account_key is None:
            self._account_key = ec.generate_private_key(ec.SECP256R1())
            if file is not None:
                replace_files([(file, private_key_to_pem(self._account_key), PRIVATE)])
        return self._account_key

    # HTTP-01

    async def _while_answering(self, request: bytes) -> bytes:
        """The chain; while that is ordered, the CA's requests are answered."""
        order = partial(in_thread, Purpose.ENROLLING, self._order, request, abandon_on_cancel=True)
        if self._port is None:
            return await order()
        listeners = await open_listeners(self._host, self._port)
        # Of ours rather than descriptors for the server: however early this is cancelled, they are closed, and the port
        # is free for the next order.
        with ExitStack() as sockets:
            config = _Listening([sockets.enter_context(_taken(each)) for each in listeners])
            outcome: bytes | Exception = b""
            async with trio.open_nursery() as nursery:
                await nursery.start(serve, self.challenge_app, config)
                try:
                    outcome = await order()
                except (EnrolmentError, CertificateError, OSError) as exc:  # raised bare, outside of the nursery
                    outcome = exc
                nursery.cancel_scope.cancel()
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        """An ASGI application."""
        if scope["type"] == "lifespan":
            await nothing_to_start(receive, send)
        if scope["type"] != "http":
            return
        answer = self._answers.get(scope["path"]) if scope["path"].startswith(_PREFIX) else None
        body = b"" if answer is None else answer.encode()
        headers = [(b"content-type", b"application/octet-stream"), (b"content-length", b"%d" % len(body))]
        await send({"type": "http.response.start", "status": 404 if answer is None else 200, "headers": headers})
        await send({"type": "http.response.body", "body": body})


@final
class _Network(client.ClientNetwork):
    """One that goes on trying where the CA does not take a nonce (RFC 8555 section 6.5); the library tries twice."""

    def post(self, *args: Any, **more: Any) -> requests.Response:  # noqa: ANN401 -- as it is there
        """Send a signed request."""
        for left in range(_NONCES, -1, -1):  # pragma: no branch -- the last one raises or returns
            try:
                return super().post(*args, **more)
            except messages.Error as exc:
                if exc.code != "badNonce" or not left:
                    raise
        raise AssertionError


def _taken(listener: trio.SocketListener) -> socket.socket:
    """A listener's socket, in place of the listener."""
    taken = socket.socket(fileno=os.dup(listener.socket.fileno()))
    listener.socket.close()
    return taken


@final
class _Listening(Config):
    """Settings of a server on sockets that are there."""

    def __init__(self, sockets: list[socket.socket]) -> None:
        super().__init__()
        self._sockets = sockets
        self.errorlog = None
        self.graceful_timeout = 0.5

    def create_sockets(self) -> Sockets:
        """No others."""
        return Sockets([], self._sockets, [])


def _each(decoded: object) -> list[Any]:
    """The items of a field that josepy decodes; to type checkers that is its decoder."""
    return list(cast("Iterable[Any]", decoded))


def _words(exc: Exception) -> str:
    if isinstance(exc, errors.ValidationError):
        found = [
            f"{each.body.identifier.value}: {challenge.error}"
            for each in exc.failed_authzrs
            for challenge in _each(each.body.challenges)
            if challenge.error is not None
        ]
        return printable("; ".join(found))
    return printable(str(exc))
