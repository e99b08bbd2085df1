"""Option classes that check themselves: every field of a dataclass, when an object is made.

Theory. An option of the wrong kind must not pass, fail much later, or switch off a check:
`insecure_skip_verify="false"` is a string, and true. So option classes derive from `Checked`, and each field is held
against its annotation; what an annotation cannot say (a range, a syntax) is a rule in the field's metadata, made by
`rule()`. Collections are frozen on the way: a sequence becomes a tuple, a mapping a read-only one.

An error is one sentence: which field, what belongs there, what was given. The wrong kind is a `TypeError`, the wrong
value of the right kind a `ValueError`. What was given to a field that its class does not show (`repr=False`) is not
shown here either.

Two kinds are stricter than Python's own: no `bool` is a number, and no string a sequence.
"""

from __future__ import annotations

import dataclasses
import inspect
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from enum import Enum
from functools import cache
from types import MappingProxyType, NoneType, UnionType
from typing import TYPE_CHECKING, Any, Final, Union, cast, final, get_args, get_origin, get_type_hints

from .text import printable

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

#: A text or number that is longer is not shown in an error. Characters.
_SHOWN: Final = 40

_KEY: Final = "trionode.rule"


class Rule:
    """What may be in a field: here, instances of some classes.

    Attributes:
        expects: the same in words, to follow "must be".
    """

    def __init__(self, expects: str, *kinds: type) -> None:
        self.expects: Final = expects
        self._kinds = kinds

    def admits(self, value: object) -> bool:
        """Whether a value is of the right kind."""
        return isinstance(value, self._kinds)

    def take(self, value: object, field: Field) -> object:
        """The value to keep of one that is of the right kind; here itself.

        Raises:
            TypeError, ValueError: the value, or something in it, is not what belongs there.
        """
        del field
        return value


@final
class Field:
    """A field that is being checked; knows how to complain.

    Attributes:
        name: as errors say it: the field, and where in it; not its class, for options are also given by other names.
    """

    def __init__(self, name: str, *, shown: bool) -> None:
        self.name = name
        self._shown = shown

    def check(self, rule: Rule, value: object) -> object:
        """What is kept of a value.

        Raises:
            TypeError, ValueError: it is not what the rule expects.
        """
        if not rule.admits(value):
            raise TypeError(self.must_be(rule, value))
        return rule.take(value, self)

    def because(self, error: Exception) -> str:
        """What a function that parses says of what was given, with the field, unless it begins with that itself."""
        text = str(error)
        return text if text.startswith(f"{self.name} ") else f"{self.name}: {text}"

    def inside(self, name: str) -> Field:
        """A part of what is in it."""
        return Field(name, shown=self._shown)

    def must_be(self, rule: Rule, value: object) -> str:
        """What to say of a value that is not what belongs there."""
        given = show(value) if self._shown else with_article(type(value).__name__)
        hint = ""
        if isinstance(rule, Items) and rule.item.admits(value):
            hint = f"; put it in a list{f', [{given}]' if isinstance(value, str) and self._shown else ''}"
        return f"{self.name} must be {rule.expects}, not {given}{hint}"


def show(value: object) -> str:
    """What was given, for an error: plain values as they are, if they are short; of others the type alone.

    So an object cannot interfere by its `repr`, and a key or a password that was put into the wrong place is not shown.
    """
    if isinstance(value, Enum):
        return f"{type(value).__name__}.{value.name}"
    if isinstance(value, str) and len(value) > _SHOWN:
        return f"a string of {len(value)} characters"
    if isinstance(value, int) and value.bit_length() > 8 * _SHOWN:
        return f"an integer of {value.bit_length()} bits"
    if isinstance(value, str | int | float | None):
        return printable(repr(value))
    return "an async function" if inspect.iscoroutinefunction(value) else with_article(type(value).__name__)


# Rules ----------------------------------------------------------------------------------------------------------------


@final
class Number(Rule):
    """A number within bounds, both included; no bool."""

    def __init__(self, kind: type[int | float], low: float, high: float, expects: str) -> None:
        super().__init__(expects, int, kind)
        self._kind = kind
        self._low = low
        self._high = high

    def admits(self, value: object) -> bool:
        """Whether it is a number of this kind; integers are of either."""
        return super().admits(value) and not isinstance(value, bool)

    def take(self, value: object, field: Field) -> object:
        """Itself, within the bounds; NaN is within none, and an integer too large for a float is none of seconds."""
        assert isinstance(value, (int, float))
        try:
            fits = self._low <= self._kind(value) <= self._high
        except OverflowError:
            fits = False
        if not fits:
            raise ValueError(field.must_be(self, value))
        return value


