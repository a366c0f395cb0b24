"""The control of buffer owners: which queues have several."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from nicmodel.gvnic.commands import Inner, Status
from nicmodel.gvnic.options.option import Handlers, OptionControl
from nicmodel.gvnic.profile import Profile
from nicmodel.gvnic.refusal import require
from nicmodel.gvnic.state import SETTINGS, State

if TYPE_CHECKING:
    from nicmodel.gvnic.admin import AdminQueue


class BufferOwners(OptionControl):
    """Lets the buffers of receive queues have several owners.

    Args:
        state: the NIC's.
        profile: how many owners there can be, and how far it looks ahead.
    """

    def __init__(self, state: State, profile: Profile) -> None:
        self._state = state
        self._profile = profile

    def handlers(self, admin: AdminQueue) -> Handlers:
        """See `OptionControl`."""
        return {Inner.CONFIGURE_BUFFER_OWNERS: lambda inner: self._configure(admin.live_rx_queue(inner), inner)}

    def _configure(self, queue: int, inner: np.void) -> None:
        """Let the buffers of a receive queue, which has none yet, have several owners; this ends with the queue."""
        rx, profile, owners = self._state.rx[queue], self._profile, int(inner["owners"])
        require(2 <= owners <= profile.owners, Status.INVALID_ARGUMENT, f"{owners} owners of {profile.owners}")
        entries = int(rx["buffer_entries"])
        require(entries <= profile.max_ring, Status.INVALID_ARGUMENT, f"several owners in a ring of {entries} entries")
        used = rx["owners"] or rx["buffer_tail"] or rx["buffer_head"]
        require(not used, Status.FAILED_PRECONDITION, f"RX queue {queue} has buffers, or has owners")
        lists = self._state.owners[queue]
        lists[SETTINGS[lists.dtype]] = 0
        rx["owners"], rx["lookahead"] = owners, profile.owner_lookahead
        rx["coalesce"] = 0  # segments would be merged by what the ring has, not by what their owners have
