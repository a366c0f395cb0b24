"""Faults of interrupts: lost, late, spurious, together with others."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from nicmodel.faults.fault import Injection, Late
from nicmodel.faults.kinds import IrqFault, IrqLate, IrqLost, IrqMerged, IrqSpurious
from nicmodel.nic.seams import Seams


class InterruptFaults:
    """Stands between a NIC and its vectors while there are such faults."""

    kinds = (IrqLost, IrqLate, IrqSpurious, IrqMerged)

    def __init__(self, nic: Seams) -> None:
        self._nic = nic
        self._active: Sequence[Injection] = ()
        self._late = Late(nic)
        self._together: dict[int, None] = {}  # vectors that are raised at the same moment, in the order of their coming

    def update(self, active: Sequence[Injection]) -> None:
        """These faults are at work from now on."""
        for injection in active:
            if isinstance(injection.fault, IrqSpurious) and injection not in self._active:
                self._arm(injection, injection.fault)
        self._active = active
        self._nic.interrupts.detour = self._signal if active else None

    def _signal(self, vector: int) -> None:
        for injection in self._active:
            fault = injection.fault
            if not isinstance(fault, IrqFault) or vector not in self._vectors(fault):
                continue
            if isinstance(fault, IrqLost) and injection.hit(vector=vector):
                return
            if (
                isinstance(fault, IrqLate)
                and injection.hit(vector=vector, delay=fault.delay)
                and self._late.call(fault.delay, partial(self._nic.interrupts.raise_vector, vector))
            ):
                return
            if isinstance(fault, IrqMerged) and (self._together or injection.chance()):
                is_first = not self._together
                if is_first and not self._late.call(fault.delay, self._raise_together):
                    break
                injection.strike(vector=vector)
                self._together[vector] = None
                return
        self._nic.interrupts.raise_vector(vector)

    def _raise_together(self) -> None:
        together, self._together = self._together, {}
        for vector in together:
            self._nic.interrupts.raise_vector(vector)

    def _vectors(self, fault: IrqFault) -> range:
        """The vectors that the fault is about."""
        if fault.vector is not None:
            return range(fault.vector, fault.vector + 1)
        return range(self._nic.interrupts.first, self._nic.interrupts.first + self._nic.interrupts.count)

    def _arm(self, injection: Injection, fault: IrqSpurious) -> None:
        injection.after(fault.interval, "period", partial(self._raise, injection, fault))

    def _raise(self, injection: Injection, fault: IrqSpurious) -> None:
        if injection.state != "active":
            return
        for vector in self._vectors(fault) if self._nic.configured else ():
            if injection.hit(vector=vector):
                self._nic.interrupts.raise_vector(vector)
        self._arm(injection, fault)
