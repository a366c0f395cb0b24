"""An AF_PACKET wire on one end of a veth pair, with the kernel's stack on the other end."""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections.abc import Iterator

import numpy as np
import pytest
from namespace import own_namespace
from scapy.layers.inet import IP, UDP
from scapy.layers.l2 import Dot1AD, Dot1Q, Ether
from scapy.packet import Packet, Raw
from scapy.utils import checksum as internet_checksum

from nicmodel.packet.frames import MAX_FRAME, Batch, FrameFlag, Gso
from nicmodel.vfio_user.poll import Poller
from nicmodel.vm.namespace import Namespace
from nicmodel.wire import packet_socket
from nicmodel.wire.packet_socket import PacketSocketWire
from nicmodel.wire.vnet import VNET_HEADER
from nicmodel.wire.wire import WireError

UDP_SEGMENT = 103  # linux/udp.h
UDP_GRO = 104
SO_RCVBUFFORCE = 33  # asm-generic/socket.h

HOST_MAC, NIC_MAC = "02:00:00:00:00:01", "02:00:00:00:00:02"
HOST, NIC = "192.0.2.1", "192.0.2.2"


class Nic:
    """A wire at ``nic0``; its peer ``host0`` has an address. Noise of the stack is left out of what came."""

    def __init__(self, namespace: Namespace) -> None:
        self.namespace = namespace
        ip = namespace.ip
        ip("link", "add", "nic0", "type", "veth", "peer", "name", "host0")
        ip("link", "set", "nic0", "addrgenmode", "none", "up")
        ip("link", "set", "host0", "address", HOST_MAC, "addrgenmode", "none", "up")
        self.address("host0", HOST, NIC)
        self.wire = namespace.run(PacketSocketWire, "nic0")
        self.poller = Poller()
        self.frames: list[bytes] = []
        self.records: list[np.void] = []
        self.link: list[bool] = []
        self.resumed = 0
        self.wire.start(self.poller, self._receive, self._resume, lambda: self.link.append(self.wire.up))
        while not self.wire.up:  # the kernel reports a carrier a little later
            self.poller.run_once(5)
        self.link.clear()

    def address(self, interface: str, host: str, nic: str) -> None:
        self.namespace.ip("address", "add", f"{host}/24", "dev", interface)
        self.namespace.ip("neighbour", "add", nic, "lladdr", NIC_MAC, "dev", interface)

    def _receive(self, batch: Batch) -> None:
        for record, frame in zip(batch.frames.copy(), batch, strict=False):
            if frame[:6] == bytes.fromhex(NIC_MAC.replace(":", "")):
                self.frames.append(frame)
                self.records.append(record)

    def _resume(self) -> None:
        self.resumed += 1

    def receive(self, count: int) -> list[bytes]:
        """The next frames for the NIC, at least `count`; the records lie in `records`."""
        self.frames.clear()
        self.records.clear()
        for _ in range(50):
            self.poller.run_once(0.1)
            if len(self.frames) >= count:
                break
        assert len(self.frames) >= count
        return self.frames

    def send(self, frame: Packet | bytes, **record: int) -> None:
        batch = Batch()
        batch.append(bytes(frame), **record)  # type: ignore[arg-type]
        assert self.wire.send(batch)
        assert batch.sent == 1

    def socket(self, host: str = HOST, port: int = 0) -> socket.socket:
        made = self.namespace.run(socket.socket, socket.AF_INET, socket.SOCK_DGRAM)
        made.bind((host, port))
        made.settimeout(5)
        return made

    def close(self) -> None:
        self.wire.stop()
        self.poller.close()


@pytest.fixture
def namespace() -> Iterator[Namespace]:
    yield from own_namespace()


@pytest.fixture
def nic(namespace: Namespace) -> Iterator[Nic]:
    nic = Nic(namespace)
    yield nic
    nic.close()


