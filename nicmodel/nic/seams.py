"""Where something may stand in front of a NIC and do what it does otherwise: faults on demand (`nicmodel.faults`).

Besides what is here, the parts have seams of their own: `Port.wire`; `detour` of `Ingress`, `Egress` and `Interrupts`;
`DmaEngine.set_unreachable`.
"""

from __future__ import annotations

from typing import Protocol

from nicmodel.nic.view import View


class Bus(Protocol):
    """What stands between a NIC and its registers."""

    def read(self, region: int, offset: int, count: int) -> bytes | None:
        """What the driver reads; None: what the NIC says."""

    def write(self, region: int, offset: int, data: bytes) -> bool:
        """Whether the write goes through."""


class Seams(View, Protocol):
    """A NIC, as far as faults may act on it.

    Attributes:
        bus: what stands between it and its registers; None is the default.
    """

    bus: Bus | None

    @property
    def halted(self) -> bool:
        """Whether it has stopped: what it is told waits until it goes on."""

    def is_doorbell(self, region: int, offset: int) -> bool:
        """Whether an access there moves packets, and sets nothing up: of several writes only the last matters."""

    def halt(self, halted: bool) -> None:
        """Stop it, so that it moves no packet, or let it go on with what it was told meanwhile."""

    def reset(self) -> None:
        """Have it as after power-on."""

    def go_on(self, queue: int | None = None) -> None:
        """Have it look again at frames that wait for buffers, and at transmit queue `queue`, without a doorbell."""

    def region_write(self, region: int, offset: int, data: bytes | memoryview) -> None:
        """Write to it as its driver does."""
