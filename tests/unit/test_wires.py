"""A frame is the same frame whichever wire brings it: same bytes, queue, hash and checksum verdict at the driver."""

from __future__ import annotations

import socket
import struct
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from namespace import own_namespace
from scapy.layers.inet import IP, TCP, UDP, fragment
from scapy.layers.inet6 import IPv6, IPv6ExtHdrFragment, fragment6
from scapy.layers.l2 import ARP, Dot1Q, Ether
from scapy.packet import Packet, Raw
from scapy.utils import wrpcap

from nicmodel.gvnic.profile import Profile
from nicmodel.gvnic.testing.loopback import Loopback
from nicmodel.nic.mac import parse_mac
from nicmodel.packet.checksum import complete
from nicmodel.packet.frames import Batch, FrameFlag, Gso
from nicmodel.packet.headers import HEADERS
from nicmodel.packet.parse import parse
from nicmodel.testing.wire import TestWire
from nicmodel.vfio_user.poll import Poller
from nicmodel.wire.dgram import DgramWire
from nicmodel.wire.link import link
from nicmodel.wire.packet_socket import ETH_P_ALL, PACKET_VNET_HDR, SOL_PACKET, PacketSocketWire
from nicmodel.wire.pcap import PcapWire
from nicmodel.wire.stream import StreamWire
from nicmodel.wire.switch import Switch
from nicmodel.wire.tap import TapWire
from nicmodel.wire.wire import Wire

NIC, PEER = "02:00:00:00:00:01", "02:00:00:00:00:02"
ETHERNET = Ether(src=PEER, dst=NIC)
IPV4, IPV6 = IP(src="192.0.2.2", dst="192.0.2.1"), IPv6(src="2001:db8::2", dst="2001:db8::1")


@dataclass(frozen=True)
class Frame:
    """A frame, and what its record says beyond its place."""

    data: bytes
    record: dict[str, int] = field(default_factory=dict)


def begun(packet: Packet, **record: int) -> Frame:
    """A frame whose L4 checksum field holds only the sum of the pseudo-header."""
    data = bytearray(bytes(packet))
    l4 = packet[TCP] if TCP in packet else packet[UDP]
    start, at = len(data) - len(l4), 16 if TCP in packet else 6
    octets = data[start - 8 : start] if IP in packet else data[start - 32 : start]
    octets = octets + struct.pack("!HH", 6 if TCP in packet else 17, len(l4))
    total = sum(struct.unpack(f"!{len(octets) // 2}H", octets))
    data[start + at : start + at + 2] = struct.pack("!H", (total & 0xFFFF) + (total >> 16))
    return Frame(bytes(data), {"flags": FrameFlag.NEEDS_CSUM, "csum_start": start, "csum_offset": at} | record)


PLAIN = [
    *(Frame(bytes(ETHERNET / IPV4 / TCP(sport=port, dport=5201) / Raw(b"x" * 500))) for port in range(4000, 4008)),
    Frame(bytes(ETHERNET / IPV6 / UDP(sport=4000, dport=53) / Raw(b"y" * 1400))),
    Frame(bytes(ETHERNET / IPV4 / UDP(sport=4000, dport=53, chksum=0x1234) / Raw(b"bad checksum"))),
    Frame(bytes(ETHERNET / IPV4 / TCP(sport=4000, dport=80, chksum=0x1234))),
    Frame(bytes(ETHERNET / Dot1Q(vlan=5) / IPV6 / TCP(sport=4000, dport=80) / Raw(b"tagged"))),
    Frame(bytes(ETHERNET / Dot1Q(vlan=5) / IPV4 / UDP(sport=4000, dport=53) / Raw(b"tagged"))),
    Frame(bytes(ETHERNET / IP(src="192.0.2.2", dst="192.0.2.1", chksum=0x1234) / TCP(sport=4000, dport=80))),
    Frame(bytes(ETHERNET / IPV4 / UDP(sport=4000, dport=53, chksum=0) / Raw(b"no checksum"))),
    *(Frame(bytes(ETHERNET / part)) for part in fragment(IPV4 / UDP(sport=4000, dport=53) / Raw(b"f" * 3000), 1400)),
    *(
        Frame(bytes(ETHERNET / part))
        for part in fragment6(IPV6 / IPv6ExtHdrFragment(id=7) / UDP(sport=4000, dport=53) / Raw(b"f" * 3000), 1400)
    ),
    Frame(bytes(ETHERNET / IPV4 / TCP(sport=4000, dport=80) / Raw(bytes(range(256)) * 34))),
    Frame(bytes(ETHERNET / IPV6 / UDP(sport=4000, dport=53) / Raw(bytes(range(256)) * 34))),
    Frame(bytes(Ether(src=PEER, dst="ff:ff:ff:ff:ff:ff") / ARP(psrc="192.0.2.2", pdst="192.0.2.1"))),
]
UNDONE = [
    begun(ETHERNET / IPV4 / UDP(sport=4000, dport=53) / Raw(b"only begun")),
    begun(ETHERNET / IPV6 / TCP(sport=4000, dport=80) / Raw(b"only begun")),
    begun(ETHERNET / IPV4 / TCP(sport=4001, dport=80, seq=5, flags="PA") / Raw(bytes(range(250)) * 20),
          gso=Gso.TCPV4, segment=1448, header=54),
    begun(ETHERNET / IPV6 / TCP(sport=4002, dport=80, flags="A") / Raw(bytes(range(250)) * 20),
          gso=Gso.TCPV6, segment=1428, header=74),
    begun(ETHERNET / IPV4 / UDP(sport=4003, dport=443) / Raw(bytes(range(250)) * 20),
          gso=Gso.UDP_L4, segment=1000, header=42),
]  # fmt: skip

