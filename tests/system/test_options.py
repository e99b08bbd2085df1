"""Options: every field of every public option class refuses what does not belong there, when the object is made.

Two views of one rule. The table says for each field what is right and, by its kind, what is wrong; it has to name every
field, so that a new one cannot be forgotten. The property throws anything at every field, and looks only at how it is
taken: kept as something that the field may have, or refused by one clear error.
"""

from __future__ import annotations

import dataclasses
import enum
import inspect
import math
import re
from collections.abc import Callable, Mapping
from functools import cache
from types import MappingProxyType
from typing import Any, Final

import pytest
import trio
import trio.testing
from hypothesis import given, strategies as st

from trionode import (
    AcceptorOptions,
    CertAuthManager,
    ClientAuth,
    Credentials,
    CRLPolicy,
    Endpoint,
    LiveConnections,
    LocalRegistry,
    NetworkMode,
    NetworkOptions,
    NodeName,
    NodeOptions,
    Renew,
    Route,
    ServerMonitor,
    StrandedPeers,
    generate_cookie,
    open_node,
    open_tls_stream,
    serve_tls,
    serve_tls_listeners,
    wrap_client_stream,
    wrap_server_stream,
)
from trionode.http import HTTPTransport, serve_asgi
from trionode.metrics import serve_metrics
from trionode.pki import CertificateAuthority
from trionode.testing import Faults, MemoryNetwork, Script

AUTHORITY: Final = CertificateAuthority.create()
OTHER: Final = CertificateAuthority.create()
MANAGER: Final = CertAuthManager(
    AUTHORITY.issue("alpha@localhost"), client_cas=AUTHORITY.pool, client_auth=ClientAuth.REQUIRE_AND_VERIFY_CLIENT_CERT
)


async def service(channel: object) -> None:
    """One that does nothing."""


async def application(scope: object, receive: object, send: object) -> None:
    """One that does nothing."""


def authorize(peer: object) -> None:
    """Admit every peer."""


class Odd:
    """An object that no option takes, and that does not even show itself."""

    def __repr__(self) -> str:
        raise RuntimeError("no repr")


# What there may be in a field, and what not ---------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Kind:
    """What belongs in a field.

    Attributes:
        right: values that it takes.
        wrong_kinds: values that are a `TypeError`.
        wrong_values: values that are a `ValueError`.
    """

    right: tuple[Any, ...]
    wrong_kinds: tuple[Any, ...]
    wrong_values: tuple[Any, ...] = ()

    def __or__(self, other: None) -> Kind:
        """The same, and None."""
        kinds = tuple(each for each in self.wrong_kinds if each is not None)
        return dataclasses.replace(self, right=(*self.right, None), wrong_kinds=kinds)


#: What belongs in no field at all.
NEVER: Final = (Odd(), Odd, 1j, range)

BOOL: Final = Kind((True, False), ("false", "", 0, 1, 0.0, [], None, *NEVER))
SECONDS: Final = Kind(
    (1, 0.001, 1e9, math.inf), (True, "1", b"1", None, [1], *NEVER), (0, -1, 0.0, -0.5, -math.inf, math.nan, 10**400)
)
DURATION: Final = Kind((0, 0.0, 1, 1e9), SECONDS.wrong_kinds, (-1, -0.5, math.inf, -math.inf, math.nan, 10**400))
HOST: Final = Kind(
    ("host.example", "127.0.0.1", "::1", "bücher.example"),
    (7, True, b"host.example", None, ["host.example"], NodeName.parse("a@b"), *NEVER),
    ("", "no host", "http://host.example", "127.1", "a" * 300, "\ud800"),
)
COOKIE: Final = Kind(
    (generate_cookie(), b"x" * 16), (7, True, ["x" * 16], *NEVER), ("", "short", b"x" * 15, bytearray(3))
)
NODE_NAMES: Final = Kind(
    (
        (),
        ["beta@localhost"],
        ("beta@localhost", NodeName.parse("gamma@localhost")),
        {"beta@localhost"},
        ["beta@*", "?@localhost", "*"],
    ),
    (
        "beta@localhost",
        NodeName.parse("beta@localhost"),
        b"beta@localhost",
        7,
        None,
        {"beta@localhost": 1},
        [7],
        *NEVER,
    ),
    (["beta"], ["beta@localhost", ""], ["beta*"]),
)


