"""Resolvers: from a node name to endpoints, where no route says how to reach it; and which names there are.

Theory. A resolver gives names, hosts and ports and nothing else, so whatever it says cannot weaken TLS: the certificate
must cover the name that was asked for, wherever the connection went. It is asked within `connect_timeout`; one that
hangs, raises or answers nonsense is reported and costs that dial only. How much it says is bounded.

`Resolver` is all that a node needs. A resolver may do more, each part by a protocol of its own: tell of changes
(`WatchingResolver`), name the members of the cluster (`NamingResolver`), make this node known (`Registrar`).
Implementations are in `trionode.discovery`.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import TYPE_CHECKING, Final, Protocol, final, runtime_checkable

import trio

from trionode._errors import TrionodeError
from trionode._identity.names import NodeName, canonical_host
from trionode._util.fields import Checked, Parsed, integer, rule
from trionode._util.text import Address, printable

if TYPE_CHECKING:
    from contextlib import AbstractAsyncContextManager

__all__ = ["Endpoint", "NamingResolver", "Registrar", "Resolver", "ResolverError", "WatchingResolver"]

#: TCP port of a node that says no other.
DEFAULT_PORT: Final = 15000

#: Of one name: further ones are not tried, and not registered.
MAX_ENDPOINTS: Final = 32

#: What a resolver may name; further ones are left out, and that is reported.
MAX_NAMES: Final = 16 * 1024


@final
class ResolverError(TrionodeError):
    """A resolver failed, or a registry cannot be used; the text says what to do.

    Attributes:
        temporary: whether it is an outage, so that trying again may help; otherwise it is for people to mend.
    """

    def __init__(self, text: str, *, temporary: bool = False) -> None:
        super().__init__(text)
        self.temporary: bool = temporary


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
class WatchingResolver(Resolver, Protocol):
    """A resolver that tells of changes: a connector that waits for its next attempt then dials at once."""

    def watch(self, name: NodeName, /) -> AbstractAsyncContextManager[trio.abc.ReceiveChannel[Sequence[Endpoint]]]:
        """What `resolve` would answer: now, and whenever that changes, for the length of an `async with` block.

        A slow reader may miss what is past, never what is last. A node that registered anew, at the same endpoints, is
        told again. `trio.as_safe_channel` makes such a method of an async generator.

        Args:
            name: of the node.
        """
        ...


@runtime_checkable
class NamingResolver(Resolver, Protocol):
    """A resolver that knows which nodes there are."""

    def names(self, pattern: str, /) -> AbstractAsyncContextManager[trio.abc.ReceiveChannel[Collection[NodeName]]]:
        """The names of the nodes that are there: now, and whenever that changes, for the length of a block.

        Each item has all of them. It may have more than match, which the node leaves out. A slow reader may miss what
        is past, never what is last.

        Args:
            pattern: a node name, or a glob (`*`, `?`) over the whole `name@host`; `*` is every node.
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

        Calls `task_status.started()` once the node can be found, and again each time that it can after an outage. It
        may sit an outage out, or raise: then it is run again, with back-off. Only what it raises before the first
        `started()` says that it cannot be used at all, and the node does not open, unless that is a `ResolverError`
        which is `temporary`. Cancelled, it withdraws the node, shielded and bounded.

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


def checked_names(answer: object) -> frozenset[NodeName]:
    """The names that a resolver named, if that is what it should be; `MAX_NAMES` at most.

    Raises:
        ResolverError: it is not.
    """
    if not isinstance(answer, Collection) or not all(isinstance(each, NodeName) for each in answer):
        msg = f"the resolver named {printable(repr(answer), 100)}; a collection of NodeName was expected"
        raise ResolverError(msg)
    return frozenset(islice(answer, MAX_NAMES))
