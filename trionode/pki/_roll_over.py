"""Replacing the CA in a directory by a new one, while those who have its certificates go on.

Theory. A roll-over has three steps, with time for every client to look between them. `begin`: there is a second CA,
which everyone is told to trust, too. `switch`: it issues in the first one's place. `retire`: the first is not trusted
any more.

A step that was interrupted is finished by doing it again; until then it is as if it had happened, or as if it had not.
What makes each step whole or absent is the order in which files are written. For `begin` what decides is that `next`
has its name, for `switch` that there is `old.pem` beside it: from then on the CA in `next` issues, while its files are
moved; `next/ca.pem`, which is removed last, ends that. Until then `retire` is refused: without `old.pem`, half of one
CA and half of another would be left.
"""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING, Final

from trionode._credentials.pem import to_pem

from ._authority import CA_FILE, CertificateAuthority
from ._ca_files import NEXT, OLD_FILE, OLD_ISSUER_FILE, ROOT_KEY_FILE, CAFiles
from ._constraints import permitted_by
from ._creation import create
from ._files import PUBLIC, replace_files
from ._revocation import rest_of, sign_lists

if TYPE_CHECKING:
    from collections.abc import Iterable
    from datetime import timedelta

#: The CA that is to come, while it is made.
_MAKING: Final = "next.tmp"


def begin(files: CAFiles, *, common_name: str, lifetime: timedelta, permitted: Iterable[str] | None) -> None:
    """See `PKIDirectory.begin_roll_over`."""
    folder = files.folder / NEXT
    if (folder / CA_FILE).exists() or (files.folder / OLD_FILE).exists():
        msg = f"a roll-over is under way in {files.folder}: switch or retire first"
        raise FileExistsError(msg)
    made = files.folder / _MAKING
    for leftover in (made, folder):
        shutil.rmtree(leftover, ignore_errors=True)
    create(
        CAFiles(made, password=files.password, clock=files.clock),
        common_name=common_name,
        lifetime=lifetime,
        permitted=permitted_by(files.look().signs.issuer) if permitted is None else permitted,
    )
    made.rename(folder)
    _sign_long_lists(files)


def switch(files: CAFiles) -> None:
    """See `PKIDirectory.switch`."""
    following, before = files.folder / NEXT, files.folder / OLD_FILE
    if not (following / CA_FILE).exists():
        if not before.exists():
            msg = f"no roll-over was begun in {files.folder}"
            raise FileNotFoundError(msg)
        shutil.rmtree(following, ignore_errors=True)
        return
    coming = CertificateAuthority.load(following, password=files.password, clock=files.clock)
    if not before.exists():
        # The old CA signs a last list, for as long as certificates of its may be around.
        _sign_long_lists(files)
        present = files.look().signs
        replace_files(
            [
                (files.folder / OLD_ISSUER_FILE, to_pem([present.issuer]), PUBLIC),
                (before, to_pem([present.certificate]), PUBLIC),
            ]
        )
    coming.save(files.folder, password=files.password)
    if (following / ROOT_KEY_FILE).exists():
        (following / ROOT_KEY_FILE).replace(files.folder / ROOT_KEY_FILE)
    _sign_long_lists(files)
    (following / CA_FILE).unlink()
    shutil.rmtree(following)


def _sign_long_lists(files: CAFiles) -> None:
    """Sign lists that last as long as the CA: services shorten that when they sign the next."""
    sign_lists(files, lifetime=rest_of(files.look().signs, files.now()))


def retire(files: CAFiles) -> None:
    """See `PKIDirectory.retire`."""
    file = files.folder / OLD_FILE
    if not file.exists():
        msg = f"there is no CA to retire in {files.folder}"
        raise FileNotFoundError(msg)
    if (files.folder / NEXT / CA_FILE).exists():
        msg = f"the switch in {files.folder} was interrupted: finish it by doing it again, then retire"
        raise FileExistsError(msg)
    file.unlink()
    (files.folder / OLD_ISSUER_FILE).unlink(missing_ok=True)
