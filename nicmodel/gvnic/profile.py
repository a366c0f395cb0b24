"""What a device offers: the parameters that DESCRIBE_DEVICE, the option list and BAR 0 tell the driver."""

from __future__ import annotations

import re
import secrets
from dataclasses import dataclass, field
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

    mac: bytes = field(default_factory=random_mac)
    formats: tuple[QueueFormat, ...] = (QueueFormat.DQO_RDA, QueueFormat.GQI_QPL)
    queues: int = 8
    default_queues: int = 4
    ring_entries: int = 1024
    min_ring: int = 256
    max_ring: int = 4096
    max_mtu: int = 8896
    packet_buffer_size: int = 4096
    header_buffer_size: int = 128
    max_flow_rules: int = 1024
    rss_option: bool = False
    timestamps: bool = True
    revision: int = 1
    promiscuous: bool = False
    coalesce: bool = True
    coalesce_flows: int = 16
    coalesce_usecs: int = 0
    ddp_flows: int = 0
    link_speed: int = 100_000
    max_registered_pages: int = 65536
    deferred_bytes: int = 0
    deferred_queue_bytes: int = 0
    deferred_usecs: int = 100_000
    queue_flush: bool = False
    owners: int = 0
    owner_lookahead: int = 1024

    def __post_init__(self) -> None:
        if not 1 <= self.queues <= MAX_QUEUES:
            raise ValueError(f"{self.queues} queues: between 1 and {MAX_QUEUES} are possible")
        if not 1 <= self.default_queues <= MAX_QUEUES:
            raise ValueError(f"{self.default_queues} queues in use: between 1 and {MAX_QUEUES} are possible")
        if not MIN_MTU <= self.max_mtu <= MAX_MTU:
            raise ValueError(f"MTU {self.max_mtu}: between {MIN_MTU} and {MAX_MTU} is possible")
        if not self.formats or not set(self.formats) <= set(QueueFormat) - {QueueFormat.UNSPECIFIED}:
            raise ValueError("a device offers at least one queue format")
        if not 1 <= self.coalesce_flows <= MAX_COALESCE_FLOWS:
            raise ValueError(f"{self.coalesce_flows} flows: between 1 and {MAX_COALESCE_FLOWS} can be coalesced")
        if not 0 <= self.ddp_flows <= MAX_DDP_FLOWS:
            raise ValueError(f"{self.ddp_flows} flows: data of 0 to {MAX_DDP_FLOWS} can be placed directly")
        if not 0 <= self.coalesce_usecs <= MAX_WAIT_USECS:
            raise ValueError(f"{self.coalesce_usecs} µs: frames wait for 0 at least and {MAX_WAIT_USECS} at most")
        largest = MAX_NIC_PAGES * NIC_PAGE
        if self.deferred_bytes and not NIC_PAGE <= self.deferred_bytes <= largest:
            raise ValueError(f"{self.deferred_bytes} bytes for payload on the NIC: between {NIC_PAGE} and {largest:,}")
        if not 0 <= self.deferred_queue_bytes <= self.deferred_bytes:
            raise ValueError(f"{self.deferred_queue_bytes} bytes on the NIC for a queue, {self.deferred_bytes} for all")
        if not 1 <= self.deferred_usecs <= MAX_WAIT_USECS:
            raise ValueError(f"{self.deferred_usecs} µs: payload stays for 1 at least and {MAX_WAIT_USECS} at most")
        if self.owners not in (0, *range(2, MAX_OWNERS + 1)):
            raise ValueError(f"{self.owners} owners of a queue's buffers: between 2 and {MAX_OWNERS}, or 0 for one")
        if not 1 <= self.owner_lookahead <= MAX_OWNER_LOOKAHEAD:
            raise ValueError(f"{self.owner_lookahead} buffers ahead: between 1 and {MAX_OWNER_LOOKAHEAD} are possible")
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
