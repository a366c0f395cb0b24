"""What a wire does not take undone: cut and checksummed as scapy would build it."""

from __future__ import annotations

import numpy as np
import pytest
from scapy.layers.inet import IP, TCP, UDP
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import Dot1Q, Ether
from scapy.packet import Packet, Raw

from nicmodel.packet.finish import are_taken, finish
from nicmodel.packet.frames import Batch, FrameFlag, Gso, Offload
from nicmodel.packet.headers import HEADERS

PAYLOAD = bytes(range(251)) * 12  # 3012 bytes: three segments of 1000 and one of 12
ETHERNET = Ether(src="02:00:00:00:00:01", dst="02:00:00:00:00:02")
IPV4 = IP(src="192.0.2.1", dst="192.0.2.2", id=100)
IPV6 = IPv6(src="2001:db8::1", dst="2001:db8::2")


def add(batch: Batch, packet: Packet, *, gso: Gso = Gso.NONE, segment: int = 0) -> None:
    """A frame whose checksum is still to be done."""
    frame = bytes(packet)
    l4 = TCP if TCP in packet else UDP
    start = len(frame) - len(packet[l4])
    header = len(frame) - len(packet[Raw])
    batch.append(
        frame, headroom=3, flags=FrameFlag.NEEDS_CSUM, gso=gso, segment=segment, header=header, csum_start=start,
        csum_offset=16 if l4 is TCP else 6,
    )  # fmt: skip


def finished(batch: Batch, offloads: Offload, *, headroom: int = 4, room: int = 100) -> tuple[Batch, int, int]:
    """The other batch, index of the first frame left over, and frames left out."""
    out = Batch(1 << 16, room)
    used, headers = np.zeros(3, np.int64), np.zeros(1, HEADERS)
    done = finish(
        batch.data, batch.frames, 0, batch.count, int(offloads), headroom, headers, out.data, out.frames, used
    )  # fmt: skip
    out.count, out.used = int(used[0]), int(used[1])
    return out, done, int(used[2])


@pytest.mark.parametrize("ip", [IPV4, IPV6], ids=["IPv4", "IPv6"])
@pytest.mark.parametrize("tagged", [False, True])
def test_tcp_is_cut(ip: Packet, tagged: bool) -> None:
    """Sequence numbers, identification, flags, lengths and checksums are what each segment needs."""
    base = ETHERNET / Dot1Q(vlan=5) if tagged else ETHERNET
    options = [("Timestamp", (1, 2)), ("NOP", None), ("NOP", None)]
    batch = Batch()
    gso = Gso.TCPV4 if ip is IPV4 else Gso.TCPV6
    add(batch, base / ip / TCP(seq=7, flags="PAFC", options=options) / Raw(PAYLOAD), gso=gso, segment=1000)
    assert not are_taken(batch.frames, 1, int(Offload.CSUM))
    assert not are_taken(batch.frames, 1, int(Offload.ALL & ~Offload.CSUM))
    assert are_taken(batch.frames, 1, int(Offload.ALL))
    before = batch.data.copy()
    out, done, lost = finished(batch, Offload.NONE)
    assert (done, lost) == (1, 0)
    expected = []
    for number, flags in enumerate(("AC", "A", "A", "PAF")):
        network = ip.copy()
        if ip is IPV4:
            network.id = 100 + number
        tcp = TCP(seq=7 + 1000 * number, flags=flags, options=options)
        expected.append(bytes(base / network / tcp / Raw(PAYLOAD[1000 * number :][:1000])))
    assert list(out) == expected
    for record in out.frames[:4]:
        assert (record["flags"], record["gso"], record["csum_start"]) == (0, Gso.NONE, 0)
    assert [int(record["offset"]) for record in out.frames[:2]] == [4, 4 + len(expected[0]) + 4]
    assert (batch.data == before).all()


@pytest.mark.parametrize("ip", [IPV4, IPV6], ids=["IPv4", "IPv6"])
def test_udp_is_cut(ip: Packet) -> None:
    batch = Batch()
    add(batch, ETHERNET / ip / UDP() / Raw(PAYLOAD), gso=Gso.UDP_L4, segment=1506)
    out, _, _ = finished(batch, Offload.TSO4 | Offload.TSO6)
    packets = [Ether(frame) for frame in out]
    assert [bytes(packet[Raw]) for packet in packets] == [PAYLOAD[:1506], PAYLOAD[1506:]]
    for packet in packets:
        assert packet[UDP].len == 8 + 1506
        found = packet[UDP].chksum
        del packet[UDP].chksum
        assert Ether(bytes(packet))[UDP].chksum == found