class Place:
    """A listener as a `Transport` has them."""

    address = ("h.example", 1)

    async def accept(self) -> trio.abc.Stream:
        """Fail."""
        raise trio.ClosedResourceError

    def close(self) -> None:
        """Do nothing."""


PLACE: Final = Place()
LISTENERS: Final = Kind(
    ((), [PLACE], (PLACE, PLACE)), (PLACE, "127.0.0.1", None, 7, {"port": 1}, ["127.0.0.1"], [3], [Place], *NEVER)
)
ACCEPTORS: Final = Kind(
    ((), [AcceptorOptions()], (AcceptorOptions(), AcceptorOptions())),
    (AcceptorOptions(), "127.0.0.1", None, 7, {"port": 15000}, ["127.0.0.1:15000"], [Route()], [None], *NEVER),
)
ROUTES: Final = Kind(
    ({}, {"beta@localhost": Route()}, {"beta@*": Route(port=1)}, MappingProxyType({"*@*": Route()})),
    (
        Route(),
        [Route()],
        None,
        "beta@*",
        {"beta@*": "127.0.0.1"},
        {"beta@*": None},
        {7: Route()},
        {"b@c": Odd()},
        *NEVER,
    ),
    ({"beta": Route()}, {"": Route()}, {"beta@ho st": Route()}),
)
SERVICES: Final = Kind(
    ({}, {"echo": service}),
    ([service], service, None, "echo", {"echo": 42}, {"echo": None}, {b"echo": service}, {7: service}, *NEVER),
    ({"": service}, {"x" * 256: service}, {"\ud800": service}),
)


INTERCEPTORS: Final = Kind(
    ([], (service,), [service, service]), (service, None, "x", 7, {"a": service}, [7], [None], *NEVER)
)


def integer(low: int, high: int) -> Kind:
    """Within bounds, both included."""
    return Kind(
        (low, high), (True, False, "1", b"1", 1.0, None, [1], math.nan, *NEVER), (low - 1, high + 1, -(10**400))
    )


def member(kind: type[enum.Enum]) -> Kind:
    """Of an enumeration."""
    values = tuple(each.value for each in kind)
    return Kind(tuple(kind), (*values, *(each.name for each in kind), 0, True, None, kind, *NEVER))


def instance(*right: object) -> Kind:
    """Of a class."""
    return Kind(right, ("x", b"x", 0, True, None, [*right], type(right[0]), {}, *NEVER))


#: Of servers: one, or several by server name.
MANAGERS: Final = Kind(
    (MANAGER, {"*": MANAGER}, {"a.example": MANAGER, "*.b.example": MANAGER}),
    ("x", b"x", 0, True, None, [MANAGER], CertAuthManager, {"a.example": 7}, {"*": None}, {7: MANAGER}, *NEVER),
    ({}, {"": MANAGER}, {"no host": MANAGER}, {"127.0.0.1": MANAGER}, {"A.example": MANAGER, "a.example": MANAGER}),
)
COUNT: Final = integer(1, 2**20)
SIZE: Final = integer(1, 2**32 - 1)
OFFSET: Final = integer(0, 2**63 - 1) | None
PORT: Final = integer(1, 65535)

