"""`trionode explain`: each way in which a connection fails is found, told apart, and has its remedy.

The servers are nodes, Python's own `ssl`, `openssl s_server`, and what is no TLS at all; each in a thread or process of
its own, since the command runs Trio itself.
"""

from __future__ import annotations

import contextlib
import socket
import ssl
import subprocess
import threading
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any

import pytest
import trio
from cryptography.x509.oid import ExtendedKeyUsageOID

from trionode import (
    AcceptorOptions,
    CertAuthManager,
    ClientAuth,
    KeyPair,
    NetworkOptions,
    NodeOptions,
    Refused,
    RejectionCode,
    Route,
    open_node,
)
from trionode._tls.failures import HandshakeErrors
from trionode._tls.probe import Inspection
from trionode.cli.diagnosis import (
    Target,
    estimate_clock,
    foresee,
    rejected,
    tls_failure,
)
from trionode.pki import (
    CertificateAuthority,
    write_ca_pool,
    write_crl_set,
    write_key_pair,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager
    from pathlib import Path

    from conftest import Said
    from cryptography import x509

    Command = Callable[..., Said]

PATIENCE = 30
ALPHA, BETA = "alpha@localhost", "beta@localhost"
HOST = "127.0.0.1"


class World:
    """A CA, certificates in `./pki` as the command makes them, and what each test changes of that."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.now = datetime.now(UTC)
        # Older than what it issues, so that there is a past to issue for.
        self.ca = self.new_ca()
        self.ca.save(folder / "pki")
        self.write(ALPHA)
        self.write(BETA)

    def new_ca(self, **options: Any) -> CertificateAuthority:
        """Another CA, as old."""
        return CertificateAuthority.create(clock=lambda: self.now - timedelta(days=30), **options)

    def issue(self, name: str, ca: CertificateAuthority | None = None, **options: Any) -> KeyPair:
        """A certificate, an hour old unless it is to be something else."""
        options.setdefault("not_before", self.now - timedelta(hours=1))
        return (ca or self.ca).issue(name, **options)

    def write(self, name: str, pair: KeyPair | None = None) -> KeyPair:
        """Put one where the command looks for it."""
        pair = pair or self.issue(name)
        write_key_pair(pair, self.folder / "pki" / f"{name}.pem", self.folder / "pki" / f"{name}-key.pem")
        return pair

    def manager(
        self,
        pair: KeyPair | None = None,
        *,
        trusts: CertificateAuthority | None = None,
        client_auth: ClientAuth = ClientAuth.REQUIRE_AND_VERIFY_CLIENT_CERT,
        **options: Any,
    ) -> CertAuthManager:
        """For mutual TLS, by default beta's."""
        pool = (trusts or self.ca).pool
        return CertAuthManager(
            pair or self.issue(BETA), client_cas=pool, root_cas=pool, client_auth=client_auth, **options
        )


@pytest.fixture
def world(trionode_command: Command, tmp_path: Path) -> World:
    """A CA and two certificates in `./pki`."""
    return World(tmp_path)


class Asked:
    """What `explain` said."""

    def __init__(self, said: Said) -> None:
        self.status = said.status
        self.document = said.document
        self.steps = {each["name"]: each["outcome"] for each in self.document["steps"]}
        self.codes = [each["code"] for each in self.document["found"]]
        self.messages = " ".join(each["message"] for each in self.document["found"])
        assert all(each["remedy"] for each in self.document["found"])
        assert self.status == (1 if self.codes else 0)
        assert self.document["ok"] is not bool(self.codes)


@pytest.fixture
def ask(trionode_command: Command) -> Callable[..., Asked]:
    """Runs the command with `--json`, briefly."""
    return lambda *arguments: Asked(trionode_command("explain", "--json", "--timeout", "2", *arguments))


# Servers ------------------------------------------------------------------------------------------------------------


@contextmanager
def node(manager: CertAuthManager, name: str = BETA, **network: Any) -> Iterator[int]:
    """A node in a thread; its port."""
    authorize = network.pop("authorize", None)
    told: SimpleQueue[tuple[int, trio.lowlevel.TrioToken, trio.Event] | BaseException] = SimpleQueue()

    async def serve() -> None:
        options = NodeOptions(
            cert_manager=manager,
            network=NetworkOptions(acceptors=[AcceptorOptions(host=HOST, port=0)], **network),
            authorize=authorize,
        )
        async with open_node(name, options) as opened:
            done = trio.Event()
            told.put((opened.acceptors[0].address[1], trio.lowlevel.current_trio_token(), done))
            with trio.move_on_after(PATIENCE):
                await done.wait()

    thread = threading.Thread(target=trio.run, args=(serve,))
    thread.start()
    told_first = told.get(timeout=PATIENCE)
    assert isinstance(told_first, tuple)
    port, token, done = told_first
    try:
        yield port
    finally:
        token.run_sync_soon(done.set)
        thread.join(PATIENCE)


@contextmanager
def listener(answer: Callable[[socket.socket], None], clients: int = 5) -> Iterator[int]:
    """Whatever `answer` does with each connection, in a thread."""
    with socket.create_server((HOST, 0)) as server:
        server.settimeout(PATIENCE)

        def serve() -> None:
            for _ in range(clients):
                try:
                    connection = server.accept()[0]
                except OSError:
                    return
                with connection, contextlib.suppress(OSError):
                    connection.settimeout(PATIENCE)
                    answer(connection)

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield server.getsockname()[1]
        finally:
            server.shutdown(socket.SHUT_RDWR)
            thread.join(PATIENCE)


def python_tls(folder: Path, pair: KeyPair, configure: Callable[[ssl.SSLContext], None]) -> AbstractContextManager[int]:
    """Python's own TLS server."""
    write_key_pair(pair, folder / "s.pem", folder / "s.key")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "s.pem", folder / "s.key")
    configure(context)

    def answer(connection: socket.socket) -> None:
        with context.wrap_socket(connection, server_side=True) as tls:
            tls.recv(1)

    return listener(answer)


