"""Credentials from files: one consistent set or an error, however the files are replaced and whatever is in them.

What a follower makes of a source is in test_follower.
"""

from __future__ import annotations

import gc
import os
import shutil
import subprocess
import sys
import tempfile
import textwrap
import traceback
from datetime import UTC, datetime, timedelta
from functools import partial
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import trio
import trio.testing
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from hypothesis import given, settings, strategies as st
from trio_util import AsyncValue

from effort import effort
from trionode import (
    CAPool,
    CertAuthManager,
    CertificateError,
    CertificateReason,
    CertManager,
    ClientAuth,
    Credentials,
    FileSource,
    KeyPair,
    Source,
    TLSStream,
    follow_source,
    open_tls_stream,
    serve_tls,
)
from trionode._credentials.pem import (
    MAX_FILE_BYTES,
    Secret,
    read_file,
)
from trionode._managers import sources as _sources
from trionode._managers.manager import publisher_of
from trionode.pki import CertificateAuthority, write_ca_pool, write_key_pair

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from trionode._credentials.pem import FilePath

#: Nothing waits for anything real to happen for longer than this. Seconds.
PATIENCE = 20.0

#: Short enough for tests that have to sit it out, long enough to be no accident. Seconds.
QUICK = {"poll_interval": 0.01, "settle": 0.01, "patience": 0.05}


@pytest.fixture(scope="session")
def pairs(ca: CertificateAuthority) -> tuple[KeyPair, ...]:
    """Three key pairs for localhost."""
    return tuple(ca.issue("localhost") for _ in range(3))


def cert_pem(key_pair: KeyPair) -> bytes:
    """The chain."""
    return b"".join(each.public_bytes(Encoding.PEM) for each in key_pair.chain)


def key_pem(key_pair: KeyPair) -> bytes:
    """The key, for whoever finds it."""
    return key_pair.private_key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def crl_of(key: Any, name: x509.Name, *serials: int) -> bytes:
    """A list of revoked serial numbers, in PEM."""
    now = datetime.now(UTC)
    builder = x509.CertificateRevocationListBuilder().issuer_name(name)
    builder = builder.last_update(now - timedelta(hours=1)).next_update(now + timedelta(days=1))
    for serial in serials:
        entry = x509.RevokedCertificateBuilder().serial_number(serial).revocation_date(now - timedelta(hours=1))
        builder = builder.add_revoked_certificate(entry.build())
    return builder.sign(key, hashes.SHA256()).public_bytes(Encoding.PEM)


class Files:
    """A plain pair of files."""

    def __init__(self, directory: Path) -> None:
        self.cert, self.key = directory / "tls.crt", directory / "tls.key"

    def source(self, **options: Any) -> FileSource:
        """The source of these."""
        return FileSource(self.cert, self.key, **{**QUICK, **options})

    def write(self, key_pair: KeyPair) -> None:
        """In place, one after the other."""
        self.cert.write_bytes(cert_pem(key_pair))
        self.key.write_bytes(key_pem(key_pair))


@pytest.fixture
def files(tmp_path: Path) -> Files:
    """Where a pair goes; nothing is there yet."""
    return Files(tmp_path)


class KubernetesMount(Files):
    """A secret's mounted directory, written as kubelet's AtomicWriter does."""

    def __init__(self, directory: Path) -> None:
        directory.mkdir()
        super().__init__(directory)
        self.directory = directory
        self._number = count(1)

    def swap(self, **contents: bytes) -> None:
        """Make a timestamped directory, move `..data` over to it in one rename, remove the one before."""
        old = self.directory / "..data"
        before = old.readlink() if old.is_symlink() else None
        payload = self.directory / f"..2024_05_17_08_00_00.{next(self._number):09d}"
        payload.mkdir(mode=0o755)
        for name, content in contents.items():
            (payload / name.replace("_", ".")).write_bytes(content)
        temporary = self.directory / "..data_tmp"
        temporary.symlink_to(payload.name)
        temporary.rename(old)
        for name in contents:
            shown = self.directory / name.replace("_", ".")
            if not shown.is_symlink():
                shown.symlink_to(Path("..data") / shown.name)
        if before is not None:
            shutil.rmtree(self.directory / before)

    def write(self, key_pair: KeyPair) -> None:
        """Swap."""
        self.swap(tls_crt=cert_pem(key_pair), tls_key=key_pem(key_pair))


