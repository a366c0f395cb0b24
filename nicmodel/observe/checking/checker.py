"""What watches the driver of one NIC keep the contract, whatever that says.

It is one of the NIC's observers (`nicmodel.nic.events`): it sees a write and a command before they take effect, and
the rings before and after each batch. It changes nothing; without it the NIC spends no time on it.
"""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping

from nicmodel.nic import events
from nicmodel.nic.view import View
from nicmodel.observe.findings import Finding, Journal, Rule
from nicmodel.observe.mapped_memory import MappedMemory

log = logging.getLogger(__name__)


class Checker(ABC):
    """Checks one NIC's driver from now on; a personality's derives from it.

    Args:
        nic: the device; best while no driver is at work yet.
        rules: the contract, by the rules' names.
        on_finding: called with each new finding.

    Attributes:
        failed: the checker has met an error of its own, of which there is a finding; it goes on with what follows.
        memory: what it reads guest memory by.
    """

    def __init__(self, nic: View, rules: Mapping[str, Rule], on_finding: Callable[[Finding], None] | None) -> None:
        self.failed = False
        self._watched = nic
        self._journal = Journal(nic.name, nic.clock, rules, on_finding)
        self.memory = MappedMemory(nic)
        nic.diagnostics.watch(self._observe)

    def close(self) -> None:
        """Stop checking; the findings remain."""
        self._watched.diagnostics.unwatch(self._observe)

    @property
    def findings(self) -> list[Finding]:
        """What was found, in the order in which it was."""
        return self._journal.findings

    def clear(self) -> None:
        """Forget what was found."""
        self._journal.clear()

    def _observe(self, event: events.Event) -> None:
        """The NIC's hook: an error here must not become the NIC's. It is a finding, and so not passed over."""
        try:
            self._look_at(event)
        except Exception as error:
            name = type(event).__name__
            log.exception("%s: the contract checker failed at %s", self._watched.name, name)
            self.failed = True
            self._journal.failed(name, error)

    @abstractmethod
    def _look_at(self, event: events.Event) -> None:
        """The NIC tells of something."""
