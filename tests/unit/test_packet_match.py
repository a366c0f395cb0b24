"""Flow rules against a search written with Python integers."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from packet_frames import ETHER, Frame, as_array, examples, frames, parsed
from scapy.layers.inet import IP, TCP, UDP
from scapy.layers.inet6 import IPv6, IPv6ExtHdrFragment
from scapy.layers.sctp import SCTP
from scapy.packet import Packet, Raw

from nicmodel.packet.headers import L3
from nicmodel.packet.match import GROUP, RULE, SLOT, FlowType, index_rules, match, slots_for

LOCATIONS = 1024
PROTOCOLS = {6: FlowType.TCPV4, 17: FlowType.UDPV4, 132: FlowType.SCTPV4, 51: FlowType.AHV4, 50: FlowType.ESPV4}


def index(installed: dict[int, dict[str, Any]]) -> tuple[npt.NDArray[np.void], npt.NDArray[np.void]]:
    """What `match` searches, of the rules at these locations."""
    rules = np.zeros(LOCATIONS, RULE)
    for location, values in installed.items():
        rules[location]["installed"] = 1
        for name, value in values.items():
            if isinstance(value, bytes):
                rules[location][name][: len(value)] = np.frombuffer(value, np.uint8)
            else:
                rules[location][name] = value
    groups, slots = np.zeros(len(installed), GROUP), np.zeros(slots_for(len(installed)), SLOT)
    count = index_rules(rules, np.array(sorted(installed), np.int32), groups, slots)
    return groups[:count], slots


def first_match(installed: dict[int, dict[str, Any]], frame: Frame) -> int:
    """The rules' meaning, by number and by location."""
    found, whole = frame.expected, bytes(frame)
    size = found["address_size"]
    if found["protocol"] not in PROTOCOLS:
        return -1
    flow_type = PROTOCOLS[found["protocol"]] + (5 if found["l3"] == L3.IPV6 else 0)
    have: dict[str, int | None] = {
        "source": int.from_bytes(whole[found["source"] : found["source"] + size], "big"),
        "destination": int.from_bytes(whole[found["destination"] : found["destination"] + size], "big"),
        "source_port": found["source_port"] if found["ports"] else None,
        "destination_port": found["destination_port"] if found["ports"] else None,
        "spi": found["spi"] if found["has_spi"] else None,
        "tos": found["tos"],
    }
    for location, rule in sorted(installed.items()):
        if rule["flow_type"] == flow_type and all(
            matches(number(rule.get(name, 0), size), number(rule.get(f"{name}_mask", 0), size), value)
            for name, value in have.items()
        ):
            return location
    return -1


def number(value: bytes | int, size: int) -> int:
    return int.from_bytes(value[:size], "big") if isinstance(value, bytes) else value


def matches(wanted: int, mask: int, value: int | None) -> bool:
    return mask == 0 if value is None else (wanted ^ value) & mask == 0


@st.composite
def rules_near(draw: st.DrawFn, frame: Frame) -> dict[str, Any]:
    """A rule that asks for some of what the frame has, perhaps with one bit changed."""
    found, whole = frame.expected, bytes(frame)
    size = found["address_size"]
    own = PROTOCOLS.get(found["protocol"], FlowType.TCPV4) + (5 if found["l3"] == L3.IPV6 else 0)
    rule: dict[str, Any] = {"flow_type": draw(st.sampled_from([own, own, own, *FlowType])), "action": 3}
    for name in draw(st.sets(st.sampled_from(["source", "destination"]))):
        address = bytearray(whole[found[name] : found[name] + size].ljust(16, b"\0"))
        address[draw(st.integers(0, 15))] ^= draw(st.sampled_from([0, 0, 0, 1]))
        rule[name] = bytes(address)
        rule[f"{name}_mask"] = draw(st.sampled_from([b"\xff" * 16, b"\xff" * 3 + bytes(13), b"\0\xf0" * 8]))
        rule[f"{name}_mask"] = rule[f"{name}_mask"][: size or 16].ljust(16, b"\0")
    numbers = ["tos", "spi"] if FlowType(rule["flow_type"]).name[:-2] in ("AH", "ESP") else [
        "tos", "source_port", "destination_port",
    ]  # fmt: skip
    for name in draw(st.sets(st.sampled_from(numbers))):
        rule[name] = found[name] ^ draw(st.sampled_from([0, 0, 0, 1, 0x80]))
        rule[f"{name}_mask"] = draw(st.sampled_from([0xFF, 0x0F])) if name == "tos" else draw(
            st.sampled_from([0xFFFF, 0xFF00, 0x7F])
        )  # fmt: skip
    return rule


@examples
@given(data=st.data(), frame=frames())
def test_first_match_by_location(data: st.DataObject, frame: Frame) -> None:
    installed = data.draw(st.dictionaries(st.integers(0, LOCATIONS - 1), rules_near(frame), max_size=8))
    whole = as_array(bytes(frame))
    assert match(*index(installed), whole, 0, parsed(whole)) == first_match(installed, frame)


