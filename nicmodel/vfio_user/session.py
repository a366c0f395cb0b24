"""One client of a device, from its connection to its departure: every command of the protocol."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import socket
import time
from collections import Counter
from collections.abc import Callable, Sequence
from struct import Struct
from typing import Any

from .channel import Buffer, Channel, Message, close_all
from .device import ClientLink, Device, RegionInfo
from .dma import DmaFault, DmaTable
from .irq import InterruptSet
from .poll import EventLoop
from .protocol import (
    CAPABILITY,
    DEVICE_INFO,
    DMA_ACCESS,
    DMA_ACCESS_QEMU_10,
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
    DeviceFlag,
    DmaFlag,
    IrqFlag,
    PciIrq,
    ProtocolError,
    RegionFlag,
    UnmapFlag,
    command_name,
    version_data,
)

log = logging.getLogger(__name__)

Trace = Callable[..., None]
"""Called as ``trace(event, **fields)``."""

DMA_TIMEOUT = 3.0
"""Seconds to wait for the answer to DMA_READ and DMA_WRITE. Below QEMU's own 5 s for a reply: it cannot answer while a
virtual CPU waits for a register, and should find the device's fault, not a broken connection.

On a plain event loop, though not on a ``Strand``, everybody else waits as well. So it is also what all such waits in
one turn of the loop may take together, and a client that owes an answer is not asked again until it has given it."""

SLOW_ANSWER = 0.01
"""Seconds. Answers that take longer are booked; QEMU's take 0.1 to 0.3 ms."""

DMA_PATIENCE = 6.0
PATIENCE_PER_SECOND = 0.05
"""Seconds that slow answers may take in all, and how much of that grows again in each second. When nothing is left, the
client is dropped: it would keep others from being served for most of the time."""

ANSWER_LIMIT = 10.0
"""Seconds after which a client that still owes an answer is dropped."""

HANDSHAKE_LIMIT = 3.0
"""Seconds that a client may take until it has sent VERSION; others wait behind it."""

MESSAGE_LIMIT = 5.0
"""Seconds that a message may take to come whole, from its first byte on; what QEMU waits for a reply."""

MESSAGES_PER_TURN = 256
BYTES_PER_TURN = 1 << 20
"""Messages, and bytes of them, that are handled in one turn of the event loop. The rest waits for the next turn, while
the others have theirs."""

_OFFERED = {"max_msg_fds": MAX_MSG_FDS, "max_data_xfer_size": MAX_DATA_XFER, "pgsizes": PAGE_SIZES}

# Plain integers, as the header's flags: maps may come by the hundred thousand.
_READABLE, _WRITABLE = int(DmaFlag.READABLE), int(DmaFlag.WRITABLE)
_DMA_ACCESS = int(DmaFlag.MMAP | DmaFlag.FILE_IO)
_DMA_FLAGS = _READABLE | _WRITABLE | _DMA_ACCESS

_IRQ_FLAGS = int(IrqFlag.EVENTFD)
_INTX_FLAGS = int(IrqFlag.EVENTFD | IrqFlag.MASKABLE | IrqFlag.AUTOMASKED)


