"""A gVNIC driver in Python on a vfio-user client: the stock Linux driver's steps, without a guest.

    with Driver("/run/nic.sock") as driver:
        driver.probe()
        driver.open(header_split=True)
        driver.send(0, frame, checksum=True)
        packets = driver.poll(0)

It follows the order and the habits of Linux drivers/net/ethernet/google/gve in the queue format DQO-RDA: what it does,
a driver may do; where it raises `ContractViolation`, a kernel would complain or worse. It is an example to read for
people who write a driver, and the tests' hand on the device. Nothing here waits: interrupts are looked at by `fired`,
completions by `poll` and `poll_tx`.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Literal

import numpy as np
import numpy.typing as npt

from nicmodel.gvnic.commands import (
    CONFIGURE_FLOW_RULE,
    DESCRIPTOR_VERSION,
    DRIVER_INFO,
    DRIVER_PARAMETER_MTU,
    FLOW_RULE,
    NIC_TIMESTAMP,
    PTYPE,
    PTYPE_COUNT,
    QUERIED_RULE,
    QUERY_FLOW_RULES_HEADER,
    QUERY_RSS_HEADER,
    RSS_HASH_TOEPLITZ,
    RSS_KEY_SIZE,
    RSS_LUT_SIZE,
    STATS_DEVICE_RX,
    STATS_DRIVER_RX,
    STATS_DRIVER_TX,
    STATS_ENTRY,
    STATS_HEADER_SIZE,
    DriverCapability,
    FlowOperation,
    FlowQuery,
    Inner,
    Opcode,
    OsType,
    QueueFormat,
    RssHashType,
    Stat,
)
from nicmodel.gvnic.descriptors import IRQ_DOORBELL, ITR_NO_UPDATE, ITR_UNIT_NS
from nicmodel.gvnic.options.flush.declarations import ALL_OWNERS, FLUSH_RX_QUEUE
from nicmodel.gvnic.options.owners.declarations import CONFIGURE_BUFFER_OWNERS
from nicmodel.gvnic.registers import (
    DEVICE_GVNIC,
    DEVICE_STATUS,
    DRIVER_VERSION,
    MAX_RX_QUEUES,
    MAX_TX_QUEUES,
    VENDOR_GOOGLE,
    DeviceStatus,
)
from nicmodel.gvnic.testing.adminq import AdminError, AdminQueue, encode_command
from nicmodel.gvnic.testing.bars import Doorbells, Registers
from nicmodel.gvnic.testing.description import Description
from nicmodel.gvnic.testing.flows import FlowSpec
from nicmodel.gvnic.testing.placement import PlacementRing
from nicmodel.gvnic.testing.queue import Queue
from nicmodel.gvnic.testing.rx import RxConfig, RxPacket, RxQueue
from nicmodel.gvnic.testing.shared import SharedRxQueue
from nicmodel.gvnic.testing.tx import Tso, TxCompletion, TxQueue
from nicmodel.gvnic.testing.violation import ContractViolation
from nicmodel.pci.config import COMMAND, Command
from nicmodel.testing.guest_memory import PAGE, GuestMemory, memory_of
from nicmodel.vfio_user.client import Client
from nicmodel.vfio_user.protocol import DmaFlag, PciIrq, PciRegion

#: What Linux announces in VERIFY_DRIVER_COMPATIBILITY: all queue formats but DQO-QPL, and flexible sizes.
LINUX_CAPABILITIES = (
    DriverCapability.GQI_QPL | DriverCapability.GQI_RDA | DriverCapability.DQO_RDA | DriverCapability.ALTERNATE_MISS
    | DriverCapability.FLEXIBLE_BUFFER_SIZE | DriverCapability.FLEXIBLE_RSS_SIZE
)  # fmt: skip
#: What Linux has the device hash: TCP and UDP over IPv4 and IPv6.
LINUX_HASH_TYPES = RssHashType.TCPV4 | RssHashType.TCPV6 | RssHashType.UDPV4 | RssHashType.UDPV6
#: Toeplitz key of Microsoft's "Verifying the RSS Hash Calculation", so that hashes can be compared with published ones.
DEFAULT_KEY = bytes.fromhex(
    "6d5a56da255b0ec24167253d43a38fb0d0ca2bcbae7b30b477cb2da38030f20c6a42b73bbeac01fa"
)  # fmt: skip
#: Interrupt moderation that Linux starts with, µs.
TX_INTERVAL_US = 50
RX_INTERVAL_US = 20
#: Period of the statistics region's updates, ms.
STATS_INTERVAL_MS = 20_000

#: Where the device writes the blocks' doorbell indices, each is the first word of a cache line.
_IRQ_DOORBELL_STRIDE = 64
_IRQ_DOORBELL = np.dtype(">u4")


@dataclass(frozen=True)
class RssConfig:
    """What QUERY_RSS returns: hash types, key, and the receive queue of each hash value modulo the table's length."""

    hash_types: RssHashType
    key: bytes
    table: tuple[int, ...]


