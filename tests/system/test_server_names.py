"""Which certificate for which name: servers and acceptors with several managers, chosen by the client's server name."""

from __future__ import annotations

import re
import shutil
import socket
import ssl
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
import trio
import trio.testing
from OpenSSL import SSL

from trionode import (
    AcceptorOptions,
    CertAuthManager,
    CertificateError,
    CertificateReason,
    ClientAuth,
    FixedAtStartupError,
    HandshakeError,
    HandshakeReason,
    NetworkOptions,
    NodeOptions,
    PeerRejectedError,
    RejectionCode,
    Route,
    TLSStream,
    open_node,
    open_tls_stream,
    serve_tls,
    serve_tls_listeners,
    wrap_client_stream,
    wrap_server_stream,
)
from trionode._managers.by_name import ManagersByName
from trionode.http import serve_asgi
from trionode.pki import write_ca_pool

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping
    from pathlib import Path

    from trionode.pki import CertificateAuthority

#: Every test is bounded by this. Seconds.
PATIENCE = 30
DAY = timedelta(days=1)

needs_curl = pytest.mark.skipif(shutil.which("curl") is None, reason="there is no curl program here")


@pytest.fixture
def managers(ca: CertificateAuthority) -> dict[str, CertAuthManager]:
    """One manager for each of three names."""
    issued = {"a.example": "a.example", "*.b.example": "x.b.example", "*": "other.example"}
    return {pattern: CertAuthManager(ca.issue(name), root_cas=ca.pool) for pattern, name in issued.items()}


@pytest.fixture
def client(ca: CertificateAuthority) -> CertAuthManager:
    """A client's manager."""
    return CertAuthManager(ca.issue("client"), client_cas=ca.pool, root_cas=ca.pool)


async def tell(stream: TLSStream) -> None:
    """Say which name was asked for, and which generation was taken."""
    with suppress(trio.BrokenResourceError):
        await stream.send_all(f"{stream.server_name} {stream.generation}".encode())


@asynccontextmanager
async def serving(managers: Any, **options: Any) -> AsyncIterator[int]:
    """Run `serve_tls` for the length of a block; its port."""
    with trio.fail_after(PATIENCE):
        async with trio.open_nursery() as nursery:
            [listener] = await nursery.start(
                partial(serve_tls, tell, 0, cert_manager=managers, host="127.0.0.1", **options)
            )
            yield listener.socket.getsockname()[1]
            nursery.cancel_scope.cancel()


async def presented(port: int, name: str | None, client: CertAuthManager) -> tuple[str, str]:
    """The fingerprint of what a server presents to a client that asks for a name, and what it tells."""
    from trionode._identity.certificate import fingerprint

    async with await open_tls_stream(
        "127.0.0.1", port, cert_manager=client, server_name=name, insecure_skip_verify=True
    ) as stream:
        told = b"".join([piece async for piece in stream])
        assert stream.peer_certificate is not None
        return fingerprint(stream.peer_certificate), told.decode()


# Choosing -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("asked", "pattern"),
    [
        ("a.example", "a.example"),
        ("A.EXAMPLE", "a.example"),
        ("x.a.example", "*"),
        ("x.b.example", "*.b.example"),
        ("y.B.example", "*.b.example"),
        ("b.example", "*"),
        ("x.y.b.example", "*"),
        ("c.example", "*"),
        (None, "*"),
    ],
)
async def test_the_manager_of_the_name(
    managers: dict[str, CertAuthManager], client: CertAuthManager, asked: str | None, pattern: str
) -> None:
    """An exact name, else a wildcard for one label, else the default, which clients that ask for no name get, too."""
    async with serving(managers) as port:
        fingerprint, told = await presented(port, asked, client)
        assert fingerprint == managers[pattern].key_pair.fingerprint
        assert told == f"{None if asked is None else asked.lower()} 1"


