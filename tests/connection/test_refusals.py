"""Errors of services: whose code it is, and what comes with it.

Nodes are on a network in memory, and peers that break the rules are written frame by frame: nothing real is waited for.
"""

from __future__ import annotations

import enum
import logging
import math
from typing import TYPE_CHECKING, Any, Final

import msgspec
import pytest
import trio
import trio.testing

from trionode import (
    ApplicationCode,
    EndReason,
    NetworkOptions,
    RemoteCode,
    RemoteError,
    RemoteProtocolError,
    _protocol as wire,
)
from trionode.testing import cluster_ca, node_factory

if TYPE_CHECKING:
    from collections.abc import Callable

    from conftest import ScriptedFactory

    from trionode import Node, Service, ServiceChannel
    from trionode.pki import CertificateAuthority
    from trionode.testing import CapturedLogs, NodeFactory

pytestmark = pytest.mark.usefixtures("jumping_clock")

BETA: Final = "beta@beta.test"
DETAILS: Final = {"order": 17, "of": ["a", None, True, -1.5, b"\x00", {"größe": 2**64 - 1}], "none": {}}
METADATA: Final[dict[str, str | bytes]] = {"trace": "t", "blob": b"\xff"}


@pytest.fixture(scope="module")
def ca() -> CertificateAuthority:
    """The CA of all nodes here."""
    return cluster_ca()


@pytest.fixture
def nodes(ca: CertificateAuthority) -> NodeFactory:
    """Opens nodes in memory."""
    return node_factory(ca)


class Raising:
    """A service that raises what it is told, once it has a message."""

    def __init__(self, make: Callable[[], BaseException]) -> None:
        self.make = make

    async def __call__(self, channel: ServiceChannel) -> None:
        """Serve."""
        await channel.receive()
        raise self.make()


async def error_of(alpha: Node, service: str = "fails") -> RemoteError:
    """What a call of it raises."""
    with pytest.raises(RemoteError) as caught:
        await alpha.call(BETA, service, b"x")
    return caught.value


def full() -> RemoteError:
    """With everything."""
    return RemoteError("no such order", code="not_found", details=DETAILS, metadata=METADATA)


# What travels ---------------------------------------------------------------------------------------------------------


async def test_all_that_a_service_says_reaches_the_caller(nodes: NodeFactory) -> None:
    """By a call and on a channel, each time that it is received."""
    async with nodes("beta", services={"fails": Raising(full)}), nodes("alpha") as alpha:
        errors = [await error_of(alpha)]
        async with alpha.open_channel(BETA, "fails") as channel:
            await channel.send(b"x")
            for _ in range(2):
                with pytest.raises(RemoteError) as caught:
                    await channel.receive()
                errors.append(caught.value)
    assert errors[1] is not errors[2]
    for error in errors:
        assert (error.code, error.raw_code, error.message) == ("not_found", "not_found", "no such order")
        assert (type(error.code), error.not_run) == (ApplicationCode, False)
        assert error.details == DETAILS
        assert error.metadata == METADATA
        with pytest.raises(TypeError):
            error.metadata["trace"] = "u"  # type: ignore[index]  # that is the question
        assert str(error) == "not_found: the service gave this reason (no such order)"


async def test_a_plain_refusal_has_neither(nodes: NodeFactory) -> None:
    """Nor has an exception that was not raised to refuse, whatever it holds."""

    def unexpected() -> BaseException:
        error = ValueError("secret")
        error.details = error.metadata = {"secret": "s"}  # type: ignore[attr-defined]  # it is none of ours
        return error

    services = {"plain": Raising(lambda: RemoteError("no", code="no")), "unexpected": Raising(unexpected)}
    async with nodes("beta", services=services), nodes("alpha") as alpha:
        for service, code in (("plain", "no"), ("unexpected", RemoteCode.FAILED)):
            error = await error_of(alpha, service)
            assert (error.code, error.details, error.metadata) == (code, None, {})
            assert "secret" not in str(error)


