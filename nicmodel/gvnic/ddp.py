"""Direct data placement for NVMe/TCP: the data of a read goes by DMA to where the reader wants it, not to the queue.

A receive engine beside header split, off unless `Profile.ddp_flows` gives it room, and then announced by an option of
its own (`OptionId.DDP`). What it needs from a driver are the steps that Linux calls ULP DDP (the kernel series
"nvme-tcp receive offloads"), here the operations of the inner admin command CONFIGURE_DDP:

1. `DdpOperation.ADD_FLOW4` or ``ADD_FLOW6`` when an NVMe/TCP connection is initialised: its addresses and ports as the
   device sees them (the source is the controller), its digests, and the TCP sequence number of the next PDU.
2. ``SET_UP`` before a read is sent: which command identifier, and the pieces of guest memory for its data.
3. ``TEAR_DOWN`` when it is completed, before its memory is used for anything else; ``DELETE_FLOW`` at the end.
4. ``RESYNC`` as the answer to a request for resynchronisation, see below.

The device follows the PDUs of the flow (`nicmodel.packet.nvme_tcp`). What a C2HData PDU carries for a command that is
set up it writes to that command's buffer, at the offset that the PDU says. Everything else of the frame goes the usual
way: headers of all layers, digests, other PDUs, data that cannot be placed. In the packet that the driver gets, the
headers are as they were on the wire, lengths and checksums included, the bytes that were placed are missing, and a
record (`PLACEMENT`) for each run of them is appended: where in the payload it belongs, and where it is. The completion
says how many records there are; with them the driver shows the payload to TCP as if it had been in the buffers all
along. A run that is shorter than its record stays where it is, so that no packet grows.

`RX_DDP` says in addition (in bits that are 0 without this engine), in the same way in each completion of a packet:

- ``ddp``, ``ddp_flow``: the packet belongs to this flow.
- ``digest_good``: of the data digests that end in this packet none is wrong, and all the data that they, and the one
  after them, cover went by in order. If all packets of a PDU say so, its digest holds; otherwise software has to check
  it. ``digest_bad``: a digest did not hold.
- ``resync``, ``resync_sequence``: the device asks whether a PDU begins at this sequence number.

*Loss and reordering.* Only bytes that follow those before them are placed. A segment with bytes missing before it, or
one that comes again, is delivered as any other. If only data is missing, the next header's place is known, and placing
goes on with the segment after. If a header may be among it, the device is out of sync: it looks for what may be a
header, asks the driver in the packet that has it, and follows the PDUs from there without placing anything. The driver
walks the PDUs as well, so it answers with the sequence number of the first PDU at or after the one asked about: the
same number confirms, another is where the device goes on if that is still to come.

A segment that the driver loses after the device has placed its data comes again, and is then delivered as old: what is
in a buffer is never relied upon without a record.

The device writes inside of the pieces of the buffer that was set up for the command, and nowhere else: a run of an
unknown command, or one that would leave the buffer, or a buffer that is not mapped (or shared without a descriptor),
stays in the packet and is counted (`nicmodel.gvnic.state.DDP`). Frames whose TCP checksum is wrong are not looked at.
The queue is one of a DQO format; headers and digests have to be read, so its buffers belong into ordinary memory.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from nicmodel.gvnic.commands import DdpDigest, Status
from nicmodel.gvnic.descriptors import PLACEMENT, RX_DDP
from nicmodel.gvnic.state import MAX_PLACEMENTS, State
from nicmodel.jit.addresses import copy
from nicmodel.jit.compiled import Record, compiled, i64, inlined, u64
from nicmodel.nic.dma import WRITE, accessible, fault, locate, write
from nicmodel.nic.state import Purpose, Records
from nicmodel.packet.headers import L4
from nicmodel.packet.nvme_tcp import Order, Part, Sync, Verdict, advance, arrive, ask, confirm, find, lose, start
from nicmodel.packet.words import load_be32

if TYPE_CHECKING:
    from nicmodel.gvnic.receive import _Batch

_TCP = int(L4.TCP)
_PAYLOAD = int(Purpose.PAYLOAD)
_SEARCHING = int(Sync.SEARCHING)
_ASKED = int(Sync.ASKED)
_TRACKING = int(Sync.TRACKING)
_NEXT = int(Order.NEXT)
_OLD = int(Order.OLD)
_AHEAD = int(Order.AHEAD)
_HEADER = int(Part.HEADER)
_PASSED = int(Part.PASSED)
_DATA = int(Part.DATA)
_GOOD = int(Verdict.GOOD)
_BAD = int(Verdict.BAD)
_UNKNOWN = int(Verdict.UNKNOWN)
_BAD_HEADER = int(Verdict.BAD_HEADER)
_BAD_HEADER_DIGEST = int(Verdict.BAD_HEADER_DIGEST)

#: Flags of segments that are not the stream going on: SYN, RST, URG.
_BREAKS = 0x02 | 0x04 | 0x20
_SEQUENCES = 0xFFFF_FFFF

_RECORD = PLACEMENT.itemsize
# Bits of what `place_directly` returns, counted from the field `placements`.
_FIRST = RX_DDP.placements.bit
_DIGEST_GOOD = 1 << RX_DDP.digest_good.bit - _FIRST
_DIGEST_BAD = 1 << RX_DDP.digest_bad.bit - _FIRST
_RESYNC = 1 << RX_DDP.resync.bit - _FIRST
_DDP = 1 << RX_DDP.ddp.bit - _FIRST
_FLOW = RX_DDP.ddp_flow.bit - _FIRST


@inlined
def _flow_of(state: State, data: np.ndarray, offset: int) -> int:
    """The flow that the parsed frame belongs to, -1 if none."""
    h = state.headers[0]
    if h.l4 != _TCP or h.fragment != 0:
        return -1
    ports = load_be32(data, offset + i64(h.l4_offset))
    size = i64(h.address_size)
    for number in range(i64(state.device[0].ddp_flows)):
        flow = state.ddp_flows[number]
        if flow.active == 0 or flow.ports != ports or flow.address_size != size:
            continue
        same = True
        for k in range(size >> 2):
            if load_be32(data, offset + i64(h.source) + 4 * k) != i64(flow.words[k]):
                same = False
            if load_be32(data, offset + i64(h.destination) + 4 * k) != i64(flow.words[4 + k]):
                same = False
        if same:
            return number
    return -1


@compiled
def _write_run(state: State, queue: int, number: int, offset: int, source: int, count: int) -> bool:
    """Write a run of data that fits buffer `number`; false, and nothing written, if not all of it is mapped."""
    pieces = state.ddp_pieces[number]
    first = 0
    while pieces[first].end <= offset:
        first += 1
    for writing in range(2):  # first look at all of it, so that a bad address is found before anything is written
        piece = first
        done = i64(0)
        while done < count:
            end = i64(pieces[piece].end)
            before = i64(pieces[piece - 1].end) if piece > 0 else i64(0)
            length = min(count - done, end - (offset + done))
            address = pieces[piece].address + u64(offset + done - before)
            if writing == 0:
                # Messages, for memory without a descriptor, are few: pieces may be small.
                if locate(state, address, length, WRITE) == 0 and (
                    state.device[0].remote != 0 or not accessible(state, address, length, WRITE)
                ):
                    fault(state, address)
                    return False
            else:
                write(state, queue, _PAYLOAD, address, u64(source) + u64(done), length)
            done += length
            piece += 1
    return True


@inlined
def _place_run(state: State, queue: int, flow: int, source: int, count: int) -> bool:
    """Place the run of data that the flow's tracker has just taken, if that can be."""
    tracker = state.ddp_trackers[flow]
    counts = state.ddp[0]
    if tracker.order == _AHEAD or tracker.sync != _TRACKING:
        counts.unordered += 1
        return False
    if count < _RECORD:
        counts.short += 1
        return False
    number = i64(state.ddp_index[flow, i64(tracker.command)]) - 1
    if number < 0:
        counts.unknown_command += 1
        return False
    if i64(tracker.run) + count > i64(state.ddp_buffers[number].length):
        counts.beyond_buffer += 1
        return False
    if not _write_run(state, queue, number, i64(tracker.run), source, count):
        counts.dma_faults += 1
        return False
    return True


