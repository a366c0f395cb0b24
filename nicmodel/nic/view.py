"""What a person or a program may see of a NIC, whatever its personality.

What the core knows is in the parts, by name. What only the personality can read (its rings, its commands, its
registers) it tells as plain data, by the methods of `View`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
import numpy.typing as npt

from nicmodel.nic.diagnostics import Diagnostics
from nicmodel.nic.dma_engine import DmaEngine
from nicmodel.nic.egress import Egress
from nicmodel.nic.events import Event
from nicmodel.nic.ingress import Ingress
from nicmodel.nic.interrupts import Interrupts
from nicmodel.nic.layout import Layout
from nicmodel.nic.port import Port
from nicmodel.nic.state import State
from nicmodel.pci.config import ConfigSpace
from nicmodel.vfio_user.device import ClientLink
from nicmodel.vfio_user.poll import EventLoop
from nicmodel.wire.wire import Wire

Numbers = npt.NDArray[np.int64]


class Offer(Protocol):
    """What a NIC offers, as far as anybody but its driver needs to know."""

    @property
    def mac(self) -> bytes:
        """Its address."""

    @property
    def queues(self) -> int:
        """The most receive queues, and transmit queues."""

    @property
    def vectors(self) -> int:
        """MSI-X vectors."""


class Listeners(Protocol):
    """Who listens to a decoder."""

    def wants(self, kind: str, queue: str | None = None) -> bool:
        """Whether anybody listens to such events, of that queue."""

    def emit(self, kind: str, **fields: Any) -> None:
        """Tell those who do."""


class Decoder(Protocol):
    """Tells what a driver and its NIC have said to one another, as plain data."""

    def hear(self, event: Event) -> None:
        """The NIC has told of a command, or of rings that are about to be read or were written."""

    def access(self, access: Literal["read", "write"], region: int, offset: int, data: bytes) -> None:
        """The driver has read or written one of the NIC's regions."""


@dataclass(frozen=True)
class Pieces:
    """What completions have brought, n of them, each with a data buffer and perhaps a header buffer.

    Attributes:
        decode: a completion by its number among them.
        addresses: of the data buffers' bytes, shape (n,).
        lengths: how many there are, shape (n,).
        header_addresses: of the header buffers, shape (n,).
        header_lengths: bytes there; 0: no header was split off. Shape (n,).
    """

    decode: Callable[[int], dict[str, Any]]
    addresses: npt.NDArray[np.uint64]
    lengths: Numbers
    header_addresses: npt.NDArray[np.uint64]
    header_lengths: Numbers


def pieces(
    completions: npt.NDArray[np.uint8], buffers: npt.NDArray[np.uint8], completion: Layout, buffer: Layout
) -> Pieces:
    """The pieces that completions have brought to buffers, as descriptors of either tell, both of shape (n, bytes).

    Args:
        completions: n of them.
        buffers: the descriptor of each one's buffer.
        completion: what the ones are like: the length in the buffer is `packet_length`, that of a header which was
            split off `header_length`.
        buffer: what the others are like.
    """
    words, posted = completions.view("<u8"), buffers.view("<u8")
    return Pieces(
        decode=lambda piece: completion.decode(completions[piece].tobytes()),
        addresses=buffer.buffer_address.of(posted),
        lengths=completion.packet_length.counts(words),
        header_addresses=buffer.header_address.of(posted),
        header_lengths=completion.header_length.counts(words) * completion.split_header.counts(words),
    )


class Buffers(Protocol):
    """The buffers that a NIC has had at some moment."""

    def used(self, queue: Numbers, first: Numbers, later: Numbers) -> Pieces:
        """What became of them since.

        Args:
            queue: receive queue of each completion, shape (n,).
            first: place in the ring of its frame's first completion, shape (n,).
            later: how many places behind that it is; rings end, and go on at 0. Shape (n,).
        """


class View(Protocol):
    """A NIC to whoever looks on.

    Attributes:
        below_switch: names of the kinds of memory that lie in a BAR below the same PCIe switch as the NIC.
    """

    below_switch: frozenset[str]

    @property
    def name(self) -> str:
        """For logs, and for a person."""

    @property
    def clock(self) -> Callable[[], int]:
        """The time, ns."""

    @property
    def poller(self) -> EventLoop:
        """The event loop."""

    @property
    def profile(self) -> Offer:
        """What it offers."""

    @property
    def state(self) -> State:
        """What receive and transmit work on."""

    @property
    def diagnostics(self) -> Diagnostics:
        """Observers, counters and failures."""

    @property
    def counters(self) -> Counter[str]:
        """Events of the control path, by name."""

    @property
    def lives(self) -> Mapping[str, int]:
        """How many lives have ended, of the ``device`` and by queue, such as ``rx3``."""

    @property
    def config(self) -> ConfigSpace:
        """The configuration space."""

    @property
    def link(self) -> ClientLink | None:
        """The client."""

    @property
    def dma(self) -> DmaEngine:
        """Guest memory."""

    @property
    def interrupts(self) -> Interrupts:
        """Vectors."""

    @property
    def ingress(self) -> Ingress[Any]:
        """The way of frames that come."""

    @property
    def egress(self) -> Egress[Any]:
        """The way of frames that leave."""

    @property
    def port(self) -> Port:
        """The wire, and the cable to it."""

    @property
    def wire(self) -> Wire:
        """Where its frames go."""

    @property
    def link_up(self) -> bool:
        """Whether frames pass."""

    @property
    def configured(self) -> bool:
        """Whether the driver has set the device up, so that there can be queues."""

    def set_cable(self, plugged: bool) -> None:
        """Plug the cable in or pull it."""

    def request_reset(self) -> None:
        """Have it ask its driver for a reset."""

    # What the personality tells.

    def queue(self, way: Literal["rx", "tx"], number: int) -> dict[str, Any]:
        """Settings and counters of a queue, by name."""

    def report(self) -> dict[str, Any]:
        """What a snapshot has besides (`nicmodel.observe.snapshot`)."""

    def detail(self) -> dict[str, Any]:
        """What its detail has besides (`nicmodel.observe.detail`)."""

    def decoder(self, listeners: Listeners) -> Decoder:
        """What decodes its events."""

    def completions(self, queue: np.void, first: int, count: int) -> list[dict[str, Any]]:
        """`count` completions of a receive queue from index `first` on, decoded; none if the ring cannot be read.

        Args:
            queue: the queue's record.
            first: the index.
            count: how many.
        """

    def buffers(self) -> Buffers:
        """The buffers that its receive queues have now."""
