"""Sockets without detours: what can be written or read at once, below Trio's checkpoints.

Trio's `send_all` tries, then yields to the scheduler; its `receive_some` tries before it waits, mostly in vain where
requests and replies alternate. Each costs some microseconds that a small message has no other use for (measured, of a
call: two scheduler ticks a write, a failing system call and an exception a read). These two do the same with neither.
They are no checkpoints: who calls them sees to that.

Only TCP sockets on POSIX can do it; for any other stream the answer is no, and Trio's own way is taken.
"""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Final

import trio

if TYPE_CHECKING:
    from ._openssl import Buffer

#: Where `os.read` and `os.write` work on sockets.
_POSSIBLE: Final = sys.platform != "win32"


def socket_of(stream: trio.abc.Stream) -> trio.SocketStream | None:
    """The stream, if it is a socket that this is possible on."""
    return stream if _POSSIBLE and isinstance(stream, trio.SocketStream) else None


def write_at_once(stream: trio.SocketStream, data: Buffer) -> int:
    """Write as much as the socket takes now; returns how much that was.

    Raises:
        trio.BrokenResourceError: the connection is broken.
    """
    try:
        return os.write(stream.socket.fileno(), data)
    except BlockingIOError:
        return 0
    except OSError as exc:
        msg = f"socket connection broken: {exc}"
        raise trio.BrokenResourceError(msg) from exc


async def wait_and_read(stream: trio.SocketStream, size: int) -> bytes:
    """Wait until there is something to read, then read it; empty at the end. Cancelling loses nothing.

    Raises:
        trio.BrokenResourceError: the connection is broken.
        trio.ClosedResourceError: the stream was closed, here and meanwhile.
    """
    while True:
        await trio.lowlevel.wait_readable(stream.socket)
        try:
            return os.read(stream.socket.fileno(), size)
        except BlockingIOError:
            continue
        except OSError as exc:
            if stream.socket.fileno() < 0:
                msg = "this socket was already closed"
                raise trio.ClosedResourceError(msg) from None
            msg = f"socket connection broken: {exc}"
            raise trio.BrokenResourceError(msg) from exc
