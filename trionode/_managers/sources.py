"""Where credentials come from while a program runs: the `Source` protocol, and `FileSource`.

Theory. A source is polled: `read()` returns what it has now, complete and consistent, or raises; `wait_changed(seen)`
returns when reading again is worth while. `seen` is what the caller read last, so that a change between the two calls
is never lost, any number of callers can share a source, and returning too early is harmless.

`FileSource` compares *content*, never times or events: one look reads every file of the set. A look that differs from
the one judged last starts a reading. The reading ends when two looks in a row, `settle` seconds apart, are alike and
can be parsed. So neither a pair that was swapped between the two files, nor a file that is being written (or a bundle
that happens to be cut between two certificates), is taken for new. Files that are bad are looked at again for
`patience` seconds before that is an error. What is parsed is the very bytes that were compared; the files are not read
again.

So it does not matter how the files are replaced: renamed over, written in place, removed and made anew, by swapped
links (Kubernetes' `..data`, certbot's `live/`), with their directory, or on a network file system. `read()` returns new
content at most `poll_interval + settle` seconds after the last write (2 `settle`, if that is more), plus the time that
reading takes.

Why no file-watching library is used. Measured, on Linux: a follower that looks at certificate, key and CA bundle once a
second costs some 3 seconds of CPU time an hour. watchfiles 1.3, the watcher that fits Trio best, reported a change
after 60 ms; but cancelling it took up to 5 s, it did not report a watched file whose directory link was swapped, and it
reported nothing more once the directory had been replaced; and inotify does not see what other machines write to a
network file system. Polling would still be needed as the guarantee, to gain less than a second on certificates that
live for hours.

A file system may hang. So the files are read in a worker thread that can be abandoned, one per source at most, and a
reading that takes too long is an error like any other.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, Protocol, final, runtime_checkable

import trio

from trionode._credentials.ca_pool import CAPool
from trionode._credentials.crl import CRLSet
from trionode._credentials.key_pair import KeyPair
from trionode._credentials.pem import (
    MAX_CRL_BYTES,
    MAX_FILE_BYTES,
    Secret,
    as_path,
    parse_certificates,
    read_file,
)
from trionode._errors import CertificateError, CertificateReason
from trionode._util.fields import DURATION, SECONDS, Checked, check_argument

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from trionode._credentials.pem import FilePath

__all__ = ["Credentials", "FileSource", "Source"]

#: If reading, comparing and parsing take longer than this, `patience` aside, the file system is taken to hang. Seconds.
HANG: Final = 10.0

#: The largest size of a file, in bytes, and what it is meant to be.
_PEM: Final = (MAX_FILE_BYTES, "PEM certificate or key file")
_CRL: Final = (MAX_CRL_BYTES, "CRL file")


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class Credentials(Checked):
    """What a source has at one moment; compared by content.

    Attributes:
        key_pair: what to present.
        client_cas: the anchors for client certificates; None: not from this source.
        root_cas: the anchors for server certificates; None: not from this source.
        crls: the revocation lists; None: not from this source.
    """

    key_pair: KeyPair
    client_cas: CAPool | None = None
    root_cas: CAPool | None = None
    crls: CRLSet | None = None


@runtime_checkable
class Source(Protocol):
    """Where a cert manager's credentials come from: files, a secret store, a workload API, a test."""

    async def read(self) -> Credentials:
        """Return what it has now, complete and consistent. May be cancelled at any checkpoint.

        Raises:
            Exception: it has nothing usable; the text is shown to people. A `CertificateError`, where that fits.
        """
        ...

    async def wait_changed(self, seen: Credentials | None, /) -> None:
        """Wait until reading again is worth while: `read()` may return something else than what was seen.

        Returning early is harmless, if it is not too often: each return is a `read()`.

        Args:
            seen: what `read()` returned last; None if it raised. A source that has its current credentials at hand
                returns at once where they are not these.
        """
        ...


