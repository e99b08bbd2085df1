"""The list of those that get no certificate, which an operator keeps beside the CA: one a line, `#` begins a comment.

A line is a node name, a glob over node names, a host, which denies its nodes as well, or a serial number as OpenSSL
prints it: what was issued under that is not renewed. A line that is none of these may have been meant for anyone, so
nothing is issued until it is mended.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from trionode._credentials.pem import read_file
from trionode._errors import CertificateError, CertificateReason
from trionode._identity.names import NodeName

from ._refusals import RequestRefusal, RequestRefusedError
from ._serials import digits_in
from ._tokens import checked_names, names_match

if TYPE_CHECKING:
    from pathlib import Path

#: A serial number as OpenSSL prints it, longer than an IPv6 address; without colons it might be a host.
_SERIAL: Final = re.compile(r"[0-9A-Fa-f]{2}(:[0-9A-Fa-f]{2}){8,}")


def refuse_denied(file: Path, names: tuple[NodeName | str, ...], serial: str | None) -> None:
    """Insist that nobody on the list gets a certificate.

    Args:
        file: the list; there need not be one.
        names: what the certificate would be for.
        serial: of the certificate that it would replace, as in the journal; None if there is none.

    Raises:
        RequestRefusedError: reason `denied`.
        CertificateError: the list cannot be read.
    """
    if not file.exists():
        return
    lines = read_file(file, kind="list of denied names").data.decode(errors="replace").splitlines()
    for number, line in enumerate(lines, 1):
        text = line.partition("#")[0].strip()
        if not text:
            continue
        try:
            denied = digits_in(text) == serial or any(_denies(text, each) for each in names)
        except ValueError as exc:
            msg = (
                f"line {number} of {file} is neither a name, a glob, a host nor a serial number ({exc}), so it is "
                "not known who is denied. Correct it; nothing is issued until then"
            )
            raise CertificateError(msg, reason=CertificateReason.UNREADABLE) from None
        if denied:
            msg = f"{', '.join(map(str, names))} gets no certificate: {text} is on the CA's list of denied names"
            raise RequestRefusedError(msg, reason=RequestRefusal.DENIED)


def _denies(pattern: str, name: NodeName | str) -> bool:
    """Whether a line is about a name; one with a host alone is about its nodes, too.

    Raises:
        ValueError: it is about nothing.
    """
    if _SERIAL.fullmatch(pattern):
        return False
    denied = checked_names(pattern)
    return names_match(denied, name) or (isinstance(name, NodeName) and denied == name.host)