class Session:
    """A connected client.

    Args:
        sock: The connection, owned by the session.
        device: Whom the client talks to; it is attached once the client has sent VERSION.
        stats: Counters by name, kept from client to client.
        trace: Told of everything that happens, or None.
        poller: The event loop, for its time and its turns.
        on_backlog: Called when something has changed outside of ``receive`` and ``resume``, by a DMA message's wait:
            look at ``backlog`` and ``deadline`` again.

    Attributes:
        name: Who it is, for people to read, printable: ``qemu-system-x86[4711]``.
        link: What the device got, None before VERSION.
    """

    def __init__(
        self,
        sock: socket.socket,
        device: Device,
        stats: Counter[str],
        *,
        trace: Trace | None = None,
        poller: EventLoop,
        on_backlog: Callable[[], None],
    ) -> None:
        self.name = _peer_name(sock)
        self.link: ClientLink | None = None
        self.trace = trace
        self._channel = Channel(sock)
        self._device = device
        self._stats = stats
        self._poller = poller
        self._on_backlog = on_backlog
        self._since = poller.clock()
        self._partial: tuple[int, int] | None = None  # a message that is not whole: where in the stream, since when
        self._owes_since: int | None = None  # when waiting for an answer was given up, until the answer comes
        self._waited = (-1, 0.0)  # turn of the loop, and seconds waited for answers in it
        self._patience, self._patience_at = DMA_PATIENCE, self._since
        self._given_up = ""  # why the client is to be dropped
        self._handling = False
        self._closed = False
        self._client = Capabilities()
        self._dma_layout: Struct | None = None
        self._request_id = 0
        self._settled: set[int] = set()  # requests whose reply was taken early or is no longer waited for
        self._answered: set[int] = (
            set()
        )  # reads that were answered while waiting for a reply, and are still to be taken
        self._handlers: dict[int, Callable[[memoryview, list[int]], Buffer]] = {
            Command.VERSION: self._version,
            Command.DMA_MAP: self._dma_map,
            Command.DMA_UNMAP: self._dma_unmap,
            Command.DEVICE_GET_INFO: self._device_get_info,
            Command.DEVICE_GET_REGION_INFO: self._device_get_region_info,
            Command.DEVICE_GET_IRQ_INFO: self._device_get_irq_info,
            Command.DEVICE_SET_IRQS: self._device_set_irqs,
            Command.REGION_READ: self._region_read,
            Command.REGION_WRITE: self._region_write,
            Command.REGION_WRITE_MULTI: self._region_write_multi,
            Command.DEVICE_RESET: self._device_reset,
        }

    def fileno(self) -> int:
        """The connection's descriptor, for pollers."""
        return self._channel.fileno()

    @property
    def congested(self) -> bool:
        """Replies wait for the socket to take them: call ``resume`` when it is writable."""
        return self._channel.congested

    @property
    def backlog(self) -> bool:
        """There is more to do: call ``resume`` in the next turn of the loop."""
        return self._channel.ready or bool(self._given_up)

    @property
    def deadline(self) -> tuple[int, str] | None:
        """Until when (on the loop's clock) the client has to do what; None: it may be silent for ever."""
        if self.link is None:
            return self._since + int(HANDSHAKE_LIMIT * 1e9), "it does not say VERSION"
        if self._owes_since is not None:
            return self._owes_since + int(ANSWER_LIMIT * 1e9), "it does not answer a DMA message"
        if self._partial is not None:
            return self._partial[1] + int(MESSAGE_LIMIT * 1e9), "a message that it has begun does not end"
        return None

    def receive(self) -> bool:
        """Read the messages that wait and handle them, ``MESSAGES_PER_TURN`` at most.

        Returns:
            False when the client has closed the connection.

        Raises:
            ConnectionError: the connection broke.
            ProtocolError: the client cannot be understood any more.
        """
        if not self._channel.ready:
            try:
                if not self._channel.fill():
                    return False
            except BlockingIOError:
                return True
        self._handle_all()
        return True

    def resume(self) -> None:
        """Send replies that wait, and handle messages that were read ahead. Raises like ``receive``."""
        self._channel.flush()
        self._handle_all()

    def close(self) -> None:
        """Detach the device, release all the client gave and close the connection."""
        self._channel.close_waiting()  # first: the device may need some, and these may be why there are none
        if self.link is not None:
            self._guard(self._device.detach)
            self.link.dma.unmap_all()
            for irqs in self.link.irqs:
                irqs.disable()
            if self.trace is not None:
                self.trace("detach", client=self.name)
            self.link = None
        self._closed = True
        self._channel.close()

    # ---------------------------------------------------------------- messages

    def _handle_all(self) -> None:
        """Handle what has come, as much as one turn of the loop allows.

        Raises:
            ConnectionAbortedError: the client is to be dropped.
            ProtocolError: the client cannot be understood any more.
        """
        if self._given_up:
            raise ConnectionAbortedError(errno.ECONNABORTED, self._given_up)
        channel = self._channel
        end = channel.position + BYTES_PER_TURN
        self._handling = True
        try:
            for _ in range(MESSAGES_PER_TURN):
                if self._closed or (message := channel.next()) is None:
                    break
                self._handle(message)
                if channel.position >= end:
                    break
        finally:
            self._handling = False
            if self.link is not None:
                self._guard(self._device.messages_read)
        if not channel.rest or channel.ready:
            self._partial = None
        elif self._partial is None or self._partial[0] != channel.position:
            self._partial = channel.position, self._poller.clock()

    def _handle(self, message: Message) -> None:
        message_id, command, flags, _, payload, fds = message
        if flags & TYPE_MASK != TYPE_COMMAND:
            self._unexpected(message)
            return
        if command == Command.REGION_READ and message_id in self._answered:
            self._answered.discard(message_id)
            close_all(fds)
            return
        try:
            try:
                reply = self._dispatch(command, payload, fds)
            finally:
                # Those that no handler took; before the reply, so that the client may count on it.
                close_all(fds)
        except OSError as error:
            self._refuse(message_id, command, flags, error)
            if command == Command.VERSION and self.link is None:
                raise ProtocolError(f"no agreement on the version: {error.strerror}") from None
            return
        if not (flags & NO_REPLY or self._closed):
            self._channel.send(HEADER.pack(message_id, command, HEADER.size + len(reply), TYPE_REPLY, 0), reply)

    def _dispatch(self, command: int, payload: memoryview, fds: list[int]) -> Buffer:
        """Handle a command and return the payload of its reply. A handler removes from ``fds`` what it keeps.

        Raises:
            OSError: the command is refused with this errno.
        """
        name = command_name(command)
        if self.link is None and command != Command.VERSION:
            raise ProtocolError(f"{name} before VERSION")
        handler = self._handlers.get(command)
        self._stats[name if handler else "unsupported"] += 1
        if handler is None:
            known = command in Command.__members__.values()
            raise ProtocolError(f"{name} is not supported", errno.ENOTSUP if known else errno.ENOSYS)
        try:
            return handler(payload, fds)
        except OSError:
            raise
        except DmaFault as fault:
            raise OSError(errno.EFAULT, str(fault)) from None
        except Exception as error:
            log.exception("%s failed", name)
            raise OSError(errno.EIO, repr(error)) from None

    def _refuse(self, message_id: int, command: int, flags: int, error: OSError) -> None:
        code = error.errno or errno.EIO
        self._stats["errors"] += 1
        log.debug("%s: %s refused: %s", self.name, command_name(command), error)
        if self.trace is not None:
            self.trace("error", command=command_name(command), errno=code, reason=error.strerror)
        if not (flags & NO_REPLY or self._closed):
            self._channel.send(HEADER.pack(message_id, command, HEADER.size, TYPE_REPLY | ERROR, code))

    def _unexpected(self, message: Message) -> None:
        """A message that is no command: a reply nobody waits for, or of no known type."""
        close_all(message.fds)
        if message.flags & TYPE_MASK == TYPE_REPLY and message.id in self._settled:
            self._settled.discard(message.id)
            self._owes_since = None
            return
        self._stats["errors"] += 1
        log.debug("%s: unexpected message with flags %#x", self.name, message.flags)
        if self.trace is not None:
            self.trace("error", command=command_name(message.command), errno=errno.EINVAL, reason="unexpected message")

    def _guard(self, callback: Callable[..., None], *arguments: int) -> None:
        """Call the device where its failure must not stop the server from what has to follow."""
        try:
            callback(*arguments)
        except Exception:
            log.exception("the device failed")

    # ---------------------------------------------------------------- VERSION

    def _version(self, payload: memoryview, fds: list[int]) -> Buffer:
        if self.link is not None:
            raise ProtocolError("VERSION for the second time")
        major, minor = _unpack(VERSION, payload)
        if major != VERSION_MAJOR:
            raise ProtocolError(f"the client speaks version {major}.{minor}")
        self._client, proposed = Capabilities.parse(bytes(payload[VERSION.size :]))
        irqs = [
            InterruptSet(count, automasked=index == PciIrq.INTX) for index, count in enumerate(self._device.irq_counts)
        ]
        link = ClientLink(self.name, DmaTable(self, on_fault=self._dma_fault, on_lost=self._dma_lost), irqs)
        self._device.attach(link)
        self.link = link
        self._stats["clients"] += 1
        log.info("%s attached", self.name)
        if self.trace is not None:
            self.trace("attach", client=self.name, capabilities=self._client)
        offered = {name: value for name, value in _OFFERED.items() if name in proposed}
        if "max_dma_maps" in proposed:  # QEMU takes no number above its own
            offered["max_dma_maps"] = min(MAX_DMA_MAPS, self._client.max_dma_maps)
        data = version_data(offered, len(payload) - VERSION.size)
        return VERSION.pack(VERSION_MAJOR, min(minor, VERSION_MINOR)) + data

    # ---------------------------------------------------------------- DMA regions

    def _dma_map(self, payload: memoryview, fds: list[int]) -> Buffer:
        argsz, flags, offset, address, size = _unpack(DMA_MAP, payload)
        if argsz < DMA_MAP.size or flags & ~_DMA_FLAGS or len(fds) > 1:
            raise ProtocolError(f"DMA_MAP with argsz {argsz}, flags {flags:#x} and {len(fds)} descriptors")
        if flags & _DMA_ACCESS:  # a client that says how its descriptor may be used; others mean mmap
            if not fds:
                raise ProtocolError("DMA_MAP allows mmap or file I/O, but comes without a descriptor")
            if not flags & DmaFlag.MMAP:
                raise ProtocolError("DMA_MAP allows file I/O only, which is not supported: allow mmap", errno.ENOTSUP)
        self._dma.map(
            address,
            size,
            fd=fds[0] if fds else None,
            offset=offset,
            readable=bool(flags & _READABLE),
            writable=bool(flags & _WRITABLE),
        )
        if self.trace is not None:
            self.trace("dma_map", address=address, size=size, offset=offset, flags=flags, descriptor=bool(fds))
        self._guard(self._device.dma_changed)
        return b""

    def _dma_unmap(self, payload: memoryview, fds: list[int]) -> Buffer:
        argsz, flags, address, size = _unpack(DMA_UNMAP, payload)
        if argsz < DMA_UNMAP.size or flags & ~int(UnmapFlag.ALL):
            raise ProtocolError(f"DMA_UNMAP with argsz {argsz} and flags {flags:#x}")
        first, count = address, size
        if flags & UnmapFlag.ALL:
            if address or size:
                raise ProtocolError("DMA_UNMAP of all regions with an address")
            first, count = 0, 1 << 64
        # The text of the protocol asks for exactly one region. QEMU sends ranges, as VFIO takes them: whatever lies in
        # an IOMMU's address space that goes away, or in a block of memory.
        self._dma.check_unmap(first, count)
        if self._dma.touches(first, count):
            self._guard(self._device.before_unmap, first, count)
        regions = self._dma.unmap(first, count)
        if self.trace is not None:
            self.trace("dma_unmap", address=address, size=size, flags=flags, regions=regions)
        if regions:
            self._guard(self._device.dma_changed)
        return payload[: DMA_UNMAP.size]

    def _dma_lost(self) -> None:
        """Regions have gone since the client's memory was taken away."""
        self._stats["dma_lost"] += 1
        self._guard(self._device.dma_changed)
        self._guard(self._device.memory_lost)

    @property
    def _dma(self) -> DmaTable:
        assert self.link is not None
        return self.link.dma

    # ---------------------------------------------------------------- device, regions, interrupts: information

    def _device_get_info(self, payload: memoryview, fds: list[int]) -> Buffer:
        _want(payload, DEVICE_INFO)
        flags = DeviceFlag.PCI | (DeviceFlag.RESET if self._device.resettable else 0)
        return DEVICE_INFO.pack(DEVICE_INFO.size, flags, len(self._device.regions), len(self._device.irq_counts))

    def _device_get_region_info(self, payload: memoryview, fds: list[int]) -> Buffer:
        argsz, _, index, *_ = _want(payload, REGION_INFO)
        region = self._region(index)
        flags = RegionFlag.READ * region.readable | RegionFlag.WRITE * region.writable if region.size else 0
        capabilities = _chain(region.capabilities)
        needed = REGION_INFO.size + len(capabilities)
        first = 0
        if capabilities:
            flags |= RegionFlag.CAPS
            # Without room for them the client learns from argsz how much to ask for.
            first, capabilities = (REGION_INFO.size, capabilities) if argsz >= needed else (0, b"")
        return REGION_INFO.pack(needed, flags, index, first, region.size, 0) + capabilities

    def _device_get_irq_info(self, payload: memoryview, fds: list[int]) -> Buffer:
        _, _, index, _ = _want(payload, IRQ_INFO)
        irqs = self._irqs(index)
        return IRQ_INFO.pack(IRQ_INFO.size, _INTX_FLAGS if irqs.automasked else _IRQ_FLAGS, index, irqs.count)

    def _device_set_irqs(self, payload: memoryview, fds: list[int]) -> Buffer:
        argsz, flags, index, start, count = _unpack(IRQ_SET, payload)
        if argsz < IRQ_SET.size:
            raise ProtocolError(f"DEVICE_SET_IRQS with argsz {argsz}")
        self._irqs(index).set_irqs(flags, start, count, payload[IRQ_SET.size :], fds)
        if self.trace is not None:
            self.trace("set_irqs", index=index, start=start, count=count, flags=flags, eventfds=len(fds))
        fds.clear()  # the interrupt set owns them now
        return b""

    def _irqs(self, index: int) -> InterruptSet:
        assert self.link is not None
        if index >= len(self.link.irqs):
            raise ProtocolError(f"IRQ type {index}")
        return self.link.irqs[index]

    # ---------------------------------------------------------------- register access

    def _region_read(self, payload: memoryview, fds: list[int]) -> Buffer:
        offset, index, count = _unpack(REGION_ACCESS, payload)
        region = self._range(index, offset, count)
        if not region.readable:
            raise ProtocolError(f"region {index} cannot be read", errno.EPERM)
        data = self._device.region_read(index, offset, count)
        if len(data) != count:
            raise OSError(errno.EIO, f"the device returned {len(data)} bytes for {count}")
        if self.trace is not None:
            self.trace("region_read", region=index, offset=offset, data=data)
        return REGION_ACCESS.pack(offset, index, count) + data

    def _region_write(self, payload: memoryview, fds: list[int]) -> Buffer:
        offset, index, count = _unpack(REGION_ACCESS, payload)
        data = payload[REGION_ACCESS.size :]
        if len(data) != count:
            raise ProtocolError(f"REGION_WRITE of {count} bytes carries {len(data)}")
        self._write(index, offset, data)
        return payload[: REGION_ACCESS.size]

    def _region_write_multi(self, payload: memoryview, fds: list[int]) -> Buffer:
        (number,) = _unpack(WRITE_MULTI, payload)
        writes = payload[WRITE_MULTI.size :]
        if len(writes) != number * SINGLE_WRITE.size:
            raise ProtocolError(f"REGION_WRITE_MULTI of {number} writes carries {len(writes)} bytes")
        for offset, index, count, data in SINGLE_WRITE.iter_unpack(writes):
            if count > len(data):
                raise ProtocolError(f"REGION_WRITE_MULTI with a write of {count} bytes")
            self._write(index, offset, data[:count])
        return payload[: WRITE_MULTI.size]

    def _write(self, index: int, offset: int, data: Buffer) -> None:
        region = self._range(index, offset, len(data))
        if not region.writable:
            raise ProtocolError(f"region {index} cannot be written", errno.EPERM)
        if self.trace is not None:
            self.trace("region_write", region=index, offset=offset, data=bytes(data))
        self._device.region_write(index, offset, data)

    def _range(self, index: int, offset: int, count: int) -> RegionInfo:
        region = self._region(index)
        if not 0 < count <= MAX_DATA_XFER or offset + count > region.size:
            raise ProtocolError(f"access to region {index} of {region.size:#x} bytes at {offset:#x}+{count:#x}")
        return region

    def _region(self, index: int) -> RegionInfo:
        regions = self._device.regions
        if index >= len(regions):
            raise ProtocolError(f"region {index}")
        return regions[index]

    def _device_reset(self, payload: memoryview, fds: list[int]) -> Buffer:
        if not self._device.resettable:
            raise ProtocolError("the device cannot be reset", errno.ENOTSUP)
        if self.trace is not None:
            self.trace("reset")
        self._device.reset()
        return b""

    # ---------------------------------------------------------------- DMA by messages

    def dma_read(self, address: int, count: int) -> bytes:
        """Read client memory that has no descriptor, by DMA_READ; waits for the client, at most DMA_TIMEOUT in one turn
        of the loop.

        Raises:
            DmaFault: the client refused, answered nonsense, or not in time.
        """
        data = bytearray()
        try:
            layout = self._dma_layout or self._find_dma_layout(address)
            while len(data) < count:
                start, length = address + len(data), min(count - len(data), self._transfer_size)
                reply = self._request(Command.DMA_READ, DMA_ACCESS.pack(start, length))
                if len(reply) != DMA_ACCESS.size + length or layout.unpack_from(reply) != (start, length):
                    raise ProtocolError("the answer is malformed")
                data += reply[layout.size : layout.size + length]
        except OSError as error:
            raise DmaFault(address, count, f"DMA_READ failed: {error.strerror}") from None
        return bytes(data)

    def dma_write(self, address: int, data: bytes) -> None:
        """Write client memory that has no descriptor, by DMA_WRITE; waits for the client like ``dma_read``.

        Raises:
            DmaFault: the client refused, or did not answer in time.
        """
        try:
            layout = self._dma_layout or self._find_dma_layout(address)
            for done in range(0, len(data), self._transfer_size):
                piece = data[done : done + self._transfer_size]
                padding = bytes(DMA_ACCESS.size - layout.size)
                self._request(Command.DMA_WRITE, layout.pack(address + done, len(piece)) + piece + padding)
        except OSError as error:
            raise DmaFault(address, len(data), f"DMA_WRITE failed: {error.strerror}") from None

    @property
    def _transfer_size(self) -> int:
        return max(1, min(self._client.max_data_xfer_size, MAX_DATA_XFER))

    def _find_dma_layout(self, address: int) -> Struct:
        """Find out where this client has the data in DMA_READ and DMA_WRITE.

        QEMU 10 declares ``count`` as 32 bits (``VFIOUserDMARW`` in ``hw/vfio-user/protocol.h``), so its data starts
        four bytes early. A count that is 1 to it and absurd to all others tells: only QEMU 10 delivers a byte.
        """
        try:
            self._request(Command.DMA_READ, DMA_ACCESS.pack(address, 1 << 63 | 1))
        except OSError as error:
            if error.errno not in (errno.E2BIG, errno.EINVAL):
                raise  # the access itself is not possible now
            self._dma_layout = DMA_ACCESS
        else:
            self._dma_layout = DMA_ACCESS_QEMU_10
        return self._dma_layout

    def _request(self, command: Command, payload: bytes) -> bytes:
        """Send a command to the client, wait for its reply and return its payload. Commands that arrive meanwhile stay
        for later.

        Raises:
            OSError: the client's errno; ETIMEDOUT; or the connection broke.
        """
        turn, waited = self._waited
        if turn != self._poller.turn:
            waited = 0.0
        if self._owes_since is not None or self._given_up or waited >= DMA_TIMEOUT:
            raise TimeoutError(errno.ETIMEDOUT, "the client does not answer")
        self._request_id = message_id = (self._request_id + 1) & 0xFFFF
        self._settled.add(message_id)
        self._stats[command_name(command)] += 1
        channel, started = self._channel, time.monotonic()
        deadline = started + DMA_TIMEOUT - waited
        try:
            channel.send(HEADER.pack(message_id, command, HEADER.size + len(payload), TYPE_COMMAND, 0), payload)
            while True:
                for position, message in enumerate(channel.waiting()):
                    if message.flags & TYPE_MASK == TYPE_COMMAND:
                        self._answer_early(message)
                    elif message.flags & TYPE_MASK == TYPE_REPLY and message.id == message_id:
                        if position == 0:  # nothing before it has to be handled first
                            channel.next()
                            self._settled.discard(message_id)
                        if message.flags & ERROR:
                            code = message.errno or errno.EIO
                            raise OSError(code, os.strerror(code))
                        return bytes(message.payload)
                left = deadline - time.monotonic()
                if left <= 0 or not self._poller.wait(channel.fileno(), channel.congested, left):
                    break
                channel.flush()
                with contextlib.suppress(BlockingIOError):
                    if not channel.fill(reuse=False):
                        raise ConnectionResetError(errno.ECONNRESET, "the client has left")
            self._stats["dma_timeouts"] += 1
            self._owes_since = self._poller.clock()
            raise TimeoutError(errno.ETIMEDOUT, "the client does not answer")
        except ProtocolError as error:  # not of this message, but of what has come while waiting for its answer
            self._given_up = str(error.strerror)
            raise
        finally:
            took = time.monotonic() - started
            self._waited = self._poller.turn, waited + took
            if took > SLOW_ANSWER:
                self._lose_patience(took)
            if not self._handling:
                self._on_backlog()

    def _lose_patience(self, took: float) -> None:
        """Book a slow answer."""
        now = self._poller.clock()
        grown = (now - self._patience_at) * 1e-9 * PATIENCE_PER_SECOND
        self._patience = min(self._patience + grown, DMA_PATIENCE) - took
        self._patience_at = now
        if self._patience < 0:
            self._given_up = "it answers DMA messages too slowly"

    def _answer_early(self, message: Message) -> None:
        """Answer a read that can be answered before its turn: the client may be unable to reply to us until then."""
        if message.command != Command.REGION_READ or message.id in self._answered or self.link is None:
            return
        try:
            offset, index, count = _unpack(REGION_ACCESS, message.payload)
            if not self._range(index, offset, count).readable:
                return
            data = self._device.region_read_early(index, offset, count)
        except OSError:  # in its turn it will be refused
            return
        if data is None:
            return
        self._answered.add(message.id)
        self._stats["early_reads"] += 1
        if self.trace is not None:
            self.trace("region_read", region=index, offset=offset, data=data)
        reply = REGION_ACCESS.pack(offset, index, count) + data
        self._channel.send(
            HEADER.pack(message.id, message.command, HEADER.size + len(reply), TYPE_REPLY, 0), reply
        )  # fmt: skip

    def _dma_fault(self, fault: DmaFault) -> None:
        self._stats["dma_faults"] += 1
        log.debug("%s: %s", self.name, fault)
        if self.trace is not None:
            self.trace("dma_fault", address=fault.address, count=fault.count, reason=fault.reason)


