"""An application's lifespan (ASGI, "Lifespan Protocol"): one task of it beside the server, told to start and to stop.

Theory. The application is called once with a scope of type `lifespan`, receives `startup`, answers, and later receives
`shutdown` and answers. One that does not know the protocol raises, or returns, before it has received anything: the
server goes on without. One that raises once it has received `startup` has failed to start, whatever it meant; the
specification would have servers go on, and serve an application without its database. A start that fails, or takes too
long, is a `LifespanError`.

The state that the application fills while it starts is copied into each request's scope.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, Final, TypeAlias, final

import trio

from trionode._errors import TrionodeError
from trionode._util.log import Log

#: As ASGI has them: what is in a message depends on its type.
Message: TypeAlias = MutableMapping[str, Any]
Scope: TypeAlias = MutableMapping[str, Any]
Receive: TypeAlias = Callable[[], Awaitable[Message]]
Send: TypeAlias = Callable[[Message], Awaitable[None]]
ASGIApplication: TypeAlias = Callable[[Scope, Receive, Send], Awaitable[object]]

_log: Final = Log("trionode.http")

#: An application that says that it could not start mostly raises the reason next. Seconds.
_REASON: Final = 1.0


@final
class LifespanError(TrionodeError):
    """An ASGI application failed to start, in its lifespan; `__cause__` is what it raised, if it did.

    Attributes:
        message: its own words, if it sent some.
    """

    def __init__(self, text: str, *, message: str = "") -> None:
        super().__init__(text)
        self.message = message


@final
class Lifespan:
    """One application's lifespan.

    Attributes:
        state: what the application put there when it started.
    """

    def __init__(self, app: ASGIApplication) -> None:
        self.state: dict[str, Any] = {}
        self._app = app
        self._received = False
        self._started: bool | None = None
        self._answered = trio.Event()
        self._told_to_stop = trio.Event()
        self._stopped = trio.Event()
        self._over = trio.Event()
        self._error: Exception | None = None
        self._message = ""

    async def run(self) -> None:
        """Call the application; returns when it does. What it raises is kept, or logged where no task waits for it."""
        scope: Scope = {
            "type": "lifespan",
            "asgi": {"version": "3.0", "spec_version": "2.0"},
            "state": self.state,
        }
        try:
            await self._app(scope, self._receive, self._send)
        except Exception as exc:  # noqa: BLE001 -- an application may raise anything
            self._error = exc
            if self._started:
                _log.error("the application's lifespan has ended by an exception", exc_info=exc)
        finally:
            for event in (self._answered, self._stopped, self._over):
                event.set()

    async def _receive(self) -> Message:
        if not self._received:
            self._received = True
            await trio.lowlevel.checkpoint()
            return {"type": "lifespan.startup"}
        await self._told_to_stop.wait()
        return {"type": "lifespan.shutdown"}

    async def _send(self, message: Message) -> None:
        await trio.lowlevel.checkpoint()
        self._message = str(message.get("message", ""))
        match message["type"]:
            case "lifespan.startup.complete" | "lifespan.startup.failed" if self._started is None:
                self._started = message["type"] == "lifespan.startup.complete"
                self._answered.set()
            case "lifespan.shutdown.complete" if self._told_to_stop.is_set():
                self._stopped.set()
            case "lifespan.shutdown.failed" if self._told_to_stop.is_set():
                _log.error("the application could not stop in order: %s", self._message)
                self._stopped.set()
            case kind:
                msg = f"the message {kind!r} is not expected now"
                raise RuntimeError(msg)

    async def wait_started(self, patience: float) -> LifespanError | None:
        """Wait until the application has started, or does without; what went wrong, if something did.

        Args:
            patience: how long that may take, seconds.
        """
        with trio.move_on_after(patience) as scope:
            await self._answered.wait()
        if scope.cancelled_caught:
            return LifespanError(f"the application did not start within {patience:g} s (lifespan.startup)")
        if self._started is False:
            with trio.move_on_after(_REASON):
                await self._over.wait()
            # Frameworks send a whole traceback; its last line says what happened.
            last = self._message.strip().rpartition("\n")[2]
            error = LifespanError(f"the application could not start: {last or self._error}", message=self._message)
        elif self._started is None and self._received and self._error is not None:
            kind = type(self._error).__name__
            error = LifespanError(f"the application could not start: its lifespan raised {kind}: {self._error}")
        else:
            return None
        error.__cause__ = self._error
        return error

    async def stop(self, patience: float) -> None:
        """Tell the application to stop, if it has started and not ended, and wait until it has.

        Args:
            patience: how long that may take, seconds; then it is logged, and the application is the caller's to cancel.
        """
        if not self._started or self._over.is_set():
            return
        self._told_to_stop.set()
        with trio.move_on_after(patience) as scope:
            await self._stopped.wait()
        if scope.cancelled_caught:
            _log.error("the application did not stop within %g s (lifespan.shutdown), and is cancelled", patience)
