"""A directory that holds a CA: its keys and certificates, what it issued and revoked, and the tokens for more.

Theory. The directory is what `trionode pki` keeps. Everything that has to be remembered is in the journal (see there);
the other files are made from it, or by an operator:

    ca.pem, intermediate.pem, ca.key    the CA, as `CertificateAuthority.load` reads it
    root.key                            the root's key, until it is taken offline
    ca.crl                              revocation lists: the intermediate's and the root's
    next/                               during a roll-over: the CA that is to come
    old.pem, intermediate.old           and after `switch`: the one that was
    journal.jsonl                       see `_journal`
    denied                              names and serial numbers that get no certificate, one a line

The files are looked at before each use, so that a service that runs sees what an operator does to them.

A roll-over has three steps, with time for every client to look between them. `begin`: there is a second CA, which
everyone is told to trust, too. `switch`: it issues in the first one's place. `retire`: the first is not trusted any
more. A step that was interrupted is finished by doing it again; until then it is as if it had happened, or as if it had
not. For `begin` what decides is that `next` has its name, for `switch` that there is `old.pem` beside it: from then on
the CA in `next` issues, while its files are moved.

The file is long because whatever changes the directory has to be read together: in which order files are written is
what makes each change whole or absent.
"""

from __future__ import annotations

import re
import shutil
import stat
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import TYPE_CHECKING, Final, final

from cryptography import x509

from trionode._credentials.ca_pool import CAPool
from trionode._credentials.crl import CRLSet, next_update
from trionode._credentials.key_pair import KeyPair
from trionode._credentials.pem import Secret, as_path, read_file, to_pem
from trionode._errors import CertificateError, CertificateReason, TrionodeError
from trionode._identity.certificate import extension, fingerprint, serial_number
from trionode._identity.describe import describe
from trionode._identity.names import NodeName, canonical_host
from trionode._identity.patterns import is_glob
from trionode._util.fields import check_argument

from ._authority import CertificateAuthority
from ._certificates import revoked_entry
from ._constraints import PRIVATE_NAMES, OutsideError, permitted_by, refuse_outside
from ._files import PUBLIC, replace_files, write_crl_set
from ._journal import Entry, Journal
from ._tokens import JoinToken, checked_names, names_match

if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Self

    from trionode._credentials.pem import FilePath
    from trionode._credentials.policy import Clock

    from ._journal import State

CA_FILE: Final = "ca.pem"
CRL_FILE: Final = "ca.crl"
#: Stays when the list is lost, so that this is noticed. Empty.
CRL_MARKER: Final = ".has-crl"
ROOT_KEY_FILE: Final = "root.key"
DENIED_FILE: Final = "denied"
_OLD_FILE: Final = "old.pem"
_OLD_ISSUER_FILE: Final = "intermediate.old"
_NEXT: Final = "next"
#: The CA that is to come, while it is made.
_MAKING: Final = "next.tmp"
#: By which it is noticed that the CA in the directory is another one.
_WATCHED: Final = (CA_FILE, "ca.key", "intermediate.pem", _OLD_FILE, f"{_NEXT}/{CA_FILE}")

#: A serial number as OpenSSL prints it, longer than an IPv6 address; without colons it might be a host.
_SERIAL: Final = re.compile(r"[0-9A-Fa-f]{2}(:[0-9A-Fa-f]{2}){8,}")

#: A certificate's serial number is drawn again where it is taken: which means that chance is broken.
_DRAWS: Final = 3


@final
class RequestRefusal(StrEnum):
    """Why a CA does not issue what was asked for."""

    BAD_REQUEST = "bad_request"
    """The certificate signing request is none, its key is weak, or it asks for what it does not get."""
    BAD_TOKEN = "bad_token"  # noqa: S105 -- a reason, not a token
    """The token is unknown, was taken, has expired, or is another CA's."""
    NOT_ALLOWED = "not_allowed"
    """The name is not one that the token, the certificate or the policy allows."""
    REVOKED = "revoked"
    """The certificate that is to be renewed was revoked."""
    UNKNOWN = "unknown"
    """The certificate that is to be renewed is none that this CA has issued and that has not ended."""
    DENIED = "denied"
    """The name or the certificate is on the list of those that get none."""


