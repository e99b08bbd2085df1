"""Chains, pools, and what is made of them: by us, and by Go, whose verdicts are on record in `go_verdicts.json`.

Each case is judged as a server's chain and as a client's. Those with name constraints in every combination are judged
by Python's `ssl` as well. Run as a program, with Go installed, this makes the record anew:
`PYTHONPATH=.:tests/helpers python tests/helpers/path_cases.py`.
"""

from __future__ import annotations

import itertools
import json
import ssl
import subprocess
import tempfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, field
from functools import cache
from ipaddress import IPv4Network, ip_network
from pathlib import Path
from typing import TYPE_CHECKING, Final

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import ExtendedKeyUsageOID, ObjectIdentifier
from OpenSSL import SSL

from ca import BOTH, DAY, TestCA, key_usage, named, new_key, sign
from trionode import CAPool, KeyPair

if TYPE_CHECKING:
    from trionode._credentials.pem import PrivateKey

RECORD: Final = Path(__file__).with_name("go_verdicts.json")
SIDES: Final = ("server", "client")

SERVER_AUTH, CLIENT_AUTH = BOTH
ANY_PURPOSE = ExtendedKeyUsageOID.ANY_EXTENDED_KEY_USAGE
EXPIRED = {"start": -20 * DAY, "end": -DAY}
FUTURE = {"start": DAY, "end": 20 * DAY}

OK, UNKNOWN_CA, NOT_YET_VALID, EXPIRED_CODE, TOO_LONG, INVALID_CA, PATH_LENGTH, PURPOSE = 0, 20, 9, 10, 22, 79, 25, 26
CRITICAL, NOT_PERMITTED, EXCLUDED, WEAK_LEAF, WEAK_CA = 34, 47, 48, 66, 67


@dataclass(frozen=True)
class Case:
    """A chain, a pool, and our verdict.

    Attributes:
        pool: what is trusted.
        chain: what the peer presents.
        code: our verdict on it, as an OpenSSL verify code.
        as_client: our verdict on it as a client's, where that is another.
        differs: where Go's verdict is another, what the manual says of it.
    """

    pool: CAPool
    chain: tuple[x509.Certificate, ...]
    code: int = OK
    as_client: int | None = None
    differs: str = ""

    def verdict(self, side: str) -> int:
        """Ours."""
        return self.code if side == "server" or self.as_client is None else self.as_client


Maker = Callable[[], Case | Iterator[tuple[str, Case]]]
_makers: list[Maker] = []


def case(maker: Maker) -> Maker:
    """Enter a function that makes a case named after it, or several with what is to be added to its name."""
    _makers.append(maker)
    return maker


@cache
def cases() -> dict[str, Case]:
    """Every case by name."""
    found: dict[str, Case] = {}
    for maker in _makers:
        made, name = maker(), maker.__name__.strip("_").replace("_", " ")
        found.update([(name, made)] if isinstance(made, Case) else ((f"{name}, {more}", each) for more, each in made))
    return found


def pool(*cas: TestCA | x509.Certificate) -> CAPool:
    """A pool of CAs."""
    return CAPool([each.certificate if isinstance(each, TestCA) else each for each in cas])


# Plain --------------------------------------------------------------------------------------------------------------


@case
def _root_alone() -> Case:
    root = TestCA()
    return Case(root.pool, root.leaf().chain)


@case
def _intermediates() -> Iterator[tuple[str, Case]]:
    root = TestCA()
    first = TestCA("first", below=root)
    second = TestCA("second", below=first)
    leaf, above, top = second.leaf().chain
    yield "in order", Case(root.pool, (leaf, above, top))
    yield "the wrong way round", Case(root.pool, (leaf, top, above))
    yield "with strangers and the root", Case(root.pool, (leaf, TestCA().certificate, root.certificate, top, above))
    yield "one is missing", Case(root.pool, (leaf, top), UNKNOWN_CA)
    yield "the missing one is in the pool", Case(pool(root, second), (leaf, top))
    yield "the one in the pool is all that is trusted", Case(second.pool, (leaf,))


