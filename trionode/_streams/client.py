"""The dialing side: TLS over a new TCP connection, or over a stream that is connected already."""

from __future__ import annotations

from typing import TYPE_CHECKING

import trio

from trionode._handshake.connect import connect
from trionode._handshake.dial import dial_tls
from trionode._identity.names import canonical_host
from trionode._managers.manager import publisher_of
from trionode._util.log import Log

from .arguments import check_arguments, check_port, protocols
from .stream import TLSStream

if TYPE_CHECKING:
    from collections.abc import Sequence

    from trionode._managers.manager import CertManager

_security_log = Log("trionode.security")


async def open_tls_stream(
    host: str,
    port: int,
    *,
    cert_manager: CertManager,
    server_name: str | None = None,
    alpn: Sequence[str] = (),
    insecure_skip_verify: bool = False,
    handshake_timeout: float = 10,
    connect_timeout: float = 10,
) -> TLSStream:
    """Connect to a TLS server; the handshake is done and the server verified when this returns.

    Whether the server accepts our certificate shows at the first `receive_some` (TLS 1.3 lets the client finish
    first): it then raises `BrokenResourceError` whose `__cause__` is a `PeerRejectedError`. Cancelling ends the attempt
    and leaves nothing open.

    Args:
        host: DNS name or address to connect to.
        port: TCP port.
        cert_manager: in use during the handshake.
        server_name: the name that the certificate must cover; by default the manager's, else `host`.
        alpn: protocols to offer; what was agreed on is in `stream.alpn`.
        insecure_skip_verify: accept any certificate under any name. Logged as a warning.
        handshake_timeout: for contexts and TLS, seconds.
        connect_timeout: for DNS and TCP, seconds.

    Raises:
        HandshakeError: it failed; see its subclasses for how.
        CertificateError: the manager's key pair is unusable, or there are no system CAs where they are needed.
        ValueError, TypeError: an argument is not what belongs there; the message names it.
    """
    check_arguments(
        host=host,
        cert_manager=cert_manager,
        insecure_skip_verify=insecure_skip_verify,
        handshake_timeout=handshake_timeout,
        connect_timeout=connect_timeout,
    )
    if server_name is not None:
        check_arguments(server_name=server_name)
    host = canonical_host(host)
    check_port(port, lowest=1)
    offered = protocols(alpn)
    reference = None if server_name is None else canonical_host(server_name)
    if insecure_skip_verify:
        _security_log.warning(
            "insecure_skip_verify: the server at %s port %d is not verified",
            host,
            port,
            option="insecure_skip_verify",
            address=(host, port),
        )
    with publisher_of(cert_manager).use(as_server=False):
        transport = await connect(host, port, connect_timeout=connect_timeout)
        stream = await dial_tls(
            transport,
            cert_manager.contexts,
            host=host,
            server_name=reference,
            alpn=offered,
            insecure_skip_verify=insecure_skip_verify,
            handshake_timeout=handshake_timeout,
        )
    return TLSStream(stream)


async def wrap_client_stream(
    stream: trio.abc.Stream,
    server_name: str,
    *,
    cert_manager: CertManager,
    alpn: Sequence[str] = (),
    insecure_skip_verify: bool = False,
    handshake_timeout: float = 10,
) -> TLSStream:
    """TLS to a server over a stream that is connected to it: a proxy's tunnel, a UNIX socket, a memory stream.

    The handshake is done and the server verified when this returns; what `open_tls_stream` says of the server's own
    verdict holds here, too. Owns the stream: it is closed with the `TLSStream` that this returns, and at once where the
    handshake fails or is cancelled, or an argument is refused.

    Args:
        stream: connected, with nothing of TLS sent or received yet.
        server_name: the name that the server's certificate must cover, a DNS name or an address; a manager's own
            `server_name` plays no part.
        cert_manager: in use during the handshake.
        alpn: protocols to offer; what was agreed on is in the `alpn` of what this returns.
        insecure_skip_verify: accept any certificate under any name. Logged as a warning.
        handshake_timeout: for contexts and TLS, seconds.

    Raises:
        HandshakeError: it failed; see its subclasses for how.
        CertificateError: the manager's key pair is unusable, or there are no system CAs where they are needed.
        ValueError, TypeError: an argument is not what belongs there; the message names it.
    """
    check_arguments(stream=stream)
    try:
        check_arguments(
            server_name=server_name,
            cert_manager=cert_manager,
            insecure_skip_verify=insecure_skip_verify,
            handshake_timeout=handshake_timeout,
        )
        reference = canonical_host(server_name)
        if insecure_skip_verify:
            _security_log.warning(
                "insecure_skip_verify: the server %s is not verified",
                reference,
                option="insecure_skip_verify",
                peer=reference,
            )
        return await wrap_for_client(
            stream,
            reference,
            cert_manager,
            alpn=protocols(alpn),
            insecure_skip_verify=insecure_skip_verify,
            handshake_timeout=handshake_timeout,
        )
    except BaseException:
        await trio.aclose_forcefully(stream)
        raise


async def wrap_for_client(
    stream: trio.abc.Stream,
    reference: str,
    cert_manager: CertManager,
    *,
    alpn: tuple[str, ...],
    insecure_skip_verify: bool,
    handshake_timeout: float,
) -> TLSStream:
    """As `wrap_client_stream`, of arguments that were checked, and without a warning.

    Raises:
        HandshakeError: it failed, and the stream is closed.
        CertificateError: the manager's key pair is unusable, or there are no system CAs where they are needed.
    """
    with publisher_of(cert_manager).use(as_server=False):
        secured = await dial_tls(
            stream,
            cert_manager.contexts,
            host=reference,
            server_name=reference,
            alpn=alpn,
            insecure_skip_verify=insecure_skip_verify,
            handshake_timeout=handshake_timeout,
        )
    return TLSStream(secured)
