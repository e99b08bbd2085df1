"""One TLS connection over memory buffers, sans-IO.

Theory. Ciphertext is fed in and taken out, so that the caller alone decides when bytes move, and byte order is
encryption order. A session does no I/O and knows no Trio.

Errors of OpenSSL repeat without their text, so a session keeps its first failure and raises that for ever after.

Bounds. OpenSSL is given a bounded number of records at a time, so that no read holds up the event loop for long.
Records without application data (KeyUpdate, NewSessionTicket, empty ones) cost us key derivations, and each KeyUpdate
that asks for one in return leaves 27 bytes to be sent, so they are counted, and a peer that sends little else is ended.
Go's crypto/tls ends a connection after 16 such records in a row, which one byte of data after every 15 gets round; here
the count is over the whole connection, in proportion to the records with data.

Memory. OpenSSL's memory BIOs never shrink: after a transfer they would keep some 200 KiB at each end for good. So new
ones are put in their place now and then (`relieve`), when nothing is in them.

Python that OpenSSL calls (verify, ALPN and certificate callbacks) must not be interrupted: cffi would swallow a
KeyboardInterrupt there, and a refusal would be made of it. So the methods that enter OpenSSL are protected, and with
them everything that they call; Trio delivers the interrupt at the next checkpoint.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Final, NoReturn, final

from OpenSSL import SSL, crypto
from trio.lowlevel import enable_ki_protection

from trionode._errors import HandshakeError, HandshakeReason, UnverifiedReason
from trionode._identity.certificate import has_dates
from trionode._util.quiet import quietly
from trionode._util.text import Buffer, printable

from .binding import openssl_reason, renew_buffers, unread
from .candidates import Candidate
from .client_hello import server_name_text

if TYPE_CHECKING:
    from collections.abc import Iterable

    from cryptography import x509

    from .failures import HandshakeErrors
    from .verification import Examination

#: A TLS record carries at most this much plaintext (RFC 8446 section 5.1).
RECORD_SIZE: Final = 16 * 1024

_CHUNK: Final = 64 * 1024
#: What a record adds to its plaintext: header, content type, tag (RFC 8446 section 5.2).
_RECORD_OVERHEAD: Final = 5 + 1 + 16
#: Headroom for TLS messages that OpenSSL sends by itself: handshake flights, dead tickets, alerts.
_HEADROOM: Final = 4096

#: What is put into a BIO at once makes it as large, and a third more. Above this it is worth a new one. Bytes.
_SWOLLEN: Final = 32 * 1024

#: Complete records that OpenSSL is given at once. 64 KeyUpdates take some 2 ms, 64 full records are 1 MiB.
_AT_ONCE: Final = 64

#: Records without data that a peer may send: so many, and one more for so many records with data. A server sends a few
#: tickets; a KeyUpdate is due every 2^24 records (RFC 8446 section 5.5).
_IDLE_RECORDS: Final = 32
_DATA_PER_IDLE_RECORD: Final = 64
#: Of these, since something was last sent: each may have an answer waiting.
_UNANSWERED: Final = 256

#: Alerts whose reason strings do not have the word (sslerr.h, from RFC 6066).
_UNMARKED_ALERTS: Final = frozenset({"tlsv1 unrecognized name", "tlsv1 unsupported extension"})


@final
class NoOverlap(Exception):  # noqa: N818 -- carries a verdict through OpenSSL's ALPN callback
    """Raised in the ALPN callback: the way to have the `no_application_protocol` alert sent."""


@final
class RecordScanner:
    """Counts the records that are complete in a stream of ciphertext, by their headers (RFC 8446 section 5.1).

    It saves asking OpenSSL once more after each record whether that was all, which costs an exception. Its count is an
    upper bound: records that hold no data are counted, too, and then OpenSSL is asked once in vain.
    """

    __slots__ = ("_header", "_left", "complete", "total")

    def __init__(self) -> None:
        #: Complete records that were fed and not taken; None if that is not known.
        self.complete: int | None = None
        #: Complete records so far.
        self.total: int = 0
        self._header = b""
        self._left = 0

    def feed(self, data: Buffer) -> int:
        """Look at more ciphertext, as far as the end of the 64th record in it; returns how many bytes that was."""
        position, end, found = 0, len(data), 0
        while position < end and found < _AT_ONCE:
            if self._left:
                step = min(self._left, end - position)
                self._left -= step
                position += step
                found += not self._left
            elif position + 5 <= end and not self._header:
                size = data[position + 3] << 8 | data[position + 4]
                position += 5
                self._left = max(0, size - (end - position))
                position += size - self._left
                found += not self._left
            else:
                wanted = 5 - len(self._header)
                header = self._header + bytes(data[position : position + wanted])
                position += wanted
                if len(header) < 5:
                    self._header = header
                    break
                self._header = b""
                self._left = header[3] << 8 | header[4]
                found += not self._left
        if self.complete is not None:
            self.complete += found
        self.total += found
        return position


@final
class TLSSession:
    """One TLS connection over memory: feed ciphertext in, take ciphertext out.

    Every method is synchronous and either succeeds or raises a `HandshakeError`; the first is final. Whatever the
    outcome, `outgoing()` may hold bytes that the peer should get (an alert, for one).
    """

    __slots__ = (
        "_answered",
        "_connection",
        "_data_records",
        "_examination",
        "_failure",
        "_first_buffers",
        "_held",
        "_produced",
        "_scanner",
        "peer_certificate",
        "records_received",
        "records_sent",
        "swollen",
        "verified",
    )

    @enable_ki_protection
    def __del__(self) -> None:
        """Forget OpenSSL's part here: pyOpenSSL notices by a callback, in which a Ctrl-C would be lost."""
        if hasattr(self, "_connection"):  # it was made
            del self._connection

    def __init__(self, connection: SSL.Connection, examination: Examination) -> None:
        self._connection = connection
        self._examination = examination
        self._failure: HandshakeError | None = None
        self._produced = 0
        self._scanner = RecordScanner()
        # Ciphertext that OpenSSL is to get when it is done with what it has.
        self._held: Buffer = b""
        # Of the records that OpenSSL was given: those that held data, and the others when something was last sent.
        self._data_records = 0
        self._answered = 0
        #: The peer's leaf certificate, once the handshake is done; None if it sent none.
        self.peer_certificate: x509.Certificate | None = None
        #: Whether this side verified that certificate (and, dialling, its name), once the handshake is done.
        self.verified: bool = False
        #: Records of data so far, under one key each way: AES-GCM is good for 2^24.5 (RFC 8446 section 5.5).
        self.records_sent: int = 0
        self.records_received: int = 0
        #: Whether the BIOs are large, from a transfer.
        self.swollen: bool = False
        # Those of the handshake are not small.
        self._first_buffers = True

    # Ciphertext

    @enable_ki_protection
    def feed(self, data: Buffer) -> None:
        """Take ciphertext from the transport; what is not for OpenSSL yet is copied."""
        if data:
            taken = self._scanner.feed(data)
            if taken > _SWOLLEN:
                self.swollen = True
            with memoryview(data) as view:
                self._connection.bio_write(view[:taken])
                self._held = bytes(view[taken:])

    def _feed_held(self) -> bool:
        """Give OpenSSL more of what it was not given at once; whether there was any."""
        held, self._held = self._held, b""
        self.feed(held)
        return bool(held)

    def feed_eof(self) -> None:
        """The transport ended."""
        self._connection.bio_shutdown()
        self._scanner.complete = None

    @enable_ki_protection
    def outgoing(self) -> bytes:
        """All ciphertext that waits to be sent; empty if there is none."""
        # One read of the right size: to ask OpenSSL for more than there is costs an exception, larger buffers cost.
        size = self._produced + _HEADROOM
        self._produced = 0
        self._answered = self._idle_records
        pieces: list[bytes] = []
        with contextlib.suppress(SSL.WantReadError):
            pieces.append(self._connection.bio_read(size))
            while len(pieces[-1]) == size:
                size = _CHUNK
                pieces.append(self._connection.bio_read(size))
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    @enable_ki_protection
    def relieve(self) -> None:
        """Give the memory back that OpenSSL's buffers have grown to, if nothing is in them."""
        if (self.swollen or self._first_buffers) and self._scanner.complete == 0 and renew_buffers(self._connection):
            self.swollen = self._first_buffers = False

    # Handshake

    @enable_ki_protection
    def handshake(self) -> bool:
        """One step of the handshake; True once it is done, False while it needs more from the peer."""
        self._raise_if_failed()
        try:
            self._connection.do_handshake()
        except SSL.WantReadError:
            return self._feed_held() and self.handshake()
        except NoOverlap:
            self._fail(self.errors.misbehaved(HandshakeReason.NO_APPLICATION_PROTOCOL))
        except SSL.Error as exc:
            self._fail(self._translate(exc))
        self._conclude()
        return True

    def _conclude(self) -> None:
        examination = self._examination
        if examination.refusal is not None:
            self._fail(examination.refusal)
        certificate = examination.leaf
        try:
            if certificate is None:
                with quietly():
                    certificate = self._connection.get_peer_certificate(as_cryptography=True)
            readable = certificate is None or has_dates(certificate)  # year 0 is valid DER, for one
        except Exception:  # noqa: BLE001 -- an unverified peer may send anything, and it may fail in any way
            readable = False
        if not readable:
            self._fail(self.errors.misbehaved("certificate cannot be parsed"))
        self._data_records = self._scanner.total  # those of the handshake do not count
        self._recount()
        self.peer_certificate = certificate
        self.verified = examination.verifies and examination.leaf is not None
        if (
            examination.verifies
            and not self.verified
            and (self.peer_certificate is not None or not examination.accepting)
        ):
            self._fail(self.errors.misbehaved("verification did not run"))
        if examination.insist_on_alpn and self.alpn is None:
            self.outgoing()  # dropped: it holds our certificate, and this is no peer of ours
            self._fail(self.errors.misbehaved(HandshakeReason.NO_APPLICATION_PROTOCOL))

    @property
    def peer_chain(self) -> tuple[x509.Certificate, ...]:
        """The certificates that the peer presented, its leaf first; parsed anew each time, nothing more is kept.

        Those that cannot be parsed are left out: no path leads through them.
        """
        if self.peer_certificate is None:
            return ()
        chain = self._connection.get_peer_cert_chain() or []
        # A server's OpenSSL keeps the leaf apart.
        return (self.peer_certificate, *_parsed(chain if self._examination.accepting else chain[1:]))

    @property
    def presented(self) -> bool:
        """Whether the peer has seen our certificate: a server's always, a client's if it was asked for."""
        return self._examination.accepting or self._examination.certificate_requested

    @property
    def server_name(self) -> str | None:
        """The server name that the client asked for (SNI, RFC 6066 section 3), in lower case; None if it did not."""
        name = self._connection.get_servername()
        return None if name is None else server_name_text(name)

    @property
    def shown_chain(self) -> tuple[x509.Certificate, ...]:
        """What a server has presented so far, also where the handshake failed; empty if its leaf cannot be parsed."""
        chain = self._connection.get_peer_cert_chain() or []
        leaf = _parsed(chain[:1])
        return (*leaf, *_parsed(chain[1:])) if leaf else ()

    @property
    def certificate_requested(self) -> bool:
        """Whether the server has asked for our certificate."""
        return self._examination.certificate_requested

    @property
    def requested_cas(self) -> dict[bytes, str]:
        """The CAs whose certificates the server says it accepts (RFC 8446 section 4.2.4), DER to text; often none."""
        return {name.der(): _name_shown(name) for name in self._connection.get_client_ca_list()}

    # Plaintext

    @enable_ki_protection
    def encrypt(self, data: Buffer) -> None:
        """Encrypt into `outgoing()`."""
        self._raise_if_failed()
        if data:
            records = -(-len(data) // RECORD_SIZE)
            self.records_sent += records
            self._produced += len(data) + records * _RECORD_OVERHEAD
            if self._produced > _SWOLLEN:
                self.swollen = True
            try:
                self._connection.sendall(data)
            except SSL.Error as exc:
                self._fail(self._translate(exc))

    @property
    def readable(self) -> bool:
        """Whether `decrypt` may find something."""
        return self._scanner.complete != 0 or bool(self._held)

    @enable_ki_protection
    def decrypt(self, limit: int | None = None) -> list[bytes] | None:
        """Plaintext, one piece a record: None if there is none yet, [] at the end.

        What it does is bounded: where there is more, `readable` says so. The end is the peer's close_notify; a
        transport that just ended is an error.

        Args:
            limit: at most so many bytes; by default all that is there.
        """
        self._raise_if_failed()
        scanner, recv = self._scanner, self._connection.recv
        pieces: list[bytes] = []
        ask = RECORD_SIZE
        if scanner.complete == 0:
            self._feed_held()
        while scanner.complete != 0:
            if limit is not None:
                ask = min(limit, RECORD_SIZE)
                if not ask:
                    break
            try:
                piece = recv(ask)
            except SSL.WantReadError:
                scanner.complete = 0
                self._bound_idle_records()
                if not pieces:
                    self._raise_if_failed()
                break
            except SSL.ZeroReturnError:
                scanner.complete = None  # the next call meets the same end
                return pieces
            except SSL.Error as exc:
                if pieces:  # the failure is the session's for good, so the next call meets it again
                    scanner.complete = None
                    break
                self._fail(self._translate(exc))
            self.records_received += 1
            if limit is None or not self._connection.pending():  # the last piece of its record
                self._data_records += 1
            pieces.append(piece)
            if limit is not None:
                limit -= len(piece)
            if ask < RECORD_SIZE or scanner.complete is None:  # there may be more of that record
                self._recount()
                if scanner.complete == 0:
                    self._bound_idle_records()
                    break
            else:
                scanner.complete -= 1
        return pieces or None

    def _recount(self) -> None:
        """Where OpenSSL has nothing left, to ask it would cost an exception; else how much it has is not known."""
        self._scanner.complete = None if self._connection.pending() or unread(self._connection) else 0

    @property
    def _idle_records(self) -> int:
        """Records without data that OpenSSL was given, once it has taken all."""
        return self._scanner.total - self._data_records

    def _bound_idle_records(self) -> None:
        """Fail where the peer sends little else; what it has sent before that is still given out."""
        idle = self._idle_records
        allowed = _IDLE_RECORDS + self._data_records // _DATA_PER_IDLE_RECORD
        if idle > allowed or idle - self._answered > _UNANSWERED:
            self._failure = self.errors.misbehaved("too many records without data")
            self._scanner.complete = None  # the next call has it

    @enable_ki_protection
    def finish(self) -> None:
        """Put our close_notify into `outgoing()`; receiving goes on (RFC 8446 section 6.1)."""
        if self._failure is None:
            with contextlib.suppress(SSL.Error):
                self._connection.shutdown()

    # Facts

    @property
    def alpn(self) -> str | None:
        """The protocol that was agreed on, or None."""
        return self._connection.get_alpn_proto_negotiated().decode("ascii", "backslashreplace") or None

    @property
    def tls_version(self) -> str:
        """The protocol version, `TLSv1.3`."""
        return self._connection.get_protocol_version_name()

    @property
    def cipher(self) -> str | None:
        """The cipher suite's name."""
        return self._connection.get_cipher_name()

    def export_keying_material(self, label: bytes, length: int, context: bytes | None = None) -> bytes:
        """A secret that only the two ends of this session know (RFC 8446 section 7.5, RFC 9266)."""
        return self._connection.export_keying_material(label, length, context)

    # Failure

    @property
    def errors(self) -> HandshakeErrors:
        """Builds what this session raises."""
        return self._examination.errors

    def _raise_if_failed(self) -> None:
        if self._failure is not None:
            raise self._failure.with_traceback(None) from self._failure.__cause__

    def _fail(self, failure: HandshakeError) -> NoReturn:
        self._failure = failure
        raise failure from failure.__cause__

    def _translate(self, exc: SSL.Error) -> HandshakeError:
        """What an error of OpenSSL means: the transport ended, one side refused the other, or the peer misbehaved."""
        if isinstance(exc, SSL.SysCallError):
            return self.errors.truncated()
        if self._examination.refusal is not None:
            return self._examination.refusal
        reason = openssl_reason(exc)
        if reason == "peer did not return a certificate":
            return self.errors.unverified(
                UnverifiedReason.NO_CERTIFICATE,
                "client refused: it sent no certificate, and this acceptor requires one. Give the client a key pair "
                "signed by a CA of our client-CA pool (a client that holds another CA's certificate may send none)",
                wanted="a client certificate",
            )
        if " alert " in f" {reason}" or reason in _UNMARKED_ALERTS:
            return self.errors.rejected_by_alert(reason.rpartition("alert ")[2].removeprefix("tlsv1 "))
        return self.errors.misbehaved(reason)


def _parsed(natives: Iterable[crypto.X509]) -> tuple[x509.Certificate, ...]:
    """Those that can be."""
    return tuple(each.certificate for each in map(Candidate, natives) if each.is_readable)


def _name_shown(name: crypto.X509Name) -> str:
    """A distinguished name from the wire, as RFC 4514 writes it."""
    parts = (f"{key.decode()}={value.decode(errors='replace')}" for key, value in reversed(name.get_components()))
    return printable(",".join(parts), 120)
