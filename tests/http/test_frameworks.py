"""Frameworks that run on Trio, on `serve_asgi`: FastAPI (with Starlette below it) and Quart-Trio.

Litestar was tried, too; it needs nothing that these do not.
"""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Annotated, Any

import httpx2
import pytest
import trio
import trio.lowlevel
import wsproto
from wsproto.events import AcceptConnection, Request as Upgrade, TextMessage

from asgi_apps import serving
from trionode import CertAuthManager, ClientAuth, open_tls_stream
from trionode.http import Caller, HTTPTransport, caller_of

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from trionode.pki import CertificateAuthority


def with_fastapi() -> Any:
    """A dependency yields the verified caller, for requests and WebSockets; one endpoint runs in a thread."""
    fastapi = pytest.importorskip("fastapi")

    @asynccontextmanager
    async def lifespan(_: Any) -> AsyncIterator[dict[str, str]]:
        await trio.lowlevel.checkpoint()
        yield {"greeting": "hello"}

    app = fastapi.FastAPI(lifespan=lifespan)

    def verified(connection: fastapi.requests.HTTPConnection) -> Caller:  # type: ignore[name-defined]
        caller = caller_of(connection.scope)
        if not caller.verified:
            raise fastapi.HTTPException(403)
        return caller

    Verified = Annotated[Caller, fastapi.Depends(verified)]  # noqa: N806 -- a type
    verified.__annotations__["connection"] = fastapi.requests.HTTPConnection

    async def greet(request: Any, caller: Any) -> dict[str, str]:
        await trio.sleep(0.001)
        return {"greeting": f"{request.state.greeting} {caller.names[0]}"}

    greet.__annotations__ = {"request": fastapi.Request, "caller": Verified}
    app.get("/")(greet)

    def in_a_thread(caller: Any) -> dict[str, str]:
        return {"greeting": f"{trio.from_thread.run_sync(trio.current_time) > 0} {caller.names[0]}"}

    in_a_thread.__annotations__ = {"caller": Verified}
    app.get("/thread")(in_a_thread)

    async def talk(websocket: Any, caller: Any) -> None:
        await websocket.accept()
        await websocket.send_text(f"{await websocket.receive_text()} {caller.names[0]}")
        await websocket.close()

    talk.__annotations__ = {"websocket": fastapi.WebSocket, "caller": Verified}
    app.websocket("/talk")(talk)
    return app


def with_quart() -> Any:
    """The same, as far as it has it."""
    quart_trio, quart = pytest.importorskip("quart_trio"), pytest.importorskip("quart")
    app = quart_trio.QuartTrio(__name__)

    @app.before_serving  # type: ignore[untyped-decorator]
    async def start() -> None:
        await trio.lowlevel.checkpoint()
        app.config["greeting"] = "hello"

    @app.get("/")  # type: ignore[untyped-decorator]
    async def greet() -> dict[str, str]:
        await trio.sleep(0.001)
        caller = caller_of(quart.request.scope)
        if not caller.verified:
            quart.abort(403)
        return {"greeting": f"{app.config['greeting']} {caller.names[0]}"}

    @app.get("/thread")  # type: ignore[untyped-decorator]
    def in_a_thread() -> dict[str, str]:
        return {"greeting": f"True {caller_of(quart.request.scope).names[0]}"}

    @app.websocket("/talk")  # type: ignore[untyped-decorator]
    async def talk() -> None:
        words = await quart.websocket.receive()
        await quart.websocket.send(f"{words} {caller_of(quart.websocket.scope).names[0]}")

    return app


@pytest.mark.parametrize("make", [with_fastapi, with_quart])
@pytest.mark.parametrize("http2", [False, True], ids=["1.1", "2"])
# What frameworks deprecate of each other is not ours.
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
async def test_a_framework_knows_its_caller(ca: CertificateAuthority, make: Any, *, http2: bool) -> None:
    """Requests, a thread, a WebSocket, its own start: the verified caller in each, and 403 for one that is not."""
    manager = CertAuthManager(
        ca.issue("localhost"), client_cas=ca.pool, client_auth=ClientAuth.VERIFY_CLIENT_CERT_IF_GIVEN
    )
    certs = CertAuthManager(ca.issue("client.example"), root_cas=ca.pool)
    async with serving(make(), manager) as port:
        url = f"https://localhost:{port}"
        async with httpx2.AsyncClient(transport=HTTPTransport(cert_manager=certs, http2=http2)) as client:
            assert (await client.get(f"{url}/")).json() == {"greeting": "hello client.example"}
            assert (await client.get(f"{url}/thread")).json() == {"greeting": "True client.example"}
        assert await talk_to(port, certs) == "good day client.example"


async def talk_to(port: int, certs: CertAuthManager) -> str:
    """Say something over a WebSocket, and hear the answer."""
    connection = wsproto.WSConnection(wsproto.ConnectionType.CLIENT)
    async with await open_tls_stream("localhost", port, cert_manager=certs, alpn=["http/1.1"]) as stream:
        await stream.send_all(connection.send(Upgrade(host="localhost", target="/talk")))
        while True:
            connection.receive_data(await stream.receive_some())
            for event in connection.events():
                if isinstance(event, AcceptConnection):
                    await stream.send_all(connection.send(TextMessage(data="good day")))
                elif isinstance(event, TextMessage):
                    return event.data