FIELDS: Final[dict[type[Any], dict[str, Kind]]] = {
    NodeOptions: {
        "cert_manager": instance(MANAGER),
        "network": instance(NetworkOptions()),
        "services": SERVICES,
        "authorize": Kind((authorize, print, lambda peer: None), (service, "x", 7, True, [authorize], Odd())) | None,
        "shutdown_grace": DURATION,
        "interceptors": INTERCEPTORS,
        "live_connections": instance(LiveConnections()),
        "propagate_service_errors": BOOL,
        "expose_service_errors": BOOL,
    },
    NetworkOptions: {
        "mode": member(NetworkMode),
        "acceptors": ACCEPTORS,
        "routes": ROUTES,
        "resolver": instance(LocalRegistry("/nowhere")) | None,
        "registration_timeout": SECONDS,
        "registration_required": BOOL,
        "transport": instance(MemoryNetwork(1).host("h.example")) | None,
        "cookie": COOKIE | None,
        "keep_connected": NODE_NAMES,
        "members": NODE_NAMES,
        "insecure_skip_verify": BOOL,
        "bind_names": BOOL,
        "max_message_size": SIZE,
        "max_metadata_size": integer(0, 60 * 1024),
        "max_channels": COUNT,
        "max_pending_opens": COUNT,
        "channel_window": integer(4096, 2**30),
        "receive_budget": integer(0, 2**40),
        "max_handshakes": COUNT,
        "max_handshakes_per_address": COUNT,
        "max_unverified": integer(0, 2**20),
        "heartbeat_interval": SECONDS,
        "heartbeat_tolerance": SECONDS,
        "handshake_timeout": SECONDS,
        "connect_timeout": SECONDS,
    },
    AcceptorOptions: {
        "host": dataclasses.replace(HOST, right=(*HOST.right, "*")) | None,
        "port": integer(0, 65535),
        "port_range": PORT,
        "reuse_port": BOOL,
        "listeners": LISTENERS,
        "cert_manager": MANAGERS | None,
        "cookie": COOKIE | None,
        "bind_names": BOOL | None,
        "max_message_size": SIZE | None,
        "max_metadata_size": integer(0, 60 * 1024) | None,
        "handshake_timeout": SECONDS | None,
    },
    Route: {
        "host": HOST | None,
        "port": PORT,
        "cert_manager": instance(MANAGER) | None,
        "server_name": HOST | None,
        "cookie": COOKIE | None,
        "insecure_skip_verify": BOOL | None,
    },
    LiveConnections: {
        "on_rotation": member(Renew),
        "on_expiry": member(Renew),
        "expiry_lead": DURATION,
        "within": DURATION,
        "parallel": integer(1, 2**16),
        "grace": DURATION,
        "max_records": integer(1, 2**22),
    },
    Endpoint: {"host": HOST, "port": PORT},
    CRLPolicy: dict.fromkeys(("allow_missing", "allow_expired", "leaf_only"), BOOL),
    Credentials: {
        "key_pair": instance(MANAGER.key_pair),
        "client_cas": instance(AUTHORITY.pool) | None,
        "root_cas": instance(AUTHORITY.pool, AUTHORITY.pool | OTHER.pool) | None,
        "crls": instance(AUTHORITY.revocation_list()) | None,
    },
    Faults: {
        "delay": DURATION,
        "rate": SECONDS,
        "corrupt": Kind(((), [1, 2], {3}), (1, "1", None, {1: 2}, [1.5], ["1"], [True], *NEVER), ([-1], [1, -1])),
        "reset_after": OFFSET,
        "eof_after": OFFSET,
        "stall_after": OFFSET,
    },
    Script: dict.fromkeys(("there", "back"), instance(Faults(delay=1))),
}

#: What an object has to be given besides.
NEEDED: Final[dict[type[Any], dict[str, Any]]] = {
    NodeOptions: {"cert_manager": MANAGER},
    Endpoint: {"host": "localhost", "port": 1},
    Credentials: {"key_pair": MANAGER.key_pair},
}


def make(kind: type[Any], name: str, value: object) -> Any:
    """An object with one field as given."""
    return kind(**{**NEEDED.get(kind, {}), name: value})


def cases(part: Callable[[Kind], tuple[Any, ...]]) -> list[Any]:
    """A test for each field that has such values, named by its place."""
    return [
        pytest.param(kind, name, values, id=f"{kind.__name__}.{name}")
        for kind, fields in FIELDS.items()
        for name, belongs in fields.items()
        if (values := part(belongs))
    ]


