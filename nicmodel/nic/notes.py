"""Notes of each access to guest memory, in order and with its bytes, for a recording (`nicmodel.recording`).

Without a recording nothing is noted, and hardly anything is spent on that: an access that finds its region among the
two that were used last does not come here (`nicmodel.nic.dma`). While notes are taken no region is remembered as used,
so that each does.
"""

from __future__ import annotations

import numpy as np

from nicmodel.jit.addresses import copy
from nicmodel.jit.compiled import compiled, i64, u64
from nicmodel.nic.state import NOTE, State

#: `NOTE.offset` of bytes that are still to be written when they are noted.
LATER = -1
#: Accesses, and bytes of them, that one call into the device may make. Pages are taken only where something is noted.
_MOST, _MOST_BYTES = 1 << 18, 1 << 26


@compiled
def note(state: State, address: int, source: int, count: int, written: int, purpose: int) -> None:
    """Note an access of `count` bytes at guest address `address`.

    Args:
        state: the NIC's.
        address: guest address.
        source: where the bytes are in this process; 0: they are about to be written.
        count: bytes.
        written: 1 if the device writes, 0 if it reads.
        purpose: a `Purpose`.
    """
    device = state.device[0]
    number = i64(device.notes)
    used = i64(device.noted_bytes)
    if number == len(state.notes) or used + count > len(state.noted):
        device.notes_lost = 1
        return
    entry = state.notes[number]
    entry.address = address
    entry.count = count
    entry.written = written
    entry.purpose = purpose
    entry.offset = LATER
    if source != 0:
        entry.offset = used
        copy(u64(state.noted.ctypes.data) + u64(used), source, count)
        device.noted_bytes = used + count
    device.notes = number + 1


def begin(state: State) -> None:
    """Note each access from now on."""
    state.notes = np.zeros(_MOST, NOTE)
    state.noted = np.zeros(_MOST_BYTES, np.uint8)
    state.device["region"] = state.device["region_before"] = -1
    state.device["noting"] = 1


def end(state: State) -> None:
    """Note nothing any more."""
    state.device["noting"] = state.device["notes"] = state.device["noted_bytes"] = 0
    state.notes, state.noted = np.zeros(0, NOTE), np.zeros(0, np.uint8)


def take(state: State) -> list[tuple[int, int, int, int, int]]:
    """What was noted since the last call: the fields of `NOTE`. Their bytes stay in `noted` until the next access."""
    device = state.device
    number = int(device["notes"][0])
    if not number:
        return []
    found: list[tuple[int, int, int, int, int]] = state.notes[:number].tolist()
    device["notes"] = device["noted_bytes"] = 0
    return found