def begun(frame: Packet) -> Packet:
    """The frame with only the pseudo-header's sum in its UDP checksum."""
    length = len(frame[UDP])
    addresses = socket.inet_aton(frame[IP].src) + socket.inet_aton(frame[IP].dst)
    frame[UDP].chksum = ~int(internet_checksum(addresses + struct.pack("!HH", socket.IPPROTO_UDP, length))) & 0xFFFF
    return frame


def raw_socket(nic: Nic) -> socket.socket:
    """At the peer, with virtio-net headers."""
    made = nic.namespace.run(socket.socket, socket.AF_PACKET, socket.SOCK_RAW, 0)
    made.setsockopt(packet_socket.SOL_PACKET, packet_socket.PACKET_VNET_HDR, 1)
    made.bind(("host0", 0))
    return made


def to_host(payload: bytes, *tags: Packet, host: str = HOST, nic: str = NIC) -> Packet:
    frame = Ether(src=NIC_MAC, dst=HOST_MAC)
    for tag in tags:
        frame = frame / tag
    return frame / IP(src=nic, dst=host) / UDP(sport=9, dport=7000) / Raw(payload)


def test_receive_gso_and_partial_checksum(nic: Nic) -> None:
    """Steps: one datagram, then one UDP_SEGMENT send of 3,500 bytes in segments of 1,000.
    Verify: two frames; records say what remains to be done.
    """
    with nic.socket() as sender:
        sender.sendto(b"x" * 100, (NIC, 7000))
        (frame,) = nic.receive(1)
        (record,) = nic.records
        assert (record["gso"], record["flags"]) == (Gso.NONE, FrameFlag.NEEDS_CSUM)
        assert (record["csum_start"], record["csum_offset"]) == (34, 6)
        assert frame == bytes(begun(Ether(frame)))
        sender.setsockopt(socket.IPPROTO_UDP, UDP_SEGMENT, 1000)
        sender.sendto(bytes(range(250)) * 14, (NIC, 7000))
        (frame,) = nic.receive(1)
    (record,) = nic.records
    assert frame.endswith(bytes(range(250)) * 14)
    assert (record["gso"], record["segment"], record["header"]) == (Gso.UDP_L4, 1000, 42)
    assert (record["flags"], record["csum_start"]) == (FrameFlag.NEEDS_CSUM, 34)


@pytest.mark.parametrize("tag", [Dot1Q(vlan=5, prio=3), Dot1AD(vlan=5)], ids=["802.1Q", "802.1ad"])
def test_vlan_tag_received(nic: Nic, tag: Packet) -> None:
    """Steps: from the peer's raw socket, a tagged frame, one tagged twice, and a tagged GSO frame.
    Verify: tags are back in their place, and count in the record.
    """
    frame = Ether(src=HOST_MAC, dst=NIC_MAC) / tag / IP(src=HOST, dst=NIC) / UDP() / Raw(b"tagged" * 500)
    twice = Ether(src=HOST_MAC, dst=NIC_MAC) / tag / Dot1Q(vlan=7) / IP(src=HOST, dst=NIC) / UDP() / b"tagged"
    whole = struct.pack("<BBHHHH", FrameFlag.NEEDS_CSUM, Gso.UDP_L4, 46, 1000, 38, 6)
    with raw_socket(nic) as host:
        host.send(bytes(VNET_HEADER) + bytes(twice))
        host.send(whole + bytes(begun(frame)))
        assert nic.receive(2) == [bytes(twice), bytes(frame)]
    plain, record = nic.records
    assert (plain["flags"], plain["gso"], plain["csum_start"], plain["header"]) == (0, 0, 0, 0)
    assert (record["flags"], record["gso"], record["segment"]) == (FrameFlag.NEEDS_CSUM, Gso.UDP_L4, 1000)
    assert (record["length"], record["csum_start"], record["header"]) == (14 + 4 + 28 + 3000, 38, 46)


