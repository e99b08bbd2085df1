"""Ctrl-C arrives at checkpoints: nothing that has to be done as a whole is done by half.

Theory. Trio raises KeyboardInterrupt between any two bytecodes of the task that runs, unless the code is protected
(`trio.lowlevel.enable_ki_protection`, a mark on a code object that costs nothing to run). Where it is, the main task
raises it at its next checkpoint. Whatever keeps an invariant over several steps without a checkpoint would be torn: a
header appended without its body, a connection that has ended and is still registered, credit that was taken and not
used. So the classes of a connection, of its node and of what managers publish are protected as a whole, with what they
call, and so are the tasks that they start, which no code of the application's surrounds.

What is not protected is the application's: its services, and so the few lines around them (`Services`).
"""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, TypeVar

import trio

if TYPE_CHECKING:
    from types import FunctionType

T = TypeVar("T")


def interrupted_at_checkpoints(cls: type[T]) -> type[T]:
    """A class decorator: in its methods, and in what they call, KeyboardInterrupt arrives at checkpoints only."""
    for member in list(vars(cls).values()):
        for function in _functions(member):
            trio.lowlevel.enable_ki_protection(function)
    return cls


def _functions(member: object) -> list[FunctionType]:
    """The functions behind what a class has under a name. Context managers' blocks are not theirs to protect."""
    if isinstance(member, property):
        found: list[object] = [member.fget, member.fset]
    elif isinstance(member, classmethod | staticmethod):
        found = [member.__func__]
    else:
        found = [member]
    return [each for each in found if inspect.isfunction(each) and not hasattr(each, "__wrapped__")]
