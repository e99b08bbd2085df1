"""What a manager publishes, and the memory channel that it is published on.

Theory. `TLSContexts` is one generation: both sides' OpenSSL contexts and the key pair that they present, immutable.
`ContextsChannel` is a `trio.abc.ReceiveChannel` over a Trio memory channel of size one that always holds exactly the
current contexts. Taking is "checkpoint, receive, put back", publishing is "drop, put"; neither has a checkpoint
inside, so both are atomic in Trio, and a `receive()` that was called, or even woke, after a publication never yields
an older generation. No task offers anything and none ever waits on the channel: it can be made and published to
outside a run, and serves successive runs.

A queue that is merely filled would hand out stale contexts (four of four, measured), and an offering task's blocked
`send()` still holds one; both hand every item to one taker only.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from threading import Lock
from typing import TYPE_CHECKING, Final, Protocol, TypeAlias, final

import trio
from trio.lowlevel import enable_ki_protection

from .engine import ClientSide, ServerSide

if TYPE_CHECKING:
    from collections.abc import Callable

    from trionode._credentials.key_pair import KeyPair
    from trionode._credentials.policy import TLSPolicy

__all__ = ["TLSContexts"]


class Publishes(Protocol):
    """Where contexts come from, as far as what was made with them asks: which generation is published now."""

    @property
    def generation(self) -> int:
        """The generation that is published now."""

    async def wait_generation(self, generation: int) -> None:
        """Wait until this generation, or a later one, is published."""


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class TLSContexts:
    """One generation of a cert manager: what every handshake that takes it presents and asks for. Immutable.

    Attributes:
        generation: 1 from construction of the manager, one more for each successful update.
        key_pair: the key pair that both sides present.
        server: for acceptors.
        client: for connectors.
        publisher: what publishes them, or None of contexts that are published nowhere.
    """

    generation: int
    key_pair: KeyPair
    server: ServerSide
    client: ClientSide
    publisher: Publishes | None = field(compare=False)

    @classmethod
    def build(
        cls, generation: int, key_pair: KeyPair, policy: TLSPolicy, *, publisher: Publishes | None = None
    ) -> TLSContexts:
        """Build both sides.

        Args:
            generation: its number.
            key_pair: what is presented.
            policy: what is asked of peers, and which are believed.
            publisher: what publishes them.

        Raises:
            CertificateError: OpenSSL does not accept the key pair.
        """
        return cls(
            generation=generation,
            key_pair=key_pair,
            server=ServerSide(key_pair, policy),
            client=ClientSide(key_pair, policy),
            publisher=publisher,
        )

    def __repr__(self) -> str:
        return f"<TLSContexts generation {self.generation}: {self.key_pair!r}>"


@final
class ContextsChannel(trio.abc.ReceiveChannel[TLSContexts]):
    """The shared receive channel: every `receive()` yields the contexts that are current when it returns."""

    def __init__(self, first: TLSContexts) -> None:
        self._send, self._receive = trio.open_memory_channel[TLSContexts](1)
        self._send.send_nowait(first)
        # Trio needs no lock; an unused manager may be updated from any thread, and that must not tear a take.
        self._lock = Lock()

    # A KeyboardInterrupt between the two halves of a take or a publication would leave the channel empty for ever.

    @property
    @enable_ki_protection
    def current(self) -> TLSContexts:
        """The contexts that are published now."""
        with self._lock:
            contexts = self._receive.receive_nowait()
            self._send.send_nowait(contexts)
        return contexts

    @enable_ki_protection
    def publish(self, contexts: TLSContexts) -> None:
        """Replace what the channel holds; synchronous and atomic."""
        with self._lock:
            self._receive.receive_nowait()
            self._send.send_nowait(contexts)

    async def receive(self) -> TLSContexts:
        """Take the current contexts; a checkpoint. Cancelling takes nothing."""
        await trio.lowlevel.checkpoint()
        return self.current

    async def aclose(self) -> None:
        """Do nothing but checkpoint: the channel is the manager's, and its users share it."""
        await trio.lowlevel.checkpoint()


@final
class ContextsByName:
    """Where an acceptor's handshakes take their contexts, by the server name that the client asks for.

    Attributes:
        names: what it serves, in words.
    """

    __slots__ = ("_choose", "names")

    def __init__(self, choose: Callable[[str | None], trio.abc.ReceiveChannel[TLSContexts] | None], names: str) -> None:
        """Make one.

        Args:
            choose: gives the channel for a server name, and for none; None where there is no channel.
            names: what it serves, in words.
        """
        self.names: Final = names
        self._choose = choose

    def channel(self, server_name: str | None) -> trio.abc.ReceiveChannel[TLSContexts] | None:
        """The channel for a server name, as text from the wire, or for none; None where there is no channel."""
        return self._choose(server_name)

    def same(self, one: str | None, other: str | None) -> bool:
        """Whether two server names lead to one channel."""
        return self._choose(one) is self._choose(other)


#: Where an acceptor's handshakes take their contexts.
ContextsSource: TypeAlias = trio.abc.ReceiveChannel[TLSContexts] | ContextsByName
