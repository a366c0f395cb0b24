"""A NIC, its wire and its driver in one thread: what is the same for NICs of every kind."""

from __future__ import annotations

from typing import Any

from nicmodel.testing.clock import VirtualClock
from nicmodel.testing.guest_memory import GuestMemory
from nicmodel.testing.harness import N, TestNic


class OneThread(TestNic[N]):
    """A NIC on virtual time, with a driver at one end and a test wire at the other.

    Attributes:
        clock: the time of NIC and event loop; `advance` moves it.
        wire: the wire.
        driver: the driver, connected.
        ram: the guest's memory.
    """

    clock: VirtualClock
    wire: Any
    driver: Any
    ram: GuestMemory

    @property
    def nic(self) -> N:
        """The device."""
        return self.device

    def advance(self, ns: int) -> None:
        """Let time pass."""
        self.clock.advance(ns)

    def receive(self, *frames: bytes) -> None:
        """Have the NIC receive frames, after it has seen all that the driver did before."""
        self.run()
        self.wire.inject(*frames)
        self.run()

    def close(self) -> None:
        """End everything."""
        self.driver.disconnect()
        super().close()
        self.ram.close()
