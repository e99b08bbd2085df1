"""One certificate revocation list, read once: its serial numbers indexed, its signature's digest kept.

Theory. `cryptography` parses a list and checks its form, but looks a serial number up by reading the list from its
beginning (30 ms for 200 000 entries), encodes it anew for each signature check and fingerprint (300 ms), and makes an
object for each entry that it shows. A `RevocationList` walks the encoding once, and keeps where each entry is, in a
hash table of machine integers: a lookup takes microseconds, and the table a third of the list's size. A Python set of
the serial numbers would take three times that size. Beside it, the digest of the signed part is kept: checking a
signature then takes as long as that of a certificate, however long the list is.

All of that is done when the list is made (about 1 µs for each entry), which is the time at which files are read and
threads may help; handshakes and rotations find it done. Lists are immutable, so managers, generations and contexts
share them.
"""

from __future__ import annotations

import hashlib
import time
from array import array
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final, final

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa, utils
from cryptography.hazmat.primitives.serialization import Encoding

from trionode._errors import CertificateError, CertificateReason
from trionode._identity.certificate import list_extensions, public_key, signature_hash
from trionode._identity.describe import describe_issuer, describe_serial, describe_time
from trionode._identity.outline import canonical_name
from trionode._util.der import BOOLEAN, CONTEXT_0, INTEGER, OID, SEQUENCE, element, elements

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

__all__ = ["Revocation"]

#: Entries indexed between two chances for other threads to run: a millisecond or two.
_SLICE: Final = 2048
#: Bytes of an entry, roughly: serial number, date, sometimes a reason.
_ENTRY_SIZE: Final = 36

_REASON_OID: Final = bytes.fromhex("551d15")
#: Entry extensions that a list may mark critical: reason (RFC 5280 section 5.3.1) and invalidity date (5.3.2).
_KNOWN_ENTRY_EXTENSIONS: Final = frozenset({_REASON_OID, bytes.fromhex("551d18")})
#: RFC 5280 section 5.3.1.
_REASONS: Final = {
    0: "unspecified",
    1: "keyCompromise",
    2: "cACompromise",
    3: "affiliationChanged",
    4: "superseded",
    5: "cessationOfOperation",
    6: "certificateHold",
    8: "removeFromCRL",
    9: "privilegeWithdrawn",
    10: "aACompromise",
}
_UTC_TIME: Final = 0x17


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class Revocation:
    """The revocation of a certificate, as its issuer's list has it.

    Attributes:
        serial: the certificate's serial number.
        date: since when, UTC.
        reason: why (RFC 5280 section 5.3.1: `keyCompromise`, `superseded`, …); `unspecified` if the list does not say.
        issuer: the CA that revoked it, as a distinguished name (RFC 4514).
    """

    serial: int
    date: datetime
    reason: str
    issuer: str

    def __str__(self) -> str:
        """The facts, as the end of a sentence: `serial … was revoked on …`."""
        return (
            f"serial {describe_serial(self.serial)} was revoked on {describe_time(self.date)} by {self.issuer}: "
            f"{self.reason}"
        )


