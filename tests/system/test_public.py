"""What is public is described: every name has a docstring, every parameter a line in it, every field an attribute."""

from __future__ import annotations

import ast
import dataclasses
import importlib
import inspect
import pydoc
import re
import sys
from contextlib import AbstractAsyncContextManager
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, get_origin, get_type_hints

import pytest

import trionode
import trionode.discovery
import trionode.enrolment
import trionode.health
import trionode.http
import trionode.metrics
import trionode.pki
import trionode.testing
import trionode.tracing

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

MODULES = [
    trionode,
    trionode.discovery,
    trionode.enrolment,
    trionode.health,
    trionode.http,
    trionode.pki,
    trionode.metrics,
    trionode.testing,
    trionode.tracing,
]

#: "As `connect`", "see `load`": what another docstring says of its parameters holds here, too.
_ELSEWHERE = re.compile(r"\b(?:[Aa]s|[Ss]ee|to) `([\w.]+)`")


def names_of(module: ModuleType) -> Iterator[str]:
    """What a module offers: what it lists; else what it has and did not import from elsewhere."""
    listed = getattr(module, "__all__", None)
    for name in listed if listed is not None else dir(module):
        value = getattr(module, name)
        ours = getattr(value, "__module__", None) or ""
        if not name.startswith("_") and not isinstance(value, ModuleType) and ours.startswith("trionode"):
            yield name


PUBLIC = {f"{module.__name__}.{name}": getattr(module, name) for module in MODULES for name in sorted(names_of(module))}
CLASSES = {name: value for name, value in PUBLIC.items() if inspect.isclass(value)}


def parts(kind: type) -> Iterator[tuple[str, Any]]:
    """The public methods and properties that a class itself defines."""
    for name, value in vars(kind).items():
        function: Any = value.fget if isinstance(value, property) else getattr(value, "__func__", value)
        if not name.startswith("_") and inspect.isfunction(inspect.unwrap(function)):
            yield name, function


CALLABLES: dict[str, Callable[..., object]] = {
    **{name: value for name, value in PUBLIC.items() if inspect.isfunction(value)},
    **{f"{name}.{part}": value for name, kind in CLASSES.items() for part, value in parts(kind)},
}
CONSTRUCTORS = {
    name: kind.__init__
    for name, kind in CLASSES.items()
    if "__init__" in vars(kind) and inspect.isfunction(kind.__init__) and kind.__init__.__doc__
}


def described(documented: object, *headings: str) -> set[str]:
    """The names that have a line below a heading such as `Args:`."""
    text = inspect.getdoc(documented) or ""
    blocks = [re.search(rf"^{heading}:\n((?:    .*\n|\n)+)", text + "\n", re.MULTILINE) for heading in headings]
    return {
        name
        for block in blocks
        if block
        for names in re.findall(r"^    ([\w*, ]+?)(?: \(.*?\))?:", block[1], re.MULTILINE)
        for name in names.replace("*", "").split(", ")
    }


@cache
def known() -> frozenset[str]:
    """Every public function and method, by its last name."""
    return frozenset(name.rpartition(".")[2] for name in CALLABLES)


def test_there_is_something_to_look_at() -> None:
    """All of it was found."""
    assert {"trionode.open_node", "trionode.pki.write_crl_set", "trionode.metrics.serve_metrics"} <= set(CALLABLES)
    assert {"trionode.CertManager.update", "trionode.testing.MemoryNetwork.heal"} <= set(CALLABLES)
    assert {"trionode.TypedChannel", "trionode.FileSource"} <= set(CONSTRUCTORS)


@pytest.mark.parametrize("name", CLASSES)
def test_a_class_says_what_it_is(name: str) -> None:
    """In its own words; and a dataclass each field, there or in what it derives from."""
    kind = CLASSES[name]
    assert kind.__doc__
    assert not kind.__doc__.startswith(f"{kind.__name__}("), "what dataclasses make up"
    if dataclasses.is_dataclass(kind):
        fields = {field.name for field in dataclasses.fields(kind) if not field.name.startswith("_")}
        said = {word for base in kind.__mro__ for word in described(base, "Attributes", "Args")}
        assert fields <= said, fields - said


