"""Listening sockets that are already open: given by a service manager, by a parent process, or by the program.

Theory. A socket that listens is one queue of connections in the kernel, however many processes hold it. A service that
is handed its sockets can be restarted without a gap: what arrives meanwhile waits in the queue, and closing one copy
resets nothing as long as another is open. A service manager says what it hands over by environment variables
(`sd_listen_fds(3)`: `LISTEN_PID`, `LISTEN_FDS`, `LISTEN_FDNAMES`); a parent of one's own passes descriptors and says
their numbers as it likes.

A descriptor is looked at before it is used: that it is a socket, of streams, which listens. It is made close-on-exec,
and the variables are removed, so that no child of ours takes them for its own.
"""

from __future__ import annotations

import os
import socket
import stat
from typing import TYPE_CHECKING, Final, TypeAlias

import trio

from trionode._errors import ListenError
from trionode._util.fields import check_argument, integer
from trionode._util.log import Log

from .interfaces import Listener
from .tcp import TCPListener

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

__all__ = ["adopt_listener", "inherited_listeners"]

_log = Log("trionode.acceptor")

#: What an acceptor listens on, where it does not open it itself.
GivenListener: TypeAlias = trio.SocketListener | Listener

#: The first descriptor of `sd_listen_fds(3)`.
_FIRST: Final = 3
#: Of one process: far more than any has.
_MOST: Final = 1024
#: What `sd_listen_fds_with_names(3)` calls a descriptor without a name.
_NAMELESS: Final = "unknown"


def inherited_listeners() -> Mapping[str, Sequence[trio.SocketListener]]:
    """The listening sockets that a service manager started this process with (`sd_listen_fds(3)`), by name.

    systemd names them by `FileDescriptorName=` of the `.socket` unit, by default that unit's name; without names they
    are all called `unknown`. They become close-on-exec, and the variables `LISTEN_PID`, `LISTEN_FDS` and
    `LISTEN_FDNAMES` are removed: a second call returns an empty mapping. So does one where the variables are absent, or
    meant for another process, which is logged.

    Returns:
        Open listeners, for `AcceptorOptions.listeners`, `serve_tls_listeners` or `serve_asgi`, which then own them.

    Raises:
        ListenError: a variable makes no sense, or a descriptor is not that of a listening socket. The text names it.
    """
    process, count, names = (os.environ.pop(name, None) for name in ("LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"))
    if not process or not count:
        return {}
    number = _number("LISTEN_FDS", count)
    if _number("LISTEN_PID", process) != os.getpid():
        _log.warning(
            "sockets were handed over to process %s, which is not this one (%d), and are not used: does a script start "
            "this program without exec?",
            process,
            os.getpid(),
        )
        return {}
    descriptors = range(_FIRST, _FIRST + number)
    called = names.split(":") if names else [_NAMELESS] * number
    if len(called) != number:
        msg = f"LISTEN_FDNAMES has {len(called)} names for the {number} descriptors of LISTEN_FDS: {names!r}"
        raise ListenError(msg, address=("descriptor", _FIRST))
    found: dict[str, list[trio.SocketListener]] = {}
    for name, descriptor in zip(called, descriptors, strict=True):
        found.setdefault(name, []).append(_adopted(descriptor, f"descriptor {descriptor} ({name})"))
    return found


def adopt_listener(descriptor: int) -> trio.SocketListener:
    """A listener on a listening socket that a parent process handed over (`subprocess`'s `pass_fds`).

    The descriptor becomes close-on-exec, and non-blocking, also for other processes that hold it.

    Args:
        descriptor: its number. Owned from here on, where nothing is raised.

    Returns:
        For `AcceptorOptions.listeners`, `serve_tls_listeners` or `serve_asgi`, which then own it.

    Raises:
        ListenError: it is not that of a listening socket of streams.
        TypeError, ValueError: it is no number that a descriptor can have.
    """
    check_argument("descriptor", descriptor, integer(0, 2**31 - 1))
    return _adopted(descriptor, f"descriptor {descriptor}")


def opened(given: GivenListener) -> Listener:
    """What was given, as acceptors use it.

    Raises:
        ListenError: it is closed, or no TCP socket.
    """
    if not isinstance(given, trio.SocketListener):
        return given
    sock = given.socket
    if sock.fileno() < 0:
        msg = (
            "cannot listen on a socket that was closed: a node owns the listeners that it is given, and closes them; "
            "give each node its own"
        )
        raise ListenError(msg, address=("descriptor", -1))
    if sock.family not in (socket.AF_INET, socket.AF_INET6):
        family = getattr(sock.family, "name", sock.family)
        msg = f"a node listens on TCP sockets, and was given one of the family {family}; serve_tls_listeners takes it"
        raise ListenError(msg, address=("descriptor", sock.fileno()))
    return TCPListener(given)


def close_given(given: GivenListener) -> None:
    """Close what was given. Idempotent."""
    if isinstance(given, trio.SocketListener):
        given.socket.close()
    else:
        given.close()


def _number(variable: str, text: str) -> int:
    if text.isascii() and text.isdigit() and (variable != "LISTEN_FDS" or 1 <= int(text) <= _MOST):
        return int(text)
    msg = f"{variable} makes no sense: {text!r}. A service manager sets it; remove it where none does"
    raise ListenError(msg, address=("descriptor", _FIRST))


def _adopted(descriptor: int, shown: str) -> trio.SocketListener:
    what = _what_is_wrong(descriptor)
    if what is not None:
        msg = f"{shown} is not a socket that listens: {what}"
        raise ListenError(msg, address=("descriptor", descriptor))
    os.set_inheritable(descriptor, False)  # noqa: FBT003 -- positional only
    return trio.SocketListener(trio.socket.from_stdlib_socket(socket.socket(fileno=descriptor)))


def _what_is_wrong(descriptor: int) -> str | None:
    try:
        mode = os.fstat(descriptor).st_mode
    except OSError:
        return "it is not open"
    if not stat.S_ISSOCK(mode):
        kinds = {stat.S_IFREG: "a file", stat.S_IFIFO: "a pipe or FIFO", stat.S_IFCHR: "a device"}
        return f"it is {kinds.get(stat.S_IFMT(mode), 'no socket')} (in a systemd unit: ListenStream=)"
    with socket.socket(fileno=os.dup(descriptor)) as sock:
        if sock.type != socket.SOCK_STREAM:
            kind = getattr(sock.type, "name", sock.type)
            return f"it is a socket of another kind ({kind}; in a systemd unit: ListenStream=)"
        if not sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
            return "it is one connection, or does not listen yet (in a systemd unit: Accept=no)"
    return None
