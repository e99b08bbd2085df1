"""Why a connection fails: a dial taken apart into steps, each with what it showed and what is wrong there.

Theory. The steps are those of a dial: resolve, connect, TLS, verify the server, be verified by it, hello. Each has a
short time limit of its own. A step that fails skips the steps that depend on it, and no others.

Nothing is trusted on the way. The first TLS handshake verifies nothing and presents no certificate: it only looks. Our
certificate is sent in a second handshake, and only if the first has shown that the server verifies. The hello
(`greeting`) is a real dial, by a node that does not listen.

This file does the I/O; what is wrong with what it saw is judged in `diagnosis`. A problem is a `Diagnosis`, with its
remedy. What cannot be judged from here is stated in the steps.
"""

from __future__ import annotations

import errno
import socket
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Final, final

import trio

from trionode import (
    PeerRejectedError,
    PeerUnverifiedError,
    RejectionCode,
    Route,
    Severity,
    TrionodeError,
    check_key_pair,
)
from trionode._credentials.policy import TLSPolicy
from trionode._identity.describe import describe, describe_subject
from trionode._identity.names import unbracketed
from trionode._protocol import ALPN
from trionode._tls.contexts import TLSContexts
from trionode._tls.engine import inspecting_session
from trionode._tls.judge import Judge
from trionode._tls.probe import Inspection, inspect

from .diagnosis import (
    OUR_CERTIFICATE,
    OURS,
    THEIR_CERTIFICATE,
    TLS,
    Diagnosis,
    Ours,
    Step,
    Target,
    accepted,
    compare_certificate,
    compare_trust,
    estimate_clock,
    foresee,
    judge_server,
    rejected,
    tls_failure,
)
from .greeting import greet, only_node, own_name
from .shown import now_utc

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from cryptography import x509

    from trionode import CAPool
    from trionode._tls.session import TLSSession

#: The ALPN protocols that are offered, so that servers of any kind have one to choose.
_OFFERED: Final = (ALPN.encode(), b"h2", b"http/1.1")

#: A server that has not refused our certificate within this time, round trips aside, is taken to accept it. Seconds.
_MOMENT: Final = 0.5


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class Expected:
    """What is on the server's disk, to be compared with what it uses.

    Attributes:
        certificate: the certificate that it should present, or None.
        client_cas: the client CAs that it should accept, or None.
    """

    certificate: x509.Certificate | None = None
    client_cas: CAPool | None = None


class _StopError(Exception):
    """The steps that follow depend on one that failed."""


