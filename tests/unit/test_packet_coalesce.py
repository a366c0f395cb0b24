"""Which TCP segments become one packet: each rule both ways, and that segmenting the packet gives them back."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from packet_frames import ETHER, as_array, examples, parsed
from scapy.layers.inet import IP, TCP, IPOption_NOP
from scapy.layers.inet6 import IPv6, IPv6ExtHdrDestOpt, IPv6ExtHdrFragment, IPv6ExtHdrHopByHop
from scapy.layers.l2 import Dot1AD, Dot1Q, Ether
from scapy.packet import Packet, Raw
from test_packet_segment import segments

from nicmodel.packet.checksum import complete
from nicmodel.packet.coalesce import AGGREGATE, continues, extend, merge_header, mergeable, open_aggregate, same_flow

PATTERN = np.random.default_rng(2).integers(0, 256, 3000, np.uint8).tobytes()
HASH = 0x80000001
TIMESTAMP = [("NOP", None), ("NOP", None), ("Timestamp", (7, 8))]


def segment(v: int, number: int = 0, size: int = 100, **fields: Any) -> bytes:
    """Segment `number` of a flow; fields of IP and TCP by scapy's names, and ``vlan``, ``src_mac``, ``options``."""
    packet: Packet = ETHER.copy()
    if "src_mac" in fields:
        packet.src = fields.pop("src_mac")
    if "vlan" in fields:
        packet /= Dot1Q(vlan=fields.pop("vlan"))
    payload = fields.pop("payload", size)
    own = {name: fields.pop(name) for name in list(fields) if hasattr(TCP(), name) and name not in ("id", "dst", "src")}
    if v == 4:
        packet /= IP(**{"src": "10.0.0.1", "dst": "10.0.0.2", "id": 8 + number, "flags": "DF"} | fields)
    else:
        packet /= IPv6(**{"src": "fd00::1", "dst": "fd00::2"} | fields)
    defaults = {
        "sport": 4000,
        "dport": 5000,
        "seq": 100 + number * size,
        "ack": 200,
        "flags": "A",
        "options": TIMESTAMP,
    }
    return bytes(packet / TCP(**defaults | own) / Raw(PATTERN[number * size : number * size + payload]))


def coalesced(frames: Sequence[bytes]) -> tuple[list[bool], bytes]:
    """Offer frames to the packet that the first opens, until one is refused or was the last.

    Returns:
        Whether each after the first was taken and the next may come; the packet, with its checksum completed.
    """
    data = as_array(b"".join(frames))
    starts = np.cumsum([0, *map(len, frames)]).tolist()
    headers = parsed(data, 0, len(frames[0]))
    assert mergeable(data, 0, headers)
    aggregates = np.frombuffer(b"\xa5" * AGGREGATE.itemsize, AGGREGATE).copy().view(np.recarray)
    aggregate: Any = aggregates[0]
    open_aggregate(aggregate, 0, headers, HASH, 3)
    assert aggregate.first == aggregate.last == 3
    header = int(headers[0]["payload"])
    payload = [data[header : int(headers[0]["length"])].tobytes()]
    taken = []
    for start, frame in zip(starts[1:], frames[1:], strict=False):
        headers = parsed(data, start, len(frame))
        taken.append(
            bool(
                mergeable(data, start, headers)
                and same_flow(data, start, headers, HASH, aggregate)
                and continues(data, start, headers, aggregate)
            )
        )
        if not taken[-1]:
            break
        payload.append(data[start + header : start + int(headers[0]["length"])].tobytes())
        if extend(data, start, headers, aggregate):
            taken.append(False)
            break
    joined = b"".join(payload)
    assert (aggregate.count, aggregate.payload, aggregate.segment) == (len(payload), len(joined), len(payload[0]))
    first = parsed(data, 0, len(frames[0]))
    merge_header(data, 0, first, len(joined), int(aggregate.tcp_flags))
    assert first[0]["length"] == header + len(joined)
    whole = as_array(data[:header].tobytes() + joined)
    complete(whole, 0, first, False)
    return taken, whole.tobytes()