@pytest.mark.parametrize("name", [*CALLABLES, *(f"{each}()" for each in CONSTRUCTORS)])
def test_a_function_says_what_it_is_for_and_takes(name: str) -> None:
    """A docstring, and a line for each parameter, unless it refers to another whose they are."""
    function = CALLABLES.get(name) or CONSTRUCTORS[name.removesuffix("()")]
    text = inspect.getdoc(function)
    assert text, "no docstring"
    summary = re.split(r"^\w+:$", text, maxsplit=1, flags=re.MULTILINE)[0]
    elsewhere = {each.rpartition(".")[2] for each in _ELSEWHERE.findall(summary)}
    if "\nArgs:\n" not in text and elsewhere & known():
        return
    taken = {each for each in inspect.signature(function).parameters if each not in ("self", "cls")}
    missing = {each for each in taken - described(function, "Args") if not each.startswith("_")}
    if name.endswith("()"):
        missing -= described(CLASSES[name.removesuffix("()")], "Attributes", "Args")
    assert not missing


#: The classes that have an inside which nodes, followers or networks use; and what an application sees of them.
SHOWN: dict[str, str] = {
    "trionode.Node": (
        "acceptors add_route add_service call connect connectors drain draining events keep_connected members "
        "open_channel statistics unverified_connections wait_connected wait_draining wait_members"
    ),
    "trionode.Connector": "state stop stopped wait_up",
    "trionode.Mesh": "connectors state stop stopped wait_up",
    "trionode.EventStream": "aclose close receive",
    "trionode.RouteHandle": "remove",
    "trionode.TypedChannel": "aclose peer receive send send_eof send_many",
    "trionode.LocalRegistry": "names register resolve watch",
    "trionode.discovery.DNSResolver": "names resolve watch",
    "trionode.discovery.EtcdRegistry": "names register resolve watch",
    "trionode.discovery.StaticResolver": "names resolve watch",
    "trionode.metrics.NodeCollector": "collect describe",
    "trionode.CertManager": (
        "check client_auth client_cas contexts crl_policy crls drained generation key_pair live_generations root_cas "
        "server_name statistics update wait_generation"
    ),
    "trionode.CertAuthManager": (
        "check client_auth client_cas contexts crl_policy crls drained generation key_pair live_generations root_cas "
        "rotate_trust server_name set_client_auth set_client_cas set_root_cas set_server_name statistics stranded_by "
        "update wait_generation"
    ),
    "trionode.KeyPair": "certificate chain fingerprint from_pem load private_key self_signed",
    "trionode.CAPool": "certificates from_pem load system",
    "trionode.CRLSet": "from_bytes listed lists load",
    "trionode.FileSource": "read read_now wait_changed",
    "trionode.Follower": "reload status wait_changed",
    "trionode.Peer": "address certificate incarnation name verified",
    "trionode.Acceptor": "address addresses statistics",
    "trionode.TLSStream": (
        "aclose alpn certificate cipher generation peer_address peer_certificate peer_chain receive_some send_all "
        "send_eof server_name superseded tls_version transport_stream verified wait_send_all_might_not_block "
        "wait_superseded"
    ),
    "trionode.StrandedPeer": "address certificate generation issuer name newly pool reason revoked subject text",
    "trionode.pki.CertificateAuthority": (
        "certificate create intermediate issue issuer load pool revocation_list save save_key sign subordinate"
    ),
    "trionode.pki.PKIDirectory": (
        "authority begin_roll_over clock create enrol issuers make_token now record refresh_lists release renew retire "
        "revoke roots sign_lists switch"
    ),
    "trionode.enrolment.ESTSource": "read read_now wait_changed",
    "trionode.enrolment.ACMESource": "read read_now wait_changed",
    "trionode.pki.JoinToken": "ca_fingerprint digest names parse reveal",
    "trionode.testing.Attempt": "",
    "trionode.testing.ExpectedRefusal": "error",
    "trionode.testing.MemoryConnection": "sent_back sent_there",
    "trionode.testing.MemoryHost": "connect listen listening",
    "trionode.testing.MemoryNetwork": (
        "connect heal host latency listen listening open_streams partition reset script_next"
    ),
    "trionode.testing.NodeFactory": "cluster manager revoke",
}


