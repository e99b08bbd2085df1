"""Findings: what is, or soon will be, wrong with a key pair, each with a remedy.

Theory. There is one examination, for managers, for sources that check before they rotate, and for the command line. It
looks at the certificate itself (dates, purposes, names, signatures), verifies it against our own pools and revocation
lists, and makes a handshake of the key pair with itself, in memory, under the policy given: that finds what no rule
here covers, in the words of the refusal.

A finding is an error where peers with our own configuration would refuse the key pair, and a warning where some peers
may, or where it is untidy. An error is not a refusal: `update()` refuses what `check_usable` refuses and nothing else,
since peers may trust what we do not. One cause gives one finding: a handshake that fails for a reason already found
adds none.
"""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import TYPE_CHECKING, Final

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.x509.oid import ExtendedKeyUsageOID

from trionode._credentials.ca_pool import CAPool
from trionode._credentials.crl import STRICT, CRLPolicy, CRLSet
from trionode._credentials.key_pair import KeyPair
from trionode._credentials.policy import ClientAuth, TLSPolicy
from trionode._errors import CertificateError, CertificateReason, HandshakeError, PeerUnverifiedError
from trionode._identity.certificate import (
    UnreadableError,
    allows,
    extension,
    is_self_issued,
    issuer_der,
    not_after,
    not_before,
    signature_hash,
    subject_der,
)
from trionode._identity.describe import (
    describe,
    describe_duration,
    describe_names,
    describe_subject,
    describe_time,
)
from trionode._identity.names import (
    NodeName,
    SubjectNames,
    canonical_host,
    parse_name,
)
from trionode._tls.contexts import TLSContexts
from trionode._tls.handshake import handshake_in_memory
from trionode._util.fields import check_argument, check_each

from .check_trust import OTHER_REMEDY, REMEDIES, check_listed, check_own_chain, check_trust
from .findings import Finding, FindingCode, Severity, error, warning

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from datetime import datetime

    from trionode._credentials.policy import Clock

__all__ = ["check_key_pair"]

#: Peers' clocks may be behind ours by about as much, where no time service sets them.
CLOCK_SKEW: Final = timedelta(minutes=2)


def check_key_pair(
    key_pair: KeyPair,
    *,
    client_cas: CAPool | None = None,
    root_cas: CAPool | None = None,
    client_auth: ClientAuth = ClientAuth.NO_CLIENT_CERT,
    names: Iterable[str | NodeName] = (),
    as_server: bool = True,
    crls: CRLSet | None = None,
    crl_policy: CRLPolicy = STRICT,
    clock: Clock | None = None,
) -> tuple[Finding, ...]:
    """What is wrong with a key pair; changes nothing, and uses no network.

    Takes some milliseconds.

    Args:
        key_pair: the candidate.
        client_cas: the pool that clients are verified against; None leaves that out.
        root_cas: the pool that servers are verified against; None leaves that out (it does not mean the system's CAs).
        client_auth: what acceptors ask of clients.
        names: what the certificate has to cover: node names (`name@host`), or plain host names and addresses.
        as_server: whether it is presented to clients, too.
        crls: revocation lists; None leaves that out.
        crl_policy: how strictly they are applied.
        clock: source of "now"; by default the machine's clock.

    Raises:
        ValueError: a name is neither a node name nor a host.
    """
    policy = TLSPolicy(
        client_cas=client_cas,
        client_auth=client_auth,
        root_cas=root_cas,
        crls=crls,
        crl_policy=crl_policy,
        clock=clock,
    )
    return examine(key_pair, policy, names=names, as_server=as_server)


def examine(
    key_pair: KeyPair,
    policy: TLSPolicy,
    *,
    names: Iterable[str | NodeName] = (),
    as_server: bool = True,
    contexts: TLSContexts | None = None,
) -> tuple[Finding, ...]:
    """As `check_key_pair`, by a manager's policy.

    Args:
        key_pair: the candidate.
        policy: the manager's.
        names: what the certificate has to cover.
        as_server: whether it is presented to clients, too.
        contexts: what was built of the two, where that was done; it takes a third of the time.
    """
    check_argument("key_pair", key_pair, KeyPair)
    check_argument("as_server", as_server, bool)
    wanted = [parse_name(name) for name in check_each("names", names, str, NodeName)]
    found = [
        *_usability(key_pair, policy.now(), as_server=as_server, as_client=policy.client_auth.verifies),
        *_dates(key_pair, policy),
        *_key_usage(key_pair.certificate),
        *_strength(key_pair),
        *_names(key_pair.certificate, wanted),
        *_chain(key_pair),
        *check_listed(key_pair, policy),
    ]
    # Chain and handshake fail again for what was found already, so they come last, and count for anything else.
    own = check_own_chain(key_pair, policy, as_server=as_server)
    found += [finding for finding in own if not _explained(finding, found)]
    if as_server or allows(key_pair.certificate, ExtendedKeyUsageOID.SERVER_AUTH):
        tried = _handshake(key_pair, policy, wanted, contexts)
        found += [finding for finding in tried if not _explained(finding, found)]
    return (*found, *check_trust(policy, key_pair))


