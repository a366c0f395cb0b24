"""How the checker sees that a driver keeps the rules of this model's own options.

Each option has an `OptionCheck` in its folder, `check.py` beside `rules.py`. The checker of a gVNIC shows it all that
happens, and knows none of its rules.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import numpy.typing as npt

from nicmodel.gvnic.commands import Inner
from nicmodel.gvnic.contract.receive import Receive
from nicmodel.gvnic.contract.rings import Rings
from nicmodel.gvnic.declare import Option
from nicmodel.gvnic.device import Nic
from nicmodel.gvnic.options.deferred.state import ELSE_DROP
from nicmodel.nic.events import Event
from nicmodel.observe.findings import Journal
from nicmodel.observe.mapped_memory import MappedMemory

if TYPE_CHECKING:
    from nicmodel.gvnic.contract.admin import Admin


@dataclass(frozen=True)
class Scene:
    """What the checks of options look at.

    Attributes:
        nic: the device.
        memory: guest memory.
        journal: where findings go.
        rings: the rings of its queues.
        receive: what the device owns of its receive queues.
    """

    nic: Nic
    memory: MappedMemory
    journal: Journal
    rings: Rings
    receive: Receive

    def use_of(self, address: int, count: int) -> str | None:
        """What `count` bytes at a guest address are used for: a ring, or a buffer that the device may write to."""
        for name, ring in self.rings.all():
            if ring.overlaps(address, count):
                return f"the {ring.name} of {name}"
        for queue, place, header in self.receive.posted(address, address + count):
            if header or self.nic.state.rx[queue]["deferred"] != ELSE_DROP:  # else its data buffers are never written
                return f"the {'header' if header else 'data'} buffer in entry {place} of rx{queue}"
        return None


class OptionCheck:
    """Looks at what a driver does with one option of the model's own."""

    #: Its declaration: a NIC that does not offer it needs no check.
    option: ClassVar[Option]

    def __init__(self, scene: Scene) -> None:
        self._scene = scene
        self._nic = scene.nic
        self._then: Callable[[], object] | None = None

    def checks(self) -> Mapping[Inner, Callable[[np.void, Admin], Callable[[], object] | None]]:
        """What looks at each command of the option, before it is executed: called with its fields.

        What it returns is called when the device has done as it was told.
        """
        return {}

    def command(self, command: Inner, fields: np.void, admin: Admin) -> None:
        """An inner command, of this or of any other feature, is about to be executed."""
        check = self.checks().get(command)
        self._then = None
        if check is not None and self._fits(command, fields, admin):
            self._then = check(fields, admin)

    def _fits(self, command: Inner, fields: np.void, admin: Admin) -> bool:
        """Whether a command of an option can be executed now at all; a finding if not."""
        queue = command.command.queue
        if self._nic.gqi or not self._nic.configured:
            admin.find("OPT-001", f"{command.name} without a queue format of DQO")
            return False
        if queue is not None and f"{queue.way}{fields[queue.number]}" not in self._scene.rings.queues():
            admin.find("OPT-002", f"{command.name} for queue {fields[queue.number]}, which does not exist")
            return False
        return True

    def executed(self, passed: bool) -> None:
        """The command was executed, or refused."""
        then, self._then = self._then, None
        if passed and then is not None:
            then()

    def doorbell(self, index: int, value: int) -> bool:
        """A doorbell is written that is not of any gVNIC; whether it is one of the option's."""
        return False

    def posted(
        self, queue: int, places: npt.NDArray[np.int64], descriptors: npt.NDArray[np.uint64],
        addresses: npt.NDArray[np.uint64],
    ) -> None:  # fmt: skip
        """Buffers of a receive queue of DQO have been posted.

        Args:
            queue: its number.
            places: their entries in the ring, shape (n,).
            descriptors: shape (n, 4).
            addresses: where they begin, shape (n,).
        """

    def see(self, event: Event) -> None:
        """Something happens, or has happened."""

    def forget(self, queue: int | None = None) -> None:
        """A receive queue is gone, or is new; None: all are gone."""
