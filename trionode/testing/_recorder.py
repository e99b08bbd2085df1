"""What was called, with which metadata, and how it ended: an interceptor that takes notes."""

from __future__ import annotations

from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, final

if TYPE_CHECKING:
    from collections.abc import Mapping

    from trionode._connection.interceptors import CallSide, InterceptedCall, Proceed

__all__ = ["CallRecorder", "RecordedCall"]


@final
@dataclass(kw_only=True, slots=True)
class RecordedCall:
    """A call or channel that a `CallRecorder` has seen.

    Attributes:
        side: at which end.
        service: the name of the service.
        name: the node at the other end; at the caller as it was asked for.
        one_reply: whether it is a call, of one message each way; False for a channel.
        metadata: what was said beside the messages, when the recorder was reached.
        request: the message of a call, at the caller's side; None elsewhere.
        reply: the same of its reply; None before, and where there is none.
        ended: whether it is over.
        error: what it has ended with, a cancellation included; None for nothing.
    """

    side: CallSide
    service: str
    name: str
    one_reply: bool
    metadata: Mapping[str, str | bytes]
    request: bytes | None
    reply: bytes | None = None
    ended: bool = False
    error: BaseException | None = None


@final
class CallRecorder:
    """An interceptor that notes each call and channel, for assertions; it changes nothing.

    Last in `NodeOptions.interceptors` it sees the metadata that is sent, with what the others have added.

    Attributes:
        calls: all so far, in the order in which they began.
    """

    def __init__(self) -> None:
        self.calls: list[RecordedCall] = []

    async def __call__(self, call: InterceptedCall, proceed: Proceed) -> bytes | None:
        """Intercept.

        Args:
            call: what is noted.
            proceed: the rest.
        """
        record = RecordedCall(
            side=call.side,
            service=call.service,
            name=call.name,
            one_reply=call.one_reply,
            metadata=MappingProxyType(dict(call.metadata)),
            request=call.request,
        )
        self.calls.append(record)
        try:
            record.reply = await proceed()
        except BaseException as exc:
            record.error = exc
            raise
        finally:
            record.ended = True
        return record.reply
