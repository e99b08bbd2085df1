"""The status of a running node or server, for its operator on the same machine: over a UNIX socket, if it is asked for.

Theory. A client that connects is sent one JSON document, a snapshot taken in one step, and end of file. Nothing is read
from it, so no client can change or hold up the process. Only the user that runs that gets an answer: the socket lies in
a directory that is private to that user, and each end asks the kernel for the user at the other end (SO_PEERCRED, where
there is one).

One socket for each whose status is served, named after it and the process, so that any number run side by side. One
that a process left behind when it was killed refuses connections, and is removed by the next that looks; but so does
one that was made just now and does not listen yet, so a young one is left alone.
"""

from __future__ import annotations

import contextlib
import hashlib
import math
import os
import socket
import stat
import struct
import sys
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final, NoReturn

import msgspec
import trio

from trionode._credentials.pem import as_path
from trionode._errors import ListenError, TrionodeError
from trionode._node.node import Node
from trionode._util.decoding import UndecodableError, decode_untrusted
from trionode._util.home import close_in_children
from trionode._util.private_directory import NotPrivateError, private_directory, remove_if, runtime_directory

from .document import Status, node_status, server_status

if TYPE_CHECKING:
    from collections.abc import Iterator

    from trionode._streams.monitor import ServerMonitor

__all__ = ["serve_status"]

#: A client that has not read its snapshot by then is disconnected. Seconds.
PATIENCE: Final = 5.0
#: A larger document is no status. Bytes.
MAX_BYTES: Final = 16 * 1024 * 1024
_SUFFIX: Final = ".sock"
#: Of a socket's path (unix(7); some systems have room for 104), its final NUL included. Bytes.
_MAX_PATH: Final = 104
_DECODER: Final = msgspec.json.Decoder(Status)
#: Of `struct ucred` (unix(7)): pid, uid, gid.
_UCRED: Final = struct.Struct("3i")


# The serving end -----------------------------------------------------------------------------------------------------


async def serve_status(
    node: Node | ServerMonitor,
    path: str | os.PathLike[str] | None = None,
    *,
    task_status: trio.TaskStatus[Path] = trio.TASK_STATUS_IGNORED,
) -> NoReturn:
    """Serve the status of a node to `trionode status`, until cancelled: `await nursery.start(serve_status, node)`.

    Only the user that runs this process gets an answer. Use it inside the node's block.

    Args:
        node: the node, of this Trio run; or the monitor of a server (`serve_tls` and its kin).
        path: of the UNIX socket, in a directory that is this user's alone. By default one of its own below
            `$XDG_RUNTIME_DIR/trionode`, or `/tmp/trionode-UID` where that is not set, where the command looks.
        task_status: `started()` gets the path.

    Raises:
        ListenError: the socket cannot be had, or its directory is not private.
    """
    if not hasattr(socket, "AF_UNIX"):
        msg = f"the status of a node is served over a UNIX socket, which {sys.platform} does not have; Linux does"
        raise ListenError(msg, address=(str(path or node.name), 0))
    where = _default_path(node) if path is None else as_path(path)
    with _bound(where) as listening, trio.socket.from_stdlib_socket(listening) as served:
        close_in_children(served)
        async with trio.open_nursery() as nursery:
            await nursery.start(partial(trio.serve_listeners, partial(_tell, node), [trio.SocketListener(served)]))
            task_status.started(where)
    raise AssertionError("serve_listeners ends by cancellation only")  # pragma: no cover


async def _tell(node: Node | ServerMonitor, stream: trio.SocketStream) -> None:
    if not _same_user(stream.socket):
        return
    status = node_status(node) if isinstance(node, Node) else server_status(node)
    with trio.move_on_after(PATIENCE), contextlib.suppress(trio.BrokenResourceError):
        await stream.send_all(msgspec.json.encode(status))


# The socket ---------------------------------------------------------------------------------------------------------


def status_directory() -> Path:
    """Where the sockets are: a directory of their own, for the local registry cleans up in its parent."""
    parent = runtime_directory() or Path("/tmp") / f"trionode-{os.geteuid() if hasattr(os, 'geteuid') else 0}"  # noqa: S108 -- checked
    return parent / "status"


def _default_path(node: Node | ServerMonitor) -> Path:
    directory = status_directory()
    # In /tmp any user may have made the parent, so both are checked; below one that is ours no other user can.
    with _private(directory.parent):
        digest = hashlib.sha256(str(node.name).encode()).hexdigest()[:16]
        return directory / f"{digest}-{os.getpid()}{_SUFFIX}"


@contextlib.contextmanager
def _private(directory: Path) -> Iterator[int]:
    try:
        with private_directory(directory) as descriptor:
            yield descriptor
    except NotPrivateError as exc:
        msg = f"the directory {directory}, for the status of a node, {exc}; or name another path, or XDG_RUNTIME_DIR"
        raise ListenError(msg, address=(str(directory), 0)) from exc


