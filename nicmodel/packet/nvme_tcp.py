"""NVMe/TCP as a host receives it: PDUs followed through the bytes of a TCP stream, from segment to segment.

    0       1       2       3       4               8
    +-------+-------+-------+-------+---------------+
    | type  | flags | HLEN  |  PDO  |     PLEN      |  common header; everything is little-endian
    +-------+-------+-------+-------+---------------+
    |     CCCID     |   reserved    |     DATAO     |  C2HData: command, offset in its data,
    +---------------+---------------+---------------+
    |     DATAL     |   reserved    |                  length
    +---------------+---------------+
    | HDGST, padding up to PDO, DATAL bytes of data, DDGST

A `TRACKER` is where one stream is. `arrive` says how a segment joins it; `advance` takes bytes, those of one part of
one PDU with each call. Bytes that are missing may be passed over as long as no header is among them, since the header
before them says where the next one is. Otherwise the tracker has lost its way: it looks for something that may be a
header (`find`), follows the PDUs from there (`ask`), and has to be told that it was one (`confirm`), for data may look
like anything.

Sources: NVM Express TCP Transport Specification 1.0, section 3.6 (PDUs) and 3.3.1.1 (digests, which are CRC32C);
Linux include/linux/nvme-tcp.h. Resynchronisation is that of the kernel series "nvme-tcp receive offloads".
"""

from __future__ import annotations

from enum import IntEnum, IntFlag

import numpy as np

from nicmodel.jit.addresses import load_u8, load_u32
from nicmodel.jit.compiled import Record, compiled, i64, inlined, u32, u64
from nicmodel.packet.crc32c import crc32c, crc32c_words


class PduType(IntEnum):
    """PDUs that a controller sends."""

    IC_RESPONSE = 0x1
    TERMINATE = 0x3
    CAPSULE_RESPONSE = 0x5
    DATA = 0x7
    READY_TO_TRANSFER = 0x9


class PduFlag(IntFlag):
    """Flags of the common header; the last two are of data only."""

    HEADER_DIGEST = 1
    DATA_DIGEST = 2
    LAST = 4
    SUCCESS = 8


#: Header of a C2HData PDU. CAPSULE_RESPONSE and READY_TO_TRANSFER have as many bytes.
DATA_HEADER = np.dtype(
    [
        ("type", "u1"),
        ("flags", "u1"),
        ("header_length", "u1"),
        ("data_offset_in_pdu", "u1"),
        ("length", "<u4"),
        ("command", "<u2"),
        ("reserved", "<u2"),
        ("offset", "<u4"),
        ("data_length", "<u4"),
        ("reserved2", "<u4"),
    ],
    align=False,
)
COMMON_HEADER_SIZE = 8
HEADER_SIZE = DATA_HEADER.itemsize
DIGEST_SIZE = 4

#: The longest PDU that is taken for one: more than a read of any host, and the bound of what one wrong header skips.
MAX_PDU = 1 << 24
#: A segment that is further ahead than the largest window of TCP is none of this stream (RFC 7323, section 2.3).
MAX_WINDOW = 1 << 30


class Sync(IntEnum):
    """Whether a tracker knows where PDUs begin."""

    #: It does not, and looks for a header.
    SEARCHING = 0
    #: It follows what may have been one, until it is told.
    ASKED = 1
    TRACKING = 2


class Order(IntEnum):
    """How a segment joins what the tracker has seen."""

    NEXT = 0
    #: Nothing in it is new.
    OLD = 1
    #: Its first bytes are old.
    OVERLAP = 2
    #: Bytes before it are missing.
    AHEAD = 3


class Part(IntEnum):
    """What `advance` takes, in the order in which a PDU has them."""

    #: Header and header digest.
    HEADER = 0
    #: Padding, or the rest of a PDU without data.
    PASSED = 1
    DATA = 2
    #: Data digest.
    DIGEST = 3


class Verdict(IntEnum):
    """What `advance` found out with the bytes it has taken."""

    NONE = 0
    #: The data digest holds.
    GOOD = 1
    #: It does not.
    BAD = 2
    #: Some of the data was not seen.
    UNKNOWN = 3
    #: No header can look like this; the tracker is searching.
    BAD_HEADER = 4
    #: The header digest does not hold; the tracker is searching.
    BAD_HEADER_DIGEST = 5


