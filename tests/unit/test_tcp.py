"""TCP of hosts on a driver in Python: a stream is whole whatever a network does to it, in virtual time."""

from __future__ import annotations

import heapq
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scapy.layers.inet import IP, TCP, UDP
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import Dot1Q, Ether

from nicmodel.testing.tcp import MAX_RETRIES, Connection, Flag, Header, Octets, Reassembly, State, TcpError
from nicmodel.testing.tcp_frame import TcpFrame, tcp_frame

#: ns from one end to the other.
LATENCY = 1_000_000
SECOND = 1_000_000_000
#: Initial sequence numbers: they wrap soon.
OURS, THEIRS = 2**32 - 3000, 2**32 - 50_000


@dataclass
class Network:
    """Two ends, and what is between them.

    Attributes:
        loss: probability that a segment is lost.
        reorder: that it takes up to three times as long as others.
        duplicate: that it comes twice.
        drop: decides besides which segments are lost: sender (0 or 1), header, payload.
    """

    seed: int = 1
    loss: float = 0
    reorder: float = 0
    duplicate: float = 0
    drop: Callable[[int, Header, bytes], bool] = lambda sender, header, payload: False
    window: int = 1 << 20
    now: int = 5 * SECOND
    client: Connection[Octets] = field(init=False)
    server: Connection[Octets] = field(init=False)

    def __post_init__(self) -> None:
        self.random = random.Random(self.seed)
        self.client = Connection(40000, 4420, sequence=OURS, window=self.window)
        self.server = Connection(4420, 40000, sequence=THEIRS, window=self.window)
        self.ends = (self.client, self.server)
        self.flying: list[tuple[int, int, int, bytes]] = []
        self.serial = 0
        self.sent: list[tuple[int, Header, bytes]] = []
        self.received = [bytearray(), bytearray()]
        self.reading = [True, True]
        self.server.listen()
        self.client.open()

    def turn(self) -> None:
        """Both ends have what they receive, and send what they can."""
        for number, end in enumerate(self.ends):
            if self.reading[number] and not end.error:
                for run in end.read():
                    assert len(self.received[number]) == run.sequence - (THEIRS, OURS)[number] - 1 & 0xFFFF_FFFF
                    self.received[number] += run.data
            for header, payload in end.poll(self.now):
                assert len(payload) <= 1460
                self.sent.append((number, header, payload))
                if self.random.random() < self.loss or self.drop(number, header, payload):
                    continue
                for _ in range(1 + (self.random.random() < self.duplicate)):
                    late = self.random.randint(0, 2 * LATENCY) if self.random.random() < self.reorder else 0
                    self.serial += 1
                    raw = header.encode() + payload
                    heapq.heappush(self.flying, (self.now + LATENCY + late, self.serial, 1 - number, raw))

    def run(self, until: Callable[[], bool], seconds: float = 600) -> None:
        """Let time pass until something is true."""
        ends = self.now + round(seconds * SECOND)
        self.turn()
        while not until():
            self.turn()  # what `until` has written
            times = [end.due for end in self.ends if end.due is not None] + [entry[0] for entry in self.flying[:1]]
            assert times, "nothing will happen any more"
            self.now = max(self.now, min(times))
            assert self.now < ends, "this takes too long"
            while self.flying and self.flying[0][0] <= self.now:
                _, _, to, raw = heapq.heappop(self.flying)
                header, length = Header.parse(raw)
                payload = raw[length:]
                runs = [Octets(header.sequence + bool(header.flags & Flag.SYN) & 0xFFFF_FFFF, payload)]
                self.ends[to].arrive(header, runs if payload else [], self.now)
            self.turn()

    def transfer(self, outward: bytes, back: bytes) -> None:
        """Write at both ends as there is room, and wait until all has come."""
        rest = [outward, back]
        wanted = [bytes(had) + new for had, new in zip(self.received, (back, outward), strict=True)]

        def done() -> bool:
            for number, end in enumerate(self.ends):
                if rest[number] and end.state is State.ESTABLISHED:
                    rest[number] = rest[number][end.write(rest[number]) :]
            return self.received == wanted and all(end.idle for end in self.ends)

        self.run(done)

    def close(self) -> None:
        """Close both ends, in order."""
        for end in self.ends:
            end.close()
        self.run(lambda: all(end.closed for end in self.ends))
        assert not any(end.error for end in self.ends)