class Driver:
    """The driver of one device.

    Args:
        device: a connected client, or the path of the device's socket.
        scheme: how the admin queue is set up, "base" (PCI revision 1 and up) or "pfn".
        ram: the guest's memory; made here, and then closed with the driver, if None.
        pause: lets seconds pass while admin commands are not done; None: they have to be done at once.

    Attributes:
        client: the vfio-user connection.
        ram: the guest's memory.
        registers: BAR 0.
        doorbells: BAR 2.
        adminq: the admin queue; None before `probe`.
        description: what DESCRIBE_DEVICE returned.
        max_tx_queues: as many as the device and its vectors allow.
        max_rx_queues: likewise.
        blocks: number of notification blocks: TX queue q uses block q, RX queue q block ``blocks / 2 + q``. The number
            of a block is also that of its MSI-X vector; the management vector comes after the last.
        irq_doorbells: BAR 2 index of each block's doorbell.
        counters: the counter array, shape (counters,), big-endian.
        ptypes: the packet-type map, shape (1024,), `PTYPE`.
        eventfds: what each vector signals; empty before `probe`.
        stats_region: the statistics region, shape (bytes,), uint8.
        rx: receive queues by number.
        tx: transmit queues by number.
    """

    def __init__(
        self,
        device: Client | str | os.PathLike[str],
        *,
        scheme: Literal["base", "pfn"] = "base",
        ram: GuestMemory | None = None,
        pause: Callable[[float], object] | None = None,
    ) -> None:
        self.client = device if isinstance(device, Client) else Client(os.fspath(device))
        self.ram = GuestMemory("ram") if ram is None else ram
        self._owns_ram = ram is None
        self._scheme = scheme
        self._pause = pause
        self.registers = Registers(self.client)
        self.doorbells = Doorbells(self.client)
        self.adminq: AdminQueue | None = None
        self.description: Description | None = None
        self.max_tx_queues = 0
        self.max_rx_queues = 0
        self.blocks = 0
        self.irq_doorbells: list[int] = []
        self.counters: npt.NDArray[np.uint32] = np.zeros(0, ">u4")
        self.ptypes: npt.NDArray[np.void] = np.zeros(PTYPE_COUNT, PTYPE)
        self.rx: dict[int, RxQueue] = {}
        self.tx: dict[int, TxQueue] = {}
        self.eventfds: list[int] = []
        self.stats_region: npt.NDArray[np.uint8] = np.zeros(0, np.uint8)
        self._added: list[GuestMemory] = []
        self._kept: list[int] = []  # memory that lives as long as the device's resources
        self._spread: int | None = None  # how many queues the RSS table was made for; None: not made by the driver
        self._last_sync = 0  # the NIC's clock when it was last asked
        self.map(self.ram)

    def __enter__(self) -> Driver:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.disconnect()

    def map(self, memory: GuestMemory, *, by_message: bool = False) -> None:
        """Let the device reach a memory, with its descriptor or `by_message` only: then call `serve_dma`."""
        flags = DmaFlag.READABLE | DmaFlag.WRITABLE
        self.client.dma_map(memory.base, memory.size, None if by_message else memory.fd, 0, flags)

    def serve_dma(self, timeout: float = 0.0) -> bool:
        """Answer a message of the device that reads or writes memory; false if none came within `timeout` seconds."""
        return self.client.process(timeout)

    def _access(self, address: int, count: int, data: bytes | None) -> bytes | None:
        memory = memory_of((self.ram, *self._added), address)
        if data is None:
            return memory.read(address, count)
        memory.write(address, data)
        return None

    def add_memory(self, name: str, size: int = 64 << 20, *, by_message: bool = False) -> GuestMemory:
        """Memory of another device, such as an accelerator's, that the NIC may reach; it goes with the driver.

        As `payload_memory` of a queue it is what devmem TCP receives into.

        Args:
            name: kind of memory in the device's ledger.
            size: bytes, a multiple of the page size.
            by_message: the device gets no descriptor of it, and has to ask for each access: see `serve_dma`.
        """
        after = max(memory.base + memory.size for memory in (self.ram, *self._added))
        memory = GuestMemory(name, base=after, size=size)
        self._added.append(memory)
        self.map(memory, by_message=by_message)
        self.client.serve_dma(self._access)
        return memory

    def unmap(self, memory: GuestMemory) -> None:
        """Take a memory from the device."""
        self.client.dma_unmap(memory.base, memory.size)

    def disconnect(self) -> None:
        """Disconnect without telling the device, as happens when a guest is killed."""
        self.client.close()
        for eventfd in self.eventfds:
            os.close(eventfd)
        self.eventfds = []
        for memory in self._added:
            memory.close()
        self._added = []
        if self._owns_ram:
            self.ram.close()

    # Admin queue

    def admin(self, opcode: Opcode, **fields: int) -> None:
        """Execute one admin command; fields by their names in `nicmodel.gvnic.commands.Opcode`.

        Raises:
            AdminError: the device refused it.
            AdminTimeout: the device has not executed it.
        """
        self.admin_batch([encode_command(opcode, **fields)])

    def admin_batch(self, slots: Iterable[bytes]) -> None:
        """Execute commands (64-byte slots, `encode_command`) handed over by one doorbell; raises as `admin`."""
        if self.adminq is None:
            raise RuntimeError("the admin queue is not set up: probe() first")
        self.adminq.execute(slots)

    def extended(self, opcode: Inner, inner: npt.NDArray[np.void]) -> None:
        """Execute an admin command that points at another, `inner`; raises as `admin`."""
        size = inner.dtype.itemsize
        self._with_answer(
            Opcode.EXTENDED_COMMAND, "inner_address", size, inner.tobytes(), inner_opcode=opcode, inner_length=size
        )

    # Life of the device

    def probe(self) -> None:
        """Bring the device up to where the kernel registers its network interface.

        Raises:
            AdminError: the device refused a step.
            ContractViolation: the device says impossible things of itself.
        """
        self.identify()
        self.set_bus_master()
        for byte in b"GVE-1.0.0\n":
            self.registers.write(DRIVER_VERSION, byte)
        self.max_tx_queues = self.registers.read(MAX_TX_QUEUES)
        self.max_rx_queues = self.registers.read(MAX_RX_QUEUES)
        self.setup_adminq()
        self.verify_compatibility()
        self.describe()
        self.setup_resources()

    def reset(self) -> None:
        """What the driver does when the device asks for a reset: let go of everything and start again.

        The queues are not opened again.
        """
        self.release()
        self.setup_adminq()
        self.verify_compatibility()
        self.setup_resources()

    def remove(self) -> None:
        """Close, take back everything the device knows of, and release the admin queue.

        Raises:
            AdminError: the device refused a step.
            AdminTimeout: the device does not acknowledge the release.
        """
        self.close()
        if self.description is not None and self.description.max_flow_rules:
            self.reset_flow_rules()
        self.admin(Opcode.REPORT_STATS)
        self.admin(Opcode.DECONFIGURE_DEVICE_RESOURCES)
        self.release()
        if self.adminq is not None:
            self.adminq.free()
            self.adminq = None

    def identify(self) -> None:
        """See that the device is a gVNIC, which a kernel's PCI bus does before it calls a driver.

        Raises:
            ContractViolation: it is something else.
        """
        vendor, device = struct.unpack("<HH", self.client.region_read(PciRegion.CONFIG, 0, 4))
        if (vendor, device) != (VENDOR_GOOGLE, DEVICE_GVNIC):
            raise ContractViolation(f"{vendor:04x}:{device:04x} is no gVNIC")

    def set_bus_master(self, on: bool = True) -> None:
        """Let the device respond to its BARs, and start DMA and interrupts of its own; or forbid the latter."""
        command = Command.MEMORY | (Command.BUS_MASTER if on else Command(0))
        self.client.region_write(PciRegion.CONFIG, COMMAND, command.to_bytes(2, "little"))

    def setup_adminq(self) -> None:
        """Give the device an admin queue."""
        if self.adminq is None:
            self.adminq = AdminQueue(self.registers, self.ram, self._scheme, pause=self._pause)
        self.adminq.start()

    def release(self) -> None:
        """Take the admin queue back, whereupon the device forgets all; queues' memory and vectors go too.

        Raises:
            AdminTimeout: the device does not acknowledge.
        """
        if self.adminq is None:
            raise RuntimeError("the admin queue is not set up: probe() first")
        self.adminq.release()
        self._withdraw_vectors()
        for queue in self._queues():
            queue.free()
        self.rx.clear()
        self.tx.clear()
        for address in self._kept:
            self.ram.free(address)
        self._kept.clear()
        self.stats_region = np.zeros(0, np.uint8)

    def verify_compatibility(self, os_type: OsType = OsType.LINUX, capabilities: int = LINUX_CAPABILITIES) -> None:
        """Tell the device who is there."""
        info = np.zeros((), DRIVER_INFO)
        info["os_type"] = os_type
        info["driver_major"] = 1
        info["capabilities"][0] = capabilities
        info["os_version"] = b"nicmodel"
        size = DRIVER_INFO.itemsize
        self._with_answer(Opcode.VERIFY_DRIVER_COMPATIBILITY, "address", size, info.tobytes(), length=size)

    def describe(self) -> Description:
        """Ask the device what it is."""
        raw = self._with_answer(
            Opcode.DESCRIBE_DEVICE, "descriptor_address", PAGE, version=DESCRIPTOR_VERSION, available_length=PAGE
        )
        self.description = Description.parse(raw)
        return self.description

    def setup_resources(self) -> None:
        """Vectors, counters, interrupt doorbells, packet types, clock, RSS and statistics: what follows DESCRIBE_DEVICE
        at probe and after a reset alike.
        """
        description = self._described()
        self._provide_vectors()
        self.configure_resources()
        size = PTYPE_COUNT * PTYPE.itemsize
        self.ptypes = np.frombuffer(self._with_answer(Opcode.GET_PTYPE_MAP, "address", size, length=size), PTYPE)
        if description.has_timestamps:
            self.nic_timestamp()
        if description.rss_sizes is None:
            self._spread_rss(self._default_queues(self.max_rx_queues))
        self.report_stats()

    def configure_resources(self, queue_format: QueueFormat = QueueFormat.DQO_RDA) -> None:
        """Choose a queue format, give the device the counter array, and learn its interrupt doorbells."""
        count = int(self._described().descriptor["counters"])
        counters = self._keep(count * 4)
        doorbells = self._keep(self.blocks * _IRQ_DOORBELL_STRIDE)
        self.admin(
            Opcode.CONFIGURE_DEVICE_RESOURCES,
            counter_array=counters,
            irq_doorbell_address=doorbells,
            num_counters=count,
            num_irq_doorbells=self.blocks,
            irq_doorbell_stride=_IRQ_DOORBELL_STRIDE,
            msix_base_index=0,
            queue_format=queue_format,
        )
        self.counters = self.ram.view(counters, count * 4).view(">u4")
        strided = self.ram.view(doorbells, self.blocks * _IRQ_DOORBELL_STRIDE).view(_IRQ_DOORBELL)
        self.irq_doorbells = strided[:: _IRQ_DOORBELL_STRIDE // _IRQ_DOORBELL.itemsize].tolist()

    # Queues

    def open(
        self,
        *,
        rx_queues: int | None = None,
        tx_queues: int | None = None,
        ring_entries: int | None = None,
        header_split: bool = False,
        buffer_size: int | None = None,
        rsc: bool = False,
        payload_memory: GuestMemory | None = None,
    ) -> None:
        """Create the queues, post receive buffers and enable interrupts: ``ip link set up``.

        Args:
            rx_queues: how many; None: the device's default.
            tx_queues: likewise.
            ring_entries: of every ring; None: the device's default.
            header_split: headers into buffers of their own.
            buffer_size: bytes of a data buffer; None: the device's largest.
            rsc: let the device coalesce segments.
            payload_memory: where data buffers go; None: ordinary memory.

        Raises:
            AdminError: the device refused a queue.
            ValueError: header split is asked for and the device has none.
        """
        description = self._described()
        descriptor = description.descriptor
        if header_split and not description.header_buffer_size:
            raise ValueError("the device has no header split")
        config = RxConfig(
            entries=ring_entries or int(descriptor["rx_queue_entries"]),
            buffer_size=buffer_size or description.packet_buffer_size,
            header_size=description.header_buffer_size if header_split else 0,
            rsc=rsc,
        )
        rx_queues = rx_queues or self._default_queues(self.max_rx_queues)
        if self._spread not in (None, rx_queues):
            self._spread_rss(rx_queues)
        for number in range(tx_queues or self._default_queues(self.max_tx_queues)):
            self.tx[number] = self.make_tx(number, ring_entries or int(descriptor["tx_queue_entries"]))
        for number in range(rx_queues):
            self.rx[number] = self.make_rx(number, config, payload_memory)
        self.admin_batch(queue.create_command() for queue in self.tx.values())
        self.admin_batch(queue.create_command() for queue in self.rx.values())
        self._check_doorbells()
        for queue in self.rx.values():
            queue.post()
        self._enable_all()
        self.device_status()

    def close(self) -> None:
        """Destroy the queues and free their memory: ``ip link set down``.

        Raises:
            AdminError: the device refused.
        """
        self.admin_batch(encode_command(Opcode.DESTROY_TX_QUEUE, queue_id=number) for number in self.tx)
        self.admin_batch(encode_command(Opcode.DESTROY_RX_QUEUE, queue_id=number) for number in self.rx)
        for queue in self._queues():
            queue.free()
        self.tx.clear()
        self.rx.clear()

    def restart_rx(self, number: int, *, payload_memory: GuestMemory | None = None) -> None:
        """Exchange one receive queue for one with other buffers, as binding a dma-buf to it does.

        Args:
            number: the queue; not 0, which the kernel refuses.
            payload_memory: where the new data buffers go; None: ordinary memory.

        Raises:
            AdminError: the device refused.
            ValueError: queue 0.
        """
        if number == 0:
            raise ValueError("RX queue 0 cannot be restarted by itself")
        old = self.rx[number]
        new = self.make_rx(number, old.config, payload_memory)
        self.admin(Opcode.DESTROY_RX_QUEUE, queue_id=number)
        del self.rx[number]
        self._enable_all()
        self.device_status()
        self.admin_batch([new.create_command()])
        self.rx[number] = new
        self._check_doorbells()
        new.post()
        self._enable_all()
        self.device_status()
        old.free()

    def flush_rx(self, number: int, *, payload_memory: GuestMemory | None = None) -> list[RxPacket]:
        """Take a receive queue's buffers back and give it others, while the queue itself goes on.

        Args:
            number: the queue, of a device with that option.
            payload_memory: where the new data buffers go; None: ordinary memory.

        Returns:
            Packets that had been received before.

        Raises:
            AdminError: the device refused.
        """
        queue = self.rx[number]
        command = np.array((number, ALL_OWNERS), FLUSH_RX_QUEUE)
        self.extended(Inner.FLUSH_RX_QUEUE, command)
        packets = queue.poll(repost=False)
        queue.exchange(self.ram if payload_memory is None else payload_memory)
        queue.post()
        return packets

    def share_rx(self, number: int, memories: Sequence[GuestMemory], *, tagged: bool = True) -> SharedRxQueue:
        """Exchange one receive queue for one whose data buffers are in several owners' memories, in turn.

        Args:
            number: the queue.
            memories: those of the owners 0, 1 and so on; a flow's rule says whose memory its payload goes to.
            tagged: tell the device the owner of each buffer; otherwise it takes the buffers in their order.

        Raises:
            AdminError: the device refused.
        """
        old = self.rx[number]
        new = SharedRxQueue(
            number, old.block, old.config, ram=self.ram, memories=memories, ptypes=self.ptypes,
            ring_doorbell=self.doorbells.ring,
        )  # fmt: skip
        self.admin(Opcode.DESTROY_RX_QUEUE, queue_id=number)
        self.admin_batch([new.create_command()])
        self.rx[number] = new
        old.free()
        if tagged:
            self.extended(Inner.CONFIGURE_BUFFER_OWNERS, np.array((number, len(memories)), CONFIGURE_BUFFER_OWNERS))
            new.tag()
        new.post()
        self._enable_all()
        return new

    def make_rx(self, number: int, config: RxConfig, payload_memory: GuestMemory | None = None) -> RxQueue:
        """The memory of a receive queue; the device does not know of it yet."""
        return RxQueue(
            number,
            self.rx_block(number),
            config,
            ram=self.ram,
            payload_memory=self.ram if payload_memory is None else payload_memory,
            ptypes=self.ptypes,
            ring_doorbell=self.doorbells.ring,
        )

    def make_tx(self, number: int, entries: int) -> TxQueue:
        """The memory of a transmit queue; the device does not know of it yet."""
        return TxQueue(number, self.tx_block(number), entries, ram=self.ram, ring_doorbell=self.doorbells.ring)

    def defer_placement(self, queue: int, *, entries: int = 256, headers_only: bool = False) -> PlacementRing:
        """Have the device keep the payload that comes to a receive queue until it is told where it goes.

        Args:
            queue: a queue with header split. This ends with it.
            entries: of the placement ring, a power of two.
            headers_only: the device must not write the queue's data buffers, and rather drops a packet.

        Raises:
            AdminError: the device refused.
        """
        ring = PlacementRing(self.rx[queue].number, self.rx[queue].block, entries, self.ram, self.doorbells.ring)
        try:
            self.extended(Inner.CONFIGURE_DEFERRED_PLACEMENT, ring.configure_command(headers_only=headers_only))
        except AdminError:
            ring.free()
            raise
        self.rx[queue].placement = ring
        self._check_doorbells()
        return ring

    def poll(self, queue: int, *, repost: bool = True) -> list[RxPacket]:
        """Packets received on a queue since the last call; the buffers are posted again unless `repost` is False.

        Raises:
            ContractViolation: see `RxQueue.poll`.
        """
        return self.rx[queue].poll(repost=repost)

    def poll_all(self) -> list[RxPacket]:
        """Packets received on all queues since the last call, in the order of the queues."""
        return [packet for number in sorted(self.rx) for packet in self.poll(number)]

    def send(
        self,
        queue: int,
        frame: bytes,
        *,
        checksum: bool = False,
        tso: Tso | tuple[int, int] | None = None,
        fragments: Sequence[int] | None = None,
        report_event: bool | None = None,
        memory: GuestMemory | None = None,
    ) -> int:
        """Send one packet; see `TxQueue.send`."""
        return self.tx[queue].send(
            frame, checksum=checksum, tso=tso, fragments=fragments, report_event=report_event, memory=memory
        )

    def poll_tx(self, queue: int) -> list[TxCompletion]:
        """Transmit completions since the last call; see `TxQueue.poll`."""
        return self.tx[queue].poll()

    # Interrupts

    def tx_block(self, queue: int) -> int:
        """Notification block, and vector, of a transmit queue."""
        return queue

    def rx_block(self, queue: int) -> int:
        """Notification block, and vector, of a receive queue."""
        return self.blocks // 2 + queue

    @property
    def management_vector(self) -> int:
        """The vector of link changes, reset requests and statistics requests."""
        return self.blocks

    def fired(self, vector: int) -> int:
        """How often a vector was signalled since the last call."""
        try:
            return os.eventfd_read(self.eventfds[vector])
        except BlockingIOError:
            return 0

    def enable(self, vector: int, *, interval_us: int | None = None) -> None:
        """Unmask a queue's vector by its doorbell.

        Args:
            vector: number of the vector, which is that of its block.
            interval_us: least time between two interrupts, an even number; None leaves it as it is.
        """
        if interval_us is None:
            value = IRQ_DOORBELL.encode(enable=1, itr_index=ITR_NO_UPDATE)
        else:
            value = IRQ_DOORBELL.encode(enable=1, interval=interval_us * 1000 // ITR_UNIT_NS)
        self.doorbells.ring(self.irq_doorbells[vector], int.from_bytes(value, "little"))

    # RSS

    def set_rss(
        self,
        key: bytes | None = None,
        table: Sequence[int] | None = None,
        *,
        hash_types: RssHashType = LINUX_HASH_TYPES,
    ) -> None:
        """Set the Toeplitz key (40 bytes) and the table from hash to receive queue; None leaves either as it is.

        Until a table is set here, `open` spreads over the queues it opens.

        Raises:
            AdminError: the device refused.
        """
        fields: dict[str, int] = {"hash_types": hash_types, "hash_algorithm": RSS_HASH_TOEPLITZ}
        place = self.ram.allocate(PAGE)
        try:
            if key is not None:
                self.ram.write(place, key)
                fields |= {"key_size": len(key), "key_address": place}
            if table is not None:
                entries = np.array(table, ">u4").tobytes()
                address = place + PAGE - len(entries)
                self.ram.write(address, entries)
                fields |= {"lut_size": len(table), "lut_address": address}
                self._spread = None
            self.admin(Opcode.CONFIGURE_RSS, **fields)
        finally:
            self.ram.free(place)

    def _spread_rss(self, queues: int) -> None:
        """The table that Linux starts with and keeps until a user sets one: the queues in turn."""
        self.set_rss(DEFAULT_KEY, [entry % queues for entry in range(RSS_LUT_SIZE)])
        self._spread = queues

    def query_rss(self) -> RssConfig:
        """Ask for key and table.

        Raises:
            AdminError: the device refused.
            ContractViolation: the answer's length contradicts its parts.
        """
        sizes = self._described().rss_sizes
        key_size, lut_size = (RSS_KEY_SIZE, RSS_LUT_SIZE) if sizes is None else (sizes["key_size"], sizes["lut_size"])
        raw = self._with_answer(Opcode.QUERY_RSS, "address", PAGE, available_length=PAGE)
        header = np.frombuffer(raw, QUERY_RSS_HEADER, 1)[0]
        key_end = QUERY_RSS_HEADER.itemsize + int(key_size)
        if header["total_length"] != key_end + 4 * int(lut_size):
            raise ContractViolation(f"QUERY_RSS answers {header['total_length']} bytes, {key_end} + table expected")
        table = np.frombuffer(raw, ">u4", int(lut_size), key_end)
        return RssConfig(
            RssHashType(int(header["hash_types"])), raw[QUERY_RSS_HEADER.itemsize : key_end], tuple(table.tolist())
        )

    # Flow rules

    def add_flow_rule(self, spec: FlowSpec, queue: int, *, owner: int = 0, location: int | None = None) -> int:
        """Send what matches `spec` to receive queue `queue`: ``ethtool -N``.

        Args:
            spec: what to match.
            queue: the receive queue.
            owner: the owner whose buffers it goes to, if the queue's buffers have several (`share_rx`).
            location: place among the rules, the lowest is looked at first; None: the highest that is free.

        Returns:
            The location.

        Raises:
            AdminError: the device refused.
        """
        if location is None:
            taken = set(self.flow_rule_ids())
            location = next(free for free in reversed(range(self.flow_rule_counts()[1])) if free not in taken)
        self.configure_flow_rule(FlowOperation.ADD, location, spec.encode(queue, owner))
        return location

    def delete_flow_rule(self, location: int) -> None:
        """Remove a rule.

        Raises:
            AdminError: NOT_FOUND if there is none at that location.
        """
        self.configure_flow_rule(FlowOperation.DELETE, location)

    def reset_flow_rules(self) -> None:
        """Remove all rules."""
        self.configure_flow_rule(FlowOperation.RESET, 0)

    def configure_flow_rule(self, operation: FlowOperation, location: int, rule: np.void | None = None) -> None:
        """Execute CONFIGURE_FLOW_RULE with these fields; `rule` is a `FLOW_RULE`, zeros if None.

        Raises:
            AdminError: the device refused.
        """
        command = np.zeros((), CONFIGURE_FLOW_RULE)
        command["operation"] = operation
        command["location"] = location
        command["rule"] = np.zeros((), FLOW_RULE) if rule is None else rule
        self.extended(Inner.CONFIGURE_FLOW_RULE, command)

    def flow_rule_counts(self) -> tuple[int, int]:
        """How many rules are installed, and how many there can be."""
        header, _ = self._query_flow_rules(FlowQuery.STATS, 0)
        return int(header["num_flow_rules"]), int(header["max_flow_rules"])

    def flow_rule_ids(self) -> list[int]:
        """Locations of all rules, ascending."""
        locations: list[int] = []
        while True:
            start = locations[-1] + 1 if locations else 0
            header, body = self._query_flow_rules(FlowQuery.IDS, start)
            count = int(header["num_queried"])
            if not count:
                return locations
            locations += np.frombuffer(body, ">u4", count).tolist()

    def flow_rules(self) -> dict[int, np.void]:
        """All rules (`FLOW_RULE`) by location."""
        rules: dict[int, np.void] = {}
        for location in self.flow_rule_ids():
            if location not in rules:
                header, body = self._query_flow_rules(FlowQuery.RULES, location)
                found = np.frombuffer(body, QUERIED_RULE, int(header["num_queried"]))
                rules |= {int(entry["location"]): entry["rule"] for entry in found}
        return rules

    # Link, clock, statistics

    def device_status(self) -> DeviceStatus:
        """Link and requests of the device."""
        return DeviceStatus(self.registers.read(DEVICE_STATUS))

    def report_link_speed(self) -> int:
        """The link's speed in Mbit/s."""
        return int.from_bytes(self._with_answer(Opcode.REPORT_LINK_SPEED, "address", 8), "big")

    def set_mtu(self, mtu: int) -> None:
        """Tell the device the largest packet without its Ethernet header, bytes: ``ip link set mtu``.

        Raises:
            AdminError: the device takes no such MTU.
        """
        self.admin(Opcode.SET_DRIVER_PARAMETER, type=DRIVER_PARAMETER_MTU, value=mtu)

    def nic_timestamp(self) -> int:
        """The NIC's clock in ns; the base that receive timestamps are expanded with."""
        raw = self._with_answer(
            Opcode.REPORT_NIC_TIMESTAMP, "address", NIC_TIMESTAMP.itemsize, length=NIC_TIMESTAMP.itemsize
        )
        self._last_sync = int(np.frombuffer(raw, NIC_TIMESTAMP)["nic_ns"][0])
        return self._last_sync

    def expand_timestamp(self, low: int) -> int:
        """Full time in ns of a receive timestamp's low 32 bits, valid within 2.1 s of the last `nic_timestamp`."""
        difference = (low - self._last_sync) & 0xFFFF_FFFF
        return self._last_sync + (difference ^ 1 << 31) - (1 << 31)

    def report_stats(self) -> None:
        """Give the device a statistics region, sized for all queues there can be."""
        entries = self.max_tx_queues * STATS_DRIVER_TX + self.max_rx_queues * (STATS_DRIVER_RX + STATS_DEVICE_RX)
        length = STATS_HEADER_SIZE + entries * STATS_ENTRY.itemsize
        address = self._keep(length)
        self.admin(Opcode.REPORT_STATS, address=address, length=length, interval_ms=STATS_INTERVAL_MS)
        self.stats_region = self.ram.view(address, length)

    def read_stats(self) -> dict[tuple[int, Stat], int]:
        """What the device has written to the statistics region, by receive queue and name.

        The device's entries are the region's last ones, four for each receive queue there is.
        """
        entries = self.stats_region[STATS_HEADER_SIZE:].view(STATS_ENTRY)
        return {
            (int(entry["queue_id"]), Stat(int(entry["name"]))): int(entry["value"])
            for entry in entries[len(entries) - STATS_DEVICE_RX * len(self.rx) :]
            if entry["name"]
        }

    def _described(self) -> Description:
        if self.description is None:
            raise RuntimeError("the device has not been described: probe() first")
        return self.description

    def _default_queues(self, largest: int) -> int:
        return min(int(self._described().descriptor["default_num_queues"]) or largest, largest)

    def _keep(self, size: int) -> int:
        """Zeroed memory that the device may use until the release."""
        address = self.ram.allocate_zeroed(size)
        self._kept.append(address)
        return address

    def _with_answer(self, opcode: Opcode, address_field: str, size: int, content: bytes = b"", **fields: int) -> bytes:
        """Execute a command that points at `size` bytes of memory; what is there afterwards."""
        place = self.ram.allocate_zeroed(size)
        try:
            self.ram.write(place, content)
            self.admin(opcode, **{address_field: place}, **fields)
            return self.ram.read(place, size)
        finally:
            self.ram.free(place)

    def _query_flow_rules(self, query: FlowQuery, start: int) -> tuple[np.void, bytes]:
        """Header and body of the answer."""
        raw = self._with_answer(
            Opcode.QUERY_FLOW_RULES, "address", PAGE, query=query, starting_rule_id=start, available_length=PAGE
        )
        header = np.frombuffer(raw, QUERY_FLOW_RULES_HEADER, 1)[0]
        entry = {FlowQuery.RULES: QUERIED_RULE.itemsize, FlowQuery.IDS: 4, FlowQuery.STATS: 0}[query]
        size = QUERY_FLOW_RULES_HEADER.itemsize + entry * int(header["num_queried"])
        if header["total_length"] != size or size > PAGE:
            raise ContractViolation(f"QUERY_FLOW_RULES {query.name}: {header} with a length that is not {size}")
        return header, raw[QUERY_FLOW_RULES_HEADER.itemsize : size]

    def _provide_vectors(self) -> None:
        """Enable MSI-X: one eventfd for each vector, and as many notification blocks as come in pairs."""
        vectors = self.client.irq_info(PciIrq.MSIX).count
        if vectors < 3:
            raise ContractViolation(f"{vectors} MSI-X vectors; a driver needs 3")
        self.blocks = (vectors - 1) & ~1
        self.max_tx_queues = min(self.max_tx_queues, self.blocks // 2)
        self.max_rx_queues = min(self.max_rx_queues, self.blocks // 2)
        if self.eventfds:
            self._withdraw_vectors()
        self.eventfds = [os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC) for _ in range(self.blocks + 1)]
        self.client.set_irqs(PciIrq.MSIX, 0, self.eventfds)

    def _withdraw_vectors(self) -> None:
        self.client.disable_irqs(PciIrq.MSIX)
        for eventfd in self.eventfds:
            os.close(eventfd)
        self.eventfds = []

    def _check_doorbells(self) -> None:
        """Every doorbell must be one queue's or block's alone, and every counter inside the array."""
        placements = [queue.placement for queue in self.rx.values() if queue.placement is not None]
        indices = self.irq_doorbells + [queue.doorbell_index for queue in [*self._queues(), *placements]]
        if len(set(indices)) != len(indices):
            raise ContractViolation(f"doorbells are shared: {sorted(indices)}")
        if any(queue.counter_index >= len(self.counters) for queue in self.tx.values()):
            raise ContractViolation("a queue's counter lies outside of the counter array")

    def _queues(self) -> list[Queue]:
        return [*self.tx.values(), *self.rx.values()]

    def _enable_all(self) -> None:
        for number in self.tx:
            self.enable(self.tx_block(number), interval_us=TX_INTERVAL_US)
        for number in self.rx:
            self.enable(self.rx_block(number), interval_us=RX_INTERVAL_US)
