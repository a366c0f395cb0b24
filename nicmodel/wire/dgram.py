"""Frames as datagrams, one each: what QEMU's ``-netdev dgram`` speaks, over UNIX sockets and over UDP.

Source: QEMU net/dgram.c. UDP is for loopback: no frame is told from a stranger's but by the sender's address.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from nicmodel.jit.compiled import compiled
from nicmodel.packet.frames import MAX_FRAME, Batch, Offload
from nicmodel.wire.address import bind, resolve
from nicmodel.wire.fd import FdWire
from nicmodel.wire.messages import BURST, Messages
from nicmodel.wire.syscalls import recvmmsg, sendmmsg
from nicmodel.wire.wire import Poller, WireError

#: How often it is looked whether there is another peer at the remote path, ns.
_LOOK_NS = 200_000_000
#: What the kernel is asked to keep for us, bytes: some hundred frames of the largest MTU.
_SOCKET_BUFFER = 4 << 20
_MSG_TRUNC = int(socket.MSG_TRUNC)


@compiled
def _receive_frames(
    messages: npt.NDArray[np.void],
    pieces: npt.NDArray[np.void],
    fd: int,
    data: npt.NDArray[np.uint8],
    frames: npt.NDArray[np.void],
) -> tuple[int, int, int, int, int]:
    """Receive a frame for each slot of `MAX_FRAME` bytes in `data`.

    Returns:
        As `FdWire._read`; a datagram that is empty, or longer than a slot, is no frame.
    """
    slots = len(data) // MAX_FRAME
    base = int(np.int64(data.ctypes.data))
    for slot in range(slots):
        piece = pieces[slot, 0]
        piece["base"] = base + slot * MAX_FRAME
        piece["length"] = MAX_FRAME
    got = recvmmsg(fd, int(np.int64(messages.ctypes.data)), slots)
    if got < 0:
        return 0, 0, 0, 0, -got
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
    return count, len(data), octets, got - count, 0


@compiled
def _send_frames(
    messages: npt.NDArray[np.void],
    pieces: npt.NDArray[np.void],
    fd: int,
    data: npt.NDArray[np.uint8],
    frames: npt.NDArray[np.void],
    first: int,
    count: int,
) -> tuple[int, int, int]:
    """Send frames `first` to `count`.

    Returns:
        As `FdWire._write`.
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


class DgramWire(FdWire):
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

    offloads = Offload.NONE

    def __init__(self, *, local: str, remote: str) -> None:
        name = f"dgram:local={local},remote={remote}"
        family, self._local = resolve(local, socket.SOCK_DGRAM)
        other, self._remote = resolve(remote, socket.SOCK_DGRAM)
        if family != other:
            raise WireError(f"{name}: both addresses have to be of one kind")
        self._socket = bind(family, socket.SOCK_DGRAM, self._local)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _SOCKET_BUFFER)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SOCKET_BUFFER)
        super().__init__(name, self._socket.fileno(), Batch(BURST * MAX_FRAME, BURST))
        self._received, self._sent = Messages(), Messages()
        self._read = partial(_receive_frames, self._received.messages, self._received.pieces)
        self._write = partial(_send_frames, self._sent.messages, self._sent.pieces)
        self._peer: tuple[int, int, int] | None = None  # the UNIX socket that it is connected to
        self._connected = False
        self._connect()
        self._timer: Any = None

    def start(
        self,
        poller: Poller,
        receive: Callable[[Batch], None],
        writable: Callable[[], None],
        link_changed: Callable[[], None],
    ) -> None:
        """See `Wire.start`. `link_changed` is never called."""
        super().start(poller, receive, writable, link_changed)
        if self._socket.family == socket.AF_UNIX:
            self._look()

    def send(self, batch: Batch) -> bool:
        """See `Wire.send`."""
        if batch.sent < batch.count and not self._connected and not self._connect():
            self._lose(self._nobody, batch.count - batch.sent)
            batch.sent = batch.count
        return super().send(batch)

    def _close(self) -> None:
        if self._poller is not None and self._timer is not None:
            self._poller.cancel(self._timer)
        self._socket.close()
        if self._socket.family == socket.AF_UNIX:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self._local)

    def _refused(self, batch: Batch, error: int) -> bool:
        if error != errno.ECONNREFUSED:
            return super()._refused(batch, error)
        if self._socket.family != socket.AF_UNIX:  # what an earlier datagram has come to
            self._lose(self._nobody)
        return self._connect()  # perhaps somebody else is there by now

    def _unreadable(self, error: int) -> None:
        if error == errno.ECONNREFUSED:  # what a datagram sent earlier has come to (UDP)
            self._lose(self._nobody)
        else:
            super()._unreadable(error)

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
