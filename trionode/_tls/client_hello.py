"""Which server name a client asks for, read from its ClientHello before OpenSSL sees a byte of it; sans-IO.

Theory. Which contexts a handshake takes depends on that name, and contexts are taken before there is a session. So the
beginning of the client's first flight is read here: records (RFC 8446 section 5.1) of the type handshake, which carry
the fragments of one ClientHello (section 4.1.2), whose extension `server_name` (RFC 6066 section 3) holds the name.
Nothing else in it is looked at, and nothing is believed: OpenSSL reads all of it once more, and the caller compares.

What does not parse is no failure here, only said to be `malformed`: OpenSSL refuses it with the right alert. Memory is
bounded by `MAX_HELLO`, and each byte is looked at once, however they drip in.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, final

if TYPE_CHECKING:
    from trionode._util.text import Buffer

#: What a ClientHello may have; several times what one has that offers everything. Bytes.
MAX_HELLO: Final = 64 * 1024

_RECORD_HEADER: Final = 5
_MESSAGE_HEADER: Final = 4
_HANDSHAKE, _MAJOR_VERSION, _MAX_FRAGMENT = 22, 3, 2**14
_CLIENT_HELLO: Final = 1
_SERVER_NAME: Final = 0
_HOST_NAME: Final = 0
#: Plain HTTP on a TLS port is what mostly comes in place of a ClientHello, and OpenSSL has words of its own for it.
_HTTP: Final = (b"GET ", b"POST ", b"HEAD ", b"PUT ")


class _MalformedError(ValueError):
    """It is no ClientHello."""


def server_name_text(name: bytes) -> str:
    """A server name from the wire as text: in lower case, whatever is not ASCII escaped."""
    return name.decode("ascii", "backslashreplace").lower()


@final
class ClientHelloReader:
    """Reads what a client sends, up to the end of its ClientHello.

    Attributes:
        done: whether nothing more is needed.
        server_name: what the client asks for; None before `done`, and where it asks for none.
        malformed: what is wrong, in OpenSSL's words where it has some; None where nothing is.
    """

    __slots__ = ("_message", "_records", "done", "malformed", "server_name")

    def __init__(self) -> None:
        self.done = False
        self.server_name: str | None = None
        self.malformed: str | None = None
        self._records = bytearray()
        self._message = bytearray()

    def feed(self, data: Buffer) -> None:
        """Take more of what the client sent; after `done` it is not looked at."""
        if self.done:
            return
        self._records += data
        try:
            while self._next_record():
                if self._look():
                    return
        except _MalformedError as exc:
            self.malformed = str(exc)
            self.done = True

    def _next_record(self) -> bool:
        """Move one record's fragment to the message; False where it is not all here."""
        records = self._records
        if not records:
            return False
        if records[0] != _HANDSHAKE or (len(records) > 1 and records[1] != _MAJOR_VERSION):
            raise _MalformedError("http request" if bytes(records).startswith(_HTTP) else "wrong version number")
        if len(records) < _RECORD_HEADER:
            return False
        length = int.from_bytes(records[3:5])
        if not 1 <= length <= _MAX_FRAGMENT:
            raise _MalformedError("bad record length")
        end = _RECORD_HEADER + length
        if len(records) < end:
            return False
        self._message += records[_RECORD_HEADER:end]
        del records[:end]
        return True

    def _look(self) -> bool:
        """Read the message, if all of it is here."""
        message = self._message
        if message[0] != _CLIENT_HELLO:
            raise _MalformedError("unexpected message")
        if len(message) < _MESSAGE_HEADER:
            return False
        end = _MESSAGE_HEADER + int.from_bytes(message[1:4])
        if end > MAX_HELLO:
            raise _MalformedError("excessive message size")
        if len(message) < end:
            return False
        with memoryview(message) as view:
            name = _server_name(_Fields(bytes(view[_MESSAGE_HEADER:end])))
        self.server_name = None if name is None else server_name_text(name)
        self.done = True
        return True


@final
class _Fields:
    """Takes bytes apart, front to back."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def left(self) -> bool:
        return self._at < len(self._data)

    def take(self, size: int) -> bytes:
        end = self._at + size
        if end > len(self._data):
            raise _MalformedError("length mismatch")
        taken = self._data[self._at : end]
        self._at = end
        return taken

    def number(self, size: int) -> int:
        return int.from_bytes(self.take(size))

    def vector(self, size: int) -> _Fields:
        """What a length of so many bytes stands before."""
        return _Fields(self.take(self.number(size)))

    def rest(self) -> bytes:
        return self.take(len(self._data) - self._at)


def _server_name(hello: _Fields) -> bytes | None:
    hello.take(2 + 32)  # legacy_version, random
    hello.vector(1)  # legacy_session_id
    hello.vector(2)  # cipher_suites
    hello.vector(1)  # legacy_compression_methods
    if not hello.left():
        return None
    extensions = hello.vector(2)
    if hello.left():
        raise _MalformedError("length mismatch")
    found: bytes | None = None
    while extensions.left():
        kind, content = extensions.number(2), extensions.vector(2)
        if kind == _SERVER_NAME:
            if found is not None:
                raise _MalformedError("bad extension")
            found = _only_name(content.vector(2))
            if content.left():
                raise _MalformedError("length mismatch")
    return found


def _only_name(names: _Fields) -> bytes:
    """RFC 6066 allows one name of each type, and there is one type; OpenSSL takes neither more nor others."""
    if names.number(1) != _HOST_NAME:
        raise _MalformedError("bad extension")
    name = names.vector(2).rest()
    if names.left() or len(name) > 255 or 0 in name:
        raise _MalformedError("bad extension")
    return name