@final
class Inquiry:
    """One target, examined step by step.

    Attributes:
        steps: the steps so far.
        diagnoses: the problems found so far.
        looked: the first TLS handshake, or None if there was none.
        path: from the server's certificate to a trust anchor of ours; empty if there is none.
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
        """Take every step."""
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
        self._take(Step(name=name, outcome=outcome, text=text, details=tuple(details)), None)

    def _take(self, step: Step, diagnosis: Diagnosis | None) -> None:
        self.steps.append(step)
        self._tell(step)
        if diagnosis is not None:
            self.diagnoses.append(diagnosis)

    def _wrong(self, code: str, step: str, message: str, remedy: str) -> None:
        self.diagnoses.append(Diagnosis(code=str(code), step=step, message=message, remedy=remedy))

    def _seen(self) -> Inspection:
        assert self.looked is not None
        return self.looked

    # Before anything is dialed

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
        problem = "no answer in time"
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
                # A verdict takes a few round trips, as long as this one, and some time to reach it.
                self._patience = min(self._timeout / 2, _MOMENT + 4 * (trio.current_time() - began))
                self._address = (host, self.target.port)
                others = tuple(f"{each}" for each in problems)
                self._done("tcp", "ok", f"connected to {host} port {self.target.port}", *others)
                return
            problems.append(f"{host}: {problem}")
        self._done("tcp", "failed", f"no answer on port {self.target.port}", *problems)
        refused = any(_REFUSED in each for each in problems)
        self._wrong(
            "refused" if refused else "unreachable",
            "tcp",
            f"cannot connect to {self.target.where}: {'; '.join(problems)}",
            "The machine is up, but nothing listens on this port: start the node, or check on which address and port "
            "it listens (ss -ltn, `trionode status`)"
            if refused
            else "Is the machine up, the address right, and the network path open? A firewall that drops packets "
            "looks like this",
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
        asked = "asks for no certificate of ours"
        if required:
            asked = "requires a certificate of ours"
        elif inspection.certificate_requested:
            asked = "asks for a certificate of ours, and goes on without one"
        details = [asked]
        if inspection.requested_cas:
            details.append("names the CAs that it accepts: " + "; ".join(inspection.requested_cas.values()))
        self._required = required
        protocol = f"speaks {inspection.alpn}" if inspection.alpn else "selected no application protocol"
        self._done(TLS, "ok", f"{inspection.tls_version}, {inspection.cipher}, {protocol}", *details)
        if inspection.tls_version != "TLSv1.3":
            self._wrong(
                "old_tls",
                TLS,
                f"the server speaks {inspection.tls_version}, and trionode TLS 1.3 only",
                "Upgrade it, or the proxy in front of it; no node will connect to it",
            )
        if self.target.node is not None and inspection.alpn != ALPN:
            self._wrong(
                "no_node",
                TLS,
                f"the server at {self.target.where} is no trionode node: it {protocol}",
                "Is this the node's port, or another server's? A proxy that terminates TLS in front of the node "
                "would look like this, too",
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
            stream, self._stream = self._stream, None  # the first handshake takes the connection that is open already
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
                "no_certificate", THEIR_CERTIFICATE, "the server presented no usable certificate", "Check its log"
            )
            raise _StopError
        try:
            judge = Judge(self._policy(), accepting=False)
        except TrionodeError as exc:  # no system CAs
            self._done(THEIR_CERTIFICATE, "skipped", str(exc))
            return
        found = list(judge_server(chain, self.target, self.ours, judge, now_utc()))
        self.diagnoses += found
        self.path = judge.judge(chain, dated=False).path
        anchor = f"leads to {describe_subject(self.path[-1])}" if self.path else f"leads to no CA of {self.ours.trust}"
        text = f"covers {self.target.server_name}, {anchor}" if not found else "we refuse it"
        self._done(THEIR_CERTIFICATE, "failed" if found else "ok", text)

    # What is on disk, and what is served

    async def _compare(self) -> None:
        looked = self._seen()
        if self.expected.certificate is not None:
            self._take(*compare_certificate(looked.chain[0], self.expected.certificate))
        if self.expected.client_cas is not None:
            self._take(*compare_trust(looked, self.expected.client_cas))

    # The other direction

    async def _be_verified(self) -> None:
        looked, step = self._seen(), OUR_CERTIFICATE
        key_pair = self.ours.key_pair
        if not looked.certificate_requested:
            self._done(step, "skipped", "the server asks for none, so it verifies no client")
            return
        if key_pair is None:
            if self._required:
                self._done(step, "failed", "the server requires one, and none was given")
                self._wrong(
                    RejectionCode.CERTIFICATE_REQUIRED,
                    step,
                    "the server refuses clients without a certificate, and none was given",
                    f"Give --cert and --key, or --as with a node of the --pki directory{accepted(looked)}",
                )
            else:
                self._done(step, "skipped", "none was given; the server goes on without one")
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
            self._done(step, "failed", "the second handshake: we refused the server")
            self._wrong(failure.reason, step, str(failure), "The server may serve several certificates")
        elif failure is not None and not inspection.went_on:
            self._done(step, "failed", f"the server ended the connection after receiving it: {failure.__cause__}")
            self._wrong(
                "closed",
                step,
                f"the server ended the connection without an alert after receiving our certificate: "
                f"{failure.__cause__}",
                "It may refuse without an alert, or be at a limit; its log says more",
            )
        elif inspection.went_on:
            self._done(step, "ok", "the server went on after receiving it")
        else:
            self._done(step, "ok", f"the server did not refuse it within {self._patience:.1f} s")

    # Clocks

    async def _estimate_clock(self) -> None:
        self._done("clocks", "ok", *estimate_clock(self._seen().chain[0], now_utc()))

    # The hello

    async def _greet(self) -> None:
        looked, step = self._seen(), "hello"
        if looked.alpn != ALPN:
            return
        node = self.target.node or only_node(looked.chain[0])
        name = self.ours.name or own_name(self.ours)
        blocked = {each.step for each in self.diagnoses} & {OURS, THEIR_CERTIFICATE, OUR_CERTIFICATE}
        if blocked:
            self._done(step, "skipped", "not tried: fix the problems above first")
        elif node is None:
            self._done(step, "skipped", "not tried: which node? Name it, as name@host")
        elif self.ours.key_pair is None or name is None:
            self._done(step, "skipped", "not tried: nodes have certificates and names; give --as, or --cert and --key")
        elif node == name:
            self._done(step, "skipped", f"not tried: {node} is our own name; give another one with --as")
        else:
            assert self._address is not None
            route = Route(host=self._address[0], port=self._address[1], server_name=self.target.server_name)
            self._take(*await greet(node, name, self.ours, route, looked, within=self._timeout))


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
