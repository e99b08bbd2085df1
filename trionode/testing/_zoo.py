"""A cluster's CA for tests, and a zoo: certificates that it might have issued, each with one defect.

Theory. Every animal is the model, a good certificate for the same name, with one thing changed, so that it is refused
for that. Most are ordinary `KeyPair`s. But a manager refuses in `update()` and at its first use what is expired, not
yet valid or of the wrong purpose; so that peers get to judge it, `present_anyway` publishes a key pair unchecked.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Final, NamedTuple, NoReturn, final

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.x509.oid import ExtendedKeyUsageOID

from trionode._credentials.issuing import BACKDATE
from trionode._credentials.key_pair import KeyPair
from trionode._credentials.pem import private_key_to_pem, to_pem
from trionode._identity.certificate import not_after, not_before
from trionode._identity.names import NodeName
from trionode._managers.manager import publisher_of
from trionode._node.node import Node
from trionode.pki import CertificateAuthority

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.types import (
        CertificateIssuerPrivateKeyTypes,
        CertificatePublicKeyTypes,
    )

    from trionode._credentials.crl import CRLSet
    from trionode._credentials.policy import Clock
    from trionode._managers.manager import CertManager

__all__ = ["CertificateZoo", "PEMPair", "certificate_zoo", "cluster_ca", "present_anyway"]

_DAY: Final = timedelta(days=1)
#: RFC 6761 section 6.2: a name that never resolves.
_ELSEWHERE: Final = "elsewhere.test"


#: Why each animal is refused, by a dialer or an acceptor; as in the table of `CertificateZoo`.
REASONS: Final[dict[str, tuple[str, ...]]] = {
    "expired": ("expired",),
    "not_yet_valid": ("not_yet_valid",),
    "wrong_ca": ("unknown_ca",),
    "wrong_name": ("name_mismatch", "claimed_name"),
    "no_san": ("name_mismatch", "claimed_name"),
    "wrong_eku": ("wrong_eku",),
    "revoked": ("revoked",),
    "weak_key": ("bad_chain",),
}


@final
class PEMPair(NamedTuple):
    """A certificate chain and its private key, as PEM text; for key pairs that `KeyPair` refuses."""

    cert_pem: bytes
    key_pem: bytes

    def __repr__(self) -> str:
        """Without the key."""
        return f"<PEMPair, {len(self.cert_pem)} bytes of certificates, key not shown>"


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class CertificateZoo:
    """Certificates for one name, each with one defect; made by `certificate_zoo`.

    Which side refuses each, and why, with mutual TLS. Holder: the reason of the `CertificateError` that its own manager
    raises. Dialer and acceptor: the `UnverifiedReason` of a dialer to which a server presents it, and of an acceptor to
    which a client does (see `present_anyway`). Peer: the `RejectionCode` that the side that presented it gets.

    | animal | holder | dialer | acceptor | peer |
    | -- | -- | -- | -- | -- |
    | `good` | | | | |
    | `expired` | `expired` | `expired` | `expired` | `certificate_expired` |
    | `not_yet_valid` | `not_yet_valid` | `not_yet_valid` | `not_yet_valid` | `bad_certificate` |
    | `wrong_ca` | | `unknown_ca` | `unknown_ca` | `unknown_ca` |
    | `wrong_name` | | `name_mismatch` | `claimed_name` | `internal_error` by a dialer, else `claimed_name` |
    | `no_san` | | `name_mismatch` | `claimed_name` | likewise |
    | `wrong_eku` | `wrong_eku` | `wrong_eku` | `wrong_eku` | `unsupported_certificate` |
    | `revoked`, by `crls` | | `revoked` | `revoked` | `certificate_revoked` |
    | `weak_key` | `unsupported_key` | `bad_chain` | `bad_chain` | |

    Attributes:
        name: the node name that they are for.
        good: the model, without a defect.
        expired: it ended a day ago.
        not_yet_valid: it begins in a day.
        wrong_ca: issued by another CA, which no peer trusts.
        wrong_name: for a node of the same name on another host.
        no_san: it has the name in its Common Name alone.
        wrong_eku: its only purpose is code signing.
        revoked: its serial number is on `crls`; only peers that have those refuse it.
        weak_key: RSA with 1024 bits. `KeyPair` refuses it, so it is PEM text, for peers that are not trionode. They
            have to accept such keys: with Python's `ssl`, by `context.set_ciphers("DEFAULT:@SECLEVEL=0")`.
        crls: the cluster CA's revocation list, for managers.
    """

    name: NodeName
    good: KeyPair
    expired: KeyPair
    not_yet_valid: KeyPair
    wrong_ca: KeyPair
    wrong_name: KeyPair
    no_san: KeyPair
    wrong_eku: KeyPair
    revoked: KeyPair
    weak_key: PEMPair
    crls: CRLSet

    def __getattr__(self, name: str) -> NoReturn:
        """An animal that is not here: the error shows those that are, and for which reason each is refused."""
        there = [each for each, reasons in REASONS.items() if name in reasons]
        hint = f"; {name!r} is why {' and '.join(there)} are refused" if there else ""
        table = ", ".join(f"{each} ({' or '.join(reasons)})" for each, reasons in REASONS.items())
        msg = f"no certificate {name!r} in the zoo{hint}. There are good, and, with the reasons for refusal: {table}"
        raise AttributeError(msg)


def node_name_of(name: str | NodeName) -> NodeName:
    """A node name as tests may write it: `alpha` is short for `alpha@alpha.test`."""
    if isinstance(name, str) and "@" not in name:
        name = f"{name}@{name.lower()}.test"
    return NodeName.parse(name)


def cluster_ca(*, clock: Clock | None = None) -> CertificateAuthority:
    """A fresh CA for the nodes of a test.

    Args:
        clock: source of "now" (aware), for the CA and for what it issues; by default the machine's clock.
    """
    return CertificateAuthority.create(common_name="test cluster CA", clock=clock)


def certificate_zoo(ca: CertificateAuthority, name: str | NodeName) -> CertificateZoo:
    """Issue one certificate with each defect; takes some tens of milliseconds.

    Args:
        ca: issues all but one; dates are relative to its clock.
        name: the node name that they are for; `alpha` is short for `alpha@alpha.test`, as for `NodeFactory`.

    Raises:
        ValueError: it is no node name.
    """
    node = node_name_of(name)
    good, revoked = ca.issue(node), ca.issue(node)
    now = not_before(good.certificate) + BACKDATE
    return CertificateZoo(
        name=node,
        good=good,
        expired=ca.issue(node, not_before=now - 2 * _DAY, not_after=now - _DAY),
        not_yet_valid=ca.issue(node, not_before=now + _DAY, not_after=now + 2 * _DAY),
        wrong_ca=CertificateAuthority.create(common_name="another CA", clock=lambda: now).issue(node),
        wrong_name=ca.issue(NodeName(node.name, _ELSEWHERE)),
        no_san=_without_names(ca, good),
        wrong_eku=ca.issue(node, extended_key_usage=[ExtendedKeyUsageOID.CODE_SIGNING]),
        revoked=revoked,
        weak_key=_with_a_weak_key(ca, good),
        crls=ca.revocation_list(revoked),
    )


def present_anyway(manager: CertManager | Node, key_pair: KeyPair) -> int:
    """Publish a key pair as the next generation, as `update()` does, whatever is wrong with it.

    For tests of what peers make of it; in the manager's own thread.

    Args:
        manager: the manager; or a node, for its own manager.
        key_pair: an animal of the zoo.

    Returns:
        The new generation.

    Raises:
        CertificateError: OpenSSL does not accept it.
    """
    certs = manager.options.cert_manager if isinstance(manager, Node) else manager
    return publisher_of(certs).update_unchecked(key_pair)


def _without_names(ca: CertificateAuthority, model: KeyPair) -> KeyPair:
    leaf = _copy(ca, model, model.private_key.public_key(), without=x509.SubjectAlternativeName)
    return KeyPair([leaf, *model.chain[1:]], model.private_key)


def _with_a_weak_key(ca: CertificateAuthority, model: KeyPair) -> PEMPair:
    key = rsa.generate_private_key(public_exponent=65537, key_size=1024)  # noqa: S505 -- that is the point
    chain = [_copy(ca, model, key.public_key()), *model.chain[1:]]
    return PEMPair(
        to_pem(chain),
        private_key_to_pem(key),
    )


def _copy(
    ca: CertificateAuthority,
    model: KeyPair,
    key: CertificatePublicKeyTypes,
    *,
    without: type[x509.ExtensionType] | None = None,
) -> x509.Certificate:
    """The model's leaf, signed again by the same issuer, for another key or without one of its extensions."""
    leaf = model.certificate
    builder = x509.CertificateBuilder(
        issuer_name=leaf.issuer,
        subject_name=leaf.subject,
        public_key=key,
        serial_number=x509.random_serial_number(),
        not_valid_before=not_before(leaf),
        not_valid_after=not_after(leaf),
    )
    for extension in leaf.extensions:
        value = extension.value
        if isinstance(value, x509.SubjectKeyIdentifier):
            value = x509.SubjectKeyIdentifier.from_public_key(key)
        if without is None or not isinstance(value, without):
            builder = builder.add_extension(value, critical=extension.critical)
    signer: CertificateIssuerPrivateKeyTypes = ca._key  # noqa: SLF001 -- the CA issues nothing of the kind itself
    return builder.sign(signer, leaf.signature_hash_algorithm)  # type: ignore[arg-type]  # what signed it once
