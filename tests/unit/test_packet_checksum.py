"""Checksums against scapy's own, and against the sum as RFC 1071 writes it."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from packet_frames import ETHER, Bytes, Frame, Headers, as_array, examples, frames, parsed
from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.inet6 import IPv6, in6_chksum
from scapy.layers.l2 import ARP
from scapy.layers.sctp import SCTP
from scapy.packet import Packet, Raw

from nicmodel.packet.checksum import ChecksumError, complete, fold, ones_sum, pseudo, verifiable, verify
from nicmodel.packet.headers import L3, L4

FIELD = {L4.TCP: 16, L4.UDP: 6, L4.ICMP: 2}


def plain_sum(data: bytes, initial: int = 0) -> int:
    """RFC 1071, section 4.1: 16-bit words, carries added back in."""
    padded = data + bytes(len(data) % 2)
    total = initial + sum(int.from_bytes(padded[i : i + 2], "big") for i in range(0, len(padded), 2))
    while total > 0xFFFF:
        total = (total & 0xFFFF) + (total >> 16)
    return total


def same_sum(one: int, other: int) -> bool:
    """0 and 0xffff are both zero in one's complement."""
    return one % 0xFFFF == other % 0xFFFF and (one == 0) == (other == 0)


def field_of(headers: Headers) -> int:
    return int(headers[0]["l4_offset"]) + FIELD[L4(headers[0]["l4"])]


@examples
@given(data=st.binary(max_size=200), before=st.integers(0, 9), after=st.integers(0, 9), initial=st.integers(0, 2**61))
def test_sum(data: bytes, before: int, after: int, initial: int) -> None:
    inside = as_array(b"\xff" * before + data + b"\xff" * after)
    assert same_sum(fold(ones_sum(inside, before, len(data), initial)), plain_sum(data, initial))


@pytest.mark.parametrize("count", [65_535, 65_536, 262_143])
def test_sum_of_much(count: int) -> None:
    data = np.full(count, 0xFF, np.uint8)
    assert fold(ones_sum(data, 0, count, 0)) == plain_sum(data.tobytes())


@given(total=st.integers(0, 2**63 - 1))
def test_fold(total: int) -> None:
    assert same_sum(fold(total), total) if total < 0x10000 else fold(total) % 0xFFFF == total % 0xFFFF
    assert 0 <= fold(total) <= 0xFFFF


@examples
@given(frame=frames())
def test_valid_frames_verify(frame: Frame) -> None:
    data = as_array(bytes(frame))
    headers = parsed(data)
    assert verify(data, 0, headers) == ChecksumError.NONE
    assert verifiable(headers) == (frame.expected["l4"] in (L4.TCP, L4.UDP, L4.ICMP))


@examples
@given(frame=frames(l4=("tcp", "udp", "icmp"), fragments=False), place=st.integers(0), bit=st.integers(0, 7))
def test_one_wrong_bit_of_payload_is_an_l4_error(frame: Frame, place: int, bit: int) -> None:
    start, end = frame.expected["payload"], frame.expected["length"]
    if frame.expected["l4"] == L4.ICMP:
        start += 8
    assume(start < end)
    data = as_array(bytes(frame))
    data[start + place % (end - start)] ^= 1 << bit
    assert verify(data, 0, parsed(data)) == ChecksumError.L4


@examples
@given(frame=frames(), bit=st.integers(0, 7))
def test_one_wrong_bit_of_the_ipv4_header_is_an_ip_error(frame: Frame, bit: int) -> None:
    assume(frame.expected["l3"] == L3.IPV4)
    data = as_array(bytes(frame))
    data[frame.expected["l3_offset"] + 8] ^= 1 << bit  # TTL, which no other checksum covers
    assert verify(data, 0, parsed(data)) == ChecksumError.IP


