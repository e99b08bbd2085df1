"""The threat model (THREATS.md) is true: every test that it names exists; and here are those that nobody else has."""

from __future__ import annotations

import ast
import faulthandler
import io
import logging
import re
import subprocess
import traceback
from contextlib import suppress
from functools import lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import pytest
import trio
import trio.testing
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID, ObjectIdentifier
from rich.console import Console
from rich.traceback import Traceback

import trionode
from trionode import (
    AcceptorOptions,
    CAPool,
    CertAuthManager,
    ClientAuth,
    HandshakeError,
    HandshakeRefused,
    KeyPair,
    LocalRegistry,
    NetworkOptions,
    NodeName,
    NodeOptions,
    PeerUnverifiedError,
    RemoteError,
    Route,
    StrandedPeers,
    TLSStream,
    UnverifiedReason,
    _protocol as wire,
    open_node,
    serve_tls,
)
from trionode._identity.names import SubjectNames
from trionode.manual import read
from trionode.pki import CertificateAuthority, write_key_pair

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator
    from contextlib import AbstractAsyncContextManager
    from typing import TypeAlias

    from conftest import ManagerFactory, NodeFactory, ScriptedListener, ScriptedPeer

    from trionode import ServiceChannel

    Registered: TypeAlias = Callable[..., AbstractAsyncContextManager[None]]

HERE = Path(__file__).parents[1]
MODEL = (HERE / "THREATS.md").read_text(encoding="utf-8")

#: Everything here is over long before. Seconds.
PATIENCE: Final = 30

# The document -------------------------------------------------------------------------------------------------------

ATTACKERS: Final = {
    "A network attacker",
    "An unverified peer",
    "A peer with a valid certificate and a lying hello",
    "The holder of an expired or revoked certificate",
    "A local user",
}

TOPICS: Final = {
    "Downgrade",
    "Resumption across a rotation",
    "Name confusion: node names",
    "Name confusion: wildcards",
    "Name confusion: IDNA",
    "Name confusion: NUL bytes",
    "Name confusion: case",
    "Name confusion: odd sibling SANs",
    "A certificate valid for another node",
    "Squatting on a name",
    "Intermediates with name constraints",
    "Replayed hello",
    "Hand-over hijack",
    "Hand-over relay",
    "Cookie guessing",
    "Exhaustion before authentication",
    "Exhaustion after authentication",
    "Log injection",
    "Secrets in crash output",
}


def sections() -> dict[str, list[list[str]]]:
    """The rows of each section's table, without its head: cells of threat, defence, tests, residual risk."""
    found: dict[str, list[list[str]]] = {}
    for part in MODEL.split("\n## ")[1:]:
        title, _, text = part.partition("\n")
        lines = [line for line in text.splitlines() if line.startswith("|")][2:]
        if lines:
            found[title] = [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]
    return found


ROWS = [row for rows in sections().values() for row in rows]


@lru_cache
def collect(file: str) -> set[str]:
    """The names of the tests in a file, without running anything."""
    tree = ast.parse((HERE / file).read_text(encoding="utf-8"))
    functions = (ast.FunctionDef, ast.AsyncFunctionDef)
    return {node.name for node in tree.body if isinstance(node, functions) and node.name.startswith("test_")}


def test_every_attacker_has_a_table_and_every_topic_a_row() -> None:
    """Nobody and nothing that was asked for is missing."""
    assert sections().keys() >= ATTACKERS
    topics = {topic for threat, *_ in ROWS for topic in re.findall(r"\*\*(.+?)\*\*", threat)}
    assert topics >= TOPICS


@pytest.mark.parametrize("row", ROWS, ids=lambda row: re.sub(r"\*\*(.+?)\*\*.*", r"\1", row[0]))
def test_every_row_names_what_stops_it_and_tests_that_exist(row: list[str]) -> None:
    """Four cells, none empty; the modules and the tests are there."""
    threat, defence, shown, residual = row
    assert re.match(r"\*\*.+?\*\*", threat)
    assert residual
    modules = re.findall(r"`(_\w+(?:/\w+)?|\w+/\w+|pki)`", defence)
    assert modules
    package = Path(trionode.__file__).parent
    assert all((package / module).is_dir() or (package / f"{module}.py").exists() for module in modules), defence
    tests = re.findall(r"`((?:\w+/)*\w+\.py)::(\w+)`", shown)
    assert tests
    assert len(tests) == shown.count("::") == shown.count("`") / 2
    missing = [f"{file}::{name}" for file, name in tests if name not in collect(file)]
    assert not missing


