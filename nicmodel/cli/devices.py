"""The kinds of NICs that there are: the one place that names all personalities."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from importlib import import_module
from typing import Any

import click

from nicmodel.faults.faults import Kinds
from nicmodel.gvnic.faults.kinds import KINDS as GVNIC_FAULTS
from nicmodel.gvnic.model import Gvnic
from nicmodel.gvnic.profile import named_profile
from nicmodel.gvnic.registers import DEVICE_GVNIC, VENDOR_GOOGLE
from nicmodel.host import Model
from nicmodel.idpf.faults.kinds import EFFECTS
from nicmodel.idpf.faults.kinds import KINDS as IDPF_FAULTS
from nicmodel.idpf.model import Idpf
from nicmodel.idpf.profile import Profile as IdpfProfile
from nicmodel.idpf.registers import DEVICE_IDPF_VF, VENDOR_INTEL
from nicmodel.observe.findings import Rule


@dataclass(frozen=True)
class Device:
    """A kind of NIC.

    Attributes:
        about: what it is, for help.
        pci: its vendor and device in PCI's numbers.
        make: makes a model of it from the name of a profile and the fields of the profile that are to be others.
        settings: the fields that can be.
        profiles: whether there are profiles by name.
        contract: the module with the rules that its drivers have to keep, which is imported where they are needed.
        faults: those that it may have, by name.
        effects: what the stock driver makes of those of which they do not say it themselves, by name.

    `make` raises ValueError if the values do not make a device, or contradict each other.
    """

    about: str
    pci: tuple[int, int]
    make: Callable[[str, Mapping[str, Any]], Model[Any]]
    contract: str
    faults: Kinds
    effects: Mapping[str, str] = field(default_factory=dict)
    settings: frozenset[str] | None = None
    profiles: bool = True

    @property
    def rules(self) -> Mapping[str, Rule]:
        """The rules that its drivers have to keep, by name."""
        found: Mapping[str, Rule] = import_module(self.contract).RULES
        return found

    @property
    def areas(self) -> Mapping[str, str]:
        """What the rules are about, by the first part of their names."""
        found: Mapping[str, str] = import_module(self.contract).AREAS
        return found

    def has(self, setting: str) -> bool:
        """Whether it has a field of that name in its profile."""
        return self.settings is None or setting in self.settings


DEVICES: dict[str, Device] = {
    "gvnic": Device(
        "Google's gVNIC; Linux drives it by gve",
        (VENDOR_GOOGLE, DEVICE_GVNIC),
        lambda profile, changes: Gvnic(named_profile(profile, **changes)),
        contract="nicmodel.gvnic.contract.rules",
        faults=GVNIC_FAULTS,
    ),
    "idpf": Device(
        "IDPF of Intel and OASIS, as a virtual function; Linux 6.7 and later drive it by idpf",
        (VENDOR_INTEL, DEVICE_IDPF_VF),
        lambda _, changes: Idpf(IdpfProfile(**changes)),
        contract="nicmodel.idpf.contract.rules",
        faults=IDPF_FAULTS,
        effects=EFFECTS,
        settings=frozenset(one.name for one in fields(IdpfProfile)),
        profiles=False,
    ),
}

#: The faults of all of them: those of the same name are the same.
ALL_FAULTS: Kinds = {name: kind for device in DEVICES.values() for name, kind in device.faults.items()}

#: For commands that tell of a kind of NIC.
device_option = click.option(
    "--device", type=click.Choice(tuple(DEVICES)), default="gvnic", show_default=True, help="Of this kind of NIC."
)
