"""A TLS client that sends KeyUpdates without end: by the system's OpenSSL, for no Python module can."""

from __future__ import annotations

import ctypes
import ctypes.util
import socket
from typing import Final

from benchmarks.stress.nodes import LOOPBACK
from trionode._protocol import ALPN

#: Where the system's OpenSSL is; None where there is none.
LIBSSL: Final = ctypes.util.find_library("ssl")
#: How many a client sends at most before it leaves. A node bears 16 in a row.
MOST: Final = 1000
#: How long a call may block. Seconds.
PATIENCE: Final = 10.0

_PEM: Final = 1
_REQUESTED: Final = 1


def flood(port: int, directory: str) -> int:
    """Connect, finish TLS, and send KeyUpdates that ask for one in return; how many could be sent. Blocks.

    Args:
        port: of the node.
        directory: has a certificate that the node accepts, `cert.pem`, and its key, `key.pem`.
    """
    library = _library()
    with socket.create_connection((LOOPBACK, port), timeout=PATIENCE) as sock:
        sock.settimeout(None)  # OpenSSL reads and writes by itself
        context = library.SSL_CTX_new(library.TLS_client_method())
        session = library.SSL_new(context) if _prepare(library, context, directory) else None
        try:
            if session is None or library.SSL_set_fd(session, sock.fileno()) != 1 or library.SSL_connect(session) != 1:
                return 0
            for sent in range(MOST):
                if library.SSL_key_update(session, _REQUESTED) != 1 or library.SSL_do_handshake(session) != 1:
                    return sent
            return MOST
        finally:
            library.SSL_free(session)
            library.SSL_CTX_free(context)


def _prepare(library: ctypes.CDLL, context: object, directory: str) -> bool:
    alpn = bytes([len(ALPN)]) + ALPN.encode()
    return bool(
        library.SSL_CTX_use_certificate_chain_file(context, f"{directory}/cert.pem".encode()) == 1
        and library.SSL_CTX_use_PrivateKey_file(context, f"{directory}/key.pem".encode(), _PEM) == 1
        and library.SSL_CTX_set_alpn_protos(context, alpn, len(alpn)) == 0
    )


def _library() -> ctypes.CDLL:
    library = ctypes.CDLL(LIBSSL)
    pointer, number, text = ctypes.c_void_p, ctypes.c_int, ctypes.c_char_p
    for name, result, arguments in (
        ("TLS_client_method", pointer, []),
        ("SSL_CTX_new", pointer, [pointer]),
        ("SSL_CTX_use_certificate_chain_file", number, [pointer, text]),
        ("SSL_CTX_use_PrivateKey_file", number, [pointer, text, number]),
        ("SSL_CTX_set_alpn_protos", number, [pointer, text, ctypes.c_uint]),
        ("SSL_new", pointer, [pointer]),
        ("SSL_set_fd", number, [pointer, number]),
        ("SSL_connect", number, [pointer]),
        ("SSL_key_update", number, [pointer, number]),
        ("SSL_do_handshake", number, [pointer]),
        ("SSL_free", None, [pointer]),
        ("SSL_CTX_free", None, [pointer]),
    ):
        function = getattr(library, name)
        function.restype, function.argtypes = result, arguments
    return library
