"""Where nodes find each other: resolvers and registrars for `NetworkOptions(resolver=...)`."""

from trionode._util.public_names import show_as as _show_as

from .local import LocalRegistry as LocalRegistry

__all__ = ["LocalRegistry"]

_show_as("trionode.discovery", vars())
