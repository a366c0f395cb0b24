"""The messages of the mailbox (virtchnl2), little-endian: numbers, payloads, results.

A member of `Op` is a number and a name, and declares what its payload is: the device, the driver in Python and the
trace take it from there. Replies have the same form as requests, unless `Message.reply` says otherwise.

Source: Linux include/linux/net/intel/virtchnl2.h; results: OASIS idpf, Control Plane.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum, IntFlag
from typing import Any, Self

import numpy as np

from nicmodel.nic.layout import record

Type = np.dtype[np.void]


class Result(IntEnum):
    """What a reply says of the message; the driver takes all but the first for failures."""

    OK = 0
    NOT_PERMITTED = 1
    UNKNOWN_MESSAGE = 3
    IO_ERROR = 5
    NO_SUCH_QUEUE = 6
    BUSY = 16
    EXISTS = 17
    INVALID = 22
    NO_SPACE = 28
    OUT_OF_RANGE = 34
    BAD_SEQUENCE = 201


class MessageError(Exception):
    """A message that cannot be done: its result, and why for the log."""

    def __init__(self, result: Result, reason: str) -> None:
        super().__init__(reason)
        self.result = result


def require(condition: bool, result: Result, reason: str) -> None:
    """See that a condition of a message holds.

    Raises:
        MessageError: it does not.
    """
    if not condition:
        raise MessageError(result, reason)


class Checksum(IntFlag):
    """`CAPABILITIES.csum_caps`."""

    TX_IPV4 = 1 << 0
    TX_TCPV4 = 1 << 1
    TX_UDPV4 = 1 << 2
    TX_TCPV6 = 1 << 4
    TX_UDPV6 = 1 << 5
    RX_IPV4 = 1 << 8
    RX_TCPV4 = 1 << 9
    RX_UDPV4 = 1 << 10
    RX_TCPV6 = 1 << 12
    RX_UDPV6 = 1 << 13


class Segmentation(IntFlag):
    """`CAPABILITIES.seg_caps`."""

    TCPV4 = 1 << 0
    UDPV4 = 1 << 1
    TCPV6 = 1 << 3
    UDPV6 = 1 << 4


class HeaderSplit(IntFlag):
    """`CAPABILITIES.hsplit_caps`, and `CREATE_VPORT.rx_split_pos`: behind which header frames are split."""

    L4V4 = 1 << 2
    L4V6 = 1 << 3


class Coalescing(IntFlag):
    """`CAPABILITIES.rsc_caps`."""

    TCPV4 = 1 << 0
    TCPV6 = 1 << 2


class Flow(IntFlag):
    """`CAPABILITIES.rss_caps`: of which flows there are hashes; `CREATE_VPORT.sideband_flow_caps`: and rules."""

    TCPV4 = 1 << 0
    UDPV4 = 1 << 1
    SCTPV4 = 1 << 2
    IPV4 = 1 << 3
    TCPV6 = 1 << 4
    UDPV6 = 1 << 5
    SCTPV6 = 1 << 6
    IPV6 = 1 << 7


class Other(IntFlag):
    """`CAPABILITIES.other_caps`.

    SPLITQ_QSCHED, bit 4, is not among them, although Linux asks for it: Linux 7.3, granted that, uses refill queues
    that it has not allocated (idpf_txrx.c).
    """

    MAC_FILTER = 1 << 2
    PROMISCUOUS = 1 << 8
    PTP = 1 << 13
    LOOPBACK = 1 << 19
    FLOW_STEERING = 1 << 21


class VportFlag(IntFlag):
    """`CREATE_VPORT.vport_flags`. Linux asks for stamps of what it sends only on an uplink port."""

    UPLINK_PORT = 1 << 0
    FLOW_STEERING = 1 << 3


class Ptp(IntFlag):
    """`PTP_CAPS.caps`: what the driver can do by messages."""

    GET_TIME = 1 << 1
    SET_TIME = 1 << 5
    ADJUST = 1 << 7
    TX_TIMESTAMPS = 1 << 9


class QueueModel(IntEnum):
    """`CREATE_VPORT.txq_model` and `rxq_model`, and `model` of queues."""

    SINGLE = 0
    SPLIT = 1


class QueueType(IntEnum):
    """Each type has identifiers of its own."""

    TX = 0
    RX = 1
    TX_COMPLETION = 2
    RX_BUFFER = 3


class Scheduling(IntEnum):
    """`TX_QUEUE.sched_mode`."""

    QUEUE = 0
    FLOW = 1


class TxFlag(IntFlag):
    """`TX_QUEUE.qflags`. The device sends no miss completions, whether or not they are welcome."""

    MISS_COMPLETIONS = 1 << 0


class RxFlag(IntFlag):
    """`RX_QUEUE.qflags`."""

    RSC = 1 << 0
    HEADER_SPLIT = 1 << 1
    IMMEDIATE_WRITE_BACK = 1 << 2
    DESCRIPTORS_16 = 1 << 3
    DESCRIPTORS_32 = 1 << 4


class EventCode(IntEnum):
    """`EVENT.event`."""

    LINK_CHANGE = 1


class MacType(IntEnum):
    """`MAC_ADDRESS.type`."""

    PRIMARY = 1
    EXTRA = 2


class Promiscuous(IntFlag):
    """`PROMISCUOUS_MODE.flags`."""

    UNICAST = 1 << 0
    MULTICAST = 1 << 1


class Protocol(IntEnum):
    """Protocols of packet types (`PTYPE`) and of rules (`HEADER.type`)."""

    MAC = 2
    IPV4 = 19
    IPV6 = 21
    UDP = 24
    TCP = 25
    ICMP = 27
    PAYLOAD = 34


#: Packet types: entries ``PTYPE``, each followed by `protocols` protocols of 16 bits; one with `LAST_PTYPE` ends them.
PTYPE = record(("id10", "<u2"), ("id8", "u1"), ("protocols", "u1"), ("pad", "<u2"))
LAST_PTYPE = 0xFFFF

VERSION = record(("major", "<u4"), ("minor", "<u4"))
VERSION_MAJOR, VERSION_MINOR = 2, 0

CAPABILITIES = record(
    ("csum_caps", "<u4"),
    ("seg_caps", "<u4"),
    ("hsplit_caps", "<u4"),
    ("rsc_caps", "<u4"),
    ("rss_caps", "<u8"),
    ("other_caps", "<u8"),
    ("mailbox_dyn_ctl", "<u4"),
    ("mailbox_vector_id", "<u2"),
    ("num_allocated_vectors", "<u2"),
    ("max_rx_q", "<u2"),
    ("max_tx_q", "<u2"),
    ("max_rx_bufq", "<u2"),
    ("max_tx_complq", "<u2"),
    ("max_sriov_vfs", "<u2"),
    ("max_vports", "<u2"),
    ("default_num_vports", "<u2"),
    ("max_tx_hdr_size", "<u2"),
    ("max_sg_bufs_per_tx_pkt", "u1"),
    ("pad", "u1", (7,)),
    ("device_type", "<u4"),
    ("min_sso_packet_len", "u1"),
    ("max_hdr_buf_per_lso", "u1"),
    ("num_rdma_allocated_vectors", "<u2"),
    ("pad1", "u1", (8,)),
)

REGISTER_CHUNK = record(
    ("type", "<u4"),
    ("start_queue_id", "<u4"),
    ("num_queues", "<u4"),
    ("pad", "<u4"),
    ("qtail_reg_start", "<u8"),
    ("qtail_reg_spacing", "<u4"),
    ("pad1", "<u4"),
)

CREATE_VPORT = record(
    ("vport_type", "<u2"),
    ("txq_model", "<u2"),
    ("rxq_model", "<u2"),
    ("num_tx_q", "<u2"),
    ("num_tx_complq", "<u2"),
    ("num_rx_q", "<u2"),
    ("num_rx_bufq", "<u2"),
    ("default_rx_q", "<u2"),
    ("vport_index", "<u2"),
    ("max_mtu", "<u2"),
    ("vport_id", "<u4"),
    ("default_mac_addr", "u1", (6,)),
    ("vport_flags", "<u2"),
    ("rx_desc_ids", "<u8"),
    ("tx_desc_ids", "<u8"),
    ("pad", "u1", (48,)),
    ("inline_flow_caps", "<u8"),
    ("sideband_flow_caps", "<u8"),
    ("sideband_flow_actions", "<u4"),
    ("flow_steer_max_rules", "<u4"),
    ("rss_algorithm", "<u4"),
    ("rss_key_size", "<u2"),
    ("rss_lut_size", "<u2"),
    ("rx_split_pos", "<u4"),
    ("pad1", "u1", (20,)),
    ("num_chunks", "<u2"),
    ("pad2", "u1", (6,)),
)

VPORT = record(("vport_id", "<u4"), ("pad", "<u4"))

TX_QUEUE = record(
    ("ring_address", "<u8"),
    ("type", "<u4"),
    ("queue_id", "<u4"),
    ("relative_queue_id", "<u2"),
    ("model", "<u2"),
    ("sched_mode", "<u2"),
    ("qflags", "<u2"),
    ("ring_len", "<u2"),
    ("tx_compl_queue_id", "<u2"),
    ("peer_type", "<u2"),
    ("peer_rx_queue_id", "<u2"),
    ("pad", "u1", (24,)),
)
CONFIG_TX_QUEUES = record(("vport_id", "<u4"), ("num_qinfo", "<u2"), ("pad", "u1", (10,)))

RX_QUEUE = record(
    ("desc_ids", "<u8"),
    ("ring_address", "<u8"),
    ("type", "<u4"),
    ("queue_id", "<u4"),
    ("model", "<u2"),
    ("hdr_buffer_size", "<u2"),
    ("data_buffer_size", "<u4"),
    ("max_pkt_size", "<u4"),
    ("ring_len", "<u2"),
    ("buffer_notif_stride", "u1"),
    ("pad", "u1"),
    ("dma_head_wb_addr", "<u8"),
    ("qflags", "<u2"),
    ("rx_buffer_low_watermark", "<u2"),
    ("rx_bufq1_id", "<u2"),
    ("rx_bufq2_id", "<u2"),
    ("bufq2_ena", "u1"),
    ("pad1", "u1", (31,)),
)
CONFIG_RX_QUEUES = record(("vport_id", "<u4"), ("num_qinfo", "<u2"), ("pad", "u1", (18,)))

ADD_QUEUES = record(
    ("vport_id", "<u4"),
    ("num_tx_q", "<u2"),
    ("num_tx_complq", "<u2"),
    ("num_rx_q", "<u2"),
    ("num_rx_bufq", "<u2"),
    ("pad", "u1", (4,)),
    ("num_chunks", "<u2"),
    ("pad1", "u1", (6,)),
)

QUEUE_CHUNK = record(("type", "<u4"), ("start_queue_id", "<u4"), ("num_queues", "<u4"), ("pad", "<u4"))
QUEUES = record(("vport_id", "<u4"), ("pad", "<u4"), ("num_chunks", "<u2"), ("pad1", "u1", (6,)))

VECTOR_CHUNK = record(
    ("start_vector_id", "<u2"),
    ("start_evv_id", "<u2"),
    ("num_vectors", "<u2"),
    ("pad", "<u2"),
    ("dynctl_reg_start", "<u4"),
    ("dynctl_reg_spacing", "<u4"),
    ("itrn_reg_start", "<u4"),
    ("itrn_reg_spacing", "<u4"),
    ("itrn_index_spacing", "<u4"),
    ("pad1", "<u4"),
)
ALLOC_VECTORS = record(("num_vectors", "<u2"), ("pad", "u1", (14,)), ("num_vchunks", "<u2"), ("pad1", "u1", (14,)))
DEALLOC_VECTORS = record(("num_vchunks", "<u2"), ("pad", "u1", (14,)))

QUEUE_VECTOR = record(
    ("queue_id", "<u4"),
    ("vector_id", "<u2"),
    ("pad", "<u2"),
    ("itr_idx", "<u4"),
    ("queue_type", "<u4"),
    ("pad1", "<u8"),
)
QUEUE_VECTORS = record(("vport_id", "<u4"), ("num_qv_maps", "<u2"), ("pad", "u1", (10,)))

GET_PTYPE_INFO = record(("start_ptype_id", "<u2"), ("num_ptypes", "<u2"), ("pad", "<u4"))
#: Numbers of packet types.
PTYPE_COUNT = 1024

RSS_KEY = record(("vport_id", "<u4"), ("key_len", "<u2"), ("pad", "u1"))
RSS_LUT = record(("vport_id", "<u4"), ("lut_entries_start", "<u2"), ("lut_entries", "<u2"), ("pad", "<u4"))
RSS_HASH = record(("ptype_groups", "<u8"), ("vport_id", "<u4"), ("pad", "<u4"))
RSS_KEY_SIZE, RSS_LUT_SIZE = 40, 128

VPORT_STATS = record(
    ("vport_id", "<u4"),
    ("pad", "<u4"),
    ("rx_bytes", "<u8"),
    ("rx_unicast", "<u8"),
    ("rx_multicast", "<u8"),
    ("rx_broadcast", "<u8"),
    ("rx_discards", "<u8"),
    ("rx_errors", "<u8"),
    ("rx_unknown_protocol", "<u8"),
    ("tx_bytes", "<u8"),
    ("tx_unicast", "<u8"),
    ("tx_multicast", "<u8"),
    ("tx_broadcast", "<u8"),
    ("tx_discards", "<u8"),
    ("tx_errors", "<u8"),
    ("rx_invalid_frame_length", "<u8"),
    ("rx_overflow_drop", "<u8"),
)

EVENT = record(
    ("event", "<u4"), ("link_speed", "<u4"), ("vport_id", "<u4"), ("link_status", "u1"), ("pad", "u1", (3,))
)  # fmt: skip

LOOPBACK = record(("vport_id", "<u4"), ("enable", "u1"), ("pad", "u1", (3,)))
MAC_ADDRESS = record(("address", "u1", (6,)), ("type", "u1"), ("pad", "u1"))
MAC_ADDRESSES = record(("vport_id", "<u4"), ("num_mac_addr", "<u2"), ("pad", "<u2"))
PROMISCUOUS_MODE = record(("vport_id", "<u4"), ("flags", "<u2"), ("pad", "<u2"))

#: The clock. There are no registers by which a driver could reach it directly, and no other mailbox: offsets are 0, and
#: the mailbox is `NO_PEER`.
PTP_CAPS = record(
    ("caps", "<u4"),
    ("max_adj", "<u4"),
    ("base_incval", "<u8"),
    ("peer_mbx_q_id", "<u2"),
    ("peer_id", "u1"),
    ("secondary_mbx", "u1"),
    ("pad", "u1", (4,)),
    ("clock_offsets", "<u4", (6,)),
    ("cross_time_offsets", "<u4", (4,)),
    ("adjust_offsets", "<u4", (10,)),
)
NO_PEER = 0xFFFF
CLOCK_TIME = record(("dev_time_ns", "<u8"), ("pad", "<u8"))
CLOCK_INCREMENT = record(("incval", "<u8"))
CLOCK_DELTA = record(("delta", "<i8"))

#: Stamps of what was sent: each has a latch that it waits in until the driver fetches it.
TX_LATCHES = record(
    ("vport_id", "<u4"), ("num_latches", "<u2"), ("with_time", "u1"), ("pad", "u1"), ("device_time", "<u8")
)  # fmt: skip
TX_LATCH = record(("tstamp", "<u8"), ("index", "u1"), ("valid", "u1"), ("pad", "u1", (6,)))
TX_LATCH_CAPS = record(
    ("vport_id", "<u4"), ("num_latches", "<u2"), ("ns_low_bit", "u1"), ("ns_high_bit", "u1"), ("pad", "<u8")
)  # fmt: skip
TX_LATCH_CAP = record(("offset_low", "<u4"), ("offset_high", "<u4"), ("index", "u1"), ("pad", "u1", (7,)))

#: One protocol header of a rule: the bytes to compare, and which bits of them.
HEADER = record(("type", "<u4"), ("pad", "<u4"), ("spec", "u1", (64,)), ("mask", "u1", (64,)))
MAX_HEADERS, MAX_ACTIONS = 4, 8
ACTION = record(("type", "<u4"), ("value", "<u4"), ("pad", "<u4"))
ACTION_QUEUE = 1 << 2
FLOW_RULE = record(
    ("rule_id", "<u4"),
    ("tunnel_level", "u1"),
    ("pad", "u1", (3,)),
    ("num_headers", "<u4"),
    ("headers", HEADER, (MAX_HEADERS,)),
    ("num_actions", "<u4"),
    ("actions", ACTION, (MAX_ACTIONS,)),
    ("priority", "<u4"),
    ("pad1", "<u8"),
    ("status", "<u4"),
)
FLOW_RULES = record(("vport_id", "<u4"), ("count", "<u4"))


class RuleStatus(IntEnum):
    """`FLOW_RULE.status` of a reply."""

    SUCCESS = 1
    NO_RESOURCE = 2
    EXISTS = 3
    FLOW_TYPE_NOT_SUPPORTED = 5
    KEY_NOT_SUPPORTED = 6
    ACTION_NOT_SUPPORTED = 7
    NOT_ADDED = 10


@dataclass(frozen=True, eq=False)
class Message:
    """What a message is.

    Attributes:
        number: its number.
        head: its payload, or the beginning of it.
        many: what follows, any number of times; None: nothing.
        count: the field of `head` that says how many.
        name: what they are called.
    """

    number: int
    head: Type
    many: np.dtype[Any] | None = None
    count: str = ""
    name: str = ""

    def type(self, count: int) -> Type:
        """The whole payload, with `count` of what follows, which may be none."""
        if self.many is None or count == 0:
            return self.head
        names = self.head.names or ()
        head = [(name, *_field(self.head[name])) for name in names]
        return record(*head, (self.name, *_field(self.many), (count,)))

    def parse(self, payload: bytes) -> np.void:
        """A payload as a record.

        Raises:
            MessageError: it is too short.
        """
        size = self.head.itemsize
        if not size:
            nothing: np.void = np.zeros(1, self.head)[0]
            return nothing
        require(len(payload) >= size, Result.INVALID, f"a payload of {len(payload)} bytes, not of {size}")
        head: np.void = np.frombuffer(payload[:size], self.head)[0]
        if self.many is None:
            return head
        count = int(head[self.count])
        wanted = size + count * self.many.itemsize  # before there is a type of that size, which numpy might not have
        require(len(payload) >= wanted, Result.INVALID, f"a payload of {len(payload)} bytes, not of {wanted}")
        found: np.void = np.frombuffer(payload[:wanted], self.type(count))[0]
        return found

    def several(self, payload: np.void) -> np.ndarray[Any, Any]:
        """What follows the head of a parsed payload; shape (count,)."""
        assert self.many is not None
        if payload.dtype.names and self.name in payload.dtype.names:
            found: np.ndarray[Any, Any] = payload[self.name]
            return found
        return np.zeros(0, self.many)


def _field(form: np.dtype[Any]) -> tuple[Any, ...]:
    """A field's type, and its shape if it is an array."""
    return (form.base, form.shape) if form.subdtype else (form,)


