"""Faults of transmit queues: completions late and never; descriptors that are fetched late."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from nicmodel.faults.detour import Shadow, host_address, publish
from nicmodel.faults.fault import Injection, Late
from nicmodel.faults.kinds import DmaSlow, TxFault, TxLate, TxNever
from nicmodel.gvnic.descriptors import TX_COMPLETION, TxCompletionType
from nicmodel.gvnic.device import Nic
from nicmodel.gvnic.state import State
from nicmodel.nic import events
from nicmodel.nic.egress import Transmit
from nicmodel.nic.state import Taken

_GENERATION = np.uint64(1 << TX_COMPLETION.generation.shift)


class TransmitFaults:
    """Stands in front of a NIC's transmit path while there are such faults."""

    kinds = (TxLate, TxNever, DmaSlow)

    def __init__(self, nic: Nic) -> None:
        self._nic = nic
        self._shadow = Shadow()
        self._active: Sequence[Injection] = ()
        self._late = Late(nic)
        # Queues whose descriptors are being fetched from slow memory, and those whose are there.
        self._fetching: set[int] = set()
        self._fetched: set[int] = set()

    def update(self, active: Sequence[Injection]) -> None:
        """These faults are at work from now on."""
        self._active = active
        self._nic.egress.detour = self._transmit if active else None

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
        tx = state.tx[queue]
        vector = state.vectors[tx["vector"]]
        pending = int(vector["pending"])
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
        if self._nic.gqi:
            if head != before["head"]:
                self._decide(faults, queue, shadow[:4].copy())
        else:
            for word in words[:written].tolist():
                if TX_COMPLETION.type.get(word.to_bytes(8, "little")) == TxCompletionType.PACKET:
                    self._decide(faults, queue, np.array([word], np.uint64))
                else:
                    self._complete(queue, np.array([word], np.uint64))
        return taken

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

    def _decide(self, faults: Sequence[Injection], queue: int, completion: npt.NDArray[Any]) -> None:
        """One packet is sent: is its completion written now, later or never?"""
        details: dict[str, Any] = {"queue": f"tx{queue}"}
        if not self._nic.gqi:
            details["tag"] = TX_COMPLETION.tag_or_head.get(completion.tobytes())
        for injection in faults:
            if isinstance(injection.fault, TxNever) and injection.hit(**details):
                return
            if isinstance(injection.fault, TxLate) and injection.hit(**details, delay=injection.fault.delay):
                life = self._nic.lives[f"tx{queue}"]
                if self._late.call(injection.fault.delay, partial(self._complete_late, queue, life, completion)):
                    return
        self._complete(queue, completion)

    def _complete_late(self, queue: int, life: int, completion: npt.NDArray[Any]) -> None:
        if self._nic.lives[f"tx{queue}"] == life:
            index = 0 if self._nic.gqi else int(self._nic.state.tx[queue]["completion_index"])
            self._complete(queue, completion)
            if self._nic.diagnostics.observers:
                with self._nic.diagnostics.surviving("observer"):
                    self._nic.diagnostics.tell(events.CompletedLate("tx", queue, index))
            self._nic.go_on()

    def _complete(self, queue: int, completion: npt.NDArray[Any]) -> None:
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
