"""What a NIC has sent, for a test to look at."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeAlias

import numpy as np

from nicmodel.packet.frames import FrameFlag

#: How a test says which frames it means: a scapy layer that they contain; a scapy packet with whose layers and given
#: fields they agree; the very bytes; or a function of the scapy packet.
Match: TypeAlias = Any


@dataclass(frozen=True)
class SentFrame:
    """A frame as the NIC has handed it to the wire.

    Attributes:
        data: its bytes.
        record: what goes with them (`FRAME`).
    """

    data: bytes
    record: np.void

    def __bytes__(self) -> bytes:
        return self.data

    @cached_property
    def packet(self) -> Any:
        """The frame as a scapy packet."""
        from scapy.layers.l2 import Ether

        return Ether(self.data)

    @property
    def queue(self) -> int:
        """The transmit queue it comes from."""
        return int(self.record["queue"])

    @property
    def mss(self) -> int | None:
        """Payload bytes of each segment of the longer packet (TSO, USO) that it was cut from; None if it was not."""
        return int(self.record["cut"]) or None

    @property
    def segment(self) -> int:
        """The frame's number among the segments of its packet, from 0 on."""
        return int(self.record["part"])

    @property
    def gso(self) -> int | None:
        """Payload bytes of the segments that the wire is left to cut it into; None if there is nothing to cut."""
        return int(self.record["segment"]) if self.record["gso"] else None

    @property
    def checksum_filled(self) -> bool:
        """Whether the NIC has computed the L4 checksum, because the driver asked for it."""
        return bool(self.record["filled"])

    @property
    def checksum_left(self) -> bool:
        """Whether the L4 checksum is left to the wire, which offered to."""
        return bool(self.record["flags"] & FrameFlag.NEEDS_CSUM)

    def matches(self, match: Match) -> bool:
        """Whether a `Match` means it."""
        if isinstance(match, bytes):
            return self.data == match
        if isinstance(match, type):
            return match in self.packet
        if not hasattr(match, "payload"):
            return bool(match(self.packet))
        return all(self._has(layer) for layer in _layers(match))

    def __str__(self) -> str:
        """Which queue, what it is, and what the NIC has done to it."""
        words = [f"tx{self.queue}: {self.packet.summary()}, {len(self.data)} bytes"]
        if self.mss:
            words.append(f"segment {self.segment} of {self.mss} bytes")
        if self.gso:
            words.append(f"to be cut into {self.gso} bytes")
        if self.checksum_filled or self.checksum_left:
            words.append("checksum " + ("filled in" if self.checksum_filled else "left to the wire"))
        return ", ".join(words)

    def _has(self, wanted: Any) -> bool:
        """Whether there is such a layer, with those fields that `wanted` gives."""
        found = self.packet.getlayer(type(wanted))
        return found is not None and all(found.getfieldval(name) == value for name, value in wanted.fields.items())


def _layers(packet: Any) -> list[Any]:
    from scapy.packet import NoPayload

    found = []
    while not isinstance(packet, NoPayload):
        found.append(packet)
        packet = packet.payload
    return found
