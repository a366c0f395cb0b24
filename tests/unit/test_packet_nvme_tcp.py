"""The tracker of NVMe/TCP streams against a reader that has the whole stream, and headers that cannot be."""

from __future__ import annotations

import itertools
import random
import struct
from typing import Any, NamedTuple

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from nicmodel.jit.compiled import u64
from nicmodel.packet.crc32c import crc32c
from nicmodel.packet.nvme_tcp import (
    MAX_PDU,
    MAX_WINDOW,
    TRACKER,
    Order,
    Part,
    Sync,
    Verdict,
    advance,
    arrive,
    ask,
    confirm,
    find,
    start,
)

#: Sequence number of the first byte: it wraps in the stream.
START = 2**32 - 300


def crc(data: bytes) -> bytes:
    array = np.frombuffer(data, np.uint8)
    return int(crc32c(0, u64(array.ctypes.data), len(data))).to_bytes(4, "little")


class Pdu(NamedTuple):
    """A PDU as the tests describe it; `kind` as in its common header."""

    kind: int
    command: int = 0
    offset: int = 0
    length: int = 0
    padding: int = 0

    def encode(self, header_digest: bool, data_digest: bool) -> tuple[bytes, list[tuple[Part, int, int]]]:
        """Its bytes, and of each what it is: the part, and for data the command and the offset."""
        if self.kind == 1:
            return struct.pack("<BBBBI", 1, 0, 128, 0, 128) + bytes(120), _labels(Part.HEADER, 8, Part.PASSED, 120)
        if self.kind == 3:
            size = 24 + self.length % 129
            return struct.pack("<BBBBI", 3, 0, 24, 0, size) + bytes(size - 8), _labels(
                Part.HEADER, 8, Part.PASSED, size - 8
            )
        digest = 4 * header_digest
        if self.kind in (5, 9):
            header = struct.pack("<BBBBI", self.kind, header_digest, 24, 0, 24 + digest) + self.command.to_bytes(16)
            return header + (crc(header) if digest else b""), _labels(Part.HEADER, 24 + digest)
        start_of_data = 24 + digest + self.padding
        size = start_of_data + self.length + 4 * data_digest
        flags = header_digest | data_digest << 1 | 4
        header = struct.pack("<BBBBI", 7, flags, 24, start_of_data, size)
        header += struct.pack("<HHIII", self.command, 0, self.offset, self.length, 0)
        data = random.Random(self.offset).randbytes(self.length)
        raw = (
            header + (crc(header) if digest else b"") + bytes(self.padding) + data + (crc(data) if data_digest else b"")
        )
        labels = _labels(Part.HEADER, 24 + digest, Part.PASSED, self.padding)
        labels += [(Part.DATA, self.command, self.offset + k) for k in range(self.length)]
        return raw, labels + _labels(Part.DIGEST, 4 * data_digest)


def _labels(*parts: Any) -> list[tuple[Part, int, int]]:
    return [(part, 0, 0) for part, count in zip(parts[::2], parts[1::2], strict=True) for _ in range(count)]


PDUS = st.builds(
    Pdu,
    kind=st.sampled_from([1, 3, 5, 7, 7, 7, 7, 9]),
    command=st.integers(0, 0xFFFF),
    offset=st.integers(0, 2**32 - 1000),
    length=st.integers(1, 600),
    padding=st.sampled_from([0, 0, 4, 100]),
)
DIGESTS = st.tuples(st.booleans(), st.booleans())


class Stream:
    """The PDUs' bytes, what each of them is, and a tracker that begins with the first."""

    def __init__(self, pdus: list[Pdu], digests: tuple[bool, bool]) -> None:
        self.bytes = b""
        self.labels: list[tuple[Part, int, int]] = []
        self.starts = []
        for pdu in pdus:
            raw, labels = pdu.encode(*digests)
            assert len(raw) == len(labels)
            self.starts.append(len(self.bytes))
            self.bytes += raw
            self.labels += labels
        self.array = np.frombuffer(self.bytes + b"\0", np.uint8)
        self.tracker: Any = np.zeros(1, TRACKER).view(np.recarray)[0]
        start(self.tracker, START, *digests)

    def address(self, at: int) -> int:
        return u64(self.array.ctypes.data + at)

    def take(self, first: int, last: int) -> tuple[int, list[tuple[Part, int, int]], list[Verdict]]:
        """A segment: how many of its bytes are old, what the tracker says that the others are (as long as it tracks),
        and its verdicts.
        """
        tracker = self.tracker
        old = arrive(tracker, (START + first) % 2**32, last - first)
        at = first + old
        labels: list[tuple[Part, int, int]] = []
        verdicts = []
        while at < last and tracker.sync == Sync.TRACKING:
            taken = advance(tracker, self.address(at), last - at)
            assert 0 < taken <= last - at
            if tracker.taken == Part.DATA:
                labels += [(Part.DATA, int(tracker.command), int(tracker.run) + k) for k in range(taken)]
            else:
                labels += _labels(Part(tracker.taken), taken)
            if tracker.verdict:
                verdicts.append(Verdict(tracker.verdict))
            at += taken
        return old, labels, verdicts


