"""Faults of transmit queues: completions that are late, missing, wrong, doubled, in another order; queues that stop."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from functools import partial
from typing import Any

from nicmodel.faults.detour import Shadow, host_address
from nicmodel.faults.edits import other_fields
from nicmodel.faults.fault import Injection, Late
from nicmodel.faults.kinds import DmaSlow, TxFault, TxField, TxLate, TxNever, TxOrder, TxTag
from nicmodel.faults.order import mixed
from nicmodel.idpf.descriptors import TX_COMPLETION, TxCompletionType
from nicmodel.idpf.device import Nic
from nicmodel.idpf.faults.kinds import TxStop
from nicmodel.idpf.state import State
from nicmodel.nic.egress import Transmit
from nicmodel.nic.state import Taken

_GENERATION = 1 << TX_COMPLETION.generation.shift
#: A tag that drivers do not give: Linux' go up to the number of its buffers, which is below.
_BEYOND = TX_COMPLETION.value.mask
_FIELDS = ("ring", "entries", "index", "generation")


class TransmitFaults:
    """Stands in front of a NIC's transmit path while there are such faults."""

    kinds = (TxLate, TxNever, TxTag, TxField, TxOrder, TxStop, DmaSlow)

    def __init__(self, nic: Nic) -> None:
        self._nic = nic
        self._shadow = Shadow()
        self._active: Sequence[Injection] = ()
        self._late = Late(nic)
        #: Queues that have stopped, in which of their lives.
        self._stopped: dict[int, int] = {}

    def update(self, active: Sequence[Injection]) -> None:
        """These faults are at work from now on."""
        self._active = active
        self._nic.egress.detour = self._transmit if active else None
        if self._stopped and not any(isinstance(one.fault, TxStop) for one in active):
            stopped, self._stopped = self._stopped, {}
            for queue in stopped:
                self._nic.go_on(queue)

    def _transmit(self, transmit: Transmit[State], state: State, queue: int, *batch: Any) -> int:
        """Do what `nicmodel.idpf.transmit_split.transmit_split` does, with the faults."""
        faults = [
            one
            for one in self._active
            if isinstance(one.fault, DmaSlow) or (isinstance(one.fault, TxFault) and one.fault.queue in (None, queue))
        ]
        if self._stops(faults, queue):
            return Taken.ALL
        tx = state.tx[queue]
        theirs = state.completion_queues[int(tx["completions"])]
        vector = state.vectors[tx["vector"]]
        pending = int(vector["pending"])
        before = {name: int(theirs[name]) for name in _FIELDS}
        # Each descriptor may be completed, and each packet, of which there are no more.
        size, entries = int(theirs["size"]), 2 * int(tx["entries"])
        shadowed, [(address, shadow)] = self._shadow.room(state, [entries * size])
        theirs["ring"], theirs["entries"], theirs["index"] = address, entries, 0
        try:
            taken = transmit(shadowed, queue, *batch)
            written = int(theirs["index"])
        finally:
            for name, value in before.items():
                theirs[name] = value
        vector["pending"] = pending
        completions = shadow[: written * size].view(f"<u{size}").tolist()
        for injection in faults:
            # In queue scheduling mode a completion says how far the ring is done.
            mixes = isinstance(injection.fault, TxOrder) and tx["flow"] and len(completions) > 1
            if mixes and injection.hit(queue=f"tx{queue}"):
                completions = mixed(injection, completions, _is_report)
        for word in completions:
            self._decide(faults, queue, word)
        return taken

    def _stops(self, faults: Sequence[Injection], queue: int) -> bool:
        """Whether the queue has stopped, or does so now."""
        life = self._nic.lives[f"tx{queue}"]
        if self._stopped.get(queue) == life:
            return True
        for injection in faults:
            if isinstance(injection.fault, TxStop) and injection.hit(queue=f"tx{queue}"):
                self._stopped[queue] = life
                return True
        return False

    def _edited(self, faults: Sequence[Injection], queue: int, word: int) -> int:
        """A completion with the fields that faults give it."""
        for fault in other_fields(faults, queue):
            field = TX_COMPLETION.fields[fault.field]
            word = word & ~(field.mask << field.shift) | (fault.value & field.mask) << field.shift
        return word

    def _decide(self, faults: Sequence[Injection], queue: int, word: int) -> None:
        """Something is done: is its completion written now, later, otherwise or never?"""
        word = self._edited(faults, queue, word)
        raw = word.to_bytes(TX_COMPLETION.size, "little")
        packet = TX_COMPLETION.type.get(raw) == TxCompletionType.PACKET
        details: dict[str, Any] = {"queue": f"tx{queue}", "value": TX_COMPLETION.value.get(raw)}
        for injection in faults:
            fault = injection.fault
            if isinstance(fault, DmaSlow):
                injection.strike(queue=f"tx{queue}", delay=fault.delay)
                if self._complete_in(fault.delay, queue, word):
                    return
            elif not packet:
                continue
            elif isinstance(fault, TxNever) and injection.hit(**details):
                return
            elif isinstance(fault, TxLate) and injection.hit(**details, delay=fault.delay):
                if self._complete_in(fault.delay, queue, word):
                    return
            elif isinstance(fault, TxTag) and self._nic.state.tx[queue]["flow"] and injection.hit(**details):
                if fault.which == "beyond":
                    word |= TX_COMPLETION.value.mask << TX_COMPLETION.value.shift
                else:
                    self._complete(queue, word)
        self._complete(queue, word)

    def _complete_in(self, delay: float, queue: int, word: int) -> bool:
        """Have a completion written in `delay` seconds, if the queue is still the same; False: too much waits."""
        life = self._nic.lives[f"tx{queue}"]
        return self._late.call(delay, partial(self._complete_late, queue, life, word))

    def _complete_late(self, queue: int, life: int, word: int) -> None:
        if self._nic.lives[f"tx{queue}"] == life:
            theirs = self._nic.state.completion_queues[int(self._nic.state.tx[queue]["completions"])]
            index = int(theirs["index"])
            self._complete(queue, word)
            self._late.tell("tx", queue, index)
            self._nic.go_on()

    def _complete(self, queue: int, word: int) -> None:
        """Write the next completion."""
        state = self._nic.state
        tx = state.tx[queue]
        theirs = state.completion_queues[int(tx["completions"])]
        size, index = int(theirs["size"]), int(theirs["index"])
        host = host_address(state.memory_map, int(theirs["ring"]) + index * size, size)
        if host:
            whole = (word & ~_GENERATION) | int(theirs["generation"]) * _GENERATION
            kind = ctypes.c_uint64 if size == TX_COMPLETION.size else ctypes.c_uint32
            kind.from_address(host).value = whole
        theirs["index"] = (index + 1) % int(theirs["entries"])
        if theirs["index"] == 0:
            theirs["generation"] ^= 1
        state.vectors["pending"][tx["vector"]] |= tx["cause"]


def _is_report(word: int) -> bool:
    """Whether it is a completion of descriptors."""
    return word >> TX_COMPLETION.type.shift & TX_COMPLETION.type.mask == TxCompletionType.DESCRIPTOR
