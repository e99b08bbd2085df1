"""Where nodes find each other: resolvers and registrars for `NetworkOptions(resolver=...)`."""

from .local import LocalRegistry as LocalRegistry

__all__ = ["LocalRegistry"]
