"""The statistics region: counters that the device writes into guest memory at intervals, for ``ethtool -S``.

Source: Linux drivers/net/ethernet/google/gve/gve_ethtool.c, which looks for the device's part at the end of the region.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

import numpy as np

from nicmodel.gvnic import commands as c
from nicmodel.gvnic.commands import Stat
from nicmodel.gvnic.state import State
from nicmodel.nic.diagnostics import Diagnostics
from nicmodel.nic.dma_engine import DmaEngine
from nicmodel.nic.purpose import Purpose
from nicmodel.nic.state import Drop
from nicmodel.vfio_user.dma import DmaFault
from nicmodel.vfio_user.poll import EventLoop, Timer

log = logging.getLogger(__name__)

#: Shortest and longest interval that is honoured, whatever the driver asks for.
MIN_INTERVAL_MS, MAX_INTERVAL_MS = 10, 24 * 3600 * 1000


class Statistics:
    """Writes the region while one is attached.

    Args:
        state: the NIC's, whose counters they are.
        dma: reaches the region.
        poller: the event loop.
        is_halted: whether the device writes nothing: it has stopped, or may not.
        diagnostics: told of failures.

    Attributes:
        detour: given what is about to be written; what it returns is written instead, nothing if that is None. No
            detour is the default (`nicmodel.faults`).
    """

    def __init__(
        self,
        state: State,
        dma: DmaEngine,
        poller: EventLoop,
        is_halted: Callable[[], bool],
        diagnostics: Diagnostics,
    ) -> None:
        self._state = state
        self._dma = dma
        self._poller = poller
        self._is_halted = is_halted
        self._diagnostics = diagnostics
        self.detour: Callable[[bytes], bytes | None] | None = None
        self._address = 0
        self._length = 0
        self._interval_ns = 0
        self._timer: Timer | None = None

    @property
    def length(self) -> int:
        """Bytes of the region; 0: there is none."""
        return self._length if self._address else 0

    def attach(self, address: int, length: int, interval_ms: int) -> None:
        """Begin to write to `length` bytes at guest address `address`.

        Raises:
            DmaFault: what the device may write there is not all mapped; better said now than at each interval.
        """
        most = min(length, c.STATS_ENTRY.itemsize * c.STATS_DEVICE_RX * len(self._state.rx))
        self._dma.read(address + length - most, most)
        self.detach()
        self._address, self._length = address, length
        self._interval_ns = min(max(interval_ms, MIN_INTERVAL_MS), MAX_INTERVAL_MS) * 1_000_000
        self._tick()

    def detach(self) -> None:
        """Never touch the region again."""
        self._address = 0
        if self._timer is not None:
            self._poller.cancel(self._timer)
            self._timer = None

    def _tick(self) -> None:
        self._timer = self._poller.call_at(self._poller.clock() + self._interval_ns, self._tick)
        with self._diagnostics.surviving("statistics"):
            self.write()

    def write(self) -> None:
        """Write the device's part now: four entries for each receive queue that exists, at the region's end."""
        if not self._address or self._is_halted():
            return
        state = self._state
        entries = [
            (name, queue, value)
            for queue in np.flatnonzero(state.rx["active"])
            for name, value in (
                (Stat.RX_QUEUE_DROP_COUNT, state.drops[queue, Drop.RUNT :].sum()),
                (Stat.RX_NO_BUFFERS_POSTED, state.drops[queue, Drop.NO_BUFFERS]),
                (Stat.RX_DROPS_PACKET_OVER_MRU, state.drops[-1, Drop.OVER_MRU]),
                (Stat.RX_DROPS_INVALID_CHECKSUM, 0),  # none is dropped for that: the verdict goes to the driver
            )
        ]
        raw: bytes | None = np.array(entries, c.STATS_ENTRY).tobytes()
        if raw and self.detour is not None:
            raw = self.detour(raw)
        if raw is None or c.STATS_HEADER_SIZE + len(raw) > self._length:
            return
        try:
            self._dma.write(self._address + self._length - len(raw), raw, Purpose.STATISTICS)
        except DmaFault as fault:
            log.warning("statistics region given up: %s", fault)
            self.detach()
