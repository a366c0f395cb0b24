"""Rules of BAR 0 and of the admin queue's life (REG)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from nicmodel.gvnic import registers as r
from nicmodel.gvnic.commands import SLOT_SIZE
from nicmodel.gvnic.device import Nic
from nicmodel.gvnic.registers import DeviceStatus, DriverStatus
from nicmodel.observe.findings import Journal
from nicmodel.observe.mapped_memory import MappedMemory
from nicmodel.pci.config import Command
from nicmodel.vfio_user.dma import READABLE, WRITABLE

#: Bytes of the driver's version that a finding shows.
_VERSION = 128


class Registers:
    """Looks at each write to BAR 0 before it takes effect.

    Args:
        nic: the device.
        memory: guest memory.
        journal: where findings go.
        behind: whether the device has work that it does not do.
        on_release: called when the device is about to forget its queues.

    Attributes:
        failed: the device has refused a command since the admin queue was set up.
    """

    def __init__(
        self,
        nic: Nic,
        memory: MappedMemory,
        journal: Journal,
        behind: Callable[[], bool],
        on_release: Callable[[], None],
    ) -> None:
        self._nic = nic
        self._behind = behind
        self._on_release = on_release
        self._memory = memory
        self._journal = journal
        self._parts: dict[str, int] = {}  # of the admin queue's address and length, as written last
        self._version = b""
        self.failed = False

    def reset(self) -> None:
        """The device is as after power-on."""
        self._parts.clear()
        self._version = b""
        self.failed = False

    def write(self, offset: int, data: bytes) -> None:
        """A write of `data` at byte `offset` of BAR 0."""
        register = r.REGISTERS.get(offset)
        beyond = any(at in r.REGISTERS for at in range(offset + 1, offset + len(data)))
        if register is None or len(data) < register.size or beyond:
            value = int.from_bytes(data, "big")
            self._journal.report("REG-001", f"{len(data)} bytes are written at offset {offset:#x}", value=value)
            return
        data = data[: register.size]  # iPXE writes the last register, of 2 bytes, with 4
        value = int.from_bytes(data, "big")
        if not register.writable:
            self._journal.report("REG-002", f"{register.name} is written", value=value)
            return
        if register is r.DRIVER_VERSION:
            self._driver_version(data)
            return
        self._journal.note(None, "register", register=register.name, value=value)
        if register is r.ADMINQ_DOORBELL:
            self._admin_doorbell(value)
        elif register is r.ADMINQ_PFN:
            self._set_up(value * r.ADMINQ_PAGE, r.ADMINQ_PAGE) if value else self._release()
        elif register is r.DRIVER_STATUS:
            self._driver_status(value)
        else:
            self._parts[register.name] = value

    def _driver_version(self, data: bytes) -> None:
        self._version = (self._version + data)[-_VERSION:]
        if data == b"\n":
            self._version = b""
        elif not 0x20 <= data[0] < 0x7F:
            self._journal.report(
                "REG-012", f"byte {data[0]:#x} is written to driver_version", before=self._version[:-1].decode("latin1")
            )

    def _driver_status(self, value: int) -> None:
        if value not in (DriverStatus.RUN, DriverStatus.RESET):
            self._journal.report("REG-003", f"driver_status is set to {value:#x}")
        elif value == DriverStatus.RESET:
            self._release()
        else:
            high, low, length = (
                self._parts.get(part.name, 0) for part in (r.ADMINQ_BASE_HI, r.ADMINQ_BASE_LO, r.ADMINQ_LENGTH)
            )
            self._set_up(high << 32 | low, length)

    def _set_up(self, address: int, length: int) -> None:
        queue: dict[str, Any] = {"address": address, "length": length}
        before = self._nic.admin
        # iPXE tells of one queue in both ways: by its page number, and by address, length and RUN.
        if before.base and (before.base != address or before.counter):
            self._journal.report(
                "REG-007",
                "an admin queue is set up while there is one",
                before={"address": before.base},
                **queue,
            )
        self.failed = False
        if address == 0 or address % SLOT_SIZE:
            self._journal.report("REG-004", f"the admin queue is at {address:#x}", **queue)
        elif length < SLOT_SIZE or length & (length - 1):
            self._journal.report("REG-005", f"the admin queue has {length} bytes", **queue)
        elif not self._memory.mapped(address, length, READABLE) or not self._memory.mapped(address, length, WRITABLE):
            self._journal.report("REG-006", f"the admin queue at {address:#x} is not all in memory", **queue)
        self._need_bus_master("an admin queue is set up")
        self._on_release()  # of what was before

    def _release(self) -> None:
        nic = self._nic
        queues = [f"{way}{number}" for way, records in (("rx", nic.state.rx), ("tx", nic.state.tx))
                  for number in records["active"].nonzero()[0]]  # fmt: skip
        excused = self.failed or bool(nic.registers.status & DeviceStatus.RESET) or self._behind()
        if queues and not excused:
            self._journal.report("REG-010", f"the admin queue is released with {len(queues)} queues", queues=queues)
        self._on_release()

    def _admin_doorbell(self, value: int) -> None:
        admin = self._nic.admin
        if not admin.base:
            self._journal.report("REG-008", "the admin doorbell is written without an admin queue", value=value)
            return
        waiting = (value - admin.counter) & 0xFFFFFFFF
        if waiting > admin.slots:
            self._journal.report(
                "REG-009", f"the admin doorbell is set to {value}", completed=admin.counter, slots=admin.slots
            )
        self._need_bus_master("commands are handed over")

    def _need_bus_master(self, what: str) -> None:
        if not self._nic.config.command & Command.BUS_MASTER:
            self._journal.report("REG-011", f"{what} while bus mastering is off")
