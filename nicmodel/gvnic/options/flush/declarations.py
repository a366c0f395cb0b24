"""Flush of one queue: its option, command and what a completion says besides."""

from __future__ import annotations

from nicmodel.gvnic.declare import Command, Option, Queue
from nicmodel.nic.layout import Layout, at, record

#: What the completion of a buffer says besides that a flush of its queue has handed back (an option of this model). It
#: is an error too, so that a driver that does not know the bit takes nothing for received.
RX_FLUSHED = Layout("RX completion, flushed", 32, flushed=at(11, 2, 1))

OPTION_QUEUE_FLUSH = record(("supported", ">u4"))

OPTION = Option(0x8002, OPTION_QUEUE_FLUSH, lambda p: p.queue_flush, offers="a flush of one queue")

#: `owner` whose buffers come back, of a queue with several; else, and for those of all of them, `ALL_OWNERS`.
FLUSH_RX_QUEUE = record(("queue_id", ">u4"), ("owner", ">u4"))
ALL_OWNERS = 0xFFFFFFFF

COMMAND = Command(0x8002, FLUSH_RX_QUEUE, queue=Queue("rx", "changed"), option=OPTION)
