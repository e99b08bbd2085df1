"""What the verify codes of OpenSSL (x509_vfy.h) mean for us: the reason, what is wrong, and the remedy.

The judge of trust uses the same codes for what it finds itself. What has no row here is a chain that does not hold,
told in OpenSSL's words.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, final

from trionode._errors import UnverifiedReason

from .binding import verify_message


@final
@dataclass(frozen=True, slots=True)
class Meaning:
    """What a verify code says of a certificate, as two parts of a text.

    Attributes:
        reason: for programs.
        what: goes on after the certificate. May refer to {pool} (the CAs that we trust), {now} (our clock), {start} and
            {end} (the certificate's dates), {purpose} (`clientAuth` or `serverAuth`), {detail} (see `Fault`).
        remedy: what to do; may also refer to {option} (the pool's name).
        wanted: what we needed to see.
    """

    reason: UnverifiedReason
    what: str
    remedy: str
    wanted: str | None = None


_UNKNOWN_CA: Final = Meaning(
    UnverifiedReason.UNKNOWN_CA,
    "is not signed by a CA of {pool}",
    "Add its CA to {option} (with rotate_trust() while in use), issue it from a CA that is there, or have the peer "
    "send its intermediates",
    wanted="{pool}",
)
_REVOCATION_UNKNOWN: Final = Meaning(
    UnverifiedReason.REVOCATION_UNKNOWN,
    "cannot be checked for revocation: {detail}",
    "Give the current list of that CA in crls (with rotate_trust() while in use), or loosen crl_policy",
    wanted="a current CRL of {issuer}",
)
_WEAK_KEY: Final = Meaning(
    UnverifiedReason.BAD_CHAIN,
    "has a key of less than 112 bits of security (RSA below 2048 bits, for one)",
    "Have it issued anew for a stronger key",
)

MEANINGS: Final = {
    9: Meaning(
        UnverifiedReason.NOT_YET_VALID,
        "is not yet valid: notBefore is {start}, our clock says {now}",
        "Check the clocks of this machine, the peer and the CA",
        wanted="a certificate valid at {now}",
    ),
    10: Meaning(
        UnverifiedReason.EXPIRED,
        "has expired: our clock says {now}",
        "The peer must rotate it",
        wanted="a certificate valid at {now}",
    ),
    23: Meaning(
        UnverifiedReason.REVOKED,
        "has been revoked: {detail}",
        "The peer needs a new one",
        wanted="a certificate that is not on a CRL",
    ),
    26: Meaning(
        UnverifiedReason.WRONG_EKU,
        "does not allow {purpose}",
        "Issue it with both serverAuth and clientAuth",
        wanted="{purpose}",
    ),
    66: _WEAK_KEY,
    67: _WEAK_KEY,
    68: Meaning(
        UnverifiedReason.BAD_CHAIN,
        "is signed with a hash that is broken (SHA-1, MD5)",
        "Have it issued anew, with SHA-256",
    ),
    47: Meaning(
        UnverifiedReason.BAD_CHAIN,
        "has a name that the name constraints of a CA above it do not permit",
        "Issue it for names within them, or from a CA without them",
    ),
    48: Meaning(
        UnverifiedReason.BAD_CHAIN,
        "has a name that the name constraints of a CA above it exclude",
        "Issue it for other names, or from a CA without them",
    ),
    94: Meaning(
        UnverifiedReason.BAD_CHAIN,
        "has an EC key with explicit parameters in place of a named curve",
        "Have it issued anew for a key with a named curve (P-256, say)",
    ),
    **dict.fromkeys((2, 18, 19, 20, 21, 27), _UNKNOWN_CA),
    **dict.fromkeys((3, 11, 12, 36), _REVOCATION_UNKNOWN),
}

#: In place of 26, where the extended key usage allows the purpose: OpenSSL has one code for both extensions.
KEY_USAGE: Final = Meaning(
    UnverifiedReason.WRONG_EKU,
    "does not allow signatures (key usage)",
    "Issue it with digitalSignature",
    wanted="{purpose}",
)


def meaning(code: int) -> Meaning:
    """What a verify code means."""
    found = MEANINGS.get(code)
    if found is not None:
        return found
    words = verify_message(code)
    return Meaning(UnverifiedReason.BAD_CHAIN, f"does not verify: {words}", "Have the peer's chain issued anew")
