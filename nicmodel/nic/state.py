"""What the core of a NIC keeps: enumerations, and numpy records that compiled code works on in place and Python shows.

A personality adds fields to the records of its queues, and arrays of its own to `State`. Sizes: M is the maximum number
of receive (and of transmit) queues. Rows of `State.ledger` and `State.drops` are M receive queues, M transmit queues
and one for the device itself.
"""

from __future__ import annotations

from enum import IntEnum

import numpy as np
import numpy.typing as npt

from nicmodel.jit.arrays import Arrays
from nicmodel.vfio_user.dma import MAX_KINDS
from nicmodel.vfio_user.regions import RegionMap

Records = npt.NDArray[np.void]


class Drop(IntEnum):
    """Why a frame or packet ended here; 0 and `HELD` mean that it did not."""

    #: It was delivered, or sent.
    NONE = 0
    #: Waits in the backlog for buffers.
    HELD = 1
    #: Shorter than an Ethernet header.
    RUNT = 2
    #: Unicast to another station, and the device is not promiscuous.
    NOT_OURS = 3
    #: Longer than the maximum MTU allows.
    OVER_MRU = 4
    #: The queue chosen by rule or table does not exist.
    NO_QUEUE = 5
    #: The driver has posted too few buffers, and the backlog is full or the frame waited too long.
    NO_BUFFERS = 6
    #: A ring or buffer address is outside of what the guest mapped, or mapped without the right.
    DMA_FAULT = 7
    #: The device is not running: no queues, link down, or bus mastering off.
    DEVICE_DOWN = 8
    #: An aggregated frame that cannot be segmented.
    BAD_GSO = 9
    #: A transmit packet whose descriptors contradict each other or the contract.
    BAD_DESCRIPTOR = 10
    #: The NIC's memory for deferred payload is full, and the queue's buffers are for headers only.
    NIC_MEMORY_FULL = 11


class Taken(IntEnum):
    """Why a transmit stage takes no more packets from a queue."""

    #: There are none, or the last is not complete.
    ALL = 0
    #: The next one does not fit the batch, or waits for bytes that were asked for: call again with an empty batch, and
    #: with the bytes.
    FULL = 1
    #: The queue has had its share; there may be more.
    SHARE = 2


#: Kinds of memory that are told apart, third index of the ledger: those that `DmaTable.kinds` names, and "other".
KINDS = MAX_KINDS + 1

#: Fields of the one record in `State.device` that every NIC has. `running`: packets are moved. `mapped_only`: memory
#: without a descriptor is out of the packet path's reach. `lut_size`: entries of the RSS table. `region` and
#: `region_before` are the regions of memory that were used last; `remote`: there is memory without a descriptor. What
#: is `posted` to it and `asked` of it, in number and bytes (`nicmodel.nic.messages`); DMA `faults`, and where the last
#: one was.
DEVICE_FIELDS = [
    ("running", "<i4"),
    ("mapped_only", "<i4"),
    ("lut_size", "<i4"),
    ("region", "<i4"),
    ("region_before", "<i4"),
    ("remote", "<i4"),
    ("posted", "<i4"),
    ("posted_bytes", "<i8"),
    ("asked", "<i4"),
    ("asked_bytes", "<i8"),
    ("fault_address", "<u8"),
    ("faults", "<i8"),
]

#: An interrupt vector of queues: whether the driver has it `enabled`, whether something is `pending`, the least time
#: between two interrupts and when the last one was (ns), how many there were.
VECTOR = np.dtype(
    [
        ("enabled", "<i4"),
        ("pending", "<i4"),
        ("interval", "<i8"),
        ("last_fire", "<i8"),
        ("fires", "<i8"),
    ]
)

#: Where one frame went. `verdict` is a `Drop`; `queue` -1 when none was chosen; `rule` the location of the flow rule or
#: -1; `completion` the index of its first completion, `completions` how many (for a frame that was cut into segments:
#: of all of them). Frames that were coalesced share their completions; `next` is the number of the frame whose payload
#: comes next in the same packet, -1 after the last.
OUTCOME = np.dtype(
    [
        ("verdict", "<i2"),
        ("queue", "<i2"),
        ("rule", "<i4"),
        ("hash", "<u4"),
        ("header", "<i4"),
        ("completion", "<i4"),
        ("completions", "<i4"),
        ("next", "<i4"),
    ]
)

#: One buffer or fragment of the packet in hand: where it is in guest memory, how long, and its buffer ID.
PIECE = np.dtype([("address", "<u8"), ("length", "<i4"), ("identifier", "<i4")])

#: Bytes for memory without a descriptor, or from it (`nicmodel.nic.messages`): guest address, and place in this
#: process.
MESSAGE = np.dtype([("address", "<u8"), ("count", "<i4"), ("offset", "<i4"), ("flags", "<i4")])


class State(Arrays):
    """What receive and transmit work on, as far as the core knows it.

    `region_leaves` and `regions` are what `memory_map` sets. Every queue's record has `active` and `vector`.
    """

    device: Records
    rx: Records
    tx: Records
    vectors: Records
    region_leaves: Records
    regions: Records
    ledger: npt.NDArray[np.int64]
    drops: npt.NDArray[np.int64]
    pieces: Records
    posted: Records
    posted_data: npt.NDArray[np.uint8]
    asked: Records
    asked_data: npt.NDArray[np.uint8]

    @property
    def memory_map(self) -> RegionMap:
        """The guest's memory."""
        return RegionMap(self.region_leaves, self.regions)

    @memory_map.setter
    def memory_map(self, regions: RegionMap) -> None:
        # Most changes are made inside the arrays, and may come by the hundred thousand.
        if regions.leaves is not self.region_leaves:
            self.region_leaves = regions.leaves
        if regions.records is not self.regions:
            self.regions = regions.records
