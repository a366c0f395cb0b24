"""Descriptors of the DQO queue formats, little-endian, and of the GQI formats, big-endian.

Source: Linux drivers/net/ethernet/google/gve/gve_desc_dqo.h and gve_desc.h.
"""

from __future__ import annotations

from enum import IntEnum, IntFlag

from nicmodel.nic.layout import Layout, at, record

#: Buffer queue: an empty buffer on its way from driver to device.
RX_BUFFER = Layout(
    "RX buffer",
    32,
    buffer_id=at(0, 0, 16),
    buffer_address=at(8, 0, 64),
    header_address=at(16, 0, 64),
)

#: Completion queue of a receive queue: one for each buffer used.
RX_COMPLETION = Layout(
    "RX completion",
    32,
    rxdid=at(0, 0, 4),
    loopback=at(1, 0, 1),
    ipv6_ex_add=at(1, 1, 1),
    rx_error=at(1, 2, 1),
    packet_type=at(2, 0, 10),
    ip_header_error=at(2, 10, 1),
    udp_length_error=at(2, 11, 1),
    raw_checksum_invalid=at(2, 12, 1),
    packet_length=at(4, 0, 14),
    generation=at(4, 14, 1),
    buffer_queue_id=at(4, 15, 1),
    header_length=at(6, 0, 10),
    rsc=at(6, 10, 1),
    split_header=at(6, 11, 1),
    descriptor_done=at(8, 0, 1),
    end_of_packet=at(8, 1, 1),
    header_buffer_overflow=at(8, 2, 1),
    l3_l4_processed=at(8, 3, 1),
    ip_checksum_error=at(8, 4, 1),
    l4_checksum_error=at(8, 5, 1),
    external_ip_checksum_error=at(8, 6, 1),
    external_udp_checksum_error=at(8, 7, 1),
    status_error1=at(9, 0, 8),
    timestamp_valid=at(11, 0, 1),
    buffer_id=at(12, 0, 16),
    rsc_segment_length=at(14, 0, 16),
    hash=at(16, 0, 32),
    timestamp=at(28, 0, 32),
)

#: The only value of `RX_COMPLETION.rxdid` that drivers accept.
RXDID = 1

#: Largest values of the length fields.
MAX_PACKET_LENGTH = RX_COMPLETION.packet_length.mask
MAX_HEADER_LENGTH = RX_COMPLETION.header_length.mask


class TxType(IntEnum):
    """Type of a transmit descriptor (`dtype`)."""

    GENERAL_CONTEXT = 0x4
    TSO_CONTEXT = 0x5
    PACKET = 0xC


TX_PACKET = Layout(
    "TX packet",
    16,
    buffer_address=at(0, 0, 64),
    dtype=at(8, 0, 5),
    end_of_packet=at(8, 5, 1),
    checksum=at(8, 6, 1),
    report_event=at(8, 7, 1),
    completion_tag=at(12, 0, 16),
    buffer_size=at(14, 0, 14),
)

# The metadata in a context (`flex`, a version and a path hash) are for the network; they change nothing here.
TX_TSO_CONTEXT = Layout(
    "TX TSO context",
    16,
    total_length=at(0, 0, 24),
    flex10=at(3, 0, 8),
    mss=at(4, 0, 14),
    header_length=at(6, 0, 8),
    flex11=at(7, 0, 8),
    dtype=at(8, 0, 5),
    tso=at(8, 5, 1),
    flex=at(10, 0, 48),
)

TX_GENERAL_CONTEXT = Layout(
    "TX general context", 16, flex4=at(0, 0, 64), dtype=at(8, 0, 5), flex0=at(12, 0, 32)
)  # fmt: skip


class TxCompletionType(IntEnum):
    """What a transmit completion reports."""

    MISS = 1
    PACKET = 2
    REINJECTION = 3
    DESCRIPTOR = 4


TX_COMPLETION = Layout(
    "TX completion",
    8,
    queue_id=at(0, 0, 11),
    type=at(0, 11, 3),
    generation=at(0, 15, 1),
    tag_or_head=at(2, 0, 16),
)

#: Interrupt doorbell of the DQO formats (a 32-bit write into BAR 2).
IRQ_DOORBELL = Layout(
    "IRQ doorbell",
    4,
    enable=at(0, 0, 1),
    clear_pending=at(0, 1, 1),
    itr_index=at(0, 3, 2),
    interval=at(0, 5, 12),
)

#: `IRQ_DOORBELL.itr_index` that leaves the interval alone, and the interval's unit in ns.
ITR_NO_UPDATE = 3
ITR_UNIT_NS = 2000

# GQI formats. Fields are whole bytes, so these are records.

#: One buffer of a receive queue: its DMA address, or its byte offset in the queue's page list.
GQI_RX_SLOT = record(("address", ">u8"))

#: One per buffer used; `length` counts the padding before the frame in its first buffer. The sequence number in
#: `flags_seq` is what makes a descriptor valid, so that 64-bit word is stored last.
GQI_RX_DESCRIPTOR = record(
    ("reserved", "u1", (48,)),
    ("hash", ">u4"),
    ("mss", ">u2"),
    ("reserved2", ">u2"),
    ("header_length", "u1"),
    ("header_offset", "u1"),
    ("checksum", ">u2"),
    ("length", ">u2"),
    ("flags_seq", ">u2"),
)

#: Bytes that the device leaves free before a frame, so that its IP header is aligned.
GQI_RX_PAD = 2
#: Sequence numbers run from 1 to this and start again at 1; 0 is a descriptor not written yet.
GQI_SEQUENCE = 7


class GqiRxFlag(IntFlag):
    """Flags beside the sequence number in `GQI_RX_DESCRIPTOR.flags_seq`."""

    FRAGMENT = 1 << 6
    IPV4 = 1 << 7
    IPV6 = 1 << 8
    TCP = 1 << 9
    UDP = 1 << 10
    ERROR = 1 << 11
    #: More buffers of this packet follow.
    CONTINUES = 1 << 13


class GqiTxType(IntEnum):
    """Upper four bits of a transmit descriptor's first byte."""

    STANDARD = 0
    TSO = 1
    SEGMENT = 2
    METADATA = 3


#: First descriptor of a packet. Offsets count in units of two bytes: the L4 header from the start of the frame, the
#: checksum from the L4 header. Bit 0 of `type_flags` asks for the L4 checksum.
GQI_TX_PACKET = record(
    ("type_flags", "u1"),
    ("l4_checksum_offset", "u1"),
    ("l4_header_offset", "u1"),
    ("descriptors", "u1"),
    ("length", ">u2"),
    ("segment_length", ">u2"),
    ("segment_address", ">u8"),
)

#: Further pieces of a packet. `mss` and the offset of the L3 header, in units of two bytes, matter for TSO only.
GQI_TX_SEGMENT = record(
    ("type_flags", "u1"),
    ("l3_offset", "u1"),
    ("reserved", ">u2"),
    ("mss", ">u2"),
    ("segment_length", ">u2"),
    ("segment_address", ">u8"),
)


class GqiIrqDoorbell(IntFlag):
    """Interrupt doorbell of the GQI formats, a big-endian 32-bit write."""

    ACK = 1 << 31
    MASK = 1 << 30
    EVENT = 1 << 29
