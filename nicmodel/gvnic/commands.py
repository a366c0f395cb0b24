"""The admin queue's structures, all big-endian: commands, what they point at, status codes, device options.

Source: Linux drivers/net/ethernet/google/gve/gve_adminq.h.
"""

from __future__ import annotations

from enum import IntEnum, IntFlag

import numpy as np

from nicmodel.gvnic.layout import record


class Opcode(IntEnum):
    """Admin commands."""

    DESCRIBE_DEVICE = 0x1
    CONFIGURE_DEVICE_RESOURCES = 0x2
    REGISTER_PAGE_LIST = 0x3
    UNREGISTER_PAGE_LIST = 0x4
    CREATE_TX_QUEUE = 0x5
    CREATE_RX_QUEUE = 0x6
    DESTROY_TX_QUEUE = 0x7
    DESTROY_RX_QUEUE = 0x8
    DECONFIGURE_DEVICE_RESOURCES = 0x9
    CONFIGURE_RSS = 0xA
    SET_DRIVER_PARAMETER = 0xB
    REPORT_STATS = 0xC
    REPORT_LINK_SPEED = 0xD
    GET_PTYPE_MAP = 0xE
    VERIFY_DRIVER_COMPATIBILITY = 0xF
    QUERY_FLOW_RULES = 0x10
    REPORT_NIC_TIMESTAMP = 0x11
    QUERY_RSS = 0x12
    EXTENDED_COMMAND = 0xFF


class Inner(IntEnum):
    """Commands carried by `Opcode.EXTENDED_COMMAND`."""

    CONFIGURE_FLOW_RULE = 0x101
    # Of this model's own options (docs/options.md).
    CONFIGURE_DEFERRED_PLACEMENT = 0x8001
    FLUSH_RX_QUEUE = 0x8002
    CONFIGURE_BUFFER_OWNERS = 0x8003
    # Of this model only, far from what a real device may come to use (docs/ddp.md).
    CONFIGURE_DDP = 0x8004


class Status(IntEnum):
    """What the device writes into a command's status word."""

    UNSET = 0x0
    PASSED = 0x1
    ABORTED = 0xFFFFFFF0
    ALREADY_EXISTS = 0xFFFFFFF1
    CANCELLED = 0xFFFFFFF2
    DATALOSS = 0xFFFFFFF3
    DEADLINE_EXCEEDED = 0xFFFFFFF4
    FAILED_PRECONDITION = 0xFFFFFFF5
    INTERNAL_ERROR = 0xFFFFFFF6
    INVALID_ARGUMENT = 0xFFFFFFF7
    NOT_FOUND = 0xFFFFFFF8
    OUT_OF_RANGE = 0xFFFFFFF9
    PERMISSION_DENIED = 0xFFFFFFFA
    UNAUTHENTICATED = 0xFFFFFFFB
    RESOURCE_EXHAUSTED = 0xFFFFFFFC
    UNAVAILABLE = 0xFFFFFFFD
    UNIMPLEMENTED = 0xFFFFFFFE
    UNKNOWN_ERROR = 0xFFFFFFFF


class QueueFormat(IntEnum):
    """Queue formats as CONFIGURE_DEVICE_RESOURCES names them."""

    UNSPECIFIED = 0
    GQI_RDA = 1
    GQI_QPL = 2
    DQO_RDA = 3
    DQO_QPL = 4


#: One slot of the admin queue, and the header that every command starts with.
SLOT_SIZE = 64
HEADER = record(("opcode", ">u4"), ("status", ">u4"))

