"""Text for people: addresses, and what came from a peer made safe to show; and the type of bytes on their way."""

from __future__ import annotations

from typing import Final, TypeAlias

#: Bytes in whatever holds them.
Buffer: TypeAlias = bytes | bytearray | memoryview

#: Host and port, the form in which every address of this package is given.
Address: TypeAlias = tuple[str, int]


def place(address: Address) -> str:
    """An address as a sentence has it."""
    return f"{address[0]} port {address[1]}"


def at(address: Address | None) -> str:
    """Where, for a sentence to go on with; nothing where that is not known."""
    return "" if address is None else f" at {place(address)}"


#: Peer text longer than this is cut in our own messages: enough for a sentence, too little to flood a log.
PEER_TEXT_LIMIT: Final = 300


def printable(text: str, limit: int = PEER_TEXT_LIMIT) -> str:
    """Peer-supplied text made safe for logs and terminals: control characters escaped, length bounded."""
    # Cut again after escaping: one character may have become ten.
    shown = "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text[:limit])
    return shown[:limit] + "…" if len(text) > limit or len(shown) > limit else shown
