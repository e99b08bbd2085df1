"""The files of a directory that holds a CA: what they are called, and what they say now.

Theory. The directory is what `trionode pki` keeps. Everything that has to be remembered is in the journal (see there);
the other files are made from it, or by an operator:

    ca.pem, intermediate.pem, ca.key    the CA, as `CertificateAuthority.load` reads it
    root.key                            the root's key, until it is taken offline
    ca.crl                              revocation lists: the intermediate's and the root's
    next/                               during a roll-over: the CA that is to come
    old.pem, intermediate.old           and after `switch`: the one that was
    journal.jsonl                       see `_journal`
    denied                              names and serial numbers that get no certificate, one a line

The files are looked at before each use, so that a service that runs sees what an operator does to them. Which of them
there are says how far a roll-over is (see `_roll_over`). With `next` alone, its CA is trusted, too. With `old.pem`
beside it, that CA issues, while its files are moved. With `old.pem` alone, the CA that was is still trusted.
"""

from __future__ import annotations

import stat
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final, final

from trionode._credentials.ca_pool import CAPool
from trionode._credentials.pem import Secret

from ._authority import CA_FILE, CA_KEY_FILE, INTERMEDIATE_FILE, CertificateAuthority
from ._journal import Journal

if TYPE_CHECKING:
    from pathlib import Path

    from trionode._credentials.policy import Clock

ROOT_KEY_FILE: Final = "root.key"
CRL_FILE: Final = "ca.crl"
#: Stays when the list is lost, so that this is noticed. Empty.
CRL_MARKER: Final = ".has-crl"
DENIED_FILE: Final = "denied"
NEXT: Final = "next"
OLD_FILE: Final = "old.pem"
OLD_ISSUER_FILE: Final = "intermediate.old"

#: By which it is noticed that the CA in the directory is another one.
_WATCHED: Final = (CA_FILE, CA_KEY_FILE, INTERMEDIATE_FILE, OLD_FILE, f"{NEXT}/{CA_FILE}")


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class _Loaded:
    """What the files said when they were looked at.

    Attributes:
        signs: the CA that issues.
        roots: what clients are to trust.
        issuers: the roots, and the CAs below them that issue now or did until `switch`.
        seen: by which it is noticed that this is no longer so.
    """

    signs: CertificateAuthority
    roots: CAPool
    issuers: CAPool
    seen: tuple[object, ...]


@final
class CAFiles:
    """The files in one directory.

    Attributes:
        folder: the directory.
        clock: source of "now", as it was given.
        journal: what was issued and revoked, and the tokens for more.
    """

    def __init__(self, folder: Path, *, password: str | bytes | None, clock: Clock | None) -> None:
        """Name the directory; nothing is read yet.

        Args:
            folder: where it is.
            password: of the keys in it, if these are encrypted.
            clock: source of "now" (aware); None for the machine's clock.
        """
        self.folder: Final = folder
        self.clock: Final = clock
        self.journal: Final = Journal(folder)
        self._password = None if password is None else Secret(password)
        self._loaded: _Loaded | None = None

    @property
    def password(self) -> bytes | None:
        """Of the keys."""
        return None if self._password is None else self._password.data

    def now(self) -> datetime:
        """The time by the clock."""
        return datetime.now(UTC) if self.clock is None else self.clock()

    def look(self) -> _Loaded:
        """What the files say now; they are read if they have changed.

        Raises:
            CertificateError: see `CertificateAuthority.load`.
        """
        loaded, seen = self._loaded, self._signature()
        if loaded is None or loaded.seen != seen:
            loaded = self._loaded = self._load(seen)
        return loaded

    def _signature(self) -> tuple[object, ...]:
        found: list[object] = []
        for name in _WATCHED:
            try:
                status = (self.folder / name).stat()
            except OSError:
                found.append(None)
            else:
                found.append((status[stat.ST_INO], status.st_mtime_ns, status.st_size))
        return tuple(found)

    def _load(self, seen: tuple[object, ...]) -> _Loaded:
        following, before = self.folder / NEXT / CA_FILE, self.folder / OLD_FILE
        switching = following.exists() and before.exists()
        signs = CertificateAuthority.load(
            following.parent if switching else self.folder, password=self.password, clock=self.clock
        )
        roots = signs.pool
        if following.exists() and not switching:
            roots |= CAPool.load(following)
        issuers = roots | CAPool([signs.issuer])
        if before.exists():
            below = self.folder / OLD_ISSUER_FILE
            roots |= CAPool.load(before)
            issuers |= CAPool.load(before, *[below] if below.exists() else [])
        return _Loaded(signs=signs, roots=roots, issuers=issuers, seen=seen)
