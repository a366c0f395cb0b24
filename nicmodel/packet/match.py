"""Flow steering: which installed rule a frame matches (ethtool's n-tuple rules)."""

from __future__ import annotations

from enum import IntEnum

import numpy as np
import numpy.typing as npt

from nicmodel.packet.compiled import compiled, inlined
from nicmodel.packet.headers import L3
from nicmodel.packet.parse import AH, ESP, SCTP, TCP, UDP
from nicmodel.packet.words import load_byte


class FlowType(IntEnum):
    """What a rule applies to; the numbers are those of gVNIC's flow rules."""

    TCPV4 = 0
    UDPV4 = 1
    SCTPV4 = 2
    AHV4 = 3
    ESPV4 = 4
    TCPV6 = 5
    UDPV6 = 6
    SCTPV6 = 7
    AHV6 = 8
    ESPV6 = 9


#: One rule. `action` is the receive queue. Addresses are in network byte order, IPv4 in the first 4 bytes; ports, SPI
#: and TOS (IPv6: traffic class) are numbers. A set mask bit must match. `hits` counts the frames that took the rule.
RULE = np.dtype(
    [
        ("hits", "<u8"),
        ("installed", "<i4"),
        ("flow_type", "<i4"),
        ("action", "<i4"),
        ("source_port", "<u2"),
        ("destination_port", "<u2"),
        ("source_port_mask", "<u2"),
        ("destination_port_mask", "<u2"),
        ("spi", "<u4"),
        ("spi_mask", "<u4"),
        ("tos", "u1"),
        ("tos_mask", "u1"),
        ("reserved", "u1", (2,)),
        ("source", "u1", (16,)),
        ("destination", "u1", (16,)),
        ("source_mask", "u1", (16,)),
        ("destination_mask", "u1", (16,)),
    ]
)

_L3_IPV4, _L3_IPV6 = int(L3.IPV4), int(L3.IPV6)
_TCPV4, _UDPV4, _SCTPV4, _AHV4, _ESPV4, _TCPV6 = (int(kind) for kind in list(FlowType)[:6])


@compiled
def match(
    rules: npt.NDArray[np.void],
    order: npt.NDArray[np.int32],
    data: npt.NDArray[np.uint8],
    offset: int,
    headers: npt.NDArray[np.void],
) -> int:
    """The location of the first rule that a parsed frame matches, -1 if there is none.

    A frame whose ports are unknown (a fragment) matches only rules that do not ask for ports; likewise for the SPI.

    Args:
        rules: shape (locations,), `RULE`. Not changed: a frame that waits for buffers is matched more than once.
        order: locations of the installed rules, ascending, shape (installed,), int32.
        data: bytes, shape (n,), uint8.
        offset: position of the first byte of the frame.
        headers: what `parse` found, shape (1,), `HEADERS`.
    """
    h = headers[0]
    flow_type = _flow_type(h)
    if flow_type < 0:
        return -1
    for i in range(len(order)):
        location = order[i]
        rule = rules[location]
        if rule["flow_type"] != flow_type or not _same_numbers(rule, h):
            continue
        if flow_type < _TCPV6:
            same = _same_addresses(rule, data, offset, h, 4)
        else:
            same = _same_addresses(rule, data, offset, h, 16)
        if same:
            return int(location)
    return -1


@inlined
def _flow_type(h: np.void) -> int:
    """The `FlowType` of a frame, -1 if no rule can apply to it."""
    protocol = h["protocol"]
    if protocol == TCP:
        kind = _TCPV4
    elif protocol == UDP:
        kind = _UDPV4
    elif protocol == SCTP:
        kind = _SCTPV4
    elif protocol == AH:
        kind = _AHV4
    elif protocol == ESP:
        kind = _ESPV4
    else:
        return -1
    if h["l3"] == _L3_IPV6:
        kind += _TCPV6 - _TCPV4
    return kind


@inlined
def _same_numbers(rule: np.void, h: np.void) -> bool:
    ports = (h["source_port"] ^ rule["source_port"]) & rule["source_port_mask"]
    ports |= (h["destination_port"] ^ rule["destination_port"]) & rule["destination_port_mask"]
    if not h["ports"]:
        ports = rule["source_port_mask"] | rule["destination_port_mask"]
    spi = (h["spi"] ^ int(rule["spi"])) & int(rule["spi_mask"])
    if not h["has_spi"]:
        spi = int(rule["spi_mask"])
    tos = (h["tos"] ^ rule["tos"]) & rule["tos_mask"]
    return bool(ports == 0 and spi == 0 and tos == 0)


@inlined
def _same_addresses(rule: np.void, data: npt.NDArray[np.uint8], offset: int, h: np.void, size: int) -> bool:
    source, source_mask = rule["source"], rule["source_mask"]
    destination, destination_mask = rule["destination"], rule["destination_mask"]
    from_address = offset + h["source"]
    to_address = offset + h["destination"]
    difference = 0
    for i in range(size):
        difference |= (load_byte(data, from_address + i) ^ source[i]) & source_mask[i]
        difference |= (load_byte(data, to_address + i) ^ destination[i]) & destination_mask[i]
    return difference == 0