def octets(count: int, seed: int) -> bytes:
    return random.Random(seed).randbytes(count)


def test_in_order() -> None:
    """Nothing is sent twice, one acknowledgement comes for many segments, and both ways are closed in order."""
    network = Network()
    network.transfer(octets(300_000, 1), octets(200_000, 2))
    network.close()
    for number, end in enumerate(network.ends):
        counters = end.counters
        assert (counters.again, counters.fast, counters.timeouts, counters.old, counters.out_of_order) == (0,) * 5
        assert counters.sent == sum(len(payload) > 0 for sender, _, payload in network.sent if sender == number)
    assert network.sent[0][1].scale == 4 and network.sent[1][1].sack_permitted


@pytest.mark.parametrize(
    ("loss", "reorder", "duplicate"),
    [(0.001, 0, 0), (0.01, 0, 0), (0.03, 0, 0), (0, 0.02, 0), (0, 0.3, 0), (0, 0, 0.2), (0.05, 0.1, 0.1)],
)
@pytest.mark.parametrize("seed", range(3))
def test_loss_and_reordering(loss: float, reorder: float, duplicate: float, seed: int) -> None:
    """Handshake, both streams and the end survive."""
    network = Network(seed, loss, reorder, duplicate)
    network.transfer(octets(150_000, 1), octets(250_000, 2))
    network.close()
    again = sum(end.counters.again for end in network.ends)
    assert again <= sum(end.counters.sent for end in network.ends)
    if loss >= 0.01:
        assert again > 0


@given(st.integers(0, 1 << 30), st.floats(0, 0.2), st.floats(0, 0.5), st.integers(3000, 70_000))
@settings(max_examples=25, deadline=None)
def test_any_network(seed: int, loss: float, reorder: float, window: int) -> None:
    """With small windows as well."""
    network = Network(seed, loss, reorder, loss / 2, window=window)
    try:
        network.transfer(octets(20_000, 1), octets(30_000, 2))
    except TcpError:
        assert loss > 0.1  # so many retransmissions of one segment were lost


def test_fast_retransmit() -> None:
    """A lost segment among others comes again after three duplicate acknowledgements, without a timeout."""
    lost = iter([True])
    network = Network(drop=lambda sender, header, payload: len(payload) == 1460 and header.sequence == OURS + 1 + 2920
                      and next(lost, False))  # fmt: skip
    network.transfer(octets(20_000, 1), b"")
    counters = network.client.counters
    assert (counters.fast, counters.timeouts, counters.again) == (1, 0, 1)
    blocks = [header.sack for sender, header, _ in network.sent if sender == 1 and header.sack]
    first = OURS + 1 + 2920 + 1460 & 0xFFFF_FFFF
    assert blocks and all(start == first for (start, _), *_ in blocks)
    assert network.now < 5.2 * SECOND


def test_lost_tail() -> None:
    """The last segment, after which nothing comes, is sent again by the timer, whose time doubles."""
    left = iter([True] * 3)
    network = Network(drop=lambda sender, header, payload: sender == 0 and len(payload) == 500 and next(left, False))
    network.transfer(octets(500, 1), b"")
    assert network.client.counters.timeouts == 3 and network.client.counters.fast == 0
    assert network.now - 5 * SECOND > (0.2 + 0.4 + 0.8) * SECOND


