"""A vfio-user client: what QEMU does, call by call, for tests and for drivers written in Python."""

from __future__ import annotations

import errno
import os
import select
import socket
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import TracebackType

from .channel import Buffer, Channel, Message, close_all
from .protocol import (
    CAPABILITY,
    DEVICE_INFO,
    DMA_ACCESS,
    DMA_MAP,
    DMA_UNMAP,
    ERROR,
    HEADER,
    IRQ_INFO,
    IRQ_SET,
    MAX_DATA_XFER,
    MAX_DMA_MAPS,
    MAX_MSG_FDS,
    NO_REPLY,
    PAGE_SIZES,
    REGION_ACCESS,
    REGION_INFO,
    SINGLE_WRITE,
    TYPE_COMMAND,
    TYPE_MASK,
    TYPE_REPLY,
    VERSION,
    VERSION_MAJOR,
    VERSION_MINOR,
    WRITE_MULTI,
    Capabilities,
    Command,
    DmaFlag,
    IrqSet,
    ProtocolError,
    UnmapFlag,
    command_name,
    version_data,
)

DmaCallback = Callable[[int, int, bytes | None], bytes | None]
"""Serves memory without a descriptor: ``callback(address, count, None)`` returns the data of a read,
``callback(address, count, data)`` takes that of a write. An OSError becomes the reply."""

OFFERED = {
    "max_msg_fds": MAX_MSG_FDS,
    "max_data_xfer_size": MAX_DATA_XFER,
    "pgsizes": PAGE_SIZES,
    "max_dma_maps": MAX_DMA_MAPS,
    "write_multiple": True,
}
"""Capabilities a client proposes unless told otherwise."""


@dataclass(frozen=True)
class DeviceInfo:
    """Reply to DEVICE_GET_INFO."""

    flags: int
    num_regions: int
    num_irqs: int


@dataclass(frozen=True)
class RegionReply:
    """Reply to DEVICE_GET_REGION_INFO; ``argsz`` is what a full reply needs."""

    argsz: int
    flags: int
    index: int
    size: int
    capabilities: tuple[bytes, ...]


@dataclass(frozen=True)
class IrqInfo:
    """Reply to DEVICE_GET_IRQ_INFO."""

    flags: int
    index: int
    count: int


