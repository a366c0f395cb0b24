"""Modules that have another name than in 0.1: who imports one by its old name gets it all the same, and a warning.

Scripts and tests of a driver's author outlive a version of this package.
"""

from __future__ import annotations

import importlib
import sys
import warnings
from collections.abc import Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any, cast

_TESTING = (
    "adminq", "bars", "description", "driver", "flows", "gqi", "loopback", "misbehave", "nic", "nvme_tcp", "placement",
    "queue", "rx", "shared", "tx", "violation",
)  # fmt: skip
_CLIENT = ("control", "experiment", "ledger", "pcapng", "report", "text", "topology")
_CONTRACT = ("admin", "checker", "interrupts", "receive", "registers", "rings", "rules", "transmit")

#: The old names, each with the new one.
MOVED = {
    **{f"nicmodel.testing.{name}": f"nicmodel.gvnic.testing.{name}" for name in _TESTING},
    **{f"nicmodel.observe.{name}": f"nicmodel.client.{name}" for name in _CLIENT},
    "nicmodel.observe.contract": "nicmodel.gvnic.contract",
    **{f"nicmodel.observe.contract.{name}": f"nicmodel.gvnic.contract.{name}" for name in _CONTRACT},
    "nicmodel.observe.contract.findings": "nicmodel.observe.findings",
    **{f"nicmodel.gvnic.{name}": f"nicmodel.nic.{name}" for name in ("layout", "receive", "transmit")},
    "nicmodel.packet.lost": "nicmodel.nic.lost_memory",
    "nicmodel.testing.memory": "nicmodel.testing.guest_memory",
    "nicmodel.vm.memory": "nicmodel.vm.device_memory",
    "nicmodel.wire.packet": "nicmodel.wire.packet_socket",
}


class _Finder:
    """Finds modules by their old names, and loads them.

    It is not derived from the classes of `importlib.abc`, which takes longer to load than the rest of this package that
    a command needs.
    """

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """See `importlib.abc.MetaPathFinder`."""
        return ModuleSpec(fullname, cast("Any", self), is_package=True) if fullname in MOVED else None

    def create_module(self, spec: ModuleSpec) -> None:
        """See `importlib.abc.Loader`: an ordinary module."""

    def exec_module(self, module: ModuleType) -> None:
        """Have the module of the new name imported by the old one, too."""
        old = module.__name__
        warnings.warn(f"{old} is {MOVED[old]} now", DeprecationWarning, stacklevel=2)
        sys.modules[old] = importlib.import_module(MOVED[old])


def accept_old_names() -> None:
    """From now on, import modules by their old names, too."""
    if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        # First: a moved package finds its modules by its path, and would load those a second time by their old names.
        sys.meta_path.insert(0, _Finder())
