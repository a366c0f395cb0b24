"""A cable between two NICs of one server: a batch sent at one end is received at the other, nothing copied."""

from __future__ import annotations

from collections.abc import Callable

from nicmodel.packet.frames import Batch, Offload
from nicmodel.wire.wire import SPEED, Poller, new_counters


def link(name: str = "link") -> tuple[LinkWire, LinkWire]:
    """The two ends of a new cable, called ``<name>:a`` and ``<name>:b``."""
    a, b = LinkWire(f"{name}:a"), LinkWire(f"{name}:b")
    a._peer, b._peer = b, a
    return a, b


class LinkWire:
    """One end of a cable, made by `link`.

    `up` says that the other end has been started and the cable is not cut. Setting it cuts or mends the cable, for both
    ends.

    Losses counted: ``not_connected``, sent while the link was down.
    """

    headroom = 0
    offloads = Offload.ALL
    speed = SPEED

    _peer: LinkWire

    def __init__(self, name: str) -> None:
        self.name = name
        self.counters = new_counters()
        self._cut = False
        self._receive: Callable[[Batch], None] | None = None
        self._link_changed: Callable[[], None] = _nobody

    @property
    def up(self) -> bool:
        """Whether frames sent here arrive."""
        return self._peer._receive is not None and not self._cut

    @up.setter
    def up(self, up: bool) -> None:
        if self._cut == (not up):
            return
        self._cut = self._peer._cut = not up
        for end in (self, self._peer):
            if end._peer._receive is not None:
                end._link_changed()

    def start(
        self,
        poller: Poller,
        receive: Callable[[Batch], None],
        writable: Callable[[], None],
        link_changed: Callable[[], None],
    ) -> None:
        """See `Wire.start`. Neither `poller` nor `writable` is needed: a send never falls short."""
        self._receive, self._link_changed = receive, link_changed
        if not self._cut:
            self._peer._link_changed()

    def send(self, batch: Batch) -> bool:
        """See `Wire.send`."""
        count = batch.count - batch.sent
        octets = int(batch.frames["length"][batch.sent : batch.count].sum())
        peer = self._peer
        if peer._receive is None or self._cut:
            self.counters["not_connected"] += count
        elif count:
            self.counters["tx_frames"] += count
            self.counters["tx_bytes"] += octets
            peer.counters["rx_frames"] += count
            peer.counters["rx_bytes"] += octets
            peer._receive(batch.rest())
        batch.sent = batch.count
        return True

    def stop(self) -> None:
        """See `Wire.stop`."""
        self._receive, self._link_changed = None, _nobody
        if not self._cut:
            self._peer._link_changed()


def _nobody() -> None:
    """Stands in for the callback of an end that is not started."""
