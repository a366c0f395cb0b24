"""A receive queue with data buffers in the memories of several owners, driver's side (docs/options.md)."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from nicmodel.gvnic.descriptors import RX_BUFFER
from nicmodel.gvnic.options.owners.declarations import RX_BUFFER_OWNER
from nicmodel.gvnic.testing.rx import RxConfig, RxPacket, RxQueue
from nicmodel.testing.guest_memory import GuestMemory


class SharedRxQueue(RxQueue):
    """A receive queue like `RxQueue` whose buffer `id` belongs to owner ``id % owners``. Buffers come back when their
    packet is done with.

    Args:
        number: the queue's id.
        block: the notification block that serves it.
        config: ring and buffer sizes.
        ram: where rings and header buffers go.
        memories: of each owner.
        ptypes: the device's packet-type map.
        ring_doorbell: writes one doorbell.

    Attributes:
        tagged: whether the device knows the owner of each buffer, and so may use them in any order.
    """

    _reclaims = False

    def __init__(
        self,
        number: int,
        block: int,
        config: RxConfig,
        *,
        ram: GuestMemory,
        memories: Sequence[GuestMemory],
        ptypes: npt.NDArray[np.void],
        ring_doorbell: Callable[[int, int], None],
    ) -> None:
        super().__init__(
            number, block, config, ram=ram, payload_memory=memories[0], ptypes=ptypes, ring_doorbell=ring_doorbell
        )  # fmt: skip
        self.memories = tuple(memories)
        self.tagged = False
        places = [self._allocate(config.entries * config.buffer_size, memory) for memory in memories]
        ids = np.arange(config.entries, dtype=np.uint64)
        bases = np.array(places, np.uint64)[ids % np.uint64(len(memories))]
        self.descriptors[:, RX_BUFFER.buffer_address.word] = bases + ids * np.uint64(config.buffer_size)

    def tag(self) -> None:
        """Write the owner into each buffer's descriptor; none has been posted."""
        self.tagged = True
        owners = np.arange(self.config.entries, dtype=np.uint64) % np.uint64(len(self.memories))
        self.descriptors[:, RX_BUFFER_OWNER.owner.word] |= owners << np.uint64(RX_BUFFER_OWNER.owner.shift)

    def owner(self, identity: int) -> int:
        """The owner of a buffer."""
        return identity % len(self.memories)

    def give_back(self, packet: RxPacket) -> None:
        """The packet has been done with: its buffers can be posted again."""
        for buffer in packet.buffers:
            self._reclaim(buffer.id)

    def free_of(self, owner: int) -> int:
        """How many buffers of an owner's are not posted and not in use."""
        return sum(self.owner(int(identity)) == owner for identity in self._free[: int(self.state.free)])

    def _match(self, identity: int) -> bytes | None:
        if not self.tagged:
            return super()._match(identity)
        if identity >= self.config.entries or identity in self._free[: int(self.state.free)]:
            return None
        descriptor: bytes = self.descriptors[identity].tobytes()
        return descriptor

    def _memory_of(self, identity: int) -> GuestMemory:
        return self.memories[self.owner(identity)]
