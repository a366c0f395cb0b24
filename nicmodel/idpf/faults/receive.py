"""Faults of receive queues: completions that are late, doubled, wrong."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from nicmodel.faults.detour import Shadow, Words, get, publish, put
from nicmodel.faults.fault import Injection, Late
from nicmodel.faults.kinds import DmaSlow, RxBufferId, RxError, RxFault, RxLate, RxTooLong
from nicmodel.idpf.descriptors import RX_COMPLETION
from nicmodel.idpf.device import Nic
from nicmodel.idpf.faults.kinds import RxTwice
from nicmodel.idpf.state import State
from nicmodel.nic.ingress import Receive
from nicmodel.nic.state import Records

_SIZE = RX_COMPLETION.size


class _Completion(NamedTuple):
    """A completion on its way to a ring: of which queue, in which of its lives; where it goes, and its content."""

    queue: int
    life: int
    place: int
    address: int
    words: Words


class ReceiveFaults:
    """Stands in front of a NIC's receive path while there are such faults."""

    kinds = (RxLate, RxError, RxBufferId, RxTooLong, RxTwice, DmaSlow)

    def __init__(self, nic: Nic) -> None:
        self._nic = nic
        self._shadow = Shadow()
        self._active: Sequence[Injection] = ()
        self._late = Late(nic)

    def update(self, active: Sequence[Injection]) -> None:
        """These faults are at work from now on."""
        self._active = active
        self._nic.ingress.detour = self._receive if active else None

    def _receive(
        self, receive: Receive[State], state: State, data: npt.NDArray[np.uint8], frames: Records, count: int,
        now: int, oldest: int, limit: int, held_data: npt.NDArray[np.uint8], held_frames: Records,
        held: npt.NDArray[np.int64], outcomes: Records,
    ) -> int:  # fmt: skip
        """Do what `nicmodel.idpf.receive_split.receive_split` does, with the faults."""
        before = state.rx.copy()
        with self._shadow.completions(state, _SIZE) as (shadowed, shadows):
            delivered = receive(
                shadowed, data, frames, count, now, oldest, limit, held_data, held_frames, held, outcomes
            )  # fmt: skip
        for number, shadow in shadows.items():
            self._bring(before[number], number, shadow, outcomes[:count])
        return delivered

    def _bring(self, before: np.void, queue: int, shadow: Words, outcomes: Records) -> None:
        """Bring what was written to the shadow to the guest's ring, changed as the faults will have it."""
        rx = self._nic.state.rx[queue]
        entries, first = int(rx["completion_entries"]), int(before["completion_index"])
        count = (int(rx["completion_index"]) - first) % entries
        rx["completion_index"], rx["generation"] = before["completion_index"], before["generation"]
        packet: list[Words] = []
        last: Words | None = None
        moved: dict[int, int] = {}  # where completions are that were meant for another place
        for place in [(first + k) % entries for k in range(count)]:
            packet.append(shadow[place].copy())
            if not get(packet[-1], RX_COMPLETION.end_of_packet):
                continue
            delay, twice = self._change(queue, packet, last)
            last = packet[-1]
            begin = (place - len(packet) + 1) % entries
            for k, words in enumerate([*packet, *([packet[-1].copy()] if twice else [])]):
                if k < len(packet):
                    moved[(begin + k) % entries] = int(rx["completion_index"])
                self._write(queue, words, delay)
            packet = []
        for outcome in outcomes[(outcomes["queue"] == queue) & (outcomes["completions"] > 0)]:
            outcome["completion"] = moved.get(int(outcome["completion"]), int(outcome["completion"]))

    def _change(self, queue: int, packet: list[Words], last: Words | None) -> tuple[float | None, bool]:
        """Change what a packet's completions say; `last` is the one before them in the batch.

        Returns:
            How many seconds they come late, None: not at all; and whether the last of them comes twice.
        """
        delay, twice = None, False
        name = f"rx{queue}"
        for injection in self._active:
            fault = injection.fault
            if isinstance(fault, DmaSlow):
                injection.strike(queue=name, delay=fault.delay)
                delay = fault.delay
            elif not isinstance(fault, RxFault) or fault.queue not in (None, queue):
                continue
            elif isinstance(fault, RxLate) and injection.hit(queue=name, delay=fault.delay):
                delay = fault.delay
            elif isinstance(fault, RxTwice):
                twice |= injection.hit(queue=name)
            elif isinstance(fault, RxError) and injection.hit(queue=name):
                put(packet[-1], RX_COMPLETION.rx_error, 1)
            elif isinstance(fault, RxTooLong) and injection.hit(queue=name):
                small = get(packet[0], RX_COMPLETION.buffer_queue)
                ring = self._nic.state.small[queue] if small else self._nic.state.rx[queue]
                put(packet[0], RX_COMPLETION.packet_length, int(ring["buffer_size"]) + 1)
            elif isinstance(fault, RxBufferId):
                other = RX_COMPLETION.buffer_id.mask if fault.which == "beyond" else None
                if other is None and last is not None:
                    other = get(last, RX_COMPLETION.buffer_id)
                if other is not None and injection.hit(queue=name, buffer_id=other):
                    put(packet[0], RX_COMPLETION.buffer_id, other)
        return delay, twice

    def _write(self, queue: int, words: Words, delay: float | None) -> None:
        """Write a queue's next completion, or keep its place for it and write it later."""
        rx = self._nic.state.rx[queue]
        place = int(rx["completion_index"])
        put(words, RX_COMPLETION.generation, int(rx["generation"]))
        rx["completion_index"] = (place + 1) % int(rx["completion_entries"])
        if rx["completion_index"] == 0:
            rx["generation"] ^= 1
        address = int(rx["completion_ring"]) + place * _SIZE
        one = _Completion(queue, self._nic.lives[f"rx{queue}"], place, address, words)
        if delay is None or not self._late.call(delay, partial(self._publish_late, one)):
            self._publish(one)

    def _publish(self, one: _Completion) -> None:
        state = self._nic.state
        publish(state.memory_map, one.address, one.words, 0)
        rx = state.rx[one.queue]
        state.vectors["pending"][rx["vector"]] |= rx["cause"]

    def _publish_late(self, one: _Completion) -> None:
        if self._nic.lives[f"rx{one.queue}"] != one.life:
            return
        self._publish(one)
        self._late.tell("rx", one.queue, one.place)
        self._nic.go_on()
