"""What a device implements, and what it gets from the server."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from .dma import DmaTable
from .irq import InterruptSet


@dataclass(frozen=True)
class RegionInfo:
    """A region of the device (a BAR, the configuration space), accessed by messages only.

    Attributes:
        size: Bytes; 0 if the device has no such region.
        readable: The client may read.
        writable: The client may write.
        capabilities: VFIO region capabilities, each with its ``struct vfio_info_cap_header``, whose ``next`` field the
            server fills in.
    """

    size: int
    readable: bool = True
    writable: bool = True
    capabilities: tuple[bytes, ...] = ()


@dataclass(frozen=True)
class ClientLink:
    """The client as the device sees it, from ``attach`` to ``detach``.

    Attributes:
        name: Who it is, for people to read: ``qemu-system-x86[4711]``.
        dma: Its memory.
        irqs: Its interrupts, one set per IRQ type in the order of ``Device.irq_counts``.
    """

    name: str
    dma: DmaTable
    irqs: Sequence[InterruptSet]


class Device:
    """Base class of devices, with harmless defaults: a PCI device without regions and interrupts.

    All methods are called from the event loop and hold it up while they run. ``region_read`` and ``region_write`` may
    raise OSError, whose errno becomes the reply; any other exception is logged and answered with EIO.

    Attributes:
        regions: By region index; a PCI device has nine (``PciRegion``). Read whenever it is needed.
        irq_counts: Vectors by IRQ type; a PCI device has five types (``PciIrq``). Read when a client connects. QEMU
            warns about a device without an ERR vector.
        resettable: DEVICE_RESET is offered.
    """

    regions: Sequence[RegionInfo] = (RegionInfo(0),) * 9
    irq_counts: Sequence[int] = (0, 0, 0, 1, 1)
    resettable: bool = True

    def attach(self, link: ClientLink) -> None:
        """A client has negotiated the version."""

    def detach(self) -> None:
        """The client is gone; its memory is unmapped and its eventfds are closed once this returns."""

    def region_read(self, region: int, offset: int, count: int) -> bytes:
        """Read ``count`` bytes; the range is inside the region and the region is readable."""
        return bytes(count)

    def region_read_early(self, region: int, offset: int, count: int) -> bytes | None:
        """Read while the device waits for the client to answer a DMA message, before writes that came earlier are done.

        QEMU cannot answer while a virtual CPU waits for a register, so a register that a driver polls while the device
        does DMA by messages should be answered here: without side effects, and with a value that the driver may see
        as long as nothing more has happened. None: the read has to wait.
        """
        return None

    def region_write(self, region: int, offset: int, data: bytes | memoryview) -> None:
        """Write; the range is inside the region and the region is writable. ``data`` is valid during the call only."""

    def before_unmap(self, start: int, size: int) -> None:
        """The DMA regions in a range, at least one, are about to go away: stop using their memory now."""

    def dma_changed(self) -> None:
        """DMA regions were added or removed; the client has not been told yet that it is done."""

    def memory_lost(self) -> None:
        """DMA regions have gone because their memory was taken away; called after ``dma_changed``.

        What was read there lately may not be what the client had written, and what was written there is gone.
        """

    def messages_read(self) -> None:
        """All messages that had arrived together were handled; the place for work that doorbells only announce."""

    def reset(self) -> None:
        """Return to the state after power-on."""