#: Has the far end of a wire bring frames to the NIC of a lab.
Bring = Callable[[Loopback, list[Frame]], None]


def batch_of(frames: list[Frame]) -> Batch:
    batch = Batch()
    for frame in frames:
        batch.append(frame.data, **frame.record)  # type: ignore[arg-type]
    return batch


def raw_socket(interface: str) -> Bring:
    """Brings frames through a raw socket at an interface of this thread's namespace, virtio-net headers before them."""
    sender = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
    sender.setsockopt(SOL_PACKET, PACKET_VNET_HDR, 1)
    sender.bind((interface, ETH_P_ALL))

    def bring(_: Loopback, frames: list[Frame]) -> None:
        for frame in frames:
            names = ("flags", "gso", "header", "segment", "csum_start", "csum_offset")
            sender.send(struct.pack("<BBHHHH", *(frame.record.get(name, 0) for name in names)) + frame.data)
        sender.close()

    return bring


@contextmanager
def direct(_: Path, frames: list[Frame]) -> Iterator[tuple[Wire, Bring]]:
    wire = TestWire()
    yield wire, lambda _, frames: wire.inject_batch(batch_of(frames))


@contextmanager
def tap(_: Path, frames: list[Frame]) -> Iterator[tuple[Wire, Bring]]:
    for namespace in own_namespace():
        wire = namespace.run(TapWire, "nic0")
        namespace.ip("link", "set", "nic0", "mtu", "9000", "addrgenmode", "none", "up")
        yield wire, namespace.run(raw_socket, "nic0")


@contextmanager
def packet(_: Path, frames: list[Frame]) -> Iterator[tuple[Wire, Bring]]:
    for namespace in own_namespace():
        namespace.ip("link", "add", "nic0", "type", "veth", "peer", "name", "host0")
        for interface in ("nic0", "host0"):
            namespace.ip("link", "set", interface, "mtu", "9000", "addrgenmode", "none", "up")
        yield namespace.run(PacketSocketWire, "nic0"), namespace.run(raw_socket, "host0")


@contextmanager
def stream(_: Path, frames: list[Frame]) -> Iterator[tuple[Wire, Bring]]:
    ours, theirs = socket.socketpair()
    with theirs:
        yield (
            StreamWire(fd=ours.detach()),
            lambda _, frames: theirs.sendall(
                b"".join(struct.pack("!I", len(frame.data)) + frame.data for frame in frames)
            ),
        )


@contextmanager
def dgram(folder: Path, frames: list[Frame]) -> Iterator[tuple[Wire, Bring]]:
    ours, theirs = str(folder / "nic.dgram"), str(folder / "peer.dgram")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as peer:
        peer.bind(theirs)

        def bring(lab: Loopback, frames: list[Frame]) -> None:
            for frame in frames:  # one by one: the queue of a UNIX socket may be short
                peer.sendto(frame.data, ours)
                lab.run()

        yield DgramWire(local=ours, remote=theirs), bring


@contextmanager
def pcap(folder: Path, frames: list[Frame]) -> Iterator[tuple[Wire, Bring]]:
    path = str(folder / "frames.pcap")
    wrpcap(path, [Ether(frame.data) for frame in frames])

    def bring(lab: Loopback, _: list[Frame]) -> None:
        lab.driver.send(0, bytes(60))
        lab.run()
        lab.advance(1)

    yield PcapWire(path, pace="max", after=1), bring


