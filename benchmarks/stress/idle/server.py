"""The process that is measured: one node, which accepts; it does what lines tell it to, and answers each with one."""

from __future__ import annotations

import gc
import json
import logging
import os
import sys
import time
from pathlib import Path

import trio

from benchmarks.child import Lines
from benchmarks.memory import resident
from benchmarks.stress.nodes import accepting, manager_of
from trionode import CertAuthManager, LiveConnections, Node, NodeOptions, Renew, open_node
from trionode.pki import CertificateAuthority

SERVER = "server@localhost"
MANY = 20_000
#: How long a handshake may take, where so many are under way. Seconds.
PATIENCE = 60.0


def unburden() -> None:
    """Have the cyclic collector look only at what is made from now on: when it looks at all is a matter of chance."""
    gc.collect()
    gc.freeze()


async def obey(node: Node, manager: CertAuthManager, ca: CertificateAuthority, word: str) -> dict[str, float]:
    """Do what one line says, and tell what came of it, beside how much time this process has taken so far."""
    told: dict[str, float] = {}
    if word == "measure":
        told["memory"] = resident()
        unburden()
    elif word == "rotate":
        new = ca.issue(SERVER)
        unburden()
        began = time.perf_counter()
        manager.update(new)
        told["update"] = time.perf_counter() - began
    elif word == "superseded":
        told["superseded"] = sum(connection.superseded for connection in node.connections.values())
    return {"connections": len(node.connections), "cpu": time.process_time(), **told}


async def main(directory: Path, interval: float, within: float) -> None:
    """Open the node and say its port; obey until the input ends, then leave, and say what that took."""
    ca = CertificateAuthority.load(directory)
    manager = manager_of(ca, SERVER)
    options = NodeOptions(
        cert_manager=manager,
        network=accepting(
            heartbeat_interval=interval,
            handshake_timeout=PATIENCE,
            max_handshakes=MANY,  # they are one address's, and come all at once
            max_handshakes_per_address=MANY,
        ),
        live_connections=LiveConnections(on_rotation=Renew.HAND_OVER, within=within),
    )
    async with open_node(SERVER, options) as node:
        print(json.dumps({"port": node.acceptors[0].address[1]}), flush=True)
        lines = Lines(trio.lowlevel.FdStream(os.dup(0)))
        while line := await lines.read():
            print(json.dumps(await obey(node, manager, ca, line.decode())), flush=True)
        unburden()
        began, cpu = time.perf_counter(), time.process_time()
    told = {"seconds": time.perf_counter() - began, "cpu": time.process_time() - cpu}
    print(json.dumps(told), flush=True)


if __name__ == "__main__":
    # What goes wrong is told by the figures.
    logging.getLogger("trionode").addHandler(logging.NullHandler())
    trio.run(main, Path(sys.argv[1]), float(sys.argv[2]), float(sys.argv[3]))
