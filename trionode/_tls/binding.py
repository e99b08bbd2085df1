"""What pyOpenSSL does not offer of OpenSSL, and is needed here: the one file that touches the binding.

Theory. pyOpenSSL's verify callback is called for each certificate and each objection, without the X509_STORE_CTX, so
that it can neither see what a client presented nor say which objection of ours an alert is to tell. Here a callback of
our own is installed on the context. It hands everything that the peer presented to the connection's `Examiner`, and the
answer is a verify code: X509_V_OK, or what is wrong, of which OpenSSL makes the alert (RFC 8446 section 6.2).

OpenSSL's own verification in the handshake is then of no account. Its store is empty and its depth 0, so that it
builds no path and checks no signature: what is wrong in its eyes the callback overrules. One objection is heard all the
same, that a key is too weak: the system's configuration may demand more than we do.

What a peer presented is the `untrusted` stack of the X509_STORE_CTX. Clients could ask `SSL_get_peer_cert_chain`, but
on servers OpenSSL fills that only afterwards, and the binding lacks `X509_STORE_CTX_get0_untrusted`. The structure has
begun with the same three pointers (store, certificate, untrusted) since OpenSSL 1.1.0, in LibreSSL and BoringSSL as
well; the third is read from there. Whether that holds is tried out before the first context is built, with a known
certificate and a known stack, and checked by the second pointer in each handshake. Where it does not hold, OpenSSL
builds a path for us to look at: of several intermediates of one name it shows one, so that a peer may be refused whom
another one would have let in; never the other way round.

Everything here fails closed: an exception in a callback is a refusal.
"""

# ruff: noqa: SLF001 -- what pyOpenSSL keeps to itself is what this file is about

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any, Final, Protocol, TypeAlias

from OpenSSL import SSL, crypto
from OpenSSL._util import ffi, lib

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

V_OK: Final = 0
#: OpenSSL sends `internal_error` for it: the alert for what no other alert has a word for.
V_UNSPECIFIED: Final = 1
#: UNABLE_TO_GET_ISSUER_CERT_LOCALLY.
V_ISSUER_UNKNOWN: Final = 20
#: EE_KEY_TOO_SMALL, CA_KEY_TOO_SMALL, CA_MD_TOO_WEAK.
V_WEAK: Final = frozenset({66, 67, 68})

#: Send what the key pair's file has, and do not complete it from what we trust (SSL_MODE_NO_AUTO_CHAIN, ssl.h).
MODE_NO_AUTO_CHAIN: Final = 0x8

_NO_CHECK_TIME: Final = 0x200000
_RSA_PSS: Final = 912

#: How long a path OpenSSL builds where that is the only way to see what a peer presented.
_VISIBLE_PATH: Final = 10
#: Certificates that a peer presents beyond so many are not looked at: a path has at most twelve.
_MAX_PRESENTED: Final = 32

#: A C pointer.
Pointer: TypeAlias = Any


class Examiner(Protocol):
    """What the app data of connections has to be, where a verify callback is installed."""

    def answer(self, error: int, presented: Callable[[], Sequence[crypto.X509]]) -> int:
        """What to say of a peer: the code of what is wrong, or `V_OK`. Asked several times in one verification.

        Args:
            error: what OpenSSL minds, or `V_OK`.
            presented: gives the peer's certificates, the leaf first; only while this runs.
        """

    def asked(self) -> None:
        """A server asks for our certificate."""


# Handshakes ---------------------------------------------------------------------------------------------------------


def install_verify_callback(context: SSL.Context, mode: int) -> None:
    """Have peers judged by the `Examiner` that each connection of a context has as its app data.

    Args:
        context: not used yet.
        mode: `SSL.VERIFY_PEER` or `SSL.VERIFY_NONE`, and what goes with them.
    """
    context.set_verify_depth(0 if untrusted_is_visible() else _VISIBLE_PATH)
    lib.SSL_CTX_set_verify(context._context, mode, _verify)


@ffi.callback("int(int, X509_STORE_CTX *)", error=0)  # type: ignore[untyped-decorator]  # cffi has no types
def _verify(ok: int, context: Pointer) -> int:
    """OpenSSL's SSL_verify_cb: 1 goes on, 0 ends the handshake with the alert for the code that was set."""
    try:
        ssl = lib.X509_STORE_CTX_get_ex_data(context, lib.SSL_get_ex_data_X509_STORE_CTX_idx())
        examiner: Examiner = SSL.Connection._reverse_mapping[ssl].get_app_data()
        error = V_OK if ok else lib.X509_STORE_CTX_get_error(context)
        code = examiner.answer(error, lambda: _presented(context))
    except BaseException:  # noqa: ASYNC103, BLE001 -- fail closed: nothing may leave a callback
        code = V_UNSPECIFIED
    # What the judge tried and gave up must not be taken for an error of the handshake.
    lib.ERR_clear_error()
    lib.X509_STORE_CTX_set_error(context, code)
    return int(code == V_OK)