@case
def _no_ca_of_it() -> Iterator[tuple[str, Case]]:
    root = TestCA()
    yield "none of the name", Case(TestCA("another").pool, root.leaf().chain, UNKNOWN_CA)
    alone = TestCA("alone", basic=None, usage=None, extensions=[x509.ExtendedKeyUsage(BOTH)])
    yield "self-signed", Case(root.pool, (alone.certificate,), UNKNOWN_CA)
    yield "self-signed and pinned", Case(alone.pool, (alone.certificate,))


@case
def _keys() -> Iterator[tuple[str, Case]]:
    makers: dict[str, Callable[[], PrivateKey]] = {
        "P-384": lambda: ec.generate_private_key(ec.SECP384R1()),
        "P-521": lambda: ec.generate_private_key(ec.SECP521R1()),
        "Ed25519": ed25519.Ed25519PrivateKey.generate,
        "RSA-2048": lambda: rsa.generate_private_key(65537, 2048),
    }
    for kind, make in makers.items():
        root = TestCA(key=make())
        yield kind, Case(root.pool, root.leaf(key=make()).chain)
    weak = rsa.generate_private_key(65537, 1024)  # noqa: S505
    root, stricter = (
        TestCA(),
        "a key of less than 112 bits of security (RSA below 2048, EC below 224), in a leaf or a CA",
    )
    yield "RSA-1024", Case(root.pool, (_leaf(root, key=weak),), WEAK_LEAF, differs=stricter)
    root = TestCA(key=weak)
    yield "RSA-1024 of the root", Case(root.pool, root.leaf().chain, WEAK_CA, differs=stricter)
    middle = TestCA("middle", below=TestCA(), key=weak)
    assert middle.below is not None
    yield "RSA-1024 of an intermediate", Case(middle.below.pool, middle.leaf().chain, WEAK_CA, differs=stricter)


def _leaf(ca: TestCA, **given: object) -> x509.Certificate:
    """A leaf whose key no key pair takes."""
    key = given.pop("key")
    every = [x509.SubjectAlternativeName([x509.DNSName("localhost")])]
    return ca.sign("leaf", key, every, start=-DAY, end=DAY)  # type: ignore[arg-type]


# One name, several keys ---------------------------------------------------------------------------------------------


@case
def _a_ca_that_was_remade_with_another_key() -> Iterator[tuple[str, Case]]:
    # OpenSSL 4.0.1 finds no path where identifiers tell the old key from the new, and refuses; 4.0.3 finds it.
    follows_identifiers = SSL.OPENSSL_VERSION_NUMBER >= 0x40000030
    for ids in (True, False) if follows_identifiers else (False,):
        old, new = TestCA(key_ids=ids), TestCA(key_ids=ids)
        shown = "with key identifiers" if ids else "without key identifiers"
        for age, ca in (("old", old), ("new", new)):
            yield f"both trusted, the {age} one issued, {shown}", Case(pool(old, new), ca.leaf().chain)
            other = new if ca is old else old
            yield f"the {age} one issued, the other is trusted, {shown}", Case(other.pool, ca.leaf().chain, UNKNOWN_CA)


@case
def _an_intermediate_that_was_remade_with_another_key() -> Iterator[tuple[str, Case]]:
    for ids in (True, False):
        root = TestCA(key_ids=ids)
        old, new = (TestCA("middle", below=root, key_ids=ids) for _ in range(2))
        shown = "with key identifiers" if ids else "without key identifiers"
        leaf = new.leaf().chain
        yield f"the old one in the pool, {shown}", Case(pool(root, old), leaf)
        yield f"both sent, {shown}", Case(root.pool, (leaf[0], old.certificate, new.certificate))
        yield f"only the old one sent, {shown}", Case(root.pool, (leaf[0], old.certificate), UNKNOWN_CA)


