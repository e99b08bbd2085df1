"""A process with one node that is registered in etcd and keeps all others connected; it tells how it is when asked."""

from __future__ import annotations

import json
import logging
import sys
from pathlib import Path

import trio

from trionode import (
    AcceptorOptions,
    CAPool,
    CertAuthManager,
    ClientAuth,
    KeyPair,
    NetworkOptions,
    NodeOptions,
    open_node,
)
from trionode.discovery import EtcdRegistry


async def main(directory: Path, name: str, url: str, ttl: int) -> None:
    """Open the node; answer each line on standard input with one on standard output; end with the input."""
    ca = CAPool.load(directory / "ca.pem")
    manager = CertAuthManager(
        KeyPair.load(directory / f"{name}.pem", directory / f"{name}-key.pem"),
        client_cas=ca,
        client_auth=ClientAuth.REQUIRE_AND_VERIFY_CLIENT_CERT,
        root_cas=ca,
    )
    registry = EtcdRegistry(url, cert_manager=manager, ttl=ttl, timeout=10)
    network = NetworkOptions(
        acceptors=[AcceptorOptions(host="127.0.0.1", port=0)], resolver=registry, keep_connected=["*"]
    )
    async with open_node(name, NodeOptions(cert_manager=manager, network=network)) as node:
        async for line in trio.wrap_file(sys.stdin):
            if not line.strip():
                break
            told = {
                "named": node.statistics().members,
                "connected": len(node.connections),
                "requests": registry.requests,
            }
            print(json.dumps(told), flush=True)


if __name__ == "__main__":
    # Handshakes that cross, or wait for a busy machine, are told by the figures.
    logging.getLogger("trionode").addHandler(logging.NullHandler())
    trio.run(main, Path(sys.argv[1]), sys.argv[2], sys.argv[3], int(sys.argv[4]))
