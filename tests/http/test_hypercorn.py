"""What `serve_asgi` relies on in hypercorn that its documentation does not promise.

A release of hypercorn for which this fails must not be admitted in pyproject.toml before `trionode/http/server.py` was
looked at.
"""

from __future__ import annotations

import inspect
from importlib.metadata import version
from pathlib import Path
from typing import Any

import trio
from hypercorn.config import Config
from hypercorn.trio import tcp_server
from hypercorn.trio.task_group import TaskGroup
from hypercorn.trio.tcp_server import TCPServer
from hypercorn.trio.worker_context import WorkerContext


def test_the_release_is_one_that_was_tried() -> None:
    """The extra admits one minor."""
    assert version("hypercorn").startswith("0.18.")
    project = Path(__file__).parents[2] / "pyproject.toml"
    if project.is_file():
        assert '"hypercorn>=0.18,<0.19"' in project.read_text(encoding="utf-8")


def test_how_a_connection_is_made() -> None:
    """`TCPServer(app, config, context, state, stream)`, and `run()`."""
    assert list(inspect.signature(TCPServer.__init__).parameters) == [
        "self",
        "app",
        "config",
        "context",
        "state",
        "stream",
    ]
    assert inspect.iscoroutinefunction(TCPServer.run)


def test_what_it_uses_of_its_stream() -> None:
    """Nothing but what `ServerConnection` has; a stream without `send_eof` is one that it knows how to take."""
    source = inspect.getsource(tcp_server)
    used = {word.split("(")[0].split(".")[0].split()[0].rstrip(",):") for word in source.split("self.stream.")[1:]}
    assert used == {
        "do_handshake",
        "selected_alpn_protocol",
        "transport_stream",
        "socket",
        "send_all",
        "receive_some",
        "send_eof",
        "aclose",
    }
    assert "except AttributeError:  # Not SSL" in source


async def test_how_a_connection_is_told_to_end() -> None:
    """A context has an event `terminated`, whose `set()` is a coroutine function without a checkpoint."""
    context = WorkerContext(None)
    assert not context.terminated.is_set()
    with trio.CancelScope() as scope:
        scope.cancel()
        await context.terminated.set()
    assert not scope.cancelled_caught
    assert context.terminated.is_set()
    assert "self.context.terminated.wait()" in inspect.getsource(TCPServer._idle_timeout)


def test_what_is_read_of_its_settings() -> None:
    """Names and defaults that the documentation of `serve_asgi` and the manual speak of."""
    config: Any = Config()
    assert config.alpn_protocols == ["h2", "http/1.1"]
    assert config.startup_timeout == 60
    assert config.keep_alive_timeout == 5
    assert config.accesslog is None


async def test_how_an_application_is_called() -> None:
    """With a bounded memory channel's `receive`, which has room for one message more than a request without a body."""
    group: Any = TaskGroup()
    called: list[Any] = []

    async def app(*arguments: Any) -> None:
        called.extend(arguments)

    async def send(message: Any) -> None:
        called.append(message)

    config: Any = Config()
    assert config.max_app_queue_size >= 2
    async with group:
        await group.spawn_app(app, config, {"type": "http"}, send)
    assert called[0] == {"type": "http"}
    assert isinstance(called[1].__self__, trio.MemoryReceiveChannel)
    assert called[2] is send
    assert called[-1] is None  # it is over
