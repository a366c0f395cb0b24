"""The device's state: numpy records, worked on in place by the compiled packet path and shown by Python.

What every NIC has of it is in `nicmodel.nic.state`.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from nicmodel.gvnic.options.ddp.state import DEVICE_FIELDS as DDP_DEVICE_FIELDS
from nicmodel.gvnic.options.ddp.state import DdpArrays, ddp_arrays
from nicmodel.gvnic.options.deferred.state import PLACEMENT_COUNTERS, PLACEMENT_RING, DeferredArrays, deferred_arrays
from nicmodel.gvnic.options.deferred.state import RX_FIELDS as DEFERRED_RX_FIELDS
from nicmodel.gvnic.options.owners.state import OWNER, OWNER_COUNTERS, OwnerArrays, owner_arrays
from nicmodel.gvnic.options.owners.state import RX_FIELDS as OWNERS_RX_FIELDS
from nicmodel.nic import state as core
from nicmodel.nic.purpose import Purpose
from nicmodel.nic.state import DEVICE_FIELDS, KINDS, MESSAGE, PIECE, VECTOR, Drop, Records
from nicmodel.packet.coalesce import AGGREGATE
from nicmodel.packet.headers import HEADERS
from nicmodel.packet.match import GROUP, RULE, SLOT, slots_for
from nicmodel.vfio_user.regions import RegionMap

#: The most data descriptors of one packet, in either direction; more are a driver's error.
MAX_SEGMENTS = 512
#: Bytes of one transmit packet beyond which it is an error: the longest TSO packet that Linux sends, and its header.
MAX_PACKET = 262143 + 255


DEVICE = np.dtype(
    [
        *DEVICE_FIELDS,
        ("gqi", "<i4"),
        ("promiscuous", "<i4"),
        ("mac", "<i8"),
        ("max_frame", "<i4"),
        ("timestamps", "<i4"),
        ("hash_types", "<i4"),
        ("rule_groups", "<i4"),
        ("coalesce", "<i4"),
        ("aggregates", "<i4"),
        ("trailers", "<i4"),
        *DDP_DEVICE_FIELDS,
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

#: Counters by queue type, and the fields that a queue's creation and destruction reset.
COUNTERS = {RX_QUEUE: _RX_COUNTERS, TX_QUEUE: _TX_COUNTERS, PLACEMENT_RING: PLACEMENT_COUNTERS, OWNER: OWNER_COUNTERS}
SETTINGS = {dtype: [name for name in dtype.names or () if name not in COUNTERS[dtype]] for dtype in COUNTERS}


class State(core.State, DeferredArrays, OwnerArrays, DdpArrays):
    """All that receive and transmit work on.

    `headers` are those of the frame that was parsed last. Of each of `aggregates` there are the first frame's headers
    in `aggregate_headers`; `open` are the numbers of those that are open, oldest first, and then of the others;
    `merged` are the headers of the one that is being delivered. Options have arrays of their own, which are empty where
    they are off.
    """

    lut: npt.NDArray[np.int32]
    hash_table: npt.NDArray[np.uint32]
    rules: Records
    rule_groups: Records
    rule_slots: Records
    headers: Records
    aggregates: Records
    aggregate_headers: Records
    open: npt.NDArray[np.int32]
    merged: Records
    segment: npt.NDArray[np.uint8]
    completion: npt.NDArray[np.int64]


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