@inlined
def _count(counts: Record, flow: Record, tracker: Record, placed: int, taken: int, data_length: int) -> None:
    """Book what `advance` has taken: bytes, and with the last of them PDU and verdict."""
    if tracker.taken == _HEADER and tracker.ended:
        flow.placed = 0
    if tracker.taken == _DATA:
        if placed:
            flow.placed += taken
            counts.placed_bytes += taken
        else:
            counts.unplaced_bytes += taken
        if tracker.ended and flow.placed == data_length:
            counts.placed_pdus += 1
    verdict = tracker.verdict
    if verdict in (_GOOD, _BAD):
        counts.digests += 1
    if verdict == _BAD:
        counts.digest_errors += 1
    if verdict == _BAD_HEADER:
        counts.bad_headers += 1
    if verdict == _BAD_HEADER_DIGEST:
        counts.header_digest_errors += 1
    if verdict in (_BAD_HEADER, _BAD_HEADER_DIGEST):
        counts.lost += 1


@compiled
def place_directly(
    state: State, queue: int, batch: _Batch, number: int, segment: int, data: np.ndarray, offset: int, contiguous: int
) -> tuple[int, int]:  # fmt: skip
    """Take out of a packet what can be placed, and place it.

    The packet is that of `nicmodel.gvnic.receive._place`, parsed, and its checksums are right. If anything was placed,
    what is left of it, with the records, is in ``state.ddp_rest``, and as long as ``state.headers[0].length`` says.

    Returns:
        For the completion: the bits from `RX_DDP.placements` on, and `RX_DDP.resync_sequence`.
    """
    h = state.headers[0]
    number_of_flow = i64(_flow_of(state, data, offset))
    if number_of_flow < 0:
        return i64(0), i64(0)
    flow = state.ddp_flows[number_of_flow]
    tracker = state.ddp_trackers[number_of_flow]
    counts = state.ddp[0]
    result = i64(_DDP | number_of_flow << _FLOW)
    header = i64(h.payload)
    total = i64(h.length) - header
    before = i64(tracker.sync)
    if h.tcp_flags & _BREAKS != 0 and before != _SEARCHING:
        lose(tracker)
        counts.lost += 1
        return result, i64(0)
    if total <= 0 or h.tcp_flags & _BREAKS != 0:
        return result, i64(0)

    counts.frames += 1
    sequence = load_be32(data, offset + i64(h.l4_offset) + 4)
    old = i64(arrive(tracker, sequence, total))
    if before != _TRACKING:
        counts.out_of_sync += 1
    elif tracker.sync == _SEARCHING:
        counts.lost += 1
    if tracker.order == _OLD:
        counts.old += 1
        return result, i64(0)
    if tracker.order == _AHEAD:
        counts.ahead += 1

    rest = u64(state.ddp_rest.ctypes.data)
    copy(rest, u64(data.ctypes.data) + u64(offset), header)
    kept = header
    position = u64(data.ctypes.data) + u64(offset + header)
    left = contiguous - header
    done = i64(0)
    records = i64(0)
    placed_bytes = i64(0)
    asked = False
    good = tracker.order == _NEXT and before == _TRACKING and tracker.data_digest != 0
    while done < total:
        if left == 0:
            frame = batch.frames[number]
            position = u64(batch.data.ctypes.data) + u64(frame.offset) + u64(header)
            left = segment
            number = i64(batch.outcomes[number].next)
        count = min(left, total - done)
        placed = False
        if done < old:
            taken = min(count, old - done)
        elif tracker.sync == _SEARCHING:
            taken = i64(find(tracker, position, count))
            if taken < 0:
                taken = count
            else:
                ask(tracker, sequence + done + taken)
                asked = True
        else:
            data_length = i64(tracker.data_length)
            taken = i64(advance(tracker, position, count))
            if tracker.taken == _DATA and records < MAX_PLACEMENTS:
                placed = _place_run(state, queue, number_of_flow, position, taken)
            _count(counts, flow, tracker, placed, taken, data_length)
            if tracker.verdict == _BAD:
                result |= _DIGEST_BAD
            if tracker.verdict in (_BAD, _UNKNOWN):
                good = False
        if placed:
            record = state.placements[records]
            record.position = done
            record.length = taken
            record.offset = tracker.run
            record.command = tracker.command
            records += 1
            placed_bytes += taken
        else:
            copy(rest + u64(kept), position, taken)
            kept += taken
        position += u64(taken)
        left -= taken
        done += taken

    if good and tracker.sync == _TRACKING and (tracker.part in (_HEADER, _PASSED) or tracker.whole != 0):
        result |= _DIGEST_GOOD
    resync = i64(0)
    if asked and tracker.sync == _ASKED:
        counts.requests += 1
        result |= _RESYNC
        resync = i64(tracker.candidate)
    if records > 0:
        copy(rest + u64(kept), u64(state.placements.ctypes.data), records * _RECORD)
        h.length = kept + records * _RECORD
        state.rx[queue].bytes += placed_bytes - records * _RECORD
    return result | records, resync


