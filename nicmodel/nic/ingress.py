"""Receive, batch by batch: from the wire, or from the backlog once more, to the queues of the driver."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Generic, Protocol, TypeVar

import numpy as np
import numpy.typing as npt

from nicmodel.nic import events
from nicmodel.nic.backlog import HELD_FRAMES, HELD_NS, HELD_PER_QUEUE, Backlog
from nicmodel.nic.diagnostics import Diagnostics
from nicmodel.nic.dma_engine import DmaEngine
from nicmodel.nic.interrupts import Interrupts
from nicmodel.nic.messages import Messages
from nicmodel.nic.port import Port
from nicmodel.nic.state import OUTCOME, Drop, Records, State
from nicmodel.packet.frames import Batch

#: Bytes from the wire that the driver is told of at once, whatever else waits: it has buffers to post for more.
_LITTLE = 16 << 10

S = TypeVar("S", bound=State)
S_contra = TypeVar("S_contra", bound=State, contravariant=True)


class Receive(Protocol[S_contra]):
    """A compiled loop that delivers a batch of frames: a personality has one for each of its queue formats."""

    def __call__(
        self, state: S_contra, data: npt.NDArray[np.uint8], frames: Records, count: int, now: int, oldest: int,
        limit: int, held_data: npt.NDArray[np.uint8], held_frames: Records, held: npt.NDArray[np.int64],
        outcomes: Records, /,
    ) -> int:  # fmt: skip
        """How many frames were delivered; for the arguments see `nicmodel.nic.receive.Batch`."""


class ReceiveDetour(Protocol[S]):
    """What is called in place of a loop, and with it."""

    def __call__(
        self, receive: Receive[S], state: S, data: npt.NDArray[np.uint8], frames: Records, count: int, now: int,
        oldest: int, limit: int, held_data: npt.NDArray[np.uint8], held_frames: Records, held: npt.NDArray[np.int64],
        outcomes: Records, /,
    ) -> int:  # fmt: skip
        """See `Receive`."""


class Ingress(Generic[S]):
    """Takes frames: all end in a queue, in the backlog or in a counter.

    Args:
        state: the NIC's.
        receive: the loop.
        clock: current time, ns.
        port: without a cable nothing comes.
        dma: guest memory.
        messages: for memory that compiled code does not reach.
        interrupts: what tells the driver.
        diagnostics: told of each batch.
        backlog: frames that wait for buffers.
        out_of_order: buffers are not used in the order in which they were posted: one just used may have stood before
            what a frame of the backlog waits for.
        then: called after each batch.

    Attributes:
        delivered: frames from the wire that ended in a queue: alone, in pieces, or merged with others.
        outcomes: where each frame of the last batch went, `OUTCOME`; its first entries are valid.
        receive: the same; that of the descriptor format which the driver has chosen.
        detour: called in place of `receive`, which it gets as a first argument; none is the default
            (`nicmodel.faults`).
    """

    def __init__(
        self,
        state: S,
        receive: Receive[S],
        clock: Callable[[], int],
        port: Port,
        dma: DmaEngine,
        messages: Messages,
        interrupts: Interrupts,
        diagnostics: Diagnostics,
        backlog: Backlog,
        *,
        out_of_order: bool = False,
        then: Callable[[], None] | None = None,
    ) -> None:
        self.delivered = 0
        self._resting = False
        self.outcomes: Records = np.zeros(HELD_FRAMES, OUTCOME)
        self.detour: ReceiveDetour[S] | None = None
        self._state = state
        self.receive = receive
        self._clock = clock
        self._port = port
        self._dma = dma
        self._messages = messages
        self._interrupts = interrupts
        self._diagnostics = diagnostics
        self._backlog = backlog
        self._out_of_order = out_of_order
        self._then = then

    def load(self, *loops: Receive[S]) -> None:
        """Run loops like `receive` once on nothing (`Nic`)."""
        nothing, backlog, now = Batch(0, 0), self._backlog, self._clock()
        for loop in loops:
            loop(
                self._state, nothing.data, nothing.frames, 0, now, now - HELD_NS, HELD_PER_QUEUE,
                backlog.batch.data, backlog.batch.frames, backlog.held, self.outcomes,
            )  # fmt: skip

    def deliver(self, batch: Batch) -> None:
        """Frames from the wire: they have their end, or are in the backlog, before this returns."""
        if not self._port.cable:
            self._state.drops[-1, Drop.DEVICE_DOWN] += batch.count
            return
        try:
            before = self.delivered
            self._receive(batch)
            if self._backlog:  # what the driver has no time for is to cost its processors as little as can be
                self._resting = True
                self._port.rest(room=self.delivered > before)
            if self._out_of_order and self._backlog:
                self._retry_blocked()
        except Exception as error:  # the wire, or who sent this at its other end, has nothing to do with it
            self._diagnostics.fail("receive", error)
        if batch.used > _LITTLE:
            self._interrupts.fire()
        else:
            self._interrupts.fire_soon()

    def inject(self, batch: Batch) -> Records:
        """Take frames as if they came from the wire.

        Returns:
            Where each went, shape (batch.count,), `OUTCOME`.
        """
        self.deliver(batch)
        self._interrupts.fire()
        if self._port.cable:
            return self.outcomes[: batch.count].copy()
        lost = np.zeros(batch.count, OUTCOME)
        lost["verdict"] = Drop.DEVICE_DOWN
        lost["queue"] = lost["rule"] = lost["next"] = -1
        return lost

    def schedule(self) -> None:
        """The driver has posted buffers: have `work` try the backlog again."""
        self._backlog.due = True

    def work(self) -> None:
        """Try the backlog again, if there is reason to."""
        try:
            if self._backlog.due:
                self.retry()
        except Exception as error:
            self._diagnostics.fail("receive", error)

    def retry(self) -> None:
        """Try the backlog again; what still finds no buffers stays there."""
        self._backlog.due = False
        if self._backlog:
            self._receive(self._backlog.take())
        if self._resting and not self._backlog:
            self._resting = False
            self._port.go_on()

    def _retry_blocked(self) -> None:
        """Try the backlog again while that helps."""
        outcomes, self.outcomes = self.outcomes, np.zeros(HELD_FRAMES, OUTCOME)  # the batch's stay for `inject`
        delivered = -1
        while self._backlog and self.delivered != delivered:
            delivered = self.delivered
            self.retry()
        self.outcomes = outcomes

    def _receive(self, batch: Batch) -> None:
        diagnostics, backlog = self._diagnostics, self._backlog
        if len(self.outcomes) < batch.count:
            self.outcomes = np.zeros(len(batch.frames), OUTCOME)
        if diagnostics.observers:
            diagnostics.tell(events.Receiving(batch))
        remote = self._state.device["remote"][0]
        if remote:
            self._messages.make_room(batch)
        now = self._clock()
        receive: Receive[S] = self.receive if self.detour is None else partial(self.detour, self.receive)
        self.delivered += receive(
            self._state, batch.data, batch.frames, batch.count, now, now - HELD_NS, HELD_PER_QUEUE,
            backlog.batch.data, backlog.batch.frames, backlog.held, self.outcomes,
        )  # fmt: skip
        self._dma.lost()
        if remote:
            self._messages.write()
        if self._then is not None:
            self._then()
        if diagnostics.observers:
            diagnostics.tell(events.Received(batch, self.outcomes))
