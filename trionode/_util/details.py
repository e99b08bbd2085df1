"""Details: what a service says of an error beside its code and words. What they may be, wherever they come from."""

from __future__ import annotations

from typing import Final

from .fields import with_article

#: Lists and mappings within each other.
MAX_DEPTH: Final = 16
#: Values in all, keys not counted: each takes up to some 200 bytes, however short it is encoded.
MAX_VALUES: Final = 1000

_INTEGERS: Final = range(-(2**63), 2**64)
_EXPECTED: Final = "None, a boolean, a number, text, bytes, or a list of or mapping from text to such"


def as_details(given: object) -> object:
    """A copy of what the application gives as details, of plain types alone; tuples become lists. Errors show no value.

    Raises:
        TypeError: something in it is no such value.
        ValueError: it is nested more than 16 deep, has more than 1000 values, or one that cannot be encoded.
    """
    return _Copy().of(given, 0)


class _Copy:
    """One copy, and how many values it has."""

    def __init__(self) -> None:
        self._values = 0

    def of(self, given: object, depth: int) -> object:
        self._values += 1
        if self._values > MAX_VALUES:
            msg = f"details have at most {MAX_VALUES} values"
            raise ValueError(msg)
        if depth > MAX_DEPTH:
            msg = f"details are nested at most {MAX_DEPTH} deep"
            raise ValueError(msg)
        if isinstance(given, str):
            return _text(given)
        if given is None or isinstance(given, bool):
            return given
        if isinstance(given, int):
            return _integer(given)
        if isinstance(given, float):
            return float.__float__(given)
        if isinstance(given, bytes):
            return bytes(memoryview(given))
        if isinstance(given, list | tuple):
            return [self.of(each, depth + 1) for each in given]
        if isinstance(given, dict):
            return {_key(key): self.of(each, depth + 1) for key, each in given.items()}
        msg = f"details are {_EXPECTED}, not {with_article(type(given).__name__)}"
        raise TypeError(msg)


def _integer(given: int) -> int:
    value = int.__int__(given)
    if value not in _INTEGERS:
        msg = "an integer in details is from -2**63 to 2**64 - 1"
        raise ValueError(msg)
    return value


def _key(given: object) -> str:
    if not isinstance(given, str):
        msg = f"a key in details is text, not {with_article(type(given).__name__)}"
        raise TypeError(msg)
    return _text(given)


def _text(given: str) -> str:
    text = str.__str__(given)
    try:
        text.encode()
    except UnicodeEncodeError:
        msg = "details have text with a lone surrogate, which UTF-8 cannot encode"
        raise ValueError(msg) from None
    return text
