"""Flow steering: which installed rule a frame matches (ethtool's n-tuple rules).

Rules that ask for the same bits form a group, and a group is a hash table of what they want those bits to be: tuple
space search (Srinivasan, Suri, Varghese, SIGCOMM 1999), as in Open vSwitch. A frame costs one lookup for each different
mask, however many rules there are.
"""

from __future__ import annotations

from enum import IntEnum

import numpy as np
import numpy.typing as npt

from nicmodel.jit.compiled import Record, compiled, i64, inlined, u64
from nicmodel.packet.headers import L3
from nicmodel.packet.parse import AH, ESP, SCTP, TCP, UDP
from nicmodel.packet.words import load_be32


class FlowType(IntEnum):
    """What a rule applies to: all of IPv4 before all of IPv6, both in the same order."""

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
#: and TOS (IPv6: traffic class) are numbers; AH and ESP have an SPI, the others ports. A set mask bit must match.
#: `hits` counts the frames that took the rule; `label` goes with them, for whoever has set it. `group` is the number of
#: the rule's group, for the index.
RULE = np.dtype(
    [
        ("hits", "<u8"),
        ("installed", "<i4"),
        ("flow_type", "<i4"),
        ("action", "<i4"),
        ("group", "<i4"),
        ("source_port", "<u2"),
        ("destination_port", "<u2"),
        ("source_port_mask", "<u2"),
        ("destination_port_mask", "<u2"),
        ("spi", "<u4"),
        ("spi_mask", "<u4"),
        ("tos", "u1"),
        ("tos_mask", "u1"),
        ("label", "u1"),
        ("reserved", "u1"),
        ("source", "u1", (16,)),
        ("destination", "u1", (16,)),
        ("source_mask", "u1", (16,)),
        ("destination_mask", "u1", (16,)),
    ]
)

#: Rules with one mask, all of one flow type. `first` is the lowest location among them. `mask` says which bits of a
#: frame's key count (`_key`).
GROUP = np.dtype([("flow_type", "<i4"), ("first", "<i4"), ("mask", "<u8", (5,))])

#: An entry of the hash table that all groups share: what the rule at `location` wants the masked key to be. `group` is
#: the number of its group plus one, 0 when the entry is free.
SLOT = np.dtype([("group", "<i4"), ("location", "<i4"), ("key", "<u8", (5,))])

#: While the index is made, groups are found by the same table: `key` is mask and flow type, `location` their number.
_MASKS = 1


def slots_for(rules: int) -> int:
    """Entries of the hash table for a number of rules: a power of two, at most a quarter in use."""
    return 1 << (4 * max(rules, 1) - 1).bit_length()


_L3_IPV6 = int(L3.IPV6)
_TCPV4, _UDPV4, _SCTPV4, _AHV4, _ESPV4, _TCPV6 = (int(kind) for kind in list(FlowType)[:6])

# The first word of a key: that the ports or the SPI are known, TOS, and the ports or the SPI themselves.
_KNOWN = u64(1 << 63)
_FLOW_TYPE_SHIFT = u64(48)  # of a mask
_TOS_SHIFT = u64(32)
_PORT_SHIFT = u64(16)
_HALF = u64(32)
_ODD = u64(0x9E3779B97F4A7C15)  # 2^64 divided by the golden ratio: Knuth's multiplicative hash


@inlined
def _flow_type(h: Record) -> int:
    """The `FlowType` of a frame, -1 if no rule can apply to it."""
    protocol = h.protocol
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
    if h.l3 == _L3_IPV6:
        kind += _TCPV6 - _TCPV4
    return kind


@inlined
def _slot(group: int, a: int, b: int, c: int, d: int, e: int, slots: int) -> int:
    """Where the search for a masked key of a group begins, in a table of `slots` entries."""
    value = u64(group)
    for word in (a, b, c, d, e):
        value = (value ^ word) * _ODD
        value ^= value >> _HALF
    return i64(value) & (slots - 1)


@inlined
def _numbers(ports: int, spi: int, tos: int, source_port: int, destination_port: int) -> int:
    """The first word of a key or mask, without `_KNOWN`: `spi` or the ports, by whether `ports` are meant."""
    word = u64(tos) << _TOS_SHIFT
    if ports:
        return u64(word | u64(source_port) << _PORT_SHIFT | u64(destination_port))
    return u64(word | u64(spi))


@inlined
def _bytes_at(field: npt.NDArray[np.uint8], at: int) -> int:
    """Eight bytes of a rule's address as a word of a key."""
    word = u64(0)
    for i in range(8):
        word = word << u64(8) | u64(field[at + i])
    return word


@inlined
def _find(slots: npt.NDArray[np.void], group: int, a: int, b: int, c: int, d: int, e: int) -> int:
    """The entry with a group's masked key, or the free one where it would be."""
    at = _slot(group, a, b, c, d, e, len(slots))
    while True:
        slot = slots[at]
        key = slot.key
        if slot.group == 0 or (
            slot.group == group and key[0] == a and key[1] == b and key[2] == c and key[3] == d and key[4] == e
        ):
            return at
        at = (at + 1) & (len(slots) - 1)


