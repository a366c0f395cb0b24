"""Gathering: frames from the wire wait a moment for others, so that there are more segments to merge."""

from __future__ import annotations

from collections.abc import Callable

from nicmodel.packet.frames import Batch
from nicmodel.vfio_user.poll import EventLoop, Timer

#: Bytes and frames that wait; more go on at once.
_BYTES = 1 << 21
_FRAMES = 4096


class Gatherer:
    """Stands between the wire and what receives.

    Args:
        poller: the event loop.
        usecs: how long the first frame waits, microseconds.
        deliver: where they go then.
    """

    def __init__(self, poller: EventLoop, usecs: int, deliver: Callable[[Batch], None]) -> None:
        self._poller = poller
        self._wait = usecs * 1000
        self._deliver = deliver
        self._batch = Batch(_BYTES, _FRAMES)
        self._timer: Timer | None = None

    def take(self, batch: Batch) -> None:
        """Keep frames from the wire until the first of them has waited for so long."""
        if not self._batch.take(batch):
            self._go_on()
            if not self._batch.take(batch):
                self._deliver(batch)
                return
        if self._timer is None:
            self._timer = self._poller.call_at(self._poller.clock() + self._wait, self._go_on)

    def stop(self) -> None:
        """Leave what waits where it is."""
        if self._timer is not None:
            self._poller.cancel(self._timer)
            self._timer = None

    def _go_on(self) -> None:
        self.stop()
        self._deliver(self._batch)
        self._batch.clear()