async def test_an_exact_name_comes_first(ca: CertificateAuthority, client: CertAuthManager) -> None:
    """Whatever the order in which they were given."""
    wild, exact = (CertAuthManager(ca.issue("x.b.example"), root_cas=ca.pool) for _ in range(2))
    for given in ({"*.b.example": wild, "x.b.example": exact}, {"x.b.example": exact, "*.b.example": wild}):
        async with serving(given) as port:
            assert (await presented(port, "x.b.example", client))[0] == exact.key_pair.fingerprint


async def test_each_rotates_by_itself(
    ca: CertificateAuthority, managers: dict[str, CertAuthManager], client: CertAuthManager
) -> None:
    """The rule of rotation holds for each: the next client gets the new certificate, under that name only."""
    async with serving(managers) as port:
        for round_number in range(1, 4):
            for pattern, name in (("a.example", "a.example"), ("*.b.example", "x.b.example"), ("*", "c.example")):
                expected = managers[pattern].key_pair.fingerprint
                assert await presented(port, name, client) == (expected, f"{name} {managers[pattern].generation}")
            assert managers["a.example"].generation == round_number
            managers["a.example"].update(ca.issue("a.example"))
        assert managers["*"].generation == 1


async def test_the_name_decides_what_is_asked_of_the_client(
    ca: CertificateAuthority, rogue_ca: CertificateAuthority, client: CertAuthManager
) -> None:
    """Client authentication is the chosen manager's: there is no way round it by another name."""
    mutual = CertAuthManager(
        ca.issue("a.example"), client_cas=ca.pool, client_auth=ClientAuth.REQUIRE_AND_VERIFY_CLIENT_CERT
    )
    stranger = CertAuthManager(rogue_ca.issue("stranger"), root_cas=ca.pool)
    async with serving({"a.example": mutual, "*": CertAuthManager(ca.issue("other.example"))}) as port:
        assert (await presented(port, "other.example", stranger))[1] == "other.example 1"
        assert (await presented(port, "a.example", client))[1] == "a.example 1"
        with pytest.raises(trio.BrokenResourceError) as caught:
            await presented(port, "a.example", stranger)
        assert isinstance(caught.value.__cause__, PeerRejectedError)


async def test_a_name_that_drips_in(managers: dict[str, CertAuthManager], client: CertAuthManager) -> None:
    """The choice waits for the whole ClientHello, whatever pieces it comes in."""
    near, far = trio.testing.memory_stream_pair()
    whole = near.send_stream.send_all

    async def drip(data: bytes | bytearray | memoryview) -> None:
        for octet in bytes(data)[:600]:
            await whole(bytes([octet]))
        await whole(bytes(data)[600:])

    near.send_stream.send_all = drip  # type: ignore[method-assign]
    with trio.fail_after(PATIENCE):
        async with trio.open_nursery() as nursery:

            async def accept() -> None:
                async with await wrap_server_stream(far, cert_manager=managers) as stream:
                    await tell(stream)

            nursery.start_soon(accept)
            stream = await wrap_client_stream(near, "x.b.example", cert_manager=client)
            assert await stream.receive_some() == b"x.b.example 1"
            assert stream.peer_certificate == managers["*.b.example"].key_pair.certificate
            await stream.aclose()


async def test_contexts_are_taken_after_the_name(
    ca: CertificateAuthority, managers: dict[str, CertAuthManager], client: CertAuthManager
) -> None:
    """An update while the ClientHello comes in is seen: nothing was taken before the name was known."""
    near, far = trio.testing.memory_stream_pair()
    whole = near.send_stream.send_all
    updated = trio.Event()

    async def hesitate(data: bytes | bytearray | memoryview) -> None:
        await whole(bytes(data)[:100])
        await updated.wait()
        await whole(bytes(data)[100:])

    near.send_stream.send_all = hesitate  # type: ignore[method-assign]
    with trio.fail_after(PATIENCE):
        async with trio.open_nursery() as nursery:

            async def accept() -> None:
                async with await wrap_server_stream(far, cert_manager=managers) as stream:
                    await tell(stream)

            nursery.start_soon(accept)
            nursery.start_soon(_update_when_blocked, ca, managers["a.example"], updated)
            async with await wrap_client_stream(near, "a.example", cert_manager=client) as stream:
                assert await stream.receive_some() == b"a.example 2"


