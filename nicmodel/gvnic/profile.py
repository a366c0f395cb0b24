"""What a device offers: the parameters that DESCRIBE_DEVICE, the option list and BAR 0 tell the driver."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np

from nicmodel.gvnic import commands as c
from nicmodel.gvnic.commands import Feature, OptionId, QueueFormat
from nicmodel.gvnic.options.ddp.profile import DdpProfile
from nicmodel.gvnic.options.deferred.profile import DeferredProfile
from nicmodel.gvnic.options.flush.profile import FlushProfile
from nicmodel.gvnic.options.owners.profile import OwnersProfile
from nicmodel.nic.mac import check_mac, random_mac
from nicmodel.nic.setting import MAX_WAIT_USECS, SETTING, Range, Section, Setting
from nicmodel.packet.parse import ETHERNET_SIZE, MAX_VLANS, VLAN_SIZE

#: Ethernet header and two VLAN tags (802.1ad): what a frame may be longer than its MTU.
FRAME_OVERHEAD = ETHERNET_SIZE + MAX_VLANS * VLAN_SIZE

MAX_QUEUES = 63
MIN_MTU, MAX_MTU = 68, 9216
MAX_COALESCE_FLOWS = 4096


@dataclass(frozen=True)
class Profile(DdpProfile, FlushProfile, OwnersProfile, DeferredProfile):
    """Parameters of one device; those of the model's own options are in their folders (`nicmodel.gvnic.options`).

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
        link_speed: Mbit/s.
        max_registered_pages: pages in all page lists together, for the QPL formats.
        msix_vectors: MSI-X vectors; 0: as many as the queues want, one for each, and one for management. A driver that
            is given fewer can use fewer queues.
    """

    formats: tuple[QueueFormat, ...] = (QueueFormat.DQO_RDA, QueueFormat.GQI_QPL)
    queues: int = field(default=8, metadata={SETTING: Setting(
        Section.NIC, "Maximum of receive queues, and of transmit queues.", "N",
        range=Range(1, MAX_QUEUES, "{value} queues: between {low} and {high} are possible"),
    )})  # fmt: skip
    default_queues: int = field(default=4, metadata={SETTING: Setting(
        Section.NIC, "How many of them the driver starts with.", "N",
        range=Range(1, MAX_QUEUES, "{value} queues in use: between {low} and {high} are possible"),
    )})  # fmt: skip
    mac: bytes = field(default_factory=random_mac, metadata={SETTING: Setting(
        Section.NIC, "Address of the NIC; repeat for several NICs.", "MAC", default="random",
    )})  # fmt: skip
    ring_entries: int = 1024
    min_ring: int = 256
    max_ring: int = 4096
    max_mtu: int = field(default=8896, metadata={SETTING: Setting(
        Section.NIC, "Largest MTU; the interface comes up with it.", "BYTES", option="--mtu",
        range=Range(MIN_MTU, MAX_MTU, "MTU {value}: between {low} and {high} is possible"),
    )})  # fmt: skip
    packet_buffer_size: int = 4096
    header_buffer_size: int = 128
    max_flow_rules: int = 1024
    rss_option: bool = False
    timestamps: bool = True
    revision: int = field(default=1, metadata={SETTING: Setting(
        Section.NIC, "PCI revision. With 0, rmmod in a guest hangs once the server is gone.",
        range=Range(0, 255, "PCI revision {value}: between {low} and {high} is possible"),
    )})  # fmt: skip
    promiscuous: bool = field(default=False, metadata={SETTING: Setting(
        Section.NIC, "Take unicast frames to any address.",
    )})  # fmt: skip
    coalesce: bool = field(default=True, metadata={SETTING: Setting(
        Section.SPEED, "Merge TCP segments where the driver lets the NIC do so (ethtool: rx-gro-hw).",
    )})  # fmt: skip
    coalesce_flows: int = field(default=16, metadata={SETTING: Setting(
        Section.SPEED, "TCP flows merged at the same time.", "N", needs="coalesce",
        range=Range(1, MAX_COALESCE_FLOWS, "{value} flows: between {low} and {high} can be coalesced"),
    )})  # fmt: skip
    coalesce_usecs: int = field(default=0, metadata={SETTING: Setting(
        Section.SPEED, "How long a frame from the wire waits for others to be merged with. 0: none waits, and only "
        "segments that arrive together are merged.", "USECS", needs="coalesce",
        range=Range(0, MAX_WAIT_USECS, "{value} µs: frames wait for {low} at least and {high} at most"),
    )})  # fmt: skip
    link_speed: int = 100_000
    max_registered_pages: int = 65536
    msix_vectors: int = field(default=0, metadata={SETTING: Setting(
        Section.NIC, "MSI-X vectors; with fewer than the queues want a driver can use fewer queues.", "N",
        option="--vectors", default="two for each of --queues, and one",
        range=Range(3, 2 * MAX_QUEUES + 1, "{value} MSI-X vectors: between {low} and {high} are possible", True),
    )})  # fmt: skip

    def __post_init__(self) -> None:
        for name, setting in SETTINGS.items():
            if setting.range is not None:
                setting.range.check(getattr(self, name))
        if not self.formats or not set(self.formats) <= set(QueueFormat) - {QueueFormat.UNSPECIFIED}:
            raise ValueError("a device offers at least one queue format")
        super().__post_init__()
        check_mac(self.mac)

    @property
    def vectors(self) -> int:
        """MSI-X vectors: one for each queue and one for management, if there are not fewer."""
        wanted = 2 * self.queues + 1
        return min(self.msix_vectors or wanted, wanted)

    @property
    def max_frame(self) -> int:
        """Longest frame that is received, bytes without FCS."""
        return self.max_mtu + FRAME_OVERHEAD

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
            supported = 0 if one.option.own else mask
            packed += np.array((one, payload.itemsize, 0), c.OPTION_HEADER).tobytes()
            packed += np.array((supported, *one.option.values(self)), payload).tobytes()
        descriptor = np.zeros((), c.DEVICE_DESCRIPTOR)
        descriptor["max_registered_pages"] = self.max_registered_pages
        # Google's driver for Windows has so many times its queues (gvnic_pci_device.cpp, SetTransmitQueueConfig).
        descriptor["rx_groups"] = 1
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


#: How ``nicmodel serve`` sets the fields of a profile, by section and in their order.
SETTINGS: dict[str, Setting] = {
    one.name: one.metadata[SETTING]
    for section in Section
    for one in fields(Profile)
    if one.metadata and one.metadata[SETTING].section == section
}

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
