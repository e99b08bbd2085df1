"""Why a connection fails: a dial taken apart into steps, each by itself, with what it shows and what is wrong there.

Theory. The steps are those of a dial: resolve, connect, TLS, verify the server, be verified by it, hello. Each has its
own short time limit, and one that fails ends what depends on it and nothing else. Nothing is trusted on the way: the
first TLS handshake verifies nothing and presents nothing, it only looks; our certificate goes, in a second one, only
to a server that the first one has shown to verify; the hello is a real dial of a node that listens nowhere.

What is wrong is a `Diagnosis`, with its remedy. What was seen but cannot be judged is said in the steps.
"""

from __future__ import annotations

import errno
import socket
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Final, final

import trio

from trionode import (
    CertAuthManager,
    ClientAuth,
    HandshakeError,
    HandshakeTimeoutError,
    NetworkMode,
    NetworkOptions,
    NodeName,
    NodeOptions,
    PeerRejectedError,
    PeerUnverifiedError,
    RejectionCode,
    Route,
    Severity,
    Stage,
    TrionodeError,
    check_key_pair,
    open_node,
)
from trionode._credentials.policy import TLSPolicy
from trionode._identity.certificate import fingerprint
from trionode._identity.describe import describe, describe_subject
from trionode._identity.names import SubjectNames, unbracketed
from trionode._protocol import ALPN
from trionode._tls.contexts import TLSContexts
from trionode._tls.engine import inspecting_session
from trionode._tls.probe import Inspection, inspect
from trionode._tls.verification import TrustCheck

from .diagnosis import (
    HELLO_REMEDIES,
    OUR_CERTIFICATE,
    OURS,
    THEIR_CERTIFICATE,
    TLS,
    Diagnosis,
    Ours,
    Target,
    accepted,
    estimate_clock,
    foresee,
    judge_server,
    rejected,
    tls_failure,
)
from .shown import now_utc

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from cryptography import x509

    from trionode import CAPool, KeyPair
    from trionode._tls.session import TLSSession

#: What is offered, so that servers of any kind have something to choose.
_OFFERED: Final = (ALPN.encode(), b"h2", b"http/1.1")

#: How long a server may think of our certificate before we say that it had no objection, round trips aside. Seconds.
_MOMENT: Final = 0.5


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class Expected:
    """What is on the server's disk.

    Attributes:
        certificate: the certificate that it should be serving, or None.
        client_cas: the client CAs that it should accept, or None.
    """

    certificate: x509.Certificate | None = None
    client_cas: CAPool | None = None


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class Step:
    """What one step came to.

    Attributes:
        name: which.
        outcome: `ok`, `failed`, `skipped`.
        text: what happened, in a line.
        details: what else there is to see.
    """

    name: str
    outcome: str
    text: str
    details: tuple[str, ...] = ()


class _StopError(Exception):
    """What follows has nothing to go on."""


