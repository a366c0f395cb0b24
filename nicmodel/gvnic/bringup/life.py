"""What is remembered of a driver's life: registers and commands, which the NIC's state does not tell afterwards.

All else is read from the state, as the difference to what it was when the life began.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np

from nicmodel.gvnic import registers as r
from nicmodel.gvnic.commands import DRIVER_PARAMETER_MTU, Inner, Opcode, OsType, Status
from nicmodel.gvnic.descriptors import GQI_TX_PACKET, TX_PACKET, GqiTxType, TxType
from nicmodel.gvnic.device import Nic
from nicmodel.gvnic.registers import Bar, DeviceStatus, DriverStatus
from nicmodel.nic import events
from nicmodel.nic.plain import name_of
from nicmodel.nic.state import Drop
from nicmodel.observe.mapped_memory import MappedMemory
from nicmodel.pci.config import Command
from nicmodel.vfio_user.protocol import PciIrq, PciRegion

#: Most characters that are kept of what a driver writes as its version.
_MAX_VERSION = 128
#: Bytes of vendor and device in the configuration space.
_IDENTITY = 4
#: Events of the control path that tell of a driver's mistake, as `Nic.counters` has them.
_MISTAKES = {
    "admin_queue_fault": "commands not fetched, or not answered, as the admin queue is not in shared memory",
    "admin_doorbell_ignored": "writes of adminq_doorbell without effect, as there is no admin queue, or a shorter one",
    "doorbell_beyond_ring": "doorbells without effect, beyond the ring (DQO is little-endian, GQI big-endian)",
    "doorbell_unknown": "writes to BAR 2 at no doorbell that the device has given (its indices count 32-bit words)",
}


class GvnicLife:
    """A driver, from its first register on.

    Args:
        nic: the device.
        before: the life that was ended by a release of the admin queue: what the driver has learnt of the device, and
            said of itself, still counts. None: the device is as after power-on.

    Attributes:
        nic: the device.
        identified: vendor and device were read.
        read: registers that were read.
        written: what was written last to each register.
        version: what the driver has written as its version, as far as it has come; one line.
        commands: commands that were executed and passed, by name, those inside of EXTENDED_COMMAND too.
        described: DESCRIBE_DEVICE has passed, in this life or one before.
        fetched: number of commands that were fetched.
        refused: the last command, if it was refused: its name, status and reason.
        queue_format: what the driver has chosen last; empty: none.
        mtu: what the driver has set; 0: nothing.
        saw_link: device_status was read with the link up, since there are resources.
        restarted: queues that were destroyed and created again while others went on.
        handed_back: receive buffers came back to the device after frames had used some.
        acknowledged: a vector of a queue was enabled again after it had fired.
        releases: how often drivers have released the admin queue since the device was as after power-on.
        released: the life has ended by such a release.
    """

    def __init__(self, nic: Nic, before: GvnicLife | None) -> None:
        self.nic = nic
        self.identified: bool = before is not None and before.identified
        self.version: str = before.version if before is not None else ""
        self.described: bool = before is not None and before.described
        self.releases: int = before.releases + before.released if before is not None else 0
        self.read: set[str] = set()
        self.written: dict[str, int] = {}
        self.commands: Counter[str] = Counter()
        self.fetched = self.mtu = 0
        self.queue_format = ""
        self.refused: tuple[str, str, str] | None = None
        self.released: bool = False
        self.saw_link = self.handed_back = self.acknowledged = False
        self.restarted: set[str] = set()
        self._line_ended = True
        self._stopped: set[str] = set()  # queues that were destroyed while others went on
        self._tails: dict[int, int] = {}  # of receive queues that have delivered, when they were last looked at
        self._created_at: dict[int, int] = {}  # frames of a receive queue when it was created
        state = nic.state
        self._counters = Counter(nic.counters)
        self._drops = state.drops.sum(axis=0)
        self._faults = int(state.device["faults"][0])
        self._rx, self._tx = state.rx.copy(), state.tx.copy()

    @property
    def at_work(self) -> bool:
        """Whether a register was written, or there is an admin queue, which took the place of another."""
        return bool(self.written) or self.nic.admin.base != 0

    # What happens.

    def hear(self, event: events.Control) -> bool:
        """Take in an event; whether anything is new by it."""
        match event:
            case events.Read(region, offset, count):
                return self._hear_read(region, offset, count)
            case events.Write(region, offset, data):
                self._hear_write(region, offset, data)
            case events.CommandFetched():
                self.fetched += 1
            case events.CommandExecuted(opcode, payload, status, reason):
                self._hear_command(opcode, payload, name_of(Status, int(status)), reason)
            case events.Releasing():
                self.released = True
        return True

    def _hear_read(self, region: int, offset: int, count: int) -> bool:
        if region == PciRegion.CONFIG:
            new = not self.identified and offset == 0 and count >= _IDENTITY // 2
            self.identified |= new
            return new
        register = r.REGISTERS.get(offset)
        if register is None or not register.readable:
            return False
        new = register.name not in self.read
        self.read.add(register.name)
        if register is r.DEVICE_STATUS and not self.saw_link and self.nic.configured:
            self.saw_link = bool(self.nic.registers.status & DeviceStatus.LINK_UP)
            new |= self.saw_link
        return new

    def _hear_write(self, region: int, offset: int, data: bytes | memoryview) -> None:
        if region != Bar.REGISTERS:
            return
        for register, value in r.decode(offset, data):
            if register.writable:
                self.written[register.name] = value
                if register is r.DRIVER_VERSION:
                    self._hear_version(chr(value))

    def _hear_version(self, character: str) -> None:
        if self._line_ended:
            self.version = ""
        self._line_ended = character == "\n"
        self.version = (self.version + character)[-_MAX_VERSION:]

    def _hear_command(self, number: int, payload: np.void | None, status: str, reason: str) -> None:
        name = name_of(Opcode, number)
        inner = payload is not None and number == Opcode.EXTENDED_COMMAND
        if inner and payload is not None:
            name = name_of(Inner, int(payload["inner_opcode"]))
        if status != Status.PASSED.name:
            self.refused = (name, status, reason)
            return
        self.refused = None
        self.commands[name] += 1
        if number == Opcode.DESCRIBE_DEVICE:
            self.described = True
        if number == Opcode.CONFIGURE_DEVICE_RESOURCES:
            self.queue_format = self.nic.queue_format.name
        if payload is None or inner:
            return
        if number == Opcode.SET_DRIVER_PARAMETER and payload["type"] == DRIVER_PARAMETER_MTU:
            self.mtu = int(payload["value"])
        queue = Opcode(number).command.queue
        if queue is not None and queue.effect != "changed":
            self._hear_queue(queue.way, int(payload[queue.number]), queue.effect == "created")

    def _hear_queue(self, way: str, number: int, created: bool) -> None:
        name = f"{way}{number}"
        if way == "rx":
            self._tails.pop(number, None)
            if created:
                self._created_at[number] = int(self.nic.state.rx[number]["frames"])
        if not created:
            self._stopped = {*self._stopped, name} if self.queues() else set()
        elif name in self._stopped:
            self.restarted.add(name)

    # What the state tells.

    def queues(self, way: str = "") -> list[str]:
        """Names of the queues that there are, of one way or of both."""
        state = self.nic.state
        return [
            f"{one}{number}"
            for one, queues in (("tx", state.tx), ("rx", state.rx))
            if one.startswith(way)
            for number in np.flatnonzero(queues["active"]).tolist()
        ]

    def since(self, way: str, counter: str) -> int:
        """By how much a counter of all receive, or transmit, queues has grown in this life."""
        now, then = (self.nic.state.rx, self._rx) if way == "rx" else (self.nic.state.tx, self._tx)
        return int((now[counter] - then[counter]).sum())

    def drops(self) -> dict[str, int]:
        """Frames and packets that were dropped in this life, by reason."""
        grown = self.nic.state.drops.sum(axis=0) - self._drops
        return {reason.name.lower(): int(grown[reason]) for reason in Drop if reason > Drop.HELD and grown[reason]}

    @property
    def faults(self) -> int:
        """DMA faults of packets in this life."""
        return int(self.nic.state.device["faults"][0]) - self._faults

    def count(self, name: str) -> int:
        """How often an event of the control path has been counted in this life."""
        return self.nic.counters[name] - self._counters[name]

    @property
    def command_register(self) -> Command:
        """The PCI command register."""
        return self.nic.config.command

    def vectors(self) -> int:
        """MSI-X vectors that have an eventfd."""
        link = self.nic.link
        if link is None:
            return 0
        return sum(map(link.irqs[PciIrq.MSIX].configured, range(self.nic.profile.vectors)))

    def posted(self) -> dict[str, tuple[int, int]]:
        """Of each receive queue how many buffers the device has, and the entries of the ring."""
        found = {}
        for name in self.queues("rx"):
            queue = self.nic.state.rx[int(name[2:])]
            entries = int(queue["buffer_entries"])
            ahead = int(queue["buffer_tail"] - queue["buffer_head"])
            found[name] = (ahead & 0xFFFFFFFF if self.nic.gqi else ahead % entries, entries)
        return found

    def look(self) -> None:
        """See whether buffers were handed back, and vectors enabled again.

        Doorbells are not told of one by one. Buffers came back for certain if the device has more of them, together
        with those that frames have used, than a ring holds; or if a doorbell has moved while frames had been delivered.
        """
        state = self.nic.state
        vectors = state.vectors[: self.nic.interrupts.count]
        # A vector masks itself when it fires: one that has fired twice was enabled in between.
        self.acknowledged |= bool((vectors["fires"] > (vectors["enabled"] == 0)).any())
        if self.handed_back or not state.rx["active"].any():
            return
        for name, (visible, entries) in self.posted().items():
            number = int(name[2:])
            queue = state.rx[number]
            used = int(queue["frames"]) - self._created_at.get(number, int(queue["frames"]))
            tail = int(queue["buffer_tail"])
            most = entries if self.nic.gqi else entries - 1
            if used and (visible + used > most or self._tails.get(number, tail) != tail):
                self.handed_back = True
            if used:
                self._tails[number] = tail

    def asked_of_transmit(self) -> set[str]:
        """What the descriptors in the transmit rings ask for: ``checksum``, ``segmentation``.

        The rings are read in guest memory, as the driver has left them; what its memory does not show is not there.
        """
        memory, found = MappedMemory(self.nic), set()
        for name in self.queues("tx"):
            queue = self.nic.state.tx[int(name[2:])]
            entries, posted = int(queue["entries"]), int(queue["tail"])
            round_once = int(queue["packets"] - self._tx[int(name[2:])]["packets"]) >= entries
            count = entries if round_once else min(posted, entries)
            raw = memory.read(int(queue["ring"]), count * TX_PACKET.size) if count else b""
            found |= _asked(raw or b"", self.nic.gqi)
        return found

    # What there is to tell.

    def about(self) -> dict[str, Any]:
        """What the driver says of itself, and the queue format that it has chosen."""
        info = self.nic.admin.driver_info
        system = ""
        if info is not None and self.commands[Opcode.VERIFY_DRIVER_COMPATIBILITY.name]:
            release = info["os_version"].decode("latin1").strip()
            system = f"{name_of(OsType, int(info['os_type']))} {release}".strip()
        return {
            "driver": self.version.strip(),
            "system": system,
            "queue_format": self.queue_format,
        }

    def problems(self) -> list[str]:
        """What the device has refused, dropped or counted in this life."""
        found = []
        if self.refused is not None:
            name, status, reason = self.refused
            found.append(f"the last command, {name}, was refused: {status}{reason and f', {reason}'}")
        found += [f"{what}: {times:,}" for name, what in _MISTAKES.items() if (times := self.count(name))]
        if self.faults:
            last = int(self.nic.state.device["fault_address"][0])
            found.append(f"DMA faults: {self.faults:,}; the last at {last:#x}, which is not in shared memory")
        if drops := self.drops():
            found.append("dropped: " + ", ".join(f"{name} {count:,}" for name, count in drops.items()))
        return found

    # Registers, as a person is told of them.

    @property
    def asked_to_run(self) -> bool:
        """Whether the driver has asked for an admin queue, by either scheme."""
        run = self.written.get(r.DRIVER_STATUS.name, 0) & DriverStatus.RUN
        return bool(run or self.written.get(r.ADMINQ_PFN.name, 0))


def _asked(raw: bytes, gqi: bool) -> set[str]:
    """What transmit descriptors ask for."""
    if gqi:
        flags = np.frombuffer(raw, GQI_TX_PACKET)["type_flags"]
        checksum = (flags >> 4 <= GqiTxType.TSO) & (flags & 1 != 0)
        segmentation = flags >> 4 == GqiTxType.TSO
    else:
        words = np.frombuffer(raw, "<u8").reshape(-1, TX_PACKET.size // 8)
        kinds = TX_PACKET.dtype.of(words)
        checksum = (kinds == TxType.PACKET) & (TX_PACKET.checksum.of(words) != 0)
        segmentation = kinds == TxType.TSO_CONTEXT
    return {name for name, found in (("checksum", checksum), ("segmentation", segmentation)) if found.any()}
