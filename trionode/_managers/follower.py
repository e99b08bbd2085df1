"""A cert manager that follows a source: publishes what the source has, and reports once what keeps it from that.

Theory. One task, `follow_source`, in a nursery of the application, waits until its source may have changed, reads, and
publishes what differs from what the manager has: trust first, then the key pair, without a checkpoint in between, so
that no handshake takes the one without the other. `reload()` and a signal do the same at once, under one lock. Only
cancellation ends the task.

A failure to read or publish is a *condition*: it is in `status`, on the logger `trionode.sources` and among the events
of the nodes that use the manager, once when it begins or changes, and once when it is over. Meanwhile the last good
generation stays. The parts of a set are published independently where possible: revocation lists do not wait for a CA
to be retired, nor a key pair for the peers that a new pool would strand.

A set that was read but refused is *pending*. It is published when it has changed, or when the reason for the refusal is
gone, which is checked every `JUDGE_AGAIN` seconds: dates and live peers change by themselves.
"""

from __future__ import annotations

from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING, Any, Final, NoReturn, final

import trio
from trio_util import AsyncValue

from trionode._errors import CertificateError, CertificateReason, TrionodeError
from trionode._identity.certificate import not_after, not_before
from trionode._util.fields import check_argument
from trionode._util.log import Log
from trionode._util.text import said, shown

from .auth_manager import CertAuthManager
from .findings import FindingCode, Severity
from .manager import CertManager, publisher_of
from .sources import Credentials, Source
from .statistics import SourceState
from .trust import StrandedPeers, TrustRotationError

if TYPE_CHECKING:
    import signal
    from collections.abc import AsyncIterator, Collection, Iterator

    from trionode._credentials.key_pair import KeyPair

    from .publisher import Publisher

__all__ = ["Follower", "FollowerStatus", "follow_source"]

_log = Log("trionode.sources")

#: The shortest time between two readings, after a source has failed. Seconds.
RETRY: Final = 1.0
#: How often what was refused is judged again, without reading it again. Seconds.
JUDGE_AGAIN: Final = 10.0


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class FollowerStatus:
    """A snapshot of a follower.

    Attributes:
        error: what is wrong now, or None: what the source has is published. An `ExceptionGroup`, if both trust and key
            pair were refused.
        pending: what the source has and is not published, or not all of it; `error` says why. None if it could not be
            read.
        following: False once `follow_source` has ended.
    """

    error: Exception | None = None
    pending: Credentials | None = None
    following: bool = True


