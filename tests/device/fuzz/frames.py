"""Tables of frames: templates of every kind that the device tells apart, bytes changed, and records that are wrong."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from scapy.layers.inet import IP, TCP
from scapy.layers.inet6 import IPv6, IPv6ExtHdrDestOpt, IPv6ExtHdrFragment
from scapy.layers.l2 import Dot1AD, Dot1Q
from scapy.packet import Raw

from nicmodel.packet.frames import FRAME, Batch

from ..frames import ETHERNET, arp, icmp, ip, tcp, udp
from .campaign import ROWS

#: Bytes of a frame's place, and before it, as a tap's header.
SLOT, GAP = 2048, 12
#: The longest frame is longer than any IP packet may be, and reads on into the places behind it.
LONG = 9300

TEMPLATES = [
    tcp(300),
    tcp(300, v=6),
    udp(200),
    udp(200, v=6),
    icmp(64),
    arp(),
    bytes(ETHERNET / Dot1Q(vlan=7) / ip(4) / TCP(sport=1, dport=2) / Raw(b"v" * 80)),
    bytes(ETHERNET / Dot1AD(vlan=7) / Dot1Q(vlan=8) / ip(6) / TCP(sport=1, dport=2) / Raw(b"v" * 80)),
    bytes(ETHERNET / IPv6(src="2001:db8::2", dst="2001:db8::1") / IPv6ExtHdrDestOpt() / TCP() / Raw(b"e" * 60)),
    bytes(ETHERNET / IPv6(src="2001:db8::2", dst="2001:db8::1") / IPv6ExtHdrFragment(m=1) / Raw(b"f" * 60)),
    bytes(ETHERNET / IP(src="192.0.2.2", dst="192.0.2.1", flags="MF") / Raw(b"f" * 60)),
    tcp(1460, flags="A", options=[("NOP", None)] * 40),
]
_WIDTH = 1600
_CONTENT = np.zeros((len(TEMPLATES), _WIDTH), np.uint8)
_LENGTHS = np.array([len(template) for template in TEMPLATES])
for _row, _template in zip(_CONTENT, TEMPLATES, strict=True):
    _row[: len(_template)] = np.frombuffer(_template, np.uint8)


def contents(rng: np.random.Generator) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]:
    """Bytes of `ROWS` frames, shape (ROWS, 1600), and their lengths; half have bytes of their headers changed."""
    chosen = rng.integers(0, len(TEMPLATES), ROWS)
    places = rng.integers(12, 110, (ROWS, 3))
    values = rng.choice(np.array([0, 1, 0x45, 0x4F, 0x60, 0x7F, 0x80, 0xFF], np.uint8), (ROWS, 3))
    changed = rng.random((ROWS, 3)) < 0.3
    odd = rng.random(ROWS)
    lengths = np.where(odd < 0.1, rng.integers(0, 120, ROWS), _LENGTHS[chosen])
    lengths = np.where(odd > 0.97, rng.integers(1500, LONG, ROWS), lengths)
    content = _CONTENT[chosen]
    rows = np.arange(ROWS)
    for column in range(3):
        kept = content[rows, places[:, column]]
        content[rows, places[:, column]] = np.where(changed[:, column], values[:, column], kept)
    return content, lengths


def records(rng: np.random.Generator) -> npt.NDArray[np.void]:
    """What `ROWS` records say of checksums and segments: nothing, what may be, and what cannot be."""
    table = np.zeros(ROWS, FRAME)
    kind = rng.random(ROWS)
    for name, likely in (
        ("flags", [0, 1, 2, 3, 255]), ("gso", [0, 1, 4, 5, 2, 255]), ("segment", [1, 7, 536, 1000, 65535]),
        ("header", [0, 14, 54, 66, 74, 255]), ("csum_start", [0, 14, 34, 54, 1500, 65535]),
        ("csum_offset", [6, 16, 0, 65535]),
    ):  # fmt: skip
        wild = rng.integers(0, 256 if name in ("flags", "gso") else 65536, ROWS)
        value = np.where(kind < 0.9, rng.choice(likely, ROWS), wild)
        table[name] = np.where(kind < 0.6, 0, value)
    return table


def batch(rng: np.random.Generator, rows: slice) -> Batch:
    """A window of a table of frames, as real wires hand them over: not back to back, and with room left."""
    content, lengths = contents(rng)
    table = records(rng)[rows]
    count = len(table)
    made = Batch(count * SLOT + LONG, count)
    places = np.arange(count) * SLOT + GAP
    made.data[: count * SLOT].reshape(count, SLOT)[:, GAP : GAP + _WIDTH] = content[rows]
    made.frames[:] = table
    made.frames["offset"] = places
    made.frames["length"] = lengths[rows]
    made.count, made.used = count, len(made.data)
    return made