BOTH: list[tuple[str, dict[str, Any], dict[str, Any], bool]] = [
    ("next", {}, {}, True),
    ("repeated", {}, {"seq": 100}, False),
    ("gap", {}, {"seq": 201}, False),
    ("overlap", {}, {"seq": 199}, False),
    ("sequence wraps", {"seq": 2**32 - 1}, {"seq": 99}, True),
    ("acknowledgement", {}, {"ack": 201}, False),
    ("window", {}, {"window": 1}, False),
    ("urgent pointer", {}, {"urgptr": 1}, False),
    ("other timestamp", {}, {"options": [*TIMESTAMP[:2], ("Timestamp", (8, 8))]}, False),
    ("options in other order", {}, {"options": TIMESTAMP[1:] + TIMESTAMP[:1]}, False),
    ("no options", {"options": []}, {"options": []}, True),
    ("fewer options", {}, {"options": []}, False),
    ("PSH", {}, {"flags": "PA"}, True),
    ("FIN", {}, {"flags": "FA"}, True),
    ("SYN", {}, {"flags": "SA"}, False),
    ("RST", {}, {"flags": "RA"}, False),
    ("URG", {}, {"flags": "UA"}, False),
    ("no ACK", {}, {"flags": ""}, False),
    ("CWR", {}, {"flags": "AC"}, False),
    ("CWR on both", {"flags": "AC"}, {"flags": "AC"}, True),
    ("ECE", {}, {"flags": "AE"}, False),
    ("ECE on both", {"flags": "AE"}, {"flags": "AE"}, True),
    ("reserved bit", {}, {"reserved": 1}, False),
    ("smaller", {}, {"payload": 99}, True),
    ("one byte", {}, {"payload": 1}, True),
    ("larger", {}, {"payload": 101}, False),
    ("empty", {}, {"payload": 0}, False),
    ("source port", {}, {"sport": 4001}, False),
    ("destination port", {}, {"dport": 5001}, False),
    ("MAC", {}, {"src_mac": "02:00:00:00:00:09"}, False),
    ("VLAN", {"vlan": 5}, {"vlan": 5}, True),
    ("other VLAN", {"vlan": 5}, {"vlan": 6}, False),
    ("no VLAN", {"vlan": 5}, {}, False),
]
ONLY4: list[tuple[str, dict[str, Any], dict[str, Any], bool]] = [
    ("source", {}, {"src": "10.0.0.3"}, False),
    ("destination", {}, {"dst": "10.0.0.3"}, False),
    ("time to live", {}, {"ttl": 7}, False),
    ("type of service", {}, {"tos": 4}, False),
    ("ECN", {}, {"tos": 2}, False),
    ("ECN on both", {"tos": 2}, {"tos": 2}, True),
    ("DF", {}, {"flags_": ""}, False),
    ("identification fixed", {}, {"id": 8}, True),
    ("identification jumps", {}, {"id": 10}, False),
    ("identification goes back", {}, {"id": 7}, False),
    ("identification wraps", {"id": 65535}, {"id": 0}, True),
    ("IP options", {}, {"options_": [IPOption_NOP()] * 4}, False),
    ("fragment", {}, {"flags_": "MF"}, False),
]
ONLY6: list[tuple[str, dict[str, Any], dict[str, Any], bool]] = [
    ("source", {}, {"src": "fd00::3"}, False),
    ("destination", {}, {"dst": "fd01::2"}, False),
    ("hop limit", {}, {"hlim": 7}, False),
    ("traffic class", {}, {"tc": 4}, False),
    ("ECN", {}, {"tc": 2}, False),
    ("flow label", {}, {"fl": 1}, False),
    ("flow label on both", {"fl": 0xFFFFF}, {"fl": 0xFFFFF}, True),
]
CASES = [(4, *case) for case in BOTH + ONLY4] + [(6, *case) for case in BOTH + ONLY6]


def built(v: int, number: int, fields: dict[str, Any]) -> bytes:
    """As `segment`; ``flags_`` and ``options_`` are IP's."""
    ip = {name[:-1]: value for name, value in fields.items() if name.endswith("_")}
    frame = segment(v, number, **{name: value for name, value in fields.items() if not name.endswith("_")})
    if not ip:
        return frame
    packet = Ether(frame)
    for name, value in ip.items():
        setattr(packet[IP], name, value)
    del packet[IP].ihl, packet[IP].len, packet[IP].chksum
    return bytes(packet)


@pytest.mark.parametrize(
    ("v", "first", "second", "expected"),
    [(v, first, second, expected) for v, _, first, second, expected in CASES],
    ids=[f"IPv{case[0]} {case[1]}" for case in CASES],
)
def test_rule(v: int, first: dict[str, Any], second: dict[str, Any], expected: bool) -> None:
    taken, _ = coalesced([built(v, 0, first), built(v, 1, second)])
    assert taken[0] == expected


@pytest.mark.parametrize("header", [IPv6ExtHdrHopByHop(), IPv6ExtHdrDestOpt(), IPv6ExtHdrFragment()])
def test_extension_headers_are_left_alone(header: Packet) -> None:
    data = as_array(bytes(ETHER / IPv6(src="fd00::1", dst="fd00::2") / header / TCP(flags="A") / b"payload"))
    assert not mergeable(data, 0, parsed(data))


