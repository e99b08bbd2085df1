"""Two vocabularies of codes: equal to their text, and never to each other."""

from __future__ import annotations

import copy
import pickle

import pytest
from hypothesis import given, strategies as st

from trionode import ApplicationCode, RejectionCode, RemoteCode, RemoteError


@pytest.mark.parametrize("code", [*RemoteCode, *RejectionCode], ids=lambda code: f"{type(code).__name__}.{code.name}")
def test_the_same_text_is_another_code(code: RemoteCode) -> None:
    """In every comparison, from either side, in sets and mappings; each is equal to the text."""
    own = ApplicationCode(code.value)
    assert not own == code  # noqa: SIM201 -- each operator by itself
    assert not code == own  # noqa: SIM201
    assert own != code
    assert code != own
    assert own == code.value == code
    assert code.value == own
    assert not own != code.value  # noqa: SIM202
    assert not code != code.value  # noqa: SIM202
    assert hash(own) == hash(code) == hash(code.value)
    assert own not in {code: 1}
    assert code not in {own: 1}
    assert len({own, code}) == 2
    assert own not in list(type(code))
    match own:
        case RemoteCode.UNKNOWN_SERVICE | RejectionCode.OTHER:
            raise AssertionError
        case _:
            pass


@given(text=st.text(max_size=20), other=st.text(max_size=20))
def test_a_code_compares_as_its_text(text: str, other: str) -> None:
    """And is one wherever a string is."""
    code = ApplicationCode(text)
    assert (code == other) is (text == other)
    assert (code != other) is (text != other)
    assert (code == ApplicationCode(other)) is (text == other)
    assert (code < other) is (text < other)
    assert {text: 1}[code] == 1
    assert f"{code}" == text == str(code)
    assert repr(code) == f"ApplicationCode({text!r})"
    assert code != 7
    for twin in (copy.copy(code), copy.deepcopy(code), pickle.loads(pickle.dumps(code))):  # noqa: S301 -- our own
        assert (type(twin), twin) == (ApplicationCode, code)


@pytest.mark.parametrize("code", ["gone", RemoteCode.LIMIT, RemoteCode.OTHER, "failed"])
def test_a_copied_error_is_the_error(code: str) -> None:
    """By `copy` and by `pickle`, with its vocabulary, details and metadata."""
    error = RemoteError("m", code=code, details={"a": [1]}, metadata={"k": b"v"})
    for twin in (copy.copy(error), pickle.loads(pickle.dumps(error))):  # noqa: S301 -- our own
        assert (type(twin.code), twin.code, twin.raw_code) == (type(error.code), error.code, error.raw_code)
        assert (twin.details, twin.metadata, str(twin)) == ({"a": [1]}, {"k": b"v"}, str(error))
        with pytest.raises(TypeError):
            twin.metadata["k"] = "w"  # type: ignore[index]  # that is the question
