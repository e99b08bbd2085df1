"""What one server does, for its operator: counted always, and read by `ServerMonitor`.

Theory. A server is a call of `serve_tls` or its kin, which gives its caller no object to ask. So the caller makes a
monitor first and lends it to the server. Numbers are those that nodes have, counted by the same `Counters`; where a
node has connections a server has streams.
"""

from __future__ import annotations

import secrets
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, final

from trionode._node.events import Side
from trionode._node.statistics import Counters, HandshakeCount, HandshakeTimes, ManagerUse, use_of
from trionode._util.fields import Parsed, check_argument, show

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from trionode._managers.by_name import ManagersByName
    from trionode._managers.manager import CertManager

    from .live import LiveStream

__all__ = ["ServerMonitor", "ServerStatistics"]

_LONGEST_NAME: Final = 255


def _check_name(name: str) -> None:
    if not 1 <= len(name) <= _LONGEST_NAME or "@" in name or not name.isprintable():
        msg = (
            f"a server's name has 1 to {_LONGEST_NAME} printable characters and no @, unlike a node's: not {show(name)}"
        )
        raise ValueError(msg)


_NAME: Final = Parsed(_check_name, "a server's name", keep=True)


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class ServerStatistics:
    """A snapshot of a server; "so far" is since its monitor was made.

    Attributes:
        open: whether it accepts connections.
        listens_on: where, for people: `127.0.0.1 port 8443`, or the path of a UNIX socket.
        streams: open now, their handshakes done.
        managers: one entry for each that it uses. Its label is the server names that it serves, as `cert_manager` has
            them; `*` where one serves all.
        pending_handshakes: under way, those of clients that have not said a word included; `Side.ACCEPT` alone.
        handshakes: those that are over.
        handshake_times: how long they took.
    """

    open: bool
    listens_on: tuple[str, ...]
    streams: int
    managers: tuple[ManagerUse, ...]
    pending_handshakes: Mapping[Side, int]
    handshakes: tuple[HandshakeCount, ...]
    handshake_times: tuple[HandshakeTimes, ...]


@final
class ServerMonitor:
    """Knows what one server does: for a program that asks, for `serve_status`, and for `trionode.metrics`.

    Lend it to the function that serves (`serve_tls(…, monitor=monitor)`); one server at a time. Its numbers go on where
    another one follows, and stay when the last has ended. Use it in one Trio run.

    Attributes:
        incarnation: a random 64-bit number, drawn when it is made; tells it from an earlier one of its name.
    """

    def __init__(self, name: str) -> None:
        """Make one.

        Args:
            name: of the server, for its operator, as `web`; without an `@`, as the names of nodes have it.

        Raises:
            TypeError, ValueError: it is no such name.
        """
        check_argument("name", name, _NAME)
        self._name = name
        self.incarnation: int = secrets.randbits(64)
        self._record = ServerRecord()

    @property
    def name(self) -> str:
        """The server's name."""
        return self._name

    def __repr__(self) -> str:
        return f"<ServerMonitor {self._name!r}>"

    def statistics(self) -> ServerStatistics:
        """A snapshot, taken in one step."""
        return self._record.statistics()


@final
class ServerRecord:
    """What a server writes down of itself.

    Attributes:
        counters: of its handshakes.
        live: its streams, and the manager that each was served by.
        listens_on: where it accepts, for people.
    """

    def __init__(self) -> None:
        self.counters = Counters()
        self.live: dict[LiveStream, CertManager] = {}
        self.listens_on: list[str] = []
        self._in_use = False
        self._managers: ManagersByName | None = None

    @contextmanager
    def of(self, managers: ManagersByName) -> Iterator[None]:
        """For the length of the block this is the record of one server.

        Raises:
            RuntimeError: it is that of another.
        """
        if self._in_use:
            msg = "this monitor is another server's, which has not ended: make one for each"
            raise RuntimeError(msg)
        self._in_use = True
        self._managers = managers
        try:
            yield
        finally:
            self._in_use = False

    def statistics(self) -> ServerStatistics:
        """A snapshot."""
        names: dict[CertManager, list[str]] = {}
        for name, manager in () if self._managers is None else self._managers.items():
            names.setdefault(manager, []).append(name)
        return ServerStatistics(
            open=bool(self.listens_on),
            listens_on=tuple(self.listens_on),
            streams=len(self.live),
            managers=tuple(self._use_of(manager, ", ".join(named)) for manager, named in names.items()),
            pending_handshakes={Side.ACCEPT: self.counters.pending[Side.ACCEPT]},
            handshakes=self.counters.handshakes(),
            handshake_times=self.counters.handshake_times(),
        )

    def _use_of(self, manager: CertManager, label: str) -> ManagerUse:
        return use_of(manager, label, (each.generation for each, its in self.live.items() if its is manager))


def record_of(monitor: ServerMonitor | None) -> ServerRecord:
    """What a server is to write in: a monitor's record, or one that no program reads."""
    return ServerRecord() if monitor is None else monitor._record  # noqa: SLF001 -- the one other place that may
