"""A new CA, written into a directory: a root whose key may be taken offline, and an intermediate that issues."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

from trionode._credentials.crl import CRLSet

from ._authority import CertificateAuthority
from ._ca_files import NEXT, OLD_FILE, OLD_ISSUER_FILE, ROOT_KEY_FILE
from ._revocation import rest_of, write_lists

if TYPE_CHECKING:
    from collections.abc import Iterable
    from datetime import timedelta

    from ._ca_files import CAFiles


def create(
    files: CAFiles, *, common_name: str, lifetime: timedelta, intermediate: bool = True, permitted: Iterable[str]
) -> None:
    """Make a CA where these files are to be; see `PKIDirectory.create`."""
    root = CertificateAuthority.create(
        common_name=common_name, lifetime=lifetime, subordinates=intermediate, clock=files.clock
    )
    issuing = root
    if intermediate:
        issuing = root.subordinate(common_name=common_name, lifetime=lifetime, permitted=permitted)
    folder, now = files.folder, files.now()
    issuing.save(folder, password=files.password)
    # A roll-over that is under way ends: the CA that it is about is replaced by this one.
    if (folder / NEXT).exists():
        shutil.rmtree(folder / NEXT)
    for name in (OLD_FILE, OLD_ISSUER_FILE):
        (folder / name).unlink(missing_ok=True)
    lists = list(issuing.revocation_list(lifetime=rest_of(issuing, now)))
    if issuing is root:
        (folder / ROOT_KEY_FILE).unlink(missing_ok=True)
    else:
        root.save_key(folder / ROOT_KEY_FILE, password=files.password)
        lists += root.revocation_list(lifetime=rest_of(root, now))
    write_lists(folder, CRLSet(lists))
