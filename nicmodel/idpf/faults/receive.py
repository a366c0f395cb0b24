"""Faults of receive queues: split, checksum verdict; completions that are late, doubled, wrong."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from nicmodel.faults.detour import Shadow, Words, get, publish, put
from nicmodel.faults.edits import Buffers, Edits
from nicmodel.faults.fault import Injection, Late
from nicmodel.faults.kinds import (
    DmaSlow,
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
)
from nicmodel.faults.receive import parts, queues_of, split_nothing
from nicmodel.idpf.descriptors import RX_BUFFER, RX_COMPLETION
from nicmodel.idpf.device import Nic
from nicmodel.idpf.faults.kinds import RxTwice
from nicmodel.idpf.state import State
from nicmodel.nic.ingress import Receive
from nicmodel.nic.state import Drop, Records

_SIZE = RX_COMPLETION.size
_EDITS = Edits(RX_COMPLETION)
#: What is done to a frame beforehand, so that it is received by itself.
_BEFOREHAND = (RxUnsplit, RxHeaderOverflow)


class _Completion(NamedTuple):
    """A completion on its way to a ring: of which queue, in which of its lives; where it goes, and its content."""

    queue: int
    life: int
    place: int
    address: int
    words: Words


class ReceiveFaults:
    """Stands in front of a NIC's receive path while there are such faults."""

    kinds = (
        RxUnsplit, RxSplitBeyond, RxHeaderOverflow, RxChecksum, RxLate, RxError, RxBufferId, RxTooLong, RxField,
        RxTwice,
        DmaSlow,
    )  # fmt: skip

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
        before = state.rx.copy(), state.small.copy()
        with self._shadow.completions(state, _SIZE) as (shadowed, shadows):
            run = parts(
                receive, shadowed, data, frames, now, oldest, limit, held_data, held_frames, held, outcomes
            )  # fmt: skip
            delivered = self._run(state, count, outcomes, run)
        for number, shadow in shadows.items():
            self._bring([records[number] for records in before], number, shadow, outcomes[:count])
        return delivered

    def _run(self, state: State, count: int, outcomes: Records, run: Callable[[int, int], int]) -> int:
        """Receive a batch; frames that something is done to beforehand go one by one."""
        first = delivered = 0
        for number in range(count):
            struck = [(one, one.fault) for one in self._active if isinstance(one.fault, _BEFOREHAND) and one.chance()]
            if not struck:
                continue
            delivered += run(first, number)
            first = number + 1
            saved = state.rx[["header_size", "rsc"]].copy()
            for _, fault in struck:
                split_nothing(state.rx, fault)
                # Linux counts segments by what is behind the header (idpf_rx_rsc), so without a split there is no RSC.
                state.rx["rsc"][queues_of(fault)] = 0
            delivered += run(number, number + 1)
            for name in saved.dtype.names or ():
                state.rx[name] = saved[name]
            outcome = outcomes[number]
            queue = int(outcome["queue"])
            if queue >= 0 and outcome["verdict"] == Drop.NONE and saved["header_size"][queue]:
                for injection, fault in struck:
                    if fault.queue in (None, queue):
                        injection.strike(queue=f"rx{queue}")
        return delivered + run(first, count)

    def _bring(self, before: Sequence[np.void], queue: int, shadow: Words, outcomes: Records) -> None:
        """Bring what was written to the shadow to the guest's ring, changed as the faults will have it.

        `before` is the queue with its first ring of buffers, and its second ring, when the batch began.
        """
        rx = self._nic.state.rx[queue]
        entries, first = int(rx["completion_entries"]), int(before[0]["completion_index"])
        count = (int(rx["completion_index"]) - first) % entries
        rx["completion_index"], rx["generation"] = before[0]["completion_index"], before[0]["generation"]
        taken = [0, 0]  # buffers of each ring
        packet: list[Words] = []
        last: Words | None = None
        moved: dict[int, int] = {}  # where completions are that were meant for another place
        for place in [(first + k) % entries for k in range(count)]:
            packet.append(shadow[place].copy())
            if not get(packet[-1], RX_COMPLETION.end_of_packet):
                continue
            ring = get(packet[0], RX_COMPLETION.buffer_queue)
            self._split_beyond(queue, packet[0], before[ring], taken[ring])
            taken[ring] += len(packet)
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

    def _split_beyond(self, queue: int, completion: Words, ring: np.void, number: int) -> None:
        """Have a header be split off too late; its buffer is behind `number` others of a ring as it was."""
        if get(completion, RX_COMPLETION.rsc):
            return  # Linux counts segments by what is behind the header
        place, entries, head = (int(ring[name]) for name in ("buffer_ring", "buffer_entries", "buffer_head"))
        buffers = Buffers(self._nic.state.memory_map, RX_BUFFER, place, entries, head)
        room = int(self._nic.state.rx[queue]["header_size"])
        for injection in self._active:
            fault = injection.fault
            if isinstance(fault, RxSplitBeyond) and fault.queue in (None, queue):
                _EDITS.split_beyond(injection, queue, completion, buffers, number, room, fault.extra)

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
            elif isinstance(fault, RxChecksum):
                _EDITS.verdict(injection, queue, packet, fault.verdict)
            elif isinstance(fault, RxError):
                _EDITS.fail(injection, queue, packet)
            elif isinstance(fault, RxTooLong) and injection.hit(queue=name):
                small = get(packet[0], RX_COMPLETION.buffer_queue)
                ring = self._nic.state.small[queue] if small else self._nic.state.rx[queue]
                put(packet[0], RX_COMPLETION.packet_length, int(ring["buffer_size"]) + 1)
            elif isinstance(fault, RxBufferId):
                _EDITS.rename(injection, queue, packet, last, fault)
            elif isinstance(fault, RxField):
                _EDITS.set_field(injection, queue, packet, fault)
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
