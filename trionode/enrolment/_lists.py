"""Revocation lists for everyone: over the EST service's HTTPS, and over plain HTTP, where other software asks for them.

Theory. A list is public and signed, so TLS adds nothing to it (RFC 5280 section 8); and a verifier that wants the list
before it believes a server cannot ask that server over TLS. What is served in plain is as little as will do: one
connection, one GET, one answer, the end. So there is no state for a stranger to hold, and time, bytes and number of
connections are bounded.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Final, final

import trio
from cryptography.hazmat.primitives.serialization import Encoding

from trionode._credentials.pem import to_pem
from trionode._errors import CertificateError
from trionode._handshake.admission import Admission
from trionode._identity.certificate import issuer_der, subject_der
from trionode._streams.listeners import shown
from trionode._transport.interfaces import accept_patiently
from trionode._transport.sockets import address_of
from trionode._util.log import Log
from trionode._util.threads import Purpose, in_thread

from ._wire import CRL_PATH, CRLS_PATH

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import timedelta

    from trionode._streams.listeners import AnyListener
    from trionode.pki import PKIDirectory

_log: Final = Log("trionode.enrolment")

#: For a plain request, from the accept to the last byte of the answer. Seconds.
_PATIENCE: Final = 10.0
#: The head of a plain request. Bytes.
_MAX_HEAD: Final = 8192
_READ: Final = 2048


@final
class Lists:
    """A directory's revocation lists, signed anew before they end."""

    def __init__(self, directory: PKIDirectory, lifetime: timedelta) -> None:
        self.directory = directory
        self._lifetime = lifetime

    async def answer(self, path: str) -> tuple[str, bytes] | None:
        """Media type and content of what is at a path; None if there is nothing.

        Raises:
            CertificateError: the CA's files are damaged.
            OSError: they cannot be read or written.
        """
        if path not in (CRLS_PATH, CRL_PATH):
            return None
        refresh = partial(self.directory.refresh_lists, lifetime=self._lifetime)
        lists = await in_thread(Purpose.ISSUING, refresh)
        if path == CRLS_PATH:
            return "application/x-pem-file", to_pem(lists)
        issuer = subject_der(self.directory.authority.issuer)
        [crl] = [each for each in lists if issuer_der(each) == issuer]
        return "application/pkix-crl", crl.public_bytes(Encoding.DER)


async def serve_lists(lists: Lists, listeners: Sequence[AnyListener]) -> None:
    """Answer plain HTTP on these listeners, which the caller closes, until they are closed."""
    admission = Admission()
    async with trio.open_nursery() as nursery:
        for listener in listeners:
            nursery.start_soon(_accept_from, listener, lists, admission, nursery)


@trio.lowlevel.enable_ki_protection  # see accept_forever
async def _accept_from(listener: AnyListener, lists: Lists, admission: Admission, nursery: trio.Nursery) -> None:
    where = shown(listener)
    while True:
        try:
            stream: trio.abc.Stream = await accept_patiently(listener, where)
        except trio.ClosedResourceError:
            return
        nursery.start_soon(_converse, stream, lists, admission)


async def _converse(stream: trio.abc.Stream, lists: Lists, admission: Admission) -> None:
    """One connection; the oldest gives way where there are too many."""
    async with stream:
        with admission.admitted(address_of(stream)) as ticket, trio.move_on_after(_PATIENCE) as scope:
            ticket.begin(scope)
            try:
                await stream.send_all(await _answer(await _head(stream), lists))
                if isinstance(stream, trio.abc.HalfCloseableStream):
                    await stream.send_eof()
            except (trio.BrokenResourceError, trio.ClosedResourceError):
                _log.debug("a client has gone before it had a revocation list")


async def _head(stream: trio.abc.Stream) -> bytes:
    """A request's first line; empty if what comes has none, or is too long."""
    head = b""
    while b"\r\n\r\n" not in head:
        data = await stream.receive_some(_READ)
        head += data
        if not data or len(head) > _MAX_HEAD:
            return b""
    return head.partition(b"\r\n")[0]


async def _answer(line: bytes, lists: Lists) -> bytes:
    method, _, rest = line.partition(b" ")
    target, _, version = rest.partition(b" ")
    if version not in (b"HTTP/1.1", b"HTTP/1.0"):
        return _response("400 Bad Request")
    if method not in (b"GET", b"HEAD"):
        return _response("405 Method Not Allowed", b"Allow: GET, HEAD\r\n")
    try:
        found = await lists.answer(target.partition(b"?")[0].decode("latin-1"))
    except (CertificateError, OSError) as exc:
        _log.error("%r has no revocation lists: %s", lists.directory, exc)
        return _response("503 Service Unavailable")
    if found is None:
        return _response("404 Not Found")
    kind, body = found
    response = _response("200 OK", b"Content-Type: %s\r\n" % kind.encode(), length=len(body))
    return response if method == b"HEAD" else response + body


def _response(status: str, fields: bytes = b"", *, length: int = 0) -> bytes:
    head = f"HTTP/1.1 {status}\r\nContent-Length: {length}\r\nConnection: close\r\n".encode()
    return head + fields + b"\r\n"
