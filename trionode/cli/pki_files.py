"""The `--pki` directory as the commands of `trionode pki` use it: its CA, its files, and what is wrong with these."""

from __future__ import annotations

import os
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from trionode._errors import CertificateError, CertificateReason
from trionode._identity.names import NodeName
from trionode.pki import PKIDirectory

from .exits import ExitStatus, Trouble
from .given import CA_FILE, cert_file, pki_words, read_password, unreadable
from .paths import exists, is_file

if TYPE_CHECKING:
    from collections.abc import Iterator


def open_ca(directory: Path, password_file: Path | None) -> PKIDirectory:
    """The CA in a directory.

    Raises:
        Trouble: there is none, or the password file is empty.
        CertificateError: a file is unusable.
    """
    if not exists(directory / CA_FILE):
        msg = f"there is no CA in {directory}; make one with: trionode pki init{pki_words(directory)}"
        raise Trouble(msg, ExitStatus.FILES)
    password = read_password(password_file)
    return PKIDirectory(directory, password=None if password is None else password.data)


def file_of(name: str, directory: Path) -> Path:
    """An existing file, or the certificate of a node in the directory.

    Raises:
        CertificateError: there is neither; the cause is a `FileNotFoundError` then.
    """
    file = Path(name)
    if not is_file(file) and "/" not in name:
        try:
            stem = str(NodeName.parse(name)) if "@" in name else name
        except ValueError:
            stem = name
        candidate = cert_file(directory, stem)
        for each in (candidate, directory / name):
            if is_file(each):
                return each
        if not exists(file):
            msg = f"there is neither a file {name} nor {candidate}; `trionode pki show` lists what there is"
            raise CertificateError(msg, reason=CertificateReason.UNREADABLE) from FileNotFoundError(name)
    return file


def refuse_to_overwrite(*files: Path, instead: str) -> None:
    """Insist that these are not there yet.

    Args:
        files: what is to be written.
        instead: what to do but `--force`.

    Raises:
        Trouble: one is there.
    """
    for file in files:
        if os.path.lexists(file):
            msg = f"{file} is there already, and is not overwritten without --force; or {instead}"
            raise Trouble(msg, ExitStatus.FILES)


@contextmanager
def for_files(what: str) -> Iterator[None]:
    """Errors of files in the block are those that the rest of the program handles.

    Args:
        what: what cannot be done then.

    Raises:
        Trouble: the step is not due.
        CertificateError: a file could not be read or written.
    """
    try:
        yield
    except OSError as exc:
        if exc.errno is None:  # ours, in words: a step that is not due
            raise Trouble(str(exc), ExitStatus.FILES) from None
        raise unreadable(exc, what) from None
