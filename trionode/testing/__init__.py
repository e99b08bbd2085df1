"""What helps to test programs and channels built on trionode; imports no test framework."""

from ._cancelling import (
    Attempt as Attempt,
    Moment as Moment,
    cancel_at_every_checkpoint as cancel_at_every_checkpoint,
)
from ._channels import ChannelMaker as ChannelMaker, check_two_way_channel as check_two_way_channel
from ._clock import trio_clock as trio_clock
from ._faults import Faults as Faults, Script as Script
from ._memory_network import (
    MemoryConnection as MemoryConnection,
    MemoryHost as MemoryHost,
    MemoryNetwork as MemoryNetwork,
)
