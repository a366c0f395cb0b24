"""Transmit, batch by batch: from the queues that have work, in turns, to the wire."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import Generic, Protocol, TypeVar

import numpy as np
import numpy.typing as npt

from nicmodel.nic import events
from nicmodel.nic.diagnostics import Diagnostics
from nicmodel.nic.dma_engine import DmaEngine
from nicmodel.nic.interrupts import Interrupts
from nicmodel.nic.messages import Messages
from nicmodel.nic.port import Port
from nicmodel.nic.state import Drop, Records, State, Taken
from nicmodel.packet.frames import NO_QUEUE, Batch
from nicmodel.vfio_user.poll import EventLoop

#: A batch on its way out holds the largest TSO packet cut into the smallest segments that Linux asks for (88 bytes). Of
#: what makes no frames there is a limit too: descriptors read, and segments that the wire is to make.
_OUT_BYTES = 1 << 21
_OUT_FRAMES = 4096
_OUT_WORK = 1 << 15
_FULL, _SHARE = int(Taken.FULL), int(Taken.SHARE)

S = TypeVar("S", bound=State)
S_contra = TypeVar("S_contra", bound=State, contravariant=True)


class Transmit(Protocol[S_contra]):
    """A compiled loop that takes packets from a transmit queue: a personality has one for each of its queue formats."""

    def __call__(
        self, state: S_contra, queue: int, out_data: npt.NDArray[np.uint8], out_frames: Records,
        used: npt.NDArray[np.int64], share: npt.NDArray[np.int64], headroom: int, offloads: int, /,
    ) -> int:  # fmt: skip
        """Take packets from an active queue until its tail, its share or the end of the batch is reached.

        Args:
            state: the device.
            queue: the queue's number.
            out_data: bytes of the batch that frames are added to.
            out_frames: its records (`FRAME`).
            used: see `nicmodel.nic.transmit.Out`.
            share: what this call may add to each of `used`, shape (3,); one packet is taken even if it is more.
            headroom: bytes to leave free before each frame.
            offloads: what the wire takes undone (`Offload`).

        Returns:
            Why it ended (`Taken`).
        """


class TransmitDetour(Protocol[S]):
    """What is called in place of a loop, and with it."""

    def __call__(
        self, transmit: Transmit[S], state: S, queue: int, out_data: npt.NDArray[np.uint8], out_frames: Records,
        used: npt.NDArray[np.int64], share: npt.NDArray[np.int64], headroom: int, offloads: int, /,
    ) -> int:  # fmt: skip
        """See `Transmit`."""


class Egress(Generic[S]):
    """Sends what the driver has posted.

    Args:
        state: the NIC's.
        transmit: the loop.
        poller: the event loop.
        port: the wire.
        dma: guest memory.
        messages: for memory that compiled code does not reach.
        interrupts: what tells the driver.
        diagnostics: told of each batch.

    Attributes:
        transmit: the same; that of the descriptor format which the driver has chosen.
        detour: called in place of `transmit`, which it gets as a first argument; none is the default
            (`nicmodel.faults`).
    """

    def __init__(
        self,
        state: S,
        transmit: Transmit[S],
        poller: EventLoop,
        port: Port,
        dma: DmaEngine,
        messages: Messages,
        interrupts: Interrupts,
        diagnostics: Diagnostics,
    ) -> None:
        self.transmit = transmit
        self.detour: TransmitDetour[S] | None = None
        self._state = state
        self._poller = poller
        self._port = port
        self._dma = dma
        self._messages = messages
        self._interrupts = interrupts
        self._diagnostics = diagnostics
        self._offloads = int(port.wire.offloads)
        #: The batch that goes out, and the frames, bytes and work in it.
        self._out = Batch(_OUT_BYTES, _OUT_FRAMES)
        self._used = np.zeros(3, np.int64)
        #: The turn of the event loop in which the last batch was made.
        self._turn = -1
        #: Queues that have work, the one whose turn it is first.
        self._dirty: dict[int, None] = {}
        #: What each of so many queues gets of a batch.
        most = np.array([_OUT_FRAMES, _OUT_BYTES, _OUT_WORK])
        self._shares = [most // max(queues, 1) for queues in range(len(state.tx) + 1)]

    def load(self, *loops: Transmit[S]) -> None:
        """Run loops like `transmit` once on nothing (`Nic`)."""
        for loop in loops:
            loop(
                self._state, 0, self._out.data, self._out.frames, self._used, self._shares[1],
                self._port.wire.headroom, self._offloads,
            )  # fmt: skip

    def schedule(self, queue: int) -> None:
        """A queue has work: have `work` do it."""
        self._dirty[queue] = None

    def forget(self, queue: int) -> None:
        """A queue has ended, and with it the work that it had."""
        self._dirty.pop(queue, None)

    def work(self) -> None:
        """Begin with the work that there is."""
        try:
            if self._dirty:
                self._make_batches()
        except Exception as error:
            self._diagnostics.fail("transmit", error)

    def go_on(self) -> None:
        """The wire takes frames again, or this NIC has its turn again."""
        with self._diagnostics.surviving("transmit"):
            if self._state.device["running"][0]:
                self._make_batches()
            elif self._out.sent < self._out.count:
                self._send(self._out)
        self._interrupts.fire_soon()

    def send(self, frames: Iterable[bytes]) -> int:
        """Put frames out on the wire, as if the driver had sent them; no queue counts them.

        Returns:
            How many the wire has taken: one that is busy takes no more.
        """
        if self._out.sent < self._out.count:
            return 0
        batch = Batch.of(frames, headroom=self._port.wire.headroom)
        batch.frames["queue"] = NO_QUEUE
        if self._diagnostics.observers:
            self._diagnostics.tell(events.Sending(batch))
        if self._port.cable:
            self._port.send(batch)
        return batch.sent

    def _make_batches(self) -> None:
        """Send a batch in each turn of the event loop, until no queue has work or the wire has to be waited for.

        The others have their turn in between, and this NIC's driver is heard.
        """
        out, used = self._out, self._used
        while True:
            if out.sent < out.count and not self._send(out):
                return
            out.clear()
            used[:] = 0
            if not self._dirty:
                return
            if self._turn == self._poller.turn:
                self._poller.next_turn(self.go_on)
                return
            self._turn = self._poller.turn
            self._take_turns()
            if self._dma.lost():  # nobody knows which of these bytes the driver has sent
                self._state.drops[-1, Drop.DMA_FAULT] += used[0]
                used[:] = 0
            out.count, out.used = int(used[0]), int(used[1])
            if self._diagnostics.observers:
                self._diagnostics.tell(events.Sending(out))

    def _take_turns(self) -> None:
        """Fill the batch with packets of the queues that have work, in turns: what is left of it is shared evenly."""
        dirty, out, used, diagnostics = self._dirty, self._out, self._used, self._diagnostics
        full = False
        while dirty and not full:
            queue = next(iter(dirty))
            if diagnostics.observers:
                diagnostics.tell(events.Transmitting(queue))
            transmit: Transmit[S] = self.transmit if self.detour is None else partial(self.detour, self.transmit)
            try:
                taken = transmit(
                    self._state, queue, out.data, out.frames, used, self._shares[len(dirty)],
                    self._port.wire.headroom, self._offloads,
                )  # fmt: skip
            except Exception as error:
                diagnostics.fail("transmit", error)
                taken = 0
            if diagnostics.observers:
                diagnostics.tell(events.Transmitted(queue))
            if taken == _FULL:  # it stays the first: in an empty batch there will be room
                full = True
                self._messages.read()
                continue
            del dirty[queue]
            if taken == _SHARE:
                dirty[queue] = None
                full = bool(used[2] >= _OUT_WORK)

    def _send(self, out: Batch) -> bool:
        if self._port.cable:
            try:
                return self._port.send(out)
            except Exception as error:  # a batch that the wire cannot take would stay for ever
                self._diagnostics.fail("wire", error)
        self._state.drops[-1, Drop.DEVICE_DOWN] += out.count - out.sent
        return True
