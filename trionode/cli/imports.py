"""What a command line or its file names as MODULE:NAME: services, ASGI applications."""

from __future__ import annotations

import importlib
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path


def imported(where: str, base: Path, *, otherwise: str = "") -> object:
    """What a module calls by a name.

    Modules are looked for as `python program.py` does: first beside the configuration file, or in this directory.

    Args:
        where: MODULE:NAME.
        base: the directory to look in first.
        otherwise: what else might have been meant, for the error.

    Raises:
        ValueError: it is not of that form, or cannot be imported.
    """
    module, colon, name = where.partition(":")
    if not colon:
        msg = f"{where!r} is not MODULE:{'FUNCTION' if otherwise else 'NAME'}{otherwise}"
        raise ValueError(msg)
    first = str(base.resolve())
    if first not in sys.path[:1]:
        sys.path.insert(0, first)
    try:
        return getattr(importlib.import_module(module), name)
    except (Exception, SystemExit) as exc:  # noqa: BLE001 -- importing a module may raise anything
        msg = f"cannot import {where}: {type(exc).__name__}: {exc}. Is its module importable from here?"
        raise ValueError(msg) from None