def test_zero_window() -> None:
    """A receiver that does not read closes its window, is probed, and opens it again, even if it says so in vain."""
    network = Network(window=8192)
    network.reading[1] = False
    data = octets(50_000, 1)
    network.run(lambda: network.client.state is State.ESTABLISHED)
    assert network.client.write(data) == 8192
    network.run(lambda: network.client.idle)
    assert network.client.write(data[8192:]) == 8192
    network.run(lambda: network.now > 8 * SECOND)
    assert network.server._unread == 8192 and not network.client.idle
    network.reading[1] = True
    network.drop = lambda sender, header, payload: sender == 1 and header.window > 0 and network.now < 9 * SECOND
    network.run(lambda: network.client.idle)
    network.transfer(data[16384:], b"")
    assert network.received[1] == data and network.client.error is None


def test_nobody_answers() -> None:
    """A connection is given up after so many retransmissions, when it is made and later; so is a closed window."""
    network = Network(drop=lambda sender, header, payload: True)
    network.run(lambda: network.client.state is State.CLOSED)
    assert isinstance(network.client.error, TcpError) and len(network.sent) == 1 + MAX_RETRIES
    network = Network()
    network.run(lambda: network.client.state is State.ESTABLISHED)
    network.drop = lambda sender, header, payload: True
    network.client.write(b"x")
    network.run(lambda: network.client.state is State.CLOSED)
    with pytest.raises(TcpError, match="does not answer"):
        network.client.read()
    with pytest.raises(TcpError, match="does not answer"):
        network.client.write(b"y")


def test_reset() -> None:
    """A reset ends the connection, but only one with the sequence number that is expected (RFC 5961)."""
    network = Network()
    network.transfer(b"hello", b"world")
    wrong = Header(4420, 40000, network.client.next + 1, 0, Flag.RST)
    network.client.arrive(wrong, [], network.now)
    assert network.client.error is None
    network.server.abort()
    network.run(lambda: network.client.state is State.CLOSED)
    with pytest.raises(TcpError, match="reset"):
        network.client.read()
    client: Connection[Octets] = Connection(1, 2, sequence=7)
    client.open()
    client.poll(0)
    client.arrive(Header(2, 1, 0, 8, Flag.RST | Flag.ACK), [], 0)
    with pytest.raises(TcpError, match="refuses"):
        client.read()


def test_what_was_never_sent_is_not_acknowledged() -> None:
    network = Network()
    network.transfer(b"hello", b"")
    network.client.write(b" again")
    network.client.arrive(Header(4420, 40000, network.client.next, OURS + 5000 & 0xFFFF_FFFF, Flag.ACK), [], 0)
    assert not network.client.idle and network.client.error is None
    network.run(lambda: network.client.idle)
    assert network.received[1] == b"hello again"


@given(st.lists(st.tuples(st.integers(0, 300), st.integers(1, 60)), max_size=60))
def test_reassembly(pieces: Sequence[tuple[int, int]]) -> None:
    """Any overlapping runs: each byte once, that which came first, in the stream's order, and none beyond the limit."""
    stream: Reassembly[Octets] = Reassembly(OURS, limit=256)
    model: dict[int, int] = {}
    taken = bytearray()
    for number, (start, length) in enumerate(pieces):
        run = Octets(OURS + start & 0xFFFF_FFFF, bytes([number]) * length)
        limit = len(taken) + 256
        places = [place for place in range(start, start + length) if len(taken) <= place < limit]
        new = [place for place in places if place not in model]
        assert stream.put(run) == bool(new)
        model |= dict.fromkeys(new, number)
        blocks = stream.blocks(run.sequence)
        for found in stream.take():
            assert found.sequence == OURS + len(taken) & 0xFFFF_FFFF
            taken += found.data
        assert stream.next == OURS + len(taken) & 0xFFFF_FFFF and len(taken) not in model
        assert taken == bytes(model[place] for place in range(len(taken)))
        assert len(blocks) <= 4
        for begin, end in blocks:
            covered = range(begin - OURS & 0xFFFF_FFFF, end - OURS & 0xFFFF_FFFF)
            assert covered and all(place in model for place in covered)
        if new and blocks and len(taken) <= start:
            begin, end = blocks[0]
            assert begin - OURS & 0xFFFF_FFFF <= start < end - OURS & 0xFFFF_FFFF


