"""What the core of a NIC keeps: enumerations, and numpy records that compiled code works on in place and Python shows.

A personality adds fields to the records of the device and its queues, and arrays of its own to `State`. Rows of
`State.ledger` and `State.drops` are all receive queues, then all transmit queues, and one for the device itself.
"""

from __future__ import annotations

from enum import IntEnum, IntFlag
from typing import Any

import numpy as np
import numpy.typing as npt

from nicmodel.jit.arrays import Arrays
from nicmodel.jit.compiled import i64, inlined
from nicmodel.nic.purpose import Purpose
from nicmodel.packet.coalesce import AGGREGATE
from nicmodel.packet.headers import HEADERS
from nicmodel.packet.match import GROUP, RULE, SLOT, slots_for
from nicmodel.packet.rss import INPUT_SIZE
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
    #: Its payload was to stay in the NIC's own memory, which is full.
    NIC_MEMORY_FULL = 11


class Taken(IntEnum):
    """Why a transmit stage takes no more packets from a queue."""

    #: There are none, or the last is not complete.
    ALL = 0
    #: The next one does not fit the batch, or waits for bytes that are wanted: call again with an empty batch, and
    #: with the bytes.
    FULL = 1
    #: The queue has had its share; there may be more.
    SHARE = 2


#: Kinds of memory that are told apart, third index of the ledger: those that `DmaTable.kinds` names, and "other".
KINDS = MAX_KINDS + 1

#: Bytes of the smallest receive buffer that any NIC takes.
MIN_BUFFER = 128
#: The most data descriptors of one packet, in either direction; more are a driver's error. A packet that was merged
#: from many has as many bytes as IP allows behind its Ethernet header, whose length this exceeds.
MAX_SEGMENTS = (65536 + 256) // MIN_BUFFER
#: Bytes of one transmit packet beyond which it is an error: the longest TSO packet that Linux sends, and its header.
MAX_PACKET = 262143 + 255

#: Fields of the one record in `State.device` that every NIC has. `running`: packets are moved. `mac`: its address, and
#: how many more it has (`stations`, of `State.stations`: groups, too); whether it is `promiscuous`, and takes frames to
#: all groups (`all_groups`); `max_frame`: the longest that it takes, bytes. What of `hash_types` (`HashType`) is
#: hashed, the entries of the RSS table (`lut_size`), and groups of flow rules (`rule_groups`). How many `aggregates`
#: are open, whether `trailers` behind IP packets are kept. `mapped_only`:
#: memory without a descriptor is out of the packet path's reach. `region` and `region_before` are the regions of memory
#: that were used last; `remote`: there is memory without a descriptor. What is `unwritten` there and what is `wanted`
#: from there, in number and bytes (`nicmodel.nic.messages`); DMA `faults`, and where the last one was. Whether accesses
#: are noted (`nicmodel.nic.notes`), how many `notes` there are, and of how many bytes; whether one had no room.
DEVICE_FIELDS = (
    ("running", "<i4"),
    ("promiscuous", "<i4"),
    ("all_groups", "<i4"),
    ("stations", "<i4"),
    ("mac", "<i8"),
    ("max_frame", "<i4"),
    ("hash_types", "<i4"),
    ("lut_size", "<i4"),
    ("rule_groups", "<i4"),
    ("aggregates", "<i4"),
    ("trailers", "<i4"),
    ("mapped_only", "<i4"),
    ("region", "<i4"),
    ("region_before", "<i4"),
    ("remote", "<i4"),
    ("unwritten", "<i4"),
    ("unwritten_bytes", "<i8"),
    ("wanted", "<i4"),
    ("wanted_bytes", "<i8"),
    ("fault_address", "<u8"),
    ("faults", "<i8"),
    ("noting", "<i4"),
    ("notes", "<i4"),
    ("noted_bytes", "<i8"),
    ("notes_lost", "<i4"),
)

#: What every queue counts since the server's start. It outlives the queue, which drivers create and destroy at will.
#: `aggregated` are packets with RSC, `coalesced` the frames that the device has merged into such packets.
RX_COUNTERS = ("frames", "bytes", "split", "header_overflow", "aggregated", "coalesced", "bad_checksum")
TX_COUNTERS = ("packets", "bytes", "segments")

#: Fields of a receive queue that every NIC has: which `vector` tells of it; the ring of buffers that the driver posts,
#: from `buffer_head` on up to `buffer_tail`, each of `buffer_size` bytes. There are `positions` between which head and
#: tail run (`distance`): as many as the ring has entries, or as its counts can be. `header_size`: bytes of a header
#: buffer; 0: headers are not split. `padding`: bytes before each packet. `rsc`: the driver takes segments that
#: are merged; `coalesce`: the NIC merges some itself. `held`: frames in the backlog.
RX_FIELDS = (
    ("active", "<i4"),
    ("vector", "<i4"),
    ("buffer_entries", "<i4"),
    ("buffer_head", "<i8"),
    ("buffer_tail", "<i8"),
    ("positions", "<i8"),
    ("buffer_size", "<i4"),
    ("header_size", "<i4"),
    ("padding", "<i4"),
    ("rsc", "<i4"),
    ("coalesce", "<i4"),
    ("held", "<i4"),
    *((name, "<i8") for name in RX_COUNTERS),
)

