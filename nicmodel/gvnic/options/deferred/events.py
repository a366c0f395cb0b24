"""What a NIC tells of deferred placement: see `nicmodel.nic.events`."""

from __future__ import annotations

from dataclasses import dataclass

from nicmodel.nic.events import Event


@dataclass(frozen=True, slots=True)
class Placing(Event):
    """Requests of a receive queue's placement ring are about to be fetched.

    Attributes:
        queue: its number.
    """

    queue: int


@dataclass(frozen=True, slots=True)
class Placed(Event):
    """As many as could be were executed, and completions written. Told also when there were none.

    Attributes:
        queue: number of the receive queue.
    """

    queue: int
