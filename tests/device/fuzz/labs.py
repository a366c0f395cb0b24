"""NICs of each kind, each with its wire and its driver in one thread."""

from __future__ import annotations

from typing import Any

from nicmodel.gvnic.profile import Profile as GvnicProfile
from nicmodel.gvnic.testing.loopback import Loopback
from nicmodel.idpf.device import Nic
from nicmodel.idpf.profile import Profile
from nicmodel.idpf.testing.driver import Driver
from nicmodel.idpf.testing.nic import TestNic
from nicmodel.nic.mac import parse_mac
from nicmodel.testing.clock import VirtualClock
from nicmodel.testing.guest_memory import GuestMemory

from ..frames import NIC_MAC
from .bench import Lab, make_ram


class IdpfLab(TestNic):
    """An idpf, its wire and its driver in one thread."""

    clock: VirtualClock
    wire: Any

    def __init__(self, profile: Profile, *, wire: Any = None, ram: GuestMemory) -> None:
        super().__init__(profile, wire=wire, clock=VirtualClock())
        self.ram = ram
        self.driver = self.connect()

    @property
    def nic(self) -> Nic:
        """The device."""
        return self.device

    def connect(self, *, ram: GuestMemory | None = None) -> Driver:
        """Another driver on the same memory."""
        return super().connect(ram=self.ram if ram is None else ram)

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


#: Kinds of NICs.
KINDS = ("gvnic", "idpf")


def make_lab(kind: str, wire: Any) -> Lab:
    """A NIC of a kind, with up to two queues each way."""
    if kind == "idpf":
        return IdpfLab(Profile(mac=parse_mac(NIC_MAC), queues=2), wire=wire, ram=make_ram())
    return Loopback(GvnicProfile(mac=parse_mac(NIC_MAC), queues=2, default_queues=2), wire=wire, ram=make_ram())
