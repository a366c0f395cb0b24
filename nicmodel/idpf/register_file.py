"""BAR 0 at work: what its registers show, what a driver has written there, and what that brings about.

The registers themselves are declared in `nicmodel.idpf.registers`. Base addresses of the mailbox's queues come in
parts, which are kept until the driver enables the queue.

The device has no interrupt by which it says that it was reset: the driver looks at the length of the mailbox's receive
queue every 300 ms, and before each message, and takes 0 for a reset (idpf_is_reset_detected).
"""

from __future__ import annotations

import logging
from bisect import bisect_left, bisect_right
from collections.abc import Mapping
from typing import Protocol

from nicmodel.idpf import registers as r
from nicmodel.idpf.mailbox import VECTOR, Mailbox, Ring
from nicmodel.idpf.queues import Queues
from nicmodel.idpf.registers import QueueLength, Register, ResetState
from nicmodel.nic.diagnostics import Diagnostics
from nicmodel.nic.state import Records

log = logging.getLogger(__name__)

#: Registers that read as they were written.
_KEPT = (
    r.ATQ_BASE_LOW, r.ATQ_BASE_HIGH, r.ATQ_LEN, r.ATQ_HEAD, r.ATQ_TAIL,
    r.ARQ_BASE_LOW, r.ARQ_BASE_HIGH, r.ARQ_LEN, r.ARQ_HEAD, r.ARQ_TAIL,
)  # fmt: skip

#: Where registers are that can be read, in their order; all else reads as 0.
_READABLE = sorted(place for place, (one, _) in r.PLACES.items() if one in (*_KEPT, r.RSTAT, r.ITR0, r.ITR1))


class Configured(Protocol):
    """A NIC, as far as its registers act on it."""

    queues: Queues
    mailbox: Mailbox
    diagnostics: Diagnostics

    def mailbox_enabled(self) -> None:
        """Both queues of the mailbox are there: the driver is at work."""


class RegisterFile:
    """Registers of a NIC.

    Args:
        nic: what they act on.
        vectors: the vectors' state, whose intervals can be read.

    Attributes:
        state: what the reset state register shows.
        errors: bits that registers show besides (`nicmodel.faults`).
    """

    def __init__(self, nic: Configured, vectors: Records) -> None:
        self.state = ResetState.COMPLETED
        self.errors: Mapping[Register, int] = {}
        self._nic = nic
        self._vectors = vectors
        self._written = dict.fromkeys(_KEPT, 0)

    def reset(self) -> None:
        """Registers as after power-on; what they had brought about has been ended."""
        self._written = dict.fromkeys(_KEPT, 0)
        self.state = ResetState.COMPLETED

    def read(self, offset: int, count: int) -> bytes:
        """Read BAR 0: what is no register, or is not readable, is 0."""
        image = bytearray(count)
        # A client may read all of the BAR at once, hundreds of times in one turn of the event loop.
        touched = slice(bisect_right(_READABLE, offset - r.SPACING), bisect_left(_READABLE, offset + count))
        for place in _READABLE[touched]:
            value = self._value(*r.PLACES[place]).to_bytes(r.SPACING, "little")
            first, last = max(place, offset), min(place + r.SPACING, offset + count)
            image[first - offset : last - offset] = value[first - place : last - place]
        return bytes(image)

    def _value(self, register: Register, number: int) -> int:
        if register in self._written:
            return self._written[register] | self.errors.get(register, 0)
        if register is r.RSTAT:
            return self.state
        vector = VECTOR + 1 + number
        if register in (r.ITR0, r.ITR1) and vector < len(self._vectors) - 1:
            field = "interval" if register is r.ITR0 else "second_interval"
            return int(self._vectors[field][vector]) // r.ITR_UNIT_NS
        return 0

    def write(self, offset: int, data: bytes | memoryview) -> None:
        """Write BAR 0: a register that is written as a whole takes effect."""
        place = r.PLACES.get(offset)
        if place is None or len(data) != r.SPACING:
            self._nic.diagnostics.count("register_unknown")
            return
        register, number = place
        value = int.from_bytes(data, "little")
        queues = self._nic.queues
        if register is r.TX_TAIL:
            queues.tx_tail(number, value)
        elif register is r.RX_BUFFER_TAIL:
            queues.buffer_tail(number, value)
        elif register is r.QUEUE_DYN_CTL:
            queues.control(VECTOR + 1 + number, value)
        elif register is r.MAILBOX_DYN_CTL:
            queues.control(VECTOR, value)
        elif register is r.ITR0:
            queues.set_interval(VECTOR + 1 + number, 0, value & r.ITR_MASK)
        elif register is r.ITR1:
            queues.set_interval(VECTOR + 1 + number, 1, value & r.ITR_MASK)
        elif register in self._written:
            self._written[register] = value
            self._mailbox(register, value)

    def _mailbox(self, register: Register, value: int) -> None:
        mailbox = self._nic.mailbox
        if register is r.ATQ_LEN:
            mailbox.to_device = self._ring(value, r.ATQ_BASE_LOW, r.ATQ_BASE_HIGH, r.ATQ_TAIL)
        elif register is r.ARQ_LEN:
            mailbox.to_driver = self._ring(value, r.ARQ_BASE_LOW, r.ARQ_BASE_HIGH, r.ARQ_TAIL)
        elif register is r.ATQ_TAIL and self._moved(mailbox.to_device, value):
            mailbox.ring()
        elif register is r.ARQ_TAIL and self._moved(mailbox.to_driver, value):
            mailbox.deliver()
        if register in (r.ATQ_LEN, r.ARQ_LEN) and mailbox.to_device.entries and mailbox.to_driver.entries:
            log.info("mailbox of %d and %d descriptors", mailbox.to_device.entries, mailbox.to_driver.entries)
            self._nic.mailbox_enabled()

    def _moved(self, ring: Ring, tail: int) -> bool:
        """Take a tail of a queue of the mailbox; false if there is no such queue yet, or no such tail."""
        if ring.entries and tail >= ring.entries:
            self._nic.diagnostics.count("doorbell_beyond_ring")
        if tail >= ring.entries:
            return False
        ring.tail = tail
        return True

    def _ring(self, length: int, low: Register, high: Register, tail: Register) -> Ring:
        """A queue of the mailbox that has been given; the receive queue's buffers were posted before."""
        entries = length & r.QUEUE_LENGTH_MASK
        if not length & QueueLength.ENABLE or not entries:
            return Ring()
        base = self._written[high] << 32 | self._written[low]
        return Ring(base, entries, 0, self._written[tail])
