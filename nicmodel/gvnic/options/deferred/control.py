"""The control of deferred placement: which queues have it, their doorbells, and the time-out."""

from __future__ import annotations

from collections.abc import Callable

from nicmodel.gvnic import events
from nicmodel.gvnic.diagnostics import Diagnostics
from nicmodel.gvnic.options.deferred.payload import ELSE_AT_ONCE, ELSE_DROP, discard, expire
from nicmodel.gvnic.options.deferred.requests import place
from nicmodel.gvnic.state import NIC_PAGE, SETTINGS, State
from nicmodel.vfio_user.poll import Budget, EventLoop, Timer

#: The most entries of a placement ring.
MAX_PLACEMENT_RING = 4096

#: Bytes that are placed in one turn of the event loop, those of the requests included.
_BYTES_PER_TURN = 1 << 22


class DeferredPlacement:
    """The option's control: which queues have it, their doorbells, and the timeout.

    Args:
        state: the NIC's.
        queue_bytes: how much of the NIC's memory one queue may use, bytes.
        usecs: how long payload is kept, microseconds.
        poller: the event loop.
        go_on: has `flush` called in a later turn of the loop.
        diagnostics: told of what is placed.
    """

    def __init__(
        self,
        state: State,
        queue_bytes: int,
        usecs: int,
        poller: EventLoop,
        go_on: Callable[[], None],
        diagnostics: Diagnostics,
    ) -> None:
        self._state = state
        self._budget = queue_bytes // NIC_PAGE
        self._timeout = usecs * 1000
        self._poller = poller
        self._go_on = go_on
        self._diagnostics = diagnostics
        self._timer: Timer | None = None
        self._rung: dict[int, None] = {}
        self._flushes = Budget(poller, 1)
        self._form()

    def load(self) -> None:
        """Run the compiled functions once on nothing (`Nic`)."""
        place(self._state, 0, 0)
        discard(self._state, 0)
        expire(self._state, 0)

    def _form(self) -> None:
        """All pages free."""
        state = self._state
        pages = len(state.nic_pages)
        state.nic_pages["next"] = [*range(1, pages), -1]
        state.nic_pages["queue"] = -1
        state.nic_memory["free"], state.nic_memory["free_pages"] = 0, pages
        state.nic_memory["oldest"] = state.nic_memory["newest"] = -1

    def enable(self, queue: int, *, headers_only: bool, request_ring: int, completion_ring: int, entries: int) -> None:
        """Have a receive queue keep its payload from now on; it ends with the queue."""
        state = self._state
        record = state.placement_rings[queue : queue + 1]
        record[SETTINGS[record.dtype]] = 0
        record["request_ring"], record["completion_ring"], record["entries"] = request_ring, completion_ring, entries
        record["generation"] = 1
        record["budget"] = self._budget
        state.rx[queue]["deferred"] = ELSE_DROP if headers_only else ELSE_AT_ONCE

    def end(self, queue: int) -> None:
        """The queue has ended: what was kept for it is dropped."""
        state = self._state
        self._rung.pop(queue, None)
        record = state.placement_rings[queue : queue + 1]
        if record["entries"][0]:
            discard(state, queue)
            record[SETTINGS[record.dtype]] = 0

    def doorbell(self, queue: int, value: int) -> bool:
        """The placement ring's doorbell: the index of its first free entry; whether there is such a ring and entry."""
        if queue not in range(len(self._state.rx)):
            return False
        placement = self._state.placement_rings[queue]
        if value >= placement["entries"]:
            return False
        placement["tail"] = value
        self._rung[queue] = None
        return True

    def flush(self) -> None:
        """Execute the requests that have been posted; what is too much for this turn of the loop waits for the next."""
        if not self._rung or not self._flushes.spend(self._go_on):
            return
        share = _BYTES_PER_TURN // len(self._rung)
        for queue in tuple(self._rung):
            if self._diagnostics.observers:
                self._diagnostics.tell(events.Placing(queue))
            if not place(self._state, queue, share):
                del self._rung[queue]
            if self._diagnostics.observers:
                self._diagnostics.tell(events.Placed(queue))
        if self._rung:
            self._poller.next_turn(self._go_on)

    def watch(self) -> None:
        """See that the oldest payload is dropped when its time is over."""
        if self._timer is None and (oldest := self._state.nic_memory["oldest"][0]) >= 0:
            due = int(self._state.nic_pages[oldest]["since"]) + self._timeout
            self._timer = self._poller.call_at(due, self._expire)

    def _expire(self) -> None:
        self._timer = None
        expire(self._state, self._poller.clock() - self._timeout)
        self.watch()

    def stop(self) -> None:
        """Cancel the timer."""
        if self._timer is not None:
            self._poller.cancel(self._timer)
            self._timer = None