# All is well --------------------------------------------------------------------------------------------------------


def test_two_nodes_that_accept_each_other(world: World, ask: Callable[..., Asked], trionode_command: Command) -> None:
    """Every step holds, both certificates are shown, and the trust that theirs leads to; status 0."""
    with node(world.manager()) as port:
        asked = ask(BETA, "--as", ALPHA, "--address", f"{HOST}:{port}")
        said = trionode_command("explain", BETA, "--as", ALPHA, "--address", f"{HOST}:{port}")
    assert (asked.status, asked.codes) == (0, [])
    assert set(asked.steps.values()) == {"ok"}
    assert list(asked.steps) == [
        *("ours", "resolve", "tcp", "tls", "their certificate", "our certificate", "clocks", "hello")
    ]
    assert asked.document["tls"]["version"] == "TLSv1.3"
    assert asked.document["tls"]["alpn"] == "trionode/1"
    assert asked.document["tls"]["certificate_requested"] is True
    assert asked.document["tls"]["accepted_cas"] == [world.ca.certificate.subject.rfc4514_string()]
    assert asked.document["trust"]["path"][-1] == world.ca.certificate.subject.rfc4514_string()
    assert [asked.document[each][0]["nodes"] for each in ("their_chain", "our_chain")] == [[BETA], [ALPHA]]
    assert said.status == 0
    for words in ("accept each other, verified", "TLS tells no time", "their certificate", "nothing is wrong"):
        assert words in said.out


def test_without_a_name_the_certificate_says_whom_to_greet(world: World, ask: Callable[..., Asked]) -> None:
    """HOST:PORT of a node, whose certificate is for one node only; ours, too, says who we are."""
    with node(world.manager()) as port:
        given = ("--cert", f"pki/{ALPHA}.pem", "--key", f"pki/{ALPHA}-key.pem", "--ca", "pki/ca.pem")
        asked = ask(f"localhost:{port}", *given)
    assert asked.steps["hello"] == "ok"


def test_a_live_connection_of_our_name_is_no_fault(world: World, ask: Callable[..., Asked]) -> None:
    """The name is in use over there, by us; everything before that held. And our own name is not dialled."""
    ours = world.manager(world.issue(ALPHA))

    with node(world.manager(world.issue(BETA))) as port:
        route = {BETA: Route(host=HOST, port=port)}
        with node(ours, ALPHA, routes=route, keep_connected=[BETA]) as own_port:
            asked = ask(BETA, "--as", ALPHA, "--address", f"{HOST}:{port}")
            own = ask(ALPHA, "--as", ALPHA, "--address", f"{HOST}:{own_port}")
    assert (asked.codes, asked.steps["hello"]) == ([], "ok")
    assert (own.codes, own.steps["hello"]) == ([], "skipped")


