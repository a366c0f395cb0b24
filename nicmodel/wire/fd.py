"""A wire at a file descriptor that takes and gives whole frames: a tap, a packet socket, a datagram socket.

What they share is here: a batch for each turn of the event loop, sending until the kernel has no more room and going on
once it has, counting. What differs is in the classes derived from `FdWire`: the two compiled functions that move a
batch, and what errors mean.
"""

from __future__ import annotations

import errno
import logging
from collections.abc import Callable
from typing import Any

from nicmodel.packet.frames import Batch, Offload
from nicmodel.wire.wire import SPEED, Poller, new_counters

log = logging.getLogger(__name__)

#: Frames that are read while others wait for buffers, and twice as many in each turn after that; ns that a rest takes
#: at most, as other queues of the NIC may have room.
_FEW, _REST_NS = 64, 5_000_000
#: Losses that say something of who is at the other end, and nothing of this host: they are counted, and not logged.
_NOT_LOGGED = frozenset({"malformed", "not_connected"})


class FdWire:
    """What wires at a file descriptor have in common.

    A derived class sets `offloads`, and

    - `_read`: compiled; fills a batch from the descriptor: ``_read(fd, data, frames)`` returns the frames read, the
      bytes of `data` used, the bytes in the frames, how many things came that are no frames, and the errno that ended
      it, or 0. What it reads in one call is all that the wire does in one turn of the loop;
    - `_write`: compiled; ``_write(fd, data, frames, first, count)`` sends the frames from `first` on, and returns the
      index of the one that came to no good, or `count`; the bytes in the frames sent; the errno, or 0;
    - `_close`: what `stop` does besides leaving the poller.

    Args:
        name: `Wire.name`.
        fd: the descriptor, not blocking.
        incoming: for the frames that are read in one turn.
    """

    headroom = 0
    offloads: Offload
    speed = SPEED

    _read: Callable[..., tuple[int, int, int, int, int]]
    _write: Callable[..., tuple[int, int, int]]
    #: Under which name is counted what came and is no frame, and what is sent while nobody takes it.
    _no_frame = "malformed"
    _nobody = "not_connected"

    def __init__(self, name: str, fd: int, incoming: Batch) -> None:
        self.name = name
        self.up = True
        self.counters = new_counters()
        self._fd = fd
        self._incoming = incoming
        self._blocked = False  # `send` fell short, so `writable` is due
        self._most = len(incoming.frames)  # frames that are read in the next turn
        self._rest: Any = None  # the timer that ends a rest; None: there is none
        self._poller: Poller | None = None

    def start(
        self,
        poller: Poller,
        receive: Callable[[Batch], None],
        writable: Callable[[], None],
        link_changed: Callable[[], None],
    ) -> None:
        """See `Wire.start`."""
        self._poller, self._receive, self._writable, self._link_changed = poller, receive, writable, link_changed
        nothing = Batch(0, 0)  # loads the compiled code now and not with the first frame
        self._read(self._fd, nothing.data, nothing.frames)
        self._write(self._fd, nothing.data, nothing.frames, 0, 0)
        poller.add(self._fd, self._on_readable)

    def send(self, batch: Batch) -> bool:
        """See `Wire.send`."""
        while self.up:
            first = batch.sent
            batch.sent, octets, error = self._write(self._fd, batch.data, batch.frames, first, batch.count)
            self.counters["tx_frames"] += batch.sent - first
            self.counters["tx_bytes"] += octets
            if not error:
                return True
            if error == errno.EAGAIN and self._poller is not None:
                self.go_on()  # or the poller would not know the descriptor
                self._blocked = True
                self._poller.want_write(self._fd, self._on_writable)
                return False
            if not self._refused(batch, error):
                break
        if batch.sent < batch.count:
            self._lose(self._nobody, batch.count - batch.sent)
            batch.sent = batch.count
        return True

    def rest(self, *, room: bool) -> None:
        """See `Patient.rest`."""
        self._most = _FEW
        if room or self._blocked:
            return
        if self._rest is None and self._poller is not None and self._fd >= 0 and self.up:
            self._poller.remove(self._fd)
            self._rest = self._poller.call_at(self._poller.clock() + _REST_NS, self.go_on)

    def go_on(self) -> None:
        """See `Patient.go_on`."""
        if self._rest is not None and self._poller is not None:
            self._poller.cancel(self._rest)
            self._rest = None
            self._poller.add(self._fd, self._on_readable)

    def stop(self) -> None:
        """See `Wire.stop`."""
        if self._fd >= 0:
            self.go_on()
            self._leave()
            self._close()
            self._fd = -1

    def _close(self) -> None:
        """Close the descriptor, and give up what else the wire has."""
        raise NotImplementedError

    def _refused(self, batch: Batch, error: int) -> bool:
        """The kernel did not take the frame at ``batch.sent``: count it and go past it.

        Returns:
            Whether to go on; if not, nobody takes the other frames either.
        """
        self._lose(_named("refused", error))
        batch.sent += 1
        return True

    def _unreadable(self, error: int) -> None:
        """The kernel could not hand over what has come; `_incoming` has what came before."""
        self._lose(_named("unreadable", error))

    def _on_readable(self) -> None:
        batch = self._incoming
        batch.clear()
        frames = batch.frames
        if self._most < len(frames):
            frames = frames[: self._most]
            self._most *= 2
        batch.count, batch.used, octets, misfits, error = self._read(self._fd, batch.data, frames)
        self.counters["rx_frames"] += batch.count
        self.counters["rx_bytes"] += octets
        if misfits:
            self._lose(self._no_frame, misfits)
        if error not in (0, errno.EAGAIN):
            self._unreadable(error)
        if batch.count:
            self._receive(batch)

    def _on_writable(self) -> None:
        if self._poller is not None:
            self._poller.want_write(self._fd, None)
        self._resume()

    def _resume(self) -> None:
        """Have sent what waits, if anything does."""
        if self._blocked:
            self._blocked = False
            self._writable()

    def _leave(self) -> None:
        """The poller has nothing more to do with the descriptor."""
        if self._poller is not None:
            self._poller.remove(self._fd)

    def _lose(self, reason: str, count: int = 1) -> None:
        if not self.counters[reason] and reason not in _NOT_LOGGED:
            log.warning("%s: losing frames: %s", self.name, reason)
        self.counters[reason] += count


def _named(what: str, error: int) -> str:
    """The name of a loss by its errno, such as ``refused_einval``."""
    return f"{what}_{errno.errorcode.get(error, str(error)).lower()}"
