"""Receive coalescing: which TCP segments become one packet, and what its header says (RSC, HW-GRO, LRO).

A device may merge what Linux's software GRO would merge, and nothing else: only then can a stack that forwards the
packet cut it into the same segments again. The rules are those of `tcp_gro_receive` (net/ipv4/tcp_offload.c) and
`inet_gro_flush` (include/net/gro.h), which tools/testing/selftests/drivers/net/gro.py checks; IPv6 extension headers,
which GRO takes, are left alone, since drivers do not trust checksums behind all of them.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from nicmodel.jit.compiled import Record, compiled, inlined
from nicmodel.packet.checksum import complete_ipv4, pseudo
from nicmodel.packet.headers import L3, L4
from nicmodel.packet.parse import IPV4_SIZE, IPV6_SIZE, TCP
from nicmodel.packet.words import load_be16, load_be32, load_byte, store_be16, store_byte

_L3_IPV4, _L3_IPV6 = int(L3.IPV4), int(L3.IPV6)
_L4_TCP = int(L4.TCP)

_FIN, _PSH, _ACK, _ECE, _CWR = 0x01, 0x08, 0x10, 0x40, 0x80
#: The segment is the last of its packet.
_LAST = _FIN | _PSH

#: Longest IP packet.
MAX_IP = 65535

#: A packet in the making. `first` and `last` are numbers of frames, for the caller's use; `offset` is where the first
#: frame starts, `source`, `l3_offset`, `l4_offset` and `header` are its `HEADERS.source`, ... and `HEADERS.payload`.
#: `count` segments with `payload` bytes are merged; all but the last have `segment` bytes. `tcp_flags` are those of
#: the last, `fixed_id` says that the IPv4 identification does not count.
AGGREGATE = np.dtype(
    [
        ("hash", "<u4"),
        ("first", "<i4"),
        ("last", "<i4"),
        ("offset", "<i8"),
        ("l3", "<i4"),
        ("source", "<i4"),
        ("l3_offset", "<i4"),
        ("l4_offset", "<i4"),
        ("header", "<i4"),
        ("count", "<i4"),
        ("payload", "<i4"),
        ("segment", "<i4"),
        ("tcp_flags", "<i4"),
        ("fixed_id", "<i4"),
    ]
)


@compiled
def mergeable(data: npt.NDArray[np.uint8], offset: int, headers: npt.NDArray[np.void]) -> bool:
    """Whether a parsed frame can be part of an aggregated packet, provided that its checksums are right.

    Args:
        data: bytes, shape (n,), uint8.
        offset: position of the first byte of the frame.
        headers: what `parse` found, shape (1,), `HEADERS`.
    """
    h = headers[0]
    if h["l4"] != _L4_TCP or h["length"] <= h["payload"]:
        return False
    if int(h["tcp_flags"]) & ~(_LAST | _ECE | _CWR) != _ACK:
        return False
    start = offset + h["l3_offset"]
    packet = int(h["length"]) - int(h["l3_offset"])
    # The last condition is about packets whose IP length is zero, "more than the field can tell".
    if h["l3"] == _L3_IPV4:
        return h["l4_offset"] - h["l3_offset"] == IPV4_SIZE and load_be16(data, start + 2) == packet
    return h["ipv6_extensions"] == 0 and h["protocol"] == TCP and load_be16(data, start + 4) == packet - IPV6_SIZE


@compiled
def is_last(headers: npt.NDArray[np.void]) -> bool:
    """Whether nothing may be merged behind this segment: it has PSH or FIN.

    Args:
        headers: what `parse` found, shape (1,), `HEADERS`.
    """
    return int(headers[0]["tcp_flags"]) & _LAST != 0


@compiled
def open_aggregate(aggregate: Record, offset: int, headers: npt.NDArray[np.void], hash_value: int, number: int) -> None:
    """Begin a packet with a mergeable frame.

    Args:
        aggregate: the packet, an element of an array of `AGGREGATE`; every field is set.
        offset: position of the first byte of the frame.
        headers: what `parse` found, shape (1,), `HEADERS`.
        hash_value: a hash of at most 32 bits that is the same for all frames of a flow.
        number: the frame's number.
    """
    h = headers[0]
    aggregate.hash = hash_value
    aggregate.first = number
    aggregate.last = number
    aggregate.offset = offset
    aggregate.l3 = h["l3"]
    aggregate.source = h["source"]
    aggregate.l3_offset = h["l3_offset"]
    aggregate.l4_offset = h["l4_offset"]
    aggregate.header = h["payload"]
    aggregate.count = 1
    aggregate.payload = h["length"] - h["payload"]
    aggregate.segment = h["length"] - h["payload"]
    aggregate.tcp_flags = h["tcp_flags"]
    aggregate.fixed_id = 0


@compiled
def same_flow(
    data: npt.NDArray[np.uint8], offset: int, headers: npt.NDArray[np.void], hash_value: int, aggregate: Record
) -> bool:
    """Whether a parsed TCP frame has the addresses and ports of an aggregate: it must not overtake that.

    Args:
        data: bytes of this frame and of the aggregate's first, shape (n,), uint8.
        offset: position of the first byte of the frame.
        headers: what `parse` found, shape (1,), `HEADERS`.
        hash_value: as in `open_aggregate`.
        aggregate: an element of an array of `AGGREGATE`.
    """
    h = headers[0]
    if aggregate.hash != hash_value or aggregate.l3 != h["l3"]:
        return False
    first = int(aggregate.offset)
    return load_be32(data, offset + h["l4_offset"]) == load_be32(data, first + aggregate.l4_offset) and _equal(
        data, offset + h["source"], first + aggregate.source, 2 * int(h["address_size"])
    )


@compiled
def continues(data: npt.NDArray[np.uint8], offset: int, headers: npt.NDArray[np.void], aggregate: Record) -> bool:
    """Whether a mergeable frame of the same flow is the aggregate's next segment.

    Everything but lengths, checksums, IPv4 identification, sequence number, PSH and FIN must be equal. The
    identification grows by one with each segment, or stays as it is from the second segment on.

    Args:
        data: bytes of this frame and of the aggregate's first, shape (n,), uint8.
        offset: position of the first byte of the frame.
        headers: what `parse` found, shape (1,), `HEADERS`.
        aggregate: an element of an array of `AGGREGATE`, not ended.
    """
    h = headers[0]
    header = int(h["payload"])
    l3_offset = int(h["l3_offset"])
    l4_offset = int(h["l4_offset"])
    if header != aggregate.header or l3_offset != aggregate.l3_offset or l4_offset != aggregate.l4_offset:
        return False
    if h["length"] - header > aggregate.segment:
        return False
    first = int(aggregate.offset)
    if not _equal(data, offset, first, l3_offset):  # addresses, VLAN tags
        return False

    here, there = offset + l3_offset, first + l3_offset
    if h["l3"] == _L3_IPV4:
        step = (load_be16(data, here + 4) - load_be16(data, there + 4)) & 0xFFFF
        if aggregate.count == 1:
            if step > 1:
                return False
        elif step != (0 if aggregate.fixed_id else aggregate.count):
            return False
        if (
            load_be16(data, here) != load_be16(data, there)  # type of service
            or load_be16(data, here + 6) != load_be16(data, there + 6)  # "don't fragment"
            or load_be16(data, here + 8) != load_be16(data, there + 8)  # time to live
        ):
            return False
    elif (
        load_be32(data, here) != load_be32(data, there)  # traffic class, flow label
        or load_be16(data, here + 6) != load_be16(data, there + 6)  # hop limit
    ):
        return False

    here, there = offset + l4_offset, first + l4_offset
    return (
        load_be32(data, here + 4) == (load_be32(data, there + 4) + int(aggregate.payload)) & 0xFFFFFFFF
        and load_be32(data, here + 8) == load_be32(data, there + 8)  # acknowledgement
        and (load_be32(data, here + 12) ^ load_be32(data, there + 12)) & ~(_LAST << 16) == 0  # other flags, window
        and _equal(data, here + 18, there + 18, header - l4_offset - 18)  # urgent pointer, options
    )


@compiled
def extend(data: npt.NDArray[np.uint8], offset: int, headers: npt.NDArray[np.void], aggregate: Record) -> bool:
    """Add the frame that `continues` the aggregate.

    Args:
        data: bytes of this frame and of the aggregate's first, shape (n,), uint8.
        offset: position of the first byte of the frame.
        headers: what `parse` found, shape (1,), `HEADERS`.
        aggregate: an element of an array of `AGGREGATE`.

    Returns:
        Whether that was the last: it has PSH or FIN, or is shorter than those before.
    """
    h = headers[0]
    if aggregate.count == 1 and h["l3"] == _L3_IPV4:
        at = int(aggregate.l3_offset) + 4
        aggregate.fixed_id = int(load_be16(data, offset + at) == load_be16(data, int(aggregate.offset) + at))
    payload = int(h["length"]) - int(h["payload"])
    aggregate.count += 1
    aggregate.payload += payload
    aggregate.tcp_flags = h["tcp_flags"]
    return payload < aggregate.segment or is_last(headers)


@compiled
def merge_header(
    data: npt.NDArray[np.uint8], offset: int, headers: npt.NDArray[np.void], payload_length: int, flags: int
) -> None:
    """Turn the header of the first segment into that of the whole.

    The TCP checksum becomes the sum of the pseudo-header, as after software GRO: whoever sends the packet on computes
    it for each segment.

    Args:
        data: bytes, shape (n,), uint8.
        offset: position of the first byte of the first segment.
        headers: what `parse` found in it, shape (1,), `HEADERS`; `length` becomes that of the whole.
        payload_length: bytes of payload of all segments; with its headers at most `MAX_IP` bytes of IP packet.
        flags: TCP flags of the last segment.
    """
    h = headers[0]
    length = h["payload"] + payload_length
    h["length"] = length
    start = offset + h["l3_offset"]
    if h["l3"] == _L3_IPV4:
        store_be16(data, start + 2, length - h["l3_offset"])
        complete_ipv4(data, offset, h)
    else:
        store_be16(data, start + 4, length - h["l3_offset"] - IPV6_SIZE)
    at = offset + h["l4_offset"] + 13
    store_byte(data, at, load_byte(data, at) | flags & _LAST)
    pseudo(data, offset, headers)


@inlined
def _equal(data: npt.NDArray[np.uint8], here: int, there: int, count: int) -> bool:
    """Whether two ranges of an even number of bytes hold the same."""
    for i in range(0, count - 2, 4):
        if load_be32(data, here + i) != load_be32(data, there + i):
            return False
    return count & 2 == 0 or load_be16(data, here + count - 2) == load_be16(data, there + count - 2)
