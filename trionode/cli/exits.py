"""How the command line ends: exit statuses, and one line for each error.

Theory. A wrong input of any kind, here or at the peer, is an exception whose text says what is wrong and what to do.
Commands let it propagate; `judge` gives its exit status, and the entry point prints its text as one line. An exception
that is not known here is a bug of ours, and keeps its traceback.
"""

from __future__ import annotations

import base64
import errno
import math
from contextlib import contextmanager
from enum import IntEnum
from typing import TYPE_CHECKING, Final, TypeGuard, TypeVar, final

import click
import trio

from trionode._errors import (
    CertificateError,
    CertificateReason,
    HandshakeError,
    ListenError,
    NoRouteError,
    PeerRejectedError,
    PeerUnverifiedError,
    RemoteError,
    TrionodeError,
)
from trionode._node.resolvers import ResolverError
from trionode._util.private_directory import NotPrivateError
from trionode.enrolment import EnrolmentError, EnrolmentReason
from trionode.http.lifespan import LifespanError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator

T = TypeVar("T")


@final
class ExitStatus(IntEnum):
    """The exit statuses, the same for every command."""

    OK = 0
    FOUND = 1
    USAGE = 2
    FILES = 3
    NETWORK = 4
    REFUSED = 5
    REMOTE = 6
    INTERRUPTED = 130
    BROKEN_PIPE = 141


#: For `--help` and the manual.
MEANINGS: Final = {
    ExitStatus.OK: "success",
    ExitStatus.FOUND: "something is wrong with what was examined: a finding, a failed check",
    ExitStatus.USAGE: "the command line or the configuration file is not valid",
    ExitStatus.FILES: "a file is missing, in the way or not usable, or its password is wrong",
    ExitStatus.NETWORK: "no peer was reached, the connection was lost, or a port is in use",
    ExitStatus.REFUSED: "one side refused the other: certificate, name, cookie",
    ExitStatus.REMOTE: "the service at the peer, or the served application, did not do it",
    ExitStatus.INTERRUPTED: "Ctrl-C",
    ExitStatus.BROKEN_PIPE: "the reader of our output has gone, as in `| head`",
}


class Trouble(click.ClickException):
    """An error outside of this program; the text has the remedy."""

    def __init__(self, message: str, status: ExitStatus) -> None:
        super().__init__(message)
        self.status = status


@contextmanager
def listening_by(option: str) -> Iterator[None]:
    """An error of listening in the block names the option that says where.

    Raises:
        Trouble: in place of a `ListenError`.
    """
    try:
        yield
    except ListenError as exc:
        raise Trouble(f"{exc} ({option} HOST:PORT)", ExitStatus.NETWORK) from None


def judge(error: BaseException) -> ExitStatus | None:
    """The exit status for an error; None for an unexpected one."""
    from trionode._status.unix_socket import StatusError  # with it come nodes, which most commands do without

    match error:
        case Trouble():
            return error.status
        case CertificateError() | ResolverError(__cause__=CertificateError() | NotPrivateError() | ValueError()):
            return ExitStatus.FILES  # a registry that is a file or a directory
        case EnrolmentError(reason=EnrolmentReason.UNREACHABLE):
            return ExitStatus.NETWORK
        case PeerUnverifiedError() | PeerRejectedError() | EnrolmentError():
            return ExitStatus.REFUSED
        case HandshakeError() | ListenError() | ResolverError() | StatusError() | trio.BrokenResourceError():
            return ExitStatus.NETWORK
        case NoRouteError(causes=BaseExceptionGroup() as causes):
            # A route on which one side refused the other says more than routes on which no peer answered.
            kinds = {judge(each) for each in causes.exceptions}
            return ExitStatus.REFUSED if ExitStatus.REFUSED in kinds else ExitStatus.NETWORK
        case NoRouteError():
            return ExitStatus.NETWORK
        case RemoteError() | LifespanError():
            return ExitStatus.REMOTE
        case TrionodeError():
            return ExitStatus.USAGE
        case OSError(filename=str()):  # a path that cannot be examined: too long, in a directory without access
            return ExitStatus.FILES
        case _:
            return None


def sentence(error: BaseException) -> str:
    """The line to print for an error: its text, that of its cause, and the option that it is about."""
    text = str(error)
    match error:
        case trio.BrokenResourceError(__cause__=BaseException() as cause):
            return f"{text}: {cause}" if text else str(cause)
        case CertificateError(reason=CertificateReason.BAD_PASSWORD):
            return f"{text} (--password-file)"
        case ListenError():
            return f"{text} (--listen HOST:PORT)"
        case OSError(filename=str() as file):
            return f"cannot use {file}: {error.strerror}. Check the path and its permissions"
        case _:
            return text


def facts(error: BaseException) -> dict[str, object]:
    """What an error of a service says beside its sentence, for JSON: bytes are base64, infinities and NaN are null."""
    if not isinstance(error, RemoteError):
        return {}
    said = {"code": str(error.raw_code), "details": error.details, "metadata": dict(error.metadata)}
    return {name: _plain(value) for name, value in said.items() if value is not None and value != {}}


def _plain(value: object) -> object:
    match value:
        case bytes():
            return base64.b64encode(value).decode()
        case float():
            return value if math.isfinite(value) else None
        case list():
            return [_plain(each) for each in value]
        case dict():
            return {key: _plain(each) for key, each in value.items()}
        case _:
            return value


#: Errors of writing to stdout: `| head`, a full disk, a closed terminal, no stdout at all (see `descriptors`).
_UNWRITABLE: Final = {errno.EPIPE, errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EBADF}


def is_unwritable(error: BaseException) -> TypeGuard[OSError]:
    """Whether stdout cannot be written to; files that the program writes raise `CertificateError` instead."""
    return isinstance(error, OSError) and error.errno in _UNWRITABLE and not isinstance(error, TrionodeError)


def run(function: Callable[..., Awaitable[T]], *arguments: object) -> T:
    """`trio.run`; an error that nurseries have wrapped in groups is raised bare if it is the only one."""
    try:
        return trio.run(function, *arguments)
    except BaseExceptionGroup as group:
        leaves = _leaves(group)
        for leaf in leaves:
            if isinstance(leaf, KeyboardInterrupt) or is_unwritable(leaf):
                raise leaf from None
        if len(leaves) == 1 and judge(leaves[0]) is not None:
            raise leaves[0] from None
        raise


def _leaves(group: BaseExceptionGroup[BaseException]) -> list[BaseException]:
    found: list[BaseException] = []
    for each in group.exceptions:
        found += _leaves(each) if isinstance(each, BaseExceptionGroup) else [each]
    return found
