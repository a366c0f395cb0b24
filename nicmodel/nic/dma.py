"""DMA of the packet path: guest addresses checked against the memory map, bytes booked in the ledger.

The map (`State.region_leaves` and `State.regions`) is that of `nicmodel.vfio_user.regions`. Nearly every access falls
into one of the two regions that were used last, rings in one and payload in the other, so those are tried first; what
has become of them since does not matter, as their records are looked at again. A range may cross borders: behind a
vIOMMU each page is a region of its own. Memory without a descriptor is reached by messages
(`nicmodel.nic.messages`), but not by rings.
"""

from __future__ import annotations

from nicmodel.jit.addresses import copy
from nicmodel.jit.compiled import compiled, i64, inlined, u32, u64
from nicmodel.nic.messages import read_before, read_later, write_later
from nicmodel.nic.notes import note
from nicmodel.nic.purpose import Purpose
from nicmodel.nic.state import Records, State
from nicmodel.vfio_user.dma import READABLE, WRITABLE

#: Rights to a region.
READ = u32(READABLE)
WRITE = u32(WRITABLE)

_NOWHERE = u64(0)
_LAST_ADDRESS = u64((1 << 64) - 1)

_DESCRIPTOR = int(Purpose.DESCRIPTOR)
_COMPLETION = int(Purpose.COMPLETION)
#: What becomes of an access while all are noted (`nicmodel.nic.notes`): it is noted here; it is none, only a question;
#: or it is to be made piece by piece, which notes it with its bytes.
_NOTED, _ASKED, _IN_PIECES = 0, 1, 2


@compiled
def find(leaves: Records, regions: Records, address: int) -> int:
    """Number of the region in a `RegionMap` that holds the byte at `address`, -1 if none does."""
    low = 0
    high = len(leaves)
    while low < high:
        middle = (low + high) // 2
        if leaves[middle].start <= address:
            low = middle + 1
        else:
            high = middle
    if low == 0:
        return -1
    leaf = leaves[low - 1]
    first = i64(leaf.first)
    low = first
    high = first + i64(leaf.count)
    while low < high:
        middle = (low + high) // 2
        if regions[middle].start <= address:
            low = middle + 1
        else:
            high = middle
    found = low - 1
    if found >= first and address - regions[found].start < regions[found].size:
        return found
    return -1


@inlined
def _find(state: State, address: int) -> int:
    return find(state.region_leaves, state.regions, address)


@inlined
def _host(state: State, number: int, address: int, count: int, right: int) -> int:
    """What `locate` returns, if the region with this number (which need not exist) holds the range; else 0."""
    if number < 0 or number >= len(state.regions):
        return _NOWHERE
    region = state.regions[number]
    offset = address - region.start
    if (
        offset >= region.size
        or u64(count) > region.size - offset
        or region.host == _NOWHERE
        or region.flags & right == 0
    ):
        return _NOWHERE
    return u64(region.host + offset)


@inlined
def reachable(state: State, address: int, count: int, right: int) -> bool:
    """The same as `accessible`, but quicker where one region holds the whole range."""
    host, _ = _locate(state, address, count, right, _ASKED)
    return host != _NOWHERE or accessible(state, address, count, right)


@inlined
def reachable_at_once(state: State, address: int, count: int, right: int) -> bool:
    """The same as `reachable`, but false for memory without a descriptor, which is reached by messages only."""
    host, _ = _locate(state, address, count, right, _ASKED)
    return host != _NOWHERE or (state.device[0].remote == 0 and accessible(state, address, count, right))


@inlined
def _note_located(state: State, address: int, host: int, count: int, right: int) -> None:
    if right == READ:
        note(state, address, host, count, 0, _DESCRIPTOR)
    else:
        note(state, address, _NOWHERE, count, 1, _COMPLETION)


@inlined
def _locate(state: State, address: int, count: int, right: int, noting: int) -> tuple[int, int]:
    """See `locate`; `noting` says what becomes of it while accesses are noted."""
    device = state.device[0]
    found = i64(device.region)
    host = _host(state, found, address, count, right)
    if host != _NOWHERE:
        return host, found
    found = i64(device.region_before)
    host = _host(state, found, address, count, right)
    if host == _NOWHERE:
        found = i64(_find(state, address))
        host = _host(state, found, address, count, right)
        if host == _NOWHERE:
            return _NOWHERE, found
        if device.noting != 0:
            if noting == _IN_PIECES:
                return _NOWHERE, found
            if noting == _NOTED:
                _note_located(state, address, host, count, right)
            return host, found
    device.region_before = device.region
    device.region = found
    return host, found


