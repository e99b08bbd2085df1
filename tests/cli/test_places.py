"""Hosts and ports, as they are typed."""

from __future__ import annotations

import pytest

from trionode.cli.given import host_and_port


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("localhost", ("localhost", 7)),
        ("localhost:80", ("localhost", 80)),
        ("127.0.0.1:80", ("127.0.0.1", 80)),
        ("[::1]:80", ("[::1]", 80)),
        ("[::1]", ("[::1]", 7)),
        ("::1", ("[::1]", 7)),
        ("2001:db8::15", ("[2001:db8::15]", 7)),
    ],
)
def test_hosts_and_ports(text: str, expected: tuple[str, int]) -> None:
    """As people write them."""
    assert host_and_port(text, 7) == expected
