"""Rules of transmit queues (TX), and of memory that goes away under them (DMA-001, DMA-003).

Descriptors are read when the doorbell comes, as one stream: a packet may be posted by several doorbells.
"""

from __future__ import annotations

import struct
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from nicmodel.gvnic.contract.rings import Rings
from nicmodel.gvnic.descriptors import (
    GQI_TX_PACKET,
    GQI_TX_SEGMENT,
    TX_GENERAL_CONTEXT,
    TX_PACKET,
    TX_TSO_CONTEXT,
    GqiTxType,
    TxType,
)
from nicmodel.gvnic.device import Nic
from nicmodel.nic.layout import Layout, explain
from nicmodel.nic.state import MAX_PACKET
from nicmodel.observe.findings import Journal
from nicmodel.observe.mapped_memory import MappedMemory
from nicmodel.packet.headers import HEADERS, L4
from nicmodel.packet.parse import parse
from nicmodel.vfio_user.dma import READABLE

_SIZE = TX_PACKET.size
_COUNT_MASK = 0xFFFFFFFF

# What the hardware asks for, by the constants of Linux' gve_desc_dqo.h and the comments in gve_tx_dqo.c.
_MAX_DATA_DESCRIPTORS = 10
_MIN_PACKET, _MAX_PACKET = 17, 9728
_MIN_MSS, _MAX_MSS = 88, 9728
_MAX_TSO_PACKET = 0x3FFFF
_REPORT_INTERVAL = 32
_MISS_BIT = 1 << 15

_LAYOUTS: dict[int, Layout] = {
    TxType.PACKET: TX_PACKET, TxType.TSO_CONTEXT: TX_TSO_CONTEXT, TxType.GENERAL_CONTEXT: TX_GENERAL_CONTEXT,
}  # fmt: skip


class _Descriptor(NamedTuple):
    """A descriptor at a free-running position of its ring."""

    position: int
    raw: bytes


@dataclass
class _Packet:
    """A posted packet: where it ends, its tag, and the position of the last descriptor that is to be reported."""

    end: int
    tag: int | None = None
    report: int | None = None


@dataclass
class _Queue:
    """What the device owns of one transmit queue. Positions are counts of descriptors since its creation.

    Attributes:
        tail: as its last doorbell said: an index, or a count in the GQI formats.
        posted: descriptors posted.
        fetched: descriptors that the device has taken.
        freed: descriptors that the driver knows to be taken.
        waiting: descriptors that the device has not taken.
        open: descriptors of a packet whose end is not posted.
        packets: posted packets that are not taken.
        tags: completion tags in use.
        last_report: position of the last descriptor with report_event.
        refused: addresses of which a finding was made.
    """

    tail: int = 0
    posted: int = 0
    fetched: int = 0
    freed: int = 0
    waiting: deque[_Descriptor] = field(default_factory=deque)
    open: list[_Descriptor] = field(default_factory=list)
    packets: deque[_Packet] = field(default_factory=deque)
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


