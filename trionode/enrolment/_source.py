"""`ESTSource`: a certificate from an EST server, renewed before it ends, as a `Source` for `follow_source`.

Theory. The source has a state: a key pair, the CAs that the cluster trusts, revocation lists where they are wanted. A
reading brings up to date what is due: CAs first (they may be needed to believe the rest), then the certificate, then
the lists. What is not due is not asked for, so readings are cheap, and the waiting in between is `wait_changed`'s.

When that is, and when to try again what failed, is `_schedule`'s. A failure is raised by `read()`: the follower tells
it once, keeps the last good generation, and goes on. But what could be brought up to date before is given first, and
the failure with the next reading.

CAs roll over as the server says: while it has the old and the new one, both are trusted (overlap); once it has the new
one alone, the old one goes (retire), which the follower holds back while live peers need it. A set of CAs that has none
of those before is not taken in their place but beside them.
"""

from __future__ import annotations

import errno
import os
import random
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Final, final

import msgspec
import trio

from trionode._credentials.ca_pool import CAPool
from trionode._credentials.crl import next_update
from trionode._credentials.key_pair import KeyPair
from trionode._credentials.pem import as_path, private_key_to_pem, read_file, to_pem
from trionode._errors import CertificateError, CertificateReason
from trionode._identity.certificate import fingerprint, not_before
from trionode._identity.names import NodeName, parse_name
from trionode._managers.auth_manager import CertAuthManager
from trionode._managers.sources import Credentials
from trionode._util.decoding import UndecodableError, decode_untrusted
from trionode._util.fields import SECONDS, check_argument
from trionode._util.log import Log
from trionode._util.threads import Purpose, in_thread
from trionode.pki import JoinToken
from trionode.pki._files import PRIVATE, replace_files

from ._client import AnonymousManager, Exchange, Server, Wanted, pinned, roots_in
from ._errors import EnrolmentError, EnrolmentReason
from ._schedule import Schedule

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from cryptography import x509

    from trionode._credentials.crl import CRLSet
    from trionode._credentials.pem import FilePath
    from trionode._credentials.policy import Clock
    from trionode._managers.manager import CertManager

_log: Final = Log("trionode.enrolment")

#: Clocks are looked at this often: machines sleep, and clocks are set. Seconds.
_LOOK: Final = 30.0


@final
class _Kept(msgspec.Struct, frozen=True):
    """What a state file has."""

    key: str
    chain: str
    roots: str


_DECODER: Final = msgspec.json.Decoder(_Kept)


