"""Rules of the rings in which a driver posts packets to be sent, and of memory that goes away under them.

Descriptors are read when the doorbell comes, as one stream: a packet may be posted by several doorbells.

The rules that are reported from here, by the names that they have with every NIC: TX-RNG-001 (more descriptors than
there is room), TX-DSC-002 and -003 (data that is empty, or outside of memory), -005 (changed), TX-TAG-001 (a tag in
use), TX-PKT-002 (a segment of too many pieces), TX-TSO-001 to -006, DMA-001 and -003 (memory that has gone).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from nicmodel.nic.layout import Layout
from nicmodel.nic.state import MAX_PACKET
from nicmodel.nic.view import View
from nicmodel.observe.checking.rings import Rings
from nicmodel.observe.findings import Journal
from nicmodel.observe.mapped_memory import MappedMemory
from nicmodel.packet.headers import HEADERS, L4
from nicmodel.packet.parse import parse
from nicmodel.vfio_user.dma import READABLE

#: Bytes behind a packet's headers that are 0 where these are parsed alone: more than the length field can say.
_BEHIND = 512


class Descriptor(NamedTuple):
    """A descriptor at a free-running position of its ring."""

    position: int
    raw: bytes


@dataclass
class Packet:
    """A posted packet: where it ends, its tag, and the position of the last descriptor that is to be reported."""

    end: int
    tag: int | None = None
    report: int | None = None


@dataclass
class Queue:
    """What the device owns of one transmit queue. Positions are counts of descriptors since its creation.

    Attributes:
        tail: as its last doorbell said: an index, or a count.
        posted: descriptors posted.
        fetched: descriptors that the device has taken.
        freed: descriptors that the driver knows to be taken.
        waiting: descriptors that the device has not taken.
        open: descriptors of a packet whose end is not posted.
        packets: posted packets that are not taken.
        tags: completion tags in use.
        last_report: position from which the distance to the next descriptor that asks for a report counts.
        refused: addresses of which a finding was made.
    """

    tail: int = 0
    posted: int = 0
    fetched: int = 0
    freed: int = 0
    waiting: deque[Descriptor] = field(default_factory=deque)
    open: list[Descriptor] = field(default_factory=list)
    packets: deque[Packet] = field(default_factory=deque)
    tags: dict[int, int] = field(default_factory=dict)
    last_report: int | None = None
    refused: set[int] = field(default_factory=set)

    def forget_beyond(self, entries: int) -> None:
        """Keep no more than a ring holds, for a driver that goes round and round before the device."""
        del self.open[:-entries]
        for kept in (self.waiting, self.packets):
            while len(kept) > entries:
                kept.popleft()
        if len(self.refused) > entries:
            self.refused.clear()


@dataclass(frozen=True)
class Limits:
    """What a device takes of a packet that it is to cut.

    Attributes:
        segment: bytes of payload of a segment, least and most.
        packet: bytes of a packet, most.
        pieces: descriptors that a segment takes its data from, most.
        context: the descriptor that says how, with fields `header_length`, `total_length`, `mss` and `tso`.
    """

    segment: tuple[int, int]
    packet: int
    pieces: int
    context: Layout


class Transmit(ABC):
    """Looks at transmit doorbells and at what they post. A personality's says how descriptors are to be read."""

    #: Bytes of a descriptor.
    _SIZE = 16

    def __init__(self, nic: View, memory: MappedMemory, journal: Journal, rings: Rings, limits: Limits) -> None:
        self._nic = nic
        self._memory = memory
        self._journal = journal
        self._rings = rings
        self._limits = limits
        self._queues: dict[int, Queue] = {}
        self._faults = 0
        self._headers = np.zeros(1, HEADERS)
        self._scratch = np.zeros(MAX_PACKET, np.uint8)  # as long as any packet, see `make_state`

    # What the personality says.

    @abstractmethod
    def _is_last(self, number: int, packet: Sequence[Descriptor]) -> bool:
        """Whether the last of these descriptors, which begin a packet, ends it."""

    @abstractmethod
    def _check(self, number: int, queue: Queue, packet: list[Descriptor]) -> None:
        """Look at a packet that was posted, and add it to the queue's."""

    @abstractmethod
    def _decode(self, number: int, descriptor: Descriptor) -> dict[str, Any]:
        """A descriptor's fields."""

    @abstractmethod
    def _data(self, number: int, descriptor: Descriptor) -> tuple[int, int]:
        """Address and length of a descriptor's data; 0 bytes if it has none."""

    def _spare(self) -> int:
        """Entries that stay empty, so that a full ring differs from an empty one."""
        return 1

    def _all_posted(self, number: int, queue: Queue) -> None:  # noqa: B027  # few ask for more
        """Look at what a doorbell has posted as a whole."""

    # What there is.

    def forget(self, number: int | None = None) -> None:
        """A queue is gone, or all are."""
        if number is None:
            self._queues.clear()
        else:
            self._queues.pop(number, None)

    @property
    def behind(self) -> bool:
        """Whether the device has not taken what is posted: a driver may find that it hangs."""
        return any(queue.waiting for queue in self._queues.values())

    def _queue(self, number: int) -> Queue:
        if number not in self._queues:
            record = self._nic.state.tx[number]
            self._queues[number] = Queue(tail=int(record["tail"]))
        return self._queues[number]

    # What the driver posts.

    def doorbell(self, number: int, value: int) -> None:
        """The doorbell of an existing queue is about to take effect; its value is an index of the ring or a count."""
        record, queue, name = self._nic.state.tx[number], self._queue(number), f"tx{number}"
        entries = int(record["entries"])
        new = (value - queue.tail) % int(record["positions"])
        used = queue.posted - queue.freed
        self._journal.note(name, "doorbell", tail=value, before=queue.tail)
        room = entries - self._spare() - used
        if new > room:
            self._journal.report(
                "TX-RNG-001", f"{new} descriptors are posted where {room} have room", name, tail=value,
                before=queue.tail, entries=entries, not_reported=used,
            )  # fmt: skip
            new = min(new, entries)
            queue.freed = queue.posted + new - entries
        raw = self._memory.entries(int(record["ring"]), entries, self._SIZE, queue.tail % entries, new)
        queue.tail = value
        if raw is None:
            if not self._memory.mapped(int(record["ring"]), 1, READABLE):
                self._journal.report(
                    "DMA-001", "the ring is no longer in memory", name, ring_address=int(record["ring"])
                )
            return
        posted = [Descriptor(queue.posted + k, raw[k * self._SIZE : (k + 1) * self._SIZE]) for k in range(new)]
        queue.posted += new
        queue.waiting.extend(posted)
        for packet in self._packets(number, queue, posted):
            self._check(number, queue, packet)
        self._all_posted(number, queue)
        queue.forget_beyond(entries)

    def _packets(self, number: int, queue: Queue, posted: list[Descriptor]) -> Iterator[list[Descriptor]]:
        """The packets that end among the descriptors just posted."""
        for descriptor in posted:
            queue.open.append(descriptor)
            if self._is_last(number, queue.open):
                packet, queue.open = queue.open, []
                yield packet

    def _check_piece(self, number: int, queue: Queue, descriptor: Descriptor, address: int, size: int) -> None:
        """A descriptor's data: not empty, and the device's to read."""
        if size == 0:
            self._find(number, descriptor, "TX-DSC-002", "the descriptor has no data")
        elif not self._memory.mapped(address, size, READABLE):
            queue.refused.add(address)
            self._find(number, descriptor, "TX-DSC-003", f"{size} bytes of data are not in memory to read")

    def _check_tag(self, number: int, queue: Queue, last: Descriptor, tag: int) -> None:
        """The tag of a packet that ends with `last`, which is in use from now on."""
        if tag in queue.tags:
            self._find(
                number, last, "TX-TAG-001", f"completion tag {tag} is that of a packet before, not completed yet"
            )  # fmt: skip
        queue.tags[tag] = last.position

    def _check_tso(self, number: int, tso: Descriptor, data: list[tuple[int, int]]) -> None:
        """A packet that is to be cut; `data` are address and length of each piece."""
        limits, total = self._limits, sum(size for _, size in data)
        context = limits.context
        header, payload, mss = (
            bits.get(tso.raw) for bits in (context.header_length, context.total_length, context.mss)
        )  # fmt: skip
        packet = {"packet_bytes": total, "data_descriptors": len(data)}
        if not context.tso.get(tso.raw):
            self._find(number, tso, "TX-TSO-006", "the tso bit is not set", **packet)
        if not limits.segment[0] <= mss <= limits.segment[1]:
            self._find(number, tso, "TX-TSO-001", f"segments of {mss} bytes", **packet)
        elif header == 0 or header >= total:
            self._find(number, tso, "TX-TSO-002", f"a header of {header} bytes in a packet of {total}", **packet)
        elif header + payload != total:
            self._find(number, tso, "TX-TSO-003", f"{header} + {payload} bytes in a packet of {total}", **packet)
        elif total > limits.packet:
            self._find(number, tso, "TX-TSO-004", f"the packet has {total} bytes", **packet)
        else:
            found = self._header_length(data, header, total)
            if found is not None and found != header:
                said = f"they have {found}" if found else "the packet is neither TCP nor UDP"
                self._find(number, tso, "TX-TSO-005", f"headers of {header} bytes; {said}", **packet)
            most = pieces_of_a_segment([size for _, size in data], header, mss, limits.pieces)
            if most > limits.pieces:
                self._find(number, tso, "TX-PKT-002", f"a segment takes its data from {most} descriptors", **packet)

    def _header_length(self, data: list[tuple[int, int]], header: int, total: int) -> int | None:
        """Bytes of the packet's headers; 0 if it is neither TCP nor UDP, None if it cannot be read."""
        content = b""
        for address, size in data:
            piece = self._memory.read(address, min(size, header - len(content)))
            if piece is None:
                return None
            content += piece
            if len(content) == header:
                break
        self._scratch[: len(content)] = np.frombuffer(content, np.uint8)
        self._scratch[len(content) : len(content) + _BEHIND] = 0
        parse(self._scratch, 0, total, self._headers)
        if self._headers["l4"][0] not in (L4.TCP, L4.UDP):
            return 0
        return int(self._headers["payload"][0])

    # What the device takes.

    def before(self, number: int) -> None:
        """The device is about to fetch descriptors: those that it owns must be as they were posted."""
        state = self._nic.state
        self._faults = int(state.device["faults"][0])
        queue, record = self._queue(number), state.tx[number]
        entries = int(record["entries"])
        waiting = len(queue.waiting)
        raw = self._memory.entries(int(record["ring"]), entries, self._SIZE, (queue.tail - waiting) % entries, waiting)
        if raw is None:
            return
        for k, descriptor in enumerate(queue.waiting):
            now = raw[k * self._SIZE : (k + 1) * self._SIZE]
            if now != descriptor.raw:
                self._find(number, descriptor, "TX-DSC-005", "the descriptor has been changed", now=now.hex())
                queue.waiting[k] = Descriptor(descriptor.position, now)

    def after(self, number: int) -> None:
        """It has fetched some."""
        state = self._nic.state
        record, queue = state.tx[number], self._queue(number)
        left = (queue.tail - int(record["head"])) % int(record["positions"])
        taken: list[Descriptor] = []
        while len(queue.waiting) > left:
            taken.append(queue.waiting.popleft())
        queue.fetched = queue.posted - left
        if taken:
            self._journal.note(f"tx{number}", "fetched", descriptors=len(taken), head=int(record["head"]))
        while queue.packets and queue.packets[0].end <= queue.fetched:
            packet = queue.packets.popleft()
            if packet.tag is not None and queue.tags.get(packet.tag) == packet.end - 1:
                del queue.tags[packet.tag]
            if packet.report is not None:
                queue.freed = packet.report + 1
        if int(state.device["faults"][0]) != self._faults:
            self._fault(number, queue, taken, int(state.device["fault_address"][0]))

    def _fault(self, number: int, queue: Queue, taken: list[Descriptor], address: int) -> None:
        """The device ran into memory that is not there: whose it was."""
        if self._memory.mapped(address, 1, READABLE):
            return  # a fault on demand
        name = f"tx{number}"
        for ring in self._rings.of(name):
            if ring.overlaps(address, 1) and not self._memory.mapped(ring.address, ring.size, ring.right):
                self._journal.report("DMA-001", f"the {ring.name} is no longer in memory", name, fault_address=address)
                return
        for descriptor in taken:
            start, size = self._data(number, descriptor)
            if start <= address < start + size and start not in queue.refused:
                self._find(number, descriptor, "DMA-003", "the data is no longer in memory", fault_address=address)
                return

    # Findings.

    def _find(self, number: int, descriptor: Descriptor, rule: str, what: str, **evidence: Any) -> None:
        entry = descriptor.position % int(self._nic.state.tx[number]["entries"])
        self._journal.report(
            rule, f"entry {entry}: {what}", f"tx{number}", descriptor=self._decode(number, descriptor),
            bytes=descriptor.raw.hex(), **evidence,
        )  # fmt: skip


def pieces_of_a_segment(sizes: list[int], header: int, mss: int, few: int) -> int:
    """The largest number of descriptors that one segment takes its data from, with the header counted as one.

    Of a packet of fewer than `few` descriptors all of them.
    """
    if len(sizes) < few:
        return len(sizes)
    pieces: dict[int, int] = {}
    start = -header
    for size in sizes:
        end = start + size
        if end > 0:
            for segment in range(max(start, 0) // mss, (end - 1) // mss + 1):
                pieces[segment] = pieces.get(segment, 0) + 1
        start = end
    return 1 + max(pieces.values(), default=0)
