"""What a device offers: the parameters that GET_CAPS and CREATE_VPORT tell the driver."""

from __future__ import annotations

from dataclasses import dataclass, field, fields

from nicmodel.nic.mac import check_mac, random_mac
from nicmodel.nic.setting import MAX_WAIT_USECS, SETTING, Range, Section, Setting
from nicmodel.packet.parse import ETHERNET_SIZE, MAX_VLANS, VLAN_SIZE

#: Ethernet header and two VLAN tags (802.1ad): what a frame may be longer than its MTU.
FRAME_OVERHEAD = ETHERNET_SIZE + MAX_VLANS * VLAN_SIZE
#: What Linux takes off `CREATE_VPORT.max_mtu`, which is about frames, for the MTU: header, two VLAN tags and the FCS
#: (LIBETH_RX_LL_LEN).
LINUX_OVERHEAD = FRAME_OVERHEAD + 4

MAX_QUEUES = 30
MIN_MTU, MAX_MTU = 68, 9216
MAX_COALESCE_FLOWS = 4096


@dataclass(frozen=True)
class Profile:
    """Parameters of one device.

    Attributes:
        queues: maximum number of receive queues; there are twice as many transmit queues, of which a driver may keep
            the second half for XDP.
        max_mtu: the largest MTU; the interface comes up with 1500.
        max_flow_rules: n-tuple rules; 0 takes steering away.
        header_split: split TCP, UDP and other L4 headers off where the driver lets the NIC do so.
        promiscuous: receive unicast frames to any address, whatever the driver says.
        coalesce: merge TCP segments on queues with RSC (Linux: ``ethtool -K ... rx-gro-hw``).
        coalesce_flows: how many TCP flows are merged at the same time.
        coalesce_usecs: how long frames from the wire wait for others to be merged with, microseconds. 0: segments are
            merged that the wire hands over together, and no frame waits.
        link_speed: Mbit/s.
    """

    queues: int = field(default=8, metadata={SETTING: Setting(
        Section.NIC, "Maximum of receive queues.", "N",
        range=Range(1, MAX_QUEUES, "{value} queues: between {low} and {high} are possible"),
    )})  # fmt: skip
    mac: bytes = field(default_factory=random_mac, metadata={SETTING: Setting(
        Section.NIC, "Address of the NIC; repeat for several NICs.", "MAC", default="random",
    )})  # fmt: skip
    max_mtu: int = field(default=8896, metadata={SETTING: Setting(
        Section.NIC, "Largest MTU.", "BYTES", option="--mtu",
        range=Range(MIN_MTU, MAX_MTU, "MTU {value}: between {low} and {high} is possible"),
    )})  # fmt: skip
    max_flow_rules: int = 1024
    header_split: bool = True
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

    def __post_init__(self) -> None:
        for name, setting in SETTINGS.items():
            if setting.range is not None:
                setting.range.check(getattr(self, name))
        check_mac(self.mac)

    @property
    def tx_queues(self) -> int:
        """The most transmit queues, and completion queues."""
        return 2 * self.queues

    @property
    def buffer_queues(self) -> int:
        """The most buffer queues: two for each receive queue."""
        return 2 * self.queues

    @property
    def vectors(self) -> int:
        """MSI-X vectors: the mailbox's, one for each pair of queues, and one for queues without interrupts."""
        return self.queues + 2

    @property
    def max_frame(self) -> int:
        """Longest frame that is received, bytes without FCS."""
        return self.max_mtu + FRAME_OVERHEAD


#: How ``nicmodel serve`` sets the fields of a profile, by section and in their order.
SETTINGS: dict[str, Setting] = {
    one.name: one.metadata[SETTING]
    for section in Section
    for one in fields(Profile)
    if one.metadata and one.metadata[SETTING].section == section
}