class Transmit:
    """Looks at transmit doorbells and at what they post."""

    def __init__(self, nic: Nic, memory: MappedMemory, journal: Journal, rings: Rings) -> None:
        self._nic = nic
        self._memory = memory
        self._journal = journal
        self._rings = rings
        self._queues: dict[int, _Queue] = {}
        self._faults = 0
        self._headers = np.zeros(1, HEADERS)
        self._scratch = np.zeros(MAX_PACKET, np.uint8)  # as long as any packet, see `make_state`

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

    def _queue(self, number: int) -> _Queue:
        if number not in self._queues:
            record = self._nic.state.tx[number]
            self._queues[number] = _Queue(tail=int(record["tail"]))
        return self._queues[number]

    def doorbell(self, number: int, value: int) -> None:
        """The doorbell of an existing queue is about to take effect; its value is an index of the ring or a count."""
        record, queue, name = self._nic.state.tx[number], self._queue(number), f"tx{number}"
        entries = int(record["entries"])
        new = (value - queue.tail) % int(record["positions"])
        used = queue.posted - queue.freed
        self._journal.note(name, "doorbell", tail=value, before=queue.tail)
        room = entries - used if self._nic.gqi else entries - 1 - used
        if new > room:
            self._journal.report(
                "TX-RNG-001", f"{new} descriptors are posted where {room} have room", name, tail=value,
                before=queue.tail, entries=entries, not_reported=used,
            )  # fmt: skip
            new = min(new, entries)
            queue.freed = queue.posted + new - entries
        raw = self._memory.entries(int(record["ring"]), entries, _SIZE, queue.tail % entries, new)
        queue.tail = value
        if raw is None:
            if not self._memory.mapped(int(record["ring"]), 1, READABLE):
                self._journal.report(
                    "DMA-001", "the ring is no longer in memory", name, ring_address=int(record["ring"])
                )
            return
        posted = [_Descriptor(queue.posted + k, raw[k * _SIZE : (k + 1) * _SIZE]) for k in range(new)]
        queue.posted += new
        queue.waiting.extend(posted)
        for packet in self._packets(number, queue, posted):
            if self._nic.gqi:
                self._check_gqi(number, queue, packet)
            else:
                self._check_dqo(number, queue, packet)
        if self._nic.gqi and queue.open:
            self._find(number, queue.open[0], "TX-GQI-002", "the doorbell ends in the middle of the packet")
        queue.forget_beyond(entries)

    def _packets(self, number: int, queue: _Queue, posted: list[_Descriptor]) -> Iterator[list[_Descriptor]]:
        """The packets that end among the descriptors just posted."""
        for descriptor in posted:
            queue.open.append(descriptor)
            raw = queue.open[0].raw
            if self._nic.gqi:
                first = raw[0] >> 4 in (GqiTxType.STANDARD, GqiTxType.TSO)
                ended = len(queue.open) >= raw[3] if first else True  # the device skips what begins no packet
            else:
                ended = descriptor.raw[8] & 0x3F == TxType.PACKET | 1 << 5
            if ended:
                packet, queue.open = queue.open, []
                yield packet

    # DQO.

    def _check_dqo(self, number: int, queue: _Queue, packet: list[_Descriptor]) -> None:
        data: list[tuple[int, int]] = []  # address and length of each piece
        tso: _Descriptor | None = None
        last = packet[-1]
        tag = TX_PACKET.completion_tag.get(last.raw)
        contexts: set[int] = set()
        report: int | None = None
        for descriptor in packet:
            low, high = struct.unpack("<QQ", descriptor.raw)
            kind = high & TX_PACKET.dtype.mask
            layout = _LAYOUTS.get(kind)
            if layout is None:
                self._find(number, descriptor, "TX-DSC-001", f"the descriptor's type is {kind:#x}")
                continue
            if (high << 64 | low) & layout.reserved:
                self._find(number, descriptor, "TX-DSC-004", "reserved bits of the descriptor are set")
            if kind != TxType.PACKET:
                if data or kind in contexts:
                    self._find(number, descriptor, "TX-PKT-007", "a context descriptor out of place")
                contexts.add(kind)
                if kind == TxType.TSO_CONTEXT:
                    tso = descriptor
                continue
            size = high >> TX_PACKET.buffer_size.shift & TX_PACKET.buffer_size.mask
            data.append((low, size))
            self._check_piece(number, queue, descriptor, low, size)
            if high >> TX_PACKET.completion_tag.shift & TX_PACKET.completion_tag.mask != tag:
                self._find(number, descriptor, "TX-PKT-004", f"the completion tag is not {tag}, as at the packet's end")
            if high >> TX_PACKET.report_event.shift & 1:
                report = self._check_report(number, queue, descriptor, last)
        if tag & _MISS_BIT:
            self._find(number, last, "TX-TAG-002", f"the completion tag is {tag:#x}")
        elif tag in queue.tags:
            self._find(
                number, last, "TX-TAG-001", f"completion tag {tag} is that of a packet before, not completed yet"
            )  # fmt: skip
        queue.tags[tag] = last.position
        queue.packets.append(_Packet(last.position + 1, tag, report))
        total = sum(size for _, size in data)
        if tso is not None:
            self._check_tso(number, tso, data, total)
            return
        if len(data) > _MAX_DATA_DESCRIPTORS:
            self._find(number, last, "TX-PKT-001", f"the packet has {len(data)} data descriptors")
        if not _MIN_PACKET <= total <= _MAX_PACKET:
            self._find(number, last, "TX-PKT-003", f"the packet has {total} bytes")

    def _check_report(self, number: int, queue: _Queue, descriptor: _Descriptor, last: _Descriptor) -> int | None:
        if descriptor is not last:
            self._find(number, descriptor, "TX-PKT-005", "report_event is set in the middle of a packet")
            return None
        before, queue.last_report = queue.last_report, descriptor.position
        if before is not None and descriptor.position - before < _REPORT_INTERVAL:
            self._find(
                number, descriptor, "TX-PKT-006",
                f"report_event is set {descriptor.position - before} descriptors after the one before",
            )  # fmt: skip
        return descriptor.position

    def _check_tso(self, number: int, tso: _Descriptor, data: list[tuple[int, int]], total: int) -> None:
        header, payload, mss = (
            bits.get(tso.raw)
            for bits in (TX_TSO_CONTEXT.header_length, TX_TSO_CONTEXT.total_length, TX_TSO_CONTEXT.mss)
        )
        packet = {"packet_bytes": total, "data_descriptors": len(data)}
        if not TX_TSO_CONTEXT.tso.get(tso.raw):
            self._find(number, tso, "TX-TSO-006", "the tso bit is not set", **packet)
        if not _MIN_MSS <= mss <= _MAX_MSS:
            self._find(number, tso, "TX-TSO-001", f"segments of {mss} bytes", **packet)
        elif header == 0 or header >= total:
            self._find(number, tso, "TX-TSO-002", f"a header of {header} bytes in a packet of {total}", **packet)
        elif header + payload != total:
            self._find(number, tso, "TX-TSO-003", f"{header} + {payload} bytes in a packet of {total}", **packet)
        elif total > _MAX_TSO_PACKET:
            self._find(number, tso, "TX-TSO-004", f"the packet has {total} bytes", **packet)
        else:
            found = self._header_length(data, header, total)
            if found is not None and found != header:
                said = f"they have {found}" if found else "the packet is neither TCP nor UDP"
                self._find(number, tso, "TX-TSO-005", f"headers of {header} bytes; {said}", **packet)
            most = _pieces_of_a_segment([size for _, size in data], header, mss)
            if most > _MAX_DATA_DESCRIPTORS:
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
        self._scratch[len(content) : 2 * _MAX_MSS] = 0
        parse(self._scratch, 0, total, self._headers)
        if self._headers["l4"][0] not in (L4.TCP, L4.UDP):
            return 0
        return int(self._headers["payload"][0])

    # GQI.

    def _check_gqi(self, number: int, queue: _Queue, packet: list[_Descriptor]) -> None:
        head = packet[0]
        queue.packets.append(_Packet(packet[-1].position + 1))
        first = np.frombuffer(head.raw, GQI_TX_PACKET)[0]
        kind = head.raw[0] >> 4
        if kind not in set(GqiTxType):
            self._find(number, head, "TX-DSC-001", f"the descriptor's type is {kind:#x}")
            return
        if kind not in (GqiTxType.STANDARD, GqiTxType.TSO):
            self._find(number, head, "TX-GQI-001", f"a packet begins with {GqiTxType(kind).name}")
            return
        if first["descriptors"] == 0:
            self._find(number, head, "TX-GQI-002", "the packet has 0 descriptors")
        gathered = int(first["segment_length"])
        self._check_piece(number, queue, head, int(first["segment_address"]), gathered)
        for descriptor in packet[1:]:
            kind_here = descriptor.raw[0] >> 4
            if kind_here not in (GqiTxType.SEGMENT, GqiTxType.METADATA):
                rule = "TX-GQI-001" if kind_here in set(GqiTxType) else "TX-DSC-001"
                self._find(number, descriptor, rule, f"type {kind_here:#x} in the middle of a packet")
                return
            if kind_here == GqiTxType.METADATA:
                continue
            segment = np.frombuffer(descriptor.raw, GQI_TX_SEGMENT)[0]
            gathered += int(segment["segment_length"])
            self._check_piece(
                number, queue, descriptor, int(segment["segment_address"]), int(segment["segment_length"])
            )
            if kind == GqiTxType.TSO and not segment["mss"]:
                self._find(number, descriptor, "TX-GQI-005", "segments of 0 bytes")
        if gathered != first["length"]:
            self._find(number, head, "TX-GQI-003", f"segments of {gathered} bytes in a packet of {first['length']}")
        if head.raw[0] & 1:
            place = 2 * (int(first["l4_header_offset"]) + int(first["l4_checksum_offset"]))
            if place + 2 > first["segment_length"]:
                self._find(number, head, "TX-GQI-004", f"the checksum is at byte {place}, beyond the first segment")

    # Both.

    def _check_piece(self, number: int, queue: _Queue, descriptor: _Descriptor, address: int, size: int) -> None:
        """A descriptor's data: not empty, and the device's to read."""
        pages = self._rings.page_list(f"tx{number}")
        if size == 0:
            self._find(number, descriptor, "TX-DSC-002", "the descriptor has no data")
        elif pages is not None and not self._in_pages(address, size, pages):
            queue.refused.add(address)
            self._find(number, descriptor, "TX-DSC-006", "the data is not in the queue's page list")
        elif (pages is None or not self._nic.gqi) and not self._memory.mapped(address, size, READABLE):
            queue.refused.add(address)
            self._find(number, descriptor, "TX-DSC-003", f"{size} bytes of data are not in memory to read")

    def _in_pages(self, address: int, size: int, pages: int) -> bool:
        listed, page_size = self._nic.pages.addresses(pages)
        if self._nic.gqi:
            return address + size <= len(listed) * page_size
        first = address - address % page_size
        return all(bool((listed == np.uint64(page)).any()) for page in range(first, address + size, page_size))

    # What the device takes.

    def before(self, number: int) -> None:
        """The device is about to fetch descriptors: those that it owns must be as they were posted."""
        state = self._nic.state
        self._faults = int(state.device["faults"][0])
        queue, record = self._queue(number), state.tx[number]
        entries = int(record["entries"])
        waiting = len(queue.waiting)
        raw = self._memory.entries(int(record["ring"]), entries, _SIZE, (queue.tail - waiting) % entries, waiting)
        if raw is None:
            return
        for k, descriptor in enumerate(queue.waiting):
            now = raw[k * _SIZE : (k + 1) * _SIZE]
            if now != descriptor.raw:
                self._find(number, descriptor, "TX-DSC-005", "the descriptor has been changed", now=now.hex())
                queue.waiting[k] = _Descriptor(descriptor.position, now)

    def after(self, number: int) -> None:
        """It has fetched some."""
        state = self._nic.state
        record, queue = state.tx[number], self._queue(number)
        left = (queue.tail - int(record["head"])) % int(record["positions"])
        taken: list[_Descriptor] = []
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
        if self._nic.gqi:
            queue.freed = queue.fetched
        if int(state.device["faults"][0]) != self._faults:
            self._fault(number, queue, taken, int(state.device["fault_address"][0]))

    def _fault(self, number: int, queue: _Queue, taken: list[_Descriptor], address: int) -> None:
        """The device ran into memory that is not there: whose it was."""
        if self._memory.mapped(address, 1, READABLE):
            return  # a fault on demand
        name = f"tx{number}"
        for ring in self._rings.of(name):
            if ring.overlaps(address, 1) and not self._memory.mapped(ring.address, ring.size, ring.right):
                self._journal.report("DMA-001", f"the {ring.name} is no longer in memory", name, fault_address=address)
                return
        for descriptor in taken:
            fields = self._decode(descriptor)
            start = int(fields.get("buffer_address", fields.get("segment_address", 0)))
            size = int(fields.get("buffer_size", fields.get("segment_length", 0)))
            if start <= address < start + size and start not in queue.refused:
                self._find(number, descriptor, "DMA-003", "the data is no longer in memory", fault_address=address)
                return

    # Findings.

    def _decode(self, descriptor: _Descriptor) -> dict[str, Any]:
        if self._nic.gqi:
            form = GQI_TX_SEGMENT if descriptor.raw[0] >> 4 == GqiTxType.SEGMENT else GQI_TX_PACKET
            return explain(np.frombuffer(descriptor.raw, form)[0])
        layout = _LAYOUTS.get(TX_PACKET.dtype.get(descriptor.raw))
        return layout.decode(descriptor.raw) if layout else {}

    def _find(self, number: int, descriptor: _Descriptor, rule: str, what: str, **evidence: Any) -> None:
        entry = descriptor.position % int(self._nic.state.tx[number]["entries"])
        self._journal.report(
            rule, f"entry {entry}: {what}", f"tx{number}", descriptor=self._decode(descriptor),
            bytes=descriptor.raw.hex(), **evidence,
        )  # fmt: skip


def _pieces_of_a_segment(sizes: list[int], header: int, mss: int) -> int:
    """The largest number of descriptors that one segment takes its data from, with the header counted as one."""
    if len(sizes) < _MAX_DATA_DESCRIPTORS:
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
