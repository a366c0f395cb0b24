"""Payload that tells whose it is: each byte carries the number of its owner, so that memory can be asked whose bytes it
holds, whatever the device and the driver say they have done.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
from scapy.layers.inet import IP, UDP
from scapy.layers.l2 import Ether

from nicmodel.gvnic.testing.loopback import Loopback
from nicmodel.nic.purpose import Purpose
from nicmodel.nic.state import KINDS
from nicmodel.testing.guest_memory import GuestMemory

#: Owners have numbers from 0; the upper four bits of a byte are one more, so that 0 is memory that nobody has written.
MAX_OWNERS = 15
MAC = bytes([2, 0, 0, 0, 0, 1])
#: Headers of Ethernet, IPv4 and UDP.
HEADER_BYTES = 14 + 20 + 8
#: The most payload that a NIC with an MTU of 1500 receives in one frame.
MAX_PAYLOAD = 1500 - 20 - 8
#: The destination port of owner 0's flow; the others' follow.
FIRST_PORT = 5001
#: The source port tells which of a flow's payloads it is.
_FIRST_VARIANT, _VARIANTS = 4000, 16


class Labelled:
    """Frames of a flow for each owner, and what is in them.

    Args:
        owners: how many.
        size: payload of each frame, bytes.

    Raises:
        ValueError: more owners than a byte can tell apart, or payload that no frame holds.
    """

    def __init__(self, owners: int, size: int) -> None:
        if not 0 < owners <= MAX_OWNERS:
            raise ValueError(f"{owners} owners: between 1 and {MAX_OWNERS} can be told apart")
        if not 0 < size <= MAX_PAYLOAD:
            raise ValueError(f"{size} bytes of payload: between 1 and {MAX_PAYLOAD} fit a frame")
        self.size = size
        random = np.random.default_rng(1)
        self._payloads = [
            [
                (random.integers(0, 16, size, np.uint8) | np.uint8((owner + 1) << 4)).tobytes()
                for _ in range(_VARIANTS)
            ]
            for owner in range(owners)
        ]  # fmt: skip
        self._frames = [
            [
                bytes(
                    Ether(src="02:00:00:00:00:02", dst=MAC.hex(":"))
                    / IP(src="192.0.2.2", dst="192.0.2.1")
                    / UDP(sport=_FIRST_VARIANT + variant, dport=FIRST_PORT + owner)
                    / payload
                )
                for variant, payload in enumerate(payloads)
            ]
            for owner, payloads in enumerate(self._payloads)
        ]

    def frame(self, owner: int, number: int) -> bytes:
        """A frame of an owner's flow; those with consecutive numbers differ."""
        return self._frames[owner][number % _VARIANTS]

    def payload(self, header: bytes) -> bytes:
        """What was sent behind a header."""
        variant = int.from_bytes(header[34:36], "big") - _FIRST_VARIANT
        return self._payloads[owner_of(header)][variant]


def owner_of(header: bytes) -> int:
    """Whose flow a header belongs to."""
    return int.from_bytes(header[36:38], "big") - FIRST_PORT


def whose(data: npt.NDArray[np.uint8]) -> Counter[int]:
    """How many bytes of each owner's payload are in memory, shape (bytes,); untouched bytes are left out."""
    counts = np.bincount(data >> 4, minlength=MAX_OWNERS + 1)
    return Counter({owner: int(counts[owner + 1]) for owner in range(MAX_OWNERS) if counts[owner + 1]})


def different(sent: bytes, found: bytes) -> int:
    """How many bytes of a payload are not as they were sent, missing ones and those too many included."""
    if sent == found:
        return 0
    return sum(a != b for a, b in zip(sent, found, strict=False)) + abs(len(sent) - len(found))


def contradictions(
    lab: Loopback, queue: int, memories: Sequence[GuestMemory], books: Mapping[tuple[int, int], int]
) -> list[str]:
    """What contradicts a driver's books: the NIC's own, and what memory itself says.

    Args:
        lab: the NIC.
        queue: the receive queue that all payload came to.
        memories: where it went, all of it in the NIC's ledger by its name.
        books: bytes by whose they are, and which of the memories they are in.
    """
    kinds = lab.nic.dma.kinds
    ledger = lab.nic.state.ledger[queue, Purpose.PAYLOAD]
    booked: Counter[str] = Counter()
    for (_, where), count in books.items():
        name = memories[where].name
        booked[name if name in kinds else "other"] += count  # the ledger tells so many kinds apart
    found = [
        f"{name} has had {booked[name]:,} bytes, the NIC's ledger says {int(count):,}"
        for name, count in zip([*kinds, "other"], [*ledger[: len(kinds)], ledger[KINDS - 1]], strict=True)
        if booked[name] != count
    ]
    for number, memory in enumerate(memories):
        owners = {owner for owner, where in books if where == number}
        if memory is not lab.ram and (strange := set(whose(memory.bytes)) - owners):
            found.append(f"{memory.name} holds payload of owners {sorted(strange)}, who were not seen there")
    return found
