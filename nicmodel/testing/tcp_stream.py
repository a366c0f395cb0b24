"""One direction of a TCP connection: a stream cut into segments, and a network that loses and reorders them."""

from __future__ import annotations

import random
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Any

#: Start in the stream and length of a segment.
Segment = tuple[int, int]


@dataclass
class TcpStream:
    """What one side sends.

    Attributes:
        source: address of the sender, IPv4 or IPv6, and `destination` of the receiver.
        source_port: port of the sender, and `destination_port` of the receiver.
        mac: Ethernet address of the receiver.
        sequence: sequence number of the first byte.
        data: the stream.
    """

    source: str
    destination: str
    source_port: int
    destination_port: int
    mac: str
    sequence: int = 0
    data: bytes = b""

    def segment(self, start: int, length: int, flags: str = "A") -> bytes:
        """Bytes of the stream as a frame."""
        from scapy.layers.inet import IP, TCP
        from scapy.layers.inet6 import IPv6
        from scapy.layers.l2 import Ether

        ip: Any = IP if ip_address(self.source).version == 4 else IPv6
        ports = {"sport": self.source_port, "dport": self.destination_port}
        header = TCP(**ports, seq=(self.sequence + start) % 2**32, flags=flags)
        ethernet = Ether(src="02:00:00:00:00:fe", dst=self.mac)
        return bytes(ethernet / ip(src=self.source, dst=self.destination) / header / self.data[start : start + length])

    def segments(self, size: int = 1448, start: int = 0) -> list[bytes]:
        """The stream from `start` on in segments of `size` bytes."""
        return [self.segment(at, size) for at in range(start, len(self.data), size)]


def arrivals(
    length: int,
    rng: random.Random,
    *,
    sizes: tuple[int, int] = (1448, 1448),
    loss: float = 0,
    reorder: float = 0,
    duplicate: float = 0,
) -> list[Segment]:
    """The segments of a stream in the order in which they come out of a network.

    Args:
        length: bytes of the stream.
        rng: where chance comes from.
        sizes: smallest and largest segment.
        loss: probability that a segment is lost. It comes again, sometimes with bytes before it, up to 30 segments
            later.
        reorder: probability that a segment changes places with the next.
        duplicate: probability that a segment comes twice.

    Returns:
        Start and length of each; together they are the whole stream.
    """
    order: list[Segment] = []
    again: list[tuple[int, Segment]] = []
    start = number = 0
    while start < length:
        size = min(rng.randint(*sizes), length - start)
        if rng.random() < loss:
            more = min(rng.choice((0, 0, 100)), start)
            again.append((number + rng.randint(1, 30), (start - more, size + more)))
        else:
            order += [(start, size)] * (2 if rng.random() < duplicate else 1)
        order += [segment for due, segment in again if due == number]
        start += size
        number += 1
    order += [segment for due, segment in again if due >= number]
    for place in range(len(order) - 1):
        if rng.random() < reorder:
            order[place], order[place + 1] = order[place + 1], order[place]
    return order