def test_the_manual_leads_to_it() -> None:
    """The page of security notes has a link."""
    assert "(../../tests/THREATS.md)" in read("security")


# What several tests use ---------------------------------------------------------------------------------------------


def openssl(*arguments: str | Path) -> str:
    """Run the command, an implementation that is not ours; what it prints."""
    done = subprocess.run(["openssl", *arguments], capture_output=True, timeout=PATIENCE, check=False, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


async def s_client(port: int, *options: str | Path) -> str:
    """Connect by `openssl s_client` until the server ends the connection; everything that it prints."""
    command = ["openssl", "s_client", "-ign_eof", "-connect", f"127.0.0.1:{port}", *map(str, options)]
    with trio.fail_after(PATIENCE):
        done = await trio.run_process(command, stdin=b"", capture_stdout=True, stderr=subprocess.STDOUT, check=False)
    return done.stdout.decode(errors="replace")


async def welcome(stream: TLSStream) -> None:
    """Say something, with which OpenSSL's session tickets travel."""
    await stream.send_all(b"welcome")


async def serve(nursery: trio.Nursery, manager: CertAuthManager) -> int:
    """Serve clients; the port."""
    listeners = await nursery.start(partial(serve_tls, welcome, 0, cert_manager=manager, host="127.0.0.1"))
    return int(listeners[0].socket.getsockname()[1])


def holding(key_pair: KeyPair, directory: Path) -> tuple[str | Path, ...]:
    """Options for `s_client` to present a key pair."""
    cert, key = directory / "cert.pem", directory / "key.pem"
    write_key_pair(key_pair, cert, key)
    return "-cert", cert, "-key", key


async def refusal(events: trionode.EventStream) -> HandshakeError:
    """The next handshake that fails."""
    async for event in events:
        if isinstance(event, HandshakeRefused):
            return event.error
    raise AssertionError("the node ended")


# Downgrade and resumption -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [("-tls1_2",), ("-tls1_1", "-cipher", "ALL:@SECLEVEL=0"), ("-tls1_2", "-cipher", "AES128-SHA:@SECLEVEL=0")],
    ids=" ".join,
)
async def test_a_client_that_insists_on_an_older_tls_gets_none(
    node: NodeFactory, manager: ManagerFactory, tmp_path: Path, options: tuple[str, ...]
) -> None:
    """`openssl s_client` that offers TLS 1.2 or 1.1, and a good certificate, is refused by alert; the node says why."""
    async with node("beta@localhost") as beta, beta.events() as events:
        printed = await s_client(
            beta.acceptors[0].address[1], *options, *holding(manager("alpha@localhost").key_pair, tmp_path)
        )
        assert "alert protocol version" in printed
        assert "Cipher is (NONE)" in printed
        assert "offers only TLS versions before 1.3" in str(await refusal(events))


async def test_a_session_does_not_outlive_a_rotation_of_trust(
    ca: CertificateAuthority, rogue_ca: CertificateAuthority, tmp_path: Path
) -> None:
    """A client brings its session along, but its CA has been retired meanwhile: it is refused like any newcomer."""
    server = CertAuthManager(
        ca.issue("localhost"), client_cas=ca.pool, client_auth=ClientAuth.REQUIRE_AND_VERIFY_CLIENT_CERT
    )
    session = tmp_path / "session.pem"
    options = holding(ca.issue("alpha@localhost"), tmp_path)
    async with trio.open_nursery() as nursery:
        port = await serve(nursery, server)
        assert "welcome" in await s_client(port, *options, "-sess_out", session)
        assert "BEGIN SSL SESSION PARAMETERS" in session.read_text()
        server.update(ca.issue("localhost"))
        printed = await s_client(port, *options, "-sess_in", session)
        assert "New, TLSv1.3" in printed
        assert "Reused" not in printed
        assert "welcome" in printed
        server.rotate_trust(client_cas=rogue_ca.pool, stranded=StrandedPeers.CLOSE)
        printed = await s_client(port, *options, "-sess_in", session)
        assert "Reused" not in printed
        assert "welcome" not in printed
        assert "alert unknown ca" in printed
        nursery.cancel_scope.cancel()


