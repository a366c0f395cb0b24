"""Flows and buffers of direct data placement, as the admin queue sets them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from nicmodel.gvnic.commands import Inner, Status
from nicmodel.gvnic.options.ddp.declarations import DDP_PIECE, MAX_DDP_PIECES, DdpDigest, DdpOperation
from nicmodel.gvnic.options.ddp.state import DDP_FLOW
from nicmodel.gvnic.options.option import Handlers, OptionControl
from nicmodel.gvnic.refusal import AdminError, require
from nicmodel.gvnic.state import State
from nicmodel.nic.state import Records
from nicmodel.packet.nvme_tcp import confirm, start

if TYPE_CHECKING:
    from nicmodel.gvnic.admin import AdminQueue


def identity(command: np.void) -> Records:
    """What tells the flow of ADD_FLOW4 or ADD_FLOW6 from others: a `DDP_FLOW`, shape (1,)."""
    size = 4 if command["operation"] == DdpOperation.ADD_FLOW4 else 16
    flow = np.zeros(1, DDP_FLOW)
    flow["active"] = 1
    flow["address_size"] = size
    flow["ports"] = int(command["source_port"]) << 16 | int(command["destination_port"])
    for place, address in ((0, "source"), (4, "destination")):
        flow["words"][0, place : place + size // 4] = np.frombuffer(command[address].tobytes()[:size], ">u4")
    return flow


def is_taken(state: State, number: int, flow: Records) -> bool:
    """Whether another flow has that number, or this one's `identity`."""
    active = state.ddp_flows["active"] != 0
    keys = ["address_size", "ports", "words"]
    return bool(active[number] or (state.ddp_flows[active][keys] == flow[keys]).any())


