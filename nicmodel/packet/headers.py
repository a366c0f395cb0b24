"""What `parse` finds in a frame. One definition for the compiled path, the tests and the display."""

from __future__ import annotations

from enum import IntEnum

import numpy as np


class L3(IntEnum):
    """Layer 3 protocol."""

    UNKNOWN = 0
    OTHER = 1
    IPV4 = 2
    IPV6 = 3


class L4(IntEnum):
    """Layer 4 protocol."""

    UNKNOWN = 0
    OTHER = 1
    TCP = 2
    UDP = 3
    ICMP = 4
    SCTP = 5


#: Offsets count from the first byte of the frame. `length` is the frame without Ethernet padding (IP's own length where
#: there is one). `source` and `destination` are the offsets of the IP addresses; `final_destination` is that of the
#: address a checksum covers, which a routing header with segments left holds. `payload` is the end of the recognised
#: headers: for TCP and UDP the split point. `protocol` is the IP protocol after all extension headers, -1 without IP.
#: `ipv6_extensions` counts extension headers; `ipv6_ex_add` says that one holds destination options or a route. `ports`
#: says that `source_port` and `destination_port` are valid, `spi` likewise by `has_spi` (AH and ESP). `malformed` says
#: that an IP or L4 header contradicts the frame's length: such a frame is classified no further than the last sound
#: header.
HEADERS = np.dtype(
    [
        ("length", "<i4"),
        ("vlans", "<i4"),
        ("l3", "<i4"),
        ("l4", "<i4"),
        ("protocol", "<i4"),
        ("l3_offset", "<i4"),
        ("l4_offset", "<i4"),
        ("payload", "<i4"),
        ("source", "<i4"),
        ("destination", "<i4"),
        ("final_destination", "<i4"),
        ("address_size", "<i4"),
        ("fragment", "<i4"),
        ("ipv6_extensions", "<i4"),
        ("ipv6_ex_add", "<i4"),
        ("ports", "<i4"),
        ("source_port", "<i4"),
        ("destination_port", "<i4"),
        ("has_spi", "<i4"),
        ("tos", "<i4"),
        ("spi", "<i8"),
        ("tcp_flags", "<i4"),
        ("malformed", "<i4"),
    ]
)
