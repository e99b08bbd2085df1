"""The static resolver: a mapping, or a file that is followed."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import pytest
import trio

from trionode import Endpoint, NamingResolver, NodeName, PeerFound, PeerLost, ResolverError, ResolverTrouble
from trionode._node import membership
from trionode._util.backoff import Backoff
from trionode.discovery import StaticResolver

if TYPE_CHECKING:
    from pathlib import Path

    from conftest import NodeFactory

    from trionode import EventStream, NodeEvent, ServiceChannel

ALPHA, BETA = NodeName.parse("alpha@localhost"), NodeName.parse("beta@localhost")


async def echo(channel: ServiceChannel) -> None:
    """Send back what comes."""
    async for message in channel:
        await channel.send(message)


async def next_of(events: EventStream, *kinds: type[NodeEvent]) -> Any:
    """The next event of a kind."""
    async for event in events:
        if isinstance(event, kinds):
            return event
    raise AssertionError("the node ended")


async def test_a_mapping(node: NodeFactory) -> None:
    """Nodes are where it says, they are members from the start, and another name is not known."""
    with trio.fail_after(10):
        async with node(str(BETA), services={"echo": echo}) as beta:
            resolver = StaticResolver({"beta@LOCALHOST": Endpoint(*beta.acceptors[0].address)})
            assert isinstance(resolver, NamingResolver)
            async with node(str(ALPHA), resolver=resolver) as alpha:
                assert await alpha.wait_members("*") == {BETA}
                assert await alpha.call("beta@*", "echo", b"x") == b"x"
                assert await resolver.resolve(ALPHA) == []
                async with resolver.watch(BETA) as answers:
                    assert await answers.receive() == await resolver.resolve(BETA)
    assert "1 nodes" in repr(resolver)


@pytest.mark.parametrize(
    ("given", "endpoints"),
    [
        ("192.0.2.7:15001", [("192.0.2.7", 15001)]),
        ("192.0.2.7", [("192.0.2.7", 15000)]),
        ("Host.Example:1", [("host.example", 1)]),
        ("[2001:db8::1]:7", [("[2001:db8::1]", 7)]),
        ("2001:db8::1", [("[2001:db8::1]", 15000)]),
        ("[2001:db8::1]", [("[2001:db8::1]", 15000)]),
        (["a.example", "b.example:2"], [("a.example", 15000), ("b.example", 2)]),
        (Endpoint("a.example", 9), [("a.example", 9)]),
    ],
)
async def test_places_in_every_spelling(given: Any, endpoints: list[tuple[str, int]]) -> None:
    """Hosts with and without port, of either family, one or several."""
    resolver = StaticResolver({BETA: given})
    assert list(await resolver.resolve(BETA)) == [Endpoint(*each) for each in endpoints]


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"beta": "a.example"}, "name@host"),
        ({BETA: "a.example:"}, "no port"),
        ({BETA: "a.example:x"}, "no port"),
        ({BETA: "a.example:99999"}, "port"),
        ({BETA: "no host"}, "no host"),
        ({BETA: []}, "0 places"),
        ({BETA: ["a.example"] * 33}, "33 places"),
        ({BETA: 7}, "not a int"),
        ({BETA: [None]}, "not a NoneType"),
    ],
)
def test_a_mapping_that_is_none(given: Any, words: str) -> None:
    """It is checked when it is made, and the error says where."""
    with pytest.raises((ValueError, TypeError), match=words):
        StaticResolver(given)
    with pytest.raises(ValueError, match="poll_interval"):
        StaticResolver({}, poll_interval=0)


def write(file: Path, nodes: dict[str, str]) -> None:
    """Replace a file in one step."""
    beside = file.with_suffix(".new")
    beside.write_text("[nodes]\n" + "".join(f'"{name}" = "{place}"\n' for name, place in nodes.items()))
    beside.rename(file)


async def test_a_file_is_followed(node: NodeFactory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Changes arrive; what is wrong with it is told, and what was known stays until it is right again."""
    monkeypatch.setattr(membership, "BACKOFF", Backoff(first=0.01, longest=0.02))
    file = tmp_path / "nodes.toml"
    write(file, {"beta@localhost": "127.0.0.1:1"})
    resolver = StaticResolver(file, poll_interval=0.01)
    with trio.fail_after(10):
        async with node(str(ALPHA), resolver=resolver) as alpha, alpha.events() as events:
            assert (await next_of(events, PeerFound)).name == BETA
            async with resolver.watch(BETA) as answers:
                assert await answers.receive() == [Endpoint("127.0.0.1", 1)]
                write(file, {"beta@localhost": "127.0.0.1:2", "gamma@localhost": "127.0.0.1:3"})
                assert (await next_of(events, PeerFound)).name == NodeName.parse("gamma@localhost")
                assert await answers.receive() == [Endpoint("127.0.0.1", 2)]
            file.write_text("[nodes]\n!")
            trouble = await next_of(events, ResolverTrouble)
            assert "not valid TOML" in str(trouble.error)
            assert len(alpha.members()) == 2
            with pytest.raises(ResolverError, match="not valid TOML"):
                await resolver.resolve(BETA)
            write(file, {"beta@localhost": "127.0.0.1:2"})
            assert (await next_of(events, PeerLost)).name == NodeName.parse("gamma@localhost")
    assert str(file) in repr(resolver)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (None, "cannot read"),
        ("", r"\[nodes\]"),
        ("nodes = 7", r"\[nodes\]"),
        ('[nodes]\n"beta@localhost" = "a:1"\n[more]', r"\[nodes\]"),
        ('[nodes]\nbeta = "a:1"', "name@host"),
        ('[nodes]\n"beta@localhost" = 7', "not a int"),
        ('[nodes]\n"beta@localhost" = {host = "a"}', "not a dict"),
        ("\udcff", "not valid TOML"),
        ("[" * 5000, "not valid TOML"),
        ("#" * (4 * 1024 * 1024 + 1), "larger than"),
        ("[nodes]\n" + "".join(f'"n{n}@localhost" = "a:1"\n' for n in range(16 * 1024 + 1)), "more than"),
    ],
    ids=["missing", "empty", "number", "more", "name", "place", "table", "bytes", "deep", "large", "many"],
)
async def test_a_file_that_says_nothing(tmp_path: Path, text: str | None, words: str) -> None:
    """Whatever it holds: an error that names it, and that may pass."""
    file = tmp_path / "nodes.toml"
    if text is not None:
        file.write_bytes(os.fsencode(text))
    with pytest.raises(ResolverError, match=words) as caught:
        await StaticResolver(file).resolve(BETA)
    assert str(file) in str(caught.value)
    assert caught.value.temporary