# The troubleshooting list of the Ergo page --------------------------------------------------------------------------


def test_their_ca_is_unknown_to_us(world: World, ask: Callable[..., Asked]) -> None:
    """A server of another CA: our certificate is not shown to it, and what we trust is named."""
    other = world.new_ca()
    with node(world.manager(world.issue(BETA, other))) as port:
        asked = ask(BETA, "--as", ALPHA, "--address", f"{HOST}:{port}")
    assert asked.codes == ["unknown_ca"]
    assert "pki/ca.pem" in asked.messages
    assert asked.steps["their certificate"] == "failed"
    assert (asked.steps["our certificate"], asked.steps["hello"]) == ("skipped", "skipped")


def test_our_ca_is_unknown_to_them(world: World, ask: Callable[..., Asked]) -> None:
    """The alert, in words; and whom the server accepts instead."""
    other = world.new_ca()
    with node(world.manager(trusts=other)) as port:
        asked = ask(BETA, "--as", ALPHA, "--address", f"{HOST}:{port}")
    assert asked.codes == ["unknown_ca"]
    assert asked.steps["our certificate"] == "failed"
    assert other.certificate.subject.rfc4514_string() in asked.messages


def test_unknown_both_ways(world: World, ask: Callable[..., Asked]) -> None:
    """The second is foreseen from what the server says that it accepts."""
    other = world.new_ca()
    with node(world.manager(world.issue(BETA, other), trusts=other)) as port:
        asked = ask(BETA, "--as", ALPHA, "--address", f"{HOST}:{port}")
    assert [each["step"] for each in asked.document["found"]] == ["their certificate", "our certificate"]
    assert asked.codes == ["unknown_ca", "unknown_ca"]


def test_a_ca_made_anew_under_its_old_name(world: World, ask: Callable[..., Asked], tmp_path: Path) -> None:
    """Told apart from a stranger: one side still has the old one."""
    old, new = (self_made_ca(tmp_path, name) for name in ("old", "new"))
    with node(world.manager(new.issue("localhost"))) as port:
        write_ca_pool(old.pool, tmp_path / "ca.pem")
        asked = ask(BETA, "--address", f"{HOST}:{port}", "--ca", "ca.pem")
    assert asked.codes == ["unknown_ca", "certificate_required"]
    assert "made anew" in asked.messages


def self_made_ca(folder: Path, name: str) -> CertificateAuthority:
    """One of two that `openssl req` makes alike, but for their keys."""
    (folder / name).mkdir()
    options = "-newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj /CN=cluster -days 9 -keyout ca.key -out ca.pem"
    command = ["openssl", "req", "-x509", *options.split()]
    subprocess.run(command, cwd=folder / name, check=True, capture_output=True, timeout=PATIENCE)
    return CertificateAuthority.load(folder / name)


def test_their_certificate_has_expired(world: World, ask: Callable[..., Asked], tmp_path: Path) -> None:
    """By our clock; served by a server that does not look at its own."""
    expired = world.issue("localhost", not_after=world.now - timedelta(minutes=10))
    with python_tls(tmp_path, expired, lambda _: None) as port:
        asked = ask(f"localhost:{port}", "--ca", "pki/ca.pem")
    assert asked.codes == ["expired"]
    assert "10 minutes ago by our clock" in asked.messages
    assert "ours is ahead by 10 minutes" in str(asked.document["steps"])


def test_their_certificate_is_not_yet_valid(world: World, ask: Callable[..., Asked], tmp_path: Path) -> None:
    """And how far off the clocks would be."""
    early = world.issue("localhost", not_before=world.now + timedelta(hours=5))
    with python_tls(tmp_path, early, lambda _: None) as port:
        asked = ask(f"localhost:{port}", "--ca", "pki/ca.pem")
    assert asked.codes == ["not_yet_valid"]
    assert "ours is behind by 5 hours" in str(asked.document["steps"])


def test_our_certificate_has_expired(world: World, ask: Callable[..., Asked]) -> None:
    """Found before anything is dialled, and said by the server as well."""
    world.write(ALPHA, world.issue(ALPHA, not_after=world.now - timedelta(minutes=10)))
    with node(world.manager()) as port:
        asked = ask(BETA, "--as", ALPHA, "--address", f"{HOST}:{port}")
    assert asked.codes == ["expired", "certificate_expired"]
    assert (asked.steps["ours"], asked.steps["our certificate"]) == ("failed", "failed")


