"""nginx at the other end: in front of `serve_asgi`, with a client certificate, and as a server that verifies ours."""

from __future__ import annotations

import json
import shutil
import socket
from contextlib import asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING

import httpx2
import pytest
import trio

from asgi_apps import Recorder, serving
from trionode import CertAuthManager, ClientAuth
from trionode.http import HTTPTransport, caller_of
from trionode.pki import write_ca_pool, write_key_pair

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from trionode.pki import CertificateAuthority

NGINX = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin:/usr/local/sbin")

pytestmark = pytest.mark.skipif(NGINX is None, reason="there is no nginx program here")

#: Until nginx listens, or has ended. Seconds.
PATIENCE = 10

#: Files relative to the folder; nginx gives up without each of the paths.
CONFIG = """
daemon off;
master_process off;
pid nginx.pid;
error_log stderr;
events {}
http {
    access_log off;
    client_body_temp_path body;
    proxy_temp_path proxy;
    fastcgi_temp_path fastcgi;
    uwsgi_temp_path uwsgi;
    scgi_temp_path scgi;
    %s
}
"""


def free_port() -> int:
    """A port that was free a moment ago: nginx cannot be asked which it drew."""
    with socket.create_server(("127.0.0.1", 0)) as drawn:
        port: int = drawn.getsockname()[1]
        return port


@asynccontextmanager
async def nginx(server: str, folder: Path) -> AsyncIterator[int]:
    """Run nginx with one server for the length of a block; its port, which is `PORT` in the configuration."""
    assert NGINX is not None
    port = free_port()
    config, log = folder / "nginx.conf", folder / "nginx.log"
    config.write_text(CONFIG % server.replace("PORT", str(port)))
    command = [NGINX, "-p", str(folder), "-c", str(config), "-e", "stderr"]
    with log.open("wb") as output:
        async with trio.open_nursery() as nursery:
            process = await nursery.start(partial(trio.run_process, command, stdout=output, stderr=output, check=False))
            with trio.fail_after(PATIENCE):
                while not await is_listening(port):
                    assert process.poll() is None, log.read_text()
                    await trio.sleep(0.02)
            yield port
            nursery.cancel_scope.cancel()


async def is_listening(port: int) -> bool:
    """Whether something does."""
    try:
        await (await trio.open_tcp_stream("127.0.0.1", port)).aclose()
    except OSError:
        return False
    return True


async def test_nginx_in_front(ca: CertificateAuthority, tmp_path: Path) -> None:
    """A reverse proxy that proves who it is: our server verifies it, and it verifies our server, through rotations."""
    write_key_pair(ca.issue("proxy.example"), tmp_path / "proxy.pem", tmp_path / "proxy.key")
    write_ca_pool(ca.pool, tmp_path / "ca.pem")
    manager = CertAuthManager(
        ca.issue("backend.example"), client_cas=ca.pool, client_auth=ClientAuth.REQUIRE_AND_VERIFY_CLIENT_CERT
    )
    app = Recorder()
    async with serving(app, {"backend.example": manager}) as backend:
        proxy = f"""
        server {{
            listen 127.0.0.1:PORT;
            location / {{
                proxy_pass https://127.0.0.1:{backend};
                proxy_http_version 1.1;
                proxy_set_header Host backend.example;
                proxy_ssl_protocols TLSv1.3;
                proxy_ssl_certificate proxy.pem;
                proxy_ssl_certificate_key proxy.key;
                proxy_ssl_trusted_certificate ca.pem;
                proxy_ssl_verify on;
                proxy_ssl_verify_depth 3;
                proxy_ssl_server_name on;
                proxy_ssl_name backend.example;
            }}
        }}
        """
        async with nginx(proxy, tmp_path) as port, httpx2.AsyncClient(trust_env=False) as client:
            for generation in (1, 2):
                response = await client.post(f"http://127.0.0.1:{port}/", content=bytes(50_000))
                told = response.json()
                assert (told["names"], told["verified"]) == (["proxy.example"], True)
                assert (told["generation"], told["body"]) == (generation, 50_000)
                manager.update(ca.issue("backend.example"))
    assert caller_of(app.scopes[0]).speaks_for("proxy.example")
    assert {scope["scheme"] for scope in app.scopes} == {"https"}


@pytest.mark.parametrize("http2", [False, True], ids=["1.1", "2"])
async def test_nginx_verifies_our_client(
    ca: CertificateAuthority, rogue_ca: CertificateAuthority, tmp_path: Path, *, http2: bool
) -> None:
    """Nginx sees our certificate, and after a rotation the new one; one of another CA it refuses in its own way."""
    write_key_pair(ca.issue("localhost"), tmp_path / "server.pem", tmp_path / "server.key")
    write_ca_pool(ca.pool, tmp_path / "ca.pem")
    server = """
    server {
        listen 127.0.0.1:PORT ssl http2;
        ssl_protocols TLSv1.3;
        ssl_certificate server.pem;
        ssl_certificate_key server.key;
        ssl_client_certificate ca.pem;
        ssl_verify_client on;
        ssl_verify_depth 3;
        default_type application/json;
        return 200 '{"serial": "$ssl_client_serial", "verified": "$ssl_client_verify", "http": "$server_protocol"}';
    }
    """
    certs = CertAuthManager(ca.issue("client.example"), root_cas=ca.pool)
    stranger = CertAuthManager(rogue_ca.issue("stranger.example"), root_cas=ca.pool)
    async with nginx(server, tmp_path) as port:
        url = f"https://localhost:{port}/"
        async with httpx2.AsyncClient(transport=HTTPTransport(cert_manager=certs, http2=http2)) as client:
            for _ in range(3):
                told = json.loads((await client.get(url)).text)
                assert int(told["serial"], 16) == certs.key_pair.certificate.serial_number
                assert told["verified"] == "SUCCESS"
                assert told["http"] == ("HTTP/2.0" if http2 else "HTTP/1.1")
                certs.update(ca.issue("client.example"))
        async with httpx2.AsyncClient(transport=HTTPTransport(cert_manager=stranger, http2=http2)) as client:
            response = await client.get(url)  # it answers within TLS, rather than by an alert
            assert response.status_code == 400
            assert "certificate" in response.text
