"""The NIC's port: where the cable to its wire is plugged in."""

from __future__ import annotations

from collections.abc import Callable

from nicmodel.packet.frames import Batch
from nicmodel.wire.wire import Patient, Wire


class Port:
    """One end of a cable.

    Args:
        wire: where frames go, and come from.

    Attributes:
        wire: the same; a fault may stand in front of it, from before the NIC is started.
        cable: whether the cable is plugged in; the driver sees it together with the wire's own state.
        loop: takes what is sent instead of the wire; None is the default.
    """

    def __init__(self, wire: Wire) -> None:
        self.wire = wire
        self.cable = True
        self.loop: Callable[[Batch], None] | None = None

    @property
    def up(self) -> bool:
        """Whether frames pass."""
        return self.cable and self.wire.up

    def rest(self, *, room: bool) -> None:
        """There is little room for what comes, or none: let the wire keep it, if it can (`Patient.rest`)."""
        if isinstance(self.wire, Patient):
            self.wire.rest(room=room)

    def go_on(self) -> None:
        """There is room again."""
        if isinstance(self.wire, Patient):
            self.wire.go_on()

    def send(self, batch: Batch) -> bool:
        """Send what of a batch has not been sent yet; see `Wire.send`."""
        if self.loop is None:
            return self.wire.send(batch)
        rest = batch.rest()
        batch.sent = batch.count
        self.loop(rest)
        return True
