"""Kinds of values that options take: paths that are named, and numbers that are numbers."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from .paths import rereadable

if TYPE_CHECKING:
    from click import Context, Parameter


def _named(path: object) -> object:
    """A path that has a name: an empty text, as of a variable that is not set, is not the working directory."""
    if path == "":
        msg = "the path is empty"
        raise click.BadParameter(msg)
    return path


class _File(click.Path):
    """Not checked by click: the function that reads it says what is wrong, in the same words everywhere."""

    def convert(self, value: object, param: Parameter | None, ctx: Context | None) -> Path:
        """The path; a pipe's content is kept."""
        found = super().convert(_named(value), param, ctx)  # type: ignore[arg-type]
        return rereadable(Path(os.fsdecode(found)))


class _Directory(click.Path):
    def convert(self, value: object, param: Parameter | None, ctx: Context | None) -> Path:
        """The path."""
        return Path(os.fsdecode(super().convert(_named(value), param, ctx)))  # type: ignore[arg-type]


class Number(click.FloatRange):
    """A number in a range; NaN is in none, and click would let it pass."""

    def convert(self, value: Any, param: Parameter | None, ctx: Context | None) -> float:  # noqa: ANN401 -- click's
        """The number."""
        found: float = super().convert(value, param, ctx)
        if math.isnan(found):
            self.fail(f"{value!r} is not a number", param, ctx)
        return found


FILE: Final = _File(path_type=Path)
DIRECTORY: Final = _Directory(file_okay=False, path_type=Path)

#: Seconds; `inf` waits forever.
TIMEOUT: Final = Number(min=0, min_open=True)