@final
class Follower:
    """Publishes what a source has, by a cert manager; made by `follow_source`.

    Attributes:
        manager: the manager that publishes.
        source: where the credentials come from.
        read_at: when the source was last read with success, on Trio's clock, seconds.
    """

    def __init__(self, manager: CertManager, source: Source, *, stranded: StrandedPeers, check: bool) -> None:
        self.manager = manager
        self.source = source
        self.read_at: float = -float("inf")
        self._stranded = stranded
        self._check = check
        self._seen: Credentials | None = None
        self._unpublished: Credentials | None = None
        self._status = AsyncValue(FollowerStatus())
        self._lock = trio.Lock()

    def __repr__(self) -> str:
        return f"<Follower of {shown(self.source)}>"

    @property
    def status(self) -> FollowerStatus:
        """Whether what the source has is published, and if not, why."""
        status: FollowerStatus = self._status.value
        return status

    async def wait_changed(self, seen: FollowerStatus) -> FollowerStatus:
        """Wait until the status is another than the one that was seen, and return it. Cancelling is harmless.

        Args:
            seen: what `status` was.

        Raises:
            trio.ClosedResourceError: what was seen is the last one: `follow_source` has ended.
        """
        await trio.lowlevel.checkpoint()
        if not seen.following:
            raise self._ended()
        status: FollowerStatus = await self._status.wait_value(lambda status: status != seen)
        return status

    async def reload(self) -> int:
        """Read now, and publish what differs, also what was refused before. Cancelled, it changes nothing.

        Returns:
            The generation that is published now, a new one or not.

        Raises:
            Exception: what the source raises, as a rule a `CertificateError`.
            CertificateError: the manager refused the key pair.
            TrustRotationError: the manager refused pools or lists, for the live peers that they would strand.
            ExceptionGroup: both.
            RuntimeError: the manager is in use by another Trio run.
            trio.ClosedResourceError: `follow_source` has ended.
        """
        async with self._lock:
            if not self.status.following:
                raise self._ended()
            with self._reporting(asked=True):
                await self._refresh(asked=True)
        return self.manager.generation

    async def _run(self, reload_on: Collection[signal.Signals], *, task_status: trio.TaskStatus[Follower]) -> NoReturn:
        """Follow until cancelled, see `follow_source`."""
        # The signals are caught before anything else: one that comes early must not end the process.
        with trio.open_signal_receiver(*reload_on) if reload_on else nullcontext() as signals:
            try:
                await self._refresh()
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._judge_again)
                    if signals is not None:
                        nursery.start_soon(self._heed, signals)
                    task_status.started(self)
                    await self._follow()
            finally:
                self._status.value = replace(self.status, following=False)
                publisher_of(self.manager).source = None

    async def _follow(self) -> NoReturn:
        """Read and publish whenever the source may have changed."""
        while True:
            since = trio.current_time()
            try:
                with self._reporting():
                    await self.source.wait_changed(self._seen)
                    async with self._lock:
                        await self._refresh()
            except Exception:  # noqa: BLE001 -- reported; it tries again
                await trio.sleep_until(since + RETRY)

    async def _judge_again(self) -> NoReturn:
        """Publish what was refused, once the reason is gone."""
        while True:
            await self._status.wait_value(lambda status: status.pending is not None)
            await trio.sleep(JUDGE_AGAIN)
            async with self._lock:
                with suppress(Exception), self._reporting():
                    pending = self.status.pending
                    if pending is not None and self._may_pass(pending):
                        self._unpublished = pending
                        self._publish(pending)

    async def _heed(self, signals: AsyncIterator[int]) -> None:
        """Reload at each signal."""
        async for number in signals:  # pragma: no branch -- they never end
            _log.info("signal %d: reading %s", number, shown(self.source), signal=number, source=self.source)
            with suppress(Exception):
                generation = await self.reload()
                _log.info(
                    "signal %d: what %s has is generation %d",
                    number,
                    shown(self.source),
                    generation,
                    signal=number,
                    source=self.source,
                    generation=generation,
                )

    async def _refresh(self, *, asked: bool = False) -> None:
        """Read, and publish what differs; what is pending only if the caller asked for it, by `reload` or a signal."""
        self._seen = self._unpublished = None
        found = await self.source.read()
        _expect_credentials(found, self.manager)
        self._seen, self.read_at = found, trio.current_time()
        self._unpublished = found
        if asked or found != self.status.pending:
            self._publish(found)

    def _publish(self, found: Credentials) -> None:
        if not self.status.following:
            raise self._ended()
        refusals: list[Exception] = []
        for publish in (self._publish_trust, self._publish_key_pair):
            try:
                publish(found)
            except (CertificateError, TrustRotationError) as exc:
                refusals.append(exc)
        if len(refusals) > 1:
            raise ExceptionGroup("neither the trust nor the key pair could be published", refusals)
        if refusals:
            raise refusals[0]
        self._unpublished = None
        self._report(None)

    def _publish_trust(self, found: Credentials) -> None:
        manager = self.manager
        change = _changed_trust(manager, found)
        if not isinstance(manager, CertAuthManager) or not change:
            return
        try:
            self._rotate_trust(manager, change, found.key_pair)
        except (CertificateError, TrustRotationError):
            if len(change) > 1 and "crls" in change:
                # A revocation does not wait until a CA can be retired.
                self._rotate_trust(manager, {"crls": change["crls"]}, found.key_pair)
            raise
        _log.info(
            "%s: published other CA pools or revocation lists, generation %d",
            shown(self.source),
            manager.generation,
            source=self.source,
            generation=manager.generation,
        )

    def _rotate_trust(self, manager: CertAuthManager, change: dict[str, Any], key_pair: KeyPair) -> None:
        errors = self._trust_findings(change, key_pair)
        if errors:
            msg = f"peers with this trust would refuse our own key pair, so it was held back: {' '.join(errors)}"
            raise CertificateError(msg, reason=CertificateReason.TRUST_FINDINGS)
        manager.rotate_trust(**change, stranded=self._stranded)

    def _publish_key_pair(self, found: Credentials) -> None:
        key_pair = found.key_pair
        if key_pair == self.manager.key_pair:
            return
        errors = self._findings(key_pair)
        if errors:
            msg = f"the key pair has errors that peers would find, so it was held back: {' '.join(errors)}"
            raise CertificateError(msg, reason=CertificateReason.FINDINGS)
        generation = self.manager.update(key_pair)
        _log.info(
            "%s: published another key pair, generation %d: %r",
            shown(self.source),
            generation,
            key_pair,
            source=self.source,
            generation=generation,
            certificate=key_pair.fingerprint,
        )

    def _findings(self, key_pair: KeyPair) -> list[str]:
        found = self.manager.check(key_pair) if self._check else ()
        return [f"{finding}." for finding in found if finding.severity is Severity.ERROR]

    def _trust_findings(self, change: dict[str, Any], key_pair: KeyPair) -> list[str]:
        """The errors of a key pair that new trust brings; that it was revoked is no reason to wait."""
        if not self._check:
            return []
        found = publisher_of(self.manager).check_after(partial(replace, **change), key_pair)
        return [f"{finding}." for finding in found if finding.code is not FindingCode.REVOKED]

    def _may_pass(self, pending: Credentials) -> bool:
        """Whether a reason for which `pending` was refused is gone."""
        return any(self._is_over(refusal, pending) for refusal in _each(self.status.error))

    def _is_over(self, refusal: Exception, pending: Credentials) -> bool:
        manager = self.manager
        if isinstance(refusal, TrustRotationError) and isinstance(manager, CertAuthManager):
            stranded = manager.stranded_by(**_changed_trust(manager, pending))
            return not any(peer.newly and not peer.revoked for peer in stranded)
        if not isinstance(refusal, CertificateError):
            return True
        if refusal.reason is CertificateReason.FINDINGS:
            return not self._findings(pending.key_pair)
        if refusal.reason is CertificateReason.TRUST_FINDINGS:
            return not self._trust_findings(_changed_trust(manager, pending), pending.key_pair)
        leaf = pending.key_pair.certificate
        dated = refusal.reason in {CertificateReason.EXPIRED, CertificateReason.NOT_YET_VALID}
        return dated and not_before(leaf) <= publisher_of(manager).now() <= not_after(leaf)

    # Logging and events

    @contextmanager
    def _reporting(self, *, asked: bool = False) -> Iterator[None]:
        try:
            yield
        except Exception as exc:
            self._report(exc, asked=asked)
            raise

    def _report(self, error: Exception | None, *, asked: bool = False) -> None:
        """Report a condition that is new, or was asked about, and the end of one."""
        old, new = self.status, FollowerStatus(error=error, pending=self._unpublished)
        if not old.following:
            return
        generation, changed = self.manager.generation, _condition(old) != _condition(new)
        if error is None and changed:
            _log.info(
                "%s: works again, what it has is generation %d",
                shown(self.source),
                generation,
                source=self.source,
                generation=generation,
            )
        elif error is not None and (changed or asked):
            why = "; ".join(map(_told, _each(error)))
            what = "it cannot be read" if new.pending is None else f"{new.pending.key_pair!r} was not published"
            _log.warning(
                "%s: %s, generation %d stays: %s",
                shown(self.source),
                what,
                generation,
                why,
                source=self.source,
                generation=generation,
                error=error,
            )
        if changed:
            self._status.value = new
        publisher = publisher_of(self.manager)
        publisher.report_source(self.status.error)
        self._show_state(publisher)

    def _show_state(self, publisher: Publisher) -> None:
        before, status = publisher.source, self.status
        lasting = before is not None and (before.error is None) == (status.error is None)
        publisher.source = SourceState(
            name=shown(self.source),
            error=status.error,
            pending=None if status.pending is None else status.pending.key_pair,
            since=before.since if before is not None and lasting else datetime.now(UTC),
        )

    def _ended(self) -> trio.ClosedResourceError:
        return trio.ClosedResourceError(f"{self!r} has ended")


