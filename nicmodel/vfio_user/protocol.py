"""The vfio-user wire format, declared once: commands, flags, message layouts, capabilities, limits.

Every message is a 16-byte header and a payload. Integers are in the host's byte order, so all layouts here use native
order without padding. The names follow QEMU's ``docs/interop/vfio-user.rst`` (the protocol) and ``<linux/vfio.h>``
(the structures that the protocol borrows from the kernel's VFIO interface).
"""

from __future__ import annotations

import errno
import json
from dataclasses import dataclass
from enum import IntEnum, IntFlag
from struct import Struct

VERSION_MAJOR = 0
VERSION_MINOR = 1

MAX_DATA_XFER = 1 << 20
"""Largest ``count``, in bytes, of one region or DMA access that this implementation accepts."""
MAX_MESSAGE = 2 * MAX_DATA_XFER
"""Largest message, header included, that can be received. Twice the data limit, so that an access which is too large is
still read as a whole and answered with an error instead of costing the connection."""
MAX_MSG_FDS = 16
"""Most descriptors that are asked for with one message; what QEMU sends at most."""
MOST_FDS = 253
"""Most descriptors that the kernel carries with one message (SCM_MAX_FD). All are accepted: Cloud Hypervisor sends
those of all vectors together, whatever is asked for."""
MAX_DMA_MAPS = 1 << 19
"""Most DMA regions of one client at a time. QEMU offers 65,535 but does not count: a driver in a guest's user space,
behind an IOMMU, may map each page by itself, 131,072 for 512 MiB."""
PAGE_SIZES = 4096
"""Supported DMA page sizes, or'ed together."""


class Command(IntEnum):
    """Commands, by their number in the header."""

    VERSION = 1
    DMA_MAP = 2
    DMA_UNMAP = 3
    DEVICE_GET_INFO = 4
    DEVICE_GET_REGION_INFO = 5
    DEVICE_GET_REGION_IO_FDS = 6
    DEVICE_GET_IRQ_INFO = 7
    DEVICE_SET_IRQS = 8
    REGION_READ = 9
    REGION_WRITE = 10
    DMA_READ = 11
    DMA_WRITE = 12
    DEVICE_RESET = 13
    DIRTY_PAGES = 14
    REGION_WRITE_MULTI = 15
    DEVICE_FEATURE = 16
    MIG_DATA_READ = 17
    MIG_DATA_WRITE = 18


# Header flags. Plain integers: they are tested for every message, and enumerations are slow to combine.
TYPE_MASK = 0xF
TYPE_COMMAND = 0x0
TYPE_REPLY = 0x1
NO_REPLY = 0x10
ERROR = 0x20

HEADER = Struct("=HHIII")  # message id, command, size of the whole message, flags, errno
VERSION = Struct("=HH")  # major, minor; then JSON, NUL-terminated
DMA_MAP = Struct("=IIQQQ")  # argsz, DmaFlag, offset in the file, DMA address, size
DMA_UNMAP = Struct("=IIQQ")  # argsz, UnmapFlag, DMA address, size
DEVICE_INFO = Struct("=IIII")  # argsz, DeviceFlag, number of regions, number of IRQ types
REGION_INFO = Struct("=IIIIQQ")  # argsz, RegionFlag, index, offset of the first capability, size, mmap offset
CAPABILITY = Struct("=HHI")  # id, version, offset of the next one from the start of the region info
IRQ_INFO = Struct("=IIII")  # argsz, IrqFlag, index, number of vectors
IRQ_SET = Struct("=IIIII")  # argsz, IrqSet, index, first vector, number of vectors; then booleans
REGION_ACCESS = Struct("=QII")  # offset, region, count; then the data
DMA_ACCESS = Struct("=QQ")  # DMA address, count; then the data
DMA_ACCESS_QEMU_10 = Struct("=QI")  # the same, then data and four bytes of padding: QEMU 10's reading of the text
WRITE_MULTI = Struct("=Q")  # number of writes; then SINGLE_WRITEs
SINGLE_WRITE = Struct("=QII8s")  # offset, region, count (at most 8), data


class DmaFlag(IntFlag):
    """Rights of the device to a DMA region; and how its descriptor may be used.

    That is by mmap, or by file I/O (pread, pwrite). Clients before these two flags, such as QEMU, mean mmap.
    """

    READABLE = 1
    WRITABLE = 2
    MMAP = 4
    FILE_IO = 8


