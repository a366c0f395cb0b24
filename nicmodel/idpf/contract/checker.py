"""The checker: watches the driver of one idpf keep the contract."""

from __future__ import annotations

from collections.abc import Callable

from nicmodel.idpf import registers as r
from nicmodel.idpf.contract.interrupts import Interrupts
from nicmodel.idpf.contract.messages import Messages
from nicmodel.idpf.contract.receive import Receive
from nicmodel.idpf.contract.registers import SETUP, Registers
from nicmodel.idpf.contract.rings import Rings
from nicmodel.idpf.contract.rules import RULES
from nicmodel.idpf.contract.transmit import Transmit
from nicmodel.idpf.device import Nic
from nicmodel.idpf.registers import Bar, Register
from nicmodel.idpf.virtchnl import Op, QueueType, Result
from nicmodel.nic import events
from nicmodel.observe.checking import checker
from nicmodel.observe.findings import Finding

_VECTORS = (r.QUEUE_DYN_CTL, r.MAILBOX_DYN_CTL, r.ITR0, r.ITR1)
#: Messages behind which other queues may be there than before.
_CHANGE_QUEUES = frozenset({Op.ENABLE_QUEUES, Op.DISABLE_QUEUES, Op.DEL_QUEUES, Op.DESTROY_VPORT})


class Checker(checker.Checker):
    """Checks one NIC's driver from now on; see `nicmodel.observe.checking.checker.Checker`."""

    def __init__(self, nic: Nic, on_finding: Callable[[Finding], None] | None = None) -> None:
        super().__init__(nic, RULES, on_finding)
        self._nic = nic
        self._rings = Rings(nic)
        self._registers = Registers(nic, self.memory, self._journal)
        self._messages = Messages(nic, self.memory, self._journal)
        self._rx = Receive(nic, self.memory, self._journal, self._rings)
        self._tx = Transmit(nic, self.memory, self._journal, self._rings)
        self._interrupts = Interrupts(nic, self._journal)
        #: The client under whose driver the device was reset, and not by it: it does not know before it looks, and what
        #: it does until it sets the mailbox up again is meant for the device as it was. None: there is no such driver.
        self._unaware: object = None
        #: The driver has just asked for a reset by message. Where bus mastering is taken away it need not know of it.
        self._asked = False
        self._rings.update()

    def _look_at(self, event: events.Event) -> None:
        match event:
            case events.Write(region, offset, data):
                self._write(region, offset, bytes(data))
            case events.Receiving(batch):
                self._rx.before(batch)
            case events.Received():
                self._rx.after("received")
            case events.Transmitting(queue):
                self._tx.before(queue)
            case events.Transmitted(queue):
                self._tx.after(queue)
            case events.CommandFetched(slot):
                self._messages.fetched(slot)
                self._asked = self._messages.resets
            case events.CommandExecuted(number, _, status):
                if status == Result.OK:
                    self._executed(number)
            case events.ResetRequested():
                self._unaware = self._nic.link
            case events.Releasing():
                self._unaware = self._unaware if self._asked else self._nic.link
                self._reset()
            case events.Injected():
                # What the driver does while it waits in vain, until a reset, is right.
                self._interrupts.excused = True

    def _reset(self) -> None:
        """The device is as after power-on."""
        self._asked = False
        self._rx.forget()
        self._tx.forget()
        self._interrupts.reset()
        self._registers.reset()
        self._messages.reset()
        self._rings.clear()

    def _executed(self, number: int) -> None:
        self._messages.executed(number)
        if number not in _CHANGE_QUEUES:
            return
        ended, begun = self._rings.update()
        for name in ended:
            (self._rx.end if name.startswith("rx") else self._tx.forget)(int(name[2:]))
        for name in begun:
            (self._rx if name.startswith("rx") else self._tx).begin(int(name[2:]))

    # Registers.

    def _write(self, region: int, offset: int, data: bytes) -> None:
        if region != Bar.REGISTERS:
            return
        unaware = self._unaware is not None and self._unaware is self._nic.link
        found = None if unaware and not _is_mailbox(offset) else self._registers.write(offset, data)
        if found is not None:
            self._register(*found)
        if self._registers.enabled:
            self._unaware = None
        self._interrupts.look()

    def _register(self, register: Register, number: int, value: int) -> None:
        if register in _VECTORS:
            self._interrupts.write(register, number, value, self._messages.vectors)
        elif register is r.TX_TAIL:
            self._tail(QueueType.TX, number, value)
        elif register is r.RX_BUFFER_TAIL:
            self._tail(QueueType.RX_BUFFER, number, value)

    def _tail(self, kind: QueueType, number: int, value: int) -> None:
        queues = self._nic.queues
        called = f"{kind.name.lower().replace('_', ' ')} queue {number}"
        self._registers.need_bus_master(f"the tail of {called} is written")
        if number >= queues.granted[kind]:
            self._journal.report("DBL-001", f"the tail of {called} is written", value=value)
            return
        if kind is QueueType.RX_BUFFER:
            if (queue := queues.receive_queue_of(number)) is not None:
                self._interrupts.polled(int(self._nic.state.rx[queue]["vector"]))
            self._rx.tail(number, value)
        elif self._nic.state.tx[number]["entries"]:
            self._interrupts.polled(int(self._nic.state.tx[number]["vector"]))
            self._tx.tail(number, value)
        elif value and (kind, number) not in queues.enabled:
            self._journal.report("DBL-003", f"the tail of {called}, which is disabled, is set to {value}")
        elif value:
            self._journal.report("QUE-011", f"the tail of {called} is set to {value}, without a completion queue")


def _is_mailbox(offset: int) -> bool:
    """Whether a register is one by which a driver sets the mailbox up."""
    place = r.PLACES.get(offset)
    return place is not None and place[0] in SETUP
