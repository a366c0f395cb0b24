"""What a NIC has its options do."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from nicmodel.gvnic.commands import Inner, Opcode

if TYPE_CHECKING:
    from nicmodel.gvnic.admin import AdminQueue  # which is told of options, and knows none of them

#: What executes commands, by command: called with its fields.
Handlers: TypeAlias = Mapping[Opcode | Inner, Callable[[np.void], None]]


class OptionControl:
    """The control of an option of the model's own, on a NIC that has it."""

    def handlers(self, admin: AdminQueue) -> Handlers:
        """What executes the option's commands, with the help of the admin queue that they come by."""
        raise NotImplementedError

    def load(self) -> None:
        """Run the option's own compiled functions once on nothing (`Nic`)."""

    def end(self, queue: int) -> None:
        """A receive queue has ended."""

    def reset(self) -> None:
        """The driver's resources are gone, and all that it has set up."""

    def stop(self) -> None:
        """The NIC leaves its wire."""
