"""Owners of buffers: their option, command and what a buffer's descriptor says besides."""

from __future__ import annotations

from nicmodel.gvnic.declare import Command, Option, Queue
from nicmodel.nic.layout import Layout, at, record

#: The owner of a buffer, on a queue whose buffers have several (an option of this model); reserved otherwise.
RX_BUFFER_OWNER = Layout("RX buffer, owner", 32, owner=at(2, 0, 8))

#: The largest number of owners of a queue's buffers, and how many buffers the NIC sorts by owner ahead of need.
OPTION_BUFFER_OWNERS = record(("supported", ">u4"), ("owners", ">u4"), ("lookahead", ">u4"))

OPTION = Option(
    0x8003, OPTION_BUFFER_OWNERS, lambda p: p.owners > 0, lambda p: (p.owners, p.owner_lookahead),
    offers="several owners of a queue's buffers",
)  # fmt: skip

#: From now on the buffers of the queue have `owners` owners.
CONFIGURE_BUFFER_OWNERS = record(("queue_id", ">u4"), ("owners", ">u4"))

COMMAND = Command(0x8003, CONFIGURE_BUFFER_OWNERS, queue=Queue("rx", "changed"), option=OPTION)