def test_vlan_tag_sent(nic: Nic) -> None:
    """What a wire sends another one receives, tags, segments and all."""
    frame = begun(to_host(bytes(3000), Dot1Q(vlan=5)))
    fields = {"flags": 1, "gso": Gso.UDP_L4, "segment": 1000, "header": 46, "csum_start": 38, "csum_offset": 6}
    peer = nic.namespace.run(PacketSocketWire, "host0")
    poller = Poller()
    arrived: list[tuple[bytes, np.void]] = []

    def receive(batch: Batch) -> None:
        arrived.extend(zip(batch, batch.frames.copy(), strict=False))

    peer.start(poller, receive, lambda: None, lambda: None)
    nic.send(frame, **fields)
    while not arrived:
        assert poller.run_once(5)
    [(octets, record)] = arrived
    assert octets == bytes(frame)
    assert {name: record[name] for name in fields} == fields
    peer.stop()
    poller.close()


@pytest.mark.parametrize("aggregated", [False, True])
def test_send_gso(nic: Nic, aggregated: bool) -> None:
    """One GSO frame, its checksum only begun: four datagrams, or with UDP_GRO one and the size of a segment."""
    payload = bytes(range(250)) * 14
    with nic.socket(port=7000) as receiver:
        receiver.setsockopt(socket.IPPROTO_UDP, UDP_GRO, int(aggregated))
        nic.send(
            begun(to_host(payload)), flags=FrameFlag.NEEDS_CSUM, gso=Gso.UDP_L4, segment=1000, header=42,
            csum_start=34, csum_offset=6,
        )  # fmt: skip
        datagrams: list[bytes] = []
        while sum(map(len, datagrams)) < len(payload):
            datagrams.append(receiver.recv(65536))
    assert datagrams == ([payload] if aggregated else [payload[at : at + 1000] for at in range(0, 3500, 1000)])
    assert nic.wire.counters["tx_frames"] == 1


def test_send_begun_checksum(nic: Nic) -> None:
    """The kernel trusts a frame with NEEDS_CSUM; the same bytes without are a bad checksum."""
    frame = begun(to_host(b"trust me"))
    with nic.socket(port=7000) as receiver:
        nic.send(frame)
        nic.send(frame, flags=FrameFlag.NEEDS_CSUM, csum_start=34, csum_offset=6)
        assert receiver.recv(100) == b"trust me"
        receiver.settimeout(0.1)
        with pytest.raises(TimeoutError):
            receiver.recv(100)


def test_many_frames_and_none_of_our_own(nic: Nic) -> None:
    """Steps: 300 datagrams each way, the outgoing ones in one batch.
    Verify: all arrive in order; what the NIC has sent does not come back to it.
    """
    payloads = [struct.pack("!I", number) * 10 for number in range(300)]
    with nic.socket(port=7000) as host:
        host.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, 4 << 20)
        batch = Batch.of([bytes(to_host(payload)) for payload in payloads])
        assert nic.wire.send(batch)
        assert batch.sent == 300
        assert [host.recv(100) for _ in payloads] == payloads
        for payload in payloads:
            host.sendto(payload, (NIC, 7000))
        assert [frame[42:] for frame in nic.receive(300)] == payloads
    assert nic.wire.counters["rx_frames"] == nic.wire.counters["tx_frames"] == 300
    assert nic.wire.counters["rx_bytes"] == nic.wire.counters["tx_bytes"] == 300 * 82


def test_promiscuous(nic: Nic) -> None:
    """The interface takes frames to the NIC's address, which is not its own."""
    assert "promiscuity 1" in nic.namespace.ip("-details", "link", "show", "nic0")
    nic.wire.stop()
    assert "promiscuity 0" in nic.namespace.ip("-details", "link", "show", "nic0")


def test_socket_buffer_full(nic: Nic, caplog: pytest.LogCaptureFixture) -> None:
    """What the kernel drops before the wire sees it is counted as well."""
    nic.wire._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)
    with nic.socket() as sender:
        for _ in range(100):
            sender.sendto(b"x" * 1000, (NIC, 7000))
        arrived = len(nic.receive(1))
    assert nic.wire.counters["receive_buffer_full"] == 100 - arrived
    assert "receive_buffer_full" in caplog.text


