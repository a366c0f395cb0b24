"""The control of flushes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from nicmodel.gvnic.commands import Inner, Status
from nicmodel.gvnic.options.flush.declarations import ALL_OWNERS
from nicmodel.gvnic.options.flush.events import Flushed, Flushing
from nicmodel.gvnic.options.flush.hand_back import hand_back, hand_back_owned
from nicmodel.gvnic.options.option import Handlers, OptionControl
from nicmodel.gvnic.options.owners.lists import NOTHING
from nicmodel.gvnic.refusal import require
from nicmodel.gvnic.state import State
from nicmodel.nic.diagnostics import Diagnostics
from nicmodel.nic.ingress import Ingress

if TYPE_CHECKING:
    from nicmodel.gvnic.admin import AdminQueue


class QueueFlush(OptionControl):
    """Hands the buffers of a receive queue back on command.

    Args:
        state: the NIC's.
        ingress: has frames that wait for these buffers.
        diagnostics: told of each flush.
    """

    def __init__(self, state: State, ingress: Ingress[State], diagnostics: Diagnostics) -> None:
        self._state = state
        self._ingress = ingress
        self._diagnostics = diagnostics

    def handlers(self, admin: AdminQueue) -> Handlers:
        """See `OptionControl`."""
        return {Inner.FLUSH_RX_QUEUE: lambda inner: self._execute(admin.live_rx_queue(inner), inner)}

    def load(self) -> None:
        """See `OptionControl`."""
        hand_back(self._state, 0)
        if self._state.owners.size:
            hand_back_owned(self._state, 0, NOTHING)

    def _execute(self, queue: int, inner: np.void) -> None:
        owner = int(inner["owner"])
        if owner == ALL_OWNERS:
            self._flush(queue, NOTHING)
        else:
            known = owner < self._state.rx[queue]["owners"]
            require(known, Status.NOT_FOUND, f"RX queue {queue} has no owner {owner}")
            self._flush(queue, owner)

    def _flush(self, queue: int, owner: int) -> None:
        """Hand a receive queue's buffers back, which the device does not touch again; the queue and its rings stay.

        Frames that wait for these buffers are dropped: the next ones may be somebody else's.

        Args:
            queue: the queue.
            owner: whose buffers; `NOTHING`: all.
        """
        state, diagnostics = self._state, self._diagnostics
        whose = None if owner == NOTHING else owner
        if diagnostics.observers:
            diagnostics.tell(Flushing(queue, whose))
        if state.rx[queue]["owners"]:
            hand_back_owned(state, queue, owner)
        else:
            hand_back(state, queue)
        if diagnostics.observers:
            with diagnostics.surviving("observer"):  # what waits for these buffers must go, whoever looks on
                diagnostics.tell(Flushed(queue, whose))
        gate = state.rx[queue : queue + 1] if owner == NOTHING else state.owners[queue, owner : owner + 1]
        name, shut = ("active", 0) if owner == NOTHING else ("closed", 1)
        gate[name] = shut
        self._ingress.retry()
        gate[name] = 1 - shut
