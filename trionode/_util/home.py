"""Where nodes, connections and channels live: one thread, with its Trio run, in one process.

Theory. What they wake is Trio's, and Trio's objects are for one thread. Used in another they would fail in the middle,
or corrupt what they hold; so each use asks its home first, which costs one comparison. After `fork()` the child has
copies of everything. They are inert: every socket of ours is closed in the child (a copy would keep the port listening,
and the parent's peers from seeing its connections end), and each use says so. What the child itself opens is its own.
"""

from __future__ import annotations

import contextlib
import os
from threading import get_ident
from typing import TYPE_CHECKING, Final, final
from weakref import WeakSet, ref

import trio

if TYPE_CHECKING:
    import socket

#: A thread that is none: of homes that are in the parent.
_NOWHERE: Final = -1


@final
class Home:
    """The thread of one Trio run."""

    __slots__ = ("__weakref__", "_forked", "_thread")

    def __init__(self) -> None:
        self._thread = get_ident()
        self._forked = False
        _homes.add(self)

    def check(self, what: str) -> None:
        """Check that this is the place to use something.

        Args:
            what: is used: its class.

        Raises:
            RuntimeError: it is another thread, or a forked child.
        """
        if get_ident() != self._thread:
            raise RuntimeError(self._words(what))

    def _words(self, what: str) -> str:
        if self._forked:
            return (
                f"this {what} belongs to the parent process: after fork() the child's copies are inert, and their "
                "sockets are closed. Open a node of its own in the child, or start it with subprocess or spawn"
            )
        return (
            f"this {what} belongs to a Trio run in another thread: use it from there, or with trio.from_thread.run or "
            "run_sync and that run's trio_token"
        )

    def leave(self) -> None:
        """This is a forked child: what lives here is inert."""
        self._forked, self._thread = True, _NOWHERE


_here: Final[trio.lowlevel.RunVar[Home]] = trio.lowlevel.RunVar("trionode.home")
_homes: Final[WeakSet[Home]] = WeakSet()
#: By descriptor, which bounds their number. Not a `WeakSet`: what Ctrl-C raises in a callback of a reference is lost.
_sockets: Final[dict[int, ref[trio.socket.SocketType | socket.socket]]] = {}


def home() -> Home:
    """That of this Trio run; where there is none, this thread."""
    try:
        return _here.get()
    except RuntimeError:  # no run
        return Home()
    except LookupError:
        made = Home()
        _here.set(made)
        return made


def close_in_children(sock: trio.socket.SocketType | socket.socket) -> None:
    """Have a socket closed in every child that is forked while it is open."""
    _sockets[sock.fileno()] = ref(sock)


def _leave() -> None:
    for each in list(_homes):
        each.leave()
    for descriptor, reference in list(_sockets.items()):
        sock = reference()
        if sock is not None and sock.fileno() == descriptor >= 0:
            with contextlib.suppress(OSError):
                # Not `close()`, which tells Trio's event loop, and that is the parent's.
                os.close(sock.detach())
    _sockets.clear()


if hasattr(os, "register_at_fork"):  # pragma: no branch -- not on Windows, which does not fork
    os.register_at_fork(after_in_child=_leave)