class CertbotLineage(Files):
    """`live/` links into `archive/`, replaced as certbot does: unlink, link, one name after the other."""

    def __init__(self, directory: Path) -> None:
        self.live, self.archive = directory / "live" / "a.example", directory / "archive" / "a.example"
        self.live.mkdir(parents=True)
        self.archive.mkdir(parents=True)
        self.cert, self.key = self.live / "fullchain.pem", self.live / "privkey.pem"
        self._number = count(1)

    def write(self, key_pair: KeyPair) -> None:
        """Renew."""
        number = next(self._number)
        for link, content in ((self.key, key_pem(key_pair)), (self.cert, cert_pem(key_pair))):
            target = self.archive / f"{link.stem}{number}.pem"
            target.write_bytes(content)
            link.unlink(missing_ok=True)
            link.symlink_to(Path("../../archive/a.example") / target.name)


class Renamed(Files):
    """Each file written beside, and moved over with `mv`."""

    def write(self, key_pair: KeyPair) -> None:
        """Key first, as most do."""
        for file, content in ((self.key, key_pem(key_pair)), (self.cert, cert_pem(key_pair))):
            beside = file.with_suffix(".new")
            beside.write_bytes(content)
            subprocess.run(["mv", "-f", beside, file], check=True, timeout=PATIENCE)


class Piecemeal(Files):
    """In place, in small writes, without changing a modification time that anybody could rely on."""

    def write(self, key_pair: KeyPair) -> None:
        """Certificate first."""
        for file, content in ((self.cert, cert_pem(key_pair)), (self.key, key_pem(key_pair))):
            with file.open("wb", buffering=0) as stream:
                for start in range(0, len(content), 100):
                    stream.write(content[start : start + 100])
            os.utime(file, (0, 0))