@final
class ESTSource:
    """A certificate from an EST server (RFC 7030), for `follow_source`: enrols, renews, follows the CA's roll-over.

    The key is made here, anew for each certificate, and stays in memory, unless a state file is given. Any number of
    followers may share one source. A server that cannot be reached is trouble that the follower tells, with the time
    that is left; it never ends anything.
    """

    def __init__(
        self,
        url: str,
        name: str | NodeName,
        *,
        token: JoinToken | str | None = None,
        key_pair: KeyPair | None = None,
        auth: tuple[str, str] | None = None,
        root_cas: CAPool | None = None,
        state_file: FilePath | None = None,
        revocation_lists: bool = False,
        renew_after: float = 2 / 3,
        trust_interval: float = 3600.0,
        exchange_timeout: float = 30.0,
        clock: Clock | None = None,
        draw: Callable[[], float] = random.random,
    ) -> None:
        """Say where, and how to begin; nothing is sent yet.

        Args:
            url: `https://HOST[:PORT]` of the server, with a path, if it has one.
            name: what the certificate is to speak for: a node name, or a host.
            token: of `trionode pki token`: what to enrol with, and by which CA to know the server.
            key_pair: a certificate to enrol with in place of a token, such as one that a device was delivered with.
            auth: user name and password to enrol with, for servers that have no tokens.
            root_cas: the anchors for the server's certificate, where there is no token; else the system's.
            state_file: keeps key, certificate and CAs over a restart; mode 0600. None keeps them in memory alone.
            revocation_lists: whether to fetch `/ca.crl` of the server (`serve_est` has it) and hand it to the manager.
            renew_after: at which share of the lifetime to renew, at the latest; up to a tenth earlier, at random.
            trust_interval: how often to look whether the CAs have changed, and the lists; at least thrice in the
                lifetimes of certificate and lists. Seconds.
            exchange_timeout: how long the server may take to answer. Seconds.
            clock: source of "now" (aware); by default the machine's clock.
            draw: a random number from 0 to 1.

        Raises:
            ValueError, TypeError: an argument is not what belongs there.
        """
        check_argument("trust_interval", trust_interval, SECONDS)
        check_argument("exchange_timeout", exchange_timeout, SECONDS)
        self._name = parse_name(str(name))
        self._server = Server(url, seconds=exchange_timeout)
        self._token = JoinToken.parse(token) if isinstance(token, str) else token
        self._first_pair, self._auth, self._given_roots = key_pair, auth, root_cas
        self._file = None if state_file is None else as_path(state_file)
        self._with_lists = revocation_lists
        self._trust_interval, self._clock = trust_interval, clock
        self._schedule = Schedule(self._name, renew_after=renew_after, clock=clock, draw=draw)
        self._roots: CAPool | None = None
        self._lists: CRLSet | None = None
        self._trust_at: datetime | None = None
        self._given: Credentials | None = None
        self._presents: CertAuthManager | None = None
        self._wanted: Wanted | None = None
        self._anew = False
        self._loaded = self._file is None
        self._lock = trio.Lock()

    def __repr__(self) -> str:
        return f"<ESTSource {self._name} from {self._server}>"

    async def read(self) -> Credentials:
        """What it has now, after what is due was brought up to date. Cancelling may cost a certificate that was issued.

        Raises:
            EnrolmentError: something that is due could not be had; the text says for how long the certificate lasts.
            CertificateError: the state file is damaged.
            OSError: it cannot be written.
        """
        async with self._lock:
            if not self._loaded:
                await self._load()
            try:
                await self._bring_up_to_date()
            except (EnrolmentError, OSError) as exc:
                self._schedule.failed(exc)
                current = self._current()
                of_no_use = self._given is None and not self._schedule.left()  # there is none, or it has ended
                if current is None or of_no_use or current == self._given:
                    if isinstance(exc, OSError):
                        raise
                    raise self._schedule.told(exc) from exc
            else:
                self._schedule.succeeded()
            current = self._current()
            assert current is not None
            self._given = current
            return current

    def read_now(self) -> Credentials:
        """As `read()`, outside of a Trio run: to make the manager. Blocks for as long as that takes.

        Raises:
            EnrolmentError: see `read()`.
            CertificateError: see `read()`.
            OSError: see `read()`.
        """
        found = trio.run(self.read)
        # Another run has another clock; and its first reading gives the same again, whether something failed or not.
        self._given = None
        self._schedule.another_run()
        return found

    async def wait_changed(self, seen: Credentials | None, /) -> None:
        """Wait until something is due, or until it is time to try again what failed.

        Args:
            seen: what the caller has.
        """
        while True:
            current = self._current()
            if seen is not None and current is not None and seen != current:
                await trio.lowlevel.checkpoint()
                return
            wait = self._schedule.wait(self._trust_at)
            if wait <= 0:
                await trio.lowlevel.checkpoint()
                return
            await trio.sleep(min(wait, _LOOK))

    # State

    def _current(self) -> Credentials | None:
        pair = self._schedule.pair
        if pair is None:
            return None
        return Credentials(key_pair=pair, client_cas=self._roots, root_cas=self._roots, crls=self._lists)

    def _trust_due_after(self) -> timedelta:
        """A third of what is left of the certificate, or of a list that ends before it and has not yet."""
        now = self._schedule.now()
        lists = [next_update(each) - now for each in self._lists or () if next_update(each) > now]
        left = min([self._schedule.left(), *lists])
        return min(timedelta(seconds=self._trust_interval), max(left / 3, timedelta(seconds=1)))

    # Asking

    async def _bring_up_to_date(self) -> None:
        now, renewing = self._schedule.now(), self._schedule.is_due()
        if not renewing and self._trust_at is not None and now < self._trust_at:
            return
        token = self._token
        if token is not None and self._roots is None:
            self._roots = await self._first_contact(token)
        try:
            await self._ask(now, renewing=renewing)
        except EnrolmentError as exc:
            if exc.reason is not EnrolmentReason.UNTRUSTED or token is None or _has(self._roots, token.ca_fingerprint):
                raise
            # The state file is of a CA that has gone since: the token says which one is trusted.
            self._roots, self._anew = await self._first_contact(token), True
            await self._ask(now, renewing=True)
        self._anew = False

    async def _ask(self, now: datetime, *, renewing: bool) -> None:
        async with self._server.exchange(self._manager()) as exchange:
            found = await exchange.ca_certificates()
            self._follow_roots(roots_in(found))
            if renewing:
                self._schedule.take(await self._renewed(exchange, found), now)
            # Before anything else can fail: it cannot be had again.
            await self._save()
            if self._with_lists:
                self._lists = await exchange.revocation_lists()
        self._trust_at = now + self._trust_due_after()

    async def _first_contact(self, token: JoinToken) -> CAPool:
        """The CA that the token names, from a server of which nothing is known yet."""
        async with self._server.exchange(AnonymousManager(None, clock=self._clock), unverified=True) as exchange:
            return pinned(await exchange.ca_certificates(), token.ca_fingerprint, self._server)

    def _manager(self) -> CertManager:
        """What to present to the server, and by what to know it."""
        roots = self._roots
        if self._given_roots is not None:
            roots = self._given_roots if roots is None else roots | self._given_roots
        pair = self._usable_pair()
        if pair is None:
            if self._token is None and self._auth is None:
                msg = "there is no token, and no certificate that is still valid; give a new token"
                raise EnrolmentError(msg, reason=EnrolmentReason.NO_CREDENTIALS)
            return AnonymousManager(roots, clock=self._clock)
        manager = self._presents
        if manager is None or manager.key_pair != pair or manager.root_cas != roots:
            manager = self._presents = CertAuthManager(pair, root_cas=roots, clock=self._clock)
        return manager

    def _usable_pair(self) -> KeyPair | None:
        for pair in (None if self._anew else self._schedule.pair, self._first_pair):
            if self._schedule.is_usable(pair):
                return pair
        return None

    async def _renewed(self, exchange: Exchange, found: list[x509.Certificate]) -> KeyPair:
        """A new key pair: by the present certificate, or else by what there is to begin with."""
        pair = self._usable_pair()
        auth = None
        if pair is None:
            token = self._token
            auth = self._auth if token is None else (str(self._name), token.reveal())
        renews = pair.certificate if pair is not None and pair is self._schedule.pair else None
        wanted = self._wanted
        if wanted is None or wanted.renews is not renews:
            wanted = self._wanted = Wanted(self._name, renews)
        try:
            fresh = await exchange.enrol(wanted, auth=auth, intermediates=found)
        except EnrolmentError as exc:
            if exc.reason is not EnrolmentReason.UNREACHABLE:
                self._wanted = None
            raise
        self._wanted = None
        self._token = self._first_pair = None
        _log.info("%r: %r", self, fresh, source=self, certificate=fresh.fingerprint)
        return fresh

    def _follow_roots(self, found: CAPool | None) -> None:
        if found is None:
            return
        before = self._roots
        overlaps = before is None or any(each in before.certificates for each in found.certificates)
        after = found if overlaps or before is None else before | found
        if before is not None and after != before:
            _log.info(
                "%r: the CA has other certificates: %d in place of %d",
                self,
                len(after.certificates),
                len(before.certificates),
                source=self,
            )
        self._roots = after

    # The state file

    async def _load(self) -> None:
        """Read the state file, if there is one."""
        file = self._file
        assert file is not None
        kept = await in_thread(Purpose.ENROLLING, _read_state, file)
        if kept is not None:
            pair, self._roots = kept
            self._schedule.take(pair, not_before(pair.certificate))
        self._loaded = True

    async def _save(self) -> None:
        pair = self._schedule.pair
        if self._file is not None and pair is not None:
            await in_thread(Purpose.ENROLLING, _write_state, self._file, pair, self._roots)


