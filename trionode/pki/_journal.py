"""The journal of a CA's directory: what was issued, to whom, which tokens were made and taken, what was revoked.

Theory. One append-only file of JSON lines is both the CA's memory and its audit log, so the two never disagree. What is
in it has happened, what is not has not: a line is written and flushed to the disk (`fsync`) *before* what it says takes
effect. A certificate leaves the CA only once its serial number is in the journal, so that is never used twice; the same
line takes the token, so that is never used twice either; a revocation is there before the list is signed, and every
list is made from the journal, so none is lost. A program that is killed between the two has at worst noted a
certificate that was never handed out.

Killed while it writes, it leaves a part of a line, without its end. Nothing has come of that, so the next one to write
cuts it off. Every other line that cannot be read is damage that a human has to look at: the CA does nothing then.

Several processes use one journal (`pki serve`, `pki token`, `pki revoke`). Each holds a lock (`flock`) while it reads
what the others have added, decides, and writes.
"""

from __future__ import annotations

import fcntl
import os
import threading
from contextlib import contextmanager
from datetime import datetime  # noqa: TC003 -- msgspec looks at it
from typing import TYPE_CHECKING, Final, Literal, final

import msgspec

from trionode._errors import CertificateError, CertificateReason
from trionode._util.decoding import UndecodableError, decode_untrusted

from ._files import PRIVATE

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

JOURNAL_FILE: Final = "journal.jsonl"

#: Tokens that are over, and certificates that have expired, are looked for at every so many entries.
_FORGET_EVERY: Final = 1000


@final
class Entry(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One line.

    Attributes:
        event: what has happened.
        at: when.
        serial: of the certificate that was issued, revoked or released; hexadecimal.
        issuer: the key identifier of the CA whose serial it is; hexadecimal.
        names: that the certificate speaks for, or the token is good for.
        until: the end of the certificate, or of the token.
        fingerprint: SHA-256 of the certificate.
        token: SHA-256 of the token that was made, or taken for this certificate.
        renews: serial of the certificate that this one renews.
        address: who asked.
        reason: why it was revoked.
    """

    event: Literal["issued", "token", "revoked", "released"]
    at: datetime
    serial: str | None = None
    issuer: str | None = None
    names: tuple[str, ...] = ()
    until: datetime | None = None
    fingerprint: str | None = None
    token: str | None = None
    renews: str | None = None
    address: str | None = None
    reason: str | None = None


_ENCODER: Final = msgspec.json.Encoder()
_DECODER: Final = msgspec.json.Decoder(Entry)


@final
class State:
    """What the lines of a journal come to.

    Attributes:
        issued: certificates that have not ended, by serial.
        tokens: tokens that were not taken and have not ended, by digest.
        revoked: by serial.
    """

    def __init__(self) -> None:
        self.issued: dict[str, Entry] = {}
        self.tokens: dict[str, Entry] = {}
        self.revoked: dict[str, Entry] = {}
        self._count = 0

    def add(self, entry: Entry) -> None:
        """Take another line into account."""
        match entry.event:
            case "issued" if entry.serial is not None:
                self.issued[entry.serial] = entry
                self.tokens.pop(entry.token or "", None)
            case "token" if entry.token is not None:
                self.tokens[entry.token] = entry
            case "revoked" if entry.serial is not None:
                self.revoked.setdefault(entry.serial, entry)
            case "released" if entry.serial is not None:
                self.revoked.pop(entry.serial, None)
            case _:
                pass
        self._count += 1
        if self._count % _FORGET_EVERY == 0:
            self._forget(entry.at)

    def _forget(self, now: datetime) -> None:
        for entries in (self.issued, self.tokens):
            for key in [key for key, each in entries.items() if each.until is not None and each.until < now]:
                del entries[key]


@final
class Journal:
    """The journal in a directory, which has to exist; the file is made when there is something to write.

    All of it blocks. Safe to use from several threads and processes.
    """

    def __init__(self, directory: Path) -> None:
        """Name the directory; nothing is read yet."""
        self.file: Final = directory / JOURNAL_FILE
        self._mutex = threading.Lock()
        self._descriptor: int | None = None
        self._offset = 0
        self._lines = 0
        self._state = State()

    @contextmanager
    def exclusive(self) -> Iterator[State]:
        """Lock out all other writers for the length of a `with` block, and give what is in the journal now.

        Raises:
            CertificateError: the journal is damaged.
            OSError: it cannot be opened.
        """
        with self._mutex:
            descriptor = os.open(self.file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, PRIVATE)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX)
                self._descriptor = descriptor
                self._catch_up(descriptor)
                yield self._state
            finally:
                self._descriptor = None
                os.close(descriptor)

    def append(self, entry: Entry) -> None:
        """Add a line; within `exclusive` only. When this returns, the line is on the disk.

        Raises:
            OSError: it could not be written. What part of it was is cut off again before anything else is written.
        """
        descriptor = self._descriptor
        if descriptor is None:
            msg = "a journal is written within exclusive()"
            raise RuntimeError(msg)
        rest = memoryview(_ENCODER.encode(entry) + b"\n")
        end = self._offset
        try:
            while rest:
                written = os.pwrite(descriptor, rest, end)
                rest, end = rest[written:], end + written
            os.fsync(descriptor)
        except OSError:
            # What is not known to be on the disk has not happened.
            os.ftruncate(descriptor, self._offset)
            raise
        self._offset = end
        self._lines += 1
        self._state.add(entry)

    def _catch_up(self, descriptor: int) -> None:
        """Read what was added since; cut off a line that was not finished."""
        size = os.fstat(descriptor).st_size
        if size < self._offset:  # another file in its place: an old copy, for one
            self._offset, self._lines, self._state = 0, 0, State()
        with open(descriptor, "rb", closefd=False) as stream:
            stream.seek(self._offset)
            for line in stream:
                if not line.endswith(b"\n"):
                    os.ftruncate(descriptor, self._offset)
                    os.fsync(descriptor)
                    return
                try:
                    entry = decode_untrusted(_DECODER, line)
                except UndecodableError as exc:
                    msg = (
                        f"line {self._lines + 1} of {self.file} is damaged ({exc}), so it is not known what was issued "
                        "and revoked. Restore the file, or remove what is no line of JSON"
                    )
                    raise CertificateError(msg, reason=CertificateReason.UNREADABLE) from None
                self._offset += len(line)
                self._lines += 1
                self._state.add(entry)
