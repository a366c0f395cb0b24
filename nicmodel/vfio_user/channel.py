"""One socket as a stream of messages: bytes and descriptors in, messages out, and never a wait.

All bytes that wait in the socket are read by one ``recvmsg`` into a large buffer, and messages are handed out as views
of that buffer. Sending never blocks either: what the socket does not take is queued up to a limit.
"""

from __future__ import annotations

import array
import contextlib
import mmap
import os
import socket
from collections import deque
from collections.abc import Sequence
from typing import NamedTuple

from .protocol import HEADER, MAX_MESSAGE, MOST_FDS, ProtocolError

Buffer = bytes | memoryview

BUFFER_SIZE = 2 * MAX_MESSAGE
MAX_QUEUED = 8 << 20
"""Bytes of replies a peer may leave unread before it is given up."""

MAX_WAITING_FDS = 512
"""Descriptors that may wait for their messages to be handled. QEMU sends 16 with a message at most, but a burst of
messages may come while a device waits for the answer to a DMA message."""

_ANCILLARY = socket.CMSG_SPACE(MOST_FDS * array.array("i").itemsize)  # with room for all of them, none is cut off

# As plain numbers: those of an enumeration take a microsecond more, for each message.
_CMSG_CLOEXEC, _CTRUNC = int(socket.MSG_CMSG_CLOEXEC), int(socket.MSG_CTRUNC)


class Message(NamedTuple):
    """A message as received. ``payload`` is valid until the next ``fill``; the receiver of ``fds`` closes them."""

    id: int
    command: int
    flags: int
    errno: int
    payload: memoryview
    fds: list[int]