@final
@dataclass(frozen=True, slots=True)
class _Look:
    """The content of each file at one moment, or why it could not be read."""

    contents: Mapping[Path, Secret | CertificateError]
    digest: bytes = field(init=False)

    def __post_init__(self) -> None:
        digest = hashlib.sha256()
        for content in self.contents.values():
            data = content.data if isinstance(content, Secret) else str(content).encode(errors="surrogatepass")
            digest.update(b"%s %d:" % (type(content).__name__.encode(), len(data)))
            digest.update(data)
        object.__setattr__(self, "digest", digest.digest())

    def of(self, file: Path) -> Secret:
        content = self.contents[file]
        if isinstance(content, CertificateError):
            raise content
        return content


@final
@dataclass(frozen=True, slots=True)
class _Verdict:
    """What a look held, or what was wrong with it."""

    digest: bytes
    outcome: Credentials | CertificateError

    def unwrap(self) -> Credentials:
        if isinstance(self.outcome, CertificateError):
            raise _without_frames(self.outcome)
        return self.outcome


@final
class FileSource:
    """Files as a `Source`: certificate and key, and CA bundles and revocation lists, if those rotate too.

    Compared by content every `poll_interval` seconds. Any number of followers may share one.
    """

    def __init__(
        self,
        cert_file: FilePath,
        key_file: FilePath,
        *,
        password: str | bytes | None = None,
        client_ca_files: Iterable[FilePath] = (),
        root_ca_files: Iterable[FilePath] = (),
        crl_files: Iterable[FilePath] = (),
        poll_interval: float = 1.0,
        settle: float = 0.25,
        patience: float = 2.0,
    ) -> None:
        """Name the files; nothing is read yet.

        Args:
            cert_file: see `KeyPair.load`; on Kubernetes, the path in the mounted directory (`…/tls.crt`).
            key_file: see `KeyPair.load`; may be the same file.
            password: of the key, if it is encrypted.
            client_ca_files: the client-CA pool's certificates; none, if that pool does not come from files.
            root_ca_files: the root-CA pool's certificates; none, if that pool does not come from files.
            crl_files: the revocation lists, see `CRLSet.load`; none, if they do not come from files.
            poll_interval: how often to look. Seconds.
            settle: for how long the files must be unchanged before they are taken for new. Seconds.
            patience: for how long they may be missing, damaged or inconsistent before that is an error. Seconds.

        Raises:
            ValueError: `poll_interval` or `settle` is not above zero, or `patience` is negative or infinite.
            TypeError: a time is no number, or files were not given as a sequence.
        """
        secret = None if password is None else Secret(password)
        del password
        self._password = secret
        self._cert_file, self._key_file = as_path(cert_file), as_path(key_file)
        self._client_ca_files = _paths(client_ca_files, "client_ca_files")
        self._root_ca_files = _paths(root_ca_files, "root_ca_files")
        self._crl_files = _paths(crl_files, "crl_files")
        check_argument("poll_interval", poll_interval, SECONDS)
        check_argument("settle", settle, SECONDS)
        check_argument("patience", patience, DURATION)
        self._poll_interval, self._settle, self._patience = poll_interval, settle, patience
        pem_files = (self._cert_file, self._key_file, *self._client_ca_files, *self._root_ca_files)
        self._files = {**dict.fromkeys(self._crl_files, _CRL), **dict.fromkeys(pem_files, _PEM)}
        self._last: _Verdict | None = None
        # One per run: a thread that was abandoned in an earlier run never returns its token there.
        self._limiter: trio.lowlevel.RunVar[trio.CapacityLimiter] = trio.lowlevel.RunVar("limiter")

    def __repr__(self) -> str:
        return f"<FileSource {self._cert_file}>"

    async def read(self) -> Credentials:
        """Read the files. Takes `settle` seconds if they have changed, and up to `patience` more if they are bad.

        Cancelling abandons a thread, which ends by itself; the next reading waits for it.

        Raises:
            CertificateError: for `patience` seconds they have been missing, damaged or inconsistent, or have not
            stopped
                changing; or the file system does not answer.
        """
        with trio.move_on_after(HANG + self._patience):
            return await trio.to_thread.run_sync(self.read_now, abandon_on_cancel=True, limiter=self._own_limiter())
        msg = (
            f"reading {self._cert_file} and what belongs to it takes longer than {HANG + self._patience:g} s; see "
            "whether its file system answers"
        )
        raise CertificateError(msg, reason=CertificateReason.UNREADABLE)

    def read_now(self) -> Credentials:
        """As `read()`, outside of a Trio run: to make the manager. Blocks for as long as that takes.

        Raises:
            CertificateError: see `read()`; a file system that hangs blocks for ever.
        """
        # No frame of this traceback may hold what was read: errors are kept, and with them key bytes would stay in
        # memory.
        return self._verdict().unwrap()

    async def wait_changed(self, _seen: Credentials | None, /) -> None:
        """Wait for `poll_interval` seconds; whether anything has changed is for `read()` to see."""
        await trio.sleep(self._poll_interval)

    def _verdict(self) -> _Verdict:
        look, verdict = self._look(), self._last
        if verdict is None or look.digest != verdict.digest:
            verdict = self._last = self._settled(look)
        return verdict

    def _settled(self, look: _Look) -> _Verdict:
        """Look until the files are good and unchanged for `settle` seconds, or have been bad for `patience` seconds."""
        give_up = time.monotonic() + self._patience
        verdict: _Verdict | None = None
        while True:
            time.sleep(self._settle)
            before, look = look, self._look()
            if look.digest != before.digest:
                verdict = None
            elif verdict is None:
                verdict = self._judge(look)
                if isinstance(verdict.outcome, Credentials):
                    return verdict
            if time.monotonic() >= give_up:
                return verdict or _Verdict(b"", _never_settles(self._cert_file))

    def _look(self) -> _Look:
        contents: dict[Path, Secret | CertificateError] = {}
        for file, (limit, kind) in self._files.items():
            try:
                contents[file] = read_file(file, limit=limit, kind=kind)
            except CertificateError as exc:
                contents[file] = _without_frames(exc)
        return _Look(contents)

    def _judge(self, look: _Look) -> _Verdict:
        outcome: Credentials | CertificateError
        try:
            outcome = Credentials(
                key_pair=KeyPair._parse(  # noqa: SLF001 -- what `KeyPair.load` does after reading
                    look.of(self._cert_file),
                    look.of(self._key_file),
                    self._password,
                    cert_where=str(self._cert_file),
                    key_where=str(self._key_file),
                ),
                client_cas=_pool(look, self._client_ca_files),
                root_cas=_pool(look, self._root_ca_files),
                crls=_crls(look, self._crl_files),
            )
        except CertificateError as exc:
            outcome = _without_frames(exc)
        return _Verdict(look.digest, outcome)

    def _own_limiter(self) -> trio.CapacityLimiter:
        try:
            return self._limiter.get()
        except LookupError:
            limiter = trio.CapacityLimiter(1)
            self._limiter.set(limiter)
            return limiter


def _pool(look: _Look, files: tuple[Path, ...]) -> CAPool | None:
    return CAPool(each for file in files for each in parse_certificates(look.of(file), str(file))) if files else None


def _crls(look: _Look, files: tuple[Path, ...]) -> CRLSet | None:
    return CRLSet._parse((look.of(file).data, str(file)) for file in files) if files else None  # noqa: SLF001 -- as above


def _paths(files: Iterable[FilePath], label: str) -> tuple[Path, ...]:
    if isinstance(files, (str, bytes)) or not isinstance(files, Iterable):
        msg = f"{label} is a sequence of paths, not {type(files).__name__}: write [path] for a single one"
        raise TypeError(msg)
    return tuple(as_path(file) for file in files)


def _never_settles(file: Path) -> CertificateError:
    msg = f"{file}, or what belongs to it, does not stop changing; write each file once, or move it into place"
    return CertificateError(msg, reason=CertificateReason.UNREADABLE)


def _without_frames(error: CertificateError) -> CertificateError:
    """The same error without its traceback: errors are kept, and frames would keep key bytes in memory."""
    copy = CertificateError(str(error), reason=error.reason)
    copy.__cause__ = error.__cause__ and error.__cause__.with_traceback(None)
    return copy
