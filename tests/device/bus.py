"""Guest memory as a logic analyser on the bus would see it: each access of the device, booked a second time.

It stands below the packet path, in place of the functions by which alone that path reaches memory
(`nicmodel.jit.addresses`) and of `DmaTable.read` and `.write`, so it works where the packet path is interpreted
(NUMBA_DISABLE_JIT=1). A structure that was asked for by `locate` counts whole once any of it is loaded or stored, as a
device fetches and posts whole structures; copies count what they copy.
"""

from __future__ import annotations

import sys
from collections import Counter, deque
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from nicmodel.gvnic.device import Nic
from nicmodel.jit import addresses
from nicmodel.nic import dma
from nicmodel.nic.purpose import Purpose
from nicmodel.vfio_user.dma import DmaTable

READ, WRITE = "read", "write"
_LOADS = ("load_u8", "load_u16", "load_u32", "load_u64")
_STORES = ("store_u8", "store_u16", "store_u32", "store_u64", "publish_u32", "publish_u64")


class Bus:
    """Counts what the device reads and writes from now on.

    Args:
        nic: the device.
        monkeypatch: undoes it in the end.

    Attributes:
        moved: bytes by direction and kind of memory.
    """

    def __init__(self, nic: Nic, monkeypatch: pytest.MonkeyPatch) -> None:
        self.moved: Counter[tuple[str, int]] = Counter()
        self._nic = nic
        #: Structures that were asked for lately: host address, bytes, and in which directions they were touched.
        self._asked: deque[tuple[int, int, set[str]]] = deque(maxlen=4096)
        wrappers: dict[Any, Callable[..., Any]] = {dma.locate: self._locating(dma.locate)}
        for names, way in ((_LOADS, READ), (_STORES, WRITE)):
            for name in names:
                function = getattr(addresses, name)
                wrappers[function] = self._touching(function, way)
        wrappers[addresses.copy] = self._copying(addresses.copy)
        for name, module in list(sys.modules.items()):
            # What onlookers read is not on the bus.
            if name.startswith(("nicmodel.gvnic.", "nicmodel.nic.")) and name != "nicmodel.nic.peek":
                for attribute, value in list(vars(module).items()):
                    if callable(value) and value in wrappers:
                        monkeypatch.setattr(module, attribute, wrappers[value])
        monkeypatch.setattr(DmaTable, "read", self._reading(DmaTable.read))
        monkeypatch.setattr(DmaTable, "write", self._writing(DmaTable.write))

    def booked(self) -> Counter[tuple[str, int]]:
        """The device's own account in the same form."""
        result: Counter[tuple[str, int]] = Counter()
        for purpose in Purpose:
            for kind, count in enumerate(self._nic.state.ledger[:, purpose].sum(axis=0).tolist()):
                result[WRITE if purpose.written else READ, kind] += count
        return +result

    def _book(self, way: str, host: int, count: int) -> None:
        """Book an access at an address of this process, if it is to guest memory."""
        regions = self._nic.state.memory_map.flat()
        offsets = np.uint64(host) - regions["host"]
        [inside] = np.nonzero((regions["host"] != 0) & (offsets < regions["size"]))
        if len(inside):
            self.moved[way, int(regions[inside[0]]["kind"])] += count

    def _locating(self, locate: Callable[..., tuple[int, int]]) -> Callable[..., tuple[int, int]]:
        def observed(state: Any, address: int, count: int, right: int) -> tuple[int, int]:
            host, region = locate(state, address, count, right)
            if host:
                self._asked.append((int(host), int(count), set()))
            return host, region

        return observed

    def _touching(self, access: Callable[..., Any], way: str) -> Callable[..., Any]:
        def observed(address: int, *value: int) -> Any:
            for host, count, touched in reversed(self._asked):
                if host <= address < host + count:
                    if way not in touched:
                        touched.add(way)
                        self._book(way, host, count)
                    break
            else:
                self._book(way, int(address), 1)
            return access(address, *value)

        return observed

    def _copying(self, copy: Callable[..., None]) -> Callable[..., None]:
        def observed(destination: int, source: int, count: int) -> None:
            self._book(WRITE, int(destination), int(count))
            self._book(READ, int(source), int(count))
            copy(destination, source, count)

        return observed

    def _reading(self, read: Callable[..., bytes]) -> Callable[..., bytes]:
        def observed(table: DmaTable, address: int, count: int) -> bytes:
            data = read(table, address, count)
            self._book_address(READ, address, count)
            return data

        return observed

    def _writing(self, write: Callable[..., None]) -> Callable[..., None]:
        def observed(table: DmaTable, address: int, data: bytes) -> None:
            write(table, address, data)
            self._book_address(WRITE, address, len(data))

        return observed

    def _book_address(self, way: str, address: int, count: int) -> None:
        for region in self._nic.state.memory_map.flat():
            start, end = int(region["start"]), int(region["start"]) + int(region["size"])
            inside = min(end, address + count) - max(start, address)
            if inside > 0:
                self.moved[way, int(region["kind"])] += inside