class Op(IntEnum):
    """The messages, each with its declaration, `message`."""

    message: Message

    def __new__(cls, message: Any) -> Self:
        """A member, by its `Message`. Type checkers take a look-up by number for a call of this, hence Any."""
        member = int.__new__(cls, message.number)
        member._value_, member.message = message.number, message
        return member

    VERSION = Message(1, VERSION)
    GET_CAPS = Message(500, CAPABILITIES)
    CREATE_VPORT = Message(501, CREATE_VPORT)
    DESTROY_VPORT = Message(502, VPORT)
    ENABLE_VPORT = Message(503, VPORT)
    DISABLE_VPORT = Message(504, VPORT)
    CONFIG_TX_QUEUES = Message(505, CONFIG_TX_QUEUES, TX_QUEUE, "num_qinfo", "queues")
    CONFIG_RX_QUEUES = Message(506, CONFIG_RX_QUEUES, RX_QUEUE, "num_qinfo", "queues")
    ENABLE_QUEUES = Message(507, QUEUES, QUEUE_CHUNK, "num_chunks", "chunks")
    DISABLE_QUEUES = Message(508, QUEUES, QUEUE_CHUNK, "num_chunks", "chunks")
    ADD_QUEUES = Message(509, ADD_QUEUES)
    DEL_QUEUES = Message(510, QUEUES, QUEUE_CHUNK, "num_chunks", "chunks")
    MAP_QUEUE_VECTOR = Message(511, QUEUE_VECTORS, QUEUE_VECTOR, "num_qv_maps", "maps")
    UNMAP_QUEUE_VECTOR = Message(512, QUEUE_VECTORS, QUEUE_VECTOR, "num_qv_maps", "maps")
    GET_RSS_KEY = Message(513, RSS_KEY)
    SET_RSS_KEY = Message(514, RSS_KEY, np.dtype("u1"), "key_len", "key")
    GET_RSS_LUT = Message(515, RSS_LUT)
    SET_RSS_LUT = Message(516, RSS_LUT, np.dtype("<u4"), "lut_entries", "table")
    GET_RSS_HASH = Message(517, RSS_HASH)
    SET_RSS_HASH = Message(518, RSS_HASH)
    ALLOC_VECTORS = Message(520, ALLOC_VECTORS)
    DEALLOC_VECTORS = Message(521, DEALLOC_VECTORS, VECTOR_CHUNK, "num_vchunks", "chunks")
    EVENT = Message(522, EVENT)
    GET_STATS = Message(523, VPORT_STATS)
    RESET_VF = Message(524, record())
    GET_PTYPE_INFO = Message(526, GET_PTYPE_INFO)
    LOOPBACK = Message(534, LOOPBACK)
    ADD_MAC_ADDR = Message(535, MAC_ADDRESSES, MAC_ADDRESS, "num_mac_addr", "addresses")
    DEL_MAC_ADDR = Message(536, MAC_ADDRESSES, MAC_ADDRESS, "num_mac_addr", "addresses")
    CONFIG_PROMISCUOUS_MODE = Message(537, PROMISCUOUS_MODE)
    PTP_GET_CAPS = Message(541, PTP_CAPS)
    PTP_GET_VPORT_TX_TSTAMP = Message(542, TX_LATCHES, TX_LATCH, "num_latches", "latches")
    PTP_GET_DEV_CLK_TIME = Message(543, CLOCK_TIME)
    PTP_SET_DEV_CLK_TIME = Message(545, CLOCK_TIME)
    PTP_ADJ_DEV_CLK_FINE = Message(546, CLOCK_INCREMENT)
    PTP_ADJ_DEV_CLK_TIME = Message(547, CLOCK_DELTA)
    PTP_GET_VPORT_TX_TSTAMP_CAPS = Message(548, TX_LATCH_CAPS)
    ADD_FLOW_RULE = Message(551, FLOW_RULES, FLOW_RULE, "count", "rules")
    DEL_FLOW_RULE = Message(553, FLOW_RULES, FLOW_RULE, "count", "rules")
