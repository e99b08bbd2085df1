"""What shows of a function that an application supplies, before it is called."""

from __future__ import annotations

import dis
import inspect
from functools import partial
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import FunctionType


def is_async(function: Callable[..., object]) -> bool:
    """Whether calling it gives something to await, as far as that shows."""
    return inspect.iscoroutinefunction(_behind(function))


def may_be_async(given: object) -> bool:
    """Whether calling it may give something to await.

    A function that is not async may do that too, as one does that passes its arguments on to an async one. So only what
    certainly gives nothing to await is told apart: a generator, and a function that returns nothing or constants.
    """
    return callable(given) and not _is_synchronous(given)


def _is_synchronous(given: Callable[..., object]) -> bool:
    function = _behind(given)
    if inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
        return True
    return inspect.isfunction(function) and not inspect.iscoroutinefunction(function) and _returns_constants(function)


def _behind(called: Callable[..., object]) -> object:
    """The function that runs when it is called, as far as that shows: behind a partial, a method, an object's call."""
    while isinstance(called, partial):
        called = called.func
    if not (inspect.isroutine(called) or isinstance(called, type)):
        called = type(called).__call__
    return getattr(called, "__func__", called)


def _returns_constants(function: FunctionType) -> bool:
    before = ""
    for instruction in dis.get_instructions(function):
        if instruction.opname == "RETURN_VALUE" and before != "LOAD_CONST":
            return False
        before = instruction.opname
    return True
