"""Descriptors: those of the mailbox, and those of queues in the split queue model. All little-endian.

Sources: Linux include/linux/net/intel/libie/controlq.h, include/linux/net/intel/virtchnl2_lan_desc.h,
drivers/net/ethernet/intel/idpf/idpf_lan_txrx.h.
"""

from __future__ import annotations

from enum import IntEnum

from nicmodel.nic.layout import Layout, at

#: Both queues of the mailbox.
MAILBOX = Layout(
    "mailbox",
    32,
    done=at(0, 0, 1),
    complete=at(0, 1, 1),
    error=at(0, 2, 1),
    read=at(1, 2, 1),
    buffer=at(1, 4, 1),
    host_id=at(1, 5, 3),
    opcode=at(2, 0, 16),
    length=at(4, 0, 16),
    function=at(6, 0, 16),
    message=at(8, 0, 28),
    descriptor_type=at(8, 28, 4),
    status=at(12, 0, 32),
    parameter=at(16, 0, 32),
    cookie=at(20, 0, 16),
    message_flags=at(22, 0, 16),
    address_high=at(24, 0, 32),
    address_low=at(28, 0, 32),
)
#: `MAILBOX.length` at most: the size of the driver's buffers.
MAILBOX_BUFFER = 4096


class MailboxOpcode(IntEnum):
    """`MAILBOX.opcode`."""

    SEND_TO_CONTROL_PLANE = 0x0801
    SEND_TO_PEER = 0x0804


#: Buffer queue: an empty buffer on its way from driver to device.
RX_BUFFER = Layout(
    "RX buffer",
    32,
    buffer_id=at(0, 0, 16),
    buffer_address=at(8, 0, 64),
    header_address=at(16, 0, 64),
)

#: Receive queue: one for each buffer used (virtchnl2_rx_flex_desc_adv_nic_3). `buffer_queue` says of which of the two
#: buffer queues it was.
RX_COMPLETION = Layout(
    "RX completion",
    32,
    rxdid=at(0, 0, 4),
    cast=at(0, 6, 2),
    loopback=at(1, 0, 1),
    ipv6_ex_add=at(1, 1, 1),
    rx_error=at(1, 2, 1),
    crc_present=at(1, 3, 1),
    rss_valid=at(1, 4, 1),
    packet_type=at(2, 0, 10),
    ip_header_error=at(2, 10, 1),
    udp_length_error=at(2, 11, 1),
    raw_checksum_invalid=at(2, 12, 1),
    packet_length=at(4, 0, 14),
    generation=at(4, 14, 1),
    buffer_queue=at(4, 15, 1),
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
    timestamp_valid=at(11, 0, 1),
    buffer_id=at(12, 0, 16),
    rsc_segment_length=at(14, 0, 16),
    hash=at(16, 0, 32),
    timestamp=at(28, 0, 32),
)
#: The only value of `RX_COMPLETION.rxdid` that drivers of the split model accept (VIRTCHNL2_RXDID_2_FLEX_SPLITQ).
RXDID = 2

#: Largest value of the length fields, rounded down as drivers' buffers are.
MAX_BUFFER = 16256


class TxType(IntEnum):
    """Type of a transmit descriptor (`dtype`)."""

    CONTEXT = 0x1
    TSO_CONTEXT = 0x5
    #: Data on a queue in queue scheduling mode.
    QUEUE_DATA = 0x7
    #: Data on a queue in flow scheduling mode.
    FLOW_DATA = 0xC


#: Flow scheduling mode (idpf_flex_tx_sched_desc).
TX_FLOW_DATA = Layout(
    "TX data, flow scheduling",
    16,
    buffer_address=at(0, 0, 64),
    dtype=at(8, 0, 5),
    end_of_packet=at(8, 5, 1),
    checksum=at(8, 6, 1),
    report_event=at(8, 7, 1),
    timestamp=at(9, 0, 23),
    timestamp_overflow=at(11, 7, 1),
    completion_tag=at(12, 0, 16),
    buffer_size=at(14, 0, 14),
)

#: Queue scheduling mode (idpf_flex_tx_desc), which XDP's queues are in.
TX_QUEUE_DATA = Layout(
    "TX data, queue scheduling",
    16,
    buffer_address=at(0, 0, 64),
    dtype=at(8, 0, 5),
    end_of_packet=at(8, 5, 1),
    report_status=at(8, 6, 1),
    report_event=at(8, 7, 1),
    insert_tag1=at(9, 0, 1),
    checksum=at(9, 2, 1),
    tag1=at(10, 0, 16),
    tag2=at(12, 0, 16),
    buffer_size=at(14, 0, 14),
)

TX_TSO_CONTEXT = Layout(
    "TX TSO context",
    16,
    total_length=at(0, 0, 18),
    mss=at(4, 0, 14),
    header_length=at(6, 0, 8),
    dtype=at(8, 0, 5),
    tso=at(8, 5, 1),
    flex=at(10, 0, 48),
)


#: What a packet is to have besides, before its data (idpf_flex_tx_ctx_desc, tsyn): its stamp put into a latch.
TX_CONTEXT = Layout(
    "TX context",
    16,
    dtype=at(8, 0, 4),
    timestamp=at(8, 5, 1),
    latch=at(11, 6, 18),
)


class TxCompletionType(IntEnum):
    """What a transmit completion reports."""

    TIMER = 0
    MISS = 1
    PACKET = 2
    REINJECTION = 3
    DESCRIPTOR = 4
    #: The queue was disabled, and this is the last that comes of it.
    MARKER = 5


#: Completion queue. In queue scheduling mode a completion is the first four bytes of this. `value` is a packet's tag,
#: or the ring's place behind the descriptor that asked.
TX_COMPLETION = Layout(
    "TX completion",
    8,
    queue_id=at(0, 0, 11),
    type=at(0, 11, 3),
    generation=at(0, 15, 1),
    value=at(2, 0, 16),
)
QUEUE_COMPLETION_SIZE = 4
