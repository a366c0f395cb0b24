"""Frames over a stream socket, each after its length in 32 bits, big-endian.

It is what QEMU's ``-netdev stream`` and passt speak (QEMU net/stream.c; passt(1)). On the way out the lengths go into
the room before each frame, so that a whole batch leaves by one system call; on the way in the frames are handed on
where they were received.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import socket
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from nicmodel.jit.compiled import compiled
from nicmodel.packet.frames import MAX_FRAME, Batch, Offload
from nicmodel.packet.words import load_be32, store_be32
from nicmodel.wire.address import bind, resolve
from nicmodel.wire.wire import SPEED, Poller, WireError, new_counters

log = logging.getLogger(__name__)

#: Bytes of length before each frame.
PREFIX = 4
#: Pause between two attempts to connect, ns.
RETRY_NS = 500_000_000


@compiled
def _parse(
    data: npt.NDArray[np.uint8], start: int, end: int, frames: npt.NDArray[np.void]
) -> tuple[int, int, int, int]:
    """Find the frames in ``data[start:end]``.

    Returns:
        Frames found; index of the first byte not used; bytes in the frames; the length that is none (0, or above
        `MAX_FRAME`) which the next frame claims to have, or -1.
    """
    octets = 0
    count = 0
    while count < len(frames) and end - start >= PREFIX:
        length = load_be32(data, start)
        if length == 0 or length > MAX_FRAME:
            return count, start, octets, length
        if end - start < PREFIX + length:
            break
        frame = frames[count]
        frame["offset"] = start + PREFIX
        frame["length"] = length
        frame["time"] = 0
        frame["flags"] = 0
        frame["gso"] = 0
        frame["segment"] = 0
        frame["header"] = 0
        frame["csum_start"] = 0
        frame["csum_offset"] = 0
        start += PREFIX + length
        octets += length
        count += 1
    return count, start, octets, -1


@compiled
def _put_lengths(
    data: npt.NDArray[np.uint8], frames: npt.NDArray[np.void], first: int, count: int
) -> tuple[int, int, int]:
    """Write the length before each of the frames from `first` on that lie back to back.

    Returns:
        Index after the last of them; bytes of `data` where they begin and end, lengths included.
    """
    if first == count:
        return first, 0, 0
    start = int(frames[first]["offset"]) - PREFIX
    end = start
    index = first
    while index < count and end >= 0 and int(frames[index]["offset"]) - PREFIX == end:
        length = int(frames[index]["length"])
        store_be32(data, end, length)
        end += PREFIX + length
        index += 1
    return index, start, end


class StreamWire:
    """A UNIX or TCP stream socket. Its link is up while there is a peer.

    A lost peer is waited for: the listener takes the next one, the connector tries again every `RETRY_NS`. One peer at
    a time is served; others wait in the listener's backlog.

    Args:
        connect: where the peer listens: the path of a UNIX socket, or HOST:PORT.
        listen: where to listen, likewise. A path left behind by a process that is gone is taken over.
        fd: a connected socket, the wire's from then on. Its peer cannot come back.

    Losses counted: ``not_connected``, sent without a peer; ``truncated``, the peer went away within a frame;
    ``protocol_error``, a length of 0 or above `MAX_FRAME`, upon which the peer is dropped.

    Raises:
        WireError: no socket can be had at that address.
    """

    headroom = PREFIX
    offloads = Offload.NONE
    speed = SPEED

    _poller: Poller  # from `start` on

    def __init__(self, *, connect: str | None = None, listen: str | None = None, fd: int | None = None) -> None:
        self._target: tuple[int, Any] | None = None
        self._listener: socket.socket | None = None
        self._inherited: socket.socket | None = None
        if connect is not None:
            self.name = f"stream:{connect}"
            self._target = resolve(connect, socket.SOCK_STREAM)
        elif listen is not None:
            self.name = f"stream:listen={listen}"
            family, address = resolve(listen, socket.SOCK_STREAM)
            self._listener = bind(family, socket.SOCK_STREAM, address)
            self._listener.listen()
        elif fd is not None:
            self.name = f"stream:fd={fd}"
            self._inherited = _inherit(fd)
        else:
            raise ValueError("one of connect, listen and fd is needed")
        self.up = False
        self.counters = new_counters()
        self._started = False
        self._incoming = Batch(1 << 20, 1024)
        self._peer: socket.socket | None = None
        self._connecting: socket.socket | None = None
        self._retry: Any = None
        self._refusal: str | None = ""
        self._forget()

    def _forget(self) -> None:
        """Nothing is half received or half sent."""
        self._held = 0  # bytes of a frame's beginning, at the start of the incoming batch's data
        self._tail = memoryview(b"")  # what is left of a frame that is partly sent
        self._blocked = False  # `send` fell short, so `writable` is due

    def start(
        self,
        poller: Poller,
        receive: Callable[[Batch], None],
        writable: Callable[[], None],
        link_changed: Callable[[], None],
    ) -> None:
        """See `Wire.start`. When the peer is there already, `link_changed` is called before this returns."""
        self._poller, self._receive, self._writable, self._link_changed = poller, receive, writable, link_changed
        self._started = True
        nothing = Batch(0, 0)  # loads the compiled code now and not with the first frame
        _parse(nothing.data, 0, 0, nothing.frames)
        _put_lengths(nothing.data, nothing.frames, 0, 0)
        if self._inherited is not None:
            self._connected(self._inherited)
        else:
            self._seek_peer()

    def stop(self) -> None:
        """See `Wire.stop`."""
        self.up = False
        if self._listener is not None and self._listener.family == socket.AF_UNIX:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self._listener.getsockname())
        for end in (self._peer, self._connecting, self._inherited, self._listener):
            if end is not None and end.fileno() >= 0:
                if self._started:
                    self._poller.remove(end.fileno())
                end.close()
        self._peer = self._connecting = self._inherited = self._listener = None
        if self._retry is not None:
            self._poller.cancel(self._retry)

    # Finding a peer and losing it

    def _seek_peer(self) -> None:
        if self._listener is not None:
            self._poller.add(self._listener.fileno(), self._accept)
        elif self._target is not None:
            self._connect(*self._target)

    def _accept(self) -> None:
        if self._listener is None:
            return
        try:
            peer, _ = self._listener.accept()
        except (BlockingIOError, ConnectionError):  # it has gone again
            return
        except OSError as exhausted:  # no descriptors; the peer waits, and the listener would stay readable
            self._poller.remove(self._listener.fileno())
            self._try_later(exhausted.strerror, logging.WARNING)
            return
        self._poller.remove(self._listener.fileno())
        self._connected(peer)

    def _connect(self, family: int, address: Any) -> None:
        try:
            peer = socket.socket(family, socket.SOCK_STREAM)
        except OSError as exhausted:
            self._try_later(exhausted.strerror, logging.WARNING)
            return
        peer.setblocking(False)
        error = peer.connect_ex(address)
        if error == errno.EINPROGRESS:
            self._connecting = peer
            self._poller.add(peer.fileno(), self._settle)
            self._poller.want_write(peer.fileno(), self._settle)
        elif error:
            peer.close()
            self._try_later(os.strerror(error))
        else:
            self._connected(peer)

    def _settle(self) -> None:
        """A connection attempt has come to an end."""
        peer, self._connecting = self._connecting, None
        if peer is None:
            return
        self._poller.remove(peer.fileno())
        error = peer.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if error:
            peer.close()
            self._try_later(os.strerror(error))
        else:
            self._connected(peer)

    def _try_later(self, reason: str | None, level: int = logging.INFO) -> None:
        if reason != self._refusal:
            log.log(level, "%s: %s; trying again until there is a peer", self.name, reason)
        self._refusal = reason
        self._retry = self._poller.call_at(self._poller.clock() + RETRY_NS, self._seek_peer)

    def _connected(self, peer: socket.socket) -> None:
        peer.setblocking(False)
        if peer.family != socket.AF_UNIX:
            peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._peer = peer
        self._refusal = ""  # the next one is news again
        self.up = True
        log.info("%s: connected", self.name)
        self._poller.add(peer.fileno(), self._on_readable)
        self._link_changed()

    def _drop(self, reason: str) -> None:
        """Give the connection up and look for the next one."""
        peer, self._peer = self._peer, None
        if peer is None:
            return
        log.warning("%s: connection closed: %s", self.name, reason)
        self._poller.remove(peer.fileno())
        peer.close()
        if self._held:
            self.counters["truncated"] += 1
        blocked = self._blocked
        self._forget()
        self.up = False
        if self._target is not None:
            self._retry = self._poller.call_at(self._poller.clock() + RETRY_NS, self._seek_peer)
        else:
            self._seek_peer()
        self._link_changed()
        if blocked:
            self._writable()

    # Frames in

    def _on_readable(self) -> None:
        peer = self._peer
        if peer is None:
            return
        batch = self._incoming
        try:
            got = peer.recv_into(batch.data.data[self._held :])
        except BlockingIOError:
            return
        except OSError as error:
            self._drop(error.strerror or str(error))
            return
        if not got:
            self._drop("by the peer")
            return
        start, end = 0, self._held + got
        self._held = 0
        found = len(batch.frames)
        try:
            while found == len(batch.frames):
                batch.clear()
                found, start, octets, claimed = _parse(batch.data, start, end, batch.frames)
                batch.count, batch.used = found, start
                self.counters["rx_frames"] += found
                self.counters["rx_bytes"] += octets
                if found:
                    self._receive(batch)
                if self._peer is not peer:  # the wire was stopped meanwhile
                    return
                if claimed >= 0:
                    self.counters["protocol_error"] += 1
                    self._drop(f"protocol error: a frame of {claimed} bytes, where 1 to {MAX_FRAME} are possible")
                    return
        finally:  # also when the receiver failed: what follows is to be found where a frame begins
            if self._peer is peer:
                batch.data[: end - start] = batch.data[start:end]
                self._held = end - start

    # Frames out

    def send(self, batch: Batch) -> bool:
        """See `Wire.send`."""
        self._blocked = False
        if self._peer is not None:
            try:
                self._blocked = not self._push(self._peer, batch)
            except OSError:
                # The peer is gone. The poller sees that too, and there the connection is given up.
                self._tail = memoryview(b"")
        if self._blocked:
            return False
        if batch.sent < batch.count:
            self.counters["not_connected"] += batch.count - batch.sent
            batch.sent = batch.count
        return True

    def _push(self, peer: socket.socket, batch: Batch) -> bool:
        """Send what the socket takes; True when that is all."""
        while batch.sent < batch.count and self._flush(peer):
            first = batch.sent
            last, start, end = _put_lengths(batch.data, batch.frames, first, batch.count)
            if start < 0:
                raise ValueError(f"{self.name}: a frame has no room for its length before it")
            position = start + self._write(peer, batch.data.data[start:end])
            short = position < end
            if short:
                last, end = self._keep_rest(batch, last, position)
            batch.sent = last
            self.counters["tx_frames"] += last - first
            self.counters["tx_bytes"] += end - start - PREFIX * (last - first)
            if short:
                break
        return batch.sent == batch.count

    def _keep_rest(self, batch: Batch, last: int, position: int) -> tuple[int, int]:
        """The socket took the bytes before `position`: keep the rest of the frame that is cut there.

        Returns:
            Index after the last frame that has begun to leave, and where in the batch's data that frame ends.
        """
        frames = batch.frames[batch.sent : last]
        begun = int(np.count_nonzero(frames["offset"] < position + PREFIX))
        if begun == 0:
            return batch.sent, position
        end = int(frames[begun - 1]["offset"]) + int(frames[begun - 1]["length"])
        self._tail = memoryview(batch.data[position:end].tobytes())
        return batch.sent + begun, end

    def _flush(self, peer: socket.socket) -> bool:
        """Send the rest of a frame that was cut; True when nothing of it is left."""
        if self._tail:
            self._tail = self._tail[self._write(peer, self._tail) :]
        return not self._tail

    def _write(self, peer: socket.socket, octets: memoryview) -> int:
        """Send; returns the bytes taken, and has `_on_writable` called if those are not all."""
        try:
            taken = peer.send(octets)
        except BlockingIOError:
            taken = 0
        if taken < len(octets):
            self._poller.want_write(peer.fileno(), self._on_writable)
        return taken

    def _on_writable(self) -> None:
        peer = self._peer
        if peer is None:
            return
        self._poller.want_write(peer.fileno(), None)
        try:
            flushed = self._flush(peer)
        except OSError:  # as in `send`
            self._tail = memoryview(b"")
            flushed = True
        if flushed and self._blocked:
            self._blocked = False
            self._writable()


def _inherit(fd: int) -> socket.socket:
    try:
        inherited = socket.socket(fileno=fd)
    except OSError as error:
        raise WireError(f"descriptor {fd} is not a socket: {error.strerror}") from error
    if inherited.type != socket.SOCK_STREAM:
        inherited.detach()
        raise WireError(f"descriptor {fd} is not a stream socket")
    return inherited
