"""Faults of an idpf: those that it shares with other NICs, and those that only it has.

`KINDS` is what the command line, scenarios, the documentation's table and the tests go by; `EFFECTS` is what the stock
driver, Linux' idpf, makes of those that are shared, where that is something else than what `gve` does.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Literal, get_args

from nicmodel.faults.fault import SPAN, Chance, Drawn, Fault, Range, Where
from nicmodel.faults.kinds import (
    DeviceGone,
    DeviceHang,
    DeviceOnes,
    DeviceReset,
    DmaFault,
    DmaSlow,
    IrqLate,
    IrqLost,
    IrqMerged,
    IrqSpurious,
    RxBufferId,
    RxChecksum,
    RxError,
    RxFault,
    RxField,
    RxHeaderOverflow,
    RxLate,
    RxSplitBeyond,
    RxTooLong,
    RxUnsplit,
    TxFault,
    TxField,
    TxLate,
    TxNever,
    TxOrder,
    TxTag,
    WireCorrupt,
    WireDelay,
    WireDrop,
    WireDuplicate,
    WireFlap,
    WireRate,
    WireReorder,
)
from nicmodel.idpf.virtchnl import Op, Result

# ------------------------------------------------------------------------------------------------------------ receive


@dataclass(frozen=True, kw_only=True)
class RxTwice(RxFault):
    """A packet's last completion comes twice."""

    name = "rx-twice"
    effect = (
        "The driver does not look whether the buffer is its own already: the same memory is in two packets, and is "
        "given back twice. The guest may crash."
    )


# ----------------------------------------------------------------------------------------------------------- transmit


@dataclass(frozen=True, kw_only=True)
class TxStop(TxFault):
    """A queue takes nothing any more, until it is made anew or the fault ends."""

    name = "tx-stop"
    lasting = True
    effect = 'After 5 s the log says "Detected Tx timeout", and the driver resets the device by message.'


# ------------------------------------------------------------------------------------------------------------ mailbox


@dataclass(frozen=True, kw_only=True)
class MailboxFault(Chance):
    """A fault of messages."""

    where = "mailbox"

    message: Annotated[Literal[tuple(Op.__members__)] | None, "only this message; none: any"] = None  # type: ignore[valid-type]


@dataclass(frozen=True, kw_only=True)
class MailboxStatus(MailboxFault):
    """A message is not executed but answered with a result."""

    name = "mailbox-status"
    effect = (
        'Whoever asked gets the error "Bad message": the interface stays down, or ethtool says so. VERSION and '
        "GET_CAPS are tried again 20 times; without a vport there is no interface, and no word of it."
    )

    status: Annotated[Literal[tuple(Result.__members__)], "the result"] = "IO_ERROR"  # type: ignore[valid-type]


@dataclass(frozen=True, kw_only=True)
class MailboxLate(MailboxFault):
    """A message is executed, and its reply comes later; others may overtake it. An event only where it is named."""

    name = "mailbox-late"
    effect = "The caller sleeps as long; beyond 60 s see mailbox-lost."
    source = "libie/controlq.c: replies are found by their cookies, in any order, and waited for 60 s."

    delay: Annotated[float, "seconds", SPAN, Drawn(0.001, 0.1)] = 0.1


@dataclass(frozen=True, kw_only=True)
class MailboxLost(MailboxFault):
    """A message is executed, and its reply, or an event, never comes."""

    name = "mailbox-lost"
    effect = (
        "The caller sleeps for 60 s and gets ETIME. Without the event that follows ENABLE_VPORT the interface has no "
        "carrier, until the link changes."
    )


@dataclass(frozen=True, kw_only=True)
class MailboxLength(MailboxFault):
    """A reply, or an event, has another length than it should."""

    name = "mailbox-length"
    effect = (
        'Most replies are taken for failures ("I/O error"); of an event the log says that its payload is not valid.'
    )

    what: Annotated[
        Literal["short", "long", "none"], "short: half of it; long: as many bytes of ones more; none: no payload"
    ] = "short"


@dataclass(frozen=True, kw_only=True)
class MailboxAnswer(MailboxFault):
    """Bytes of a reply, or of an event, are others."""

    name = "mailbox-answer"
    effect = "It depends on the bytes; most numbers that a device gives are believed. The guest may crash."

    at: Annotated[int, "where in it they are", Range(0, 4095)] = 0
    size: Annotated[int, "how many", Range(1, 8)] = 4
    value: Annotated[int, "what they are, as a number, little-endian", Range(0, (1 << 64) - 1)] = 0