_SEARCHING = int(Sync.SEARCHING)
_ASKED = int(Sync.ASKED)
_TRACKING = int(Sync.TRACKING)
_NEXT = int(Order.NEXT)
_OLD = int(Order.OLD)
_OVERLAP = int(Order.OVERLAP)
_AHEAD = int(Order.AHEAD)
_HEADER = int(Part.HEADER)
_PASSED = int(Part.PASSED)
_DATA = int(Part.DATA)
_DIGEST = int(Part.DIGEST)
_NONE = int(Verdict.NONE)
_GOOD = int(Verdict.GOOD)
_BAD = int(Verdict.BAD)
_UNKNOWN = int(Verdict.UNKNOWN)
_BAD_HEADER = int(Verdict.BAD_HEADER)
_BAD_HEADER_DIGEST = int(Verdict.BAD_HEADER_DIGEST)
_IC_RESPONSE = int(PduType.IC_RESPONSE)
_TERMINATE = int(PduType.TERMINATE)
_RESPONSE = int(PduType.CAPSULE_RESPONSE)
_C2H_DATA = int(PduType.DATA)
_R2T = int(PduType.READY_TO_TRANSFER)
_DIGESTS = int(PduFlag.HEADER_DIGEST | PduFlag.DATA_DIGEST)

_SEQUENCES = 0xFFFF_FFFF
#: Of an IC_RESPONSE, which is all header, and the longest TERMINATE, which carries the header that was wrong.
_IC_SIZE = 128
_MAX_TERMINATE = 152

#: Where one stream is. The digests are what the two sides have agreed on; `next` is the sequence number that comes
#: next, `candidate` that of the header asked about. Of the PDU at hand: the `part` that comes next and the bytes that
#: are `left` of it; the `filled` bytes of its header, as `words`; the bytes in the `rest` of the PDU; its `data_length`
#: and its `command`; the `offset` of the next byte in the command's data; the `crc` of the data so far, if the `whole`
#: of it was seen; what is `received` of its digest. Of the last `arrive`: the `order`. Of the last `advance`: the part
#: that was `taken`, whether that has `ended`, the `verdict`, and for data the `run`: the offset of the first byte taken
#: in the command's data.
TRACKER = np.dtype(
    [
        ("sync", "<i4"),
        ("header_digest", "<i4"),
        ("data_digest", "<i4"),
        ("order", "<i4"),
        ("next", "<i8"),
        ("candidate", "<i8"),
        ("part", "<i4"),
        ("filled", "<i4"),
        ("left", "<i8"),
        ("rest", "<i8"),
        ("data_length", "<i8"),
        ("command", "<i4"),
        ("whole", "<i4"),
        ("offset", "<i8"),
        ("crc", "<i8"),
        ("received", "<i8"),
        ("taken", "<i4"),
        ("ended", "<i4"),
        ("verdict", "<i4"),
        ("run", "<i8"),
        ("words", "<u4", (7,)),
    ]
)


@inlined
def _begin(tracker: Record) -> None:
    """A PDU comes next."""
    tracker.part = _HEADER
    tracker.filled = 0
    tracker.left = COMMON_HEADER_SIZE
    tracker.rest = 0
    tracker.data_length = 0
    for k in range(7):
        tracker.words[k] = u32(0)


@compiled
def start(tracker: Record, sequence: int, header_digest: bool, data_digest: bool) -> None:
    """Follow a stream whose next PDU begins at a sequence number."""
    tracker.sync = _TRACKING
    tracker.next = sequence
    tracker.candidate = 0
    tracker.header_digest = i64(header_digest)
    tracker.data_digest = i64(data_digest)
    _begin(tracker)


@compiled
def lose(tracker: Record) -> None:
    """Forget where the PDU at hand ends, and search."""
    tracker.sync = _SEARCHING
    _begin(tracker)


@compiled
def ask(tracker: Record, sequence: int) -> None:
    """A header may begin at `sequence`, which comes next: follow it."""
    tracker.sync = _ASKED
    tracker.candidate = sequence & _SEQUENCES
    _begin(tracker)