@pytest.mark.parametrize(
    "details",
    [None, False, 0, "", b"", [], {}, 1.5, -(2**63), 2**64 - 1, "ü" * 1000, {"": [[[]]]}],
    ids=lambda value: f"{type(value).__name__}-{len(msgspec.msgpack.encode(value))}",
)
async def test_every_plain_value_is_itself_over_there(nodes: NodeFactory, details: object) -> None:
    """Those that are false are not none."""
    async with nodes("beta", services={"fails": Raising(lambda: RemoteError(code="x", details=details))}):
        async with nodes("alpha") as alpha:
            found = (await error_of(alpha)).details
    assert (type(found), found) == (type(details), details)


async def test_numbers_that_are_none_travel(nodes: NodeFactory) -> None:
    """Infinity and NaN are floats like others."""
    details = [math.inf, -math.inf, math.nan]
    async with nodes("beta", services={"fails": Raising(lambda: RemoteError(code="x", details=details))}):
        async with nodes("alpha") as alpha:
            assert repr((await error_of(alpha)).details) == repr(details)


async def test_a_group_of_one_refusal_is_that_refusal(nodes: NodeFactory) -> None:
    """A service that refuses in a nursery does not lose its words; of several errors, or others, it is a failure."""

    async def refuse() -> None:
        raise full()

    async def nested(channel: ServiceChannel) -> None:
        del channel
        async with trio.open_nursery() as outer, trio.open_nursery() as inner:
            outer.start_soon(trio.sleep_forever)
            inner.start_soon(refuse)

    async def two(channel: ServiceChannel) -> None:
        del channel
        group = "both"
        raise ExceptionGroup(group, [full(), full()])

    async with nodes("beta", services={"nested": nested, "two": two}), nodes("alpha") as alpha:
        error = await error_of(alpha, "nested")
        assert (error.code, error.details) == ("not_found", DETAILS)
        error = await error_of(alpha, "two")
        assert (error.code, error.details, error.message) == (RemoteCode.FAILED, None, "")


async def test_what_a_service_got_from_another_stays_with_it(nodes: NodeFactory) -> None:
    """An error of a call of its own, that it lets through, is a failure: its words were for the service alone.

    Wherever it is raised: where the service waits for the reply, where that has come, where nothing is sent at all.
    """

    async def waits(channel: ServiceChannel) -> None:
        await channel.send(await beta.call("gamma@gamma.test", "fails", b"x"))

    async def comes_late(_: ServiceChannel) -> None:
        async with beta.open_channel("gamma@gamma.test", "fails") as channel:
            await channel.send(b"x")
            await trio.sleep(1)
            await channel.receive()

    async def at_once(_: ServiceChannel) -> None:
        connection = await beta.connect("gamma@gamma.test")
        async with connection.open_channel("hang"):
            await connection.call("hang", b"x")

    async def hang(channel: ServiceChannel) -> None:
        del channel
        await trio.sleep_forever()

    theirs: dict[str, Service] = {"fails": Raising(full), "hang": hang}
    limited = NetworkOptions(max_channels=1)
    middle = {"waits": waits, "comes_late": comes_late, "at_once": at_once}
    async with nodes("gamma", services=theirs, network=limited), nodes("beta", services=middle) as beta:
        async with nodes("alpha") as alpha:
            for service in middle:
                error = await error_of(alpha, service)
                assert (error.code, error.details, error.metadata, error.message) == (RemoteCode.FAILED, None, {}, "")


async def test_what_a_service_got_may_be_said_again_on_purpose(nodes: NodeFactory) -> None:
    """With code and details; the code stays in the vocabulary that it was of."""

    async def middle(channel: ServiceChannel) -> None:
        for service in ("fails", "unknown"):
            try:
                await beta.call("gamma@gamma.test", service, b"x")
            except RemoteError as exc:
                if service == (await channel.receive()).decode():  # noqa: ASYNC120 -- as a service may
                    raise RemoteError(exc.message, code=exc.code, details=exc.details) from exc

    async with nodes("gamma", services={"fails": Raising(full)}), nodes("beta", services={"middle": middle}) as beta:
        async with nodes("alpha") as alpha:
            for words, code in (([b"fails"], "not_found"), ([b"", b"unknown"], RemoteCode.UNKNOWN_SERVICE)):
                async with alpha.open_channel(BETA, "middle") as channel:
                    for word in words:
                        await channel.send(word)
                    with pytest.raises(RemoteError) as caught:
                        await channel.receive()
                    assert (type(caught.value.code), caught.value.code) == (type(caught.value.code), code)
                    assert not caught.value.not_run


