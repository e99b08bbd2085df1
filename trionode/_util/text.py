"""Text for people: addresses, and text from peers made safe to show; and the types of addresses and buffers."""

from __future__ import annotations

import re
from typing import Final, TypeAlias

#: Any object that holds bytes.
Buffer: TypeAlias = bytes | bytearray | memoryview

#: Host and port, the form in which every address of this package is given.
Address: TypeAlias = tuple[str, int]


def place(address: Address) -> str:
    """An address in words: `127.0.0.1 port 15000`."""
    return f"{address[0]} port {address[1]}"


def at(address: Address | None) -> str:
    """The end of a sentence that says where: ` at 127.0.0.1 port 15000`, or nothing where the address is not known."""
    return "" if address is None else f" at {place(address)}"


def without_password(url: str) -> str:
    """A URL for people, bounded: what stands before the host, which may be a password, is left out."""
    return printable(re.sub(r"(?<=//)[^/?#]*@|^[^/?#]*@", "…@", url))


def shown(given: object) -> str:
    """What the application has supplied, by its `repr`, for people. Never raises, whatever that does."""
    try:
        return printable(repr(given))
    except Exception:  # noqa: BLE001 -- it may do anything
        return f"a {type(given).__name__} that cannot be shown"


def said(given: object) -> str:
    """What something of the application's says by its `str`, an exception for one. Never raises, whatever that does."""
    try:
        return printable(str(given))
    except Exception:  # noqa: BLE001 -- it may do anything
        return f"a {type(given).__name__} that cannot be shown"


#: Text from a peer is cut to this length in our own messages: enough for a sentence, too little to flood a log.
PEER_TEXT_LIMIT: Final = 300


def printable(text: str, limit: int = PEER_TEXT_LIMIT) -> str:
    """Text from a peer, safe for logs and terminals: control characters escaped, length bounded."""
    # Cut again after escaping: one character may have become ten.
    shown = "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text[:limit])
    return shown[:limit] + "…" if len(text) > limit or len(shown) > limit else shown
