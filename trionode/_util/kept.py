"""What a function made of some bytes, kept for when it is asked again."""

from __future__ import annotations

from functools import lru_cache, wraps
from typing import TYPE_CHECKING, Concatenate, Final, ParamSpec, TypeVar, cast

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")
P = ParamSpec("P")

#: What is read of encodings that are longer is not kept. Bytes.
_LARGEST_KEPT: Final = 8192


def kept_by_bytes(count: int) -> Callable[[Callable[Concatenate[bytes, P], T]], Callable[Concatenate[bytes, P], T]]:
    """Keep what a function made of the last encodings, unless they are large.

    Args:
        count: of how many.
    """

    def decorate(function: Callable[Concatenate[bytes, P], T]) -> Callable[Concatenate[bytes, P], T]:
        known = cast("Callable[Concatenate[bytes, P], T]", lru_cache(maxsize=count)(function))

        @wraps(function)
        def call(der: bytes, /, *args: P.args, **kwargs: P.kwargs) -> T:
            return (known if len(der) <= _LARGEST_KEPT else function)(der, *args, **kwargs)

        return cast("Callable[Concatenate[bytes, P], T]", call)

    return decorate