@pytest.mark.parametrize(
    ("packet", "errors"),
    [
        (IP() / UDP(chksum=0) / b"abc", ChecksumError.NONE),
        (IPv6() / UDP(chksum=0) / b"abc", ChecksumError.NONE),
        (IP(chksum=1) / UDP(chksum=1) / b"abc", ChecksumError.IP | ChecksumError.L4),
        (IP() / ICMP(chksum=1), ChecksumError.L4),
        (IP() / SCTP(chksum=1), ChecksumError.NONE),
        (IP(flags="MF") / TCP(chksum=1), ChecksumError.NONE),
        (ARP(), ChecksumError.NONE),
    ],
    ids=repr,
)
def test_what_is_an_error(packet: Packet, errors: ChecksumError) -> None:
    data = as_array(bytes(ETHER / packet))
    assert verify(data, 0, parsed(data)) == errors


def test_udp_sums_what_its_own_length_says() -> None:
    """IP may carry more than UDP says; the rest is not UDP's (Linux trims it)."""
    frame = bytes(ETHER / IP() / UDP() / b"abcdef")
    data = as_array(frame + b"more")
    write(data, 16, len(data) - 14)
    headers = parsed(data)
    complete(data, 0, headers, True)
    assert data[40:42].tobytes() == frame[40:42]
    assert verify(data, 0, headers) == ChecksumError.NONE


@examples
@given(frame=frames(), rubbish=st.integers(0, 0xFFFF), headroom=st.integers(0, 3))
def test_complete_gives_scapys_bytes(frame: Frame, rubbish: int, headroom: int) -> None:
    whole = bytes(headroom) + bytes(frame)
    data = as_array(whole)
    headers = parsed(data, headroom)
    if headers[0]["l4"] in (L4.TCP, L4.UDP):
        write(data, headroom + field_of(headers), rubbish)
    if headers[0]["l3"] == L3.IPV4:
        write(data, headroom + int(headers[0]["l3_offset"]) + 10, rubbish)
    complete(data, headroom, headers, True)
    assert data.tobytes() == whole


def test_complete_leaves_the_ipv4_header_alone_unless_asked() -> None:
    data = as_array(bytes(ETHER / IP(chksum=0x1234) / TCP(chksum=0x1234)))
    headers = parsed(data)
    complete(data, 0, headers, False)
    assert verify(data, 0, headers) == ChecksumError.IP


def test_a_udp_checksum_of_zero_is_sent_as_all_ones() -> None:
    data = as_array(bytes(ETHER / IP() / UDP() / b"\0\0"))
    headers = parsed(data)
    data[42:44] = data[40:42]  # the payload is now what makes the sum 0xffff
    complete(data, 0, headers, False)
    assert data[40:42].tobytes() == b"\xff\xff"
    assert verify(data, 0, headers) == ChecksumError.NONE


@examples
@given(frame=frames(l4=("tcp", "udp"), fragments=False), rubbish=st.integers(0, 0xFFFF))
def test_a_pseudo_sum_is_completed_by_the_plain_sum(frame: Frame, rubbish: int) -> None:
    """What Linux's skb_checksum_help does with CHECKSUM_PARTIAL gives what scapy computed."""
    whole = bytes(frame)
    data = as_array(whole)
    headers = parsed(data)
    field, start, end = field_of(headers), frame.expected["l4_offset"], frame.expected["length"]
    write(data, field, rubbish)
    pseudo(data, 0, headers)
    result = 0xFFFF ^ plain_sum(data[start:end].tobytes())
    if result == 0 and frame.expected["l4"] == L4.UDP:
        result = 0xFFFF
    assert result == int.from_bytes(whole[field : field + 2], "big")
    write(data, field, result)
    assert data.tobytes() == whole


def test_big_tcp_does_not_overflow() -> None:
    payload = np.random.default_rng(1).integers(0, 256, 200_001, np.uint8).tobytes()
    packet = IPv6(src="fd00::1", dst="fd00::2", plen=0) / TCP(chksum=0) / Raw(payload)
    data = as_array(bytes(ETHER / packet))
    headers = parsed(data)
    complete(data, 0, headers, True)
    assert int.from_bytes(data[70:72].tobytes(), "big") == in6_chksum(6, packet, bytes(packet.payload))
    assert verify(data, 0, headers) == ChecksumError.NONE
    pseudo(data, 0, headers)
    assert plain_sum(data[54:].tobytes()) == 0xFFFF ^ in6_chksum(6, packet, bytes(packet.payload))


def write(data: Bytes, at: int, value: int) -> None:
    data[at : at + 2] = [value >> 8, value & 0xFF]
