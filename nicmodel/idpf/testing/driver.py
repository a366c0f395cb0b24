"""An idpf driver in Python on a vfio-user client: the stock Linux driver's steps, without a guest.

    with Driver("/run/nic.sock") as driver:
        driver.probe()
        driver.open(header_split=True)
        driver.send(0, frame, checksum=True)
        packets = driver.poll(0)

It follows the order and the habits of Linux drivers/net/ethernet/intel/idpf for a virtual function in the split queue
model: what it does, a driver may do; where it raises `ContractViolation`, a kernel would complain or worse. It is an
example to read for people who write a driver, and the tests' hand on the device. Nothing here waits: interrupts are
looked at by `fired`, completions by `poll` and `poll_tx`.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterable, Sequence
from functools import partial
from types import TracebackType
from typing import Any

import numpy as np

from nicmodel.idpf import registers as r
from nicmodel.idpf import virtchnl as v
from nicmodel.idpf.registers import DYN_CTL, ITR_NO_UPDATE
from nicmodel.idpf.testing.mailbox import Mailbox, Registers, one
from nicmodel.idpf.testing.rx import RxConfig, RxPacket, RxQueue
from nicmodel.idpf.testing.tx import Tso, TxCompletion, TxQueue
from nicmodel.idpf.testing.violation import ContractViolation
from nicmodel.idpf.virtchnl import MacType, Op, Promiscuous, QueueModel, QueueType, Scheduling
from nicmodel.pci.config import COMMAND, Command
from nicmodel.testing.guest_memory import GuestMemory
from nicmodel.vfio_user.client import Client
from nicmodel.vfio_user.protocol import DmaFlag, PciIrq, PciRegion

#: What Linux writes to have a vector fire, to poll instead, and to come back from that.
ENABLE = DYN_CTL.encode(enable=1, itr_index=ITR_NO_UPDATE)
POLL = DYN_CTL.encode(write_back_on_itr=1, keep_enable=1, itr_index=ITR_NO_UPDATE)
TRIGGER = DYN_CTL.encode(enable=1, software_interrupt=1, itr_index=2, interval=25, software_itr_enable=1)
#: Which interval a queue's events wait for (VIRTCHNL2_ITR_IDX_0 and 1), and its default, µs.
ITR_INDEX = {QueueType.RX: 0, QueueType.TX: 1}
INTERVAL_US = 8


class Driver:
    """The driver of one device.

    Args:
        device: a connected client, or the path of the device's socket.
        ram: the guest's memory; made here, and then closed with the driver, if None.

    Attributes:
        client: the vfio-user connection.
        ram: the guest's memory.
        registers: BAR 0.
        mailbox: to the control plane; None before `probe`.
        capabilities: what GET_CAPS returned, `CAPABILITIES`.
        vport: what CREATE_VPORT returned, `CREATE_VPORT`.
        tails: by type of queue, where its tails are: the first one's offset, and how far it is to the next.
        eventfds: what each vector signals; empty before `probe`.
        rx: receive queues by number.
        tx: transmit queues by number.
    """

    def __init__(self, device: Client | str | os.PathLike[str], *, ram: GuestMemory | None = None) -> None:
        self.client = device if isinstance(device, Client) else Client(os.fspath(device))
        self.ram = GuestMemory("ram") if ram is None else ram
        self._owns_ram = ram is None
        self.registers = Registers(self.client)
        self.mailbox: Mailbox | None = None
        self.capabilities: np.void = one(v.CAPABILITIES)
        self.vport: np.void = one(v.CREATE_VPORT)
        self.vectors: np.void = one(v.VECTOR_CHUNK)
        self.tails: dict[QueueType, tuple[int, int]] = {}
        self.eventfds: list[int] = []
        self.rx: dict[int, RxQueue] = {}
        self.tx: dict[int, TxQueue] = {}
        flags = DmaFlag.READABLE | DmaFlag.WRITABLE
        self.client.dma_map(self.ram.base, self.ram.size, self.ram.fd, 0, flags)

    def __enter__(self) -> Driver:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.disconnect()

    def disconnect(self) -> None:
        """Disconnect without telling the device, as happens when a guest is killed."""
        self.client.close()
        for eventfd in self.eventfds:
            os.close(eventfd)
        self.eventfds = []
        if self._owns_ram:
            self.ram.close()

    # Messages

    def request(self, op: Op, payload: bytes | np.void = b"") -> bytes:
        """Send a message, and wait for its reply, whose payload is returned.

        Raises:
            Refused: the device says that it cannot be done.
            Silent: it does not answer.
        """
        if self.mailbox is None:
            raise RuntimeError("the mailbox is not set up: probe() first")
        return self.mailbox.request(op, payload if isinstance(payload, bytes) else payload.tobytes())

    def _several(self, op: Op, records: Sequence[np.void], **fields: Any) -> bytes:
        """Send a message about several things."""
        message = op.message
        assert message.many is not None
        head = one(message.head, **{message.count: len(records)}, **fields)
        return self.request(op, head.tobytes() + np.array(records, message.many).tobytes())

    def events(self) -> list[np.void]:
        """Take what the device has said unasked: `EVENT`s."""
        if self.mailbox is None:
            return []
        self.registers.read(r.ARQ_LEN)  # by then it has said it
        found = [*self.mailbox.events, *self.mailbox.receive()]
        self.mailbox.events.clear()
        return [np.frombuffer(event.payload, v.EVENT)[0] for event in found if event.number == Op.EVENT]

    # Life of the device

    def probe(self) -> None:
        """Bring the device up to where the kernel registers its network interface.

        Raises:
            Refused: the device refused a step.
            ContractViolation: the device says impossible things of itself.
        """
        self.identify()
        self.set_bus_master()
        self.set_up()

    def set_up(self) -> None:
        """What follows a reset: mailbox, capabilities, vectors, packet types, vport."""
        if not self.registers.read(r.RSTAT) & 3:
            raise ContractViolation("the device does not come out of its reset")
        self.mailbox = Mailbox(self.registers, self.ram)
        version = np.frombuffer(
            self.request(Op.VERSION, one(v.VERSION, major=v.VERSION_MAJOR, minor=v.VERSION_MINOR)), v.VERSION
        )[0]
        if version["major"] != v.VERSION_MAJOR:
            raise ContractViolation(f"version {version['major']} of virtchnl")
        asked = one(v.CAPABILITIES, csum_caps=0xFFFFFFFF, seg_caps=0xFFFFFFFF, other_caps=0xFFFFFFFF)
        self.capabilities = np.frombuffer(self.request(Op.GET_CAPS, asked), v.CAPABILITIES)[0]
        self.allocate_vectors()
        self.packet_types()
        self.create_vport()

    def identify(self) -> None:
        """See that the device is an idpf, which a kernel's PCI bus does before it calls a driver.

        Raises:
            ContractViolation: it is something else.
        """
        vendor, device = struct.unpack("<HH", self.client.region_read(PciRegion.CONFIG, 0, 4))
        if (vendor, device) != (r.VENDOR_INTEL, r.DEVICE_IDPF_VF):
            raise ContractViolation(f"{vendor:04x}:{device:04x} is no virtual function of an idpf")

    def set_bus_master(self, on: bool = True) -> None:
        """Let the device respond to its BARs, and start DMA and interrupts of its own; or forbid the latter."""
        command = Command.MEMORY | (Command.BUS_MASTER if on else Command(0))
        self.client.region_write(PciRegion.CONFIG, COMMAND, command.to_bytes(2, "little"))

    def allocate_vectors(self) -> None:
        """Have vectors besides the mailbox's, and learn where their registers are."""
        count = int(self.capabilities["num_allocated_vectors"]) - 1
        reply = self.request(Op.ALLOC_VECTORS, one(v.ALLOC_VECTORS, num_vectors=count))
        self.vectors = np.frombuffer(reply, v.VECTOR_CHUNK, 1, v.ALLOC_VECTORS.itemsize)[0]
        if not self.eventfds:
            self.eventfds = [os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC) for _ in range(count + 1)]
        self.client.set_irqs(PciIrq.MSIX, 0, self.eventfds)
        self.registers.write_at(int(self.capabilities["mailbox_dyn_ctl"]), int.from_bytes(ENABLE, "little"))
        self.registers.write(r.MAILBOX_ENABLE, 1 << 30)

    def packet_types(self) -> dict[int, list[int]]:
        """The device's packet types: protocols by number."""
        reply = self.request(Op.GET_PTYPE_INFO, one(v.GET_PTYPE_INFO, start_ptype_id=0, num_ptypes=58))
        place, found = v.GET_PTYPE_INFO.itemsize, {}
        for _ in range(int(np.frombuffer(reply, v.GET_PTYPE_INFO, 1)[0]["num_ptypes"])):
            entry = np.frombuffer(reply, v.PTYPE, 1, place)[0]
            place += v.PTYPE.itemsize
            protocols = np.frombuffer(reply, "<u2", int(entry["protocols"]), place)
            place += protocols.nbytes
            if entry["id10"] == v.LAST_PTYPE:
                break
            found[int(entry["id10"])] = protocols.tolist()
        return found

    def create_vport(self, queues: int = 4) -> None:
        """Have a vport with so many queues each way."""
        count = min(queues, int(self.capabilities["max_rx_q"]))
        asked = one(
            v.CREATE_VPORT, txq_model=QueueModel.SPLIT, rxq_model=QueueModel.SPLIT,
            num_tx_q=count, num_tx_complq=count, num_rx_q=count, num_rx_bufq=2 * count,
        )  # fmt: skip
        reply = self.request(Op.CREATE_VPORT, asked)
        self.vport = np.frombuffer(bytearray(reply), v.CREATE_VPORT, 1)[0]
        self._learn_tails(reply, v.CREATE_VPORT.itemsize, int(self.vport["num_chunks"]))

    def _learn_tails(self, reply: bytes, place: int, count: int) -> None:
        chunks = np.frombuffer(reply, v.REGISTER_CHUNK, count, place)
        self.tails = {
            QueueType(chunk["type"]): (int(chunk["qtail_reg_start"]), int(chunk["qtail_reg_spacing"]))
            for chunk in chunks
        }

    def exchange_queues(self, tx: int, rx: int) -> None:
        """Give the vport's queues back, and have others: what Linux does for ``ethtool -L`` and more."""
        self._several(Op.DEL_QUEUES, self._chunks(int(self.vport["num_tx_q"]), int(self.vport["num_rx_q"])))
        asked = one(v.ADD_QUEUES, num_tx_q=tx, num_tx_complq=tx, num_rx_q=rx, num_rx_bufq=2 * rx)
        reply = self.request(Op.ADD_QUEUES, asked)
        self._learn_tails(reply, v.ADD_QUEUES.itemsize, int(np.frombuffer(reply, v.ADD_QUEUES, 1)[0]["num_chunks"]))
        self.vport["num_tx_q"], self.vport["num_rx_q"] = tx, rx

    def remove(self) -> None:
        """Close, and give back what the device has; then the bus takes bus mastering away."""
        self.close()
        self.request(Op.DESTROY_VPORT, one(v.VPORT))
        self._several(Op.DEALLOC_VECTORS, [self.vectors])
        self.set_bus_master(False)
        if self.mailbox is not None:
            self.mailbox.free()
            self.mailbox = None

    # Queues

    def open(
        self,
        *,
        queues: int | None = None,
        ring_entries: int | tuple[int, int] = 512,
        header_split: bool = True,
        large: int = 2048,
        small: int = 1024,
        rsc: bool = False,
        scheduling: Scheduling = Scheduling.FLOW,
    ) -> None:
        """Create the queues, post receive buffers and enable interrupts: ``ip link set up``.

        Args:
            queues: how many each way, no more than the vport has; None: all.
            ring_entries: of every ring, or of receive rings and of transmit rings: Linux takes up to 8128 and 8160.
            header_split: headers into buffers of their own.
            large: bytes of a buffer of the first buffer queue.
            small: of the second; 0: there is none.
            rsc: let the device coalesce segments.
            scheduling: of the transmit queues.

        Raises:
            Refused: the device refused a step.
            ValueError: receive rings that cannot be (`RxConfig`).
        """
        rx_entries, tx_entries = (ring_entries, ring_entries) if isinstance(ring_entries, int) else ring_entries
        config = RxConfig(rx_entries, large, small, header_split, rsc, longest=int(self.vport["max_mtu"]))
        for number in range(queues or int(self.vport["num_rx_q"])):
            self.rx[number] = RxQueue(number, config, self.ram, self._buffer_tail)
            self.rx[number].post()
            tail = partial(self._tail, QueueType.TX, number)
            self.tx[number] = TxQueue(number, tx_entries, scheduling, self.ram, tail)
        self.set_vectors(int.from_bytes(ENABLE, "little"))
        self.configure()
        self.map_vectors()
        self.enable_queues()
        self.request(Op.ENABLE_VPORT, one(v.VPORT))
        self.add_addresses([bytes(self.vport["default_mac_addr"]).hex(":")], kind=MacType.PRIMARY)
        self.set_rss_table([number % len(self.rx) for number in range(int(self.vport["rss_lut_size"]))])

    def _tail(self, kind: QueueType, number: int, tail: int) -> None:
        start, spacing = self.tails[kind]
        self.registers.write_at(start + spacing * number, tail)

    def _buffer_tail(self, number: int, tail: int) -> None:
        self._tail(QueueType.RX_BUFFER, number, tail)

    def configure(self) -> None:
        """Say what the queues are like."""
        self._several(Op.CONFIG_TX_QUEUES, [record for queue in self.tx.values() for record in queue.records()])
        self._several(Op.CONFIG_RX_QUEUES, [record for queue in self.rx.values() for record in queue.records()])

    def map_vectors(self, *, on: bool = True) -> None:
        """Have each pair of queues use the vector of its number, from the one behind the mailbox's on."""
        maps = [
            one(
                v.QUEUE_VECTOR, queue_id=number, vector_id=self.vector(number), itr_idx=ITR_INDEX[kind], queue_type=kind
            )
            for kind, queues in ((QueueType.RX, self.rx), (QueueType.TX, self.tx))
            for number in queues
        ]
        self._several(Op.MAP_QUEUE_VECTOR if on else Op.UNMAP_QUEUE_VECTOR, maps)

    def _chunks(self, tx: int, rx: int) -> list[np.void]:
        counts = {QueueType.TX: tx, QueueType.TX_COMPLETION: tx, QueueType.RX: rx, QueueType.RX_BUFFER: 2 * rx}
        return [one(v.QUEUE_CHUNK, type=kind, num_queues=count) for kind, count in counts.items()]

    def enable_queues(self) -> None:
        """Have the queues begin."""
        self._several(Op.ENABLE_QUEUES, self._of_each_queue())

    def disable_queues(self) -> None:
        """Have the queues end."""
        self._several(Op.DISABLE_QUEUES, self._of_each_queue())

    def _of_each_queue(self) -> list[np.void]:
        """A chunk for each queue, as Linux has it: all transmit queues, and then all others."""
        names = [(kind, number) for number in self.tx for kind in (QueueType.TX, QueueType.TX_COMPLETION)]
        for number, queue in self.rx.items():
            names += [(QueueType.RX, number), *((QueueType.RX_BUFFER, buffers.number) for buffers in queue.buffers)]
        return [one(v.QUEUE_CHUNK, type=kind, start_queue_id=number, num_queues=1) for kind, number in names]

    def close(self) -> None:
        """Take the queues back from the device: ``ip link set down``.

        Raises:
            ContractViolation: a transmit queue does not end with its marker.
        """
        if not self.rx and not self.tx:
            return
        self.request(Op.DISABLE_VPORT, one(v.VPORT))
        self.disable_queues()
        for queue in self.tx.values():
            queue.await_marker()
        self.map_vectors(on=False)
        self.set_vectors(0)
        self.free_queues()

    def free_queues(self) -> None:
        """Give the queues' memory back; the device must have let go of it."""
        for rx in self.rx.values():
            rx.free()
        for tx in self.tx.values():
            tx.free()
        self.rx.clear()
        self.tx.clear()

    # Interrupts

    def vector(self, number: int) -> int:
        """MSI-X vector of the pair of queues `number`."""
        return int(self.vectors["start_vector_id"]) + number

    def set_vectors(self, control: int) -> None:
        """Write the control register of each pair's vector."""
        for number in self.rx:
            self.set_vector(number, control)

    def set_vector(self, number: int, control: int) -> None:
        """Write the control register of the vector of the pair of queues `number`."""
        start, spacing = int(self.vectors["dynctl_reg_start"]), int(self.vectors["dynctl_reg_spacing"])
        self.registers.write_at(start + spacing * number, control)

    def rearm(self, number: int) -> None:
        """Have a vector fire again."""
        self.set_vector(number, int.from_bytes(ENABLE, "little"))

    def set_interval(self, number: int, kind: QueueType, microseconds: int) -> None:
        """How long a vector waits for more from one of its two queues."""
        start = int(self.vectors["itrn_reg_start"]) + ITR_INDEX[kind] * int(self.vectors["itrn_index_spacing"])
        self.registers.write_at(start + int(self.vectors["itrn_reg_spacing"]) * number, microseconds // 2)

    def fired(self, vector: int) -> int:
        """How often a vector was raised since this was asked last."""
        self.registers.read(r.RSTAT)  # by then the device has seen all
        try:
            return os.eventfd_read(self.eventfds[vector])
        except BlockingIOError:
            return 0

    # Packets

    def send(
        self,
        queue: int,
        frame: bytes,
        *,
        checksum: bool = False,
        tso: Tso | tuple[int, int] | None = None,
        fragments: Sequence[int] = (),
        latch: int | None = None,
        kick: bool = True,
    ) -> int:
        """Send one packet; see `TxQueue.send`."""
        return self.tx[queue].send(frame, checksum=checksum, tso=tso, fragments=fragments, latch=latch, kick=kick)

    def poll_tx(self, queue: int) -> list[TxCompletion]:
        """Take the new completions of a transmit queue."""
        self.registers.read(r.RSTAT)
        return self.tx[queue].poll()

    def poll(self, queue: int, *, repost: bool = True) -> list[RxPacket]:
        """Take what a receive queue has brought."""
        self.registers.read(r.RSTAT)
        return self.rx[queue].poll(repost=repost)

    # Steering

    def set_rss_key(self, key: bytes) -> None:
        """Set the hash key."""
        head = one(v.RSS_KEY, key_len=len(key))
        self.request(Op.SET_RSS_KEY, head.tobytes() + key)

    def set_rss_table(self, table: Iterable[int]) -> None:
        """Set the indirection table."""
        entries = np.array(list(table), "<u4")
        head = one(v.RSS_LUT, lut_entries=len(entries))
        self.request(Op.SET_RSS_LUT, head.tobytes() + entries.tobytes())

    # The clock

    def clock(self) -> np.void:
        """What can be done with the device's clock, `PTP_CAPS`."""
        asked = one(v.PTP_CAPS, caps=sum(v.Ptp))
        found: np.void = np.frombuffer(self.request(Op.PTP_GET_CAPS, asked), v.PTP_CAPS)[0]
        return found

    def time(self) -> int:
        """What the clock shows, ns."""
        return int(np.frombuffer(self.request(Op.PTP_GET_DEV_CLK_TIME, one(v.CLOCK_TIME)), v.CLOCK_TIME)[0][0])

    def set_time(self, time: int) -> None:
        """Set the clock, ns."""
        self.request(Op.PTP_SET_DEV_CLK_TIME, one(v.CLOCK_TIME, dev_time_ns=time))

    def adjust_time(self, difference: int) -> None:
        """Have the clock show so many ns more."""
        self.request(Op.PTP_ADJ_DEV_CLK_TIME, one(v.CLOCK_DELTA, delta=difference))

    def set_increment(self, increment: int) -> None:
        """Have the clock go at another rate; see `PTP_CAPS.base_incval`."""
        self.request(Op.PTP_ADJ_DEV_CLK_FINE, one(v.CLOCK_INCREMENT, incval=increment))

    def latches(self) -> list[int]:
        """Numbers of the latches for the timestamps of what is sent."""
        op, head = Op.PTP_GET_VPORT_TX_TSTAMP_CAPS, v.TX_LATCH_CAPS
        reply = self.request(op, one(head))
        count = int(np.frombuffer(reply, head, 1)[0]["num_latches"])
        return [int(latch["index"]) for latch in np.frombuffer(reply, v.TX_LATCH_CAP, count, head.itemsize)]

    def timestamps(self, latches: Sequence[int]) -> list[int | None]:
        """Take what is in some latches, ns; None: nothing."""
        op = Op.PTP_GET_VPORT_TX_TSTAMP
        reply = self._several(op, [one(v.TX_LATCH, index=latch) for latch in latches])
        found = np.frombuffer(reply, v.TX_LATCH, len(latches), v.TX_LATCHES.itemsize)
        return [int(latch["tstamp"]) if latch["valid"] else None for latch in found]

    # Which frames come

    def add_addresses(self, addresses: Iterable[str], *, kind: MacType = MacType.EXTRA) -> None:
        """Have frames to these stations or groups, too."""
        self._several(Op.ADD_MAC_ADDR, _mac_addresses(addresses, kind))

    def delete_addresses(self, addresses: Iterable[str], *, kind: MacType = MacType.EXTRA) -> None:
        """Have them no more."""
        self._several(Op.DEL_MAC_ADDR, _mac_addresses(addresses, kind))

    def set_promiscuous(self, mode: Promiscuous) -> None:
        """Have frames to all stations, to all groups, or both."""
        self.request(Op.CONFIG_PROMISCUOUS_MODE, one(v.PROMISCUOUS_MODE, flags=mode))

    def set_loopback(self, on: bool) -> None:
        """Have what is sent come back."""
        self.request(Op.LOOPBACK, one(v.LOOPBACK, enable=on))

    def statistics(self) -> np.void:
        """The vport's counters, `VPORT_STATS`."""
        found: np.void = np.frombuffer(self.request(Op.GET_STATS, one(v.VPORT_STATS)), v.VPORT_STATS)[0]
        return found


def _mac_addresses(addresses: Iterable[str], kind: MacType) -> list[np.void]:
    return [
        one(v.MAC_ADDRESS, address=np.frombuffer(bytes.fromhex(address.replace(":", "")), np.uint8), type=kind)
        for address in addresses
    ]
