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
from nicmodel.testing.one_thread import OneThread

from ..frames import NIC_MAC
from .bench import Lab, make_ram


class IdpfLab(OneThread[Nic], TestNic):
    """An idpf, its wire and its driver in one thread."""

    driver: Driver

    def __init__(self, profile: Profile, *, wire: Any = None, ram: GuestMemory) -> None:
        super().__init__(profile, wire=wire, clock=VirtualClock())
        self.ram = ram
        self.driver = self.connect()

    def connect(self, *, ram: GuestMemory | None = None) -> Driver:
        """Another driver on the same memory."""
        return super().connect(ram=self.ram if ram is None else ram)


#: Kinds of NICs.
KINDS = ("gvnic", "idpf")


def make_lab(kind: str, wire: Any) -> Lab:
    """A NIC of a kind, with up to two queues each way."""
    if kind == "idpf":
        return IdpfLab(Profile(mac=parse_mac(NIC_MAC), queues=2), wire=wire, ram=make_ram())
    return Loopback(GvnicProfile(mac=parse_mac(NIC_MAC), queues=2, default_queues=2), wire=wire, ram=make_ram())