# Vocabularies ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("code", [each for each in RemoteCode if each is not RemoteCode.FAILED])
async def test_a_service_cannot_speak_for_trionode_by_a_string(nodes: NodeFactory, code: RemoteCode) -> None:
    """Raised or reset, it is the application's code; and the caller's node takes it for the answer."""
    ran = 0

    async def reset(channel: ServiceChannel) -> None:
        nonlocal ran
        ran += 1
        await channel.receive()
        channel.reset(str(code.value))

    services: dict[str, Service] = {"fails": Raising(lambda: RemoteError(code=str(code.value))), "reset": reset}
    async with nodes("beta", services=services), nodes("alpha") as alpha:
        await alpha.connect(BETA)
        for service in services:
            for name in (BETA, "beta@*"):
                with pytest.raises(RemoteError) as caught:
                    await alpha.call(name, service, b"x")
                error = caught.value
                assert type(error.code) is ApplicationCode
                assert error.code != code
                assert code != error.code
                assert error.code == code.value == error.raw_code
                assert error.code not in list(RemoteCode)
                assert str(error) == f"{code.value}: the service gave this reason"
    assert ran == 2


@pytest.mark.parametrize("code", list(RemoteCode))
async def test_a_service_may_say_what_trionode_says(nodes: NodeFactory, code: RemoteCode) -> None:
    """By the member; but that it did not run it cannot say, and so it is not asked again."""
    ran = 0

    def make() -> RemoteError:
        nonlocal ran
        ran += 1
        return RemoteError("words", code=code, not_run=True, details=[1])

    async with nodes("beta", services={"fails": Raising(make)}), nodes("alpha") as alpha:
        error = await error_of(alpha)
    assert (error.code, error.message, error.details, error.not_run) == (code, "words", [1], False)
    assert error.code is code
    assert ran == 1


async def test_failed_is_one_word_in_both(nodes: NodeFactory) -> None:
    """By a string, by the member, and where trionode says it."""

    async def reset(channel: ServiceChannel) -> None:
        channel.reset("failed")

    services: dict[str, Service] = {
        "string": Raising(lambda: RemoteError("w", code="failed")),
        "member": Raising(lambda: RemoteError("w", code=RemoteCode.FAILED)),
        "application": Raising(lambda: RemoteError("w", code=ApplicationCode("failed"))),
        "exception": Raising(ValueError),
        "reset": reset,
    }
    async with nodes("beta", services=services), nodes("alpha") as alpha:
        for service in services:
            assert (await error_of(alpha, service)).code is RemoteCode.FAILED


async def test_codes_of_an_enumeration(nodes: NodeFactory) -> None:
    """Of the application's own, of either kind: their values are what travels."""

    class Plain(enum.StrEnum):
        GONE = "gone"

    class Mixed(str, enum.Enum):  # noqa: UP042 -- that is the question
        GONE = "gone"

    for kind in (Plain, Mixed):
        async with nodes("beta", services={"fails": Raising(lambda: RemoteError(code=kind.GONE))}):  # noqa: B023
            async with nodes("alpha") as alpha:
                error = await error_of(alpha)
        assert (error.code, type(error.code)) == ("gone", ApplicationCode)
        assert error.code == kind.GONE


async def test_a_code_of_a_later_release(scripted: ScriptedFactory) -> None:
    """Is `OTHER`, with its text; the same text of an application is the application's."""
    async with scripted(dialled=True) as play:
        for application in (False, True):
            channel = play.connection.open_channel("feed")
            end = wire.End(code="invented_tomorrow", application=application, not_run=True)
            await play.say(wire.control(wire.RESET, channel._end.number, end))
            with pytest.raises(RemoteError) as caught:
                await channel.receive()
            assert caught.value.raw_code == "invented_tomorrow"
            assert caught.value.not_run
            if application:
                assert type(caught.value.code) is ApplicationCode
            else:
                assert caught.value.code is RemoteCode.OTHER


