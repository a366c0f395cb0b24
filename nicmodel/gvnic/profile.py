"""What a device offers: the parameters that DESCRIBE_DEVICE, the option list and BAR 0 tell the driver."""

from __future__ import annotations

import re
import secrets
from dataclasses import dataclass, field, fields
from enum import StrEnum
from typing import Any

import numpy as np

from nicmodel.gvnic import commands as c
from nicmodel.gvnic.commands import Feature, OptionId, QueueFormat
from nicmodel.gvnic.state import MAX_NIC_PAGES, MAX_OWNERS, NIC_PAGE
from nicmodel.packet.parse import ETHERNET_SIZE, MAX_VLANS, VLAN_SIZE

#: Ethernet header and two VLAN tags (802.1ad): what a frame may be longer than its MTU.
FRAME_OVERHEAD = ETHERNET_SIZE + MAX_VLANS * VLAN_SIZE

MAX_QUEUES = 63
MIN_MTU, MAX_MTU = 68, 9216
MAX_COALESCE_FLOWS = 4096
MAX_DDP_FLOWS = 1024
#: Of frames and payload, microseconds: a minute.
MAX_WAIT_USECS = 60_000_000
#: More than any ring has.
MAX_OWNER_LOOKAHEAD = 65_535


def random_mac() -> bytes:
    """A locally administered unicast address."""
    first, *rest = secrets.token_bytes(6)
    return bytes([first & 0xFC | 0x02, *rest])


def parse_mac(text: str) -> bytes:
    """The six bytes of ``02:00:00:00:00:01``.

    Raises:
        ValueError: not the form, or a multicast address.
    """
    if not re.fullmatch(r"([0-9a-fA-F]{2}[:-]){5}[0-9a-fA-F]{2}", text):
        raise ValueError(f"{text!r} is not a MAC address of the form 02:00:00:00:00:01")
    mac = bytes.fromhex(re.sub("[:-]", "", text))
    if mac[0] & 1:
        raise ValueError(f"{text} is a multicast address; the first byte of a station's address is even")
    return mac


@dataclass(frozen=True)
class Range:
    """The numbers that a field may be.

    Attributes:
        low: the least.
        high: the most.
        refusal: what is said of another, with ``{value}``, ``{low}`` and ``{high}``.
        or_none: 0 is possible, too: it takes away what the field is about.
    """

    low: int
    high: int
    refusal: str
    or_none: bool = False

    def check(self, value: int) -> None:
        """See that a number is one of them.

        Raises:
            ValueError: it is not; the text says which are.
        """
        if not self.low <= value <= self.high and not (self.or_none and value == 0):
            raise ValueError(self.refusal.format(value=value, low=self.low, high=self.high))


class Section(StrEnum):
    """Headings in the help of ``nicmodel serve``."""

    NIC = "The NIC"
    SPEED = "Speed"
    OWN = "Features that no stock driver uses"


@dataclass(frozen=True)
class Setting:
    """How ``nicmodel serve`` sets a field of `Profile`.

    Attributes:
        section: where in its help.
        meaning: what the help says.
        metavar: what stands for the value there; empty: the numbers that it may be.
        option: the option's name; empty: the field's.
        range: the numbers that the field may be; None: it is no number, or depends on others.
        default: the default in the help's words; empty: as it is.
        needs: a field that has to be on for this one to say anything; empty: none.
    """

    section: Section
    meaning: str
    metavar: str = ""
    option: str = ""
    range: Range | None = None
    default: str = ""
    needs: str = ""


#: Where a field's metadata have its `Setting`.
_SETTING = "setting"


