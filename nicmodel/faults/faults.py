"""The faults of one NIC: given, timed, ended."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol

from nicmodel.faults.device import DeviceFaults
from nicmodel.faults.dma import DmaFaults
from nicmodel.faults.fault import Fault, FaultError, Injection, make, shortened
from nicmodel.faults.interrupts import InterruptFaults
from nicmodel.faults.wire import WireFaults
from nicmodel.nearest import did_you_mean
from nicmodel.nic.seams import Seams
from nicmodel.packet.frames import Batch
from nicmodel.vfio_user.poll import Timer

#: Faults that there are, by name.
Kinds = Mapping[str, type[Fault]]

#: Faults of a NIC that are at work or wait, and moments at which frames are still to come.
_MAX_FAULTS, _MAX_COMING = 100, 1000


class Site(Protocol):
    """A place of a NIC where faults sit. With no fault at work it is out of the way."""

    @property
    def kinds(self) -> tuple[type[Fault], ...]:
        """The faults that it knows; an attribute."""

    def update(self, active: Sequence[Injection]) -> None:
        """Just these faults of its kinds are at work from now on."""


def named_fault(name: str, parameters: Mapping[str, Any], kinds: Kinds) -> Fault:
    """A fault by its name, one of `kinds`, its parameters as a person or a file gives them.

    Raises:
        FaultError: there is no such fault, or it takes no such parameter or value.
    """
    if name not in kinds:
        raise FaultError(f"there is no fault {shortened(name)}, but {', '.join(kinds)}{did_you_mean(name, kinds)}")
    return make(kinds[name], parameters)


class Faults:
    """Faults on demand for a NIC; made before the NIC is started.

        faults.add("wire-drop", probability=0.01, duration=10)

    Args:
        nic: the device.
        kinds: the faults that it may have.
        sites: where those of its personality sit.
        seed: of all dice: the same seed, faults and traffic give the same strikes.

    Attributes:
        injections: all that were added and are not over, by number.
    """

    def __init__(self, nic: Seams, kinds: Kinds, sites: Iterable[Site], *, seed: int = 0) -> None:
        self.nic = nic
        self.kinds = kinds
        self.seed = seed
        self.injections: dict[int, Injection] = {}
        self._added = 0
        self._coming: set[Timer] = set()  # of frames that are to be received later
        self._sites: list[Site] = [
            WireFaults(nic), *sites, InterruptFaults(nic), DmaFaults(nic), DeviceFaults(nic),
        ]  # fmt: skip

    def add(self, fault: Fault | str, /, *, seed: str | None = None, **parameters: Any) -> Injection:
        """Have a fault begin, at once or after its `start`.

        Args:
            fault: one of `kinds`, or its name.
            seed: of its random numbers; None: made of the seed of this object and the number of the fault.
            **parameters: with a name, those of the fault; text that reads as a number will do.

        Raises:
            FaultError: there is no such fault, or it takes no such parameter or value.
        """
        if isinstance(fault, str):
            fault = named_fault(fault, parameters, self.kinds)
        self.check([fault])
        self._added += 1
        number = self._added
        injection = Injection(number, fault, self.nic, seed or f"{self.seed} {number}", self._exhausted)
        self.injections[number] = injection
        if fault.start > 0:
            injection.after(fault.start, "life", lambda: self._begin(injection))
        else:
            self._begin(injection)
        return injection

    def check(self, faults: Sequence[Fault], batches: int = 0) -> None:
        """See that the NIC can have these faults, and batches of frames later, besides those that it has.

        Raises:
            FaultError: there are too many, or one is about something that the NIC does not have.
        """
        for fault in faults:
            if self.kinds.get(fault.name) is not type(fault):
                raise FaultError(f"{self.nic.name} is a NIC that has no fault {fault.name}")
            fault.check(self.nic)
        if len(self.injections) + len(faults) > _MAX_FAULTS:
            raise FaultError(f"{self.nic.name} can have {_MAX_FAULTS} faults at a time: end some first")
        if len(self._coming) + batches > _MAX_COMING:
            raise FaultError(f"{self.nic.name} can have frames at {_MAX_COMING} later moments: end the faults first")

    def receive(self, frames: Sequence[bytes], start: float = 0.0) -> None:
        """Have the NIC receive frames, as one batch, as if they came from its wire: now, or in `start` seconds."""
        batch = Batch.of(frames)

        if start <= 0:
            self.nic.ingress.inject(batch)
            return

        def come() -> None:
            self._coming.discard(timer)
            self.nic.ingress.inject(batch)

        timer = self.nic.poller.call_at(self.nic.clock() + round(start * 1e9), come)
        self._coming.add(timer)

    def remove(self, injection: Injection | int) -> None:
        """End a fault now; one that is over is ignored."""
        found = self.injections.pop(injection if isinstance(injection, int) else injection.number, None)
        if found is not None:
            found.end()
            self._update(found)

    def clear(self) -> None:
        """End all faults; frames that were to come do not."""
        while self._coming:
            self.nic.poller.cancel(self._coming.pop())
        for injection in list(self.injections.values()):
            self.remove(injection)

    def _begin(self, injection: Injection) -> None:
        if injection.state != "waiting":
            return
        injection.state = "active"
        if injection.fault.duration is not None:
            injection.after(injection.fault.duration, "life", lambda: self.remove(injection))
        self._update(injection)

    def _exhausted(self, injection: Injection) -> None:
        """It has struck for the last time. Where it sits is busy with it just now, so it ends a moment later."""
        injection.after(0, "life", lambda: self.remove(injection))

    def _update(self, injection: Injection) -> None:
        for site in self._sites:
            if isinstance(injection.fault, site.kinds):
                site.update(
                    [
                        one
                        for one in self.injections.values()
                        if one.state == "active" and isinstance(one.fault, site.kinds)
                    ]
                )
