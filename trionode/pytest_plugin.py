"""The pytest plugin: the tools of `trionode.testing` as fixtures, and nothing else.

Pytest finds it by its entry point wherever trionode is installed, also in suites that have nothing to do with trionode.
There it is harmless: no hooks, nothing automatic, and the test kit itself is imported when a fixture is first used. A
fixture of the same name in a conftest or a test file overrides the one here.

The fixtures can be made without Trio, and are used in a Trio run: run async tests with pytest-trio, or call `trio.run`.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from datetime import datetime

    from trionode.pki import CertificateAuthority
    from trionode.testing import CapturedLogs, CertificateZoo, MemoryNetwork, NodeFactory

__all__ = ["captured_logs", "certificate_clock", "certificate_zoo", "cluster_ca", "memory_network", "node_factory"]


@pytest.fixture
def captured_logs() -> Iterator[CapturedLogs]:
    """What is logged in this test, with its facts."""
    from trionode.testing import capture_logs

    with capture_logs() as captured:
        yield captured


@pytest.fixture
def certificate_clock() -> Callable[[], datetime]:
    """The clock of `cluster_ca` and `node_factory`: it starts now, and follows Trio's clock in the test."""
    from trionode.testing import certificate_clock

    return certificate_clock()


@pytest.fixture
def cluster_ca(certificate_clock: Callable[[], datetime]) -> CertificateAuthority:
    """A fresh CA for the nodes of this test."""
    from trionode.testing import cluster_ca

    return cluster_ca(clock=certificate_clock)


@pytest.fixture
def certificate_zoo(cluster_ca: CertificateAuthority) -> Callable[[str], CertificateZoo]:
    """A function: certificates for a node name, by `cluster_ca`, each with one defect."""
    from trionode.testing import certificate_zoo

    return partial(certificate_zoo, cluster_ca)


@pytest.fixture
def memory_network() -> MemoryNetwork:
    """A fresh network in memory; `node_factory` opens its nodes there."""
    from trionode.testing import MemoryNetwork

    return MemoryNetwork()


@pytest.fixture
def node_factory(
    cluster_ca: CertificateAuthority, memory_network: MemoryNetwork, certificate_clock: Callable[[], datetime]
) -> NodeFactory:
    """Opens nodes on `memory_network` with certificates by `cluster_ca`, and routes to each other."""
    from trionode.testing import node_factory

    return node_factory(cluster_ca, network=memory_network, clock=certificate_clock)