async def follow_source(  # noqa: ASYNC128 -- Follower._run calls it
    manager: CertManager,
    source: Source,
    *,
    stranded: StrandedPeers = StrandedPeers.REFUSE,
    check: bool = False,
    reload_on: Collection[signal.Signals] = (),
    task_status: trio.TaskStatus[Follower] = trio.TASK_STATUS_IGNORED,
) -> NoReturn:
    """Publish what a source has, by a cert manager, until cancelled; for `nursery.start`, which returns a `Follower`.

    Reads and publishes once, then whenever the source has something else; with a `FileSource`, at most `poll_interval +
    settle` seconds after the files were last written. Nothing but cancellation ends it from then on. One follower for
    each manager: what is published there in another way holds until the source is read again.

    Args:
        manager: the manager that publishes; a `CertAuthManager`, if the source has CA pools or revocation lists.
        source: where the credentials come from.
        stranded: what becomes of live peers whose chains do not verify under new pools or lists, see
            `CertAuthManager.rotate_trust`. `REFUSE` keeps the old ones until there are no such peers any more.
        check: refuse key pairs in which `CertManager.check` finds errors, beside those that `update` refuses.
        reload_on: signals at which to read at once, `[signal.SIGHUP]` for one; they then no longer end the process.
            Only in the main thread.
        task_status: given the follower once it has read and published.

    Raises:
        Exception: what the source raises at the first reading, as a rule a `CertificateError`.
        CertificateError: the manager refused the key pair at the first reading.
        TrustRotationError: the manager refused pools or lists at the first reading.
        TypeError: the source gives something else than `Credentials`, or trust for a plain `CertManager`; or an
            argument is not what belongs there.
    """
    check_argument("manager", manager, CertManager)
    check_argument("source", source, Source)
    check_argument("stranded", stranded, StrandedPeers)
    check_argument("check", check, bool)
    follower = Follower(manager, source, stranded=stranded, check=check)
    await follower._run(reload_on, task_status=task_status)  # noqa: SLF001 -- the one caller