class WholeDirectory(Files):
    """The directory itself is replaced."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory / "certs")

    def write(self, key_pair: KeyPair) -> None:
        """Remove, rename."""
        beside = self.cert.parent.with_suffix(".new")
        beside.mkdir()
        Files(beside).write(key_pair)
        shutil.rmtree(self.cert.parent, ignore_errors=True)
        beside.rename(self.cert.parent)


class OwnTools(Files):
    """What trionode.pki writes."""

    def write(self, key_pair: KeyPair) -> None:
        """Atomically, each."""
        write_key_pair(key_pair, self.cert, self.key)


class OneFile(Files):
    """Certificate and key in one."""

    def __init__(self, directory: Path) -> None:
        self.cert = self.key = directory / "both.pem"

    def write(self, key_pair: KeyPair) -> None:
        """Key first."""
        self.cert.write_bytes(key_pem(key_pair) + cert_pem(key_pair))


LAYOUTS: dict[str, Callable[[Path], Files]] = {
    "in place": Files,
    "kubernetes": lambda path: KubernetesMount(path / "mount"),
    "certbot": CertbotLineage,
    "mv": Renamed,
    "piecemeal": Piecemeal,
    "directory": WholeDirectory,
    "pki": OwnTools,
    "one file": OneFile,
}


# However they are replaced ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", LAYOUTS)
async def test_whatever_replaces_the_files_is_followed(layout: str, tmp_path: Path, pairs: tuple[KeyPair, ...]) -> None:
    """Each replacement is published, by a follower that nobody tells anything."""
    files = LAYOUTS[layout](tmp_path)
    files.write(pairs[0])
    source = files.source(patience=PATIENCE)
    certs = CertManager(source.read_now().key_pair)
    with trio.fail_after(PATIENCE):
        async with trio.open_nursery() as nursery:
            follower = await nursery.start(follow_source, certs, source)
            assert certs.generation == 1
            for generation, key_pair in enumerate((*pairs[1:], pairs[0]), start=2):
                await trio.to_thread.run_sync(files.write, key_pair)
                await certs.wait_generation(generation)
                assert certs.key_pair == key_pair
            assert follower.status.error is None
            assert publisher_of(certs).refused_updates == 0
            nursery.cancel_scope.cancel()


def test_reading_again_what_has_not_changed_gives_the_same(files: Files, pairs: tuple[KeyPair, ...]) -> None:
    """No second parsing, no second generation: touching a file, or writing the same into it, is no change."""
    files.write(pairs[0])
    source = files.source()
    first = source.read_now()
    files.write(pairs[0])
    os.utime(files.cert)
    assert source.read_now() is first
    assert first == Credentials(key_pair=pairs[0])


def test_a_longer_chain_is_other_content(files: Files) -> None:
    """A leaf that stays, with an intermediate that was missing, is something new."""
    authority = CertificateAuthority.create(intermediate=True)
    whole = authority.issue("localhost")
    files.write(KeyPair(whole.chain[:1], whole.private_key))
    source = files.source()
    short = source.read_now()
    files.write(whole)
    assert source.read_now() != short
    assert source.read_now().key_pair.chain == whole.chain


# One consistent set -------------------------------------------------------------------------------------------------


def test_a_swap_between_two_files_is_seen(
    tmp_path: Path, pairs: tuple[KeyPair, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A look that got the certificate before and the key after a swap is not believed, nor is it an error."""
    mount = KubernetesMount(tmp_path / "mount")
    mount.write(pairs[0])
    source = mount.source(patience=0)
    assert source.read_now().key_pair == pairs[0]
    torn: list[FilePath] = []

    def swap_after_the_first(file: FilePath, **options: Any) -> Secret:
        content = read_file(file, **options)
        if not torn:
            torn.append(file)
            mount.write(pairs[1])
        return content

    monkeypatch.setattr(_sources, "read_file", swap_after_the_first)
    with pytest.raises(CertificateError, match="does not stop changing"):
        source.read_now()  # without any patience
    assert torn == [mount.cert]
    assert source.read_now().key_pair == pairs[1]
    del torn[:]
    patient = mount.source(patience=PATIENCE)
    assert patient.read_now().key_pair == pairs[1]
    assert torn


@pytest.mark.parametrize("first", ["certificate", "key"])
async def test_a_pair_that_is_half_there_is_waited_for(first: str, files: Files, pairs: tuple[KeyPair, ...]) -> None:
    """Between two writes nothing is published and nothing is an error, up to the patience."""
    files.write(pairs[0])
    source = files.source(patience=PATIENCE)
    assert (await source.read()).key_pair == pairs[0]
    steps = [(files.cert, cert_pem(pairs[1])), (files.key, key_pem(pairs[1]))]
    if first == "key":
        steps.reverse()
    steps[0][0].write_bytes(steps[0][1])
    found: list[Credentials] = []

    async def read() -> None:
        found.append(await source.read())

    judged = trio.Event()
    judge = source._judge

    def judging(look: _sources._Look) -> _sources._Verdict:
        trio.from_thread.run_sync(judged.set)
        return judge(look)

    source._judge = judging  # type: ignore[method-assign]
    with trio.fail_after(PATIENCE):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(read)
            await judged.wait()
            assert not found
            steps[1][0].write_bytes(steps[1][1])
    assert found == [Credentials(key_pair=pairs[1])]


def _counted(source: FileSource) -> Callable[[], int]:
    """How often a source has judged a look from now on."""
    judged: list[_sources._Look] = []
    judge = source._judge

    def counting(look: _sources._Look) -> _sources._Verdict:
        verdict = judge(look)
        judged.append(look)
        return verdict

    source._judge = counting  # type: ignore[method-assign]
    return lambda: len(judged)


