"""The checks of this model's own options; their rules are listed in `nicmodel.gvnic.contract.rules`."""

from __future__ import annotations

from nicmodel.gvnic.options.check import OptionCheck
from nicmodel.gvnic.options.ddp.check import DdpCheck
from nicmodel.gvnic.options.deferred.check import DeferredCheck
from nicmodel.gvnic.options.flush.check import FlushCheck
from nicmodel.gvnic.options.owners.check import OwnersCheck

OPTION_CHECKS: tuple[type[OptionCheck], ...] = (DeferredCheck, FlushCheck, OwnersCheck, DdpCheck)
