"""Buffers in memory that the client shares without a descriptor: the packet path reaches them by messages.

Compiled code cannot wait for a client. What it writes to such memory it *posts*: the bytes wait in this process,
together with the completions that must not be seen before them, until `Messages.send` has had the client store them, in
order. What it would read of such memory it *asks* for, and leaves the packet where it is; `Messages.fetch` gets the
bytes, and the packet is tried again.

That is for buffers, header buffers included. Rings have to be in memory with a descriptor.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from nicmodel.jit.addresses import copy
from nicmodel.jit.compiled import compiled, i64, u64
from nicmodel.nic.state import MESSAGE, State
from nicmodel.packet.frames import Batch
from nicmodel.vfio_user.dma import DmaFault

if TYPE_CHECKING:
    from nicmodel.nic.dma_engine import DmaEngine  # which stands on the compiled functions below

#: `MESSAGE.flags`: a completion, whose first word, with the generation, is stored after the others; something asked for
#: that has come, or that the client refused or did not answer to.
COMPLETION, _COME, _FAILED = 1, 2, 4

_NOWHERE = u64(0)


@compiled
def post(state: State, address: int, source: int, count: int, flags: int) -> bool:
    """Keep `count` bytes from this process's address `source` for guest address `address`.

    Returns:
        False when there is no room, which `Messages.make_room` has seen to.
    """
    device = state.device[0]
    number = i64(device.posted)
    used = i64(device.posted_bytes)
    if number == len(state.posted) or used + count > len(state.posted_data):
        return False
    copy(u64(state.posted_data.ctypes.data) + u64(used), source, count)
    message = state.posted[number]
    message.address = address
    message.offset = used
    message.count = count
    message.flags = flags
    device.posted = number + 1
    device.posted_bytes = used + count
    return True


@compiled
def ask(state: State, address: int, count: int) -> bool:
    """Ask for `count` bytes at guest address `address`; false if that was done before, or there is no room."""
    device = state.device[0]
    number = i64(device.asked)
    used = i64(device.asked_bytes)
    for k in range(number):
        if state.asked[k].address == address and state.asked[k].count >= count:
            return False
    if number == len(state.asked) or used + count > len(state.asked_data):
        return False
    message = state.asked[number]
    message.address = address
    message.offset = used
    message.count = count
    message.flags = 0
    device.asked = number + 1
    device.asked_bytes = used + count
    return True


@compiled
def fetched(state: State, address: int, count: int) -> int:
    """The host address of `count` bytes at guest address `address` that were asked for and have come; 0: none."""
    for k in range(i64(state.device[0].asked)):
        message = state.asked[k]
        skip = address - message.address
        if address >= message.address and skip + u64(count) <= u64(message.count) and message.flags == _COME:
            return u64(u64(state.asked_data.ctypes.data) + u64(message.offset) + skip)
    return _NOWHERE


class Messages:
    """What a NIC has to tell or ask its client after a call of compiled code.

    Args:
        state: the NIC's, in which compiled code leaves what it posts and asks.
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
        if len(state.posted) < messages or len(state.posted_data) < room:
            state.posted = np.zeros(messages, MESSAGE)
            state.posted_data = np.zeros(room, np.uint8)

    def send(self) -> None:
        """Have the client store what was posted, in order.

        When it fails to, it is not asked for more: packets whose bytes are missing end in their queue with an error.
        """
        state = self._state
        device = state.device
        posted = state.posted[: int(device["posted"][0])]
        device["posted"] = device["posted_bytes"] = 0
        table = self._dma.table
        if table is None:
            return
        works = True
        for address, count, offset, flags in posted.tolist():
            data = state.posted_data[offset : offset + count].tobytes()
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

    def fetch(self) -> None:
        """Get from the client what was asked for and has not come yet."""
        state = self._state
        table = self._dma.table
        works = table is not None
        for message in state.asked[: int(state.device["asked"][0])]:
            if message["flags"]:
                continue
            address, count, offset = int(message["address"]), int(message["count"]), int(message["offset"])
            try:
                if works and table is not None:
                    state.asked_data[offset : offset + count] = np.frombuffer(table.read(address, count), np.uint8)
            except DmaFault:
                works = False
            message["flags"] = _COME if works else _FAILED

    def forget(self) -> None:
        """Forget what was asked for, whether it has come or not: it is about to be other memory, or another queue's."""
        self._state.device["asked"] = self._state.device["asked_bytes"] = 0