@contextlib.contextmanager
def _bound(path: Path) -> Iterator[socket.socket]:
    """A socket that listens at a path, for its owner alone; removed at the end."""
    with _private(path.parent) as directory, socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as bound:
        try:
            _remove_abandoned(directory, path)
            with _reachable(path) as address:
                bound.bind(address)
            bound.listen(8)
            path.chmod(0o600)
            made = path.lstat()
        except OSError as exc:
            why = exc.strerror or exc
            msg = f"cannot serve the status of a node at {path}: {why}. Is another one there, or the path too long?"
            raise ListenError(msg, address=(str(path), 0)) from exc

        def is_ours(aside: str) -> bool:
            return os.path.samestat(made, path.with_name(aside).lstat())

        try:
            yield bound
        finally:
            remove_if(directory, path.name, is_ours)


def _remove_abandoned(directory: int, path: Path, *, newest: float = math.inf) -> bool:
    """Remove a socket of ours that no process serves, made at this time at the latest; whether it was one."""
    if not _is_abandoned(path, newest=newest):
        return False
    remove_if(directory, path.name, lambda aside: _is_abandoned(path.with_name(aside), newest=newest))
    return True


@contextlib.contextmanager
def _reachable(path: Path) -> Iterator[str]:
    """A path as a socket's address: by its directory's descriptor, where it is too long for one.

    Raises:
        OSError: it is too long all the same.
    """
    if len(os.fsencode(path)) < _MAX_PATH or not Path("/proc/self/fd").is_dir():
        yield os.fspath(path)
        return
    descriptor = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{descriptor}/{path.name}"
    finally:
        os.close(descriptor)


def _is_abandoned(path: Path, *, newest: float = math.inf) -> bool:
    """Whether there is a socket of ours that no process serves, made at this time at the latest."""
    try:
        status = path.lstat()
        if not stat.S_ISSOCK(status.st_mode) or status.st_mtime > newest:
            return False
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
            probe.settimeout(PATIENCE)
            with _reachable(path) as address:
                probe.connect(address)
    except ConnectionRefusedError:
        return True
    except OSError:
        return False
    return False


def _same_user(end: trio.socket.SocketType | socket.socket) -> bool:
    """Whether the process at the other end runs as the user that we run as; True where the kernel cannot say."""
    option = getattr(socket, "SO_PEERCRED", None)
    if option is None:
        return True  # the private directory keeps other users out
    try:
        _, user, _ = _UCRED.unpack(end.getsockopt(socket.SOL_SOCKET, option, _UCRED.size))
    except OSError:
        return False
    return bool(user == os.geteuid())


# The command's end --------------------------------------------------------------------------------------------------


class StatusError(TrionodeError):
    """A node's status cannot be had; the text says what to do."""


def status_sockets() -> list[Path]:
    """The sockets of this user's nodes and servers; those that were left behind are removed.

    Raises:
        StatusError: the directory is there, and not private.
    """
    directory = status_directory()
    if not directory.is_dir():
        return []
    try:
        with private_directory(directory.parent), private_directory(directory) as descriptor:
            newest = time.time() - PATIENCE
            paths = sorted(directory.glob(f"*{_SUFFIX}"))
            return [path for path in paths if not _remove_abandoned(descriptor, path, newest=newest)]
    except NotPrivateError as exc:
        msg = f"the directory {directory}, where nodes serve their status, {exc}"
        raise StatusError(msg) from exc


def read_status(path: Path) -> Status:
    """A snapshot of what is behind a socket. Blocks, for `PATIENCE` seconds at most between two pieces of it.

    Raises:
        StatusError: no node of this user serves there, or what came is no status.
    """
    if not hasattr(socket, "AF_UNIX"):
        msg = f"nodes serve their status over UNIX sockets, which {sys.platform} does not have; Linux does"
        raise StatusError(msg)
    pieces: list[bytes] = []
    size = 0
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as end:
            end.settimeout(PATIENCE)
            with _reachable(path) as address:
                end.connect(address)
            if not _same_user(end):
                msg = f"another user serves {path}; do not trust it, and check which users may write there"
                raise StatusError(msg)
            while piece := end.recv(64 * 1024):
                pieces.append(piece)
                size += len(piece)
                if size > MAX_BYTES:
                    break
        status: Status = decode_untrusted(_DECODER, b"".join(pieces))
    except (TimeoutError, BlockingIOError) as exc:  # the latter where many wait already
        msg = f"what serves {path} does not answer within {PATIENCE:g} s: its process hangs, is stopped, or is too busy"
        raise StatusError(msg) from exc
    except OSError as exc:
        msg = f"no node answers at {path}: {exc.strerror or exc}. Does it run, and serve its status (serve_status)?"
        raise StatusError(msg) from exc
    except UndecodableError as exc:
        msg = f"what {path} says is no status of a node of this release: {exc}"
        raise StatusError(msg) from None
    return status
