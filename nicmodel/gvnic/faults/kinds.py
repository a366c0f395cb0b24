"""Faults that only a gVNIC has: those of its admin queue.

`KINDS` is what the command line, scenarios, the documentation's table and the tests go by.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from nicmodel.faults.fault import SPAN, Chance, Fault
from nicmodel.faults.kinds import KINDS as ANY_NIC
from nicmodel.faults.kinds import DmaFault
from nicmodel.gvnic.commands import Opcode, Status


@dataclass(frozen=True, kw_only=True)
class AdminFault(Chance):
    """A fault of commands."""

    where = "admin queue"

    opcode: Annotated[Literal[tuple(Opcode.__members__)] | None, "only this command; none: any"] = None  # type: ignore[valid-type]


@dataclass(frozen=True, kw_only=True)
class AdminStatus(AdminFault):
    """A command is not executed but answered with a status."""

    name = "admin-status"
    effect = (
        'The log says "AQ command failed with status", and whoever asked gets the error of that status: '
        "ethtool or ip says so, a queue's creation fails and the interface stays down."
    )

    status: Annotated[Literal[tuple(Status.__members__)], "the status"] = "INTERNAL_ERROR"  # type: ignore[valid-type]


@dataclass(frozen=True, kw_only=True)
class AdminSlow(AdminFault):
    """A command is executed later; those behind it wait."""

    name = "admin-slow"
    effect = "The caller sleeps as long; beyond 2 s see admin-silent."

    delay: Annotated[float, "seconds", SPAN] = 0.1


@dataclass(frozen=True, kw_only=True)
class AdminSilent(AdminFault):
    """A command is not executed as long as the fault lasts; those behind it wait."""

    name = "admin-silent"
    lasting = True
    effect = 'After 2 s the log says "AQ commands timed out, need to reset AQ", and the caller gets ENOTRECOVERABLE.'


_ANY: list[type[Fault]] = list(ANY_NIC.values())
_OWN: list[type[Fault]] = [AdminStatus, AdminSlow, AdminSilent]
_BEFORE = _ANY.index(DmaFault)
#: All faults of a gVNIC by name, in the order of a frame's way and of a person's interest.
KINDS: dict[str, type[Fault]] = {kind.name: kind for kind in (*_ANY[:_BEFORE], *_OWN, *_ANY[_BEFORE:])}
