"""What transmit and receive queues have in common, driver's side."""

from __future__ import annotations

from collections.abc import Callable

from nicmodel.gvnic.declare import QUEUE_RESOURCES
from nicmodel.testing.guest_memory import GuestMemory

#: `page_list_id` of queues whose descriptors hold plain DMA addresses.
RAW_ADDRESSING = 0xFFFF_FFFF


class Queue:
    """A queue's place at the device, and the memory it is made of.

    Args:
        number: the queue's id.
        block: the notification block that serves it.
        ram: where rings go.
        ring_doorbell: writes one doorbell: index, value.
    """

    def __init__(self, number: int, block: int, ram: GuestMemory, ring_doorbell: Callable[[int, int], None]) -> None:
        self.number = number
        self.block = block
        self._ram = ram
        self._ring_doorbell = ring_doorbell
        self._memory: list[tuple[GuestMemory, int]] = []
        self.resources = self._allocate(QUEUE_RESOURCES.itemsize)

    @property
    def doorbell_index(self) -> int:
        """Where in BAR 2 the device wants the queue's doorbell; known once the queue is created."""
        return int(self._ram.records(self.resources, QUEUE_RESOURCES)["doorbell_index"][0])

    @property
    def counter_index(self) -> int:
        """The queue's entry in the counter array; known once the queue is created."""
        return int(self._ram.records(self.resources, QUEUE_RESOURCES)["counter_index"][0])

    def free(self) -> None:
        """Give all memory back; the device must have let go of it."""
        for memory, address in self._memory:
            memory.free(address)
        self._memory.clear()

    def _allocate(self, size: int, memory: GuestMemory | None = None) -> int:
        """Memory until `free`: a zeroed ring in ordinary memory, or buffers, as they are, in another."""
        place, address = (
            (self._ram, self._ram.allocate_zeroed(size)) if memory is None else (memory, memory.allocate(size))
        )
        self._memory.append((place, address))
        return address
