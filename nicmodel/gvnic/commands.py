"""The admin queue's structures, all big-endian: status codes, what commands point at, device options, commands.

A member of `Opcode`, `Inner` or `OptionId` is a number and a name, and declares all that a command or an option means:
the device, the driver in Python, the trace, the checker and the datasheet take it from there. Those of this model's own
options are declared in the options' folders.

Source: Linux drivers/net/ethernet/google/gve/gve_adminq.h.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import IntEnum, IntFlag
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from nicmodel.gvnic.declare import RESOURCES, Command, Memory, Option, Queue, Ring
from nicmodel.gvnic.descriptors import (
    GQI_RX_DESCRIPTOR,
    GQI_RX_SLOT,
    GQI_TX_PACKET,
    RX_BUFFER,
    RX_COMPLETION,
    TX_COMPLETION,
    TX_PACKET,
)
from nicmodel.gvnic.options.ddp import declarations as ddp
from nicmodel.gvnic.options.deferred import declarations as deferred
from nicmodel.gvnic.options.flush import declarations as flush
from nicmodel.gvnic.options.owners import declarations as owners
from nicmodel.nic.layout import record
from nicmodel.vfio_user.dma import READABLE, WRITABLE

if TYPE_CHECKING:
    from nicmodel.gvnic.profile import Profile


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

#: `page_list_id` of a queue whose addresses are DMA addresses.
NO_PAGE_LIST = 0xFFFFFFFF
DESCRIPTOR_VERSION = 1
DEVICE_DESCRIPTOR = record(
    ("max_registered_pages", ">u8"),
    ("rx_groups", ">u2"),
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
#: The modules that declare this model's own options.
OWN_DECLARATIONS = (deferred, flush, owners, ddp)

#: Pages of a page list, as a suggestion to drivers; a receive list has to cover a ring of 1024.
TX_PAGES_PER_QPL, RX_PAGES_PER_QPL = 512, 1024


def _format(
    number: int, queue_format: QueueFormat, payload: np.dtype[np.void], values: Callable[[Profile], tuple[int, ...]]
) -> Option:
    return Option(number, payload, lambda p: queue_format in p.formats, values, queue_format=queue_format)


class OptionId(IntEnum):
    """Device options that follow the device descriptor, each with its declaration, `option`."""

    option: Option

    def __new__(cls, option: Any) -> Self:
        """A member, by its `Option`. Type checkers take a look-up by number for a call of this, hence Any."""
        member = int.__new__(cls, option.number)
        member._value_, member.option = option.number, option
        return member

    # The oldest form of GQI_RDA, which this model never offers.
    GQI_RAW_ADDRESSING = Option(0x1, OPTION_GQI, lambda _: False)
    GQI_RDA = _format(0x2, QueueFormat.GQI_RDA, OPTION_GQI, lambda _: ())
    GQI_QPL = _format(0x3, QueueFormat.GQI_QPL, OPTION_GQI, lambda _: ())
    DQO_RDA = _format(0x4, QueueFormat.DQO_RDA, OPTION_DQO_RDA, lambda p: (p.ring_entries, p.ring_entries))
    MODIFY_RING = Option(
        0x6, OPTION_MODIFY_RING, lambda _: True, lambda p: (p.max_ring, p.max_ring, p.min_ring, p.min_ring),
        Feature.MODIFY_RING,
    )  # fmt: skip
    DQO_QPL = _format(0x7, QueueFormat.DQO_QPL, OPTION_DQO_QPL, lambda _: (TX_PAGES_PER_QPL, RX_PAGES_PER_QPL))
    JUMBO_FRAMES = Option(0x8, OPTION_JUMBO_FRAMES, lambda _: True, lambda p: (p.max_mtu, 0), Feature.JUMBO_FRAMES)
    BUFFER_SIZES = Option(
        0xA, OPTION_BUFFER_SIZES, lambda _: True, lambda p: (p.packet_buffer_size, p.header_buffer_size),
        Feature.BUFFER_SIZES,
    )  # fmt: skip
    FLOW_STEERING = Option(
        0xB, OPTION_FLOW_STEERING, lambda p: p.max_flow_rules > 0, lambda p: (0, p.max_flow_rules),
        Feature.FLOW_STEERING, offers="flow rules",
    )  # fmt: skip
    NIC_TIMESTAMP = Option(
        0xD, OPTION_NIC_TIMESTAMP, lambda p: p.timestamps, lambda _: (),
        Feature.NIC_TIMESTAMP, offers="the NIC's clock",
    )  # fmt: skip
    RSS_CONFIG = Option(
        0xE, OPTION_RSS_CONFIG, lambda p: p.rss_option, lambda _: (RSS_KEY_SIZE, RSS_LUT_SIZE),
        Feature.RSS_CONFIG, offers="readable RSS settings",
    )  # fmt: skip
    # This model's own.
    DEFERRED_PLACEMENT = deferred.OPTION
    QUEUE_FLUSH = flush.OPTION
    BUFFER_OWNERS = owners.OPTION
    DDP = ddp.OPTION


class OsType(IntEnum):
    """`DRIVER_INFO.os_type`.

    What is known of drivers by it: DPDK reverses the words of IPv6 addresses in flow rules (`FlowRules.install`), and
    takes every receive completion for a packet of its own (drivers/net/gve/gve_rx_dqo.c, gve_rx_burst_dqo), so that its
    buffers have to hold the MTU.
    """

    LINUX = 1
    WINDOWS = 2
    FREEBSD = 3
    DPDK = 5


class DriverCapability(IntFlag):
    """`DRIVER_INFO.capabilities`, first word; the others are empty."""

    GQI_QPL = 1 << 0
    GQI_RDA = 1 << 1
    DQO_QPL = 1 << 2
    DQO_RDA = 1 << 3
    ALTERNATE_MISS = 1 << 4
    FLEXIBLE_BUFFER_SIZE = 1 << 5
    FLEXIBLE_RSS_SIZE = 1 << 6


#: Bit of a packet completion's tag that makes it a miss, for drivers with `DriverCapability.ALTERNATE_MISS` (Linux:
#: GVE_ALT_MISS_COMPL_BIT).
ALTERNATE_MISS_BIT = 1 << 15

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


class _Commands(IntEnum):
    """Numbers of commands, each with its declaration, `command`."""

    command: Command

    def __new__(cls, command: Any) -> Self:
        # Any: as in `OptionId`.
        member = int.__new__(cls, command.number)
        member._value_, member.command = command.number, command
        return member

    def offered(self, profile: Profile) -> bool:
        """Whether a device of this profile has it."""
        return self.command.option is None or self.command.option.offered(profile)

    @property
    def own(self) -> bool:
        """Whether it is of this model only."""
        return self.command.option is not None and self.command.option.own

    @property
    def offers(self) -> str:
        """What offers it, as a finding calls it; empty: every device has it."""
        return "" if self.command.option is None else self.command.option.offers


def _answer(
    least: Callable[[Profile], int], length: str | Callable[[np.void], int] = "length", address: str = "address"
) -> tuple[Memory]:
    """Memory for an answer of `least` bytes."""
    return (Memory("answer's memory", address, length, WRITABLE, least),)


class Opcode(_Commands):
    """Admin commands."""

    DESCRIBE_DEVICE = Command(
        0x1,
        record(("descriptor_address", ">u8"), ("version", ">u4"), ("available_length", ">u4")),
        # Options that find no room are left out: iPXE takes none of them.
        memory=_answer(lambda _: DEVICE_DESCRIPTOR.itemsize, "available_length", "descriptor_address"),
    )
    CONFIGURE_DEVICE_RESOURCES = Command(
        0x2,
        record(
            ("counter_array", ">u8"),
            ("irq_doorbell_address", ">u8"),
            ("num_counters", ">u4"),
            ("num_irq_doorbells", ">u4"),
            ("irq_doorbell_stride", ">u4"),
            ("msix_base_index", ">u4"),
            ("queue_format", "u1"),
        ),
        {"queue_format": QueueFormat},
        memory=(
            Memory("counter array", "counter_array", lambda p: 4 * int(p["num_counters"]), WRITABLE),
            Memory(
                "doorbell indices", "irq_doorbell_address",
                lambda p: (int(p["num_irq_doorbells"]) - 1) * int(p["irq_doorbell_stride"]) + 4, WRITABLE,
            ),
        ),
    )  # fmt: skip
    REGISTER_PAGE_LIST = Command(
        0x3,
        record(("page_list_id", ">u4"), ("num_pages", ">u4"), ("list_address", ">u8"), ("page_size", ">u8")),
        memory=(Memory("page list", "list_address", lambda p: 8 * int(p["num_pages"]), READABLE),),
    )
    UNREGISTER_PAGE_LIST = Command(0x4, record(("page_list_id", ">u4")))
    CREATE_TX_QUEUE = Command(
        0x5,
        record(
            ("queue_id", ">u4"),
            ("reserved", ">u4"),
            ("queue_resources_address", ">u8"),
            ("ring_address", ">u8"),
            ("page_list_id", ">u4"),
            ("notification_block", ">u4"),
            ("completion_ring_address", ">u8"),
            ("ring_entries", ">u2"),
            ("completion_ring_entries", ">u2"),
        ),
        memory=(RESOURCES,),
        rings=(
            Ring("descriptor ring", "ring_address", "ring_entries", TX_PACKET, READABLE),
            Ring("completion ring", "completion_ring_address", "completion_ring_entries", TX_COMPLETION, WRITABLE),
        ),
        gqi_rings=(Ring("descriptor ring", "ring_address", "ring_entries", GQI_TX_PACKET, READABLE),),
        queue=Queue("tx", "created"),
    )
    CREATE_RX_QUEUE = Command(
        0x6,
        record(
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
        ),
        memory=(RESOURCES,),
        rings=(
            Ring("buffer ring", "buffer_ring_address", "buffer_ring_entries", RX_BUFFER, READABLE),
            Ring("completion ring", "completion_ring_address", "completion_ring_entries", RX_COMPLETION, WRITABLE),
        ),
        # Both have as many entries.
        gqi_rings=(
            Ring("buffer ring", "buffer_ring_address", "completion_ring_entries", GQI_RX_SLOT, READABLE),
            Ring("completion ring", "completion_ring_address", "completion_ring_entries", GQI_RX_DESCRIPTOR, WRITABLE),
        ),
        queue=Queue("rx", "created"),
    )
    DESTROY_TX_QUEUE = Command(0x7, record(("queue_id", ">u4")), queue=Queue("tx", "destroyed"))
    DESTROY_RX_QUEUE = Command(0x8, record(("queue_id", ">u4")), queue=Queue("rx", "destroyed"))
    DECONFIGURE_DEVICE_RESOURCES = Command(0x9, record())
    CONFIGURE_RSS = Command(
        0xA,
        record(
            ("hash_types", ">u2"),
            ("hash_algorithm", "u1"),
            ("reserved", "u1"),
            ("key_size", ">u2"),
            ("lut_size", ">u2"),
            ("key_address", ">u8"),
            ("lut_address", ">u8"),
        ),
        {"hash_types": RssHashType},
        memory=(
            Memory("RSS key", "key_address", "key_size", READABLE),
            Memory("RSS table", "lut_address", lambda p: 4 * int(p["lut_size"]), READABLE),
        ),
    )
    SET_DRIVER_PARAMETER = Command(0xB, record(("type", ">u4"), ("reserved", ">u4"), ("value", ">u8")))
    REPORT_STATS = Command(
        0xC,
        record(("length", ">u8"), ("address", ">u8"), ("interval_ms", ">u8")),
        memory=(Memory("statistics region", "address", "length", WRITABLE),),
    )
    REPORT_LINK_SPEED = Command(0xD, record(("address", ">u8")), memory=_answer(lambda _: 8, lambda _: 8))
    GET_PTYPE_MAP = Command(
        0xE, record(("length", ">u8"), ("address", ">u8")), memory=_answer(lambda _: PTYPE_COUNT * PTYPE.itemsize)
    )
    VERIFY_DRIVER_COMPATIBILITY = Command(
        0xF,
        record(("length", ">u8"), ("address", ">u8")),
        memory=(Memory("driver information", "address", "length", READABLE, lambda _: DRIVER_INFO.itemsize),),
    )
    QUERY_FLOW_RULES = Command(
        0x10,
        record(
            ("query", ">u2"), ("padding", ">u2"), ("starting_rule_id", ">u4"), ("available_length", ">u8"),
            ("address", ">u8"),
        ),
        {"query": FlowQuery},
        memory=_answer(lambda _: QUERY_FLOW_RULES_HEADER.itemsize, "available_length"),
        option=OptionId.FLOW_STEERING.option,
    )  # fmt: skip
    REPORT_NIC_TIMESTAMP = Command(
        0x11,
        record(("length", ">u8"), ("address", ">u8")),
        memory=_answer(lambda _: NIC_TIMESTAMP.itemsize),
        option=OptionId.NIC_TIMESTAMP.option,
    )
    QUERY_RSS = Command(
        0x12,
        record(("available_length", ">u8"), ("address", ">u8")),
        memory=_answer(lambda _: QUERY_RSS_HEADER.itemsize + RSS_KEY_SIZE + 4 * RSS_LUT_SIZE, "available_length"),
        option=OptionId.RSS_CONFIG.option,
    )
    EXTENDED_COMMAND = Command(
        0xFF,
        record(("inner_opcode", ">u4"), ("inner_length", ">u4"), ("inner_address", ">u8")),
        memory=(Memory("inner command", "inner_address", "inner_length", READABLE),),
    )


class Inner(_Commands):
    """Commands carried by `Opcode.EXTENDED_COMMAND`."""

    CONFIGURE_FLOW_RULE = Command(
        0x101,
        CONFIGURE_FLOW_RULE,
        {"operation": FlowOperation, "rule.flow_type": RuleFlowType},
        option=OptionId.FLOW_STEERING.option,
    )
    # Of this model's own options (docs/options.md, docs/ddp.md).
    CONFIGURE_DEFERRED_PLACEMENT = deferred.COMMAND
    FLUSH_RX_QUEUE = flush.COMMAND
    CONFIGURE_BUFFER_OWNERS = owners.COMMAND
    CONFIGURE_DDP = ddp.COMMAND