@compiled
def confirm(tracker: Record, sequence: int) -> bool:
    """Learn that a PDU begins at `sequence`.

    Returns:
        Whether that helped: it is the header asked about, or one that is still to come. One that has passed unnoticed
        proves an earlier candidate wrong.
    """
    if tracker.sync == _ASKED and tracker.candidate == sequence:
        tracker.sync = _TRACKING
        return True
    ahead = (sequence - tracker.next) & _SEQUENCES
    if ahead <= MAX_WINDOW:
        _begin(tracker)
        tracker.sync = _TRACKING
        if ahead > 0:
            tracker.part = _PASSED
            tracker.left = ahead
            tracker.rest = ahead
        return True
    if tracker.sync == _ASKED and (sequence - tracker.candidate) & _SEQUENCES <= MAX_WINDOW:
        lose(tracker)
    return False


@inlined
def _is_common_header(word: int, length: int, header_digest: int, data_digest: int) -> bool:
    """Whether a PDU of a controller can begin with this word and PLEN."""
    kind = word & 0xFF
    flags = word >> 8 & 0xFF
    header = word >> 16 & 0xFF
    data = word >> 24
    if kind == _C2H_DATA:
        return (
            header == HEADER_SIZE
            and flags & _DIGESTS == header_digest | data_digest << 1
            and data >= HEADER_SIZE + DIGEST_SIZE * header_digest
            and data & 3 == 0
            and data + DIGEST_SIZE * data_digest < length <= MAX_PDU
        )
    if kind in (_RESPONSE, _R2T):
        return (
            header == HEADER_SIZE
            and flags == header_digest
            and data == 0
            and length == HEADER_SIZE + DIGEST_SIZE * header_digest
        )
    if kind == _TERMINATE:
        return header == HEADER_SIZE and HEADER_SIZE <= length <= _MAX_TERMINATE
    return kind == _IC_RESPONSE and header == length == _IC_SIZE


@inlined
def _is_data_length(word: int, length: int, data_length: int, data_digest: int) -> bool:
    """Whether the lengths of a C2HData header agree."""
    return data_length == length - (word >> 24) - DIGEST_SIZE * data_digest


@compiled
def find(tracker: Record, address: int, count: int) -> int:
    """Where in `count` bytes a whole header of data, a response or an R2T, with its digest, may be; -1: nowhere."""
    size = HEADER_SIZE + DIGEST_SIZE * i64(tracker.header_digest)
    header_digest = i64(tracker.header_digest)
    data_digest = i64(tracker.data_digest)
    for place in range(count - size + 1):
        position = u64(address) + u64(place)
        word = i64(load_u32(position))
        if word >> 16 & 0xFF != HEADER_SIZE or word & 0xFF == _TERMINATE:
            continue
        length = i64(load_u32(position + u64(4)))
        if not _is_common_header(word, length, header_digest, data_digest):
            continue
        if word & 0xFF == _C2H_DATA and not _is_data_length(
            word, length, i64(load_u32(position + u64(16))), data_digest
        ):
            continue
        if header_digest and crc32c(0, position, HEADER_SIZE) != i64(load_u32(position + u64(HEADER_SIZE))):
            continue
        return place
    return -1


@inlined
def _pass(tracker: Record, count: int) -> None:
    """Bytes of the part at hand, after the header, are taken: all that is left of it, or fewer."""
    if tracker.part == _DATA:
        tracker.offset += count
    tracker.left -= count
    tracker.rest -= count
    if tracker.left > 0:
        return
    tracker.ended = 1
    if tracker.part == _PASSED and tracker.data_length > 0:
        tracker.part = _DATA
        tracker.left = tracker.data_length
    elif tracker.part == _DATA and tracker.data_digest:
        tracker.part = _DIGEST
        tracker.left = DIGEST_SIZE
    else:
        _begin(tracker)


@inlined
def _fail(tracker: Record, verdict: int) -> None:
    lose(tracker)
    tracker.verdict = verdict