# Certificates that want to be more than they are --------------------------------------------------------------------

#: What a sub-CA may issue, and what may be done with what it issued.
CONSTRAINED: Final = """\
[root]
basicConstraints = critical, CA:TRUE
keyUsage = critical, keyCertSign, cRLSign
[sub]
basicConstraints = critical, CA:TRUE
keyUsage = critical, keyCertSign, cRLSign
nameConstraints = critical, {constraints}
[leaf]
basicConstraints = critical, CA:FALSE
keyUsage = critical, digitalSignature
extendedKeyUsage = serverAuth, clientAuth
subjectAltName = {sans}
"""


class SubCA:
    """A root and a sub-CA that may issue for some names only; both by the `openssl` command."""

    def __init__(self, home: Path, constraints: str) -> None:
        self._home = home
        self._constraints = constraints
        self._make("root", "root", None)
        self._make("sub", "sub", "root")
        self.pool = CAPool.load(home / "root.pem")

    def issue(self, sans: str) -> KeyPair:
        """Issue for these names, whether it may or not."""
        self._make("leaf", "leaf", "sub", sans)
        chain = [x509.load_pem_x509_certificate((self._home / f"{who}.pem").read_bytes()) for who in ("leaf", "sub")]
        key = serialization.load_pem_private_key((self._home / "leaf.key").read_bytes(), None)
        assert isinstance(key, ec.EllipticCurvePrivateKey)
        return KeyPair(chain, key)

    def manager(self, sans: str) -> CertAuthManager:
        """A manager with such a key pair that trusts the root."""
        mode = ClientAuth.REQUIRE_AND_VERIFY_CLIENT_CERT
        return CertAuthManager(self.issue(sans), client_cas=self.pool, client_auth=mode, root_cas=self.pool)

    def _make(self, who: str, section: str, issuer: str | None, sans: str = "DNS:unused") -> None:
        path = {suffix: self._home / f"{who}.{suffix}" for suffix in ("key", "csr", "pem", "cnf")}
        path["cnf"].write_text(CONSTRAINED.format(constraints=self._constraints, sans=sans))
        key = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-keyout", path["key"])
        openssl("req", "-new", *key, "-subj", f"/CN={who}", "-out", path["csr"])
        extensions = ("-extfile", path["cnf"], "-extensions", section)
        signer: tuple[str | Path, ...] = ("-signkey", path["key"])
        if issuer is not None:
            signer = ("-CA", self._home / f"{issuer}.pem", "-CAkey", self._home / f"{issuer}.key", "-CAcreateserial")
        openssl("x509", "-req", "-in", path["csr"], "-out", path["pem"], "-days", "9", *extensions, *signer)


@pytest.mark.parametrize(
    ("constraints", "sans", "reason"),
    [
        ("permitted;DNS:localhost", "DNS:localhost,URI:trionode://alpha@localhost", None),
        ("permitted;DNS:here.example", "DNS:localhost", UnverifiedReason.BAD_CHAIN),
        ("permitted;DNS:here.example", "DNS:a.here.example,DNS:localhost", UnverifiedReason.BAD_CHAIN),
        ("excluded;DNS:localhost", "DNS:localhost", UnverifiedReason.BAD_CHAIN),
        # OpenSSL does not take these for the name that is excluded, so nor may we.
        ("excluded;DNS:localhost", "DNS:localhost.", UnverifiedReason.CLAIMED_NAME),
        ("excluded;DNS:localhost", "DNS:localho\u017ft", UnverifiedReason.CLAIMED_NAME),
        # A node URI alone speaks for nobody: the host has to be there as a DNS SAN, which is constrained.
        (
            "permitted;DNS:here.example",
            "DNS:a.here.example,URI:trionode://alpha@localhost",
            UnverifiedReason.CLAIMED_NAME,
        ),
    ],
)
async def test_a_sub_ca_issues_for_its_own_names_only(
    node: NodeFactory, tmp_path: Path, constraints: str, sans: str, reason: UnverifiedReason | None
) -> None:
    """What a name-constrained sub-CA issues beyond its constraints opens no door, as client and as server."""
    sub = SubCA(tmp_path, constraints)
    root = CertificateAuthority.create()
    both = sub.pool | root.pool
    mode = ClientAuth.REQUIRE_AND_VERIFY_CLIENT_CERT
    honest = partial(CertAuthManager, client_cas=both, client_auth=mode, root_cas=both)
    dishonest = CertAuthManager(sub.issue(sans), client_cas=both, client_auth=mode, root_cas=both)
    with trio.fail_after(PATIENCE):
        async with (
            node("beta@localhost", honest(root.issue("beta@localhost"))) as beta,
            node("alpha@localhost", dishonest) as alpha,
            beta.events() as events,
        ):
            there = Route(host="127.0.0.1", port=beta.acceptors[0].address[1])
            back = Route(host="127.0.0.1", port=alpha.acceptors[0].address[1])
            if reason is None:
                assert (await alpha.connect("beta@localhost", there)).peer.verified
                assert (await beta.connect("alpha@localhost", back)).peer.verified
                return
            with pytest.raises(HandshakeError):
                await alpha.connect("beta@localhost", there)
            error = await refusal(events)
            assert isinstance(error, PeerUnverifiedError)
            assert error.reason is reason
            with pytest.raises(PeerUnverifiedError) as caught:
                await beta.connect("alpha@localhost", back)
            expected = UnverifiedReason.NAME_MISMATCH if reason is UnverifiedReason.CLAIMED_NAME else reason
            assert caught.value.reason is expected


