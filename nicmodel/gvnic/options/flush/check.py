"""Looks at how a driver flushes its queues."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import numpy as np

from nicmodel.gvnic.commands import Inner
from nicmodel.gvnic.descriptors import RX_BUFFER
from nicmodel.gvnic.options.check import OptionCheck
from nicmodel.gvnic.options.flush.declarations import ALL_OWNERS, OPTION
from nicmodel.gvnic.options.flush.events import Flushing
from nicmodel.gvnic.options.owners.declarations import RX_BUFFER_OWNER
from nicmodel.nic.events import Event
from nicmodel.vfio_user.dma import WRITABLE

if TYPE_CHECKING:
    from nicmodel.gvnic.contract.admin import Admin


class FlushCheck(OptionCheck):
    """See `OptionCheck`."""

    option = OPTION

    def checks(self) -> Mapping[Inner, Callable[[np.void, Admin], None]]:
        """See `OptionCheck`."""
        return {Inner.FLUSH_RX_QUEUE: self._flush}

    def _flush(self, p: np.void, admin: Admin) -> None:
        owner, owners = int(p["owner"]), int(self._nic.state.rx[p["queue_id"]]["owners"])
        if owner != ALL_OWNERS and owner >= owners:
            admin.find("FLU-001", f"a flush for owner {owner} of {owners}")

    def see(self, event: Event) -> None:
        """See `OptionCheck`."""
        if not isinstance(event, Flushing):
            return
        queue, size = event.queue, int(self._nic.state.rx[event.queue]["buffer_size"])
        descriptors = self._scene.receive.unused(queue)
        if event.owner is not None:
            descriptors = descriptors[RX_BUFFER_OWNER.owner.of(descriptors) == event.owner]
        addresses = RX_BUFFER.buffer_address.of(descriptors)
        gone = np.flatnonzero(~self._scene.memory.all_mapped(addresses, size, WRITABLE))
        if len(gone):
            first = RX_BUFFER.decode(descriptors[gone[0]].tobytes())
            what = f"{len(gone)} of the {len(addresses)} buffers to be flushed are no longer in memory"
            self._scene.journal.report("FLU-002", what, f"rx{queue}", descriptor=first)