@final
class RequestRefusedError(TrionodeError):
    """A CA does not issue what was asked for.

    Attributes:
        reason: why, see `RequestRefusal`.
    """

    def __init__(self, message: str, *, reason: RequestRefusal) -> None:
        super().__init__(message)
        self.reason = reason


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class _Loaded:
    """What the files said when they were looked at."""

    signs: CertificateAuthority
    roots: CAPool
    issuers: CAPool
    seen: tuple[object, ...]


@final
class PKIDirectory:
    """A CA with a memory, in a directory that `trionode pki init` or `CertificateAuthority.save` made.

    Issues by one-time token or for a certificate that is renewed, keeps a journal of that, revokes, and signs lists.
    All of it blocks for some milliseconds, as it reads and writes small files: in a Trio program call it in a thread
    (`trio.to_thread.run_sync`). It may be used from several threads, and the directory by several processes.
    """

    def __init__(self, directory: FilePath, *, password: str | bytes | None = None, clock: Clock | None = None) -> None:
        """Read the CA.

        Args:
            directory: where it is.
            password: of `ca.key`, if that is encrypted.
            clock: source of "now" (aware); by default the machine's clock.

        Raises:
            CertificateError: see `CertificateAuthority.load`.
        """
        self._folder = as_path(directory)
        self._password = None if password is None else Secret(password)
        self._clock = clock
        self._journal = Journal(self._folder)
        self._loaded = self._load()

    @classmethod
    def create(
        cls,
        directory: FilePath,
        *,
        common_name: str = "trionode CA",
        lifetime: timedelta = timedelta(days=3650),
        intermediate: bool = True,
        permitted: Iterable[str] = PRIVATE_NAMES,
        password: str | bytes | None = None,
        clock: Clock | None = None,
    ) -> Self:
        """Make a CA in a directory, as `trionode pki init` does; one that was there is replaced.

        Args:
            directory: made with mode 0700, if it is missing.
            common_name: of the CA's subjects.
            lifetime: of the CA, from now on.
            intermediate: whether an intermediate issues; its root's key is then in `root.key`, to be taken offline.
            permitted: what the intermediate may issue for, see `CertificateAuthority.subordinate`; by default names
                and addresses that no public network has.
            password: to encrypt the keys with.
            clock: source of "now" (aware); by default the machine's clock.

        Raises:
            OSError: a file could not be written.
            ValueError: an argument is not valid.
        """
        folder = as_path(directory)
        root = CertificateAuthority.create(
            common_name=common_name, lifetime=lifetime, subordinates=intermediate, clock=clock
        )
        issuing = root
        if intermediate:
            issuing = root.subordinate(common_name=common_name, lifetime=lifetime, permitted=permitted)
        issuing.save(folder, password=password)
        now = datetime.now(UTC) if clock is None else clock()
        lists = list(issuing.revocation_list(lifetime=_rest(issuing, now)))
        if issuing is root:
            (folder / ROOT_KEY_FILE).unlink(missing_ok=True)
        else:
            root.save_key(folder / ROOT_KEY_FILE, password=password)
            lists += root.revocation_list(lifetime=_rest(root, now))
        write_crl_set(CRLSet(lists), folder / CRL_FILE)
        (folder / CRL_MARKER).touch()
        return cls(folder, password=password, clock=clock)

    def __repr__(self) -> str:
        return f"<PKIDirectory {self._folder}>"

    @property
    def clock(self) -> Clock | None:
        """Its source of "now", as it was given."""
        return self._clock

    def now(self) -> datetime:
        """The time by its clock."""
        return datetime.now(UTC) if self._clock is None else self._clock()

    @property
    def authority(self) -> CertificateAuthority:
        """The CA that issues now.

        Raises:
            CertificateError: see `CertificateAuthority.load`.
        """
        return self._look().signs

    @property
    def roots(self) -> CAPool:
        """What clients are to trust: the root, and during a roll-over the one that comes or that goes.

        Raises:
            CertificateError: see `CertificateAuthority.load`.
        """
        return self._look().roots

    @property
    def issuers(self) -> CAPool:
        """What a service knows its clients by: the roots, and the CAs below them that issue now or did until `switch`.

        A client of EST gets its own certificate alone, and may present that alone.

        Raises:
            CertificateError: see `CertificateAuthority.load`.
        """
        return self._look().issuers

    def _look(self) -> _Loaded:
        if self._loaded.seen != self._signature():
            self._loaded = self._load()
        return self._loaded

    def _load(self) -> _Loaded:
        seen = self._signature()
        folder = self._folder
        password = None if self._password is None else self._password.data
        following, before = folder / _NEXT / CA_FILE, folder / _OLD_FILE
        switching = following.exists() and before.exists()
        signs = CertificateAuthority.load(
            following.parent if switching else folder, password=password, clock=self._clock
        )
        roots = signs.pool
        if following.exists() and not switching:
            roots |= CAPool.load(following)
        issuers = roots | CAPool([signs.issuer])
        if before.exists():
            below = folder / _OLD_ISSUER_FILE
            roots |= CAPool.load(before)
            issuers |= CAPool.load(before, *[below] if below.exists() else [])
        return _Loaded(signs=signs, roots=roots, issuers=issuers, seen=seen)

    def _signature(self) -> tuple[object, ...]:
        found: list[object] = []
        for name in _WATCHED:
            try:
                status = (self._folder / name).stat()
            except OSError:
                found.append(None)
            else:
                found.append((status[stat.ST_INO], status.st_mtime_ns, status.st_size))
        return tuple(found)

    # Tokens

    def make_token(self, names: str | NodeName, *, lifetime: timedelta = timedelta(hours=1)) -> JoinToken:
        """A one-time token; its secret is drawn here (256 bits), and kept nowhere.

        Args:
            names: the one that it is good for: a node name, a host, or a glob over node names, whose holder chooses.
            lifetime: how long it may be used.

        Raises:
            ValueError: it is no name, or one that the CA may not issue for; or the lifetime is not positive.
            CertificateError: the CA's files or the journal are damaged.
            OSError: it could not be written.
        """
        wanted, now = checked_names(str(names)), self.now()
        check_argument("lifetime", lifetime, timedelta)
        if lifetime <= timedelta():
            msg = "the token's lifetime has to be positive"
            raise ValueError(msg)
        signs, host = self._look().signs, wanted.rpartition("@")[2]
        if not is_glob(host):
            refuse_outside([host], signs.issuer)
        token = JoinToken._draw(fingerprint(signs.certificate), wanted)  # noqa: SLF001 -- the one maker
        with self._journal.exclusive():
            entry = Entry(event="token", at=now, token=token.digest, names=(wanted,), until=now + lifetime)
            self._journal.append(entry)
        return token

    # Issuing

    def enrol(
        self,
        request: x509.CertificateSigningRequest,
        token: JoinToken,
        *,
        name: str | NodeName | None = None,
        lifetime: timedelta = timedelta(days=1),
        address: str | None = None,
    ) -> tuple[x509.Certificate, ...]:
        """Issue a first certificate, for a token, which is taken by that.

        Args:
            request: see `CertificateAuthority.sign`.
            token: what the client has.
            name: which of the names that the token is good for; by default its only one.
            lifetime: of the certificate.
            address: who asked, for the journal.

        Returns:
            The certificate, and the intermediate after it, if there is one.

        Raises:
            RequestRefusedError: nothing was issued, and the token was not taken by this.
            CertificateError: the CA has expired, or its files are damaged.
            OSError: the journal could not be written.
        """
        wanted = _name(token.names if name is None else name, RequestRefusal.NOT_ALLOWED)
        with self._journal.exclusive() as state:
            known = state.tokens.get(token.digest)
            if known is None or known.until is None or known.until <= self.now():
                msg = "the token is not known here, was used, or has expired; make another: trionode pki token"
                raise RequestRefusedError(msg, reason=RequestRefusal.BAD_TOKEN)
            if not any(names_match(each, wanted) for each in known.names):
                msg = f"the token is not good for the name {wanted}"
                raise RequestRefusedError(msg, reason=RequestRefusal.NOT_ALLOWED)
            return self._issue(state, request, (wanted,), lifetime, token=token.digest, address=address)

    def renew(
        self,
        request: x509.CertificateSigningRequest,
        certificate: x509.Certificate,
        *,
        lifetime: timedelta = timedelta(days=1),
        address: str | None = None,
    ) -> tuple[x509.Certificate, ...]:
        """Issue a certificate in the place of another, with the same names.

        Args:
            request: see `CertificateAuthority.sign`.
            certificate: the present one, **which the caller has verified**, in a TLS handshake.
            lifetime: of the new one.
            address: who asked, for the journal.

        Returns:
            The certificate, and the intermediate after it, if there is one.

        Raises:
            RequestRefusedError: nothing was issued.
            CertificateError: the CA has expired, or its files are damaged.
            OSError: the journal could not be written.
        """
        serial = _hex(serial_number(certificate))
        with self._journal.exclusive() as state:
            known = state.issued.get(serial)
            if serial in state.revoked or self._is_listed(certificate):
                msg = f"the certificate was revoked, so it is not renewed: {describe(certificate)}"
                raise RequestRefusedError(msg, reason=RequestRefusal.REVOKED)
            if known is None or known.until is None or known.until <= self.now() or not _is_of(known, certificate):
                msg = (
                    "this CA has not issued the certificate, or keeps no record of it, as of those older than the "
                    f"journal: {describe(certificate)}. Join with a token, which needs no record"
                )
                raise RequestRefusedError(msg, reason=RequestRefusal.UNKNOWN)
            names = tuple(_name(each, RequestRefusal.UNKNOWN) for each in known.names)
            return self._issue(state, request, names, lifetime, renews=serial, address=address)

    def record(self, certificate: x509.Certificate, *names: str | NodeName) -> None:
        """Note a certificate that was issued by `authority` directly, so that it may be renewed.

        Args:
            certificate: the leaf.
            names: that it was issued for.

        Raises:
            CertificateError: the journal is damaged.
            OSError: it could not be written.
        """
        with self._journal.exclusive():
            self._note(certificate, names)

    def _issue(
        self,
        state: State,
        request: x509.CertificateSigningRequest,
        names: tuple[NodeName | str, ...],
        lifetime: timedelta,
        *,
        token: str | None = None,
        renews: str | None = None,
        address: str | None = None,
    ) -> tuple[x509.Certificate, ...]:
        """Check all that can be wrong, note it, and sign: in this order."""
        self._refuse_denied(names, renews)
        signs = self._look().signs
        for _ in range(_DRAWS):
            serial = x509.random_serial_number()
            if _hex(serial) not in state.issued and _hex(serial) not in state.revoked:
                break
        else:
            msg = "the same serial number was drawn again and again: this system's random numbers are none"
            raise RuntimeError(msg)
        try:
            chain = signs.sign(request, *names, lifetime=lifetime, serial_number=serial)
        except ValueError as exc:
            reason = RequestRefusal.NOT_ALLOWED if isinstance(exc, OutsideError) else RequestRefusal.BAD_REQUEST
            raise RequestRefusedError(str(exc), reason=reason) from None
        # It was signed, but leaves this function only once it is on record.
        self._note(chain[0], names, token=token, renews=renews, address=address)
        return chain

    def _note(
        self,
        leaf: x509.Certificate,
        names: Iterable[str | NodeName],
        *,
        token: str | None = None,
        renews: str | None = None,
        address: str | None = None,
    ) -> None:
        self._journal.append(
            Entry(
                event="issued",
                at=self.now(),
                serial=_hex(serial_number(leaf)),
                issuer=_issuer_of(leaf),
                names=tuple(map(str, names)),
                until=leaf.not_valid_after_utc,
                fingerprint=fingerprint(leaf),
                token=token,
                renews=renews,
                address=address,
            )
        )

    def _refuse_denied(self, names: tuple[NodeName | str, ...], serial: str | None) -> None:
        file = self._folder / DENIED_FILE
        if not file.exists():
            return
        lines = read_file(file, kind="list of denied names").data.decode(errors="replace").splitlines()
        for number, line in enumerate(lines, 1):
            text = line.partition("#")[0].strip()
            if not text:
                continue
            same_serial = serial is not None and text.lower().replace(":", "").lstrip("0") == serial.lstrip("0")
            try:
                denied = same_serial or any(_denies(text, each) for each in names)
            except ValueError as exc:
                msg = (
                    f"line {number} of {file} is neither a name, a glob, a host nor a serial number ({exc}), so it is "
                    "not known who is denied. Correct it; nothing is issued until then"
                )
                raise CertificateError(msg, reason=CertificateReason.UNREADABLE) from None
            if denied:
                msg = f"{', '.join(map(str, names))} gets no certificate: {text} is on the CA's list of denied names"
                raise RequestRefusedError(msg, reason=RequestRefusal.DENIED)

    # Revocation

    def revoke(
        self,
        *revoked: x509.Certificate | NodeName | str,
        reason: x509.ReasonFlags = x509.ReasonFlags.unspecified,
    ) -> tuple[int, ...]:
        """Note that certificates are revoked; `sign_lists` makes it known. When this returns, it is not lost.

        Args:
            revoked: certificates that the present CA has issued. Or names, each for all that is on record as issued for
                it and has not ended; programs that have joined keep theirs to themselves. Or the serial number of one
                on record, in hexadecimal digits.
            reason: why (RFC 5280 section 5.3.1).

        Returns:
            The serial numbers of what is revoked now, also of what was before.

        Raises:
            LookupError: nothing that has not ended is on record under a name or serial number; nothing was revoked.
            CertificateError: the journal is damaged.
            OSError: it could not be written.
        """
        with self._journal.exclusive() as state:
            found: dict[str, str] = {}
            for each in revoked:
                if isinstance(each, x509.Certificate):
                    found[_hex(serial_number(each))] = _issuer_of(each)
                else:
                    found |= self._on_record(state, each)
            for serial, issuer in found.items():
                if serial not in state.revoked:
                    entry = Entry(event="revoked", at=self.now(), serial=serial, issuer=issuer, reason=reason.value)
                    self._journal.append(entry)
            return tuple(int(serial, 16) for serial in found)

    def _on_record(self, state: State, wanted: NodeName | str) -> dict[str, str]:
        """Serial numbers and issuers of what was issued for a name, or under a serial number."""
        text, now = str(wanted), self.now()
        serial = text.lower().replace(":", "").lstrip("0")
        if serial in state.issued:
            return {serial: state.issued[serial].issuer or ""}
        with suppress(RequestRefusedError):
            text = str(_name(wanted, RequestRefusal.UNKNOWN))
        found = {
            serial: each.issuer or ""
            for serial, each in state.issued.items()
            if text in each.names and each.until is not None and each.until > now
        }
        if not found:
            msg = f"nothing that has not ended is on record in {self._journal.file} as issued for {text}"
            raise LookupError(msg)
        return found

    def release(self, *certificates: x509.Certificate) -> None:
        """Note that certificates were revoked by mistake; `sign_lists` makes it known.

        Args:
            certificates: see `revoke`.

        Raises:
            CertificateError: the journal is damaged.
            OSError: it could not be written.
        """
        with self._journal.exclusive():
            for each in certificates:
                serial, issuer = _hex(serial_number(each)), _issuer_of(each)
                self._journal.append(Entry(event="released", at=self.now(), serial=serial, issuer=issuer))

    def sign_lists(
        self, *, lifetime: timedelta = timedelta(days=7), released: Iterable[x509.Certificate] = ()
    ) -> CRLSet:
        """Sign `ca.crl` anew, from the journal and from what is on the present list.

        Lists of other CAs in the file, the root's for one, stay as they are; the root's is made again where it was lost
        and the root's key is still here.

        Args:
            lifetime: until the next list is due.
            released: what leaves the list; see `release`.

        Returns:
            All lists in the file.

        Raises:
            CertificateError: the journal or the list is damaged.
            OSError: a file could not be written.
        """
        signs, file = self._look().signs, self._folder / CRL_FILE
        with self._journal.exclusive() as state:
            # Verifiers need the lists of a CA that is to come before it issues.
            files = [each for each in (file, self._folder / _NEXT / CRL_FILE) if each.exists()]
            present = CRLSet.load(*files).lists if files else ()
            ours = signs.issuer
            entries = {each.serial_number: each for crl in present if crl.issuer == ours.subject for each in crl}
            for serial, entry in state.revoked.items():
                if entry.issuer == _key_identifier(ours):
                    number = int(serial, 16)
                    reason = x509.ReasonFlags(entry.reason or "unspecified")
                    entries.setdefault(number, revoked_entry(number, entry.at, reason))
            for each in released:
                entries.pop(serial_number(each), None)
            made = signs._sign_list(entries.values(), lifetime)  # noqa: SLF001 -- a CA signs for its directory
            others = [crl for crl in present if crl.issuer != ours.subject]
            lists = CRLSet([*made.lists, *others, *self._list_of_the_root(signs, others)])
            write_crl_set(lists, file)
            (self._folder / CRL_MARKER).touch()
        return lists

    def _list_of_the_root(
        self, signs: CertificateAuthority, others: list[x509.CertificateRevocationList]
    ) -> Iterable[x509.CertificateRevocationList]:
        """The root's list, if it was lost, and the root's key is here."""
        root, file = signs.certificate, self._folder / ROOT_KEY_FILE
        if signs.intermediate is None or not file.exists() or any(crl.issuer == root.subject for crl in others):
            return ()
        password = None if self._password is None else self._password.data
        key = KeyPair.load(self._folder / CA_FILE, file, password=password).private_key
        return CertificateAuthority(root, key, clock=self._clock).revocation_list(lifetime=_rest(signs, self.now()))

    def refresh_lists(self, *, lifetime: timedelta = timedelta(days=7)) -> CRLSet:
        """The lists; signed anew where less than half of `lifetime` is left or more than that, or something is missing.

        So a service bounds for how long an old list may be held out to a verifier. What is missing is what the journal
        has, a revocation that was noted and not signed.

        Args:
            lifetime: see `sign_lists`.

        Raises:
            CertificateError: see `sign_lists`.
            OSError: see `sign_lists`.
        """
        signs, file = self._look().signs, self._folder / CRL_FILE
        if file.exists():
            lists = CRLSet.load(file)
            ours = [crl for crl in lists if crl.issuer == signs.issuer.subject]
            with self._journal.exclusive() as state:
                revoked = {
                    int(serial, 16)
                    for serial, each in state.revoked.items()
                    if each.issuer == _key_identifier(signs.issuer)
                }
            listed = {each.serial_number for crl in ours for each in crl}
            if ours and revoked <= listed and lifetime / 2 < max(map(next_update, ours)) - self.now() <= lifetime:
                return lists
        return self.sign_lists(lifetime=lifetime)

    def _is_listed(self, certificate: x509.Certificate) -> bool:
        file = self._folder / CRL_FILE
        return file.exists() and CRLSet.load(file).listed(certificate) is not None

    # Roll-over

    def begin_roll_over(
        self,
        *,
        common_name: str = "trionode CA",
        lifetime: timedelta = timedelta(days=3650),
        permitted: Iterable[str] | None = None,
    ) -> None:
        """Make the CA that is to come, and have clients trust it; it does not issue yet.

        Args:
            common_name: see `create`.
            lifetime: see `create`.
            permitted: see `create`; None for what the present CA may issue for.

        Raises:
            CertificateError: the CA's files are damaged.
            FileExistsError: a roll-over is under way.
            OSError: a file could not be written.
            ValueError: an argument is not valid.
        """
        folder = self._folder / _NEXT
        if (folder / CA_FILE).exists() or (self._folder / _OLD_FILE).exists():
            msg = f"a roll-over is under way in {self._folder}: switch or retire first"
            raise FileExistsError(msg)
        password = None if self._password is None else self._password.data
        made = self._folder / _MAKING
        for leftover in (made, folder):
            shutil.rmtree(leftover, ignore_errors=True)
        PKIDirectory.create(
            made,
            common_name=common_name,
            lifetime=lifetime,
            permitted=permitted_by(self.authority.issuer) if permitted is None else permitted,
            password=password,
            clock=self._clock,
        )
        made.rename(folder)
        self._sign_long_lists()

    def switch(self) -> None:
        """Have the CA that was to come issue from now on; the one before is still trusted. Safe to repeat.

        Raises:
            FileNotFoundError: no roll-over was begun.
            CertificateError: a file is damaged.
            OSError: one could not be written.
        """
        following, before = self._folder / _NEXT, self._folder / _OLD_FILE
        if not (following / CA_FILE).exists():
            if not before.exists():
                msg = f"no roll-over was begun in {self._folder}"
                raise FileNotFoundError(msg)
            shutil.rmtree(following, ignore_errors=True)
            return
        password = None if self._password is None else self._password.data
        coming = CertificateAuthority.load(following, password=password, clock=self._clock)
        if not before.exists():
            # The old CA signs a last list, for as long as certificates of its may be around.
            self._sign_long_lists()
            present = self.authority
            replace_files(
                [
                    (self._folder / _OLD_ISSUER_FILE, to_pem([present.issuer]), PUBLIC),
                    (before, to_pem([present.certificate]), PUBLIC),
                ]
            )
        coming.save(self._folder, password=password)
        if (following / ROOT_KEY_FILE).exists():
            (following / ROOT_KEY_FILE).replace(self._folder / ROOT_KEY_FILE)
        self._sign_long_lists()
        (following / CA_FILE).unlink()
        shutil.rmtree(following)

    def _sign_long_lists(self) -> None:
        """Sign lists that last as long as the CA: services shorten that when they sign the next."""
        self.sign_lists(lifetime=_rest(self.authority, self.now()))

    def retire(self) -> None:
        """Have clients no longer trust the CA that was before.

        Raises:
            FileNotFoundError: there is none.
        """
        file = self._folder / _OLD_FILE
        if not file.exists():
            msg = f"there is no CA to retire in {self._folder}"
            raise FileNotFoundError(msg)
        file.unlink()
        (self._folder / _OLD_ISSUER_FILE).unlink(missing_ok=True)