SAN_OID = ObjectIdentifier("2.5.29.17")


def signed(ca: CertificateAuthority, *sans: bytes, common_name: str = "leaf") -> KeyPair:
    """A key pair that a CA issued without looking: its SAN entries are DNS names of any bytes."""
    body = b"".join(bytes([0x82, len(name)]) + name for name in sans)
    key = ec.generate_private_key(ec.SECP256R1())
    certificate = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)]))
        .issuer_name(ca.certificate.subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(ca.certificate.not_valid_before_utc)
        .not_valid_after(ca.certificate.not_valid_after_utc)
        .add_extension(x509.UnrecognizedExtension(SAN_OID, bytes([0x30, len(body)]) + body), critical=False)
        .sign(ca._key, hashes.SHA256())
    )
    return KeyPair([certificate], key)


#: SANs that somebody might take for the name after them.
CONFUSING: Final = [
    pytest.param(b"localhost\0.evil.example", "localhost", id="NUL after"),
    pytest.param(b"evil.example\0localhost", "localhost", id="NUL before"),
    pytest.param(b"localhost\n", "localhost", id="newline"),
    pytest.param(b"*", "localhost", id="bare wildcard"),
    pytest.param(b"l*t", "localhost", id="partial wildcard"),
    pytest.param("l\u043ecalhost".encode(), "localhost", id="Cyrillic, raw"),
    pytest.param("l\u043ecalhost".encode("idna"), "localhost", id="Cyrillic, A-label"),
    pytest.param("localho\u017ft".encode(), "localhost", id="folds to ASCII"),
    pytest.param(b"localhost.evil.example", "localhost", id="prefix"),
    pytest.param(b"evil-localhost", "localhost", id="suffix"),
]


@pytest.mark.parametrize(("san", "host"), CONFUSING)
async def test_a_confusing_san_is_not_the_name(
    node: NodeFactory, manager: ManagerFactory, ca: CertificateAuthority, san: bytes, host: str
) -> None:
    """Issued by the right CA, it fits neither the server that is dialled nor the node that a client claims to be."""
    evil = manager(key_pair=signed(ca, san))
    with trio.fail_after(PATIENCE):
        async with (
            node(f"beta@{host}") as beta,
            node(f"alpha@{host}", evil) as alpha,
            beta.events() as events,
        ):
            with pytest.raises(PeerUnverifiedError) as caught:
                await beta.connect(alpha.name, Route(host="127.0.0.1", port=alpha.acceptors[0].address[1]))
            assert caught.value.reason is UnverifiedReason.NAME_MISMATCH
            assert str(caught.value).isprintable()
            with suppress(HandshakeError):
                await alpha.connect(beta.name, Route(host="127.0.0.1", port=beta.acceptors[0].address[1]))
            refusals = [await refusal(events) for _ in range(2)]
    mine = refusals[-1]
    assert isinstance(mine, PeerUnverifiedError)
    assert mine.reason is UnverifiedReason.CLAIMED_NAME
    assert str(mine).isprintable()


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("a@paypal.example", "a@p\u0430ypal.example"),  # a Cyrillic a
        ("a@oo.example", "a@\u043e\u043e.example"),  # all Cyrillic
        ("a@bank.example", "a@b\u00e0nk.example"),
    ],
)
def test_names_that_look_alike_are_not_alike(ca: CertificateAuthority, one: str, other: str) -> None:
    """A homograph is another name, is shown as what it is, and its certificate speaks for itself only."""
    honest, homograph = NodeName.parse(one), NodeName.parse(other)
    assert honest != homograph
    assert str(homograph).startswith("a@xn--")
    names = SubjectNames.of(ca.issue(str(homograph)).certificate)
    assert names.cover_node(homograph)
    assert not names.cover_node(honest)


