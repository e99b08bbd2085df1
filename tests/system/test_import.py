"""The names of the package: there on demand, and the same however they are asked for."""

from __future__ import annotations

import inspect
import pickle
import subprocess
import sys

import pytest

import trionode
from trionode import _public


def in_a_new_interpreter(program: str) -> str:
    """What it prints."""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True, text=True)
    return done.stdout.strip()


NAMES = sorted(name for name in vars(_public) if name[0].isalpha())


def test_the_package_alone_imports_next_to_nothing() -> None:
    """Not even when it is looked at as Python and tools do: for what they would find in any module."""
    program = (
        "import sys, trionode; hasattr(trionode, '__wrapped__'); hasattr(trionode, '_here')\n"
        "print([name for name in sys.modules if name.startswith('trio')])"
    )
    assert in_a_new_interpreter(program) == "['trionode']"


@pytest.mark.parametrize("touch", ["trionode.Route", "dir(trionode)", "trionode.__all__"])
def test_the_first_name_brings_all(touch: str) -> None:
    """So that nothing is looked up twice."""
    program = f"import trionode; {touch}; print(sorted(set(vars(trionode)) & {set(NAMES)!r}))"
    assert in_a_new_interpreter(program) == repr(NAMES)


def test_import_star() -> None:
    """It gives the public names, in an interpreter that has not asked for any before."""
    program = "before = {*globals(), 'before'}\nfrom trionode import *\nprint(sorted({*globals()} - before))"
    assert in_a_new_interpreter(program) == repr(NAMES)


def test_names_are_what_they_are() -> None:
    """The objects themselves, from where they are defined."""
    assert set(NAMES) <= set(dir(trionode))
    for name in NAMES:
        assert getattr(trionode, name) is vars(_public)[name]
    assert trionode.Route.__module__ == "trionode._node.options"
    assert pickle.loads(pickle.dumps(trionode.Route)) is trionode.Route  # noqa: S301 -- our own
    assert "port" in inspect.signature(trionode.Route).parameters


def test_a_submodule_is_no_name_of_the_list() -> None:
    """It is imported as ever."""
    assert in_a_new_interpreter("from trionode import pki; print(pki.__name__)") == "trionode.pki"


@pytest.mark.parametrize("look", ["dir(trionode)", "hasattr(trionode, 'nope')", "from trionode import pki"])
def test_what_was_put_in_the_place_of_a_name_stays(look: str) -> None:
    """As tests do it, and then look for another."""
    assert (
        in_a_new_interpreter(f"import trionode; trionode.Route; trionode.Route = 1; {look}; print(trionode.Route)")
        == "1"
    )
    assert in_a_new_interpreter(f"import trionode; trionode.Route = 1; {look}; print(trionode.Route)") == "1"


@pytest.mark.parametrize("name", ["nope", "_nope", "__nope__"])
def test_a_name_that_is_none(name: str) -> None:
    """The errors of any module."""
    with pytest.raises(AttributeError, match=f"module 'trionode' has no attribute '{name}'"):
        getattr(trionode, name)
    with pytest.raises(ImportError, match=f"cannot import name '{name}' from 'trionode'"):
        exec(f"from trionode import {name}")  # noqa: S102 -- the statement is what is tested
