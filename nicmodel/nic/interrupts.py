"""MSI-X vectors of a NIC: those of the queues, which are moderated, and the management vector."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from nicmodel.nic import events
from nicmodel.nic.diagnostics import Diagnostics
from nicmodel.nic.moderation import NEVER, is_awaited, moderate
from nicmodel.nic.state import Records
from nicmodel.pci.config import ConfigSpace
from nicmodel.vfio_user.irq import InterruptSet
from nicmodel.vfio_user.poll import EventLoop, Timer


class Interrupts:
    """Decides when vectors fire, and has the client raise them.

    Args:
        vectors: the queues' vectors (`VECTOR`); the packet path marks in it what is pending.
        config: the device's configuration space: without bus mastering it raises nothing.
        poller: the event loop.
        diagnostics: told of each interrupt.

    Attributes:
        count: vectors of queues that the driver has set up; 0 while the device is not configured.
        first: the MSI-X vector of the first of them.
        detour: called with each vector in place of `raise_vector`, which it may call; none is the default
            (`nicmodel.faults`).
    """

    def __init__(self, vectors: Records, config: ConfigSpace, poller: EventLoop, diagnostics: Diagnostics) -> None:
        self.count = self.first = 0
        self.detour: Callable[[int], None] | None = None
        self._vectors = vectors
        self._config = config
        self._poller = poller
        self._clock = poller.clock
        self._diagnostics = diagnostics
        self._irqs: InterruptSet | None = None
        self._fired = np.zeros(len(vectors) + 1, np.int32)
        self._timer: Timer | None = None
        self._halted = False

    def load(self) -> None:
        """Run the compiled function once on nothing (`Nic`)."""
        is_awaited(self._vectors)
        moderate(self._vectors, 0, self._fired)

    def attach(self, irqs: InterruptSet) -> None:
        """A client has come, which raises these vectors."""
        self._irqs = irqs

    def detach(self) -> None:
        """The client has gone."""
        self._irqs = None

    def configure(self, count: int, first: int) -> None:
        """The driver sets up `count` vectors of queues, which begin at MSI-X vector `first`."""
        self.count, self.first = count, first

    def reset(self) -> None:
        """Take back what `configure` and doorbells have set up: every vector is as after power-on."""
        self._vectors[:] = 0
        self.count = 0

    def halt(self, halted: bool) -> None:
        """Fire nothing until this is said again with False."""
        self._halted = halted
        if halted:
            self.cancel()

    @property
    def management(self) -> int:
        """The MSI-X vector that belongs to no queue: it comes after those of the queues, or before them."""
        return self.count if self.first == 0 else 0

    def notify(self) -> None:
        """The management interrupt: the driver reads the device status."""
        if self.count and not self._halted:
            self._signal(self.management)

    def fire_soon(self) -> None:
        """Interrupts are decided once for all that has arrived: an interrupt costs a guest more than a packet does."""
        if is_awaited(self._vectors):
            self._poller.when_idle(self.fire)

    def fire(self) -> None:
        """Raise the vectors that are pending and due, and come back for those that are due later."""
        if self._halted:
            return
        count, again = moderate(self._vectors, self._clock(), self._fired)
        for vector in self._fired[:count].tolist():
            try:
                self._signal(self.first + vector)
            except Exception as error:
                self._diagnostics.fail("interrupt", error)
        self.cancel()
        if again != NEVER:
            self._timer = self._poller.call_at(again, self.fire)

    def cancel(self) -> None:
        """Do not come back."""
        if self._timer is not None:
            self._poller.cancel(self._timer)
            self._timer = None

    def _signal(self, vector: int) -> None:
        if self.detour is None:
            self.raise_vector(vector)
        else:
            self.detour(vector)

    def raise_vector(self, vector: int) -> None:
        """Raise an MSI-X vector, if bus mastering allows it."""
        if self._irqs is not None and self._config.bus_master:
            if self._diagnostics.observers:
                self._diagnostics.tell(events.Interrupting(vector))
            self._irqs.trigger(vector)
