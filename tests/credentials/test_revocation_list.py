"""One list that was read once: what `cryptography` says of it, faster and without a copy."""

from __future__ import annotations

import random
import tracemalloc
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed448, ed25519, rsa, x25519
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from hypothesis import given, strategies as st

from ca import DAY, HOUR, TestCA, lists, new_key, point
from trionode import CertificateError, CertificateReason, CRLSet
from trionode._credentials.crl import read_lists
from trionode._credentials.revocation_list import RevocationList, is_older, newest

if TYPE_CHECKING:
    from collections.abc import Callable

    from trionode._credentials.pem import PrivateKey

NOW = datetime(2026, 6, 1, 12, tzinfo=UTC)
KEY = new_key()

serials = st.one_of(
    st.integers(1, 300), st.integers(1, 2**159 - 1), st.sampled_from([127, 128, 255, 256, 2**63, 2**64])
)


def made(*entries: x509.RevokedCertificate, extensions: tuple[x509.ExtensionType, ...] = ()) -> RevocationList:
    """A list, read."""
    builder = x509.CertificateRevocationListBuilder().issuer_name(x509.Name([])).last_update(NOW).next_update(NOW + DAY)
    for entry in entries:
        builder = builder.add_revoked_certificate(entry)
    for extension in extensions:
        builder = builder.add_extension(extension, critical=True)
    return RevocationList(builder.sign(KEY, hashes.SHA256()))


def entry(
    serial: int, date: datetime = NOW, *extensions: x509.ExtensionType, critical: bool = False
) -> x509.RevokedCertificate:
    """An entry of a list."""
    builder = x509.RevokedCertificateBuilder().serial_number(serial).revocation_date(date)
    for extension in extensions:
        builder = builder.add_extension(extension, critical=critical)
    return builder.build()


@given(
    st.dictionaries(
        serials,
        st.tuples(
            st.datetimes(datetime(1951, 1, 1), datetime(2999, 1, 1)),  # noqa: DTZ001 -- UTC, as the builder has it
            st.sampled_from([None, *(flag for flag in x509.ReasonFlags if flag is not x509.ReasonFlags.unspecified)]),
        ),
        max_size=40,
    ),
    st.sets(serials, max_size=40),
)
def test_whatever_is_on_it_is_found_and_nothing_else(
    revoked: dict[int, tuple[datetime, x509.ReasonFlags | None]], others: set[int]
) -> None:
    """Law: for any serial numbers, dates and reasons it says what `cryptography` says."""
    crl = made(
        *(
            entry(serial, date, *(() if reason is None else (x509.CRLReason(reason),)))
            for serial, (date, reason) in revoked.items()
        )
    )
    assert len(crl) == len(revoked)
    for serial in {*revoked, *others}:
        found, expected = crl.revocation(serial), crl.crl.get_revoked_certificate_by_serial_number(serial)
        if expected is None:
            assert found is None
            continue
        assert found is not None
        assert (found.serial, found.date) == (serial, expected.revocation_date_utc)
        reason = revoked[serial][1]
        assert found.reason == ("unspecified" if reason is None else reason.value)


def test_a_serial_number_of_zero_or_less() -> None:
    """No CA may issue them (RFC 5280 section 4.1.2.2); asking is harmless."""
    crl = made(entry(1))
    assert crl.revocation(0) is crl.revocation(-1) is crl.revocation(-129) is None


def test_the_encoding_makes_the_list() -> None:
    """Read from bytes, from PEM or as an object: the same list."""
    crl = TestCA().crl(5)
    der, pem = crl.public_bytes(Encoding.DER), crl.public_bytes(Encoding.PEM)
    assert CRLSet([crl]) == CRLSet.from_bytes(der) == CRLSet.from_bytes(pem) == CRLSet.from_bytes(pem + pem)
    [read] = read_lists(CRLSet.from_bytes(pem))
    assert read.crl == crl
    assert repr(read).startswith("<RevocationList: the CRL of CN=root (of ")


@pytest.mark.parametrize(
    "make",
    [
        lambda: ec.generate_private_key(ec.SECP384R1()),
        lambda: rsa.generate_private_key(65537, 2048),
        ed25519.Ed25519PrivateKey.generate,
        ed448.Ed448PrivateKey.generate,
    ],
    ids=["P-384", "RSA", "Ed25519", "Ed448"],
)
def test_signatures(make: Callable[[], PrivateKey]) -> None:
    """By any kind of key; another key of the kind, and a key of another kind, did not sign it."""
    ca, other, odd = TestCA(key=make()), TestCA(), TestCA()
    [crl] = read_lists(lists(ca.crl(1, 2, 3)))
    [forged] = read_lists(lists(ca.crl(1, 2, 3, key=other.key)))
    assert signed(crl, ca) is True
    assert signed(crl, ca) is True
    assert [signed(crl, other), signed(crl, odd), signed(forged, ca)] == [False] * 3
    assert signed(forged, other) is True


