"""When a certificate is to be renewed, and when to try again what failed: the same for every protocol.

A certificate is due at a share of its lifetime that is drawn anew each time, so that programs that started together do
not renew together. What fails is tried again with exponential back-off and jitter, never more seldom than four times in
what is left of the certificate.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Final, final

import trio

from trionode._identity.certificate import not_after, not_before
from trionode._identity.describe import describe
from trionode._util.backoff import Backoff

from ._errors import EnrolmentError, EnrolmentReason

if TYPE_CHECKING:
    from collections.abc import Callable

    from trionode._credentials.key_pair import KeyPair
    from trionode._credentials.policy import Clock
    from trionode._identity.names import NodeName

#: The share of the lifetime by which renewals are spread, before `renew_after`.
_JITTER: Final = 0.1
#: The waits after failures: the longest first one, the longest, the shortest. Seconds.
_FIRST: Final = 5.0
_LONGEST: Final = 600.0
_SHORTEST: Final = 0.5
#: The longest that a CA may ask for, where there is no certificate that would end. Seconds.
_LONGEST_ASKED: Final = 86400.0


@final
class Schedule:
    """One certificate's.

    Attributes:
        pair: the present key pair, or None.
    """

    def __init__(
        self, name: NodeName | str, *, renew_after: float, clock: Clock | None, draw: Callable[[], float]
    ) -> None:
        """Begin without a certificate.

        Args:
            name: whose, for errors.
            renew_after: at which share of the lifetime to renew, at the latest.
            clock: source of "now".
            draw: a random number from 0 to 1.

        Raises:
            ValueError: the share is too small or too large.
        """
        if not 0.2 <= renew_after <= 0.9:
            msg = f"renew_after must be a share from 0.2 to 0.9, not {renew_after}"
            raise ValueError(msg)
        self._name, self._renew_after, self._clock, self._draw = name, renew_after, clock, draw
        self.pair: KeyPair | None = None
        self._renew_at: datetime | None = None
        self._retry_at = -float("inf")
        self._failures = 0

    def now(self) -> datetime:
        """The time."""
        return datetime.now(UTC) if self._clock is None else self._clock()

    def take(self, pair: KeyPair, began: datetime) -> None:
        """A new certificate, that counts from this moment.

        Raises:
            EnrolmentError: it has ended already, so that there is no use in it.
        """
        if not_after(pair.certificate) <= began:
            msg = (
                f"the certificate that came has ended, by this machine's clock ({began:%Y-%m-%d %H:%M:%S} UTC): "
                f"{describe(pair.certificate)}"
            )
            raise EnrolmentError(msg, reason=EnrolmentReason.BAD_ANSWER)
        lifetime = not_after(pair.certificate) - began
        self.pair, self._renew_at = pair, began + lifetime * (self._renew_after - _JITTER * self._draw())

    def is_due(self) -> bool:
        """Whether it is time to renew."""
        return self._renew_at is None or self.now() >= self._renew_at

    def left(self) -> timedelta:
        """What is left of the certificate; nothing where there is none."""
        end = None if self.pair is None else not_after(self.pair.certificate)
        return timedelta() if end is None else max(end - self.now(), timedelta())

    def is_usable(self, pair: KeyPair | None) -> bool:
        """Whether a certificate is valid now."""
        return pair is not None and not_before(pair.certificate) <= self.now() < not_after(pair.certificate)

    def wait(self, also_at: datetime | None = None) -> float:
        """Seconds until something is to be done; 0 or less if it is now.

        Args:
            also_at: when something else is due.
        """
        if self._failures:
            return self._retry_at - trio.current_time()
        if self._renew_at is None or also_at is None:
            return 0
        return (min(self._renew_at, also_at) - self.now()).total_seconds()

    def renewal(self) -> datetime | None:
        """When the certificate is due."""
        return self._renew_at

    def succeeded(self) -> None:
        """Nothing is wrong."""
        self._failures, self._retry_at = 0, -float("inf")

    def failed(self, exc: Exception) -> None:
        """Say when to try again; a CA that says when, is asked then, unless the certificate would come to its end."""
        self._failures += 1
        left = self.left().total_seconds()
        most = max(_SHORTEST, left / 4) if left > 0 else _LONGEST_ASKED
        longest = min(_LONGEST, most)
        wait = Backoff(first=min(_FIRST, longest), longest=longest, least=0.5).wait(self._failures, self._draw)
        if isinstance(exc, EnrolmentError) and exc.retry_after is not None:
            wait = max(wait, min(exc.retry_after, most))
        self._retry_at = trio.current_time() + wait

    def another_run(self) -> None:
        """What was measured by the clock of one Trio run says nothing in the next."""
        self._retry_at = -float("inf")

    def told(self, exc: EnrolmentError) -> EnrolmentError:
        """The same error, with the time that is left of the certificate."""
        return EnrolmentError(self._with_time_left(exc), reason=exc.reason, retry_after=exc.retry_after)

    def _with_time_left(self, exc: EnrolmentError) -> str:
        if self.pair is None:
            return f"{self._name} has no certificate yet: {exc}"
        end, left = not_after(self.pair.certificate), self.left()
        if not left:
            return f"the certificate of {self._name} has ended ({end:%Y-%m-%d %H:%M:%S} UTC): {exc}"
        shown = timedelta(seconds=int(left.total_seconds()))
        return f"the certificate of {self._name} ends in {shown} ({end:%Y-%m-%d %H:%M:%S} UTC): {exc}"
