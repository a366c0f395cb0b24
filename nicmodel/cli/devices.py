"""The kinds of NICs that there are: the one place that names all personalities."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any

from nicmodel.gvnic.model import Gvnic
from nicmodel.gvnic.profile import named_profile
from nicmodel.host import Model
from nicmodel.idpf.model import Idpf
from nicmodel.idpf.profile import Profile as IdpfProfile


@dataclass(frozen=True)
class Device:
    """A kind of NIC.

    Attributes:
        about: what it is, for help.
        make: makes a model of it from the name of a profile and the fields of the profile that are to be others.
        settings: the fields that can be.
        profiles: whether there are profiles by name.
        checked: whether there are rules by which drivers of it can be checked.

    `make` raises ValueError if the values do not make a device, or contradict each other.
    """

    about: str
    make: Callable[[str, Mapping[str, Any]], Model[Any]]
    settings: frozenset[str] | None = None
    profiles: bool = True
    checked: bool = True

    def has(self, setting: str) -> bool:
        """Whether it has a field of that name in its profile."""
        return self.settings is None or setting in self.settings


DEVICES: dict[str, Device] = {
    "gvnic": Device(
        "Google's gVNIC; Linux drives it by gve", lambda profile, changes: Gvnic(named_profile(profile, **changes))
    ),
    "idpf": Device(
        "IDPF of Intel and OASIS, as a virtual function; Linux 6.7 and later drive it by idpf",
        lambda _, changes: Idpf(IdpfProfile(**changes)),
        settings=frozenset(one.name for one in fields(IdpfProfile)),
        profiles=False,
        checked=False,
    ),
}