@inlined
def _end_header(tracker: Record) -> None:
    """All of a header is there: check it, and know what follows."""
    word = i64(tracker.words[0])
    length = i64(tracker.words[1])
    if tracker.filled == COMMON_HEADER_SIZE:
        if not _is_common_header(word, length, i64(tracker.header_digest), i64(tracker.data_digest)):
            _fail(tracker, _BAD_HEADER)
            return
        if word & 0xFF != _TERMINATE and word & 0xFF != _IC_RESPONSE:
            tracker.left = HEADER_SIZE + DIGEST_SIZE * tracker.header_digest - COMMON_HEADER_SIZE
            return
    elif tracker.header_digest and crc32c_words(tracker.words, 6) != i64(tracker.words[6]):
        _fail(tracker, _BAD_HEADER_DIGEST)
        return
    tracker.ended = 1
    tracker.rest = length - tracker.filled
    tracker.part = _PASSED
    if word & 0xFF != _C2H_DATA:
        tracker.left = tracker.rest
        if tracker.rest == 0:
            _begin(tracker)
        return
    if not _is_data_length(word, length, i64(tracker.words[4]), i64(tracker.data_digest)):
        _fail(tracker, _BAD_HEADER)
        return
    tracker.command = i64(tracker.words[2]) & 0xFFFF
    tracker.offset = i64(tracker.words[3])
    tracker.data_length = i64(tracker.words[4])
    tracker.crc = 0
    tracker.whole = 1
    tracker.received = 0
    tracker.left = (word >> 24) - tracker.filled
    if tracker.left == 0:
        tracker.part = _DATA
        tracker.left = tracker.data_length


@compiled
def advance(tracker: Record, address: int, count: int) -> int:
    """Take bytes of one part of one PDU off the front of the stream.

    Args:
        tracker: the stream, not searching.
        address: of the bytes in this process, unsigned.
        count: how many there are, at least one.

    Returns:
        How many were taken, at least one; the tracker says of what.
    """
    taken = min(i64(count), i64(tracker.left))
    tracker.taken = tracker.part
    tracker.ended = 0
    tracker.verdict = _NONE
    tracker.run = tracker.offset
    if tracker.part == _HEADER:
        for k in range(taken):
            place = i64(tracker.filled)
            byte = i64(load_u8(u64(address) + u64(k)))
            tracker.words[place >> 2] = u32(i64(tracker.words[place >> 2]) | byte << 8 * (place & 3))
            tracker.filled += 1
        tracker.left -= taken
        if tracker.left == 0:
            _end_header(tracker)
        return taken
    if tracker.part == _DATA:
        if tracker.data_digest and tracker.whole:
            tracker.crc = crc32c(tracker.crc, address, taken)
    elif tracker.part == _DIGEST:
        for k in range(taken):
            place = DIGEST_SIZE - i64(tracker.left) + k
            tracker.received |= i64(load_u8(u64(address) + u64(k))) << 8 * place
        if taken == tracker.left:
            if not tracker.whole:
                tracker.verdict = _UNKNOWN
            else:
                tracker.verdict = _GOOD if tracker.received == tracker.crc else _BAD
    _pass(tracker, taken)
    return taken


@inlined
def _pass_over(tracker: Record, gap: int) -> bool:
    """Do without the next `gap` bytes, at least one; whether no header is among them."""
    if tracker.part == _HEADER or gap > tracker.rest:
        return False
    tracker.whole = 0
    while gap > 0:
        count = min(gap, i64(tracker.left))
        gap -= count
        _pass(tracker, count)
    return True


@compiled
def arrive(tracker: Record, sequence: int, count: int) -> int:
    """A segment of `count` bytes has come: see how it joins the stream (`TRACKER.order`).

    Bytes that are missing before it are passed over, or make the tracker search.

    Returns:
        How many of its first bytes are old: the tracker goes on after them.
    """
    ahead = (i64(sequence) - i64(tracker.next)) & _SEQUENCES
    old = 0
    if ahead == 0:
        tracker.order = _NEXT
    elif ahead <= MAX_WINDOW:
        tracker.order = _AHEAD
        if tracker.sync != _SEARCHING and not _pass_over(tracker, ahead):
            lose(tracker)
    else:
        old = _SEQUENCES + 1 - ahead
        tracker.order = _OVERLAP
        if old >= count:
            tracker.order = _OLD
            return i64(count)
    tracker.next = (i64(sequence) + i64(count)) & _SEQUENCES
    return i64(old)
