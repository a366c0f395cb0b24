"""Faults of receive queues: split, checksum verdict, buffers, aggregates; completions that are late, held or wrong."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from nicmodel.faults.detour import Shadow, Words, get, publish
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
    RxStarve,
    RxTooLong,
    RxUnsplit,
)
from nicmodel.faults.receive import parts, queues_of, split_nothing
from nicmodel.gvnic.descriptors import GQI_RX_DESCRIPTOR, RX_BUFFER, RX_COMPLETION, GqiRxFlag
from nicmodel.gvnic.device import Nic
from nicmodel.gvnic.faults.admin import jumped
from nicmodel.gvnic.faults.kinds import (
    ClockJump,
    IrqEarly,
    RxCut,
    RxExAdd,
    RxHold,
    RxNoTimestamp,
    RxScatter,
    RxSpread,
    RxUnfinished,
    RxUnverified,
)
from nicmodel.gvnic.state import State
from nicmodel.nic.ingress import Receive
from nicmodel.nic.state import Drop, Records
from nicmodel.packet.frames import Gso

#: How soon a frame that was starved of buffers tries again, ns.
_RETRY_NS = 1_000_000
#: Bytes that devices write at once, and completions in them.
_LINE = 128
_PER_LINE = _LINE // RX_COMPLETION.size
#: Least bytes of a buffer that is not filled: headers are whole in the first (gve_rx_complete_rsc).
_LEAST = 256

#: What is done to a frame beforehand, so that it is received by itself.
_BEFOREHAND = (RxUnsplit, RxHeaderOverflow, RxStarve, RxSpread)


_EDITS = Edits(RX_COMPLETION)


class _Completion(NamedTuple):
    """A completion on its way to a ring: of which queue, in which of its lives; the ring's address; index, content."""

    queue: int
    life: int
    ring: int
    place: int
    words: Words