def integer(low: int, high: int, unit: str = "") -> Number:
    """An integer within bounds, both included.

    Args:
        low: the smallest.
        high: the largest.
        unit: what it counts, in the plural, where the field's name does not say.
    """
    return Number(int, low, high, f"an integer{f' of {unit}' if unit else ''} from {low} to {high}")


#: A deadline; infinite for none.
SECONDS: Final = Number(float, math.nextafter(0, 1), math.inf, "a positive number of seconds")
#: A span of time.
DURATION: Final = Number(float, 0, math.nextafter(math.inf, 0), "a finite number of seconds from 0 up")


@final
class Parsed(Rule):
    """What a function takes that raises `TypeError` or `ValueError` for anything else."""

    def __init__(
        self,
        parse: Callable[[Any], object],
        expects: str,
        *,
        kinds: tuple[type, ...] = (str,),
        keep: bool = False,
    ) -> None:
        """Make one.

        Args:
            parse: the function.
            expects: what it takes, in words.
            kinds: the types that it takes.
            keep: whether what was given is kept, in place of what the function made of it.
        """
        super().__init__(expects, *kinds)
        self._parse = parse
        self._keep = keep

    def take(self, value: object, field: Field) -> object:
        """What the function made of it."""
        try:
            made = self._parse(value)
        except TypeError as exc:
            raise TypeError(field.because(exc)) from None
        except ValueError as exc:
            raise ValueError(field.because(exc)) from None
        return value if self._keep else made


@final
class Items(Rule):
    """A sequence, kept as a tuple; any iterable but a string or a mapping.

    Attributes:
        item: what each item has to be.
    """

    def __init__(self, item: Rule) -> None:
        super().__init__(f"a sequence, each item {item.expects}", Iterable)
        self.item: Final = item

    def admits(self, value: object) -> bool:
        """Whether it is a collection of items."""
        return super().admits(value) and not isinstance(value, (str, bytes, bytearray, memoryview, Mapping))

    def take(self, value: object, field: Field) -> object:
        """A tuple of what is kept of its items."""
        assert isinstance(value, Iterable)
        return tuple(field.inside(f"{field.name}[{n}]").check(self.item, each) for n, each in enumerate(value))


@final
class Entries(Rule):
    """A mapping, kept as a read-only copy."""

    def __init__(self, key: Rule, value: Rule) -> None:
        super().__init__(f"a mapping, each key {key.expects}, each value {value.expects}", Mapping)
        self._key = key
        self._value = value

    def take(self, value: object, field: Field) -> object:
        """A read-only copy of what is kept of its keys and values."""
        assert isinstance(value, Mapping)
        keys, name = field.inside(f"a key of {field.name}"), field.name
        return MappingProxyType(
            {
                keys.check(self._key, key): field.inside(f"{name}[{show(key)}]").check(self._value, each)
                for key, each in value.items()
            }
        )


@final
class Such(Rule):
    """What passes a test."""

    def __init__(self, test: Callable[[object], bool], expects: str) -> None:
        super().__init__(expects)
        self._test = test

    def admits(self, value: object) -> bool:
        """Whether it passes."""
        return self._test(value)


@final
class _Either(Rule):
    """The first of several whose kind fits."""

    def __init__(self, rules: Sequence[Rule]) -> None:
        super().__init__(_alternatives([rule.expects.replace(" or ", ", ") for rule in rules]))
        self._rules = rules

    def admits(self, value: object) -> bool:
        return self._fitting(value) is not None

    def take(self, value: object, field: Field) -> object:
        rule = self._fitting(value)
        assert rule is not None
        return rule.take(value, field)

    def _fitting(self, value: object) -> Rule | None:
        for rule in self._rules:
            if rule.admits(value):
                return rule
        return None


@final
class _Protocol(Rule):
    """An object with the methods of a protocol; not its class, which has them, too."""

    def __init__(self, protocol: type) -> None:
        methods = [name for name, value in vars(protocol).items() if callable(value) and not name.startswith("_")]
        super().__init__(f"{_in_words(protocol)} (an object with {' and '.join(methods)})", protocol)

    def admits(self, value: object) -> bool:
        return super().admits(value) and not isinstance(value, type)


