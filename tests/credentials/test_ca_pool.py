"""CA pools: values, every way in, and the system's own."""

from __future__ import annotations

import copy
import os
from typing import TYPE_CHECKING, TypeAlias

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from specimens import (
    certificate_of_unknown_version,
    chain,
    cut,
    key_of,
    key_pem,
    make_certificate,
    pem,
)
from trionode._credentials import ca_pool
from trionode._credentials.ca_pool import CAPool
from trionode._errors import CertificateError, CertificateReason
from trionode._identity.certificate import fingerprint

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from trionode._credentials.pem import PrivateKey

    OpenSSL: TypeAlias = Callable[..., bytes]


# CA pools -----------------------------------------------------------------------------------------------------------


def test_a_pool_keeps_each_certificate_once_and_in_order() -> None:
    """A pool is a set that remembers the order of its first occurrences."""
    leaf_certificate, intermediate, root = chain()
    pool = CAPool([root, leaf_certificate, root, intermediate])
    assert pool.certificates == tuple(pool) == (root, leaf_certificate, intermediate)
    assert len(pool) == 3


def test_pools_compare_and_hash_by_content() -> None:
    """Two pools of the same certificates are equal whatever their order; other things are not equal to a pool."""
    _, intermediate, root = chain()
    assert CAPool([root, intermediate]) == CAPool([intermediate, root])
    assert hash(CAPool([root, intermediate])) == hash(CAPool([intermediate, root]))
    assert CAPool([root]) != CAPool([intermediate])
    assert CAPool([root]) != {root}
    assert len({CAPool([root]), CAPool.from_pem(pem(root)), CAPool([intermediate])}) == 2


def test_pools_are_joined() -> None:
    """`a | b` trusts what either trusts, leaves both as they were, and joins pools only."""
    _, intermediate, root = chain()
    first, second = CAPool([root]), CAPool([intermediate, root])
    assert (first | second).certificates == (root, intermediate)
    assert first.certificates == (root,)
    assert first | first == first
    with pytest.raises(TypeError):
        first | [intermediate]


def test_membership_is_of_the_very_certificate() -> None:
    """`in` asks whether a certificate is itself an anchor: not its issuer's, not its name, not something else."""
    leaf_certificate, intermediate, root = chain()
    pool = CAPool([root, intermediate])
    assert root in pool
    assert x509.load_pem_x509_certificate(pem(root)) in pool
    assert leaf_certificate not in pool
    assert fingerprint(root) not in pool
    assert None not in pool


def test_a_pool_is_never_empty(tmp_path: Path) -> None:
    """No way in makes a pool without a certificate."""
    empty = tmp_path / "empty.pem"
    empty.touch()
    makers: list[tuple[Callable[[], CAPool], str]] = [
        (lambda: CAPool([]), "an empty pool would trust no peer"),
        (CAPool.load, "an empty pool would trust no peer"),
        (lambda: CAPool.load(empty), f"no PEM certificate in {empty}"),
        (lambda: CAPool.from_pem(""), "no PEM certificate in the CA text"),
        (lambda: CAPool.from_pem(key_pem(key_of("p256"))), "are the two files swapped?"),
    ]
    for make, text in makers:
        with pytest.raises(CertificateError) as caught:
            make()
        assert caught.value.reason is CertificateReason.NO_CERTIFICATE
        assert text in str(caught.value)


def test_pools_load_from_several_files_of_several_certificates(tmp_path: Path) -> None:
    """All certificates of all files are in, private keys beside them are not looked at."""
    leaf_certificate, intermediate, root = chain()
    first, second = tmp_path / "a.pem", tmp_path / "b.pem"
    first.write_bytes(key_pem(key_of("rsa")) + pem(root, intermediate))
    second.write_bytes(pem(intermediate, leaf_certificate))
    assert CAPool.load(first, str(second)).certificates == (root, intermediate, leaf_certificate)


