"""The program that is interrupted: two nodes that connect, call and close, again and again.

`python -m benchmarks.stress.interrupt.worker`; prints a line once it has begun, one for each handshake that failed, and
at last what ended it: every exception, out of its groups.
"""

from __future__ import annotations

import sys

import trio

from benchmarks.stress.nodes import accepting, echo, manager_of, route_to
from trionode import HandshakeError, NodeOptions, open_node
from trionode.pki import CertificateAuthority

ALPHA, BETA = "alpha@localhost", "beta@localhost"


async def connect_again_and_again() -> None:
    """Until it is interrupted."""
    ca = CertificateAuthority.create()
    serving = NodeOptions(cert_manager=manager_of(ca, BETA), network=accepting(), services={"echo": echo})
    dialing = NodeOptions(cert_manager=manager_of(ca, ALPHA), network=accepting())
    async with open_node(BETA, serving) as beta, open_node(ALPHA, dialing) as alpha:
        route = route_to(beta)
        await alpha.connect(BETA, route)
        print("begun", flush=True)
        while True:
            try:
                connection = await alpha.connect(BETA, route)
            except HandshakeError as exc:
                print(f"refused: {exc}", flush=True)
                continue
            await connection.call("echo", b"there?")
            await connection.aclose()


def leaves(error: BaseException) -> set[str]:
    """What an exception is, out of its groups."""
    if isinstance(error, BaseExceptionGroup):
        return set().union(*map(leaves, error.exceptions))
    return {type(error).__name__}


if __name__ == "__main__":
    try:
        trio.run(connect_again_and_again)
    except BaseException as exc:  # noqa: ASYNC103, BLE001 -- told, and then the end
        print(*sorted(leaves(exc)), flush=True)
        sys.exit(130)
