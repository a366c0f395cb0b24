"""A host of IPv4 on a NIC's driver in Python: it answers ARP, and has TCP connections (`nicmodel.testing.tcp`).

    station = Station(driver, "10.0.0.1", now=clock, wait=wait)
    connection = station.connect("10.0.0.2", 4420)
    connection.write(b"hello")
    station.run(lambda: connection.idle, 10, "the peer")

Packets whose payload the NIC has placed itself come to the connections as they are (`Piece`).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from ipaddress import IPv4Address

from nicmodel.gvnic.testing.driver import Driver
from nicmodel.gvnic.testing.pieces import Piece, unfold
from nicmodel.gvnic.testing.rx import RxPacket
from nicmodel.gvnic.testing.tx import QueueFull
from nicmodel.nic.mac import parse_mac
from nicmodel.testing.tcp import MASK, Connection, Flag, Header, State
from nicmodel.testing.tcp_frame import TcpFrame, tcp_frame

_SECOND = 1_000_000_000
_BROADCAST = b"\xff" * 6
_ARP = b"\x08\x06"
#: Ethernet and IPv4, addresses of 6 and 4 bytes (RFC 826); the operation follows.
_ARP_FIXED = bytes.fromhex("000108000604")
_REQUEST, _REPLY = b"\0\1", b"\0\2"
#: ns between two ARP requests.
_ARP_PERIOD = _SECOND // 4
_FIRST_PORT, _LAST_PORT = 49152, 65535
_HEADERS = 40
_MAX_NEIGHBOURS = 1024
#: With so many frames waiting to be sent, no more answers of the kind that may be left out.
_MAX_REFUSALS = 1024


class Station:
    """The host. Everything happens in its own calls.

    Args:
        driver: of the NIC, after its probe; its queues may be closed and opened again between connections.
        address: the host's.
        now: the time, ns.
        wait: lets time pass until something may have come, for no longer than so many ns.
        mtu: of the network.
        queue: the receive and transmit queue that it uses.

    Attributes:
        driver: the driver.
        address: the host's.
    """

    def __init__(
        self, driver: Driver, address: str, *, now: Callable[[], int], wait: Callable[[int], None], mtu: int = 1500,
        queue: int = 0,
    ) -> None:  # fmt: skip
        self.driver, self.address = driver, address
        self._now, self._wait = now, wait
        self._mss = mtu - _HEADERS
        self._queue = queue
        if driver.description is None:
            raise RuntimeError("the driver has not asked the device what it is: probe() first")
        self._mac = parse_mac(driver.description.mac)
        self._own = IPv4Address(address).packed
        self._neighbours: dict[bytes, bytes] = {}
        self._connections: dict[tuple[bytes, int, int], Connection[Piece]] = {}
        self._watchers: dict[Connection[Piece], Callable[[RxPacket], None]] = {}
        self._backlog: deque[tuple[bytes, bool]] = deque()  # frames, and whether the NIC completes a checksum
        self._port = _FIRST_PORT

    def connect(self, address: str, port: int, *, window: int = 1 << 19, timeout: float = 30) -> Connection[Piece]:
        """Make a connection.

        Args:
            address: of the peer, in the same network.
            port: the peer's.
            window: see `Connection`.
            timeout: seconds.

        Raises:
            TimeoutError: nobody has this address, or answers at this port.
            TcpError: the peer refuses, or does not answer.
        """
        peer = IPv4Address(address).packed
        self._resolve(peer, timeout)
        ours = self._port
        self._port = _FIRST_PORT + (self._port + 1 - _FIRST_PORT) % (_LAST_PORT + 1 - _FIRST_PORT)
        # RFC 9293, section 3.4.1: the clock's part of an initial sequence number.
        sequence = self._now() // 4000 + ours * 7919 & 0xFFFF_FFFF
        connection: Connection[Piece] = Connection(ours, port, sequence=sequence, mss=self._mss, window=window)
        self._connections[peer, port, ours] = connection
        connection.open()
        self.run(lambda: connection.state is not State.SYN_SENT, timeout, f"{address}:{port} does not answer")
        if connection.error:
            self.forget(connection)
            raise connection.error
        return connection

    def watch(self, connection: Connection[Piece], watcher: Callable[[RxPacket], None]) -> None:
        """Have each packet of a connection shown to somebody when it comes, before TCP has it."""
        self._watchers[connection] = watcher

    def forget(self, connection: Connection[Piece]) -> None:
        """Have no more to do with a connection."""
        self._watchers.pop(connection, None)
        self._connections = {key: other for key, other in self._connections.items() if other is not connection}

    def hang_up(self, connection: Connection[Piece], timeout: float = 10) -> None:
        """End a connection: in order if the peer does its part in time, else with a reset."""
        connection.close()
        try:
            self.run(lambda: connection.closed, timeout, "the peer does not end the connection")
        except TimeoutError:
            connection.abort()
            self.turn()
        self.forget(connection)

    def run(self, until: Callable[[], bool], timeout: float, complaint: str) -> None:
        """Do what is to be done until something is true.

        Args:
            until: what; it is asked after each turn.
            timeout: seconds.
            complaint: what to say after that.

        Raises:
            TimeoutError: it did not come true.
        """
        ends = self._now() + round(timeout * _SECOND)
        while True:
            came = self.turn()
            if until():
                self.turn()  # what it has written leaves, and what it has read is acknowledged
                return
            now = self._now()
            if now >= ends:
                raise TimeoutError(f"{complaint} ({timeout:g} s)")
            if came or self._backlog:
                continue
            due = min((one.due for one in self._connections.values() if one.due is not None), default=ends)
            self._wait(max(min(due, ends) - now, 0))

    def turn(self) -> bool:
        """Take what has come, and send what is due; whether anything came."""
        packets = self.driver.poll(self._queue)
        now = self._now()
        for packet in packets:
            self._receive(packet, now)
        for (peer, _, _), connection in self._connections.items():
            ethernet = self._neighbours[peer] + self._mac
            for header, payload in connection.poll(now):
                self._backlog.append((tcp_frame(ethernet, self._own, peer, header, payload), True))
        self._flush()
        return bool(packets)

    def _flush(self) -> None:
        queue = self.driver.tx[self._queue]
        queue.poll()
        sent = False
        try:
            while self._backlog:
                frame, checksum = self._backlog[0]
                queue.send(frame, checksum=checksum, kick=False)
                self._backlog.popleft()
                sent = True
        except QueueFull:
            pass  # the rest follows when the NIC has sent these
        if sent:
            queue.kick()

    def _receive(self, packet: RxPacket, now: int) -> None:
        frame = packet.frame
        if frame[12:14] == _ARP:
            self._take_arp(frame[14:42])
            return
        if not packet.checksum_unnecessary:
            return
        segment = TcpFrame.parse(frame)
        if segment is None or segment.destination != self._own:
            return
        key = segment.source, segment.header.source_port, segment.header.destination_port
        connection = self._connections.get(key)
        if connection is None:
            self._refuse(frame[6:12], segment)
            return
        if watcher := self._watchers.get(connection):
            watcher(packet)
        connection.arrive(segment.header, unfold(packet, segment), now)

    def _refuse(self, mac: bytes, segment: TcpFrame) -> None:
        """Nobody knows of this segment's connection any more (RFC 9293, section 3.10.7.1)."""
        asked = segment.header
        if asked.flags & Flag.RST or len(self._backlog) >= _MAX_REFUSALS:
            return
        ports = asked.destination_port, asked.source_port
        if asked.flags & Flag.ACK:
            header = Header(*ports, asked.acknowledgement, flags=Flag.RST)
        else:
            end = asked.sequence + segment.length + bool(asked.flags & Flag.SYN) & MASK
            header = Header(*ports, 0, end, Flag.RST | Flag.ACK)
        self._backlog.append((tcp_frame(mac + self._mac, self._own, segment.source, header, b""), True))

    def _take_arp(self, body: bytes) -> None:
        if len(body) < 28 or body[:6] != _ARP_FIXED or body[24:28] != self._own:
            return
        sender, address = body[8:14], body[14:18]
        if len(self._neighbours) < _MAX_NEIGHBOURS or address in self._neighbours:
            self._neighbours[address] = sender
        if body[6:8] == _REQUEST and len(self._backlog) < _MAX_REFUSALS:
            self._send_arp(_REPLY, sender, sender, address)

    def _send_arp(self, operation: bytes, to: bytes, target: bytes, address: bytes) -> None:
        frame = to + self._mac + _ARP + _ARP_FIXED + operation + self._mac + self._own + target + address
        self._backlog.append((frame, False))

    def _resolve(self, peer: bytes, timeout: float) -> None:
        """Learn the Ethernet address of a neighbour."""
        ends = self._now() + round(timeout * _SECOND)
        while peer not in self._neighbours:
            if self._now() >= ends:
                raise TimeoutError(f"nobody has the address {IPv4Address(peer)} ({timeout:g} s)")
            self._send_arp(_REQUEST, _BROADCAST, bytes(6), peer)
            again = self._now() + _ARP_PERIOD
            while peer not in self._neighbours and (left := again - self._now()) > 0:
                if not self.turn():
                    self._wait(left)