@pytest.mark.parametrize("v", [4, 6])
def test_a_length_of_zero_is_left_alone(v: int) -> None:
    """What the IP header does not tell (BIG TCP) could not be told of the whole either."""
    frame = as_array(segment(v))
    frame[16 if v == 4 else 18 :][:2] = 0
    headers = parsed(frame)
    assert headers[0]["payload"] > 0
    assert not mergeable(frame, 0, headers)


@pytest.mark.parametrize(
    ("numbers", "merged"),
    [((8, 9, 10), 3), ((8, 8, 8), 3), ((8, 9, 9), 2), ((8, 8, 9), 2), ((65534, 65535, 0), 3), ((8, 10, 12), 1)],
)
@pytest.mark.parametrize("df", ["DF", ""])
def test_identification(numbers: tuple[int, ...], merged: int, df: str) -> None:
    """It counts, or it stays, and the second segment says which."""
    frames = [built(4, index, {"id": number, "flags_": df}) for index, number in enumerate(numbers)]
    taken, _ = coalesced(frames)
    assert 1 + sum(taken) == merged


@pytest.mark.parametrize("last", [{"flags": "PA"}, {"flags": "FA"}, {"payload": 60}])
def test_what_ends_a_packet(last: dict[str, Any]) -> None:
    """PSH, FIN and a smaller segment are taken, and nothing after them."""
    frames = [segment(4), segment(4, 1, **last), segment(4, 2)]
    taken, whole = coalesced(frames)
    assert taken == [True, False]
    packet = Ether(whole)
    assert packet[TCP].flags == last.get("flags", "A")
    assert bytes(packet[TCP].payload) == PATTERN[: 100 + last.get("payload", 100)]


def test_padding_is_no_payload() -> None:
    frames = [segment(4, options=[]), segment(4, 1, payload=1, options=[]).ljust(60, b"\xee")]
    taken, whole = coalesced(frames)
    assert taken == [True, False]
    assert bytes(Ether(whole)[TCP].payload) == PATTERN[:101]


def test_flows_are_told_apart() -> None:
    """By addresses and ports, also where hashes are equal; not by VLAN: such a frame must not overtake either."""
    data = as_array(segment(4))
    aggregate: Any = np.zeros(1, AGGREGATE).view(np.recarray)[0]
    open_aggregate(aggregate, 0, parsed(data), HASH, 0)
    for fields, same in (
        ({}, True), ({"vlan": 7}, True), ({"seq": 5, "flags": "R"}, True), ({"sport": 1}, False), ({"dport": 1}, False),
        ({"src": "10.0.0.3"}, False), ({"dst": "10.0.0.3"}, False),
    ):  # fmt: skip
        both = as_array(segment(4) + segment(4, 1, **fields))
        headers = parsed(both, len(data))
        assert same_flow(both, len(data), headers, HASH, aggregate) == same
        assert not same_flow(both, len(data), headers, HASH - 1, aggregate)


@st.composite
def wholes(draw: st.DrawFn) -> tuple[bytes, int]:
    """A TCP packet that a peer's TSO would take, and a segment size."""
    packet: Packet = ETHER.copy()
    for tag in (Dot1AD, Dot1Q)[2 - draw(st.integers(0, 2)) :]:
        packet /= tag(vlan=draw(st.integers(1, 4094)))
    if draw(st.booleans()):
        packet /= IP(
            src="10.0.0.1", dst="10.0.0.2", tos=draw(st.integers(0, 255)), ttl=draw(st.integers(1, 255)),
            id=draw(st.integers(0, 65535)), flags=draw(st.sampled_from(["", "DF"])),
        )  # fmt: skip
    else:
        packet /= IPv6(src="fd00::1", dst="fd00::2", tc=draw(st.integers(0, 255)), fl=draw(st.integers(0, 2**20 - 1)))
    packet /= TCP(
        seq=draw(st.integers(0, 2**32 - 1)), ack=draw(st.integers(0, 2**32 - 1)), window=draw(st.integers(0, 65535)),
        flags=draw(st.sampled_from(["A", "PA", "FA", "FPA", "EA", "EPA"])),
        options=[("NOP", None)] * (4 * draw(st.integers(0, 10))),
    )  # fmt: skip
    size = draw(st.integers(2, 3000))
    return bytes(packet / Raw(PATTERN[:size])), -(-size // draw(st.integers(2, 20)))


@examples
@given(wholes())
def test_coalescing_undoes_segmentation(case: tuple[bytes, int]) -> None:
    """*Steps*: segments of a random packet. *Verify*: they become that packet, which has those segments."""
    whole, mss = case
    cut = segments(whole, mss)
    taken, again = coalesced(cut)
    assert all(taken[: len(cut) - 1])
    assert again == whole
    assert segments(again, mss) == cut