def test_the_table_names_every_field() -> None:
    """Of every class that a program makes; one that is new has to be entered."""
    for kind, fields in FIELDS.items():
        assert list(fields) == [field.name for field in dataclasses.fields(kind)]


@pytest.mark.parametrize(("kind", "name", "values"), cases(lambda each: each.right))
def test_what_belongs_there_is_taken(kind: type[Any], name: str, values: tuple[Any, ...]) -> None:
    """As it is, or as something equal that cannot be changed."""
    for value in values:
        kept = getattr(make(kind, name, value), name)
        if isinstance(value, bool | int | float | enum.Enum | None):
            assert kept is value
        elif isinstance(value, Mapping):
            assert isinstance(kept, MappingProxyType)
            assert list(kept) == list(value)
        assert make(kind, name, kept) == make(kind, name, value)


@pytest.mark.parametrize(("kind", "name", "values"), cases(lambda each: each.wrong_kinds))
def test_the_wrong_kind_is_a_type_error(kind: type[Any], name: str, values: tuple[Any, ...]) -> None:
    """By the name of the field, in one sentence."""
    check_refused(TypeError, kind, name, values)


@pytest.mark.parametrize(("kind", "name", "values"), cases(lambda each: each.wrong_values))
def test_a_wrong_value_is_a_value_error(kind: type[Any], name: str, values: tuple[Any, ...]) -> None:
    """Likewise."""
    check_refused(ValueError, kind, name, values)


def check_refused(error: type[Exception], kind: type[Any], name: str, values: tuple[Any, ...]) -> None:
    """Each is, by such an error that names the field."""
    for value in values:
        with pytest.raises(error, match=rf"\b{name}\b") as caught:
            make(kind, name, value)
        check_sentence(str(caught.value))


def check_sentence(text: str) -> None:
    """One line, of a length that can be read; it says what belongs there, or what is wrong with what was given."""
    assert "\n" not in text
    assert text.isprintable()
    assert len(text) < 300
    assert re.match(r"(a key of )?\w+(\[.{1,60}\])?( |: )\S", text)


# Anything -------------------------------------------------------------------------------------------------------------

ANYTHING: Final = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(),
        st.floats(),
        st.text(max_size=50),
        st.binary(max_size=50),
        st.builds(object),
        st.sampled_from([Odd, print, service, *Renew, *NetworkMode, Route(), AcceptorOptions(), MANAGER]),
    ),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.tuples(inner),
        st.dictionaries(st.one_of(st.text(max_size=9), st.integers(), st.just("beta@*")), inner, max_size=3),
    ),
    max_leaves=5,
)


@cache
def fields_of() -> list[tuple[type[Any], str, Kind]]:
    """Every field."""
    return [(kind, name, belongs) for kind, fields in FIELDS.items() for name, belongs in fields.items()]


@given(field=st.sampled_from(fields_of()), value=ANYTHING)
def test_anything_is_taken_or_refused_in_one_sentence(field: tuple[type[Any], str, Kind], value: object) -> None:
    """Whatever it is; and what is taken is of the type of something that belongs there."""
    kind, name, belongs = field
    try:
        kept = getattr(make(kind, name, value), name)
    except (TypeError, ValueError) as exc:
        check_sentence(str(exc))
        assert name in str(exc) or "was given, but" in str(exc)
        return
    if callable(kept):
        return
    kinds = {type(getattr(make(kind, name, each), name)) for each in belongs.right}
    if {int, float} & kinds and bool not in kinds:
        kinds |= {int, float} if float in kinds else set()
    assert type(kept) in kinds | ({bytearray} if name == "cookie" else set())


# Secrets --------------------------------------------------------------------------------------------------------------

SECRET: Final = "hunter2" * 9
#: Where names belong, which errors show.
NAMES: Final = (HOST, HOST | None, FIELDS[AcceptorOptions]["host"], NODE_NAMES, ROUTES)