def test_a_bundle_that_still_grows_is_not_believed(
    files: Files, pairs: tuple[KeyPair, ...], ca: CertificateAuthority, rogue_ca: CertificateAuthority, tmp_path: Path
) -> None:
    """A file that is cut between two certificates parses; only that it changed shows that it was not finished."""
    files.write(pairs[0])
    bundle = tmp_path / "ca.crt"
    write_ca_pool(ca.pool, bundle)
    source = files.source(client_ca_files=[bundle], patience=PATIENCE)
    whole = ca.pool | rogue_ca.pool
    looks: list[int] = []

    def grow_after_the_first(look: Callable[[], Any]) -> Any:
        found = look()
        looks.append(len(looks))
        if len(looks) == 1:
            write_ca_pool(whole, bundle)
        return found

    source._look = partial(grow_after_the_first, source._look)  # type: ignore[method-assign]
    assert source.read_now().client_cas == whole
    assert len(looks) == 3


def test_what_never_settles_is_an_error(files: Files, pairs: tuple[KeyPair, ...]) -> None:
    """Files that change with every look are reported, not waited for for ever."""
    source = files.source()
    turn = count()

    def restless() -> _sources._Look:
        files.write(pairs[next(turn) % 2])
        return look()

    look = source._look
    source._look = restless  # type: ignore[method-assign]
    with pytest.raises(CertificateError, match="does not stop changing") as caught:
        source.read_now()
    assert caught.value.reason is CertificateReason.UNREADABLE
    source._look = look  # type: ignore[method-assign]
    assert source.read_now().key_pair in pairs


# What is wrong ------------------------------------------------------------------------------------------------------


def damage(files: Files, pairs: tuple[KeyPair, ...], kind: str) -> tuple[CertificateReason, str]:
    """Break a good pair; the reason that is to be found, and what the text says."""
    reason = CertificateReason
    match kind:
        case "no certificate":
            files.cert.unlink()
            return reason.UNREADABLE, f"cannot read {files.cert}: No such file or directory. Check the path"
        case "no key":
            files.key.unlink()
            return reason.UNREADABLE, f"cannot read {files.key}: No such file or directory. Check the path"
        case "no directory":
            shutil.rmtree(files.cert.parent)
            return reason.UNREADABLE, f"cannot read {files.cert}: No such file or directory"
        case "a directory":
            files.key.unlink()
            files.key.mkdir()
            return reason.UNREADABLE, f"cannot read {files.key}: Is a directory"
        case "a link to nowhere":
            files.key.unlink()
            files.key.symlink_to("..data/nowhere")
            return reason.UNREADABLE, f"cannot read {files.key}: No such file"
        case "links in a circle":
            files.key.unlink()
            files.key.symlink_to(files.key.name)
            return reason.UNREADABLE, f"cannot read {files.key}: Too many levels of symbolic links"
        case "a truncated certificate":
            files.cert.write_bytes(cert_pem(pairs[0])[:-40])
            return reason.UNREADABLE, f"{files.cert} is damaged or cut off"
        case "a truncated key":
            files.key.write_bytes(key_pem(pairs[0])[:-60])
            return reason.UNREADABLE, f"{files.key} is damaged or cut off"
        case "an empty certificate":
            files.cert.write_bytes(b"")
            return reason.NO_CERTIFICATE, f"no PEM certificate in {files.cert}"
        case "an empty key":
            files.key.write_bytes(b"")
            return reason.NO_KEY, f"no PEM private key in {files.key}"
        case "binary junk":
            files.cert.write_bytes(bytes(range(256)) * 40)
            return reason.NO_CERTIFICATE, f"no PEM certificate in {files.cert}"
        case "too large":
            files.key.write_bytes(key_pem(pairs[0]) + b"\n" * MAX_FILE_BYTES)
            return reason.UNREADABLE, f"{files.key} is larger than"
        case "another key":
            files.key.write_bytes(key_pem(pairs[1]))
            return reason.KEY_MISMATCH, f"{files.cert} and {files.key}"
        case "swapped files":
            files.cert.write_bytes(key_pem(pairs[0]))
            return reason.NO_CERTIFICATE, "are the two files swapped?"
    raise AssertionError(kind)