@given(st.builds(
    Header, *[st.integers(0, 65535)] * 2, *[st.integers(0, 2**32 - 1)] * 2,
    flags=st.integers(0, 31).map(Flag), window=st.integers(0, 65535), mss=st.none() | st.integers(0, 65535),
    scale=st.none() | st.integers(0, 14), sack_permitted=st.booleans(),
))  # fmt: skip
def test_header(header: Header) -> None:
    """What is written can be read, by scapy as well."""
    raw = header.encode()
    assert Header.parse(raw + b"payload") == (header, len(raw))
    found = TCP(raw)
    assert (found.sport, found.dport, found.seq, found.ack) == (
        header.source_port, header.destination_port, header.sequence, header.acknowledgement,
    )  # fmt: skip
    options = dict(found.options)
    assert options.get("MSS") == header.mss and options.get("WScale") == header.scale
    assert ("SAckOK" in options) == header.sack_permitted


def test_sack_option() -> None:
    header = Header(1, 2, 3, 4, sack=((5, 6), (7, 8), (9, 10), (11, 12)))
    raw = header.encode()
    assert Header.parse(raw)[0] == header and len(raw) <= 60
    assert dict(TCP(raw).options)["SAck"] == (5, 6, 7, 8, 9, 10, 11, 12)


@given(st.binary(max_size=80))
def test_any_bytes_are_a_header_or_none(raw: bytes) -> None:
    try:
        header, length = Header.parse(raw)
    except ValueError:
        return
    assert 20 <= length <= len(raw) and header.flags in Flag(31)


@pytest.mark.parametrize("tags", [0, 1, 2])
@pytest.mark.parametrize("v", [4, 6])
def test_frames(tags: int, v: int) -> None:
    """A frame of scapy's is read: addresses, header, place of the payload without what Ethernet has added."""
    ip = IP(src="10.0.0.1", dst="10.0.0.2") if v == 4 else IPv6(src="fd00::1", dst="fd00::2")
    frame = Ether()
    for _ in range(tags):
        frame /= Dot1Q(vlan=5)
    raw = bytes(frame / ip / TCP(sport=1, dport=2, seq=7, options=[("MSS", 1460)]) / b"payload")
    found = TcpFrame.parse(raw + bytes(5))
    assert found is not None
    assert raw[found.start : found.start + found.length] == b"payload"
    assert (found.header.sequence, found.header.mss) == (7, 1460)
    assert (found.source[-1], found.destination[-1], len(found.source)) == (1, 2, 4 if v == 4 else 16)


@pytest.mark.parametrize(
    "frame",
    [
        bytes(Ether() / IP() / UDP()), bytes(Ether() / IPv6() / UDP()), bytes(Ether() / IP(frag=5) / TCP()),
        bytes(Ether() / IP(flags="MF") / TCP()), bytes(Ether() / IP() / TCP())[:50], b"", bytes(14),
        bytes(Ether() / IP(len=30) / TCP()),
    ],
)  # fmt: skip
def test_what_is_no_segment(frame: bytes) -> None:
    assert TcpFrame.parse(frame) is None


@given(st.binary(max_size=200))
def test_any_frame(frame: bytes) -> None:
    found = TcpFrame.parse(bytes(12) + b"\x08\x00\x45" + frame)
    assert found is None or found.start >= 54


def test_made_frame() -> None:
    """IP's checksum is right, TCP's is left to the NIC, and it reads as it was made."""
    header = Header(1, 2, 3, 4, Flag.ACK | Flag.PSH, 5)
    raw = tcp_frame(bytes(12), bytes([10, 0, 0, 1]), bytes([10, 0, 0, 2]), header, b"payload")
    packet = Ether(raw)
    wanted = IP(bytes(packet[IP].copy()))
    del wanted.chksum
    assert packet[IP].chksum == IP(bytes(wanted)).chksum and packet[TCP].chksum == 0 and packet[IP].flags == "DF"
    found = TcpFrame.parse(raw)
    assert found is not None and found.header == header and raw[found.start :] == b"payload"
