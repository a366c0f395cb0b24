"""TCP segments among the frames that a NIC receives and sends, as the checks of options look at them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from nicmodel.nic.state import Drop, Records
from nicmodel.packet.frames import Batch
from nicmodel.packet.headers import HEADERS, L4
from nicmodel.packet.parse import parse

_SEQUENCES = 0xFFFF_FFFF
_ACK = 0x10


class Segment(NamedTuple):
    """One segment.

    Attributes:
        source: address and port of the sender.
        destination: address and port of the receiver.
        sequence: number of its first byte.
        length: bytes of payload.
        acknowledged: number up to which it acknowledges; None: it does not.
    """

    source: tuple[bytes, int]
    destination: tuple[bytes, int]
    sequence: int
    length: int
    acknowledged: int | None

    @property
    def end(self) -> int:
        """Number of the byte after its last."""
        return self.sequence + self.length & _SEQUENCES


def after(first: int, second: int) -> bool:
    """Whether sequence number `first` is later than `second`."""
    return 0 < (first - second & _SEQUENCES) < 1 << 31


class Segments:
    """Reads segments. The first call of a process may compile the parser, so one is made when it is made."""

    def __init__(self) -> None:
        self._headers = np.zeros(1, HEADERS)
        parse(np.zeros(1, np.uint8), 0, 0, self._headers)

    def received(self, batch: Batch, outcomes: Records) -> Iterator[tuple[int, Segment]]:
        """Those that a batch has brought to queues: number of the frame, segment."""
        for number in np.flatnonzero(outcomes["verdict"][: batch.count] == Drop.NONE).tolist():
            segment = self._read(batch, number)
            if segment is not None:
                yield number, segment

    def sent(self, batch: Batch) -> Iterator[Segment]:
        """Those in a batch that goes out."""
        for number in range(batch.sent, batch.count):
            segment = self._read(batch, number)
            if segment is not None:
                yield segment

    def _read(self, batch: Batch, number: int) -> Segment | None:
        """The segment in a frame; None: it is none, or a fragment of one."""
        frame, h = batch.frames[number], self._headers[0]
        start = int(frame["offset"])
        parse(batch.data, start, int(frame["length"]), self._headers)
        if h["l4"] != L4.TCP or h["fragment"] or h["malformed"] or not h["ports"]:
            return None
        size, tcp = int(h["address_size"]), start + int(h["l4_offset"])
        source, destination = (
            batch.data[start + int(h[name]) : start + int(h[name]) + size].tobytes()
            for name in ("source", "destination")
        )  # fmt: skip
        numbers = batch.data[tcp + 4 : tcp + 12].tobytes()
        return Segment(
            (source, int(h["source_port"])),
            (destination, int(h["destination_port"])),
            int.from_bytes(numbers[:4], "big"),
            int(h["length"]) - int(h["payload"]),
            int.from_bytes(numbers[4:], "big") if h["tcp_flags"] & _ACK else None,
        )
