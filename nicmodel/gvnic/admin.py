"""The admin queue: commands are fetched, executed in order and answered within the doorbell's write.

What a driver asks for at once is bounded: by the work that one command may be, and by the number of commands in one
turn of the event loop; those that are left are executed in the next turns.

Source: Linux drivers/net/ethernet/google/gve/gve_adminq.c. A status is written before the event counter moves.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from nicmodel.gvnic import commands as c
from nicmodel.gvnic.commands import FlowOperation, Inner, Opcode, OptionId, OsType, QueueFormat, Status
from nicmodel.gvnic.declare import QUEUE_RESOURCES
from nicmodel.gvnic.descriptors import (
    GQI_RX_DESCRIPTOR,
    GQI_RX_SLOT,
    GQI_TX_PACKET,
)
from nicmodel.gvnic.doorbells import Doorbells
from nicmodel.gvnic.options.option import OptionControl
from nicmodel.gvnic.pages import PageLists
from nicmodel.gvnic.profile import Profile
from nicmodel.gvnic.refusal import AdminError, check_ring, require
from nicmodel.gvnic.state import State
from nicmodel.gvnic.statistics import Statistics
from nicmodel.gvnic.steering import FlowRules, Rss, status_of
from nicmodel.nic import events
from nicmodel.nic.diagnostics import Diagnostics
from nicmodel.nic.dma_engine import DmaEngine
from nicmodel.nic.interrupts import Interrupts
from nicmodel.nic.layout import explain
from nicmodel.nic.steering import SteeringError
from nicmodel.packet.headers import L3, L4
from nicmodel.packet.parse import ETHERNET_SIZE
from nicmodel.vfio_user.dma import DmaFault
from nicmodel.vfio_user.poll import Budget, EventLoop

log = logging.getLogger(__name__)

#: Smallest and largest receive buffer that is accepted, bytes: what the length field of a completion can say.
MIN_BUFFER, MAX_BUFFER = 256, 16256
#: Receive buffers of the GQI formats, and the size of a registered page, where an old driver does not say them.
GQI_BUFFER, PAGE_SIZE = 2048, 4096
#: Largest page of a page list: 1 GiB, the largest page that a processor has.
MAX_PAGE_SIZE = 1 << 30
#: Most commands that are executed in one turn of the event loop: all that fit the ring that drivers give.
_COMMANDS_PER_TURN = 64
#: A gate's answer: the command is not executed yet. No status is negative.
WAIT = -1
#: Numbers that are no command's and are counted by themselves; all others together, as "other".
MAX_UNKNOWN = 16
_OPCODES, _INNER = frozenset(Opcode), frozenset(Inner)
#: The device descriptor has 16 bits for their number.
MAX_COUNTERS = 0xFFFF


def ptype_map() -> bytes:
    """What GET_PTYPE_MAP answers: entry ``l3 << 3 | l4`` for each combination, the rest unknown."""
    table = np.zeros(c.PTYPE_COUNT, c.PTYPE)
    for l3 in L3:
        for l4 in L4:
            table[l3 << 3 | l4] = (c.L3Type[l3.name], c.L4Type[l4.name])
    return table.tobytes()


class Commanded(Protocol):
    """What commands act on: a NIC, as far as its driver sets it up.

    What is a part's own is asked of that part. The calls are for the device as a whole, and for its queues.
    """

    profile: Profile
    poller: EventLoop
    #: Commands look at queues here, and change them by calls.
    state: State
    dma: DmaEngine
    diagnostics: Diagnostics
    interrupts: Interrupts
    doorbells: Doorbells
    pages: PageLists
    rss: Rss
    rules: FlowRules
    statistics: Statistics

    @property
    def bus_master(self) -> bool:
        """Whether DMA is allowed."""

    @property
    def gqi(self) -> bool:
        """Whether the driver has chosen a GQI format."""

    @property
    def configured(self) -> bool:
        """Whether there are notification blocks, so that there can be queues."""

    def configure(self, *, queue_format: QueueFormat, blocks: int, base: int, counters: tuple[int, int]) -> None:
        """Have vectors, and counters at a guest address: address and number."""

    def deconfigure(self) -> None:
        """Take back all that commands have set up."""

    def create_tx(self, queue: int, **fields: int) -> None:
        """Start a transmit queue; `fields` are those of `TX_QUEUE`."""

    def create_rx(self, queue: int, **fields: int) -> None:
        """Start a receive queue; `fields` are those of `RX_QUEUE`."""

    def destroy_tx(self, queue: int) -> None:
        """Stop a transmit queue."""

    def destroy_rx(self, queue: int) -> None:
        """Stop a receive queue."""


class AdminQueue:
    """Executes commands.

    Args:
        nic: what they act on.
        options: the options of the model's own that it has; they execute their commands themselves.

    Attributes:
        nic: see above.
        base: guest address of the queue; 0 while there is none.
        slots: its number of commands.
        counter: commands completed, 32 bits, as the event counter register shows it.
        gate: asked about each command, by its number, before it is executed: None lets it pass, a status is answered
            instead, `WAIT` has the queue stand still until `resume`. No gate is the default (`nicmodel.faults`).
        detour: what commands have the device write goes through it; none is the default (`nicmodel.faults`).
        describe: makes the answer to DESCRIBE_DEVICE; the profile's is the default (`nicmodel.faults`).
        time: what REPORT_NIC_TIMESTAMP answers, ns; the event loop's clock is the default (`nicmodel.faults`).
        executed: number of commands by name and status (`count`), for display.
    """

    def __init__(self, nic: Commanded, options: Iterable[OptionControl] = ()) -> None:
        self.nic = nic
        self._profile = nic.profile
        self._rx, self._tx = nic.state.rx, nic.state.tx
        self._dma = nic.dma
        self._diagnostics = nic.diagnostics
        self.base = 0
        self.slots = 0
        self.counter = 0
        self.gate: Callable[[int], int | None] | None = None
        self.detour: Callable[[bytes], bytes] | None = None
        self.describe: Callable[[], bytes] = nic.profile.describe
        self.time: Callable[[], int] = nic.poller.clock
        self._producer = 0
        self._commands = Budget(nic.poller, _COMMANDS_PER_TURN)
        self.executed: Counter[str] = Counter()
        self._unknown = 0  # numbers in it that are no command's
        # The event counters' guest address, and how many the driver has given.
        self._counter_array = self._counters = 0
        self.driver_info: np.void | None = None
        #: What executes each command: the method of its name, or an option.
        self._handlers: dict[Opcode | Inner, Callable[[np.void], None]] = {
            command: getattr(self, f"_{command.name.lower()}") for command in (*Opcode, *Inner) if not command.own
        }
        for option in options:
            self._handlers.update(option.handlers(self))

    def executes(self, inner: int) -> bool:
        """Whether the device has this inner command."""
        return inner in _INNER and self._has(Inner(inner))

    def _has(self, command: Opcode | Inner) -> bool:
        # A device without flow rules has a table without room, which says so itself.
        return command.command.option is OptionId.FLOW_STEERING.option or command.offered(self._profile)

    def start(self, base: int, length: int) -> None:
        """Take a queue of `length` bytes at guest address `base`."""
        self.base, self.slots, self.counter, self._producer = base, length // c.SLOT_SIZE, 0, 0

    def stop(self) -> None:
        """Forget the queue."""
        self.base = self.slots = self.counter = self._producer = 0

    @property
    def waiting(self) -> int:
        """Commands that were handed over and are not completed."""
        return (self._producer - self.counter) & 0xFFFFFFFF

    def ring(self, producer: int) -> None:
        """The doorbell: execute all commands up to the free-running count `producer`."""
        waiting = (producer - self.counter) & 0xFFFFFFFF
        if not self.base or waiting > self.slots:
            self._diagnostics.count("admin_doorbell_ignored")
            log.warning(
                "admin doorbell %d ignored: %d commands completed, %d slots", producer, self.counter, self.slots
            )
            return
        self._producer = producer
        self.resume()

    def resume(self) -> None:
        """Execute the commands that wait; those that are too many for this turn of the event loop in the next.

        While bus mastering is off they stay where they are: they cannot be read.
        """
        while self.base and self.waiting and self.nic.bus_master and self._commands.spend(self.resume):
            address = self.base + self.counter % self.slots * c.SLOT_SIZE
            try:
                slot = self._dma.read(address, c.SLOT_SIZE)
                status = self._answer_to(slot)
                if status == WAIT:
                    return
                self._dma.write(address + 4, status.to_bytes(4, "big"))
            except DmaFault as fault:
                # Nowhere to put a status: the driver sees the count move and its own 0 in the status word.
                self._diagnostics.count("admin_queue_fault")
                log.warning("admin queue: %s", fault)
            if not self.base:  # the command was the last: the device was reset underneath
                return
            self.counter = (self.counter + 1) & 0xFFFFFFFF

    def count(self, number: int, status: str) -> None:
        """Count a command; of numbers that are no command's, which a driver has without end, the first few by name."""
        name = Opcode(number).name if number in _OPCODES else f"{number:#x}"
        if number not in _OPCODES and f"{name} {status}" not in self.executed:
            if self._unknown == MAX_UNKNOWN:
                name = "other"
            else:
                self._unknown += 1
        self.executed[f"{name} {status}"] += 1

    def _answer_to(self, slot: bytes) -> int:
        """A command's status, or `WAIT`."""
        try:
            answer = self.gate(int.from_bytes(slot[:4], "big")) if self.gate is not None else None
            return self._execute(slot) if answer is None else answer
        except Exception as error:  # whatever it is: the queue must go on
            self._diagnostics.fail("admin queue", error)
            return Status.INTERNAL_ERROR

    def _execute(self, slot: bytes) -> Status:
        number = int.from_bytes(slot[:4], "big")
        self._diagnostics.tell_control(events.CommandFetched(slot))
        if number not in _OPCODES:
            log.warning("admin command %#x is not implemented", number)
            self.count(number, Status.UNIMPLEMENTED.name)
            self._diagnostics.tell_control(events.CommandExecuted(number, None, Status.UNIMPLEMENTED, ""))
            return Status.UNIMPLEMENTED
        opcode = Opcode(number)
        payload = opcode.command.parse(slot, c.HEADER.itemsize)
        status, reason = Status.PASSED, ""
        try:
            require(self._has(opcode), Status.UNIMPLEMENTED, f"this device does not offer {opcode.offers}")
            self._handlers[opcode](payload)
        except AdminError as error:
            status, reason = error.status, str(error)
        except SteeringError as error:
            status, reason = status_of(error), str(error)
        except DmaFault as fault:
            status, reason = Status.INVALID_ARGUMENT, str(fault)
        except Exception as error:
            status, reason = Status.INTERNAL_ERROR, repr(error)
            self._diagnostics.fail(opcode.name, error)
        self.count(number, status.name)
        if reason:
            log.warning("admin %s %s: %s: %s", opcode.name, explain(payload), status.name, reason)
        elif opcode != Opcode.REPORT_NIC_TIMESTAMP:  # comes four times a second
            log.debug("admin %s %s", opcode.name, explain(payload))
        self._diagnostics.tell_control(events.CommandExecuted(number, payload, status, reason))
        return status

    # Commands, in the order of their opcodes.

    def _describe_device(self, p: np.void) -> None:
        require(p["version"] == c.DESCRIPTOR_VERSION, Status.INVALID_ARGUMENT, f"descriptor version {p['version']}")
        # iPXE gives room for the descriptor and some options, and real devices write what fits.
        answer = self.describe()[: int(p["available_length"])]
        self._write(int(p["descriptor_address"]), answer)

    def _configure_device_resources(self, p: np.void) -> None:
        queue_format = self._queue_format(int(p["queue_format"]))
        blocks, stride, base = int(p["num_irq_doorbells"]), int(p["irq_doorbell_stride"]), int(p["msix_base_index"])
        require(
            0 < blocks < self._profile.vectors, Status.INVALID_ARGUMENT, f"{blocks} notification blocks"
        )  # fmt: skip
        require(stride >= 4, Status.INVALID_ARGUMENT, f"interrupt doorbell stride {stride}")
        require(base in (0, 1), Status.INVALID_ARGUMENT, f"MSI-X base index {base}")
        array, counters = int(p["counter_array"]), int(p["num_counters"])
        require(counters <= MAX_COUNTERS, Status.INVALID_ARGUMENT, f"{counters} counters")
        for block in range(blocks):
            index = self.nic.doorbells.irq(block)
            self._write(int(p["irq_doorbell_address"]) + block * stride, index.to_bytes(4, "big"))
        self.nic.configure(queue_format=queue_format, blocks=blocks, base=base, counters=(array, counters))
        self._counter_array, self._counters = array, counters

    def _queue_format(self, number: int) -> QueueFormat:
        offered = self._profile.formats
        if number == QueueFormat.UNSPECIFIED:  # drivers older than the field: a page list per queue tells which GQI
            number = QueueFormat.GQI_QPL if QueueFormat.GQI_QPL in offered else QueueFormat.GQI_RDA
        require(number in offered, Status.INVALID_ARGUMENT, f"queue format {number}")
        return QueueFormat(number)

    def _register_page_list(self, p: np.void) -> None:
        number, count, size = int(p["page_list_id"]), int(p["num_pages"]), int(p["page_size"]) or PAGE_SIZE
        pages = self.nic.pages
        require(number not in pages, Status.ALREADY_EXISTS, f"page list {number} exists")
        left = pages.capacity - pages.pages
        require(count > 0, Status.INVALID_ARGUMENT, "a page list without pages")
        require(count <= left, Status.RESOURCE_EXHAUSTED, f"{count} pages, {left} are left")
        fits = PAGE_SIZE <= size <= MAX_PAGE_SIZE and size & (size - 1) == 0
        require(fits, Status.INVALID_ARGUMENT, f"pages of {size} bytes")
        addresses = np.frombuffer(self._dma.read(int(p["list_address"]), 8 * count), ">u8")
        pages.register(number, addresses.astype(np.uint64), size)

    def _unregister_page_list(self, p: np.void) -> None:
        number = int(p["page_list_id"])
        require(number in self.nic.pages, Status.NOT_FOUND, f"no page list {number}")
        in_use = self.nic.pages.fields(number)["pages"]
        for queues in (self._rx, self._tx):
            require(not (queues["pages"] == in_use).any(), Status.FAILED_PRECONDITION, f"page list {number} is in use")
        self.nic.pages.unregister(number)

    def _page_list(self, p: np.void) -> dict[str, int]:
        """What a GQI queue's record says of its page list; nothing for raw addressing."""
        number = int(p["page_list_id"])
        if number == c.NO_PAGE_LIST:
            return {}
        require(number in self.nic.pages, Status.INVALID_ARGUMENT, f"page list {number} is not registered")
        return self.nic.pages.fields(number)

    def _create_tx_queue(self, p: np.void) -> None:
        queue = self._new_queue(p, self._tx, 0)
        entries, completions = int(p["ring_entries"]), int(p["completion_ring_entries"])
        if self.nic.gqi:
            entries = entries or self._profile.ring_entries
            check_ring("TX", int(p["ring_address"]), entries, GQI_TX_PACKET.itemsize)
            self.answer_resources(p, self.nic.doorbells.tx(queue), queue)
            counter = self._counter_array + 4 * queue
            # A new queue has nothing done (gve_tx_alloc_ring_gqi): a driver that read its predecessor's count here
            # would take packets for sent that it is about to send.
            self._write(counter, bytes(4))
            self.nic.create_tx(
                queue,
                vector=int(p["notification_block"]),
                ring=int(p["ring_address"]),
                entries=entries,
                completion_ring=counter,
                **self._page_list(p),
            )
            return
        check_ring("TX", int(p["ring_address"]), entries, 16)
        check_ring("TX completion", int(p["completion_ring_address"]), completions, 8)
        self.answer_resources(p, self.nic.doorbells.tx(queue), queue)
        self.nic.create_tx(
            queue,
            vector=int(p["notification_block"]),
            ring=int(p["ring_address"]),
            entries=entries,
            completion_ring=int(p["completion_ring_address"]),
            completion_entries=completions,
        )

    def _create_rx_queue(self, p: np.void) -> None:
        queue = self._new_queue(p, self._rx, self._profile.queues)
        completions, buffers = int(p["completion_ring_entries"]), int(p["buffer_ring_entries"])
        size, header = int(p["packet_buffer_size"]), int(p["header_buffer_size"])
        if self.nic.gqi:
            entries = completions or self._profile.ring_entries
            size = size or GQI_BUFFER
            check_ring("RX descriptor", int(p["completion_ring_address"]), entries, GQI_RX_DESCRIPTOR.itemsize)
            check_ring("RX data", int(p["buffer_ring_address"]), entries, GQI_RX_SLOT.itemsize)
            require(MIN_BUFFER <= size <= MAX_BUFFER, Status.INVALID_ARGUMENT, f"receive buffers of {size} bytes")
            self.answer_resources(p, self.nic.doorbells.rx(queue), self._profile.queues + queue)
            self.nic.create_rx(
                queue,
                vector=int(p["notification_block"]),
                completion_ring=int(p["completion_ring_address"]),
                completion_entries=entries,
                buffer_ring=int(p["buffer_ring_address"]),
                buffer_entries=entries,
                buffer_size=size,
                **self._page_list(p),
            )
            return
        check_ring("RX completion", int(p["completion_ring_address"]), completions, 32)
        check_ring("RX buffer", int(p["buffer_ring_address"]), buffers, 32)
        require(MIN_BUFFER <= size <= MAX_BUFFER, Status.INVALID_ARGUMENT, f"receive buffers of {size} bytes")
        offered = self._profile.header_buffer_size
        require(header <= offered, Status.INVALID_ARGUMENT, f"header buffers of {header} bytes, {offered} offered")
        # The Ethernet header goes to any of them.
        require(
            header == 0 or header >= ETHERNET_SIZE, Status.INVALID_ARGUMENT, f"header buffers of {header} bytes"
        )  # fmt: skip
        self.answer_resources(p, self.nic.doorbells.rx(queue), self._profile.queues + queue)
        self.nic.create_rx(
            queue,
            vector=int(p["notification_block"]),
            completion_ring=int(p["completion_ring_address"]),
            completion_entries=completions,
            buffer_ring=int(p["buffer_ring_address"]),
            buffer_entries=buffers,
            buffer_size=size,
            header_size=header,
            rsc=int(p["enable_rsc"] != 0),
        )

    def _new_queue(self, p: np.void, queues: NDArray[Any], first_counter: int) -> int:
        queue, block = int(p["queue_id"]), int(p["notification_block"])
        require(self.nic.configured, Status.FAILED_PRECONDITION, "no device resources configured")
        require(queue < len(queues), Status.INVALID_ARGUMENT, f"queue {queue} of {len(queues)}")
        require(not queues[queue]["active"], Status.ALREADY_EXISTS, f"queue {queue} exists")
        blocks = self.nic.interrupts.count
        require(block < blocks, Status.INVALID_ARGUMENT, f"notification block {block} of {blocks}")
        # As real devices do, to the surprise of iPXE, which had given an array of its own length.
        counter, counters = first_counter + queue, self._counters
        require(counter < counters, Status.FAILED_PRECONDITION, f"event counter {counter} of {counters}")
        return queue

    def answer_resources(self, p: np.void, doorbell: int, counter: int) -> None:
        """Tell the driver of a new ring's doorbell and counter."""
        resources = np.array((doorbell, counter), QUEUE_RESOURCES).tobytes()
        self._write(int(p["queue_resources_address"]), resources)

    def _destroy_tx_queue(self, p: np.void) -> None:
        queue = int(p["queue_id"])
        require(queue < len(self._tx), Status.NOT_FOUND, f"no TX queue {queue}")
        self.nic.destroy_tx(queue)

    def _destroy_rx_queue(self, p: np.void) -> None:
        queue = int(p["queue_id"])
        require(queue < len(self._rx), Status.NOT_FOUND, f"no RX queue {queue}")
        self.nic.destroy_rx(queue)

    def _deconfigure_device_resources(self, _: np.void) -> None:
        self.nic.deconfigure()

    def _configure_rss(self, p: np.void) -> None:
        algorithm, types = int(p["hash_algorithm"]), int(p["hash_types"])
        require(algorithm in (0, c.RSS_HASH_TOEPLITZ), Status.INVALID_ARGUMENT, f"hash algorithm {algorithm}")
        rss = self.nic.rss
        key_size, table_size = int(p["key_size"]), int(p["lut_size"])
        if c.switches_rss_off(p):
            rss.switch_off()  # there is nothing to read
            return
        # Everything is fetched and checked before anything changes.
        require(key_size in (0, c.RSS_KEY_SIZE), Status.INVALID_ARGUMENT, f"RSS key of {key_size} bytes")
        require(table_size <= c.RSS_LUT_SIZE, Status.INVALID_ARGUMENT, f"RSS table of {table_size} entries")
        key = self._dma.read(int(p["key_address"]), key_size) if key_size else b""
        table = self._dma.read(int(p["lut_address"]), 4 * table_size) if table_size else b""
        if table:
            rss.set_table(np.frombuffer(table, ">u4").astype(np.int64))
        if key:
            rss.set_key(key)
        if types:
            rss.set_types(types)
        if algorithm:
            rss.algorithm = algorithm

    def _set_driver_parameter(self, p: np.void) -> None:
        kind, value = int(p["type"]), int(p["value"])
        require(kind == c.DRIVER_PARAMETER_MTU, Status.INVALID_ARGUMENT, f"driver parameter {kind}")
        require(value <= self._profile.max_mtu, Status.INVALID_ARGUMENT, f"MTU {value}")

    def _report_stats(self, p: np.void) -> None:
        address, length = int(p["address"]), int(p["length"])
        if address == 0 or length == 0:
            self.nic.statistics.detach()
        else:
            self.nic.statistics.attach(address, length, int(p["interval_ms"]))

    def _report_link_speed(self, p: np.void) -> None:
        self._write(int(p["address"]), self._profile.link_speed.to_bytes(8, "big"))

    def _get_ptype_map(self, p: np.void) -> None:
        self._answer(int(p["address"]), int(p["length"]), ptype_map())

    def _verify_driver_compatibility(self, p: np.void) -> None:
        length = int(p["length"])
        require(length >= c.DRIVER_INFO.itemsize, Status.INVALID_ARGUMENT, f"driver information of {length} bytes")
        raw = self._dma.read(int(p["address"]), c.DRIVER_INFO.itemsize)
        info = self.driver_info = np.frombuffer(raw, c.DRIVER_INFO)[0]
        log.info(
            "driver: OS %d, %s %s",
            info["os_type"],
            info["os_version"].decode("latin1"),
            info["os_build"].decode("latin1"),
        )

    def _query_flow_rules(self, p: np.void) -> None:
        available = int(p["available_length"])
        answer = self.nic.rules.query(int(p["query"]), int(p["starting_rule_id"]), available)
        self._answer(int(p["address"]), available, answer)

    def _report_nic_timestamp(self, p: np.void) -> None:
        answer = np.zeros((), c.NIC_TIMESTAMP)
        answer["nic_ns"] = self.time()
        self._answer(int(p["address"]), int(p["length"]), answer.tobytes())

    def _query_rss(self, p: np.void) -> None:
        self._answer(int(p["address"]), int(p["available_length"]), self.nic.rss.query())

    def _extended_command(self, p: np.void) -> None:
        opcode, length = int(p["inner_opcode"]), int(p["inner_length"])
        require(self.executes(opcode), Status.UNIMPLEMENTED, f"extended command {opcode:#x}")
        inner = Inner(opcode)
        size = inner.command.payload.itemsize
        require(length >= size, Status.INVALID_ARGUMENT, f"extended command of {length} bytes, {size} expected")
        self._handlers[inner](inner.command.parse(self._dma.read(int(p["inner_address"]), size)))

    def _configure_flow_rule(self, inner: np.void) -> None:
        location = int(inner["location"])
        operation = int(inner["operation"])
        if operation == FlowOperation.ADD:
            dpdk = self.driver_info is not None and self.driver_info["os_type"] == OsType.DPDK
            self.nic.rules.install(location, inner["rule"].tobytes(), words_reversed=dpdk)
        elif operation == FlowOperation.DELETE:
            self.nic.rules.delete(location)
        elif operation == FlowOperation.RESET:
            self.nic.rules.reset()
        else:
            raise AdminError(Status.INVALID_ARGUMENT, f"flow rule operation {operation}")

    # What the model's own options need, whose commands are in their folders (`nicmodel.gvnic.options`).

    def require_dqo(self) -> None:
        """See that the driver has chosen a DQO format.

        Raises:
            AdminError: it has not.
        """
        require(not self.nic.gqi, Status.FAILED_PRECONDITION, "only the DQO formats have this")

    def live_rx_queue(self, inner: np.void) -> int:
        """The receive queue that a command of an option is about.

        Raises:
            AdminError: there is no such queue, or it has not a DQO format.
        """
        queue, queues = int(inner["queue_id"]), self._rx
        self.require_dqo()
        require(queue < len(queues) and bool(queues[queue]["active"]), Status.NOT_FOUND, f"no RX queue {queue}")
        return queue

    def _answer(self, address: int, available: int, answer: bytes) -> None:
        require(len(answer) <= available, Status.INVALID_ARGUMENT, f"{len(answer)} bytes into {available}")
        self._write(address, answer)

    def _write(self, address: int, answer: bytes) -> None:
        self._dma.write(address, answer if self.detour is None else self.detour(answer))