@dataclass(frozen=True)
class Profile:
    """Parameters of one device.

    Attributes:
        formats: queue formats on offer; the driver chooses.
        queues: maximum number of receive, and of transmit, queues (BAR 0).
        default_queues: how many of each a driver uses unless told otherwise; at least 2 for devmem, since queue 0
            cannot be restarted alone.
        ring_entries: default entries of every ring; `min_ring` and `max_ring` bound what the driver may choose.
        max_mtu: the MTU the interface comes up with.
        packet_buffer_size: largest receive buffer, bytes; 4096 lets a devmem page be one buffer.
        header_buffer_size: bytes of a header buffer; 0 takes header split away.
        max_flow_rules: n-tuple rules; 0 takes steering away.
        rss_option: offer QUERY_RSS; otherwise the driver keeps key and table itself, as on most machines.
        timestamps: receive timestamps and the NIC clock.
        revision: PCI revision. From 1 on a driver survives the loss of the device; both ways of setting up the admin
            queue are accepted at any revision.
        promiscuous: receive unicast frames to any address.
        coalesce: merge TCP segments on queues with RSC (Linux: ``ethtool -K ... rx-gro-hw``).
        coalesce_flows: how many TCP flows are merged at the same time.
        coalesce_usecs: how long frames from the wire wait for others to be merged with, microseconds. 0: segments are
            merged that the wire hands over together, and no frame waits.
        ddp_flows: TCP flows whose NVMe/TCP data can be placed directly (docs/ddp.md); 0 takes that away.
        link_speed: Mbit/s.
        max_registered_pages: pages in all page lists together, for the QPL formats.
        deferred_bytes: bytes on the NIC for payload whose place the driver names later (docs/options.md); 0 takes
            deferred placement away.
        deferred_queue_bytes: how much of it one queue may use; 0: all.
        deferred_usecs: how long payload is kept, microseconds.
        owners: the most owners that the buffers of one receive queue may have (docs/options.md); 0 takes that away.
        owner_lookahead: buffers of such a queue that the device sorts by owner ahead of need.
        queue_flush: a receive queue hands its buffers back on command, without being destroyed (docs/options.md).
    """

    formats: tuple[QueueFormat, ...] = (QueueFormat.DQO_RDA, QueueFormat.GQI_QPL)
    queues: int = field(default=8, metadata={_SETTING: Setting(
        Section.NIC, "Maximum of receive queues, and of transmit queues.", "N",
        range=Range(1, MAX_QUEUES, "{value} queues: between {low} and {high} are possible"),
    )})  # fmt: skip
    default_queues: int = field(default=4, metadata={_SETTING: Setting(
        Section.NIC, "How many of them the driver starts with.", "N",
        range=Range(1, MAX_QUEUES, "{value} queues in use: between {low} and {high} are possible"),
    )})  # fmt: skip
    mac: bytes = field(default_factory=random_mac, metadata={_SETTING: Setting(
        Section.NIC, "Address of the NIC; repeat for several NICs.", "MAC", default="random",
    )})  # fmt: skip
    ring_entries: int = 1024
    min_ring: int = 256
    max_ring: int = 4096
    max_mtu: int = field(default=8896, metadata={_SETTING: Setting(
        Section.NIC, "Largest MTU; the interface comes up with it.", "BYTES", option="--mtu",
        range=Range(MIN_MTU, MAX_MTU, "MTU {value}: between {low} and {high} is possible"),
    )})  # fmt: skip
    packet_buffer_size: int = 4096
    header_buffer_size: int = 128
    max_flow_rules: int = 1024
    rss_option: bool = False
    timestamps: bool = True
    revision: int = field(default=1, metadata={_SETTING: Setting(
        Section.NIC, "PCI revision. With 0, rmmod in a guest hangs once the server is gone.",
        range=Range(0, 255, "PCI revision {value}: between {low} and {high} is possible"),
    )})  # fmt: skip
    promiscuous: bool = field(default=False, metadata={_SETTING: Setting(
        Section.NIC, "Take unicast frames to any address.",
    )})  # fmt: skip
    coalesce: bool = field(default=True, metadata={_SETTING: Setting(
        Section.SPEED, "Merge TCP segments where the driver lets the NIC do so (ethtool: rx-gro-hw).",
    )})  # fmt: skip
    coalesce_flows: int = field(default=16, metadata={_SETTING: Setting(
        Section.SPEED, "TCP flows merged at the same time.", "N", needs="coalesce",
        range=Range(1, MAX_COALESCE_FLOWS, "{value} flows: between {low} and {high} can be coalesced"),
    )})  # fmt: skip
    coalesce_usecs: int = field(default=0, metadata={_SETTING: Setting(
        Section.SPEED, "How long a frame from the wire waits for others to be merged with. 0: none waits, and only "
        "segments that arrive together are merged.", "USECS", needs="coalesce",
        range=Range(0, MAX_WAIT_USECS, "{value} µs: frames wait for {low} at least and {high} at most"),
    )})  # fmt: skip
    link_speed: int = 100_000
    max_registered_pages: int = 65536
    deferred_bytes: int = field(default=0, metadata={_SETTING: Setting(
        Section.OWN, "Memory on the NIC in which payload waits until the driver says where it goes.", "BYTES",
        option="--deferred-placement", default="0, off",
        range=Range(
            NIC_PAGE, MAX_NIC_PAGES * NIC_PAGE,
            "{value} bytes for payload on the NIC: between {low} and {high:,}", or_none=True,
        ),
    )})  # fmt: skip
    deferred_queue_bytes: int = field(default=0, metadata={_SETTING: Setting(
        Section.OWN, "How much of it one queue may use.", "BYTES",
        option="--deferred-queue", default="all", needs="deferred_bytes",
    )})  # fmt: skip
    deferred_usecs: int = field(default=100_000, metadata={_SETTING: Setting(
        Section.OWN, "How long payload waits there before it is dropped.", "USECS", needs="deferred_bytes",
        range=Range(1, MAX_WAIT_USECS, "{value} µs: payload stays for {low} at least and {high} at most"),
    )})  # fmt: skip
    owners: int = field(default=0, metadata={_SETTING: Setting(
        Section.OWN, "How many owners the buffers of a receive queue may have; flow rules say which owner a flow has.",
        "N", default="0, off",
        range=Range(
            2, MAX_OWNERS, "{value} owners of a queue's buffers: between {low} and {high}, or 0 for one", or_none=True,
        ),
    )})  # fmt: skip
    owner_lookahead: int = field(default=1024, metadata={_SETTING: Setting(
        Section.OWN, "How many buffers of such a queue the NIC sorts by owner before they are needed.", "N",
        needs="owners",
        range=Range(1, MAX_OWNER_LOOKAHEAD, "{value} buffers ahead: between {low} and {high} are possible"),
    )})  # fmt: skip
    queue_flush: bool = field(default=False, metadata={_SETTING: Setting(
        Section.OWN, "A receive queue hands its buffers back on command.",
    )})  # fmt: skip
    ddp_flows: int = field(default=0, metadata={_SETTING: Setting(
        Section.OWN, "NVMe/TCP flows whose data the NIC can place directly.", "N", default="0, off",
        range=Range(0, MAX_DDP_FLOWS, "{value} flows: data of {low} to {high} can be placed directly"),
    )})  # fmt: skip

    def __post_init__(self) -> None:
        for name, setting in SETTINGS.items():
            if setting.range is not None:
                setting.range.check(getattr(self, name))
        if not self.formats or not set(self.formats) <= set(QueueFormat) - {QueueFormat.UNSPECIFIED}:
            raise ValueError("a device offers at least one queue format")
        if not 0 <= self.deferred_queue_bytes <= self.deferred_bytes:
            raise ValueError(f"{self.deferred_queue_bytes} bytes on the NIC for a queue, {self.deferred_bytes} for all")
        if len(self.mac) != 6 or self.mac[0] & 1:
            raise ValueError("a MAC address has six bytes, the first of them even")

    @property
    def vectors(self) -> int:
        """MSI-X vectors: one for each queue and one for management."""
        return 2 * self.queues + 1

    @property
    def max_frame(self) -> int:
        """Longest frame that is received, bytes without FCS."""
        return self.max_mtu + FRAME_OVERHEAD

    @property
    def deferred_queue_budget(self) -> int:
        """The most bytes of payload that are kept for one queue."""
        return self.deferred_queue_bytes or self.deferred_bytes

    @property
    def features(self) -> Feature:
        """The supported-features mask that goes into the queue-format option."""
        return Feature(sum(one.option.feature or 0 for one in self.options))

    @property
    def options(self) -> list[OptionId]:
        """The device options on offer, in their order: those of the queue formats as in `formats`, then the others."""
        offered = [one for one in OptionId if one.option.offered(self)]
        by_format = {one.option.queue_format: one for one in offered}
        return [
            *(by_format[queue_format] for queue_format in self.formats),
            *(one for one in offered if one.option.queue_format is None),
        ]

    def describe(self) -> bytes:
        """What DESCRIBE_DEVICE answers: the device descriptor and the options, packed."""
        mask = int(self.features)
        packed = b""
        for one in self.options:
            payload = one.option.payload
            supported = 0 if one.own else mask
            packed += np.array((one, payload.itemsize, 0), c.OPTION_HEADER).tobytes()
            packed += np.array((supported, *one.option.values(self)), payload).tobytes()
        descriptor = np.zeros((), c.DEVICE_DESCRIPTOR)
        descriptor["max_registered_pages"] = self.max_registered_pages
        descriptor["tx_queue_entries"] = descriptor["rx_queue_entries"] = self.ring_entries
        descriptor["default_num_queues"] = min(self.default_queues, self.queues)
        descriptor["mtu"] = min(self.max_mtu, 1500)
        descriptor["counters"] = 2 * self.queues
        descriptor["tx_pages_per_qpl"] = c.TX_PAGES_PER_QPL
        descriptor["rx_pages_per_qpl"] = c.RX_PAGES_PER_QPL
        descriptor["mac"] = np.frombuffer(self.mac, np.uint8)
        descriptor["num_device_options"] = len(self.options)
        descriptor["total_length"] = c.DEVICE_DESCRIPTOR.itemsize + len(packed)
        return descriptor.tobytes() + packed