@inlined
def locate(state: State, address: int, count: int, right: int) -> tuple[int, int]:
    """Where `count` bytes at guest address `address` are, if one region holds them all: an entry of a ring.

    Returns:
        Their address in this process, 0 if no region does, and the region's number, for `book`.
    """
    return _locate(state, address, count, right, _NOTED)


@inlined
def book(state: State, row: int, purpose: int, region: int, count: int) -> None:
    """Book an access of `count` bytes in the ledger, by the kind of memory that a region is (`locate`)."""
    state.ledger[row, purpose, state.regions[region].kind] += count


@compiled
def accessible(state: State, address: int, count: int, right: int) -> bool:
    """Whether all `count` bytes can be reached, across regions if need be; none of them is beyond the last address."""
    left = u64(count)
    if left > _NOWHERE and left - u64(1) > _LAST_ADDRESS - address:
        return False
    position = address
    while left > _NOWHERE:
        found = _find(state, position)
        if found < 0:
            return False
        region = state.regions[found]
        if region.flags & right == 0 or (region.host == _NOWHERE and state.device[0].mapped_only != 0):
            return False
        piece = region.size - (position - region.start)
        if piece >= left:
            return True
        left -= piece
        position += piece
    return True


@compiled
def _write_across(state: State, row: int, purpose: int, address: int, source: int, count: int) -> bool:
    if not accessible(state, address, count, WRITE):
        return False
    left = u64(count)
    while left > _NOWHERE:
        region = state.regions[_find(state, address)]
        offset = address - region.start
        piece = min(region.size - offset, left)
        if region.host == _NOWHERE:
            if not write_later(state, address, source, i64(piece), 0):
                return False
        else:
            copy(region.host + offset, source, i64(piece))
            if state.device[0].noting != 0:
                note(state, address, source, i64(piece), 1, purpose)
        state.ledger[row, purpose, region.kind] += i64(piece)
        left -= piece
        address += piece
        source += piece
    return True


@compiled
def _read_across(state: State, row: int, purpose: int, address: int, destination: int, count: int) -> bool:
    if not accessible(state, address, count, READ):
        return False
    left = u64(count)
    while left > _NOWHERE:
        region = state.regions[_find(state, address)]
        offset = address - region.start
        piece = min(region.size - offset, left)
        origin = region.host + offset
        if region.host == _NOWHERE:
            origin = read_before(state, address, i64(piece))
            if origin == _NOWHERE:
                return False
        copy(destination, origin, i64(piece))
        if state.device[0].noting != 0:
            note(state, address, destination, i64(piece), 0, purpose)
        state.ledger[row, purpose, region.kind] += i64(piece)
        left -= piece
        address += piece
        destination += piece
    return True


@inlined
def write(state: State, row: int, purpose: int, address: int, source: int, count: int) -> bool:
    """Write `count` bytes from this process's address `source` to guest address `address`.

    Returns:
        False, and nothing written, when any byte is outside of what the guest mapped for writing.
    """
    host, region = _locate(state, address, count, WRITE, _IN_PIECES)
    if host == _NOWHERE:
        return _write_across(state, row, purpose, address, source, count)
    copy(host, source, count)
    book(state, row, purpose, region, count)
    return True


@inlined
def read(state: State, row: int, purpose: int, address: int, destination: int, count: int) -> bool:
    """Read `count` bytes at guest address `address` to this process's address `destination`; else as `write`."""
    host, region = _locate(state, address, count, READ, _IN_PIECES)
    if host == _NOWHERE:
        return _read_across(state, row, purpose, address, destination, count)
    copy(destination, host, count)
    book(state, row, purpose, region, count)
    return True


@compiled
def read_pieces_later(state: State, count: int) -> bool:
    """Have read what of the packet's `count` pieces is in memory without a descriptor; whether some is to wait for.

    A piece that is not wholly mapped is not wanted: reading it is a DMA fault.
    """
    waits = False
    for k in range(count):
        address = state.pieces[k].address
        left = u64(state.pieces[k].length)
        if not accessible(state, address, i64(left), READ):
            continue
        while left > _NOWHERE:
            region = state.regions[_find(state, address)]
            piece = min(region.size - (address - region.start), left)
            if region.host == _NOWHERE and read_later(state, address, i64(piece)):
                waits = True
            left -= piece
            address += piece
    return waits


@inlined
def fault(state: State, address: int) -> None:
    """Remember a DMA fault: how many there were and where the last one was."""
    device = state.device[0]
    device.faults += 1
    device.fault_address = address