DESCRIBE_DEVICE = record(("descriptor_address", ">u8"), ("version", ">u4"), ("available_length", ">u4"))
CONFIGURE_DEVICE_RESOURCES = record(
    ("counter_array", ">u8"),
    ("irq_doorbell_address", ">u8"),
    ("num_counters", ">u4"),
    ("num_irq_doorbells", ">u4"),
    ("irq_doorbell_stride", ">u4"),
    ("msix_base_index", ">u4"),
    ("queue_format", "u1"),
)
REGISTER_PAGE_LIST = record(
    ("page_list_id", ">u4"), ("num_pages", ">u4"), ("list_address", ">u8"), ("page_size", ">u8")
)  # fmt: skip
UNREGISTER_PAGE_LIST = record(("page_list_id", ">u4"))
CREATE_TX_QUEUE = record(
    ("queue_id", ">u4"),
    ("reserved", ">u4"),
    ("queue_resources_address", ">u8"),
    ("ring_address", ">u8"),
    ("page_list_id", ">u4"),
    ("notification_block", ">u4"),
    ("completion_ring_address", ">u8"),
    ("ring_entries", ">u2"),
    ("completion_ring_entries", ">u2"),
)
CREATE_RX_QUEUE = record(
    ("queue_id", ">u4"),
    ("index", ">u4"),
    ("reserved", ">u4"),
    ("notification_block", ">u4"),
    ("queue_resources_address", ">u8"),
    ("completion_ring_address", ">u8"),
    ("buffer_ring_address", ">u8"),
    ("page_list_id", ">u4"),
    ("completion_ring_entries", ">u2"),
    ("packet_buffer_size", ">u2"),
    ("buffer_ring_entries", ">u2"),
    ("enable_rsc", "u1"),
    ("padding", "u1"),
    ("header_buffer_size", ">u2"),
)
#: `page_list_id` of a queue whose addresses are DMA addresses.
NO_PAGE_LIST = 0xFFFFFFFF
DESTROY_QUEUE = record(("queue_id", ">u4"))
DECONFIGURE_DEVICE_RESOURCES = record()
CONFIGURE_RSS = record(
    ("hash_types", ">u2"),
    ("hash_algorithm", "u1"),
    ("reserved", "u1"),
    ("key_size", ">u2"),
    ("lut_size", ">u2"),
    ("key_address", ">u8"),
    ("lut_address", ">u8"),
)
SET_DRIVER_PARAMETER = record(("type", ">u4"), ("reserved", ">u4"), ("value", ">u8"))
REPORT_STATS = record(("length", ">u8"), ("address", ">u8"), ("interval_ms", ">u8"))
REPORT_LINK_SPEED = record(("address", ">u8"))
GET_PTYPE_MAP = record(("length", ">u8"), ("address", ">u8"))
VERIFY_DRIVER_COMPATIBILITY = record(("length", ">u8"), ("address", ">u8"))
QUERY_FLOW_RULES = record(
    ("query", ">u2"), ("padding", ">u2"), ("starting_rule_id", ">u4"), ("available_length", ">u8"), ("address", ">u8")
)  # fmt: skip
REPORT_NIC_TIMESTAMP = record(("length", ">u8"), ("address", ">u8"))
QUERY_RSS = record(("available_length", ">u8"), ("address", ">u8"))
EXTENDED_COMMAND = record(("inner_opcode", ">u4"), ("inner_length", ">u4"), ("inner_address", ">u8"))

#: The payload of each command, from byte 8 of its slot.
PAYLOADS = {
    Opcode.DESCRIBE_DEVICE: DESCRIBE_DEVICE,
    Opcode.CONFIGURE_DEVICE_RESOURCES: CONFIGURE_DEVICE_RESOURCES,
    Opcode.REGISTER_PAGE_LIST: REGISTER_PAGE_LIST,
    Opcode.UNREGISTER_PAGE_LIST: UNREGISTER_PAGE_LIST,
    Opcode.CREATE_TX_QUEUE: CREATE_TX_QUEUE,
    Opcode.CREATE_RX_QUEUE: CREATE_RX_QUEUE,
    Opcode.DESTROY_TX_QUEUE: DESTROY_QUEUE,
    Opcode.DESTROY_RX_QUEUE: DESTROY_QUEUE,
    Opcode.DECONFIGURE_DEVICE_RESOURCES: DECONFIGURE_DEVICE_RESOURCES,
    Opcode.CONFIGURE_RSS: CONFIGURE_RSS,
    Opcode.SET_DRIVER_PARAMETER: SET_DRIVER_PARAMETER,
    Opcode.REPORT_STATS: REPORT_STATS,
    Opcode.REPORT_LINK_SPEED: REPORT_LINK_SPEED,
    Opcode.GET_PTYPE_MAP: GET_PTYPE_MAP,
    Opcode.VERIFY_DRIVER_COMPATIBILITY: VERIFY_DRIVER_COMPATIBILITY,
    Opcode.QUERY_FLOW_RULES: QUERY_FLOW_RULES,
    Opcode.REPORT_NIC_TIMESTAMP: REPORT_NIC_TIMESTAMP,
    Opcode.QUERY_RSS: QUERY_RSS,
    Opcode.EXTENDED_COMMAND: EXTENDED_COMMAND,
}

# What commands point at.

