"""A certificate authority for development and tests, and files for what it issues.

`CertificateAuthority` is one object that issues every key pair that a cluster needs. This is no CA for production: its
key lies in a file, and it keeps no record of what it issued or revoked.
"""

from trionode._util.public_names import show_as as _show_as

from ._authority import CertificateAuthority as CertificateAuthority, KeyType as KeyType
from ._files import (
    write_ca_pool as write_ca_pool,
    write_crl_set as write_crl_set,
    write_key_pair as write_key_pair,
)

__all__ = ["CertificateAuthority", "KeyType", "write_ca_pool", "write_crl_set", "write_key_pair"]

_show_as("trionode.pki", vars())
