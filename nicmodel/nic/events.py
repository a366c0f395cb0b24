"""What a NIC tells those who look on: a class for each event, built only while somebody listens
(`nicmodel.nic.diagnostics`).

A name that ends in -ing is told before something happens, one that ends in -ed when it has happened. Arrays and batches
are the NIC's own, which uses them again after the call: an observer copies what it wants to keep.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import IntEnum
from typing import Literal

import numpy as np
import numpy.typing as npt

from nicmodel.packet.frames import Batch

#: What an event of a fault says of whom it has struck.
Detail = int | float | str


class Event:
    """What a NIC tells. A personality and its options have further ones of their own."""

    __slots__ = ()


# Registers and commands.


class Control(Event):
    """What a driver does to set the device up, not to move packets. A doorbell is a `Write`, too, but told apart."""

    __slots__ = ()


@dataclass(frozen=True, slots=True)
class Read(Control):
    """The driver reads registers or the configuration space; told before it sees what is there.

    Attributes:
        region: number of the region, as vfio counts them: a BAR, or the configuration space.
        offset: in the region, bytes.
        count: how many bytes.
    """

    region: int
    offset: int
    count: int


@dataclass(frozen=True, slots=True)
class Write(Control):
    """The driver writes to a register, a doorbell or the configuration space; told before it takes effect.

    Attributes:
        region: number of the region, as vfio counts them: a BAR, or the configuration space.
        offset: in the region, bytes.
        data: what is written, in the order of its bytes there.
    """

    region: int
    offset: int
    data: bytes | memoryview


@dataclass(frozen=True, slots=True)
class CommandFetched(Control):
    """A command of the driver's has been read; told before it is executed.

    Attributes:
        slot: the command as it is in the queue.
    """

    slot: bytes


@dataclass(frozen=True, slots=True)
class CommandExecuted(Control):
    """A command was executed, or refused; told before the driver sees its status.

    Attributes:
        opcode: its number.
        payload: its fields, a record of the command's type; None if no such command is known.
        status: what the driver is answered: a number and a name.
        reason: why it was refused; empty if it was not.
    """

    opcode: int
    payload: np.void | None
    status: IntEnum
    reason: str


# The device as a whole.


@dataclass(frozen=True, slots=True)
class Interrupting(Event):
    """An MSI-X vector is about to be raised.

    Attributes:
        vector: its number.
    """

    vector: int


@dataclass(frozen=True, slots=True)
class LinkChanged(Event):
    """The link has come or gone; told before the driver is.

    Attributes:
        up: whether frames pass now.
    """

    up: bool


@dataclass(frozen=True, slots=True)
class Resetting(Control):
    """The device is about to be as after power-on, whatever the cause. It writes no completion on that way."""


@dataclass(frozen=True, slots=True)
class Reset(Control):
    """It is as after power-on."""


@dataclass(frozen=True, slots=True)
class Releasing(Control):
    """The driver takes its admin queue back, or a reset does: all that commands have set up is about to end."""


@dataclass(frozen=True, slots=True)
class Released(Control):
    """It has ended, and there is no admin queue."""


@dataclass(frozen=True, slots=True)
class ResetRequested(Event):
    """The device is about to ask its driver for a reset."""


@dataclass(frozen=True, slots=True)
class Failed(Event):
    """Something was refused, or the model itself has failed and goes on.

    Attributes:
        reason: what and why, for a person.
        queue: of which queue, such as ``rx3``; None: of the device.
    """

    reason: str
    queue: str | None = None


@dataclass(frozen=True, slots=True)
class Injected(Event):
    """A fault on demand has struck (`nicmodel.faults`).

    Attributes:
        fault: its name.
        injection: its number among those of the NIC.
        details: whom or what it has struck, by name.
    """

    fault: str
    injection: int
    details: Mapping[str, Detail]


# Packets.


@dataclass(frozen=True, slots=True)
class Receiving(Event):
    """Frames are about to be received: new ones, or the backlog's once more.

    Attributes:
        batch: the frames.
    """

    batch: Batch


@dataclass(frozen=True, slots=True)
class Received(Event):
    """They were: their bytes and completions are in guest memory. The driver may post the buffers again.

    Attributes:
        batch: the frames.
        outcomes: where each went, records; the first `Batch.count` are this batch's.
    """

    batch: Batch
    outcomes: npt.NDArray[np.void]


@dataclass(frozen=True, slots=True)
class Transmitting(Event):
    """Descriptors of a transmit queue are about to be fetched.

    Attributes:
        queue: its number.
    """

    queue: int


@dataclass(frozen=True, slots=True)
class Transmitted(Event):
    """As many as a batch has taken were fetched, and completions written. Told also when there were none.

    Attributes:
        queue: number of the transmit queue.
    """

    queue: int


@dataclass(frozen=True, slots=True)
class Sending(Event):
    """A batch is about to go to the wire.

    Attributes:
        batch: its frames.
    """

    batch: Batch


@dataclass(frozen=True, slots=True)
class CompletedLate(Event):
    """A completion was written that was missing when its batch was done: a fault on demand has kept it.

    Attributes:
        way: ``rx`` or ``tx``.
        queue: the queue's number.
        index: its place in the completion ring; 0 where completion is a count.
    """

    way: Literal["rx", "tx"]
    queue: int
    index: int


#: Called with each event of the control path.
ControlObserver = Callable[[Control], None]

#: Called with each event. What it raises is survived, but what the device was about to do may be left undone.
Observer = Callable[[Event], None]
