"""What OpenSSL does not see of name constraints: wildcards that reach into an excluded subtree (CVE-2025-61727).

Theory. `*.example.com` covers `secret.example.com`. Where a CA must not issue for `secret.example.com`, it must not
issue for that wildcard; OpenSSL compares names as they are written, and the wildcard is not below the excluded name.
Permitted subtrees need nothing: a wildcard is below one only if all that it covers is.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from cryptography import x509

from trionode._identity.certificate import UnreadableError, extension, subject_alt_names

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence


def excluded_wildcard(path: Sequence[x509.Certificate]) -> int | None:
    """The certificate of a path, its leaf being 0, that has a wildcard which a CA above it excludes; None if none has.

    Args:
        path: from a leaf to an anchor.
    """
    wildcards = [[*_wildcards(each)] for each in path]
    if not any(wildcards):
        return None
    parents: set[str] = set()
    for depth in range(len(path) - 1, -1, -1):
        if not parents.isdisjoint(wildcards[depth]):
            return depth
        try:
            constraints = extension(path[depth], x509.NameConstraints)
        except UnreadableError:  # fail closed: they might say anything
            return depth
        for each in () if constraints is None else constraints.excluded_subtrees or ():
            if isinstance(each, x509.DNSName):
                parents.add(each.value.lower().partition(".")[2])
    return None


def _wildcards(certificate: x509.Certificate) -> Iterator[str]:
    """Below which names a certificate covers any label: `example.com` for `*.example.com`."""
    try:
        names = subject_alt_names(certificate)
    except UnreadableError:  # offers nothing
        return
    for name in names:
        if name.kind == "DNS" and name.value is not None and name.value.startswith("*."):
            yield name.value[2:].lower()