@pytest.mark.parametrize("fragment", [ETHER / IP(flags="MF") / UDP(dport=5), ETHER / IP(frag=3) / UDP(dport=5)])
def test_a_fragment_matches_no_rule_with_ports(fragment: Packet) -> None:
    with_port = {"flow_type": FlowType.UDPV4, "destination_port": 0, "destination_port_mask": 0xFFFF}
    found = index({1: with_port, 9: {"flow_type": FlowType.UDPV4}})
    whole = as_array(bytes(fragment))
    assert match(*found, whole, 0, parsed(whole)) == 9


def test_an_ipv6_fragment_is_of_the_protocol_behind_its_header() -> None:
    found = index({0: {"flow_type": FlowType.TCPV6}})
    whole = as_array(bytes(ETHER / IPv6() / IPv6ExtHdrFragment(nh=6, offset=5) / Raw(bytes(40))))
    assert match(*found, whole, 0, parsed(whole)) == 0


@pytest.mark.parametrize(
    ("flow_type", "packet"),
    [
        (FlowType.TCPV4, IP(tos=0x5A) / TCP(sport=0x1234, dport=0x5678)),
        (FlowType.SCTPV6, IPv6(tc=0x5A) / SCTP(sport=0x1234, dport=0x5678)),
        (FlowType.ESPV4, IP(tos=0x5A, proto=50) / Raw(bytes.fromhex("8765432100000001"))),
        (FlowType.AHV6, IPv6(tc=0x5A, nh=51) / Raw(bytes.fromhex("3b020000876543210000000100000000"))),
    ],
    ids=lambda value: value.name if isinstance(value, FlowType) else "",
)
def test_every_field_counts_where_its_mask_says(flow_type: FlowType, packet: Packet) -> None:
    whole = as_array(bytes(ETHER / packet))
    headers = parsed(whole)
    fields = {"tos": 0x5A, "spi": 0x87654321} if headers[0]["has_spi"] else {
        "tos": 0x5A, "source_port": 0x1234, "destination_port": 0x5678,
    }  # fmt: skip
    for name, value in fields.items():
        for wrong_bit in (0x00, 0x01, 0x80):
            for mask in (0x01, 0x7F, 0xFF):
                rule = {"flow_type": flow_type, name: value ^ wrong_bit, f"{name}_mask": mask}
                found = index({5: rule})
                assert match(*found, whole, 0, headers) == (-1 if wrong_bit & mask else 5)


def test_an_index_made_again_forgets_the_rules_that_went() -> None:
    rules = np.zeros(LOCATIONS, RULE)
    rules[7]["action"] = 1
    groups, slots = np.zeros(1, GROUP), np.zeros(slots_for(1), SLOT)
    whole = as_array(bytes(ETHER / IP() / TCP()))
    for order, location in (([7], 7), ([], -1)):
        count = index_rules(rules, np.array(order, np.int32), groups, slots)
        assert match(groups[:count], slots, whole, 0, parsed(whole)) == location


def test_of_rules_that_ask_for_the_same_the_lowest_location_counts() -> None:
    rule = {"flow_type": FlowType.TCPV4, "destination_port": 80, "destination_port_mask": 0xFFFF}
    found = index({3: rule, 500: rule, 1000: rule})
    whole = as_array(bytes(ETHER / IP() / TCP(dport=80)))
    assert match(*found, whole, 0, parsed(whole)) == 3


def test_a_full_table() -> None:
    """As many rules as there are locations, of one mask; each is found, and so is that there is none."""
    size = {"source_mask": b"\xff" * 4, "destination_port_mask": 0xFFFF}
    installed = {
        location: {
            "flow_type": FlowType.UDPV4, "source": socket.inet_aton(f"10.0.{location >> 8}.{location & 255}"),
            "destination_port": location, **size,
        }
        for location in range(LOCATIONS)
    }  # fmt: skip
    found = index(installed)
    assert len(found[0]) == 1
    for location in range(LOCATIONS):
        for port, expected in ((location, location), (location ^ 1, -1)):
            whole = as_array(bytes(ETHER / IP(src=f"10.0.{location >> 8}.{location & 255}") / UDP(dport=port)))
            assert match(*found, whole, 0, parsed(whole)) == expected


#: Prints how often the index is looked into for each rule: of 16 that have each another mask, and of 256.
_LOOKS = """
import numpy as np
from nicmodel.packet.match import GROUP, RULE, SLOT, index_rules, slots_for

class Counted(np.ndarray):
    looks = 0

    def __getitem__(self, place):
        Counted.looks += 1
        return super().__getitem__(place)

for count in (16, 256):
    rules, order = np.zeros(count, RULE), np.arange(count, dtype=np.int32)
    for number in order:
        rules[number]["destination_port_mask"] = number + 1
    groups, slots = np.zeros(count, GROUP).view(Counted), np.zeros(slots_for(count), SLOT).view(Counted)
    Counted.looks = 0
    assert index_rules(rules, order, groups, slots) == count
    print((Counted.looks - 2 * len(slots)) / count)  # each entry is emptied, and again
"""


def test_a_rule_costs_the_same_however_many_masks_there_are() -> None:
    """What is counted are looks into the index while it is made."""
    done = subprocess.run(
        [sys.executable, "-c", _LOOKS], env=os.environ | {"NUMBA_DISABLE_JIT": "1"}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    few, many = map(float, done.stdout.split())
    assert 0 < many < 1.5 * few