def install_request_callback(context: SSL.Context) -> None:
    """Have the `Examiner` of each connection of a client's context told when the server asks for a certificate.

    What OpenSSL calls is there to choose the certificate (SSL_CTX_set_cert_cb); pyOpenSSL has only the info callback,
    which is called for each of two dozen steps of a handshake.

    Args:
        context: not used yet.
    """
    lib.SSL_CTX_set_cert_cb(context._context, _asked, ffi.NULL)


@ffi.callback("int(SSL *, void *)", error=0)  # type: ignore[untyped-decorator]  # cffi has no types
def _asked(ssl: Pointer, _: Pointer) -> int:
    """OpenSSL's cert_cb: 1 goes on with what the context has."""
    examiner: Examiner = SSL.Connection._reverse_mapping[ssl].get_app_data()
    examiner.asked()
    return 1


def _presented(context: Pointer) -> list[crypto.X509]:
    leaf = lib.X509_STORE_CTX_get0_cert(context)
    if untrusted_is_visible():
        _, certificate, stack = first_members(context)
        if certificate != leaf:
            msg = "this X509_STORE_CTX is not what it was when it was tried out"
            raise RuntimeError(msg)
        return [_owned(leaf), *_members(stack, without=leaf)]
    stack = ffi.gc(lib.X509_STORE_CTX_get1_chain(context), _free_chain)
    return [_owned(leaf), *_members(stack, without=leaf)]


def _members(stack: Pointer, *, without: Pointer) -> list[crypto.X509]:
    if stack == ffi.NULL:
        return []
    count = min(lib.sk_X509_num(stack), _MAX_PRESENTED)
    members = (lib.sk_X509_value(stack, index) for index in range(count))
    return [_owned(member) for member in members if member != without]


def _owned(certificate: Pointer) -> crypto.X509:
    lib.X509_up_ref(certificate)
    return crypto.X509._from_raw_x509_ptr(certificate)


def _free_chain(stack: Pointer) -> None:
    for index in range(lib.sk_X509_num(stack)):
        lib.X509_free(lib.sk_X509_value(stack, index))
    lib.sk_X509_free(stack)


def first_members(context: Pointer) -> tuple[Pointer, Pointer, Pointer]:
    """The first three members of an X509_STORE_CTX: its store, the certificate to verify, what was presented."""
    words = ffi.cast("void **", context)
    return words[0], ffi.cast("X509 *", words[1]), ffi.cast("Cryptography_STACK_OF_X509 *", words[2])


@cache
def untrusted_is_visible() -> bool:
    """Whether an X509_STORE_CTX begins as we think it does, see the module's theory."""
    store, context = crypto.X509Store(), ffi.gc(lib.X509_STORE_CTX_new(), lib.X509_STORE_CTX_free)
    leaf, stack = ffi.gc(lib.X509_new(), lib.X509_free), ffi.gc(lib.sk_X509_new_null(), lib.sk_X509_free)
    if lib.X509_STORE_CTX_init(context, store._store, leaf, stack) != 1:
        return False
    return first_members(context) == (ffi.cast("void *", store._store), leaf, stack)


# Buffers ------------------------------------------------------------------------------------------------------------


def unread(connection: SSL.Connection) -> int:
    """Bytes of ciphertext that a connection in memory was given and OpenSSL has not taken yet."""
    return int(lib.BIO_get_mem_data(connection._into_ssl, ffi.NULL))


def renew_buffers(connection: SSL.Connection) -> bool:
    """Put new memory BIOs in the place of a connection's, which are freed; if nothing is in them, as it returns.

    A new one waits for data where it has none: what told the old one of the end would be forgotten.

    Args:
        connection: over memory.
    """
    if unread(connection) or lib.BIO_get_mem_data(connection._from_ssl, ffi.NULL):
        return False
    incoming, outgoing = lib.BIO_new(lib.BIO_s_mem()), lib.BIO_new(lib.BIO_s_mem())
    if ffi.NULL in (incoming, outgoing):  # no memory
        lib.BIO_free(incoming)
        lib.BIO_free(outgoing)
        return False
    lib.SSL_set_bio(connection._ssl, incoming, outgoing)  # which owns them from now on
    connection._into_ssl, connection._from_ssl = incoming, outgoing
    return True


# Paths --------------------------------------------------------------------------------------------------------------


#: What a certificate is verified for; any purpose for certificates that are no peer's.
PURPOSE_CLIENT: Final[int] = lib.X509_PURPOSE_SSL_CLIENT
PURPOSE_SERVER: Final[int] = lib.X509_PURPOSE_SSL_SERVER
PURPOSE_ANY: Final[int] = lib.X509_PURPOSE_ANY