DAMAGES = [
    "no certificate",
    "no key",
    "no directory",
    "a directory",
    "a link to nowhere",
    "links in a circle",
    "a truncated certificate",
    "a truncated key",
    "an empty certificate",
    "an empty key",
    "binary junk",
    "too large",
    "another key",
    "swapped files",
]


@pytest.mark.parametrize("kind", DAMAGES)
def test_what_is_wrong_is_said_and_what_is_put_right_is_read(
    kind: str, tmp_path: Path, pairs: tuple[KeyPair, ...]
) -> None:
    """The error names the file and the remedy, stays the same as long as the files do, and goes when they are good."""
    directory = tmp_path / "certs"
    directory.mkdir()
    files = Files(directory)
    files.write(pairs[0])
    source = files.source()
    assert source.read_now().key_pair == pairs[0]
    reason, text = damage(files, pairs, kind)
    judged = _counted(source)
    for _ in range(3):
        with pytest.raises(CertificateError) as caught:
            source.read_now()
        assert caught.value.reason is reason
        assert text in str(caught.value)
    assert judged() == 1  # what was seen to be wrong is not parsed again
    if files.key.is_dir():
        files.key.rmdir()
    directory.mkdir(exist_ok=True)
    files.cert.unlink(missing_ok=True)
    files.key.unlink(missing_ok=True)
    files.write(pairs[1])
    assert source.read_now().key_pair == pairs[1]


@pytest.mark.parametrize("kind", DAMAGES)
async def test_at_start_up_it_is_an_error(kind: str, tmp_path: Path, pairs: tuple[KeyPair, ...]) -> None:
    """Bare, out of `nursery.start`, with nothing published."""
    directory = tmp_path / "certs"
    directory.mkdir()
    files = Files(directory)
    files.write(pairs[0])
    reason, text = damage(files, pairs, kind)
    certs = CertManager(pairs[2])
    with trio.fail_after(PATIENCE):
        async with trio.open_nursery() as nursery:
            with pytest.raises(CertificateError) as caught:
                await nursery.start(follow_source, certs, files.source())
    assert caught.value.reason is reason
    assert text in str(caught.value)
    assert (certs.generation, certs.key_pair) == (1, pairs[2])


def test_a_file_that_may_not_be_read(pairs: tuple[KeyPair, ...]) -> None:
    """Permissions are an error like others, and over when they are right; tried as somebody who is not root."""
    script = textwrap.dedent(
        """
        import os, sys
        from pathlib import Path
        from trionode import CertificateError, FileSource
        cert, key = map(Path, sys.argv[1:])
        source = FileSource(cert, key, settle=0.01, patience=0)
        key.chmod(0)
        root = not os.geteuid()
        if root:
            os.setegid(65534), os.seteuid(65534)
        try:
            source.read_now()
        except CertificateError as exc:
            print(exc.reason, "|", exc)
        if root:
            os.seteuid(0)
        key.chmod(0o644)
        if root:
            os.seteuid(65534)
        print(source.read_now().key_pair.fingerprint)
        if root:
            os.seteuid(0)  # whoever measures coverage has something to write at exit
        """
    )
    with tempfile.TemporaryDirectory() as name:  # not pytest's, which is for its owner only
        directory = Path(name)
        directory.chmod(0o755)
        files = Files(directory)
        files.write(pairs[0])
        done = subprocess.run(
            [sys.executable, "-W", "error", "-c", script, files.cert, files.key],
            env={**os.environ, "PYTHONPATH": str(Path(_sources.__file__).parent.parent)},
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            check=False,
        )
    assert done.stderr == ""
    refused, fingerprint = done.stdout.splitlines()
    assert refused.startswith(f"unreadable | cannot read {files.key}: Permission denied. Check the path and its perm")
    assert fingerprint == pairs[0].fingerprint