async def _update_when_blocked(ca: CertificateAuthority, manager: CertAuthManager, updated: trio.Event) -> None:
    await trio.testing.wait_all_tasks_blocked()
    manager.update(ca.issue("a.example"))
    updated.set()


# Real programs ------------------------------------------------------------------------------------------------------


async def test_the_standard_library_asks(
    ca: CertificateAuthority, managers: dict[str, CertAuthManager], tmp_path: Path
) -> None:
    """Its client gets the certificate that covers the name, and knows the alert for a name that is not served."""
    write_ca_pool(ca.pool, tmp_path / "ca.pem")
    context = ssl.create_default_context(cafile=tmp_path / "ca.pem")

    def ask(port: int, name: str) -> bytes:
        with (
            socket.create_connection(("127.0.0.1", port), timeout=PATIENCE) as plain,
            context.wrap_socket(plain, server_hostname=name) as secured,
        ):
            return secured.recv(100)

    del managers["*"]
    async with serving(managers) as port:
        for name in ("a.example", "x.b.example"):
            assert await trio.to_thread.run_sync(ask, port, name) == f"{name} 1".encode()
        with pytest.raises(ssl.SSLError, match=r"(?i)unrecognized.name"):
            await trio.to_thread.run_sync(ask, port, "c.example")


@needs_curl
async def test_curl_asks(ca: CertificateAuthority, managers: dict[str, CertAuthManager], tmp_path: Path) -> None:
    """Another client of the same kind: its certificate under each name, its error for one that is not served."""
    write_ca_pool(ca.pool, tmp_path / "ca.pem")
    del managers["*"]

    async def curl(port: int, name: str) -> str:
        command = ["curl", "--silent", "--show-error", "--noproxy", "*", "--max-time", "10", "--http0.9"]
        command += ["--cacert", str(tmp_path / "ca.pem"), "--resolve", f"{name}:{port}:127.0.0.1"]
        done = await trio.run_process(
            [*command, f"https://{name}:{port}/"], capture_stdout=True, capture_stderr=True, check=False
        )
        return (done.stdout + done.stderr).decode()

    async with serving(managers) as port:
        assert await curl(port, "a.example") == "a.example 1"
        assert await curl(port, "x.b.example") == "x.b.example 1"
        assert "unrecognized name" in await curl(port, "c.example")