def store_with(anchor: crypto.X509, *, purpose: int) -> crypto.X509Store:
    """A store for paths that end in one anchor.

    Dates are not checked, and what a subject's Common Name looks like counts for nothing.

    Args:
        anchor: trusted in its own right, issued by a trusted CA or not.
        purpose: for what a path has to be good.
    """
    store = crypto.X509Store()
    store.add_cert(anchor)
    store.set_flags(crypto.X509StoreFlags.PARTIAL_CHAIN | _NO_CHECK_TIME)
    lib.X509_STORE_set_purpose(store._store, purpose)
    parameters = ffi.gc(lib.X509_VERIFY_PARAM_new(), lib.X509_VERIFY_PARAM_free)
    lib.X509_VERIFY_PARAM_set_hostflags(parameters, lib.X509_CHECK_FLAG_NEVER_CHECK_SUBJECT)
    lib.X509_STORE_set1_param(store._store, parameters)
    return store


def verify(store: crypto.X509Store, path: Sequence[crypto.X509]) -> tuple[int, int]:
    """OpenSSL's verdict on a path: the code of what is wrong, or `V_OK`; and at which certificate, the leaf's being 0.

    OpenSSL builds the path itself, and may come to another one: where an anchor has the name of an intermediate, for
    one. Then nothing is known of this path, and it counts as one that is not there.

    Args:
        store: trusts the anchor.
        path: from a leaf to the anchor; which may be the leaf itself.
    """
    stack = ffi.gc(lib.sk_X509_new_null(), lib.sk_X509_free)
    for each in path[1:-1]:
        lib.sk_X509_push(stack, each._x509)
    context = ffi.gc(lib.X509_STORE_CTX_new(), lib.X509_STORE_CTX_free)
    if lib.X509_STORE_CTX_init(context, store._store, path[0]._x509, stack) != 1:
        lib.ERR_clear_error()
        return V_UNSPECIFIED, 0
    good = lib.X509_verify_cert(context) == 1
    code, depth = lib.X509_STORE_CTX_get_error(context), lib.X509_STORE_CTX_get_error_depth(context)
    lib.ERR_clear_error()
    length, same = _compare(context, path)
    if same < length or (good and same < len(path)):
        return V_ISSUER_UNKNOWN, max(same - 1, 0)
    return (V_OK, 0) if good else (code or V_UNSPECIFIED, depth)


def _compare(context: Pointer, path: Sequence[crypto.X509]) -> tuple[int, int]:
    """How long the path is that OpenSSL has built, and how far it is the same as another one."""
    built = lib.X509_STORE_CTX_get1_chain(context)
    if built == ffi.NULL:
        return 0, 0
    built = ffi.gc(built, _free_chain)
    length = lib.sk_X509_num(built)
    for index, each in enumerate(path[:length]):
        if lib.sk_X509_value(built, index) != each._x509:
            return length, index
    return length, min(length, len(path))


def digest(certificate: crypto.X509) -> bytes:
    """SHA-256 of a certificate's encoding."""
    found, size = ffi.new("unsigned char[32]"), ffi.new("unsigned int *")
    if lib.X509_digest(certificate._x509, _SHA256, found, size) != 1:
        msg = "a certificate cannot be encoded"
        raise ValueError(msg)
    return bytes(ffi.buffer(found))


_SHA256: Final = lib.EVP_get_digestbyname(b"SHA256")


def key_size(certificate: crypto.X509) -> tuple[str, int]:
    """Kind (`RSA`, `EC`, or `other`) and size of a certificate's public key in bits; 0 if it cannot be read."""
    key = lib.X509_get_pubkey(certificate._x509)
    if key == ffi.NULL:
        lib.ERR_clear_error()
        return "other", 0
    kind, bits = lib.EVP_PKEY_id(key), lib.EVP_PKEY_bits(key)
    lib.EVP_PKEY_free(key)
    if kind in (lib.EVP_PKEY_RSA, _RSA_PSS, lib.EVP_PKEY_DSA, lib.EVP_PKEY_DH):
        return "RSA", bits
    return ("EC" if kind == lib.EVP_PKEY_EC else "other"), bits


def openssl_reason(exc: SSL.Error | crypto.Error) -> str:
    """The reason string of an OpenSSL error; its queue is `[(library, function, reason), …]`, oldest first."""
    queue = exc.args[0] if exc.args else []
    return str(queue[0][-1]) if isinstance(queue, list) and queue else "unknown"


def verify_message(code: int) -> str:
    """OpenSSL's words for a verify code."""
    return str(ffi.string(lib.X509_verify_cert_error_string(code)), "utf-8", "replace")
