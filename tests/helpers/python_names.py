"""Names of Python, to a reader of the command line: what the package exports, and the parameters of managers."""

from __future__ import annotations

import inspect
import re
from typing import Final

import trionode


def _called() -> set[str]:
    """The public functions and methods, by their last names."""
    public = [getattr(trionode, name) for name in dir(trionode)]
    methods = [name for each in public if inspect.isclass(each) for name in dir(each) if not name.startswith("_")]
    return {*methods, *(each.__name__ for each in public if inspect.isfunction(each))}


def _classes() -> set[str]:
    """The public classes whose names are no words."""
    return {name for name in dir(trionode) if re.fullmatch("[A-Z]+[a-z]+[A-Z]+[A-Za-z]+", name)}


PYTHON: Final = re.compile(
    rf"\b(?:{'|'.join(sorted(_called()))})\(\)|\b(?:{'|'.join(sorted(_classes()))})\b"
    r"|\b(?:manager|node|trionode)\.(?!toml)\w+\(|\b(?:root_cas|client_cas|crls|crl_policy)\b"
    r"|\b(?:host|port|stranded|bind_names)=\S"
)
