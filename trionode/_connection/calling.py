"""What opens channels and waits for room first, where they carry metadata; and a call, one message each way."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING

import trio

from trionode._errors import RemoteCode, RemoteError
from trionode._util.metadata import NO_METADATA

from .channel import ServiceChannel

if TYPE_CHECKING:
    from trionode._util.metadata import Metadata

    from .core import ConnectionCore


@trio.lowlevel.enable_ki_protection
async def is_ready(core: ConnectionCore, metadata: Metadata) -> bool:
    """Wait for room where there is metadata; whether channels can be opened then. No checkpoint comes after that.

    Args:
        core: the connection.
        metadata: what the caller says beside its messages.
    """
    if metadata and core.outbox.full:
        await core.outbox.wait_for_room()
    return core.live


@trio.lowlevel.enable_ki_protection
async def open_channel(core: ConnectionCore, service: str, metadata: Metadata = NO_METADATA) -> ServiceChannel:
    """As `Connection.open_channel`; no checkpoint where there is room.

    Args:
        core: the connection.
        service: its name over there.
        metadata: what the caller says beside its messages; what `as_metadata` gave.
    """
    if metadata and core.outbox.full:
        await core.outbox.wait_for_room()
    return ServiceChannel(core.open_channel(service, metadata))


@trio.lowlevel.enable_ki_protection
async def call(core: ConnectionCore, service: str, request: bytes, metadata: Metadata = NO_METADATA) -> bytes:
    """Open a channel, send one message, half-close, receive exactly one message, close; see `Connection.call`.

    Args:
        core: the connection.
        service: its name over there.
        request: the message.
        metadata: what the caller says beside it; what `as_metadata` gave.
    """
    await trio.lowlevel.checkpoint_if_cancelled()
    if metadata and core.outbox.full:
        await core.outbox.wait_for_room()
    outbox = core.outbox
    outbox.hold()  # the request in one piece, and no task step for the writer to find nothing left to do
    try:
        channel = core.open_channel(service, metadata, call=True)
    except Exception:
        outbox.release()
        # A loop that goes on after errors must not stop everything else; cancelled, it is.
        await trio.lowlevel.checkpoint()  # noqa: ASYNC120
        raise
    try:
        # Where the service has ended already, receiving knows how: by a reply, an error, or without either.
        with suppress(trio.BrokenResourceError):
            sent = False
            try:
                sent = channel.try_send_last(request)  # at once where there is room: two scheduler ticks less
            finally:
                outbox.release(flush=sent and len(core.channels.open) == 1)
            if not sent:
                await ServiceChannel(channel).send(request)
                await channel.sending.send_eof()
        reply = await channel.receive()
    except trio.EndOfChannel:
        channel.close()
        msg = f"service {service!r} of {core.peer.name}"
        raise RemoteError(msg, code=RemoteCode.NO_REPLY) from None
    except BaseException:
        channel.reset()
        raise
    channel.close()
    return reply
