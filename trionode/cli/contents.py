"""A credential file as an operator reads it: every part of it, whatever it is; and the same for `--json`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

from cryptography import x509

from trionode._credentials.contents import CERTIFICATE, KEY, OTHER, ShownKey, public_digest
from trionode._identity.certificate import is_ca, is_self_issued, key_name
from trionode._identity.request import is_signed, requested_key, requested_names, requested_subject

from .revoked import crl_grid, crl_values, revocation_of, revocation_shown
from .shown import certificate_grid, certificate_values, grid

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence
    from datetime import datetime

    from rich.table import Table

    from trionode._credentials.contents import Part


class Shown(NamedTuple):
    """One part of a file.

    Attributes:
        title: what it is, and where.
        block: what there is to say of it.
        values: the same for `--json`.
    """

    title: str
    block: Table
    values: dict[str, object]


#: Labels by what `--json` calls them.
_LABELS: Final = {"public key SHA-256": "public_key_sha256"}
#: Kinds by what `--json` calls them.
_WORDS: Final = {OTHER: "other"}


def shown_parts(
    file: str,
    parts: Sequence[Part],
    *,
    lists: Iterable[x509.CertificateRevocationList],
    names: Mapping[int, str],
    now: datetime,
) -> Iterator[Shown]:
    """Each part of a file.

    Args:
        file: its name.
        parts: what is in it.
        lists: of revocations, which say whether a certificate is revoked.
        names: of certificates that are known, by serial number.
        now: the time.
    """
    count, number = sum(each.kind == CERTIFICATE for each in parts), 0
    for part in parts:
        where = f"{file} ({part.source})" if part.source else file
        values: dict[str, object] = {"file": file, "kind": _WORDS.get(part.kind, part.kind).replace(" ", "_")}
        if part.source:
            values["in"] = part.source
        title = f"{part.kind} in {where}"
        match part.value:
            case x509.Certificate():
                number += 1
                entry = revocation_of(part.value, lists)
                title = f"certificate {number} of {count} in {where}: {_role(part.value, number)}"
                block = certificate_grid(part.value, now, None if entry is None else revocation_shown(entry))
                values |= certificate_values(part.value, now) | {"revoked": entry is not None}
            case x509.CertificateRevocationList():
                block = crl_grid(part.value, names, now)
                values |= crl_values(part.value, names, now)
            case x509.CertificateSigningRequest():
                rows = _request_rows(part.value)
                block = grid(rows.items())
                values |= {_LABELS.get(label, label): text for label, text in rows.items()}
            case ShownKey():
                rows = _key_rows(part.value, private=part.kind == KEY, note=part.note)
                block = grid(rows.items())
                values |= {
                    "key": part.value.name or None,
                    "public_key_sha256": part.value.public or None,
                    "encryption": part.value.encryption,
                }
            case _:
                block = grid([("note", part.note)])
        if part.note:
            values["note"] = part.note
        yield Shown(title, block, values)


def _role(certificate: x509.Certificate, number: int) -> str:
    if is_ca(certificate):
        return "a root CA" if is_self_issued(certificate) else "an intermediate CA"
    return "a leaf" + (", signed by itself" if is_self_issued(certificate) else "") if number == 1 else "no CA"


def _request_rows(request: x509.CertificateSigningRequest) -> dict[str, str]:
    key = requested_key(request)
    return {
        "subject": requested_subject(request),
        "names": requested_names(request),
        "key": key_name(key),
        "public key SHA-256": public_digest(key) or "(unreadable)",
        "signature": "by its own key" if is_signed(request) else "NOT by its own key",
    }


def _key_rows(key: ShownKey, *, private: bool, note: str) -> dict[str, str]:
    rows = {"key": key.name or "not shown"}
    if private:
        rows["encryption"] = f"encrypted ({key.encryption})" if key.encryption else "none: keep the file private"
    if key.public:
        rows["public key SHA-256"] = key.public
    return rows | ({"note": note} if note else {})
