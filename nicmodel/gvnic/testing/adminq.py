"""The admin queue, driver's side: a ring of 64-byte commands that the device answers in place.

As Linux drives it: commands are put in the ring, one doorbell hands them over, the event counter tells that they are
done, and then every command's status word is read (drivers/net/ethernet/google/gve/gve_adminq.c).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np
import numpy.typing as npt

from nicmodel.gvnic.commands import HEADER, SLOT_SIZE, Opcode, Status
from nicmodel.gvnic.registers import (
    ADMINQ_BASE_HI,
    ADMINQ_BASE_LO,
    ADMINQ_DOORBELL,
    ADMINQ_EVENT_COUNTER,
    ADMINQ_LENGTH,
    ADMINQ_PAGE,
    ADMINQ_PFN,
    DEVICE_STATUS,
    DRIVER_STATUS,
    DeviceStatus,
    DriverStatus,
)
from nicmodel.gvnic.testing.bars import Registers
from nicmodel.testing.guest_memory import GuestMemory

_COUNTER_MASK = 0xFFFF_FFFF
#: How often, and every how many seconds, a driver that waits looks whether its commands are done
#: (GVE_MAX_ADMINQ_EVENT_COUNTER_CHECK, GVE_ADMINQ_SLEEP_LEN).
_LOOKS, _LOOK_SECONDS = 100, 0.02


class AdminError(Exception):
    """The device refused a command.

    Attributes:
        opcode: the command, a plain number if it is none of `Opcode`.
        status: the status word, a plain number if it is none of `Status`.
    """

    def __init__(self, opcode: int, status: int) -> None:
        self.opcode = _name(Opcode, opcode)
        self.status = _name(Status, status)
        super().__init__(f"{_text(self.opcode)}: {_text(self.status)}")


class AdminTimeout(Exception):
    """The event counter did not reach the doorbell's value: the device has not executed the commands."""


def encode_command(opcode: Opcode, **fields: int) -> bytes:
    """One slot: header and payload; fields that are not named are 0.

    Raises:
        ValueError: the command has no field of that name.
        OverflowError: a value does not fit its field.
    """
    header = np.zeros((), HEADER)
    header["opcode"] = opcode
    payload = np.zeros((), opcode.command.payload)
    for name, value in fields.items():
        payload[name] = value
    return (header.tobytes() + payload.tobytes()).ljust(SLOT_SIZE, b"\0")


def decode_command(slot: bytes) -> dict[str, int]:
    """The payload fields of a slot by name: what `encode_command` was given, and the others."""
    opcode = Opcode(int(np.frombuffer(slot, HEADER, 1)["opcode"][0]))
    payload = opcode.command.parse(slot, HEADER.itemsize)
    return {name: int(payload[name]) for name in payload.dtype.names or ()}


