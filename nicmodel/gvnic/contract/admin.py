"""Rules of the admin queue (ADM)."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from typing import TYPE_CHECKING, Any

import numpy as np

from nicmodel.gvnic import commands as c
from nicmodel.gvnic.admin import MAX_BUFFER, MIN_BUFFER
from nicmodel.gvnic.commands import (
    FlowOperation,
    FlowQuery,
    Inner,
    Opcode,
    QueueFormat,
    RssHashType,
    RuleFlowType,
    Status,
)
from nicmodel.gvnic.contract.rings import Rings
from nicmodel.gvnic.descriptors import GQI_SEQUENCE
from nicmodel.gvnic.device import Nic
from nicmodel.gvnic.refusal import MAX_RING
from nicmodel.nic.layout import Layout, explain
from nicmodel.observe.checking.rings import Ring
from nicmodel.observe.findings import Journal
from nicmodel.observe.mapped_memory import MappedMemory
from nicmodel.vfio_user.dma import READABLE, WRITABLE

if TYPE_CHECKING:
    from nicmodel.gvnic.options.check import OptionCheck

_MIN_PAGE = 4096
_ALL_HASH_TYPES = sum(RssHashType)


class Admin:
    """Looks at each admin command before it is executed, and at what came of it."""

    def __init__(
        self, nic: Nic, memory: MappedMemory, journal: Journal, rings: Rings, options: Iterable[OptionCheck] = ()
    ) -> None:
        self._nic = nic
        self._memory = memory
        self._journal = journal
        self._rings = rings
        self._options = tuple(options)
        self._described_to: object = None  # the client that has asked what the device is
        #: What looks at each command: the method of its name, where there is more to say than its declaration does.
        self._checks: dict[Opcode | Inner, Callable[[np.void], object]] = {
            command: getattr(self, f"_{command.name.lower()}", self._keeps_declaration)
            for command in (*Opcode, *Inner)
            if not command.own
        }
        # The command at hand: what it is declared as, what it is about, its fields.
        self._command = Opcode.DESCRIBE_DEVICE.command
        self._queue: str | None = None
        self._fields: dict[str, Any] = {}

    def command(self, slot: bytes) -> None:
        """A command of 64 bytes is about to be executed."""
        number = int.from_bytes(slot[:4], "big")
        self._queue, self._fields = None, {}
        if number not in set(Opcode):
            self.find("ADM-CMD-001", f"the opcode is {number:#x}", slot=slot.hex())
            return
        opcode = Opcode(number)
        self._command = command = opcode.command
        payload = command.parse(slot, c.HEADER.itemsize)
        self._fields = explain(payload)
        if command.queue is not None and payload[command.queue.number] < self._nic.profile.queues:
            self._queue = f"{command.queue.way}{payload[command.queue.number]}"
        self._journal.note(self._queue, opcode.name, **self._fields)
        status = int.from_bytes(slot[4:8], "big")
        if status:
            self.find("ADM-CMD-002", f"{opcode.name} has the status {status:#x} already")
        rest = slot[c.HEADER.itemsize + command.payload.itemsize :]
        if _reserved(payload) or any(rest):
            self.find("ADM-CMD-003", f"{opcode.name} has bits set that are reserved", rest=rest.hex())
        if self._offered(opcode):
            self._checks[opcode](payload)

    def executed(self, opcode: int, status: int) -> None:
        """A command was executed."""
        if opcode == Opcode.DESCRIBE_DEVICE and status == Status.PASSED:
            self._described_to = self._nic.link

    def find(self, rule: str, what: str, **evidence: Any) -> None:
        """A rule is broken by the command at hand."""
        command = {"command": self._fields} if self._fields else {}
        self._journal.report(rule, what, self._queue, **command, **evidence)

    # What the declarations say.

    def _offered(self, command: Opcode | Inner) -> bool:
        """Whether the device has the command; a finding if not."""
        if command.offered(self._nic.profile):
            return True
        self.find("ADM-CMD-005", f"{command.name}, but the device does not offer {command.offers}")
        return False

    def _keeps_declaration(self, p: np.void) -> bool:
        """Whether queue and memory of the command at hand are as they have to be; a finding if not."""
        return self._queue_fits(p) and self.memory_fits(p)

    def _queue_fits(self, p: np.void) -> bool:
        """Whether the queue that the command is about is there, or is not there yet if it is created."""
        queue, queues = self._command.queue, self._nic.profile.queues
        if queue is None:
            return True
        number, there = int(p[queue.number]), self._queue in self._rings.queues()
        if queue.effect != "created":
            if not there:
                self.find("ADM-QUE-004", f"there is no queue {number}")
            return there
        if not self._nic.configured:
            self.find("ADM-QUE-001", "a queue is created before the device is configured")
        elif number >= queues:
            self.find("ADM-QUE-002", f"queue {number} of {queues} is created")
        elif there:
            self.find("ADM-QUE-003", "the queue exists")
        else:
            region = self._nic.statistics.length
            return not region or self._region_fits(region, {*self._rings.queues(), f"{queue.way}{number}"})
        return False

    def memory_fits(self, p: np.void) -> bool:
        """Whether the memory that the command names is long enough and the device's to use."""
        for memory in self._command.memory:
            address, length, least = int(p[memory.address]), memory.size(p), memory.least(self._nic.profile)
            if length < least:
                answer = f"{length} bytes for an answer of {least}"
                asked = f"{memory.what} of {length} bytes, not {least}"
                self.find("ADM-CMD-006", answer if memory.right == WRITABLE else asked)
                return False
            if not self._memory.mapped(address, length, memory.right):
                what = f"the {memory.what}: {length} bytes at {address:#x} are not the device's to use"
                self.find("ADM-CMD-004", what)
                return False
        return True

    def rings_named(self, p: np.void) -> list[Ring]:
        """The rings that the command names."""
        gqi, command = self._nic.gqi, self._command
        unsaid = self._nic.profile.ring_entries if gqi else 0
        return [
            Ring(one.name, int(p[one.address]), int(p[one.entries]) or unsaid, one.entry, one.right)
            for one in (command.gqi_rings if gqi else command.rings)
        ]

    # What there is to say besides, command by command.

    def _describe_device(self, p: np.void) -> None:
        if p["version"] != c.DESCRIPTOR_VERSION:
            self.find("ADM-CMD-007", f"version {p['version']} of the descriptor is asked for")
        else:
            self.memory_fits(p)

    def _set_driver_parameter(self, p: np.void) -> None:
        kind, value, most = int(p["type"]), int(p["value"]), self._nic.profile.max_mtu
        if kind != c.DRIVER_PARAMETER_MTU:
            self.find("ADM-CMD-009", f"parameter {kind} is set")
        elif value > most:
            self.find("ADM-CMD-009", f"the MTU is set to {value}, the device offers {most}")

    # Device resources.

    def _configure_device_resources(self, p: np.void) -> None:
        profile = self._nic.profile
        blocks, stride, counters = (
            int(p[name]) for name in ("num_irq_doorbells", "irq_doorbell_stride", "num_counters")
        )
        described = 2 * profile.queues
        number = int(p["queue_format"])
        if self._nic.configured:
            self.find("ADM-RES-001", "the device is configured already")
        if self._described_to is not self._nic.link:
            self.find("ADM-RES-009", "the device is configured, but nobody has asked what it is")
        if number != QueueFormat.UNSPECIFIED and number not in profile.formats:
            self.find("ADM-RES-002", f"queue format {number} is not offered")
        elif not 0 < blocks < profile.vectors:
            self.find("ADM-RES-003", f"{blocks} notification blocks with {profile.vectors} vectors")
        elif stride < 4:
            self.find("ADM-RES-004", f"doorbell indices {stride} bytes apart")
        elif p["msix_base_index"] > 1:
            self.find("ADM-RES-005", f"the blocks' first vector is {p['msix_base_index']}")
        elif counters != described:
            self.find("ADM-RES-006", f"{counters} counters, {described} are in the device descriptor")
        else:
            self.memory_fits(p)

    def _deconfigure_device_resources(self, p: np.void) -> None:
        queues = self._rings.queues()
        if queues:
            self.find("ADM-RES-007", f"the device is deconfigured with {len(queues)} queues", queues=queues)
        elif not self._nic.configured:
            self.find("ADM-RES-008", "the device is deconfigured, but was not configured")

    def _report_stats(self, p: np.void) -> None:
        address, length = int(p["address"]), int(p["length"])
        if not address or not length:
            return
        if self._region_fits(length, self._rings.queues()):
            self.memory_fits(p)

    def _region_fits(self, length: int, queues: Collection[str]) -> bool:
        """Whether a statistics region has room for what is told of some queues; a finding if not."""
        receive = sum(name.startswith("rx") for name in queues)
        transmit = len(queues) - receive
        entries = transmit * c.STATS_DRIVER_TX + receive * (c.STATS_DRIVER_RX + c.STATS_DEVICE_RX)
        needed = c.STATS_HEADER_SIZE + entries * c.STATS_ENTRY.itemsize
        if length < needed:
            self.find("ADM-RES-010", f"a statistics region of {length} bytes, {needed} are needed for these queues")
        return length >= needed

    # Page lists.

    def _register_page_list(self, p: np.void) -> None:
        pages = self._nic.pages
        number, count, size = int(p["page_list_id"]), int(p["num_pages"]), int(p["page_size"]) or _MIN_PAGE
        left = pages.capacity - pages.pages
        if number in pages:
            self.find("ADM-PGL-001", f"page list {number} is registered already")
        elif count == 0 or size < _MIN_PAGE or size & (size - 1) or count > left:
            self.find("ADM-PGL-004", f"{count} pages of {size} bytes, {left} are left")
        elif self.memory_fits(p):
            raw = self._memory.read(int(p["list_address"]), 8 * count)
            if raw is None:  # reached by messages only
                return
            addresses = np.frombuffer(raw, ">u8").astype(np.uint64)
            # Behind an IOMMU those to send from are mapped for reading only, and those to receive in for writing.
            usable = self._memory.all_mapped(addresses, size, READABLE)
            usable |= self._memory.all_mapped(addresses, size, WRITABLE)
            if not usable.all():
                place = int(np.flatnonzero(~usable)[0])
                self.find("ADM-PGL-005", f"page {place} is not in memory", address=int(addresses[place]))

    def _unregister_page_list(self, p: np.void) -> None:
        number = int(p["page_list_id"])
        users = self._rings.users(number)
        if number not in self._nic.pages:
            self.find("ADM-PGL-002", f"page list {number} is not registered")
        elif users:
            self.find("ADM-PGL-003", f"page list {number} is unregistered under {', '.join(users)}")

    # Queues.

    def _create_tx_queue(self, p: np.void) -> None:
        rings = self._new_queue(p)
        if not rings:
            return
        if not self._nic.gqi:
            self._check_completions(rings, "descriptors")
            self._check_unwritten(rings[1])
        self._rings.create(str(self._queue), rings, int(p["page_list_id"]))

    def _create_rx_queue(self, p: np.void) -> None:
        rings = self._new_queue(p)
        if not rings:
            return
        size, header = int(p["packet_buffer_size"]), int(p["header_buffer_size"])
        offered = self._nic.profile.header_buffer_size
        self._check_completions(rings, "buffers")
        if not MIN_BUFFER <= size <= MAX_BUFFER and not (self._nic.gqi and size == 0):
            self.find("ADM-QUE-013", f"receive buffers of {size} bytes")
        if header > offered or (header and self._nic.queue_format != QueueFormat.DQO_RDA):
            self.find("ADM-QUE-014", f"header buffers of {header} bytes, the device offers {offered}")
        if p["enable_rsc"] > 1:
            self.find("ADM-QUE-016", f"enable_rsc is {p['enable_rsc']}")
        if not self._nic.gqi and p["queue_id"] == 0 and self._nic.state.rx["active"].any():
            self.find("ADM-QUE-017", "receive queue 0 is created while there are others", queues=self._rings.queues())
        self._check_unwritten(rings[1])
        self._rings.create(str(self._queue), rings, int(p["page_list_id"]))

    def _new_queue(self, p: np.void) -> list[Ring]:
        """The rings of the queue that is created; none if it cannot be used at all."""
        block, pages = int(p["notification_block"]), int(p["page_list_id"])
        registered = pages in self._nic.pages
        queue_format = self._nic.queue_format
        if not self._queue_fits(p):
            return []
        if block >= self._nic.interrupts.count:
            self.find("ADM-QUE-010", f"notification block {block} of {self._nic.interrupts.count}")
        elif queue_format in (QueueFormat.GQI_QPL, QueueFormat.DQO_QPL) and not registered:
            self.find("ADM-QUE-015", f"page list {pages} is not registered")
        elif queue_format == QueueFormat.GQI_RDA and pages != c.NO_PAGE_LIST:
            self.find("ADM-QUE-015", f"page list {pages} is named in a format without page lists")
        elif self.memory_fits(p):
            rings = self.rings_named(p)
            if self._check_rings(rings):
                return rings
        return []

    def _check_rings(self, rings: list[Ring]) -> bool:
        """Whether the rings can be used at all; findings if not, or if they are odd."""
        profile = self._nic.profile
        taken = self._rings.all()
        for number, ring in enumerate(rings):
            if not 0 < ring.entries <= MAX_RING or ring.entries & (ring.entries - 1):
                self.find("ADM-QUE-005", f"the {ring.name} has {ring.entries} entries")
                return False
            if ring.address == 0 or ring.address % ring.entry_size:
                self.find("ADM-QUE-007", f"the {ring.name} is at {ring.address:#x}")
                return False
            if not self._memory.mapped(ring.address, ring.size, ring.right):
                self.find("ADM-QUE-008", f"the {ring.name} at {ring.address:#x} is not all in memory")
                return False
            for owner, other in [*taken, *((str(self._queue), earlier) for earlier in rings[:number])]:
                if ring.overlaps(other.address, other.size):
                    self.find("ADM-QUE-009", f"the {ring.name} shares memory with the {other.name} of {owner}")
                    return False
        entries = rings[0].entries
        if not profile.min_ring <= entries <= profile.max_ring and entries != profile.ring_entries:
            self.find(
                "ADM-QUE-006", f"a ring of {entries} entries, {profile.min_ring} to {profile.max_ring} are offered"
            )  # fmt: skip
        return True

    def _check_completions(self, rings: list[Ring], what: str) -> None:
        entries, completions = rings[0].entries, rings[1].entries
        if completions < entries:
            self.find("ADM-QUE-011", f"{completions} completions for {entries} {what}")

    def _check_unwritten(self, ring: Ring) -> None:
        raw = self._memory.read(ring.address, ring.size)
        if raw is None:
            return
        form = ring.entry
        if isinstance(form, Layout):
            words = np.frombuffer(raw, "<u8")[:: form.size // 8]
            written = words & np.uint64(1 << form.generation.shift)
        else:
            written = np.frombuffer(raw, form)["flags_seq"] & np.uint16(GQI_SEQUENCE)
        if written.any():
            place = int(np.flatnonzero(written)[0])
            entry = raw[place * ring.entry_size : (place + 1) * ring.entry_size]
            self.find("ADM-QUE-012", f"entry {place} of the {ring.name} looks like a completion", entry=entry.hex())

    # RSS and flow rules.

    def _configure_rss(self, p: np.void) -> None:
        key, table, types = int(p["key_size"]), int(p["lut_size"]), int(p["hash_types"])
        if c.switches_rss_off(p):
            return
        if p["hash_algorithm"] not in (0, c.RSS_HASH_TOEPLITZ):
            self.find("ADM-RSS-004", f"hash algorithm {p['hash_algorithm']}")
        elif types & ~_ALL_HASH_TYPES:
            self.find("ADM-RSS-005", f"hash types {types:#x}")
        elif key not in (0, c.RSS_KEY_SIZE):
            self.find("ADM-RSS-001", f"an RSS key of {key} bytes, not {c.RSS_KEY_SIZE}")
        elif table > c.RSS_LUT_SIZE or table & table - 1:
            self.find("ADM-RSS-002", f"an RSS table of {table} entries, not a power of two up to {c.RSS_LUT_SIZE}")
        elif self.memory_fits(p):
            raw = self._memory.read(int(p["lut_address"]), 4 * table) or b""
            entries = np.frombuffer(raw, ">u4")
            wrong = np.flatnonzero(entries >= self._nic.profile.queues)
            if len(wrong):
                self.find("ADM-RSS-003", f"entry {wrong[0]} of the RSS table names queue {entries[wrong[0]]}")

    def _query_flow_rules(self, p: np.void) -> None:
        if p["query"] not in set(FlowQuery):
            self.find("ADM-RUL-006", f"query {p['query']} of the flow rules")
        else:
            self.memory_fits(p)

    def _extended_command(self, p: np.void) -> None:
        number, length = int(p["inner_opcode"]), int(p["inner_length"])
        command = Inner(number) if number in set(Inner) else None
        if command is not None and not self._offered(command):
            return
        if command is None or length < command.command.payload.itemsize:
            self.find("ADM-CMD-008", f"an inner command {number:#x} of {length} bytes")
            return
        if not self.memory_fits(p):
            return
        raw = self._memory.read(int(p["inner_address"]), command.command.payload.itemsize)
        if raw is None:
            return
        self._command = command.command
        inner = command.command.parse(raw)
        self._fields |= {"inner": explain(inner)}
        queue = command.command.queue
        if queue is not None and inner[queue.number] < self._nic.profile.queues:
            self._queue = f"{queue.way}{inner[queue.number]}"
            self._journal.note(self._queue, command.name, **explain(inner))
        if _reserved(inner):
            self.find("ADM-CMD-003", f"{command.name} has bits set that are reserved")
        if not command.own:
            self._checks[command](inner)
        for option in self._options:
            option.command(command, inner, self)

    def _configure_flow_rule(self, inner: np.void) -> None:
        operation, location, rule = int(inner["operation"]), int(inner["location"]), inner["rule"]
        rules = self._nic.rules
        if operation not in set(FlowOperation):
            self.find("ADM-RUL-005", f"operation {operation} on flow rules")
        elif operation != FlowOperation.RESET and location >= rules.capacity:
            self.find("ADM-RUL-001", f"flow rule {location} of {rules.capacity}")
        elif operation == FlowOperation.DELETE and location not in rules.locations():
            self.find("ADM-RUL-004", f"flow rule {location} is deleted, but is not there")
        elif operation == FlowOperation.ADD and rule["flow_type"] not in set(RuleFlowType):
            self.find("ADM-RUL-002", f"flow type {rule['flow_type']}")
        elif operation == FlowOperation.ADD and rule["queue"] >= self._nic.profile.queues:
            self.find("ADM-RUL-003", f"a flow rule to queue {rule['queue']} of {self._nic.profile.queues}")


def _reserved(fields: np.void) -> bool:
    """Whether a field of a command that is reserved is not 0."""
    return any(
        fields[name].any() for name in fields.dtype.names or () if name.startswith(("reserved", "padding"))
    )  # fmt: skip