def check_usable(key_pair: KeyPair, *, now: datetime, as_server: bool, as_client: bool) -> None:
    """Check what `update()` requires: a leaf within its dates, whose purposes allow the roles that it is used in.

    Args:
        key_pair: the candidate.
        now: the time to judge by, aware.
        as_server: whether an acceptor is to present it (needs serverAuth, if it names purposes at all).
        as_client: whether a verifying peer is to see it as a client's (needs clientAuth, likewise).

    Raises:
        CertificateError: reason `expired`, `not_yet_valid` or `wrong_eku`.
    """
    for finding in _usability(key_pair, now, as_server=as_server, as_client=as_client):
        if finding.severity is Severity.ERROR:
            raise CertificateError(str(finding), reason=CertificateReason(finding.code))


# The certificate itself ---------------------------------------------------------------------------------------------


def _usability(key_pair: KeyPair, now: datetime, *, as_server: bool, as_client: bool) -> Iterator[Finding]:
    """What makes a key pair unusable; its errors are all that an update is refused for."""
    leaf = key_pair.certificate
    if now > not_after(leaf):
        yield error(
            FindingCode.EXPIRED,
            f"our certificate has expired, our clock says {describe_time(now)}: {describe(leaf)}",
            "Issue a new one, and rotate to it with manager.update()",
        )
    if now < not_before(leaf):
        yield error(
            FindingCode.NOT_YET_VALID,
            f"our certificate is not yet valid, our clock says {describe_time(now)}: {describe(leaf)}",
            "Check this machine's clock and the issuer's",
        )
    both = "Issue it with both serverAuth and clientAuth: a node is a server and a client"
    if as_server and not allows(leaf, ExtendedKeyUsageOID.SERVER_AUTH):
        yield error(
            FindingCode.WRONG_EKU,
            f"our certificate's extended key usage does not allow serverAuth: {describe(leaf)}",
            both,
        )
    if not allows(leaf, ExtendedKeyUsageOID.CLIENT_AUTH):
        verifies = "" if as_client else "; peers that verify clients will refuse us"
        message = f"our certificate's extended key usage does not allow clientAuth{verifies}: {describe(leaf)}"
        yield (error if as_client else warning)(FindingCode.WRONG_EKU, message, both)


def _dates(key_pair: KeyPair, policy: TLSPolicy) -> Iterator[Finding]:
    leaf, now = key_pair.certificate, policy.now()
    start, end = not_before(leaf), not_after(leaf)
    if timedelta() <= now - start < CLOCK_SKEW:
        yield warning(
            FindingCode.JUST_VALID,
            f"our certificate is valid since {describe_time(start)} only, and peers whose clocks are "
            f"behind will refuse it as not yet valid: {describe(leaf)}",
            "Issue certificates backdated by a few minutes, or wait as long before they are used",
        )
    if timedelta() <= end - now < (end - start) / 10:
        yield warning(
            FindingCode.EXPIRES_SOON,
            f"our certificate ends in {describe_duration(end - now)}, a tenth of its lifetime is not left: "
            f"{describe(leaf)}",
            "Issue a new one, and find out why that was not done before",
        )
    anchors = {anchor for pool in (policy.client_cas, policy.root_cas) if pool is not None for anchor in pool}
    above = [anchor for anchor in anchors if subject_der(anchor) == issuer_der(key_pair.chain[-1])]
    issuers = [*key_pair.chain[1:], *sorted(above, key=not_after)[-1:]]
    first = min(issuers, key=not_after, default=leaf)
    if not_after(first) < end:
        yield warning(
            FindingCode.OUTLIVES_CA,
            f"the CA {describe_subject(first)} ends at {describe_time(not_after(first))}, and "
            f"with it our certificate, which says that it is valid longer: {describe(leaf)}",
            "Replace the CA before it ends, and issue certificates that do not outlive theirs",
        )


def _key_usage(leaf: x509.Certificate) -> Iterator[Finding]:
    try:
        usage = extension(leaf, x509.KeyUsage)
    except UnreadableError:
        what = "cannot be read"
    else:
        what = "" if usage is None or usage.digital_signature else "does not allow digitalSignature, which TLS 1.3 is"
    if what:
        yield error(
            FindingCode.KEY_USAGE,
            f"our certificate's key usage {what}: {describe(leaf)}",
            "Issue it with digitalSignature, or without a key usage",
        )


