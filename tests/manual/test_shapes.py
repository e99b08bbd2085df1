"""The manual's table of odd certificates and files is true: of us, of `ssl`, and of what Go was recorded to say."""

from __future__ import annotations

import json
from typing import Final

import pytest

from shapes import RECORD, SHAPES, of_ssl, ours
from trionode.manual import read
from trionode.manual.markdown import rows, section

TABLE: Final = {words: verdicts for words, *verdicts in rows(section(read("names"), "Odd certificates and files"))}


def test_every_shape_has_a_row() -> None:
    """And every row a shape."""
    assert list(TABLE) == list(SHAPES)


@pytest.mark.parametrize("words", SHAPES)
def test_what_is_said_of_a_shape(words: str) -> None:
    """Accepted or refused, by each of the three; where we refuse, why."""
    here, go, python, why = TABLE[words]
    made = SHAPES[words]()
    said = ours(made)
    assert (said == "accepted") == (here == "accepted"), said
    assert (of_ssl(made) == "accepted") == (python == "accepted"), of_ssl(made)
    recorded = json.loads(RECORD.read_text(encoding="utf-8"))["verdicts"][words]
    assert (recorded == "accepted") == (go == "accepted"), recorded
    assert {here, go, python} <= {"accepted", "refused"}
    assert why or here == "accepted"
