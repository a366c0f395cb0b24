"""A gVNIC to be made: what a host, or a test, is given of this personality."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from nicmodel.faults.faults import Faults
from nicmodel.gvnic.bringup.life import GvnicLife
from nicmodel.gvnic.bringup.steps import ladder
from nicmodel.gvnic.device import Nic
from nicmodel.gvnic.faults.admin import AdminFaults
from nicmodel.gvnic.faults.kinds import KINDS
from nicmodel.gvnic.faults.receive import ReceiveFaults
from nicmodel.gvnic.faults.statistics import StatisticsFaults
from nicmodel.gvnic.faults.transmit import TransmitFaults
from nicmodel.gvnic.profile import Profile
from nicmodel.observe.ladder import Ladder
from nicmodel.vfio_user.poll import EventLoop
from nicmodel.wire.wire import Wire

if TYPE_CHECKING:
    from nicmodel.gvnic.contract.checker import Checker
    from nicmodel.observe.findings import Finding


@dataclass(frozen=True)
class Gvnic:
    """See `nicmodel.host.Model`.

    Attributes:
        profile: what it offers.
    """

    profile: Profile = field(default_factory=Profile)

    def make(self, wire: Wire, poller: EventLoop, *, name: str) -> Nic:
        """Make it."""
        return Nic(self.profile, wire, poller, name=name)

    def faults(self, nic: Nic) -> Faults:
        """Have faults on demand for it."""
        return Faults(nic, KINDS, (ReceiveFaults(nic), TransmitFaults(nic), AdminFaults(nic), StatisticsFaults(nic)))

    def ladder(self, nic: Nic) -> Ladder[GvnicLife]:
        """See how far its driver comes."""
        return ladder(nic)

    def check(self, nic: Nic, on_finding: Callable[[Finding], None] | None) -> Checker:
        """Watch its driver keep the contract."""
        from nicmodel.gvnic.contract.checker import Checker  # who checks nothing starts without its rules

        return Checker(nic, on_finding)
