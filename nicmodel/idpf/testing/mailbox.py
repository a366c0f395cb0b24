"""The mailbox, driver's side: messages in one ring, replies and events in the other.

Each message of the driver's is a transaction: its reply comes with the same cookie. What comes with no cookie that
waits is an event (Linux drivers/net/ethernet/intel/libie/controlq.c).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from nicmodel.idpf import registers as r
from nicmodel.idpf import virtchnl as v
from nicmodel.idpf.descriptors import MAILBOX, MAILBOX_BUFFER, MailboxOpcode
from nicmodel.idpf.registers import Bar, QueueLength, Register
from nicmodel.idpf.testing.violation import ContractViolation
from nicmodel.idpf.virtchnl import Op, Result
from nicmodel.testing.guest_memory import GuestMemory
from nicmodel.vfio_user.client import Client

#: Descriptors of each ring (IDPF_DFLT_MBX_Q_LEN).
ENTRIES = 64
#: Times that a reply is looked for.
_TRIES = 100


class Refused(Exception):
    """The device has answered that a message cannot be done.

    Attributes:
        result: its answer.
    """

    def __init__(self, op: int, result: int) -> None:
        name = Result(result).name if result in set(Result) else str(result)
        super().__init__(f"{Op(op).name if op in set(Op) else op}: {name}")
        self.result = result


class Silent(Exception):
    """The device has not answered a message."""


@dataclass(frozen=True)
class Received:
    """What the device has sent.

    Attributes:
        number: of the message.
        result: how it went.
        cookie: which transaction it is the reply of; 0: an event.
        payload: the message's.
    """

    number: int
    result: int
    cookie: int
    payload: bytes


class Registers:
    """BAR 0 by register. Writes are posted, as QEMU posts them."""

    def __init__(self, client: Client) -> None:
        self._client = client

    def read(self, register: Register, number: int = 0) -> int:
        """Read a register; a read waits until the device has seen every earlier write."""
        return int.from_bytes(self._client.region_read(Bar.REGISTERS, register.at(number), r.SPACING), "little")

    def write(self, register: Register, value: int, number: int = 0) -> None:
        """Write a register."""
        self.write_at(register.at(number), value)

    def write_at(self, offset: int, value: int) -> None:
        """Write the register at an offset that a message has told."""
        self._client.region_write(Bar.REGISTERS, offset, value.to_bytes(r.SPACING, "little"), posted=True)


class Mailbox:
    """Both rings, given to the device.

    Args:
        registers: BAR 0.
        ram: where rings and buffers go.

    Attributes:
        events: what has come that was no reply.
    """

    def __init__(self, registers: Registers, ram: GuestMemory) -> None:
        self._registers = registers
        self._ram = ram
        self._send_ring = ram.allocate_zeroed(ENTRIES * MAILBOX.size)
        self._receive_ring = ram.allocate_zeroed(ENTRIES * MAILBOX.size)
        self._send_buffers = ram.allocate_zeroed(ENTRIES * MAILBOX_BUFFER)
        self._receive_buffers = ram.allocate_zeroed(ENTRIES * MAILBOX_BUFFER)
        self._sent = self._received = 0
        self._cookie = 0
        self.events: list[Received] = []
        for place in range(ENTRIES):
            self._post(place)
        for base, low, high, head, tail, length in (
            (self._send_ring, r.ATQ_BASE_LOW, r.ATQ_BASE_HIGH, r.ATQ_HEAD, r.ATQ_TAIL, r.ATQ_LEN),
            (self._receive_ring, r.ARQ_BASE_LOW, r.ARQ_BASE_HIGH, r.ARQ_HEAD, r.ARQ_TAIL, r.ARQ_LEN),
        ):
            registers.write(tail, 0 if tail is r.ATQ_TAIL else ENTRIES - 1)
            registers.write(head, 0)
            registers.write(low, base & 0xFFFFFFFF)
            registers.write(high, base >> 32)
            registers.write(length, ENTRIES | QueueLength.ENABLE)

    def free(self) -> None:
        """Give all memory back; the device must have let go of it."""
        for address in (self._send_ring, self._receive_ring, self._send_buffers, self._receive_buffers):
            self._ram.free(address)

    def _post(self, place: int) -> None:
        """Give the device a buffer to answer into."""
        address = self._receive_buffers + place * MAILBOX_BUFFER
        descriptor = MAILBOX.encode(
            buffer=1, length=MAILBOX_BUFFER, address_high=address >> 32, address_low=address & 0xFFFFFFFF
        )
        self._ram.write(self._receive_ring + place * MAILBOX.size, descriptor)

    def send(self, number: int, payload: bytes = b"", *, cookie: int = 0) -> None:
        """Send a message, without waiting for an answer."""
        place = self._sent
        address = self._send_buffers + place * MAILBOX_BUFFER
        self._ram.write(address, payload)
        descriptor = MAILBOX.encode(
            read=int(bool(payload)),
            buffer=int(bool(payload)),
            opcode=MailboxOpcode.SEND_TO_CONTROL_PLANE,
            length=len(payload),
            message=number,
            cookie=cookie,
            address_high=address >> 32 if payload else 0,
            address_low=address & 0xFFFFFFFF if payload else 0,
        )
        self._ram.write(self._send_ring + place * MAILBOX.size, descriptor)
        self._sent = (place + 1) % ENTRIES
        self._registers.write(r.ATQ_TAIL, self._sent)

    def request(self, op: int, payload: bytes = b"") -> bytes:
        """Send a message and wait for its reply, whose payload is returned.

        Raises:
            Refused: the device says that it cannot be done.
            Silent: it does not answer.
            ContractViolation: it did not take the message from the ring.
        """
        self._cookie = cookie = self._cookie % 0xFFFF + 1
        place = self._sent
        self.send(op, payload, cookie=cookie)
        for _ in range(_TRIES):
            self._registers.read(r.ARQ_LEN)  # Linux looks for a reset before each message; here it also waits
            came = self.receive()
            self.events += [other for other in came if (other.number, other.cookie) != (op, cookie)]
            for received in came:
                if (received.number, received.cookie) != (op, cookie):
                    continue
                taken = MAILBOX.decode(self._ram.read(self._send_ring + place * MAILBOX.size, MAILBOX.size))
                if not taken["done"]:
                    raise ContractViolation(f"message {op} was answered, and its descriptor is not marked as done")
                if received.result:
                    raise Refused(op, received.result)
                return received.payload
        raise Silent(f"no answer to message {op}")

    def receive(self) -> list[Received]:
        """Take what has come, and give the buffers back."""
        found = []
        while True:
            place = self._received
            descriptor = MAILBOX.decode(self._ram.read(self._receive_ring + place * MAILBOX.size, MAILBOX.size))
            if not descriptor["done"]:
                break
            payload = self._ram.read(self._receive_buffers + place * MAILBOX_BUFFER, descriptor["length"])
            found.append(Received(descriptor["message"], descriptor["status"], descriptor["cookie"], payload))
            self._post(place)
            self._received = (place + 1) % ENTRIES
        if found:
            self._registers.write(r.ARQ_TAIL, (self._received + ENTRIES - 1) % ENTRIES)
        return found


def one(dtype: v.Type, **fields: Any) -> np.void:
    """A structure; fields that are not named are 0."""
    made: np.void = np.zeros(1, dtype)[0]
    for name, value in fields.items():
        made[name] = value
    return made
