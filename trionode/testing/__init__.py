"""Tools for tests of programs and channels built on trionode; imports no test framework.

The fixtures of the same names are in the pytest plugin, `trionode.pytest_plugin`.
"""

from trionode._util.public_names import show_as as _show_as

from ._cancelling import Attempt as Attempt, Moment as Moment, cancel_at_every_checkpoint as cancel_at_every_checkpoint
from ._channels import ChannelMaker as ChannelMaker, check_two_way_channel as check_two_way_channel
from ._clock import certificate_clock as certificate_clock, trio_clock as trio_clock
from ._faults import Faults as Faults, Script as Script
from ._logs import CapturedLogs as CapturedLogs, capture_logs as capture_logs
from ._memory_host import MemoryHost as MemoryHost
from ._memory_network import MemoryConnection as MemoryConnection, MemoryNetwork as MemoryNetwork
from ._moments import (
    ExpectedRefusal as ExpectedRefusal,
    RotationInHandshake as RotationInHandshake,
    expect_refusal as expect_refusal,
    expect_refusal_at as expect_refusal_at,
    rotate_during_handshake as rotate_during_handshake,
    wait_for_generation as wait_for_generation,
)
from ._nodes import NodeFactory as NodeFactory, node_factory as node_factory
from ._recorder import CallRecorder as CallRecorder, RecordedCall as RecordedCall
from ._zoo import (
    CertificateZoo as CertificateZoo,
    PEMPair as PEMPair,
    certificate_zoo as certificate_zoo,
    cluster_ca as cluster_ca,
    present_anyway as present_anyway,
)

_show_as("trionode.testing", vars())
