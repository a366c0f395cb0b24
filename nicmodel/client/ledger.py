"""The ledger of DMA: every byte that a NIC has written to the guest's memory or read from it, and the way it went.

The device books by queue, purpose and kind of memory (`nicmodel.nic.purpose.Purpose`), and the purpose says in which
direction. Which way a byte goes depends on where in the guest's PCI topology the memory is: the user says so, or QEMU
(`nicmodel.client.topology`). Peer-to-peer DMA between two devices below one switch turns round at the switch; all
other DMA passes the root complex (PCI Express Base 5.0, section 1.3).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from nicmodel.nic.purpose import Purpose


class Place(StrEnum):
    """What memory is, as the NIC reaches it."""

    RAM = "guest RAM"
    NODE = "NUMA node"
    BAR = "BAR"
    #: A BAR of a device below the same switch as the NIC.
    PEER = "BAR, same switch"
    #: Not guest RAM, and nobody said what.
    DEVICE = "device memory, nobody said where"

    @property
    def path(self) -> str:
        """The way to it."""
        return {Place.PEER: SWITCH, Place.DEVICE: UNKNOWN}.get(self, ROOT_COMPLEX)


ROOT_COMPLEX = "root complex"
SWITCH = "switch"
UNKNOWN = "unknown"

#: Purposes as they are summed up for a person. The admin queue is a ring too, and the statistics are as little.
GROUPS = {
    "payload": (Purpose.PAYLOAD, Purpose.TRANSMIT),
    "headers": (Purpose.HEADER,),
    "rings": (Purpose.DESCRIPTOR, Purpose.COMPLETION, Purpose.COMMAND, Purpose.ANSWER, Purpose.STATISTICS),
}


@dataclass(frozen=True)
class Entry:
    """Bytes of DMA that have all this in common.

    Attributes:
        queue: ``rx3``, ``tx0``; ``device`` for the admin queue and the statistics.
        direction: ``write`` or ``read``: what the device does.
        purpose: a `Purpose`, lower case.
        memory: name of the kind of memory.
        place: what that memory is.
        path: ``root complex``, ``switch``, or ``unknown`` where nobody said what the memory is.
        bytes: how many.
    """

    queue: str
    direction: str
    purpose: str
    memory: str
    place: Place
    path: str
    bytes: int

    @property
    def group(self) -> str:
        """The one of `GROUPS` that the purpose is in."""
        return next(name for name, purposes in GROUPS.items() if Purpose[self.purpose.upper()] in purposes)


def entries(nic: Mapping[str, Any], places: Mapping[str, Place] | None = None) -> list[Entry]:
    """The ledger of a NIC.

    Args:
        nic: its `nicmodel.observe.snapshot`.
        places: what kinds of memory are, by name. Of others what the server was told counts (``below_switch``).
    """
    known = {"ram": Place.RAM} | dict.fromkeys(nic["below_switch"], Place.PEER) | dict(places or {})
    return [
        Entry(queue, "write" if Purpose[purpose.upper()].written else "read", purpose, memory, place, place.path, count)
        for queue, ledger in _ledgers(nic)
        for purpose, kinds in ledger.items()
        for memory, count in kinds.items()
        for place in (known.get(memory, Place.DEVICE),)
    ]


def _ledgers(nic: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Mapping[str, int]]]]:
    for way in ("rx", "tx"):
        for queue in nic[f"{way}_queues"]:
            yield f"{way}{queue['queue']}", queue["dma"]
    yield "device", nic["device_dma"]


def total(ledger: Iterable[Entry], **having: str) -> int:
    """Bytes of the entries whose attributes are these: ``total(ledger, queue="rx3", group="payload")``."""
    return sum(entry.bytes for entry in ledger if all(getattr(entry, name) == value for name, value in having.items()))


def since(before: Iterable[Entry], after: Iterable[Entry]) -> list[Entry]:
    """What has been moved between two looks; nothing of what has not changed."""
    was = {_key(entry): entry.bytes for entry in before}
    moved = [(entry, entry.bytes - was.get(_key(entry), 0)) for entry in after]
    return [Entry(*_key(entry), count) for entry, count in moved if count]


def _key(entry: Entry) -> tuple[str, str, str, str, Place, str]:
    return entry.queue, entry.direction, entry.purpose, entry.memory, entry.place, entry.path
