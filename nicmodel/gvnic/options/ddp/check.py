"""Looks at how a driver has NVMe/TCP data placed directly."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from nicmodel.gvnic.commands import Inner, Opcode
from nicmodel.gvnic.options.check import OptionCheck, Scene
from nicmodel.gvnic.options.ddp.control import identity, is_taken
from nicmodel.gvnic.options.ddp.declarations import DDP_PIECE, MAX_DDP_PIECES, OPTION, DdpDigest, DdpOperation
from nicmodel.gvnic.options.segments import Segment, Segments, after
from nicmodel.nic import events
from nicmodel.packet.nvme_tcp import Sync
from nicmodel.vfio_user.dma import WRITABLE

if TYPE_CHECKING:
    from nicmodel.gvnic.contract.admin import Admin

_ALL_DIGESTS = int(sum(DdpDigest))
#: The operations that are about a flow which is there, and what they need besides.
_KNOWN = (DdpOperation.DELETE_FLOW, DdpOperation.SET_UP, DdpOperation.TEAR_DOWN, DdpOperation.RESYNC)


class DdpCheck(OptionCheck):
    """See `OptionCheck`."""

    option = OPTION

    def __init__(self, scene: Scene) -> None:
        super().__init__(scene)
        self._state = scene.nic.state
        self._segments = Segments()
        #: By flow what the device has asked about and nobody has answered, its oldest question; None: not known.
        self._asked: dict[int, int | None] = {}
        self._candidates: dict[int, int] = {}  # by flow the question that was seen last
        self._requests, self._faults = (int(self._state.ddp[name][0]) for name in ("requests", "dma_faults"))

    def checks(self) -> Mapping[Inner, Callable[[np.void, Admin], Callable[[], object] | None]]:
        """See `OptionCheck`."""
        return {Inner.CONFIGURE_DDP: self._configure}

    def forget(self, queue: int | None = None) -> None:
        """See `OptionCheck`: flows are of no queue, but end with all of them."""
        if queue is None:
            self._asked.clear()
            self._candidates.clear()

    # The command.

    def _configure(self, p: np.void, admin: Admin) -> Callable[[], object] | None:
        number, flow, flows = int(p["operation"]), int(p["flow"]), self._nic.ddp.capacity
        if number not in set(DdpOperation):
            admin.find("DDP-001", f"operation {number}")
        elif flow >= flows:
            admin.find("DDP-002", f"flow {flow} of {flows}")
        elif number in _KNOWN and not self._state.ddp_flows["active"][flow]:
            admin.find("DDP-005", f"{DdpOperation(number).name} for flow {flow}, which does not exist")
        elif number == DdpOperation.SET_UP:
            self._set_up(p, flow, admin)
        elif number == DdpOperation.TEAR_DOWN:
            if not self._state.ddp_index[flow, p["command"]]:
                admin.find("DDP-010", f"command {p['command']} of flow {flow} has no buffer")
        elif number == DdpOperation.RESYNC:
            self._answer(flow, int(p["sequence"]), admin)
        elif number == DdpOperation.DELETE_FLOW:
            return lambda: self._end(flow)
        else:
            self._add(p, flow, admin)
            return lambda: self._end(flow)
        return None

    def _add(self, p: np.void, flow: int, admin: Admin) -> None:
        if int(p["digests"]) & ~_ALL_DIGESTS:
            admin.find("DDP-004", f"digests {int(p['digests']):#x}")
        elif is_taken(self._state, flow, identity(p)):
            admin.find("DDP-003", f"flow {flow}, or its addresses and ports, are in use")

    def _end(self, flow: int) -> None:
        """Nothing has been asked of a flow that is new, or gone."""
        self._asked.pop(flow, None)
        self._candidates.pop(flow, None)

    def _answer(self, flow: int, sequence: int, admin: Admin) -> None:
        if flow not in self._asked:
            admin.find("DDP-012", f"an answer for flow {flow}, of which nothing was asked")
            return
        asked = self._asked.pop(flow)
        if asked is not None and after(asked, sequence):
            admin.find("DDP-013", f"the answer {sequence} is before {asked}, which was asked about", asked=asked)

    def _set_up(self, p: np.void, flow: int, admin: Admin) -> None:
        count, command, state = int(p["count"]), int(p["command"]), self._state
        if state.ddp_index[flow, command]:
            admin.find("DDP-006", f"command {command} of flow {flow} has a buffer already")
        elif state.ddp_buffers["active"].all():
            admin.find("DDP-011", f"there are {len(state.ddp_buffers)} buffers already")
        elif not 0 < count <= MAX_DDP_PIECES:
            admin.find("DDP-007", f"a buffer of {count} pieces")
        elif admin.memory_fits(p):
            raw = self._scene.memory.read(int(p["address"]), count * DDP_PIECE.itemsize)
            if raw is None:  # reached by messages only
                return
            found = np.frombuffer(raw, DDP_PIECE)
            pieces = list(zip(found["address"].tolist(), found["length"].tolist(), strict=True))
            if (fault := _fault_of(pieces)) is not None:
                admin.find("DDP-007", fault)
            else:
                self._look_at(pieces, admin)

    def _look_at(self, pieces: list[tuple[int, int]], admin: Admin) -> None:
        """Look at where the pieces of a new buffer are."""
        starts, ends = self._spans()
        for number, (start, length) in enumerate(pieces):
            if not self._scene.memory.mapped(start, length, WRITABLE):
                admin.find("DDP-008", f"piece {number}: {length} bytes at {start:#x} are not in memory to write")
                return
            use = self._scene.use_of(start, length)
            if ((starts < start + length) & (ends > start)).any():
                use = "a buffer that is set up"
            elif any(other < start + length and start < other + size for other, size in pieces[:number]):
                use = "another piece of it"
            if use is not None:
                admin.find("DDP-009", f"piece {number} shares memory with {use}", address=start, length=length)
                return

    def _spans(self) -> tuple[npt.NDArray[np.uint64], npt.NDArray[np.uint64]]:
        """Start and end of each piece of the buffers that are set up."""
        state = self._state
        active = np.flatnonzero(state.ddp_buffers["active"])
        counts = state.ddp_buffers["pieces"][active]
        pieces = state.ddp_pieces[active, : counts.max(initial=0)]  # most have few
        there = np.arange(pieces.shape[1]) < counts[:, None]
        lengths = np.diff(pieces["end"], axis=1, prepend=0)[there].astype(np.uint64)
        starts = pieces["address"][there]
        return starts, starts + lengths

    def posted(
        self, queue: int, places: npt.NDArray[np.int64], descriptors: npt.NDArray[np.uint64],
        addresses: npt.NDArray[np.uint64],
    ) -> None:  # fmt: skip
        """See `OptionCheck`."""
        if not self._state.device["ddp_flows"][0]:
            return
        size = np.uint64(self._state.rx[queue]["buffer_size"])
        starts, ends = self._spans()
        order = np.argsort(starts)
        starts, ends = starts[order], ends[order]
        if len(starts):
            below = np.searchsorted(starts, addresses + size, "left") - 1
            inside = np.flatnonzero((below >= 0) & (ends[np.maximum(below, 0)] > addresses))
            if len(inside):
                what = f"entry {places[inside[0]]}: the buffer shares memory with data that is placed directly"
                address = int(addresses[inside[0]])
                self._scene.journal.report("DDP-009", what, f"rx{queue}", buffer_address=address)

    # What the device does.

    def see(self, event: events.Event) -> None:
        """See `OptionCheck`."""
        match event:
            case events.Received(batch, outcomes):
                if self._state.device["ddp_flows"][0]:
                    self._received(batch, outcomes)
            case events.CommandFetched(slot):
                flows = np.flatnonzero(self._state.ddp_flows["active"])
                if len(flows) and int.from_bytes(slot[:4], "big") == Opcode.DECONFIGURE_DEVICE_RESOURCES:
                    what = f"the device is deconfigured with {len(flows)} flows"
                    self._scene.journal.report("DDP-015", what, flows=flows.tolist())

    def _received(self, batch: Any, outcomes: npt.NDArray[np.void]) -> None:
        state = self._state
        active = np.flatnonzero(state.ddp_flows["active"]).tolist()
        new, self._requests = int(state.ddp["requests"][0]) - self._requests, int(state.ddp["requests"][0])
        if new:
            self._note_questions(active, new)
        faults, self._faults = int(state.ddp["dma_faults"][0]) - self._faults, int(state.ddp["dma_faults"][0])
        if faults:
            self._look_for_unmapped()
        if state.rx["deferred"].any():
            for number, segment in self._segments.received(batch, outcomes):
                queue = int(outcomes["queue"][number])
                if state.rx[queue]["deferred"] and (flow := self._flow_of(active, segment)) is not None:
                    what = f"a frame of flow {flow} has come to a queue with deferred placement"
                    self._scene.journal.report("DDP-014", what, f"rx{queue}", flow=flow)

    def _note_questions(self, active: list[int], new: int) -> None:
        """Note what the device has asked in the last batch, in which it may have asked several times."""
        trackers, seen = self._state.ddp_trackers, []
        for flow in active:
            candidate = int(trackers["candidate"][flow])
            if trackers["sync"][flow] == Sync.ASKED and self._candidates.get(flow) != candidate:
                self._candidates[flow] = candidate
                self._asked.setdefault(flow, candidate)
                seen.append(flow)
        if len(seen) < new:  # by whom, and of what, was asked before?
            self._asked |= dict.fromkeys(active)

    def _look_for_unmapped(self) -> None:
        """A run of data could not be written."""
        state, memory = self._state, self._scene.memory
        for number in np.flatnonzero(state.ddp_buffers["active"]).tolist():
            buffer, begin = state.ddp_buffers[number], 0
            for piece in state.ddp_pieces[number, : int(buffer["pieces"])]:
                start, length, begin = int(piece["address"]), int(piece["end"]) - begin, int(piece["end"])
                if not memory.mapped(start, length, WRITABLE):
                    what = f"the buffer of command {buffer['command']} of flow {buffer['flow']} is no longer in memory"
                    self._scene.journal.report("DDP-008", what, address=start, length=length)
                    return

    def _flow_of(self, active: list[int], segment: Segment) -> int | None:
        """The flow that a segment belongs to."""
        (source, source_port), (destination, destination_port) = segment.source, segment.destination
        ports, size = source_port << 16 | destination_port, len(source)
        words = [*np.frombuffer(source, ">u4"), *[0] * (4 - size // 4), *np.frombuffer(destination, ">u4")]
        for number in active:
            flow = self._state.ddp_flows[number]
            if (
                flow["ports"] == ports
                and flow["address_size"] == size
                and flow["words"][: len(words)].tolist() == words
            ):
                return int(number)
        return None


def _fault_of(pieces: list[tuple[int, int]]) -> str | None:
    """Why no buffer can consist of these pieces."""
    for number, (start, length) in enumerate(pieces):
        if not 0 < length <= (1 << 64) - start:
            return f"piece {number} has {length} bytes at {start:#x}"
    total = sum(length for _, length in pieces)
    return f"a buffer of {total} bytes" if total >= 1 << 32 else None
