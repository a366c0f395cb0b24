"""The mailbox: a queue of messages to the control plane, and a queue of its replies and events.

Messages are fetched, executed in order and answered within the doorbell's write. What a driver asks for at once is
bounded: by the work that one message may be, and by the number of messages in one turn of the event loop, of which a
long one counts as several; those that are left are executed in the next turns. Replies for which the driver has posted
no buffer wait for one.

Source: Linux drivers/net/ethernet/intel/libie/controlq.c.
"""

from __future__ import annotations

import logging
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np

from nicmodel.idpf.descriptors import MAILBOX, MAILBOX_BUFFER, MailboxOpcode
from nicmodel.idpf.virtchnl import MessageError, Op, Result
from nicmodel.nic import events
from nicmodel.nic.diagnostics import Diagnostics
from nicmodel.nic.dma_engine import DmaEngine
from nicmodel.nic.interrupts import Interrupts
from nicmodel.nic.state import Cause, Records
from nicmodel.nic.steering import SteeringError
from nicmodel.vfio_user.dma import DmaFault
from nicmodel.vfio_user.poll import Budget, EventLoop

log = logging.getLogger(__name__)

#: MSI-X vector of the mailbox; those of queues follow.
VECTOR = 0
#: Most messages that are executed in one turn of the event loop: all that fit the ring that drivers give.
_MESSAGES_PER_TURN = 64
#: Bytes of payload that count as one message more: work grows with what is listed there.
_BYTES_PER_MESSAGE = 128
#: Most replies that wait for a buffer: a driver has no more transactions (LIBIE_CTLQ_MAX_XN_ENTRIES).
_MAX_WAITING = 256
#: Numbers that are no message's and are counted by themselves; all others together, as "other".
MAX_UNKNOWN = 16
_OPS = frozenset(Op)


class Executor(Protocol):
    """What executes messages."""

    def execute(self, op: Op, payload: np.void) -> bytes | None:
        """Execute one; what to reply with, None: the same payload.

        Raises:
            MessageError: it cannot be done.
            SteeringError: likewise.
            DmaFault: memory that it names is not there.
        """

    def executed(self, op: Op) -> None:
        """Its reply has been sent; what is to be said behind that can be."""


@dataclass
class Ring:
    """One of the two queues.

    Attributes:
        base: its guest address.
        entries: how many descriptors it has; 0: there is none.
        head: the next descriptor that the device takes.
        tail: up to where they are the device's.
    """

    base: int = 0
    entries: int = 0
    head: int = 0
    tail: int = 0

    @property
    def waiting(self) -> bool:
        """Whether there is a descriptor for the device."""
        return self.entries > 0 and self.head != self.tail % self.entries

    @property
    def address(self) -> int:
        """Where the next one is."""
        return self.base + self.head * MAILBOX.size

    def advance(self) -> None:
        """It has been taken."""
        self.head = (self.head + 1) % self.entries


class Reply(NamedTuple):
    """What is to be given to the driver: an answer, or with the cookie 0 an event."""

    number: int
    result: int
    cookie: int
    payload: bytes


