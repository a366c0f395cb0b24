"""Deferred placement: its option, command and descriptors."""

from __future__ import annotations

from enum import IntEnum, IntFlag

from nicmodel.gvnic.declare import RESOURCES, Command, Option, Queue, Ring
from nicmodel.gvnic.options.deferred.state import NIC_PAGE
from nicmodel.nic.layout import Layout, at, record
from nicmodel.vfio_user.dma import READABLE, WRITABLE

#: What the first completion of a packet says besides on a queue with deferred placement (an option of this model):
#: whether the payload has stayed on the NIC, how long it is, and the handle by which a placement request names it. The
#: real device's completions have nothing in these places.
RX_DEFERRED = Layout(
    "RX completion, deferred",
    32,
    deferred=at(11, 1, 1),
    payload_length=at(20, 0, 32),
    handle=at(24, 0, 32),
)

#: The most entries of a placement ring.
MAX_PLACEMENT_RING = 4096

#: Placement ring of a queue with deferred placement: where one piece of a payload goes. All descriptors of a request
#: name the payload by the same `handle`; with `drop` it goes nowhere.
PLACEMENT_REQUEST = Layout(
    "placement request",
    16,
    address=at(0, 0, 64),
    handle=at(8, 0, 32),
    length=at(12, 0, 24),
    drop=at(15, 0, 1),
    end_of_request=at(15, 7, 1),
)


class PlacementStatus(IntEnum):
    """What became of a placement request (`PLACEMENT_COMPLETION.status`). After all but the first two a payload that
    was there before is there still.
    """

    PLACED = 1
    DROPPED = 2
    #: No payload has that handle on this queue: it was placed, dropped, has timed out, or never was.
    NOT_FOUND = 3
    #: The pieces do not add up to the payload, are too many, or have different handles.
    BAD_REQUEST = 4
    #: A piece is outside of what the guest mapped for writing. Nothing was written.
    DMA_FAULT = 5


#: One for each placement request, in order. `head` is the placement ring's first descriptor that is not done.
PLACEMENT_COMPLETION = Layout(
    "placement completion",
    8,
    handle=at(0, 0, 32),
    head=at(4, 0, 16),
    status=at(6, 0, 8),
    generation=at(7, 7, 1),
)

#: Bytes of payload that the NIC keeps, for all queues and for each; bytes of the pages it keeps it in; how long.
OPTION_DEFERRED_PLACEMENT = record(
    ("supported", ">u4"), ("device_bytes", ">u4"), ("queue_bytes", ">u4"), ("page_size", ">u4"), ("timeout_us", ">u4")
)  # fmt: skip

OPTION = Option(
    0x8001, OPTION_DEFERRED_PLACEMENT, lambda p: p.deferred_bytes > 0,
    lambda p: (p.deferred_bytes, p.deferred_queue_budget, NIC_PAGE, p.deferred_usecs),
    offers="deferred placement",
)  # fmt: skip


class DeferFlag(IntFlag):
    """`CONFIGURE_DEFERRED_PLACEMENT.flags`."""

    #: The queue's data buffers are not to be written: a packet that the NIC has no room for is dropped.
    HEADERS_ONLY = 1 << 0


#: Placement ring and completion ring have as many `entries`; the device writes `QUEUE_RESOURCES` for the former.
CONFIGURE_DEFERRED_PLACEMENT = record(
    ("queue_id", ">u4"),
    ("flags", ">u4"),
    ("queue_resources_address", ">u8"),
    ("request_ring_address", ">u8"),
    ("completion_ring_address", ">u8"),
    ("entries", ">u4"),
    ("padding", ">u4"),
)

COMMAND = Command(
    0x8001,
    CONFIGURE_DEFERRED_PLACEMENT,
    {"flags": DeferFlag},
    memory=(RESOURCES,),
    rings=(
        Ring("placement ring", "request_ring_address", "entries", PLACEMENT_REQUEST, READABLE),
        Ring("placement completion ring", "completion_ring_address", "entries", PLACEMENT_COMPLETION, WRITABLE),
    ),
    queue=Queue("rx", "changed"),
    option=OPTION,
)
