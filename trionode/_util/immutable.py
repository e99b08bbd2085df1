"""Base classes of values that cannot be changed once made, and of values that never leave the process."""

from __future__ import annotations

from typing import NoReturn, Self


class Immutable:
    """Base of values whose attributes are set once, with `object.__setattr__`, by their constructor."""

    __slots__ = ()

    def __setattr__(self, name: str, value: object) -> NoReturn:
        """Refuse: it is immutable."""
        msg = f"a {type(self).__name__} is immutable; cannot set {name}"
        raise AttributeError(msg)

    def __delattr__(self, name: str) -> NoReturn:
        """Refuse: it is immutable."""
        msg = f"a {type(self).__name__} is immutable; cannot delete {name}"
        raise AttributeError(msg)

    def __copy__(self) -> Self:
        """Itself: it is immutable."""
        return self

    def __deepcopy__(self, memo: object) -> Self:
        """Itself: it is immutable."""
        return self


class HoldsPrivateKey(Immutable):
    """Base of values that hold a private key."""

    __slots__ = ()

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        """Refuse: a pickle would carry the private key."""
        msg = f"a {type(self).__name__} cannot be pickled: its private key stays in this process"
        raise TypeError(msg)