@pytest.mark.parametrize(("kind", "name"), [(kind, name) for kind, name, each in fields_of() if each not in NAMES])
def test_a_secret_in_the_wrong_place_is_not_shown(kind: type[Any], name: str) -> None:
    """A key, say, that was put where something else belongs."""
    for value in (SECRET, SECRET.encode(), [SECRET], {SECRET: SECRET}, {"beta@*": SECRET}):
        try:
            make(kind, name, value)
        except (TypeError, ValueError) as exc:
            assert SECRET not in str(exc)


@pytest.mark.parametrize("secret", ["short", ["short"], 31415926])
@pytest.mark.parametrize("kind", [NetworkOptions, AcceptorOptions, Route])
def test_what_was_given_as_a_cookie_is_not_shown(kind: type[Any], secret: object) -> None:
    """Not even if it cannot be one."""
    with pytest.raises((TypeError, ValueError), match="cookie") as caught:
        kind(cookie=secret)
    assert str(secret) not in str(caught.value)


# Combinations, and functions ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"mode": NetworkMode.HIDDEN, "acceptors": [AcceptorOptions()]}, "acceptors were given.*HIDDEN opens none"),
        ({"mode": NetworkMode.DISABLED, "keep_connected": ["a@b"]}, "keep_connected was given.*DISABLED makes no"),
    ],
)
def test_what_does_not_go_together(options: dict[str, Any], words: str) -> None:
    """Is said."""
    with pytest.raises(ValueError, match=words):
        NetworkOptions(**options)


async def test_a_route_is_a_route() -> None:
    """Wherever one is given: a string is not."""
    options = NodeOptions(cert_manager=MANAGER, network=NetworkOptions(mode=NetworkMode.HIDDEN))
    route: Any
    async with open_node("alpha@localhost", options) as node:
        for route in ("127.0.0.1:15000", Endpoint("localhost", 1), 7):
            with pytest.raises(TypeError, match="route must be a Route, not"):
                await node.connect("beta@localhost", route)
            with pytest.raises(TypeError, match="route must be a Route, not"):
                await node.call("beta@localhost", "echo", b"", route=route)
            with pytest.raises(TypeError, match="route must be a Route, not"):
                async with node.open_channel("beta@localhost", "echo", route=route):
                    pytest.fail("it was opened")
            with pytest.raises(TypeError, match="route must be a Route, not"):
                node.add_route("beta@*", route)
        with pytest.raises(TypeError, match="weight must be an integer, not '1'"):
            node.add_route("beta@*", Route(), weight="1")  # type: ignore[arg-type]


@pytest.mark.parametrize("options", [None, {"cert_manager": MANAGER}, MANAGER, NetworkOptions()], ids=type)
def test_options_of_a_node_are_node_options(options: Any) -> None:
    """A manager, or the network's options, are not."""
    with pytest.raises(TypeError, match="options must be a NodeOptions, not"):
        open_node("alpha@localhost", options)


ALPN: Final = Kind(((),), ("h2", b"h2", 7, None, [b"h2"], [7], {"h2": 1}), ([""], ["x" * 256], ["é"]))
CLIENT: Final = {
    "cert_manager": instance(MANAGER),
    "alpn": ALPN,
    "insecure_skip_verify": BOOL,
    "handshake_timeout": SECONDS,
}
SERVER: Final = {"cert_manager": MANAGERS, "alpn": ALPN, "handshake_timeout": SECONDS}
STRANDED: Final = member(StrandedPeers)
OF_SERVERS: Final = {
    "max_handshakes": COUNT,
    "max_handshakes_per_address": COUNT,
    "stranded": dataclasses.replace(STRANDED, wrong_values=(StrandedPeers.REFUSE,)),
    "monitor": instance(ServerMonitor("web")) | None,
}
TEXT: Final = Kind(("x",), (7, b"x", True, ["x"], *NEVER)) | None

