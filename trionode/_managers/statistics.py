"""What there is to know of a cert manager: snapshots for applications, metrics and `trionode status`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, final

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime

    from trionode._credentials.key_pair import KeyPair
    from trionode._credentials.validity import Validity

__all__ = ["ManagerStatistics"]


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class ManagerStatistics:
    """A snapshot of a cert manager.

    Attributes:
        generation: what is published now; one more than the number of publications since construction.
        live_generations: as `CertManager.live_generations`, of all nodes that use it.
        refused: updates and rotations of trust that were refused so far, by `CertificateReason`, or `stranded` where
            they would have stranded live peers; every reason is there.
        source_trouble: what keeps `follow_source` from publishing what its source has; None if nothing does.
        validities: the validity periods of what it presents and trusts.
        source: which source `follow_source` keeps it at; None if it follows none.
        source_pending: the key pair that the source has and that is not published, or None.
        source_since: when `source_trouble` began; without trouble, since when there is none. UTC.
    """

    generation: int
    live_generations: Mapping[int, int]
    refused: Mapping[str, int]
    source_trouble: Exception | None
    validities: tuple[Validity, ...]
    source: str | None = None
    source_pending: KeyPair | None = None
    source_since: datetime | None = None


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class SourceState:
    """How the source of a manager is.

    Attributes:
        name: which source.
        error: what keeps its credentials from being published, or None.
        pending: the key pair that was read and not published, or None.
        since: when the trouble began, or, without one, when the source was last found well; UTC.
    """

    name: str
    error: Exception | None
    pending: KeyPair | None
    since: datetime
