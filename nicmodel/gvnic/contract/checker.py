"""The checker: watches the driver of one gVNIC keep the contract."""

from __future__ import annotations

from collections.abc import Callable
from enum import IntEnum
from typing import Any

import numpy as np

from nicmodel.gvnic.commands import Opcode, Status
from nicmodel.gvnic.contract.admin import Admin
from nicmodel.gvnic.contract.interrupts import Interrupts
from nicmodel.gvnic.contract.options import OPTION_CHECKS
from nicmodel.gvnic.contract.receive import Receive
from nicmodel.gvnic.contract.registers import Registers
from nicmodel.gvnic.contract.rings import Rings
from nicmodel.gvnic.contract.rules import RULES
from nicmodel.gvnic.contract.transmit import Transmit
from nicmodel.gvnic.device import Nic
from nicmodel.gvnic.options.check import Scene
from nicmodel.gvnic.options.flush.events import Flushed, Flushing
from nicmodel.gvnic.registers import Bar
from nicmodel.nic import events
from nicmodel.observe.checking import checker
from nicmodel.observe.findings import Finding
from nicmodel.pci.config import Command
from nicmodel.vfio_user.protocol import PciRegion


class Checker(checker.Checker):
    """Checks one NIC's driver from now on; see `nicmodel.observe.checking.checker.Checker`."""

    def __init__(self, nic: Nic, on_finding: Callable[[Finding], None] | None = None) -> None:
        super().__init__(nic, RULES, on_finding)
        self._nic = nic
        memory, rings = self.memory, Rings(nic)
        self._rx = Receive(nic, memory, self._journal, rings)
        scene = Scene(nic, memory, self._journal, rings, self._rx)
        self._options = tuple(check(scene) for check in OPTION_CHECKS if check.option.offered(nic.profile))
        self._rx.on_posted = self._posted
        self._admin = Admin(nic, memory, self._journal, rings, self._options)
        self._tx = Transmit(nic, memory, self._journal, rings)
        self._interrupts = Interrupts(nic, self._journal)
        self._registers = Registers(nic, memory, self._journal, lambda: self._tx.behind, self._forget_queues)
        self._created: set[str] = set()
        self._destroyed: set[str] = set()

    def _look_at(self, event: events.Event) -> None:
        match event:
            case events.Write(region, offset, data):
                self._write(region, offset, data)
            case events.Receiving(batch):
                self._rx.before(batch)
            case events.Received():
                self._rx.after("received")
            case Flushing(queue):
                self._rx.before_flush(queue)
            case Flushed():
                self._rx.after("flushed")
            case events.Transmitting(queue):
                self._tx.before(queue)
            case events.Transmitted(queue):
                self._tx.after(queue)
            case events.CommandFetched(slot):
                self._admin.command(slot)
            case events.CommandExecuted(opcode, payload, status):
                self._executed(opcode, payload, status)
            case events.Resetting():
                self._reset()
            case events.Injected():
                # What the driver does to recover from a fault on demand, until a reset, is right.
                self._registers.failed = self._interrupts.excused = True
        for option in self._options:
            option.see(event)

    def _write(self, region: int, offset: int, data: bytes | memoryview) -> None:
        if region == Bar.DOORBELLS:
            self._doorbell(offset, bytes(data))
        elif region == Bar.REGISTERS:
            self._registers.write(offset, bytes(data))
        if region != PciRegion.CONFIG:
            self._interrupts.look()

    def _doorbell(self, offset: int, data: bytes) -> None:
        nic, queues = self._nic, self._nic.profile.queues
        index = offset // 4
        value = int.from_bytes(data, "big" if nic.gqi else "little")
        if len(data) != 4 or offset % 4:
            self._journal.report("DBL-001", f"{len(data)} bytes are written at offset {offset:#x}", value=value)
            return
        if not nic.config.command & Command.BUS_MASTER:
            self._journal.report(
                "REG-011", "a doorbell is written while bus mastering is off", index=index, value=value
            )
        if (block := index - nic.doorbells.irq(0)) in range(2 * queues):
            self._interrupts.doorbell(block, value)
        elif (number := index - nic.doorbells.tx(0)) in range(queues):
            self._queue_doorbell("tx", number, value)
        elif (number := index - nic.doorbells.rx(0)) in range(queues):
            self._queue_doorbell("rx", number, value)
        elif not any(option.doorbell(index, value) for option in self._options):
            self._journal.report("DBL-002", f"doorbell {index} is written", value=value)

    def _queue_doorbell(self, way: str, number: int, value: int) -> None:
        nic, name = self._nic, f"{way}{number}"
        record = nic.state.rx[number] if way == "rx" else nic.state.tx[number]
        entries = int(record["buffer_entries"] if way == "rx" else record["entries"])
        if not record["active"]:
            if name in self._destroyed:
                self._journal.report("DBL-004", "the doorbell of a destroyed queue is written", name, value=value)
            else:
                self._journal.report(
                    "DBL-003", "the doorbell of a queue is written before there is one", name, value=value
                )
        elif not nic.gqi and value >= entries:
            self._journal.report("DBL-005", f"the doorbell is set to {value} of {entries} entries", name)
        else:
            self._interrupts.polled(int(record["vector"]))
            (self._rx if way == "rx" else self._tx).doorbell(number, value)

    def _executed(self, opcode: int, payload: np.void | None, status: IntEnum) -> None:
        self._admin.executed(opcode, status)
        for option in self._options:
            option.executed(status == Status.PASSED)
        if status != Status.PASSED or payload is None:
            self._registers.failed = True
            return
        queue = Opcode(opcode).command.queue
        if queue is not None and queue.effect != "changed":
            self._changed(queue.way, int(payload[queue.number]), queue.effect == "destroyed")
        elif opcode in (Opcode.CONFIGURE_DEVICE_RESOURCES, Opcode.DECONFIGURE_DEVICE_RESOURCES):
            self._forget_queues()

    def _posted(self, *what: Any) -> None:
        for option in self._options:
            option.posted(*what)

    def _changed(self, way: str, number: int, destroyed: bool) -> None:
        (self._rx if way == "rx" else self._tx).forget(number)
        for option in self._options if way == "rx" else ():
            option.forget(number)
        gone, there = (self._created, self._destroyed) if destroyed else (self._destroyed, self._created)
        gone.discard(f"{way}{number}")
        there.add(f"{way}{number}")

    def _forget_queues(self) -> None:
        self._rx.forget()
        self._tx.forget()
        for option in self._options:
            option.forget()
        self._interrupts.reset()
        self._destroyed |= self._created
        self._created.clear()

    def _reset(self) -> None:
        self._forget_queues()
        self._destroyed.clear()
        self._registers.reset()
