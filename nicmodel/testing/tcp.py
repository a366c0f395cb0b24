"""One end of a TCP connection, without sockets and without a clock of its own.

    client = Connection[Octets](40000, 4420, sequence=7)
    client.open()
    client.write(b"hello")
    for header, payload in client.poll(now):  # what is to be sent now
        ...
    client.arrive(header, [Octets(header.sequence, payload)], now)  # what has come
    client.read()  # what continues the stream

For hosts that stand on a driver in Python, whose NIC may have placed a segment's payload already: what arrives are
*runs* of the stream, and a run need not have bytes. No TCP library takes such segments, nor lets a caller say what time
it is; both are why this one is here.

It has the handshake, reassembly, selective acknowledgements of what came out of order, window scaling and zero-window
probes, retransmission by timeout and by duplicate acknowledgements, and congestion control. It has no urgent data, no
timestamps, and makes no use of the peer's selective acknowledgements. An end acknowledges when it is polled: once for
all that came in order, and once for each segment that did not.

Sources: RFC 9293 (TCP), RFC 7323 (window scale), RFC 2018 (SACK), RFC 5681 and 6582 (congestion control, NewReno), RFC
3042 (limited transmit), RFC 6298 (retransmission timer).
"""

from __future__ import annotations

import struct
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum, IntFlag, auto
from typing import Generic, NamedTuple, Protocol, Self, TypeVar

MASK = 0xFFFF_FFFF
_HEADER = struct.Struct(">HHIIBBHHH")
_MSS, _SCALE, _SACK_PERMITTED, _SACK = 2, 3, 4, 5
#: SACK blocks that fit a header without timestamps.
_MAX_BLOCKS = 4
_SCALE_BITS = 14
_DUPLICATES = 3
#: Segments of the initial congestion window (RFC 6928).
_INITIAL_WINDOW = 10
_SECOND = 1_000_000_000
#: Retransmission timeout before there is a measurement, the least and the greatest, ns. The least is Linux', RFC 6298
#: would have a second.
_FIRST_RTO, _MIN_RTO, _MAX_RTO = _SECOND, _SECOND // 5, 8 * _SECOND
#: How often one segment, or a probe of a closed window, is sent again before the connection is given up.
MAX_RETRIES = 8
#: Runs that wait for others before them; with more, those that come are dropped.
_MAX_RUNS = 8192


class TcpError(Exception):
    """The connection has ended: reset by the peer, or given up because it does not answer."""


class Flag(IntFlag):
    """Control bits."""

    FIN = 0x01
    SYN = 0x02
    RST = 0x04
    PSH = 0x08
    ACK = 0x10