@final
class Inquiry:
    """One target, asked step by step.

    Attributes:
        steps: what was done.
        diagnoses: what is wrong.
        looked: the first TLS handshake, or None if there was none.
        path: from the server's certificate to an anchor of ours; empty if there is none.
    """

    def __init__(
        self,
        target: Target,
        ours: Ours,
        expected: Expected,
        *,
        timeout: float,
        tell: Callable[[Step], None],
    ) -> None:
        self.target = target
        self.ours = ours
        self.expected = expected
        self.steps: list[Step] = []
        self.diagnoses: list[Diagnosis] = []
        self.looked: Inspection | None = None
        self.path: tuple[x509.Certificate, ...] = ()
        self._timeout = timeout
        self._tell = tell
        self._addresses: list[str] = []
        self._address: tuple[str, int] | None = None
        self._stream: trio.SocketStream | None = None
        self._required = False
        self._patience = timeout / 2
        self._alpn: tuple[bytes, ...] = _OFFERED

    async def run(self) -> None:
        """Take all the steps there are."""
        steps: list[Callable[[], Awaitable[None]]] = [
            self._look_at_ours,
            self._resolve,
            self._connect,
            self._look,
            self._verify_server,
            self._compare,
            self._be_verified,
            self._estimate_clock,
            self._greet,
        ]
        try:
            for step in steps:
                await trio.lowlevel.checkpoint()
                await step()
        except _StopError:
            pass
        finally:
            if self._stream is not None:
                self._stream.socket.close()

    def _done(self, name: str, outcome: str, text: str, *details: str) -> None:
        step = Step(name=name, outcome=outcome, text=text, details=tuple(details))
        self.steps.append(step)
        self._tell(step)

    def _wrong(self, code: str, step: str, message: str, remedy: str) -> None:
        self.diagnoses.append(Diagnosis(code=str(code), step=step, message=message, remedy=remedy))

    def _seen(self) -> Inspection:
        assert self.looked is not None
        return self.looked

    # Before anything is dialled

    async def _look_at_ours(self) -> None:
        key_pair = self.ours.key_pair
        if key_pair is None:
            return
        findings = check_key_pair(
            key_pair, names=() if self.ours.name is None else (self.ours.name,), as_server=False, client_cas=None
        )
        errors = [each for each in findings if each.severity is Severity.ERROR]
        errors += [each for each in findings if each.code == "wrong_eku" and each not in errors]
        for each in errors:
            self._wrong(each.code, OURS, each.message, each.remedy)
        text = "our certificate will be refused" if errors else "our certificate has no fault of its own"
        self._done(OURS, "failed" if errors else "ok", text, describe(key_pair.certificate))

    # TCP

    async def _resolve(self) -> None:
        host, port = unbracketed(self.target.host), self.target.port
        found: list[str] = []
        problem = "it takes too long"
        with trio.move_on_after(self._timeout):
            try:
                answers = await trio.socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
                found = list(dict.fromkeys(str(each[4][0]) for each in answers))
            except OSError as exc:
                problem = exc.strerror or str(exc)
        if not found:
            self._done("resolve", "failed", f"{host} does not resolve: {problem}")
            self._wrong(
                "unresolvable",
                "resolve",
                f"the name {host} does not resolve: {problem}",
                "Check its spelling, DNS and /etc/hosts; or say where to dial with --address, as a route's host does",
            )
            raise _StopError
        self._done("resolve", "ok", f"{host} is {', '.join(found)}")
        self._addresses = found

    async def _connect(self) -> None:
        problems: list[str] = []
        for host in self._addresses:
            began = trio.current_time()
            problem = await self._try_address(host)
            if problem is None:
                # A verdict takes a round trip, as this did, and a moment.
                self._patience = min(self._timeout / 2, _MOMENT + 4 * (trio.current_time() - began))
                self._address = (host, self.target.port)
                others = tuple(f"{each}" for each in problems)
                self._done("tcp", "ok", f"connected to {host} port {self.target.port}", *others)
                return
            problems.append(f"{host}: {problem}")
        self._done("tcp", "failed", f"nobody answers on port {self.target.port}", *problems)
        refused = any(_REFUSED in each for each in problems)
        self._wrong(
            "refused" if refused else "unreachable",
            "tcp",
            f"cannot connect to {self.target.where}: {'; '.join(problems)}",
            "The machine is there, but nothing listens on this port: start the node, or see on which address and port "
            "it listens (ss -ltn, `trionode status`)"
            if refused
            else "Is the machine up, the address right, and the way to it open? A firewall that drops packets looks "
            "like this",
        )
        raise _StopError

    async def _try_address(self, host: str) -> str | None:
        with trio.move_on_after(self._timeout):
            try:
                stream = await trio.open_tcp_stream(host, self.target.port)
            except OSError as exc:
                return _why_not_connected(exc)
            self._stream = stream
            return None
        return f"no answer within {self._timeout:g} s"

    # TLS

    async def _look(self) -> None:
        inspection = await self._shake_hands(self._bare_session)
        if isinstance(inspection.failure, PeerRejectedError) and inspection.failure.code == "no_application_protocol":
            self._alpn = ()
            inspection = await self._shake_hands(self._bare_session)
        required = _is_alert(inspection, RejectionCode.CERTIFICATE_REQUIRED) or (
            inspection.certificate_requested and isinstance(inspection.failure, PeerRejectedError)
        )
        if not inspection.finished and not (required and inspection.chain):
            diagnosis = tls_failure(inspection, self.target, self._timeout)
            self.diagnoses.append(diagnosis)
            self._done(TLS, "failed", diagnosis.message)
            raise _StopError
        self.looked = inspection
        asked = "asked for no certificate of ours"
        if required:
            asked = "asked for our certificate, and insists"
        elif inspection.certificate_requested:
            asked = "asked for our certificate, and goes on without"
        details = [asked]
        if inspection.requested_cas:
            details.append("says that it accepts certificates of: " + "; ".join(inspection.requested_cas.values()))
        self._required = required
        protocol = f"speaks {inspection.alpn}" if inspection.alpn else "agreed on no application protocol"
        self._done(TLS, "ok", f"{inspection.tls_version}, {inspection.cipher}, {protocol}", *details)
        if inspection.tls_version != "TLSv1.3":
            self._wrong(
                "old_tls",
                TLS,
                f"the server speaks {inspection.tls_version}, and trionode TLS 1.3 only",
                "Upgrade it, or what stands before it; no node will connect to it",
            )
        if self.target.node is not None and inspection.alpn != ALPN:
            self._wrong(
                "no_node",
                TLS,
                f"what answers at {self.target.where} is no trionode node: it {protocol}",
                "Is this the node's port, or another server's? Something that ends TLS before the node would look "
                "like this, too",
            )

    async def _shake_hands(self, session: Callable[[], TLSSession]) -> Inspection:
        assert self._address is not None
        silent = Inspection(
            finished=False,
            went_on=False,
            failure=None,
            chain=(),
            certificate_requested=False,
            requested_cas={},
            tls_version="",
            cipher=None,
            alpn=None,
            first_words=None,
        )
        with trio.move_on_after(self._timeout):
            stream, self._stream = self._stream, None  # the first handshake has the connection that is there
            try:
                stream = stream or await trio.open_tcp_stream(*self._address)
            except OSError:
                return silent
            try:
                return await inspect(stream, session(), patience=self._patience)
            finally:
                await trio.aclose_forcefully(stream)
        return silent

    def _bare_session(self) -> TLSSession:
        return inspecting_session(server_name=self.target.server_name, alpn=self._alpn)

    # Certificates

    def _policy(self) -> TLSPolicy:
        return TLSPolicy(root_cas=self.ours.root_cas, crls=self.ours.crls)

    async def _verify_server(self) -> None:
        chain = self._seen().chain
        if not chain:
            self._done(THEIR_CERTIFICATE, "failed", "the server presented no certificate that can be parsed")
            self._wrong(
                "no_certificate", THEIR_CERTIFICATE, "the server presented no usable certificate", "Look at its log"
            )
            raise _StopError
        try:
            check = TrustCheck(self._policy(), accepting=False, dated=False)
        except TrionodeError as exc:  # no system CAs
            self._done(THEIR_CERTIFICATE, "skipped", str(exc))
            return
        found = list(judge_server(chain, self.target, self.ours, check, now_utc()))
        self.diagnoses += found
        self.path = check.path(chain)
        anchor = f"leads to {describe_subject(self.path[-1])}" if self.path else f"leads to no CA of {self.ours.trust}"
        text = f"covers {self.target.server_name}, {anchor}" if not found else "we refuse it"
        self._done(THEIR_CERTIFICATE, "failed" if found else "ok", text)

    # What is on disk, and what is served

    async def _compare(self) -> None:
        if self.expected.certificate is not None:
            self._compare_certificate(self.expected.certificate)
        if self.expected.client_cas is not None:
            self._compare_trust(self.expected.client_cas)

    def _compare_certificate(self, on_disk: x509.Certificate) -> None:
        served = self._seen().chain[0]
        if fingerprint(served) == fingerprint(on_disk):
            self._done("rotation", "ok", "what is on disk is what is served")
            return
        older = on_disk.not_valid_before_utc < served.not_valid_before_utc
        self._done(
            "rotation",
            "failed",
            "what is served is not what is on disk",
            f"served:  {describe(served)}",
            f"on disk: {describe(on_disk)}",
        )
        self._wrong(
            "not_rotated",
            "rotation",
            f"the server presents another certificate than the file holds (SHA-256 {fingerprint(served)[:16]}…, valid "
            f"from {served.not_valid_before_utc:%Y-%m-%d %H:%M}, in place of {fingerprint(on_disk)[:16]}…, from "
            f"{on_disk.not_valid_before_utc:%Y-%m-%d %H:%M})",
            "The file is the older one: is it the right file, and was a newer one overwritten?"
            if older
            else "The process has not taken it up. Does it follow its files (follow_source, `trionode serve`), and was "
            "it told (SIGHUP)? If so it refused them: its log (trionode.sources) says why, and `trionode check` on "
            "these files. Connections that were there before keep the old one in any case",
        )

    def _compare_trust(self, on_disk: CAPool) -> None:
        looked = self._seen()
        if not looked.certificate_requested or not looked.requested_cas:
            why = "asks for no certificates" if not looked.certificate_requested else "does not say whom it trusts"
            self._done("trust", "skipped", f"cannot be told from here: the server {why}")
            return
        wanted = {each.subject.public_bytes(): describe_subject(each) for each in on_disk}
        missing = [text for der, text in wanted.items() if der not in looked.requested_cas]
        surplus = [text for der, text in looked.requested_cas.items() if der not in wanted]
        if not missing and not surplus:
            self._done("trust", "ok", "the client CAs on disk are those that the server accepts")
            return
        details = [f"on disk only: {text}" for text in missing] + [f"served only: {text}" for text in surplus]
        self._done("trust", "failed", "the client CAs on disk are not those that the server accepts", *details)
        self._wrong(
            "trust_not_rotated",
            "trust",
            "the server accepts other client CAs than the file holds: " + "; ".join(details),
            "CA pools are fixed while a manager is in use: rotate_trust() changes them, as follow_source and `trionode "
            "serve` do when the file changes (refused where live peers would be stranded: its log says so); a setter "
            "does not. Otherwise restart the node",
        )

    # The other direction

    async def _be_verified(self) -> None:
        looked, step = self._seen(), OUR_CERTIFICATE
        key_pair = self.ours.key_pair
        if not looked.certificate_requested:
            self._done(step, "skipped", "the server asks for none, so it verifies nobody")
            return
        if key_pair is None:
            if self._required:
                self._done(step, "failed", "the server insists on one, and none was given")
                self._wrong(
                    RejectionCode.CERTIFICATE_REQUIRED,
                    step,
                    "the server refuses clients without a certificate, and none was given",
                    f"Give --cert and --key, or --as with a node of the --pki directory{accepted(looked)}",
                )
            else:
                self._done(step, "skipped", "none was given; the server does without")
            return
        if any(each.step == THEIR_CERTIFICATE for each in self.diagnoses):
            self._done(step, "skipped", "not shown to a server that did not verify; fix that first")
            self.diagnoses += foresee(key_pair, looked)
            return
        contexts = await trio.to_thread.run_sync(partial(TLSContexts.build, 1, key_pair, self._policy()))
        inspection = await self._shake_hands(
            lambda: contexts.client.session(reference=self.target.server_name, alpn=self._alpn)
        )
        failure = inspection.failure
        if isinstance(failure, PeerRejectedError):
            self._done(step, "failed", f"the server refused it: {failure.code.replace('_', ' ')}")
            self.diagnoses.append(rejected(failure.code, key_pair.certificate, looked, now_utc()))
        elif isinstance(failure, PeerUnverifiedError):
            self._done(step, "failed", "the second time we refused the server")
            self._wrong(failure.reason, step, str(failure), "The server may serve several certificates")
        elif failure is not None and not inspection.went_on:
            self._done(step, "failed", f"the server ended the connection after it saw it: {failure.__cause__}")
            self._wrong(
                "closed",
                step,
                f"the server ended the connection without a word after our certificate: {failure.__cause__}",
                "It may refuse without an alert, or be at a limit; its log says more",
            )
        elif inspection.went_on:
            self._done(step, "ok", "the server went on after it saw it")
        else:
            self._done(step, "ok", f"the server had no objection within {self._patience:.1f} s")

    # Time

    async def _estimate_clock(self) -> None:
        self._done("clocks", "ok", *estimate_clock(self._seen().chain[0], now_utc()))

    # The hello

    async def _greet(self) -> None:
        looked, step = self._seen(), "hello"
        if looked.alpn != ALPN:
            return
        node = self.target.node or self._only_node(looked.chain[0])
        name = self.ours.name or self._own_name()
        blocked = {each.step for each in self.diagnoses} & {OURS, THEIR_CERTIFICATE, OUR_CERTIFICATE}
        if blocked:
            self._done(step, "skipped", "not tried: see to what is above first")
        elif node is None:
            self._done(step, "skipped", "not tried: which node? Name it, as name@host")
        elif self.ours.key_pair is None or name is None:
            self._done(step, "skipped", "not tried: nodes have certificates and names; give --as, or --cert and --key")
        elif node == name:
            self._done(step, "skipped", f"not tried: {node} is the name that we go by; give another one with --as")
        else:
            await self._dial(node, name, self.ours.key_pair)

    async def _dial(self, node: NodeName, name: NodeName, key_pair: KeyPair) -> None:
        assert self._address is not None
        manager = CertAuthManager(
            key_pair, root_cas=self.ours.root_cas, client_auth=ClientAuth.NO_CLIENT_CERT, crls=self.ours.crls
        )
        network = NetworkOptions(
            mode=NetworkMode.HIDDEN,
            connect_timeout=self._timeout,
            handshake_timeout=self._timeout,
            cookie=self.ours.cookie,
        )
        route = Route(host=self._address[0], port=self._address[1], server_name=self.target.server_name)
        try:
            async with open_node(name, NodeOptions(cert_manager=manager, network=network)) as dialler:
                began = trio.current_time()
                connection = await dialler.connect(node, route)
                took = trio.current_time() - began
                verified = "verified" if connection.peer.verified else "NOT verified"
                self._done(
                    "hello",
                    "ok",
                    f"{name} and {connection.peer.name} accept each other, {verified}, in {took * 1000:.0f} ms",
                    f"the server is at generation {connection.peer_generation} of its certificates",
                )
        except PeerRejectedError as exc:
            if exc.code is RejectionCode.NAME_IN_USE:
                self._done(
                    "hello",
                    "ok",
                    f"{node} has a live connection to {name} already: all but that held",
                    "give another name with --as to see the hello through",
                )
                return
            if exc.stage is Stage.TLS:  # the verdict on our certificate, later than we had waited for it
                self._done(OUR_CERTIFICATE, "failed", f"the server refused it: {exc.code.replace('_', ' ')}")
                self.diagnoses.append(rejected(exc.code, key_pair.certificate, self._seen(), now_utc()))
                return
            self._done("hello", "failed", f"the server refused us: {exc.code.replace('_', ' ')}")
            self._wrong(exc.code, "hello", str(exc), HELLO_REMEDIES.get(exc.code, "Its log says why"))
        except PeerUnverifiedError as exc:
            self._done("hello", "failed", f"we refused the server: {exc.reason.replace('_', ' ')}")
            self._wrong(exc.reason, "hello", str(exc), HELLO_REMEDIES.get(exc.reason, "See to the server's options"))
        except HandshakeTimeoutError as exc:
            self._done("hello", "failed", f"no answer within {self._timeout:g} s")
            self._wrong("timeout", "hello", str(exc), "The node is overloaded, or hangs")
        except HandshakeError as exc:
            self._done("hello", "failed", "the connection broke")
            self._wrong(exc.reason, "hello", str(exc), "The node's log says more")

    def _only_node(self, leaf: x509.Certificate) -> NodeName | None:
        nodes = SubjectNames.of(leaf).nodes
        return next(iter(nodes)) if len(nodes) == 1 else None

    def _own_name(self) -> NodeName | None:
        """A name that our certificate covers, and that is nobody's, where it covers more than its own."""
        if self.ours.key_pair is None:
            return None
        names = SubjectNames.of(self.ours.key_pair.certificate)
        if names.restricted:
            return next(iter(sorted(names.nodes)), None)
        hosts = [pattern.pattern.decode() for pattern in names.dns if not pattern.pattern.startswith(b"*")]
        return NodeName("explain", hosts[0]) if hosts else None


# Words --------------------------------------------------------------------------------------------------------------

_REFUSED: Final = "refused"


def _is_alert(inspection: Inspection, code: RejectionCode) -> bool:
    return isinstance(inspection.failure, PeerRejectedError) and inspection.failure.code is code


def _why_not_connected(exc: OSError) -> str:
    cause = exc.__cause__
    found = cause.exceptions if isinstance(cause, BaseExceptionGroup) else (cause or exc,)
    words: list[str] = []
    for each in found:
        if isinstance(each, OSError) and each.errno == errno.ECONNREFUSED:
            words.append(_REFUSED)
        else:
            words.append((each.strerror if isinstance(each, OSError) else None) or str(each))
    return "; ".join(dict.fromkeys(words))