@pytest.mark.parametrize("name", SHOWN)
def test_a_class_shows_what_is_promised(name: str) -> None:
    """What is for its own package stands elsewhere, or behind an underscore."""
    assert {each for each in dir(CLASSES[name]) if not each.startswith("_")} == set(SHOWN[name].split())


def set_on_self(tree: ast.ClassDef) -> set[str]:
    """The attributes that a class's methods assign to."""
    targets = [
        target
        for node in ast.walk(tree)
        if isinstance(node, ast.Assign | ast.AnnAssign)
        for target in (node.targets if isinstance(node, ast.Assign) else [node.target])
    ]
    return {each.attr for each in targets if isinstance(each, ast.Attribute) and ast.unparse(each.value) == "self"}


@cache
def defined() -> dict[str, set[str]]:
    """What each class of the package sets on itself, by its name; of a public one, Python cannot say where it is."""
    files = Path(trionode.__file__).parent.rglob("*.py")
    nodes = (node for file in files for node in ast.parse(file.read_text()).body)
    return {node.name: set_on_self(node) for node in nodes if isinstance(node, ast.ClassDef)}


@pytest.mark.parametrize("name", CLASSES)
def test_attributes_of_instances_are_described(name: str) -> None:
    """What a constructor sets without an underscore has a line in the class's docstring."""
    kind = CLASSES[name]
    said = {word for base in kind.__mro__ for word in described(base, "Attributes")} | set(dir(kind))
    assert {each for each in defined()[kind.__name__] if not each.startswith("_")} <= said


# Types --------------------------------------------------------------------------------------------------------------


@cache
def imported_for_type_checkers(module: str) -> dict[str, object]:
    """What a module imports below `if TYPE_CHECKING`, by name."""
    found: dict[str, object] = {}
    for node in ast.walk(ast.parse(inspect.getsource(sys.modules[module]))):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            for each in ast.walk(node):
                if isinstance(each, ast.ImportFrom):
                    package = module if hasattr(sys.modules[module], "__path__") else module.rpartition(".")[0]
                    source = importlib.import_module("." * each.level + (each.module or ""), package)
                    found |= {name.asname or name.name: getattr(source, name.name, None) for name in each.names}
    return found


def hinted(value: Any) -> dict[str, object]:
    """The type hints of a class or function, which have to be of the types that type checkers see."""
    function = inspect.unwrap(value)
    scope: dict[str, Any] = getattr(function, "__globals__", {})
    for text in value.__annotations__.values() if scope else ():
        for word in re.findall(r"\w+", text) if isinstance(text, str) else ():
            meant = imported_for_type_checkers(scope["__name__"]).get(word)
            assert meant is None or scope[word] is meant, word
    return get_type_hints(value)


@pytest.mark.parametrize("name", [*CLASSES, *CALLABLES])
def test_type_hints_can_be_had(name: str) -> None:
    """By libraries that check arguments, wire dependencies, or make pages of documentation."""
    value: Any = CLASSES.get(name) or CALLABLES[name]
    assert all(not isinstance(each, str) for each in hinted(value).values())
    if inspect.isclass(value):
        assert hinted(value.__init__) is not None


def test_what_is_used_by_async_with_says_so() -> None:
    """It is written as a generator, and is none."""
    for name in ("trionode.open_node", "trionode.Node.open_channel", "trionode.Node.events"):
        value = CALLABLES.get(name) or PUBLIC[name]
        if inspect.isclass(value):
            assert hasattr(value, "__aenter__")
            continue
        assert "AbstractAsyncContextManager[" in str(inspect.signature(value))
        assert "AbstractAsyncContextManager[" in pydoc.plain(pydoc.render_doc(value))
        assert get_origin(get_type_hints(value)["return"]) is AbstractAsyncContextManager
