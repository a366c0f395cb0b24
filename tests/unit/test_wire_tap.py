"""A tap in a network namespace of its own, with the kernel's stack on its other side."""

from __future__ import annotations

import errno
import os
import select
import socket
import struct
from collections.abc import Iterator

import numpy as np
import pytest
from namespace import own_namespace
from scapy.layers.inet import IP, TCP, UDP
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import Ether
from scapy.packet import Packet, Raw
from scapy.utils import checksum as internet_checksum

from nicmodel.packet.frames import Batch, FrameFlag, Gso, Offload
from nicmodel.vfio_user.poll import Poller
from nicmodel.vm.namespace import Namespace
from nicmodel.wire.tap import VNET_HEADER, TapWire
from nicmodel.wire.wire import WireError

UDP_SEGMENT = 103  # linux/udp.h
UDP_GRO = 104
SO_SNDBUFFORCE = 32  # asm-generic/socket.h
SO_RCVBUFFORCE = 33

HOST_MAC, PEER_MAC = "02:00:00:00:00:01", "02:00:00:00:00:02"
HOST, PEER = "192.0.2.1", "192.0.2.2"
HOST6, PEER6 = "2001:db8::1", "2001:db8::2"


@pytest.fixture
def namespace() -> Iterator[Namespace]:
    if not os.access("/dev/net/tun", os.R_OK | os.W_OK):
        pytest.skip("no /dev/net/tun")
    yield from own_namespace()


class Nic:
    """A tap wire with its interface configured, and what came through it, noise of the stack left out."""

    def __init__(self, namespace: Namespace, *, offloads: bool = True) -> None:
        self.namespace = namespace
        self.wire = namespace.run(TapWire, "nic0", offloads=offloads)
        ip = namespace.ip
        ip("link", "set", "nic0", "address", HOST_MAC, "addrgenmode", "none", "up")
        ip("address", "add", f"{HOST}/24", "dev", "nic0")
        ip("address", "add", f"{HOST6}/64", "dev", "nic0", "nodad")
        for address in (PEER, PEER6):
            ip("neighbour", "add", address, "lladdr", PEER_MAC, "dev", "nic0")
        while not ip("-6", "route", "show", "table", "local", HOST6):
            pass  # an IPv6 address takes effect when a work queue of the kernel gets to it
        self.poller = Poller()
        self.frames: list[bytes] = []
        self.records: list[np.void] = []
        self.link: list[bool] = []
        self.wire.start(self.poller, self._receive, self._unexpected, lambda: self.link.append(self.wire.up))

    def _receive(self, batch: Batch) -> None:
        for record, frame in zip(batch.frames.copy(), batch, strict=False):
            if frame[:6] == bytes.fromhex(PEER_MAC.replace(":", "")):
                self.frames.append(frame)
                self.records.append(record)

    def _unexpected(self) -> None:
        raise AssertionError("a tap always takes what it is given")

    def receive(self, count: int) -> list[bytes]:
        """The next frames for the peer, at least `count`; the records lie in `records`."""
        self.frames.clear()
        self.records.clear()
        for _ in range(50):
            self.poller.run_once(0.1)
            if len(self.frames) >= count:
                break
        assert len(self.frames) >= count
        return self.frames

    def send(self, frame: Packet | bytes, **record: int) -> Batch:
        batch = Batch()
        batch.append(bytes(frame), headroom=VNET_HEADER, **record)  # type: ignore[arg-type]
        assert self.wire.send(batch)
        assert batch.sent == 1
        return batch

    def socket(self, family: int = socket.AF_INET, kind: int = socket.SOCK_DGRAM, port: int = 0) -> socket.socket:
        made = self.namespace.run(socket.socket, family, kind)
        made.bind((HOST if family == socket.AF_INET else HOST6, port))
        made.settimeout(5)
        return made

    def close(self) -> None:
        self.wire.stop()
        self.poller.close()


@pytest.fixture
def nic(namespace: Namespace) -> Iterator[Nic]:
    nic = Nic(namespace)
    yield nic
    nic.close()


def needs(nic: Nic, offloads: Offload) -> None:
    if offloads not in nic.wire.offloads:
        pytest.skip(f"this kernel's taps lack {offloads!r}")


def pseudo_sum(packet: Packet, protocol: int, length: int) -> int:
    """The sum that a checksum field holds under NEEDS_CSUM: the pseudo-header's, not complemented."""
    layer = packet[IP] if IP in packet else packet[IPv6]
    family = socket.AF_INET if IP in packet else socket.AF_INET6
    addresses = socket.inet_pton(family, layer.src) + socket.inet_pton(family, layer.dst)
    return ~int(internet_checksum(addresses + struct.pack("!HH", protocol, length))) & 0xFFFF