def _strength(key_pair: KeyPair) -> Iterator[Finding]:
    for certificate in key_pair.chain:
        if is_self_issued(certificate):
            continue  # peers do not check the signature of a root
        if isinstance(signature_hash(certificate), hashes.SHA1 | hashes.MD5):
            yield error(
                FindingCode.WEAK,
                f"a certificate of our chain is signed with a hash that peers refuse (SHA-1, MD5): "
                f"{describe(certificate)}",
                "Issue it with SHA-256",
            )


def _names(leaf: x509.Certificate, wanted: list[NodeName | str]) -> Iterator[Finding]:
    offered = SubjectNames.of(leaf)
    if offered.unusable:
        yield warning(
            FindingCode.UNUSABLE_NAME,
            f"subject alternative names of our certificate that no peer can match: "
            f"{'; '.join(offered.unusable)}: {describe(leaf)}",
            "Issue it with host names, addresses, and node names as trionode://name@host",
        )
    if not offered.dns and not offered.addresses:
        yield error(
            FindingCode.NO_NAMES,
            f"our certificate names no host in its subject alternative names, and peers look nowhere else: "
            f"{describe(leaf)}",
            "Issue it with the node's host as a DNS or IP subject alternative name",
        )
        return
    for name in wanted:
        if isinstance(name, NodeName):
            if offered.cover_node(name):
                continue
            what, why = f"our node name {name}", "its URI names are others" if offered.cover_host(name.host) else ""
        else:
            if offered.cover_host(name):
                continue
            what, why = f"our name {name}", ""
        yield error(
            FindingCode.NAME_MISMATCH,
            f"our certificate does not cover {what}, so verifying peers will refuse us; it offers "
            f"{describe_names(leaf)}{f' ({why})' if why else ''}: {describe(leaf)}",
            "Issue it for this name",
        )


def _chain(key_pair: KeyPair) -> Iterator[Finding]:
    last = key_pair.chain[-1]
    if len(key_pair.chain) > 1 and is_self_issued(last):
        yield warning(
            FindingCode.SUPERFLUOUS_ROOT,
            f"our chain ends with a root, which peers have or do not trust: {describe(last)}",
            "Leave it out of the certificate file; it is sent in every handshake",
        )


def _handshake(
    key_pair: KeyPair, policy: TLSPolicy, wanted: list[NodeName | str], contexts: TLSContexts | None
) -> Iterator[Finding]:
    """The candidate with the candidate, in memory."""
    reference = _reference(SubjectNames.of(key_pair.certificate), wanted)
    if reference is None:
        return  # there is no name to dial it by, which was found already
    # Without a pool of our own the top of the chain is the anchor, so that the rest of the path is judged.
    top = CAPool(key_pair.chain[-1:])
    trial = replace(policy, root_cas=policy.root_cas or top, client_cas=policy.client_cas or top)
    failure: CertificateError | HandshakeError | None
    try:
        if contexts is None or policy.root_cas is None or policy.client_cas is None:
            contexts = TLSContexts.build(1, key_pair, trial)
        failure = handshake_in_memory(contexts.server.session(), contexts.client.session(reference=reference))
    except CertificateError as exc:
        failure = exc
    if failure is None:
        return
    # Every reason for which a path or name is refused is a code here, too.
    code = FindingCode(failure.reason) if isinstance(failure, PeerUnverifiedError) else FindingCode.HANDSHAKE
    # Where neither end refused the other, the whole sentence would be about a peer.
    told = isinstance(failure, PeerUnverifiedError | CertificateError)
    yield error(
        code,
        f"a handshake of our certificate with itself fails: {failure if told else failure.reason}",
        REMEDIES.get(code, OTHER_REMEDY),
    )


def _reference(offered: SubjectNames, wanted: list[NodeName | str]) -> str | None:
    """A host that the certificate covers, preferably a wanted one."""
    hosts = [name.host if isinstance(name, NodeName) else name for name in wanted]
    hosts += [pattern.pattern.decode().replace("*", "any") for pattern in offered.dns]
    hosts += [canonical_host(str(pattern.pattern)) for pattern in offered.addresses]
    return next(filter(offered.cover_host, hosts), None)


def _explained(finding: Finding, found: list[Finding]) -> bool:
    """Whether a finding has a cause that was found already."""
    causes = {finding.code, *_CAUSES.get(finding.code, ())}
    return any(each.code in causes and each.severity is Severity.ERROR for each in found)


_CAUSES: Final = {
    FindingCode.WRONG_EKU: (FindingCode.KEY_USAGE,),
    FindingCode.BAD_CHAIN: (FindingCode.WEAK,),
    FindingCode.HANDSHAKE: (FindingCode.WEAK,),
}
