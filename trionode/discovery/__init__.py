"""Where nodes find each other: resolvers and registrars for `NetworkOptions(resolver=...)`.

`EtcdRegistry` needs the extra `etcd`, `DNSResolver` the extra `dns`; each is imported when it is asked for (PEP 562).
"""

from importlib import import_module
from typing import TYPE_CHECKING, Final

from trionode._util.public_names import show_as as _show_as

from .local import LocalRegistry as LocalRegistry
from .static import StaticResolver as StaticResolver

if TYPE_CHECKING:
    from .dns import DNSResolver as DNSResolver
    from .etcd import EtcdRegistry as EtcdRegistry

__all__ = ["DNSResolver", "EtcdRegistry", "LocalRegistry", "StaticResolver"]

_HOMES: Final = {"DNSResolver": "dns", "EtcdRegistry": "etcd"}

_show_as("trionode.discovery", vars())


def __getattr__(name: str) -> object:
    home = _HOMES.get(name)
    if home is None:
        msg = f"module {__name__!r} has no attribute {name!r}"
        raise AttributeError(msg)
    value = globals()[name] = getattr(import_module(f".{home}", __name__), name)
    _show_as(__name__, {name: value})
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
