"""A wire whose far end is a test: frames go in by a call, and what the NIC sends is kept."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from nicmodel.packet.frames import Batch, FrameFlag, Offload
from nicmodel.testing.sent import SentFrame
from nicmodel.wire.wire import Poller

#: Room of a batch, as a tap has it, and bytes before each frame: the tap's header.
_BYTES, _FRAMES, _GAP = 1 << 20, 512, 12


class TestWire:
    """A medium without time or loss, unless the test wants some.

    It hands frames over as real wires do: in a batch that is used again and again, has room for more frames than are in
    it, whose spare records say something of earlier frames, and whose frames do not lie back to back.

    Args:
        offloads: what the NIC may leave undone in what it sends.
        headroom: bytes it must leave free before each frame.
        speed: Mbit/s.

    Attributes:
        sent: what the NIC has sent, oldest first.
        room: how many more frames it takes before it makes the NIC wait; None: no limit.
        gap: bytes before each frame that the NIC receives; a wire of datagrams has whole slots, in part unused.
    """

    __test__ = False  # the name is no invitation to pytest

    name = "test"

    def __init__(self, *, offloads: Offload = Offload.NONE, headroom: int = 0, speed: int = 100_000) -> None:
        self.offloads = offloads
        self.headroom = headroom
        self.speed = speed
        self.up = True
        self.counters: dict[str, int] = {"rx_frames": 0, "tx_frames": 0}
        self.sent: list[SentFrame] = []
        self.room: int | None = None
        self.gap = _GAP
        self._incoming = Batch(0, 0)
        self._receive: Callable[[Batch], None] = lambda batch: None
        self._writable: Callable[[], None] = lambda: None
        self._link_changed: Callable[[], None] = lambda: None

    def start(
        self,
        poller: Poller,
        receive: Callable[[Batch], None],
        writable: Callable[[], None],
        link_changed: Callable[[], None],
    ) -> None:
        """See `Wire.start`."""
        self._receive, self._writable, self._link_changed = receive, writable, link_changed

    def send(self, batch: Batch) -> bool:
        """See `Wire.send`."""
        while batch.sent < batch.count:
            if self.room is not None:
                if self.room == 0:
                    return False
                self.room -= 1
            record = batch.frames[batch.sent].copy()
            start = int(record["offset"])
            self.sent.append(SentFrame(batch.data[start : start + int(record["length"])].tobytes(), record))
            self.counters["tx_frames"] += 1
            batch.sent += 1
        return True

    def stop(self) -> None:
        """See `Wire.stop`."""

    def inject(self, *frames: bytes, **fields: Any) -> None:
        """Have the NIC receive frames, as one batch; `fields` are those of `Batch.append`, for every frame."""
        octets = sum(self.gap + len(frame) for frame in frames)
        if octets > len(self._incoming.data) or len(frames) > len(self._incoming.frames):
            self._incoming = Batch(max(octets, _BYTES), max(len(frames), _FRAMES))
            self._incoming.frames["length"] = 60
            self._incoming.frames["flags"] = FrameFlag.CSUM_VALID
            self._incoming.data[:] = np.arange(len(self._incoming.data)).astype(np.uint8)
        self._incoming.clear()
        for frame in frames:
            self._incoming.append(frame, headroom=self.gap, **fields)
        self.inject_batch(self._incoming)

    def inject_batch(self, batch: Batch) -> None:
        """Have the NIC receive a batch."""
        self.counters["rx_frames"] += batch.count
        self._receive(batch)

    def take(self) -> list[bytes]:
        """The frames sent since the last call."""
        sent, self.sent = self.sent, []
        return [frame.data for frame in sent]

    def unblock(self, room: int | None = None) -> None:
        """Take `room` frames more, or with None everything from now on, and tell the NIC."""
        self.room = room
        self._writable()

    def set_link(self, up: bool) -> None:
        """The far end comes or goes."""
        self.up = up
        self._link_changed()


def make_batch(frames: Iterable[bytes], **fields: Any) -> Batch:
    """A batch that holds just these frames, all with the same `fields` (see `Batch.append`)."""
    frames = list(frames)
    batch = Batch(max(sum(map(len, frames)), 1), max(len(frames), 1))
    for frame in frames:
        batch.append(frame, **fields)
    return batch
