"""One manager for all server names, or several by name: what servers and acceptors are given.

Theory. A client says in its ClientHello which name it wants to reach (SNI, RFC 6066 section 3). Each name has its
manager: an exact name comes before a wildcard, that before `*`. A wildcard stands for one label, the left-most, as in
certificates (RFC 9525 section 6.3). Names are compared in canonical form; what can be no host name fits none.

Each manager rotates by itself; here is only which of them a handshake takes its contexts from.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Final, TypeAlias, final

from trionode._errors import CertificateError
from trionode._identity.names import canonical_host, host_address
from trionode._tls.contexts import ContextsByName
from trionode._util.fields import check_argument, show

from .manager import CertManager, publisher_of

if TYPE_CHECKING:
    from collections.abc import ItemsView, Iterator

    import trio

    from trionode._tls.contexts import ContextsSource, TLSContexts

#: What servers are given.
ServerManagers: TypeAlias = CertManager | Mapping[str, CertManager]

_DEFAULT: Final = "*"


@final
class ManagersByName:
    """Which manager serves which server name."""

    def __init__(self, managers: ServerManagers) -> None:
        """Read what was given.

        Args:
            managers: one for all names, or by name: a host, `*.host` for one label more, or `*` for all others.

        Raises:
            TypeError: it is neither a manager nor a mapping from strings to managers.
            ValueError: a name can be none, is there twice, or there is none at all.
        """
        check_argument("cert_manager", managers, ServerManagers)
        self._single = managers if isinstance(managers, CertManager) else None
        given = managers if isinstance(managers, Mapping) else {_DEFAULT: managers}
        if not given:
            msg = "cert_manager has no server name: give at least one, or one manager for all"
            raise ValueError(msg)
        self._by_name: dict[str, CertManager] = {}
        self._given: dict[str, str] = {}
        for name, manager in given.items():
            canonical = _canonical(name)
            if canonical in self._by_name:
                msg = f"cert_manager has {canonical!r} twice, as {self._given[canonical]!r} and as {name!r}"
                raise ValueError(msg)
            self._by_name[canonical] = manager
            self._given[canonical] = name

    @property
    def several(self) -> bool:
        """Whether it matters by which name a client has come."""
        return self._single is None

    @property
    def source(self) -> ContextsSource:
        """Where handshakes take their contexts."""
        if self._single is not None:
            return self._single.contexts
        return ContextsByName(self._channel, ", ".join(self._given.values()))

    def _channel(self, server_name: str | None) -> trio.abc.ReceiveChannel[TLSContexts] | None:
        manager = self.manager(server_name)
        return None if manager is None else manager.contexts

    def manager(self, server_name: str | None) -> CertManager | None:
        """Which serves a server name, in any spelling, or a client that asks for none; None if none does."""
        if self._single is not None:
            return self._single
        default = self._by_name.get(_DEFAULT)
        if server_name is None:
            return default
        try:
            host = canonical_host(server_name)
        except ValueError:
            return default
        return self._by_name.get(host) or self._by_name.get(f"*.{host.partition('.')[2]}") or default

    def items(self) -> ItemsView[str, CertManager]:
        """Every name, canonical, and its manager."""
        return self._by_name.items()

    @contextmanager
    def about(self, name: str) -> Iterator[None]:
        """What is wrong with the manager under a name, in a `with` block, is said to be about it.

        Raises:
            CertificateError: as the block, with the name in its text where there are several.
        """
        try:
            yield
        except CertificateError as exc:
            if self._single is not None:
                raise
            msg = f"cert_manager[{self._given[name]!r}]: {exc}"
            raise CertificateError(msg, reason=exc.reason) from exc

    @contextmanager
    def use(self) -> Iterator[None]:
        """Declare a use of every manager, as a server, for the length of a `with` block.

        Raises:
            CertificateError: one is unusable for a server; the text says under which name, and none is in use.
            RuntimeError: one is in use by another Trio run.
        """
        with ExitStack() as uses:
            for name, manager in self._by_name.items():
                with self.about(name):
                    uses.enter_context(publisher_of(manager).use(as_server=True, name=_subject(name)))
            yield


def _canonical(name: str) -> str:
    if name == _DEFAULT:
        return name
    try:
        wildcard, host = ("*.", name[2:]) if name.startswith("*.") else ("", name)
        host = canonical_host(host)
    except ValueError as exc:
        msg = f"cert_manager has a key that is no server name, {show(name)}: {exc}; give a host, *.host or *"
        raise ValueError(msg) from None
    if host_address(host) is not None:
        msg = f"cert_manager has an address for a server name, {show(name)}: no client asks for one; give a name, or *"
        raise ValueError(msg)
    return wildcard + host


def _subject(name: str) -> str | None:
    """What a certificate under a name has to cover, as far as that can be said."""
    return None if "*" in name else name