async def test_a_file_system_that_hangs_is_an_error(
    files: Files, pairs: tuple[KeyPair, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A reading that does not end is reported; no second thread joins the first, and all is well when that is back."""
    monkeypatch.setattr(_sources, "HANG", 0.1)
    files.write(pairs[0])
    files.key.unlink()
    os.mkfifo(files.key)  # opening it waits for somebody who writes
    source = files.source(patience=0)
    readings = []
    look = source._look

    def counting() -> _sources._Look:
        readings.append(1)
        return look()

    source._look = counting  # type: ignore[method-assign]
    with trio.fail_after(PATIENCE):
        for _ in range(3):
            with pytest.raises(CertificateError, match="see whether its file system answers") as caught:
                await source.read()
            assert caught.value.reason is CertificateReason.UNREADABLE
        assert readings == [1]
        fifo = files.key.rename(files.key.with_suffix(".fifo"))
        files.write(pairs[1])
        await trio.to_thread.run_sync(fifo.write_bytes, b"")
        while True:
            try:
                found = await source.read()
            except CertificateError:  # the one that was left behind has not ended yet
                continue
            break
    assert found.key_pair == pairs[1]


def test_a_thread_that_was_left_behind_in_another_run_is_in_nobodys_way(
    files: Files, pairs: tuple[KeyPair, ...]
) -> None:
    """A source serves successive runs, even if a reading of an earlier one never ended."""
    files.write(pairs[0])
    files.key.unlink()
    os.mkfifo(files.key)
    source = files.source()

    async def give_up() -> None:
        with trio.move_on_after(0.05):
            await source.read()

    async def read() -> Credentials:
        with trio.fail_after(PATIENCE):
            return await source.read()

    trio.run(give_up)
    fifo = files.key.rename(files.key.with_suffix(".fifo"))
    files.write(pairs[1])
    assert trio.run(read).key_pair == pairs[1]
    fifo.write_bytes(b"")  # let it go


# Options ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("password", ["open sesame", b"open sesame"], ids=["str", "bytes"])
def test_encrypted_keys(password: str | bytes, files: Files, pairs: tuple[KeyPair, ...]) -> None:
    """They rotate like others; a wrong password says so, and only so."""
    write_key_pair(pairs[0], files.cert, files.key, password=password)
    source = files.source(password=password)
    assert source.read_now().key_pair == pairs[0]
    write_key_pair(pairs[1], files.cert, files.key, password=password)
    assert source.read_now().key_pair == pairs[1]
    write_key_pair(pairs[2], files.cert, files.key, password="another")
    with pytest.raises(CertificateError) as caught:
        source.read_now()
    assert caught.value.reason is CertificateReason.BAD_PASSWORD
    assert "sesame" not in "".join(traceback.format_exception(caught.value)) + repr(source) + repr(vars(source))


def test_errors_keep_no_key_in_memory(files: Files, pairs: tuple[KeyPair, ...]) -> None:
    """An error may be kept in a status for days; nothing that was read hangs on it."""
    files.write(pairs[0])
    files.key.write_bytes(key_pem(pairs[1]))
    source = files.source()
    with pytest.raises(CertificateError) as caught:
        source.read_now()
    gc.collect()
    held = [each for each in gc.get_objects() if isinstance(each, (Secret, _sources._Look))]
    assert caught.value.reason is CertificateReason.KEY_MISMATCH
    assert not [each for each in held if isinstance(each, _sources._Look)]
    frames = [frame for frame, _ in traceback.walk_tb(caught.value.__traceback__)]
    local = [value for frame in frames for value in frame.f_locals.values()]
    assert not [value for value in local if isinstance(value, (Secret, bytes, _sources._Look))]


def test_trust_from_files(
    files: Files,
    pairs: tuple[KeyPair, ...],
    ca: CertificateAuthority,
    rogue_ca: CertificateAuthority,
    tmp_path: Path,
) -> None:
    """Pools are the union of their files, lists likewise; what was not asked for is None."""
    files.write(pairs[0])
    ours, theirs, crl = tmp_path / "ours.pem", tmp_path / "theirs.pem", tmp_path / "crl.pem"
    write_ca_pool(ca.pool, ours)
    write_ca_pool(rogue_ca.pool, theirs)
    crl.write_bytes(crl_of(ca._key, ca.certificate.subject, 1))
    source = files.source(client_ca_files=[ours], root_ca_files=(ours, theirs), crl_files=[crl])
    found = source.read_now()
    assert found.client_cas == ca.pool
    assert found.root_cas == ca.pool | rogue_ca.pool
    assert found.crls is not None
    assert [each.serial_number for each in next(iter(found.crls))] == [1]
    crl.write_bytes(crl_of(ca._key, ca.certificate.subject, 1, 2))
    assert source.read_now().crls != found.crls
    assert source.read_now().key_pair == found.key_pair
    crl.write_bytes(b"-----BEGIN X509 CRL-----\nAAAA")
    with pytest.raises(CertificateError) as caught:
        source.read_now()
    assert caught.value.reason is CertificateReason.BAD_CRL
    assert str(crl) in str(caught.value)
    assert files.source().read_now() == Credentials(key_pair=pairs[0])


@pytest.mark.parametrize("option", ["client_ca_files", "root_ca_files", "crl_files"])
@pytest.mark.parametrize("given", ["ca.pem", b"ca.pem", Path("ca.pem")], ids=["str", "bytes", "path"])
def test_a_single_path_is_no_sequence_of_paths(option: str, given: Any) -> None:
    """A string would be taken for its letters."""
    with pytest.raises(TypeError, match=rf"{option} is a sequence of paths.*write \[path\]"):
        FileSource("cert.pem", "key.pem", **{option: given})


@pytest.mark.parametrize(
    "times", [{"poll_interval": 0}, {"poll_interval": -1}, {"settle": 0}, {"patience": -1}, {"settle": float("nan")}]
)
def test_times_that_make_no_sense(times: dict[str, float]) -> None:
    """Neither a busy loop nor a negative wait."""
    with pytest.raises(ValueError, match=rf"{next(iter(times))} must be a \w+ number of seconds"):
        FileSource("cert.pem", "key.pem", **times)  # type: ignore[arg-type]


async def test_polling_is_by_trios_clock(mock_clock: trio.testing.MockClock) -> None:
    """`wait_changed` returns once per interval, whatever was seen."""
    source: Source = FileSource("cert.pem", "key.pem", poll_interval=30)
    returned: list[float] = []

    async def wait() -> None:
        await source.wait_changed(None)
        returned.append(trio.current_time())

    async with trio.open_nursery() as nursery:
        nursery.start_soon(wait)
        await trio.testing.wait_all_tasks_blocked()
        mock_clock.jump(29.5)
        await trio.testing.wait_all_tasks_blocked()
        assert not returned
        mock_clock.jump(1)
    assert returned == [30.5]


def test_it_is_a_source_and_says_which(files: Files) -> None:
    """By protocol, not by ancestry; and its `repr` has the path."""
    assert isinstance(files.source(), Source)
    assert repr(files.source()) == f"<FileSource {files.cert}>"


# Laws ---------------------------------------------------------------------------------------------------------------

#: What one of the two files may hold: one of three key pairs' parts, a cut one, junk; or it is not there.
PARTS = st.sampled_from(["0", "1", "2", "cut", "junk", "gone"])


@settings(max_examples=effort(60))
@given(steps=st.lists(st.tuples(st.sampled_from(["cert", "key"]), PARTS, st.booleans()), max_size=8))
def test_a_reading_is_what_is_on_disk(pairs: tuple[KeyPair, ...], steps: list[tuple[str, str, bool]]) -> None:
    """After any history: the pair that lies there, if it is one, else an error; never anything older, never a mix."""
    with tempfile.TemporaryDirectory() as name:
        files = Files(Path(name))
        files.write(pairs[0])
        source = files.source(settle=0.0002, patience=0)
        on_disk = {"cert": "0", "key": "0"}
        assert source.read_now().key_pair == pairs[0]
        for which, part, look_between in steps:
            put(files.cert if which == "cert" else files.key, which, part, pairs)
            on_disk[which] = part
            if look_between:
                check_law(source, on_disk, pairs)
        check_law(source, on_disk, pairs)


def put(file: Path, which: str, part: str, pairs: tuple[KeyPair, ...]) -> None:
    """One file operation."""
    if part == "gone":
        file.unlink(missing_ok=True)
    elif part == "junk":
        file.write_bytes(b"junk")
    else:
        pem = cert_pem if which == "cert" else key_pem
        file.write_bytes(pem(pairs[0])[:100] if part == "cut" else pem(pairs[int(part)]))


def check_law(source: FileSource, on_disk: dict[str, str], pairs: Iterable[KeyPair]) -> None:
    """The pair, or an error."""
    good = {str(number): key_pair for number, key_pair in enumerate(pairs)}
    if on_disk["cert"] == on_disk["key"] and on_disk["cert"] in good:
        assert source.read_now().key_pair == good[on_disk["cert"]]
    else:
        with pytest.raises(CertificateError):
            source.read_now()


# Under load ---------------------------------------------------------------------------------------------------------


async def test_no_handshake_fails_while_a_mount_is_swapped(tmp_path: Path, ca: CertificateAuthority) -> None:
    """Fifty swaps under steady handshakes: each gets a certificate that was published, the last one counts."""
    issued = [ca.issue("localhost") for _ in range(51)]
    mount = KubernetesMount(tmp_path / "mount")

    def swap(key_pair: KeyPair) -> None:
        mount.swap(
            tls_crt=cert_pem(key_pair), tls_key=key_pem(key_pair), ca_crt=ca.certificate.public_bytes(Encoding.PEM)
        )

    swap(issued[0])
    bundle = mount.directory / "ca.crt"
    source = mount.source(client_ca_files=[bundle], root_ca_files=[bundle], settle=0.002, patience=PATIENCE)
    first = source.read_now()
    certs = CertAuthManager(
        first.key_pair,
        client_cas=first.client_cas,
        client_auth=ClientAuth.REQUIRE_AND_VERIFY_CLIENT_CERT,
        root_cas=first.root_cas,
    )
    client = CertAuthManager(issued[0], root_cas=CAPool.from_pem(bundle.read_bytes()))
    published = {1: first.key_pair.fingerprint}
    handshakes = AsyncValue(0)

    async def note() -> None:
        while True:
            await certs.wait_generation(max(published) + 1)
            published[certs.generation] = certs.key_pair.fingerprint

    async def serve(stream: TLSStream) -> None:
        await stream.send_all(b"%d" % stream.generation)

    async def knock(port: int) -> None:
        while True:
            before = certs.generation
            async with await open_tls_stream("localhost", port, cert_manager=client) as stream:
                generation = int(await stream.receive_some())
                fingerprint = stream.peer_certificate.fingerprint(hashes.SHA256()).hex()  # type: ignore[union-attr]
            assert before <= generation <= certs.generation
            assert published[generation] == fingerprint
            handshakes.value += 1

    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            follower = await nursery.start(follow_source, certs, source)
            nursery.start_soon(note)
            [listener] = await nursery.start(partial(serve_tls, serve, 0, host="localhost", cert_manager=certs))
            for _ in range(2):
                nursery.start_soon(knock, listener.socket.getsockname()[1])
            for number, key_pair in enumerate(issued[1:], start=1):
                await trio.to_thread.run_sync(swap, key_pair)
                if number % 5 == 0:  # most swaps are not waited for, so some come in the middle of a reading
                    await wait_for(certs, key_pair)
                    await handshakes.wait_transition()
            assert certs.key_pair == issued[-1]
            assert follower.status.error is None
            nursery.cancel_scope.cancel()
    assert publisher_of(certs).refused_updates == 0
    assert handshakes.value >= 10


async def wait_for(certs: CertManager, key_pair: KeyPair) -> None:
    """Until a key pair is published."""
    while certs.key_pair != key_pair:
        await certs.wait_generation(certs.generation + 1)
