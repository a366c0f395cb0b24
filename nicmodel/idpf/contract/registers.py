"""Rules of BAR 0 (REG) and of the mailbox's two rings (MBX)."""

from __future__ import annotations

from typing import Any

from nicmodel.idpf import registers as r
from nicmodel.idpf.descriptors import MAILBOX, MAILBOX_BUFFER
from nicmodel.idpf.device import Nic
from nicmodel.idpf.registers import QUEUE_LENGTH_MASK, QueueLength, Register
from nicmodel.observe.checking.rings import Ring
from nicmodel.observe.checking.spans import Span, Spans
from nicmodel.observe.findings import Journal
from nicmodel.observe.mapped_memory import MappedMemory
from nicmodel.pci.config import Command
from nicmodel.vfio_user.dma import READABLE, WRITABLE

#: Alignment of the mailbox's rings, bytes.
_ALIGNMENT = 128

#: The registers of both rings: base address, low and high, head, tail, length.
_TO_DEVICE = (r.ATQ_BASE_LOW, r.ATQ_BASE_HIGH, r.ATQ_HEAD, r.ATQ_TAIL, r.ATQ_LEN)
_TO_DRIVER = (r.ARQ_BASE_LOW, r.ARQ_BASE_HIGH, r.ARQ_HEAD, r.ARQ_TAIL, r.ARQ_LEN)
_NO_FUNCTION = (r.RSTAT, r.RX_TAIL, r.TX_COMPLETION_TAIL)
_ALL_FLAGS = MAILBOX.done.put(1) | MAILBOX.complete.put(1) | MAILBOX.error.put(1)


#: The registers by which a driver sets the mailbox up.
SETUP = frozenset((*_TO_DEVICE, *_TO_DRIVER)) - {r.ATQ_TAIL}


