"""Faults of the admin queue: any status for any command, late answers, none."""

from __future__ import annotations

from collections.abc import Sequence

from nicmodel.faults.fault import Injection
from nicmodel.gvnic.admin import WAIT
from nicmodel.gvnic.commands import Opcode, Status
from nicmodel.gvnic.device import Nic
from nicmodel.gvnic.faults.kinds import AdminFault, AdminSilent, AdminSlow, AdminStatus
from nicmodel.vfio_user.poll import Timer


class AdminFaults:
    """The gate of a NIC's admin queue while there are such faults."""

    kinds = (AdminStatus, AdminSlow, AdminSilent)

    def __init__(self, nic: Nic) -> None:
        self._nic = nic
        self._active: Sequence[Injection] = ()
        # The command that waits, and until when; None: as long as the fault lasts.
        self._held: tuple[int, int] | None = None
        self._due: int | None = None
        self._timer: Timer | None = None

    def update(self, active: Sequence[Injection]) -> None:
        """These faults are at work from now on."""
        self._active = active
        if (
            self._held is not None
            and self._due is None
            and not any(isinstance(one.fault, AdminSilent) for one in active)
        ):
            self._held = None
        self._nic.admin.gate = self._ask if active or self._held is not None else None
        self._nic.admin.resume()

    def _ask(self, number: int) -> int | None:
        queue = self._nic.admin
        # Commands are counted anew after each reset.
        command = self._nic.lives["device"], queue.counter
        name = Opcode(number).name if number in Opcode.__members__.values() else f"{number:#x}"
        has_waited = False
        if self._held == command:
            if self._due is None or self._nic.clock() < self._due:
                return WAIT
            has_waited = True
        self._held = None
        for injection in self._active:
            fault = injection.fault
            if not isinstance(fault, AdminFault) or fault.opcode not in (None, name):
                continue
            if isinstance(fault, AdminSilent) and injection.hit(command=name):
                self._held, self._due = command, None
                return WAIT
            if isinstance(fault, AdminSlow) and not has_waited and injection.hit(command=name, delay=fault.delay):
                self._held, self._due = command, self._nic.clock() + round(fault.delay * 1e9)
                if self._timer is not None:  # of a command that a reset has ended
                    self._nic.poller.cancel(self._timer)
                self._timer = self._nic.poller.call_at(self._due, queue.resume)
                return WAIT
            if isinstance(fault, AdminStatus) and injection.hit(command=name, status=fault.status):
                queue.count(number, fault.status)
                return Status[fault.status]
        return None