def _rest(authority: CertificateAuthority, now: datetime) -> timedelta:
    """The rest of the CA's lifetime: until there is a service, its lists need not be attended to before that."""
    return max(authority.certificate.not_valid_after_utc - now, timedelta(days=1))


def _hex(serial: int) -> str:
    return f"{serial:x}"


def _key_identifier(issuer: x509.Certificate) -> str:
    found = extension(issuer, x509.SubjectKeyIdentifier)
    identifier = x509.SubjectKeyIdentifier.from_public_key(issuer.public_key()) if found is None else found
    return identifier.digest.hex()


def _issuer_of(leaf: x509.Certificate) -> str:
    found = extension(leaf, x509.AuthorityKeyIdentifier)
    return "" if found is None or found.key_identifier is None else found.key_identifier.hex()


def _is_of(entry: Entry, certificate: x509.Certificate) -> bool:
    """Whether an entry is of this very certificate: by its issuer's key, beside its serial number."""
    return entry.issuer == _issuer_of(certificate)


def _name(text: str | NodeName, reason: RequestRefusal) -> NodeName | str:
    try:
        return NodeName.parse(text) if "@" in str(text) else canonical_host(str(text))
    except ValueError as exc:
        raise RequestRefusedError(f"which name? {exc}", reason=reason) from None


def _denies(pattern: str, name: NodeName | str) -> bool:
    """Whether a line is about a name; one with a host alone is about its nodes, too.

    Raises:
        ValueError: it is about nothing.
    """
    if _SERIAL.fullmatch(pattern):
        return False
    denied = checked_names(pattern)
    return names_match(denied, name) or (isinstance(name, NodeName) and denied == name.host)