async def test_an_older_peer_finds_the_code_where_it_looks(scripted: ScriptedFactory) -> None:
    """A RESET has nothing new but what is new, and the application's code stands where it stood."""
    async with scripted(services={"fails": Raising(full)}) as play:
        await play.say(wire.control(wire.OPEN, 1, wire.Open(service="fails")), wire.header(wire.MESSAGE, 1, 1), b"x")
        _, _, payload = await play.peer.frame(wire.RESET)
        assert msgspec.msgpack.decode(payload) == {
            "code": "not_found",
            "message": "no such order",
            "application": True,
            "details": DETAILS,
            "metadata": METADATA,
        }


# Bounds, at the service -----------------------------------------------------------------------------------------------


async def test_more_than_the_caller_takes_is_left_out(nodes: NodeFactory, caplog: pytest.LogCaptureFixture) -> None:
    """Code and words come all the same, and both sides say that something is missing, and how much."""
    size = len(wire.encode_details(DETAILS)) + len(wire.encode_metadata(METADATA))
    for limit, complete in ((size, True), (size - 1, False), (0, False)):
        caplog.clear()
        async with nodes("beta", services={"fails": Raising(full)}):
            async with nodes("alpha", network=NetworkOptions(max_metadata_size=limit)) as alpha:
                error = await error_of(alpha)
        assert error.code == "not_found"
        warnings = [each.getMessage() for each in caplog.records if each.levelno >= logging.WARNING]
        if complete:
            assert (error.details, error.metadata, error.message) == (DETAILS, METADATA, "no such order")
            assert warnings == []
        else:
            assert (error.details, error.metadata) == (None, {})
            note = f"[details and metadata of {size} bytes were left out: at most {limit}] no such order"
            assert error.message == note
            assert len(warnings) == 1
            assert f"{size} bytes of details and metadata, more than it takes now" in warnings[0]


def deep(levels: int) -> object:
    """Lists within each other."""
    value: object = None
    for _ in range(levels):
        value = [value]
    return value


async def test_many_refusals_at_once_leave_details_out_rather_than_the_peer(nodes: NodeFactory) -> None:
    """More than a connection would queue: each caller has its answer, some without the details, and says so."""
    let_go, errors = trio.Event(), list[RemoteError]()

    async def fail(channel: ServiceChannel) -> None:
        del channel
        await let_go.wait()
        raise RemoteError("words", code="x", details=bytes(8000))

    async def call() -> None:
        errors.append(await error_of(alpha))

    async with nodes("beta", services={"fails": fail}) as beta, nodes("alpha") as alpha:
        async with trio.open_nursery() as nursery:
            for _ in range(400):
                nursery.start_soon(call)
            await trio.testing.wait_all_tasks_blocked()
            let_go.set()
        assert len(beta.connections) == len(alpha.connections) == 1
    complete = [error for error in errors if error.details is not None]
    assert 0 < len(complete) < len(errors) == 400
    for error in errors:
        assert error.code == "x"
        assert (error.details == bytes(8000)) is (error.message == "words")
        assert error.message.endswith("words")


# A peer that breaks the rules -----------------------------------------------------------------------------------------

LIST: Final = b"\x91"
HOSTILE: Final = {
    "timestamp": {"details": b"\xd6\xff\x00\x00\x00\x00"},
    "extension": {"details": b"\xd4\x01\x00"},
    "number-as-key": {"details": b"\x81\x01\x02"},
    "bytes-as-key": {"details": b"\x81\xc4\x01a\x02"},
    "list-as-key": {"details": b"\x81\x90\x02"},
    "map-as-key": {"details": b"\x81\x80\x02"},
    "no-utf-8": {"details": b"\xa1\xff"},
    "deep": {"details": LIST * 17 + b"\xc0"},
    "very-deep": {"details": LIST * 4000 + b"\xc0"},
    "many": {"details": b"\xdc\x03\xe8" + b"\xc0" * 1000},
    "many-empty-maps": {"details": b"\xdc\x0f\x00" + b"\x80" * 0xF00},
    "too-large": {"details": msgspec.msgpack.encode(bytes(4094))},
    "too-large-together": {
        "details": msgspec.msgpack.encode(bytes(2045)),
        "metadata": msgspec.msgpack.encode({"k": bytes(2044)}),
    },
    "metadata-no-map": {"metadata": b"\x90"},
    "metadata-number": {"metadata": b"\x81\xa1a\x01"},
    "metadata-key-twice": {"metadata": b"\x82\xa1a\xa1b\xa1a\xa1c"},
}


