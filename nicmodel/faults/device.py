"""Faults of the device as a whole: reset requests, hang, disappearance, registers of ones."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from nicmodel.faults.fault import Injection
from nicmodel.faults.kinds import DeviceGone, DeviceHang, DeviceOnes, DeviceReset
from nicmodel.nic.seams import Seams
from nicmodel.vfio_user.protocol import PciRegion

#: Writes that a device keeps while it hangs, doorbells not counted: of those only the last of each matters.
_KEPT_WRITES = 4096


class DeviceFaults:
    """Stands between a NIC and its bus while there are such faults."""

    kinds = (DeviceReset, DeviceHang, DeviceGone, DeviceOnes)

    def __init__(self, nic: Seams) -> None:
        self._nic = nic
        self._resets: set[Injection] = set()
        self._hung = self._gone = self._ones = False
        self._life = 0
        self._writes: list[tuple[int, int, bytes]] = []
        self._doorbells: dict[tuple[int, int], bytes] = {}

    def update(self, active: Sequence[Injection]) -> None:
        """These faults are at work from now on."""
        for injection in active:
            if isinstance(injection.fault, DeviceReset):
                if injection not in self._resets:
                    self._resets.add(injection)
                    self._request_reset(injection, injection.fault)
            elif not injection.hits:
                injection.strike()
        self._resets.intersection_update(active)
        was_hung, was_gone = self._hung, self._gone
        self._hung, self._gone, self._ones = (
            any(isinstance(one.fault, kind) for one in active) for kind in (DeviceHang, DeviceGone, DeviceOnes)
        )
        nic = self._nic
        nic.bus = self if self._hung or self._gone or self._ones else None
        if self._gone and not was_gone:
            nic.reset()
        if self._hung and not was_hung:
            self._life = nic.lives["device"]
        if was_hung and not self._hung:
            self._catch_up()
        if nic.halted != (self._hung or self._gone):
            nic.halt(self._hung or self._gone)

    def read(self, region: int, offset: int, count: int) -> bytes | None:
        """See `nicmodel.nic.seams.Bus`."""
        if self._gone or (self._ones and region != PciRegion.CONFIG):
            return b"\xff" * count
        return None

    def write(self, region: int, offset: int, data: bytes) -> bool:
        """See `nicmodel.nic.seams.Bus`."""
        if self._gone:
            return False
        if not self._hung or region == PciRegion.CONFIG:
            return True
        if self._nic.is_doorbell(region, offset):
            self._doorbells[region, offset] = data
        elif len(self._writes) < _KEPT_WRITES:
            self._writes.append((region, offset, data))
        else:
            self._nic.diagnostics.count("fault device-hang: write lost")
        return False

    def _catch_up(self) -> None:
        """Do what the device was told while it hung, unless it was reset over it."""
        writes, self._writes = self._writes, []
        doorbells, self._doorbells = self._doorbells, {}
        if self._gone or self._nic.lives["device"] != self._life:
            return
        for write in writes:
            self._nic.region_write(*write)
        if self._nic.lives["device"] == self._life:
            for (region, offset), data in doorbells.items():
                self._nic.region_write(region, offset, data)

    def _request_reset(self, injection: Injection, fault: DeviceReset) -> None:
        if injection not in self._resets or injection.state != "active":
            return
        if injection.hit():
            self._nic.request_reset()
        injection.after(fault.period, "period", partial(self._request_reset, injection, fault))