def _changed_trust(manager: CertManager, found: Credentials) -> dict[str, Any]:
    """What of a source's trust is not the manager's, as arguments of `rotate_trust`."""
    change: dict[str, Any] = {}
    if found.client_cas is not None and found.client_cas != manager.client_cas:
        change["client_cas"] = found.client_cas
    if found.root_cas is not None and found.root_cas != manager.root_cas:
        change["root_cas"] = found.root_cas
    # Where the source has an older list than the one in use, the latter stays: that is no difference.
    if found.crls is not None and publisher_of(manager).without_going_back(found.crls) != manager.crls:
        change["crls"] = found.crls
    return change


def _each(error: Exception | None) -> tuple[Exception, ...]:
    """The errors in a group, or the only one, or none."""
    if isinstance(error, ExceptionGroup):
        return tuple(error.exceptions)
    return () if error is None else (error,)


def _told(error: Exception) -> str:
    """An error's text; whole where it is ours, for its remedy is at its end."""
    return str(error) if isinstance(error, TrionodeError) else said(error)


def _condition(status: FollowerStatus) -> tuple[object, ...]:
    """What makes two conditions the same: not the time in a refusal's text, nor the words of other libraries."""
    kinds = tuple((type(error), getattr(error, "reason", None)) for error in _each(status.error))
    unreadable = isinstance(status.error, CertificateError) and status.pending is None
    return kinds, said(status.error) if status.error is not None and unreadable else None, status.pending


def _expect_credentials(found: object, manager: CertManager) -> None:
    if not isinstance(found, Credentials):
        msg = f"a source's read() returns Credentials, not {type(found).__name__}"
        raise TypeError(msg)
    trust = (found.client_cas, found.root_cas, found.crls)
    if not isinstance(manager, CertAuthManager) and any(each is not None for each in trust):
        msg = "the source has CA pools or revocation lists, and a CertManager has none; make it a CertAuthManager"
        raise TypeError(msg)
