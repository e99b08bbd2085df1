"""What certificates are built from."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias

from cryptography import x509

from specimens import (
    CLIENT,
    SERVER,
)
from trionode._credentials.issuing import (
    BOTH_PURPOSES,
    LEAF_KEY_USAGE,
    general_name,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    OpenSSL: TypeAlias = Callable[..., bytes]


def test_building_blocks_are_for_both_sides() -> None:
    """What leaves are made with says digital signature, server and client, and an IP SAN for an address."""
    assert list(BOTH_PURPOSES) == [SERVER, CLIENT]
    assert LEAF_KEY_USAGE.digital_signature
    assert not LEAF_KEY_USAGE.key_cert_sign
    assert general_name("host.example") == x509.DNSName("host.example")
    assert isinstance(general_name("[::1]"), x509.IPAddress)
