"""What happens between driver and device, decoded: registers, doorbells, admin commands, descriptors, interrupts.

What is the device's own is decoded by its personality (`nicmodel.nic.view.Decoder`). An event is a dictionary, ready
for JSON:

- ``time``: the NIC's clock, ns; ``nic``: its name; ``kind``: one of `KINDS`;
- ``queue``, where there is one: ``rx3`` or ``tx0``;
- what else there is, the methods of `Tracer` and of the decoder show, one for each thing that the device or its server
  reports.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

from nicmodel.faults.fault import shortened
from nicmodel.nearest import did_you_mean
from nicmodel.nic import events
from nicmodel.nic.plain import rights, served
from nicmodel.nic.view import View
from nicmodel.vfio_user.protocol import PciIrq

log = logging.getLogger(__name__)

Event = dict[str, Any]

#: Kinds of events.
KINDS = (
    "client", "config", "register", "msix", "doorbell", "admin", "interrupt", "vectors", "map", "unmap", "reset",
    "link", "rx", "tx", "fault", "injected", "error",
)  # fmt: skip


@dataclass(frozen=True, eq=False)
class Subscription:
    """Which observers get which events.

    Attributes:
        listener: called with each event.
        kinds: only these; all if empty.
        queues: only events of these queues, such as ``rx3``; all if empty.
    """

    listener: Callable[[Event], None]
    kinds: frozenset[str]
    queues: frozenset[str]

    def wants(self, kind: str, queue: str | None) -> bool:
        """Whether such an event was asked for."""
        return (not self.kinds or kind in self.kinds) and (not self.queues or queue in self.queues)


class Told(Protocol):
    """What tells of a client: a server (`nicmodel.vfio_user.server.Server`), or what stands for one.

    Attributes:
        on_trace: called as the server's documentation says.
    """

    on_trace: Callable[..., None] | None


class Tracer:
    """Decodes the events of one NIC while somebody listens; otherwise the NIC does not know of it.

    A NIC has one, which takes any number of listeners.

    Args:
        nic: the device.
        server: its vfio-user server, for register accesses and memory maps.
    """

    def __init__(self, nic: View, server: Told) -> None:
        self._nic = nic
        self._server = server
        self._subscriptions: list[Subscription] = []
        self._decoder = nic.decoder(self)
        self._of_server: dict[str, Callable[..., None]] = {
            "attach": self._attach,
            "detach": partial(self.emit, "client", what="detach"),
            "drop": partial(self.emit, "client", what="drop"),
            "region_read": partial(self._decoder.access, "read"),
            "region_write": partial(self._decoder.access, "write"),
            "dma_map": self._dma_map,
            "dma_unmap": partial(self.emit, "unmap"),
            "set_irqs": self._set_irqs,
            "dma_fault": partial(self.emit, "fault"),
            "error": partial(self.emit, "error"),
            "reset": lambda: None,  # the device says so itself, whatever the cause
        }

    def subscribe(
        self, listener: Callable[[Event], None], kinds: Collection[str] = (), queues: Collection[str] = ()
    ) -> Subscription:
        """Call `listener` with each event from now on, or only with those of some kinds and queues.

        Raises:
            ValueError: there is no such kind, or no such queue.
        """
        for kind in kinds:
            if kind not in KINDS:
                nearest = did_you_mean(kind, KINDS)
                raise ValueError(f"no events are of kind {shortened(kind)}; there are {', '.join(KINDS)}{nearest}")
        check_queues(self._nic, queues)
        subscription = Subscription(listener, frozenset(kinds), frozenset(queues))
        self._subscriptions.append(subscription)
        self._switch()
        return subscription

    def unsubscribe(self, subscription: Subscription) -> None:
        """End a subscription; one that has ended is ignored."""
        if subscription in self._subscriptions:
            self._subscriptions.remove(subscription)
            self._switch()

    def _switch(self) -> None:
        on = bool(self._subscriptions)
        if on:
            self._nic.diagnostics.watch(self._hear)
        else:
            self._nic.diagnostics.unwatch(self._hear)
        self._server.on_trace = self._hear_server if on else None

    def _hear(self, event: events.Event) -> None:
        """The device's hook: an error here must not become its own."""
        with self._surviving(type(event).__name__):
            self._of_device(event)

    def _hear_server(self, event: str, **fields: Any) -> None:
        """The server's, likewise."""
        with self._surviving(event):
            self._of_server[event](**fields)

    @contextmanager
    def _surviving(self, event: str) -> Iterator[None]:
        try:
            yield
        except Exception:
            log.exception("%s: the trace failed at %s", self._nic.name, event)
            self.emit("error", command=f"the trace failed at {event}")

    def _of_device(self, event: events.Event) -> None:
        match event:
            case events.Interrupting(vector):
                self._interrupt(vector)
            case events.LinkChanged(up):
                self.emit("link", up=up)
            case events.Resetting():
                self.emit("reset", what="reset")
            case events.ResetRequested():
                self.emit("reset", what="requested of the driver")
            case events.Injected(fault, injection, details):
                self.emit("injected", fault=fault, injection=injection, **details)
            case events.Failed(reason, name):
                self.emit("error", **({"queue": name} if name else {}), reason=reason)
            case events.Read() | events.Write():
                pass  # told by the server, with what is there
            case events.Reset() | events.Releasing() | events.Released():
                pass  # the register's write tells, or the reset
            case events.CommandFetched():
                pass  # told when it is done, with its status
            case events.Sending():
                pass  # its frames are for captures
            case _:
                self._decoder.hear(event)

    def wants(self, kind: str, queue: str | None = None) -> bool:
        """Whether anybody listens to such events, of that queue, if it is about one."""
        return any(one.wants(kind, queue) for one in self._subscriptions)

    def emit(self, kind: str, **fields: Any) -> None:
        """Tell an event to all who listen to such."""
        event = {"time": self._nic.clock(), "nic": self._nic.name, "kind": kind, **fields}
        for subscription in tuple(self._subscriptions):
            if subscription.wants(kind, fields.get("queue")):
                subscription.listener(event)

    # The client: who it is, its memory and interrupts.

    def _attach(self, client: str, capabilities: Any) -> None:
        self.emit("client", what="attach", client=client)

    def _dma_map(self, address: int, size: int, offset: int, flags: int, descriptor: bool) -> None:
        self.emit("map", address=address, size=size, offset=offset, rights=rights(flags), descriptor=descriptor)

    def _set_irqs(self, index: int, start: int, count: int, flags: int, eventfds: int) -> None:
        self.emit("vectors", type=PciIrq(index).name, start=start, count=count, flags=flags, eventfds=eventfds)

    def _interrupt(self, vector: int) -> None:
        interrupts = self._nic.interrupts
        if vector == interrupts.management:
            self.emit("interrupt", vector=vector, what="management")
            return
        block = vector - interrupts.first
        queue = served(self._nic.state, block)
        self.emit("interrupt", vector=vector, block=block, **({"queue": queue} if queue else {}))


def check_queues(nic: View, queues: Collection[str]) -> None:
    """See that these are names of queues.

    Raises:
        ValueError: there is no such queue.
    """
    rx, tx = len(nic.state.rx), len(nic.state.tx)
    names = {*(f"rx{number}" for number in range(rx)), *(f"tx{number}" for number in range(tx))}
    for queue in queues:
        if queue not in names:
            raise ValueError(f"there is no queue {shortened(queue)}, but rx0 to rx{rx - 1} and tx0 to tx{tx - 1}")
