"""A controller of NVMe/TCP at the far end of a NIC's wire, in virtual time: what Linux' nvmet is in a guest.

It has one namespace, and whoever asks may read and write it. What it is told that no host may say fails the test.
"""

from __future__ import annotations

import hashlib
import random
import struct
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from ipaddress import IPv4Address

import numpy as np

from nicmodel.gvnic.experiments.ddp import MEMORY, Bench, Network
from nicmodel.gvnic.options.ddp.declarations import DdpDigest
from nicmodel.gvnic.profile import Profile
from nicmodel.gvnic.testing.loopback import Loopback
from nicmodel.gvnic.testing.nvme_host import BLOCK
from nicmodel.gvnic.testing.nvme_tcp import data_pdu, response, trailer, with_digest
from nicmodel.gvnic.testing.station import Station
from nicmodel.nic.mac import parse_mac
from nicmodel.observe.snapshot import snapshot
from nicmodel.packet.checksum import complete
from nicmodel.packet.frames import Batch
from nicmodel.packet.headers import HEADERS
from nicmodel.packet.nvme_tcp import PduFlag, PduType
from nicmodel.packet.parse import parse
from nicmodel.testing.guest_memory import GuestMemory
from nicmodel.testing.tcp import Connection, Octets
from nicmodel.testing.tcp_frame import TcpFrame, tcp_frame
from nicmodel.testing.wire import TestWire
from nicmodel.wire.wire import Poller

from .frames import NIC_MAC

MAC = bytes.fromhex("020000000002")
HOST = "10.4.0.1"
#: ns from one end of the wire to the other.
LATENCY = 50_000
IC_REQUEST, CAPSULE, H2C_DATA = 0x0, 0x4, 0x6
FABRICS, WRITE, READ, IDENTIFY = 0x7F, 0x01, 0x02, 0x06
PROPERTY_SET, CONNECT, PROPERTY_GET = 0x00, 0x01, 0x04


@dataclass
class Session:
    """A connection, and what has been agreed on."""

    connection: Connection[Octets]
    peer: bytes
    mac: bytes
    received: bytearray = field(default_factory=bytearray)
    unsent: bytearray = field(default_factory=bytearray)
    digests: int | None = None
    flow_control: bool = True
    writes: dict[int, tuple[int, int, int]] = field(default_factory=dict)  # place, length, what has come


