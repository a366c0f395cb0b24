"""Rules of transmit queues (TX), and of memory that goes away under them (DMA-001, DMA-003): a gVNIC's part of it."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Any

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
from nicmodel.observe.checking import transmit
from nicmodel.observe.checking.transmit import Descriptor, Limits, Packet, Queue
from nicmodel.observe.findings import Journal
from nicmodel.observe.mapped_memory import MappedMemory

# What the hardware asks for, by the constants of Linux' gve_desc_dqo.h and the comments in gve_tx_dqo.c.
_MAX_DATA_DESCRIPTORS = 10
_MIN_PACKET, _MAX_PACKET = 17, 9728
_REPORT_INTERVAL = 32
_MISS_BIT = 1 << 15

#: How packets are cut.
_LIMITS = Limits(segment=(88, 9728), packet=0x3FFFF, pieces=_MAX_DATA_DESCRIPTORS, context=TX_TSO_CONTEXT)

_LAYOUTS: dict[int, Layout] = {
    TxType.PACKET: TX_PACKET, TxType.TSO_CONTEXT: TX_TSO_CONTEXT, TxType.GENERAL_CONTEXT: TX_GENERAL_CONTEXT,
}  # fmt: skip


class Transmit(transmit.Transmit):
    """Looks at transmit doorbells and at what they post."""

    _nic: Nic
    _rings: Rings

    def __init__(self, nic: Nic, memory: MappedMemory, journal: Journal, rings: Rings) -> None:
        super().__init__(nic, memory, journal, rings, _LIMITS)

    def _spare(self) -> int:
        return 0 if self._nic.gqi else 1

    def _is_last(self, number: int, packet: Sequence[Descriptor]) -> bool:
        if not self._nic.gqi:
            return packet[-1].raw[8] & 0x3F == TxType.PACKET | 1 << 5
        raw = packet[0].raw
        first = raw[0] >> 4 in (GqiTxType.STANDARD, GqiTxType.TSO)
        return len(packet) >= raw[3] if first else True  # the device skips what begins no packet

    def _check(self, number: int, queue: Queue, packet: list[Descriptor]) -> None:
        if self._nic.gqi:
            self._check_gqi(number, queue, packet)
        else:
            self._check_dqo(number, queue, packet)

    def _all_posted(self, number: int, queue: Queue) -> None:
        if self._nic.gqi and queue.open:
            self._find(number, queue.open[0], "TX-GQI-002", "the doorbell ends in the middle of the packet")

    def after(self, number: int) -> None:
        """See `nicmodel.observe.checking.transmit.Transmit`; a count of what was fetched frees it."""
        super().after(number)
        if self._nic.gqi:
            queue = self._queue(number)
            queue.freed = queue.fetched

    # DQO.

    def _check_dqo(self, number: int, queue: Queue, packet: list[Descriptor]) -> None:
        data: list[tuple[int, int]] = []  # address and length of each piece
        tso: Descriptor | None = None
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
            queue.tags[tag] = last.position
        else:
            self._check_tag(number, queue, last, tag)
        queue.packets.append(Packet(last.position + 1, tag, report))
        total = sum(size for _, size in data)
        if tso is not None:
            self._check_tso(number, tso, data)
            return
        if len(data) > _MAX_DATA_DESCRIPTORS:
            self._find(number, last, "TX-PKT-001", f"the packet has {len(data)} data descriptors")
        if not _MIN_PACKET <= total <= _MAX_PACKET:
            self._find(number, last, "TX-PKT-003", f"the packet has {total} bytes")

    def _check_report(self, number: int, queue: Queue, descriptor: Descriptor, last: Descriptor) -> int | None:
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

    # GQI.

    def _check_gqi(self, number: int, queue: Queue, packet: list[Descriptor]) -> None:
        head = packet[0]
        queue.packets.append(Packet(packet[-1].position + 1))
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

    def _check_piece(self, number: int, queue: Queue, descriptor: Descriptor, address: int, size: int) -> None:
        """A descriptor's data: not empty, and the device's to read; in a format with page lists, in the queue's."""
        pages = self._rings.page_list(f"tx{number}")
        if pages is not None and size and not self._in_pages(address, size, pages):
            queue.refused.add(address)
            self._find(number, descriptor, "TX-DSC-006", "the data is not in the queue's page list")
        elif pages is None or not self._nic.gqi or not size:
            super()._check_piece(number, queue, descriptor, address, size)

    def _in_pages(self, address: int, size: int, pages: int) -> bool:
        listed, page_size = self._nic.pages.addresses(pages)
        if self._nic.gqi:
            return address + size <= len(listed) * page_size
        first = address - address % page_size
        return all(bool((listed == np.uint64(page)).any()) for page in range(first, address + size, page_size))

    def _decode(self, number: int, descriptor: Descriptor) -> dict[str, Any]:
        if self._nic.gqi:
            form = GQI_TX_SEGMENT if descriptor.raw[0] >> 4 == GqiTxType.SEGMENT else GQI_TX_PACKET
            return explain(np.frombuffer(descriptor.raw, form)[0])
        layout = _LAYOUTS.get(TX_PACKET.dtype.get(descriptor.raw))
        return layout.decode(descriptor.raw) if layout else {}

    def _data(self, number: int, descriptor: Descriptor) -> tuple[int, int]:
        fields = self._decode(number, descriptor)
        start = int(fields.get("buffer_address", fields.get("segment_address", 0)))
        return start, int(fields.get("buffer_size", fields.get("segment_length", 0)))
