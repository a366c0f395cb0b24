"""The device's state: numpy records, worked on in place by the compiled packet path and shown by Python.

Sizes: M is the maximum number of receive (and of transmit) queues. Rows of `State.ledger` and `State.drops` are M
receive queues, M transmit queues and one for the device itself.
"""

from __future__ import annotations

from enum import IntEnum

import numpy as np
import numpy.typing as npt

from nicmodel.gvnic.options.ddp.state import DEVICE_FIELDS, DdpArrays, ddp_arrays
from nicmodel.gvnic.options.deferred.state import PLACEMENT_COUNTERS, PLACEMENT_RING, DeferredArrays, deferred_arrays
from nicmodel.gvnic.options.deferred.state import RX_FIELDS as DEFERRED_RX_FIELDS
from nicmodel.gvnic.options.owners.state import OWNER, OWNER_COUNTERS, OwnerArrays, owner_arrays
from nicmodel.gvnic.options.owners.state import RX_FIELDS as OWNERS_RX_FIELDS
from nicmodel.packet.coalesce import AGGREGATE
from nicmodel.packet.headers import HEADERS
from nicmodel.packet.match import GROUP, RULE, SLOT, slots_for
from nicmodel.vfio_user.dma import MAX_KINDS
from nicmodel.vfio_user.regions import RegionMap

#: The most data descriptors of one packet, in either direction; more are a driver's error.
MAX_SEGMENTS = 512
#: Bytes of one transmit packet beyond which it is an error: the longest TSO packet that Linux sends, and its header.
MAX_PACKET = 262143 + 255


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


class Purpose(IntEnum):
    """What a DMA access is for, which also says in which direction it goes: second index of the ledger."""

    #: Received bytes, into data buffers. Device writes.
    PAYLOAD = 0
    #: Received bytes, into header buffers. Device writes.
    HEADER = 1
    #: Entries of the rings that the driver fills. Device reads.
    DESCRIPTOR = 2
    #: Entries of the rings that the device fills, and the counters of GQI transmit queues. Device writes.
    COMPLETION = 3
    #: Bytes to be sent, headers included. Device reads.
    TRANSMIT = 4
    #: Admin commands and what they point at: rules, RSS tables, page lists. Device reads.
    COMMAND = 5
    #: Their statuses and answers, numbers of doorbells, event counters at their start. Device writes.
    ANSWER = 6
    #: The statistics region. Device writes.
    STATISTICS = 7

    @property
    def written(self) -> bool:
        """Whether the device writes, rather than reads."""
        return self not in (Purpose.DESCRIPTOR, Purpose.TRANSMIT, Purpose.COMMAND)


#: Kinds of memory that are told apart, third index of the ledger: those that `DmaTable.kinds` names, and "other".
KINDS = MAX_KINDS + 1

DEVICE = np.dtype(
    [
        ("running", "<i4"),
        ("gqi", "<i4"),
        ("promiscuous", "<i4"),
        ("mac", "<i8"),
        ("max_frame", "<i4"),
        ("timestamps", "<i4"),
        ("hash_types", "<i4"),
        ("lut_size", "<i4"),
        ("rule_groups", "<i4"),
        ("coalesce", "<i4"),
        ("aggregates", "<i4"),
        ("trailers", "<i4"),
        ("region", "<i4"),
        ("region_before", "<i4"),
        ("remote", "<i4"),
        ("posted", "<i4"),
        ("posted_bytes", "<i8"),
        ("asked", "<i4"),
        ("asked_bytes", "<i8"),
        ("fault_address", "<u8"),
        ("faults", "<i8"),
        *DEVICE_FIELDS,
    ]
)

# The fields of the queues serve both families of formats. DQO: heads and tails are indices, and a receive queue has a
# buffer ring and a completion ring. GQI: heads and tails are free-running 32-bit counts, the "completion ring" of a
# receive queue is its descriptor ring and that of a transmit queue is its counter; `sequence` is the last sequence
# number written, `pages` the address of the page list in this process (0: addresses are DMA addresses). The distance
# between two positions is their difference under `position_mask`.

#: What a queue counts since the server's start. It outlives the queue, which drivers create and destroy at will.
#: `aggregated` are packets with RSC, `coalesced` the frames that the device has merged into such packets.
_RX_COUNTERS = ("frames", "bytes", "split", "header_overflow", "aggregated", "coalesced", "bad_checksum")
_TX_COUNTERS = ("packets", "bytes", "segments")

RX_QUEUE = np.dtype(
    [
        ("active", "<i4"),
        ("vector", "<i4"),
        ("completion_ring", "<u8"),
        ("buffer_ring", "<u8"),
        ("completion_entries", "<i4"),
        ("completion_index", "<i4"),
        ("generation", "<i4"),
        ("buffer_entries", "<i4"),
        ("buffer_head", "<i8"),
        ("buffer_tail", "<i8"),
        ("buffer_size", "<i4"),
        ("header_size", "<i4"),
        ("rsc", "<i4"),
        ("held", "<i4"),
        ("position_mask", "<i8"),
        ("padding", "<i4"),
        ("sequence", "<i4"),
        ("page_size", "<i4"),
        ("page_count", "<i8"),
        ("pages", "<u8"),
        *DEFERRED_RX_FIELDS,
        *OWNERS_RX_FIELDS,
        *((name, "<i8") for name in _RX_COUNTERS),
    ]
)