def to_host(payload: bytes, *, version: int = 4, port: int = 7000) -> Packet:
    network = IP(src=PEER, dst=HOST) if version == 4 else IPv6(src=PEER6, dst=HOST6)
    return Ether(src=PEER_MAC, dst=HOST_MAC) / network / UDP(sport=9, dport=port) / Raw(payload)


@pytest.mark.parametrize("version", [4, 6])
def test_receive_udp_gso(nic: Nic, version: int) -> None:
    """Steps: one UDP_SEGMENT send of 3,500 bytes in segments of 1,000.
    Verify: one frame, and a record that says how to cut and to checksum it.
    """
    needs(nic, Offload.USO)
    l3 = 20 if version == 4 else 40
    payload = bytes(range(250)) * 14
    with nic.socket(socket.AF_INET if version == 4 else socket.AF_INET6) as sender:
        sender.setsockopt(socket.IPPROTO_UDP, UDP_SEGMENT, 1000)
        sender.sendto(payload, (PEER if version == 4 else PEER6, 7000))
        (frame,) = nic.receive(1)
    (record,) = nic.records
    assert len(frame) == record["length"] == 14 + l3 + 8 + 3500
    assert frame.endswith(payload)
    assert record["gso"] == Gso.UDP_L4
    assert record["segment"] == 1000
    assert record["header"] == 14 + l3 + 8
    assert record["flags"] == FrameFlag.NEEDS_CSUM
    assert (record["csum_start"], record["csum_offset"]) == (14 + l3, 6)
    packet = Ether(frame)
    assert packet[UDP].chksum == pseudo_sum(packet, socket.IPPROTO_UDP, 3508)
    assert nic.wire.counters["rx_bytes"] >= len(frame)


def test_receive_partial_checksum(nic: Nic) -> None:
    """A frame of ordinary size still comes with its checksum undone."""
    with nic.socket() as sender:
        sender.sendto(b"x" * 100, (PEER, 7000))
        (frame,) = nic.receive(1)
    (record,) = nic.records
    assert (record["gso"], record["segment"], record["header"] > 0) == (Gso.NONE, 0, False)
    assert record["flags"] == FrameFlag.NEEDS_CSUM
    assert (record["csum_start"], record["csum_offset"]) == (34, 6)
    assert Ether(frame)[UDP].chksum == pseudo_sum(Ether(frame), socket.IPPROTO_UDP, 108)


def test_receive_without_offloads(namespace: Namespace) -> None:
    """The kernel cuts and sums itself when told that the wire cannot."""
    nic = Nic(namespace, offloads=False)
    assert nic.wire.offloads == Offload.NONE
    with nic.socket() as sender:
        sender.setsockopt(socket.IPPROTO_UDP, UDP_SEGMENT, 1000)
        sender.sendto(b"x" * 3500, (PEER, 7000))
        frames = nic.receive(4)
    assert [len(frame) for frame in frames] == [1042, 1042, 1042, 542]
    for frame, record in zip(frames, nic.records, strict=True):
        assert (record["flags"], record["gso"], record["csum_start"]) == (0, 0, 0)
        packet = Ether(frame)
        found = packet[UDP].chksum
        del packet[UDP].chksum
        assert Ether(bytes(packet))[UDP].chksum == found
    nic.close()


