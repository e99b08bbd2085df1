"""The sweeps of what grows with configuration: each is set up as it says."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from cryptography import x509

from benchmarks.suite.credentials import Credentials
from benchmarks.suite.model import Job
from benchmarks.suite.scenarios.configuration import KINDS, connects, update
from trionode._managers.manager import publisher_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from benchmarks.suite.scenarios.configuration import Setup
    from trionode import CertAuthManager
    from trionode._credentials.policy import TLSPolicy


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Job:
    """One operation of three of everything."""
    return Job(credentials=Credentials.create(tmp_path_factory.mktemp("credentials")), parameters={"most": 3}, count=1)


#: Of three each: how many there are, as the nodes have them.
SIZES: dict[str, Callable[[Setup], int]] = {
    "revoked certificates": lambda setup: len(list(next(iter(policy_of(setup.client).crls or ())))),
    "CAs": lambda setup: len(list(policy_of(setup.client).root_cas or ())),
    "names of the server": lambda setup: len(names_of(setup)),
    "routes": lambda setup: len(setup.routes) + 1,
    "services": lambda setup: len(setup.services),
    "registered nodes": lambda setup: setup.registered,
}


def policy_of(manager: CertAuthManager) -> TLSPolicy:
    """What it asks of peers."""
    return publisher_of(manager).policy


def names_of(setup: Setup) -> list[str]:
    """The server's."""
    found = setup.server.key_pair.certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName)
    return found.value.get_values_for_type(x509.DNSName)


@pytest.mark.parametrize("kind", list(KINDS))
def test_a_connect_beside_three_of_each(job: Job, kind: str) -> None:
    """It works, and three there are."""
    make, numbers = KINDS[kind]
    assert numbers[0] == 1
    assert connects(job, make=make, number=numbers[-1]).value > 0
    assert SIZES[kind](make(job.credentials, 3)) == 3


def test_updates_under_connections(job: Job) -> None:
    """Of two nodes to two."""
    sample = update(job, servers=2, clients=2)
    assert sample.work == 1
    assert sample.value > 0