class DdpError(Exception):
    """A setting that cannot be; `status` is what the admin command gets."""

    def __init__(self, status: Status, reason: str) -> None:
        super().__init__(reason)
        self.status = status


class Ddp:
    """Flows and buffers as the admin queue sets them; the packet path reads the arrays in `State`."""

    def __init__(self, state: State) -> None:
        self._state = state

    @property
    def capacity(self) -> int:
        """Number of flows there can be."""
        return len(self._state.ddp_flows)

    @property
    def counters(self) -> dict[str, int]:
        """What was counted since the server's start, by the names of `nicmodel.gvnic.state.DDP`."""
        counts = self._state.ddp
        return {name: int(counts[name][0]) for name in counts.dtype.names or ()}

    def reset(self) -> None:
        """Forget all flows and buffers."""
        state = self._state
        state.device["ddp_flows"] = 0
        for flow in np.flatnonzero(state.ddp_flows["active"]).tolist():
            self.delete_flow(flow)

    def add_flow(
        self, flow: int, source: bytes, destination: bytes, source_port: int, destination_port: int,
        sequence: int, digests: int,
    ) -> None:  # fmt: skip
        """Follow a TCP flow.

        Args:
            flow: its number.
            source: address of the sender, 4 or 16 bytes.
            destination: address of the receiver.
            source_port: port of the sender.
            destination_port: port of the receiver.
            sequence: where the next PDU begins.
            digests: those in use, `DdpDigest`.

        Raises:
            DdpError: the number is taken or there is none such, the flow is there already, or unknown digests.
        """
        state = self._state
        if flow >= self.capacity:
            raise DdpError(Status.OUT_OF_RANGE, f"flow {flow} of {self.capacity}")
        if digests & ~int(DdpDigest.HEADER | DdpDigest.DATA):
            raise DdpError(Status.INVALID_ARGUMENT, f"digests {digests:#x}")
        new = np.zeros(1, state.ddp_flows.dtype)
        new["active"] = 1
        new["address_size"] = len(source)
        new["ports"] = source_port << 16 | destination_port
        for place, address in ((0, source), (4, destination)):
            new["words"][0, place : place + len(address) // 4] = np.frombuffer(address, ">u4")
        active = state.ddp_flows["active"] != 0
        keys = ["address_size", "ports", "words"]
        if active[flow] or (state.ddp_flows[active][keys] == new[keys]).any():
            raise DdpError(Status.ALREADY_EXISTS, f"flow {flow}, or its addresses, are in use")
        state.ddp_flows[flow] = new[0]
        start(self._tracker(flow), sequence, bool(digests & DdpDigest.HEADER), bool(digests & DdpDigest.DATA))
        state.device["ddp_flows"] = max(flow + 1, int(state.device["ddp_flows"][0]))

    def delete_flow(self, flow: int) -> None:
        """Forget a flow and its buffers.

        Raises:
            DdpError: there is none of that number.
        """
        self._require(flow)
        state = self._state
        buffers = state.ddp_buffers
        for number in np.flatnonzero((buffers["active"] != 0) & (buffers["flow"] == flow)).tolist():
            self._free(number)
        state.ddp_flows["active"][flow] = 0
        last = np.flatnonzero(state.ddp_flows["active"]).max(initial=-1)
        state.device["ddp_flows"] = last + 1

    def set_up(self, flow: int, command: int, pieces: Records) -> None:
        """Have the data of a command go to a buffer.

        Args:
            flow: of the command.
            command: its identifier.
            pieces: what the buffer consists of, `nicmodel.gvnic.commands.DDP_PIECE`, at most `MAX_DDP_PIECES`.

        Raises:
            DdpError: no such flow, the command has a buffer already, a piece is empty or wraps around, or no more
                buffers can be.
        """
        self._require(flow)
        state = self._state
        if state.ddp_index[flow, command]:
            raise DdpError(Status.ALREADY_EXISTS, f"command {command} of flow {flow} has a buffer already")
        places, lengths = pieces["address"].astype(object), pieces["length"].astype(object)
        if any(length == 0 or place + length > 1 << 64 for place, length in zip(places, lengths, strict=True)):
            raise DdpError(Status.INVALID_ARGUMENT, "a piece that is empty, or ends beyond the last address")
        if lengths.sum() >= 1 << 32:
            raise DdpError(Status.INVALID_ARGUMENT, f"a buffer of {lengths.sum()} bytes")
        free = np.flatnonzero(state.ddp_buffers["active"] == 0)
        if not len(free):
            raise DdpError(Status.RESOURCE_EXHAUSTED, f"there are {len(state.ddp_buffers)} buffers already")
        number = int(free[0])
        ends = np.cumsum(pieces["length"].astype(np.int64))
        state.ddp_pieces[number, : len(pieces)]["address"] = pieces["address"]
        state.ddp_pieces[number, : len(pieces)]["end"] = ends
        state.ddp_buffers[number] = (1, flow, command, len(pieces), ends[-1])
        state.ddp_index[flow, command] = number + 1

    def tear_down(self, flow: int, command: int) -> None:
        """Have nothing more written to the buffer of a command.

        Raises:
            DdpError: no such flow, or the command has no buffer.
        """
        self._require(flow)
        number = int(self._state.ddp_index[flow, command]) - 1
        if number < 0:
            raise DdpError(Status.NOT_FOUND, f"command {command} of flow {flow} has no buffer")
        self._free(number)

    def resync(self, flow: int, sequence: int) -> None:
        """Learn that a PDU begins at a sequence number.

        Raises:
            DdpError: no such flow, or that does not help any more (`nicmodel.packet.nvme_tcp.confirm`).
        """
        self._require(flow)
        counts = self._state.ddp
        if not confirm(self._tracker(flow), sequence):
            counts["refused"] += 1
            raise DdpError(Status.FAILED_PRECONDITION, f"sequence number {sequence} of flow {flow} has passed")
        counts["confirmed"] += 1

    def _tracker(self, flow: int) -> Any:
        return self._state.ddp_trackers.view(np.recarray)[flow]

    def _require(self, flow: int) -> None:
        if flow >= self.capacity or not self._state.ddp_flows["active"][flow]:
            raise DdpError(Status.NOT_FOUND, f"no flow {flow}")

    def _free(self, number: int) -> None:
        buffer = self._state.ddp_buffers[number]
        self._state.ddp_index[buffer["flow"], buffer["command"]] = 0
        buffer["active"] = 0