# Refused ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("asked", ["c.example", "x.a.example", None])
async def test_a_name_that_is_not_served(
    managers: dict[str, CertAuthManager], client: CertAuthManager, asked: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    """Without a default the client is told so by alert; the server's log says what was asked for, and what there is."""
    del managers["*"]
    async with serving(managers) as port:
        with pytest.raises(PeerRejectedError, match="serves other server names") as caught:
            await open_tls_stream("127.0.0.1", port, cert_manager=client, server_name=asked)
        assert caught.value.code is RejectionCode.UNRECOGNIZED_NAME
        assert (await presented(port, "a.example", client))[1] == "a.example 1"
    [text] = [record.getMessage() for record in caplog.records if record.name == "trionode.acceptor"]
    assert ("no server name" if asked is None else repr(asked)) in text
    assert "a.example, *.b.example only" in text


async def test_the_error_of_a_name_that_is_not_served(
    managers: dict[str, CertAuthManager], client: CertAuthManager
) -> None:
    """Where one stream is wrapped, the refusal is a `HandshakeError` with its reason, and no generation was taken."""
    del managers["*"]
    near, far = trio.testing.memory_stream_pair()
    with trio.fail_after(PATIENCE):
        async with trio.open_nursery() as nursery:

            async def dial() -> None:
                with pytest.raises(PeerRejectedError):
                    await wrap_client_stream(near, "c.example", cert_manager=client)

            nursery.start_soon(dial)
            with pytest.raises(HandshakeError) as caught:
                await wrap_server_stream(far, cert_manager=managers)
    assert caught.value.reason is HandshakeReason.UNRECOGNIZED_NAME
    assert caught.value.generation is None
    with pytest.raises(trio.ClosedResourceError):
        await far.receive_some()


@pytest.mark.parametrize("default", [False, True])
@pytest.mark.parametrize(
    ("sent", "words"),
    [
        (b"GET / HTTP/1.1\r\n\r\n", "plain HTTP"),
        (b"nonsense", "no TLS at all"),
        (b"\x16\x03\x01\x02\x00\x01", "without a word"),
        (b"\x16\x03\x01\x00\x04\x02\x00\x00\x00", "unexpected message"),
        (b"\x16\x03\x01\x00\x01\x01" * 12_000, "more than a TLS handshake takes|without a word"),
    ],
    ids=["http", "nonsense", "cut", "no hello", "endless"],
)
async def test_no_client_hello(
    managers: dict[str, CertAuthManager], caplog: pytest.LogCaptureFixture, sent: bytes, words: str, *, default: bool
) -> None:
    """What is no ClientHello is said to be none, whether there is a default or not, and costs its connection only."""
    if not default:
        del managers["*"]
    async with serving(managers) as port, await trio.open_tcp_stream("127.0.0.1", port) as raw:
        with suppress(trio.BrokenResourceError):
            await raw.send_all(sent)
            await raw.send_eof()
            while await raw.receive_some():
                pass
        while not caplog.messages:  # noqa: ASYNC110 -- there is no event for it
            await trio.sleep(0.01)
    assert re.search(words, caplog.messages[0])


async def test_a_second_hello_under_another_name(
    managers: dict[str, CertAuthManager], caplog: pytest.LogCaptureFixture
) -> None:
    """A client that is asked to say hello once more must not ask for another's certificate then.

    OpenSSL keeps the second name; the certificate, and what it asks of clients, are those of the first.
    """
    async with serving(managers) as port:
        for first, second, accepted in (
            (b"a.example", b"a.example", True),
            (b"x.b.example", b"y.b.example", True),
            (b"a.example", b"x.b.example", False),
        ):
            assert await trio.to_thread.run_sync(_two_hellos, port, first, second) is accepted
        while not caplog.messages:  # noqa: ASYNC110 -- there is no event for it
            await trio.sleep(0.01)
    assert ["another certificate than its first" in text for text in caplog.messages] == [True]


def _two_hellos(port: int, first: bytes, second: bytes) -> bool:
    """Have a server ask for another hello by a key share that it does not know; whether it tells anything then."""
    connection = SSL.Connection(SSL.Context(SSL.TLS_METHOD))
    lib, tls = SSL._lib, connection._ssl  # type: ignore[attr-defined]  # no public way to the groups
    assert lib.SSL_set1_curves_list(tls, b"brainpoolP256r1tls13:X25519") == 1
    connection.set_tlsext_host_name(first)
    connection.set_connect_state()
    with socket.create_connection(("127.0.0.1", port), timeout=PATIENCE) as plain:
        for _ in range(4):
            try:
                connection.do_handshake()
            except SSL.WantReadError:
                plain.sendall(connection.bio_read(2**16))
                connection.set_tlsext_host_name(second)
                received = plain.recv(2**16)
                if not received:
                    return False
                connection.bio_write(received)
            else:
                break
        plain.sendall(connection.bio_read(2**16))
        while received := plain.recv(2**16):
            connection.bio_write(received)
            with suppress(SSL.WantReadError, SSL.ZeroReturnError):
                return bool(connection.recv(100))
    return False


# What is given ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("names", "words"),
    [
        ([], "no server name"),
        (["a.example", "A.Example."], r"'a\.example' twice, as 'a\.example' and as 'A\.Example\.'"),
        (["*.a.example", "*.A.example"], "twice"),
        (["bücher.example", "xn--bcher-kva.example"], "twice"),
        (["*", "*."], "twice|no server name"),
        (["a b"], "no server name, 'a b'"),
        (["*.*.example"], "no server name"),
        (["a.*.example"], "no server name"),
        (["a*.example"], "no server name"),
        ([""], "no server name"),
        (["127.0.0.1"], "an address for a server name"),
        (["*.::1"], "no server name|an address"),
    ],
)
async def test_names_that_make_no_sense(ca: CertificateAuthority, names: list[str], words: str) -> None:
    """A `ValueError` that says which; for a stream or listeners that were given, after these are closed."""
    managers = {name: CertAuthManager(ca.issue("a.example")) for name in names}
    with pytest.raises(ValueError, match=words):
        await serve_tls(tell, 0, cert_manager=managers)
    near, _ = trio.testing.memory_stream_pair()
    with pytest.raises(ValueError, match=words):
        await wrap_server_stream(near, cert_manager=managers)
    with pytest.raises(trio.ClosedResourceError):
        await near.receive_some()
    with pytest.raises(ValueError, match=words):
        AcceptorOptions(cert_manager=managers)
    for serve in (partial(serve_tls_listeners, tell), partial(serve_asgi, application)):
        [listener] = await trio.open_tcp_listeners(0, host="127.0.0.1")
        with pytest.raises(ValueError, match=words):
            await serve(listeners=[listener], cert_manager=managers)
        assert listener.socket.fileno() == -1


