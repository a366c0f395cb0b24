"""vfio-user messages with descriptors, from a client that may be anything."""

from __future__ import annotations

import os
import socket
import struct

import numpy as np

from nicmodel.packet.frames import Offload
from nicmodel.testing.guest_memory import PAGE
from nicmodel.vfio_user.client import Client
from nicmodel.vfio_user.protocol import (
    DMA_MAP,
    DMA_UNMAP,
    HEADER,
    IRQ_SET,
    MAX_MESSAGE,
    NO_REPLY,
    REGION_ACCESS,
    REGION_INFO,
    SINGLE_WRITE,
    TYPE_COMMAND,
    TYPE_MASK,
    TYPE_REPLY,
    WRITE_MULTI,
    Command,
)

from .bench import Sink, works
from .campaign import ROWS, Block, Example, Run
from .labs import KINDS, make_lab
from .memory import mappings_of, open_descriptors

#: Messages that are handed over together.
_GROUP = 64
_KNOWN = [int(command) for command in Command]
_FLAGS = [0, 0, 0, 0, 0, 0, NO_REPLY, NO_REPLY, 0x1, 0x2, 0xF, 0x20, 0x21, 0xFFFFFFE0]
#: Addresses and sizes of DMA regions: some overlap, some are no multiple of a page, some wrap around.
_PLACES = [0, PAGE, 0x10000, 0x11000, 0x12000, 1 << 40, (1 << 64) - PAGE, 1, 0x10FFF, (1 << 64) - 1]
_SIZES = [PAGE, PAGE, 2 * PAGE, 4 * PAGE, 5 * PAGE, 0, 1, 100, 1 << 40, (1 << 64) - 1]
_COUNTS = [1, 2, 4, 8, 16, 64, 256, 4096, 0, 3, 4097, 1 << 20, (1 << 20) + 1, 0xFFFFFFFF]
_INDICES = [0, 1, 2, 7, 3, 5, 8, 9, 255, 0xFFFFFFFF]
_OFFSETS = [0, 4, 8, 0x10, 0x14, 0x28, 0x3C, 0xFF, 4092, 4095, 4096, 1 << 20, (1 << 64) - 1]
_IRQ_FLAGS = [36, 33, 34, 9, 17, 10, 18, 12, 1, 2, 4, 32, 0, 63, 0xFFFFFFFF]
_VERSIONS = [
    b'{"capabilities":{"max_msg_fds":8}}\0', b"{}\0", b"", b"{", b"[]\0", b"\xff\0", b"[" * 300 + b"\0",
    b'{"capabilities":{"max_data_xfer_size":-1}}\0', b'{"capabilities":{"max_msg_fds":1e99}}\0', b"1" * 5000 + b"\0",
]  # fmt: skip


