"""OpenSSL without any network, both ends in memory and in one thread: the most that a machine can do from Python.

Two bindings: pyOpenSSL, with the OpenSSL in the `cryptography` wheel (its key exchange is post-quantum hybrid by
default), and stdlib `ssl`, with the system's.
"""

from __future__ import annotations

import ssl
from typing import TYPE_CHECKING, Final

from OpenSSL import SSL

from .credentials import HOST
from .model import Stopwatch

if TYPE_CHECKING:
    from .model import Job, Sample

#: The largest TLS record.
RECORD: Final = 16384


# pyOpenSSL ----------------------------------------------------------------------------------------------------------


def _move(source: SSL.Connection, sink: SSL.Connection) -> None:
    try:
        while True:
            sink.bio_write(source.bio_read(65536))
    except SSL.WantReadError:
        pass


def pyopenssl_pair(client_context: SSL.Context, server_context: SSL.Context) -> tuple[SSL.Connection, SSL.Connection]:
    """Two ends, with their handshake done and both certificates verified."""
    client, server = SSL.Connection(client_context, None), SSL.Connection(server_context, None)
    client.set_connect_state()
    server.set_accept_state()
    done: set[SSL.Connection] = set()
    while len(done) < 2:
        for end, other in (client, server), (server, client):
            try:
                end.do_handshake()
                done.add(end)
            except SSL.WantReadError:
                pass
            _move(end, other)
    return client, server


def pyopenssl_handshakes(job: Job) -> Sample:
    """Mutual handshakes."""
    client, server = job.credentials.pyopenssl("client"), job.credentials.pyopenssl("server")
    pyopenssl_pair(client, server)
    with Stopwatch() as watch:
        for _ in range(job.count):
            pyopenssl_pair(client, server)
    return watch.rate(job.count)


def pyopenssl_records(job: Job) -> Sample:
    """Full records, encrypted, moved, decrypted; a value for each `size` bytes of them."""
    client, server = pyopenssl_pair(job.credentials.pyopenssl("client"), job.credentials.pyopenssl("server"))
    data, size = bytes(RECORD), job.parameters["size"]
    records = max(1, round(job.count * size / RECORD))
    with Stopwatch() as watch:
        for _ in range(records):
            client.send(data)
            server.bio_write(client.bio_read(RECORD + 256))
            server.recv(RECORD)
    return watch.rate(round(records * RECORD / size), job.parameters.get("per_message", 1.0))


# stdlib ssl ---------------------------------------------------------------------------------------------------------


class _End:
    """One end under stdlib `ssl`."""

    def __init__(self, context: ssl.SSLContext, *, server: bool) -> None:
        self.incoming, self.outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        name = None if server else HOST
        self.tls = context.wrap_bio(self.incoming, self.outgoing, server_side=server, server_hostname=name)


def stdlib_pair(client_context: ssl.SSLContext, server_context: ssl.SSLContext) -> tuple[_End, _End]:
    """Two ends, with their handshake done and both certificates verified."""
    client, server = _End(client_context, server=False), _End(server_context, server=True)
    done: set[_End] = set()
    while len(done) < 2:
        for end, other in (client, server), (server, client):
            try:
                end.tls.do_handshake()
                done.add(end)
            except ssl.SSLWantReadError:
                pass
            other.incoming.write(end.outgoing.read())
    return client, server


def stdlib_handshakes(job: Job) -> Sample:
    """Mutual handshakes, with host name check."""
    client, server = job.credentials.stdlib("client"), job.credentials.stdlib("server")
    stdlib_pair(client, server)
    with Stopwatch() as watch:
        for _ in range(job.count):
            stdlib_pair(client, server)
    return watch.rate(job.count)


def stdlib_records(job: Job) -> Sample:
    """Full records, encrypted, moved, decrypted; a value for each `size` bytes of them."""
    client, server = stdlib_pair(job.credentials.stdlib("client"), job.credentials.stdlib("server"))
    data, size = bytes(RECORD), job.parameters["size"]
    records = max(1, round(job.count * size / RECORD))
    with Stopwatch() as watch:
        for _ in range(records):
            client.tls.write(data)
            server.incoming.write(client.outgoing.read())
            server.tls.read(RECORD)
    return watch.rate(round(records * RECORD / size), job.parameters.get("per_message", 1.0))