@dataclass(frozen=True)
class Header:
    """A TCP header.

    Attributes:
        source_port: of the sender.
        destination_port: of the receiver.
        sequence: of the first byte of payload, or of SYN or FIN.
        acknowledgement: the sequence number that is expected next, if `flags` has ACK.
        flags: control bits.
        window: as it is in the header, not scaled.
        mss: option, the largest segment; None: not there.
        scale: option, the window's scale; None: not there.
        sack_permitted: option.
        sack: option, first and one past the last sequence number of each block.
    """

    source_port: int
    destination_port: int
    sequence: int
    acknowledgement: int = 0
    flags: Flag = Flag.ACK
    window: int = 0
    mss: int | None = None
    scale: int | None = None
    sack_permitted: bool = False
    sack: tuple[tuple[int, int], ...] = ()

    def encode(self) -> bytes:
        """The header's bytes; its checksum is 0."""
        options = b""
        if self.mss is not None:
            options += struct.pack(">BBH", _MSS, 4, self.mss)
        if self.scale is not None:
            options += struct.pack(">BBBB", 1, _SCALE, 3, self.scale)
        if self.sack_permitted:
            options += struct.pack(">BBBB", 1, 1, _SACK_PERMITTED, 2)
        if self.sack:
            options += struct.pack(">BBBB", 1, 1, _SACK, 2 + 8 * len(self.sack))
            options += b"".join(struct.pack(">II", *block) for block in self.sack)
        length = (_HEADER.size + len(options)) // 4
        fixed = _HEADER.pack(
            self.source_port, self.destination_port, self.sequence, self.acknowledgement, length << 4, self.flags,
            self.window, 0, 0,
        )  # fmt: skip
        return fixed + options

    @classmethod
    def parse(cls, raw: bytes) -> tuple[Self, int]:
        """A header at the front of bytes, and its length. Options that are cut off are left out.

        Raises:
            ValueError: there is no whole header.
        """
        if len(raw) < _HEADER.size:
            raise ValueError(f"{len(raw)} bytes are no TCP header")
        source, destination, sequence, acknowledgement, offset, flags, window, _, _ = _HEADER.unpack_from(raw)
        length = (offset >> 4) * 4
        if not _HEADER.size <= length <= len(raw):
            raise ValueError(f"a TCP header of {length} bytes, of which there are {len(raw)}")
        mss = scale = None
        permitted = False
        blocks: tuple[tuple[int, int], ...] = ()
        place = _HEADER.size
        while place < length and raw[place]:
            if raw[place] == 1:
                place += 1
                continue
            size = raw[place + 1] if place + 1 < length else 0
            if size < 2 or place + size > length:
                break
            kind, body = raw[place], raw[place + 2 : place + size]
            if (kind, size) == (_MSS, 4):
                mss = int.from_bytes(body, "big")
            elif (kind, size) == (_SCALE, 3):
                scale = min(body[0], _SCALE_BITS)
            elif kind == _SACK_PERMITTED:
                permitted = True
            elif kind == _SACK and size % 8 == 2:
                blocks = tuple(struct.iter_unpack(">II", body))
            place += size
        header = cls(
            source, destination, sequence, acknowledgement, Flag(flags & 0x1F), window, mss, scale, permitted, blocks
        )
        return header, length


class Run(Protocol):
    """Bytes of a stream that follow one another."""

    @property
    def sequence(self) -> int:
        """Of the first byte."""

    @property
    def length(self) -> int:
        """How many bytes."""

    def part(self, start: int, length: int) -> Self:
        """`length` bytes from byte `start` on."""


@dataclass(frozen=True)
class Octets:
    """A run that has its bytes."""

    sequence: int
    data: bytes

    @property
    def length(self) -> int:
        """How many bytes."""
        return len(self.data)

    def part(self, start: int, length: int) -> Octets:
        """See `Run`."""
        return Octets(self.sequence + start & MASK, self.data[start : start + length])


R = TypeVar("R", bound=Run)


class Reassembly(Generic[R]):
    """Runs of a stream in whatever order they come, and as the stream has them. What came first is kept.

    Args:
        sequence: of the first byte.
        limit: see the attribute.

    Attributes:
        next: sequence number up to which the stream is complete.
        limit: bytes from there on up to which runs are taken.
    """

    def __init__(self, sequence: int, limit: int = 1 << 30) -> None:
        self.next = sequence
        self.limit = limit
        self._position = 0  # of `next`, in bytes from the beginning
        self._waiting: list[tuple[int, R]] = []  # by their positions; none overlap

    def put(self, run: R) -> bool:
        """A run has come; whether anything in it is new."""
        begin = self._position + _signed(run.sequence - self.next)
        start, end = max(begin, self._position), min(begin + run.length, self._position + self.limit)
        if len(self._waiting) >= _MAX_RUNS and start > self._position:
            return False
        place = bisect_left(self._waiting, start, key=lambda entry: entry[0])
        if place and (before := _end(self._waiting[place - 1])) > start:
            start = before
        new = False
        while start < end:
            stop = min(end, self._waiting[place][0]) if place < len(self._waiting) else end
            if start < stop:
                self._waiting.insert(place, (start, run.part(start - begin, stop - start)))
                new = True
                place += 1
            if place == len(self._waiting):
                break
            start = max(start, _end(self._waiting[place]))
            place += 1
        return new

    def take(self) -> list[R]:
        """The runs that continue the stream."""
        taken: list[R] = []
        for position, run in self._waiting:
            if position != self._position:
                break
            taken.append(run)
            self._position += run.length
        del self._waiting[: len(taken)]
        self.next = self.next + sum(run.length for run in taken) & MASK
        return taken

    def blocks(self, first: int) -> tuple[tuple[int, int], ...]:
        """What waits as SACK blocks, that with the sequence number `first` at the head (RFC 2018, section 4)."""
        merged: list[list[int]] = []
        for position, run in self._waiting:
            if merged and merged[-1][1] == position:
                merged[-1][1] = position + run.length
            else:
                merged.append([position, position + run.length])
        wanted = self._position + _signed(first - self.next)
        merged.sort(key=lambda block: not block[0] <= wanted < block[1])
        start = self.next - self._position
        return tuple((start + block[0] & MASK, start + block[1] & MASK) for block in merged[:_MAX_BLOCKS])


