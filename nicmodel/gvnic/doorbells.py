"""BAR 2: a doorbell for each notification block and each queue.

A doorbell only notes what there is to do, which is done when all messages that had arrived together are read
(`Nic.work`).

Source: Linux drivers/net/ethernet/google/gve/gve_dqo.h, gve_main.c.
"""

from __future__ import annotations

from nicmodel.gvnic.descriptors import IRQ_DOORBELL, ITR_NO_UPDATE, ITR_UNIT_NS, GqiIrqDoorbell
from nicmodel.gvnic.options.deferred.control import DeferredPlacement
from nicmodel.gvnic.state import State
from nicmodel.nic import events
from nicmodel.nic.diagnostics import Diagnostics
from nicmodel.nic.egress import Egress
from nicmodel.nic.ingress import Ingress

# The fields of an interrupt doorbell, of which there is one for each interrupt.
_INDEX, _INDEX_MASK = IRQ_DOORBELL.itr_index.shift, IRQ_DOORBELL.itr_index.mask
_INTERVAL, _INTERVAL_MASK = IRQ_DOORBELL.interval.shift, IRQ_DOORBELL.interval.mask
_CLEAR_PENDING = 1 << IRQ_DOORBELL.clear_pending.shift
_GQI_MASK = int(GqiIrqDoorbell.MASK)


def _counts_on(head: int, entries: int, value: int) -> bool:
    """Whether a GQI doorbell, a free-running count, is at most a ring ahead of what the device has taken."""
    return value - int(head) & 0xFFFFFFFF <= entries


class Doorbells:
    """Where each doorbell is, and what it does.

    Args:
        state: the NIC's.
        ingress: has its backlog tried again when buffers are posted.
        egress: has its queues' turn when packets are posted.
        deferred: has doorbells of its own; None: there are none.
        diagnostics: told of doorbells that have no effect.

    Attributes:
        gqi: whether the driver uses a GQI format: counts in big endian instead of indices in little endian.
    """

    def __init__(
        self,
        state: State,
        ingress: Ingress[State],
        egress: Egress[State],
        deferred: DeferredPlacement | None,
        diagnostics: Diagnostics,
    ) -> None:
        self.gqi = False
        self._queues = len(state.rx)
        self._ingress = ingress
        self._egress = egress
        self._deferred = deferred
        self._diagnostics = diagnostics
        # Columns of the state that doorbells write, as views of their own: the hot path of the interpreter.
        self._rx_head = state.rx["buffer_head"]
        self._rx_tail = state.rx["buffer_tail"]
        self._rx_entries = state.rx["buffer_entries"]
        self._tx_head = state.tx["head"]
        self._tx_tail = state.tx["tail"]
        self._tx_entries = state.tx["entries"]
        self._enabled = state.vectors["enabled"]
        self._pending = state.vectors["pending"]
        self._interval = state.vectors["interval"]

    def irq(self, block: int) -> int:
        """Dword index in BAR 2 of a notification block's doorbell. Index 0 stays unused: stray writes go there."""
        return 1 + block

    def tx(self, queue: int) -> int:
        """Dword index in BAR 2 of a transmit queue's doorbell."""
        return 1 + 2 * self._queues + queue

    def rx(self, queue: int) -> int:
        """Dword index in BAR 2 of a receive queue's doorbell."""
        return 1 + 3 * self._queues + queue

    def placement(self, queue: int) -> int:
        """Dword index in BAR 2 of the doorbell of a receive queue's placement ring."""
        return 1 + 4 * self._queues + queue

    def write(self, offset: int, data: bytes | memoryview) -> None:
        """The driver writes to BAR 2."""
        queues = self._queues
        value = int.from_bytes(data, "big" if self.gqi else "little")
        index = (offset >> 2) - 1
        if len(data) != 4 or offset & 3 or index < 0 or index >= 4 * queues:
            if self._deferred is None or len(data) != 4 or not self._deferred.doorbell(index - 4 * queues, value):
                self._diagnostics.count("doorbell_unknown")
        elif index < 2 * queues:
            self._ring_irq(index, value)
        elif index < 3 * queues:
            queue = index - 2 * queues
            entries = self._tx_entries[queue]
            if _counts_on(self._tx_head[queue], entries, value) if self.gqi else value < entries:
                self._tx_tail[queue] = value
                self._egress.schedule(queue)
            else:
                self._refuse(f"tx{queue}", value, entries)
        else:
            queue = index - 3 * queues
            entries = self._rx_entries[queue]
            if _counts_on(self._rx_head[queue], entries, value) if self.gqi else value < entries:
                self._rx_tail[queue] = value
                self._ingress.schedule()
            else:
                self._refuse(f"rx{queue}", value, entries)

    def _refuse(self, queue: str, value: int, entries: int) -> None:
        """A doorbell that cannot be meant has no effect."""
        self._diagnostics.count("doorbell_beyond_ring")
        if self._diagnostics.observers:
            self._diagnostics.tell(events.Failed(f"doorbell {value} is beyond the ring of {entries} entries", queue))

    def _ring_irq(self, block: int, value: int) -> None:
        if self.gqi:
            # What came since the vector fired is pending, so unmasking fires again; ACK and EVENT say nothing more.
            self._enabled[block] = value & _GQI_MASK == 0
            return
        if value >> _INDEX & _INDEX_MASK != ITR_NO_UPDATE:
            self._interval[block] = (value >> _INTERVAL & _INTERVAL_MASK) * ITR_UNIT_NS
        if value & _CLEAR_PENDING:
            self._pending[block] = 0
        self._enabled[block] = value & 1