async def application(scope: Any, receive: Any, send: Any) -> None:
    """One that is not called."""
    raise AssertionError


@pytest.mark.parametrize("given", [None, "a.example", ["a.example"], {"a.example": None}, {1: 2}])
async def test_what_is_no_manager(given: Any) -> None:
    """A `TypeError` that says what belongs there."""
    with pytest.raises(TypeError, match="cert_manager"):
        await serve_tls(tell, 0, cert_manager=given)


async def test_an_unusable_manager_among_several(
    ca: CertificateAuthority, managers: dict[str, CertAuthManager]
) -> None:
    """One error that says under which name; the port is not touched, and none of the others is in use."""
    now = datetime.now(UTC)
    expired = CertAuthManager(ca.issue("c.example", not_before=now - 2 * DAY, not_after=now - DAY))
    given = {"a.example": managers["a.example"], "c.example": expired, "*": managers["*"]}
    with pytest.raises(CertificateError, match=r"cert_manager\['c\.example'\]: .*expired") as caught:
        await serve_tls(tell, 0, cert_manager=given, host="192.0.2.1")
    assert caught.value.reason is CertificateReason.EXPIRED
    for serve in (partial(serve_tls_listeners, tell), partial(serve_asgi, application)):
        [listener] = await trio.open_tcp_listeners(0, host="127.0.0.1")
        with pytest.raises(CertificateError, match=r"cert_manager\['c\.example'\]: .*expired"):
            await serve(listeners=[listener], cert_manager=given)
        assert listener.socket.fileno() == -1
    for manager in managers.values():
        manager.set_server_name(None)


async def test_all_of_them_are_in_use(managers: dict[str, CertAuthManager]) -> None:
    """While it serves every manager's pools are fixed, and free afterwards."""
    async with serving(managers):
        for manager in managers.values():
            with pytest.raises(FixedAtStartupError):
                manager.set_server_name(None)
    for manager in managers.values():
        manager.set_server_name(None)


async def test_a_certificate_that_does_not_cover_its_name(
    ca: CertificateAuthority, caplog: pytest.LogCaptureFixture
) -> None:
    """It is served, with a warning, for clients may look for another name."""
    async with serving({"a.example": CertAuthManager(ca.issue("b.example"), root_cas=ca.pool)}):
        pass
    assert any("a.example" in text for text in caplog.messages)


