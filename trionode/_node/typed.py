"""Typed messages: a thin, optional layer of msgspec types over channels and calls of bytes.

Channels carry bytes. Here both ends agree on types, anything that msgspec can encode (structs, dataclasses,
builtins), and messages travel as msgpack. What cannot be decoded as the agreed type resets the channel, and both ends
see `RemoteError(code="bad_message")` with msgspec's words on what is wrong where.
"""

from __future__ import annotations

from collections.abc import AsyncIterable
from contextlib import aclosing
from typing import TYPE_CHECKING, Final, Generic, Self, TypeVar, final

import msgspec
import trio

from trionode._errors import RemoteCode, RemoteError
from trionode._util.decoding import UndecodableError, decode_untrusted

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Mapping
    from types import TracebackType

    from trionode._connection.channel import ServiceChannel
    from trionode._connection.services import Service
    from trionode._identity.names import NodeName
    from trionode._identity.peer import Peer

    from .node import Node
    from .options import Route

__all__ = ["TypedChannel", "call_typed", "typed_service"]

S = TypeVar("S")
R = TypeVar("R")

_encoder: Final = msgspec.msgpack.Encoder()


@final
class TypedChannel(trio.abc.SendChannel[S], trio.abc.ReceiveChannel[R], Generic[S, R]):
    """A channel of typed messages over a `ServiceChannel`; its rules are that channel's.

    Attributes:
        channel: the channel of bytes underneath.
    """

    def __init__(self, channel: ServiceChannel, *, receives: type[R]) -> None:
        """Wrap a channel.

        Args:
            channel: owned by this one from now on.
            receives: the type of the messages that come; what is sent is whatever msgspec can encode.
        """
        self.channel = channel
        self._decoder = msgspec.msgpack.Decoder(receives)

    @property
    def peer(self) -> Peer:
        """The node at the other end."""
        return self.channel.peer

    async def send(self, value: S) -> None:
        """Encode and send; see `ServiceChannel.send`.

        Raises:
            TypeError: msgspec cannot encode the value.
        """
        await self.channel.send(_encoder.encode(value))

    async def send_many(self, values: Iterable[S] | AsyncIterable[S]) -> None:
        """Encode and send each in turn, when it is asked for; see `ServiceChannel.send_many`.

        Raises:
            TypeError: msgspec cannot encode one of the values; those before it were accepted.
        """
        if isinstance(values, AsyncIterable):
            async with aclosing(_encoded(values)) as messages:
                await self.channel.send_many(messages)
        else:
            await self.channel.send_many(map(_encoder.encode, values))

    async def send_eof(self) -> None:
        """Half-close; see `ServiceChannel.send_eof`."""
        await self.channel.send_eof()

    async def receive(self) -> R:
        """Receive and decode; see `ServiceChannel.receive`.

        Raises:
            RemoteError: code `bad_message`: it is not of the agreed type; the channel is reset.
        """
        return _decode(self._decoder, await self.channel.receive(), self.channel)

    async def aclose(self) -> None:
        """Close cleanly; see `ServiceChannel.aclose`."""
        await self.channel.aclose()

    async def __aenter__(self) -> Self:
        await self.channel.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Close cleanly, or reset if the block failed or was cancelled."""
        await self.channel.__aexit__(kind, error, traceback)  # noqa: ASYNC102 -- the channel's own is safe


def typed_service(function: Callable[[S], Awaitable[R]], *, request: type[S]) -> Service:
    """Make a service of a function from one typed request to one typed reply, for `call_typed`.

    Args:
        function: called with each decoded request; what it returns is the reply.
        request: the type of the request.
    """
    decoder = msgspec.msgpack.Decoder(request)

    async def serve(channel: ServiceChannel) -> None:
        question = _decode(decoder, await channel.receive(), channel)
        await channel.send(_encoder.encode(await function(question)))

    return serve


async def call_typed(
    node: Node,
    name: str | NodeName,
    service: str,
    request: object,
    *,
    reply: type[R],
    route: Route | None = None,
    metadata: Mapping[str, str | bytes] | None = None,
) -> R:
    """As `node.call`, with a request that msgspec encodes and a reply of a given type.

    The function behind a `typed_service` finds the metadata as `current_channel.get().metadata`.

    Raises:
        RemoteError: code `bad_message`: one of the two was not of the agreed type; and whatever `node.call` raises.
    """
    data = await node.call(name, service, _encoder.encode(request), route=route, metadata=metadata)
    return _decode(msgspec.msgpack.Decoder(reply), data, None)


async def _encoded(values: AsyncIterable[object]) -> AsyncGenerator[bytes, None]:
    async for value in values:
        yield _encoder.encode(value)


def _decode(decoder: msgspec.msgpack.Decoder[R], data: bytes, channel: ServiceChannel | None) -> R:
    try:
        return decode_untrusted(decoder, data)
    except UndecodableError as exc:
        text = str(exc)
        if channel is not None:
            channel.reset(RemoteCode.BAD_MESSAGE, text)
        raise RemoteError(text, code=RemoteCode.BAD_MESSAGE) from None