class Channel:
    """Framing on a connected stream socket, which it owns and makes non-blocking."""

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        self.socket = sock
        # Anonymous memory: pages of the buffer that are never used are never allocated.
        self._buffer = memoryview(mmap.mmap(-1, BUFFER_SIZE))
        self._base = 0  # position in the stream of the buffer's first byte
        self._next = 0  # where in the buffer the next message starts
        self._end = 0  # where the received bytes end
        self._fds: dict[int, list[int]] = {}  # by the position in the stream of the message they came with
        self._outgoing: deque[tuple[memoryview, Sequence[int]]] = deque()
        self._queued = 0

    def fileno(self) -> int:
        """The socket's descriptor, for pollers."""
        return self.socket.fileno()

    def close(self) -> None:
        """Close the socket and every descriptor that nobody took."""
        self.close_waiting()
        self._outgoing.clear()
        self._discard_input()
        self.socket.close()
        # Freed now, and not when the garbage collector comes upon the connection that has ended.
        self._buffer = memoryview(b"")
        self._next = self._end = 0

    def close_waiting(self) -> None:
        """Close the descriptors that came with messages that nobody has taken yet."""
        for fds in self._fds.values():
            close_all(fds)
        self._fds.clear()

    def _discard_input(self) -> None:
        """Let the peer see the connection's end, not its failure.

        A UNIX socket that is closed with data unread gives the peer ECONNRESET, at which QEMU 11.1 aborts. After the
        shutdown nothing more can come.
        """
        with contextlib.suppress(OSError, MemoryError):
            self.socket.shutdown(socket.SHUT_RDWR)
            while self.socket.recv(1 << 16):
                pass  # descriptors that come along are closed by the kernel

    def fill(self, *, reuse: bool = True) -> bool:
        """Read what waits in the socket, by one ``recvmsg``.

        Args:
            reuse: The views handed out earlier are no longer used and may be overwritten.

        Returns:
            False if the peer has closed the connection.

        Raises:
            BlockingIOError: nothing waits.
            ConnectionError: the connection broke.
            ProtocolError: there is no room for more, or descriptors were lost.
        """
        if reuse and self._next == self._end:
            self._base += self._end
            self._next = self._end = 0
        elif BUFFER_SIZE - self._end < MAX_MESSAGE:
            self._move()
        space = self._buffer[self._end :]
        count, ancillary, flags, _ = self.socket.recvmsg_into([space], _ANCILLARY, _CMSG_CLOEXEC)
        self._end += count
        if ancillary:
            self._keep_fds(ancillary)
        if flags & _CTRUNC:
            raise ProtocolError("descriptors were lost: too many are open in this process")
        if ancillary and sum(map(len, self._fds.values())) > MAX_WAITING_FDS:
            raise ProtocolError("too many descriptors wait")
        return count != 0

    def next(self) -> Message | None:
        """Take the next complete message, or None if there is none.

        Raises:
            ProtocolError: the size in the header is impossible, so the stream cannot be followed any further.
        """
        start, available = self._next, self._end - self._next
        if available < HEADER.size:
            return None
        message_id, command, size, flags, error = HEADER.unpack_from(self._buffer, start)
        if not HEADER.size <= size <= MAX_MESSAGE:
            raise ProtocolError(f"a message of {size} bytes")
        if available < size:
            return None
        self._next = end = start + size
        fds = self._fds.pop(self._base + start, []) if self._fds else []
        return Message(message_id, command, flags, error, self._buffer[start + HEADER.size : end], fds)

    @property
    def rest(self) -> int:
        """Bytes received and not yet taken."""
        return self._end - self._next

    @property
    def position(self) -> int:
        """Where in the stream the next message starts."""
        return self._base + self._next

    @property
    def ready(self) -> bool:
        """A complete message is there, or a header that is none: ``next`` will say."""
        available = self._end - self._next
        if available < HEADER.size:
            return False
        size: int = HEADER.unpack_from(self._buffer, self._next)[2]
        return available >= size or size > MAX_MESSAGE

    def waiting(self) -> list[Message]:
        """The complete messages that were received but not yet taken; they stay where they are, without descriptors."""
        messages = []
        start = self._next
        while self._end - start >= HEADER.size:
            message_id, command, size, flags, error = HEADER.unpack_from(self._buffer, start)
            end = start + size
            if size < HEADER.size or end > self._end:
                break
            payload = self._buffer[start + HEADER.size : end]
            messages.append(Message(message_id, command, flags, error, payload, []))
            start = end
        return messages

    def send(self, *parts: Buffer, fds: Sequence[int] = ()) -> None:
        """Send one message, now or, as far as the socket does not take it, when ``flush`` is called.

        Raises:
            ConnectionError: the connection broke, or the peer has left more than MAX_QUEUED bytes unread.
        """
        sent = 0
        if not self._outgoing:
            try:
                sent = self._sendmsg(parts, fds)
            except BlockingIOError:
                pass
            else:
                fds = ()
        rest = memoryview(b"".join(parts))[sent:]
        if rest:
            self._queued += len(rest)
            if self._queued > MAX_QUEUED:
                raise ConnectionAbortedError("the peer does not read what is sent to it")
            self._outgoing.append((rest, fds))

    def flush(self) -> bool:
        """Send queued messages; True if none is left.

        Raises:
            ConnectionError: the connection broke.
        """
        while self._outgoing:
            data, fds = self._outgoing[0]
            try:
                sent = self._sendmsg((data,), fds)
            except BlockingIOError:
                return False
            self._queued -= sent
            if sent < len(data):
                self._outgoing[0] = (data[sent:], ())
            else:
                self._outgoing.popleft()
        return True

    @property
    def congested(self) -> bool:
        """Messages are queued."""
        return bool(self._outgoing)

    def _sendmsg(self, parts: Sequence[Buffer], fds: Sequence[int]) -> int:
        ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else ()
        return self.socket.sendmsg(parts, ancillary, socket.MSG_NOSIGNAL)

    def _move(self) -> None:
        """Go on in a fresh buffer, since views of the present one may be in use."""
        rest = self._buffer[self._next : self._end]
        if len(rest) >= BUFFER_SIZE:
            raise ProtocolError("too many messages wait")
        self._buffer = memoryview(mmap.mmap(-1, BUFFER_SIZE))
        self._buffer[: len(rest)] = rest
        self._base += self._next
        self._next, self._end = 0, len(rest)

    def _keep_fds(self, ancillary: list[tuple[int, int, bytes]]) -> None:
        """Book received descriptors on the last message that has started: ``recvmsg`` stops after the bytes they
        were sent with (unix(7), "ancillary data forms a barrier"), so no message behind that one can be here.
        """
        fds = array.array("i")
        for level, kind, data in ancillary:
            if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
                fds.frombytes(data[: len(data) - len(data) % fds.itemsize])
        start = self._next
        while self._end - start >= HEADER.size:
            size = HEADER.unpack_from(self._buffer, start)[2]
            if size < HEADER.size or start + size >= self._end:
                break
            start += size
        self._fds.setdefault(self._base + start, []).extend(fds)


def close_all(fds: Sequence[int]) -> None:
    """Close descriptors."""
    for fd in fds:
        os.close(fd)
