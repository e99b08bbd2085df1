"""What both processes do: messages whose content says which they are, calls, rotations, and what is counted."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

import trio

from trionode import ConnectionDown, HandedOver, HandOverFailed, HandshakeRefused, LiveConnections, Renew, Side

if TYPE_CHECKING:
    from trionode import CertAuthManager, EventStream, Node, ServiceChannel
    from trionode.pki import CertificateAuthority

ALPHA, BETA, PROBE = "alpha@localhost", "beta@localhost", "probe@localhost"

#: Between two rotations, and between two dials of the probe. Seconds.
ROTATE_EVERY: Final = 0.1
PROBE_EVERY: Final = 0.05
#: All channels but the first rest this long between messages. Seconds.
PAUSE: Final = 0.005
#: How long anything may take that ends the run. Seconds.
PATIENCE: Final = 30

#: Which sizes follow each other on a channel, over and over; each channel begins somewhere else.
SIZES: Final = (0, 1, 100, 0, 1000, 16, 70_000, 3, 20_000, 500, 0, 300 * 1024, 64, 4096, 2, 0, 150, 65_536, 9)
#: Ends a direction, with the number of messages before it; no other message has this length.
END: Final = b"end"


def numbered(channel: int, number: int) -> bytes:
    """The message with this number; the same in both processes."""
    size = SIZES[(number + channel) % len(SIZES)]
    return (b"%d/%d;" % (channel, number) * (size // 4 + 1))[:size]


@dataclass(kw_only=True)
class Tally:
    """What one process counts.

    Attributes:
        messages: that came, on all channels.
        bytes: of these.
        sent: messages that it sent.
        calls: that it made.
        rotations: certificates that it published.
        hand_overs: that settled.
        lags: after each hand-over, how many generations its connection was behind.
        problems: what must not be.
    """

    messages: int = 0
    bytes: int = 0
    sent: int = 0
    calls: int = 0
    rotations: int = 0
    hand_overs: int = 0
    lags: list[int] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


async def send_numbered(channel: ServiceChannel, number: int, stop: trio.Event, tally: Tally) -> None:
    """Send numbered messages until told to stop, then how many that were."""
    count = 0
    while not stop.is_set():
        await channel.send(numbered(number, count))
        count += 1
        if number:
            await trio.sleep(PAUSE)
    await channel.send(END + count.to_bytes(8, "big"))
    await channel.send_eof()
    tally.sent += count


async def receive_numbered(channel: ServiceChannel, number: int, tally: Tally) -> None:
    """Receive numbered messages to their end, and the end of the channel; each message has to be the next."""
    count, announced = 0, None
    async for message in channel:
        if message.startswith(END) and len(message) == len(END) + 8:
            # Not the end: closing the channel now could break it for the sender, which calls `send_eof()` next.
            announced = int.from_bytes(message[len(END) :], "big")
            continue
        if announced is not None or message != numbered(number, count):
            shown = f"{len(message)} bytes, {message[:20]!r}"
            tally.problems.append(f"channel {number}: message {count} is not what came ({shown})")
            raise AssertionError(tally.problems[-1])
        count += 1
        tally.messages += 1
        tally.bytes += len(message)
    if announced is None:
        tally.problems.append(f"channel {number}: ended without its last message")
    elif announced != count:
        tally.problems.append(f"channel {number}: {announced} messages were sent, {count} came")


async def call_forever(node: Node, peer: str, tally: Tally, took: list[float]) -> None:
    """Call the peer again and again, and note how long it took; each reply has to be the one to its request."""
    while True:
        request = b"%s %d" % (str(node.name).encode(), tally.calls)
        began = time.perf_counter()
        if await node.call(peer, "reverse", request) != request[::-1]:
            tally.problems.append(f"a call to {peer} got the reply to another")
        took.append(time.perf_counter() - began)
        tally.calls += 1
        await trio.sleep(PAUSE)


async def reverse(channel: ServiceChannel) -> None:
    """A service that sends back the one message that comes, reversed."""
    await channel.send((await channel.receive())[::-1])


async def rotate(manager: CertAuthManager, ca: CertificateAuthority, tally: Tally, *names: str) -> None:
    """Publish a new certificate at a steady pace."""
    due = trio.current_time()
    while True:
        due = max(due + ROTATE_EVERY, trio.current_time())
        await trio.sleep_until(due)
        manager.update(ca.issue(*names))
        tally.rotations += 1


async def watch(node: Node, events: EventStream, manager: CertAuthManager, tally: Tally) -> None:
    """Count hand-overs; whatever fails is a problem."""
    async for event in events:
        if isinstance(event, HandedOver):
            tally.hand_overs += 1
            tally.lags.append(manager.generation - event.connection.generation)
        elif isinstance(event, HandOverFailed) or (isinstance(event, HandshakeRefused) and event.side is Side.DIAL):
            # What an acceptor refuses fails at the dialer, too, and is counted there. It may have to refuse to
            # hand over a probe's connection, which it asks for as for any other, and which is closed just then.
            tally.problems.append(f"{node.name}: {type(event).__name__}: {event.error}")
        elif isinstance(event, ConnectionDown) and str(event.peer.name) in (ALPHA, BETA):
            tally.problems.append(f"{node.name}: the connection ended: {event.reason}: {event.error}")


#: Hand over, and soon: a tenth of a second is all there is before the next generation.
HAND_OVER: Final = LiveConnections(on_rotation=Renew.HAND_OVER, within=0.05)
