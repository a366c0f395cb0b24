"""Rules of interrupt doorbells (INT)."""

from __future__ import annotations

from nicmodel.gvnic.descriptors import IRQ_DOORBELL, ITR_NO_UPDATE, GqiIrqDoorbell
from nicmodel.gvnic.device import Nic
from nicmodel.observe.checking.vectors import Vectors
from nicmodel.observe.findings import Journal

#: DPDK says by this bit of a DQO doorbell that it will poll.
_POLLING = 1 << 30
_GQI_BITS = sum(GqiIrqDoorbell)


class Interrupts(Vectors):
    """Looks at interrupt doorbells, and at vectors whose doorbell does not come."""

    _nic: Nic

    def __init__(self, nic: Nic, journal: Journal) -> None:
        super().__init__(nic, journal, "block")

    def doorbell(self, block: int, value: int) -> None:
        """The doorbell of a block, configured or not, is about to take effect."""
        nic = self._nic
        queue = self.queue_of(block)
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
            self.enabled(block)
            if queue is None:
                self._journal.report("INT-004", f"block {block} is enabled, but serves no queue", value=value)
        self.polled(block)