#: Fields of a transmit queue that every NIC has.
TX_FIELDS = (
    ("active", "<i4"),
    ("vector", "<i4"),
    ("entries", "<i4"),
    ("head", "<i8"),
    ("tail", "<i8"),
    ("positions", "<i8"),
    *((name, "<i8") for name in TX_COUNTERS),
)


class Cause(IntFlag):
    """What is pending on a vector: events that wait for its interval, events that wait for its second one, and events
    that wait for neither. A NIC whose vectors have one interval knows the first only.
    """

    FIRST = 1
    SECOND = 2
    AT_ONCE = 4


#: An interrupt vector of queues: whether the driver has it `enabled`, what is `pending` (`Cause`), the least time
#: between the last interrupt and the next, by cause, and when the last one was (ns), how many there were.
VECTOR = np.dtype(
    [
        ("enabled", "<i4"),
        ("pending", "<i4"),
        ("interval", "<i8"),
        ("second_interval", "<i8"),
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

#: An access to guest memory that was noted (`nicmodel.nic.notes`): where, how many bytes, whether they are `written`,
#: what for (`Purpose`), and the bytes' place in `State.noted`.
NOTE = np.dtype([("address", "<u8"), ("count", "<i4"), ("written", "<i4"), ("purpose", "<i4"), ("offset", "<i8")])


class State(Arrays):
    """What receive and transmit work on, as far as the core knows it.

    `region_leaves` and `regions` are what `memory_map` sets. `headers` are those of the frame that was parsed last. Of
    each of `aggregates` there are the first frame's headers in `aggregate_headers`; `open` are the numbers of those
    that are open, oldest first, and then of the others; `merged` are the headers of the one that is being delivered.
    """

    device: Records
    rx: Records
    tx: Records
    vectors: Records
    stations: npt.NDArray[np.int64]
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
    unwritten: Records
    unwritten_data: npt.NDArray[np.uint8]
    wanted: Records
    wanted_data: npt.NDArray[np.uint8]
    notes: Records
    noted: npt.NDArray[np.uint8]

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


def core_arrays(
    device: Records, rx: Records, tx: Records, *, vectors: int, rules: int, lut_size: int, flows: int, stations: int = 0
) -> dict[str, npt.NDArray[Any]]:
    """The arrays of `State` for a device at rest, without memory.

    Args:
        device: its record, shape (1,), with `DEVICE_FIELDS`.
        rx: its receive queues, with `RX_FIELDS`.
        tx: its transmit queues, with `TX_FIELDS`.
        vectors: number of vectors of queues.
        rules: the most flow rules.
        lut_size: the most entries of the RSS table.
        flows: how many TCP flows of one batch are coalesced at the same time; one more ends the oldest.
        stations: the most addresses that a driver may give it besides its own. Without any it takes all groups.
    """
    rows = len(rx) + len(tx) + 1
    nothing = RegionMap.empty()
    device["trailers"] = rx["positions"] = tx["positions"] = 1
    device["all_groups"] = stations == 0
    return {
        "device": device,
        "rx": rx,
        "tx": tx,
        "vectors": np.zeros(vectors, VECTOR),
        "stations": np.zeros(stations, np.int64),
        "lut": np.zeros(lut_size, np.int32),
        "hash_table": np.zeros((INPUT_SIZE, 256), np.uint32),
        "rules": np.zeros(rules, RULE),
        "rule_groups": np.zeros(rules, GROUP),
        "rule_slots": np.zeros(slots_for(rules), SLOT),
        "region_leaves": nothing.leaves,
        "regions": nothing.records,
        "ledger": np.zeros((rows, len(Purpose), KINDS), np.int64),
        "drops": np.zeros((rows, len(Drop)), np.int64),
        "headers": np.zeros(1, HEADERS),
        "aggregates": np.zeros(flows + 1, AGGREGATE),
        "aggregate_headers": np.zeros(flows + 1, HEADERS),
        "open": np.arange(flows + 1, dtype=np.int32),
        "merged": np.zeros(1, HEADERS),
        # As long as any packet: headers in it are parsed within the packet's length, also where only they are gathered.
        "segment": np.zeros(MAX_PACKET, np.uint8),
        "pieces": np.zeros(MAX_SEGMENTS, PIECE),
        "unwritten": np.zeros(0, MESSAGE),
        "unwritten_data": np.zeros(0, np.uint8),
        "wanted": np.zeros(MAX_SEGMENTS, MESSAGE),
        "wanted_data": np.zeros(MAX_PACKET, np.uint8),
        "notes": np.zeros(0, NOTE),
        "noted": np.zeros(0, np.uint8),
    }


def clear(queue: Records, counters: tuple[str, ...]) -> None:
    """Reset a queue's record, shape (1,), as if there were no queue, except for its counters."""
    queue[[name for name in queue.dtype.names or () if name not in counters]] = 0
    queue["positions"] = 1


@inlined
def distance(first: int, last: int, positions: int) -> int:
    """How far it is from a queue's position `first` on to `last`, of so many positions.

    Rings have any number of entries, so that no mask does.
    """
    between = i64(last) - i64(first)
    return between + i64(positions) if between < 0 else between