DESCRIPTOR_VERSION = 1
DEVICE_DESCRIPTOR = record(
    ("max_registered_pages", ">u8"),
    ("reserved1", ">u2"),
    ("tx_queue_entries", ">u2"),
    ("rx_queue_entries", ">u2"),
    ("default_num_queues", ">u2"),
    ("mtu", ">u2"),
    ("counters", ">u2"),
    ("tx_pages_per_qpl", ">u2"),
    ("rx_pages_per_qpl", ">u2"),
    ("mac", "u1", (6,)),
    ("num_device_options", ">u2"),
    ("total_length", ">u2"),
    ("reserved2", "u1", (6,)),
)


class OptionId(IntEnum):
    """Device options that follow the device descriptor."""

    GQI_RAW_ADDRESSING = 0x1
    GQI_RDA = 0x2
    GQI_QPL = 0x3
    DQO_RDA = 0x4
    MODIFY_RING = 0x6
    DQO_QPL = 0x7
    JUMBO_FRAMES = 0x8
    BUFFER_SIZES = 0xA
    FLOW_STEERING = 0xB
    NIC_TIMESTAMP = 0xD
    RSS_CONFIG = 0xE
    # Of this model only, far from what a real device may come to use (docs/options.md).
    DEFERRED_PLACEMENT = 0x8001
    QUEUE_FLUSH = 0x8002
    BUFFER_OWNERS = 0x8003
    # Of this model only, far from what a real device may come to use (docs/ddp.md).
    DDP = 0x8004


class Feature(IntFlag):
    """Bits of the supported-features mask of a queue-format option: only what is set there takes effect."""

    MODIFY_RING = 1 << 0
    JUMBO_FRAMES = 1 << 2
    BUFFER_SIZES = 1 << 4
    FLOW_STEERING = 1 << 5
    RSS_CONFIG = 1 << 7
    NIC_TIMESTAMP = 1 << 8


OPTION_HEADER = record(("id", ">u2"), ("length", ">u2"), ("required_features", ">u4"))
#: The last two fields of the DQO-RDA option are the queue sizes of older drivers (Linux up to 6.7, DPDK of 2023).
OPTION_DQO_RDA = record(("supported", ">u4"), ("tx_completion_entries", ">u2"), ("rx_buffer_entries", ">u2"))
OPTION_DQO_QPL = record(("supported", ">u4"), ("tx_pages_per_qpl", ">u2"), ("rx_pages_per_qpl", ">u2"))
OPTION_GQI = record(("supported", ">u4"))
OPTION_MODIFY_RING = record(
    ("supported", ">u4"), ("max_rx", ">u2"), ("max_tx", ">u2"), ("min_rx", ">u2"), ("min_tx", ">u2")
)  # fmt: skip
OPTION_JUMBO_FRAMES = record(("supported", ">u4"), ("max_mtu", ">u2"), ("padding", ">u2"))
OPTION_BUFFER_SIZES = record(("supported", ">u4"), ("packet_buffer_size", ">u2"), ("header_buffer_size", ">u2"))
OPTION_FLOW_STEERING = record(("supported", ">u4"), ("reserved", ">u4"), ("max_flow_rules", ">u4"))
OPTION_NIC_TIMESTAMP = record(("supported", ">u4"))
OPTION_RSS_CONFIG = record(("supported", ">u4"), ("key_size", ">u2"), ("lut_size", ">u2"))
#: Bytes of payload that the NIC keeps, for all queues and for each; bytes of the pages it keeps it in; how long.
OPTION_DEFERRED_PLACEMENT = record(
    ("supported", ">u4"), ("device_bytes", ">u4"), ("queue_bytes", ">u4"), ("page_size", ">u4"), ("timeout_us", ">u4")
)  # fmt: skip
OPTION_QUEUE_FLUSH = record(("supported", ">u4"))
#: The largest number of owners of a queue's buffers, and how many buffers the NIC sorts by owner ahead of need.
OPTION_BUFFER_OWNERS = record(("supported", ">u4"), ("owners", ">u4"), ("lookahead", ">u4"))
#: How many flows, and buffers of all flows together, can be there, and of how many pieces a buffer may consist.
OPTION_DDP = record(("supported", ">u4"), ("max_flows", ">u2"), ("max_buffers", ">u2"), ("max_pieces", ">u4"))

