"""vfio-user in Python: a device in this process, in the virtual machine of another.

A device is a subclass of ``Device``; a ``Server`` offers it on a UNIX socket, where QEMU (``vfio-user-pci``) or a
``Client`` finds it; a ``Poller`` calls both. See README.md in this package.
"""

from .client import Client
from .device import ClientLink, Device, RegionInfo
from .dma import DmaFault, DmaTable
from .irq import InterruptSet
from .listener import AddressError, AddressInUse, Listener
from .poll import Poller, Timer
from .protocol import Command, IrqSet, PciIrq, PciRegion, ProtocolError
from .regions import REGION
from .server import Server
from .signals import Signals
from .strand import Strand

__all__ = [
    "REGION",
    "AddressError",
    "AddressInUse",
    "Client",
    "ClientLink",
    "Command",
    "Device",
    "DmaFault",
    "DmaTable",
    "InterruptSet",
    "IrqSet",
    "Listener",
    "PciIrq",
    "PciRegion",
    "Poller",
    "ProtocolError",
    "RegionInfo",
    "Server",
    "Signals",
    "Strand",
    "Timer",
]