class Messages:
    """A server, and one connection after the other."""

    def __init__(self, setup: int, run: Run) -> None:
        self.run_ = run
        self.lab = make_lab(KINDS[setup // 2], Sink(Offload.NONE))
        self.lab.driver.probe()
        if setup & 1:
            self.lab.driver.open(ring_entries=64)
        self.lab.driver.disconnect()
        self.lab.run()
        self.memory = os.memfd_create("victim")
        os.ftruncate(self.memory, 4 * PAGE)
        read_end, write_end = os.pipe2(os.O_NONBLOCK)
        self.fds = [self.memory, os.eventfd(0, os.EFD_NONBLOCK), write_end, os.open("/dev/null", os.O_RDWR), read_end]
        self.open, self.maps = open_descriptors(), mappings_of("victim")

    def connect(self, *, negotiate: bool = True) -> socket.socket:
        """A connection that is served; whoever was served before has gone."""
        client = Client(str(self.lab.path), negotiate=negotiate, idle=self.lab.clock.turn)
        made = client._channel.socket
        self._client = client  # who closes it
        made.setblocking(False)
        return made

    def send(self, block: Block) -> None:
        """Messages whose framing is right."""
        made = self._messages(block)
        connection = self.connect()
        for first in range(0, len(made), _GROUP):
            group = made[first : first + _GROUP]
            owed = {
                number for number, (flags, _, _) in enumerate(group, first)
                if flags & TYPE_MASK == TYPE_COMMAND and not flags & NO_REPLY
            }  # fmt: skip
            if not self._hand_over(connection, [(message, fds) for _, message, fds in group]):
                raise AssertionError("the server has closed the connection")
            replies = self._replies(connection)
            self.run_.counts["unanswered"] += len(owed - set(replies))
            assert sorted(replies) == sorted(owed), f"replies to {sorted(replies)}, not to {sorted(owed)}"
        self._client.close()
        self.lab.run()
        self.run_.counts["messages"] += len(made)

    def stream(self, block: Block) -> None:
        """Messages that are cut, or say a wrong size, or come before VERSION: the connection may end at any of them."""
        rng = block.rng
        cuts = rng.integers(0, 40, ROWS)[block.rows].tolist()
        wrong = rng.choice([0, 1, 15, 16, 17, 64, MAX_MESSAGE, MAX_MESSAGE + 1, 0xFFFFFFFF], ROWS)[block.rows].tolist()
        action = rng.random(ROWS)[block.rows].tolist()
        versions = rng.integers(0, len(_VERSIONS), ROWS)[block.rows].tolist()
        made = self._messages(block)
        connection: socket.socket | None = None
        for (_, message, fds), cut, size, chance, version in zip(made, cuts, wrong, action, versions, strict=True):
            if connection is None:
                connection = self.connect(negotiate=chance < 0.5)
                if chance > 0.7:
                    payload = struct.pack("=HH", version % 3 and 0, 1) + _VERSIONS[version]
                    message, fds = HEADER.pack(1, Command.VERSION, HEADER.size + len(payload), 0, 0) + payload, []
            if chance < 0.05:
                message = message[:4] + struct.pack("=I", size) + message[8:]
            elif chance < 0.08:
                message = message[:cut] or message[:1]
            if not self._hand_over(connection, [(message, fds)]):
                self._client.close()
                self.run_.counts["connections ended"] += 1
                connection = None
            self.run_.counts["messages"] += 1
        if connection is not None:
            self._client.close()
        self.lab.run()

    def _messages(self, block: Block) -> list[tuple[int, bytes, list[int]]]:
        """Flags, bytes and descriptors; the ID of a message is its number."""
        rng = block.rng
        commands = rng.choice(_KNOWN, ROWS)[block.rows].tolist()
        unknown = rng.random(ROWS)[block.rows].tolist()
        flags = rng.choice(np.array(_FLAGS, np.uint64), ROWS)[block.rows].tolist()
        picks = rng.integers(0, 1 << 30, (ROWS, 6))[block.rows].tolist()
        errno = rng.integers(0, 1 << 16, ROWS)[block.rows].tolist()
        fds = rng.integers(0, 5, (ROWS, 20))[block.rows].tolist()
        counts = rng.choice([0, 0, 0, 1, 1, 2, 17], ROWS)[block.rows].tolist()
        noise = [rng.bytes(128) for _ in range(ROWS)][block.rows]
        made = []
        for number, command in enumerate(commands):
            payload = self._payload(command, picks[number], noise[number])
            if unknown[number] < 0.1:
                payload = noise[number][: picks[number][0] % 129]
            elif unknown[number] < 0.15:
                payload = payload[: picks[number][1] % (len(payload) + 1)]
            elif unknown[number] < 0.2:
                command = picks[number][2] & 0xFFFF
            header = HEADER.pack(number, command, HEADER.size + len(payload), flags[number], errno[number])
            made.append((flags[number], header + payload, [self.fds[kind] for kind in fds[number][: counts[number]]]))
        return made

    def _payload(self, command: int, picks: list[int], noise: bytes) -> bytes:
        def pick(number: int, among: list[int]) -> int:
            return among[picks[number] % len(among)]

        match command:
            case Command.DMA_MAP:
                argsz = pick(0, [32, 32, 32, 31, 0, 4096])
                flags = pick(1, [3, 3, 1, 2, 0, 7, 8, 15, 0xFFFFFFFF])
                offset = pick(2, [0, 0, PAGE, 1, 1 << 40, (1 << 64) - PAGE])
                return DMA_MAP.pack(argsz, flags, offset, pick(3, _PLACES), pick(4, _SIZES))
            case Command.DMA_UNMAP:
                if picks[0] % 4 == 0:
                    return DMA_UNMAP.pack(24, 2, 0, 0)
                return DMA_UNMAP.pack(pick(1, [24, 24, 0, 4096]), pick(2, [0, 0, 1, 2, 3, 4]),
                                      pick(3, _PLACES), pick(4, _SIZES))  # fmt: skip
            case Command.DEVICE_GET_REGION_INFO:
                return REGION_INFO.pack(pick(0, [32, 4096, 0, 31]), 0, pick(1, _INDICES), 0, 0, 0)
            case Command.DEVICE_GET_INFO | Command.DEVICE_GET_IRQ_INFO:
                return struct.pack("=IIII", pick(0, [16, 0, 15, 64]), 0, pick(1, _INDICES), 0)
            case Command.DEVICE_SET_IRQS:
                start, count = pick(2, [0, 0, 1, 4, 31, 0xFFFFFFFF]), pick(3, [1, 1, 2, 17, 0, 32, 0xFFFFFFFF])
                return IRQ_SET.pack(20, pick(0, _IRQ_FLAGS), pick(1, _INDICES), start, count) + noise[: picks[4] % 4]
            case Command.REGION_READ:
                return REGION_ACCESS.pack(pick(0, _OFFSETS), pick(1, _INDICES), pick(2, _COUNTS))
            case Command.REGION_WRITE:
                count = pick(2, _COUNTS[:6])
                said = count if picks[3] % 8 else pick(4, _COUNTS)
                return REGION_ACCESS.pack(pick(0, _OFFSETS), pick(1, _INDICES), said) + noise[:count]
            case Command.REGION_WRITE_MULTI:
                number = picks[0] % 8
                writes = [
                    SINGLE_WRITE.pack(
                        _OFFSETS[(picks[1] + k) % len(_OFFSETS)], _INDICES[(picks[2] >> k) % len(_INDICES)],
                        (1, 2, 4, 8, 9)[(picks[3] >> k) % 5], noise[8 * k : 8 * k + 8],
                    ) for k in range(number)
                ]  # fmt: skip
                return WRITE_MULTI.pack(pick(4, [number, number, number, 9, 1 << 61])) + b"".join(writes)
            case Command.DEVICE_RESET:
                return b""
            case _:
                return noise[: picks[0] % 65]

    def _hand_over(self, connection: socket.socket, messages: list[tuple[bytes, list[int]]]) -> bool:
        """Send messages, those without descriptors together; false if the connection has ended."""
        pending = bytearray()
        try:
            for message, fds in messages:
                if fds:
                    if pending:
                        self._all(connection, pending, [])
                        pending = bytearray()
                    self._all(connection, bytearray(message), fds)
                else:
                    pending += message
            if pending:
                self._all(connection, pending, [])
            self.lab.clock.turn()
            return connection.recv(1, socket.MSG_PEEK) != b""
        except BlockingIOError:
            return True
        except OSError:
            return False

    def _all(self, connection: socket.socket, octets: bytearray, fds: list[int]) -> None:
        rest = memoryview(octets)
        while rest:
            try:
                done = socket.send_fds(connection, [rest], fds) if fds else connection.send(rest)
            except BlockingIOError:
                self.lab.clock.turn()
                continue
            rest, fds = rest[done:], []

    def _replies(self, connection: socket.socket) -> list[int]:
        """The numbers of the messages that have been answered since the last call."""
        octets = bytearray()
        while True:
            self.lab.clock.turn()
            try:
                got = connection.recv(1 << 20)
            except BlockingIOError:
                break
            assert got, "the server has closed the connection"
            octets += got
        answered, at = [], 0
        while at < len(octets):
            number, command, size, flags, errno = HEADER.unpack_from(octets, at)
            if flags & TYPE_MASK == TYPE_REPLY:
                answered.append(number)
                name = Command(command).name if command in _KNOWN else "other"
                self.run_.reached.add(f"{name}: {os.strerror(errno) if flags & 0x20 else 'ok'}")
            at += size
        assert at == len(octets), "a reply is not whole"
        return answered

    def finish(self) -> None:
        """Nothing is left of all connections, and the next driver can work."""
        self.lab.run()
        # Fewer: what tests before have left may be collected meanwhile.
        assert open_descriptors() <= self.open, f"{open_descriptors()} descriptors, {self.open} before"
        assert mappings_of("victim") == self.maps
        assert self.lab.nic.counters["internal_error"] == 0
        works(self.lab)

    def close(self) -> None:
        self.lab.close()
        for fd in self.fds:
            os.close(fd)


class MessagesTarget:
    """Messages."""

    name = "messages"
    operations = "messages"
    setups = 4
    kinds = ("send", "send", "send", "stream")
    blocks = 12

    def run(self, example: Example, run: Run) -> None:
        """See `Target.run`."""
        server = Messages(example.setup, run)
        example.play(server, {"send": server.send, "stream": server.stream})
