"""What `trionode.pki` writes is whole, private and loads again."""

from __future__ import annotations

import errno
import os
import shutil
import stat
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

import pytest
from cryptography.hazmat.primitives import serialization

from specimens import PASSWORD, at_noon, authority
from trionode._credentials.ca_pool import CAPool
from trionode._credentials.key_pair import KeyPair
from trionode._errors import CertificateError, CertificateReason
from trionode.pki import (
    CertificateAuthority,
    KeyType,
    write_ca_pool,
    write_key_pair,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    OpenSSL: TypeAlias = Callable[..., bytes]


@pytest.fixture(params=[False, True], ids=["root", "intermediate"])
def ca(request: pytest.FixtureRequest) -> CertificateAuthority:
    """A CA whose root issues, and one whose intermediate does."""
    return authority(intermediate=request.param)


@pytest.fixture
def no_umask() -> Iterator[None]:
    """A umask that takes nothing away, so that permissions are what the code asked for."""
    before = os.umask(0)
    yield
    os.umask(before)


def mode(file: Path) -> int:
    """The permission bits of a file."""
    return stat.S_IMODE(file.stat().st_mode)


# Saving and loading -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("password", [None, PASSWORD, PASSWORD.encode()])
def test_a_saved_ca_loads_and_issues_as_before(
    ca: CertificateAuthority, tmp_path: Path, password: str | bytes | None
) -> None:
    """What `save` wrote, `load` reads: the same CA, able to issue, encrypted or not."""
    ca.save(tmp_path / "deep" / "down", password=password)
    loaded = CertificateAuthority.load(str(tmp_path / "deep" / "down"), password=password, clock=at_noon)
    assert loaded.certificate == ca.certificate
    assert loaded.intermediate == ca.intermediate
    assert loaded.pool == ca.pool
    pair = loaded.issue("alpha@host.example")
    assert pair.chain[1:] == ca.issue("alpha@host.example").chain[1:]
    pair.certificate.verify_directly_issued_by(ca.intermediate or ca.certificate)


def test_a_saved_ca_is_three_files_of_which_the_key_is_private(tmp_path: Path, no_umask: None) -> None:
    """The directory holds root, intermediate and issuing key, and only the owner can read the key."""
    directory = tmp_path / "ca"
    authority(intermediate=True).save(directory)
    assert {file.name: mode(file) for file in directory.iterdir()} == {
        "ca.pem": 0o644,
        "intermediate.pem": 0o644,
        "ca.key": 0o600,
    }
    assert mode(directory) == 0o700
    authority().save(tmp_path)
    assert {file.name for file in tmp_path.iterdir()} == {"ca", "ca.pem", "ca.key"}


def test_a_loose_key_file_becomes_private_when_it_is_replaced(tmp_path: Path) -> None:
    """A key file that others could read is not written into: a new one takes its place."""
    key_file = tmp_path / "ca.key"
    key_file.touch(mode=0o666)
    key_file.chmod(0o666)
    with key_file.open() as opened_before:
        authority().save(tmp_path)
        assert opened_before.read() == ""
    assert mode(key_file) == 0o600


def test_a_new_ca_replaces_an_old_one_completely(tmp_path: Path) -> None:
    """No stale intermediate is left behind that would spoil the new CA."""
    authority(intermediate=True).save(tmp_path)
    authority().save(tmp_path)
    assert CertificateAuthority.load(tmp_path).certificate == authority().certificate
    assert not (tmp_path / "intermediate.pem").exists()
    authority(intermediate=True).save(tmp_path)
    assert CertificateAuthority.load(tmp_path).intermediate == authority(intermediate=True).intermediate


def test_the_root_key_is_forgotten_where_an_intermediate_issues(tmp_path: Path) -> None:
    """With an intermediate the key on disk is the intermediate's, and nobody has the root's."""
    certs = authority(intermediate=True)
    certs.save(tmp_path)
    key = serialization.load_pem_private_key((tmp_path / "ca.key").read_bytes(), None)
    assert certs.intermediate is not None
    assert key.public_key() == certs.intermediate.public_key()
    assert key.public_key() != certs.certificate.public_key()


def overwrite(name: str, content: bytes) -> Callable[[Path], None]:
    """A way to damage a CA's directory: put something else into a file."""

    def damage(directory: Path) -> None:
        (directory / name).write_bytes(content)

    return damage


def copy_in(name: str, source: str, of: Callable[[], CertificateAuthority]) -> Callable[[Path], None]:
    """A way to damage a CA's directory: take a file from another CA."""

    def damage(directory: Path) -> None:
        other = directory / "other"
        of().save(other)
        shutil.copy(other / source, directory / name)

    return damage


def remove(name: str) -> Callable[[Path], None]:
    """A way to damage a CA's directory: lose a file."""
    return lambda directory: (directory / name).unlink()


def append(name: str, source: str) -> Callable[[Path], None]:
    """A way to damage a CA's directory: join two files."""

    def damage(directory: Path) -> None:
        with (directory / name).open("ab") as stream:
            stream.write((directory / source).read_bytes())

    return damage


def truncate(name: str) -> Callable[[Path], None]:
    """A way to damage a CA's directory: lose the second half of a file."""
    return lambda directory: os.truncate(directory / name, (directory / name).stat().st_size // 2)


def dangle(name: str) -> Callable[[Path], None]:
    """A way to damage a CA's directory: a link that leads nowhere."""

    def damage(directory: Path) -> None:
        (directory / name).unlink()
        (directory / name).symlink_to("nowhere")

    return damage


def make_directory(name: str) -> Callable[[Path], None]:
    """A way to damage a CA's directory: a directory where a file was."""

    def damage(directory: Path) -> None:
        (directory / name).unlink()
        (directory / name).mkdir()

    return damage


def leaf_pem() -> bytes:
    """A leaf, where a CA is wanted."""
    return authority().issue("host.example").certificate.public_bytes(serialization.Encoding.PEM)


def fresh() -> CertificateAuthority:
    """Another CA with an intermediate."""
    return CertificateAuthority.create(intermediate=True)


Reason = CertificateReason

DAMAGE: dict[str, tuple[Callable[[Path], None], CertificateReason, str]] = {
    "no root": (remove("ca.pem"), Reason.UNREADABLE, "ca.pem: No such file or directory. Check the path"),
    "no key": (remove("ca.key"), Reason.UNREADABLE, "ca.key: No such file or directory. Check the path"),
    "intermediate lost": (remove("intermediate.pem"), Reason.KEY_MISMATCH, "read them again"),
    "intermediate dangling": (dangle("intermediate.pem"), Reason.UNREADABLE, "intermediate.pem: No such file"),
    "root empty": (overwrite("ca.pem", b""), Reason.NO_CERTIFICATE, "no PEM certificate in"),
    "root cut off": (truncate("ca.pem"), Reason.UNREADABLE, "ca.pem is damaged or cut off; write the file anew"),
    "intermediate cut off": (truncate("intermediate.pem"), Reason.UNREADABLE, "intermediate.pem is damaged or cut off"),
    "key empty": (overwrite("ca.key", b""), Reason.NO_KEY, "no PEM private key in"),
    "key cut off": (truncate("ca.key"), Reason.UNREADABLE, "ca.key is damaged or cut off; write the file anew"),
    "key of another": (copy_in("ca.key", "ca.key", fresh), Reason.KEY_MISMATCH, "does not belong to the leaf"),
    "root of another": (copy_in("ca.pem", "ca.pem", fresh), Reason.CHAIN_ORDER, "is not signed by"),
    "two roots": (append("ca.pem", "intermediate.pem"), Reason.CHAIN_ORDER, "ca.pem holds 2 certificates; a CA's own"),
    "long intermediate": (
        append("intermediate.pem", "ca.pem"),
        Reason.CHAIN_ORDER,
        "intermediate.pem holds 2 certificates; a CA's own certificate has to be alone in it",
    ),
    "a leaf as root": (overwrite("ca.pem", leaf_pem()), Reason.NO_CERTIFICATE, "Give the certificate of the CA"),
    "a directory as root": (make_directory("ca.pem"), Reason.UNREADABLE, "Is a directory"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_ca_is_refused_with_reason_and_remedy(tmp_path: Path, damage: str) -> None:
    """Each way in which a CA's files can be wrong is a `CertificateError` that says which, and quotes no key."""
    break_it, reason, text = DAMAGE[damage]
    certs = authority(intermediate=True)
    certs.save(tmp_path)
    secrets = (tmp_path / "ca.key").read_text().splitlines()[1:-1]
    break_it(tmp_path)
    with pytest.raises(CertificateError) as caught:
        CertificateAuthority.load(tmp_path)
    assert caught.value.reason is reason
    assert text in str(caught.value)
    shown = "".join(traceback.format_exception(caught.value))
    assert not any(secret[-16:] in shown for secret in secrets)


@pytest.mark.parametrize(
    ("saved", "given", "text"),
    [
        (PASSWORD, None, "is encrypted; give its password"),
        (PASSWORD, "battery staple", "the password does not open the private key"),
        (None, PASSWORD, "is not encrypted; leave it out"),
    ],
)
def test_the_password_of_a_ca_has_to_fit(
    ca: CertificateAuthority, tmp_path: Path, saved: str | None, given: str | None, text: str
) -> None:
    """A missing, wrong or superfluous password is `bad_password`."""
    ca.save(tmp_path, password=saved)
    with pytest.raises(CertificateError, match=text) as caught:
        CertificateAuthority.load(tmp_path, password=given)
    assert caught.value.reason is CertificateReason.BAD_PASSWORD


def test_a_missing_directory_is_unreadable(tmp_path: Path) -> None:
    """Where there is no CA, the error names the file that was looked for."""
    with pytest.raises(CertificateError, match=r"nowhere/ca\.pem: No such file or directory") as caught:
        CertificateAuthority.load(tmp_path / "nowhere")
    assert caught.value.reason is CertificateReason.UNREADABLE


# Writing ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("password", [None, PASSWORD])
@pytest.mark.parametrize("kind", KeyType)
def test_a_written_key_pair_loads_again(
    ca: CertificateAuthority, tmp_path: Path, kind: KeyType, password: str | None
) -> None:
    """Chain and key come back as they were, whatever the kind of key, encrypted or not."""
    pair = ca.issue("alpha@host.example", key_type=kind)
    write_key_pair(pair, tmp_path / "tls.crt", str(tmp_path / "tls.key"), password=password)
    loaded = KeyPair.load(tmp_path / "tls.crt", tmp_path / "tls.key", password=password)
    assert loaded.chain == pair.chain
    header = b"-----BEGIN PRIVATE KEY-----" if password is None else b"-----BEGIN ENCRYPTED PRIVATE KEY-----"
    assert (tmp_path / "tls.key").read_bytes().startswith(header)
    assert b"PRIVATE KEY" not in (tmp_path / "tls.crt").read_bytes()


def test_a_written_pool_loads_again(tmp_path: Path, no_umask: None) -> None:
    """A pool comes back with all its certificates in order, readable for all."""
    pool = authority().pool | authority(intermediate=True).pool
    write_ca_pool(pool, tmp_path / "pool.pem")
    assert CAPool.load(tmp_path / "pool.pem").certificates == pool.certificates
    assert mode(tmp_path / "pool.pem") == 0o644


def test_one_file_for_both_is_written_in_one_step_and_private(tmp_path: Path, no_umask: None) -> None:
    """Where certificate and key go to the same file, however it is spelt, it holds both and is the owner's alone."""
    pair = authority(intermediate=True).issue("alpha@host.example")
    (tmp_path / "sub").mkdir()
    file = tmp_path / "both.pem"
    write_key_pair(pair, file, tmp_path / "sub" / ".." / "both.pem")
    assert KeyPair.load(file, file).chain == pair.chain
    assert mode(file) == 0o600
    assert {path.name for path in tmp_path.iterdir()} == {"both.pem", "sub"}


@pytest.mark.parametrize("password", ["", b""])
def test_an_empty_password_is_refused_before_anything_is_touched(tmp_path: Path, password: str | bytes) -> None:
    """An empty password does not silently mean none."""
    with pytest.raises(ValueError, match="the password is empty"):
        write_key_pair(authority().issue("h"), tmp_path / "c", tmp_path / "k", password=password)
    with pytest.raises(ValueError, match="the password is empty"):
        authority().save(tmp_path / "ca", password=password)
    assert not list(tmp_path.iterdir())


def test_the_key_is_private_from_its_first_byte(
    tmp_path: Path, no_umask: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every file is created new, exclusively, in its target's directory, the key with mode 0600 from the start."""
    made: list[tuple[Path, int, int]] = []
    real = os.open

    def spy(path: str | Path, flags: int, mode: int = 0o777) -> int:
        made.append((Path(path).parent, flags & (os.O_CREAT | os.O_EXCL), mode))
        return real(path, flags, mode)

    monkeypatch.setattr(os, "open", spy)
    write_key_pair(authority().issue("h"), tmp_path / "c.pem", tmp_path / "k.pem")
    assert made == [(tmp_path, os.O_CREAT | os.O_EXCL, 0o600), (tmp_path, os.O_CREAT | os.O_EXCL, 0o644)]
    assert mode(tmp_path / "k.pem") == 0o600
    assert mode(tmp_path / "c.pem") == 0o644


def test_a_rotation_on_disk_never_shows_a_new_certificate_with_an_old_key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between any two steps of replacing a pair, what is read is whole, and torn only as old certificate, new key."""
    cert_file, key_file = tmp_path / "c.pem", tmp_path / "k.pem"
    old, new = authority().issue("h"), authority().issue("h")
    write_key_pair(old, cert_file, key_file)
    seen: list[str] = []

    def look() -> None:
        try:
            seen.append("old" if KeyPair.load(cert_file, key_file).fingerprint == old.fingerprint else "new")
        except CertificateError as exc:
            seen.append(exc.reason)
            assert CAPool.load(cert_file).certificates == old.chain

    real = Path.replace

    def replace(self: Path, target: Path) -> Path:
        look()
        done = real(self, target)
        look()
        return done

    monkeypatch.setattr(Path, "replace", replace)
    write_key_pair(new, cert_file, key_file)
    assert seen == ["old", "key_mismatch", "key_mismatch", "new"]


@pytest.mark.parametrize("failing", [1, 2])
def test_a_full_disk_changes_nothing_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: int
) -> None:
    """If either file cannot be written, both old ones stay as they were and no temporary file is left."""
    cert_file, key_file = tmp_path / "c.pem", tmp_path / "k.pem"
    old = authority().issue("h")
    write_key_pair(old, cert_file, key_file)
    real, calls = os.open, [0]

    def full(path: str | Path, flags: int, mode: int = 0o777) -> int:
        calls[0] += 1
        if calls[0] == failing:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        return real(path, flags, mode)

    with monkeypatch.context() as patch:
        patch.setattr(os, "open", full)
        with pytest.raises(OSError, match="No space left on device"):
            write_key_pair(authority().issue("h"), cert_file, key_file)
    assert KeyPair.load(cert_file, key_file).fingerprint == old.fingerprint
    assert {path.name for path in tmp_path.iterdir()} == {"c.pem", "k.pem"}


def test_a_target_that_cannot_be_written_changes_nothing(tmp_path: Path) -> None:
    """A directory in a file's place, or a missing one around it, is an `OSError` before any file is replaced."""
    key_file = tmp_path / "k.pem"
    key_file.write_text("as it was")
    (tmp_path / "directory").mkdir()
    pair = authority().issue("h")
    with pytest.raises(IsADirectoryError):
        write_key_pair(pair, tmp_path / "directory", key_file)
    with pytest.raises(FileNotFoundError):
        write_key_pair(pair, tmp_path / "missing" / "c.pem", key_file)
    with pytest.raises(IsADirectoryError):
        write_ca_pool(authority().pool, tmp_path / "directory")
    assert key_file.read_text() == "as it was"
    assert {path.name for path in tmp_path.iterdir()} == {"k.pem", "directory"}


def test_a_link_is_replaced_and_not_followed(tmp_path: Path) -> None:
    """A symbolic link in a key's place does not lead the key somewhere else."""
    elsewhere = tmp_path / "elsewhere"
    elsewhere.touch()
    link = tmp_path / "k.pem"
    link.symlink_to(elsewhere)
    pair = authority().issue("h")
    write_key_pair(pair, tmp_path / "c.pem", link)
    assert not link.is_symlink()
    assert elsewhere.read_bytes() == b""
    assert KeyPair.load(tmp_path / "c.pem", link).fingerprint == pair.fingerprint


def test_relative_paths_are_fine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bare file names mean the working directory."""
    monkeypatch.chdir(tmp_path)
    pair = authority().issue("h")
    write_key_pair(pair, "c.pem", "k.pem")
    write_ca_pool(authority().pool, "ca.pem")
    assert KeyPair.load("c.pem", "k.pem").fingerprint == pair.fingerprint
    assert CAPool.load("ca.pem") == authority().pool
