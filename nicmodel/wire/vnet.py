"""The virtio-net header before a frame, and a frame's record in a batch: the same facts.

The kernel puts it before frames of a tap and of an AF_PACKET socket. Source: virtio 1.2, section 5.1.6; Linux
include/linux/virtio_net.h.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from nicmodel.jit.addresses import load_u8, load_u16, store_u8, store_u16
from nicmodel.jit.compiled import inlined
from nicmodel.packet.frames import FrameFlag, Gso
from nicmodel.packet.parse import TCP_SIZE, UDP_SIZE
from nicmodel.packet.words import load_byte

#: struct virtio_net_hdr: flags, gso_type, hdr_len, gso_size, csum_start, csum_offset.
VNET_HEADER = 10
GSO_ECN = 0x80  # VIRTIO_NET_HDRGSO_ECN, beside the type: a TCP frame with CWR set
TCP_CWR = 0x80  # in the flags byte of a TCP header

# As plain numbers: compiled code knows no IntFlag.
_NEEDS_CSUM = int(FrameFlag.NEEDS_CSUM)
_CSUM_FLAGS = int(FrameFlag.NEEDS_CSUM | FrameFlag.CSUM_VALID)


@inlined
def load_record(at: int, data: npt.NDArray[np.uint8], start: int, length: int, frame: np.void) -> None:
    """Describe the frame ``data[start : start + length]`` by the header at address `at` of this process."""
    flags = load_u8(at) & _CSUM_FLAGS
    gso = load_u8(at + 1) & ~GSO_ECN
    header = int(load_u16(at + 2))
    csum_start = int(load_u16(at + 6))
    if gso != Gso.NONE and flags & _NEEDS_CSUM:
        # The kernel's hdr_len is how much of the frame it holds in one piece, which may be more than the headers.
        if gso == Gso.UDP_L4:
            header = csum_start + UDP_SIZE
        elif csum_start + TCP_SIZE <= length:
            header = csum_start + (load_byte(data, start + csum_start + 12) >> 4) * 4
    frame["offset"] = start
    frame["length"] = length
    frame["time"] = 0
    frame["flags"] = flags
    frame["gso"] = gso
    frame["segment"] = load_u16(at + 4)
    frame["header"] = header
    frame["csum_start"] = csum_start
    frame["csum_offset"] = load_u16(at + 8)


@inlined
def store_record(at: int, data: npt.NDArray[np.uint8], frame: np.void) -> None:
    """Write the header of a frame to address `at` of this process."""
    gso = int(frame["gso"])
    if gso == Gso.TCPV4 or gso == Gso.TCPV6:
        tcp = int(frame["csum_start"])
        if tcp + TCP_SIZE <= frame["length"] and load_byte(data, int(frame["offset"]) + tcp + 13) & TCP_CWR:
            gso |= GSO_ECN
    store_u8(at, frame["flags"])
    store_u8(at + 1, gso)
    store_u16(at + 2, frame["header"])
    store_u16(at + 4, frame["segment"])
    store_u16(at + 6, frame["csum_start"])
    store_u16(at + 8, frame["csum_offset"])
