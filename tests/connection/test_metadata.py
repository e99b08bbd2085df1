"""Metadata: what a caller says beside its messages, on its way to a service, and what a peer cannot do by it.

Nodes are on a network in memory, and peers that break the rules are written frame by frame: nothing real is waited for.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any, Final

import msgspec
import pytest
import trio
import trio.testing

from trionode import (
    EndReason,
    LocalProtocolError,
    NetworkOptions,
    RemoteCode,
    RemoteError,
    RemoteProtocolError,
    _protocol as wire,
    call_typed,
    current_channel,
    typed_service,
)
from trionode._connection.send_queue import CEILING
from trionode._util.metadata import MAX_ENTRIES
from trionode.testing import cluster_ca, node_factory

if TYPE_CHECKING:
    from collections.abc import Mapping

    from conftest import ScriptedFactory

    from trionode import ServiceChannel
    from trionode.pki import CertificateAuthority
    from trionode.testing import NodeFactory

pytestmark = pytest.mark.usefixtures("jumping_clock")

BETA: Final = "beta@beta.test"
SAID: Final[Mapping[str, str | bytes]] = {"tenant": "a", "token": b"\x00\xff", "größe": "ü", "empty": "", "none": b""}
SECRET: Final = "hunter2-hunter2"  # it must not show


@pytest.fixture(scope="module")
def ca() -> CertificateAuthority:
    """The CA of all nodes here."""
    return cluster_ca()


@pytest.fixture
def nodes(ca: CertificateAuthority) -> NodeFactory:
    """Opens nodes in memory."""
    return node_factory(ca)


class Seen:
    """A service that notes the metadata of each channel, and answers each message."""

    def __init__(self) -> None:
        self.metadata: list[Mapping[str, str | bytes]] = []

    async def __call__(self, channel: ServiceChannel) -> None:
        """Serve."""
        assert current_channel.get().metadata is channel.metadata
        self.metadata.append(channel.metadata)
        async for message in channel:
            await channel.send(message)


# From a caller to a service -------------------------------------------------------------------------------------------


async def test_every_verb_carries_metadata(nodes: NodeFactory) -> None:
    """Calls and channels of nodes, of connections and with types; to one node, and to one of several."""
    seen = Seen()
    async with nodes("beta", services={"seen": seen}), nodes("alpha") as alpha:
        assert await alpha.call(BETA, "seen", b"x", metadata=SAID) == b"x"
        assert await alpha.call("beta@*", "seen", b"x", metadata=SAID) == b"x"
        for pattern in (BETA, "beta@*"):
            async with alpha.open_channel(pattern, "seen", metadata=SAID) as channel:
                await channel.send(b"x")
                assert await channel.receive() == b"x"
                assert channel.metadata == SAID
        connection = await alpha.connect(BETA)
        assert await connection.call("seen", b"x", metadata=SAID) == b"x"
        async with connection.open_channel("seen", metadata=SAID) as channel:
            await channel.send(b"x")
            assert await channel.receive() == b"x"
            assert channel.metadata == SAID
    assert seen.metadata == [SAID] * 6


async def test_typed_services_find_it_on_their_channel(nodes: NodeFactory) -> None:
    """The function gets the request alone; the rest is in `current_channel`."""

    async def tenant_of(request: int) -> list[object]:
        return [request, current_channel.get().metadata["tenant"]]

    async with nodes("beta", services={"tenant": typed_service(tenant_of, request=int)}), nodes("alpha") as alpha:
        reply = await call_typed(alpha, BETA, "tenant", 7, reply=list[object], metadata={"tenant": "a"})
    assert reply == [7, "a"]


async def test_without_metadata_there_is_an_empty_mapping(nodes: NodeFactory) -> None:
    """At both ends, and the same where an empty one is given: services need no case for it."""
    seen = Seen()
    async with nodes("beta", services={"seen": seen}), nodes("alpha") as alpha:
        for metadata in (None, dict[str, str]()):
            async with alpha.open_channel(BETA, "seen", metadata=metadata) as channel:
                await channel.send(b"x")
                await channel.receive()
                assert channel.metadata == {}
    assert seen.metadata == [{}, {}]


async def test_it_is_read_only_and_nobodys_later_change(nodes: NodeFactory) -> None:
    """A copy is taken when the verb is used, and neither end can change what it has."""
    seen, said = Seen(), {"tenant": "a"}
    async with nodes("beta", services={"seen": seen}), nodes("alpha") as alpha:
        async with alpha.open_channel(BETA, "seen", metadata=said) as channel:
            said["tenant"] = "b"
            await channel.send(b"x")
            await channel.receive()
            for metadata in (channel.metadata, seen.metadata[0]):
                assert metadata == {"tenant": "a"}
                with pytest.raises(TypeError):
                    metadata["tenant"] = "b"  # type: ignore[index]  # that is the question


# What is none ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wrong", "kind", "words"),
    [
        pytest.param("tenant=a", TypeError, "must be a mapping .* not a str", id="text"),
        pytest.param([("tenant", "a")], TypeError, "must be a mapping .* not a list", id="pairs"),
        pytest.param(0, TypeError, "must be a mapping .* not an int", id="number"),
        pytest.param({b"tenant": "a"}, TypeError, "a key of metadata must be a string, not a bytes", id="key"),
        pytest.param({"tenant": 1}, TypeError, r"metadata\['tenant'\] must be a string or bytes, not an int", id="int"),
        pytest.param({"t": None}, TypeError, r"metadata\['t'\] must be a string or bytes, not a NoneType", id="none"),
        pytest.param({"t": bytearray(1)}, TypeError, r"metadata\['t'\] .*, not a bytearray", id="bytearray"),
        pytest.param({"": "a"}, ValueError, "a key of metadata has 1 to 255 characters, not 0", id="no-key"),
        pytest.param({"k" * 256: "a"}, ValueError, "1 to 255 characters, not 256", id="long-key"),
        pytest.param({"\ud800": "a"}, ValueError, "a key of metadata has a lone surrogate", id="key-surrogate"),
        pytest.param({"k": "\udfff"}, ValueError, r"metadata\['k'\] has a lone surrogate", id="value-surrogate"),
        pytest.param({"\n" + str(n): "" for n in range(129)}, ValueError, "at most 128 entries, not 129", id="many"),
        pytest.param({"a\nb": 1}, TypeError, r"metadata\['a\\nb'\] must", id="escaped"),
    ],
)
async def test_what_is_no_metadata_is_refused_at_once(
    nodes: NodeFactory, wrong: Any, kind: type[Exception], words: str
) -> None:
    """By each verb, before anything is dialled or sent; the connection is none the worse for it."""
    seen = Seen()
    async with nodes("beta", services={"seen": seen}), nodes("alpha") as alpha:
        with pytest.raises(kind, match=words):
            await alpha.call(BETA, "seen", b"x", metadata=wrong)
        with pytest.raises(kind, match=words):
            async with alpha.open_channel(BETA, "seen", metadata=wrong):
                raise AssertionError
        assert not alpha.connections
        connection = await alpha.connect(BETA)
        with pytest.raises(kind, match=words):
            await connection.call("seen", b"x", metadata=wrong)
        with pytest.raises(kind, match=words):
            connection.open_channel("seen", metadata=wrong)
        assert connection.statistics().channels_opened == 0
        assert await connection.call("seen", b"x") == b"x"


async def test_metadata_that_is_too_large_is_refused_before_a_byte_is_sent(nodes: NodeFactory) -> None:
    """The limit is the peer's, of what is encoded; the text has both sides', and the remedy."""
    seen, most = Seen(), {"k": "x" * (100 - 5)}
    assert len(wire.encode_metadata(most)) == 100
    limited = NetworkOptions(max_metadata_size=100)
    async with nodes("beta", services={"seen": seen}, network=limited), nodes("alpha") as alpha:
        connection = await alpha.connect(BETA)
        assert await connection.call("seen", b"x", metadata=most) == b"x"
        before = connection.statistics()
        words = (
            r"101 bytes for 'seen' .* 100 that beta@beta.test accepts \(we accept 8192\); send less, or raise max_meta"
        )
        with pytest.raises(LocalProtocolError, match=words):
            await connection.call("seen", b"x", metadata={"k": "x" * 96})
        with pytest.raises(LocalProtocolError, match=words):
            await alpha.call(BETA, "seen", b"x", metadata={"k": "x" * 96})
        with pytest.raises(LocalProtocolError, match=words):
            connection.open_channel("seen", metadata={"k": "x" * 96})
        assert connection.statistics() == before
        assert await connection.call("seen", b"x") == b"x"
    assert seen.metadata == [most, {}]


async def test_metadata_to_a_peer_that_takes_none(nodes: NodeFactory) -> None:
    """The error says that the peer may be older; what has no metadata is called as ever."""
    seen = Seen()
    async with nodes("beta", services={"seen": seen}, network=NetworkOptions(max_metadata_size=0)), nodes("a") as alpha:
        with pytest.raises(
            LocalProtocolError, match=r"accepts no metadata, and 10 bytes for 'seen' were given; .* 0, or"
        ):
            await alpha.call(BETA, "seen", b"x", metadata={"tenant": "a"})
        assert await alpha.call(BETA, "seen", b"x", metadata={}) == b"x"


async def test_an_older_peer_sees_the_frames_of_before(scripted: ScriptedFactory) -> None:
    """An OPEN without metadata has no key that older releases do not have."""
    async with scripted(dialled=True) as play:
        play.connection.open_channel("feed")
        _, _, payload = await play.peer.frame(wire.OPEN)
        assert msgspec.msgpack.decode(payload) == {"service": "feed", "timeout": 3600.0}


async def test_many_calls_at_once_with_much_metadata_wait_for_room(nodes: NodeFactory) -> None:
    """More than a connection would queue: they go out as it is written, and the connection is none the worse for it."""
    seen, large = Seen(), {"k": "x" * 8000}

    async def call() -> None:
        assert await alpha.call(BETA, "seen", b"x", metadata=large) == b"x"

    async def open_channel() -> None:
        async with alpha.open_channel(BETA, "seen", metadata=large) as channel:
            await channel.send(b"x")
            assert await channel.receive() == b"x"

    async with nodes("beta", services={"seen": seen}), nodes("alpha") as alpha:
        connection = await alpha.connect(BETA)
        async with trio.open_nursery() as nursery:
            for _ in range(200):
                nursery.start_soon(call)
                nursery.start_soon(open_channel)
        assert len(seen.metadata) * 8000 > 1.5 * CEILING
        assert connection.live


async def test_who_cannot_wait_for_room_is_refused(nodes: NodeFactory) -> None:
    """`connection.open_channel` is synchronous: it says that too much waits, and works again once that is written."""
    seen, large = Seen(), {"k": "x" * 8000}
    async with nodes("beta", services={"seen": seen}), nodes("alpha") as alpha:
        connection = await alpha.connect(BETA)
        channels: list[ServiceChannel] = []
        with pytest.raises(RemoteError, match=r"too much waits to be written to beta@beta.test for 8006") as caught:
            channels.extend(connection.open_channel("seen", metadata=large) for _ in range(1000))
        assert (caught.value.code, caught.value.not_run) == (RemoteCode.LIMIT, True)
        assert len(channels) * 8000 > CEILING // 3
        connection.open_channel("seen").reset()
        await trio.testing.wait_all_tasks_blocked()
        assert connection.live
        async with connection.open_channel("seen", metadata=large) as channel:
            await channel.send(b"x")
            assert await channel.receive() == b"x"
        for channel in channels:
            channel.reset()


async def test_who_waits_for_room_learns_of_the_end(nodes: NodeFactory) -> None:
    """Calls that wait when the connection ends are made on another one, or fail, but never hang."""
    seen, large = Seen(), {"k": "x" * 8000}
    errors: list[Exception] = []

    async def call() -> None:
        try:
            await connection.call("seen", b"x", metadata=large)
        except (trio.ClosedResourceError, trio.BrokenResourceError, RemoteError) as exc:
            errors.append(exc)

    async with nodes("beta", services={"seen": seen}), nodes("alpha") as alpha:
        connection = await alpha.connect(BETA)
        async with trio.open_nursery() as nursery:
            for _ in range(300):
                nursery.start_soon(call)
            await trio.lowlevel.checkpoint()
            await connection.aclose()
    assert errors


async def test_the_largest_metadata_fits_into_a_frame(nodes: NodeFactory) -> None:
    """Beside the longest name of a service; and the largest details beside the longest words."""
    size, name = 60 * 1024, "\U0001f600" * 255
    metadata = {"k": bytes(size - 6)}
    assert len(wire.encode_metadata(metadata)) == size
    seen: list[object] = []

    async def serve(channel: ServiceChannel) -> None:
        seen.append(channel.metadata)
        raise RemoteError("\U0001f600" * 300, code="\U0001f600" * 64, metadata=metadata)

    network = NetworkOptions(max_metadata_size=size)
    async with nodes("beta", services={name: serve}, network=network), nodes("alpha", network=network) as alpha:
        with pytest.raises(RemoteError) as caught:
            await alpha.call(BETA, name, b"x", metadata=metadata)
    assert seen == [metadata]
    assert caught.value.metadata == metadata


# What does not show ---------------------------------------------------------------------------------------------------


async def test_values_show_in_no_log_repr_or_error(nodes: NodeFactory, caplog: pytest.LogCaptureFixture) -> None:
    """They may be credentials: also where the service fails, is unknown, or the metadata is wrong."""
    caplog.set_level(logging.DEBUG)
    texts: list[str] = []

    async def fails(channel: ServiceChannel) -> None:
        texts.append(repr(channel))
        msg = "broken"
        raise ValueError(msg)

    async with nodes("beta", services={"fails": fails}), nodes("alpha") as alpha:
        for service in ("fails", "unknown"):
            for secret in (SECRET, SECRET.encode()):
                with pytest.raises(Exception, match=r"failed|unknown_service") as caught:
                    await alpha.call(BETA, service, b"x", metadata={"token": secret})
                texts.append(f"{caught.value!r} {caught.value}")
        wrong: list[Any] = [{"token": [SECRET]}, {"token": SECRET + "\ud800"}, {"token": SECRET * 1000}, [SECRET]]
        for each in wrong:
            with pytest.raises((TypeError, ValueError, LocalProtocolError)) as refused:
                await alpha.call(BETA, "fails", b"x", metadata=each)
            texts.append(f"{refused.value!r} {refused.value}")
        async with alpha.open_channel(BETA, "fails", metadata={"token": SECRET}) as channel:
            texts += [repr(channel), repr(await alpha.connect(BETA)), repr(alpha)]
    assert len(texts) >= 13
    assert SECRET not in "\n".join((*texts, caplog.text))


# A peer that breaks the rules -----------------------------------------------------------------------------------------


def opened(metadata: bytes, service: str = "seen") -> bytes:
    """A whole OPEN of channel 1, with these bytes for metadata."""
    return wire.control(wire.OPEN, 1, wire.Open(service=service, metadata=msgspec.Raw(metadata)))


HOSTILE: Final = {
    "no-map": b"\x90",
    "null": b"\xc0",
    "number": b"\x01",
    "text": b"\xa3abc",
    "number-as-value": b"\x81\xa1a\x01",
    "list-as-value": b"\x81\xa1a\x91\xa1b",
    "map-as-value": b"\x81\xa1a\x81\xa1b\xa1c",
    "null-as-value": b"\x81\xa1a\xc0",
    "extension-as-value": b"\x81\xa1a\xd4\x01\x00",
    "timestamp-as-value": b"\x81\xa1a\xd6\xff\x00\x00\x00\x00",
    "bytes-as-key": b"\x81\xc4\x01a\xa1b",
    "number-as-key": b"\x81\x01\xa1b",
    "map-as-key": b"\x81\x80\xa1b",
    "empty-key": b"\x81\xa0\xa1b",
    "long-key": msgspec.msgpack.encode({"k" * 256: "v"}),
    "one-key-twice": b"\x82\xa1a\xa1b\xa1a\xa1c",
    "one-key-twice-map16": b"\xde\x00\x02\xa1a\xa1b\xa1a\xa1c",
    "no-utf-8-key": b"\x81\xa1\xff\xa1b",
    "no-utf-8-value": b"\x81\xa1a\xa1\xff",
    "too-many": msgspec.msgpack.encode({str(n): "" for n in range(MAX_ENTRIES + 1)}),
    "too-large": msgspec.msgpack.encode({"k": "x" * 4091}),
    "deep": b"\x81\xa1a" + b"\x91" * 2000 + b"\xc0",
    "wide": b"\x81\xa1a\xdc\x0e\x00" + b"\x80" * 0xE00,
}


@pytest.mark.parametrize("metadata", [pytest.param(data, id=name) for name, data in HOSTILE.items()])
@pytest.mark.parametrize("service", ["seen", "unknown"])
async def test_malformed_metadata_costs_its_connection(
    scripted: ScriptedFactory, metadata: bytes, service: str
) -> None:
    """One typed error, whether or not there is such a service; nothing runs."""
    seen = Seen()
    async with scripted(services={"seen": seen}) as play:
        await play.say(opened(metadata, service))
        await play.peer.hear_end()
        await play.connection.wait_closed()
        [end] = play.owner.ends
        assert end.reason is EndReason.PROTOCOL_ERROR
        assert isinstance(end.error, RemoteProtocolError)
        assert "metadata" in str(end.error) or "malformed Open" in str(end.error)
    assert seen.metadata == []


@pytest.mark.parametrize(
    "metadata",
    [
        pytest.param(b"\x80", id="empty"),
        pytest.param(b"\xde\x00\x01\xa1a\xa1b", id="map16"),
        pytest.param(b"\xdf\x00\x00\x00\x01\xd9\x01a\xda\x00\x01b", id="long-forms"),
        pytest.param(b"\x81\xa1a\xc6\x00\x00\x00\x01b", id="bytes-32"),
        pytest.param(msgspec.msgpack.encode({str(n): "" for n in range(MAX_ENTRIES)}), id="many"),
        pytest.param(msgspec.msgpack.encode({"k": "x" * 4090}), id="large"),
    ],
)
async def test_every_encoding_of_good_metadata_is_taken(scripted: ScriptedFactory, metadata: bytes) -> None:
    """Other implementations need not choose the shortest forms; what is at the limits is within them."""
    seen = Seen()
    async with scripted(services={"seen": seen}) as play:
        await play.say(opened(metadata))
        await play.answered()
        assert play.connection.live
        assert seen.metadata == [msgspec.msgpack.decode(metadata)]


async def test_a_call_that_waits_for_its_turn_keeps_its_metadata(scripted: ScriptedFactory) -> None:
    """A service that begins later, because too many run, finds what its own caller said."""
    let_go, found = trio.Event(), list[object]()

    async def serve(channel: ServiceChannel) -> None:
        found.append(channel.metadata.get("n"))
        await let_go.wait()

    async with scripted(services={"serve": serve}, max_channels=1) as play:
        for number in range(3):
            request = wire.Open(service="serve", metadata=msgspec.Raw(wire.encode_metadata({"n": str(number)})))
            await play.say(wire.control(wire.OPEN, 1 + 2 * number, request))
        await play.answered()
        assert found == ["0"]
        let_go.set()
        await play.answered()
    assert found == ["0", "1", "2"]