def test_the_servers_clock_is_ahead(world: World, ask: Callable[..., Asked]) -> None:
    """Our certificate is good by our clock, and expired by the server's."""
    ahead = world.manager(clock=lambda: world.now + timedelta(days=80))
    world.write(ALPHA, world.issue(ALPHA, lifetime=timedelta(days=10)))
    with node(ahead) as port:
        asked = ask(BETA, "--as", ALPHA, "--address", f"{HOST}:{port}")
    assert asked.codes == ["certificate_expired"]
    assert "clock is ahead by 10 days at least" in asked.messages


def test_the_servers_clock_is_behind(world: World, ask: Callable[..., Asked]) -> None:
    """Our certificate is not yet valid by the server's clock, which TLS can only call bad."""
    server = world.issue(BETA, not_before=world.now - timedelta(days=9))
    with node(world.manager(server, clock=lambda: world.now - timedelta(days=8))) as port:
        asked = ask(BETA, "--as", ALPHA, "--address", f"{HOST}:{port}")
    assert asked.codes == ["bad_certificate"]
    assert "valid since 60 minutes by our clock" in asked.messages


@pytest.mark.parametrize("server_name", [(), ("--server-name", "elsewhere.example")])
def test_the_names_do_not_match(server_name: tuple[str, ...], world: World, ask: Callable[..., Asked]) -> None:
    """What we want, and what the certificate offers."""
    wanted = server_name[-1] if server_name else "other.example"
    with node(world.manager()) as port:
        asked = ask("beta@other.example", "--address", f"{HOST}:{port}", "--as", ALPHA, *server_name)
        named = ask("beta@other.example", "--address", f"{HOST}:{port}", "--as", ALPHA, "--server-name", "localhost")
    assert asked.codes == ["name_mismatch"]
    assert f"we want the name {wanted}" in asked.messages
    assert "DNS:localhost" in asked.messages
    assert named.codes == ["name_mismatch"], "the URI SAN is for a node on localhost"
    assert "is for other nodes" in named.messages


def test_a_rotation_that_did_not_take_effect(world: World, ask: Callable[..., Asked]) -> None:
    """What is on disk against what is served; with what was written later, and with what is older."""
    served = world.write(BETA)
    with node(world.manager(served)) as port:
        arguments = (BETA, "--as", ALPHA, "--address", f"{HOST}:{port}", "--expect-cert", f"pki/{BETA}.pem")
        before = ask(*arguments)
        world.write(BETA, world.issue(BETA, not_before=world.now))
        after = ask(*arguments)
        world.write(BETA, world.issue(BETA, not_before=world.now - timedelta(days=1)))
        older = ask(*arguments)
    assert (before.codes, before.steps["rotation"]) == ([], "ok")
    assert (after.codes, after.steps["rotation"]) == (["not_rotated"], "failed")
    assert served.fingerprint[:16] in after.messages
    assert "has not taken it up" in after.document["found"][0]["remedy"]
    assert "the file is the older one" in older.document["found"][0]["remedy"].lower()


def test_a_change_of_cas_that_did_not_take_effect(world: World, ask: Callable[..., Asked], tmp_path: Path) -> None:
    """The pool on disk against the one that the server says it accepts."""
    with node(world.manager()) as port:
        arguments = (BETA, "--as", ALPHA, "--address", f"{HOST}:{port}", "--expect-client-ca", "clients.pem")
        write_ca_pool(world.ca.pool, tmp_path / "clients.pem")
        same = ask(*arguments)
        write_ca_pool(world.new_ca().pool, tmp_path / "clients.pem")
        changed = ask(*arguments)
    assert (same.codes, same.steps["trust"]) == ([], "ok")
    assert (changed.codes, changed.steps["trust"]) == (["trust_not_rotated"], "failed")
    assert "on disk only" in changed.messages
    assert "served only" in changed.messages


def test_a_server_need_not_say_whom_it_accepts(world: World, ask: Callable[..., Asked], tmp_path: Path) -> None:
    """Then nothing can be told of its pool, and that is said."""
    ask_nobody = python_tls(tmp_path, world.issue("localhost"), lambda _: None)
    with ask_nobody as port:
        asked = ask(f"localhost:{port}", "--ca", "pki/ca.pem", "--expect-client-ca", "pki/ca.pem")
    assert (asked.codes, asked.steps["trust"]) == ([], "skipped")

    def request(context: ssl.SSLContext) -> None:
        context.verify_mode = ssl.CERT_OPTIONAL

    with python_tls(tmp_path, world.issue("localhost"), request) as port:
        asked = ask(f"localhost:{port}", "--ca", "pki/ca.pem", "--expect-client-ca", "pki/ca.pem")
    assert (asked.codes, asked.steps["trust"], asked.steps["our certificate"]) == ([], "skipped", "skipped")


