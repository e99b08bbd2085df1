"""Sockets without Trio's checkpoints: what can be written or read at once.

Trio's `send_all` writes, then yields to the scheduler; its `receive_some` reads before it waits, mostly in vain where
requests and replies alternate. For a small message that is a large part of the cost (measured, of a call: two scheduler
ticks for each write, a failing system call and an exception for each read). The functions here do without, and so are
no checkpoints: that is up to their callers. All sockets of a run read into one buffer: what it holds is decrypted
before anything else can run, so no socket needs a buffer of its own.

This works with TCP sockets on POSIX; any other stream is read and written in Trio's own way.
"""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Final

import trio

if TYPE_CHECKING:
    from trionode._util.text import Address, Buffer

#: Whether `os.readv` and `os.write` work on sockets.
_POSSIBLE: Final = sys.platform != "win32"

#: How much is read at once: as much as a node writes at once, with the overhead of its TLS records. More would let one
#: busy connection hold up the others for longer. Bytes.
READ_SIZE: Final = 160 * 1024

#: A block of this size is allocated once and freed at once, which makes glibc keep memory of such sizes for reuse
#: (M_MMAP_THRESHOLD and M_TRIM_THRESHOLD in mallopt(3)). Otherwise it may return the memory of each large message to
#: the system and fault it in again, which costs a quarter of the throughput (measured). Bytes.
_KEPT: Final = 1024 * 1024

_CLOSED: Final = "this socket was already closed"

_buffer: Final = trio.lowlevel.RunVar[memoryview]("trionode.read_buffer")


def address_of(transport: trio.abc.Stream) -> Address | None:
    """The peer's (host, port): the transport's `peer_address`, or of a TCP socket what it still knows."""
    if not isinstance(transport, trio.SocketStream):
        return _given_address(transport)
    if transport.socket.family not in (trio.socket.AF_INET, trio.socket.AF_INET6):
        return None
    try:
        host, port, *_ = transport.socket.getpeername()
    except OSError:
        return None
    return host, port


def _given_address(transport: trio.abc.Stream) -> Address | None:
    """What a stream of another transport says of itself, if it is an address."""
    try:
        given: object = getattr(transport, "peer_address", None)
    except Exception:  # noqa: BLE001 -- the application's; it costs the address
        return None
    match given:
        case (str() as host, int() as port):
            return host, port
        case _:
            return None


def socket_of(stream: trio.abc.Stream) -> trio.SocketStream | None:
    """The stream, if it is a socket that can be read and written like this; else None."""
    return stream if _POSSIBLE and isinstance(stream, trio.SocketStream) else None


def write_at_once(stream: trio.SocketStream, data: Buffer) -> int:
    """Write as much as the socket takes now; returns how much that was.

    Raises:
        trio.BrokenResourceError: the connection is broken.
        trio.ClosedResourceError: the stream was closed.
    """
    try:
        return os.write(stream.socket.fileno(), data)
    except BlockingIOError:
        return 0
    except OSError as exc:
        raise _error(stream, exc) from exc


async def wait_and_read(stream: trio.SocketStream, size: int = READ_SIZE) -> memoryview:
    """Wait until there is something to read, then read up to so many bytes, `READ_SIZE` at most; empty at the end.

    Cancelling loses nothing.

    Returns:
        What was read; valid until the next checkpoint, when other sockets read into the same buffer.

    Raises:
        trio.BrokenResourceError: the connection is broken.
        trio.ClosedResourceError: the stream was closed, here and meanwhile.
    """
    while True:
        descriptor = stream.socket.fileno()
        if descriptor < 0:  # `wait_readable` would leave this task registered for -1
            raise trio.ClosedResourceError(_CLOSED)
        await trio.lowlevel.wait_readable(descriptor)
        buffer = _read_buffer()[:size]
        try:
            return buffer[: os.readv(stream.socket.fileno(), [buffer])]
        except BlockingIOError:
            continue
        except OSError as exc:
            raise _error(stream, exc) from exc


async def send(stream: trio.abc.Stream, data: Buffer) -> None:
    """Send all: at once as far as a socket takes it, then as the stream does. A checkpoint only where that waits.

    Raises:
        trio.BrokenResourceError: the connection is broken.
        trio.ClosedResourceError: the stream was closed.
    """
    socket = socket_of(stream)
    taken = 0 if socket is None else write_at_once(socket, data)
    if taken < len(data):
        await stream.send_all(memoryview(data)[taken:])


async def receive(stream: trio.abc.Stream, size: int) -> bytes:
    """Receive up to so many bytes, empty at the end; a checkpoint. Cancelling loses nothing.

    Raises:
        trio.BrokenResourceError: the connection is broken.
        trio.ClosedResourceError: the stream was closed.
    """
    socket = socket_of(stream)
    return bytes(await (stream.receive_some(size) if socket is None else wait_and_read(socket, size)))


def _read_buffer() -> memoryview:
    try:
        return _buffer.get()
    except LookupError:
        bytearray(_KEPT)
        buffer = memoryview(bytearray(READ_SIZE))
        _buffer.set(buffer)
        return buffer


def _error(stream: trio.SocketStream, error: OSError) -> trio.ClosedResourceError | trio.BrokenResourceError:
    if stream.socket.fileno() < 0:
        return trio.ClosedResourceError(_CLOSED)
    return trio.BrokenResourceError(f"socket connection broken: {error}")
