"""ACME against pebble, the test server of Let's Encrypt: orders by HTTP-01, renewal, and what goes wrong."""

from __future__ import annotations

import json
import shutil
import socket
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
import trio

from trionode import CertAuthManager, CertificateError, ListenError, follow_source
from trionode._identity.names import SubjectNames
from trionode.enrolment import ACMESource, EnrolmentError, EnrolmentReason
from trionode.http import serve_asgi
from trionode.pki import CertificateAuthority, write_ca_pool, write_key_pair

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

HOST, OTHER = "host-a.example", "host-b.example"

needs_pebble = pytest.mark.skipif(
    shutil.which("pebble") is None or shutil.which("pebble-challtestsrv") is None,
    reason="there is no pebble, the ACME server that these tests ask (Debian's package pebble)",
)


def free_ports(count: int) -> list[int]:
    """Ports that nothing listens on now."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


@dataclass
class Pebble:
    """A server that runs.

    Attributes:
        folder: has `ca.pem`, by which it is known.
        port: where it listens.
        http_port: where it asks for HTTP-01's answers.
    """

    folder: Path
    port: int
    http_port: int

    def source(self, *names: str, **more: Any) -> ACMESource:
        """A client."""
        more = {"http_host": "127.0.0.1", "http_port": self.http_port, "agree_to_terms": True, **more}
        return ACMESource(f"https://localhost:{self.port}/dir", *(names or (HOST,)), ca_file=self.ca, **more)

    @property
    def ca(self) -> Path:
        """The CA of its own HTTPS."""
        return self.folder / "ca.pem"


async def listening(port: int) -> None:
    """Wait until something does."""
    with trio.fail_after(20):
        while True:
            try:
                stream = await trio.open_tcp_stream("127.0.0.1", port)
            except OSError:
                await trio.sleep(0.02)
            else:
                await stream.aclose()
                return


@pytest.fixture
async def pebble(tmp_path: Path) -> AsyncIterator[Pebble]:
    """A server, and a name server by which every name is 127.0.0.1."""
    async with running_pebble(tmp_path) as server:
        yield server


@asynccontextmanager
async def running_pebble(folder: Path) -> AsyncIterator[Pebble]:
    """For the length of a block."""
    port, management, http_port, tls_port, dns_port, dns_management = free_ports(6)
    ca = CertificateAuthority.create()
    write_ca_pool(ca.pool, folder / "ca.pem")
    write_key_pair(ca.issue("localhost"), folder / "pebble.pem", folder / "pebble.key")
    config = {
        "listenAddress": f"127.0.0.1:{port}",
        "managementListenAddress": f"127.0.0.1:{management}",
        "certificate": str(folder / "pebble.pem"),
        "privateKey": str(folder / "pebble.key"),
        "httpPort": http_port,
        "tlsPort": tls_port,
        "ocspResponderURL": "",
        "externalAccountBindingRequired": False,
    }
    (folder / "pebble.json").write_text(json.dumps({"pebble": config}))
    names = ["pebble-challtestsrv", "-defaultIPv6", "", "-dns01", f"127.0.0.1:{dns_port}"]
    names += ["-management", f"127.0.0.1:{dns_management}", "-http01", "", "-https01", "", "-tlsalpn01", ""]
    server = ["pebble", "-config", str(folder / "pebble.json"), "-dnsserver", f"127.0.0.1:{dns_port}"]
    environment = {"PEBBLE_VA_NOSLEEP": "1", "PEBBLE_WFE_NONCEREJECT": "30", "PATH": "/usr/bin:/bin"}
    async with trio.open_nursery() as nursery:
        for command in (names, server):
            run = partial(trio.run_process, command, capture_stdout=True, capture_stderr=True, env=environment)
            await nursery.start(run)
        await listening(port)
        yield Pebble(folder, port, http_port)
        nursery.cancel_scope.cancel()


@needs_pebble
async def test_a_certificate_is_ordered_and_renewed(pebble: Pebble) -> None:
    """For all names, with its chain; followed by a manager; with a new key each time, for the same account."""
    moment = datetime.now(UTC)
    account = pebble.folder / "account.pem"
    source = pebble.source(HOST, OTHER, account_key_file=account, clock=lambda: moment)
    first = await source.read()
    names = SubjectNames.of(first.key_pair.certificate)
    assert names.cover_host(HOST)
    assert names.cover_host(OTHER)
    assert len(first.key_pair.chain) >= 2
    assert account.stat().st_mode & 0o777 == 0o600
    assert await source.read() == first
    manager = CertAuthManager(first.key_pair)
    again = pebble.source(HOST, OTHER, account_key_file=account)
    async with trio.open_nursery() as nursery:
        await nursery.start(follow_source, manager, again)
        assert manager.generation == 2
        assert manager.key_pair.certificate.public_key() != first.key_pair.certificate.public_key()
        nursery.cancel_scope.cancel()
    left = first.key_pair.certificate.not_valid_after_utc - moment
    with trio.move_on_after(0.01) as waiting:
        await source.wait_changed(first)
    assert waiting.cancelled_caught
    moment += left * 0.67
    await source.wait_changed(first)
    assert await source.read() != first


@needs_pebble
async def test_answers_by_a_server_of_ones_own(pebble: Pebble) -> None:
    """`challenge_app` has them, and nothing else."""
    from hypercorn.config import Config
    from hypercorn.trio import serve

    source = pebble.source(http_port=None)
    config = Config()
    config.bind = [f"127.0.0.1:{pebble.http_port}"]
    config.errorlog = None
    config.graceful_timeout = 0.1
    async with trio.open_nursery() as nursery:
        await nursery.start(serve, source.challenge_app, config)
        assert (await source.read()).key_pair.chain
        nursery.cancel_scope.cancel()


@needs_pebble
async def test_what_the_ca_does_not_issue(pebble: Pebble) -> None:
    """No agreement to its terms; no answer to its challenge. In the CA's words."""
    with pytest.raises(EnrolmentError, match=r"host-a.example has no certificate yet.*refuses") as caught:
        await pebble.source(agree_to_terms=False).read()
    assert caught.value.reason is EnrolmentReason.REFUSED
    with pytest.raises(EnrolmentError, match=r"refuses: host-a.example: ") as caught:
        await pebble.source(http_port=None).read()
    assert caught.value.reason is EnrolmentReason.REFUSED