def signed(crl: RevocationList, ca: TestCA) -> bool:
    """Whether a CA signed a list."""
    key = ca.certificate.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return crl.signed_by(ca.certificate, key)


def test_a_list_that_was_changed() -> None:
    """One octet of the signed part suffices."""
    ca = TestCA()
    der = bytearray(ca.crl(0x123456789).public_bytes(Encoding.DER))
    at = der.index(bytes.fromhex("0123456789"))
    der[at] ^= 4
    [crl] = read_lists(CRLSet.from_bytes(bytes(der)))
    assert crl.revocation(0x523456789) is not None
    assert not signed(crl, ca)


def test_a_key_that_signs_nothing() -> None:
    """Key agreement is no signature."""
    ca = TestCA()
    odd = ca.sign("root", x25519.X25519PrivateKey.generate(), [], start=-DAY, end=DAY)  # type: ignore[arg-type]
    [crl] = read_lists(lists(ca.crl()))
    assert not crl.signed_by(odd, b"x25519")


@pytest.mark.parametrize("length", [0, 1, 5000])
def test_any_length(length: int) -> None:
    """A list of nobody has no field for entries; a long one gives other threads a chance."""
    crl = made(*(entry(number) for number in range(1, length + 1)))
    assert len(crl) == length
    assert all(crl.revocation(number) for number in range(1, length + 1))
    assert crl.revocation(length + 1) is None


def test_memory() -> None:
    """The index takes less than the list's encoding."""
    entries = [entry(random.getrandbits(127) | 1) for _ in range(20_000)]
    der = made(*entries).crl.public_bytes(Encoding.DER)
    crl = x509.load_der_x509_crl(der)
    tracemalloc.start()
    read = RevocationList(crl, der)
    kept, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(read) == 20_000
    assert kept < 0.6 * len(der)


@pytest.mark.parametrize(
    ("extension", "trouble"),
    [
        (x509.CRLReason(x509.ReasonFlags.superseded), False),
        (x509.InvalidityDate(NOW), False),
        (x509.UnrecognizedExtension(x509.ObjectIdentifier("1.2.3.4"), b"\x05\x00"), True),
        (x509.CertificateIssuer([x509.DirectoryName(x509.Name([]))]), True),
    ],
)
def test_critical_extensions_of_entries(extension: x509.ExtensionType, trouble: bool) -> None:
    """One that we do not know makes the list unfit to clear anybody (RFC 5280 section 5.3), if it is critical."""
    assert (made(entry(1), entry(2, NOW, extension, critical=True)).trouble is not None) == trouble
    assert made(entry(1), entry(2, NOW, extension)).trouble is None


def test_critical_extensions_of_lists() -> None:
    """Likewise; those that we know are none."""
    odd = x509.UnrecognizedExtension(x509.ObjectIdentifier("1.2.3.4"), b"\x05\x00")
    assert made(extensions=(odd,)).trouble == "it has a critical extension that we do not know (1.2.3.4)"
    assert made(extensions=(x509.CRLNumber(1), point("http://a.example"))).trouble is None


def test_an_entry_that_is_damaged_within() -> None:
    """Extensions of an entry that cannot be walked are damage to the list."""
    good = made(entry(0x0123456789, NOW, x509.CRLReason(x509.ReasonFlags.superseded))).crl.public_bytes(Encoding.DER)
    at = good.index(bytes.fromhex("0603551d15"))
    damaged = good[: at + 1] + b"\x7f" + good[at + 2 :]
    with pytest.raises(CertificateError) as caught:
        CRLSet.from_bytes(damaged)
    assert caught.value.reason is CertificateReason.BAD_CRL


# Several ------------------------------------------------------------------------------------------------------------


def at(start: timedelta, number: int | None = None, **given: object) -> RevocationList:
    """A list of one CA."""
    [read] = read_lists(lists(CA.crl(start=start, end=start + DAY, number=number, **given)))  # type: ignore[arg-type]
    return read


CA = TestCA()


def test_which_is_older() -> None:
    """By number where both have one, else by date."""
    early, late = -3 * HOUR, -HOUR
    assert is_older(at(early, 1), at(late, 2))
    assert is_older(at(late, 1), at(early, 2))
    assert is_older(at(early, 1), at(late, 1))
    assert is_older(at(early), at(late))
    assert is_older(at(early, 9), at(late))
    assert is_older(at(early), at(late, 1))
    same = at(late, 1)
    assert not is_older(same, same)


def test_which_count() -> None:
    """The newest of each scope that has begun; where none has, the newest."""
    now = datetime.now(UTC)
    old, new, future, later = at(-3 * HOUR, 1), at(-HOUR, 2), at(HOUR, 3), at(2 * HOUR, 4)
    users = at(-2 * HOUR, 9, point=point(user_only=True))
    for order in ([old, new, future, later, users], [users, later, future, new, old], [new, later, old, users, future]):
        assert {*newest(order, now)} == {new, users}
        assert {*newest(order)} == {later, users}
    assert newest([later, future], now) == newest([future, later], now) == [later]
    assert newest([], now) == []