def cut(length: int, seed: int, largest: int) -> list[tuple[int, int]]:
    rng = random.Random(seed)
    cuts = [0]
    while cuts[-1] < length:
        cuts.append(min(cuts[-1] + rng.randint(1, largest), length))
    return list(itertools.pairwise(cuts))


@given(st.lists(PDUS, min_size=1, max_size=8), DIGESTS, st.integers(0, 2**32), st.sampled_from([1, 7, 40, 400, 4000]))
def test_in_order(pdus: list[Pdu], digests: tuple[bool, bool], seed: int, largest: int) -> None:
    """However the stream is cut: each byte is known for what it is, and each digest holds."""
    stream = Stream(pdus, digests)
    labels, verdicts = [], []
    for first, last in cut(len(stream.bytes), seed, largest):
        old, some, found = stream.take(first, last)
        assert old == 0 and stream.tracker.order == Order.NEXT
        labels += some
        verdicts += found
    assert labels == stream.labels
    assert verdicts == [Verdict.GOOD] * (sum(pdu.kind == 7 for pdu in pdus) if digests[1] else 0)
    assert stream.tracker.next == (START + len(stream.bytes)) % 2**32


@given(st.lists(PDUS, min_size=2, max_size=8), DIGESTS, st.integers(0, 2**32), st.sampled_from([40, 400]))
def test_with_gaps_and_repeats(pdus: list[Pdu], digests: tuple[bool, bool], seed: int, largest: int) -> None:
    """What the tracker says is right, whatever is missing, comes late or twice. It loses its way only when a header is
    missing, and with the right answer it goes on.
    """
    stream = Stream(pdus, digests)
    rng = random.Random(seed)
    segments = [segment for segment in cut(len(stream.bytes), seed, largest) if rng.random() < 0.8]
    for _ in range(len(segments) // 3):
        place = rng.randrange(len(segments))
        segments.insert(rng.randrange(len(segments)), segments[place])
    end = known = 0  # the first byte that has not been seen, and the one that the tracker knows the stream from
    for first, last in segments:
        missing = stream.labels[max(end, known) : first]
        was = Sync(stream.tracker.sync)
        inside = stream.tracker.part == Part.HEADER and first > end
        old, labels, verdicts = stream.take(first, last)
        assert old == min(max(end - first, 0), last - first)
        assert set(verdicts) <= {Verdict.GOOD, Verdict.UNKNOWN}
        begun = first + old
        if was == Sync.TRACKING:
            lost = old < last - first and (inside or any(part == Part.HEADER for part, _, _ in missing))
            assert (stream.tracker.sync == Sync.SEARCHING) == lost
        if labels:
            passed = min(max(known - begun, 0), last - begun)
            assert labels == [(Part.PASSED, 0, 0)] * passed + stream.labels[begun + passed : last]
        end = max(end, last)
        if stream.tracker.sync == Sync.SEARCHING and rng.random() < 0.5:
            following = [at for at in stream.starts if at >= end]
            if following:
                known = following[0]
                assert confirm(stream.tracker, (START + known) % 2**32)
    assert stream.tracker.next == (START + end) % 2**32


@given(st.lists(PDUS, min_size=1, max_size=8), DIGESTS, st.integers(0, 500))
def test_find(pdus: list[Pdu], digests: tuple[bool, bool], skip: int) -> None:
    """From anywhere in random data the next header is found: of those that are looked for, the first that is whole."""
    stream = Stream(pdus, digests)
    skip %= len(stream.bytes)
    size = 24 + 4 * digests[0]
    expected = [
        at - skip
        for at, pdu in zip(stream.starts, pdus, strict=True)
        if at >= skip and pdu.kind in (5, 7, 9) and at + size <= len(stream.bytes)
    ]
    found = find(stream.tracker, stream.address(skip), len(stream.bytes) - skip)
    assert found == (expected[0] if expected else -1)


def tracked(sync: Sync = Sync.TRACKING, digests: tuple[bool, bool] = (False, False)) -> Stream:
    stream = Stream([Pdu(7, 5, 0, 100), Pdu(7, 6, 0, 100)], digests)
    if sync == Sync.ASKED:
        ask(stream.tracker, START)
    return stream


@pytest.mark.parametrize(
    ("at", "value"),
    [
        (0, 0x00), (0, 0x02), (0, 0x04), (0, 0x06), (0, 0x08), (0, 0xFF),  # types that a controller does not send
        (1, 0x01), (1, 0x02), (2, 0), (2, 23), (2, 128), (3, 0), (3, 23), (3, 26), (3, 255),
        (4, 123), (4, 125), (5, 1), (7, 0xFF), (16, 99), (16, 101), (19, 1),
    ],
)  # fmt: skip
@pytest.mark.parametrize("sync", [Sync.TRACKING, Sync.ASKED])
def test_bad_header(at: int, value: int, sync: Sync) -> None:
    """A byte of a header that makes it impossible: the tracker searches, and does not take it for one there either."""
    stream = tracked(sync)
    broken = bytearray(stream.bytes)
    broken[at] = value
    stream.array = np.frombuffer(bytes(broken), np.uint8)
    tracker = stream.tracker
    taken = advance(tracker, stream.address(0), 30)
    if tracker.sync == sync:
        taken += advance(tracker, stream.address(taken), 30 - taken)
    assert (tracker.sync, tracker.verdict, tracker.taken) == (Sync.SEARCHING, Verdict.BAD_HEADER, Part.HEADER)
    assert taken <= 24
    assert find(tracker, stream.address(0), 60) == -1


def test_bad_header_digest() -> None:
    stream = tracked(digests=(True, True))
    broken = bytearray(stream.bytes)
    broken[9] ^= 1
    stream.array = np.frombuffer(bytes(broken), np.uint8)
    _, labels, verdicts = stream.take(0, 28)
    assert len(labels) == 28 and verdicts == [Verdict.BAD_HEADER_DIGEST]
    assert stream.tracker.sync == Sync.SEARCHING


def test_bad_data_digest() -> None:
    """It costs nothing but the verdict."""
    stream = tracked(digests=(False, True))
    broken = bytearray(stream.bytes)
    broken[60] ^= 1
    stream.array = np.frombuffer(bytes(broken), np.uint8)
    _, labels, verdicts = stream.take(0, len(stream.bytes))
    assert labels == stream.labels and verdicts == [Verdict.BAD, Verdict.GOOD]


def test_longest_pdu() -> None:
    for length, sync in ((MAX_PDU, Sync.TRACKING), (MAX_PDU + 1, Sync.SEARCHING)):
        stream = tracked()
        header = struct.pack("<BBBBIHHIII", 7, 4, 24, 24, length, 1, 0, 0, length - 24, 0)
        stream.array = np.frombuffer(header, np.uint8)
        stream.take(0, len(header))
        assert stream.tracker.sync == sync


def test_candidate() -> None:
    """What may be a header is followed, and counts once it is confirmed."""
    for answer, sync in (
        (START, Sync.TRACKING),  # that is it
        (START + 40, Sync.SEARCHING),  # a PDU began in the middle of what was taken for one
        (START - 10, Sync.ASKED),  # the answer to an earlier question
        (START + 248, Sync.TRACKING),  # the next one is known
    ):
        stream = tracked(Sync.ASKED)
        arrive(stream.tracker, START, 100)
        at = 0
        while at < 100:
            at += advance(stream.tracker, stream.address(at), 100 - at)
        assert stream.tracker.sync == Sync.ASKED
        helped = confirm(stream.tracker, answer % 2**32)
        assert stream.tracker.sync == sync and helped == (sync == Sync.TRACKING)
    _, labels, _ = stream.take(100, 248)
    assert labels == _labels(Part.PASSED, 148)
    assert stream.tracker.part == Part.HEADER


@example(-MAX_WINDOW)
@given(st.integers(-(2**31), 2**31 - 1))
def test_arrive(distance: int) -> None:
    """A segment anywhere in the space of sequence numbers."""
    tracker = tracked().tracker
    before = int(tracker.next)
    old = arrive(tracker, (START + distance) % 2**32, 1000)
    moved = (int(tracker.next) - before) % 2**32
    if distance == 0:
        assert (tracker.order, old, moved) == (Order.NEXT, 0, 1000)
    elif 0 < distance <= MAX_WINDOW:
        assert (tracker.order, old, moved) == (Order.AHEAD, 0, distance + 1000)
        assert tracker.sync == Sync.SEARCHING
    elif -1000 < distance < 0:
        assert (tracker.order, old, moved) == (Order.OVERLAP, -distance, distance + 1000)
    else:
        assert (tracker.order, old, moved) == (Order.OLD, 1000, 0)
