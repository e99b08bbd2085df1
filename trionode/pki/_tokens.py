"""Join tokens: how a program that has nothing yet gets its first certificate.

A token is a secret of 256 bits, the fingerprint of the CA that it is for, and the name that it is good for. The
fingerprint is what makes first contact safe: a client compares the CA's certificate with it before it sends the secret,
so nothing is trusted because it was there first. The CA keeps a SHA-256 of the secret alone.
"""

from __future__ import annotations

import base64
import hashlib
import re
import secrets
from typing import TYPE_CHECKING, Final, final

from trionode._identity.names import NodeName, canonical_host
from trionode._identity.patterns import NamePattern, is_glob
from trionode._util.fields import check_argument
from trionode._util.immutable import Immutable

if TYPE_CHECKING:
    from typing import Self

_PREFIX: Final = "tn1"
_BYTES: Final = 32
_SYNTAX: Final = re.compile(rf"{_PREFIX}\.([\w-]{{43}})\.([\w-]{{43}})\.([\w-]{{1,400}})", re.ASCII)


@final
class JoinToken(Immutable):
    """A one-time token; neither its `repr` nor any message shows its secret.

    Attributes:
        ca_fingerprint: SHA-256 of the root CA's certificate, lower-case hexadecimal digits.
        names: the name that it is good for, or a glob over names (`worker-*@*.example`).
    """

    __slots__ = ("_secret", "ca_fingerprint", "names")

    ca_fingerprint: str
    names: str
    _secret: bytes

    def __init__(self, secret: bytes, ca_fingerprint: str, names: str) -> None:
        """A token from its parts; `parse` and `PKIDirectory.make_token` call this.

        Args:
            secret: 32 bytes.
            ca_fingerprint: see the class.
            names: see the class.
        """
        object.__setattr__(self, "_secret", secret)
        object.__setattr__(self, "ca_fingerprint", ca_fingerprint)
        object.__setattr__(self, "names", names)

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read a token as `trionode pki token` prints it.

        Args:
            text: white space around it makes no difference.

        Raises:
            ValueError: it is none; the text is not shown.
        """
        check_argument("a join token", text, str)
        found = _SYNTAX.fullmatch(text.strip())
        msg = f"this is no join token: those that `trionode pki token` makes begin with {_PREFIX}. and have four parts"
        if found is None:
            raise ValueError(msg)
        try:
            secret, fingerprint, names = (
                base64.urlsafe_b64decode(part + "=" * (-len(part) % 4)) for part in found.groups()
            )
            return cls(secret, fingerprint.hex(), checked_names(names.decode()))
        except ValueError:
            raise ValueError(msg) from None

    @classmethod
    def _draw(cls, ca_fingerprint: str, names: str) -> Self:
        return cls(secrets.token_bytes(_BYTES), ca_fingerprint, names)

    def reveal(self) -> str:
        """The token as text, secret included: to hand it to the program that is to join."""
        parts = (self._secret, bytes.fromhex(self.ca_fingerprint), self.names.encode())
        return ".".join((_PREFIX, *(base64.urlsafe_b64encode(each).rstrip(b"=").decode() for each in parts)))

    @property
    def digest(self) -> str:
        """SHA-256 of the secret: what the CA keeps, and calls it by."""
        return hashlib.sha256(self._secret).hexdigest()

    def __repr__(self) -> str:
        return f"<JoinToken for {self.names}, of the CA {self.ca_fingerprint[:16]}…>"

    def __reduce_ex__(self, protocol: object) -> str:
        """Refuse: a pickle would carry the secret."""
        msg = "a JoinToken cannot be pickled: use reveal() where it is to leave this process"
        raise TypeError(msg)


def checked_names(text: str) -> str:
    """What tokens and policies name, in canonical form: a node name, a glob over node names, or a host.

    Raises:
        ValueError: it is none of these.
    """
    if "@" in text or is_glob(text):
        return NamePattern(text).text
    return canonical_host(text)


def names_match(pattern: str, name: NodeName | str) -> bool:
    """Whether a name is one that a token or a policy names.

    Args:
        pattern: as `checked_names` gives it; `*` stands for all names, hosts included.
        name: a node's or, as text, a host's; canonical.
    """
    if pattern == "*":
        return True
    if isinstance(name, NodeName):
        return "@" in pattern and NamePattern(pattern).matches(name)
    return pattern == name
