"""What is wrong with what a dial has shown: pure functions, without I/O; each diagnosis with its remedy."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, final

from cryptography.x509.oid import ExtendedKeyUsageOID

from trionode._errors import HandshakeReason, PeerRejectedError, RejectionCode, UnverifiedReason
from trionode._identity.certificate import (
    allows,
    fingerprint,
    is_self_issued,
    issuer_der,
    not_after,
    not_before,
    subject_der,
)
from trionode._identity.describe import (
    describe,
    describe_duration,
    describe_issuer,
    describe_names,
    describe_subject,
    describe_subjects,
    describe_time,
)
from trionode._identity.names import NodeName, SubjectNames
from trionode._tls.verification import explain

from .shown import certificate_state

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from datetime import datetime, timedelta

    from cryptography import x509

    from trionode import CAPool, CRLSet, KeyPair
    from trionode._tls.judge import Judge
    from trionode._tls.probe import Inspection
    from trionode._tls.verification import Explanation

#: The steps that diagnoses are about.
OURS: Final = "ours"
TLS: Final = "tls"
THEIR_CERTIFICATE: Final = "their certificate"
OUR_CERTIFICATE: Final = "our certificate"


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class Target:
    """The server that is examined.

    Attributes:
        node: the node that should answer, or None for any TLS server.
        host: its host; canonical.
        port: its TCP port.
        server_name: the reference name that its certificate has to cover.
    """

    node: NodeName | None
    host: str
    port: int
    server_name: str

    @property
    def where(self) -> str:
        """Host and port, for a sentence."""
        return f"{self.host} port {self.port}"


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class Ours:
    """Our side: name, credentials, trust.

    Attributes:
        name: our node name, or None.
        key_pair: the certificate to present, or None for none.
        root_cas: the trust anchors for servers; None for the system's CAs.
        crls: revocation lists, or None.
        cookie: the shared secret, or None.
        trust: where `root_cas` is from, for messages.
    """

    name: NodeName | None = None
    key_pair: KeyPair | None = None
    root_cas: CAPool | None = None
    crls: CRLSet | None = None
    cookie: bytes | None = field(default=None, repr=False)
    trust: str


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class Diagnosis:
    """One problem.

    Attributes:
        code: a word for it, stable, for scripts.
        step: the step in which it shows.
        message: what is wrong.
        remedy: what to do.
    """

    code: str
    step: str
    message: str
    remedy: str


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class Step:
    """The result of one step.

    Attributes:
        name: which step.
        outcome: `ok`, `failed`, `skipped`.
        text: what happened, in a line.
        details: further lines.
    """

    name: str
    outcome: str
    text: str
    details: tuple[str, ...] = ()


# TLS ----------------------------------------------------------------------------------------------------------------


def tls_failure(inspection: Inspection, target: Target, timeout: float) -> Diagnosis:
    """Why a handshake that verifies nothing has failed."""
    failure = inspection.failure
    if inspection.first_words is not None:
        code, message = "not_tls", f"it does not speak TLS; its first bytes are {inspection.first_words!r}"
        remedy = "Is this the right port? A plain text protocol answers here"
    elif isinstance(failure, PeerRejectedError):
        code, message = failure.code, f"it ended the TLS handshake with the alert {failure.code.replace('_', ' ')!r}"
        remedy = _ALERT_REMEDIES.get(failure.code, "Its log says why")
    elif failure is None:
        code = "silent"
        message = f"it accepts the connection, and sends nothing within {timeout:g} s"
        remedy = "It is no TLS server, or it hangs, or a proxy or tunnel in front of it does not reach it"
    elif failure.reason != HandshakeReason.TRUNCATED:
        code, message = "not_tls", f"what it sends is not valid TLS: {failure.reason}"
        remedy = "Is this the right port, and is it a TLS 1.2 or 1.3 server?"
    else:
        code, message = "closed", f"it ended the connection in the middle of the TLS handshake: {failure.__cause__}"
        remedy = (
            "It may be no TLS server, be at a limit, or not admit this address; a proxy that does not reach its "
            "server looks like this, too. Its log says more"
        )
    return Diagnosis(code=code, step=TLS, message=f"{target.where}: {message}", remedy=remedy)


# Their certificate --------------------------------------------------------------------------------------------------


def judge_server(
    chain: Sequence[x509.Certificate], target: Target, ours: Ours, judge: Judge, now: datetime
) -> Iterator[Diagnosis]:
    """Every reason for which a dialer refuses a server's chain, not only the first.

    Args:
        chain: what it presented, leaf first.
        target: the name that it should cover.
        ours: our trust anchors, for messages.
        judge: of the same trust; dates are judged here.
        now: our clock.
    """
    yield from _judge_dates(chain, now)
    fault = judge.judge(chain, dated=False).fault
    for_servers = allows(chain[0], ExtendedKeyUsageOID.SERVER_AUTH)
    if fault is not None:
        told = explain(fault, judge)
        if for_servers or told.reason is not UnverifiedReason.WRONG_EKU:
            yield _judge_path(chain, ours, told, fault.found)
    yield from _judge_names(chain[0], target)
    if not for_servers:
        yield _theirs(
            UnverifiedReason.WRONG_EKU,
            f"the server's certificate is not for servers (no serverAuth): {describe(chain[0])}",
            "Issue it with both serverAuth and clientAuth: a node is a server and a client",
        )


def _judge_dates(chain: Sequence[x509.Certificate], now: datetime) -> Iterator[Diagnosis]:
    for number, each in enumerate(chain):
        what = "the server's certificate" if not number else "a certificate of the server's chain"
        match certificate_state(each, now):
            case "expired":
                yield _theirs(
                    UnverifiedReason.EXPIRED,
                    f"{what} has expired, {describe_duration(now - not_after(each))} ago by our clock: "
                    f"{describe(each)}",
                    "Rotate it. If that was done, the server does not use the new one: compare with --expect-cert "
                    "FILE; and check this machine's clock",
                )
            case "not_yet_valid":
                yield _theirs(
                    UnverifiedReason.NOT_YET_VALID,
                    f"{what} is not valid before {describe_time(not_before(each))}, and our clock "
                    f"says {now:%Y-%m-%d %H:%M:%S}: {describe(each)}",
                    "Check the clocks of this machine and of the issuing CA; issue certificates backdated by some "
                    "minutes",
                )


def _judge_path(chain: Sequence[x509.Certificate], ours: Ours, told: Explanation, found: x509.Certificate) -> Diagnosis:
    reason = told.reason
    if reason is not UnverifiedReason.UNKNOWN_CA:
        remedy = _PATH_REMEDIES.get(reason, told.remedy)
        return _theirs(reason, f"the server's certificate{told.what}: {describe(chain[0])}", remedy)
    last = chain[-1]
    pool = ours.root_cas
    trusted = ours.trust if pool is None else f"{ours.trust} ({describe_subjects(pool)})"
    namesake = next((each for each in pool or () if subject_der(each) == issuer_der(last)), None)
    if namesake is not None:
        return _theirs(
            reason,
            f"the server's certificate is from a CA with the name of one of ours, {describe_subject(namesake)}, "
            "but not with its key: the CA was made anew, and one side still has the old one",
            "Give both sides the CA certificate that is in use now; during the change, both (rotate_trust to "
            "old | new)",
        )
    if len(chain) == 1 and is_self_issued(last):
        return _theirs(
            reason,
            f"the server's certificate is self-signed, and not in {trusted}: {describe(last)}",
            "Issue it from the cluster's CA; or trust this very certificate, by adding it to the pool",
        )
    return _theirs(
        reason,
        f"the server's certificate was issued by {describe_issuer(last)}, which is not in {trusted}; where it "
        f"fails: {describe(found)}",
        "Trust the CA that issued it (--ca, --root-ca; root_cas in a program); or have the server send its "
        "intermediates; or issue its certificate from a CA that is trusted. If its CA was replaced, this side "
        "still has the old one",
    )


def _judge_names(leaf: x509.Certificate, target: Target) -> Iterator[Diagnosis]:
    names, wanted = SubjectNames.of(leaf), target.server_name
    if not names.cover_host(wanted):
        yield _theirs(
            UnverifiedReason.NAME_MISMATCH,
            f"we want the name {wanted}, and the server's certificate offers {describe_names(leaf)}",
            "Dial a name that it covers, set server_name (here --server-name) to one, or issue it with this name. "
            "If the server chooses its certificate by name (SNI), it may not know this one",
        )
    elif target.node is not None and not names.admit_node(target.node):
        yield _theirs(
            UnverifiedReason.NAME_MISMATCH,
            f"we want the node {target.node}, and the server's certificate is for other nodes: {describe_names(leaf)}",
            "Does another node listen there? Otherwise issue the certificate for this node name",
        )


def _theirs(code: str, message: str, remedy: str) -> Diagnosis:
    return Diagnosis(code=str(code), step=THEIR_CERTIFICATE, message=message, remedy=remedy)


# What is on disk ----------------------------------------------------------------------------------------------------


def compare_certificate(served: x509.Certificate, on_disk: x509.Certificate) -> tuple[Step, Diagnosis | None]:
    """Whether a server presents the certificate that is on its disk."""
    name = "rotation"
    if fingerprint(served) == fingerprint(on_disk):
        return Step(name=name, outcome="ok", text="what is on disk is what is served"), None
    step = Step(
        name=name,
        outcome="failed",
        text="what is served is not what is on disk",
        details=(f"served:  {describe(served)}", f"on disk: {describe(on_disk)}"),
    )
    message = (
        f"the server presents another certificate than the file holds (SHA-256 {fingerprint(served)[:16]}…, valid "
        f"from {not_before(served):%Y-%m-%d %H:%M}, in place of {fingerprint(on_disk)[:16]}…, from "
        f"{not_before(on_disk):%Y-%m-%d %H:%M})"
    )
    older = not_before(on_disk) < not_before(served)
    remedy = (
        "The file is the older one: is it the right file, and was a newer one overwritten?"
        if older
        else "The process has not taken it up. Does it follow its files (follow_source, `trionode serve`), and was "
        "it told (SIGHUP)? If so it refused them: its log (trionode.sources) says why, and `trionode check` on "
        "these files. Connections that were there before keep the old one in any case"
    )
    return step, Diagnosis(code="not_rotated", step=name, message=message, remedy=remedy)


def compare_trust(looked: Inspection, on_disk: CAPool) -> tuple[Step, Diagnosis | None]:
    """Whether a server accepts the client CAs that are on its disk, as far as it names them."""
    name = "trust"
    if not looked.certificate_requested or not looked.requested_cas:
        why = "asks for no certificates" if not looked.certificate_requested else "does not name the CAs that it trusts"
        return Step(name=name, outcome="skipped", text=f"cannot be told from here: the server {why}"), None
    wanted = {subject_der(each): describe_subject(each) for each in on_disk}
    missing = [text for der, text in wanted.items() if der not in looked.requested_cas]
    surplus = [text for der, text in looked.requested_cas.items() if der not in wanted]
    if not missing and not surplus:
        text = "the client CAs on disk are those that the server accepts"
        return Step(name=name, outcome="ok", text=text), None
    details = [f"on disk only: {text}" for text in missing] + [f"served only: {text}" for text in surplus]
    text = "the client CAs on disk are not those that the server accepts"
    diagnosis = Diagnosis(
        code="trust_not_rotated",
        step=name,
        message="the server accepts other client CAs than the file holds: " + "; ".join(details),
        remedy="CA pools are fixed while a manager is in use: rotate_trust() changes them, as follow_source and "
        "`trionode serve` do when the file changes (refused if live peers would be stranded: its log says so); a "
        "setter does not. Otherwise restart the node",
    )
    return Step(name=name, outcome="failed", text=text, details=tuple(details)), diagnosis


# Our certificate ----------------------------------------------------------------------------------------------------


def foresee(key_pair: KeyPair, looked: Inspection) -> Iterator[Diagnosis]:
    """Why a server would refuse our certificate, as far as it names the CAs that it accepts."""
    issuers = {issuer_der(each) for each in key_pair.chain}
    if looked.requested_cas and not issuers & looked.requested_cas.keys():
        yield _ours(
            RejectionCode.UNKNOWN_CA,
            f"the server does not list the CA of our certificate, {describe_issuer(key_pair.chain[-1])}"
            f"{accepted(looked)}",
            _THEIR_POOL,
        )


def rejected(code: RejectionCode, certificate: x509.Certificate, looked: Inspection, now: datetime) -> Diagnosis:
    """Why a server has refused our certificate, by the alert that it sent."""
    state = certificate_state(certificate, now)
    match code:
        case RejectionCode.UNKNOWN_CA:
            message = (
                f"the server does not know the CA that issued our certificate, {describe_issuer(certificate)}"
                f"{accepted(looked)}"
            )
            remedy = _THEIR_POOL
        case RejectionCode.CERTIFICATE_EXPIRED if state == "expired":
            message = f"our certificate has expired, and the server refused it: {describe(certificate)}"
            remedy = "Rotate it"
        case RejectionCode.CERTIFICATE_EXPIRED:
            ahead = describe_duration(not_after(certificate) - now)
            message = (
                f"the server says that our certificate has expired, and by our clock it has not: the server's "
                f"clock is ahead by {ahead} at least, or a certificate above it or a revocation list has expired there"
            )
            remedy = "Compare the clocks of both machines (chronyc tracking, timedatectl), and check the chain"
        case RejectionCode.BAD_CERTIFICATE:
            since = describe_duration(now - not_before(certificate))
            message = (
                f"the server finds our certificate bad. A certificate that is not yet valid looks like this: ours "
                f"is valid since {since} by our clock, so the server's would be behind by as much"
            )
            remedy = "Compare the clocks of both machines; its log says what it found"
        case _:
            message = f"the server refused our certificate: {code.replace('_', ' ')}: {describe(certificate)}"
            remedy = _REJECTION_REMEDIES.get(code, "Its log says why")
    return _ours(code, message, remedy)


def _ours(code: str, message: str, remedy: str) -> Diagnosis:
    return Diagnosis(code=str(code), step=OUR_CERTIFICATE, message=message, remedy=remedy)


def accepted(looked: Inspection) -> str:
    """The CAs that a server says it accepts, as the end of a sentence."""
    return f"; it accepts certificates of: {'; '.join(looked.requested_cas.values())}" if looked.requested_cas else ""


# Time ---------------------------------------------------------------------------------------------------------------


def estimate_clock(leaf: x509.Certificate, now: datetime) -> tuple[str, ...]:
    """What a server's certificate says about its clock; TLS 1.3 carries no time, so it is an estimate."""
    start, end = not_before(leaf), not_after(leaf)
    ours = f"our clock says {describe_time(now)}"
    match certificate_state(leaf, now):
        case "expired":
            text = f"{ours}, {describe_duration(now - end)} after the end of the server's certificate"
            guess = _off("ahead", now - end)
        case "not_yet_valid":
            text = f"{ours}, {describe_duration(start - now)} before the server's certificate begins"
            guess = _off("behind", start - now)
        case _:
            text = f"{ours}, within the dates of the server's certificate"
            guess = (
                f"a difference would show only beyond {describe_duration(now - start)} (server behind) or "
                f"{describe_duration(end - now)} (server ahead)"
            )
    return text, "TLS tells no time: this is estimated, from dates alone", guess


