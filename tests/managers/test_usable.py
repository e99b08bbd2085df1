"""What `update()` and every first use insist on: dates, and purposes for the roles that are played."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias

import pytest
from cryptography import x509
from cryptography.x509.oid import ExtendedKeyUsageOID, ObjectIdentifier

from specimens import (
    CLIENT,
    DAY,
    NOW,
    SERVER,
    key_of,
    make_certificate,
    patched,
)
from trionode._credentials.key_pair import KeyPair
from trionode._errors import CertificateError, CertificateReason
from trionode._identity.certificate import allows
from trionode._managers.check import check_usable

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from datetime import datetime

    OpenSSL: TypeAlias = Callable[..., bytes]


# Using a key pair ---------------------------------------------------------------------------------------------------


def pair_with(
    *,
    not_before: datetime = NOW - DAY,
    not_after: datetime = NOW + DAY,
    purposes: Sequence[ObjectIdentifier] | None = (SERVER, CLIENT),
) -> KeyPair:
    """A self-signed key pair with this validity and these purposes."""
    return KeyPair([make_certificate(not_before=not_before, not_after=not_after, purposes=purposes)], key_of("p256"))


def test_a_key_pair_is_usable_from_its_first_to_its_last_second() -> None:
    """Both ends of the validity period belong to it (RFC 5280 section 4.1.2.5)."""
    pair = pair_with(not_before=NOW, not_after=NOW + DAY)
    for now in (NOW, NOW + DAY / 2, NOW + DAY):
        check_usable(pair, now=now, as_server=True, as_client=True)


def test_an_expired_key_pair_is_refused_with_our_clock_and_the_remedy() -> None:
    """An expired leaf is `expired`, and the text has our clock, its dates and what to do."""
    with pytest.raises(CertificateError) as caught:
        check_usable(pair_with(), now=NOW + 2 * DAY, as_server=False, as_client=False)
    assert caught.value.reason is CertificateReason.EXPIRED
    for part in (
        "our clock says 2026-06-03 12:00:00 UTC",
        "to 2026-06-02 12:00:00 UTC",
        "rotate to it with manager.update()",
    ):
        assert part in str(caught.value)


def test_a_key_pair_of_the_future_is_refused_as_such() -> None:
    """A leaf that is not yet valid is `not_yet_valid`, never `expired`, and the text points at the clocks."""
    with pytest.raises(CertificateError) as caught:
        check_usable(pair_with(), now=NOW - 2 * DAY, as_server=False, as_client=False)
    assert caught.value.reason is CertificateReason.NOT_YET_VALID
    for part in ("our clock says 2026-05-30 12:00:00 UTC", "from 2026-05-31 12:00:00", "Check this machine's clock"):
        assert part in str(caught.value)
    assert "expired" not in str(caught.value)


ANY = ExtendedKeyUsageOID.ANY_EXTENDED_KEY_USAGE
CODE = ExtendedKeyUsageOID.CODE_SIGNING


@pytest.mark.parametrize("as_client", [False, True])
@pytest.mark.parametrize("as_server", [False, True])
@pytest.mark.parametrize(
    ("purposes", "server_fits", "client_fits"),
    [
        (None, True, True),
        ((SERVER, CLIENT), True, True),
        ((SERVER,), True, False),
        ((CLIENT,), False, True),
        ((CODE,), False, False),
        ((ANY,), False, False),
        ((ANY, SERVER, CODE), True, False),
    ],
)
def test_a_key_pair_is_used_for_its_purposes_only(
    purposes: Sequence[ObjectIdentifier] | None,
    server_fits: bool,
    client_fits: bool,
    as_server: bool,
    as_client: bool,
) -> None:
    """A purpose that is needed and not allowed is `wrong_eku` and named; one that is not needed is not asked for."""
    pair = pair_with(purposes=purposes)
    assert allows(pair.certificate, SERVER) is server_fits
    assert allows(pair.certificate, CLIENT) is client_fits
    if (server_fits or not as_server) and (client_fits or not as_client):
        check_usable(pair, now=NOW, as_server=as_server, as_client=as_client)
        return
    with pytest.raises(CertificateError, match="Issue it with both serverAuth and clientAuth") as caught:
        check_usable(pair, now=NOW, as_server=as_server, as_client=as_client)
    assert caught.value.reason is CertificateReason.WRONG_EKU
    missing = "serverAuth" if as_server and not server_fits else "clientAuth"
    assert f"does not allow {missing}:" in str(caught.value)


def test_purposes_that_cannot_be_read_allow_nothing() -> None:
    """A certificate whose purposes are doubled or unreadable is fit for none; other extensions do not matter."""
    other = x509.UnrecognizedExtension(ObjectIdentifier("2.5.29.99"), b"\x30\x00")
    twice = patched(make_certificate(extensions=[other]), b"\x55\x1d\x63", b"\x55\x1d\x25")
    garbled = make_certificate(
        purposes=None, extensions=[x509.UnrecognizedExtension(x509.ExtendedKeyUsage.oid, b"\xff")]
    )
    for certificate in (x509.load_pem_x509_certificate(twice), garbled):
        assert not allows(certificate, SERVER)
        assert not allows(certificate, CLIENT)
    odd_name = patched(make_certificate(), b"\x82\x0chost.example", b"\xa3\x0chost.example")
    assert allows(x509.load_pem_x509_certificate(odd_name), SERVER)
