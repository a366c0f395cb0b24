"""The placement ring of a receive queue with deferred placement, driver's side (docs/options.md)."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from nicmodel.gvnic.options.deferred.declarations import (
    CONFIGURE_DEFERRED_PLACEMENT,
    PLACEMENT_COMPLETION,
    PLACEMENT_REQUEST,
    DeferFlag,
    PlacementStatus,
)
from nicmodel.gvnic.testing.queue import Queue
from nicmodel.testing.guest_memory import GuestMemory


class Placement(NamedTuple):
    """What became of a request."""

    handle: int
    status: PlacementStatus


class PlacementRing(Queue):
    """Requests where payload goes, and their completions.

    Args:
        number: the receive queue.
        block: its notification block.
        entries: of both rings.
        ram: where they go.
        ring_doorbell: writes one doorbell: index, value.

    Attributes:
        requests: the placement ring, shape (entries, 16), uint8.
        completions: its completion ring, shape (entries, 8), uint8.
    """

    def __init__(
        self, number: int, block: int, entries: int, ram: GuestMemory, ring_doorbell: Callable[[int, int], None]
    ) -> None:
        super().__init__(number, block, ram, ring_doorbell)
        self.entries = entries
        self._request_ring = self._allocate(entries * PLACEMENT_REQUEST.size)
        self._completion_ring = self._allocate(entries * PLACEMENT_COMPLETION.size)
        self.requests: npt.NDArray[np.uint8] = ram.view(
            self._request_ring, entries * PLACEMENT_REQUEST.size
        ).reshape(entries, -1)  # fmt: skip
        self.completions: npt.NDArray[np.uint8] = ram.view(
            self._completion_ring, entries * PLACEMENT_COMPLETION.size
        ).reshape(entries, -1)
        self._head = self._tail = self._completion = self._generation = 0

    def configure_command(self, *, headers_only: bool = False) -> npt.NDArray[np.void]:
        """The inner command that gives it to the device, `CONFIGURE_DEFERRED_PLACEMENT`."""
        command = np.zeros((), CONFIGURE_DEFERRED_PLACEMENT)
        command["queue_id"] = self.number
        command["flags"] = DeferFlag.HEADERS_ONLY if headers_only else DeferFlag(0)
        command["queue_resources_address"] = self.resources
        command["request_ring_address"] = self._request_ring
        command["completion_ring_address"] = self._completion_ring
        command["entries"] = self.entries
        return command

    @property
    def room(self) -> int:
        """Descriptors that can be posted."""
        return (self._head - self._tail - 1) % self.entries

    def place(self, handle: int, pieces: Iterable[tuple[int, int]], *, ring: bool = True) -> None:
        """Have a payload written to `pieces` of memory, guest addresses and lengths, which it fills exactly.

        Args:
            handle: of the payload.
            pieces: where its bytes go, in order.
            ring: False leaves the doorbell to a later request.

        Raises:
            BufferError: the ring has no room for all the pieces.
        """
        self._post([{"handle": handle, "address": address, "length": length} for address, length in pieces], ring)

    def drop(self, handle: int, *, ring: bool = True) -> None:
        """Have a payload dropped; else as `place`."""
        self._post([{"handle": handle, "drop": 1}], ring)

    def post(self, *descriptors: dict[str, int], ring: bool = True) -> None:
        """Post descriptors (fields of `PLACEMENT_REQUEST`) as they are; else as `place`."""
        if len(descriptors) > self.room:
            raise BufferError(f"placement ring {self.number}: {len(descriptors)} descriptors, room for {self.room}")
        for fields in descriptors:
            self.requests[self._tail] = np.frombuffer(PLACEMENT_REQUEST.encode(**fields), np.uint8)
            self._tail = (self._tail + 1) % self.entries
        if ring:
            self._ring_doorbell(self.doorbell_index, self._tail)

    def poll(self) -> list[Placement]:
        """What has become of requests since the last call, in their order."""
        found: list[Placement] = []
        while True:
            raw = self.completions[self._completion].tobytes()
            if PLACEMENT_COMPLETION.generation.get(raw) == self._generation:
                return found
            self._completion = (self._completion + 1) % self.entries
            if self._completion == 0:
                self._generation ^= 1
            self._head = PLACEMENT_COMPLETION.head.get(raw)
            status = PlacementStatus(PLACEMENT_COMPLETION.status.get(raw))
            found.append(Placement(PLACEMENT_COMPLETION.handle.get(raw), status))

    def _post(self, descriptors: list[dict[str, int]], ring: bool) -> None:
        descriptors[-1]["end_of_request"] = 1
        self.post(*descriptors, ring=ring)
