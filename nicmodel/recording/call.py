"""One call into a NIC from outside, with what the NIC has read for it and what it has done: the unit of a recording.

A recording is a list of them. Whatever reaches a NIC does so by a call: a message of the client's, frames from the
wire, a timer that is due, what somebody does at the control socket. While it lasts the NIC's clock stands still
(`nicmodel.recording.recorder`), so that calls in their order, with their times and what was read of guest memory, are
all that the NIC's doing depends on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from nicmodel.nic.purpose import Purpose
from nicmodel.packet.frames import FRAME, MAX_FRAME, Batch
from nicmodel.vfio_user.protocol import MAX_DATA_XFER, MOST_FDS, PciIrq, PciRegion

_END = 1 << 64
_MOST_TIME = 1 << 62
_MOST_FRAMES = 1 << 16

#: The fields of `FRAME` that say something of a frame, and not of its place in a batch, which is in the first two.
FIELDS = (FRAME.names or ())[2:]
_FIELD_ENDS = tuple(1 << 8 * FRAME[name].itemsize for name in FIELDS)


class RecordingError(ValueError):
    """Something is no recording, or one that cannot be used; the text is for a person."""


class Frame(NamedTuple):
    """A frame: its bytes, and the values of `FIELDS`."""

    data: bytes
    values: tuple[int, ...]

    @property
    def fields(self) -> dict[str, int]:
        """Those by name."""
        return dict(zip(FIELDS, self.values, strict=True))


class Sent(NamedTuple):
    """What the wire was given once.

    Attributes:
        all_taken: whether the NIC could go on, or had to wait for the wire.
        frames: those that the wire took.
    """

    all_taken: bool
    frames: tuple[Frame, ...]


#: `Access.purpose` of what the NIC itself has not read, but who checks its driver (`nicmodel.observe.findings`).
LOOKED_AT = len(Purpose)


class Access(NamedTuple):
    """Bytes of guest memory that the NIC has read or written: where, which, and what for (`Purpose`)."""

    address: int
    data: bytes
    purpose: int


@dataclass
class Call:
    """A call.

    Attributes:
        name: one of `CALLS`.
        time: the NIC's clock, ns.
        turn: number of the event loop's turn.
        arguments: as JSON has them; see `CALLS`.
        reads: what was read of guest memory, as it was before the NIC itself wrote there.
        answer: what a register read was answered; None: it was no read.
        error: the number of the error that the caller was given; 0: none.
        writes: what was written to guest memory, in order.
        vectors: MSI-X vectors that were raised, in order.
        sent: what the wire was given.
        faults: names of faults on demand that have struck.
        expected: whether what the NIC has done is known. Where a recording was made smaller, it is not for most calls.
    """

    name: str
    time: int
    turn: int
    arguments: list[Any]
    reads: list[Access] = field(default_factory=list)
    answer: bytes | None = None
    error: int = 0
    writes: list[Access] = field(default_factory=list)
    vectors: list[int] = field(default_factory=list)
    sent: list[Sent] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)
    expected: bool = True

    def as_json(self) -> dict[str, Any]:
        """Ready for JSON; what is empty is left out."""
        fields: dict[str, Any] = {"call": self.name, "time": self.time, "turn": self.turn}
        if self.arguments:
            fields["arguments"] = self.arguments
        if self.reads:
            fields["reads"] = _accesses(self.reads)
        if not self.expected:
            return fields | {"expected": False} | ({"sent": _sent(self.sent)} if self.sent else {})
        if self.answer is not None:
            fields["answer"] = self.answer.hex()
        if self.error:
            fields["error"] = self.error
        if self.writes:
            fields["writes"] = _accesses(self.writes)
        if self.vectors:
            fields["vectors"] = self.vectors
        if self.sent:
            fields["sent"] = _sent(self.sent)
        if self.faults:
            fields["faults"] = self.faults
        return fields

    @classmethod
    def parse(cls, fields: Any) -> Call:
        """The call that `as_json` has made this of.

        Raises:
            RecordingError: it can be none.
        """
        if not isinstance(fields, dict):
            raise RecordingError("a call is no record")
        name = fields.get("call")
        if not isinstance(name, str) or name not in CALLS:
            raise RecordingError(f"there is no call {str(name)[:40]!r}")
        try:
            answer = fields.get("answer")
            return cls(
                name,
                number(fields.get("time"), _MOST_TIME),
                number(fields.get("turn"), _MOST_TIME),
                CALLS[name](*_list(fields.get("arguments", []))),
                [_access(one) for one in _list(fields.get("reads", []))],
                None if answer is None else octets(answer),
                number(fields.get("error", 0), 1 << 12),
                [_access(one) for one in _list(fields.get("writes", []))],
                [number(one, 1 << 12) for one in _list(fields.get("vectors", []))],
                [
                    Sent(flag(all_taken), tuple(frame(one) for one in _list(some)))
                    for all_taken, some in map(_list, _list(fields.get("sent", [])))
                ],
                [text(one) for one in _list(fields.get("faults", []))],
                flag(fields.get("expected", True)),
            )
        except (TypeError, ValueError) as error:
            reason = error if isinstance(error, RecordingError) else "its fields are not those of such a call"
            raise RecordingError(f"a call of {name} is damaged: {reason}") from None


def frames_of(batch: Batch, first: int = 0) -> list[Frame]:
    """Copies of the frames of a batch, from number `first` on."""
    records = batch.frames[first : batch.count].tolist()
    return [Frame(batch.data[start : start + size].tobytes(), tuple(rest)) for start, size, *rest in records]


def batch_of(frames: Iterable[Frame], used: int) -> Batch:
    """A batch that has these frames, and of whose bytes so many are in use."""
    frames = list(frames)
    batch = Batch(max(1, sum(len(one.data) for one in frames)), max(1, len(frames)))
    for place, one in enumerate(frames):
        batch.append(one.data)
        for name, value in one.fields.items():
            batch.frames[place][name] = value
    batch.used = used
    return batch


def as_list(one: Frame) -> list[Any]:
    """A frame as JSON has it."""
    values = list(one.values)
    while values and not values[-1]:
        values.pop()
    return [one.data.hex(), *values]


def _accesses(accesses: Iterable[Access]) -> list[list[Any]]:
    return [[address, data.hex(), purpose] for address, data, purpose in accesses]


def _sent(sent: Iterable[Sent]) -> list[list[Any]]:
    return [[all_taken, [as_list(one) for one in frames]] for all_taken, frames in sent]


# What comes from a file is not trusted. These raise RecordingError.


def number(value: Any, end: int) -> int:
    """A number from 0 up to, not including, `end`."""
    if type(value) is not int or not 0 <= value < end:
        raise RecordingError("a number is missing, or too large")
    return value


def flag(value: Any) -> bool:
    """True or False."""
    if type(value) is not bool:
        raise RecordingError("neither true nor false")
    return value


def text(value: Any) -> str:
    """Some text."""
    if not isinstance(value, str) or len(value) > 4096:
        raise RecordingError("no text, or too much")
    return value


def octets(value: Any) -> bytes:
    """Bytes, which are in hexadecimal."""
    if not isinstance(value, str):
        raise RecordingError("no bytes")
    return bytes.fromhex(value)


def frame(value: Any) -> Frame:
    """A frame, as `as_list` has it."""
    data, *values = _list(value)
    found = octets(data)
    if len(found) > MAX_FRAME or len(values) > len(FIELDS):
        raise RecordingError("a frame is too long")
    values += [0] * (len(FIELDS) - len(values))
    return Frame(found, tuple(number(one, end) for one, end in zip(values, _FIELD_ENDS, strict=True)))


def _list(value: Any) -> list[Any]:
    if not isinstance(value, list):
        raise RecordingError("no list")
    return value


def _access(value: Any) -> Access:
    address, data, purpose = _list(value)
    found = octets(data)
    if number(address, _END) + len(found) > _END:
        raise RecordingError("an address beyond the last")
    return Access(address, found, number(purpose, LOOKED_AT + 1))


def _nothing() -> list[Any]:
    return []


def _flag(value: Any) -> list[Any]:
    return [flag(value)]


def _text(value: Any) -> list[Any]:
    return [text(value)]


def _map(start: Any, size: Any, descriptor: Any, readable: Any, writable: Any) -> list[Any]:
    return [number(start, _END), number(size, _END), flag(descriptor), flag(readable), flag(writable)]


def _range(start: Any, size: Any) -> list[Any]:
    return [number(start, _END), number(size, _END + 1)]


def _irqs(index: Any, flags: Any, start: Any, count: Any, data: Any, descriptors: Any) -> list[Any]:
    small = [number(index, len(PciIrq)), *(number(one, 1 << 32) for one in (flags, start, count))]
    return [*small, octets(data).hex(), number(descriptors, MOST_FDS + 1)]


def _read(region: Any, offset: Any, count: Any) -> list[Any]:
    return [number(region, len(PciRegion)), number(offset, _END), number(count, MAX_DATA_XFER + 1)]


def _write(region: Any, offset: Any, data: Any) -> list[Any]:
    if not 0 < len(octets(data)) <= MAX_DATA_XFER:
        raise RecordingError("a write of nothing, or of too much")
    return [number(region, len(PciRegion)), number(offset, _END), data]


def _frames(used: Any, frames: Any) -> list[Any]:
    if len(_list(frames)) > _MOST_FRAMES:
        raise RecordingError("too many frames")
    return [number(used, 1 << 40), [as_list(frame(one)) for one in frames]]


def _due(due: Any) -> list[Any]:
    return [number(due, _END)]


#: The calls that there are, and for each what makes sure of its arguments.
CALLS: dict[str, Callable[..., list[Any]]] = {
    # Its life: whether the wire's far end is there; the client's name.
    "start": _flag,
    "attach": _text,
    "detach": _nothing,
    # What the client has to say: address, size, whether there is a descriptor, rights; what DEVICE_SET_IRQS has.
    "map": _map,
    "unmap": _range,
    "dma_changed": _nothing,
    "memory_lost": _nothing,
    "set_irqs": _irqs,
    "region_read": _read,
    "region_write": _write,
    "messages_read": _nothing,
    "reset": _nothing,
    # What the wire brings: bytes of its batch in use, and the frames; it takes frames again; its far end.
    "receive": _frames,
    "go_on": _nothing,
    "link": _flag,
    # What somebody does by hand.
    "inject": _frames,
    "send": _frames,
    "set_cable": _flag,
    "request_reset": _nothing,
    # What the NIC has asked the event loop for: when it was due.
    "timer": _due,
    "next_turn": _nothing,
    "when_idle": _nothing,
}