#: What each function takes, besides what it is to work with.
ARGUMENTS: Final[dict[str, dict[str, Kind]]] = {
    "open_tls_stream": {
        **CLIENT,
        "host": HOST,
        "port": PORT,
        "server_name": HOST | None,
        "connect_timeout": SECONDS,
    },
    "wrap_client_stream": {**CLIENT, "server_name": HOST},
    "serve_tls": {**SERVER, **OF_SERVERS, "host": HOST | None, "port": integer(0, 65535), "reuse_port": BOOL},
    "serve_tls_listeners": {**SERVER, **OF_SERVERS},
    "wrap_server_stream": SERVER,
    "serve_asgi": {
        **OF_SERVERS,
        "cert_manager": MANAGERS,
        "handshake_timeout": SECONDS,
        "host": HOST | None,
        "port": integer(0, 65535),
        "reuse_port": BOOL,
        "grace": DURATION,
    },
    "HTTPTransport": {
        "cert_manager": instance(MANAGER),
        "proxy_cert_manager": instance(MANAGER) | None,
        "http1": BOOL,
        "http2": BOOL,
        "uds": TEXT,
        "local_address": TEXT,
        "retries": integer(0, 2**20),
        "insecure_skip_verify": BOOL,
    },
    "serve_metrics": {"port": integer(0, 65535)},
}


async def call_with(function: str, arguments: dict[str, Any]) -> None:
    """Call a function with arguments in place of good ones; what it was given to work with is closed."""
    near, _ = trio.testing.memory_stream_pair()
    given: dict[str, Any] = {"cert_manager": MANAGER, **arguments}
    match function:
        case "open_tls_stream":
            await open_tls_stream(**{"host": "localhost", "port": 1, **given})
        case "wrap_client_stream":
            await wrap_client_stream(near, **{"server_name": "localhost", **given})
        case "serve_tls":
            await serve_tls(service, **{"port": 0, "host": "localhost", **given})
        case "serve_tls_listeners":
            await serve_tls_listeners(service, await trio.open_tcp_listeners(0, host="127.0.0.1"), **given)
        case "wrap_server_stream":
            await wrap_server_stream(near, **given)
        case "serve_asgi":
            await serve_asgi(application, **{"port": 0, "host": "localhost", **given})
        case "HTTPTransport":
            HTTPTransport(**given)
        case "serve_metrics":
            await serve_metrics([], **arguments)


def test_the_table_names_every_argument() -> None:
    """But those that are streams, listeners, functions and nurseries, and what is httpx's and hypercorn's to read."""
    functions: dict[str, Callable[..., object]] = {
        each.__name__: each
        for each in (
            HTTPTransport,
            open_tls_stream,
            serve_asgi,
            serve_metrics,
            serve_tls,
            serve_tls_listeners,
            wrap_client_stream,
            wrap_server_stream,
        )
    }
    assert set(functions) == set(ARGUMENTS)
    others = {"handler", "handler_nursery", "listeners", "stream", "task_status", "nodes", "registry", "health"}
    others |= {"app", "config", "limits", "proxy", "socket_options"}
    for name, function in functions.items():
        skipped = others | ({"host"} if name == "serve_metrics" else set())
        assert set(inspect.signature(function).parameters) - skipped == set(ARGUMENTS[name])


WRONG_ARGUMENTS: Final = [
    pytest.param(function, name, (*belongs.wrong_kinds, *belongs.wrong_values), id=f"{function}.{name}")
    for function, arguments in ARGUMENTS.items()
    for name, belongs in arguments.items()
]


@pytest.mark.parametrize(("function", "name", "values"), WRONG_ARGUMENTS)
async def test_arguments_are_checked_alike(function: str, name: str, values: tuple[Any, ...]) -> None:
    """Before anything is connected, listened on or said."""
    assert values
    for value in values:
        with trio.fail_after(5), pytest.raises((TypeError, ValueError), match=rf"\b{name}\b") as caught:
            await call_with(function, {name: value})
        check_sentence(str(caught.value))
