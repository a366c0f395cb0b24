"""Rules of interrupt doorbells (INT)."""

from __future__ import annotations

import numpy as np

from nicmodel.gvnic.descriptors import IRQ_DOORBELL, ITR_NO_UPDATE, GqiIrqDoorbell
from nicmodel.gvnic.device import Nic
from nicmodel.observe.findings import Journal

#: Seconds that a vector waits masked, while the driver is seen to live, until it counts as forgotten.
_FORGOTTEN_SECONDS = 30
_SECOND_NS = 1_000_000_000

#: DPDK says by this bit of a DQO doorbell that it will poll.
_POLLING = 1 << 30
_GQI_BITS = sum(GqiIrqDoorbell)


class Interrupts:
    """Looks at interrupt doorbells, and at vectors whose doorbell does not come.

    Attributes:
        excused: interrupts may have been lost by a fault on demand, so that the driver waits in good faith.
    """

    def __init__(self, nic: Nic, journal: Journal) -> None:
        self._nic = nic
        self._journal = journal
        self._enabled: set[int] = set()  # blocks that the driver has enabled
        self._waiting: dict[int, int] = {}  # seconds that a block with something to tell has waited, masked
        self._looked = 0
        self.excused = False

    def reset(self) -> None:
        """No block is enabled any more."""
        self._enabled.clear()
        self._waiting.clear()
        self.excused = False

    def doorbell(self, block: int, value: int) -> None:
        """The doorbell of a block, configured or not, is about to take effect."""
        nic = self._nic
        queue = self._queue_of(block)
        self._journal.note(queue, "interrupt doorbell", value=value, block=block)
        if block >= nic.interrupts.count:
            self._journal.report("INT-001", f"block {block} of {nic.interrupts.count} is written", value=value)
            return
        if nic.gqi:
            enable, reserved = not value & GqiIrqDoorbell.MASK, value & ~_GQI_BITS
        else:
            raw = value.to_bytes(4, "little")
            enable, reserved = bool(IRQ_DOORBELL.enable.get(raw)), value & IRQ_DOORBELL.reserved & ~_POLLING
            if IRQ_DOORBELL.itr_index.get(raw) not in (0, ITR_NO_UPDATE):
                self._journal.report(
                    "INT-003",
                    f"interval {IRQ_DOORBELL.itr_index.get(raw)} is set",
                    queue,
                    block=block,
                    value=value,
                )
        if reserved:
            self._journal.report("INT-002", f"bits {reserved:#x} are reserved", queue, block=block, value=value)
        if enable:
            self._enabled.add(block)
            if queue is None:
                self._journal.report("INT-004", f"block {block} is enabled, but serves no queue", value=value)
        self._waiting.pop(block, None)

    def polled(self, block: int) -> None:
        """The driver has worked on the queue of a block: it polls."""
        self._waiting.pop(block, None)

    def look(self) -> None:
        """The driver lives: is there a vector that it has forgotten?"""
        now = self._nic.clock()
        if self.excused or now - self._looked < _SECOND_NS:
            return
        self._looked = now
        vectors = self._nic.state.vectors
        stuck = set(np.flatnonzero((vectors["pending"] != 0) & (vectors["enabled"] == 0)).tolist()) & self._enabled
        self._waiting = {block: self._waiting.get(block, 0) + 1 for block in stuck}
        for block, seconds in self._waiting.items():
            queue = self._queue_of(block)
            if seconds > _FORGOTTEN_SECONDS and queue is not None:
                self._journal.report(
                    "INT-005", f"block {block} has waited for {seconds} s to be enabled", queue, block=block
                )

    def _queue_of(self, block: int) -> str | None:
        """A queue that the block serves."""
        for way, queues in (("rx", self._nic.state.rx), ("tx", self._nic.state.tx)):
            for number in np.flatnonzero((queues["active"] != 0) & (queues["vector"] == block)):
                return f"{way}{number}"
        return None
