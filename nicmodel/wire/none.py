"""A wire to nowhere: every frame sent is counted and gone, none ever comes."""

from __future__ import annotations

from collections.abc import Callable

from nicmodel.packet.frames import Batch, Offload
from nicmodel.wire.wire import SPEED, Poller, new_counters


class NoWire:
    """A medium with nobody else on it. The link is up, so that a driver can be brought up without a network."""

    name = "none"
    headroom = 0
    offloads = Offload.ALL
    speed = SPEED

    def __init__(self) -> None:
        self.up = True
        self.counters = new_counters()

    def start(
        self,
        poller: Poller,
        receive: Callable[[Batch], None],
        writable: Callable[[], None],
        link_changed: Callable[[], None],
    ) -> None:
        """See `Wire.start`. Nothing will ever be called."""

    def send(self, batch: Batch) -> bool:
        """See `Wire.send`."""
        self.counters["tx_frames"] += batch.count - batch.sent
        self.counters["tx_bytes"] += int(batch.frames["length"][batch.sent : batch.count].sum())
        batch.sent = batch.count
        return True

    def stop(self) -> None:
        """See `Wire.stop`."""
