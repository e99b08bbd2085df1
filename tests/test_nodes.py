"""What a node can be asked for: dialling, routes, services, acceptors, connections by name, events."""

from __future__ import annotations

import errno
import socket
from contextlib import AsyncExitStack, ExitStack
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest
import trio
import trio.testing

from trionode import (
    AcceptorDown,
    AcceptorOptions,
    AcceptorUp,
    CertificateError,
    ClientAuth,
    Connection,
    ConnectionDown,
    ConnectionUp,
    EndReason,
    GenerationPublished,
    HandshakeError,
    HandshakeRefused,
    ListenError,
    LocalProtocolError,
    NetworkDisabledError,
    NetworkMode,
    NetworkOptions,
    Node,
    NodeName,
    NodeOptions,
    NoRouteError,
    PeerUnverifiedError,
    RemoteCode,
    RemoteError,
    Route,
    Side,
    Stage,
    UnverifiedReason,
    _wire as wire,
    open_node,
)

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator, Sequence

    from conftest import ManagerFactory, NodeFactory, Pair, PairFactory, ScriptedListener, ScriptedPeer

    from trionode import EventStream, NodeEvent, ServiceChannel
    from trionode.pki import CertificateAuthority

ALPHA, BETA = NodeName.parse("alpha@localhost"), NodeName.parse("beta@localhost")


async def echo(channel: ServiceChannel) -> None:
    """Send back what comes."""
    async for message in channel:
        await channel.send(message)


async def silence(channel: ServiceChannel) -> None:
    """Take the request and say nothing."""
    await channel.receive()


async def event_of[E](events: EventStream, kind: type[E]) -> E:
    """The next event of a kind."""
    async for event in events:
        if isinstance(event, kind):
            return event
    raise AssertionError("the node ended")
