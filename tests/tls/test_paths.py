"""Which paths hold, beside what Go says of them."""

from __future__ import annotations

import re
from importlib.resources import files

import pytest

from path_cases import SIDES, cases, record
from trionode._credentials.policy import TLSPolicy
from trionode._tls.judge import Judge

sides = pytest.mark.parametrize("side", SIDES)


def verdict(name: str, side: str) -> int:
    """Ours."""
    case = cases()[name]
    policy = TLSPolicy(client_cas=case.pool, root_cas=case.pool)
    fault = Judge(policy, accepting=side == "client").judge(case.chain).fault
    return 0 if fault is None else fault.code


@sides
@pytest.mark.parametrize("name", cases())
def test_a_path(name: str, side: str) -> None:
    """Each holds or fails as the table says, for clients and servers."""
    assert verdict(name, side) == cases()[name].verdict(side)


@pytest.mark.parametrize("name", cases())
def test_where_we_differ_from_go(name: str) -> None:
    """Go says the same, but where the table names the difference."""
    went = record().errors[name]
    differs = {side for side in SIDES if bool(went[side]) != bool(cases()[name].verdict(side))}
    assert bool(differs) == bool(cases()[name].differs), went


def test_the_manual_lists_where_we_differ_from_go() -> None:
    """Every difference, and whether we are stricter or not; no other."""
    page = (files("trionode") / "manual" / "trust.md").read_text(encoding="utf-8")
    table = page.partition("| what a chain has |")[2].partition("\n\n")[0]
    told = dict(re.findall(r"^\| (.+) \| (refused|believed) \|$", table, re.MULTILINE))
    differences: dict[str, str] = {}
    for case in cases().values():
        if case.differs:
            differences[case.differs] = "refused" if any(case.verdict(side) for side in SIDES) else "believed"
    assert told == differences