#: Each option's form.
OPTIONS = {
    OptionId.GQI_RAW_ADDRESSING: OPTION_GQI,
    OptionId.GQI_RDA: OPTION_GQI,
    OptionId.GQI_QPL: OPTION_GQI,
    OptionId.DQO_RDA: OPTION_DQO_RDA,
    OptionId.MODIFY_RING: OPTION_MODIFY_RING,
    OptionId.DQO_QPL: OPTION_DQO_QPL,
    OptionId.JUMBO_FRAMES: OPTION_JUMBO_FRAMES,
    OptionId.BUFFER_SIZES: OPTION_BUFFER_SIZES,
    OptionId.FLOW_STEERING: OPTION_FLOW_STEERING,
    OptionId.NIC_TIMESTAMP: OPTION_NIC_TIMESTAMP,
    OptionId.RSS_CONFIG: OPTION_RSS_CONFIG,
    OptionId.DEFERRED_PLACEMENT: OPTION_DEFERRED_PLACEMENT,
    OptionId.QUEUE_FLUSH: OPTION_QUEUE_FLUSH,
    OptionId.BUFFER_OWNERS: OPTION_BUFFER_OWNERS,
    OptionId.DDP: OPTION_DDP,
}

#: What the device writes to a queue's resources when it is created: dword index into BAR 2, index of its counter.
QUEUE_RESOURCES = record(("doorbell_index", ">u4"), ("counter_index", ">u4"))


class OsType(IntEnum):
    """`DRIVER_INFO.os_type`.

    What is known of drivers by it: DPDK reverses the words of IPv6 addresses in flow rules (`FlowRules.add`), and takes
    every receive completion for a packet of its own (drivers/net/gve/gve_rx_dqo.c, gve_rx_burst_dqo), so that its
    buffers have to hold the MTU.
    """

    LINUX = 1
    WINDOWS = 2
    FREEBSD = 3
    DPDK = 5


DRIVER_INFO = record(
    ("os_type", "u1"),
    ("driver_major", "u1"),
    ("driver_minor", "u1"),
    ("driver_sub", "u1"),
    ("os_major", ">u4"),
    ("os_minor", ">u4"),
    ("os_sub", ">u4"),
    ("capabilities", ">u8", (4,)),
    ("os_version", "S128"),
    ("os_build", "S128"),
)


class L3Type(IntEnum):
    """`PTYPE.l3`."""

    UNKNOWN = 0
    OTHER = 1
    IPV4 = 2
    IPV6 = 3


class L4Type(IntEnum):
    """`PTYPE.l4`."""

    UNKNOWN = 0
    OTHER = 1
    TCP = 2
    UDP = 3
    ICMP = 4
    SCTP = 5


PTYPE_COUNT = 1024
PTYPE = record(("l3", "u1"), ("l4", "u1"))

NIC_TIMESTAMP = record(("nic_ns", ">u8"), ("reserved", ">u8", (4,)))


class RssHashType(IntFlag):
    """`CONFIGURE_RSS.hash_types`."""

    NONE = 0
    IPV4 = 1 << 0
    TCPV4 = 1 << 1
    IPV6 = 1 << 2
    IPV6_EX = 1 << 3
    TCPV6 = 1 << 4
    TCPV6_EX = 1 << 5
    UDPV4 = 1 << 6
    UDPV6 = 1 << 7
    UDPV6_EX = 1 << 8


RSS_HASH_TOEPLITZ = 1
RSS_KEY_SIZE = 40
RSS_LUT_SIZE = 128


def switches_rss_off(p: np.void) -> bool:
    """Whether a CONFIGURE_RSS has sizes and nothing else, by which Google's Windows driver switches RSS off."""
    sizes = p["key_size"] or p["lut_size"]
    return bool(sizes and not (p["hash_algorithm"] or p["hash_types"] or p["key_address"] or p["lut_address"]))


QUERY_RSS_HEADER = record(
    ("total_length", ">u4"), ("hash_types", ">u2"), ("hash_algorithm", "u1"), ("reserved", "u1")
)  # fmt: skip

DRIVER_PARAMETER_MTU = 1


class FlowQuery(IntEnum):
    """`QUERY_FLOW_RULES.query`."""

    RULES = 0
    IDS = 1
    STATS = 2


class FlowOperation(IntEnum):
    """`CONFIGURE_FLOW_RULE.operation`."""

    ADD = 0
    DELETE = 1
    RESET = 2


class RuleFlowType(IntEnum):
    """`FLOW_RULE.flow_type`."""

    TCPV4 = 0
    UDPV4 = 1
    SCTPV4 = 2
    AHV4 = 3
    ESPV4 = 4
    TCPV6 = 5
    UDPV6 = 6
    SCTPV6 = 7
    AHV6 = 8
    ESPV6 = 9


