"""BAR 0: the register map, all fields big-endian.

Source: Linux drivers/net/ethernet/google/gve/gve_register.h.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum, IntFlag
from typing import Literal

VENDOR_GOOGLE = 0x1AE0
DEVICE_GVNIC = 0x0042
SUBSYSTEM_GVNIC = 0x0058
CLASS_ETHERNET = 0x020000


class Bar(IntEnum):
    """What lies behind each BAR; the numbers are vfio's region indices too."""

    REGISTERS = 0
    MSIX = 1
    DOORBELLS = 2


class DeviceStatus(IntFlag):
    """Bits of `DEVICE_STATUS`."""

    RESET = 1 << 1
    LINK_UP = 1 << 2
    REPORT_STATS = 1 << 3
    DEVICE_IS_RESET = 1 << 4


class DriverStatus(IntFlag):
    """Bits of `DRIVER_STATUS`."""

    RUN = 1 << 0
    RESET = 1 << 1


@dataclass(frozen=True)
class Register:
    """One register of BAR 0.

    Attributes:
        name: what it is called.
        offset: its first byte in BAR 0.
        size: bytes.
        access: whether the driver may read it, write it or both.
        flags: what its bits mean; None: it holds a number.
    """

    name: str
    offset: int
    size: int
    access: Literal["R", "W", "RW"]
    flags: type[IntFlag] | None = None

    @property
    def readable(self) -> bool:
        """Whether the driver may read it."""
        return "R" in self.access

    @property
    def writable(self) -> bool:
        """Whether the driver may write it."""
        return "W" in self.access


DEVICE_STATUS = Register("device_status", 0x00, 4, "R", DeviceStatus)
DRIVER_STATUS = Register("driver_status", 0x04, 4, "W", DriverStatus)
MAX_TX_QUEUES = Register("max_tx_queues", 0x08, 4, "R")
MAX_RX_QUEUES = Register("max_rx_queues", 0x0C, 4, "R")
ADMINQ_PFN = Register("adminq_pfn", 0x10, 4, "RW")
ADMINQ_DOORBELL = Register("adminq_doorbell", 0x14, 4, "W")
ADMINQ_EVENT_COUNTER = Register("adminq_event_counter", 0x18, 4, "R")
DRIVER_VERSION = Register("driver_version", 0x1F, 1, "W")
ADMINQ_BASE_HI = Register("adminq_base_address_hi", 0x20, 4, "W")
ADMINQ_BASE_LO = Register("adminq_base_address_lo", 0x24, 4, "W")
ADMINQ_LENGTH = Register("adminq_length", 0x28, 2, "W")

#: All of them, by offset.
REGISTERS = {one.offset: one for one in list(vars().values()) if isinstance(one, Register)}


def decode(offset: int, data: bytes | memoryview) -> list[tuple[Register, int]]:
    """The registers that are whole in the bytes of BAR 0 from `offset` on, each with what it holds there."""
    found = []
    for register in REGISTERS.values():
        at = register.offset - offset
        if 0 <= at <= len(data) - register.size:
            found.append((register, int.from_bytes(data[at : at + register.size], "big")))
    return found


#: Bytes of BAR 0 and BAR 2. BAR 0 is one page; only its first 0x2a bytes mean anything.
REGISTERS_SIZE = 0x1000
DOORBELLS_SIZE = 0x10000

#: Unit of `ADMINQ_PFN`, and the length of an admin queue given by it.
ADMINQ_PAGE = 4096
