"""Every verify code of the OpenSSL in use has words and a remedy."""

from __future__ import annotations

import pytest

from trionode._tls.binding import verify_message
from trionode._tls.verify_codes import meaning

UNKNOWN = verify_message(100_000)
CODES = [code for code in range(1, 200) if verify_message(code) != UNKNOWN]


@pytest.mark.parametrize("code", CODES)
def test_every_verify_code_has_words_and_a_remedy(code: int) -> None:
    """Not its number alone."""
    means = meaning(code)
    assert len(means.what) > 10
    assert means.what != f"does not verify: {UNKNOWN}"
    assert means.remedy
