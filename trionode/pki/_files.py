"""Writing credentials: files that a reader sees whole or not at all.

Theory. Files are replaced atomically: written beside the target under a random name, with the final permissions from
the first byte, then moved over it, so a reader sees the old or the new content and never a part. A symbolic link is
replaced, not followed. What spans several files (a key pair, a CA) is first staged completely, so a full disk leaves
the old files as they were, and is then moved *key first, certificate last*. A reader that takes the certificate first,
as `KeyPair.load` does, can therefore never combine a new certificate with an old key; and a program that watches the
certificate finds the key in place when it changes. What can still be read in between, an old certificate with a new
key, is refused as `key_mismatch`; read again.
"""

from __future__ import annotations

import errno
import os
import secrets
from contextlib import ExitStack
from typing import TYPE_CHECKING, Final

from trionode._credentials.ca_pool import CAPool
from trionode._credentials.key_pair import KeyPair
from trionode._credentials.pem import as_path, private_key_to_pem, to_pem
from trionode._util.fields import check_argument

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from trionode._credentials.crl import CRLSet
    from trionode._credentials.pem import FilePath

__all__ = ["write_ca_pool", "write_crl_set", "write_key_pair"]

#: Permissions of private keys, and of everything else.
PRIVATE: Final = 0o600
PUBLIC: Final = 0o644


def write_key_pair(
    key_pair: KeyPair, cert_file: FilePath, key_file: FilePath, *, password: str | bytes | None = None
) -> None:
    """Write a key pair as `KeyPair.load` reads it: the chain as PEM, the key as PKCS#8, readable for the owner only.

    Each file is replaced atomically, the key first and the certificate last (the module says why); where both are the
    same file, it holds both and is replaced in one step. Blocks while it writes.

    Args:
        key_pair: what to write.
        cert_file: gets the certificates, leaf first, intermediates after it; mode 0644 less the umask.
        key_file: gets the private key; mode 0600.
        password: to encrypt the key with; by default it is not encrypted.

    Raises:
        OSError: a file cannot be written. Nothing was changed then, unless it was the last step that failed, moving the
            certificate to where it belongs.
        ValueError: the password is empty.
    """
    check_argument("key_pair", key_pair, KeyPair)
    cert, key = _target(cert_file), _target(key_file)
    key_pem = private_key_to_pem(key_pair.private_key, password)
    if cert == key:
        replace_files([(key, key_pem + to_pem(key_pair.chain), PRIVATE)])
    else:
        replace_files([(key, key_pem, PRIVATE), (cert, to_pem(key_pair.chain), PUBLIC)])


def write_ca_pool(pool: CAPool, file: FilePath) -> None:
    """Write a CA pool as `CAPool.load` reads it: all its certificates as PEM. Replaces the file atomically; blocks.

    Args:
        pool: what to write.
        file: the target; mode 0644 less the umask.

    Raises:
        OSError: the file cannot be written; nothing was changed.
    """
    check_argument("pool", pool, CAPool)
    replace_files([(_target(file), to_pem(pool), PUBLIC)])


def write_crl_set(crls: CRLSet, file: FilePath) -> None:
    """Write revocation lists as `CRLSet.load` reads them, as PEM. Replaces the file atomically; blocks.

    Args:
        crls: what to write.
        file: the target; mode 0644 less the umask.

    Raises:
        OSError: the file cannot be written; nothing was changed.
    """
    replace_files([(_target(file), to_pem(crls), PUBLIC)])


def replace_files(files: Iterable[tuple[Path, bytes, int]]) -> None:
    """Stage all the contents beside their targets, then move them there in the given order."""
    with ExitStack() as leftovers:
        staged: list[tuple[Path, Path]] = []
        for target, content, mode in files:
            if target.is_dir():
                raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(target))
            # Our own rather than the tempfile module's: that makes certificates unreadable for other users, too.
            temporary = target.with_name(f".{secrets.token_hex(8)}.tmp")
            descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
            leftovers.callback(temporary.unlink, missing_ok=True)
            with open(descriptor, "wb") as stream:  # noqa: PTH123 -- a descriptor, not a path
                stream.write(content)
            staged.append((temporary, target))
        for temporary, target in staged:
            temporary.replace(target)


def _target(file: FilePath) -> Path:
    """One path for one file, however it is spelt; a link in the last place stays, because it is what is replaced."""
    path = as_path(file)
    return path.parent.resolve() / path.name