def test_any_spelling_of_a_name(ca: CertificateAuthority) -> None:
    """A manager is found under a name as it is written anywhere: dots, case, Unicode."""
    manager = CertAuthManager(ca.issue("a.example"))
    names = ManagersByName({"Bücher.example.": manager})
    for spelling in ("xn--bcher-kva.example", "BÜCHER.example", "bücher.example."):
        assert names.manager(spelling) is manager
    for other in ("bucher.example", "", "a b", "\\xc3", None):
        assert names.manager(other) is None


# Listeners and nodes ------------------------------------------------------------------------------------------------


async def test_any_listener_chooses(managers: dict[str, CertAuthManager], client: CertAuthManager) -> None:
    """`serve_tls_listeners` takes several managers as `serve_tls` does."""
    with trio.fail_after(PATIENCE):
        [listener] = await trio.open_tcp_listeners(0, host="127.0.0.1")
        async with trio.open_nursery() as nursery:
            await nursery.start(partial(serve_tls_listeners, tell, [listener], cert_manager=managers))
            port = listener.socket.getsockname()[1]
            assert (await presented(port, "x.b.example", client))[1] == "x.b.example 1"
            await listener.aclose()


def mutual(ca: CertificateAuthority, *names: str) -> CertAuthManager:
    """A node's manager."""
    return CertAuthManager(
        ca.issue(*names), client_cas=ca.pool, client_auth=ClientAuth.REQUIRE_AND_VERIFY_CLIENT_CERT, root_cas=ca.pool
    )


async def test_an_acceptor_of_a_node_chooses(ca: CertificateAuthority) -> None:
    """Dialers reach it under several names, each with the certificate of that name, which rotates by itself."""
    own = mutual(ca, "localhost")
    by_name: Mapping[str, CertAuthManager] = {"one.example": mutual(ca, "one.example"), "localhost": own}
    acceptor = AcceptorOptions(host="127.0.0.1", port=0, cert_manager=by_name)
    options = NodeOptions(cert_manager=own, network=NetworkOptions(acceptors=[acceptor]))
    with trio.fail_after(PATIENCE):
        async with (
            open_node("beta@localhost", options) as beta,
            open_node("alpha@localhost", NodeOptions(cert_manager=mutual(ca, "localhost"))) as alpha,
        ):
            host, port = beta.acceptors[0].address
            for server_name in ("one.example", "localhost"):
                route = Route(host=host, port=port, server_name=server_name)
                connection = await alpha.connect("beta@localhost", route)
                assert connection.peer.certificate == by_name[server_name].key_pair.certificate
                [theirs] = beta.connections.values()
                assert theirs.key_pair_fingerprint == by_name[server_name].key_pair.fingerprint
                before = theirs.superseded
                by_name[server_name].update(ca.issue(server_name))
                assert (before, theirs.superseded) == (False, True)
                await connection.aclose()
                await theirs.wait_closed()
            with pytest.raises(PeerRejectedError) as caught:
                await alpha.connect("beta@localhost", Route(host=host, port=port, server_name="two.example"))
            assert caught.value.code is RejectionCode.UNRECOGNIZED_NAME


async def test_an_acceptor_with_an_unusable_manager(ca: CertificateAuthority) -> None:
    """`open_node` says under which name, and is not open."""
    now = datetime.now(UTC)
    expired = CertAuthManager(ca.issue("c.example", not_before=now - 2 * DAY, not_after=now - DAY))
    acceptor = AcceptorOptions(host="127.0.0.1", port=0, cert_manager={"c.example": expired})
    own = mutual(ca, "localhost")
    with pytest.raises(CertificateError, match=r"cert_manager\['c\.example'\]"):
        async with open_node(
            "beta@localhost", NodeOptions(cert_manager=own, network=NetworkOptions(acceptors=[acceptor]))
        ):
            pass
    own.set_server_name(None)