def test_checksum_alone() -> None:
    """A frame that is only checksummed, also in the middle of others that are taken."""
    batch = Batch()
    plain = bytes(ETHERNET / IPV4 / UDP() / Raw(b"plain"))
    frame = ETHERNET / IPV6 / UDP() / Raw(b"to be summed")
    whole = bytes(frame)
    frame[UDP].chksum = 0x1234
    batch.append(plain, headroom=1)
    add(batch, frame)
    batch.append(b"\0" * 14, flags=FrameFlag.CSUM_VALID)
    out, done, lost = finished(batch, Offload.NONE, headroom=0)
    assert (done, lost) == (3, 0)
    assert list(out) == [plain, whole, b"\0" * 14]
    assert out.frames["flags"][:3].tolist() == [0, 0, FrameFlag.CSUM_VALID]


def test_cut_but_not_checksummed() -> None:
    """A wire that takes bare checksums gets segments that it can complete: the pseudo-header's sum, and where."""
    batch = Batch()
    add(batch, ETHERNET / IPV4 / TCP() / Raw(PAYLOAD), gso=Gso.TCPV4, segment=1000)
    add(batch, ETHERNET / IPV6 / UDP() / Raw(PAYLOAD), gso=Gso.UDP_L4, segment=3000)
    out, _, _ = finished(batch, Offload.CSUM)
    assert out.frames["flags"][:6].tolist() == [FrameFlag.NEEDS_CSUM] * 6
    assert out.frames["csum_start"][:6].tolist() == [34] * 4 + [54] * 2
    assert out.frames["csum_offset"][:6].tolist() == [16] * 4 + [6] * 2
    again, _, _ = finished(out, Offload.NONE)
    batch.clear()
    add(batch, ETHERNET / IPV4 / TCP() / Raw(PAYLOAD), gso=Gso.TCPV4, segment=1000)
    add(batch, ETHERNET / IPV6 / UDP() / Raw(PAYLOAD), gso=Gso.UDP_L4, segment=3000)
    assert list(again) == list(finished(batch, Offload.NONE)[0])
    assert list(again) != list(out)


def test_taken_whole() -> None:
    """What the wire takes is copied with its record."""
    batch = Batch()
    add(batch, ETHERNET / IPV4 / TCP() / Raw(PAYLOAD), gso=Gso.TCPV4, segment=1000)
    add(batch, ETHERNET / IPV6 / TCP() / Raw(PAYLOAD), gso=Gso.TCPV6, segment=2000)
    out, _, _ = finished(batch, Offload.CSUM | Offload.TSO4)
    assert next(iter(out)) == next(iter(batch))
    for field in ("flags", "gso", "segment", "header", "csum_start", "csum_offset"):
        assert out.frames[0][field] == batch.frames[0][field]
    assert out.count == 3


def test_full_batch() -> None:
    """What does not fit is left for the next batch; what fits none is left out."""
    batch = Batch()
    for segment in (1000, 1000, 100):
        add(batch, ETHERNET / IPV4 / TCP() / Raw(PAYLOAD), gso=Gso.TCPV4, segment=segment)
    out, done, lost = finished(batch, Offload.NONE, room=7)
    assert (out.count, done, lost) == (4, 1, 0)
    out, done, lost = finished(Batch.over(batch.data, batch.frames[1:3]), Offload.NONE, room=8)
    assert (out.count, done, lost) == (4, 1, 0)
    out, done, lost = finished(Batch.over(batch.data, batch.frames[2:3]), Offload.NONE, room=8)
    assert (out.count, done, lost) == (0, 1, 1)


def test_what_cannot_be_cut() -> None:
    batch = Batch()
    batch.append(bytes(ETHERNET / IPV4 / Raw(b"x" * 100)), gso=Gso.TCPV4, segment=10)
    batch.append(bytes(ETHERNET / IPV4 / TCP() / Raw(b"x" * 100)), gso=Gso.TCPV4, segment=0)
    batch.append(bytes(ETHERNET / IPV4 / TCP()), gso=Gso.TCPV4, segment=10)
    batch.append(b"after")
    out, done, lost = finished(batch, Offload.NONE)
    assert (list(out), done, lost) == ([b"after"], 4, 3)