class ReceiveFaults:
    """Stands in front of a NIC's receive path while there are such faults."""

    kinds = (
        RxUnsplit, RxSplitBeyond, RxHeaderOverflow, RxChecksum, RxStarve, RxLate, DmaSlow, RxSpread, RxScatter, RxCut,
        RxUnverified, RxNoTimestamp, RxHold, RxError, RxExAdd, RxBufferId, RxTooLong, RxField, RxUnfinished,
        IrqEarly, ClockJump,
    )  # fmt: skip

    def __init__(self, nic: Nic) -> None:
        self._nic = nic
        self._shadow = Shadow()
        self._active: Sequence[Injection] = ()
        self._late = Late(nic)
        self._starved = False
        # Completions that wait for the rest of their line, by queue.
        self._held: dict[int, list[_Completion]] = {}

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
        size = GQI_RX_DESCRIPTOR.itemsize if self._nic.gqi else RX_COMPLETION.size
        before = state.rx.copy()
        with self._shadow.completions(state, size) as (shadowed, shadows):
            run = parts(
                receive, shadowed, data, frames, now, oldest, limit, held_data, held_frames, held, outcomes
            )  # fmt: skip
            delivered = self._run(state, frames[:count], outcomes, run)
        late, together = self._look_at(before, outcomes[:count], shadows)
        for number, shadow in shadows.items():
            self._copy(before[number], number, shadow, late, together)
        return delivered

    def _run(self, state: State, frames: Records, outcomes: Records, run: Callable[[int, int], int]) -> int:
        """Receive a batch; frames that something is done to beforehand go one by one."""
        first = delivered = 0
        for number in range(len(frames)):
            struck = [one for one in self._active if isinstance(one.fault, _BEFOREHAND) and one.chance()]
            cuts = any(self._cuts(one, state, frames, number) for one in self._active if isinstance(one.fault, RxCut))
            if cuts and not struck and frames[number]["gso"] == Gso.NONE:  # it may begin another aggregate
                delivered += run(first, number)
                first = number
                continue
            if not struck and not cuts:
                continue
            delivered += run(first, number)
            first = number + 1
            saved = state.rx[["header_size", "buffer_tail", "buffer_size", "rsc"]].copy()
            for injection in struck:
                self._prepare(injection, state, frames[number])
            if cuts:
                state.rx["rsc"] = 0
            delivered += run(number, number + 1)
            for name in saved.dtype.names or ():
                state.rx[name] = saved[name]
            for injection in struck:
                self._settle(injection, frames[number], outcomes[number])
        return delivered + run(first, len(frames))

    def _cuts(self, injection: Injection, state: State, frames: Records, number: int) -> bool:
        """Whether aggregates end before this frame, or it is one that is taken apart."""
        fault = injection.fault
        assert isinstance(fault, RxFault)
        queues = queues_of(fault)
        whole = frames[number]["gso"] != Gso.NONE
        merges = whole or (number > 0 and state.rx["coalesce"][queues].any())
        return bool(merges and state.rx["rsc"][queues].any()) and injection.hit()

    def _prepare(self, injection: Injection, state: State, frame: np.void) -> None:
        """Set the queues up as the fault would have it for this frame."""
        fault, rx = injection.fault, state.rx
        assert isinstance(fault, RxFault)
        queues = queues_of(fault)
        if isinstance(fault, RxStarve):
            rx["buffer_tail"][queues] = rx["buffer_head"][queues]
        elif isinstance(fault, RxSpread):
            length = int(frame["length"])
            for queue in np.flatnonzero(rx["active"][queues]).tolist():
                queue += queues.start or 0
                size = int(rx["buffer_size"][queue])
                most = min(fault.most, length // _LEAST)
                # What is cut into segments makes packets of which some fit a buffer.
                whole = frame["gso"] == Gso.NONE or rx["rsc"][queue]
                needed = math.ceil((length - int(rx["header_size"][queue])) / size)
                if whole and 1 < needed < most and not self._nic.gqi:
                    rx["buffer_size"][queue] = math.ceil(length / injection.random.randint(needed + 1, most))
        else:
            split_nothing(rx, fault)

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
        elif isinstance(fault, RxSpread):
            buffers, size = int(outcome["completions"]), int(self._nic.state.rx[queue]["buffer_size"])
            if verdict == Drop.NONE and buffers > math.ceil(int(frame["length"]) / size) and frame["length"] > size:
                injection.strike(queue=f"rx{queue}", buffers=buffers)
        elif verdict == Drop.NONE and self._nic.state.rx[queue]["header_size"]:
            injection.strike(queue=f"rx{queue}")

    def _try_again(self) -> None:
        self._starved = False
        self._nic.go_on()

    def _look_at(
        self, before: Records, outcomes: Records, shadows: dict[int, Words]
    ) -> tuple[dict[tuple[int, int], float], dict[tuple[int, int], float]]:
        """Change completions that a fault is about.

        Returns:
            Those that are to be late, queue and index, and by how many seconds; and those that wait for the rest of
            their line, and how many seconds at most.
        """
        late: dict[tuple[int, int], float] = {}
        held: dict[tuple[int, int], float] = {}
        seen: set[tuple[int, int]] = set()  # frames that were merged have completions in common
        for outcome in outcomes:
            queue, first, count = int(outcome["queue"]), int(outcome["completion"]), int(outcome["completions"])
            if not count or (queue, first) in seen:
                continue
            seen.add((queue, first))
            entries = int(before[queue]["completion_entries"])
            places = [(first + k) % entries for k in range(count)]
            packet = [shadows[queue][place] for place in places]
            done = (first - int(before[queue]["completion_index"])) % entries
            for injection in self._active:
                fault = injection.fault
                if isinstance(fault, DmaSlow):
                    injection.strike(queue=f"rx{queue}", delay=fault.delay)
                    late |= {(queue, place): fault.delay for place in places}
                if isinstance(fault, ClockJump) and not self._nic.gqi:
                    _EDITS.shift_time(packet, jumped([injection]))
                if not isinstance(fault, RxFault) or fault.queue not in (None, queue):
                    continue
                if isinstance(fault, RxLate) and injection.hit(queue=f"rx{queue}", delay=fault.delay):
                    late |= {(queue, place): fault.delay for place in places}
                elif isinstance(fault, RxTooLong) and self._nic.gqi:
                    _lengthen(injection, queue, packet[0], int(before[queue]["buffer_size"]))
                elif isinstance(fault, RxError) and self._nic.gqi:
                    _flag(injection, queue, packet[-1], GqiRxFlag.ERROR)
                elif isinstance(fault, RxUnfinished) and self._nic.gqi:
                    _flag(injection, queue, packet[-1], GqiRxFlag.CONTINUES)
                elif self._nic.gqi:
                    continue
                elif isinstance(fault, IrqEarly) and injection.hit(queue=f"rx{queue}", delay=fault.delay):
                    late |= {(queue, place): fault.delay for place in places}
                    self._nic.state.vectors["pending"][before[queue]["vector"]] = 1
                elif isinstance(fault, RxHold) and injection.hit(queue=f"rx{queue}"):
                    held |= {(queue, place): fault.delay for place in places}
                elif isinstance(fault, RxSplitBeyond):
                    room = int(self._nic.state.rx[queue]["header_size"])
                    buffers = self._buffers(before[queue])
                    _EDITS.split_beyond(injection, queue, packet[0], buffers, done, room, fault.extra)
                else:
                    last = shadows[queue][(first - 1) % entries] if done else None
                    self._edit(injection, queue, packet, last)
        for injection in self._active:
            if isinstance(injection.fault, RxScatter) and not self._nic.gqi:
                self._scatter(injection, before, shadows)
        return late, held

    def _edit(self, injection: Injection, queue: int, packet: Sequence[Words], last: Words | None) -> None:
        """Change what a packet's completions say; `last` is the one before them in the batch."""
        fault = injection.fault
        if isinstance(fault, RxChecksum):
            _EDITS.verdict(injection, queue, packet, fault.verdict)
        elif isinstance(fault, RxUnverified) and not get(packet[-1], RX_COMPLETION.rsc):
            _EDITS.flag(injection, queue, packet, RX_COMPLETION.l3_l4_processed, 0)
        elif isinstance(fault, RxNoTimestamp):
            _EDITS.flag(injection, queue, packet, RX_COMPLETION.timestamp_valid, 0)
        elif isinstance(fault, RxExAdd):
            _EDITS.flag(injection, queue, packet, RX_COMPLETION.ipv6_ex_add, 1)
        elif isinstance(fault, RxError):
            _EDITS.fail(injection, queue, packet)
        elif isinstance(fault, RxBufferId):
            _EDITS.rename(injection, queue, packet, last, fault)
        elif isinstance(fault, RxField):
            _EDITS.set_field(injection, queue, packet, fault)

    def _scatter(self, injection: Injection, before: Records, shadows: dict[int, Words]) -> None:
        fault, rx, profile = injection.fault, self._nic.state.rx, self._nic.profile
        assert isinstance(fault, RxFault)
        if profile.owners or profile.deferred_bytes or profile.ddp_flows:
            return  # these options of the model know of buffers by their places
        for queue, completions in shadows.items():
            entries = int(before[queue]["completion_entries"])
            first = int(before[queue]["completion_index"])
            count = (int(rx[queue]["buffer_head"]) - int(before[queue]["buffer_head"])) % int(rx[queue]["positions"])
            if fault.queue in (None, queue):
                written = [completions[(first + k) % entries] for k in range(count)]
                _EDITS.scatter(injection, queue, written, self._buffers(before[queue]))

    def _buffers(self, before: np.void) -> Buffers:
        """The buffers of a queue that a batch has used, which was as `before` when it began."""
        ring, entries, head = (int(before[name]) for name in ("buffer_ring", "buffer_entries", "buffer_head"))
        return Buffers(self._nic.state.memory_map, RX_BUFFER, ring, entries, head)

    def _copy(
        self, before: np.void, queue: int, completions: Words, late: dict[tuple[int, int], float],
        held: dict[tuple[int, int], float],
    ) -> None:  # fmt: skip
        """Bring what was written to the shadow to the guest's ring, or have it brought later."""
        rx = self._nic.state.rx[queue]
        entries = int(rx["completion_entries"])
        position = "buffer_head" if self._nic.gqi else "completion_index"
        first = int(before[position])
        # Each buffer has a completion, and only of buffers it is known that there are not more than a ring's.
        count = (int(rx["buffer_head"]) - int(before["buffer_head"])) % int(rx["positions"])
        for place in range(first, first + count):
            place %= entries
            life = self._nic.lives[f"rx{queue}"]
            one = _Completion(queue, life, int(rx["completion_ring"]), place, completions[place].copy())
            delay = late.get((queue, place))
            if delay is not None and self._late.call(delay, partial(self._publish_late, [one])):
                continue
            delay = held.get((queue, place))
            if delay is None or not self._hold(one, delay):
                self._publish(one)

    def _hold(self, one: _Completion, delay: float) -> bool:
        """Keep a completion until its line is full, or for `delay` seconds; False: it cannot be kept."""
        line = self._held.setdefault(one.queue, [])
        if line and line[0].life != one.life:
            line.clear()
        if not line and not self._late.call(delay, partial(self._release, one.queue)):
            return False
        line.append(one)
        if one.place % _PER_LINE == _PER_LINE - 1:
            self._release(one.queue, now=True)
        return True

    def _release(self, queue: int, *, now: bool = False) -> None:
        """Write the completions that wait; not `now`: later than the packet path has done so."""
        line = self._held.pop(queue, [])
        if now:
            for one in line:
                self._publish(one)
        elif line:
            self._publish_late(line)

    def _publish(self, one: _Completion) -> None:
        # The word that says that the completion is there: DQO the first, GQI the last.
        last = len(one.words) - 1 if self._nic.gqi else 0
        state = self._nic.state
        publish(state.memory_map, one.ring + one.place * one.words.nbytes, one.words, last)
        state.vectors["pending"][state.rx[one.queue]["vector"]] = 1

    def _publish_late(self, completions: list[_Completion]) -> None:
        for one in completions:
            if self._nic.lives[f"rx{one.queue}"] != one.life:
                return
            self._publish(one)
            self._late.tell("rx", one.queue, one.place)
        self._nic.go_on()


def _lengthen(injection: Injection, queue: int, completion: Words, size: int) -> None:
    """Have a GQI descriptor tell of one byte more than a buffer holds."""
    if injection.hit(queue=f"rx{queue}"):
        completion.view(GQI_RX_DESCRIPTOR)["length"] = size + 1


def _flag(injection: Injection, queue: int, completion: Words, flag: GqiRxFlag) -> None:
    """Set a flag of a GQI descriptor."""
    if injection.hit(queue=f"rx{queue}"):
        completion.view(GQI_RX_DESCRIPTOR)["flags_seq"] |= np.uint16(flag)