# More of what nodes say ---------------------------------------------------------------------------------------------


def test_no_certificate_given(world: World, ask: Callable[..., Asked]) -> None:
    """What is missing, and whose certificates the server takes; the CA is that of the directory."""
    with node(world.manager()) as port:
        asked = ask(BETA, "--address", f"{HOST}:{port}")
    assert asked.codes == ["certificate_required"]
    assert asked.steps["their certificate"] == "ok"


def test_a_server_that_verifies_nobody(world: World, ask: Callable[..., Asked]) -> None:
    """It asks for nothing, so there is nothing to be refused for; without a certificate nobody is greeted."""
    with node(world.manager(client_auth=ClientAuth.NO_CLIENT_CERT), cookie="0123456789abcdef0123") as port:
        asked = ask(BETA, "--address", f"{HOST}:{port}")
    assert (asked.codes, asked.steps["our certificate"], asked.steps["hello"]) == ([], "skipped", "skipped")


def test_our_certificate_is_revoked(world: World, ask: Callable[..., Asked]) -> None:
    """Over there."""
    alpha = world.write(ALPHA)
    crls = CertificateAuthority.load(world.folder / "pki").revocation_list(alpha)
    with node(world.manager(crls=crls)) as port:
        asked = ask(BETA, "--as", ALPHA, "--address", f"{HOST}:{port}")
    assert asked.codes == ["certificate_revoked"]


def test_their_certificate_is_revoked(world: World, ask: Callable[..., Asked]) -> None:
    """On our list; and a list that has expired says nothing of anybody."""
    served = world.issue(BETA)
    ca = CertificateAuthority.load(world.folder / "pki")
    with node(world.manager(served)) as port:
        write_crl_set(ca.revocation_list(served), world.folder / "pki" / "ca.crl")
        revoked = ask(BETA, "--as", ALPHA, "--address", f"{HOST}:{port}")
        old = world.ca.revocation_list(lifetime=timedelta(days=1))
        write_crl_set(old, world.folder / "pki" / "ca.crl")
        unknown = ask(BETA, "--as", ALPHA, "--address", f"{HOST}:{port}")
    assert revoked.codes == ["revoked"]
    assert unknown.codes == ["revocation_unknown"]


@pytest.mark.parametrize(
    ("purpose", "codes"),
    [
        (ExtendedKeyUsageOID.SERVER_AUTH, ["wrong_eku", "unsupported_certificate"]),
        (ExtendedKeyUsageOID.CLIENT_AUTH, []),
    ],
)
def test_our_purposes(
    purpose: x509.ObjectIdentifier, codes: list[str], world: World, ask: Callable[..., Asked]
) -> None:
    """A client needs clientAuth."""
    world.write(ALPHA, world.issue(ALPHA, extended_key_usage=[purpose]))
    with node(world.manager()) as port:
        asked = ask(BETA, "--as", ALPHA, "--address", f"{HOST}:{port}")
    assert asked.codes == codes


def test_their_purposes(world: World, ask: Callable[..., Asked], tmp_path: Path) -> None:
    """A server needs serverAuth, whoever trusts it."""
    pair = world.issue("localhost", extended_key_usage=[ExtendedKeyUsageOID.CLIENT_AUTH])
    with python_tls(tmp_path, pair, lambda _: None) as port:
        asked = ask(f"localhost:{port}", "--ca", "pki/ca.pem")
    assert asked.codes == ["wrong_eku"]


