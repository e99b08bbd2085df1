"""Bytes that are almost right: msgpack that says what no honest encoder says, and changes to what is valid.

Random bytes fail at the first check. So a message is taken apart into a tree, a branch of the tree is replaced,
doubled, dropped or buried in junk, and the whole is encoded again, by a writer that checks nothing: a key may come
twice, a length may lie, a number may be written longer than it needs.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Final, TypeAlias

import msgspec

if TYPE_CHECKING:
    from random import Random

#: A value, as it is to be encoded: `None`, numbers, `str`, `bytes`, lists, `Pairs`, and `Raw` for what is none of them.
Tree: TypeAlias = object


class Raw(bytes):
    """Bytes to be put there as they are."""

    __slots__ = ()


class Pairs(list[tuple[Tree, Tree]]):
    """A map that may have a key twice."""

    __slots__ = ()


#: Where integers change their encoding, their sign or their meaning.
INTEGERS: Final = (0, 1, 2, 3, 31, 32, 63, 64, 127, 128, 255, 256, 4095, 4096, 4097, 65535, 65536, 65540, 65541)
INTEGERS_LARGE: Final = (2**24 - 1, 2**31 - 1, 2**31, 2**32 - 1, 2**32, 2**63 - 1, 2**63, 2**64 - 1, -1, -32, -(2**63))

#: What no encoder of ours writes.
_JUNK: Final = (
    Raw(b"\xc1"),  # never used
    Raw(b"\xdd\xff\xff\xff\xff"),  # an array of 2**32 - 1 items, of which none comes
    Raw(b"\xdf\xff\xff\xff\xff"),  # a map of as many
    Raw(b"\xc6\xff\xff\xff\xff"),  # so many bytes
    Raw(b"\xdb\xff\xff\xff\xff"),  # such a string
    Raw(b"\xd6\xff\x00\x00\x00\x00"),  # a timestamp
    Raw(b"\xc9\xff\xff\xff\xff\x01"),  # an extension that is too long
    Raw(b"\xa3\xed\xa0\x80"),  # a lone surrogate
    Raw(b"\xa2\xff\xfe"),  # no UTF-8
    Raw(b"\xca\x7f\xc0\x00\x00"),  # not a number
    Raw(b"\xcb\x7f\xf0\x00\x00\x00\x00\x00\x00"),  # infinity
    Raw(b"\xcb\xff\xef\xff\xff\xff\xff\xff\xff"),  # the lowest number
)


def junk(rng: Random) -> Tree:
    """Something that does not belong there."""
    match rng.randrange(9):
        case 0:
            return rng.choice(INTEGERS)
        case 1:
            return rng.choice(INTEGERS_LARGE)
        case 2:
            return rng.choice((0.5, -1.0, 1e308, float("nan"), float("inf"), float("-inf")))
        case 3:
            return rng.choice(("", "x", "\0", "\n\x1b[2J", "\u202e", "é" * 5, "a@b", "@", "x" * 300, "%s%d{}"))
        case 4:
            return bytes(rng.choice((0, 1, 15, 16, 17, 64, 65, 1000)))
        case 5:
            return rng.choice((None, True, False, [], Pairs(), [[]], Pairs([(1, 2)]), Pairs([([], Pairs())])))
        case 6:
            depth = rng.choice((2, 30, 200, 1200, 3000))
            return Raw(rng.choice((b"\x91", b"\x81\xa0", b"\x81\xa1x", b"\xdc\x00\x01")) * depth + b"\xc0")
        case 7:
            return [junk(rng) for _ in range(rng.randrange(4))]
        case _:
            return rng.choice(_JUNK)


def parse(data: bytes) -> Tree:
    """The tree of a valid encoding.

    Raises:
        ValueError: it is not valid.
    """
    try:
        return _tree(msgspec.msgpack.decode(data, strict=False))
    except (msgspec.MsgspecError, RecursionError, TypeError) as exc:
        raise ValueError(data) from exc


def _tree(value: object) -> Tree:
    if isinstance(value, dict):
        return Pairs((_tree(key), _tree(inner)) for key, inner in value.items())
    if isinstance(value, list | tuple):
        return [_tree(inner) for inner in value]
    return value if isinstance(value, int | float | str | bytes) or value is None else Raw(b"\xc0")


def pack(rng: Random, tree: Tree) -> bytes:
    """Encode a tree; now and then longer than need be."""
    longer = rng.random() < 0.05
    match tree:
        case Raw():
            return bytes(tree)
        case None:
            return b"\xc0"
        case bool():
            return b"\xc3" if tree else b"\xc2"
        case int():
            return _pack_integer(tree, longer=longer)
        case float():
            return b"\xcb" + struct.pack(">d", tree)
        case str():
            data = tree.encode("utf-8", "surrogatepass")
            if len(data) < 32 and not longer:
                return bytes([0xA0 | len(data)]) + data
            return b"\xdb" + struct.pack(">I", len(data)) + data
        case bytes():
            return b"\xc6" + struct.pack(">I", len(tree)) + tree
        case Pairs():
            head = (
                bytes([0x80 | len(tree)]) if len(tree) < 16 and not longer else b"\xdf" + struct.pack(">I", len(tree))
            )
            return head + b"".join(pack(rng, key) + pack(rng, value) for key, value in tree)
        case list():
            head = (
                bytes([0x90 | len(tree)]) if len(tree) < 16 and not longer else b"\xdd" + struct.pack(">I", len(tree))
            )
            return head + b"".join(pack(rng, item) for item in tree)
    raise TypeError(tree)


def _pack_integer(value: int, *, longer: bool) -> bytes:
    if value < 0:
        return b"\xd3" + struct.pack(">q", value)
    if value < 128 and not longer:
        return bytes([value])
    return b"\xcf" + struct.pack(">Q", value)


def mutate_tree(rng: Random, tree: Tree) -> Tree:
    """The tree with one branch changed."""
    if isinstance(tree, Pairs) and tree and rng.random() < 0.9:
        changed = Pairs(tree)
        at = rng.randrange(len(changed))
        key, value = changed[at]
        match rng.randrange(7):
            case 0:
                del changed[at]
            case 1:
                changed.insert(rng.randrange(len(changed) + 1), (key, junk(rng)))  # the same key twice
            case 2:
                changed.insert(rng.randrange(len(changed) + 1), (junk(rng), junk(rng)))
            case 3:
                changed[at] = (junk(rng), value)
            case _:
                changed[at] = (key, mutate_tree(rng, value))
        return changed
    if isinstance(tree, list) and not isinstance(tree, Pairs) and tree and rng.random() < 0.7:
        items = list(tree)
        at = rng.randrange(len(items))
        match rng.randrange(4):
            case 0:
                del items[at]
            case 1:
                items *= rng.choice((2, 33)) if len(items) < 64 else 1
            case _:
                items[at] = mutate_tree(rng, items[at])
        return items
    if isinstance(tree, int) and rng.random() < 0.5:
        return min(max(tree + rng.choice((-1, 1)), -(2**63)), 2**64 - 1)
    if isinstance(tree, str | bytes) and tree and rng.random() < 0.5:
        at, times = rng.randrange(len(tree)), rng.choice((0, 2, 70 if len(tree) < 500 else 1))
        if isinstance(tree, str):
            return tree[:at] + tree[at + 1 :] if times == 0 else tree[:at] + tree[at:] * times
        return tree[:at] + tree[at + 1 :] if times == 0 else tree[:at] + tree[at:] * times
    return junk(rng)


def mutate_message(rng: Random, data: bytes) -> bytes:
    """A msgpack message with its structure changed; where it has none, with its bytes changed."""
    try:
        tree = parse(data)
    except ValueError:
        return mutate_bytes(rng, data)
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        tree = mutate_tree(rng, tree)
    packed = pack(rng, tree)
    return mutate_bytes(rng, packed) if rng.random() < 0.1 else packed


def mutate_bytes(rng: Random, data: bytes, other: bytes = b"") -> bytes:
    """Bytes with some of them changed.

    Args:
        rng: where chance comes from.
        data: what is changed.
        other: what pieces may be taken from.
    """
    changed = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 4))):
        at = rng.randrange(len(changed) + 1)
        to = min(len(changed), at + rng.choice((1, 2, 4, 8, 64)))
        match rng.randrange(8):
            case 0 if at < len(changed):
                changed[at] ^= 1 << rng.randrange(8)
            case 1 if at < len(changed):
                changed[at] = rng.randrange(256)
            case 2:
                del changed[at:to]
            case 3:
                changed[at:at] = changed[at:to] * rng.choice((1, 2, 20))
            case 4:
                width = rng.choice((1, 2, 4, 8))
                number = rng.choice(INTEGERS + INTEGERS_LARGE) % 256**width
                changed[at : at + width] = number.to_bytes(width, rng.choice(("big", "little")))
            case 5:
                changed[at:at] = rng.randbytes(rng.choice((1, 3, 20)))
            case 6:
                del changed[at:]
            case _:
                begin = rng.randrange(len(other) + 1)
                changed[at:to] = other[begin : begin + rng.choice((1, 8, 64, 1000))]
    return bytes(changed)