@pytest.mark.parametrize("version", [4, 6])
def test_receive_tcp_gso(nic: Nic, version: int) -> None:
    """Steps: answer the kernel's SYN by hand, then let it send five segments.
    Verify: they come several to a frame, to be cut into the MSS that the SYN-ACK asked for.
    """
    needs(nic, Offload.TSO4 | Offload.TSO6)
    l3 = 20 if version == 4 else 40
    mss = 1400
    peer, host = (IP(src=PEER, dst=HOST), PEER) if version == 4 else (IPv6(src=PEER6, dst=HOST6), PEER6)
    with nic.socket(socket.AF_INET if version == 4 else socket.AF_INET6, socket.SOCK_STREAM) as client:
        client.setblocking(False)
        assert client.connect_ex((host, 7000)) == errno.EINPROGRESS
        syn = Ether(nic.receive(1)[0])[TCP]
        answer = TCP(
            sport=7000, dport=syn.sport, flags="SA", seq=1000, ack=syn.seq + 1, window=65535, options=[("MSS", mss)]
        )
        nic.send(Ether(src=PEER_MAC, dst=HOST_MAC) / peer / answer)
        nic.receive(1)
        assert select.select([], [client], [], 5)[1], "the kernel did not take the SYN-ACK"
        assert client.send(b"y" * 5 * mss) == 5 * mss
        while not any(record["gso"] for record in nic.records):
            nic.receive(1)
    frame, record = next(both for both in zip(nic.frames, nic.records, strict=True) if both[1]["gso"])
    assert record["gso"] == (Gso.TCPV4 if version == 4 else Gso.TCPV6)
    assert record["segment"] == mss
    assert record["header"] == 14 + l3 + 20
    # How many segments at a time is up to the kernel's pacing.
    segments, rest = divmod(len(frame) - int(record["header"]), mss)
    assert segments >= 2 and rest == 0
    assert record["flags"] == FrameFlag.NEEDS_CSUM
    assert (record["csum_start"], record["csum_offset"]) == (14 + l3, 16)


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("aggregated", [False, True])
def test_send_udp_gso(nic: Nic, version: int, aggregated: bool) -> None:
    """Steps: one GSO frame of 3,500 bytes into the tap, its checksum only begun.
    Verify: the socket gets four datagrams, or with UDP_GRO one and the size of a segment.
    """
    needs(nic, Offload.USO)
    l3 = 20 if version == 4 else 40
    payload = bytes(range(250)) * 14
    frame = to_host(payload, version=version)
    frame[UDP].chksum = pseudo_sum(frame, socket.IPPROTO_UDP, 3508)
    with nic.socket(socket.AF_INET if version == 4 else socket.AF_INET6, port=7000) as receiver:
        receiver.setsockopt(socket.IPPROTO_UDP, UDP_GRO, int(aggregated))
        batch = nic.send(
            frame, flags=FrameFlag.NEEDS_CSUM, gso=Gso.UDP_L4, segment=1000, header=14 + l3 + 8,
            csum_start=14 + l3, csum_offset=6,
        )  # fmt: skip
        header = struct.pack("<BBHHHHH", 1, 5, 14 + l3 + 8, 1000, 14 + l3, 6, 0)
        assert batch.data[:VNET_HEADER].tobytes() == header
        datagrams: list[bytes] = []
        while sum(map(len, datagrams)) < len(payload):
            datagram, control, _, _ = receiver.recvmsg(65536, 64)
            datagrams.append(datagram)
    if aggregated:
        assert datagrams == [payload]
        assert [(kind, struct.unpack_from("i", value)[0]) for _, kind, value in control] == [(UDP_GRO, 1000)]
    else:
        assert datagrams == [payload[start : start + 1000] for start in range(0, 3500, 1000)]
    assert nic.wire.counters["tx_frames"] == 1
    assert nic.wire.counters["tx_bytes"] == len(frame)


def test_send_begun_checksum(nic: Nic) -> None:
    """The kernel trusts a frame with NEEDS_CSUM; the same bytes without are a bad checksum."""
    frame = to_host(b"trust me")
    frame[UDP].chksum = pseudo_sum(frame, socket.IPPROTO_UDP, 16)
    with nic.socket(port=7000) as receiver:
        nic.send(frame)
        receiver.settimeout(0.1)
        with pytest.raises(TimeoutError):
            receiver.recv(100)
        nic.send(frame, flags=FrameFlag.NEEDS_CSUM, csum_start=34, csum_offset=6)
        assert receiver.recv(100) == b"trust me"


def test_send_tcp_gso_marks_cwr(nic: Nic) -> None:
    """A TCP frame with CWR set is marked for segmentation with ECN (virtio 1.2, 5.1.6)."""
    for flags, kind in (("A", 1), ("AC", 0x81)):
        segment = TCP(sport=9, dport=9, flags=flags) / Raw(bytes(3000))
        frame = Ether(src=PEER_MAC, dst=HOST_MAC) / IP(src=PEER, dst=HOST) / segment
        batch = nic.send(
            frame, flags=FrameFlag.NEEDS_CSUM, gso=Gso.TCPV4, segment=1000, header=54, csum_start=34, csum_offset=16
        )
        assert batch.data[:VNET_HEADER].tobytes() == struct.pack("<BBHHHHH", 1, kind, 54, 1000, 34, 16, 0)
        assert Ether(nic.receive(1)[0])[TCP].flags == "R", "the kernel took it for a segment to a closed port"


def test_many_frames(nic: Nic) -> None:
    """Steps: 900 datagrams each way, the outgoing ones in one batch.
    Verify: all arrive in order; on the way in it takes more than one batch.
    """
    nic.namespace.ip("link", "set", "nic0", "txqueuelen", "2000")
    payloads = [struct.pack("!I", number) * 10 for number in range(900)]
    with nic.socket(port=7000) as host:
        host.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, 4 << 20)
        host.setsockopt(socket.SOL_SOCKET, SO_SNDBUFFORCE, 4 << 20)
        for payload in payloads:
            host.sendto(payload, (PEER, 7000))
        frames = nic.receive(900)
        assert [frame[42:] for frame in frames] == payloads
        batch = Batch.of([bytes(to_host(payload)) for payload in payloads], headroom=VNET_HEADER)
        assert nic.wire.send(batch)
        assert batch.sent == 900
        assert [host.recv(100) for _ in payloads] == payloads
    assert nic.wire.counters["tx_frames"] == 900


