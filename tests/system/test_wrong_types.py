"""Arguments of the wrong type: one clear sentence at the call, from the public name that was called."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Any, cast

import pytest
import trio

from trionode import (
    CertAuthManager,
    FileSource,
    KeyPair,
    LocalRegistry,
    NodeName,
    RemoteError,
    adopt_listener,
    follow_source,
    serve_status,
    serve_tls,
    serve_tls_listeners,
    wrap_client_stream,
    wrap_server_stream,
)
from trionode.discovery import DNSResolver, EtcdRegistry, StaticResolver
from trionode.pki import CertificateAuthority, JoinToken, PKIDirectory, write_ca_pool, write_key_pair
from trionode.testing import (
    MemoryNetwork,
    certificate_clock,
    check_two_way_channel,
    expect_refusal,
    rotate_during_handshake,
    wait_for_generation,
)

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from contextlib import AbstractContextManager
    from pathlib import Path

CA = CertificateAuthority.create()
PAIR = CA.issue("alpha@localhost")
MANAGER = CertAuthManager(PAIR, root_cas=CA.pool)
DAY = timedelta(days=1)


def enter(manager: AbstractContextManager[object]) -> None:
    """Enter a block."""
    with manager:
        pass


#: What is called with something that does not belong there, and what the error says.
WRONG: dict[str, tuple[Callable[[Any], object], object, str]] = {
    "NodeName, name": (lambda given: NodeName(given, "localhost"), 5, "before its @ is a string, not 'int'"),
    "NodeName, host": (lambda given: NodeName("alpha", given), b"h", "a host is a string, not 'bytes'"),
    "self_signed": (KeyPair.self_signed, None, "a host is a string, not 'NoneType'"),
    "RemoteError": (lambda given: RemoteError(given, code="x"), ValueError("x"), "message must be a string"),
    "FileSource": (lambda given: FileSource("a", "b", root_ca_files=given), [1], "given as a path"),
    "LocalRegistry": (LocalRegistry, 5, "given as a path"),
    "StaticResolver": (StaticResolver, None, "given as a path"),
    "DNSResolver, services": (lambda given: DNSResolver(services=given), "worker", "services must be a mapping"),
    "DNSResolver, service": (lambda given: DNSResolver(service=given), 5, "service must be a string"),
    "DNSResolver, nameservers": (lambda given: DNSResolver(nameservers=given), "1.1.1.1", "nameservers must be a seq"),
    "DNSResolver, names": (lambda given: DNSResolver(nameservers=given), ["ns.example"], "must be addresses, not 'ns"),
    "EtcdRegistry": (lambda given: EtcdRegistry(given, cert_manager=MANAGER), None, "servers must be a sequence"),
    "create": (lambda given: CertificateAuthority.create(lifetime=given), 90, "lifetime must be a timedelta, not 90"),
    "create, clock": (lambda given: CertificateAuthority.create(clock=given), 5, "clock must be a function"),
    "create, nothing": (lambda given: CertificateAuthority.create(common_name=given), "", "at least one character"),
    "issue": (CA.issue, None, "a certificate's name must be a string or a NodeName, not None"),
    "issue, lifetime": (lambda given: CA.issue("a@localhost", lifetime=given), "1d", "lifetime must be a timedelta"),
    "issue, key type": (
        lambda given: CA.issue("a@localhost", key_type=given),
        "rsa",
        "one of p256, p384, ",
    ),
    "issue, common name": (lambda given: CA.issue("a@localhost", common_name=given), 5, "common_name must be a string"),
    "revocation_list": (lambda given: CA.revocation_list(lifetime=given), 5, "lifetime must be a timedelta"),
    "sign": (lambda given: CA.sign(given, "a@localhost"), b"x", "request must be a CertificateSigningRequest"),
    "load": (CertificateAuthority.load, 5, "given as a path"),
    "save": (CA.save, None, "given as a path"),
    "write_key_pair": (lambda given: write_key_pair(PAIR, given, given), None, "given as a path"),
    "write_ca_pool": (lambda given: write_ca_pool(CA.pool, given), 5, "given as a path"),
    "PKIDirectory": (PKIDirectory, None, "given as a path"),
    "JoinToken": (JoinToken.parse, b"tn1", "a join token must be a string"),
    "MemoryNetwork": (lambda given: MemoryNetwork(latency=given), "1 ms", "latency must be a finite number of seconds"),
    "certificate_clock": (certificate_clock, "2026-01-01", "start must be a datetime"),
    "rotate_during_handshake": (
        lambda given: enter(rotate_during_handshake(given, PAIR)),
        PAIR,
        "where must be a Cert",
    ),
    "expect_refusal": (lambda given: enter(expect_refusal(given)), "wrong_ca", "zoo: refused as unknown_ca"),
    "adopt_listener": (adopt_listener, "3", "descriptor must be an integer"),
}


@pytest.mark.parametrize("what", WRONG)
def test_a_wrong_argument_is_named(what: str) -> None:
    """Where it was given, and not where it is used."""
    function, given, words = WRONG[what]
    with pytest.raises((TypeError, ValueError)) as caught:
        function(given)
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("password", "words"), [(5, "a password or PEM has to be str or bytes, not an int"), ("", "the password is empty")]
)
def test_passwords_to_write_with(password: object, words: str, tmp_path: Path) -> None:
    """As those to read with; nothing is written."""
    for write in (
        lambda given: write_key_pair(PAIR, tmp_path / "a.pem", tmp_path / "a.key", password=given),
        lambda given: CA.save(tmp_path, password=given),
        lambda given: PKIDirectory.create(tmp_path, password=given),
    ):
        with pytest.raises((TypeError, ValueError), match=words):
            write(password)
    assert not list(tmp_path.iterdir())


def test_what_a_directory_is_made_of(tmp_path: Path) -> None:
    """One name where a sequence belongs, and a number of seconds where a span does."""
    with pytest.raises(TypeError, match="permitted must be a sequence of str, not 'localhost'"):
        PKIDirectory.create(tmp_path, permitted="localhost")
    kept = PKIDirectory.create(tmp_path / "pki", lifetime=DAY)
    with pytest.raises(TypeError, match="lifetime must be a timedelta, not 3600"):
        kept.make_token("alpha@localhost", lifetime=cast("Any", 3600))


async def nothing(_: object) -> None:
    """A handler."""


def handler_that_is_not_async(stream: object) -> None:
    """What serves nobody."""
    del stream


ASYNC: dict[str, tuple[Callable[[Any], Awaitable[object]], object, str]] = {
    "serve_tls": (
        lambda given: serve_tls(given, 0, host="127.0.0.1", cert_manager=MANAGER),
        handler_that_is_not_async,
        "handler must be an async function of one argument, the stream",
    ),
    "serve_tls, no function": (
        lambda given: serve_tls(given, 0, host="127.0.0.1", cert_manager=MANAGER),
        5,
        "handler must be an async function",
    ),
    "serve_tls_listeners": (
        lambda given: serve_tls_listeners(nothing, given, cert_manager=MANAGER),
        None,
        "listeners must be a sequence",
    ),
    "serve_tls_listeners, item": (
        lambda given: serve_tls_listeners(nothing, given, cert_manager=MANAGER),
        ["x"],
        "one item is none",
    ),
    "wrap_client_stream": (
        lambda given: wrap_client_stream(given, server_name="localhost", cert_manager=MANAGER),
        None,
        "stream must be a stream",
    ),
    "wrap_server_stream": (
        lambda given: wrap_server_stream(given, cert_manager=MANAGER),
        5,
        "stream must be a stream",
    ),
    "wait_for_generation": (lambda given: wait_for_generation(given, 1), PAIR, "where must be a CertManager"),
    "check_two_way_channel": (check_two_way_channel, 5, "channel_maker must be a function"),
    "follow_source": (lambda given: follow_source(MANAGER, given), "a.pem", "source must be a Source"),
    "follow_source, manager": (
        lambda given: follow_source(given, FileSource("a", "b")),
        PAIR,
        "manager must be a CertManager",
    ),
}


@pytest.mark.parametrize("what", ASYNC)
async def test_a_wrong_argument_of_an_async_function_is_named(what: str) -> None:
    """Before anything is opened or waited for."""
    function, given, words = ASYNC[what]
    with pytest.raises(TypeError) as caught:
        await function(given)
    assert words in str(caught.value)


async def test_listeners_beside_one_that_is_none_are_closed() -> None:
    """They are owned, whatever is wrong."""
    (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
    with pytest.raises(TypeError, match="one item is none"):
        await serve_tls_listeners(nothing, [listener, cast("Any", "x")], cert_manager=MANAGER)
    assert listener.socket.fileno() == -1


async def test_the_path_of_a_status(tmp_path: Path) -> None:
    """Here, too, a path is a path."""
    del tmp_path
    with pytest.raises(TypeError, match="given as a path"):
        await serve_status(cast("Any", object()), cast("Any", 5))