@final
class RevocationList:
    """One list that is complete for its scope, and ready to be asked.

    Attributes:
        crl: the list as it was parsed.
        digest: SHA-256 of its encoding: what makes two lists the same.
        issuer: its issuer's name, as names are compared.
        issuer_shown: the same, for people (RFC 4514), cut and escaped.
        this_update: when it was issued, UTC.
        next_update: when the next one is due, UTC.
        number: its CRL number (RFC 5280 section 5.2.3), or None.
        key_id: which key of the issuer signed it (section 5.2.1), or None.
        point: what it is for (section 5.2.5), or None if it is for everything that its issuer issued.
        trouble: why it must not clear any certificate (a critical extension that is unknown to us), or None.
    """

    __slots__ = (
        "_der",
        "_heads",
        "_links",
        "_offsets",
        "_signed",
        "_tbs",
        "_tbs_digest",
        "crl",
        "digest",
        "issuer",
        "issuer_shown",
        "key_id",
        "next_update",
        "number",
        "point",
        "this_update",
        "trouble",
    )

    def __init__(self, crl: x509.CertificateRevocationList, der: bytes | None = None) -> None:
        """Read and index a list; about 1 µs for each entry, and four times that where `der` is not given.

        Args:
            crl: the list.
            der: its encoding, where it is at hand: otherwise it has to be made.

        Raises:
            CertificateError: reason `bad_crl`: it is damaged, has no nextUpdate, or is a delta, indirect or partial.
        """
        self.crl = crl
        self._der = crl.public_bytes(Encoding.DER) if der is None else der
        self._signed: dict[bytes, bool] = {}
        try:
            self._read_head()
            unknown = self._read_entries()
            unknown |= {
                extension.oid.dotted_string
                for extension in list_extensions(crl)
                if extension.critical and isinstance(extension.value, x509.UnrecognizedExtension)
            }
        except (ValueError, IndexError, OverflowError) as exc:
            msg = "a CRL is damaged: its extensions do not follow RFC 5280. Have it issued anew"
            raise CertificateError(msg, reason=CertificateReason.BAD_CRL) from exc
        self.trouble = f"it has a critical extension that we do not know ({min(unknown)})" if unknown else None

    # Reading

    def _read_head(self) -> None:
        crl = self.crl
        self.digest = hashlib.sha256(self._der).digest()
        self.issuer_shown = describe_issuer(crl)
        self.this_update = crl.last_update_utc
        found: dict[type, object] = {type(each.value): each.value for each in list_extensions(crl)}
        end, point = crl.next_update_utc, found.get(x509.IssuingDistributionPoint)
        why: str | None = None
        if end is None:
            why = "has no nextUpdate, so its age cannot be judged. Have it issued with one (RFC 5280)"
        elif x509.DeltaCRLIndicator in found:
            why = "is a delta. Give the complete list"
        elif isinstance(point, x509.IssuingDistributionPoint) and (
            point.indirect_crl or point.only_some_reasons or point.only_contains_attribute_certs
        ):
            why = "is indirect, or for some reasons or attribute certificates only. Give the issuer's own complete list"
        if why is not None:
            msg = f"the CRL of {self.issuer_shown}, of {describe_time(self.this_update)}, {why}"
            raise CertificateError(msg, reason=CertificateReason.BAD_CRL)
        assert end is not None
        self.next_update = end
        self.point = point if isinstance(point, x509.IssuingDistributionPoint) else None
        number, key = found.get(x509.CRLNumber), found.get(x509.AuthorityKeyIdentifier)
        self.number = number.crl_number if isinstance(number, x509.CRLNumber) else None
        self.key_id = key.key_identifier if isinstance(key, x509.AuthorityKeyIdentifier) else None

    def _read_entries(self) -> set[str]:
        """Find the signed part and the entries in it; the critical extensions of entries that we do not know."""
        der = self._der
        _, outer, _ = element(der, 0)
        _, start, end = element(der, outer)
        self._tbs = outer, end
        algorithm = self._hash_name()
        self._tbs_digest = None if algorithm is None else hashlib.new(algorithm, memoryview(der)[outer:end]).digest()
        parts = [part for part in elements(der, start, end) if part[0] != CONTEXT_0]
        if parts[0][0] == INTEGER:  # the version, which lists without extensions may leave out
            del parts[0]
        self.issuer = canonical_name(der[parts[1][1] : parts[1][3]])
        # signature, issuer, thisUpdate, nextUpdate, revokedCertificates, which an empty list leaves out
        entries = next((part for part in parts[2:] if part[0] == SEQUENCE), None)
        return self._index(*entries[2:]) if entries else self._index(0, 0)

    def _index(self, at: int, end: int) -> set[str]:
        der = self._der
        mask = (1 << max(1, ((end - at) // _ENTRY_SIZE).bit_length())) - 1
        heads, links, offsets = array("I", bytes(4 * (mask + 1))), array("I", [0]), array("I", [0])
        add_link, add_offset = links.append, offsets.append
        unknown: set[str] = set()
        count = 0
        while at < end:
            length = der[at + 1]
            if length < 0x80:
                start = at + 2
                after = start + length
            else:
                _, start, after = element(der, at)
            stop = start + 2 + der[start + 1]
            slot = hash(der[start + 2 : stop]) & mask
            count += 1
            add_offset(at)
            add_link(heads[slot])
            heads[slot] = count
            # A date takes 15 octets, or 17 from 2050 on: what is longer has extensions.
            if after - stop > 17:
                unknown |= _unknown_critical(der, stop, after)
            at = after
            if not count % _SLICE:
                time.sleep(0)  # where a thread reads a large list, the event loop goes on
        self._heads, self._links, self._offsets = heads, links, offsets
        return unknown

    # What it says

    def __len__(self) -> int:
        """How many entries it has."""
        return len(self._offsets) - 1

    def revocation(self, serial: int) -> Revocation | None:
        """What it says of a serial number; None if it is not on it. Takes microseconds.

        Args:
            serial: of a certificate that its issuer issued.
        """
        encoded = serial.to_bytes((serial if serial >= 0 else ~serial).bit_length() // 8 + 1, "big", signed=True)
        needle = bytes((INTEGER, len(encoded))) + encoded
        number = self._heads[hash(encoded) & (len(self._heads) - 1)]
        while number:
            _, start, end = element(self._der, self._offsets[number])
            if self._der.startswith(needle, start):
                return self._decoded(start + len(needle), end, serial)
            number = self._links[number]
        return None

    def _decoded(self, at: int, end: int, serial: int) -> Revocation:
        tag, content, after = element(self._der, at)
        text = self._der[content:after].decode("ascii")
        if tag == _UTC_TIME:  # RFC 5280 section 4.1.2.5.1
            text = ("19" if text >= "5" else "20") + text
        return Revocation(
            serial=serial,
            date=datetime.strptime(text, "%Y%m%d%H%M%SZ").replace(tzinfo=UTC),
            reason=_reason(self._der, after, end),
            issuer=self.issuer_shown,
        )

    def __str__(self) -> str:
        """The list in one line for messages: issuer and dates."""
        return (
            f"the CRL of {self.issuer_shown} (of {self.this_update:%Y-%m-%d %H:%M:%S}, next update "
            f"{describe_time(self.next_update)})"
        )

    def __repr__(self) -> str:
        return f"<RevocationList: {self}, {len(self)} entries>"

    # Signature

    def signed_by(self, issuer: x509.Certificate, key: bytes) -> bool:
        """Whether a certificate's key signed it; checked once for each key. False also for what cannot be checked.

        Args:
            issuer: the certificate.
            key: its public key as SubjectPublicKeyInfo, by which the answer is kept.
        """
        signed = self._signed.get(key)
        if signed is None:
            try:
                self._verify(public_key(issuer))
                signed = True
            except (InvalidSignature, UnsupportedAlgorithm, ValueError, TypeError, AttributeError):
                signed = False
            self._signed[key] = signed
        return signed

    def _verify(self, key: object) -> None:
        crl = self.crl
        if self._tbs_digest is not None and isinstance(key, ec.EllipticCurvePublicKey | rsa.RSAPublicKey):
            algorithm = signature_hash(crl)
            parameters = crl.signature_algorithm_parameters
            assert algorithm is not None
            prehashed = utils.Prehashed(algorithm)
            if isinstance(key, ec.EllipticCurvePublicKey):
                if isinstance(parameters, ec.ECDSA):
                    return key.verify(crl.signature, self._tbs_digest, ec.ECDSA(prehashed))
            elif isinstance(parameters, padding.PSS | padding.PKCS1v15):
                return key.verify(crl.signature, self._tbs_digest, parameters, prehashed)
            raise InvalidSignature
        start, end = self._tbs
        return key.verify(crl.signature, self._der[start:end])  # type: ignore[attr-defined,no-any-return]  # Ed25519 &c.

    def _hash_name(self) -> str | None:
        """The signature's hash, as `hashlib` calls it; None where there is none to be had beforehand."""
        algorithm = signature_hash(self.crl)
        name = None if algorithm is None else algorithm.name.replace("-", "_")
        return name if name in hashlib.algorithms_available else None


def _entry_extensions(der: bytes, at: int, end: int) -> Iterator[tuple[bytes, bool, bytes]]:
    """The extensions of an entry, from its date on: OID, whether it is critical, value."""
    for tag, _, start, stop in elements(der, at, end):
        if tag != SEQUENCE:
            continue
        for _, _, first, last in elements(der, start, stop):
            oid, critical, value = b"", False, b""
            for kind, _, content, after in elements(der, first, last):
                if kind == OID:
                    oid = der[content:after]
                elif kind == BOOLEAN:
                    critical = der[content:after] != b"\0"
                else:
                    value = der[content:after]
            yield oid, critical, value


def _unknown_critical(der: bytes, at: int, end: int) -> set[str]:
    found = _entry_extensions(der, at, end)
    return {
        f"of an entry, {oid.hex()}" for oid, critical, _ in found if critical and oid not in _KNOWN_ENTRY_EXTENSIONS
    }


def _reason(der: bytes, at: int, end: int) -> str:
    try:
        for oid, _, value in _entry_extensions(der, at, end):
            if oid == _REASON_OID:
                _, start, stop = element(value, 0)
                return _REASONS[int.from_bytes(value[start:stop], "big")]
    except (ValueError, KeyError):  # it is revoked, whatever else the entry says
        return "unreadable reason"
    return _REASONS[0]


# Several lists ------------------------------------------------------------------------------------------------------


def is_older(one: RevocationList, other: RevocationList) -> bool:
    """Whether one list of a key and scope was issued before another: by number, or where one has none, by thisUpdate.

    (RFC 5280 section 5.2.3.)
    """
    if one.number is not None and other.number is not None and one.number != other.number:
        return one.number < other.number
    return one.this_update < other.this_update


def newest(lists: Sequence[RevocationList], now: datetime | None = None) -> list[RevocationList]:
    """Of lists that one key signed, those that count: of each scope the newest that has begun, else the newest.

    Args:
        lists: what to choose from.
        now: the time to judge by, aware; None takes each list for one that has begun.
    """
    counting: dict[object, RevocationList] = {}
    for each in lists:
        other = counting.setdefault(each.point, each)
        begun = [mine for mine in (other, each) if now is None or mine.this_update <= now]
        if len(begun) == 1:
            counting[each.point] = begun[0]
        elif is_older(other, each):
            counting[each.point] = each
    return list(counting.values())