def _unpack(layout: Struct, payload: memoryview) -> tuple[Any, ...]:
    """The fixed part at the start of a payload."""
    if len(payload) < layout.size:
        raise ProtocolError(f"a payload of {len(payload)} bytes where {layout.size} are due")
    return layout.unpack_from(payload)


def _want(payload: memoryview, layout: Struct) -> tuple[Any, ...]:
    """The same for requests that start with ``argsz``, the room there is for the reply."""
    fields = _unpack(layout, payload)
    if fields[0] < layout.size:
        raise ProtocolError(f"argsz {fields[0]} where {layout.size} are due")
    return fields


def _chain(capabilities: Sequence[bytes]) -> bytes:
    """Lay out region capabilities behind the region info, each aligned to 8 bytes and pointing at the next."""
    chained = bytearray()
    for position, capability in enumerate(capabilities):
        start = len(chained)
        chained += capability + bytes(-len(capability) % 8)
        last = position == len(capabilities) - 1
        identity, version, _ = CAPABILITY.unpack_from(capability)
        CAPABILITY.pack_into(chained, start, identity, version, 0 if last else REGION_INFO.size + len(chained))
    return bytes(chained)


def _peer_name(sock: socket.socket) -> str:
    """Command name and process id of the other end. A process may call itself anything."""
    credentials = Struct("=iII")
    pid, _, _ = credentials.unpack(sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, credentials.size))
    try:
        with open(f"/proc/{pid}/comm", "rb") as file:
            name = file.read().removesuffix(b"\n").decode(errors="backslashreplace")
    except OSError:
        return f"[{pid}]"
    return "".join(one if one.isprintable() else one.encode("unicode_escape").decode() for one in name) + f"[{pid}]"