@inlined
def _fill(slot: Record, group: int, location: int, a: int, b: int, c: int, d: int, e: int) -> None:
    """Take a free entry."""
    slot.group = group
    slot.location = location
    key = slot.key
    key[0], key[1], key[2], key[3], key[4] = a, b, c, d, e


@inlined
def _empty(slots: npt.NDArray[np.void]) -> None:
    """Have all entries be free."""
    for at in range(len(slots)):
        slots[at].group = 0


@compiled
def index_rules(
    rules: npt.NDArray[np.void],
    order: npt.NDArray[np.int32],
    groups: npt.NDArray[np.void],
    slots: npt.NDArray[np.void],
) -> int:
    """Make the index that `match` searches: a few lookups for each rule, whatever the others are.

    Args:
        rules: shape (locations,), `RULE`.
        order: locations of the installed rules, ascending, shape (installed,), int32.
        groups: filled in the order of their first location; at least `installed` long, `GROUP`.
        slots: filled; shape (slots_for(installed),) or more, a power of two, `SLOT`.

    Returns:
        Number of groups.
    """
    _empty(slots)
    count = 0
    for location in order:
        rule = rules[location]
        flow_type = i64(rule.flow_type)
        ports = flow_type % _TCPV6 < _AHV4
        mask = _numbers(ports, rule.spi_mask, rule.tos_mask, rule.source_port_mask, rule.destination_port_mask)
        if mask << _HALF != u64(0):
            mask |= _KNOWN
        s0, s1, d0, d1 = (
            _bytes_at(rule.source_mask, 0), _bytes_at(rule.source_mask, 8),
            _bytes_at(rule.destination_mask, 0), _bytes_at(rule.destination_mask, 8),
        )  # fmt: skip
        if flow_type < _TCPV6:  # an IPv4 address is the upper half of its first word
            s0, s1, d0, d1 = s0 >> _HALF << _HALF, u64(0), d0 >> _HALF << _HALF, u64(0)
        named = mask | u64(flow_type) << _FLOW_TYPE_SHIFT
        slot = slots[_find(slots, _MASKS, named, s0, s1, d0, d1)]
        if slot.group == 0:
            _fill(slot, _MASKS, count, named, s0, s1, d0, d1)
            group = groups[count]
            group.flow_type = flow_type
            group.first = location
            m = group.mask
            m[0], m[1], m[2], m[3], m[4] = mask, s0, s1, d0, d1
            count += 1
        rule.group = slot.location

    _empty(slots)  # the fewer entries, the sooner a frame's search finds that there is none
    for location in order:
        rule = rules[location]
        number = i64(rule.group)
        m = groups[number].mask
        ports = i64(rule.flow_type) % _TCPV6 < _AHV4
        key = _KNOWN | _numbers(ports, rule.spi, rule.tos, rule.source_port, rule.destination_port)
        a, b, c, d, e = (
            key & m[0], _bytes_at(rule.source, 0) & m[1], _bytes_at(rule.source, 8) & m[2],
            _bytes_at(rule.destination, 0) & m[3], _bytes_at(rule.destination, 8) & m[4],
        )  # fmt: skip
        slot = slots[_find(slots, number + 1, a, b, c, d, e)]
        if slot.group == 0:  # else a rule at a lower location asks for the same
            _fill(slot, number + 1, location, a, b, c, d, e)
    return count


@compiled
def match(
    groups: npt.NDArray[np.void],
    slots: npt.NDArray[np.void],
    data: npt.NDArray[np.uint8],
    offset: int,
    headers: npt.NDArray[np.void],
) -> int:
    """The location of the first rule that a parsed frame matches, -1 if there is none.

    A frame whose ports are unknown (a fragment) matches only rules that do not ask for ports; likewise for the SPI.

    Args:
        groups: as many as `index_rules` found, `GROUP`.
        slots: their hash table, `SLOT`.
        data: bytes, shape (n,), uint8.
        offset: position of the first byte of the frame.
        headers: what `parse` found, shape (1,), `HEADERS`.
    """
    h = headers[0]
    flow_type = _flow_type(h)
    if flow_type < 0:
        return -1
    numbers = _numbers(h.has_spi == 0, h.spi, h.tos, h.source_port, h.destination_port)
    if h.ports != 0 or h.has_spi != 0:
        numbers |= _KNOWN
    source = offset + i64(h.source)
    destination = offset + i64(h.destination)
    s0, s1 = u64(load_be32(data, source)) << _HALF, u64(0)
    d0, d1 = u64(load_be32(data, destination)) << _HALF, u64(0)
    if flow_type >= _TCPV6:
        s0 |= u64(load_be32(data, source + 4))
        s1 = u64(load_be32(data, source + 8)) << _HALF | u64(load_be32(data, source + 12))
        d0 |= u64(load_be32(data, destination + 4))
        d1 = u64(load_be32(data, destination + 8)) << _HALF | u64(load_be32(data, destination + 12))
    best = -1
    for number in range(len(groups)):
        group = groups[number]
        if best >= 0 and group.first > best:
            break
        if group.flow_type == flow_type:
            m = group.mask
            at = _find(slots, number + 1, numbers & m[0], s0 & m[1], s1 & m[2], d0 & m[3], d1 & m[4])
            slot = slots[at]
            if slot.group != 0 and (best < 0 or slot.location < best):
                best = i64(slot.location)
    return best