@case
def _an_intermediate_that_was_renewed() -> Iterator[tuple[str, Case]]:
    root = TestCA()
    old = TestCA("middle", below=root, **EXPIRED)  # type: ignore[arg-type]
    new = TestCA("middle", below=root, key=old.key)
    leaf = new.leaf().chain
    yield "the expired one in the pool", Case(pool(root, old), leaf)
    yield "the expired one sent first", Case(root.pool, (leaf[0], old.certificate, new.certificate))
    yield "the expired one sent, the new one in the pool", Case(new.pool, (leaf[0], old.certificate))
    yield "only the expired one", Case(root.pool, (leaf[0], old.certificate), EXPIRED_CODE)
    yield "only the expired one, in the pool", Case(old.pool, leaf[:1], EXPIRED_CODE)


@case
def _cross_signed() -> Iterator[tuple[str, Case]]:
    known, unknown = TestCA("known"), TestCA("unknown")
    by_known = TestCA("middle", below=known)
    by_unknown = TestCA("middle", below=unknown, key=by_known.key)
    stale = TestCA("middle", below=known, key=by_known.key, **EXPIRED)  # type: ignore[arg-type]
    leaf = by_known.leaf().chain[0]
    one, other, old = (each.certificate for each in (by_known, by_unknown, stale))
    yield "the known root's first", Case(known.pool, (leaf, one, other))
    yield "the unknown root's first", Case(known.pool, (leaf, other, one))
    yield "the unknown root's alone", Case(known.pool, (leaf, other), UNKNOWN_CA)
    yield "the known root's has expired", Case(known.pool, (leaf, other, old), EXPIRED_CODE)
    yield "the other one too", Case(pool(known, unknown), (leaf, old, other))


@case
def _cas_that_sign_each_other() -> Iterator[tuple[str, Case]]:
    first, second = TestCA("first"), TestCA("second")
    round_ = [TestCA("first", below=second, key=first.key), TestCA("second", below=first, key=second.key)]
    leaf = first.leaf().chain[0]
    yield "and nobody else", Case(TestCA().pool, (leaf, *(each.certificate for each in round_)), UNKNOWN_CA)
    yield "and one is trusted", Case(second.pool, (leaf, *(each.certificate for each in round_)))


@case
def _a_root_that_signed_its_successor() -> Iterator[tuple[str, Case]]:
    missing = "a CA's new key that its old one has signed (RFC 4210), without key identifiers in every certificate"
    # OpenSSL 4.0.1 finds no path where identifiers tell the old key from the new, and refuses; 4.0.3 finds it.
    follows_identifiers = SSL.OPENSSL_VERSION_NUMBER >= 0x40000030
    for ids in (True, False) if follows_identifiers else (False,):
        old, new = TestCA(key_ids=ids), TestCA(key_ids=ids)
        link = TestCA(below=old, key=new.key, key_ids=ids)
        shown = "with key identifiers" if ids else "without key identifiers"
        chain = (new.leaf().chain[0], link.certificate)
        yield shown, Case(old.pool, chain, OK if ids else UNKNOWN_CA, differs="" if ids else missing)


@case
def _names_and_key_identifiers() -> Iterator[tuple[str, Case]]:
    root = TestCA("The  Root")
    leaf = TestCA("the root", key=root.key).leaf().chain
    yield (
        "a name in other letters",
        Case(
            root.pool,
            leaf,
            differs="names of CAs that differ in case, spacing or string type alone (RFC 5280 section 7.1)",
        ),
    )
    other = TestCA(key=root.key, key_ids=False, extensions=[x509.SubjectKeyIdentifier(b"another")])
    yield (
        "an identifier of another form",
        Case(
            other.pool,
            TestCA(key=root.key).leaf().chain,
            UNKNOWN_CA,
            differs="an authority key identifier that is not the issuer's subject key identifier",
        ),
    )


# Dates --------------------------------------------------------------------------------------------------------------


@case
def _dates() -> Iterator[tuple[str, Case]]:
    root = TestCA()
    yield "an expired leaf", Case(root.pool, root.leaf(start=-20 * DAY, end=-DAY).chain, EXPIRED_CODE)
    yield "a leaf of tomorrow", Case(root.pool, root.leaf(start=DAY, end=20 * DAY).chain, NOT_YET_VALID)
    for shown, dates, code in (("an expired", EXPIRED, EXPIRED_CODE), ("a future", FUTURE, NOT_YET_VALID)):
        middle = TestCA("middle", below=root, **dates)  # type: ignore[arg-type]
        yield f"{shown} intermediate", Case(root.pool, middle.leaf().chain, code)
        late = TestCA(**dates)  # type: ignore[arg-type]
        yield f"{shown} root", Case(late.pool, late.leaf().chain, code)