def test_link_follows_the_carrier(nic: Nic) -> None:
    assert nic.wire.up
    for state in ("down", "up"):
        nic.namespace.ip("link", "set", "host0", state)
        for _ in range(10):
            nic.poller.run_once(0.1)
        assert nic.wire.up == (state == "up")
        nic.send(bytes(60))
    assert nic.link == [False, True]
    assert nic.wire.counters["interface_down"] == 1
    assert nic.wire.counters["tx_frames"] == 1


def test_interface_down_noticed_by_send(nic: Nic) -> None:
    nic.namespace.ip("link", "set", "nic0", "down")
    assert nic.wire.send(Batch.of([bytes(60)] * 3))
    assert nic.wire.counters["interface_down"] == 3


def test_renamed_and_deleted(nic: Nic, caplog: pytest.LogCaptureFixture) -> None:
    nic.namespace.ip("link", "property", "add", "dev", "nic0", "altname", "other")
    nic.namespace.ip("link", "set", "nic0", "down")
    nic.namespace.ip("link", "set", "nic0", "name", "new0")
    nic.namespace.ip("link", "set", "new0", "up")
    for _ in range(10):
        nic.poller.run_once(0.1)
    assert nic.wire.up
    nic.namespace.ip("link", "delete", "new0")
    for _ in range(10):
        nic.poller.run_once(0.1)
    assert not nic.wire.up
    assert "the interface is gone" in caplog.text
    nic.send(bytes(60))
    assert nic.wire.counters["interface_down"] == 1


def test_refused_frame(nic: Nic) -> None:
    """A frame above the interface's MTU is counted; those around it travel."""
    frames = [bytes(to_host(payload)) for payload in (b"before", bytes(1473), b"after")]
    with nic.socket(port=7000) as host:
        assert nic.wire.send(Batch.of(frames))
        assert [host.recv(100) for _ in range(2)] == [b"before", b"after"]
    assert nic.wire.counters["refused_emsgsize"] == 1


def test_longest_frame(nic: Nic) -> None:
    """The largest IP packet, twice tagged, each way through the peer's raw socket."""
    nic.namespace.ip("link", "set", "nic0", "mtu", "65535")
    nic.namespace.ip("link", "set", "host0", "mtu", "65535")
    with nic.namespace.run(
        socket.socket, socket.AF_PACKET, socket.SOCK_RAW, socket.htons(packet_socket.ETH_P_ALL)
    ) as host:
        host.bind(("host0", packet_socket.ETH_P_ALL))
        host.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, 4 << 20)
        frame = bytes(Ether(src=HOST_MAC, dst=NIC_MAC, type=0x9000)) + bytes(65535)
        host.send(frame)
        assert nic.receive(1) == [frame]
        nic.send(frame)
        assert host.recv(MAX_FRAME) == frame


def test_send_waits_for_room(nic: Nic, monkeypatch: pytest.MonkeyPatch) -> None:
    """A kernel that says EAGAIN within a batch is tried again when the socket can be written."""
    answers = iter([(1, 60, errno.EAGAIN), (3, 120, 0)])
    batch = Batch.of([bytes(60)] * 3)
    monkeypatch.setattr(nic.wire, "_write", lambda *_: next(answers))
    assert not nic.wire.send(batch)
    assert batch.sent == 1
    while not nic.resumed:
        nic.poller.run_once(0.1)
    assert nic.wire.send(batch)
    assert (nic.wire.counters["tx_frames"], nic.wire.counters["tx_bytes"]) == (3, 180)


def test_interfaces_that_cannot_be(namespace: Namespace) -> None:
    with pytest.raises(WireError, match="packet:nowhere0: "):
        namespace.run(PacketSocketWire, "nowhere0")
    if not os.path.exists("/dev/net/tun"):
        pytest.skip("no /dev/net/tun")
    namespace.ip("tuntap", "add", "dev", "raw0", "mode", "tun")
    with pytest.raises(WireError, match="no Ethernet"):
        namespace.run(PacketSocketWire, "raw0")


def test_without_the_right(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> socket.socket:
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(socket, "socket", refuse)
    with pytest.raises(WireError, match="root, or the capability"):
        PacketSocketWire("eth0")
