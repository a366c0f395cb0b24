"""An idpf at a socket, its wire in the hands of a test.

    nic = TestNic(clock=VirtualClock())
    driver = nic.connect()
    driver.probe()
    driver.open(header_split=True)
    delivery = nic.inject(Ether() / IP() / TCP(dport=5201) / (b"x" * 1000))
    driver.send(0, frame)
    sent = nic.expect(TCP)

The device is the one that a guest gets, behind the same socket and the same messages.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from nicmodel.faults.weather import Weather
from nicmodel.idpf.device import Nic
from nicmodel.idpf.model import Idpf
from nicmodel.idpf.profile import Profile
from nicmodel.idpf.testing.driver import Driver
from nicmodel.recording.call import Call
from nicmodel.testing import harness
from nicmodel.testing.clock import VirtualClock
from nicmodel.testing.guest_memory import GuestMemory
from nicmodel.wire.wire import Wire


class TestNic(harness.TestNic[Nic]):
    """A NIC and its server; see `nicmodel.testing.harness.TestNic`.

    Args:
        profile: what the NIC offers.
        wire: its wire; a plain `TestWire` if None.
        clock: virtual time; None: real time.
        folder: where the socket is; a temporary folder if None.
        check: watch the driver keep the contract (`nicmodel.idpf.contract`); what it has broken is in `findings`.
        weather: behaviours that its contract allows and devices rarely show (`nicmodel.faults.weather`).
        record: called with each call into the NIC, which makes a recording (`nicmodel.recording`).
    """

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
        model = Idpf() if profile is None else Idpf(profile)
        super().__init__(model, wire=wire, clock=clock, folder=folder, check=check, weather=weather, record=record)

    def connect(self, *, ram: GuestMemory | None = None) -> Driver:
        """A driver for it; the device serves one at a time, and the next when that has disconnected."""
        return Driver(self.client(), ram=ram)
