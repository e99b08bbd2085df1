"""Issuing: for a one-time token, or in the place of a certificate that this CA has issued.

Theory. All that can be wrong is checked first; then the certificate is signed, and it leaves only once it is on record.
All of it happens with the journal locked, so no two programs take one token or draw one serial number.
"""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Final

from cryptography import x509

from trionode._identity.certificate import fingerprint
from trionode._identity.describe import describe
from trionode._identity.names import NodeName, parse_name
from trionode._identity.patterns import is_glob
from trionode._util.fields import check_argument

from ._ca_files import DENIED_FILE
from ._constraints import OutsideError, refuse_outside
from ._denied import refuse_denied
from ._journal import Entry
from ._refusals import RequestRefusal, RequestRefusedError
from ._revocation import is_listed
from ._serials import digits, issuer_of, serial_of
from ._tokens import JoinToken, checked_names, names_match

if TYPE_CHECKING:
    from collections.abc import Iterable

    from ._ca_files import CAFiles
    from ._journal import State

#: A certificate's serial number is drawn again where it is taken: which means that chance is broken.
_DRAWS: Final = 3


def make_token(files: CAFiles, names: str | NodeName, *, lifetime: timedelta) -> JoinToken:
    """See `PKIDirectory.make_token`."""
    wanted, now = checked_names(str(names)), files.now()
    check_argument("lifetime", lifetime, timedelta)
    if lifetime <= timedelta():
        msg = "the token's lifetime has to be positive"
        raise ValueError(msg)
    signs, host = files.look().signs, wanted.rpartition("@")[2]
    if not is_glob(host):
        refuse_outside([host], signs.issuer)
    token = JoinToken._draw(fingerprint(signs.certificate), wanted)  # noqa: SLF001 -- the one maker
    with files.journal.exclusive():
        entry = Entry(event="token", at=now, token=token.digest, names=(wanted,), until=now + lifetime)
        files.journal.append(entry)
    return token


def enrol(
    files: CAFiles,
    request: x509.CertificateSigningRequest,
    token: JoinToken,
    *,
    name: str | NodeName | None,
    lifetime: timedelta,
    address: str | None,
) -> tuple[x509.Certificate, ...]:
    """See `PKIDirectory.enrol`."""
    wanted = _name(token.names if name is None else name, RequestRefusal.NOT_ALLOWED)
    with files.journal.exclusive() as state:
        known = state.tokens.get(token.digest)
        if known is None or known.until is None or known.until <= files.now():
            msg = "the token is not known here, was used, or has expired; make another: trionode pki token"
            raise RequestRefusedError(msg, reason=RequestRefusal.BAD_TOKEN)
        if not any(names_match(each, wanted) for each in known.names):
            msg = f"the token is not good for the name {wanted}"
            raise RequestRefusedError(msg, reason=RequestRefusal.NOT_ALLOWED)
        return _issue(files, state, request, (wanted,), lifetime, token=token.digest, address=address)


def renew(
    files: CAFiles,
    request: x509.CertificateSigningRequest,
    certificate: x509.Certificate,
    *,
    lifetime: timedelta,
    address: str | None,
) -> tuple[x509.Certificate, ...]:
    """See `PKIDirectory.renew`."""
    serial = serial_of(certificate)
    with files.journal.exclusive() as state:
        known = state.issued.get(serial)
        if serial in state.revoked or is_listed(files, certificate):
            msg = f"the certificate was revoked, so it is not renewed: {describe(certificate)}"
            raise RequestRefusedError(msg, reason=RequestRefusal.REVOKED)
        if known is None or known.until is None or known.until <= files.now() or not _is_of(known, certificate):
            msg = (
                "this CA has not issued the certificate, or keeps no record of it, as of those older than the "
                f"journal: {describe(certificate)}. Join with a token, which needs no record"
            )
            raise RequestRefusedError(msg, reason=RequestRefusal.UNKNOWN)
        names = tuple(_name(each, RequestRefusal.UNKNOWN) for each in known.names)
        return _issue(files, state, request, names, lifetime, renews=serial, address=address)


def record(files: CAFiles, certificate: x509.Certificate, names: Iterable[str | NodeName]) -> None:
    """See `PKIDirectory.record`."""
    with files.journal.exclusive():
        _note(files, certificate, names)


def _issue(
    files: CAFiles,
    state: State,
    request: x509.CertificateSigningRequest,
    names: tuple[NodeName | str, ...],
    lifetime: timedelta,
    *,
    token: str | None = None,
    renews: str | None = None,
    address: str | None = None,
) -> tuple[x509.Certificate, ...]:
    """Check all that can be wrong, sign, and note it: in this order."""
    refuse_denied(files.folder / DENIED_FILE, names, renews)
    signs = files.look().signs
    for _ in range(_DRAWS):
        number = x509.random_serial_number()
        if digits(number) not in state.issued and digits(number) not in state.revoked:
            break
    else:
        msg = "the same serial number was drawn again and again: this system's random numbers are none"
        raise RuntimeError(msg)
    try:
        chain = signs.sign(request, *names, lifetime=lifetime, serial_number=number)
    except ValueError as exc:
        reason = RequestRefusal.NOT_ALLOWED if isinstance(exc, OutsideError) else RequestRefusal.BAD_REQUEST
        raise RequestRefusedError(str(exc), reason=reason) from None
    # It was signed, but leaves this function only once it is on record.
    _note(files, chain[0], names, token=token, renews=renews, address=address)
    return chain


def _note(
    files: CAFiles,
    leaf: x509.Certificate,
    names: Iterable[str | NodeName],
    *,
    token: str | None = None,
    renews: str | None = None,
    address: str | None = None,
) -> None:
    files.journal.append(
        Entry(
            event="issued",
            at=files.now(),
            serial=serial_of(leaf),
            issuer=issuer_of(leaf),
            names=tuple(map(str, names)),
            until=leaf.not_valid_after_utc,
            fingerprint=fingerprint(leaf),
            token=token,
            renews=renews,
            address=address,
        )
    )


def _is_of(entry: Entry, certificate: x509.Certificate) -> bool:
    """Whether an entry is of this very certificate: by its issuer's key, beside its serial number."""
    return entry.issuer == issuer_of(certificate)


def _name(text: str | NodeName, reason: RequestRefusal) -> NodeName | str:
    try:
        return parse_name(str(text))
    except ValueError as exc:
        raise RequestRefusedError(f"which name? {exc}", reason=reason) from None
