"""Frames as datagrams, one each: what QEMU's ``-netdev dgram`` speaks, over UNIX sockets and over UDP.

Source: QEMU net/dgram.c. UDP is for loopback: no frame is told from a stranger's but by the sender's address.
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

from nicmodel.packet.compiled import compiled
from nicmodel.packet.frames import MAX_FRAME, Batch, Offload
from nicmodel.wire.address import bind, resolve
from nicmodel.wire.messages import BURST, Messages
from nicmodel.wire.syscalls import recvmmsg, sendmmsg
from nicmodel.wire.wire import SPEED, Poller, WireError, new_counters

log = logging.getLogger(__name__)

#: How often it is looked whether there is another peer at the remote path, ns.
_LOOK_NS = 200_000_000
#: What the kernel is asked to keep for us, bytes: some hundred frames of the largest MTU.
_SOCKET_BUFFER = 4 << 20
_MSG_TRUNC = int(socket.MSG_TRUNC)


@compiled
def _receive_frames(
    fd: int,
    messages: npt.NDArray[np.void],
    pieces: npt.NDArray[np.void],
    data: npt.NDArray[np.uint8],
    frames: npt.NDArray[np.void],
) -> tuple[int, int, int, int]:
    """Receive a frame for each slot of `MAX_FRAME` bytes in `data`.

    Returns:
        Frames received; bytes in the frames; datagrams that are none (empty, or longer than a slot); the errno, or 0.
    """
    slots = len(data) // MAX_FRAME
    base = int(np.int64(data.ctypes.data))
    for slot in range(slots):
        piece = pieces[slot, 0]
        piece["base"] = base + slot * MAX_FRAME
        piece["length"] = MAX_FRAME
    got = recvmmsg(fd, int(np.int64(messages.ctypes.data)), slots)
    if got < 0:
        return 0, 0, 0, -got
    octets = 0
    count = 0
    for slot in range(got):
        message = messages[slot]
        length = int(message["received"])
        if length == 0 or message["flags"] & _MSG_TRUNC:
            continue
        frame = frames[count]
        frame["offset"] = slot * MAX_FRAME
        frame["length"] = length
        frame["time"] = 0
        frame["flags"] = 0  # whoever had the record before may have verified another frame
        octets += length
        count += 1
    return count, octets, got - count, 0


@compiled
def _send_frames(
    fd: int,
    messages: npt.NDArray[np.void],
    pieces: npt.NDArray[np.void],
    data: npt.NDArray[np.uint8],
    frames: npt.NDArray[np.void],
    first: int,
    count: int,
) -> tuple[int, int, int]:
    """Send frames `first` to `count`.

    Returns:
        Index of the frame that came to no good, or `count`; bytes in the frames sent; the errno, or 0.
    """
    base = int(np.int64(data.ctypes.data))
    octets = 0
    while first < count:
        burst = min(len(messages), count - first)
        for slot in range(burst):
            frame = frames[first + slot]
            piece = pieces[slot, 0]
            piece["base"] = base + int(frame["offset"])
            piece["length"] = int(frame["length"])
        done = sendmmsg(fd, int(np.int64(messages.ctypes.data)), burst)
        if done < 0:
            return first, octets, -done
        for slot in range(done):
            octets += int(frames[first + slot]["length"])
        first += done
    return first, octets, 0


class DgramWire:
    """A UNIX or UDP datagram socket. Its link is always up: there is no telling whether a peer listens.

    Args:
        local: where to receive: the path of a UNIX socket, or HOST:PORT. A path left behind by a process that is gone
            is taken over.
        remote: where to send; nobody needs to be there yet. Once somebody is, only they are heard. The kernel connects
            to a UNIX socket itself, not to its path, so a peer that was started anew is found by looking, 5 times a
            second.

    Losses counted: ``not_connected``, nobody receives at the remote address (over UDP: as far as the kernel has
    learned of it, after the frame had been sent); ``refused_<errno>``, the kernel did not take a frame (UDP carries
    65507 bytes at most); ``malformed``, a datagram that was empty or longer than any frame.

    Raises:
        WireError: no socket can be had at the local address, or the two are of different kinds.
    """

    headroom = 0
    offloads = Offload.NONE
    speed = SPEED

    def __init__(self, *, local: str, remote: str) -> None:
        self.name = f"dgram:local={local},remote={remote}"
        family, self._local = resolve(local, socket.SOCK_DGRAM)
        other, self._remote = resolve(remote, socket.SOCK_DGRAM)
        if family != other:
            raise WireError(f"{self.name}: both addresses have to be of one kind")
        self._socket = bind(family, socket.SOCK_DGRAM, self._local)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _SOCKET_BUFFER)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SOCKET_BUFFER)
        self._peer: tuple[int, int, int] | None = None  # the UNIX socket that it is connected to
        self._connected = False
        self._connect()
        self.up = True
        self.counters = new_counters()
        self._incoming = Batch(BURST * MAX_FRAME, BURST)
        self._received, self._sent = Messages(), Messages()
        self._blocked = False
        self._poller: Poller | None = None
        self._timer: Any = None

    def start(
        self,
        poller: Poller,
        receive: Callable[[Batch], None],
        writable: Callable[[], None],
        link_changed: Callable[[], None],
    ) -> None:
        """See `Wire.start`. `link_changed` is never called."""
        self._poller, self._receive, self._writable = poller, receive, writable
        nothing = Batch(0, 0)  # loads the compiled code now and not with the first frame
        self._take(nothing)
        self._give(nothing)
        poller.add(self._socket.fileno(), self._on_readable)
        if self._socket.family == socket.AF_UNIX:
            self._look()

    def _connect(self) -> bool:
        """Try to reach the peer, and see that nobody else is heard from then on; whether that was possible."""
        self._peer = self._at_remote()
        self._connected = self._socket.connect_ex(self._remote) == 0
        return self._connected

    def _at_remote(self) -> tuple[int, int, int] | None:
        """The file at the remote path."""
        if self._socket.family != socket.AF_UNIX:
            return None
        try:
            status = os.stat(self._remote)
        except OSError:
            return None
        return status.st_dev, status.st_ino, status.st_mtime_ns

    def _look(self) -> None:
        """Connect to whoever is at the remote path now, if it is somebody else."""
        assert self._poller is not None
        self._timer = self._poller.call_at(self._poller.clock() + _LOOK_NS, self._look)
        if self._at_remote() not in (None, self._peer):
            self._connect()

    def send(self, batch: Batch) -> bool:
        """See `Wire.send`."""
        while batch.sent < batch.count:
            if not self._connected and not self._connect():
                self.counters["not_connected"] += batch.count - batch.sent
                batch.sent = batch.count
                break
            error = self._give(batch)
            if error == errno.EAGAIN and self._poller is not None:
                self._blocked = True
                self._poller.want_write(self._socket.fileno(), self._on_writable)
                return False
            if error == errno.ECONNREFUSED:  # perhaps somebody else is there by now
                self._connected = False
                self.counters["not_connected"] += self._socket.family != socket.AF_UNIX
            elif error:
                self._lose(f"refused_{errno.errorcode[error].lower()}")
                batch.sent += 1
        return True

    def stop(self) -> None:
        """See `Wire.stop`."""
        if self._socket.fileno() < 0:
            return
        if self._poller is not None:
            self._poller.remove(self._socket.fileno())
            if self._timer is not None:
                self._poller.cancel(self._timer)
        self._socket.close()
        if self._socket.family == socket.AF_UNIX:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self._local)

    def _on_readable(self) -> None:
        batch = self._incoming
        error, lost = self._take(batch)
        if lost:
            self.counters["malformed"] += lost
        if error == errno.ECONNREFUSED:  # what a datagram sent earlier has come to (UDP)
            self.counters["not_connected"] += 1
        elif error not in (0, errno.EAGAIN):
            self._lose(f"unreadable_{errno.errorcode[error].lower()}")
        if batch.count:
            self._receive(batch)

    def _on_writable(self) -> None:
        if self._poller is not None:
            self._poller.want_write(self._socket.fileno(), None)
        if self._blocked:
            self._blocked = False
            self._writable()

    def _take(self, batch: Batch) -> tuple[int, int]:
        """Fill the batch with what has come; returns the errno and how many datagrams were no frames."""
        messages = self._received
        batch.clear()
        batch.count, octets, lost, error = _receive_frames(
            self._socket.fileno(), messages.messages, messages.pieces, batch.data, batch.frames
        )
        batch.used = len(batch.data)
        self.counters["rx_frames"] += batch.count
        self.counters["rx_bytes"] += octets
        return error, lost

    def _give(self, batch: Batch) -> int:
        """Send what the kernel takes, and move ``batch.sent``; returns the errno."""
        messages, first = self._sent, batch.sent
        batch.sent, octets, error = _send_frames(
            self._socket.fileno(), messages.messages, messages.pieces, batch.data, batch.frames, first, batch.count
        )
        self.counters["tx_frames"] += batch.sent - first
        self.counters["tx_bytes"] += octets
        return error

    def _lose(self, reason: str) -> None:
        self.counters[reason] += 1
        if self.counters[reason] == 1:
            log.warning("%s: losing frames: %s", self.name, reason)
