"""Looks at how a driver has several owners share a queue."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from nicmodel.gvnic.commands import FlowOperation, Inner
from nicmodel.gvnic.descriptors import RX_BUFFER
from nicmodel.gvnic.options.check import OptionCheck
from nicmodel.gvnic.options.owners.declarations import OPTION, RX_BUFFER_OWNER

if TYPE_CHECKING:
    from nicmodel.gvnic.contract.admin import Admin


class OwnersCheck(OptionCheck):
    """See `OptionCheck`."""

    option = OPTION

    def checks(self) -> Mapping[Inner, Callable[[np.void, Admin], None]]:
        """See `OptionCheck`."""
        return {Inner.CONFIGURE_BUFFER_OWNERS: self._configure}

    def command(self, command: Inner, fields: np.void, admin: Admin) -> None:
        """See `OptionCheck`."""
        super().command(command, fields, admin)
        if command == Inner.CONFIGURE_FLOW_RULE and fields["operation"] == FlowOperation.ADD:
            owner, most = int(fields["rule"]["key"]["owner"]), self._nic.profile.owners
            if owner >= most:
                admin.find("OWN-005", f"a flow rule names owner {owner}, the device has up to {most}")

    def _configure(self, p: np.void, admin: Admin) -> None:
        record, owners, most = self._nic.state.rx[p["queue_id"]], int(p["owners"]), self._nic.profile.owners
        if record["owners"]:
            admin.find("OWN-002", f"the queue has {record['owners']} owners already")
        elif record["buffer_tail"] or record["buffer_head"]:
            admin.find("OWN-001", "buffers of the queue were posted before")
        elif not 2 <= owners <= most:
            admin.find("OWN-003", f"{owners} owners, the device offers up to {most}")

    def posted(
        self, queue: int, places: npt.NDArray[np.int64], descriptors: npt.NDArray[np.uint64],
        addresses: npt.NDArray[np.uint64],
    ) -> None:  # fmt: skip
        """See `OptionCheck`."""
        record, name = self._nic.state.rx[queue], f"rx{queue}"
        owners = int(record["owners"])
        if not owners:
            return
        wrong = np.flatnonzero(RX_BUFFER_OWNER.owner.of(descriptors) >= owners)
        if len(wrong):
            raw = descriptors[wrong[0]].tobytes()
            what = f"entry {places[wrong[0]]}: a buffer of owner {RX_BUFFER_OWNER.owner.get(raw)} of {owners}"
            self._scene.journal.report("OWN-004", what, name, descriptor=RX_BUFFER.decode(raw))
        waiting = self._scene.receive.waiting(queue)
        if len(waiting) == int(record["buffer_entries"]) - 1:
            found = np.unique(RX_BUFFER_OWNER.owner.of(waiting))
            if len(found) == 1:
                what = f"all {len(waiting)} buffers in the ring are of owner {found[0]}"
                self._scene.journal.report("OWN-006", what, name, owners=owners)