# Purposes and key usage ---------------------------------------------------------------------------------------------


@case
def _extended_key_usage() -> Iterator[tuple[str, Case]]:
    any_leaf = "`anyExtendedKeyUsage` without the purpose itself, in a leaf or a CA, of clients and servers"
    for shown, purposes, server, client, differs in (
        ("none", None, OK, OK, ""),
        ("server", [SERVER_AUTH], OK, PURPOSE, ""),
        ("client", [CLIENT_AUTH], PURPOSE, OK, ""),
        ("any", [ANY_PURPOSE], PURPOSE, PURPOSE, any_leaf),
        ("any and both", [ANY_PURPOSE, *BOTH], OK, OK, ""),
        ("another", [ObjectIdentifier("1.2.3.4")], PURPOSE, PURPOSE, ""),
    ):
        root = TestCA()
        yield f"of a leaf: {shown}", Case(root.pool, root.leaf(purposes=purposes).chain, server, client, differs)
        usage = [] if purposes is None else [x509.ExtendedKeyUsage(purposes)]
        middle = TestCA("middle", below=root, extensions=usage)
        yield f"of an intermediate: {shown}", Case(root.pool, middle.leaf().chain, server, client, differs)
        limited = TestCA(extensions=usage)
        yield f"of a root: {shown}", Case(limited.pool, limited.leaf().chain, server, client, differs)


@case
def _key_usage() -> Iterator[tuple[str, Case]]:
    root = TestCA()
    no_signature = (
        "a key usage of a leaf without `digitalSignature` and `keyAgreement`; a server's may have `keyEncipherment`"
    )
    for shown, allowed, server, client, differs in (
        ("digitalSignature", ["digital_signature"], OK, OK, ""),
        ("keyEncipherment", ["key_encipherment"], OK, PURPOSE, no_signature),
        ("keyAgreement", ["key_agreement"], OK, OK, ""),
        ("nonRepudiation", ["content_commitment"], PURPOSE, PURPOSE, no_signature),
    ):
        leaf = root.leaf(usage=key_usage(*allowed)).chain
        yield f"of a leaf: {shown}", Case(root.pool, leaf, server, client, differs)
    for shown, allowed, differs in (
        ("keyCertSign", ["key_cert_sign"], ""),
        ("cRLSign", ["crl_sign"], ""),
    ):
        code = INVALID_CA if allowed == ["crl_sign"] else OK
        middle = TestCA("middle", below=root, usage=key_usage(*allowed))
        yield f"of an intermediate: {shown}", Case(root.pool, middle.leaf().chain, code, differs=differs)
        limited = TestCA(usage=key_usage(*allowed))
        yield f"of a root: {shown}", Case(limited.pool, limited.leaf().chain, code, differs=differs)


# What may issue -----------------------------------------------------------------------------------------------------


@case
def _basic_constraints() -> Iterator[tuple[str, Case]]:
    root, not_ca = TestCA(), x509.BasicConstraints(ca=False, path_length=None)
    for shown, basic in (("says that it is no CA", not_ca), ("has none", None)):
        for usage in (None, key_usage("key_cert_sign")):
            more = "" if usage is None else " and keyCertSign"
            middle = TestCA("middle", below=root, basic=basic, usage=usage)
            yield f"an intermediate {shown}{more}", Case(root.pool, middle.leaf().chain, INVALID_CA)
            pinned = TestCA("pinned", basic=basic, usage=usage)
            yield f"an anchor {shown}{more}", Case(pinned.pool, pinned.leaf().chain, INVALID_CA)
    leaf = root.leaf()
    below = TestCA("leaf", key=leaf.private_key, basic=None, usage=None, key_ids=False).leaf()
    yield "a pinned leaf issues", Case(CAPool(leaf.chain), below.chain, UNKNOWN_CA)
    yield "a pinned leaf", Case(CAPool(leaf.chain), leaf.chain)
    old = root.leaf(**EXPIRED)  # type: ignore[arg-type]
    yield "a pinned leaf that has expired", Case(CAPool(old.chain), old.chain, EXPIRED_CODE)
    stale = TestCA("middle", below=root, **EXPIRED)  # type: ignore[arg-type]
    sent = stale.leaf()
    yield "what a pinned leaf sends along", Case(CAPool(sent.chain[:1]), sent.chain)