# Logs ---------------------------------------------------------------------------------------------------------------

#: What a peer puts wherever it may put text: a new line that looks like one of ours, terminal codes (7 and 8 bit),
#: the other separators of lines, and a character that reverses the rest of a line.
EVIL: Final = "x\r\n2026-01-01 ERROR root: forged\x1b[2J\x9b31m\x85\u2028\u202e\0\b"


@pytest.fixture
def log(caplog: pytest.LogCaptureFixture) -> Iterator[Callable[[], str]]:
    """What was logged, formatted as applications do, tracebacks included, once nothing in it can hurt a reader."""
    caplog.set_level(logging.DEBUG, "trionode")
    formatter = logging.Formatter("LOG %(name)s %(message)s")

    def formatted() -> str:
        for record in caplog.records:
            assert record.getMessage().isprintable(), record.getMessage()
        text = "\n".join(formatter.format(record) for record in caplog.records)
        assert all(line.isprintable() for line in text.split("\n")), text
        assert not re.search(r"^\s*(\S+Error: )?2026", text, re.MULTILINE), text
        return text

    yield formatted
    formatted()


@pytest.mark.parametrize("issuer", ["rogue", "cluster"])
async def test_a_certificate_forges_no_log_line(
    node: NodeFactory, manager: ManagerFactory, ca: CertificateAuthority, log: Callable[[], str], issuer: str
) -> None:
    """Subject, SANs and issuer of a certificate that is refused, for its CA or its names, are in one printable line."""
    evil_ca = CertificateAuthority.create(common_name="evil CA") if issuer == "rogue" else ca
    evil = manager(key_pair=signed(evil_ca, EVIL.encode(), EVIL.encode(), common_name=EVIL))
    with trio.fail_after(PATIENCE):
        async with node("beta@localhost") as beta, node("alpha@localhost", evil) as alpha, beta.events() as events:
            with suppress(HandshakeError):
                await alpha.connect("beta@localhost", Route(host="127.0.0.1", port=beta.acceptors[0].address[1]))
            accepted = await refusal(events)
            with pytest.raises(PeerUnverifiedError) as caught:
                await beta.connect("alpha@localhost", Route(host="127.0.0.1", port=alpha.acceptors[0].address[1]))
    for error in accepted, caught.value:
        assert str(error).isprintable()
        assert "forged" in str(error)
    assert "forged" in log()


async def test_a_hello_forges_no_log_line(
    node: NodeFactory,
    manager: ManagerFactory,
    scripted_dial: Callable[..., Awaitable[ScriptedPeer]],
    scripted_listener: ScriptedListener,
    log: Callable[[], str],
) -> None:
    """Names, codes and words of refusals, from a dialer and from an acceptor, come out in one printable line each."""
    with trio.fail_after(PATIENCE):
        async with node("beta@localhost") as beta, beta.events() as events:
            for last in [
                wire.Confirmation(refusal=wire.Refusal(code="x" * 9, message=EVIL)),
                wire.Confirmation(refusal=wire.Refusal(code=EVIL[:64], message=EVIL * 9)),
            ]:
                peer = await scripted_dial(beta, manager("alpha@localhost"))
                async with peer.stream:
                    await peer.say(peer.hello("alpha@localhost"))
                    await peer.hear(wire.Answer)
                    await peer.say(last)
                    error = await refusal(events)
                assert "forged" in str(error)
                assert str(error).isprintable()
            peer = await scripted_dial(beta, manager("alpha@localhost"))
            async with peer.stream:
                await peer.say(peer.hello(EVIL))
                assert (await peer.hear(wire.Answer)).refusal is not None
            assert str(await refusal(events)).isprintable()
            answers: list[dict[str, Any]] = [
                {"refusal": wire.Refusal(code=EVIL[:64], message=EVIL)},
                {"name": EVIL},
            ]
            for answer in answers:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(answer_once, scripted_listener, manager("gamma@localhost"), answer)
                    with pytest.raises(HandshakeError) as caught:
                        await beta.connect("gamma@localhost", scripted_listener.route())
                assert str(caught.value).isprintable()
    assert "forged" in log()


