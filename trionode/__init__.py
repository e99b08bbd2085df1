"""Mutual TLS between Trio programs: nodes, rotating certificates, channels and calls.

The names are those of `_public`, all imported when the first of them is used (PEP 562). Many programs import the
package and use none of them: every run of pytest where it is installed, and `trionode --help`.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ._public import *  # noqa: F403 -- one list of names, there
else:

    def __getattr__(name: str) -> object:
        # `import *` uses `__all__`. Names with an underscore that the import system and tools look for are no names of
        # ours.
        if name == "__all__" or not name.startswith("_"):
            __dir__()
            if name in globals():
                return globals()[name]
        msg = f"module {__name__!r} has no attribute {name!r}"
        raise AttributeError(msg)

    def __dir__() -> list[str]:
        try:
            from . import _public
        except AttributeError as error:  # which would read as if a name were no name of ours
            msg = f"trionode cannot be used here: {error}"
            raise ImportError(msg) from error

        # Pytest, where it rewrites assertions, adds names that are no identifiers.
        public = {name: value for name, value in vars(_public).items() if name[0].isalpha()}
        names = globals()
        # A name that was replaced, by a test for instance, stays as it is.
        names.update({name: value for name, value in public.items() if name not in names}, __all__=list(public))
        return list(public)