def test_interface_down(nic: Nic, caplog: pytest.LogCaptureFixture) -> None:
    """Frames are counted as lost while it is down, and travel again when it is up."""
    nic.namespace.ip("link", "set", "nic0", "down")
    batch = Batch.of([bytes(to_host(b"x"))] * 3, headroom=VNET_HEADER)
    assert nic.wire.send(batch)
    assert batch.sent == 3
    assert nic.wire.counters["interface_down"] == 3
    assert nic.wire.counters["tx_frames"] == 0
    assert caplog.text.count("interface_down") == 1
    assert nic.wire.up and nic.link == []
    nic.namespace.ip("link", "set", "nic0", "up")
    with nic.socket(port=7000) as host:
        nic.send(to_host(b"back"))
        assert host.recv(100) == b"back"


def test_refused_frame(nic: Nic) -> None:
    """Frames that the kernel or the wire does not take are counted; those around them travel."""
    batch = Batch()
    good = bytes(to_host(b"good"))
    batch.append(good)  # no room for the header
    batch.append(good, headroom=VNET_HEADER)
    batch.append(b"too short", headroom=VNET_HEADER)
    batch.append(good, headroom=VNET_HEADER, gso=Gso.UDP_L4, segment=0)
    batch.append(good, headroom=VNET_HEADER)
    with nic.socket(port=7000) as host:
        assert nic.wire.send(batch)
        assert [host.recv(100) for _ in range(2)] == [b"good"] * 2
    assert nic.wire.counters["refused_einval"] == 3
    assert nic.wire.counters["tx_frames"] == 2
    assert nic.wire.counters["tx_bytes"] == 2 * len(good)


def test_interface_deleted(nic: Nic) -> None:
    """The one end a tap knows: its link goes down for good, and what is sent is counted."""
    nic.namespace.ip("link", "delete", "nic0")
    nic.poller.run_once(1)
    assert nic.link == [False]
    assert nic.wire.send(Batch.of([b"x" * 60] * 2, headroom=VNET_HEADER))
    assert nic.wire.counters["not_connected"] == 2


def test_interface_deleted_noticed_by_send(nic: Nic) -> None:
    nic.namespace.ip("link", "delete", "nic0")
    batch = Batch.of([b"x" * 60] * 3, headroom=VNET_HEADER)
    assert nic.wire.send(batch)
    assert batch.sent == 3
    assert nic.wire.counters["not_connected"] == 3
    nic.poller.run_once(1)
    assert nic.link == [False]


def test_inherited_descriptor(namespace: Namespace) -> None:
    """A tap opened in another namespace is used from here."""
    theirs = namespace.run(TapWire, None)
    ours = TapWire(fd=os.dup(theirs._fd))
    assert ours.name == theirs.name == "tap:tap0"
    assert ours.offloads == theirs.offloads
    ours.stop()
    theirs.stop()


def test_busy_and_impossible_interfaces(namespace: Namespace) -> None:
    wire = namespace.run(TapWire, "nic0")
    with pytest.raises(WireError, match="another process"):
        namespace.run(TapWire, "nic0")
    wire.stop()
    with pytest.raises(WireError, match="no single-queue tap"):
        namespace.run(TapWire, "lo")
    with pytest.raises(WireError, match="at most 15 bytes"):
        TapWire("x" * 16)
    with open("/dev/net/tun", "r+b", 0) as unattached, pytest.raises(WireError, match="not attached"):
        TapWire(fd=unattached.fileno())


def test_send_waits_for_room(nic: Nic, monkeypatch: pytest.MonkeyPatch) -> None:
    """A kernel that says EAGAIN within a batch (TUNSETSNDBUF) is tried again when the tap can be written."""
    answers = iter([(1, 60, errno.EAGAIN), (3, 120, 0)])
    resumed: list[bool] = []
    batch = Batch.of([b"x" * 60] * 3, headroom=VNET_HEADER)
    monkeypatch.setattr(nic.wire, "_write", lambda *_: next(answers))
    monkeypatch.setattr(nic.wire, "_writable", lambda: resumed.append(nic.wire.send(batch)))
    assert not nic.wire.send(batch)
    assert batch.sent == 1
    for _ in range(3):
        nic.poller.run_once(0.1)
    assert resumed == [True]
    assert batch.sent == 3
    assert (nic.wire.counters["tx_frames"], nic.wire.counters["tx_bytes"]) == (3, 180)