class UnmapFlag(IntFlag):
    """Variants of DMA_UNMAP (``VFIO_DMA_UNMAP_FLAG_*``)."""

    GET_DIRTY_BITMAP = 1
    ALL = 2


class DeviceFlag(IntFlag):
    """``VFIO_DEVICE_FLAGS_*``."""

    RESET = 1
    PCI = 2


class RegionFlag(IntFlag):
    """``VFIO_REGION_INFO_FLAG_*``."""

    READ = 1
    WRITE = 2
    MMAP = 4
    CAPS = 8


class IrqFlag(IntFlag):
    """``VFIO_IRQ_INFO_*``."""

    EVENTFD = 1
    MASKABLE = 2
    AUTOMASKED = 4
    NORESIZE = 8


class IrqSet(IntFlag):
    """``VFIO_IRQ_SET_*``: exactly one kind of data and one action make a request."""

    DATA_NONE = 1
    DATA_BOOL = 2
    DATA_EVENTFD = 4
    ACTION_MASK = 8
    ACTION_UNMASK = 16
    ACTION_TRIGGER = 32


class PciRegion(IntEnum):
    """Regions of a PCI device (``VFIO_PCI_*_REGION_INDEX``)."""

    BAR0 = 0
    BAR1 = 1
    BAR2 = 2
    BAR3 = 3
    BAR4 = 4
    BAR5 = 5
    ROM = 6
    CONFIG = 7
    VGA = 8


class PciIrq(IntEnum):
    """IRQ types of a PCI device (``VFIO_PCI_*_IRQ_INDEX``)."""

    INTX = 0
    MSI = 1
    MSIX = 2
    ERR = 3
    REQ = 4


class ProtocolError(OSError):
    """The peer broke the protocol. ``errno`` is what a reply to it carries, EINVAL unless said otherwise."""

    def __init__(self, reason: str, code: int = errno.EINVAL) -> None:
        super().__init__(code, reason)


@dataclass(frozen=True)
class Capabilities:
    """What one side says about itself in VERSION; the defaults are those of the specification."""

    max_msg_fds: int = 1
    max_data_xfer_size: int = 1 << 20
    max_dma_maps: int = 65535
    pgsizes: int = 4096
    write_multiple: bool = False

    @classmethod
    def parse(cls, data: bytes) -> tuple[Capabilities, frozenset[str]]:
        """Read the JSON of a VERSION message; ``data`` may be empty.

        Returns:
            The capabilities, and the names the sender mentioned (also those unknown here).

        Raises:
            ProtocolError: not NUL-terminated, not JSON, or a value of the wrong type or sign.
        """
        if not data:
            return cls(), frozenset()
        if data[-1] != 0:
            raise ProtocolError("version data is not NUL-terminated")
        try:
            document = json.loads(data[:-1].decode())
        except (ValueError, RecursionError) as error:
            raise ProtocolError(f"version data is not JSON: {error}") from None
        proposed = document.get("capabilities", {}) if isinstance(document, dict) else None
        if not isinstance(proposed, dict):
            raise ProtocolError("version data holds no object of capabilities")
        known = {name: proposed[name] for name in cls.__dataclass_fields__ if name in proposed}
        for name, value in known.items():
            if type(value) is not type(getattr(cls, name)) or value < 0:
                raise ProtocolError(f"capability {name} is {value!r}")
        return cls(**known), frozenset(proposed)


def version_data(capabilities: dict[str, int], room: int) -> bytes:
    """Encode capabilities for VERSION in at most ``room`` bytes, leaving out the last ones if they do not fit.

    A reply must fit the client's buffer, which is as long as its own request (QEMU, ``hw/vfio-user/proxy.c``).
    """
    names = list(capabilities)
    while True:
        document = {"capabilities": {name: capabilities[name] for name in names}}
        data = json.dumps(document, separators=(",", ":")).encode() + b"\0"
        if len(data) <= room:
            return data
        if not names:
            return b""
        names.pop()


def command_name(number: int) -> str:
    """Lower-case name of a command for counters and traces; ``command_99`` for an unknown one."""
    return _COMMAND_NAMES.get(number) or f"command_{number}"


_COMMAND_NAMES = {int(command): command.name.lower() for command in Command}