@case
def _path_length() -> Iterator[tuple[str, Case]]:
    for allowed, code in ((0, PATH_LENGTH), (1, OK)):
        root = TestCA(basic=x509.BasicConstraints(ca=True, path_length=allowed))
        middle = TestCA("middle", below=root)
        yield f"{allowed} of a root, one below", Case(root.pool, middle.leaf().chain, code)
    ca = root = TestCA()
    for number in range(11):
        ca = TestCA(f"ca {number}", below=ca)
        if number == 9:
            yield "ten intermediates", Case(root.pool, ca.leaf().chain)
    yield "eleven intermediates", Case(root.pool, ca.leaf().chain, TOO_LONG, differs="more than ten intermediates")


@case
def _unknown_critical_extension() -> Iterator[tuple[str, Case]]:
    odd = x509.UnrecognizedExtension(ObjectIdentifier("1.2.3.4"), b"\x05\x00")
    root, key = TestCA(), new_key()
    template = root.leaf(key=key).certificate
    builder = x509.CertificateBuilder(
        template.issuer,
        named("leaf"),
        key.public_key(),
        template.serial_number,
        template.not_valid_before_utc.replace(tzinfo=None),
        template.not_valid_after_utc.replace(tzinfo=None),
    ).add_extension(odd, critical=True)
    yield "of a leaf", Case(root.pool, (sign(builder, root.key),), CRITICAL)


# Names --------------------------------------------------------------------------------------------------------------


@case
def _name_constraints() -> Iterator[tuple[str, Case]]:
    root = TestCA()

    def below(constraints: x509.NameConstraints, *hosts: str, subject: str = "leaf") -> tuple[CAPool, KeyPair]:
        return root.pool, TestCA("middle", below=root, extensions=[constraints]).leaf(*hosts, subject=subject)

    def dns(*permitted: str, excluded: tuple[str, ...] = ()) -> x509.NameConstraints:
        return x509.NameConstraints(
            [x509.DNSName(each) for each in permitted] or None, [x509.DNSName(each) for each in excluded] or None
        )

    for shown, constraints, hosts, code in (
        ("permitted, and below it", dns("example"), ("a.example",), OK),
        ("permitted, and not below it", dns("example"), ("a.other",), NOT_PERMITTED),
        ("permitted, and one of two names is not below it", dns("example"), ("a.example", "a.other"), NOT_PERMITTED),
        ("permitted, and a wildcard below it", dns("example"), ("*.example",), OK),
        ("permitted, and a wildcard above it", dns("a.example"), ("*.example",), NOT_PERMITTED),
        ("excluded, and below it", dns(excluded=("example",)), ("a.example",), EXCLUDED),
        ("excluded, and not below it", dns(excluded=("example",)), ("a.other",), OK),
        ("permitted, and an address", dns("example"), ("10.0.0.1",), OK),
    ):
        trusted, leaf = below(constraints, *hosts)
        yield shown, Case(trusted, leaf.chain, code)
    reach = "a wildcard name that reaches into an excluded subtree (Go refuses it since 1.25.5)"
    trusted, leaf = below(dns(excluded=("secret.example.com",)), "*.example.com")
    yield "excluded, and a wildcard that reaches it", Case(trusted, leaf.chain, EXCLUDED, differs=reach)
    trusted, leaf = below(dns(excluded=("a.secret.example.com",)), "*.example.com")
    yield "excluded, and a wildcard that does not reach it", Case(trusted, leaf.chain)
    trusted, leaf = below(dns("example"), "10.0.0.1", subject="www.other")
    yield "permitted, and a Common Name that is not below it", Case(trusted, leaf.chain)
    limited = TestCA(extensions=[dns("example")])
    yield "of a root", Case(limited.pool, limited.leaf("a.other").chain, NOT_PERMITTED)
    addresses = x509.NameConstraints([x509.IPAddress(ip_network("10.0.0.0/8"))], None)
    trusted, leaf = below(addresses, "10.1.2.3")
    yield "permitted addresses, and one of them", Case(trusted, leaf.chain)
    trusted, leaf = below(addresses, "11.1.2.3")
    yield "permitted addresses, and another", Case(trusted, leaf.chain, NOT_PERMITTED)