@dataclass
class PythonTarget:
    """The controller.

    Attributes:
        spoil: places of the namespace whose byte is sent wrong, with a digest that holds.
        pdu: most data in one C2HData PDU.
        transfer: most data that one R2T asks for.
        most: MAXH2CDATA, the most data that it takes in one PDU.
        in_capsule: most data in a capsule.
        status: of reads and writes.
    """

    address: str = "10.4.0.2"
    port: int = 4420
    subsystem: str = "nqn.2014-08.org.example:disk"
    seed: int = 6
    size: int = 1 << 20
    spoil: set[int] = field(default_factory=set)
    pdu: int = 1 << 20
    transfer: int = 48 << 10
    most: int = 20 << 10
    in_capsule: int = 16 << 10
    status: int = 0
    sessions: dict[tuple[bytes, int], Session] = field(default_factory=dict)
    connects: list[tuple[int, int]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.disk = bytearray(random.Random(self.seed).randbytes(self.size))

    def digests(self) -> list[str]:
        """See `Target`."""
        return [hashlib.sha256(self.disk[at : at + BLOCK]).hexdigest() for at in range(0, self.size, BLOCK)]

    # Frames

    def take(self, frame: bytes, now: int) -> list[bytes]:
        """A frame has come; the answer to ARP."""
        own = IPv4Address(self.address).packed
        if frame[12:14] == b"\x08\x06":
            if frame[20:22] == b"\0\1" and frame[38:42] == own:
                return [frame[6:12] + MAC + frame[12:20] + b"\0\2" + MAC + own + frame[22:32]]
            return []
        segment = TcpFrame.parse(frame)
        assert segment is not None and segment.destination == own and segment.header.destination_port == self.port
        key = segment.source, segment.header.source_port
        if key not in self.sessions:
            made: Connection[Octets] = Connection(self.port, key[1], sequence=random.Random(str(key)).getrandbits(32))
            made.listen()
            self.sessions[key] = Session(made, segment.source, frame[6:12])
        payload = frame[segment.start : segment.start + segment.length]
        runs = [Octets(segment.header.sequence, payload)] if payload else []
        session = self.sessions[key]
        session.connection.arrive(segment.header, runs, now)
        if not session.connection.error:
            for run in session.connection.read():
                session.received += run.data
            self._serve(session)
        return []

    def send(self, now: int) -> list[bytes]:
        """What it sends."""
        own = IPv4Address(self.address).packed
        frames = []
        for session in self.sessions.values():
            connection = session.connection
            if session.unsent and not connection.error:
                del session.unsent[: connection.write(bytes(session.unsent))]
            if connection.ended:
                connection.close()
            for header, payload in connection.poll(now):
                frames.append(_complete(tcp_frame(session.mac + MAC, own, session.peer, header, payload)))
        return frames

    @property
    def due(self) -> int | None:
        """When `send` has something to do at the latest."""
        times = (session.connection.due for session in self.sessions.values())
        return min((due for due in times if due is not None), default=None)

    # PDUs

    def _serve(self, session: Session) -> None:
        while len(session.received) >= 8:
            length = int.from_bytes(session.received[4:8], "little")
            assert 72 <= length <= 1 << 21 or session.received[0] == H2C_DATA
            if len(session.received) < length:
                return
            pdu = bytes(session.received[:length])
            del session.received[:length]
            session.unsent += self._answer(session, pdu)

    def _answer(self, session: Session, pdu: bytes) -> bytes:
        kind, flags, header, start = pdu[0], pdu[1], pdu[2], pdu[3]
        if session.digests is None:
            assert kind == IC_REQUEST and len(pdu) == 128
            session.digests = pdu[11]
            answer = struct.pack("<BBBBIHBBI", PduType.IC_RESPONSE, 0, 128, 0, 128, 0, 0, pdu[11], self.most)
            return answer.ljust(128, b"\0")
        after = header + 4 * bool(session.digests & DdpDigest.HEADER)
        assert pdu[header:after] == trailer(pdu[:header])[: after - header]
        data = b""
        if start:
            end = len(pdu) - 4 * bool(session.digests & DdpDigest.DATA)
            data = pdu[start:end]
            assert start == after and pdu[end:] == trailer(data)[: len(pdu) - end]
        assert flags & 3 == session.digests & (3 if start else 1)
        if kind == H2C_DATA:
            return self._take_data(session, pdu, data)
        assert kind == CAPSULE and header == 72
        return self._execute(session, pdu[8:72], data)

    def _execute(self, session: Session, entry: bytes, data: bytes) -> bytes:
        opcode, command = entry[0], int.from_bytes(entry[2:4], "little")
        digests = session.digests or 0
        if opcode == FABRICS:
            result = 0
            if entry[4] == CONNECT:
                queue = int.from_bytes(entry[42:44], "little")
                controller = int.from_bytes(data[16:18], "little")
                assert len(data) == 1024 and data[256:512].rstrip(b"\0").decode() == self.subsystem
                assert controller == (0xFFFF if queue == 0 else 5)
                session.flow_control = not entry[46] & 4
                self.connects.append((queue, controller))
                result = 5
            elif entry[4] == PROPERTY_GET:
                result = 1
            return response(command, digests=digests, result=result)
        block, blocks = struct.unpack_from("<QH", entry, 40)
        place, length = block * BLOCK, (blocks + 1) * BLOCK
        assert int.from_bytes(entry[32:36], "little") == length and place + length <= self.size
        if self.status and opcode in (READ, WRITE):
            return response(command, digests=digests, status=self.status)
        if opcode == IDENTIFY:
            assert entry[40] == 1 and length == 4096
            about = bytearray(4096)
            about[1792:1796] = ((64 + self.in_capsule) // 16).to_bytes(4, "little")
            answer = data_pdu(command, bytes(about), digests=digests)
            return answer + response(command, digests=digests)
        if opcode == WRITE and data:  # in the capsule
            assert len(data) == length <= self.in_capsule
            self.disk[place : place + length] = data
            return response(command, digests=digests)
        if opcode == WRITE:
            assert length > self.in_capsule
            session.writes[command] = (place, length, 0)
            return self._ask(session, command)
        assert opcode == READ
        content = bytearray(self.disk[place : place + length])
        for wrong in self.spoil:
            if place <= wrong < place + length:
                content[wrong - place] ^= 0x40
        answer = b""
        for at in range(0, length, self.pdu):
            part = bytes(content[at : at + self.pdu])
            last = at + len(part) == length
            flags = PduFlag.LAST if last else PduFlag(0)
            if last and not session.flow_control:
                flags |= PduFlag.SUCCESS
            answer += data_pdu(command, part, offset=at, flags=flags, digests=digests)
        return answer + (response(command, digests=digests) if session.flow_control else b"")

    def _ask(self, session: Session, command: int) -> bytes:
        """The next R2T of a write."""
        _, length, done = session.writes[command]
        header = struct.pack("<BBBBI", PduType.READY_TO_TRANSFER, (session.digests or 0) & 1, 24, 0,
                             24 + 4 * bool((session.digests or 0) & 1))  # fmt: skip
        fields = struct.pack("<HHIII", command, command ^ 0x5555, done, min(length - done, self.transfer), 0)
        return with_digest(header + fields, session.digests or 0)

    def _take_data(self, session: Session, pdu: bytes, data: bytes) -> bytes:
        command, tag, offset, count = struct.unpack_from("<HHII", pdu, 8)
        place, length, done = session.writes[command]
        assert tag == command ^ 0x5555 and offset == done and count == len(data) <= self.most
        self.disk[place + offset : place + offset + count] = data
        done += count
        session.writes[command] = (place, length, done)
        assert bool(pdu[1] & PduFlag.LAST) == (done % self.transfer == 0 or done == length)
        if done == length:
            del session.writes[command]
            return response(command, digests=session.digests or 0)
        return self._ask(session, command) if done % self.transfer == 0 else b""


def _complete(frame: bytes) -> bytes:
    """With TCP's checksum."""
    data = np.frombuffer(bytearray(frame), np.uint8)
    headers = np.zeros(1, HEADERS)
    parse(data, 0, len(data), headers)
    complete(data, 0, headers, False)
    return data.tobytes()


class TargetWire(TestWire):
    """A wire with a target at its far end."""

    def __init__(self, target: PythonTarget) -> None:
        super().__init__()
        self.target = target
        self._timer: object = None

    def start(
        self,
        poller: Poller,
        receive: Callable[[Batch], None],
        writable: Callable[[], None],
        link_changed: Callable[[], None],
    ) -> None:
        """See `Wire.start`."""
        super().start(poller, receive, writable, link_changed)
        self._poller = poller

    def send(self, batch: Batch) -> bool:
        """See `Wire.send`."""
        super().send(batch)
        frames = super().take()
        if frames:
            self._poller.call_at(self._poller.clock() + LATENCY, partial(self._arrive, frames))
        return True

    def _arrive(self, frames: list[bytes]) -> None:
        answers = [answer for frame in frames for answer in self.target.take(frame, self._poller.clock())]
        self._turn(answers)

    def _turn(self, frames: list[bytes]) -> None:
        now = self._poller.clock()
        frames += self.target.send(now)
        if frames:
            self._poller.call_at(now + LATENCY, partial(self.inject, *frames))
        if self._timer is not None:
            self._poller.cancel(self._timer)
            self._timer = None
        if (due := self.target.due) is not None:
            self._timer = self._poller.call_at(max(due, now + 1), self._due)

    def _due(self) -> None:
        self._timer = None
        self._turn([])


def _see_the_contract_kept(lab: Loopback) -> None:
    found = lab.findings
    assert not found, "\n".join(map(str, found))


def bench_with(stack: ExitStack, target: PythonTarget) -> Bench:
    """A NIC on such a wire, as the experiment wants it."""
    profile = Profile(mac=parse_mac(NIC_MAC), ddp_flows=1)
    lab = Loopback(profile, wire=TargetWire(target), ram=GuestMemory("ram", size=32 << 20), check=True)
    stack.enter_context(lab)
    stack.callback(_see_the_contract_kept, lab)
    lab.driver.probe()

    def wait(ns: int) -> None:
        lab.run()
        due = lab.clock.next_due
        lab.advance(min(ns, max(due - lab.now, 0) if due is not None else ns))

    @contextmanager
    def disturb(network: Network) -> Iterator[None]:
        if network.loss:
            lab.faults.add("wire-drop", seed="1", probability=network.loss)
        if network.reorder:
            lab.faults.add("wire-reorder", seed="2", probability=network.reorder, delay=5 * LATENCY / 1e9)
        yield
        lab.faults.clear()

    return Bench(
        driver=lab.driver,
        station=Station(lab.driver, HOST, now=lab.clock, wait=wait),
        target=target,
        memory=lab.driver.add_memory(MEMORY, 8 << 20),
        disturb=disturb,
        report=partial(snapshot, nic=lab.nic),
        about={"target": "in Python"},
    )