def test_what_the_hello_is_refused_for(world: World, ask: Callable[..., Asked], tmp_path: Path) -> None:
    """The wrong name, cookie, somebody who is not let in, and another node than the one that was asked for."""
    (tmp_path / "cookie").write_text("0123456789abcdef0123\n")

    def nobody(_: object) -> None:
        raise Refused("not today")

    def dial(port: int, *more: str, node: str = BETA, ours: str = ALPHA) -> Asked:
        return ask(node, "--as", ours, "--address", f"{HOST}:{port}", *more)

    world.write("gamma@localhost", world.issue(ALPHA))
    hosts_only = world.issue("localhost")
    with node(world.manager(), cookie="0123456789abcdef0123") as port:
        assert dial(port).codes == ["cookie"]
        assert dial(port, "--cookie-file", "cookie").codes == []
    with node(world.manager(hosts_only), authorize=nobody) as port:
        assert dial(port).codes == ["not_authorized"]
        claimed = dial(port, ours="gamma@localhost")  # with alpha's certificate
        assert (claimed.codes, claimed.steps["hello"]) == (["name_mismatch"], "skipped")
    with node(world.manager(hosts_only)) as port:
        other = dial(port, node="delta@localhost")
        assert other.codes == ["claimed_name"], "it is another node that answers there"


def test_nobody_says_who_is_there(world: World, ask: Callable[..., Asked]) -> None:
    """A certificate for hosts only does not say which node it is; ours needs no name then, either."""
    with node(world.manager(world.issue("localhost"))) as port:
        world.write("hosts", world.issue("localhost"))
        given = ("--cert", "pki/hosts.pem", "--key", "pki/hosts-key.pem", "--ca", "pki/ca.pem")
        nameless = ask(f"localhost:{port}", *given)
        named = ask(BETA, "--address", f"localhost:{port}", *given)
    assert (nameless.codes, nameless.steps["hello"]) == ([], "skipped")
    assert (named.codes, named.steps["hello"]) == ([], "ok")


# Other servers ------------------------------------------------------------------------------------------------------


def test_openssl_s_server(world: World, ask: Callable[..., Asked], tmp_path: Path) -> None:
    """As far as TLS goes: it asks for our certificate, gets it, and goes on."""
    write_key_pair(world.issue("localhost"), tmp_path / "s.pem", tmp_path / "s.key")
    command = "openssl s_server -accept 127.0.0.1:0 -cert s.pem -key s.key -CAfile pki/ca.pem -Verify 2 -alpn h2"
    pipe, nowhere = subprocess.PIPE, subprocess.DEVNULL
    with subprocess.Popen(command.split(), cwd=tmp_path, stdin=pipe, stdout=pipe, stderr=nowhere) as server:
        assert server.stdout is not None
        try:
            port = next(int(line.rpartition(b":")[2]) for line in server.stdout if line.startswith(b"ACCEPT "))
            asked = ask(f"localhost:{port}", "--as", ALPHA)
            node_wanted = ask(f"{BETA}:{port}", "--as", ALPHA)
        finally:
            server.kill()
    assert asked.codes == []
    assert asked.document["tls"]["alpn"] == "h2"
    assert "went on after receiving it" in str(asked.document["steps"])
    assert "hello" not in asked.steps
    assert node_wanted.codes == ["no_node"]


@pytest.mark.parametrize(
    ("key", "digest", "said"), [("rsa:1024", "-sha256", "too weak a key: RSA 1024"), ("rsa:2048", "-sha1", "SHA-1")]
)
def test_a_certificate_that_a_dial_refuses_as_weak(
    key: str, digest: str, said: str, world: World, ask: Callable[..., Asked], tmp_path: Path
) -> None:
    """Without a certificate of our own as well: the handshake that looks goes through, and a dial would not."""
    assert (world.folder / "pki" / "ca.key").exists()
    for line in (
        f"req -newkey {key} -nodes -keyout s.key -subj /CN=s -addext subjectAltName=DNS:localhost -out s.csr",
        f"x509 -req -in s.csr -CA pki/ca.pem -CAkey pki/ca.key {digest} -copy_extensions copy -days 2 -out s.pem",
    ):
        subprocess.run(["openssl", *line.split()], cwd=tmp_path, capture_output=True, check=True)
    command = "openssl s_server -accept 127.0.0.1:0 -cert s.pem -key s.key -cipher ALL:@SECLEVEL=0"
    pipe, nowhere = subprocess.PIPE, subprocess.DEVNULL
    with subprocess.Popen(command.split(), cwd=tmp_path, stdin=pipe, stdout=pipe, stderr=nowhere) as server:
        assert server.stdout is not None
        try:
            port = next(int(line.rpartition(b":")[2]) for line in server.stdout if line.startswith(b"ACCEPT "))
            asked = ask(f"localhost:{port}", "--root-ca", "pki/ca.pem")
        finally:
            server.kill()
    assert asked.codes == ["bad_chain"]
    assert said in str(asked.document["found"])