class Ddp(OptionControl):
    """Flows and buffers as the admin queue sets them; the packet path reads the arrays in `State`."""

    def __init__(self, state: State) -> None:
        self._state = state

    def handlers(self, admin: AdminQueue) -> Handlers:
        """See `OptionControl`."""
        return {Inner.CONFIGURE_DDP: lambda inner: self._configure(admin, inner)}

    def _configure(self, admin: AdminQueue, inner: np.void) -> None:
        admin.require_dqo()
        operation = int(inner["operation"])
        flow, command, sequence = int(inner["flow"]), int(inner["command"]), int(inner["sequence"])
        if operation in (DdpOperation.ADD_FLOW4, DdpOperation.ADD_FLOW6):
            self.add_flow(flow, identity(inner), sequence, int(inner["digests"]))
        elif operation == DdpOperation.DELETE_FLOW:
            self.delete_flow(flow)
        elif operation == DdpOperation.SET_UP:
            count = int(inner["count"])
            require(0 < count <= MAX_DDP_PIECES, Status.INVALID_ARGUMENT, f"a buffer of {count} pieces")
            raw = admin.nic.dma.read(int(inner["address"]), count * DDP_PIECE.itemsize)
            self.set_up(flow, command, np.frombuffer(raw, DDP_PIECE))
        elif operation == DdpOperation.TEAR_DOWN:
            self.tear_down(flow, command)
        elif operation == DdpOperation.RESYNC:
            self.resync(flow, sequence)
        else:
            raise AdminError(Status.INVALID_ARGUMENT, f"operation {operation} of direct data placement")

    @property
    def capacity(self) -> int:
        """Number of flows there can be."""
        return len(self._state.ddp_flows)

    @property
    def counters(self) -> dict[str, int]:
        """What was counted since the server's start, by the names of `nicmodel.gvnic.options.ddp.state.DDP`."""
        counts = self._state.ddp
        return {name: int(counts[name][0]) for name in counts.dtype.names or ()}

    def reset(self) -> None:
        """See `OptionControl`: all flows and buffers are forgotten."""
        state = self._state
        for flow in np.flatnonzero(state.ddp_flows["active"]).tolist():
            self.delete_flow(flow)

    def add_flow(self, flow: int, new: Records, sequence: int, digests: int) -> None:
        """Follow a TCP flow.

        Args:
            flow: its number.
            new: its `identity`.
            sequence: where the next PDU begins.
            digests: those in use, `DdpDigest`.

        Raises:
            AdminError: the number is taken or there is none such, the flow is there already, or unknown digests.
        """
        state = self._state
        if flow >= self.capacity:
            raise AdminError(Status.OUT_OF_RANGE, f"flow {flow} of {self.capacity}")
        if digests & ~int(DdpDigest.HEADER | DdpDigest.DATA):
            raise AdminError(Status.INVALID_ARGUMENT, f"digests {digests:#x}")
        if is_taken(state, flow, new):
            raise AdminError(Status.ALREADY_EXISTS, f"flow {flow}, or its addresses, are in use")
        state.ddp_flows[flow] = new[0]
        start(self._tracker(flow), sequence, bool(digests & DdpDigest.HEADER), bool(digests & DdpDigest.DATA))
        self._look_at_flows()

    def delete_flow(self, flow: int) -> None:
        """Forget a flow and its buffers.

        Raises:
            AdminError: there is none of that number.
        """
        self._require(flow)
        state = self._state
        buffers = state.ddp_buffers
        for number in np.flatnonzero((buffers["active"] != 0) & (buffers["flow"] == flow)).tolist():
            self._free(number)
        state.ddp_flows["active"][flow] = 0
        self._look_at_flows()

    def set_up(self, flow: int, command: int, pieces: Records) -> None:
        """Have the data of a command go to a buffer.

        Args:
            flow: of the command.
            command: its identifier.
            pieces: what the buffer consists of, `DDP_PIECE`, at most `MAX_DDP_PIECES`.

        Raises:
            AdminError: no such flow, the command has a buffer already, a piece is empty or wraps around, or no more
                buffers can be.
        """
        self._require(flow)
        state = self._state
        if state.ddp_index[flow, command]:
            raise AdminError(Status.ALREADY_EXISTS, f"command {command} of flow {flow} has a buffer already")
        places, lengths = pieces["address"].astype(object), pieces["length"].astype(object)
        if any(length == 0 or place + length > 1 << 64 for place, length in zip(places, lengths, strict=True)):
            raise AdminError(Status.INVALID_ARGUMENT, "a piece that is empty, or ends beyond the last address")
        if lengths.sum() >= 1 << 32:
            raise AdminError(Status.INVALID_ARGUMENT, f"a buffer of {lengths.sum()} bytes")
        free = np.flatnonzero(state.ddp_buffers["active"] == 0)
        if not len(free):
            raise AdminError(Status.RESOURCE_EXHAUSTED, f"there are {len(state.ddp_buffers)} buffers already")
        number = int(free[0])
        ends = np.cumsum(pieces["length"].astype(np.int64))
        state.ddp_pieces[number, : len(pieces)]["address"] = pieces["address"]
        state.ddp_pieces[number, : len(pieces)]["end"] = ends
        state.ddp_buffers[number] = (1, flow, command, len(pieces), ends[-1])
        state.ddp_index[flow, command] = number + 1

    def tear_down(self, flow: int, command: int) -> None:
        """Have nothing more written to the buffer of a command.

        Raises:
            AdminError: no such flow, or the command has no buffer.
        """
        self._require(flow)
        number = int(self._state.ddp_index[flow, command]) - 1
        if number < 0:
            raise AdminError(Status.NOT_FOUND, f"command {command} of flow {flow} has no buffer")
        self._free(number)

    def resync(self, flow: int, sequence: int) -> None:
        """Learn that a PDU begins at a sequence number.

        Raises:
            AdminError: no such flow, or that does not help any more (`nicmodel.packet.nvme_tcp.confirm`).
        """
        self._require(flow)
        counts = self._state.ddp
        if not confirm(self._tracker(flow), sequence):
            counts["refused"] += 1
            raise AdminError(Status.FAILED_PRECONDITION, f"sequence number {sequence} of flow {flow} has passed")
        counts["confirmed"] += 1

    def _look_at_flows(self) -> None:
        """Tell the packet path how many flows it has to look at. While there are any, no frame keeps a trailer."""
        device = self._state.device
        device["ddp_flows"] = np.flatnonzero(self._state.ddp_flows["active"]).max(initial=-1) + 1
        device["trailers"] = device["ddp_flows"] == 0

    def _tracker(self, flow: int) -> Any:
        return self._state.ddp_trackers.view(np.recarray)[flow]

    def _require(self, flow: int) -> None:
        if flow >= self.capacity or not self._state.ddp_flows["active"][flow]:
            raise AdminError(Status.NOT_FOUND, f"no flow {flow}")

    def _free(self, number: int) -> None:
        buffer = self._state.ddp_buffers[number]
        self._state.ddp_index[buffer["flow"], buffer["command"]] = 0
        buffer["active"] = 0