# Name constraints, as BetterTLS has them -----------------------------------------------------------------------------

#: Kinds of names that a root's constraints permit or exclude, in every combination.
TREES: Final = ("", "dns", "ip", "dns ip")
_HOSTS: Final = {
    "dns": {"good": "good.example", "bad": "bad.example"},
    "ip": {"good": "10.1.1.1", "bad": "192.168.1.1"},
}
_SUBTREES: Final[dict[str, dict[str, x509.GeneralName]]] = {
    "dns": {value: x509.DNSName(host) for value, host in _HOSTS["dns"].items()},
    "ip": {
        "good": x509.IPAddress(IPv4Network("10.0.0.0/8")),
        "bad": x509.IPAddress(IPv4Network("192.168.0.0/16")),
    },
}


@dataclass(frozen=True)
class Constrained:
    """A chain below a root with name constraints.

    Attributes:
        trusted: the root.
        leaf: with its key.
        codes: our verdict is one of them.
    """

    trusted: CAPool
    leaf: KeyPair
    codes: set[int]


def constrained(permitted: str, excluded: str) -> Iterator[tuple[str, Constrained]]:
    """DNS and IP names that are good, bad or absent, with any Common Name, below some constraints.

    In miniature what BetterTLS (Netflix) tries: in all, 288 of its 9 040 cases, without the order of the chain.

    Args:
        permitted: one of `TREES`: of these kinds, good names alone are.
        excluded: likewise: of these kinds, bad names are.
    """
    trees = (
        [_SUBTREES[kind]["good"] for kind in permitted.split()],
        [_SUBTREES[kind]["bad"] for kind in excluded.split()],
    )
    root = TestCA(extensions=[x509.NameConstraints(trees[0] or None, trees[1] or None)] if any(trees) else [])
    for dns, ip, common in itertools.product(["", "good", "bad"], ["", "good", "bad"], ["good.example", "bad.example"]):
        names = {kind: value for kind, value in (("dns", dns), ("ip", ip)) if value}
        wanted = [_HOSTS[kind][value] for kind, value in names.items()]
        key = new_key()
        leaf = (
            root.leaf(*wanted, subject=common, key=key)
            if wanted
            else KeyPair([root.sign(common, key, [], start=-DAY, end=DAY)], key)
        )
        codes = {
            *(NOT_PERMITTED for kind, value in names.items() if value == "bad" and kind in permitted.split()),
            *(EXCLUDED for kind, value in names.items() if value == "bad" and kind in excluded.split()),
        }
        shown = f"permitted: {permitted}; excluded: {excluded}; DNS: {dns}; IP: {ip}; CN: {common}"
        yield shown, Constrained(root.pool, leaf, codes or {OK})


def ssl_says(case: Constrained) -> str:
    """What Python's `ssl` says of a server's chain where the Common Name counts for nothing; empty if it accepts."""
    key = case.leaf.private_key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    served = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    with tempfile.NamedTemporaryFile() as file:
        file.write(key + b"".join(each.public_bytes(Encoding.PEM) for each in case.leaf.chain))
        file.flush()
        served.load_cert_chain(file.name)
    dialled = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    dialled.check_hostname, dialled.hostname_checks_common_name = False, False
    dialled.load_verify_locations(cadata="".join(each.public_bytes(Encoding.PEM).decode() for each in case.trusted))
    there, back = ssl.MemoryBIO(), ssl.MemoryBIO()
    ends = dialled.wrap_bio(back, there), served.wrap_bio(there, back, server_side=True)
    for end in ends * 2:
        try:
            end.do_handshake()
        except ssl.SSLWantReadError:
            continue
        except ssl.SSLCertVerificationError as exc:
            return str(exc.verify_message)
    return ""