def test_a_server_that_knows_older_tls_only(world: World, ask: Callable[..., Asked], tmp_path: Path) -> None:
    """TLS 1.2 is understood, and named as what is wrong."""

    def old(context: ssl.SSLContext) -> None:
        context.maximum_version = ssl.TLSVersion.TLSv1_2
        context.verify_mode = ssl.CERT_REQUIRED
        context.load_verify_locations(tmp_path / "pki" / "ca.pem")

    with python_tls(tmp_path, world.issue("localhost"), old) as port:
        asked = ask(f"localhost:{port}", "--ca", "pki/ca.pem")
    assert asked.codes == ["old_tls", "certificate_required"]
    assert asked.document["tls"]["version"] == "TLSv1.2"
    assert asked.document["trust"]["path"]


def test_a_server_without_our_protocols(world: World, ask: Callable[..., Asked]) -> None:
    """One that refuses all that we offer is asked again without."""
    manager = world.manager(client_auth=ClientAuth.NO_CLIENT_CERT)

    async def serve(port: SimpleQueue[Any]) -> None:
        from functools import partial

        from trionode import serve_tls

        async def welcome(stream: trio.abc.Stream) -> None:
            await stream.send_all(b"hi")

        done = trio.Event()
        async with trio.open_nursery() as nursery:
            listeners = await nursery.start(
                partial(serve_tls, welcome, 0, cert_manager=manager, host=HOST, alpn=["mine"])
            )
            port.put((listeners[0].socket.getsockname()[1], trio.lowlevel.current_trio_token(), done))
            with trio.move_on_after(PATIENCE):
                await done.wait()
            nursery.cancel_scope.cancel()

    told: SimpleQueue[Any] = SimpleQueue()
    thread = threading.Thread(target=trio.run, args=(serve, told))
    thread.start()
    port, token, done = told.get(timeout=PATIENCE)
    try:
        asked = ask(f"localhost:{port}", "--ca", "pki/ca.pem")
    finally:
        token.run_sync_soon(done.set)
        thread.join(PATIENCE)
    assert asked.codes == []
    assert asked.document["tls"]["alpn"] is None


def say_ssh(connection: socket.socket) -> None:
    """Talk first, and not TLS."""
    connection.sendall(b"SSH-2.0-OpenSSH_9.6\r\n")
    connection.recv(1000)


def hang_up(connection: socket.socket) -> None:
    """Listen, then leave."""
    connection.recv(1000)


def say_nothing(connection: socket.socket) -> None:
    """Until the client has gone."""
    while connection.recv(1000):
        pass


def refuse_the_name(connection: socket.socket) -> None:
    """The alert of a server that does not serve this name."""
    connection.recv(1000)
    connection.sendall(b"\x15\x03\x03\x00\x02\x02\x70")


@pytest.mark.parametrize(
    ("answer", "code", "words"),
    [
        (say_ssh, "not_tls", "SSH-2.0-OpenSSH_9.6"),
        (hang_up, "closed", "in the middle of the TLS handshake"),
        (say_nothing, "silent", "sends nothing within 2 s"),
        (refuse_the_name, "unrecognized_name", "unrecognized name"),
    ],
)
def test_what_is_no_tls(
    answer: Callable[[socket.socket], None], code: str, words: str, world: World, ask: Callable[..., Asked]
) -> None:
    """Told apart, and the steps end there."""
    with listener(answer) as port:
        asked = ask(f"localhost:{port}", "--timeout", "2")
    assert asked.codes == [code]
    assert words in asked.messages
    assert list(asked.steps) == ["resolve", "tcp", "tls"]
    assert asked.document["tls"] is None


def test_signed_by_itself(world: World, ask: Callable[..., Asked], tmp_path: Path) -> None:
    """And a certificate of a web server is judged by the system's CAs, if there are any."""
    with python_tls(tmp_path, KeyPair.self_signed("localhost"), lambda _: None) as port:
        asked = ask(f"localhost:{port}", "--ca", "pki/ca.pem")
        system = ask(f"localhost:{port}")
    assert asked.codes == ["unknown_ca"]
    assert "self-signed" in asked.messages
    assert system.codes == ["unknown_ca"] or system.steps["their certificate"] == "skipped"


# Nobody there -------------------------------------------------------------------------------------------------------