@pytest.mark.parametrize("keep", [0.3, 0.52, 0.9, 0.99])
def test_a_bundle_that_was_cut_off_is_refused(keep: float) -> None:
    """A file that ends inside a certificate never passes as a shorter list of anchors."""
    whole = pem(*chain()[1:])
    with pytest.raises(CertificateError, match="damaged or cut off; write the file anew") as caught:
        CAPool.from_pem(cut(whole, keep))
    assert caught.value.reason is CertificateReason.UNREADABLE


def test_a_pool_is_immutable_and_its_copies_are_itself() -> None:
    """A pool cannot be changed, so that copying it gives it back."""
    pool = CAPool(chain())
    with pytest.raises(AttributeError, match="immutable; cannot set certificates"):
        pool.certificates = ()
    with pytest.raises(AttributeError, match="immutable; cannot delete certificates"):
        del pool.certificates
    assert copy.copy(pool) is pool
    assert copy.deepcopy([pool])[0] is pool


def test_a_pool_shows_its_subjects() -> None:
    """What is shown of a pool is how many anchors there are and the first few by name."""
    assert repr(CAPool(chain())) == "<CAPool of 3: CN=leaf, CN=intermediate, CN=root>"


# The system's pool --------------------------------------------------------------------------------------------------


def ca(subject: str, key: PrivateKey) -> x509.Certificate:
    """A self-signed CA certificate; reading the system's store yields nothing else."""
    return make_certificate(
        subject, key=key, purposes=None, extensions=[x509.BasicConstraints(ca=True, path_length=None)]
    )


def test_the_system_pool_honours_ssl_cert_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`SSL_CERT_FILE` names the file that the system pool is read from."""
    first, second = ca("one", key_of("p256")), ca("two", key_of("p384"))
    file = tmp_path / "bundle.pem"
    file.write_bytes(b"# two of them\n" + pem(first, second, first))
    monkeypatch.setenv("SSL_CERT_FILE", str(file))
    monkeypatch.setenv("SSL_CERT_DIR", str(tmp_path / "missing"))
    assert CAPool.system() == CAPool([first, second])


def test_the_system_pool_honours_ssl_cert_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`SSL_CERT_DIR` is a list of directories of hashed files; what cannot be read in them is left out."""
    first, second = ca("one", key_of("p256")), ca("two", key_of("p384"))
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    (tmp_path / "a" / "0123abcd.0").write_bytes(b"Certificate:\n    Data: as openssl's -text writes it\n" + pem(first))
    (tmp_path / "a" / "0123abcd.1").write_bytes(b"junk")
    (tmp_path / "a" / "0123abcd.2").mkdir()
    (tmp_path / "a" / "0123abcd.3").write_bytes(certificate_of_unknown_version())
    (tmp_path / "a" / "README").write_bytes(pem(ca("not hashed", key_of("rsa"))))
    (tmp_path / "b" / "4567abcd.0").write_bytes(pem(second))
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "missing"))
    monkeypatch.setenv("SSL_CERT_DIR", os.pathsep.join([str(tmp_path / "a"), "", str(tmp_path / "b")]))
    assert CAPool.system() == CAPool([first, second])


def test_a_machine_without_cas_is_told_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where no system CA is found, the error says what to install or to give."""
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "missing"))
    monkeypatch.setenv("SSL_CERT_DIR", str(tmp_path))
    with pytest.raises(CertificateError, match="install ca-certificates, or give the CA pool explicitly") as caught:
        CAPool.system()
    assert caught.value.reason is CertificateReason.NO_CERTIFICATE


def test_odd_entries_of_the_system_store_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """Entries that cannot be parsed cost themselves, and old roots with a zero serial number raise no warning."""
    root = ca("root", key_of("p256"))
    serial = root.serial_number.to_bytes(20, "big").lstrip(b"\0")
    zero = root.public_bytes(Encoding.DER).replace(serial, b"\0" * len(serial), 1)
    monkeypatch.setattr(
        ca_pool,
        "_system_certificates",
        lambda: iter([b"junk", root.public_bytes(Encoding.DER), zero, root.public_bytes(Encoding.DER)]),
    )
    pool = CAPool.system()
    assert len(pool) in (1, 2)  # a later release of cryptography may refuse the one without a serial number
    assert root in pool
