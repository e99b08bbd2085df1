"""What is wrong with what a manager trusts, and what its trust makes of its own key pair.

Theory. The judge of trust says of our own chain what peers with our own pools and lists would say of it. What it cannot
say of any chain is looked at here: a CA whose key is too weak for any peer, a revocation list that no trusted key has
signed, more CAs than fit into a handshake. Such things are found when a manager is built, and not by its first peer.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from cryptography.x509.oid import ExtendedKeyUsageOID

from trionode._credentials.revocation import Issuer, listed_without_effect, unsigned
from trionode._errors import CertificateError, CertificateReason, UnverifiedReason
from trionode._identity.certificate import allows, is_self_issued, issuer_der, subject_der
from trionode._identity.describe import describe, describe_subject, describe_subjects
from trionode._tls.anchors import anchors_of
from trionode._tls.candidates import candidate
from trionode._tls.engine import MAX_CA_LIST, ca_list_size
from trionode._tls.judge import Judge
from trionode._tls.verification import refusal_of

from .findings import Finding, FindingCode, error, warning

if TYPE_CHECKING:
    from collections.abc import Iterator

    from cryptography import x509

    from trionode._credentials.ca_pool import CAPool
    from trionode._credentials.crl import CRLSet
    from trionode._credentials.key_pair import KeyPair
    from trionode._credentials.policy import TLSPolicy

REMEDIES: Final = {
    FindingCode.UNKNOWN_CA: "Peers with the same pool will refuse us: put its intermediates into the certificate file, "
    "have it issued by a CA of that pool, or add its CA to the pool",
    FindingCode.EXPIRED: "Have that certificate issued anew",
    FindingCode.NOT_YET_VALID: "Check this machine's clock and the issuer's",
    FindingCode.REVOKED: "Issue a new one, with a new key if that was the reason",
    FindingCode.REVOCATION_UNKNOWN: "Peers with the same lists will refuse us: give the current list of that CA",
}
OTHER_REMEDY: Final = "Peers that are configured as we are will refuse us: have it issued anew"


def pools_of(policy: TLSPolicy) -> dict[str, CAPool]:
    """The pools that were given, by their names; one of both names if they are the same."""
    if policy.root_cas is not None and policy.root_cas == policy.client_cas:
        return {"root_cas and client_cas": policy.root_cas}
    pools = {"root_cas": policy.root_cas, "client_cas": policy.client_cas}
    return {label: pool for label, pool in pools.items() if pool is not None}


def known_issuers(policy: TLSPolicy, key_pair: KeyPair) -> list[Issuer]:
    """The certificates that may have signed a list: the anchors of the pools, and our own chain above its leaf."""
    found = [each for each in map(candidate, key_pair.chain[1:]) if each.is_readable]
    found += [each for pool in pools_of(policy).values() for each in anchors_of(pool)]
    return [Issuer(each.certificate, each.outline) for each in {each.digest: each for each in found}.values()]


# The pools and lists themselves -------------------------------------------------------------------------------------


def expect_usable(policy: TLSPolicy) -> None:
    """Check that each pool has a CA that some peer could pass by.

    Raises:
        CertificateError: reason `weak_ca`: every CA of a pool has a key that is too weak; `unreadable`: no certificate
            of a pool can be read by OpenSSL.
    """
    for label, pool in pools_of(policy).items():
        anchors = anchors_of(pool)
        weak = anchors.weak()
        if len(anchors.unreadable) == len(pool):
            msg = (
                f"OpenSSL can read no certificate of {label}, so that no peer could pass: "
                f"{describe_subjects(anchors.unreadable)}. Have it made anew"
            )
            raise CertificateError(msg, reason=CertificateReason.UNREADABLE)
        if len(weak) + len(anchors.unreadable) == len(pool):
            msg = (
                f"every CA of {label} has a key of less than 112 bits of security (RSA below 2048 bits, for one), so "
                f"that no peer could pass: {describe_subjects([each.certificate for each in weak])}. Have it made anew"
            )
            raise CertificateError(msg, reason=CertificateReason.WEAK_CA)


def check_trust(policy: TLSPolicy, key_pair: KeyPair) -> Iterator[Finding]:
    """What is wrong with a policy's pools and lists.

    Args:
        policy: the pools and lists.
        key_pair: whose chain may show who signed a list.
    """
    for label, pool in pools_of(policy).items():
        for unreadable in anchors_of(pool).unreadable:
            yield warning(
                FindingCode.UNREADABLE_CA,
                f"OpenSSL cannot read a CA of {label}, so every peer whose certificate it signed is refused: "
                f"{describe(unreadable)}",
                "Have the CA's certificate made anew, or take it out of the pool",
            )
        for each in anchors_of(pool).weak():
            yield warning(
                FindingCode.WEAK,
                f"a CA of {label} has a key of less than 112 bits of security, so every peer whose certificate it "
                f"signed is refused: {describe(each.certificate)}",
                "Have the CA made anew with a stronger key (RSA 2048, P-256), or take it out of the pool",
            )
    if policy.client_cas is not None and policy.client_auth.requests:
        size = ca_list_size(policy.client_cas)
        if size > MAX_CA_LIST:
            yield warning(
                FindingCode.CA_LIST_NOT_SENT,
                f"the names of our {len(policy.client_cas)} client CAs take {size} bytes, and beyond {MAX_CA_LIST} no "
                "list of acceptable CAs is sent to clients: one that has several certificates cannot choose by it",
                "Nothing needs to be done; a shorter pool (roots alone, with intermediates sent by the clients) is "
                "sent in every handshake again",
            )
    if policy.crls is not None:
        yield from _without_effect(policy.crls, known_issuers(policy, key_pair))


def _without_effect(crls: CRLSet, known: list[Issuer]) -> Iterator[Finding]:
    forged = unsigned(crls, known)
    for crl in forged:
        yield warning(
            FindingCode.UNUSED_CRL,
            f"{crl} is not signed by the CA of that name which we trust, so it has no effect at all",
            "Fetch it anew from the CA; if the CA was made anew, give its new certificate to the pools, too. See where "
            "the list came from",
        )
    for issuer, crl in listed_without_effect(crls, known):
        if crl not in forged:
            yield warning(
                FindingCode.UNUSED_CRL,
                f"{issuer} is on {crl}, which has no effect on it: the CA that issued it is in no pool, so nothing "
                "shows who signed the list",
                "If it was revoked, take it out of the pools and files; or give the CA that issued it to a pool",
            )


# Our own chain ------------------------------------------------------------------------------------------------------


def check_own_chain(key_pair: KeyPair, policy: TLSPolicy, *, as_server: bool) -> Iterator[Finding]:
    """What our own trust makes of our own key pair, as servers and as clients present it.

    Args:
        key_pair: the candidate.
        policy: whose pools and lists count.
        as_server: whether it is presented to clients.
    """
    told: set[tuple[str, FindingCode, x509.Certificate | None]] = set()
    for label, pool in pools_of(policy).items():
        for option, accepting in (("root_cas", False), ("client_cas", True)):
            if option not in label:
                continue
            judge = Judge(policy, accepting=accepting)
            refusal = refusal_of(judge, key_pair.chain, dated=True)
            if refusal is None:
                yield from _incomplete(key_pair, judge, pool, told)
                continue
            code = FindingCode(refusal.reason)
            if refusal.reason is UnverifiedReason.WRONG_EKU and not _is_asked_of_cas(
                key_pair, policy, as_server=as_server, accepting=accepting
            ):
                continue
            if (label, code, refusal.failed_at) in told:
                continue
            told.add((label, code, refusal.failed_at))
            why = refusal.offered if code in (FindingCode.REVOKED, FindingCode.REVOCATION_UNKNOWN) else code
            at = key_pair.certificate if refusal.failed_at is None else refusal.failed_at
            yield error(
                code,
                f"our certificate does not verify against our own {label} ({str(why).replace('_', ' ')}); the path "
                f"fails at {describe(at)}",
                REMEDIES.get(code, OTHER_REMEDY),
            )


def check_listed(key_pair: KeyPair, policy: TLSPolicy) -> Iterator[Finding]:
    """Without any pool: what lists in the name of the CA above our chain say of it. Whose they are is not known.

    Args:
        key_pair: the candidate.
        policy: whose lists count.
    """
    if policy.crls is None or pools_of(policy):
        return
    top = key_pair.chain[-1]
    revocation = policy.crls.listed(top)
    if revocation is not None:
        yield error(
            FindingCode.REVOKED,
            f"a certificate of our chain is on a list in the name of its CA: {revocation}: {describe(top)}",
            REMEDIES[FindingCode.REVOKED],
        )


def _is_asked_of_cas(key_pair: KeyPair, policy: TLSPolicy, *, as_server: bool, accepting: bool) -> bool:
    """Whether a purpose that is missing counts, and is missing above the leaf: that of a leaf is looked at apart."""
    purpose = ExtendedKeyUsageOID.CLIENT_AUTH if accepting else ExtendedKeyUsageOID.SERVER_AUTH
    counts = policy.client_auth.verifies if accepting else as_server
    return counts and allows(key_pair.certificate, purpose)


def _incomplete(
    key_pair: KeyPair, judge: Judge, pool: CAPool, told: set[tuple[str, FindingCode, x509.Certificate | None]]
) -> Iterator[Finding]:
    """Whether peers need an intermediate of which only our own pool has a copy."""
    anchor = judge.judge(key_pair.chain, dated=False).path[-1]
    if anchor in key_pair.chain or is_self_issued(anchor):
        return
    roots = [each for each in pool if subject_der(each) == issuer_der(anchor)]
    entry = "", FindingCode.INCOMPLETE_CHAIN, anchor
    if roots and entry not in told:
        told.add(entry)
        yield warning(
            FindingCode.INCOMPLETE_CHAIN,
            f"our chain lacks the intermediate {describe_subject(anchor)}, which is only in our own pool: peers that "
            f"have {describe_subject(roots[0])} alone will refuse us: {describe(key_pair.certificate)}",
            "Put the intermediate into the certificate file, after the leaf; what the file has is what is sent",
        )
