"""Rules of transmit queues (TX), and of memory that goes away under them: what is an idpf's of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from nicmodel.idpf.control import MAX_PIECES
from nicmodel.idpf.descriptors import TX_FLOW_DATA, TX_QUEUE_DATA, TX_TSO_CONTEXT, TxType
from nicmodel.idpf.device import Nic
from nicmodel.idpf.profile import MAX_MTU
from nicmodel.nic.layout import Layout
from nicmodel.observe.checking import transmit
from nicmodel.observe.checking.rings import Rings
from nicmodel.observe.checking.transmit import Descriptor, Limits, Packet, Queue
from nicmodel.observe.findings import Journal
from nicmodel.observe.mapped_memory import MappedMemory

_MIN_PACKET = 17
#: The least payload of a segment, and the most of a packet that is cut.
_MIN_MSS, _MAX_TSO_PACKET = 88, 0x3FFFF
_REPORT_INTERVAL = 64
_CONTEXTS = (TxType.CONTEXT, TxType.TSO_CONTEXT)
_LAYOUTS: dict[int, Layout] = {
    TxType.FLOW_DATA: TX_FLOW_DATA, TxType.QUEUE_DATA: TX_QUEUE_DATA, TxType.TSO_CONTEXT: TX_TSO_CONTEXT,
}  # fmt: skip


class Transmit(transmit.Transmit):
    """Looks at the tails of transmit queues and at what they post."""

    _nic: Nic

    def __init__(self, nic: Nic, memory: MappedMemory, journal: Journal, rings: Rings) -> None:
        limits = Limits((_MIN_MSS, MAX_MTU), _MAX_TSO_PACKET, MAX_PIECES, TX_TSO_CONTEXT)
        super().__init__(nic, memory, journal, rings, limits)

    def begin(self, number: int) -> None:
        """A queue has begun: what was posted before is the device's now."""
        self._queues[number] = Queue()
        self.tail(number, self._nic.queues.tx_tails[number])

    def tail(self, number: int, value: int) -> None:
        """The tail of a queue that has begun is about to take effect."""
        entries = int(self._nic.state.tx[number]["entries"])
        if value < entries:
            self.doorbell(number, value)
        else:
            self._journal.report("DBL-002", f"the tail is set to {value} of {entries} entries", f"tx{number}")

    def _layout(self, number: int) -> Layout:
        """Data on this queue."""
        return TX_FLOW_DATA if self._nic.state.tx[number]["flow"] else TX_QUEUE_DATA

    def _is_last(self, number: int, packet: Sequence[Descriptor]) -> bool:
        raw = packet[-1].raw
        kind = TX_FLOW_DATA.dtype.get(raw)
        return kind in (TxType.FLOW_DATA, TxType.QUEUE_DATA) and bool(TX_FLOW_DATA.end_of_packet.get(raw))

    def _check(self, number: int, queue: Queue, packet: list[Descriptor]) -> None:
        layout, flow = self._layout(number), bool(self._nic.state.tx[number]["flow"])
        wanted = TxType.FLOW_DATA if flow else TxType.QUEUE_DATA
        data: list[tuple[int, int]] = []  # address and length of each piece
        contexts: dict[int, Descriptor] = {}
        last, report = packet[-1], None
        first: Descriptor | None = None
        tag = TX_FLOW_DATA.completion_tag.get(last.raw) if flow else None
        for descriptor in packet:
            raw = descriptor.raw
            kind = TX_FLOW_DATA.dtype.get(raw)
            if kind in _CONTEXTS:
                if data or kind in contexts:
                    self._find(number, descriptor, "TX-PKT-007", "a context descriptor out of place")
                contexts[kind] = descriptor
                continue
            if kind != wanted:
                self._find(number, descriptor, "TX-DSC-001", f"the descriptor's type is {kind:#x}, not {wanted:#x}")
                continue
            first = first or descriptor
            if int.from_bytes(raw, "little") & layout.reserved:
                self._find(number, descriptor, "TX-DSC-004", "reserved bits of the descriptor are set")
            address, size = layout.buffer_address.get(raw), layout.buffer_size.get(raw)
            data.append((address, size))
            self._check_piece(number, queue, descriptor, address, size)
            if flow and TX_FLOW_DATA.completion_tag.get(raw) != tag:
                self._find(number, descriptor, "TX-PKT-004", f"the completion tag is not {tag}, as at the packet's end")
            if self._asks(number, queue, descriptor, last, first, flow):
                report = descriptor.position
        if tag is not None:
            self._check_tag(number, queue, last, tag)
        queue.packets.append(Packet(last.position + 1, tag, report))
        tso = contexts.get(TxType.TSO_CONTEXT)
        if tso is not None:
            self._check_tso(number, tso, data)
            return
        total, most = sum(size for _, size in data), self._nic.profile.max_frame
        if len(data) > MAX_PIECES:
            self._find(number, last, "TX-PKT-001", f"the packet has {len(data)} data descriptors")
        if not _MIN_PACKET <= total <= most:
            self._find(number, last, "TX-PKT-003", f"the packet has {total} bytes, frames have {most}")

    def _asks(
        self, number: int, queue: Queue, descriptor: Descriptor, last: Descriptor, first: Descriptor, flow: bool
    ) -> bool:
        """Whether a completion that tells how far the ring is done is asked for; findings if it should not be."""
        event = bool(TX_FLOW_DATA.report_event.get(descriptor.raw))
        asked = event or (not flow and bool(TX_QUEUE_DATA.report_status.get(descriptor.raw)))
        if asked and descriptor is not last:
            self._find(number, descriptor, "TX-PKT-005", "a completion is asked for in the middle of a packet")
            return False
        if event and not flow:
            self._find(number, descriptor, "TX-PKT-008", "report_event is set in queue scheduling mode")
        elif event:
            # Counted from where packets begin, as Linux does: the specification counts from the bit to the bit.
            before, queue.last_report = queue.last_report, first.position
            if before is not None and first.position - before < _REPORT_INTERVAL:
                self._find(
                    number, descriptor, "TX-PKT-006",
                    f"report_event is set {first.position - before} descriptors after the packet before",
                )  # fmt: skip
        return asked

    def _decode(self, number: int, descriptor: Descriptor) -> dict[str, Any]:
        layout = _LAYOUTS.get(TX_FLOW_DATA.dtype.get(descriptor.raw))
        return layout.decode(descriptor.raw) if layout else {}

    def _data(self, number: int, descriptor: Descriptor) -> tuple[int, int]:
        fields = self._decode(number, descriptor)
        return fields.get("buffer_address", 0), fields.get("buffer_size", 0)
