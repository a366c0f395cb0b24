"""A NIC, its wire and its driver in one thread, on a clock that only the test moves.

The device is the one that a guest gets, behind the same socket and the same messages; only nobody has to wait. The
server runs whenever the driver waits for an answer, and in `Loopback.run`.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from types import TracebackType
from typing import Literal

from nicmodel.gvnic.device import Nic
from nicmodel.gvnic.profile import Profile
from nicmodel.testing.driver import Driver
from nicmodel.testing.memory import GuestMemory
from nicmodel.testing.wire import TestWire
from nicmodel.vfio_user.client import Client
from nicmodel.vfio_user.poll import Poller
from nicmodel.vfio_user.server import Server


class Loopback:
    """A NIC with a driver at one end and a test wire at the other.

    Args:
        profile: what the NIC offers.
        wire: the wire; a plain `TestWire` if None.
        scheme: how the driver sets the admin queue up.
        ram: the guest's memory; 64 MiB if None.

    Attributes:
        now: the time of NIC and event loop, ns; `advance` moves it.
        nic: the device.
        wire: its wire.
        server: what the driver is connected to.
        driver: the driver, connected; `Driver.probe` has not been called.
        ram: the guest's memory.
    """

    def __init__(
        self,
        profile: Profile | None = None,
        *,
        wire: TestWire | None = None,
        scheme: Literal["base", "pfn"] = "base",
        ram: GuestMemory | None = None,
    ) -> None:
        self.now = 1_000_000_000_000
        self.wire = TestWire() if wire is None else wire
        self.ram = GuestMemory("ram", size=64 << 20) if ram is None else ram
        self._poller = Poller(clock=lambda: self.now)
        self._folder = tempfile.TemporaryDirectory(prefix="nicmodel-")
        self.nic = Nic(Profile() if profile is None else profile, self.wire, self._poller)
        self.server = Server(str(Path(self._folder.name, "nic.sock")), self.nic, poller=self._poller)
        self.nic.start()
        self.driver = self.connect(scheme=scheme)

    def __enter__(self) -> Loopback:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def connect(self, *, scheme: Literal["base", "pfn"] = "base") -> Driver:
        """Another driver on the same memory; the device serves it when the one before has disconnected."""
        return Driver(Client(self.server.path, idle=self._turn), scheme=scheme, ram=self.ram)

    def run(self) -> None:
        """Have the server handle all that has arrived, and the timers that are due."""
        self.driver.device_status()
        self._turn()

    def advance(self, ns: int) -> None:
        """Let time pass; what becomes due on the way happens at the end."""
        self.now += ns
        self._turn()

    def receive(self, *frames: bytes) -> None:
        """Have the NIC receive frames, after it has seen all that the driver did before."""
        self.run()
        self.wire.inject(*frames)

    def close(self) -> None:
        """End everything."""
        self.driver.disconnect()
        self.server.close()
        self.nic.stop()
        self._poller.close()
        self._folder.cleanup()
        self.ram.close()

    def _turn(self) -> None:
        while self._poller.run_once(0):  # a client leaves, the next is accepted and heard: three turns
            pass