class Mailbox:
    """Both queues.

    Args:
        vectors: the vectors' state, of which `VECTOR` is the mailbox's.
        dma: guest memory.
        interrupts: what tells the driver.
        poller: the event loop.
        diagnostics: told of messages.
        work: has doorbells that came before a message take effect.
        may_dma: whether the bus lets the device reach memory.

    Attributes:
        to_device: the queue of messages.
        to_driver: the queue of replies and events.
        counts: number of messages by name and result, for display.
        executor: what executes them, given before there are any.
        gate: asked with the number of each message: the result that it has without being executed; None: it is
            executed. No gate is the default (`nicmodel.faults`).
        detour: what is given each reply in place of `give`; none is the default.
    """

    executor: Executor

    def __init__(
        self,
        vectors: Records,
        dma: DmaEngine,
        interrupts: Interrupts,
        poller: EventLoop,
        diagnostics: Diagnostics,
        work: Callable[[], None],
        may_dma: Callable[[], bool],
    ) -> None:
        self.to_device = Ring()
        self.to_driver = Ring()
        self.counts: Counter[str] = Counter()
        self.gate: Callable[[int], Result | None] | None = None
        self.detour: Callable[[Reply], None] | None = None
        self._unknown = 0  # numbers in it that are no message's
        self._vectors = vectors
        self._dma = dma
        self._interrupts = interrupts
        self._diagnostics = diagnostics
        self._work = work
        self._may_dma = may_dma
        self._messages = Budget(poller, _MESSAGES_PER_TURN)
        self._replies: deque[Reply] = deque()

    def reset(self) -> None:
        """Forget both queues, and what waits for them."""
        self.to_device = Ring()
        self.to_driver = Ring()
        self._replies.clear()

    def ring(self) -> None:
        """There are messages: execute them; those that are too many for this turn of the event loop in the next."""
        if not self._may_dma():
            return
        self._work()
        queue = self.to_device
        while queue is self.to_device and queue.waiting and self._messages.spend(self.ring):
            try:
                self._take(queue)
            except DmaFault as fault:
                self._diagnostics.count("mailbox_fault")
                log.warning("mailbox: %s", fault)
            except Exception as error:  # whatever it is: the mailbox must go on
                self._diagnostics.fail("mailbox", error)
        self.deliver()

    def _take(self, queue: Ring) -> None:
        """Execute the next message. Whatever becomes of it, the one behind it is the next then."""
        address = queue.address
        queue.advance()
        raw = self._dma.read(address, MAILBOX.size)
        descriptor = MAILBOX.decode(raw)
        self._diagnostics.tell_control(events.CommandFetched(raw))
        number = descriptor["message"]
        op = Op(number) if number in _OPS else None
        try:
            payload = self._payload(descriptor)
            refused = None if self.gate is None else self.gate(number)
            if refused is None:
                result, answer = self._execute(op, number, payload)
            else:
                result, answer = refused, None
                self._told(number, None, result, "")
        except DmaFault as fault:
            result, answer, payload = Result.INVALID, None, b""
            self._told(number, None, result, str(fault))
        if queue is not self.to_device:  # the message was a reset
            return
        done = int.from_bytes(raw[:2], "little") | MAILBOX.done.put(1) | MAILBOX.complete.put(1)
        self._dma.write(address, done.to_bytes(2, "little"))
        self.post(number, result, descriptor["cookie"], payload if answer is None else answer)
        if op is not None and result is Result.OK:
            with self._diagnostics.surviving(op.name):
                self.executor.executed(op)

    def _payload(self, descriptor: dict[str, int]) -> bytes:
        if not descriptor["buffer"]:
            return b""
        address = descriptor["address_high"] << 32 | descriptor["address_low"]
        length = min(descriptor["length"], MAILBOX_BUFFER)
        self._messages.charge(length // _BYTES_PER_MESSAGE)
        return self._dma.read(address, length)

    def _execute(self, op: Op | None, number: int, raw: bytes) -> tuple[Result, bytes | None]:
        """Execute a message; its result, and what to reply with (None: what was sent)."""
        if op is None or op is Op.EVENT:
            self._told(number, None, Result.UNKNOWN_MESSAGE, "")
            log.warning("message %d is not implemented", number)
            return Result.UNKNOWN_MESSAGE, None
        payload, answer = None, None
        result, reason = Result.OK, ""
        try:
            payload = op.message.parse(raw)
            answer = self.executor.execute(op, payload)
        except MessageError as error:
            result, reason = error.result, str(error)
        except (SteeringError, DmaFault) as error:
            result, reason = Result.INVALID, str(error)
        except Exception as error:  # whatever it is: the mailbox must go on
            result, reason = Result.IO_ERROR, repr(error)
            self._diagnostics.fail(op.name, error)
        self._told(op, payload, result, reason)
        return result, answer

    def _told(self, number: int, payload: np.void | None, result: Result, reason: str) -> None:
        """Count a message, and let others know of it."""
        self._count(number, result)
        if reason:
            log.warning("message %s: %s: %s", Op(number).name if number in _OPS else number, result.name, reason)
        self._diagnostics.tell_control(events.CommandExecuted(number, payload, result, reason))

    def _count(self, number: int, result: Result) -> None:
        """Of numbers that are no message's, which a driver has without end, count the first few by themselves."""
        name = Op(number).name if number in _OPS else str(number)
        if number not in _OPS and f"{name} {result.name}" not in self.counts:
            if self._unknown == MAX_UNKNOWN:
                name = "other"
            else:
                self._unknown += 1
        self.counts[f"{name} {result.name}"] += 1

    def post(self, number: int, result: int, cookie: int, payload: bytes) -> None:
        """Have the driver get a reply, or an event."""
        (self.detour or self.give)(Reply(number, result, cookie, payload))

    def give(self, reply: Reply) -> None:
        """Have it get this one, when it has a buffer for it."""
        if len(self._replies) == _MAX_WAITING:
            self._diagnostics.count("mailbox_reply_lost")
            return
        self._replies.append(reply)

    def deliver(self) -> None:
        """Give the driver what waits for it, as far as it has posted buffers."""
        queue = self.to_driver
        delivered = False
        while self._replies and queue.waiting:
            reply = self._replies.popleft()
            try:
                self._write(queue, reply)
                delivered = True
            except DmaFault as fault:
                self._diagnostics.count("mailbox_fault")
                log.warning("mailbox: %s", fault)
            queue.advance()
        if delivered:
            self._vectors["pending"][VECTOR] |= Cause.AT_ONCE
            self._interrupts.fire_soon()

    def _write(self, queue: Ring, reply: Reply) -> None:
        posted = MAILBOX.decode(self._dma.read(queue.address, MAILBOX.size))
        room = min(posted["length"], MAILBOX_BUFFER)
        payload = reply.payload[:room]
        if payload:
            self._dma.write(posted["address_high"] << 32 | posted["address_low"], payload)
        descriptor = MAILBOX.encode(
            done=1,
            complete=1,
            buffer=int(bool(payload)),
            opcode=MailboxOpcode.SEND_TO_PEER,
            length=len(payload),
            message=reply.number,
            status=reply.result,
            cookie=reply.cookie,
            address_high=posted["address_high"],
            address_low=posted["address_low"],
        )
        self._dma.write(queue.address + 8, descriptor[8:])
        self._dma.write(queue.address, descriptor[:8])  # last, as it says that all is there
