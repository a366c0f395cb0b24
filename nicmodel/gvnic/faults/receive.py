"""Faults of receive queues: split, checksum verdict, buffers, completions that are late."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import numpy.typing as npt

from nicmodel.faults.detour import Shadow, host_address, publish
from nicmodel.faults.fault import Injection, Late
from nicmodel.faults.kinds import (
    DmaSlow,
    RxChecksum,
    RxFault,
    RxHeaderOverflow,
    RxLate,
    RxSplitBeyond,
    RxStarve,
    RxUnsplit,
)
from nicmodel.gvnic.descriptors import GQI_RX_DESCRIPTOR, RX_BUFFER, RX_COMPLETION
from nicmodel.gvnic.device import Nic
from nicmodel.gvnic.state import State
from nicmodel.nic import events
from nicmodel.nic.ingress import Receive
from nicmodel.nic.layout import Bits
from nicmodel.nic.state import Drop, Records

#: How soon a frame that was starved of buffers tries again, ns.
_RETRY_NS = 1_000_000

Words = npt.NDArray[np.uint64]


class ReceiveFaults:
    """Stands in front of a NIC's receive path while there are such faults."""

    kinds = (RxUnsplit, RxSplitBeyond, RxHeaderOverflow, RxChecksum, RxStarve, RxLate, DmaSlow)

    def __init__(self, nic: Nic) -> None:
        self._nic = nic
        self._shadow = Shadow()
        self._active: Sequence[Injection] = ()
        self._late = Late(nic)
        self._starved = False

    def update(self, active: Sequence[Injection]) -> None:
        """These faults are at work from now on."""
        self._active = active
        self._nic.ingress.detour = self._receive if active else None
        if self._starved and not any(isinstance(one.fault, RxStarve) for one in active):
            self._try_again()

    def _receive(
        self, receive: Receive[State], state: State, data: npt.NDArray[np.uint8], frames: Records, count: int,
        now: int, oldest: int, limit: int, held_data: npt.NDArray[np.uint8], held_frames: Records,
        held: npt.NDArray[np.int64], outcomes: Records,
    ) -> int:  # fmt: skip
        """Do what a loop such as `nicmodel.gvnic.receive_dqo.receive_dqo` does, with the faults."""
        rx = state.rx
        numbers = np.flatnonzero(rx["active"]).tolist()
        size = GQI_RX_DESCRIPTOR.itemsize if self._nic.gqi else RX_COMPLETION.size
        before = rx.copy()
        pending = state.vectors["pending"].copy()
        shadowed, rooms = self._shadow.room(state, [int(rx[number]["completion_entries"]) * size for number in numbers])
        shadows: dict[int, Words] = {}
        for number, (address, room) in zip(numbers, rooms, strict=True):
            rx["completion_ring"][number] = address
            shadows[number] = room.view(np.uint64).reshape(-1, size // 8)

        def run(first: int, last: int) -> int:
            """Receive a part of the batch."""
            if first == last:
                return 0
            part = outcomes[first:last]
            delivered = receive(
                shadowed, data, frames[first:last], last - first, now, oldest, limit, held_data, held_frames, held, part
            )
            part["next"][part["next"] >= 0] += first
            return delivered

        try:
            delivered = self._run(state, frames[:count], outcomes, run)
        finally:
            rx["completion_ring"] = before["completion_ring"]
        state.vectors["pending"] = pending
        late = self._look_at(before, outcomes[:count], shadows)
        for number in numbers:
            self._copy(before[number], number, shadows[number], late)
        return delivered

    def _run(self, state: State, frames: Records, outcomes: Records, run: Callable[[int, int], int]) -> int:
        """Receive a batch; frames that something is done to beforehand go one by one."""
        first = delivered = 0
        for number in range(len(frames)):
            struck = [
                one
                for one in self._active
                if isinstance(one.fault, (RxUnsplit, RxHeaderOverflow, RxStarve)) and one.chance()
            ]
            if not struck:
                continue
            delivered += run(first, number)
            first = number + 1
            saved = state.rx[["header_size", "buffer_tail"]].copy()
            for injection in struck:
                assert isinstance(injection.fault, RxFault)
                queues = slice(None) if injection.fault.queue is None else injection.fault.queue
                if isinstance(injection.fault, RxStarve):
                    state.rx["buffer_tail"][queues] = state.rx["buffer_head"][queues]
                else:
                    split = state.rx["header_size"][queues] > 0
                    too_small = 1 if isinstance(injection.fault, RxHeaderOverflow) else 0
                    state.rx["header_size"][queues] = np.where(split, too_small, 0)
            delivered += run(number, number + 1)
            for name in ("header_size", "buffer_tail"):
                state.rx[name] = saved[name]
            for injection in struck:
                self._settle(injection, frames[number], outcomes[number])
        return delivered + run(first, len(frames))

    def _settle(self, injection: Injection, frame: np.void, outcome: np.void) -> None:
        """Count a fault if the frame was one that it is about."""
        fault, queue = injection.fault, int(outcome["queue"])
        assert isinstance(fault, RxFault)
        if queue < 0 or fault.queue not in (None, queue):
            return
        verdict = outcome["verdict"]
        if isinstance(fault, RxStarve):
            if verdict in (Drop.HELD, Drop.NO_BUFFERS):
                if not frame["time"]:  # it has not been here before
                    injection.strike(queue=f"rx{queue}")
                if not self._starved:
                    self._starved = True
                    self._nic.poller.call_at(self._nic.clock() + _RETRY_NS, self._try_again)
        elif verdict == Drop.NONE and self._nic.state.rx[queue]["header_size"]:
            injection.strike(queue=f"rx{queue}")

    def _try_again(self) -> None:
        self._starved = False
        self._nic.go_on()

    def _look_at(self, before: Records, outcomes: Records, shadows: dict[int, Words]) -> dict[tuple[int, int], float]:
        """Change completions that a fault is about.

        Returns:
            Those that are to be late: queue and index, and by how many seconds.
        """
        late: dict[tuple[int, int], float] = {}
        for outcome in outcomes:
            queue, first, count = int(outcome["queue"]), int(outcome["completion"]), int(outcome["completions"])
            if not count:
                continue
            entries = int(before[queue]["completion_entries"])
            places = [(first + k) % entries for k in range(count)]
            completions = shadows[queue]
            for injection in self._active:
                fault = injection.fault
                if isinstance(fault, DmaSlow):
                    injection.strike(queue=f"rx{queue}", delay=fault.delay)
                    late |= {(queue, place): fault.delay for place in places}
                if not isinstance(fault, RxFault) or fault.queue not in (None, queue):
                    continue
                if isinstance(fault, RxLate) and injection.hit(queue=f"rx{queue}", delay=fault.delay):
                    late |= {(queue, place): fault.delay for place in places}
                if self._nic.gqi:
                    continue
                if isinstance(fault, RxChecksum):
                    self._judge(injection, fault, queue, completions, places)
                elif isinstance(fault, RxSplitBeyond):
                    done = (first - int(before[queue]["completion_index"])) % entries
                    buffer = (int(before[queue]["buffer_head"]) + done) % int(before[queue]["buffer_entries"])
                    self._split_beyond(injection, fault, queue, completions[first], buffer)
        return late

    def _judge(
        self, injection: Injection, fault: RxChecksum, queue: int, completions: Words, places: list[int]
    ) -> None:  # fmt: skip
        """Turn a checksum's verdict round."""
        errors = (RX_COMPLETION.ip_checksum_error, RX_COMPLETION.l4_checksum_error)
        # What is merged has been verified before: it is never bad, and its header holds no whole checksum any more.
        looked = _get(completions[places[0]], RX_COMPLETION.l3_l4_processed) and not _get(
            completions[places[0]], RX_COMPLETION.rsc
        )
        is_bad = any(_get(completions[places[0]], bit) for bit in errors)
        if looked and is_bad == (fault.verdict == "good") and injection.hit(queue=f"rx{queue}"):
            for place in places:
                _set(completions[place], errors[0], 0)
                _set(completions[place], errors[1], int(not is_bad))

    def _split_beyond(
        self, injection: Injection, fault: RxSplitBeyond, queue: int, completion: Words, buffer: int
    ) -> None:  # fmt: skip
        """Move the payload's first bytes from the data buffer to the end of the header."""
        rx = self._nic.state.rx[queue]
        header, payload = (_get(completion, RX_COMPLETION.fields[name]) for name in ("header_length", "packet_length"))
        extra = min(fault.extra, payload, int(rx["header_size"]) - header)
        if not _get(completion, RX_COMPLETION.split_header) or extra <= 0 or not injection.chance():
            return
        regions = self._nic.state.memory_map
        descriptor = host_address(regions, int(rx["buffer_ring"]) + buffer * RX_BUFFER.size, RX_BUFFER.size)
        if not descriptor:
            return
        raw = ctypes.string_at(descriptor, RX_BUFFER.size)
        data = host_address(regions, RX_BUFFER.buffer_address.get(raw), payload)
        target = host_address(regions, RX_BUFFER.header_address.get(raw), header + extra)
        if data and target:
            ctypes.memmove(target + header, data, extra)
            ctypes.memmove(data, data + extra, payload - extra)
            _set(completion, RX_COMPLETION.header_length, header + extra)
            _set(completion, RX_COMPLETION.packet_length, payload - extra)
            injection.strike(queue=f"rx{queue}", extra=extra)

    def _copy(self, before: np.void, queue: int, completions: Words, late: dict[tuple[int, int], float]) -> None:
        """Bring what was written to the shadow to the guest's ring, or have it brought later."""
        rx = self._nic.state.rx[queue]
        entries = int(rx["completion_entries"])
        position = "buffer_head" if self._nic.gqi else "completion_index"
        first = int(before[position])
        # Each buffer has a completion, and only of buffers it is known that there are not more than a ring's.
        count = (int(rx["buffer_head"]) - int(before["buffer_head"])) % int(rx["positions"])
        for place in range(first, first + count):
            place %= entries
            ring = int(rx["completion_ring"])
            words = completions[place].copy()
            life = self._nic.lives[f"rx{queue}"]
            delay = late.get((queue, place))
            if delay is None or not self._late.call(
                delay, partial(self._publish_late, queue, life, ring, place, words)
            ):
                self._publish(queue, ring, place, words)

    def _publish(self, queue: int, ring: int, place: int, words: Words) -> None:
        # The word that says that the completion is there: DQO the first, GQI the last.
        last = len(words) - 1 if self._nic.gqi else 0
        state = self._nic.state
        publish(state.memory_map, ring + place * words.nbytes, words, last)
        state.vectors["pending"][state.rx[queue]["vector"]] = 1

    def _publish_late(self, queue: int, life: int, ring: int, place: int, words: Words) -> None:
        if self._nic.lives[f"rx{queue}"] == life:
            self._publish(queue, ring, place, words)
            if self._nic.diagnostics.observers:
                with self._nic.diagnostics.surviving("observer"):
                    self._nic.diagnostics.tell(events.CompletedLate("rx", queue, place))
            self._nic.go_on()


def _get(completion: Words, field: Bits) -> int:
    return int(completion[field.word]) >> field.shift & field.mask


def _set(completion: Words, field: Bits, value: int) -> None:
    rest = int(completion[field.word]) & ~(field.mask << field.shift)
    completion[field.word] = rest | value << field.shift
