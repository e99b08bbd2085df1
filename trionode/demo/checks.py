"""What the demo observed, and what it shows.

A check is a pure function of `Facts`, so none holds because of how the story was told. A check whose facts are missing
fails.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, TypeAlias, TypeVar, final

import msgspec

from .roles import ALPHA, BETA
from .said import (
    Connected,
    Received,
    Refusal,
    Rotated,
    Sent,
    short,
)

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")

#: Whether a check holds, and the evidence.
Verdict: TypeAlias = tuple[bool, str]


@final
class Facts(msgspec.Struct):
    """What was observed, in order; None where the story did not get that far."""

    first_pair: str | None = None
    """Fingerprint of the certificate on beta's disk at the start."""
    second_pair: str | None = None
    """Fingerprint of the certificate that replaced it."""
    alpha_pair: str | None = None
    alpha_sees: Connected | None = None
    beta_sees: Connected | None = None
    rotated: Rotated | None = None
    alpha_sees_later: Connected | None = None
    beta_sees_later: Connected | None = None
    gamma_sees: Connected | Refusal | None = None
    beta_sees_gamma: Connected | None = None
    stranger_told: Connected | Refusal | None = None
    stranger_refused: Refusal | None = None
    impostor_told: Connected | Refusal | None = None
    impostor_refused: Refusal | None = None
    nobody_told: Refusal | None = None
    nobody_refused: Refusal | None = None
    sent: Sent | None = None
    received: Received | None = None
    alpha_again: Connected | None = None
    exit_statuses: dict[str, int | None] = msgspec.field(default_factory=dict)
    trouble: str | None = None
    """Why the story ended early, if it did."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Check:
    """One claim of the demo, and whether it held."""

    title: str
    held: bool
    evidence: str


class _NotReachedError(Exception):
    """The facts for a check are missing."""


def _need(fact: T | None) -> T:
    if fact is None:
        raise _NotReachedError
    return fact


def _verified(seen: Connected, name: str, fingerprint: str) -> Verdict:
    evidence = (
        f"verified: {seen.verified}; {seen.peer} with {short(seen.peer_fingerprint)}, on disk {short(fingerprint)}"
    )
    return seen.verified and seen.peer == name and seen.peer_fingerprint == fingerprint, evidence


def _alpha_verified_beta(facts: Facts) -> Verdict:
    return _verified(_need(facts.alpha_sees), BETA, _need(facts.first_pair))


def _beta_verified_alpha(facts: Facts) -> Verdict:
    return _verified(_need(facts.beta_sees), ALPHA, _need(facts.alpha_pair))


def _rotated(facts: Facts) -> Verdict:
    rotated, old, new = _need(facts.rotated), _need(facts.first_pair), _need(facts.second_pair)
    evidence = f"generation {rotated.generation}, {short(old)} → {short(rotated.fingerprint)}"
    return rotated.generation == 2 and rotated.fingerprint == new != old, evidence


def _old_connection(facts: Facts) -> Verdict:
    alpha, beta, old = _need(facts.alpha_sees_later), _need(facts.beta_sees_later), _need(facts.first_pair)
    sees, presented = alpha.peer_fingerprint, beta.own_fingerprint
    evidence = f"alpha sees {short(sees)}, beta presented {short(presented)}; generation {beta.generation}"
    return sees == presented == old and alpha.peer_generation == beta.generation == 1, evidence


def _superseded(facts: Facts) -> Verdict:
    before, after, alpha = _need(facts.beta_sees), _need(facts.beta_sees_later), _need(facts.alpha_sees_later)
    evidence = f"superseded: {before.superseded} before, {after.superseded} after; at alpha {alpha.superseded}"
    return after.superseded and not before.superseded and not alpha.superseded, evidence


def _new_connection(facts: Facts) -> Verdict:
    gamma = facts.gamma_sees
    if gamma is None:
        raise _NotReachedError
    if isinstance(gamma, Refusal):
        return False, f"gamma could not connect: {gamma.error} {gamma.code}"
    beta, new = _need(facts.beta_sees_gamma), _need(facts.second_pair)
    sees, presented = gamma.peer_fingerprint, beta.own_fingerprint
    evidence = f"gamma sees {short(sees)}, beta presented {short(presented)}; generation {beta.generation}"
    fresh = beta.generation == 2 and not beta.superseded
    return gamma.verified and sees == presented == new and fresh, evidence


def _refused(told: Connected | Refusal | None, refused: Refusal | None, code: str, reason: str) -> Verdict:
    if told is None:
        raise _NotReachedError
    if isinstance(told, Connected) or not told.error:
        return False, "it was admitted"
    ours = _need(refused)
    evidence = f"beta: {ours.error} {ours.code}; it: {told.error} {told.code}"
    they_know = told.error in ("PeerRejectedError", "ssl.SSLError") and told.code == code
    return they_know and ours.error == "PeerUnverifiedError" and ours.code == reason, evidence


def _stranger(facts: Facts) -> Verdict:
    return _refused(facts.stranger_told, facts.stranger_refused, "unknown_ca", "unknown_ca")


def _impostor(facts: Facts) -> Verdict:
    return _refused(facts.impostor_told, facts.impostor_refused, "claimed_name", "claimed_name")


def _nobody(facts: Facts) -> Verdict:
    return _refused(facts.nobody_told, facts.nobody_refused, "certificate_required", "no_certificate")


def _nothing_lost(facts: Facts) -> Verdict:
    sent, received = _need(facts.sent), _need(facts.received)
    wrong = received.wrong_at or sent.wrong_at
    evidence = f"{sent.sent} sent, {received.received} received, {sent.echoed} echoed; out of place: {wrong or 'none'}"
    return sent.sent == sent.echoed == received.received > 0 and wrong is None, evidence


def _under_traffic(facts: Facts) -> Verdict:
    before = _need(facts.rotated).received
    after = _need(facts.received).received - before
    return before > 0 and after > 0, f"{before} before the rotation, {after} after it"


def _again(facts: Facts) -> Verdict:
    again, new = _need(facts.alpha_again), _need(facts.second_pair)
    evidence = f"alpha sees {short(again.peer_fingerprint)}; generation {again.peer_generation}"
    return again.verified and again.peer_fingerprint == new and again.peer_generation == 2, evidence


def _clean_end(facts: Facts) -> Verdict:
    statuses = facts.exit_statuses
    everyone = {"alpha", "beta", "gamma", "stranger", "impostor", "nobody"} <= statuses.keys()
    evidence = ", ".join(f"{name} {status}" for name, status in statuses.items()) or "no process ended"
    return everyone and all(status == 0 for status in statuses.values()), evidence


CHECKS: Final[dict[str, Callable[[Facts], Verdict]]] = {
    "alpha verified beta": _alpha_verified_beta,
    "beta verified alpha": _beta_verified_alpha,
    "beta rotated to the new files": _rotated,
    "the old connection still runs on the old certificate": _old_connection,
    "beta can see that it does": _superseded,
    "a new connection has the new certificate": _new_connection,
    "a stranger from another CA is refused": _stranger,
    "an impostor with a good certificate is refused": _impostor,
    "a client without a certificate is refused": _nobody,
    "no message was lost, doubled or reordered": _nothing_lost,
    "the rotation came in the middle of the traffic": _under_traffic,
    "alpha's next connection has the new certificate": _again,
    "every process ended by itself, status 0": _clean_end,
}


def judge(title: str, facts: Facts) -> Check:
    """One check, on the facts so far."""
    try:
        held, evidence = CHECKS[title](facts)
    except _NotReachedError:
        held, evidence = False, "not reached"
    return Check(title=title, held=held, evidence=evidence)


def judge_all(facts: Facts) -> list[Check]:
    """Every check."""
    return [judge(title, facts) for title in CHECKS]
