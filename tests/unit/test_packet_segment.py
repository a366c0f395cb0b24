"""Segments of random TCP and UDP packets reassemble, and each is byte for byte what scapy makes of it."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from packet_frames import ETHER, Frame, as_array, examples, frames, parsed
from scapy.layers.inet import IP, TCP, UDP
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import Ether
from scapy.packet import Packet, Raw

from nicmodel.packet.checksum import complete, pseudo
from nicmodel.packet.headers import L4
from nicmodel.packet.segment import segment_header

PATTERN = np.random.default_rng(1).integers(0, 256, 3000, np.uint8).tobytes()
CWR, PSH, FIN = 0x80, 0x08, 0x01


def segments(whole: bytes, mss: int, partial: bool = False) -> list[bytes]:
    """Cut a frame as the device does: a copy of the header, patched, before each slice of the payload."""
    template = parsed(as_array(whole))
    size, end = int(template[0]["payload"]), int(template[0]["length"])
    starts = range(size, end, mss)
    result = []
    for index, start in enumerate(starts):
        payload = whole[start : min(start + mss, end)]
        data = as_array(b"\xee" * 3 + whole[:size] + payload)
        headers = template.copy()
        segment_header(data, 3, headers, start - size, len(payload), index, index == 0, start == starts[-1])
        if partial:
            pseudo(data, 3, headers)
        else:
            complete(data, 3, headers, False)
        assert data[:3].tobytes() == b"\xee" * 3
        result.append(data[3:].tobytes())
    return result


def rebuilt(segment: Packet) -> Packet:
    """The same packet with every length and checksum computed by scapy."""
    packet = segment.copy()
    for kind, names in ((IP, ("len", "chksum")), (IPv6, ("plen",)), (TCP, ("chksum",)), (UDP, ("len", "chksum"))):
        if kind in packet:
            for name in names:
                delattr(packet[kind], name)
    return Ether(bytes(packet))


@examples
@given(
    frame=frames(
        l4=("tcp", "udp"), fragments=False, padded=False, payload=st.integers(1, 3000).map(lambda size: PATTERN[:size])
    ),
    cuts=st.integers(1, 20),
)
def test_segments_reassemble(frame: Frame, cuts: int) -> None:
    original, kind = frame.packet, TCP if frame.expected["l4"] == L4.TCP else UDP
    payload = bytes(original[kind].payload)
    mss = -(-len(payload) // cuts)
    found = segments(bytes(original), mss)
    assert len(found) == -(-len(payload) // mss)
    assert b"".join(segment[frame.expected["payload"] :] for segment in found) == payload
    for index, segment in enumerate(found):
        expected = original.copy()
        if IP in expected:
            expected[IP].id = (expected[IP].id + index) % 65536
        if kind is TCP:
            cleared = (0 if index == 0 else CWR) | (0 if index == len(found) - 1 else PSH | FIN)
            expected[TCP].seq = (expected[TCP].seq + index * mss) % 2**32
            expected[TCP].flags = int(expected[TCP].flags) & ~cleared
        expected[kind].remove_payload()
        expected[kind].add_payload(Raw(payload[index * mss : (index + 1) * mss]))
        assert bytes(rebuilt(expected)) == segment


def test_only_the_first_segment_has_cwr_and_only_the_last_psh_and_fin() -> None:
    whole = bytes(ETHER / IP(id=65535) / TCP(flags=0xFF) / bytes(25))
    found = [Ether(segment) for segment in segments(whole, 10)]
    assert [int(segment[TCP].flags) for segment in found] == [0xF6, 0x76, 0x7F]
    assert [segment[IP].id for segment in found] == [65535, 0, 1]


def test_lengths_of_the_template_are_not_used() -> None:
    """A packet above 64 KiB (IPv6 BIG TCP) has none."""
    payload = bytes(range(256)) * 300
    whole = bytes(ETHER / IPv6(plen=0) / TCP(flags="PA", seq=2**32 - 1) / payload)
    found = [Ether(segment) for segment in segments(whole, 8948)]
    assert b"".join(bytes(segment[TCP].payload) for segment in found) == payload
    assert [segment[TCP].seq for segment in found[:2]] == [2**32 - 1, 8947]
    assert all(bytes(rebuilt(segment)) == bytes(segment) for segment in found)


def test_partial_checksums_cover_the_segments_own_length() -> None:
    whole = bytes(ETHER / IP() / TCP() / bytes(range(250)))
    for partial, full in zip(segments(whole, 100, partial=True), segments(whole, 100), strict=True):
        data = as_array(partial)
        complete(data, 0, parsed(data), False)
        assert data.tobytes() == full
        words = as_array(partial[34:] + bytes(len(partial) % 2)).view(">u2").astype(int)
        total = int(words.sum())
        total = (total & 0xFFFF) + (total >> 16)
        assert 0xFFFF ^ ((total & 0xFFFF) + (total >> 16)) == int.from_bytes(full[50:52], "big")
