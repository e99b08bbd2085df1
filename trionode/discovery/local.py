"""The local registry: the nodes of one user on one machine find each other with nothing else running.

Theory. One small file for each node in a private directory; files are read and written in worker threads. There is no
shared fallback directory: a place where others can write could point our nodes anywhere (TLS would still hold, but why
offer it). A file names its process and when that started, so that what a crash left behind is known to be stale,
process ids being reused. Only files of this registry's own names are ever removed.

Changes are found by looking: at the directory's time of change several times a second, at every process now and then. A
directory that changed just now is read once more, since its time may not tell two changes apart.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import random
import re
import secrets
import stat
import time
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final, NoReturn, final

import msgspec
import trio

from trionode._credentials.pem import as_path
from trionode._identity.names import NodeName
from trionode._node.resolvers import MAX_ENDPOINTS, MAX_NAMES, Endpoint, ResolverError
from trionode._util.decoding import UndecodableError, decode_untrusted
from trionode._util.exhausted import exhausted
from trionode._util.private_directory import NotPrivateError, private_directory, remove_if, runtime_directory
from trionode._util.text import printable
from trionode._util.threads import Purpose, in_thread

from .feed import Entry, Feed

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
    from contextlib import AbstractAsyncContextManager

    from trionode._util.text import Address

    from .feed import Publish

__all__ = ["LocalRegistry"]

_MAX_ENTRY_BYTES: Final = 16 * 1024

#: Entries, and what writing or removing one leaves behind when it is cut off. Nothing else is ever removed.
_ENTRY: Final = re.compile(r"[0-9a-f]{64}\.json|\.[0-9a-f]{64}\.json\.[0-9a-f]{16}")
#: What may be in the directory: entries, and the status sockets of nodes, which have the same default directory.
_OURS: Final = re.compile(rf"{_ENTRY.pattern}|\.?[^/]+\.sock(\.[0-9a-f]{{16}})?")

#: How many entries a registration looks at, drawn at random, to remove what crashed processes left behind. The cost of
#: a registration does not grow with their number.
_LOOKS: Final = 64

#: How often the directory is looked at for changes, and its processes for being alive. Seconds.
_POLL: Final = 0.2
_PULSE: Final = 2.0
#: A time of change that is younger may stand for a further change, too. Seconds.
_COARSE: Final = 0.1

#: How long withdrawing a node may take. Seconds.
_WITHDRAW_TIME: Final = 1.0


class _Entry(msgspec.Struct, frozen=True):
    name: str
    process: int
    started: float
    endpoints: list[tuple[str, int]]


_decoder: Final = msgspec.json.Decoder(_Entry)


@final
@dataclass(frozen=True, slots=True)
class _Survey:
    """Who is registered, when the directory had last changed, and until when that can be relied on."""

    entries: Mapping[NodeName, Entry]
    changed: float
    again: float


@final
class LocalRegistry:
    """The nodes of this user on this machine: resolves, names, watches, registers.

    Attributes:
        directory: where the files are.
    """

    def __init__(self, directory: str | os.PathLike[str] | None = None, *, allow_other_files: bool = False) -> None:
        """Use a directory, which is made at the first use.

        Args:
            directory: must be, or become, this user's own with mode 0700 and no link. By default `trionode` in
                `$XDG_RUNTIME_DIR`, or in `~/.local/state` where that is not set.
            allow_other_files: whether the directory may hold files of others; they are left alone. The default
                directory may: status sockets are there, too.
        """
        self.directory: Path = as_path(directory) if directory is not None else _default_directory()
        self._allow_other_files = allow_other_files or directory is None
        self._feed = Feed(self._follow)

    def __repr__(self) -> str:
        return f"<LocalRegistry {self.directory}>"

    async def resolve(self, name: NodeName, /) -> Sequence[Endpoint]:
        """The endpoints that a live node of this user registered under the name.

        Args:
            name: of the node that is dialled.

        Raises:
            ResolverError: the directory is not private.
        """
        return await in_thread(Purpose.FILES, self._look_up, name, abandon_on_cancel=True)

    def watch(self, name: NodeName, /) -> AbstractAsyncContextManager[trio.abc.ReceiveChannel[Sequence[Endpoint]]]:
        """The endpoints of a name, now and when they change; see `WatchingResolver`.

        Args:
            name: of the node.
        """
        return self._feed.watch(name)

    def names(
        self, pattern: str = "*", /
    ) -> AbstractAsyncContextManager[trio.abc.ReceiveChannel[Collection[NodeName]]]:
        """The names of the nodes that are registered, now and when they change; see `NamingResolver`.

        Args:
            pattern: of no influence: all are named.
        """
        del pattern
        return self._feed.names()

    async def register(
        self,
        name: NodeName,
        addresses: Sequence[Address],
        /,
        *,
        task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """Make a node known until cancelled. One small file is written before `started()`, and removed at the end.

        Args:
            name: of the node.
            addresses: where it listens: hosts and ports.
            task_status: started once the node can be found.

        Raises:
            ResolverError: the directory is not private, holds other files, or cannot be written.
        """
        endpoints = [_reachable(address) for address in addresses[:MAX_ENDPOINTS]]
        entry = await in_thread(Purpose.FILES, self._publish, str(name), endpoints)
        try:
            task_status.started()
            await trio.sleep_forever()
        finally:
            with trio.CancelScope(shield=True, deadline=trio.current_time() + _WITHDRAW_TIME):
                await in_thread(Purpose.FILES, self._withdraw, entry, abandon_on_cancel=True)

    async def _follow(self, publish: Publish) -> NoReturn:
        last: _Survey | None = None
        while True:
            survey = await in_thread(Purpose.FILES, self._survey, last, abandon_on_cancel=True)
            if survey is not last:
                last = survey
                publish(survey.entries)
            await trio.sleep(_POLL)

    def _survey(self, last: _Survey | None) -> _Survey:
        """Who is registered; the last survey itself if nothing can have changed."""
        with self._opened() as directory:
            now, changed = time.time(), os.fstat(directory).st_mtime
            if last is not None and changed == last.changed and now < last.again:
                return last
            entries: dict[NodeName, Entry] = {}
            for file in os.listdir(directory)[: 2 * MAX_NAMES]:  # noqa: PTH208 -- likewise
                if _ENTRY.fullmatch(file) and (found := _stamped(directory, file)) is not None:
                    entry, stamp = found
                    if _alive(entry) and file == _file_name(entry.name):
                        with contextlib.suppress(ValueError):
                            entries[NodeName.parse(entry.name)] = Entry(_endpoints(entry), stamp)
        settled = now > changed + _COARSE
        return _Survey(entries, changed, now + (_PULSE if settled else 0))

    def _publish(self, name: str, endpoints: list[Address]) -> _Entry:
        with self._opened() as directory:
            entry = _Entry(name, os.getpid(), _process_started(os.getpid()), endpoints)
            others = os.listdir(directory)  # noqa: PTH208 -- by descriptor, so that no link can be swapped in
            foreign = [] if self._allow_other_files else [each for each in others if not _OURS.fullmatch(each)]
            if foreign:
                msg = (
                    f"the local registry's directory {self.directory} holds other files ("
                    f"{printable(min(foreign), 80)!r}{', …' if len(foreign) > 1 else ''}); give it a directory of its "
                    "own, or allow_other_files=True"
                )
                raise ResolverError(msg)
            try:
                _write(directory, _file_name(entry.name), msgspec.json.encode(entry))
            except OSError as exc:
                remedy = exhausted(exc) or "See to space and permissions"
                msg = f"{entry.name} cannot be registered in {self.directory}: {exc.strerror}. {remedy}"
                raise ResolverError(msg) from exc
            ours = [each for each in others if _ENTRY.fullmatch(each)]
            for other in random.sample(ours, min(len(ours), _LOOKS)):
                _expire(directory, other)
        return entry

    def _withdraw(self, entry: _Entry) -> None:
        # Only our own: a successor may have taken the name over meanwhile.
        with contextlib.suppress(ResolverError), self._opened() as directory:
            _remove(directory, _file_name(entry.name), lambda found: found == entry)

    def _look_up(self, name: NodeName) -> Sequence[Endpoint]:
        with self._opened() as directory:
            entry = _read(directory, _file_name(str(name)))
            if entry is None or entry.name != str(name):
                return []
            if not _alive(entry):
                _expire(directory, _file_name(str(name)))
                return []
        try:
            return list(_endpoints(entry))
        except ValueError as exc:
            msg = f"the local registry's entry for {name} is damaged: {exc}"
            raise ResolverError(msg) from None

    @contextmanager
    def _opened(self) -> Iterator[int]:
        """The directory as a descriptor, made if need be, and known to be private.

        What cannot be looked at for want of descriptors or memory is an outage, and says nothing of what is registered.
        """
        try:
            with private_directory(self.directory) as descriptor:
                yield descriptor
        except OSError as exc:
            remedy = exhausted(exc) or "See to its file system"
            msg = f"the local registry's directory {self.directory} cannot be read: {exc.strerror or exc}. {remedy}"
            raise ResolverError(msg, temporary=True) from exc
        except NotPrivateError as exc:
            msg = (
                f"the local registry's directory {self.directory} {exc}; or set XDG_RUNTIME_DIR, or give LocalRegistry "
                "another directory"
            )
            raise ResolverError(msg) from exc


def _endpoints(entry: _Entry) -> tuple[Endpoint, ...]:
    return tuple(Endpoint(host, port) for host, port in entry.endpoints[:MAX_ENDPOINTS])


def _default_directory() -> Path:
    runtime = runtime_directory()
    if runtime is not None:
        return runtime
    try:
        return Path.home() / ".local" / "state" / "trionode"
    except RuntimeError as exc:
        msg = "no directory for the local registry: neither XDG_RUNTIME_DIR nor HOME is set; give LocalRegistry one"
        raise ResolverError(msg) from exc


def _file_name(name: str) -> str:
    # Names are case-sensitive, file systems need not be; and a name can be longer than a file name may.
    return hashlib.sha256(name.encode()).hexdigest() + ".json"


def _reachable(address: Address) -> Address:
    """An address as a peer on this machine dials it: an acceptor on all interfaces is on loopback too."""
    host, port = address
    return {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host), port  # noqa: S104 -- compared, not bound to


def _write(directory: int, file: str, data: bytes) -> None:
    temporary = f".{file}.{secrets.token_hex(8)}"
    descriptor = os.open(
        temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600, dir_fd=directory
    )
    try:
        with os.fdopen(descriptor, "wb") as stream:
            os.fchmod(descriptor, 0o600)  # whatever the umask has left of it
            stream.write(data)
        os.rename(temporary, file, src_dir_fd=directory, dst_dir_fd=directory)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary, dir_fd=directory)
        raise


def _read(directory: int, file: str) -> _Entry | None:
    """An entry, or None if there is none or it is no entry of ours."""
    found = _stamped(directory, file)
    return None if found is None else found[0]


def _stamped(directory: int, file: str) -> tuple[_Entry, object] | None:
    """As `_read`, with what tells this file from one that takes its place.

    Raises:
        OSError: there are no descriptors left.
    """
    try:
        descriptor = os.open(file, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK, dir_fd=directory)
    except OSError as exc:
        if exhausted(exc) is not None:
            raise
        return None
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode) or status.st_uid != os.geteuid():
            return None
        entry = decode_untrusted(_decoder, os.read(descriptor, _MAX_ENTRY_BYTES))
    except (OSError, UndecodableError):
        return None
    finally:
        os.close(descriptor)
    return entry, (status.st_ino, status.st_mtime_ns)


def _expire(directory: int, file: str) -> None:
    """Remove what a dead process left behind."""
    if not file.endswith(".json"):
        _expire_temporary(directory, file)
        return
    entry = _read(directory, file)
    if entry is not None and not _alive(entry):
        _remove(directory, file, lambda found: not _alive(found))


def _remove(directory: int, file: str, doomed: Callable[[_Entry], bool]) -> None:
    def is_doomed(aside: str) -> bool:
        entry = _read(directory, aside)
        return entry is None or doomed(entry)

    remove_if(directory, file, is_doomed)


def _expire_temporary(directory: int, file: str) -> None:
    with contextlib.suppress(OSError):
        if time.time() - os.stat(file, dir_fd=directory, follow_symlinks=False).st_mtime > 60:
            os.unlink(file, dir_fd=directory)


def _alive(entry: _Entry) -> bool:
    started = _process_started(entry.process)
    return started >= 0 and started == entry.started


def _process_started(process: int) -> float:
    """When a process started, in clock ticks since boot, by which two of the same number are told apart; -1 if gone.

    Where there is no /proc, 0 for every live process: then only the number counts.

    Raises:
        OSError: there are no descriptors left.
    """
    try:
        # Field 22 of proc(5) stat; the second, the command in parentheses, may contain anything, in any encoding.
        fields = Path(f"/proc/{process}/stat").read_bytes().rpartition(b")")[2].split()
    except FileNotFoundError:
        if Path("/proc/self").exists():
            return -1
    except OSError as exc:
        if exhausted(exc) is not None:
            raise
        return -1
    else:
        # A zombie is dead; its parent has not asked for its exit status, which in a container may be never.
        return -1 if fields[0] in (b"Z", b"X") else float(fields[19])
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return -1
    except PermissionError:
        pass
    return 0
