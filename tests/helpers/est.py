"""An EST service on loopback, with a clock that tests move."""

from __future__ import annotations

import json
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import trio

from moving_clock import Clock
from trionode.enrolment import EnrolmentPolicy, ESTSource, serve_est
from trionode.pki import PKIDirectory

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path


class Service:
    """An EST service that runs, or does not.

    Attributes:
        folder: of its CA.
        clock: its time.
        ca: its directory.
        port: where it listens.
    """

    def __init__(self, folder: Path, nursery: trio.Nursery, policy: EnrolmentPolicy) -> None:
        self.folder = folder
        self.clock = Clock()
        self.ca = PKIDirectory.create(folder, clock=self.clock)
        self.policy = policy
        self.port = 0
        self._nursery = nursery
        self._scope = trio.CancelScope()

    async def start(self) -> None:
        """Listen; on the same port as before."""
        self._scope = trio.CancelScope()
        await self._nursery.start(self._run)

    async def _run(self, *, task_status: trio.TaskStatus[None]) -> None:
        with self._scope:
            async with trio.open_nursery() as nursery:
                names = ("localhost", "127.0.0.1")
                serve = self._serve
                listeners = await nursery.start(serve, names)
                self.port = listeners[0].socket.getsockname()[1]
                task_status.started()

    async def _serve(self, names: tuple[str, ...], *, task_status: trio.TaskStatus[Any]) -> None:
        await serve_est(
            self.ca,
            self.port,
            names=names,
            host="127.0.0.1",
            policy=self.policy,
            grace=0.2,
            task_status=task_status,
        )

    def stop(self) -> None:
        """Be gone."""
        self._scope.cancel()

    @property
    def url(self) -> str:
        """Where it is."""
        return f"https://localhost:{self.port}"

    def source(self, name: str, **more: Any) -> ESTSource:
        """A client with a fresh token, unless it has something else."""
        if not {"token", "key_pair", "auth"} & set(more):
            more["token"] = self.ca.make_token(name)
        return ESTSource(self.url, name, **{"clock": self.clock, **more})

    def journal(self, event: str) -> list[dict[str, Any]]:
        """The journal's entries of one kind, the service's own certificates left out."""
        lines = (self.folder / "journal.jsonl").read_text().splitlines()
        return [each for each in map(json.loads, lines) if each["event"] == event and "localhost" not in each["names"]]


@asynccontextmanager
async def serving_est(folder: Path, **policy: Any) -> AsyncIterator[Service]:
    """An EST service, for the length of a block."""
    async with trio.open_nursery() as nursery:
        service = Service(folder, nursery, EnrolmentPolicy(**policy))
        await service.start()
        yield service
        nursery.cancel_scope.cancel()
