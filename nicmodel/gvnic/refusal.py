"""How a command is refused."""

from __future__ import annotations

from nicmodel.gvnic.commands import Status

#: The most entries of a ring.
MAX_RING = 1 << 15


class AdminError(Exception):
    """A command that cannot be done: its status, and why for the log."""

    def __init__(self, status: Status, reason: str) -> None:
        super().__init__(reason)
        self.status = status


def require(condition: bool, status: Status, reason: str) -> None:
    """See that a condition of a command holds.

    Raises:
        AdminError: it does not.
    """
    if not condition:
        raise AdminError(status, reason)


def check_ring(name: str, address: int, entries: int, size: int) -> None:
    """See that a ring can be: `entries`, each of `size` bytes, at a guest address.

    Raises:
        AdminError: it cannot.
    """
    require(
        0 < entries <= MAX_RING and entries & (entries - 1) == 0,
        Status.INVALID_ARGUMENT,
        f"{name} ring of {entries} entries",
    )
    require(address % size == 0, Status.INVALID_ARGUMENT, f"{name} ring at {address:#x} is not aligned to {size}")
