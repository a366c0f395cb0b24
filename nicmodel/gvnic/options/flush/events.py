"""What a NIC tells of the flush of a queue: see `nicmodel.nic.events`."""

from __future__ import annotations

from dataclasses import dataclass

from nicmodel.nic.events import Event


@dataclass(frozen=True, slots=True)
class Flushing(Event):
    """Buffers of a receive queue are about to be handed back unused, because the driver has asked for it.

    Attributes:
        queue: its number.
        owner: whose buffers; None: all.
    """

    queue: int
    owner: int | None


@dataclass(frozen=True, slots=True)
class Flushed(Event):
    """They were: each has a completion, and the driver may post it again. Frames that waited for them come after this.

    Attributes:
        queue: number of the receive queue.
        owner: whose buffers; None: all.
    """

    queue: int
    owner: int | None