#: How ``nicmodel serve`` sets the fields of a profile, in their order.
SETTINGS: dict[str, Setting] = {one.name: one.metadata[_SETTING] for one in fields(Profile) if one.metadata}

#: Profiles by name: what to change of the default for each, and what it is for.
PROFILES: dict[str, tuple[str, dict[str, Any]]] = {
    "default": ("DQO with raw addressing, jumbo frames, all features; GQI with page lists for older drivers", {}),
    "afxdp": (
        "a maximum MTU that AF_XDP zero copy can do with; twice the queues in use, for XDP's own transmit queues",
        {"max_mtu": 1500, "queues": 16, "default_queues": 4},
    ),
    "dqo-qpl": ("DQO with page lists only", {"formats": (QueueFormat.DQO_QPL,)}),
    "gqi-rda": ("GQI with raw addressing only", {"formats": (QueueFormat.GQI_RDA,)}),
    "legacy": (
        "GQI with page lists only, 1500-byte frames, no header split, steering or clock, revision 0: the first gVNICs",
        {
            "formats": (QueueFormat.GQI_QPL,),
            "max_mtu": 1500,
            "max_flow_rules": 0,
            "header_buffer_size": 0,
            "timestamps": False,
            "revision": 0,
        },
    ),
    "gce": (
        "what the cloud offers, as far as is known: 16 queues, all formats but DQO-QPL, RSS settings readable",
        {
            "formats": (QueueFormat.DQO_RDA, QueueFormat.GQI_RDA, QueueFormat.GQI_QPL),
            "queues": 16,
            "default_queues": 16,
            "rss_option": True,
            "revision": 0,
        },
    ),
}


def named_profile(name: str, **changes: Any) -> Profile:
    """A profile of `PROFILES`, with some of its fields changed.

    Raises:
        KeyError: there is no such profile.
        ValueError: the values do not make a device, or contradict each other.
    """
    profile = Profile(**{**PROFILES[name][1], **changes})
    # A default that nobody has asked for gives way to fewer queues.
    if "default_queues" in changes and profile.default_queues > profile.queues:
        raise ValueError(f"{profile.default_queues} queues in use of {profile.queues}: at most all of them can be")
    return profile