class Registers:
    """Looks at each write to BAR 0 before it takes effect.

    Args:
        nic: the device.
        memory: guest memory.
        journal: where findings go.
    """

    def __init__(self, nic: Nic, memory: MappedMemory, journal: Journal) -> None:
        self._nic = nic
        self._memory = memory
        self._journal = journal
        self._written: dict[Register, int] = {}
        self._rings: dict[Register, Ring] = {}  # by the register of their length, those that are enabled
        self._buffers = Spans()  # for replies, which the device has
        self._has_buffers = False  # whether it ever had any
        if nic.configured:  # a driver is at work
            for ring, theirs in ((_TO_DEVICE, nic.mailbox.to_device), (_TO_DRIVER, nic.mailbox.to_driver)):
                self._rings[ring[-1]] = Ring("ring of the mailbox", theirs.base, theirs.entries, MAILBOX, WRITABLE)
                self._written[ring[3]] = theirs.tail
            self._has_buffers = True

    def reset(self) -> None:
        """The device is as after power-on."""
        self._written.clear()
        self._rings.clear()
        self._buffers.clear()
        self._has_buffers = False

    @property
    def enabled(self) -> bool:
        """Whether both rings of the mailbox are there."""
        return len(self._rings) == 2

    def write(self, offset: int, data: bytes) -> tuple[Register, int, int] | None:
        """A write of `data` at byte `offset` of BAR 0.

        Returns:
            Which register, which of its kind, and the value; None if it is none.
        """
        value = int.from_bytes(data, "little")
        place = r.PLACES.get(offset)
        if place is None or len(data) != r.SPACING:
            self._journal.report("REG-001", f"{len(data)} bytes are written at offset {offset:#x}", value=value)
            return None
        register, number = place
        if register in _NO_FUNCTION:
            self._journal.report("REG-002", f"{register.name} is written", value=value)
        for ring in (_TO_DEVICE, _TO_DRIVER):
            if register in ring:
                if register is not ring[3]:  # the tails of messages, which are noted themselves
                    self._journal.note(None, "register", register=register.name, value=value)
                self._mailbox(ring, register, value)
                self._written[register] = value
        return register, number, value

    def need_bus_master(self, what: str) -> None:
        """The device is about to be given something to do."""
        if not self._nic.config.command & Command.BUS_MASTER:
            self._journal.report("REG-003", f"{what} while bus mastering is off")

    def _mailbox(self, ring: tuple[Register, ...], register: Register, value: int) -> None:
        _, _, head, tail, length = ring
        there = self._rings.get(length)
        if register is head:
            if value:
                self._journal.report("MBX-004", f"{head.name} is set to {value}")
        elif register is tail:
            self._tail(ring, there, value)
        elif there is not None:
            self._journal.report("MBX-006", f"{register.name} is written while the ring is enabled", value=value)
        elif register is length:
            self._enable(ring, value)

    def _enable(self, ring: tuple[Register, ...], value: int) -> None:
        low, high, _, tail, length = ring
        entries = value & QUEUE_LENGTH_MASK
        if value & ~(QUEUE_LENGTH_MASK | QueueLength.ENABLE) or not entries or not value & QueueLength.ENABLE:
            self._journal.report("MBX-005", f"{length.name} is set to {value:#x}")
            return
        address = self._written.get(high, 0) << 32 | self._written.get(low, 0)
        name = "ring of messages" if ring is _TO_DEVICE else "ring of replies"
        made = Ring(name, address, entries, MAILBOX, WRITABLE)
        self.need_bus_master(f"the {name} is enabled")
        if address == 0 or address % _ALIGNMENT:
            self._journal.report("MBX-001", f"the {name} is at {address:#x}")
        elif not all(self._memory.mapped(address, made.size, right) for right in (READABLE, WRITABLE)):
            self._journal.report("MBX-002", f"the {name} at {address:#x} is not all in memory", bytes=made.size)
        elif any(made.overlaps(other.address, other.size) for other in self._rings.values()):
            self._journal.report("MBX-003", f"the {name} at {address:#x} shares memory with the other ring")
        self._rings[length] = made
        posted = self._written.get(tail, 0)
        if ring is _TO_DRIVER and posted < entries:
            self._replies(made, 0, posted)

    def _tail(self, ring: tuple[Register, ...], there: Ring | None, value: int) -> None:
        tail = ring[3]
        mailbox = self._nic.mailbox
        theirs = mailbox.to_device if ring is _TO_DEVICE else mailbox.to_driver
        if there is None:
            if ring is _TO_DEVICE and value:
                self._journal.report("MBX-008", f"{tail.name} is set to {value} without a mailbox")
            return
        if value >= there.entries:
            self._journal.report("MBX-007", f"{tail.name} is set to {value} of {there.entries} entries")
            return
        before = self._written.get(tail, 0) % there.entries
        new, waiting = (value - before) % there.entries, (before - theirs.head) % there.entries
        if new + waiting >= there.entries:
            self._journal.report(
                "MBX-009", f"{new} descriptors are handed over where {there.entries - 1 - waiting} have room",
                register=tail.name, tail=value, before=before, head=theirs.head,
            )  # fmt: skip
        elif ring is _TO_DRIVER:
            self._replies(there, before, new)
        elif new:
            self.need_bus_master("messages are handed over")
            if not self._has_buffers:
                self._journal.report("MBX-010", "a message is handed over, and there is no buffer for a reply")

    # Buffers for replies.

    def _replies(self, ring: Ring, first: int, count: int) -> None:
        """Look at descriptors that are handed over for replies."""
        self._has_buffers |= count > 0
        raw = self._memory.entries(ring.address, ring.entries, MAILBOX.size, first, count)
        if raw is None:
            return
        self._settle()
        for k in range(count):
            place = (first + k) % ring.entries
            one = raw[k * MAILBOX.size : (k + 1) * MAILBOX.size]
            fields = MAILBOX.decode(one)
            address = fields["address_high"] << 32 | fields["address_low"]
            evidence: dict[str, Any] = {"descriptor": fields, "bytes": one.hex()}
            if not fields["buffer"] or fields["length"] < MAILBOX_BUFFER or int.from_bytes(one, "little") & _ALL_FLAGS:
                self._find("MBX-011", place, f"flags {one[:2].hex()}, {fields['length']} bytes", evidence)
            elif not address or not self._memory.mapped(address, MAILBOX_BUFFER, WRITABLE):
                self._find("MBX-012", place, f"the buffer at {address:#x} is not in memory to write", evidence)
            else:
                other = self._buffers.add(Span(address, address + MAILBOX_BUFFER, 0, place))
                if other is not None:
                    self._find("MBX-013", place, f"entry {other.place} has the buffer", evidence)

    def _find(self, rule: str, place: int, what: str, evidence: dict[str, Any]) -> None:
        self._journal.report(rule, f"entry {place} of the ring of replies: {what}", **evidence)

    def _settle(self) -> None:
        """Buffers that replies are in are the driver's again."""
        ring, theirs = self._rings.get(r.ARQ_LEN), self._nic.mailbox.to_driver
        if ring is None or not theirs.entries:
            return
        waiting = (theirs.tail - theirs.head) % theirs.entries
        owned = {(theirs.head + k) % theirs.entries for k in range(waiting)}
        self._buffers.keep(lambda span: span.place in owned)
