"""What the declarations of device options and admin commands consist of.

The device, the driver in Python, the trace, the checker and the datasheet take from a declaration what an option or a
command means. Those of a gVNIC are in `nicmodel.gvnic.commands`, those of this model's own options in their folders.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import IntEnum, IntFlag
from typing import TYPE_CHECKING, Literal

import numpy as np

from nicmodel.nic.layout import Form, record
from nicmodel.vfio_user.dma import WRITABLE

if TYPE_CHECKING:
    from nicmodel.gvnic.commands import Feature, QueueFormat
    from nicmodel.gvnic.profile import Profile

#: Options from this id on are of this model only, far from what a real device may come to use (docs/options.md).
OWN_OPTIONS = 0x8000


@dataclass(frozen=True, eq=False)
class Option:
    """What a device option says, and when.

    Attributes:
        number: its id.
        payload: what follows its `OPTION_HEADER`. The first field is the supported-features mask.
        offered: whether a device of this profile has it.
        values: the other fields for a device of this profile.
        feature: the bit of the mask that lets it take effect; None: none has to be set.
        queue_format: the queue format that it offers; None: something else.
        offers: what its commands are for, as a finding calls it.
    """

    number: int
    payload: np.dtype[np.void]
    offered: Callable[[Profile], bool]
    values: Callable[[Profile], tuple[int, ...]] = lambda _: ()
    feature: Feature | None = None
    queue_format: QueueFormat | None = None
    offers: str = ""

    @property
    def own(self) -> bool:
        """Whether it is of this model only, so that no driver has to know it."""
        return self.number >= OWN_OPTIONS


@dataclass(frozen=True, eq=False)
class Memory:
    """Guest memory that a command names, and that has to be mapped.

    Attributes:
        what: what is there, as a finding calls it.
        address: the command's field that holds its guest address.
        length: its bytes: a field of the command, or what follows from its fields.
        right: READABLE if the device reads it, WRITABLE if it writes it.
        least: the bytes without which the command cannot be done; they may depend on what the device is.
    """

    what: str
    address: str
    length: str | Callable[[np.void], int]
    right: int
    least: Callable[[Profile], int] = lambda _: 0

    def size(self, command: np.void) -> int:
        """Bytes of it, by the command's fields."""
        return int(command[self.length]) if isinstance(self.length, str) else self.length(command)


@dataclass(frozen=True, eq=False)
class Ring:
    """A ring that a command names.

    Attributes:
        name: what it is called.
        address: the command's field that holds its guest address.
        entries: the field that holds their number.
        entry: the structure of an entry.
        right: READABLE if the device reads it, WRITABLE if it writes it.
    """

    name: str
    address: str
    entries: str
    entry: Form
    right: int


@dataclass(frozen=True, eq=False)
class Queue:
    """The queue that a command is about.

    Attributes:
        way: receive or transmit.
        effect: what becomes of it. One that is created must not be there; one that is destroyed or changed must.
        number: the command's field that holds its number.
    """

    way: Literal["rx", "tx"]
    effect: Literal["created", "destroyed", "changed"]
    number: str = "queue_id"


@dataclass(frozen=True, eq=False)
class Command:
    """What an admin command says, and of what.

    Attributes:
        number: its opcode.
        payload: its fields: behind the `HEADER` of its slot or, of an inner command, all that is there.
        enumerations: what the numbers in some of its fields mean; a field of a field is written ``rule.flow_type``.
        memory: what it names besides rings, in the order in which it is looked at.
        rings: the rings that it names if the queue format is one of DQO.
        gqi_rings: those that it names if it is one of GQI. Older drivers leave the number of entries 0 and mean the
            default.
        queue: the queue that it is about; None: it is about none, or about several.
        option: what offers it; None: every device has it.
    """

    number: int
    payload: np.dtype[np.void]
    enumerations: Mapping[str, type[IntEnum | IntFlag]] = field(default_factory=dict)
    memory: tuple[Memory, ...] = ()
    rings: tuple[Ring, ...] = ()
    gqi_rings: tuple[Ring, ...] = ()
    queue: Queue | None = None
    option: Option | None = None

    def parse(self, raw: bytes, offset: int = 0) -> np.void:
        """Its fields, from byte `offset` of `raw` on."""
        if not self.payload:  # numpy reads no record without fields
            return np.void(b"")
        return np.frombuffer(raw, self.payload, 1, offset)[0]  # type: ignore[no-any-return]


#: What the device writes to a queue's resources when it is created: dword index into BAR 2, index of its counter.
QUEUE_RESOURCES = record(("doorbell_index", ">u4"), ("counter_index", ">u4"))
#: The memory that they are written to, as commands name it.
RESOURCES = Memory("queue resources", "queue_resources_address", lambda _: QUEUE_RESOURCES.itemsize, WRITABLE)
