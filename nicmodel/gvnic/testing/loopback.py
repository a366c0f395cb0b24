"""A NIC, its wire and its driver in one thread, on a clock that only the test moves."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

from nicmodel.faults.weather import Weather
from nicmodel.gvnic.device import Nic
from nicmodel.gvnic.profile import Profile
from nicmodel.gvnic.testing.driver import Driver
from nicmodel.gvnic.testing.nic import TestNic
from nicmodel.recording.call import Call
from nicmodel.testing.clock import VirtualClock
from nicmodel.testing.guest_memory import GuestMemory
from nicmodel.testing.one_thread import OneThread
from nicmodel.testing.wire import TestWire


class Loopback(OneThread[Nic], TestNic):
    """A NIC with a driver at one end and a test wire at the other.

    Args:
        profile: what the NIC offers.
        wire: the wire; a plain `TestWire` if None.
        scheme: how the driver sets the admin queue up.
        ram: the guest's memory; 64 MiB if None.
        check: see `TestNic`.
        weather: see `TestNic`.
        record: see `TestNic`.

    Attributes:
        clock: the time of NIC and event loop; `advance` moves it.
        wire: the wire.
        driver: the driver, connected; `Driver.probe` has not been called.
        ram: the guest's memory.
    """

    wire: TestWire
    driver: Driver

    def __init__(
        self,
        profile: Profile | None = None,
        *,
        wire: TestWire | None = None,
        scheme: Literal["base", "pfn"] = "base",
        ram: GuestMemory | None = None,
        check: bool = False,
        weather: Weather | None = None,
        record: Callable[[Call], None] | None = None,
    ) -> None:
        super().__init__(profile, wire=wire, clock=VirtualClock(), check=check, weather=weather, record=record)
        self.ram = GuestMemory("ram", size=64 << 20) if ram is None else ram
        self.driver = self.connect(scheme=scheme)

    @property
    def now(self) -> int:
        """The time, ns."""
        return self.clock.now

    def connect(self, *, scheme: Literal["base", "pfn"] = "base", ram: GuestMemory | None = None) -> Driver:
        """Another driver on the same memory; the device serves it when the one before has disconnected."""
        return super().connect(scheme=scheme, ram=self.ram if ram is None else ram)