@contextmanager
def cable(_: Path, frames: list[Frame]) -> Iterator[tuple[Wire, Bring]]:
    ours, theirs = link()
    theirs.start(Poller(), lambda _: None, lambda: None, lambda: None)

    def bring(_: Loopback, frames: list[Frame]) -> None:
        theirs.send(batch_of(frames))

    yield ours, bring


@contextmanager
def switch(_: Path, frames: list[Frame]) -> Iterator[tuple[Wire, Bring]]:
    made = Switch()
    theirs, another, ours = made.port(), made.port(), made.port()

    def complete_checksums(batch: Batch) -> None:  # in place, as a NIC does that gets the same flood
        headers = np.zeros(1, HEADERS)
        for record in batch.frames[batch.frames["flags"] == FrameFlag.NEEDS_CSUM]:
            parse(batch.data, int(record["offset"]), int(record["length"]), headers)
            complete(batch.data, int(record["offset"]), headers, False)

    def bring(lab: Loopback, frames: list[Frame]) -> None:
        theirs.start(lab.nic.poller, lambda _: None, lambda: None, lambda: None)
        another.start(lab.nic.poller, complete_checksums, lambda: None, lambda: None)
        theirs.send(batch_of(frames))

    yield ours, bring


@contextmanager
def uplink(_: Path, frames: list[Frame]) -> Iterator[tuple[Wire, Bring]]:
    outside = TestWire()
    yield Switch(uplink=outside).port(), lambda _, frames: outside.inject_batch(batch_of(frames))


def delivered(make: Any, folder: Path, frames: list[Frame], count: int) -> list[tuple[Any, ...]]:
    """What the driver finds in each packet, in the order of the queues, when the wire's far end has sent `frames`."""
    with make(folder, frames) as (wire, bring), Loopback(Profile(mac=parse_mac(NIC)), wire=cast(TestWire, wire)) as lab:
        lab.driver.probe()
        lab.driver.open(rx_queues=4, header_split=True)
        lab.run()
        bring(lab, frames)
        found: list[tuple[Any, ...]] = []
        deadline = time.monotonic() + 60
        while len(found) < count and time.monotonic() < deadline:
            lab.run()
            for received in lab.driver.poll_all():
                last = received.completions[-1]
                verdict = [last[name] for name in ("l3_l4_processed", "ip_checksum_error", "l4_checksum_error")]
                content = (received.header, received.payload, received.l3, received.l4)
                if received.frame[6:12] == parse_mac(PEER):  # the rest is noise of the kernel's stack
                    found.append((received.queue, received.hash, *verdict, *content))
        return sorted(found, key=lambda packet: packet[0])


def reference(frames: list[Frame], count: int) -> list[tuple[Any, ...]]:
    """As a wire brings them that is a call of the NIC."""
    found = delivered(direct, Path(), frames, count)
    assert len(found) == count
    return found


@pytest.mark.parametrize("wire", [tap, packet, stream, dgram, pcap, cable, switch, uplink])
def test_whole_frames(wire: Any, tmp_path: Path) -> None:
    """Flows over all queues, both versions of IP, tags, fragments, jumbo frames, any checksum, broadcast."""
    expected = reference(PLAIN, len(PLAIN))
    assert {packet[0] for packet in expected} == {0, 1, 2, 3}
    assert sum(packet[3] for packet in expected) == 1, "one has a bad checksum of its IP header"
    assert sum(packet[4] for packet in expected) == 2, "two have a bad L4 checksum"
    assert max(len(packet[6]) for packet in expected) == 34 * 256, "one segment is as long as the MTU allows"
    assert delivered(wire, tmp_path, PLAIN, len(PLAIN)) == expected


@pytest.mark.parametrize("wire", [tap, packet, cable, switch, uplink])
def test_undone_frames(wire: Any, tmp_path: Path) -> None:
    """Checksums that are only begun, and frames that are still to be cut: the driver finds finished segments."""
    count = 2 + 4 + 4 + 5
    expected = reference(UNDONE, count)
    assert all(packet[2:5] == (1, 0, 0) for packet in expected)
    for _, _, _, _, _, header, payload, _, _ in expected:
        found = Ether(header + payload)
        rebuilt = found.copy()
        del (rebuilt[TCP] if TCP in rebuilt else rebuilt[UDP]).chksum
        assert bytes(rebuilt) == bytes(found)
    assert delivered(wire, tmp_path, UNDONE, count) == expected