async def answer_once(listener: ScriptedListener, certs: CertAuthManager, answer: dict[str, Any]) -> None:
    """Accept one dialer, and answer it this."""
    peer = await listener.accept(certs)
    async with peer.stream:
        await peer.hear(wire.Hello)
        await peer.say(peer.answer(**{"name": "gamma@localhost", **answer}))
        await peer.hear_end()


async def test_a_live_peer_forges_no_log_line(
    node: NodeFactory,
    manager: ManagerFactory,
    scripted_dial: Callable[..., Awaitable[ScriptedPeer]],
    log: Callable[[], str],
) -> None:
    """What an admitted peer says (service names, resets, its goodbye) is printable in logs, tracebacks and errors."""
    caught: list[BaseException] = []
    end = wire.End(code=EVIL[:64], message=EVIL)
    alpha = NodeName.parse("alpha@localhost")

    async def ask_back(channel: ServiceChannel) -> None:
        await channel.receive()
        try:
            await beta.connections[alpha].call("whatever", b"")
        except RemoteError as exc:
            caught.append(exc)
            raise RuntimeError("it was reset") from exc

    with trio.fail_after(PATIENCE):
        async with node("beta@localhost", services={"ask back": ask_back}) as beta, beta.events() as events:
            beta.add_service("closed\n", ask_back, allow="nobody@localhost")
            peer = await scripted_dial(beta, manager(str(alpha)))
            async with peer.stream:
                await peer.introduce(str(alpha))
                for number, service in enumerate([EVIL, "closed\n", "ask back"]):
                    await peer.stream.send_all(wire.control(wire.OPEN, 2 * number + 1, wire.Open(service=service)))
                await peer.stream.send_all(wire.header(wire.MESSAGE, 5, 0))
                _, channel, _ = await peer.frame(wire.OPEN)
                await peer.stream.send_all(wire.control(wire.RESET, channel, end))
                while (await peer.frame(wire.RESET))[1] != 5:  # it failed
                    pass
                await peer.stream.send_all(wire.control(wire.GOODBYE, 0, end))
                async for event in events:
                    if isinstance(event, trionode.ConnectionDown):
                        caught.append(event.error or AssertionError())
                        break
    assert len(caught) == 2
    for error in caught:
        assert "forged" in str(error)
        assert str(error).isprintable()
    assert isinstance(caught[0], RemoteError)
    assert caught[0].message.isprintable()
    assert "it was reset" in log()
    assert "may not use the service 'closed\\n'" in log()


# Secrets ------------------------------------------------------------------------------------------------------------

PASSWORD: Final = "battery-staple-of-this-test"
COOKIE: Final = "cookie-of-this-test-in-the-clear"


def secrets_of(key_pair: KeyPair) -> list[str]:
    """Everything by which a private key would be recognised in a text."""
    key = key_pair.private_key
    pem = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    ).decode()
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    number = key.private_numbers().private_value
    raw = number.to_bytes(32, "big")
    return [
        *pem.splitlines()[1:-1],
        str(number),
        f"{number:x}",
        raw[4:16].hex(),
        repr(raw[4:12])[2:-1],
        PASSWORD,
        COOKIE,
    ]