@pytest.mark.parametrize("fields", [pytest.param(fields, id=name) for name, fields in HOSTILE.items()])
@pytest.mark.parametrize("dialled", [True, False], ids=["at-the-caller", "at-the-service"])
async def test_malformed_details_cost_their_connection(
    scripted: ScriptedFactory, fields: dict[str, bytes], dialled: bool
) -> None:
    """One typed error, whichever side resets; what waits gets that the connection was lost."""

    async def hang(channel: ServiceChannel) -> None:
        del channel
        await trio.sleep_forever()

    async with scripted(services={"hang": hang}, dialled=dialled) as play:
        number = 1
        if dialled:
            number = play.connection.open_channel("feed")._end.number
        else:
            await play.say(wire.control(wire.OPEN, 1, wire.Open(service="hang")))
            await play.answered()
        end: Any = {"code": "x", **{name: msgspec.Raw(data) for name, data in fields.items()}}
        await play.say(wire.control(wire.RESET, number, wire.End(**end)))
        await play.peer.hear_end()
        await play.connection.wait_closed()
        [ended] = play.owner.ends
        assert ended.reason is EndReason.PROTOCOL_ERROR
        assert isinstance(ended.error, RemoteProtocolError)
        assert any(word in str(ended.error) for word in ("details", "metadata", "malformed End"))


@pytest.mark.parametrize(
    ("fields", "details", "metadata"),
    [
        pytest.param({"details": b"\xc0"}, None, {}, id="null"),
        pytest.param({"details": LIST * 16 + b"\xc0"}, deep(16), {}, id="deep"),
        pytest.param({"details": b"\xdc\x03\xe7" + b"\xc0" * 999}, [None] * 999, {}, id="many"),
        pytest.param({"details": msgspec.msgpack.encode(bytes(4093))}, bytes(4093), {}, id="large"),
        pytest.param({"details": b"\xca\x3f\xc0\x00\x00"}, 1.5, {}, id="float-32"),
        pytest.param({"details": b"\x01", "metadata": b"\x81\xa1a\xa1b"}, 1, {"a": "b"}, id="both"),
    ],
)
async def test_what_is_at_the_limits_is_taken(
    scripted: ScriptedFactory, fields: dict[str, bytes], details: object, metadata: dict[str, str]
) -> None:
    """In whatever encoding."""
    async with scripted(dialled=True) as play:
        channel = play.connection.open_channel("feed")
        end: Any = {"code": "x", **{name: msgspec.Raw(data) for name, data in fields.items()}}
        await play.say(wire.control(wire.RESET, channel._end.number, wire.End(**end)))
        with pytest.raises(RemoteError) as caught:
            await channel.receive()
        assert (caught.value.details, caught.value.metadata) == (details, metadata)
        assert play.connection.live


async def test_details_forge_no_log_line(nodes: NodeFactory, caplog: pytest.LogCaptureFixture) -> None:
    """They are in no log line, text or repr: they may be large, and secret."""
    caplog.set_level(logging.DEBUG)
    secret = "hunter2\nERROR forged"
    error = RemoteError("m", code="x\ny", details={"k": secret}, metadata={"k": secret})
    async with nodes("beta", services={"fails": Raising(lambda: error)}), nodes("alpha") as alpha:
        received = await error_of(alpha)
    assert received.details == {"k": secret}
    assert (received.code, received.raw_code) == ("x\\ny", "x\\ny")
    for text in (str(received), repr(received), repr(received.code), caplog.text):
        assert "hunter2" not in text
    assert "x\ny" not in caplog.text


async def test_the_log_says_over_which_connection_a_peer_asked_for_what_it_may_not(
    nodes: NodeFactory, captured_logs: CapturedLogs
) -> None:
    """As of everything else that a connection has brought."""

    async def closed(channel: ServiceChannel) -> None:
        del channel

    async with nodes("alpha") as alpha, nodes("beta") as beta:
        beta.add_service("closed", closed, allow="gamma@gamma.test")
        with pytest.raises(RemoteError, match="may not use"):
            await alpha.call(BETA, "closed", b"")
        connection = alpha.connections[beta.name]
    [facts] = captured_logs.facts("trionode.service", service="closed")
    assert (facts["connection"], facts["peer"], facts["node"]) == (connection.id, str(alpha.name), BETA)
