"""BAR 0: the register map of a virtual function, 32-bit registers, little-endian.

Sources: Linux drivers/net/ethernet/intel/idpf/idpf_lan_vf_regs.h for the registers that have a fixed place; the others
are where `nicmodel.idpf.virtchnl` messages tell the driver that they are, and could be elsewhere.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum, IntFlag

from nicmodel.nic.layout import Layout, at

VENDOR_INTEL = 0x8086
DEVICE_IDPF_VF = 0x145C
#: Ethernet, with the programming interface that says "IDPF compliant" (OASIS idpf).
CLASS_IDPF = 0x020001

#: Bytes of BAR 0.
REGISTERS_SIZE = 0x10000


class Bar(IntEnum):
    """What lies behind each BAR, of which the first takes two registers; the numbers are vfio's region indices too."""

    REGISTERS = 0
    MSIX = 2


class ResetState(IntEnum):
    """`RSTAT`."""

    IN_PROGRESS = 0
    COMPLETED = 1
    ACTIVE = 2


class QueueLength(IntFlag):
    """Flags of `ATQ_LEN` and `ARQ_LEN`, above the number of entries."""

    FAILURE = 1 << 28
    OVERFLOW = 1 << 29
    CRITICAL = 1 << 30
    ENABLE = 1 << 31


#: Bits of `ATQ_LEN` and `ARQ_LEN` that hold the number of entries; of the latter 0 says that the device was reset.
QUEUE_LENGTH_MASK = 0x3FF

#: `DYN_CTL` of a vector.
DYN_CTL = Layout(
    "DYN_CTL",
    4,
    enable=at(0, 0, 1),
    clear_pending=at(0, 1, 1),
    software_interrupt=at(0, 2, 1),
    itr_index=at(0, 3, 2),
    interval=at(0, 5, 12),
    software_itr_enable=at(0, 24, 1),
    software_itr_index=at(0, 25, 2),
    write_back_on_itr=at(0, 30, 1),
    keep_enable=at(0, 31, 1),
)
#: `DYN_CTL.itr_index` that leaves both intervals alone; unit of an interval, ns; the bits of an ITR register.
ITR_NO_UPDATE = 3
ITR_UNIT_NS = 2000
ITR_MASK = 0xFFF


@dataclass(frozen=True)
class Register:
    """A register of BAR 0, or several of a kind.

    Attributes:
        name: what it is called.
        offset: of the first, bytes.
        count: how many there are.
        doorbell: whether writing it moves packets, and sets nothing up.
    """

    name: str
    offset: int
    count: int = 1
    doorbell: bool = False

    def at(self, number: int) -> int:
        """Where one of them is; see `SPACING`."""
        return self.offset + SPACING * number


#: Bytes from one register of a kind to the next.
SPACING = 4
#: The most registers of a kind: what has room, and what VF_INT_ITRN_64 has.
MAX_QUEUES, MAX_VECTORS = 256, 64

TX_TAIL = Register("tx_tail", 0x0000, MAX_QUEUES, doorbell=True)
RX_BUFFER_TAIL = Register("rx_buffer_tail", 0x1000, MAX_QUEUES, doorbell=True)
#: Of the single queue model, which this device does not have; the driver of the split model wants to know a place.
RX_TAIL = Register("rx_tail", 0x2000, MAX_QUEUES)
ITR0 = Register("itr0", 0x2C00, MAX_VECTORS, doorbell=True)
ITR1 = Register("itr1", 0x2D00, MAX_VECTORS, doorbell=True)
#: Of the queues' vectors: the first is that of MSI-X vector 1.
QUEUE_DYN_CTL = Register("dyn_ctl", 0x3800, MAX_VECTORS, doorbell=True)
MAILBOX_ENABLE = Register("icr0_ena1", 0x5000)
MAILBOX_DYN_CTL = Register("mailbox_dyn_ctl", 0x5C00)
ARQ_BASE_HIGH = Register("arqbah", 0x6000)
ATQ_HEAD = Register("atqh", 0x6400)
ATQ_LEN = Register("atqlen", 0x6800)
ARQ_BASE_LOW = Register("arqbal", 0x6C00)
ARQ_TAIL = Register("arqt", 0x7000)
ARQ_HEAD = Register("arqh", 0x7400)
ATQ_BASE_HIGH = Register("atqbah", 0x7800)
ATQ_BASE_LOW = Register("atqbal", 0x7C00)
ARQ_LEN = Register("arqlen", 0x8000)
ATQ_TAIL = Register("atqt", 0x8400)
RSTAT = Register("rstat", 0x8800)
#: Completion queues have no tail; the driver wants to know a place.
TX_COMPLETION_TAIL = Register("tx_completion_tail", 0xA000, MAX_QUEUES)

#: All of them, by what they are called.
REGISTERS = {one.name: one for one in list(vars().values()) if isinstance(one, Register)}

#: Which register is at an offset, and which of its kind.
PLACES = {one.at(number): (one, number) for one in REGISTERS.values() for number in range(one.count)}