def _signed(difference: int) -> int:
    return ((difference & MASK) ^ 1 << 31) - (1 << 31)


def _end(entry: tuple[int, R]) -> int:
    return entry[0] + entry[1].length


class State(Enum):
    """How far a connection has come. Each way is closed by itself once it is established."""

    LISTEN = auto()
    SYN_SENT = auto()
    SYN_RECEIVED = auto()
    ESTABLISHED = auto()
    CLOSED = auto()


class Outgoing(NamedTuple):
    """A segment to be sent."""

    header: Header
    payload: bytes


@dataclass
class Counters:
    """What a connection has counted: segments sent for the first time with payload; sent again (`fast` by duplicate
    acknowledgements and what they lead to, `timeouts` of the timer, `again` all segments); received with payload, of
    them out of their order, and with nothing new.
    """

    sent: int = 0
    fast: int = 0
    timeouts: int = 0
    again: int = 0
    received: int = 0
    out_of_order: int = 0
    old: int = 0


class Connection(Generic[R]):
    """One end.

    Args:
        port: of this end.
        peer: port of the other end.
        sequence: initial sequence number.
        mss: largest segment that this end takes, and the largest it sends.
        window: bytes that may be received and not read; also the send buffer.

    Attributes:
        state: how far it is.
        error: why it has ended; None: it has not, or in order.
        counters: what has happened.
        mss: payload of the largest segments sent.
        ended: whether the peer has closed its way, and all of it was received.
    """

    def __init__(self, port: int, peer: int, *, sequence: int = 0, mss: int = 1460, window: int = 1 << 20) -> None:
        self.port, self.peer = port, peer
        self.state = State.CLOSED
        self.error: TcpError | None = None
        self.counters = Counters()
        self.mss = self._our_mss = mss
        self.ended = False
        self._window = window
        self._scale = max(0, (window - 1).bit_length() - 16)
        self._peer_scales = self._sack = False
        # Receive.
        self._stream: Reassembly[R] | None = None
        self._ready: list[R] = []
        self._unread = 0
        self._fin: int | None = None  # where the peer's way ends
        self._acknowledge = False
        self._acks: list[Header] = []
        # Send. Positions count from SYN, which is 0; the data's first byte is 1, and FIN comes after the last.
        self._initial = sequence
        self._buffer = bytearray()  # what is not acknowledged
        self._written = 0
        self._unacked = self._next = self._highest = 0
        self._closing = False
        self._peer_window = 0
        self._peer_scale = 0
        self._congestion = _INITIAL_WINDOW * mss
        self._threshold = 1 << 30
        self._duplicates = 0
        self._recover = 0
        self._recovering = False
        self._lost = False  # the first segment that is not acknowledged has to be sent again at once
        # Timer.
        self.due: int | None = None
        self._rto = _FIRST_RTO
        self._smoothed: float | None = None
        self._variance = 0.0
        self._timed: tuple[int, int] | None = None  # a position, and when it was sent for the first time
        self._retries = 0

    # What its user does

    def open(self) -> None:
        """Connect."""
        self.state = State.SYN_SENT

    def listen(self) -> None:
        """Wait for the peer's SYN."""
        self.state = State.LISTEN

    @property
    def room(self) -> int:
        """Bytes that `write` takes."""
        return 0 if self._closing else self._window - len(self._buffer)

    def write(self, data: bytes) -> int:
        """Have bytes sent; how many of them there was room for.

        Raises:
            TcpError: the connection has ended.
        """
        if self.error:
            raise self.error
        taken = data[: self.room]
        self._buffer += taken
        self._written += len(taken)
        return len(taken)

    def read(self) -> list[R]:
        """What continues the stream since the last call.

        Raises:
            TcpError: the connection has ended, and all was read.
        """
        if self.error and not self._ready:
            raise self.error
        ready, self._ready = self._ready, []
        if self._unread > self._window // 2:
            self._acknowledge = True  # the window was small, and the peer may wait for it
        self._unread = 0
        return ready

    def close(self) -> None:
        """Send FIN after what was written."""
        self._closing = True

    def abort(self) -> None:
        """Send RST, and forget the connection."""
        if self.state in (State.SYN_RECEIVED, State.ESTABLISHED):
            self._acks = [self._header(self._next, Flag.RST | Flag.ACK)]
        self._end(None)

    @property
    def next(self) -> int:
        """Sequence number that comes next from the peer, once the connection is established."""
        assert self._stream is not None
        return self._stream.next

    @property
    def idle(self) -> bool:
        """Whether all that was written is acknowledged."""
        return self._unacked > self._written

    @property
    def closed(self) -> bool:
        """Whether both ways have ended, or it was given up."""
        return self.state is State.CLOSED or (self.ended and self._closing and self._unacked == self._last)

    # What comes

    def arrive(self, header: Header, runs: Sequence[R], now: int) -> None:
        """A segment of this connection has come.

        Args:
            header: its header.
            runs: its payload.
            now: the time, ns.
        """
        if self.state is State.CLOSED:
            return
        if header.flags & Flag.RST:
            self._reset(header)
        elif self.state is State.LISTEN:
            if header.flags & (Flag.SYN | Flag.ACK) == Flag.SYN:
                self._synchronise(header)
                self.state = State.SYN_RECEIVED
        elif self.state is State.SYN_SENT:
            if header.flags & Flag.SYN and header.flags & Flag.ACK and self._position(header.acknowledgement) == 1:
                self._synchronise(header)
                self.state = State.ESTABLISHED
                self._take_acknowledgement(header, 0, now)
                self._acknowledge = True
        elif header.flags & Flag.SYN:
            # The acknowledgement of it was lost; a listener answers by its timer.
            self._acknowledge = self.state is State.ESTABLISHED
        elif header.flags & Flag.ACK:
            self._take_acknowledgement(header, sum(run.length for run in runs), now)
            self._take_payload(header, runs)

    def _reset(self, header: Header) -> None:
        if self.state is State.SYN_SENT:
            if header.flags & Flag.ACK and self._position(header.acknowledgement) == 1:
                self._end(TcpError(f"port {self.peer} refuses the connection"))
        elif self._stream is not None and header.sequence == self._expected:
            self._end(TcpError("the peer has reset the connection"))

    def _synchronise(self, header: Header) -> None:
        self._stream = Reassembly(header.sequence + 1 & MASK, self._window)
        self.mss = min(self._our_mss, 536 if header.mss is None else max(header.mss, 64))
        self._congestion = _INITIAL_WINDOW * self.mss
        self._peer_scales = header.scale is not None
        self._peer_scale = header.scale or 0
        self._sack = header.sack_permitted
        self._peer_window = header.window

    def _take_acknowledgement(self, header: Header, payload: int, now: int) -> None:
        position = self._position(header.acknowledgement)
        if not 0 <= position <= self._highest:
            self._acknowledge = True  # of something that was never sent
            return
        window = header.window if header.flags & Flag.SYN else header.window << self._peer_scale
        if self.state is State.SYN_RECEIVED and position > 0:
            self.state = State.ESTABLISHED
        if position > self._unacked:
            self._advance(position, now)
        elif (
            position == self._unacked < self._next and not payload and not header.flags & Flag.FIN
            and (window == self._peer_window or header.sack) and self._peer_window > 0
        ):  # fmt: skip
            self._duplicate()
        if position == self._unacked:
            if self._peer_window == 0:  # closed, but there is somebody
                self._retries = 0
                self.due = None
            self._peer_window = window

    def _advance(self, position: int, now: int) -> None:
        """All before a position is acknowledged."""
        acked = position - self._unacked
        begin = self._begin
        self._unacked = position
        del self._buffer[: self._begin - begin]
        self._next = max(self._next, position)
        if self._timed is not None and position > self._timed[0]:
            self._measure(now - self._timed[1])
            self._timed = None
        self._retries = 0
        self._duplicates = 0
        if self._recovering and position < self._recover:  # a partial one: the next segment is lost as well
            self._lost = True
            self._congestion = max(self._congestion - acked + self.mss, self.mss)
        elif self._recovering:
            self._recovering = False
            self._congestion = min(self._threshold, max(self._next - position, self.mss) + self.mss)
        elif self._congestion < self._threshold:
            self._congestion += min(acked, 2 * self.mss)
        else:
            self._congestion += max(self.mss * self.mss // self._congestion, 1)
        self.due = None if self._unacked == self._next else now + self._rto

    def _duplicate(self) -> None:
        self._duplicates += 1
        if self._recovering:
            self._congestion += self.mss
        elif self._duplicates == _DUPLICATES and self._unacked >= self._recover:
            self._threshold = max((self._next - self._unacked) // 2, 2 * self.mss)
            self._congestion = self._threshold + _DUPLICATES * self.mss
            self._recover, self._recovering, self._lost = self._highest, True, True
            self.counters.fast += 1

    def _take_payload(self, header: Header, runs: Sequence[R]) -> None:
        stream = self._stream
        assert stream is not None
        length = sum(run.length for run in runs)
        if header.flags & Flag.FIN:
            self._fin = header.sequence + length & MASK
        if length:
            self.counters.received += 1
            new = False
            stream.limit = self._window - self._unread
            for run in runs:
                new |= stream.put(run)
            taken = stream.take()
            self._ready += taken
            self._unread += sum(run.length for run in taken)
            self._acknowledge = True
            if not new:
                self.counters.old += 1
            if not taken:  # at once, and one for each: the sender counts them
                self.counters.out_of_order += new
                self._acks.append(self._header(self._next, Flag.ACK, stream.blocks(header.sequence)))
                self._acknowledge = False
        self._acknowledge |= bool(header.flags & Flag.FIN)
        self.ended |= stream.next == self._fin

    # What is sent

    def poll(self, now: int) -> list[Outgoing]:
        """What is to be sent now; to be called after every other call, and when it is `due`.

        Args:
            now: the time, ns.
        """
        out = [Outgoing(header, b"") for header in self._acks]
        self._acks = []
        if self.state in (State.CLOSED, State.LISTEN):
            return out
        if self.due is not None and now >= self.due and not self._time_out():
            return out
        if self.state is not State.ESTABLISHED:
            if self._next == 0:
                self._send_synchronise(out, now)
            return out
        if self._lost:
            self._lost = False
            self._send_segment(out, self._unacked, now)
            self.due = now + self._rto
        while self._may_send():
            self._send_segment(out, self._next, now)
        if self.due is None and self._unacked < self._last:
            self.due = now + self._rto
        if self._acknowledge:
            out.append(Outgoing(self._header(self._next, Flag.ACK), b""))
            self._acknowledge = False
        return out

    def _send_synchronise(self, out: list[Outgoing], now: int) -> None:
        listening = self.state is State.SYN_RECEIVED
        header = Header(
            self.port, self.peer, self._initial, self._stream.next if self._stream else 0,
            Flag.SYN | (Flag.ACK if listening else Flag(0)), min(self._window, 0xFFFF), mss=self._our_mss,
            scale=self._scale if self._peer_scales or not listening else None,
            sack_permitted=self._sack or not listening,
        )  # fmt: skip
        out.append(Outgoing(header, b""))
        self._next = self._highest = 1
        if self._retries == 0:
            self._timed = (0, now)
        self.due = now + self._rto

    @property
    def _begin(self) -> int:
        """Position of the buffer's first byte."""
        return min(max(self._unacked, 1), 1 + self._written)

    @property
    def _last(self) -> int:
        """The position after all that was written, and FIN."""
        return 1 + self._written + self._closing

    @property
    def _expected(self) -> int:
        """The sequence number that comes next from the peer."""
        assert self._stream is not None
        return self._stream.next + self.ended & MASK

    def _may_send(self) -> bool:
        rest = self._last - self._next
        if not rest:
            return False
        flight = self._next - self._unacked
        limited = 0 if self._recovering else min(self._duplicates, _DUPLICATES - 1) * self.mss
        room = min(self._congestion + limited, self._peer_window) - flight
        return room >= min(self.mss, rest) or (flight == 0 and room > 0)

    def _send_segment(self, out: list[Outgoing], position: int, now: int) -> None:
        """Send a segment that begins at a position."""
        start = position - self._begin
        allowed = max(self._unacked + self._peer_window - position, 1)  # of a closed window one byte: a probe
        payload = bytes(self._buffer[start : start + min(self.mss, allowed)])
        end = position + len(payload)
        flags = Flag.ACK
        if end == 1 + self._written:
            if payload:
                flags |= Flag.PSH
            if self._closing:
                flags |= Flag.FIN
                end += 1
        out.append(Outgoing(self._header(position, flags), payload))
        self._acknowledge = False
        if position < self._highest:
            self.counters.again += 1
            if self._timed is not None and self._timed[0] >= position:
                self._timed = None  # Karn: nobody knows which of the two was acknowledged
        else:
            self.counters.sent += bool(payload)
            if self._timed is None:
                self._timed = (position, now)
        self._next = max(self._next, end)
        self._highest = max(self._highest, end)

    def _time_out(self) -> bool:
        """The timer has run down; false if the connection is given up."""
        self.due = None
        probe = self.state is State.ESTABLISHED and self._unacked == self._next
        if self._unacked == self._last:
            return True
        self._retries += 1
        if self._retries > MAX_RETRIES:
            self._end(TcpError(f"the peer does not answer: {MAX_RETRIES} retransmissions"))
            return False
        self._rto = min(2 * self._rto, _MAX_RTO)
        self._timed = None
        if probe:
            self._lost = True
            return True
        self.counters.timeouts += 1
        if self.state is State.ESTABLISHED:
            self._threshold = max((self._next - self._unacked) // 2, 2 * self.mss)
            self._congestion = self.mss
            self._recover, self._recovering = self._highest, False
            self._duplicates = 0
        self._next = self._unacked  # and all of it again, as the window allows
        return True

    def _measure(self, sample: int) -> None:
        if self._smoothed is None:
            self._smoothed, self._variance = float(sample), sample / 2
        else:
            self._variance += (abs(self._smoothed - sample) - self._variance) / 4
            self._smoothed += (sample - self._smoothed) / 8
        self._rto = min(max(round(self._smoothed + 4 * self._variance), _MIN_RTO), _MAX_RTO)

    def _header(self, position: int, flags: Flag, sack: tuple[tuple[int, int], ...] = ()) -> Header:
        assert self._stream is not None
        window = min(max(self._window - self._unread, 0) >> (self._scale if self._peer_scales else 0), 0xFFFF)
        blocks = sack if self._sack else ()
        return Header(
            self.port, self.peer, self._initial + position & MASK, self._expected, flags, window, sack=blocks
        )  # fmt: skip

    def _position(self, sequence: int) -> int:
        """Of a sequence number of this end's."""
        return self._unacked + _signed(sequence - self._initial - self._unacked)

    def _end(self, error: TcpError | None) -> None:
        self.state, self.error, self.due = State.CLOSED, error, None
