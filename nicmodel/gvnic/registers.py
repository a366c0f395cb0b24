"""BAR 0: the register map, all fields big-endian.

Source: Linux drivers/net/ethernet/google/gve/gve_register.h.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum, IntFlag

VENDOR_GOOGLE = 0x1AE0
DEVICE_GVNIC = 0x0042
SUBSYSTEM_GVNIC = 0x0058
CLASS_ETHERNET = 0x020000


class Bar(IntEnum):
    """What lies behind each BAR; the numbers are vfio's region indices too."""

    REGISTERS = 0
    MSIX = 1
    DOORBELLS = 2


@dataclass(frozen=True)
class Register:
    """One register: byte offset in BAR 0, width in bytes, whether the driver may read or write it."""

    name: str
    offset: int
    size: int
    readable: bool
    writable: bool


DEVICE_STATUS = Register("device_status", 0x00, 4, True, False)
DRIVER_STATUS = Register("driver_status", 0x04, 4, False, True)
MAX_TX_QUEUES = Register("max_tx_queues", 0x08, 4, True, False)
MAX_RX_QUEUES = Register("max_rx_queues", 0x0C, 4, True, False)
ADMINQ_PFN = Register("adminq_pfn", 0x10, 4, True, True)
ADMINQ_DOORBELL = Register("adminq_doorbell", 0x14, 4, False, True)
ADMINQ_EVENT_COUNTER = Register("adminq_event_counter", 0x18, 4, True, False)
DRIVER_VERSION = Register("driver_version", 0x1F, 1, False, True)
ADMINQ_BASE_HI = Register("adminq_base_address_hi", 0x20, 4, False, True)
ADMINQ_BASE_LO = Register("adminq_base_address_lo", 0x24, 4, False, True)
ADMINQ_LENGTH = Register("adminq_length", 0x28, 2, False, True)

REGISTERS = {
    register.offset: register
    for register in (
        DEVICE_STATUS,
        DRIVER_STATUS,
        MAX_TX_QUEUES,
        MAX_RX_QUEUES,
        ADMINQ_PFN,
        ADMINQ_DOORBELL,
        ADMINQ_EVENT_COUNTER,
        DRIVER_VERSION,
        ADMINQ_BASE_HI,
        ADMINQ_BASE_LO,
        ADMINQ_LENGTH,
    )
}

#: Bytes of BAR 0 and BAR 2. BAR 0 is one page; only its first 0x2a bytes mean anything.
REGISTERS_SIZE = 0x1000
DOORBELLS_SIZE = 0x10000

#: Unit of `ADMINQ_PFN`, and the length of an admin queue given by it.
ADMINQ_PAGE = 4096


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
