"""What is revoked, and the lists that say so.

Theory. What is revoked is in the journal, and lists are made from that, so a list that was lost, or was not written, is
made again; what is on the present list stays on it, too, as a CA may be older than its journal. `revoke` and `release`
write to the journal; `sign_lists` makes known what is there. The file holds the list of the CA that issues and, as they
are, those of other CAs: the root's for one, and during a roll-over those of the CA that was or is to come.
"""

from __future__ import annotations

from contextlib import suppress
from datetime import timedelta
from typing import TYPE_CHECKING

from cryptography import x509

from trionode._credentials.crl import CRLSet, next_update
from trionode._credentials.key_pair import KeyPair
from trionode._identity.certificate import serial_number
from trionode._identity.names import parse_name

from ._authority import CA_FILE, CertificateAuthority
from ._ca_files import CRL_FILE, CRL_MARKER, NEXT, ROOT_KEY_FILE
from ._certificates import revoked_entry
from ._files import write_crl_set
from ._journal import Entry
from ._serials import digits_in, issuer_of, key_identifier, serial_of

if TYPE_CHECKING:
    from collections.abc import Iterable
    from datetime import datetime
    from pathlib import Path

    from trionode._identity.names import NodeName

    from ._ca_files import CAFiles
    from ._journal import State


# The journal --------------------------------------------------------------------------------------------------------


def revoke(
    files: CAFiles, revoked: Iterable[x509.Certificate | NodeName | str], reason: x509.ReasonFlags
) -> tuple[int, ...]:
    """See `PKIDirectory.revoke`."""
    with files.journal.exclusive() as state:
        found: dict[str, str] = {}
        for each in revoked:
            if isinstance(each, x509.Certificate):
                found[serial_of(each)] = issuer_of(each)
            else:
                found |= _on_record(files, state, each)
        for serial, issuer in found.items():
            if serial not in state.revoked:
                entry = Entry(event="revoked", at=files.now(), serial=serial, issuer=issuer, reason=reason.value)
                files.journal.append(entry)
        return tuple(int(serial, 16) for serial in found)


def _on_record(files: CAFiles, state: State, wanted: NodeName | str) -> dict[str, str]:
    """Serial numbers and issuers of what was issued for a name, or under a serial number."""
    text, now = str(wanted), files.now()
    serial = digits_in(text)
    if serial in state.issued:
        return {serial: state.issued[serial].issuer or ""}
    with suppress(ValueError):
        text = str(parse_name(text))
    found = {
        serial: each.issuer or ""
        for serial, each in state.issued.items()
        if text in each.names and each.until is not None and each.until > now
    }
    if not found:
        msg = f"nothing that has not ended is on record in {files.journal.file} as issued for {text}"
        raise LookupError(msg)
    return found


def release(files: CAFiles, certificates: Iterable[x509.Certificate]) -> None:
    """See `PKIDirectory.release`."""
    with files.journal.exclusive():
        for each in certificates:
            entry = Entry(event="released", at=files.now(), serial=serial_of(each), issuer=issuer_of(each))
            files.journal.append(entry)


def _revoked_by(issuer: x509.Certificate, state: State) -> dict[int, Entry]:
    """What the journal has as revoked of what a CA has issued, by serial number."""
    identifier = key_identifier(issuer)
    return {int(serial, 16): entry for serial, entry in state.revoked.items() if entry.issuer == identifier}


# The lists ----------------------------------------------------------------------------------------------------------


def sign_lists(files: CAFiles, *, lifetime: timedelta, released: Iterable[x509.Certificate] = ()) -> CRLSet:
    """See `PKIDirectory.sign_lists`."""
    signs = files.look().signs
    with files.journal.exclusive() as state:
        # Verifiers need the lists of a CA that is to come before it issues.
        present_files = [each for each in (files.folder / CRL_FILE, files.folder / NEXT / CRL_FILE) if each.exists()]
        present = CRLSet.load(*present_files).lists if present_files else ()
        ours = signs.issuer
        entries = {each.serial_number: each for crl in present if crl.issuer == ours.subject for each in crl}
        for number, entry in _revoked_by(ours, state).items():
            reason = x509.ReasonFlags(entry.reason or "unspecified")
            entries.setdefault(number, revoked_entry(number, entry.at, reason))
        for each in released:
            entries.pop(serial_number(each), None)
        made = signs._sign_list(entries.values(), lifetime)  # noqa: SLF001 -- a CA signs for its directory
        others = [crl for crl in present if crl.issuer != ours.subject]
        lists = CRLSet([*made.lists, *others, *_list_of_the_root(files, signs, others)])
        write_lists(files.folder, lists)
    return lists


def _list_of_the_root(
    files: CAFiles, signs: CertificateAuthority, others: list[x509.CertificateRevocationList]
) -> Iterable[x509.CertificateRevocationList]:
    """The root's list, if it was lost, and the root's key is here."""
    root, file = signs.certificate, files.folder / ROOT_KEY_FILE
    if signs.intermediate is None or not file.exists() or any(crl.issuer == root.subject for crl in others):
        return ()
    key = KeyPair.load(files.folder / CA_FILE, file, password=files.password).private_key
    return CertificateAuthority(root, key, clock=files.clock).revocation_list(lifetime=rest_of(signs, files.now()))


def refresh_lists(files: CAFiles, *, lifetime: timedelta) -> CRLSet:
    """See `PKIDirectory.refresh_lists`."""
    issuer, file = files.look().signs.issuer, files.folder / CRL_FILE
    if file.exists():
        lists = CRLSet.load(file)
        ours = [crl for crl in lists if crl.issuer == issuer.subject]
        with files.journal.exclusive() as state:
            revoked = _revoked_by(issuer, state).keys()
        listed = {each.serial_number for crl in ours for each in crl}
        if ours and revoked <= listed and lifetime / 2 < max(map(next_update, ours)) - files.now() <= lifetime:
            return lists
    return sign_lists(files, lifetime=lifetime)


def is_listed(files: CAFiles, certificate: x509.Certificate) -> bool:
    """Whether a list in the directory has a certificate."""
    file = files.folder / CRL_FILE
    return file.exists() and CRLSet.load(file).listed(certificate) is not None


def write_lists(folder: Path, lists: CRLSet) -> None:
    """Write the lists of a directory, and that it has some."""
    write_crl_set(lists, folder / CRL_FILE)
    (folder / CRL_MARKER).touch()


def rest_of(authority: CertificateAuthority, now: datetime) -> timedelta:
    """The rest of a CA's lifetime: until there is a service, its lists need not be attended to before that."""
    return max(authority.certificate.not_valid_after_utc - now, timedelta(days=1))
