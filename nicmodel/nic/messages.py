"""Buffers in memory that the client shares without a descriptor: the packet path reaches them by messages.

Compiled code cannot wait for a client. What it writes to such memory is to be written later (`write_later`): the bytes
wait in this process, together with the completions that must not be seen before them, until `Messages.write` has had
the client store them, in order. What it would read of such memory is to be read later (`read_later`), and the packet
stays where it is; `Messages.read` gets the bytes, and the packet is tried again, which finds them read before.

That is for buffers, header buffers included. Rings have to be in memory with a descriptor.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from nicmodel.jit.addresses import copy
from nicmodel.jit.compiled import compiled, i64, u64
from nicmodel.nic.notes import note
from nicmodel.nic.purpose import Purpose
from nicmodel.nic.state import MESSAGE, State
from nicmodel.packet.frames import Batch
from nicmodel.vfio_user.dma import DmaFault

if TYPE_CHECKING:
    from nicmodel.nic.dma_engine import DmaEngine  # which stands on the compiled functions below

#: `MESSAGE.flags`: a completion, whose first word, with the generation, is stored after the others; something wanted
#: that has come, or that the client refused or did not answer to.
COMPLETION, _COME, _FAILED = 1, 2, 4

_PAYLOAD = int(Purpose.PAYLOAD)
_COMPLETION = int(Purpose.COMPLETION)

_NOWHERE = u64(0)


@compiled
def write_later(state: State, address: int, source: int, count: int, flags: int) -> bool:
    """Keep `count` bytes from this process's address `source` for guest address `address`.

    Returns:
        False when there is no room, which `Messages.make_room` has seen to.
    """
    device = state.device[0]
    number = i64(device.unwritten)
    used = i64(device.unwritten_bytes)
    if number == len(state.unwritten) or used + count > len(state.unwritten_data):
        return False
    copy(u64(state.unwritten_data.ctypes.data) + u64(used), source, count)
    message = state.unwritten[number]
    message.address = address
    message.offset = used
    message.count = count
    message.flags = flags
    if device.noting != 0:
        note(state, address, source, count, 1, _COMPLETION if flags == COMPLETION else _PAYLOAD)
    device.unwritten = number + 1
    device.unwritten_bytes = used + count
    return True


@compiled
def read_later(state: State, address: int, count: int) -> bool:
    """Have `count` bytes at guest address `address` read; false if that was said before, or there is no room."""
    device = state.device[0]
    number = i64(device.wanted)
    used = i64(device.wanted_bytes)
    for k in range(number):
        if state.wanted[k].address == address and state.wanted[k].count >= count:
            return False
    if number == len(state.wanted) or used + count > len(state.wanted_data):
        return False
    message = state.wanted[number]
    message.address = address
    message.offset = used
    message.count = count
    message.flags = 0
    device.wanted = number + 1
    device.wanted_bytes = used + count
    return True


@compiled
def read_before(state: State, address: int, count: int) -> int:
    """The host address of `count` bytes at guest address `address` that were wanted and have come; 0: none."""
    for k in range(i64(state.device[0].wanted)):
        message = state.wanted[k]
        skip = address - message.address
        if address >= message.address and skip + u64(count) <= u64(message.count) and message.flags == _COME:
            return u64(u64(state.wanted_data.ctypes.data) + u64(message.offset) + skip)
    return _NOWHERE


class Messages:
    """Has the client write and read, after a call of compiled code, what that has left to do.

    Args:
        state: the NIC's, in which compiled code leaves it.
        dma: reaches the client's memory.
        error: what is set in a completion's first word if the client has not stored the packet's bytes.
    """

    def __init__(self, state: State, dma: DmaEngine, error: int) -> None:
        self._state = state
        self._dma = dma
        self._error = error

    def make_room(self, batch: Batch) -> None:
        """Have room for all that receiving a batch may write: bytes, headers that are repeated, completions."""
        state = self._state
        frames = batch.frames[: batch.count]
        segments = batch.count + int((frames["length"] // np.maximum(frames["segment"], 1))[frames["gso"] != 0].sum())
        # A packet takes a header buffer and at least one data buffer; those hold 256 bytes or more.
        octets = int(frames["length"].sum()) + 256 * segments
        messages = 3 * segments + 2 * (octets // 256)
        room = octets + 32 * messages
        if len(state.unwritten) < messages or len(state.unwritten_data) < room:
            state.unwritten = np.zeros(messages, MESSAGE)
            state.unwritten_data = np.zeros(room, np.uint8)

    def write(self) -> None:
        """Have the client store what is to be written, in order.

        When it fails to, it is not asked for more: packets whose bytes are missing end in their queue with an error.
        """
        state = self._state
        device = state.device
        unwritten = state.unwritten[: int(device["unwritten"][0])]
        device["unwritten"] = device["unwritten_bytes"] = 0
        table = self._dma.table
        if table is None:
            return
        works = True
        for address, count, offset, flags in unwritten.tolist():
            data = state.unwritten_data[offset : offset + count].tobytes()
            try:
                if flags == COMPLETION:
                    first = int.from_bytes(data[:8], "little") | (0 if works else self._error)
                    table.write(address + 8, data[8:])
                    table.write(address, first.to_bytes(8, "little"))
                elif works:
                    table.write(address, data)
            except DmaFault:
                works = False
                device["faults"] += 1
                device["fault_address"] = address

    def read(self) -> None:
        """Get from the client what is wanted and has not come yet."""
        state = self._state
        table = self._dma.table
        works = table is not None
        for message in state.wanted[: int(state.device["wanted"][0])]:
            if message["flags"]:
                continue
            address, count, offset = int(message["address"]), int(message["count"]), int(message["offset"])
            try:
                if works and table is not None:
                    state.wanted_data[offset : offset + count] = np.frombuffer(table.read(address, count), np.uint8)
            except DmaFault:
                works = False
            message["flags"] = _COME if works else _FAILED

    def forget(self) -> None:
        """Forget what was wanted, whether it has come or not: it is about to be other memory, or another queue's."""
        self._state.device["wanted"] = self._state.device["wanted_bytes"] = 0
