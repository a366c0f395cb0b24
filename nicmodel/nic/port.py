"""The NIC's port: where the cable to its wire is plugged in."""

from __future__ import annotations

from nicmodel.wire.wire import Wire


class Port:
    """One end of a cable.

    Args:
        wire: where frames go, and come from.

    Attributes:
        wire: the same; a fault may stand in front of it, from before the NIC is started.
        cable: whether the cable is plugged in; the driver sees it together with the wire's own state.
    """

    def __init__(self, wire: Wire) -> None:
        self.wire = wire
        self.cable = True

    @property
    def up(self) -> bool:
        """Whether frames pass."""
        return self.cable and self.wire.up
