"""One GQI queue each way, driver's side, in a few lines: enough to see every descriptor, and to write wrong ones.

`nicmodel.gvnic.testing.driver` speaks DQO-RDA. Source: Linux drivers/net/ethernet/google/gve/gve_rx.c and gve_tx.c.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nicmodel.gvnic.commands import NO_PAGE_LIST, Opcode, QueueFormat
from nicmodel.gvnic.descriptors import (
    GQI_RX_DESCRIPTOR,
    GQI_RX_PAD,
    GQI_RX_SLOT,
    GQI_TX_PACKET,
    GQI_TX_SEGMENT,
    GqiIrqDoorbell,
    GqiRxFlag,
    GqiTxType,
)
from nicmodel.gvnic.registers import Bar
from nicmodel.gvnic.testing.driver import Driver
from nicmodel.testing.guest_memory import PAGE

#: Bytes of a receive buffer: half a page.
BUFFER = 2048
#: Numbers of the page lists.
RX_LIST, TX_LIST = 5, 6


class GqiQueues:
    """A receive and a transmit queue, number 0 each, in a GQI format.

    Args:
        driver: after `Driver.probe`, without queues; its device resources are configured anew.
        qpl: with page lists, their pages in reverse order; otherwise raw addresses.
        entries: of both rings.

    Attributes:
        rx_pages: the pages of the receive buffers, in the order of their list.
        tx_pages: the pages that frames are sent from.
        data_ring: guest address of the receive slots.
        tx_ring: guest address of the transmit descriptors.
        filled: buffers ever posted.
        taken: receive descriptors ever seen.
        posted: transmit descriptors ever posted.
    """

    def __init__(self, driver: Driver, qpl: bool, entries: int) -> None:
        self.driver, self.qpl, self.entries = driver, qpl, entries
        ram = driver.ram
        driver.admin(Opcode.DECONFIGURE_DEVICE_RESOURCES)
        driver.configure_resources(QueueFormat.GQI_QPL if qpl else QueueFormat.GQI_RDA)
        self.rx_pages = [ram.allocate_zeroed(PAGE) for _ in range(entries * BUFFER // PAGE)][::-1]
        self.tx_pages = [ram.allocate_zeroed(PAGE) for _ in range(4)][::-1]
        if qpl:
            self.register(RX_LIST, self.rx_pages)
            self.register(TX_LIST, self.tx_pages)
        self.data_ring = ram.allocate_zeroed(entries * GQI_RX_SLOT.itemsize)
        self.descriptor_ring = ram.allocate_zeroed(entries * GQI_RX_DESCRIPTOR.itemsize)
        self.tx_ring = ram.allocate_zeroed(entries * GQI_TX_PACKET.itemsize)
        resources = ram.allocate_zeroed(PAGE)
        driver.admin(
            Opcode.CREATE_RX_QUEUE,
            notification_block=driver.rx_block(0),
            queue_resources_address=resources,
            completion_ring_address=self.descriptor_ring,
            buffer_ring_address=self.data_ring,
            page_list_id=RX_LIST if qpl else NO_PAGE_LIST,
            completion_ring_entries=entries,
            packet_buffer_size=BUFFER,
        )
        driver.admin(
            Opcode.CREATE_TX_QUEUE,
            notification_block=driver.tx_block(0),
            queue_resources_address=resources + 64,
            ring_address=self.tx_ring,
            page_list_id=TX_LIST if qpl else NO_PAGE_LIST,
            ring_entries=entries,
        )
        self.rx_doorbell, self.tx_doorbell = (
            int.from_bytes(ram.read(resources + at, 4), "big") for at in (0, 64)
        )  # fmt: skip
        slots = np.zeros(entries, GQI_RX_SLOT)
        slots["address"] = [slot * BUFFER if qpl else self.rx_address(slot) for slot in range(entries)]
        ram.write(self.data_ring, slots.tobytes())
        self.filled = self.taken = self.posted = 0
        self.fill(entries)

    def register(self, number: int, pages: list[int]) -> None:
        """Make a page list known to the device."""
        ram = self.driver.ram
        place = ram.allocate_zeroed(8 * len(pages))
        ram.write(place, np.array(pages, ">u8").tobytes())
        self.driver.admin(
            Opcode.REGISTER_PAGE_LIST, page_list_id=number, num_pages=len(pages), list_address=place, page_size=PAGE
        )

    def rx_address(self, slot: int) -> int:
        """Guest address of a slot's buffer."""
        return self.rx_pages[slot * BUFFER // PAGE] + slot * BUFFER % PAGE

    def ring(self, doorbell: int, count: int) -> None:
        """Write one doorbell (big-endian), and wait until the device has seen it."""
        value = (count & 0xFFFFFFFF).to_bytes(4, "big")
        self.driver.client.region_write(Bar.DOORBELLS, 4 * doorbell, value, posted=True)
        self.driver.device_status()

    def enable(self) -> None:
        """Unmask both vectors, as at the end of NAPI."""
        for block in (self.driver.tx_block(0), self.driver.rx_block(0)):
            self.ring(self.driver.irq_doorbells[block], GqiIrqDoorbell.ACK | GqiIrqDoorbell.EVENT)

    def fill(self, count: int) -> None:
        """Post as many buffers more, those that the slots hold."""
        self.filled += count
        self.ring(self.rx_doorbell, self.filled)

    def receive(self) -> list[tuple[bytes, np.void]]:
        """The packets that have arrived, each with its first descriptor; sequence numbers have to go on."""
        packets: list[tuple[bytes, np.void]] = []
        ram, content, first = self.driver.ram, b"", None
        while True:
            slot = self.taken % self.entries
            raw = ram.read(self.descriptor_ring + slot * GQI_RX_DESCRIPTOR.itemsize, GQI_RX_DESCRIPTOR.itemsize)
            descriptor = np.frombuffer(raw, GQI_RX_DESCRIPTOR)[0]
            flags = int(descriptor["flags_seq"])
            if flags & 7 != self.taken % 7 + 1:
                assert not content, "a packet's descriptors have to appear together"
                return packets
            pad = 0 if content else GQI_RX_PAD
            first = descriptor if first is None else first
            content += ram.read(self.rx_address(slot) + pad, int(descriptor["length"]) - pad)
            self.taken += 1
            if not flags & GqiRxFlag.CONTINUES:
                packets.append((content, first))
                content, first = b"", None

    def send(
        self, frame: bytes, *, pieces: int = 1, checksum: bool = False, tso: tuple[int, int] | None = None
    ) -> None:
        """Put a frame at the start of the transmit pages and its descriptors into the ring; `tso` is (MSS, header)."""
        for at in range(0, len(frame), PAGE):
            self.driver.ram.write(self.tx_pages[at // PAGE], frame[at : at + PAGE])
        cuts = [0, tso[1], len(frame)] if tso else [len(frame) * k // pieces for k in range(pieces + 1)]
        descriptors = []
        for number, (start, end) in enumerate(pairwise(cuts)):
            address = start if self.qpl else self.tx_pages[start // PAGE] + start % PAGE
            if number == 0:
                kind = GqiTxType.TSO if tso else GqiTxType.STANDARD
                flags = kind << 4 | (checksum or tso is not None)
                values = (flags, 8, 17, len(cuts) - 1, len(frame), end - start, address)
                descriptors.append(np.array(values, GQI_TX_PACKET))
            else:
                mss = tso[0] if tso else 0
                descriptors.append(np.array((GqiTxType.SEGMENT << 4, 7, 0, mss, end - start, address), GQI_TX_SEGMENT))
        self.post(*descriptors)

    def post(self, *descriptors: NDArray[Any]) -> None:
        """Put raw descriptors into the transmit ring and write the doorbell."""
        for descriptor in descriptors:
            place = self.posted % self.entries * GQI_TX_PACKET.itemsize
            self.driver.ram.write(self.tx_ring + place, descriptor.tobytes())
            self.posted += 1
        self.ring(self.tx_doorbell, self.posted)

    @property
    def done(self) -> int:
        """The counter of transmit descriptors that are done."""
        return int(self.driver.counters[0])
