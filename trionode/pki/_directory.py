"""A CA with a memory, in a directory: all that can be done with it, in one class.

This is what its methods promise. How each is done stands beside: what the files say in `_ca_files`, making a CA in
`_creation`, tokens and certificates in `_issuing`, revocations and lists in `_revocation`, replacing the CA in
`_roll_over`; and what makes sure that nothing is forgotten in `_journal`.
"""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, final

from cryptography import x509

from trionode._credentials.pem import as_path

from . import _creation, _issuing, _revocation, _roll_over
from ._ca_files import CAFiles
from ._constraints import PRIVATE_NAMES

if TYPE_CHECKING:
    from collections.abc import Iterable
    from datetime import datetime
    from typing import Self

    from trionode._credentials.ca_pool import CAPool
    from trionode._credentials.crl import CRLSet
    from trionode._credentials.pem import FilePath
    from trionode._credentials.policy import Clock
    from trionode._identity.names import NodeName

    from ._authority import CertificateAuthority
    from ._tokens import JoinToken


@final
class PKIDirectory:
    """A CA with a memory, in a directory that `trionode pki init` or `CertificateAuthority.save` made.

    Issues by one-time token or for a certificate that is renewed, keeps a journal of that, revokes, and signs lists.
    All of it blocks for some milliseconds, as it reads and writes small files: in a Trio program call it in a thread
    (`trio.to_thread.run_sync`). It may be used from several threads, and the directory by several processes.
    """

    def __init__(self, directory: FilePath, *, password: str | bytes | None = None, clock: Clock | None = None) -> None:
        """Read the CA.

        Args:
            directory: where it is.
            password: of `ca.key`, if that is encrypted.
            clock: source of "now" (aware); by default the machine's clock.

        Raises:
            CertificateError: see `CertificateAuthority.load`.
        """
        self._files = CAFiles(as_path(directory), password=password, clock=clock)
        self._files.look()

    @classmethod
    def create(
        cls,
        directory: FilePath,
        *,
        common_name: str = "trionode CA",
        lifetime: timedelta = timedelta(days=3650),
        intermediate: bool = True,
        permitted: Iterable[str] = PRIVATE_NAMES,
        password: str | bytes | None = None,
        clock: Clock | None = None,
    ) -> Self:
        """Make a CA in a directory, as `trionode pki init` does; one that was there is replaced.

        Args:
            directory: made with mode 0700, if it is missing.
            common_name: of the CA's subjects.
            lifetime: of the CA, from now on.
            intermediate: whether an intermediate issues; its root's key is then in `root.key`, to be taken offline.
            permitted: what the intermediate may issue for, see `CertificateAuthority.subordinate`; by default names
                and addresses that no public network has.
            password: to encrypt the keys with.
            clock: source of "now" (aware); by default the machine's clock.

        Raises:
            OSError: a file could not be written.
            ValueError: an argument is not valid.
        """
        folder = as_path(directory)
        _creation.create(
            CAFiles(folder, password=password, clock=clock),
            common_name=common_name,
            lifetime=lifetime,
            intermediate=intermediate,
            permitted=permitted,
        )
        return cls(folder, password=password, clock=clock)

    def __repr__(self) -> str:
        return f"<PKIDirectory {self._files.folder}>"

    @property
    def clock(self) -> Clock | None:
        """Its source of "now", as it was given."""
        return self._files.clock

    def now(self) -> datetime:
        """The time by its clock."""
        return self._files.now()

    @property
    def authority(self) -> CertificateAuthority:
        """The CA that issues now.

        Raises:
            CertificateError: see `CertificateAuthority.load`.
        """
        return self._files.look().signs

    @property
    def roots(self) -> CAPool:
        """What clients are to trust: the root, and during a roll-over the one that comes or that goes.

        Raises:
            CertificateError: see `CertificateAuthority.load`.
        """
        return self._files.look().roots

    @property
    def issuers(self) -> CAPool:
        """What a service knows its clients by: the roots, and the CAs below them that issue now or did until `switch`.

        A client of EST gets its own certificate alone, and may present that alone.

        Raises:
            CertificateError: see `CertificateAuthority.load`.
        """
        return self._files.look().issuers

    # Tokens

    def make_token(self, names: str | NodeName, *, lifetime: timedelta = timedelta(hours=1)) -> JoinToken:
        """A one-time token; its secret is drawn here (256 bits), and kept nowhere.

        Args:
            names: the one that it is good for: a node name, a host, or a glob over node names, whose holder chooses.
            lifetime: how long it may be used.

        Raises:
            ValueError: it is no name, or one that the CA may not issue for; or the lifetime is not positive.
            CertificateError: the CA's files or the journal are damaged.
            OSError: it could not be written.
        """
        return _issuing.make_token(self._files, names, lifetime=lifetime)

    # Issuing

    def enrol(
        self,
        request: x509.CertificateSigningRequest,
        token: JoinToken,
        *,
        name: str | NodeName | None = None,
        lifetime: timedelta = timedelta(days=1),
        address: str | None = None,
    ) -> tuple[x509.Certificate, ...]:
        """Issue a first certificate, for a token, which is taken by that.

        Args:
            request: see `CertificateAuthority.sign`.
            token: what the client has.
            name: which of the names that the token is good for; by default its only one.
            lifetime: of the certificate.
            address: who asked, for the journal.

        Returns:
            The certificate, and the intermediate after it, if there is one.

        Raises:
            RequestRefusedError: nothing was issued, and the token was not taken by this.
            CertificateError: the CA has expired, or its files are damaged.
            OSError: the journal could not be written.
        """
        return _issuing.enrol(self._files, request, token, name=name, lifetime=lifetime, address=address)

    def renew(
        self,
        request: x509.CertificateSigningRequest,
        certificate: x509.Certificate,
        *,
        lifetime: timedelta = timedelta(days=1),
        address: str | None = None,
    ) -> tuple[x509.Certificate, ...]:
        """Issue a certificate in the place of another, with the same names.

        Args:
            request: see `CertificateAuthority.sign`.
            certificate: the present one, **which the caller has verified**, in a TLS handshake.
            lifetime: of the new one.
            address: who asked, for the journal.

        Returns:
            The certificate, and the intermediate after it, if there is one.

        Raises:
            RequestRefusedError: nothing was issued.
            CertificateError: the CA has expired, or its files are damaged.
            OSError: the journal could not be written.
        """
        return _issuing.renew(self._files, request, certificate, lifetime=lifetime, address=address)

    def record(self, certificate: x509.Certificate, *names: str | NodeName) -> None:
        """Note a certificate that was issued by `authority` directly, so that it may be renewed.

        Args:
            certificate: the leaf.
            names: that it was issued for.

        Raises:
            CertificateError: the journal is damaged.
            OSError: it could not be written.
        """
        _issuing.record(self._files, certificate, names)

    # Revocation

    def revoke(
        self,
        *revoked: x509.Certificate | NodeName | str,
        reason: x509.ReasonFlags = x509.ReasonFlags.unspecified,
    ) -> tuple[int, ...]:
        """Note that certificates are revoked; `sign_lists` makes it known. When this returns, it is not lost.

        Args:
            revoked: certificates that the present CA has issued. Or names, each for all that is on record as issued for
                it and has not ended; programs that have joined keep theirs to themselves. Or the serial number of one
                on record, in hexadecimal digits.
            reason: why (RFC 5280 section 5.3.1).

        Returns:
            The serial numbers of what is revoked now, also of what was before.

        Raises:
            LookupError: nothing that has not ended is on record under a name or serial number; nothing was revoked.
            CertificateError: the journal is damaged.
            OSError: it could not be written.
        """
        return _revocation.revoke(self._files, revoked, reason)

    def release(self, *certificates: x509.Certificate) -> None:
        """Note that certificates were revoked by mistake; `sign_lists` makes it known.

        Args:
            certificates: see `revoke`.

        Raises:
            CertificateError: the journal is damaged.
            OSError: it could not be written.
        """
        _revocation.release(self._files, certificates)

    def sign_lists(
        self, *, lifetime: timedelta = timedelta(days=7), released: Iterable[x509.Certificate] = ()
    ) -> CRLSet:
        """Sign `ca.crl` anew, from the journal and from what is on the present list.

        Lists of other CAs in the file, the root's for one, stay as they are; the root's is made again where it was lost
        and the root's key is still here.

        Args:
            lifetime: until the next list is due.
            released: what leaves the list; see `release`.

        Returns:
            All lists in the file.

        Raises:
            CertificateError: the journal or the list is damaged.
            OSError: a file could not be written.
        """
        return _revocation.sign_lists(self._files, lifetime=lifetime, released=released)

    def refresh_lists(self, *, lifetime: timedelta = timedelta(days=7)) -> CRLSet:
        """The lists; signed anew where less than half of `lifetime` is left or more than that, or something is missing.

        So a service bounds for how long an old list may be held out to a verifier. What is missing is what the journal
        has, a revocation that was noted and not signed.

        Args:
            lifetime: see `sign_lists`.

        Raises:
            CertificateError: see `sign_lists`.
            OSError: see `sign_lists`.
        """
        return _revocation.refresh_lists(self._files, lifetime=lifetime)

    # Roll-over

    def begin_roll_over(
        self,
        *,
        common_name: str = "trionode CA",
        lifetime: timedelta = timedelta(days=3650),
        permitted: Iterable[str] | None = None,
    ) -> None:
        """Make the CA that is to come, and have clients trust it; it does not issue yet.

        Args:
            common_name: see `create`.
            lifetime: see `create`.
            permitted: see `create`; None for what the present CA may issue for.

        Raises:
            CertificateError: the CA's files are damaged.
            FileExistsError: a roll-over is under way.
            OSError: a file could not be written.
            ValueError: an argument is not valid.
        """
        _roll_over.begin(self._files, common_name=common_name, lifetime=lifetime, permitted=permitted)

    def switch(self) -> None:
        """Have the CA that was to come issue from now on; the one before is still trusted. Safe to repeat.

        Raises:
            FileNotFoundError: no roll-over was begun.
            CertificateError: a file is damaged.
            OSError: one could not be written.
        """
        _roll_over.switch(self._files)

    def retire(self) -> None:
        """Have clients no longer trust the CA that was before.

        Raises:
            FileNotFoundError: there is none.
            FileExistsError: `switch` was interrupted, and has to be finished first.
        """
        _roll_over.retire(self._files)
