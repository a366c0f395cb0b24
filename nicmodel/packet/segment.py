"""Segmentation offload: one header for each segment, made from that of the whole (TSO and USO).

Which field changes how is what Linux's software segmentation does (`tcp_gso_segment`, `__udp_gso_segment`,
`inet_gso_segment`), and what a driver therefore expects of a NIC.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from nicmodel.jit.compiled import compiled
from nicmodel.packet.checksum import complete_ipv4
from nicmodel.packet.headers import L3, L4
from nicmodel.packet.parse import IPV6_SIZE, UDP_SIZE
from nicmodel.packet.words import load_be16, load_be32, load_byte, store_be16, store_be32, store_byte

_L3_IPV4, _L3_IPV6 = int(L3.IPV4), int(L3.IPV6)
_L4_TCP, _L4_UDP = int(L4.TCP), int(L4.UDP)

_FIN = 0x01
_PSH = 0x08
_CWR = 0x80


@compiled
def segment_header(
    data: npt.NDArray[np.uint8],
    offset: int,
    headers: npt.NDArray[np.void],
    first_payload_byte: int,
    payload_length: int,
    index: int,
    is_first: bool,
    is_last: bool,
) -> None:
    """Turn a copy of the header of the whole into that of one segment.

    The L4 checksum is left to `complete` or `pseudo`; for them `headers[0]["length"]` becomes the segment's length.

    Args:
        data: bytes, shape (n,), uint8; at `offset` stands a copy of the first `payload` bytes of the whole.
        offset: position of the first byte of the segment.
        headers: what `parse` found in the whole, shape (1,), `HEADERS`: TCP or UDP.
        first_payload_byte: where in the payload of the whole this segment's payload starts.
        payload_length: bytes of payload in this segment; with its headers at most 65535 bytes of IP packet.
        index: number of the segment, from 0.
        is_first: whether it is the first segment.
        is_last: whether it is the last segment.
    """
    h = headers[0]
    length = h["payload"] + payload_length
    h["length"] = length
    l3 = offset + h["l3_offset"]
    l4 = offset + h["l4_offset"]
    packet = length - h["l3_offset"]
    if h["l3"] == _L3_IPV4:
        store_be16(data, l3 + 2, packet)
        store_be16(data, l3 + 4, load_be16(data, l3 + 4) + index)
        complete_ipv4(data, offset, h)
    elif h["l3"] == _L3_IPV6:
        store_be16(data, l3 + 4, packet - IPV6_SIZE)
    if h["l4"] == _L4_TCP:
        store_be32(data, l4 + 4, load_be32(data, l4 + 4) + first_payload_byte)
        cleared = (0 if is_first else _CWR) | (0 if is_last else _FIN | _PSH)
        store_byte(data, l4 + 13, load_byte(data, l4 + 13) & ~cleared)
    elif h["l4"] == _L4_UDP:
        store_be16(data, l4 + 4, UDP_SIZE + payload_length)
