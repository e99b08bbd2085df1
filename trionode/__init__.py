"""Mutual TLS between Trio programs: nodes, rotating certificates, channels and calls.

The names are those of `_public`, imported when the first of them is asked for, all at once (PEP 562): the package is
imported by many who need none of them, every run of pytest where it is installed and `trionode --help` among them.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ._public import *  # noqa: F403 -- one list of names, there
else:

    def __getattr__(name: str) -> object:
        # `__all__` is what `import *` asks for; the import system asks for our modules, tools for names of their own.
        if name == "__all__" or not name.startswith("_"):
            __dir__()
            if name in globals():
                return globals()[name]
        msg = f"module {__name__!r} has no attribute {name!r}"
        raise AttributeError(msg)

    def __dir__() -> list[str]:
        from . import _public

        # Pytest, where it rewrites assertions, adds names that are no identifiers.
        public = {name: value for name, value in vars(_public).items() if name[0].isalpha()}
        names = globals()
        # What somebody has put in the place of one, a test for instance, stays.
        names.update({name: value for name, value in public.items() if name not in names}, __all__=list(public))
        return list(public)
