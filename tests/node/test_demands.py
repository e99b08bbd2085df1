"""A live connection is reused only where it meets all that a route demands; no field of `Route` is forgotten."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import pytest
import trio

from trionode import AcceptorOptions, HandshakeError, Node, Route, generate_cookie
from trionode._connection.connection import core_of
from trionode._node.demands import CHECKS, HINTS, Demands

if TYPE_CHECKING:
    from conftest import ManagerFactory, NodeFactory

    from trionode import Connection

BETA = "beta@localhost"
COOKIE, OTHER = generate_cookie(), generate_cookie()
FIELDS = [field.name for field in dataclasses.fields(Route)]


def meets(node: Node, connection: Connection, route: Route) -> bool:
    """Whether a connection of a node will do for a route."""
    return Demands.of(route, node.options).met_by(core_of(connection).link, node.options.cert_manager)


def test_every_field_is_compared_or_a_hint() -> None:
    """A new one has to be put into one of the two."""
    assert sorted(FIELDS) == sorted([*CHECKS, *HINTS])
    assert {field.name for field in dataclasses.fields(Demands)} == set(CHECKS)


@pytest.mark.parametrize("field", FIELDS)
async def test_each_field_counts(field: str, node: NodeFactory, manager: ManagerFactory) -> None:
    """By itself: where the connection does not meet it, it is not reused; hints are met wherever it leads."""
    unmet: dict[str, Any] = {
        "host": "192.0.2.1",
        "port": 9,
        "cert_manager": manager("alpha@localhost"),
        "server_name": "elsewhere.example",
        "cookie": COOKIE,
        "insecure_skip_verify": False,
    }
    insecure = field == "insecure_skip_verify"
    async with node(BETA) as beta, node("alpha@localhost", insecure_skip_verify=insecure) as alpha:
        host, port = beta.acceptors[0].address
        connection = await alpha.connect(BETA, Route(host=host, port=port))
        assert meets(alpha, connection, Route())
        assert meets(alpha, connection, Route(**{field: unmet[field]})) is (field in HINTS)


async def test_a_cookie_is_demanded(node: NodeFactory) -> None:
    """A connection that was made without it, or with another, is not what a route with a cookie gets."""
    acceptors = [AcceptorOptions(host="127.0.0.1", port=0, cookie=each) for each in (None, COOKIE, OTHER)]
    with trio.fail_after(10):
        async with node(BETA, acceptors=acceptors) as beta, node("alpha@localhost") as alpha:

            def route(number: int, cookie: str | None) -> Route:
                host, port = beta.acceptors[number].address
                return Route(host=host, port=port, cookie=cookie)

            plain = await alpha.connect(BETA, route(0, None))
            with pytest.raises(HandshakeError):
                await alpha.connect(BETA, route(0, COOKIE))
            assert await alpha.connect(BETA) is plain
            guarded = await alpha.connect(BETA, route(1, COOKIE))
            assert guarded is not plain
            assert await alpha.connect(BETA, Route(cookie=COOKIE.encode())) is guarded
            assert await alpha.connect(BETA, route(2, OTHER)) is not guarded
            # The other side knows it of the connections that it accepted.
            inbound = beta.connections["alpha@localhost"]
            assert await beta.connect("alpha@localhost", Route(cookie=OTHER)) is inbound
            with pytest.raises(HandshakeError):
                await beta.connect("alpha@localhost", Route(host="127.0.0.1", port=1, cookie=COOKIE))