@dataclass(frozen=True, kw_only=True)
class MailboxUnasked(MailboxFault):
    """Before a reply comes one to a message that was never sent."""

    name = "mailbox-unasked"
    effect = "The driver finds nobody who waits for it, and drops it without a word."

    number: Annotated[int, "of the message that was never sent", Range(0, (1 << 28) - 1)] = Op.GET_STATS


@dataclass(frozen=True, kw_only=True)
class MailboxError(Fault):
    """The lengths of the mailbox's rings say of an error."""

    name = "mailbox-error"
    where = "mailbox"
    effect = "Linux 7.3 does not look at these bits: nothing."

    bit: Annotated[Literal["FAILURE", "OVERFLOW", "CRITICAL"], "which of the three"] = "CRITICAL"


_OWN: tuple[type[Fault], ...] = (
    WireDrop, WireCorrupt, WireDuplicate, WireReorder, WireDelay, WireRate, WireFlap,
    RxUnsplit, RxSplitBeyond, RxHeaderOverflow, RxChecksum, RxLate, RxError, RxBufferId, RxTooLong, RxField,
    RxTwice,
    TxLate, TxNever, TxTag, TxField, TxOrder, TxStop,
    IrqLost, IrqLate, IrqSpurious, IrqMerged,
    MailboxStatus, MailboxLate, MailboxLost, MailboxLength, MailboxAnswer, MailboxUnasked, MailboxError,
    DmaFault, DmaSlow,
    DeviceReset, DeviceHang, DeviceGone, DeviceOnes,
)  # fmt: skip
#: All faults of an idpf by name, in the order of a frame's way and of a person's interest.
KINDS: dict[str, type[Fault]] = {
    kind.name: kind for kind in sorted(_OWN, key=lambda kind: get_args(Where).index(kind.where))
}

EFFECTS: Mapping[str, str] = {
    "rx-unsplit": (
        "The driver copies the first 14 bytes, or a packet of up to 64 bytes as a whole, to the header buffer itself, "
        "and counts it (ethtool -S: rx-hsplit_hbo). Nothing is lost."
    ),
    "rx-split-beyond": "The stack gets these bytes in the packet's linear part. Nothing is lost.",
    "rx-header-overflow": "As rx-unsplit.",
    "rx-error": "The driver does not look at the bit, and takes the packet for whole.",
    "rx-buffer-id": (
        "The driver does not look whether it has such a buffer: beyond its table it takes for one what lies there, and "
        "again it gives the same memory to two packets. The guest may crash."
    ),
    "rx-too-long": "The driver believes it: the packet has bytes of what lies behind its buffer. The guest may crash.",
    "rx-field": (
        "That of rx-buffer-id or rx-checksum where the field is one of theirs. Lengths and types are believed. The "
        "guest may crash."
    ),
    "tx-field": (
        "That of tx-tag where it is a packet's value. Of a type that is none the log says "
        '"Unknown TX completion type".'
    ),
    "tx-never": 'After 5 s the log says "Detected Tx timeout", and the driver resets the device by message.',
    "tx-tag": (
        "The driver does not look whether it has such a packet: beyond its table it takes for one what lies there, and "
        "the packet that was meant is never completed (tx-never). Completed again, nothing is lost, unless the tag is "
        "in use by then: that packet's memory is freed too early."
    ),
    "irq-lost": (
        "The queue stands still. A transmit queue is reset by the watchdog; a receive queue stays dead until something "
        "else interrupts on its vector. Lost for the mailbox, messages are not answered."
    ),
    "device-reset": (
        'The log says "HW reset detected" within 300 ms; the driver sets up again. Connections survive; flow rules of '
        "ethtool and the RSS table are gone."
    ),
    "device-hang": (
        "Nothing comes or goes, and messages are not answered. The watchdog of a busy queue resets the device by a "
        "message that waits, too. A short hang is seen only as a delay."
    ),
    "device-gone": "No traffic. All ones are not taken for a reset: messages run into their 60 s.",
    "device-ones": "Packets flow, and messages: all ones are not taken for a reset.",
}