#: One half of a rule: what to compare, or which bits of it. `ports` holds two ports, or the SPI of AH and ESP. `owner`
#: is nothing to compare: in the key it says whose buffers of the queue the flow's payload goes to (an option of this
#: model, where the real device has padding).
FLOW_SPEC = record(
    ("source", "u1", (16,)), ("destination", "u1", (16,)), ("ports", "u1", (4,)), ("tos", "u1"), ("owner", "u1"),
    ("padding", "u1", (2,)),
)  # fmt: skip
FLOW_RULE = record(("flow_type", ">u2"), ("queue", ">u2"), ("key", FLOW_SPEC), ("mask", FLOW_SPEC))
CONFIGURE_FLOW_RULE = record(("operation", ">u2"), ("padding", ">u2"), ("rule", FLOW_RULE), ("location", ">u4"))
QUERY_FLOW_RULES_HEADER = record(
    ("num_flow_rules", ">u4"), ("max_flow_rules", ">u4"), ("num_queried", ">u4"), ("total_length", ">u4")
)  # fmt: skip
QUERIED_RULE = record(("location", ">u4"), ("rule", FLOW_RULE))


class DeferFlag(IntFlag):
    """`CONFIGURE_DEFERRED_PLACEMENT.flags`."""

    #: The queue's data buffers are not to be written: a packet that the NIC has no room for is dropped.
    HEADERS_ONLY = 1 << 0


#: Placement ring and completion ring have as many `entries`; the device writes `QUEUE_RESOURCES` for the former.
CONFIGURE_DEFERRED_PLACEMENT = record(
    ("queue_id", ">u4"),
    ("flags", ">u4"),
    ("queue_resources_address", ">u8"),
    ("request_ring_address", ">u8"),
    ("completion_ring_address", ">u8"),
    ("entries", ">u4"),
    ("padding", ">u4"),
)
#: `owner` whose buffers come back, of a queue with several; else, and for those of all of them, `ALL_OWNERS`.
FLUSH_RX_QUEUE = record(("queue_id", ">u4"), ("owner", ">u4"))
ALL_OWNERS = 0xFFFFFFFF
#: From now on the buffers of the queue have `owners` owners.
CONFIGURE_BUFFER_OWNERS = record(("queue_id", ">u4"), ("owners", ">u4"))


class DdpOperation(IntEnum):
    """`CONFIGURE_DDP.operation`."""

    #: Follow a TCP flow of IPv4 (by `ADD_FLOW6` of IPv6) as `flow`: a PDU begins at `sequence`; `digests` are in use.
    ADD_FLOW4 = 0
    ADD_FLOW6 = 1
    #: Forget the flow and its buffers.
    DELETE_FLOW = 2
    #: The data of `command` of `flow` goes to a buffer of `count` pieces.
    SET_UP = 3
    #: It does so no longer: nothing is written there once this is done.
    TEAR_DOWN = 4
    #: A PDU of `flow` begins at `sequence`: the answer to a request for resynchronisation.
    RESYNC = 5


class DdpDigest(IntFlag):
    """`CONFIGURE_DDP.digests`: as in an initialisation response of NVMe/TCP."""

    HEADER = 1
    DATA = 2


#: `address` is that of `count` `DDP_PIECE`s. Which fields count depends on the operation (`DdpOperation`). Addresses of
#: IPv4 are in the first four bytes; the source is the sender, so the controller.
CONFIGURE_DDP = record(
    ("operation", "u1"),
    ("digests", "u1"),
    ("flow", ">u2"),
    ("command", ">u2"),
    ("count", ">u2"),
    ("sequence", ">u4"),
    ("source", "u1", (16,)),
    ("destination", "u1", (16,)),
    ("source_port", ">u2"),
    ("destination_port", ">u2"),
    ("address", ">u8"),
)
#: One piece of a buffer: guest address and bytes.
DDP_PIECE = record(("address", ">u8"), ("length", ">u8"))


class Stat(IntEnum):
    """Names in the statistics region that the device writes."""

    RX_QUEUE_DROP_COUNT = 65
    RX_NO_BUFFERS_POSTED = 66
    RX_DROPS_PACKET_OVER_MRU = 67
    RX_DROPS_INVALID_CHECKSUM = 68


#: The statistics region: a count of updates, then `STATS_ENTRY`s: 6 per TX and 2 per RX queue by the driver, 4 per RX
#: queue by the device.
STATS_ENTRY = record(("name", ">u4"), ("queue_id", ">u4"), ("value", ">u8"))
STATS_HEADER_SIZE = 8
STATS_DRIVER_TX = 6
STATS_DRIVER_RX = 2
STATS_DEVICE_RX = 4
