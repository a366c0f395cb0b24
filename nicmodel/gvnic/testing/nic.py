"""A gVNIC at a socket, its wire in the hands of a test.

    nic = TestNic(clock=VirtualClock())
    driver = nic.connect()
    driver.probe()
    driver.open(rx_queues=4, header_split=True)
    delivery = nic.inject(Ether() / IP() / TCP(dport=5201) / (b"x" * 1000))
    driver.send(0, frame)
    sent = nic.expect(TCP)

The device is the one that a guest gets, behind the same socket and the same messages.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Literal

from nicmodel.faults.weather import Weather
from nicmodel.gvnic.contract.checker import Checker
from nicmodel.gvnic.device import Nic
from nicmodel.gvnic.model import Gvnic
from nicmodel.gvnic.profile import Profile
from nicmodel.gvnic.testing.driver import Driver
from nicmodel.recording.call import Call
from nicmodel.testing import harness
from nicmodel.testing.clock import VirtualClock
from nicmodel.testing.guest_memory import GuestMemory
from nicmodel.wire.wire import Wire


class TestNic(harness.TestNic[Nic]):
    """A NIC and its server.

    Args:
        profile: what the NIC offers.
        wire: its wire; a plain `TestWire` if None. With another wire there is nothing in `sent`.
        clock: virtual time: nobody has to wait, the NIC runs whenever the driver waits for an answer, and in every call
            of this object. None: real time, and a thread of the NIC's own, which is what a guest needs.
        folder: where the socket is; a temporary folder if None.
        check: watch the driver keep the contract (`nicmodel.gvnic.contract`); what it has broken is in `findings`.
        weather: what the NIC does that its contract allows and devices rarely do, from the beginning.
        record: called with each call into the NIC, which makes a recording (`nicmodel.recording`).

    Attributes:
        host: what the NIC and its server are part of.
        device: the NIC.
        faults: its faults on demand; on real time they are given by `call`.
        checker: the contract checker; None without `check`.
        server: what clients connect to.
        wire: the NIC's wire.
        clock: virtual time; None: real time.
        path: the socket.
    """

    checker: Checker | None

    __test__ = False  # the name is no invitation to pytest

    def __init__(
        self,
        profile: Profile | None = None,
        *,
        wire: Wire | None = None,
        clock: VirtualClock | None = None,
        folder: Path | None = None,
        check: bool = False,
        weather: Weather | None = None,
        record: Callable[[Call], None] | None = None,
    ) -> None:
        model = Gvnic() if profile is None else Gvnic(profile)
        super().__init__(model, wire=wire, clock=clock, folder=folder, check=check, weather=weather, record=record)

    def connect(self, *, scheme: Literal["base", "pfn"] = "base", ram: GuestMemory | None = None) -> Driver:
        """A driver for it (see `Driver`); the device serves one at a time, and the next when that has disconnected."""
        return Driver(self.client(), scheme=scheme, ram=ram, pause=self.pause if self.weather is not None else None)