def _off(how: str, span: timedelta) -> str:
    return f"if that is good by the server's clock, ours is {how} by {describe_duration(span)} or more"


# Remedies -----------------------------------------------------------------------------------------------------------

_THEIR_POOL: Final = (
    "Add our CA to the server's client_cas (rotate_trust() while it runs), or issue our certificate from a CA that is "
    "there. If its CA file was changed, the process does not use the new one: compare with --expect-client-ca FILE"
)

_ALERT_REMEDIES: Final = {
    RejectionCode.PROTOCOL_VERSION: "It speaks neither TLS 1.3 nor 1.2: upgrade it",
    RejectionCode.HANDSHAKE_FAILURE: "The two have no parameters in common: old ciphers, or it requires something that "
    "we do not offer; its log says what",
    RejectionCode.UNRECOGNIZED_NAME: "It does not know this server name (SNI): dial a name that it serves, or set one "
    "with --server-name",
    RejectionCode.INTERNAL_ERROR: "A fault of the server: no usable certificate, or none for this name; its log says "
    "why",
}

_PATH_REMEDIES: Final = {
    UnverifiedReason.REVOKED: "Issue the server a new one, with a new key if that was the reason",
    UnverifiedReason.REVOCATION_UNKNOWN: "Give the current revocation list of that CA (--crl)",
}

_REJECTION_REMEDIES: Final = {
    RejectionCode.CERTIFICATE_REVOKED: "Issue a new one, with a new key if that was the reason",
    RejectionCode.UNSUPPORTED_CERTIFICATE: "Issue it with both serverAuth and clientAuth: a node is a server and a "
    "client",
    RejectionCode.CERTIFICATE_UNKNOWN: "The server cannot verify its path; its log says what is wrong",
    RejectionCode.ACCESS_DENIED: "The certificate is good, but its holder is not admitted",
}

HELLO_REMEDIES: Final[dict[str, str]] = {
    RejectionCode.CLAIMED_NAME: "Open the node under a name that its certificate covers, or issue it for this name",
    RejectionCode.NOT_AUTHORIZED: "The server's authorize function decides; check it",
    RejectionCode.COOKIE: "Give both sides the same cookie (--cookie-file)",
    RejectionCode.VERSION: "Upgrade the older of the two",
    RejectionCode.SHUTTING_DOWN: "It is shutting down; try again when it is up",
}
