"""The control of deferred placement: which queues have it, their doorbells, and the time-out."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from nicmodel.gvnic.commands import Inner, Status
from nicmodel.gvnic.options.deferred.declarations import (
    MAX_PLACEMENT_RING,
    PLACEMENT_COMPLETION,
    PLACEMENT_REQUEST,
    DeferFlag,
)
from nicmodel.gvnic.options.deferred.events import Placed, Placing
from nicmodel.gvnic.options.deferred.payload import discard, expire
from nicmodel.gvnic.options.deferred.requests import place
from nicmodel.gvnic.options.deferred.state import ELSE_AT_ONCE, ELSE_DROP, NIC_PAGE
from nicmodel.gvnic.options.option import Handlers, OptionControl
from nicmodel.gvnic.refusal import check_ring, require
from nicmodel.gvnic.state import SETTINGS, State
from nicmodel.nic.diagnostics import Diagnostics
from nicmodel.vfio_user.poll import Budget, EventLoop, Timer

if TYPE_CHECKING:
    from nicmodel.gvnic.admin import AdminQueue

#: Bytes that are placed in one turn of the event loop, those of the requests included.
_BYTES_PER_TURN = 1 << 22


class DeferredPlacement(OptionControl):
    """The option's control: which queues have it, their doorbells, and the timeout.

    Args:
        state: the NIC's.
        queue_bytes: how much of the NIC's memory one queue may use, bytes.
        usecs: how long payload is kept, microseconds.
        poller: the event loop.
        go_on: has `work` called in a later turn of the loop.
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
        self._turns = Budget(poller, 1)

    def load(self) -> None:
        """See `OptionControl`."""
        place(self._state, 0, 0)
        discard(self._state, 0)
        expire(self._state, 0)

    def handlers(self, admin: AdminQueue) -> Handlers:
        """See `OptionControl`."""
        return {Inner.CONFIGURE_DEFERRED_PLACEMENT: lambda inner: self._configure(admin, inner)}

    def _configure(self, admin: AdminQueue, inner: np.void) -> None:
        """Have a receive queue keep its payload from now on; it ends with the queue."""
        queue, entries, state = admin.live_rx_queue(inner), int(inner["entries"]), self._state
        rx = state.rx[queue]
        require(rx["header_size"] > 0, Status.FAILED_PRECONDITION, f"RX queue {queue} has no header split")
        require(not rx["deferred"], Status.ALREADY_EXISTS, f"RX queue {queue} has a placement ring")
        require(entries <= MAX_PLACEMENT_RING, Status.INVALID_ARGUMENT, f"placement ring of {entries} entries")
        requests, completions = int(inner["request_ring_address"]), int(inner["completion_ring_address"])
        check_ring("placement", requests, entries, PLACEMENT_REQUEST.size)
        check_ring("placement completion", completions, entries, PLACEMENT_COMPLETION.size)
        admin.answer_resources(inner, admin.nic.doorbells.placement(queue), 0)
        record = state.placement_rings[queue : queue + 1]
        record[SETTINGS[record.dtype]] = 0
        record["request_ring"], record["completion_ring"], record["entries"] = requests, completions, entries
        record["generation"] = 1
        record["budget"] = self._budget
        rx["deferred"] = ELSE_DROP if inner["flags"] & DeferFlag.HEADERS_ONLY else ELSE_AT_ONCE

    def end(self, queue: int) -> None:
        """See `OptionControl`: what was kept for the queue is dropped."""
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

    def work(self) -> None:
        """Execute the requests that have been posted; what is too much for this turn of the loop waits for the next."""
        if not self._rung or not self._turns.spend(self._go_on):
            return
        share = _BYTES_PER_TURN // len(self._rung)
        for queue in tuple(self._rung):
            if self._diagnostics.observers:
                self._diagnostics.tell(Placing(queue))
            if not place(self._state, queue, share):
                del self._rung[queue]
            if self._diagnostics.observers:
                self._diagnostics.tell(Placed(queue))
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
        """See `OptionControl`."""
        if self._timer is not None:
            self._poller.cancel(self._timer)
            self._timer = None
