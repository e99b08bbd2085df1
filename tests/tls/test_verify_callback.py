"""How the judge is asked in handshakes: OpenSSL's verify callback, and the one file that touches the binding."""

from __future__ import annotations

import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding
from OpenSSL import SSL, crypto

from ca import SHA256, TestCA, lists
from path_cases import pool
from trionode import CAPool, ClientAuth, CRLSet, KeyPair, PeerUnverifiedError, UnverifiedReason
from trionode._credentials.policy import TLSPolicy
from trionode._tls import binding
from trionode._tls.contexts import TLSContexts
from trionode._tls.handshake import handshake_in_memory
from trionode._tls.verification import Examination

sides = pytest.mark.parametrize("accepting", [True, False], ids=["acceptor", "dialer"])


# The binding --------------------------------------------------------------------------------------------------------


def test_the_structure_is_what_we_think_it_is() -> None:
    """With the OpenSSL at hand what a peer presented can be seen; where it could not, that is noticed."""
    assert binding.untrusted_is_visible()


def test_another_structure_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pointers that are elsewhere are not followed."""
    first_members = binding.first_members

    def elsewhere(context: object) -> tuple[object, object, object]:
        words = first_members(context)
        return words[0], words[2], words[1]

    monkeypatch.setattr(binding, "first_members", elsewhere)
    assert not binding.untrusted_is_visible.__wrapped__()


def test_keys_that_openssl_does_not_know() -> None:
    """A key that cannot be read has no size."""
    der = bytearray(TestCA().certificate.public_bytes(Encoding.DER))
    at = der.index(bytes.fromhex("06082a8648ce3d030107"))
    der[at + 9] = 0x7F  # no such curve
    odd = crypto.load_certificate(crypto.FILETYPE_ASN1, bytes(der))
    assert binding.key_size(odd) == ("other", 0)


# In handshakes ------------------------------------------------------------------------------------------------------


def in_handshake(
    key_pair: KeyPair, trusted: CAPool, *, accepting: bool, crls: CRLSet | None = None
) -> PeerUnverifiedError | None:
    """Why a peer is refused in a handshake, or None."""
    policy = TLSPolicy(client_cas=trusted, root_cas=trusted, client_auth=MUTUAL, crls=crls)
    ours, theirs = TLSContexts.build(1, OURS, policy), TLSContexts.build(1, key_pair, TLSPolicy())
    server, client = (ours, theirs) if accepting else (theirs, ours)
    failure = handshake_in_memory(
        server.server.session(), client.client.session(reference="localhost", insecure_skip_verify=accepting)
    )
    assert failure is None or isinstance(failure, PeerUnverifiedError), failure
    return failure


OURS = TestCA("ours").leaf()
MUTUAL = ClientAuth.REQUIRE_AND_VERIFY_CLIENT_CERT


@sides
def test_where_what_was_presented_cannot_be_seen_openssl_shows_a_path(
    accepting: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With an OpenSSL whose structures are others: the same verdicts, where no two certificates have one name."""
    monkeypatch.setattr(binding, "untrusted_is_visible", lambda: False)
    root = TestCA()
    first = TestCA("first", below=root)
    second = TestCA("second", below=first)
    leaf = second.leaf()
    assert in_handshake(leaf, root.pool, accepting=accepting) is None
    assert in_handshake(KeyPair(leaf.chain[:2], leaf.private_key), second.pool, accepting=accepting) is None
    alone = KeyPair(leaf.chain[:1], leaf.private_key)
    for key_pair, trusted in ((leaf, TestCA("elsewhere").pool), (alone, root.pool)):
        refused = in_handshake(key_pair, trusted, accepting=accepting)
        assert refused is not None
        assert refused.reason is UnverifiedReason.UNKNOWN_CA
        assert refused.certificate == leaf.certificate
    crls = lists(root.crl(), first.crl(second.certificate), second.crl())
    refused = in_handshake(leaf, root.pool, accepting=accepting, crls=crls)
    assert refused is not None
    assert (refused.reason, refused.failed_at) == (UnverifiedReason.REVOKED, second.certificate)


@sides
def test_a_structure_that_changes_meanwhile_is_a_refusal(accepting: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second pointer is looked at in each handshake."""
    root = TestCA()
    original = binding.first_members
    contexts_first = in_handshake(root.leaf(), root.pool, accepting=accepting)
    assert contexts_first is None
    monkeypatch.setattr(binding, "first_members", lambda context: (*original(context)[:1], None, None))
    refused = in_handshake(root.leaf(), root.pool, accepting=accepting)
    assert refused is not None
    assert refused.reason is UnverifiedReason.BAD_CHAIN
    assert "cannot be examined (RuntimeError)" in str(refused)


@sides
def test_what_was_tried_in_vain_is_no_error_of_the_handshake(accepting: bool) -> None:
    """A path that fails leaves errors in OpenSSL's queue, and the handshake goes on."""
    old, new = TestCA(key_ids=False), TestCA(key_ids=False)
    for ca in (old, new):
        assert in_handshake(ca.leaf(), pool(old, new), accepting=accepting) is None


@sides
def test_where_the_system_demands_more_it_gets_more(accepting: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """OpenSSL's configuration may have a higher security level than ours; RSA-2048 has 112 bits, level 3 wants 128."""
    root = TestCA()
    rsa_leaf, ec_leaf = root.leaf(key=rsa.generate_private_key(65537, 2048)), root.leaf()
    assert in_handshake(rsa_leaf, root.pool, accepting=accepting) is None
    install = binding.install_verify_callback

    def at_level_3(context: SSL.Context, mode: int) -> None:
        install(context, mode)
        if mode != SSL.VERIFY_NONE:
            context.set_cipher_list(b"DEFAULT:@SECLEVEL=3")

    monkeypatch.setattr("trionode._tls.engine.install_verify_callback", at_level_3)
    assert in_handshake(ec_leaf, root.pool, accepting=accepting) is None
    refused = in_handshake(rsa_leaf, root.pool, accepting=accepting)
    assert refused is not None
    assert refused.reason is UnverifiedReason.BAD_CHAIN
    assert "OpenSSL verify code 66" in str(refused)


@sides
@pytest.mark.parametrize("exception", [RuntimeError, SystemExit])
def test_an_exception_in_the_callback_is_a_refusal(
    accepting: bool, exception: type[BaseException], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever it is."""

    def crash(*_: object) -> int:
        raise exception

    root = TestCA()
    monkeypatch.setattr(Examination, "answer", crash)
    policy = TLSPolicy(client_cas=root.pool, root_cas=root.pool, client_auth=MUTUAL)
    contexts = TLSContexts.build(1, root.leaf(), policy)
    client = contexts.client.session(reference="localhost", insecure_skip_verify=accepting)
    assert handshake_in_memory(contexts.server.session(), client) is not None


def test_the_hint_is_in_the_text() -> None:
    """Which CA of the name is there, and that it is not the one."""
    stale = TestCA()
    refused = in_handshake(TestCA().leaf(), stale.pool, accepting=True)
    assert refused is not None
    assert refused.reason is UnverifiedReason.UNKNOWN_CA
    digest = stale.certificate.fingerprint(SHA256).hex()[:16]
    assert f"CN=root, SHA-256 {digest}…, has its issuer's name, but did not sign it" in str(refused)
    assert "Give client_cas the CA certificate that is in use now" in str(refused)
