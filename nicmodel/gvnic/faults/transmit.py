"""Faults of transmit queues: completions late, never, in two steps, in another order, held, wrong; queues that halt."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from nicmodel.faults.detour import Shadow, host_address, publish, put
from nicmodel.faults.edits import other_fields
from nicmodel.faults.fault import Injection, Late
from nicmodel.faults.kinds import DmaSlow, TxFault, TxField, TxHalt, TxLate, TxNever, TxOrder, TxTag
from nicmodel.faults.order import mixed
from nicmodel.gvnic.commands import ALTERNATE_MISS_BIT, DriverCapability
from nicmodel.gvnic.descriptors import TX_COMPLETION, TxCompletionType
from nicmodel.gvnic.device import Nic
from nicmodel.gvnic.faults.kinds import TxHold, TxMiss, TxReportLate
from nicmodel.gvnic.state import State
from nicmodel.nic.egress import Transmit
from nicmodel.nic.state import Drop, Taken

_GENERATION = np.uint64(1 << TX_COMPLETION.generation.shift)
#: Bytes that devices write at once, and completions in them.
_LINE = 128
_PER_LINE = _LINE // TX_COMPLETION.size

#: A completion, shape (1,), or the count of a GQI format, shape (4,).
Word = npt.NDArray[Any]


class TransmitFaults:
    """Stands in front of a NIC's transmit path while there are such faults."""

    kinds = (TxLate, TxNever, DmaSlow, TxMiss, TxOrder, TxReportLate, TxHold, TxTag, TxField, TxHalt)

    def __init__(self, nic: Nic) -> None:
        self._nic = nic
        self._shadow = Shadow()
        self._active: Sequence[Injection] = ()
        self._late = Late(nic)
        # Queues whose descriptors are being fetched from slow memory, and those whose are there.
        self._fetching: set[int] = set()
        self._fetched: set[int] = set()
        # By queue, in which of its lives: completions that wait for the rest of their line, and the one of descriptors
        # that is late. No later one of descriptors is written before these.
        self._held: dict[int, tuple[int, list[Word]]] = {}
        self._reports: dict[int, tuple[int, Word]] = {}
        # Queues that a malformed packet has stopped, in which of their lives.
        self._stopped: dict[int, int] = {}

    def update(self, active: Sequence[Injection]) -> None:
        """These faults are at work from now on."""
        self._active = active
        self._nic.egress.detour = self._transmit if active else None
        if not any(isinstance(one.fault, TxHold) for one in active):
            for queue in tuple(self._held):
                self._release_late(queue)
        if not any(isinstance(one.fault, TxReportLate) for one in active):
            for queue in tuple(self._reports):
                self._report_late(queue)

    def _transmit(self, transmit: Transmit[State], state: State, queue: int, *batch: Any) -> int:
        """Do what a loop such as `nicmodel.gvnic.transmit_dqo.transmit_dqo` does, with the faults."""
        for injection in self._active:
            if isinstance(injection.fault, DmaSlow) and self._wait_for_memory(injection, injection.fault, queue):
                return Taken.ALL
        faults = [
            one
            for one in self._active
            if isinstance(one.fault, TxFault) and one.fault.queue in (None, queue) and not one.exhausted
        ]
        if not faults:
            return transmit(state, queue, *batch)
        if self._stopped.get(queue) == self._nic.lives[f"tx{queue}"]:
            return Taken.ALL
        tx = state.tx[queue]
        vector = state.vectors[tx["vector"]]
        pending = int(vector["pending"])
        malformed = int(self._malformed(queue))
        before = {name: int(tx[name]) for name in (
            "completion_ring", "completion_entries", "completion_index", "generation", "head",
        )}  # fmt: skip
        # Each descriptor may be completed, and each packet, of which there are no more.
        entries = 2 * int(tx["entries"])
        shadowed, [(address, shadow)] = self._shadow.room(state, [entries * TX_COMPLETION.size])
        words = shadow.view(np.uint64)
        tx["completion_ring"], tx["completion_entries"], tx["completion_index"] = address, entries, 0
        try:
            taken = transmit(shadowed, queue, *batch)
            written = int(tx["completion_index"])
        finally:
            head = int(tx["head"])
            for name, value in before.items():
                if name != "head":
                    tx[name] = value
        vector["pending"] = pending
        self._halt(faults, queue, malformed)
        if self._nic.gqi:
            if head != before["head"]:
                self._decide(faults, queue, shadow[:4].copy())
        else:
            completions = [np.array([word], np.uint64) for word in words[:written].tolist()]
            for injection in faults:
                if isinstance(injection.fault, TxOrder) and len(completions) > 1 and injection.hit(queue=f"tx{queue}"):
                    completions = mixed(injection, completions, _is_report)
            for word in (self._edited(faults, queue, word) for word in completions):
                if _type(word) == TxCompletionType.PACKET:
                    self._decide(faults, queue, word)
                else:
                    self._report(faults, queue, word)
        return taken

    def _edited(self, faults: Sequence[Injection], queue: int, completion: Word) -> Word:
        """A completion with the fields that faults give it."""
        changed = completion.copy()
        for fault in other_fields(faults, queue):
            field = TX_COMPLETION.fields[{"value": "tag_or_head"}.get(fault.field, fault.field)]
            put(changed, field, fault.value & field.mask)
        return changed

    def _malformed(self, queue: int) -> int:
        """Packets of the queue that were malformed."""
        state = self._nic.state
        return int(state.drops[len(state.rx) + queue, Drop.BAD_DESCRIPTOR])

    def _halt(self, faults: Sequence[Injection], queue: int, malformed: int) -> None:
        """Stop a queue that has come to more malformed packets than before."""
        if self._malformed(queue) == malformed:
            return
        for injection in faults:
            if isinstance(injection.fault, TxHalt) and injection.hit(queue=f"tx{queue}"):
                self._stopped[queue] = self._nic.lives[f"tx{queue}"]

    def _wait_for_memory(self, injection: Injection, fault: DmaSlow, queue: int) -> bool:
        """Whether the queue's descriptors are still on their way."""
        if queue in self._fetched:
            self._fetched.discard(queue)
            return False
        if queue not in self._fetching:
            injection.strike(queue=f"tx{queue}", delay=fault.delay)
            self._fetching.add(queue)
            self._nic.poller.call_at(self._nic.clock() + round(fault.delay * 1e9), partial(self._fetch, queue))
        return True

    def _fetch(self, queue: int) -> None:
        self._fetching.discard(queue)
        if self._nic.state.tx[queue]["active"]:
            self._fetched.add(queue)  # until its turn comes
            self._nic.go_on(queue)

    def _decide(self, faults: Sequence[Injection], queue: int, completion: Word) -> None:
        """One packet is sent: is its completion written now, later, otherwise or never?"""
        details: dict[str, Any] = {"queue": f"tx{queue}"}
        if not self._nic.gqi:
            details["tag"] = _value(completion)
        for injection in faults:
            fault = injection.fault
            if isinstance(fault, TxNever) and injection.hit(**details):
                return
            if isinstance(fault, TxLate) and injection.hit(**details, delay=fault.delay):
                if self._complete_in(fault.delay, queue, completion):
                    return
            elif self._nic.gqi:
                continue
            elif isinstance(fault, TxMiss) and self._knows_misses and injection.hit(**details):
                self._miss(injection, fault, queue, completion)
                return
            elif isinstance(fault, TxTag) and injection.hit(**details):
                beyond = fault.which == "beyond"
                self._write(faults, queue, _made(completion, TxCompletionType.PACKET, 0x7FFF) if beyond else completion)
                if beyond:
                    return
        self._write(faults, queue, completion)

    @property
    def _knows_misses(self) -> bool:
        """Whether the driver has announced that it knows of packets that are completed in two steps."""
        info = self._nic.admin.driver_info
        return info is not None and bool(int(info["capabilities"][0]) & DriverCapability.ALTERNATE_MISS)

    def _miss(self, injection: Injection, fault: TxMiss, queue: int, completion: Word) -> None:
        """Complete a packet in two steps."""
        tag = _value(completion)
        by_bit = fault.form == "bit" or (fault.form == "both" and injection.random.random() < 0.5)
        if by_bit:
            self._complete(queue, _made(completion, TxCompletionType.PACKET, tag | ALTERNATE_MISS_BIT))
        else:
            self._complete(queue, _made(completion, TxCompletionType.MISS, tag))
        again = _made(completion, TxCompletionType.REINJECTION, tag)
        if fault.delay is not None and not self._complete_in(fault.delay, queue, again):
            self._complete(queue, again)

    def _report(self, faults: Sequence[Injection], queue: int, completion: Word) -> None:
        """Descriptors are fetched: is that written now or later? What is written stands for all before."""
        life = self._nic.lives[f"tx{queue}"]
        for injection in faults:
            fault = injection.fault
            if isinstance(fault, TxReportLate) and injection.hit(queue=f"tx{queue}", head=_value(completion)):
                waits = queue in self._reports
                if waits or self._late.call(fault.delay, partial(self._report_late, queue)):
                    self._reports[queue] = life, completion
                    return
        self._reports.pop(queue, None)
        self._write(faults, queue, completion)

    def _report_late(self, queue: int) -> None:
        life, completion = self._reports.pop(queue, (0, None))
        if completion is None:
            return
        held = self._held.get(queue)
        if held is not None and held[0] == life:
            held[1].append(completion)
        else:
            self._complete_late(queue, life, completion)

    def _write(self, faults: Sequence[Injection], queue: int, completion: Word) -> None:
        """Write a completion, or have it wait for the rest of its line."""
        life = self._nic.lives[f"tx{queue}"]
        held = self._held.get(queue)
        if held is not None and held[0] != life:
            held = None
        for injection in faults:
            fault = injection.fault
            if (
                isinstance(fault, TxHold)
                and held is None
                and not self._nic.gqi
                and injection.hit(queue=f"tx{queue}")
                and self._late.call(fault.delay, partial(self._release_late, queue))
            ):
                held = self._held[queue] = life, []
        if held is None:
            self._complete(queue, completion)
            return
        held[1].append(completion)
        if (int(self._nic.state.tx[queue]["completion_index"]) + len(held[1])) % _PER_LINE == 0:
            del self._held[queue]
            for one in held[1]:
                self._complete(queue, one)

    def _release_late(self, queue: int) -> None:
        life, completions = self._held.pop(queue, (0, []))
        for one in completions:
            self._complete_late(queue, life, one)

    def _complete_in(self, delay: float, queue: int, completion: Word) -> bool:
        """Have a completion written in `delay` seconds, if the queue is still the same; False: too much waits."""
        life = self._nic.lives[f"tx{queue}"]
        return self._late.call(delay, partial(self._complete_late, queue, life, completion))

    def _complete_late(self, queue: int, life: int, completion: Word) -> None:
        if self._nic.lives[f"tx{queue}"] == life:
            index = 0 if self._nic.gqi else int(self._nic.state.tx[queue]["completion_index"])
            self._complete(queue, completion)
            self._late.tell("tx", queue, index)
            self._nic.go_on()

    def _complete(self, queue: int, completion: Word) -> None:
        """Write a completion: DQO the ring's next, GQI the count."""
        state = self._nic.state
        tx = state.tx[queue]
        if self._nic.gqi:
            address = int(tx["completion_ring"])
            host = host_address(state.memory_map, address, 4)
            if host:
                # A count that was late must not take back a later one.
                count = ctypes.c_uint32.from_address(host)
                done, known = (int.from_bytes(raw, "big") for raw in (completion.tobytes(), bytes(count)))
                if (done - known) & 0xFFFFFFFF < 1 << 31:
                    count.value = int(completion.view(np.uint32)[0])
        else:
            index = int(tx["completion_index"])
            word = (completion & ~_GENERATION) | np.uint64(int(tx["generation"]) << TX_COMPLETION.generation.shift)
            publish(state.memory_map, int(tx["completion_ring"]) + index * TX_COMPLETION.size, word, 0)
            tx["completion_index"] = (index + 1) % int(tx["completion_entries"])
            if tx["completion_index"] == 0:
                tx["generation"] ^= 1
        state.vectors[tx["vector"]]["pending"] = 1


def _type(completion: Word) -> int:
    return TX_COMPLETION.type.get(completion.tobytes())


def _value(completion: Word) -> int:
    """The tag, or the ring's head."""
    return TX_COMPLETION.tag_or_head.get(completion.tobytes())


def _made(completion: Word, kind: TxCompletionType, value: int) -> Word:
    """A completion as this one, but of another type and with another tag."""
    made = completion.copy()
    put(made, TX_COMPLETION.type, kind)
    put(made, TX_COMPLETION.tag_or_head, value)
    return made


def _is_report(word: Word) -> bool:
    """Whether it is a completion of descriptors."""
    return _type(word) == TxCompletionType.DESCRIPTOR