async def crash_with_secrets(cert: Path, key: Path, cas: CAPool) -> None:
    """A node that has a key, a password and a cookie crashes, and every object that holds one is a local variable."""

    async def fail(channel: ServiceChannel) -> None:
        await channel.receive()
        msg = "a crash"
        raise RuntimeError(msg)

    key_pair = KeyPair.load(cert, key, password=PASSWORD)
    mode = ClientAuth.REQUIRE_AND_VERIFY_CLIENT_CERT
    manager = CertAuthManager(key_pair, client_cas=cas, client_auth=mode, root_cas=cas)
    contexts = await manager.contexts.receive()
    network = NetworkOptions(
        acceptors=[AcceptorOptions(host="127.0.0.1", port=0, cookie=COOKIE)],
        routes={"beta@localhost": Route(cookie=COOKIE)},
        cookie=COOKIE,
    )
    options = NodeOptions(cert_manager=manager, network=network, services={"fail": fail}, propagate_service_errors=True)
    async with open_node("beta@localhost", options) as beta, open_node("alpha@localhost", options) as alpha:
        route = Route(host="127.0.0.1", port=beta.acceptors[0].address[1], cookie=COOKIE)
        connection = await alpha.connect("beta@localhost", route)
        assert connection.generation == contexts.generation
        await connection.call("fail", b"")


def shown_by(error: BaseException, tmp_path: Path) -> dict[str, str]:
    """What tools print of a crash, local variables of every frame included."""
    console = Console(file=io.StringIO(), width=500)
    rich = Traceback.from_exception(
        type(error), error, error.__traceback__, show_locals=True, locals_max_length=99, locals_max_string=9999
    )
    console.print(rich)
    plain = traceback.TracebackException.from_exception(error, capture_locals=True)
    excinfo: pytest.ExceptionInfo[BaseException] = pytest.ExceptionInfo.from_exception(error)
    with (tmp_path / "dump").open("w+") as dump:
        faulthandler.dump_traceback(dump, all_threads=True)
        dump.seek(0)
        dumped = dump.read()
    return {
        "rich": console.file.getvalue(),  # type: ignore[attr-defined]  # it is the StringIO
        "traceback": "".join(plain.format()),
        "pytest": str(excinfo.getrepr(showlocals=True, style="long")),
        "faulthandler": dumped,
    }


async def test_a_crash_shows_no_secret(ca: CertificateAuthority, tmp_path: Path) -> None:
    """Neither key nor password nor cookie is in what traceback, rich, pytest and faulthandler show of a crash."""
    cert, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    key_pair = ca.issue("alpha@localhost", "beta@localhost")
    write_key_pair(key_pair, cert, key, password=PASSWORD)
    try:
        with trio.fail_after(PATIENCE):
            await crash_with_secrets(cert, key, ca.pool)
    except ExceptionGroup as group:
        crashed = group
    else:
        pytest.fail("it did not crash")
    key.write_bytes(key.read_bytes()[:-60])
    with pytest.raises(trionode.CertificateError) as damaged:
        KeyPair.load(cert, key, password=PASSWORD)
    shown = [shown_by(error, tmp_path) for error in (crashed, damaged.value)]
    # Only now: what this very frame holds is shown as well.
    needles = secrets_of(key_pair) + key.read_text().splitlines()[1:-1]
    for texts, error in zip(shown, ["a crash", "the password does not open"], strict=True):
        for tool, text in texts.items():
            assert error in text or tool == "faulthandler"
            assert not [needle for needle in needles if needle in text], tool


# Local users --------------------------------------------------------------------------------------------------------


async def test_whoever_takes_a_port_first_is_not_the_node(
    registered: Registered, node: NodeFactory, manager: ManagerFactory, rogue_ca: CertificateAuthority, tmp_path: Path
) -> None:
    """A local user may listen where a node should, or be in its registry; a dialer notices before it says anything."""
    heard: list[Any] = []
    registry = LocalRegistry(tmp_path / "registry")
    impostor = manager("beta@localhost", ca=rogue_ca, client_auth=ClientAuth.REQUEST_CLIENT_CERT)

    async def listen(stream: TLSStream) -> None:
        heard.append(await stream.receive_some())

    with trio.fail_after(PATIENCE):
        async with trio.open_nursery() as nursery:
            listeners = await nursery.start(partial(serve_tls, listen, 0, cert_manager=impostor, host="127.0.0.1"))
            port = listeners[0].socket.getsockname()[1]
            async with registered(registry, NodeName.parse("beta@localhost"), [("127.0.0.1", port)]):
                async with node("alpha@localhost", resolver=registry) as alpha:
                    with pytest.raises(PeerUnverifiedError) as caught:
                        await alpha.call("beta@localhost", "secrets", b"for beta only")
            nursery.cancel_scope.cancel()
    assert caught.value.reason is UnverifiedReason.UNKNOWN_CA
    assert not heard