class Client:
    """A connection to a vfio-user server.

    Commands wait for their reply and raise OSError with the errno the server answered. While they wait, DMA messages
    from the server are served (``serve_dma``). Not for use by several threads.

    Args:
        path: The server's socket.
        timeout: Seconds to wait for a reply: a server may have to compile something before it answers.
        negotiate: Send VERSION at once.
        idle: Called before each wait for the server; runs a server that lives in the same thread.

    Attributes:
        server: The server's capabilities, after ``negotiate``.

    Raises:
        OSError: nobody listens at ``path``, or VERSION was refused.
    """

    def __init__(
        self,
        path: str,
        *,
        timeout: float = 30.0,
        negotiate: bool = True,
        idle: Callable[[], object] = lambda: None,
    ) -> None:
        self.timeout = timeout
        self._idle = idle
        self.server = Capabilities()
        self._dma: DmaCallback | None = None
        self._next_id = 0
        self._replies: dict[int, tuple[int, bytes, list[int]]] = {}
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        try:
            sock.connect(path)
            self._channel = Channel(sock)
            if negotiate:
                self.negotiate()
        except BaseException:
            sock.close()
            raise

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Leave."""
        for _, _, fds in self._replies.values():
            close_all(fds)
        self._replies.clear()
        self._channel.close()

    def fileno(self) -> int:
        """The connection's descriptor."""
        return self._channel.fileno()

    # ---------------------------------------------------------------- commands

    def negotiate(self, capabilities: dict[str, int] = OFFERED, *, minor: int = VERSION_MINOR) -> tuple[int, int]:
        """VERSION; returns the server's major and minor version and sets ``server``."""
        payload = VERSION.pack(VERSION_MAJOR, minor) + version_data(capabilities, MAX_DATA_XFER)
        reply = self.request(Command.VERSION, payload)
        self.server, _ = Capabilities.parse(reply[VERSION.size :])
        major, minor = VERSION.unpack_from(reply)
        return major, minor

    def dma_map(
        self,
        start: int,
        size: int,
        fd: int | None = None,
        offset: int = 0,
        flags: int = DmaFlag.READABLE | DmaFlag.WRITABLE,
    ) -> None:
        """DMA_MAP: offer ``size`` bytes of a file from ``offset`` on, or memory served by messages, at ``start``."""
        payload = DMA_MAP.pack(DMA_MAP.size, flags, offset, start, size)
        self.request(Command.DMA_MAP, payload, [] if fd is None else [fd])

    def dma_unmap(self, start: int, size: int) -> None:
        """DMA_UNMAP of one region; once it returns the server uses its memory no more."""
        self.request(Command.DMA_UNMAP, DMA_UNMAP.pack(DMA_UNMAP.size, 0, start, size))

    def dma_unmap_all(self) -> None:
        """DMA_UNMAP of all regions."""
        self.request(Command.DMA_UNMAP, DMA_UNMAP.pack(DMA_UNMAP.size, UnmapFlag.ALL, 0, 0))

    def device_info(self) -> DeviceInfo:
        """DEVICE_GET_INFO."""
        reply = self.request(Command.DEVICE_GET_INFO, DEVICE_INFO.pack(DEVICE_INFO.size, 0, 0, 0))
        return DeviceInfo(*DEVICE_INFO.unpack(reply)[1:])

    def region_info(self, index: int, argsz: int = 4096) -> RegionReply:
        """DEVICE_GET_REGION_INFO, with room for ``argsz`` bytes of reply payload."""
        reply = self.request(Command.DEVICE_GET_REGION_INFO, REGION_INFO.pack(argsz, 0, index, 0, 0, 0))
        needed, flags, index, position, size, _ = REGION_INFO.unpack_from(reply)
        capabilities = []
        while position:
            following = CAPABILITY.unpack_from(reply, position)[2]
            capabilities.append(reply[position : following or len(reply)])
            position = following
        return RegionReply(needed, flags, index, size, tuple(capabilities))

    def irq_info(self, index: int) -> IrqInfo:
        """DEVICE_GET_IRQ_INFO."""
        reply = self.request(Command.DEVICE_GET_IRQ_INFO, IRQ_INFO.pack(IRQ_INFO.size, 0, index, 0))
        return IrqInfo(*IRQ_INFO.unpack(reply)[1:])

    def set_irqs(self, index: int, start: int, eventfds: Sequence[int]) -> None:
        """DEVICE_SET_IRQS: have vectors from ``start`` on signal these eventfds, as many messages as it takes."""
        flags = IrqSet.DATA_EVENTFD | IrqSet.ACTION_TRIGGER
        room = max(1, self.server.max_msg_fds)
        for done in range(0, len(eventfds), room):
            fds = eventfds[done : done + room]
            self.set_irqs_raw(index, flags, start + done, len(fds), fds=fds)

    def withdraw_irqs(self, index: int, start: int, count: int) -> None:
        """DEVICE_SET_IRQS: take the eventfds of vectors away."""
        self.set_irqs_raw(index, IrqSet.DATA_EVENTFD | IrqSet.ACTION_TRIGGER, start, count)

    def disable_irqs(self, index: int) -> None:
        """DEVICE_SET_IRQS: disable all vectors."""
        self.set_irqs_raw(index, IrqSet.DATA_NONE | IrqSet.ACTION_TRIGGER, 0, 0)

    def mask_irqs(self, index: int, start: int, count: int, *, masked: bool) -> None:
        """DEVICE_SET_IRQS: mask or unmask vectors."""
        action = IrqSet.ACTION_MASK if masked else IrqSet.ACTION_UNMASK
        self.set_irqs_raw(index, IrqSet.DATA_NONE | action, start, count)

    def set_irqs_raw(
        self, index: int, flags: int, start: int, count: int, *, data: bytes = b"", fds: Sequence[int] = ()
    ) -> None:
        """DEVICE_SET_IRQS with just these fields."""
        payload = IRQ_SET.pack(IRQ_SET.size + len(data), flags, index, start, count) + data
        self.request(Command.DEVICE_SET_IRQS, payload, fds)

    def region_read(self, index: int, offset: int, count: int) -> bytes:
        """REGION_READ of ``count`` bytes."""
        return self.request(Command.REGION_READ, REGION_ACCESS.pack(offset, index, count))[REGION_ACCESS.size :]

    def region_write(self, index: int, offset: int, data: bytes, *, posted: bool = False) -> None:
        """REGION_WRITE. A posted write has no reply: errors stay unknown, order with later commands is kept."""
        payload = REGION_ACCESS.pack(offset, index, len(data)) + data
        if posted:
            self.send(Command.REGION_WRITE, payload, no_reply=True)
        else:
            self.request(Command.REGION_WRITE, payload)

    def write_multi(self, writes: Sequence[tuple[int, int, bytes]], *, posted: bool = False) -> int:
        """REGION_WRITE_MULTI of (region, offset, at most 8 bytes of data); returns how many the server has done."""
        payload = WRITE_MULTI.pack(len(writes)) + b"".join(
            SINGLE_WRITE.pack(offset, index, len(data), data) for index, offset, data in writes
        )
        if posted:
            self.send(Command.REGION_WRITE_MULTI, payload, no_reply=True)
            return len(writes)
        done: int = WRITE_MULTI.unpack(self.request(Command.REGION_WRITE_MULTI, payload))[0]
        return done

    def reset(self) -> None:
        """DEVICE_RESET."""
        self.request(Command.DEVICE_RESET)

    # ---------------------------------------------------------------- messages

    def serve_dma(self, callback: DmaCallback | None) -> None:
        """Have a callback answer DMA_READ and DMA_WRITE; without one they are refused with EFAULT."""
        self._dma = callback

    def process(self, timeout: float) -> bool:
        """Serve DMA messages for ``timeout`` seconds or until one was served; False if none came."""
        deadline = time.monotonic() + timeout
        while (message := self._receive(deadline)) is not None:
            if message.flags & TYPE_MASK == TYPE_COMMAND:
                self._serve(message)
                return True
            self._keep(message)
        return False

    def request(self, command: int, payload: bytes = b"", fds: Sequence[int] = ()) -> bytes:
        """Send a command, wait for its reply and return its payload.

        Raises:
            OSError: the errno of the reply; ETIMEDOUT, none came; ECONNRESET, the server closed the connection.
        """
        return self.reply(self.send(command, payload, fds))

    def send(self, command: int, payload: bytes = b"", fds: Sequence[int] = (), *, no_reply: bool = False) -> int:
        """Send a command and return its message id, for ``reply``."""
        self._next_id = message_id = (self._next_id + 1) & 0xFFFF
        flags = TYPE_COMMAND | (NO_REPLY if no_reply else 0)
        self.raw(HEADER.pack(message_id, command, HEADER.size + len(payload), flags, 0), payload, fds=fds)
        return message_id

    def reply(self, message_id: int) -> bytes:
        """Wait for the reply to a command that was sent. Raises like ``request``."""
        deadline = time.monotonic() + self.timeout
        while message_id not in self._replies:
            message = self._receive(deadline)
            if message is None:
                raise TimeoutError(errno.ETIMEDOUT, "the server does not answer")
            if message.flags & TYPE_MASK == TYPE_COMMAND:
                self._serve(message)
            else:
                self._keep(message)
        code, payload, fds = self._replies.pop(message_id)
        close_all(fds)  # no reply that is supported here carries descriptors
        if code:
            raise OSError(code, os.strerror(code))
        return payload

    def raw(self, *parts: Buffer, fds: Sequence[int] = ()) -> None:
        """Send bytes as they are, well-formed or not, with descriptors."""
        self._channel.send(*parts, fds=fds)
        deadline = time.monotonic() + self.timeout
        poller = select.poll()
        poller.register(self._channel.fileno(), select.POLLOUT)
        while not self._channel.flush():
            self._idle()
            if not poller.poll(max(0.0, deadline - time.monotonic()) * 1000):
                raise TimeoutError(errno.ETIMEDOUT, "the server does not read")

    def closed_by_server(self, timeout: float = 5.0) -> bool:
        """Wait for the server to close the connection."""
        deadline = time.monotonic() + timeout
        try:
            while (message := self._receive(deadline)) is not None:
                close_all(message.fds)
        except ConnectionError:
            return True
        return False

    def _receive(self, deadline: float) -> Message | None:
        """The next message, or None at the deadline. Raises ConnectionResetError when the server has gone."""
        poller = select.poll()
        poller.register(self._channel.fileno(), select.POLLIN)
        while (message := self._channel.next()) is None:
            self._idle()
            if not poller.poll(max(0.0, deadline - time.monotonic()) * 1000):
                return None
            if not self._channel.fill():
                raise ConnectionResetError(errno.ECONNRESET, "the server closed the connection")
        return message

    def _keep(self, message: Message) -> None:
        code = (message.errno or errno.EIO) if message.flags & ERROR else 0
        self._replies[message.id] = (code, bytes(message.payload), message.fds)

    def _serve(self, message: Message) -> None:
        """Answer a command of the server."""
        close_all(message.fds)
        try:
            reply = self._access(message.command, message.payload)
        except OSError as error:
            code = error.errno or errno.EIO
            self.raw(HEADER.pack(message.id, message.command, HEADER.size, TYPE_REPLY | ERROR, code))
            return
        if not message.flags & NO_REPLY:
            self.raw(HEADER.pack(message.id, message.command, HEADER.size + len(reply), TYPE_REPLY, 0), reply)

    def _access(self, command: int, payload: memoryview) -> bytes:
        if command not in (Command.DMA_READ, Command.DMA_WRITE) or len(payload) < DMA_ACCESS.size:
            raise ProtocolError(f"{command_name(command)} with {len(payload)} bytes from the server")
        if self._dma is None:
            raise OSError(errno.EFAULT, "no memory is served by messages")
        address, count = DMA_ACCESS.unpack_from(payload)
        if count > MAX_DATA_XFER:
            raise OSError(errno.E2BIG, f"{command_name(command)} of {count} bytes")
        if command == Command.DMA_READ:
            data = self._dma(address, count, None)
            assert data is not None
            return DMA_ACCESS.pack(address, count) + data
        self._dma(address, count, bytes(payload[DMA_ACCESS.size :]))
        return DMA_ACCESS.pack(address, count)