_NONE: Final = Rule("None", NoneType)

# Checking -------------------------------------------------------------------------------------------------------------


def rule(narrower: Rule) -> Mapping[str, Rule]:
    """The metadata of a field whose annotation does not say everything: `field(default=1, metadata=rule(SECONDS))`.

    None is admitted beside it where the annotation has None.
    """
    return {_KEY: narrower}


class Checked:
    """Base of frozen dataclasses whose fields are checked when an object is made, and whose collections are frozen."""

    __slots__ = ()

    def __post_init__(self) -> None:
        """Hold every field against its rule, and freeze collections.

        Raises:
            TypeError: a field has something of the wrong kind; the message names the field.
            ValueError: a field has a wrong value of the right kind.
        """
        for name, each, field in _rules_of(cast("type[DataclassInstance]", type(self))):
            given = getattr(self, name)
            kept = field.check(each, given)
            if kept is not given:
                object.__setattr__(self, name, kept)


def check_argument(name: str, given: object, kind: object) -> object:
    """Hold an argument of a function against a rule or an annotation, as a field would be; what is kept of it.

    Raises:
        TypeError: it is of the wrong kind.
        ValueError: it is a wrong value of the right kind.
    """
    return Field(name, shown=True).check(kind if isinstance(kind, Rule) else rule_of(kind), given)


def check_each(name: str, given: object, *kinds: type) -> tuple[Any, ...]:
    """Hold what an argument holds against a type, once; what it holds.

    Args:
        name: of the argument.
        given: any iterable, but text: its characters are never meant.
        kinds: of each item, one of these.

    Raises:
        TypeError: it is none, or an item is of another type.
    """
    wanted = " or ".join(kind.__name__ for kind in kinds)
    if isinstance(given, str | bytes) or not isinstance(given, Iterable):
        msg = f"{name} must be a sequence of {wanted}, not {show(given)}"
        raise TypeError(msg)
    items = tuple(given)
    for each in items:
        if not isinstance(each, kinds):
            msg = f"{name} must be a sequence of {wanted}, and one item is {show(each)}"
            raise TypeError(msg)
    return items


@cache
def _rules_of(options: type[DataclassInstance]) -> Sequence[tuple[str, Rule, Field]]:
    # Names are looked up where the class is defined, not where it is imported from, which a public class names as its
    # module; the method that `dataclass` has made knows.
    hints = get_type_hints(options, vars(options)["__init__"].__globals__)
    return [
        (
            each.name,
            _rule_of_field(hints[each.name], each.metadata.get(_KEY)),
            Field(each.name, shown=each.repr),
        )
        for each in dataclasses.fields(options)
    ]


def _rule_of_field(annotation: object, narrower: Rule | None) -> Rule:
    if narrower is None:
        return rule_of(annotation)
    return _Either((narrower, _NONE)) if NoneType in get_args(annotation) else narrower


@cache
def rule_of(annotation: object) -> Rule:
    """The rule that an annotation stands for.

    Raises:
        NotImplementedError: there is none for it.
    """
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin in (Union, UnionType):
        return _Either([rule_of(each) for each in arguments])
    if origin is Sequence:
        return Items(rule_of(arguments[0]))
    if origin is Mapping:
        return Entries(*(rule_of(each) for each in arguments))
    if origin is Callable:
        return Such(callable, "a function")
    if annotation is NoneType:
        return _NONE
    if annotation is int:
        return Number(int, -math.inf, math.inf, "an integer")
    if annotation is float:
        return Number(float, -math.inf, math.inf, "a number")
    if isinstance(annotation, type):
        return (
            _Protocol(annotation)
            if getattr(annotation, "_is_protocol", False)
            else Rule(_in_words(annotation), annotation)
        )
    msg = f"there is no rule for the type {annotation!r}; give the field one by metadata=rule(...)"
    raise NotImplementedError(msg)


def with_article(name: str) -> str:
    return f"{'an' if name[0] in 'AEIOUaeiou' else 'a'} {name}"


def _alternatives(words: Sequence[str]) -> str:
    *most, last = words
    return f"{', '.join(most)} or {last}" if most else last


def _in_words(kind: type) -> str:
    plain = {bool: "True or False", str: "a string", bytes: "bytes"}
    if kind in plain:
        return plain[kind]
    words = with_article(kind.__name__)
    if issubclass(kind, Enum):
        words += f" ({_alternatives([member.name for member in kind])})"
    return words