@needs_pebble
async def test_a_ca_that_is_not_trusted(pebble: Pebble) -> None:
    """Its HTTPS is by another CA than was given."""
    write_ca_pool(CertificateAuthority.create().pool, pebble.ca)
    with pytest.raises(EnrolmentError, match="cannot be reached"):
        await pebble.source().read()


async def test_a_ca_that_is_away(tmp_path: Path) -> None:
    """Trouble with a reason; the next attempt waits."""
    [port] = free_ports(1)
    source = ACMESource(f"https://127.0.0.1:{port}/dir", HOST, http_port=None)
    with pytest.raises(EnrolmentError, match="cannot be reached") as caught:
        await source.read()
    assert caught.value.reason is EnrolmentReason.UNREACHABLE
    with trio.move_on_after(0.01) as waiting:
        await source.wait_changed(None)
    assert waiting.cancelled_caught
    (tmp_path / "account.pem").write_text("no key")
    with pytest.raises(CertificateError, match="holds no ECDSA key of an ACME account"):
        await ACMESource(
            "https://127.0.0.1:1/dir", HOST, http_port=None, account_key_file=tmp_path / "account.pem"
        ).read()


@pytest.mark.parametrize(
    ("names", "more", "words"),
    [
        ((), {}, "at least one name"),
        (("no name",), {}, "name"),
        ((HOST,), {"order_timeout": 0}, "order_timeout"),
        ((HOST,), {"renew_after": 2}, "renew_after"),
        ((HOST,), {"contact": "mailto:a@b.example"}, "sequence of URLs"),
    ],
)
def test_arguments_that_are_none(names: tuple[str, ...], more: dict[str, Any], words: str) -> None:
    """At once, before anything is sent."""
    with pytest.raises((ValueError, TypeError), match=words):
        ACMESource("https://localhost/dir", *names, **more)


def test_it_says_which_ca_and_which_names() -> None:
    """In its `repr`."""
    assert repr(ACMESource("https://localhost/dir", HOST)) == f"<ACMESource {HOST} from https://localhost/dir>"


async def test_a_port_that_is_taken() -> None:
    """The error of any listener."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        source = ACMESource("https://localhost/dir", HOST, http_host="127.0.0.1", http_port=taken.getsockname()[1])
        with pytest.raises(ListenError):
            await source.read()


async def test_a_cancelled_order_leaves_the_port_free() -> None:
    """Wherever it is cancelled: the next order needs it."""
    [port] = free_ports(1)
    source = ACMESource("https://127.0.0.1:1/dir", HOST, http_host="127.0.0.1", http_port=port)

    async def read() -> None:
        with suppress(EnrolmentError):
            await source.read()

    for ticks in range(1, 30):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(read)
            for _ in range(ticks):
                await trio.lowlevel.checkpoint()
            nursery.cancel_scope.cancel()
        with socket.create_server(("127.0.0.1", port)):
            pass


@pytest.mark.parametrize(
    "answer", [b"{}", b"[1]", b"null", b"5", b"[" * 100_000, b"{", b"\xff", b'{"newAccount": 5, "newNonce": 5}']
)
async def test_a_server_that_speaks_no_acme(answer: bytes, tmp_path: Path) -> None:
    """One typed error, whatever the library makes of it."""
    ca = CertificateAuthority.create()
    write_ca_pool(ca.pool, tmp_path / "ca.pem")

    async def app(scope: Any, _: Any, send: Any) -> None:
        if scope["type"] == "http":
            headers = [(b"content-type", b"application/json"), (b"replay-nonce", b"x")]
            await send({"type": "http.response.start", "status": 200, "headers": headers})
            await send({"type": "http.response.body", "body": answer})

    manager = CertAuthManager(ca.issue("localhost"))
    async with trio.open_nursery() as nursery:
        [listener, *_] = await nursery.start(partial(serve_asgi, app, 0, host="127.0.0.1", cert_manager=manager))
        url = f"https://localhost:{listener.socket.getsockname()[1]}/dir"
        source = ACMESource(url, HOST, ca_file=tmp_path / "ca.pem", http_port=None)
        with pytest.raises(EnrolmentError) as caught:
            await source.read()
        nursery.cancel_scope.cancel()
    assert caught.value.reason in (EnrolmentReason.BAD_ANSWER, EnrolmentReason.UNREACHABLE)