# The record ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Record:
    """What Go and `ssl` said.

    Attributes:
        version: which Go.
        openssl: which OpenSSL is under `ssl`.
        errors: for each case and side Go's error, empty where it accepts.
        constraints: for each of the cases with constraints Go's error on either side, and that of `ssl` for servers.
    """

    version: str
    openssl: str = ""
    errors: dict[str, dict[str, str]] = field(default_factory=dict)
    constraints: dict[str, dict[str, str]] = field(default_factory=dict)


def record() -> Record:
    """The record as it stands."""
    return Record(**json.loads(RECORD.read_text()))


_PROGRAM: Final = """
package main
import ("bufio"; "crypto/x509"; "encoding/json"; "encoding/pem"; "fmt"; "os")
type task struct { Pool, Chain, Side string }
func parse(text string) []*x509.Certificate {
    var found []*x509.Certificate
    for rest := []byte(text); ; {
        var block *pem.Block
        if block, rest = pem.Decode(rest); block == nil { return found }
        certificate, err := x509.ParseCertificate(block.Bytes)
        if err != nil { panic(err) }
        found = append(found, certificate)
    }
}
func main() {
    for lines := bufio.NewReader(os.Stdin); ; {
        line, err := lines.ReadBytes('\\n')
        if err != nil { return }
        var t task
        if err := json.Unmarshal(line, &t); err != nil { panic(err) }
        roots, between, chain := x509.NewCertPool(), x509.NewCertPool(), parse(t.Chain)
        for _, each := range parse(t.Pool) { roots.AddCert(each) }
        for _, each := range chain[1:] { between.AddCert(each) }
        usage := x509.ExtKeyUsageServerAuth
        if t.Side == "client" { usage = x509.ExtKeyUsageClientAuth }
        options := x509.VerifyOptions{Roots: roots, Intermediates: between, KeyUsages: []x509.ExtKeyUsage{usage}}
        _, err = chain[0].Verify(options)
        text := ""
        if err != nil { text = err.Error() }
        out, _ := json.Marshal(text)
        fmt.Println(string(out))
    }
}
"""


def _pem(certificates: Iterable[x509.Certificate]) -> str:
    return "".join(each.public_bytes(Encoding.PEM).decode() for each in certificates)


def _ask_go(asked: dict[str, Case]) -> dict[str, dict[str, str]]:
    each_side = [(name, side) for name in asked for side in SIDES]
    tasks = [
        {"Pool": _pem(asked[name].pool), "Chain": _pem(asked[name].chain), "Side": side} for name, side in each_side
    ]
    with tempfile.TemporaryDirectory() as folder:
        program = Path(folder) / "verify.go"
        program.write_text(_PROGRAM)
        lines = "".join(json.dumps(task) + "\n" for task in tasks)
        done = subprocess.run(["go", "run", program], input=lines, capture_output=True, text=True, check=True)
    errors: dict[str, dict[str, str]] = {}
    for (name, side), line in zip(each_side, done.stdout.splitlines(), strict=True):
        errors.setdefault(name, {})[side] = json.loads(line).partition(": current time")[0]
    return errors


def main() -> None:
    """Ask Go and `ssl`, and write the record."""
    version = subprocess.run(["go", "version"], capture_output=True, text=True, check=True).stdout.split()[2]
    below = dict(itertools.chain.from_iterable(constrained(*trees) for trees in itertools.product(TREES, TREES)))
    constraints = _ask_go({name: Case(each.trusted, each.leaf.chain) for name, each in below.items()})
    for name, each in below.items():
        constraints[name]["ssl"] = ssl_says(each)
    made = Record(version, ssl.OPENSSL_VERSION, _ask_go(cases()), constraints)
    RECORD.write_text(json.dumps(asdict(made), indent=1) + "\n")


if __name__ == "__main__":
    main()
