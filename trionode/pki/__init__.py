"""A certificate authority, and files for what it issues.

`CertificateAuthority` is one object that issues every key pair that a cluster needs; it keeps no record of what it
issued or revoked. `PKIDirectory` is a CA with a memory, in a directory: one-time tokens, renewals, revocations, and a
journal of all of them; `trionode.enrolment` serves it. The key of either lies in a file.
"""

from trionode._util.public_names import show_as as _show_as

from ._authority import CertificateAuthority as CertificateAuthority
from ._certificates import KeyType as KeyType
from ._constraints import PRIVATE_NAMES as PRIVATE_NAMES
from ._directory import PKIDirectory as PKIDirectory
from ._files import (
    write_ca_pool as write_ca_pool,
    write_crl_set as write_crl_set,
    write_key_pair as write_key_pair,
)
from ._refusals import RequestRefusal as RequestRefusal, RequestRefusedError as RequestRefusedError
from ._requests import parse_request as parse_request
from ._tokens import JoinToken as JoinToken

__all__ = [
    "PRIVATE_NAMES",
    "CertificateAuthority",
    "JoinToken",
    "KeyType",
    "PKIDirectory",
    "RequestRefusal",
    "RequestRefusedError",
    "parse_request",
    "write_ca_pool",
    "write_crl_set",
    "write_key_pair",
]

_show_as("trionode.pki", vars())