class AdminQueue:
    """The ring, from its set-up to its release.

    Args:
        registers: BAR 0.
        memory: where the ring lies.
        scheme: how the ring is made known: "base" (address, length and driver_status; what Linux does on PCI revision 1
            and up) or "pfn" (page number; revision 0, FreeBSD and older DPDK).
        pause: lets seconds pass between two looks at the event counter, as Linux does; None: it looks once.

    Attributes:
        produced: commands handed over since the set-up, modulo 2³².
    """

    def __init__(
        self,
        registers: Registers,
        memory: GuestMemory,
        scheme: str = "base",
        *,
        pause: Callable[[float], object] | None = None,
    ) -> None:
        if scheme not in ("base", "pfn"):
            raise ValueError(f"admin queue scheme {scheme!r} is neither base nor pfn")
        self._registers = registers
        self._memory = memory
        self._scheme = scheme
        self._pause = pause
        self.address = memory.allocate_zeroed(ADMINQ_PAGE)
        self._slots: npt.NDArray[np.void] = memory.records(self.address, f"V{SLOT_SIZE}", ADMINQ_PAGE // SLOT_SIZE)
        self._waiting = 0
        self.produced = 0

    def start(self) -> None:
        """Make the ring known to the device and set it running."""
        self._slots.view(np.uint8)[:] = 0
        self.produced = self._waiting = 0
        if self._scheme == "pfn":
            self._registers.write(ADMINQ_PFN, self.address // ADMINQ_PAGE)
        else:
            self._registers.write(ADMINQ_LENGTH, ADMINQ_PAGE)
            self._registers.write(ADMINQ_BASE_HI, self.address >> 32)
            self._registers.write(ADMINQ_BASE_LO, self.address & 0xFFFF_FFFF)
            self._registers.write(DRIVER_STATUS, DriverStatus.RUN)

    def release(self) -> None:
        """Take the ring from the device: it forgets everything.

        Raises:
            AdminTimeout: the device does not acknowledge; a kernel would wait here for ever.
        """
        if self._scheme == "pfn":
            self._registers.write(ADMINQ_PFN, 0)
            acknowledged = self._registers.read(ADMINQ_PFN) == 0
        else:
            self._registers.write(DRIVER_STATUS, DriverStatus.RESET)
            acknowledged = bool(self._registers.read(DEVICE_STATUS) & DeviceStatus.DEVICE_IS_RESET)
        if not acknowledged:
            raise AdminTimeout("the device does not acknowledge the release of its admin queue")

    def free(self) -> None:
        """Give the ring's memory back."""
        self._memory.free(self.address)

    def put(self, slot: bytes) -> None:
        """Write one raw command into the ring without handing it over.

        Raises:
            BufferError: 63 commands wait already: one more could not be told from none.
        """
        if self._waiting >= len(self._slots) - 1:
            raise BufferError("the admin queue is full")
        self._slots[(self.produced + self._waiting) % len(self._slots)] = np.void(slot.ljust(SLOT_SIZE, b"\0"))
        self._waiting += 1

    def kick(self) -> list[int]:
        """Hand over all commands that wait.

        Returns:
            Their status words, in order.

        Raises:
            AdminTimeout: the device has not executed them.
        """
        first, count = self.produced, self._waiting
        done = self._registers.read(ADMINQ_EVENT_COUNTER)
        if done != first:
            raise AdminTimeout(f"event counter is {done} before command {first}")
        self.produced = (first + count) & _COUNTER_MASK
        self._waiting = 0
        self._registers.write(ADMINQ_DOORBELL, self.produced)
        done = self._registers.read(ADMINQ_EVENT_COUNTER)
        looks = 0
        while done != self.produced and self._pause is not None and looks < _LOOKS:
            self._pause(_LOOK_SECONDS)
            done = self._registers.read(ADMINQ_EVENT_COUNTER)
            looks += 1
        if done != self.produced:
            raise AdminTimeout(f"event counter is {done}, {self.produced} expected")
        headers = [self._slots[(first + number) % len(self._slots)].tobytes() for number in range(count)]
        return [int(np.frombuffer(raw, HEADER, 1)["status"][0]) for raw in headers]

    def execute(self, slots: Iterable[bytes]) -> None:
        """Put commands in the ring, hand them over by one doorbell (one for each 63), and check how each ended.

        Raises:
            AdminError: of the first command that failed. The later ones were executed all the same.
            AdminTimeout: the device has not executed them.
        """
        slots = list(slots)
        statuses: list[int] = []
        for slot in slots:
            if self._waiting == len(self._slots) - 1:
                statuses += self.kick()
            self.put(slot)
        statuses += self.kick()
        for slot, status in zip(slots, statuses, strict=True):
            if status != Status.PASSED:
                raise AdminError(int(np.frombuffer(slot, HEADER, 1)["opcode"][0]), status)


def _name(kind: type[Opcode] | type[Status], value: int) -> int:
    return kind(value) if value in kind._value2member_map_ else value


def _text(value: int) -> str:
    return value.name if isinstance(value, (Opcode, Status)) else f"{value:#x}"