TX_QUEUE = np.dtype(
    [
        ("active", "<i4"),
        ("vector", "<i4"),
        ("ring", "<u8"),
        ("completion_ring", "<u8"),
        ("head", "<i8"),
        ("tail", "<i8"),
        ("entries", "<i4"),
        ("completion_entries", "<i4"),
        ("completion_index", "<i4"),
        ("generation", "<i4"),
        ("position_mask", "<i8"),
        ("page_size", "<i4"),
        ("page_count", "<i8"),
        ("pages", "<u8"),
        *((name, "<i8") for name in _TX_COUNTERS),
    ]
)

VECTOR = np.dtype(
    [
        ("enabled", "<i4"),
        ("pending", "<i4"),
        ("interval", "<i8"),
        ("last_fire", "<i8"),
        ("fires", "<i8"),
    ]
)

#: Counters by queue type, and the fields that a queue's creation and destruction reset.
COUNTERS = {RX_QUEUE: _RX_COUNTERS, TX_QUEUE: _TX_COUNTERS, PLACEMENT_RING: PLACEMENT_COUNTERS, OWNER: OWNER_COUNTERS}
SETTINGS = {dtype: [name for name in dtype.names or () if name not in COUNTERS[dtype]] for dtype in COUNTERS}

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

#: Bytes for memory without a descriptor, or from it (`nicmodel.gvnic.messages`): guest address, and place in this
#: process.
MESSAGE = np.dtype([("address", "<u8"), ("count", "<i4"), ("offset", "<i4"), ("flags", "<i4")])

Records = npt.NDArray[np.void]


class State(DeferredArrays, OwnerArrays, DdpArrays):
    """All that receive and transmit work on; `region_leaves` and `regions` are what `memory_map` sets.

    `headers` are those of the frame that was parsed last. Of each of `aggregates` there are the first frame's headers
    in `aggregate_headers`; `open` are the numbers of those that are open, oldest first, and then of the others;
    `merged` are the headers of the one that is being delivered. Options have arrays of their own, which are empty where
    they are off.
    """

    device: Records
    rx: Records
    tx: Records
    vectors: Records
    lut: npt.NDArray[np.int32]
    hash_table: npt.NDArray[np.uint32]
    rules: Records
    rule_groups: Records
    rule_slots: Records
    region_leaves: Records
    regions: Records
    ledger: npt.NDArray[np.int64]
    drops: npt.NDArray[np.int64]
    headers: Records
    aggregates: Records
    aggregate_headers: Records
    open: npt.NDArray[np.int32]
    merged: Records
    segment: npt.NDArray[np.uint8]
    pieces: Records
    posted: Records
    posted_data: npt.NDArray[np.uint8]
    asked: Records
    asked_data: npt.NDArray[np.uint8]
    completion: npt.NDArray[np.int64]

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


def make_state(
    queues: int, vectors: int, rules: int, lut_size: int, flows: int, *, deferred_bytes: int = 0, owners: int = 0,
    owned: int = 0, ddp_flows: int = 0,
) -> State:  # fmt: skip
    """A device at rest, without memory, with room for `queues` queues each way.

    `flows` TCP flows of one batch are coalesced at the same time; one more ends the oldest. `deferred_bytes` bytes
    of the NIC's own memory are for deferred payload. The buffers of a receive queue have up to `owners` owners, each of
    which has up to `owned` of them. `ddp_flows` can have their data placed directly.
    """
    rows = 2 * queues + 1
    nothing = RegionMap.empty()
    device = np.zeros(1, DEVICE)
    device["trailers"] = 1
    return State(
        device=device,
        rx=np.zeros(queues, RX_QUEUE),
        tx=np.zeros(queues, TX_QUEUE),
        vectors=np.zeros(vectors, VECTOR),
        lut=np.zeros(lut_size, np.int32),
        hash_table=np.zeros((36, 256), np.uint32),
        rules=np.zeros(rules, RULE),
        rule_groups=np.zeros(rules, GROUP),
        rule_slots=np.zeros(slots_for(rules), SLOT),
        region_leaves=nothing.leaves,
        regions=nothing.records,
        ledger=np.zeros((rows, len(Purpose), KINDS), np.int64),
        drops=np.zeros((rows, len(Drop)), np.int64),
        headers=np.zeros(1, HEADERS),
        aggregates=np.zeros(flows + 1, AGGREGATE),
        aggregate_headers=np.zeros(flows + 1, HEADERS),
        open=np.arange(flows + 1, dtype=np.int32),
        merged=np.zeros(1, HEADERS),
        # As long as any packet: headers in it are parsed within the packet's length, also where only they are gathered.
        segment=np.zeros(MAX_PACKET, np.uint8),
        pieces=np.zeros(MAX_SEGMENTS, PIECE),
        posted=np.zeros(0, MESSAGE),
        posted_data=np.zeros(0, np.uint8),
        asked=np.zeros(MAX_SEGMENTS, MESSAGE),
        asked_data=np.zeros(MAX_PACKET, np.uint8),
        completion=np.zeros(4, np.int64),
        **deferred_arrays(queues, deferred_bytes),
        **owner_arrays(queues, owners, owned),
        **ddp_arrays(ddp_flows, MAX_PACKET),
    )
