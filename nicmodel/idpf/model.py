"""An idpf to be made: what a host, or a test, is given of this personality."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from nicmodel.faults.faults import Faults
from nicmodel.idpf.bringup import IdpfLife, ladder
from nicmodel.idpf.device import Nic
from nicmodel.idpf.faults.kinds import KINDS
from nicmodel.idpf.faults.mailbox import MailboxFaults
from nicmodel.idpf.faults.receive import ReceiveFaults
from nicmodel.idpf.faults.transmit import TransmitFaults
from nicmodel.idpf.profile import Profile
from nicmodel.observe.ladder import Ladder
from nicmodel.vfio_user.poll import EventLoop
from nicmodel.wire.wire import Wire

if TYPE_CHECKING:
    from nicmodel.idpf.contract.checker import Checker
    from nicmodel.observe.findings import Finding


@dataclass(frozen=True)
class Idpf:
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
        return Faults(nic, KINDS, (ReceiveFaults(nic), TransmitFaults(nic), MailboxFaults(nic)))

    def ladder(self, nic: Nic) -> Ladder[IdpfLife]:
        """See how far its driver comes."""
        return ladder(nic)

    def check(self, nic: Nic, on_finding: Callable[[Finding], None] | None) -> Checker:
        """Watch its driver keep the contract."""
        from nicmodel.idpf.contract.checker import Checker  # who checks nothing starts without its rules

        return Checker(nic, on_finding)
