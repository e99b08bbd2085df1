"""Arguments of the wrong kind are a `TypeError` with words, where they are given, and not a surprise later on."""

from __future__ import annotations

import math
from datetime import datetime
from typing import TYPE_CHECKING, Any

import pytest

from specimens import authority, key_of, key_pem, leaf, pem
from trionode import CAPool, CertAuthManager, CRLSet, FileSource, KeyPair, check_key_pair
from trionode.pki import CertificateAuthority, write_ca_pool, write_key_pair

if TYPE_CHECKING:
    from collections.abc import Callable


def odd(value: object) -> Any:
    """For what a type checker would refuse."""
    return value


def pair() -> KeyPair:
    """A good one."""
    return KeyPair([leaf()], key_of("p256"))


WRONG: dict[str, tuple[Callable[[], object], str]] = {
    "a path that is a number": (lambda: KeyPair.load(odd(1), odd(2)), "given as a path .* not as an int"),
    "a path of bytes": (lambda: CAPool.load(odd(b"ca.pem")), "given as a path .* not as a bytes"),
    "a list of paths": (lambda: CAPool.load(odd(["ca.pem"])), "given as a path .* not as a list"),
    "a path of a source": (lambda: FileSource(odd(1), "key.pem"), "given as a path"),
    "a password that is a number": (
        lambda: KeyPair.from_pem(pem(leaf()), key_pem(key_of("p256")), password=odd(5)),
        "a password or PEM has to be str or bytes, not an int",
    ),
    "PEM that is a number": (lambda: CAPool.from_pem(odd(5)), "has to be str or bytes"),
    "PEM that is None": (lambda: KeyPair.from_pem(odd(None), odd(None)), "has to be str or bytes, not a NoneType"),
    "a chain of texts": (
        lambda: KeyPair(odd(["x"]), key_of("p256")),
        "chain must be a sequence of Certificate, and",
    ),
    "a chain that is a text": (
        lambda: KeyPair(odd("x"), key_of("p256")),
        "chain must be a sequence of Certificate",
    ),
    "a pool of key pairs": (lambda: CAPool(odd([pair()])), "certificates must be .* one item is a KeyPair"),
    "a pool of one certificate": (lambda: CAPool(odd(leaf())), "certificates must be a sequence"),
    "lists that are certificates": (
        lambda: CRLSet(odd([leaf()])),
        "lists must be a sequence of CertificateRevocation",
    ),
    "a certificate to look for": (lambda: authority().revocation_list().listed(odd("x")), "certificate must be"),
    "an organization": (lambda: KeyPair.self_signed("a", organization=odd(5)), "organization must be"),
    "a key pair to check": (lambda: check_key_pair(odd("x")), "key_pair must be"),
    "names to check that are one": (lambda: check_key_pair(pair(), names="localhost"), "names must be a sequence"),
    "names to check that are numbers": (lambda: check_key_pair(pair(), names=odd([1])), "one item is 1"),
    "as_server that is a text": (lambda: check_key_pair(pair(), as_server=odd("false")), "as_server must be"),
    "names that a manager is to check": (lambda: CertAuthManager(pair()).check(pair(), names="a"), "names must be"),
    "a clock that gives nothing": (lambda: CertAuthManager(pair(), clock=lambda: odd(None)).check(pair()), "not None"),
    "a CA's name": (lambda: CertificateAuthority.create(common_name=odd(5)), "common_name must be"),
    "a CA's intermediate": (lambda: CertificateAuthority.create(intermediate=odd("false")), "intermediate must be"),
    "a date that is a text": (lambda: authority().issue("a@b", not_before=odd("2026")), "not_before must be"),
    "what is revoked": (lambda: authority().revocation_list(odd("x")), "revoked must be a sequence of KeyPair or"),
    "a previous list": (lambda: authority().revocation_list(previous=odd("x")), "previous must be"),
    "a reason": (lambda: authority().revocation_list(pair(), reason=odd("x")), "reason must be"),
    "a key pair to write": (lambda: write_key_pair(odd("x"), "a", "b"), "key_pair must be"),
    "a pool to write": (lambda: write_ca_pool(odd("x"), "a"), "pool must be"),
}


@pytest.mark.parametrize("what", WRONG)
def test_the_wrong_kind_is_a_type_error(what: str) -> None:
    """Which argument, what it has to be, and what it is."""
    call, said = WRONG[what]
    with pytest.raises(TypeError, match=said):
        call()


@pytest.mark.parametrize("generation", [math.nan, True, "1", None, 1.0])
async def test_a_generation_is_an_integer(generation: object) -> None:
    """Neither a NaN, which nothing ever reaches, nor a truth."""
    manager = CertAuthManager(pair())
    for wait in manager.wait_generation, manager.drained:
        with pytest.raises(TypeError, match="generation must be"):
            await wait(odd(generation))


def test_a_naive_date_stays_a_value_error() -> None:
    """It is of the right kind."""
    with pytest.raises(ValueError, match="no time zone"):
        authority().issue("a@b", not_before=datetime(2026, 1, 1))  # noqa: DTZ001 -- that is it
