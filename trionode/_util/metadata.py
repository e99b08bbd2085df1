"""Metadata: what a caller says beside its request. What it may be, wherever it comes from."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Final, TypeAlias, final

from .fields import show, with_article

#: A small mapping of text to text or bytes, beside the messages of a call or channel.
Metadata: TypeAlias = Mapping[str, str | bytes]

#: What a call has that was given none.
NO_METADATA: Final[Metadata] = MappingProxyType({})
#: Entries, at most: each takes some 200 bytes beside its text.
MAX_ENTRIES: Final = 128
#: Characters of a key, at most.
MAX_KEY: Final = 255


def as_metadata(given: object) -> Metadata:
    """A read-only copy of what the application gives as metadata. Errors name keys, never values: these may be secret.

    Raises:
        TypeError: it is not a mapping, a key is not a string, or a value neither string nor bytes.
        ValueError: it has more than 128 entries, a key is empty or longer than 255 characters, or UTF-8 cannot encode a
            text.
    """
    if not isinstance(given, Mapping):
        msg = f"metadata must be a mapping of strings to strings or bytes, not {with_article(type(given).__name__)}"
        raise TypeError(msg)
    if len(given) > MAX_ENTRIES:
        msg = f"metadata has at most {MAX_ENTRIES} entries, not {len(given)}"
        raise ValueError(msg)
    return MappingProxyType({_key(key): _value(key, value) for key, value in given.items()})


@final
class Dispensable(Mapping[str, str | bytes]):
    """Metadata of which a part may stay behind, where the peer does not take all of it.

    Attributes:
        whole: all of it; what this is as a mapping.
        needed: what is left then.
    """

    __slots__ = ("needed", "whole")

    def __init__(self, whole: Metadata, needed: Metadata) -> None:
        """Both are what `as_metadata` gave."""
        self.whole = whole
        self.needed = needed

    def __getitem__(self, key: str) -> str | bytes:
        """A value of the whole."""
        return self.whole[key]

    def __iter__(self) -> Iterator[str]:
        """The keys of the whole."""
        return iter(self.whole)

    def __len__(self) -> int:
        """Of the whole."""
        return len(self.whole)


def with_dispensable(given: Mapping[str, str | bytes], keys: frozenset[str]) -> Metadata:
    """As `as_metadata`, where some entries may stay behind: those that do not fit any more do.

    Args:
        given: what the application gives.
        keys: of the entries that may.
    """
    if keys.isdisjoint(given):
        return as_metadata(given)
    needed = as_metadata({key: value for key, value in given.items() if key not in keys})
    return needed if len(given) > MAX_ENTRIES else Dispensable(as_metadata(given), needed)


def _key(given: object) -> str:
    if not isinstance(given, str):
        msg = f"a key of metadata must be a string, not {with_article(type(given).__name__)}"
        raise TypeError(msg)
    if not 1 <= len(given) <= MAX_KEY:
        msg = f"a key of metadata has 1 to {MAX_KEY} characters, not {len(given)}"
        raise ValueError(msg)
    return _text(given, "a key of metadata")


def _value(key: object, given: object) -> str | bytes:
    if isinstance(given, str):
        return _text(given, f"metadata[{show(key)}]")
    if isinstance(given, bytes):
        return bytes(memoryview(given))
    msg = f"metadata[{show(key)}] must be a string or bytes, not {with_article(type(given).__name__)}"
    raise TypeError(msg)


def _text(given: str, where: str) -> str:
    """A plain string, of whatever subclass was given."""
    text = str.__str__(given)
    try:
        text.encode()
    except UnicodeEncodeError:
        msg = f"{where} has a lone surrogate, which UTF-8 cannot encode"
        raise ValueError(msg) from None
    return text