def _has(pool: CAPool | None, wanted: str) -> bool:
    """Whether a pool has the certificate of this fingerprint."""
    return pool is not None and any(fingerprint(each) == wanted for each in pool)


def _read_state(file: Path) -> tuple[KeyPair, CAPool | None] | None:
    if not file.exists():
        # Before a token is spent on what cannot be kept.
        if not os.access(file.parent, os.W_OK | os.X_OK):
            number = errno.EACCES if file.parent.is_dir() else errno.ENOENT
            raise OSError(number, os.strerror(number), str(file))
        return None
    try:
        kept = decode_untrusted(_DECODER, read_file(file, kind="state file").data)
    except UndecodableError:
        msg = f"{file} is damaged; remove it, and join with a token again"
        raise _damaged(msg) from None
    pair = KeyPair.from_pem(kept.chain.encode(), kept.key.encode())
    return pair, CAPool.from_pem(kept.roots.encode()) if kept.roots else None


def _damaged(text: str) -> CertificateError:
    return CertificateError(text, reason=CertificateReason.UNREADABLE)


def _write_state(file: Path, pair: KeyPair, roots: CAPool | None) -> None:
    kept = _Kept(
        key=private_key_to_pem(pair.private_key).decode(),
        chain=to_pem(pair.chain).decode(),
        roots=to_pem(roots or ()).decode(),
    )
    replace_files([(file, msgspec.json.encode(kept) + b"\n", PRIVATE)])
