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
            {end} (the certificate's dates), {purpose} (`clientAuth` or `serverAuth`), {detail} (see `Fault`),
            {evidence} (see `evidence`, after a colon; empty if there is none).
        remedy: what to do; may also refer to {option} (the pool's name).
        wanted: what we needed to see.
        ours: what to do where the certificate is a CA of our own pool.
    """

    reason: UnverifiedReason
    what: str
    remedy: str
    wanted: str | None = None
    ours: str = "Have that CA made anew, and replace it in {option} (with rotate_trust() while in use)"


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
    "has too weak a key{evidence}",
    "Have it issued for a new key, EC P-256 for choice: the same key would be refused again",
)

_NO_CA: Final = Meaning(
    UnverifiedReason.BAD_CHAIN,
    "has issued the one before it, and is no CA's{evidence}",
    "Have that CA's certificate issued anew, with CA:TRUE and keyCertSign (a certificate of version 1 has neither)",
)
_BAD_DATES: Final = Meaning(
    UnverifiedReason.BAD_CHAIN,
    "has dates that are not as RFC 5280 section 4.1.2.5 has them",
    "Have it issued anew, with dates in UTC and to the second",
)
_BAD_CONSTRAINTS: Final = Meaning(
    UnverifiedReason.BAD_CHAIN,
    "cannot be held against the name constraints of a CA above it, which are of a kind or a syntax that OpenSSL does "
    "not know",
    "Have that CA issued anew with constraints on DNS names, addresses and directory names alone",
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
        ours="Replace it in {option} by the one that is in use now, with rotate_trust() while in use; and check this "
        "machine's clock",
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
        "is signed with a digest that is broken{evidence}",
        "Have it issued anew, with SHA-256; its key may stay the same",
    ),
    47: Meaning(
        UnverifiedReason.BAD_CHAIN,
        "has a name that the name constraints of a CA above it do not permit{evidence}",
        "Issue it for names within them, or from a CA without them",
    ),
    48: Meaning(
        UnverifiedReason.BAD_CHAIN,
        "has a name that the name constraints of a CA above it exclude{evidence}",
        "Issue it for other names, or from a CA without them",
    ),
    94: Meaning(
        UnverifiedReason.BAD_CHAIN,
        "has an EC key with explicit parameters in place of the name of a curve{evidence}",
        "Have it issued anew with the name of the curve: openssl ecparam -param_enc named_curve",
    ),
    25: Meaning(
        UnverifiedReason.BAD_CHAIN,
        "allows fewer CAs below it than there are (path length){evidence}",
        "Issue the peer's certificate from a CA higher up, or have that CA issued anew with a longer path length",
    ),
    34: Meaning(
        UnverifiedReason.BAD_CHAIN,
        "has a critical extension that OpenSSL does not know{evidence}",
        "Issue it without this extension, or with it as not critical",
    ),
    **dict.fromkeys((24, 32, 79), _NO_CA),
    **dict.fromkeys((13, 14), _BAD_DATES),
    **dict.fromkeys((49, 51, 52, 53), _BAD_CONSTRAINTS),
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
#: In place of 20, where the certificate is its own issuer, and the only one.
SELF_SIGNED: Final = Meaning(
    UnverifiedReason.UNKNOWN_CA,
    "is self-signed, and is not itself in {pool}",
    "Issue it from a CA that is there; or trust this very certificate, by adding it to {option} (with rotate_trust() "
    "while in use)",
    wanted="{pool}",
)


def meaning(code: int) -> Meaning:
    """What a verify code means."""
    found = MEANINGS.get(code)
    if found is not None:
        return found
    words = verify_message(code)
    return Meaning(UnverifiedReason.BAD_CHAIN, f"does not verify: {words}", "Have the peer's chain issued anew")