def test_nobody_listens(world: World, ask: Callable[..., Asked], trionode_command: Command) -> None:
    """Refused, with where to look; in words too, it is no traceback."""
    with socket.create_server((HOST, 0)) as server:
        port = server.getsockname()[1]
    asked = ask(f"{HOST}:{port}")
    assert asked.codes == ["refused"]
    assert list(asked.steps) == ["resolve", "tcp"]
    said = trionode_command("explain", f"{HOST}:{port}")
    assert (said.status, said.err) == (1, "")
    assert "start the node" in said.out


def test_no_such_name(world: World, ask: Callable[..., Asked]) -> None:
    """RFC 6761 keeps `.invalid` from existing."""
    assert ask("nobody.invalid:1", "--timeout", "5").codes == ["unresolvable"]


@pytest.mark.parametrize(
    ("arguments", "words", "status"),
    [
        ((), "Missing argument 'NODE|HOST[:PORT]'", 2),
        (("host:port",), "'port' is no port", 2),
        (("host:99999",), "is no port", 2),
        (("a b@host",), "node name part", 2),
        (("a..b:1",), "neither a DNS name nor an IP address", 2),
        (("host", "--server-name", "a..b"), "neither a DNS name", 2),
        (("host", "--as", "alpha"), "a node name is name@host", 2),
        (("host", "--as", "nobody@localhost"), "trionode pki issue nobody@localhost", 3),
        (("host", "--timeout", "0"), "0.0 is not in the range", 2),
        (("host", "--expect-cert", "nowhere"), "cannot read nowhere", 3),
        (("host", "--expect-client-ca", "nowhere"), "cannot read nowhere", 3),
        (("host", "--cookie-file", "short"), "short holds no cookie", 3),
    ],
)
def test_what_makes_no_sense(
    arguments: tuple[str, ...], words: str, status: int, world: World, trionode_command: Command, tmp_path: Path
) -> None:
    """One line each; nobody is dialled."""
    (tmp_path / "short").write_text("short\n")
    trionode_command("explain", *arguments).is_one_line(words, status=status)


# Judgements that no server here makes -------------------------------------------------------------------------------


def seen(**changes: Any) -> Inspection:
    """A look at a server."""
    facts: dict[str, Any] = {
        "finished": False,
        "went_on": False,
        "failure": None,
        "chain": (),
        "certificate_requested": True,
        "requested_cas": {},
        "tls_version": "TLSv1.3",
        "cipher": None,
        "alpn": None,
        "first_words": None,
    }
    return Inspection(**{**facts, **changes})


@pytest.mark.parametrize("code", list(RejectionCode))
def test_every_alert_has_its_words(code: RejectionCode, world: World) -> None:
    """Whatever a server says against us, there is a sentence and a remedy for it."""
    found = rejected(code, world.issue(ALPHA).certificate, seen(), world.now)
    assert found.code == code
    assert found.message
    assert found.remedy


@pytest.mark.parametrize(
    ("failure", "code"),
    [
        (HandshakeErrors().rejected_by_alert("handshake failure"), "handshake_failure"),
        (HandshakeErrors().rejected_by_alert("protocol version"), "protocol_version"),
        (HandshakeErrors().misbehaved("bad record type"), "not_tls"),
        (HandshakeErrors().truncated("cut"), "closed"),
        (None, "silent"),
    ],
)
def test_every_way_in_which_tls_fails(failure: Any, code: str) -> None:
    """Where, what, and what to do."""
    target = Target(node=None, host="localhost", port=1, server_name="localhost")
    found = tls_failure(seen(failure=failure), target, 1.0)
    assert found.code == code
    assert found.message.startswith("localhost port 1: ")


def test_nothing_is_foreseen_of_a_server_that_says_nothing(world: World) -> None:
    """Nor of one that lists our CA."""
    pair = world.issue(ALPHA)
    ours = {world.ca.certificate.subject.public_bytes(): "ours"}
    assert list(foresee(pair, seen())) == []
    assert list(foresee(pair, seen(requested_cas=ours))) == []
    assert [each.code for each in foresee(pair, seen(requested_cas={b"x": "others"}))] == ["unknown_ca"]


def test_the_clock_is_an_estimate_and_says_so(world: World) -> None:
    """In every case."""
    leaf = world.issue(ALPHA).certificate
    for moment in (world.now, world.now + timedelta(days=999), world.now - timedelta(days=9)):
        assert "estimated" in " ".join(estimate_clock(leaf, moment))
