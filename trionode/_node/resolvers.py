"""Resolvers: from a node name to endpoints, where no route says how to reach it.

Theory. A resolver gives hosts and ports and nothing else, so whatever it says cannot weaken TLS: the certificate must
cover the name that was asked for, wherever the connection went. It is asked within `connect_timeout`; one that hangs,
raises or answers nonsense is reported and costs that dial only. Implementations are in `trionode.discovery`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final, Protocol, final, runtime_checkable

import trio

from trionode._errors import TrionodeError
from trionode._identity.names import NodeName, canonical_host
from trionode._util.fields import Checked, Parsed, integer, rule
from trionode._util.text import Address, printable

__all__ = ["Endpoint", "Registrar", "Resolver", "ResolverError"]

#: Of one name: further ones are not tried, and not registered.
MAX_ENDPOINTS: Final = 32


@final
class ResolverError(TrionodeError):
    """A resolver failed, or the registry's directory is not private; the text says what to do."""


@final
@dataclass(frozen=True, slots=True)
class Endpoint(Checked):
    """Where a node may be reached.

    Attributes:
        host: a DNS name or an address; canonicalised.
        port: TCP port, 1 to 65535.
    """

    host: str = field(metadata=rule(Parsed(canonical_host, "a DNS name or an IP address")))
    port: int = field(metadata=rule(integer(1, 65535)))


@runtime_checkable
class Resolver(Protocol):
    """Finds a node's endpoints."""

    async def resolve(self, name: NodeName, /) -> Sequence[Endpoint]:
        """Endpoints to try, in order; none if the name is not known.

        Args:
            name: of the node that is dialled.
        """
        ...


@runtime_checkable
class Registrar(Protocol):
    """A resolver that open nodes make themselves known to."""

    async def register(
        self,
        name: NodeName,
        addresses: Sequence[Address],
        /,
        *,
        task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """Make a node known for as long as this runs: a task of the node, which is cancelled when it stops.

        Calls `task_status.started()` once the node can be found, and again each time that it can after an outage. An
        outage is the registrar's to sit out; to raise before the first `started()` says that it cannot be used at all,
        and the node then does not open. Cancelled, it withdraws the node, shielded and bounded.

        Args:
            name: of the node.
            addresses: where it listens: hosts and ports.
            task_status: as for `trio.Nursery.start`.
        """
        ...


def checked_endpoints(name: NodeName, answer: object) -> list[Endpoint]:
    """What a resolver answered, if that is what it should be.

    Raises:
        ResolverError: it is not.
    """
    if not isinstance(answer, Sequence) or not all(isinstance(each, Endpoint) for each in answer):
        msg = f"the resolver answered {printable(repr(answer), 100)} for {name}; a sequence of Endpoint was expected"
        raise ResolverError(msg)
    return list(answer[:MAX_ENDPOINTS])
