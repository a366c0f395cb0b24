"""Faults of the statistics that a device writes into its driver's memory."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from nicmodel.faults.fault import Injection
from nicmodel.gvnic.commands import STATS_ENTRY
from nicmodel.gvnic.device import Nic
from nicmodel.gvnic.faults.kinds import StatsLate, StatsMalformed

#: A queue that no device has.
_NO_QUEUE = 0xFFFF


class StatisticsFaults:
    """The detour of a NIC's statistics while there are such faults."""

    kinds = (StatsLate, StatsMalformed)

    def __init__(self, nic: Nic) -> None:
        self._nic = nic
        self._active: Sequence[Injection] = ()

    def update(self, active: Sequence[Injection]) -> None:
        """These faults are at work from now on."""
        self._active = active
        self._nic.statistics.detour = self._write if active else None

    def _write(self, raw: bytes) -> bytes | None:
        """What is written in place of the device's part, whose entries are `STATS_ENTRY`; None: nothing."""
        for injection in self._active:
            fault = injection.fault
            if isinstance(fault, StatsLate) and injection.hit():
                return None
            if isinstance(fault, StatsMalformed) and injection.hit(what=fault.what):
                entries = np.frombuffer(raw, STATS_ENTRY).copy()
                if fault.what == "queue":
                    entries["queue_id"] = _NO_QUEUE
                else:
                    entries["name"] = 0
                raw = entries.tobytes()
        return raw
