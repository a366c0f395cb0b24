"""Direct data placement: its option, command and what completions say besides."""

from __future__ import annotations

from enum import IntEnum, IntFlag

from nicmodel.gvnic.declare import Command, Memory, Option
from nicmodel.nic.layout import Layout, at, record
from nicmodel.vfio_user.dma import READABLE

#: What the completions of a packet say besides when it is of a flow with direct data placement (an option of this
#: model, `nicmodel.gvnic.options.ddp`). The real device's completions have nothing in these places.
RX_DDP = Layout(
    "RX completion, direct data placement",
    32,
    placements=at(20, 0, 12),
    digest_good=at(21, 4, 1),
    digest_bad=at(21, 5, 1),
    resync=at(21, 6, 1),
    ddp=at(21, 7, 1),
    ddp_flow=at(22, 0, 16),
    resync_sequence=at(24, 0, 32),
)

#: A run of payload that was placed: its place in the payload of the packet, its length, where it lies in the data of
#: `command`. `RX_DDP.placements` of them end a packet, and stand for the bytes that it lacks.
PLACEMENT = record(
    ("position", "<u4"), ("length", "<u4"), ("offset", "<u4"), ("command", "<u2"), ("reserved", "<u2")
)  # fmt: skip

#: The most buffers of all flows together, and pieces of one.
MAX_DDP_BUFFERS = 1024
MAX_DDP_PIECES = 256

#: How many flows, and buffers of all flows together, can be there, and of how many pieces a buffer may consist.
OPTION_DDP = record(("supported", ">u4"), ("max_flows", ">u2"), ("max_buffers", ">u2"), ("max_pieces", ">u4"))

OPTION = Option(
    0x8004, OPTION_DDP, lambda p: p.ddp_flows > 0, lambda p: (p.ddp_flows, MAX_DDP_BUFFERS, MAX_DDP_PIECES),
    offers="direct data placement",
)  # fmt: skip


class DdpOperation(IntEnum):
    """`CONFIGURE_DDP.operation`."""

    #: Follow a TCP flow of IPv4 (by `ADD_FLOW6` of IPv6) as `flow`: a PDU begins at `sequence`; `digests` are in use.
    ADD_FLOW4 = 0
    ADD_FLOW6 = 1
    #: Forget the flow and its buffers.
    DELETE_FLOW = 2
    #: The data of `command` of `flow` goes to a buffer of `count` pieces.
    SET_UP = 3
    #: It does so no longer: nothing is written there once this is done.
    TEAR_DOWN = 4
    #: A PDU of `flow` begins at `sequence`: the answer to a request for resynchronisation.
    RESYNC = 5


class DdpDigest(IntFlag):
    """`CONFIGURE_DDP.digests`: as in an initialisation response of NVMe/TCP."""

    HEADER = 1
    DATA = 2


#: `address` is that of `count` `DDP_PIECE`s. Which fields count depends on the operation (`DdpOperation`). Addresses of
#: IPv4 are in the first four bytes; the source is the sender, so the controller.
CONFIGURE_DDP = record(
    ("operation", "u1"),
    ("digests", "u1"),
    ("flow", ">u2"),
    ("command", ">u2"),
    ("count", ">u2"),
    ("sequence", ">u4"),
    ("source", "u1", (16,)),
    ("destination", "u1", (16,)),
    ("source_port", ">u2"),
    ("destination_port", ">u2"),
    ("address", ">u8"),
)
#: One piece of a buffer: guest address and bytes.
DDP_PIECE = record(("address", ">u8"), ("length", ">u8"))

COMMAND = Command(
    0x8004,
    CONFIGURE_DDP,
    {"operation": DdpOperation, "digests": DdpDigest},
    # Only `SET_UP` has pieces.
    memory=(Memory("buffer's pieces", "address", lambda p: int(p["count"]) * DDP_PIECE.itemsize, READABLE),),
    option=OPTION,
)
