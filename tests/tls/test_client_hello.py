"""Reading the server name from a ClientHello: as OpenSSL does, from real ones and from made-up ones, in any pieces."""

from __future__ import annotations

import ssl
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings, strategies as st
from OpenSSL import SSL

from effort import effort
from trionode._tls.client_hello import MAX_HELLO, ClientHelloReader, server_name_text

if TYPE_CHECKING:
    from collections.abc import Iterable


def read(data: bytes, sizes: Iterable[int] = ()) -> ClientHelloReader:
    """A reader that was fed, in pieces of these sizes, the rest at once."""
    reader = ClientHelloReader()
    for size in sizes:
        reader.feed(data[:size])
        data = data[size:]
    reader.feed(data)
    return reader


def real(server_name: str | None, *, padding: int = 0) -> bytes:
    """What OpenSSL sends."""
    context = SSL.Context(SSL.TLS_METHOD)
    context.set_min_proto_version(SSL.TLS1_3_VERSION)
    if padding:
        context.set_alpn_protos([b"x" * 255] * (padding // 256))
    connection = SSL.Connection(context)
    connection.set_connect_state()
    if server_name is not None:
        connection.set_tlsext_host_name(server_name.encode())
    with pytest.raises(SSL.WantReadError):
        connection.do_handshake()
    return connection.bio_read(2**16)


def vector(size: int, content: bytes) -> bytes:
    """Content behind its length."""
    return len(content).to_bytes(size) + content


def hello(extensions: bytes | None) -> bytes:
    """A ClientHello, as a handshake message."""
    body = b"\x03\x03" + bytes(32) + vector(1, b"") + vector(2, b"\x13\x01") + vector(1, b"\0")
    return b"\x01" + vector(3, body if extensions is None else body + vector(2, extensions))


def extension(kind: int, content: bytes) -> bytes:
    """One extension."""
    return kind.to_bytes(2) + vector(2, content)


def server_name(name: bytes) -> bytes:
    """The extension for a name."""
    return extension(0, vector(2, b"\0" + vector(2, name)))


def records(message: bytes, size: int = 2**14) -> bytes:
    """A message in records."""
    pieces = [message[start : start + size] for start in range(0, len(message), size)]
    return b"".join(b"\x16\x03\x01" + vector(2, piece) for piece in pieces)


def openssl(data: bytes) -> str | None:
    """What a server of OpenSSL takes for the name in data; None also where it refuses."""
    context = SSL.Context(SSL.TLS_METHOD)
    seen: list[bytes | None] = []
    context.set_tlsext_servername_callback(lambda connection: seen.append(connection.get_servername()))
    connection = SSL.Connection(context)
    connection.set_accept_state()
    if data:
        connection.bio_write(data)
    with pytest.raises(SSL.Error):
        connection.do_handshake()
    return server_name_text(seen[0]) if seen and seen[0] is not None else None


@pytest.mark.parametrize("name", ["a.example", "A.Example", "x" * 63 + ".example", "xn--bcher-kva.example", None])
@pytest.mark.parametrize("padding", [0, 20_000], ids=["small", "large"])
@settings(deadline=None, max_examples=effort(20))
@given(data=st.data())
def test_what_openssl_sends(name: str | None, padding: int, data: st.DataObject) -> None:
    """The name in a real ClientHello, in any pieces; what follows it plays no part."""
    sent = real(name, padding=padding)
    sizes = data.draw(st.lists(st.integers(0, len(sent)), max_size=10))
    reader = read(sent + b"more", sizes)
    assert reader.done
    assert reader.malformed is None
    assert reader.server_name == (None if name is None else name.lower())


def test_the_standard_library_too() -> None:
    """Another client of the same kind, which offers TLS 1.2 as well."""
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    tls = ssl.create_default_context().wrap_bio(incoming, outgoing, server_hostname="a.example")
    with pytest.raises(ssl.SSLWantReadError):
        tls.do_handshake()
    assert read(outgoing.read()).server_name == "a.example"


@given(size=st.integers(1, 300), name=st.text("abc.-é", min_size=1, max_size=40))
def test_any_fragments(size: int, name: str) -> None:
    """However a ClientHello is cut into records, and whatever extensions stand around the name."""
    raw = name.encode()
    message = hello(extension(0xABCD, bytes(300)) + server_name(raw) + extension(5, b""))
    reader = read(records(message, size))
    assert reader.done
    assert reader.server_name == server_name_text(raw)


def test_nothing_is_said_before_all_of_it_is_here() -> None:
    """One byte at a time: done with the last of the message and not before."""
    reader = ClientHelloReader()
    data = records(hello(server_name(b"a.example")), 7)
    for octet in data[:-1]:
        reader.feed(bytes([octet]))
        assert not reader.done
        assert reader.server_name is None
    reader.feed(data[-1:])
    assert reader.done
    assert reader.server_name == "a.example"


@settings(deadline=None, max_examples=effort(300))
@given(
    message=st.one_of(
        st.binary(max_size=200),
        st.builds(lambda content: hello(extension(0, content)), st.binary(max_size=40)),
        st.builds(hello, st.binary(max_size=60)),
        st.builds(
            lambda parts: hello(b"".join(parts)),
            st.lists(
                st.one_of(
                    st.builds(server_name, st.binary(max_size=12)),
                    st.builds(extension, st.integers(0, 60), st.binary(max_size=12)),
                ),
                max_size=4,
            ),
        ),
        st.builds(lambda at, octet: _changed(real("a.example"), at, octet), st.integers(5, 300), st.integers(0, 255)),
    )
)
def test_never_another_name_than_openssl(message: bytes) -> None:
    """Whatever comes: a name, no name or `malformed`; and where OpenSSL takes a name, no other is read here."""
    for data in (message, records(message)):
        reader = read(data)
        taken = openssl(data)
        if taken is not None:
            assert reader.server_name == taken
        if reader.malformed is not None:
            assert reader.server_name is None


def _changed(data: bytes, at: int, octet: int) -> bytes:
    """One byte of a real ClientHello is another."""
    changed = bytearray(data)
    changed[at % len(data)] = octet
    return bytes(changed)[5:]


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"GET / HTTP/1.1\r\n", "http request"),
        (b"hello", "wrong version number"),
        (b"\x16\x02\x00\x00\x05", "wrong version number"),
        (b"\x16\x03\x01\x00\x00", "bad record length"),
        (b"\x16\x03\x01\xff\xff", "bad record length"),
        (records(b"\x02\x00\x00\x00"), "unexpected message"),
        (records(b"\x01" + (MAX_HELLO).to_bytes(3)), "excessive message size"),
        (records(hello(b"\x00")), "length mismatch"),
        (records(hello(server_name(b"a") * 2)), "bad extension"),
        (records(hello(server_name(b"a\0b"))), "bad extension"),
        (records(hello(server_name(b"x" * 256))), "bad extension"),
        (records(hello(extension(0, vector(2, b"\x01" + vector(2, b"a"))))), "bad extension"),
        (records(hello(extension(0, vector(2, b"\0" + vector(2, b"a")) + b"x"))), "length mismatch"),
        (records(hello(extension(5, b"")))[:-1], None),
    ],
)
def test_what_is_malformed(data: bytes, words: str | None) -> None:
    """It is said in OpenSSL's words where there are some, and asks for no name; what is cut is only not done."""
    reader = read(data)
    assert reader.malformed == words
    assert reader.server_name is None
    assert reader.done is (words is not None)
    if reader.done:
        reader.feed(b"more")
        assert reader.malformed == words


def test_one_without_extensions() -> None:
    """As TLS 1.0 had them: no name."""
    reader = read(records(hello(None)))
    assert reader.done
    assert (reader.server_name, reader.malformed) == (None, None)
